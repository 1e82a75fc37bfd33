"""Where a step's time goes: a few steps taken apart by clocks, between two steps of training and outside its clock.

They are rehearsed (engine.pytorch.execution.Net.rehearsal): learning rate zero, states put back, batches of an order of
their own, so that what the run computes stays the same to the last bit. On a GPU the clocks are events in its stream,
which nobody waits for: the parts then add up to the step, waiting for the host included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from engine.config.run import RunConfig
from engine.events.training import StepSplit
from engine.planning import planner
from engine.pytorch.data import Batches, Examples
from engine.pytorch.training.steppers import DataLoaderStepper, Items, Net, Stepper, read_back

MOST_S = 0.2  # of any run ...
MOST_SHARE = 0.2  # ... and of a short one's training; a very long one may spend 0.5 % where steps are long
_LONG_SHARE = 0.005
_FEWEST, _MOST_STEPS = 2, 16  # profiled
_READ_BACK_S, _MOST_READ_BACK = 0.1, 2_000  # losses come back once in so long, see engine.pytorch.train
_DATA_BYTES = 32 * 2**20
_METHOD = "clocks between the parts of {} rehearsed steps, median; on a GPU events in its stream"

Lap = Callable[[str], None]


def split_step(net: Net, stepper: Stepper, training: Examples, plan: planner.Plan, *, step_s: float) -> StepSplit:
    """The parts of a step of this run, whose first one took `step_s`. To be asked after the first real step."""
    begun = time.perf_counter()
    if net.config.execution == "cuda-graph":
        return StepSplit(reason="A recorded CUDA graph is replayed as a whole: its parts cannot be told apart.")
    allowed = allowance_s(net.config, plan, step_s)
    if (_FEWEST + 1) * step_s > max(allowed, MOST_S):
        return _left_out(step_s)
    device = net.optimizer.params[0].device
    batches = Batches(training, plan.batch_size, seed=0)
    x, y = (t.to(device) for t in batches.first(plan.batch_size))
    reads_each = isinstance(stepper, DataLoaderStepper)
    laps: list[_Laps] = []
    with torch.random.fork_rng(devices=[]), net.rehearsal():
        stepping = time.perf_counter()
        while len(laps) <= _FEWEST or (len(laps) <= _MOST_STEPS and time.perf_counter() - stepping < allowed / 2):
            laps.append(_Laps(device))
            loss = _step(net, x, y, laps[-1], read_each=reads_each)
            if len(laps) == 1:  # the run's first step may have been interrupted: by this one it is decided
                _synchronize(device)
                step_s = min(step_s, time.perf_counter() - stepping)
                allowed = allowance_s(net.config, plan, step_s)
                if 2 * _FEWEST * step_s > allowed:
                    break
        if len(laps) == 1:
            return _left_out(step_s)
        del laps[0]  # the first one finds cold caches
        parts = _medians([lap.seconds() for lap in laps])
        step_s = sum(parts.values())
        if not reads_each:
            parts["read_back"] = _read_back_s(loss, step_s, device)
        fetch = _fetched_one_by_one_s if reads_each else _fetched_s
        parts["data"] = fetch(batches, device, allowed / 4)
    return StepSplit(
        data_s=parts["data"], forward_s=parts["forward"], backward_s=parts["backward"], optimizer_s=parts["optimizer"],
        read_back_s=parts["read_back"], steps=len(laps), seconds=time.perf_counter() - begun,
        method=_METHOD.format(len(laps)),
    )  # fmt: skip


def _left_out(step_s: float) -> StepSplit:
    return StepSplit(
        reason=f"A step takes {1e3 * step_s:.3g} ms: to profile a few would have cost this run more than it should."
    )


def allowance_s(config: RunConfig, plan: planner.Plan, step_s: float) -> float:
    """What profiling may take: little of a short run, and never much."""
    limits = [plan.total_steps * step_s] if plan.total_steps is not None else []
    limits += [config.budget.seconds] if config.budget.seconds is not None else []
    expected = min(limits, default=0.0)
    return max(min(MOST_S, MOST_SHARE * expected), _LONG_SHARE * expected)


class _Laps:
    """Time between moments, by the name of what was done before each."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._names: list[str] = []
        self._moments: list[float | torch.cuda.Event] = []

    def __call__(self, name: str) -> None:
        self._names.append(name)
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._moments.append(event)
        else:
            self._moments.append(time.perf_counter())

    def seconds(self) -> dict[str, float]:
        if self._cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for name, before, after in zip(self._names[1:], self._moments, self._moments[1:], strict=False):
            if isinstance(before, float) and isinstance(after, float):
                found[name] += after - before
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                found[name] += before.elapsed_time(after) / 1e3  # CUDA: ms
        return found


