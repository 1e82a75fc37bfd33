"""The step breakdown: a few steps are timed part by part, between two training steps and outside the training time.

The steps are rehearsed (`Net.rehearsal`): the learning rate is zero, all state is restored, and the batches come from
an order of their own. So the run computes the same to the last bit. On a GPU the clocks are CUDA events in its stream,
and the host does not wait for them: the parts then add up to the step, waiting for the host included.
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
from engine.pytorch.setup import synchronize
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import DataLoaderStepper, Items, Stepper, read_back

MOST_S = 0.2  # profiling takes at most so long ...
MOST_SHARE = 0.2  # ... and at most this share of the expected training time
_LONG_SHARE = 0.005  # but if this share of the training time is longer, it is allowed: the steps may be long
_FEWEST, _MOST_STEPS = 2, 16  # profiled steps
_READ_BACK_S, _MOST_READ_BACK = 0.1, 2_000  # training reads losses back once per chunk (training/loop.py has the same)
_DATA_BYTES = 32 * 2**20  # of batches that are fetched to be timed
_METHOD = "clocks between the parts of {} extra steps, median; on a GPU events in its stream"

Lap = Callable[[str], None]


def split_step(net: Net, stepper: Stepper, training: Examples, plan: planner.Plan, *, step_s: float) -> StepSplit:
    """The StepSplit event: median seconds of each part of a step, or the reason why there are none.

    `step_s` is the duration of the run's first step. Call this after it, because torch.optim allocates its state in it.
    """
    begun = time.perf_counter()
    if net.config.execution == "cuda-graph":
        return StepSplit(reason="A captured CUDA graph is replayed as a whole, so its parts cannot be timed.")
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
            if len(laps) == 1:  # the run's first step may have been interrupted, so this one decides
                synchronize(device)
                step_s = min(step_s, time.perf_counter() - stepping)
                allowed = allowance_s(net.config, plan, step_s)
                if 2 * _FEWEST * step_s > allowed:
                    break
        if len(laps) == 1:
            return _left_out(step_s)
        del laps[0]  # in the first one the caches are cold
        parts = _medians([lap.seconds() for lap in laps])
        step_s = sum(parts.values())
        if not reads_each:
            parts["read_back"] = _read_back_s(loss, step_s, device)
        fetch = _fetched_one_by_one_s if reads_each else _fetched_s
        parts["data"] = fetch(batches, device, allowed / 4)
    return StepSplit(
        data_s=parts["data"],
        forward_s=parts["forward"],
        backward_s=parts["backward"],
        optimizer_s=parts["optimizer"],
        read_back_s=parts["read_back"],
        steps=len(laps),
        seconds=time.perf_counter() - begun,
        method=_METHOD.format(len(laps)),
    )


def _left_out(step_s: float) -> StepSplit:
    return StepSplit(
        reason=f"A step takes {1e3 * step_s:.3g} ms, so profiling a few steps would take too much of this run's time."
    )


def allowance_s(config: RunConfig, plan: planner.Plan, step_s: float) -> float:
    """Seconds that profiling can take in this run, whose steps take `step_s` seconds each."""
    limits = [plan.total_steps * step_s] if plan.total_steps is not None else []
    limits += [config.budget.seconds] if config.budget.seconds is not None else []
    expected = min(limits, default=0.0)
    return max(min(MOST_S, MOST_SHARE * expected), _LONG_SHARE * expected)


class _Laps:
    """A lap timer: a call names the part of the step that ended just now."""

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
        """Seconds of each part, added up over its laps."""
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
    loss = backward_in_parts(net, x, y, lap)
    if read_each:
        loss.item()
        lap("read_back")
    net.update()
    lap("optimizer")
    return loss


def backward_in_parts(net: Net, x: Tensor, y: Tensor, lap: Lap) -> Tensor:
    """`Net.backward` on a batch (x, y), with a call of `lap` after each forward and each backward pass."""
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
    """Seconds per step for reading back the losses of a chunk of steps at once."""
    count = min(_MOST_READ_BACK, max(1, round(_READ_BACK_S / max(step_s, 1e-6))))
    losses = [loss.clone() for _ in range(count)]
    synchronize(device)
    begun = time.perf_counter()
    read_back(losses, [1] * count, [loss])
    return (time.perf_counter() - begun) / count


def _fetched_s(batches: Batches, device: torch.device, allowed_s: float) -> float:
    """Seconds to fetch one batch of an epoch, including its share of drawing the epoch's order."""
    training, size = batches.examples, batches.batch_size
    if batches.full:
        return 0.0  # every batch is the whole data set, which nothing copies
    synchronize(device)
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
    synchronize(device)
    return (time.perf_counter() - begun) / fetched + shuffled_s


def _fetched_one_by_one_s(batches: Batches, device: torch.device, allowed_s: float) -> float:
    """As `_fetched_s`, through a DataLoader."""
    training, size = batches.examples, batches.batch_size
    fetched, begun = 0, time.perf_counter()
    chosen = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[: _MOST_STEPS * size]
    for x, y in DataLoader(Items(training), batch_size=size, sampler=chosen.tolist()):
        x.to(device), y.to(device)
        fetched += 1
        if time.perf_counter() - begun > allowed_s:
            break
    return (time.perf_counter() - begun) / fetched
