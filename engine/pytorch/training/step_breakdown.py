"""The step breakdown: a few steps are timed part by part, between two training steps and outside the training time.

The steps are rehearsed (`Net.rehearsal`): the learning rate is zero, all state is restored, and the batches come from
an order of their own. So the run computes the same to the last bit. Each of them fetches data, makes a step and reads
losses back, so every part is a median over the same moments. On a GPU the clocks are CUDA events in its stream, and the
host does not wait for them within a step: the parts then add up to the step, waiting for the host included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.run import RunConfig
from engine.events.training import StepSplit
from engine.planning import planner
from engine.pytorch.data import Batches, Examples
from engine.pytorch.setup import synchronize
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import DataLoaderStepper, Stepper, read_back

MOST_S = 0.2  # profiling takes at most so long ...
MOST_SHARE = 0.2  # ... and at most this share of the expected training time
_LONG_SHARE = 0.005  # but if this share of the training time is longer, it is allowed: the steps may be long
_SHARE = 0.75  # of that time for steps; the rest is for what surrounds them
_FEWEST, _MOST_STEPS = 3, 16  # profiled steps
_READ_BACK_S, _MOST_READ_BACK = 0.1, 2_000  # training reads losses back once per chunk (training/loop.py has the same)
_GATHERED_BYTES = 2 * 2**20  # of the batches that are gathered at once
_METHOD = "medians over {} extra steps, with clocks between their parts; on a GPU events in its stream"

Lap = Callable[[str], None]
# Fetches a batch: x, y, and the share of each lap on the way that belongs to one batch.
Fetch = Callable[[Lap], tuple[Tensor, Tensor, dict[str, float]]]


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
    reads_each = isinstance(stepper, DataLoaderStepper)
    found: list[dict[str, float]] = []
    losses: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), net.rehearsal():
        fetch = _loaded(net, training, plan) if reads_each else _gathered(training, plan, device)
        stepping = time.perf_counter()
        while len(found) <= _FEWEST or (
            len(found) <= _MOST_STEPS and time.perf_counter() - stepping < _SHARE * allowed
        ):
            laps = _Laps(device)
            laps("")
            x, y, shares = fetch(laps)
            loss = _step(net, x, y, laps, read_each=reads_each)
            seconds = laps.seconds()
            parts = {name: s for name, s in seconds.items() if name not in shares}
            parts["data"] = sum(seconds[name] * share for name, share in shares.items())
            if not found:  # the run's first step may have been interrupted, so this one decides
                step_s = min(step_s, sum(parts.values()))
                allowed = allowance_s(net.config, plan, step_s)
                if (_FEWEST + 1) * step_s > allowed:
                    return _left_out(step_s)
                losses = [loss.clone() for _ in range(_read_at_once(plan, step_s))]
            if not reads_each:
                parts["read_back"] = _read_back_s(losses, device)
            found.append(parts)
    del found[0]  # in the first one the caches are cold
    medians = {name: statistics.median(parts[name] for parts in found) for name in found[0]}
    return StepSplit(
        data_s=medians["data"],
        forward_s=medians["forward"],
        backward_s=medians["backward"],
        optimizer_s=medians["optimizer"],
        read_back_s=medians["read_back"],
        steps=len(found),
        seconds=time.perf_counter() - begun,
        method=_METHOD.format(len(found)),
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


def _read_at_once(plan: planner.Plan, step_s: float) -> int:
    """Number of losses that training reads back at once."""
    most = min(_MOST_READ_BACK, plan.total_steps or _MOST_READ_BACK)
    return max(1, min(most, round(_READ_BACK_S / max(step_s, 1e-6))))


def _read_back_s(losses: list[Tensor], device: torch.device) -> float:
    """Seconds per step for reading back the losses of a chunk of steps at once."""
    synchronize(device)
    begun = time.perf_counter()
    read_back(losses, [1] * len(losses), losses[:1])
    return (time.perf_counter() - begun) / len(losses)


def _gathered(training: Examples, plan: planner.Plan, device: torch.device) -> Fetch:
    """Fetches batches as `Batches` does: an order for the whole epoch, and a gather that serves one or more batches."""
    size = plan.batch_size
    batches = Batches(training, size, seed=0)
    example_bytes = training.x[0].nbytes if training.y is not None else 8 * training.seq_len
    at_once = max(1, min(len(training) // size, _GATHERED_BYTES // (example_bytes * size))) if batches.gathers else 1

    def fetch(lap: Lap) -> tuple[Tensor, Tensor, dict[str, float]]:
        if batches.full:  # every batch is the whole data set, which nothing copies
            assert training.y is not None
            return training.x, training.y, {}
        order = batches.order.epoch().to(device)
        lap("order")
        x, y = training.take(order[: at_once * size])
        parts = list(zip(x.split(size), y.split(size), strict=True))
        lap("data")
        return *parts[-1], {"order": size / len(training), "data": 1 / at_once}

    return fetch


def _loaded(net: Net, training: Examples, plan: planner.Plan) -> Fetch:
    """Fetches batches through a DataLoader, as a run with execution=dataloader does."""
    source = DataLoaderStepper(net, training, plan.batch_size, seed=0).loaded()

    def fetch(lap: Lap) -> tuple[Tensor, Tensor, dict[str, float]]:
        x, y = next(source)
        lap("data")
        return x, y, {"data": 1.0}

    return fetch