def _step(net: Net, x: Tensor, y: Tensor, lap: Lap, *, read_each: bool) -> Tensor:
    """One step as `Net.backward` and `Net.update` make it, with a clock between its parts; returns its loss."""
    lap("")
    loss = taken_apart(net, x, y, lap)
    if read_each:
        loss.item()
        lap("read_back")
    net.update()
    lap("optimizer")
    return loss


def taken_apart(net: Net, x: Tensor, y: Tensor, lap: Lap) -> Tensor:
    """`Net.backward` with a clock between forward and backward."""
    if net.manual_mlp:
        with torch.no_grad():
            log_p = net.manual_mlp.forward(x)
            lap("forward")
            net.manual_mlp.gradients(x, y, log_p)
            loss = F.nll_loss(log_p, y)
            lap("backward")
        return loss
    net.optimizer.zero_grad()
    total = torch.zeros((), device=y.device)
    lap("backward")
    for part_x, part_y in zip(x.split(net.micro_batch), y.split(net.micro_batch), strict=True):
        loss = net.forward(part_x, part_y) * (len(part_y) / len(y))
        lap("forward")
        (net.scaler.scale(loss) if net.scaler else loss).backward()
        total += loss.detach()
        lap("backward")
    return total


def _medians(found: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(parts[name] for parts in found) for name in found[0]}


def _read_back_s(loss: Tensor, step_s: float, device: torch.device) -> float:
    """What one step bears of reading the losses of many at once."""
    count = min(_MOST_READ_BACK, max(1, round(_READ_BACK_S / max(step_s, 1e-6))))
    losses = [loss.clone() for _ in range(count)]
    _synchronize(device)
    begun = time.perf_counter()
    read_back(losses, [1] * count, [loss])
    return (time.perf_counter() - begun) / count


def _fetched_s(batches: Batches, device: torch.device, allowed_s: float) -> float:
    """Seconds to fetch a batch: some of one epoch, and of the epoch's order a batch's part."""
    training, size = batches.examples, batches.batch_size
    if batches.full:
        return 0.0  # every batch is the data set as it lies there
    _synchronize(device)
    begun = time.perf_counter()
    order = batches.order.epoch().to(device)
    shuffled_s = (time.perf_counter() - begun) * size / len(training)
    example_bytes = training.x[0].nbytes if training.y is not None else 8 * training.seq_len
    some = max(1, min(_MOST_STEPS, len(training) // size, _DATA_BYTES // max(1, example_bytes * size)))
    fetched, begun = 0, time.perf_counter()
    if batches.gathers:  # one gather for all of them; batches are views
        x, y = training.take(order[: some * size])
        fetched = len(list(zip(x.split(size), y.split(size), strict=True)))
    else:
        for part in order[: some * size].split(size):
            training.take(part)
            fetched += 1
            if time.perf_counter() - begun > allowed_s:
                break
    _synchronize(device)
    return (time.perf_counter() - begun) / fetched + shuffled_s


def _fetched_one_by_one_s(batches: Batches, device: torch.device, allowed_s: float) -> float:
    """The same through a DataLoader of its own, as the tutorials have it."""
    training, size = batches.examples, batches.batch_size
    fetched, begun = 0, time.perf_counter()
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[: _MOST_STEPS * size]
    for x, y in DataLoader(Items(training), batch_size=size, sampler=chosen.tolist()):
        x.to(device), y.to(device)
        fetched += 1
        if time.perf_counter() - begun > allowed_s:
            break
    return (time.perf_counter() - begun) / fetched


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
