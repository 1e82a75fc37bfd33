"""The step breakdown: a few steps are timed part by part, between two training steps and outside the training time.

The steps are rehearsed (`Net.rehearsal`): the learning rate is zero, all state is restored, and the batches come from
an order of their own. So the run computes the same to the last bit. The steps follow each other as in training, because
between other work their caches are cold and they take up to twice as long. What training does once for many steps
(gathering an epoch, reading losses back) comes after them and gets as many clocks. On a GPU the clocks are CUDA events in
its stream, and the host does not wait for them: the parts then add up to the step, waiting for the host included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.run import RunConfig
from engine.events.training import StepSplit
from engine.planning import planner
from engine.pytorch.data import Batch, Batches, Examples
from engine.pytorch.setup import synchronize
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import DataLoaderStepper, Stepper, read_back

MOST_S = 0.2  # profiling takes at most so long ...
MOST_SHARE = 0.2  # ... and at most this share of the expected training time
_LONG_SHARE = 0.005  # but if this share of the training time is longer, it is allowed: the steps may be long
_FEWEST, _MOST_STEPS = 3, 16  # profiled steps
_READ_BACK_S, _MOST_READ_BACK = 0.1, 2_000  # training reads losses back once per chunk (training/loop.py has the same)
_GATHERED_BYTES = 2 * 2**20  # of the batches that are gathered at once
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
    reads_each = isinstance(stepper, DataLoaderStepper)
    batches = Batches(training, plan.batch_size, seed=0)
    laps: list[_Laps] = []
    with torch.random.fork_rng(devices=[]), net.rehearsal():
        source = DataLoaderStepper(net, training, plan.batch_size, seed=0).loaded() if reads_each else _source(batches)
        stepping = time.perf_counter()
        while len(laps) <= _FEWEST or (len(laps) <= _MOST_STEPS and time.perf_counter() - stepping < allowed / 2):
            laps.append(_Laps(device))
            loss = _step(net, source, laps[-1], read_each=reads_each)
            if len(laps) == 1:  # the run's first step may have been interrupted, so this one decides
                synchronize(device)
                step_s = min(step_s, time.perf_counter() - stepping)
                allowed = allowance_s(net.config, plan, step_s)
                if (_FEWEST + 1) * step_s > allowed:
                    return _left_out(step_s)
        del laps[0]  # in the first one the caches are cold
        found = [lap.seconds() for lap in laps]
        if not reads_each:
            step_s = statistics.median(sum(parts.values()) for parts in found)
            losses = [loss.clone() for _ in range(_read_at_once(plan, step_s))]
            for parts in found:  # what training does for many steps at once gets as many clocks
                parts["read_back"] = _read_back_s(losses, device)
                if batches.full or batches.gathers:
                    parts["data"] = _gathering_s(batches, device)
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


def _step(net: Net, source: Iterator[Batch], lap: Lap, *, read_each: bool) -> Tensor:
    """One step as `Net.backward` and `Net.update` make it, with a clock between its parts; returns its loss."""
    lap("")
    x, y = next(source)
    lap("data")
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


def _source(batches: Batches) -> Iterator[Batch]:
    """Endless batches as a run has them; of a data set that is gathered once per epoch, some that are gathered before."""
    if batches.full or not batches.gathers:
        yield from batches
    while True:
        yield from _gathered(batches, batches.order.epoch())


def _gathered(batches: Batches, order: Tensor) -> list[Batch]:
    """Batches of an epoch in this order from one gather: as many as `_GATHERED_BYTES` hold, at least one."""
    size, examples = batches.batch_size, batches.examples
    at_once = max(1, min(len(examples) // size, _GATHERED_BYTES // (examples.x[0].nbytes * size)))
    x, y = examples.take(order.to(examples.x.device)[: at_once * size])
    return list(zip(x.split(size), y.split(size), strict=True))


def _gathering_s(batches: Batches, device: torch.device) -> float:
    """Seconds of a step for drawing an epoch's order and gathering its batches."""
    if batches.full:
        return 0.0  # every batch is the whole data set, which nothing copies
    synchronize(device)
    begun = time.perf_counter()
    order = batches.order.epoch()
    drawn = time.perf_counter()
    number = len(_gathered(batches, order))
    synchronize(device)
    return (time.perf_counter() - drawn) / number + (drawn - begun) * batches.batch_size / len(batches.examples)
