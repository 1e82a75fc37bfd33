"""The batch-size law as a task: many short training runs in one process, each one a Trial event.

At every batch size the learning rate is tuned on a logarithmic grid, which is extended until the best rate lies between
two worse ones (Shallue et al. 2019, JMLR 20(112)). Then other seeds measure at that rate, because the seeds that chose
it are biased in its favour.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch

from engine.config.run import RunConfig
from engine.data.datasets import Dataset
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Progress, Started
from engine.events.studies import Trial
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Batch, Batches, Examples, tensors
from engine.pytorch.loading import data_facts, load_dataset
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, synchronize, torch_device
from engine.pytorch.training import optimizers
from engine.pytorch.training.net import Net, cross_entropy
from engine.studies import paired_tests
from engine.studies.batch_law import GRID, PROBE

_WARM_UP_STEPS = 3
# Limits of steps, as multiples of a number of steps that reached the target:
_WORSE = 2.0  # a learning rate is given up after so many times the steps of the best one
_SLACK = 3.0  # a tuned larger batch needs no more steps than a smaller one; so many times as many are allowed for noise
_FAR = 10.0  # a measuring seed is given up after so many times the steps of the seeds that chose the rate
_WIDEST = 12  # grid points on either side of the first one that are tried until a learning rate reaches the target
_PROGRESS_EVERY_S = 0.25


def batch_law(config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter) -> Generator[AnyEvent, None, None]:
    """Yield the trials of every batch size of `config.law`, from the smallest to the largest.

    If no learning rate reaches the target at a batch size, its trials show that, and the next batch size follows.
    `clock` gives seconds. Nothing is left in `folder`.

    Raises:
        ConfigError: The data set cannot be downloaded or read.
        DeviceError: PyTorch does not see the device.
    """
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config)
    arrays = yield from load_dataset(config, clock)
    plan = planner.plan(config, data=arrays.facts)
    training, _ = tensors(arrays, config.model)
    yield Started(
        at=time.time(),
        parameters=plan.parameters,
        train_flops_per_example=plan.train_flops_per_example,
        train_examples=len(training),
        test_examples=plan.test_examples,
        total_steps=None,
        setup_s=clock() - begun,
        **data_facts(arrays),
        environment=environment(device),
    )
    bench = _Bench(config, arrays.facts, training.to(device), plan.evaluation_batch, clock)
    sizes = config.law.sizes(len(training))
    first = config.seed + config.law.tuning_seeds  # the first seed that measures
    lr, limit = config.optimizer.lr, config.law.max_steps
    for i, size in enumerate(sizes):
        bench.done, bench.total = i, len(sizes)
        best = yield from _tuned(bench, size, lr, limit)
        if best is None:
            continue
        lr, needed = best
        for seed in range(first, first + config.law.seeds):
            yield (yield from bench.trial(size, lr, seed, _at_most(config, _FAR * needed), tuning=False))
        limit = _at_most(config, _SLACK * needed)
    yield Progress(text="", done=len(sizes), total=len(sizes))


def _at_most(config: RunConfig, steps: float) -> int:
    return min(config.law.max_steps, ceil(steps) + 2)  # 2 more, because two evaluations must reach the target


def _tuned(bench: _Bench, size: int, start: float, limit: int) -> Generator[AnyEvent, None, tuple[float, float] | None]:
    """The best learning rate of the grid around `start`, and its steps to the target; None if none reaches it."""
    # By grid point: the geometric mean of the steps over the seeds, infinite if a seed did not reach the target.
    needed: dict[int, float] = {}
    law = bench.config.law

    def attempt(place: int) -> Generator[AnyEvent, None, None]:
        best, logs = min(needed.values(), default=math.inf), []
        allowed = limit if best == math.inf else min(limit, _at_most(bench.config, _WORSE * best))
        needed[place] = math.inf
        for seed in range(bench.config.seed, bench.config.seed + law.tuning_seeds):
            yield (trial := (yield from bench.trial(size, start * law.lr_factor**place, seed, allowed, tuning=True)))
            if trial.steps is None:
                return
            logs.append(math.log(max(trial.steps, 1e-9)))
        needed[place] = math.exp(sum(logs) / len(logs))

    for place in _from_center():
        yield from attempt(place)
        if needed[place] < math.inf:
            break
    else:
        return None
    best = place
    while missing := [neighbour for neighbour in (best + 1, best - 1) if neighbour not in needed]:
        yield from attempt(missing[0])
        best = min(needed, key=needed.__getitem__)
    return start * law.lr_factor**best, needed[best]


def _from_center() -> Iterator[int]:
    """0, 1, -1, 2, -2, ..."""
    yield 0
    for distance in range(1, _WIDEST + 1):
        yield from (distance, -distance)


@dataclass
class _Bench:
    """What all trials share: the training split, and the examples on which the training loss is measured."""

    config: RunConfig
    data: Dataset
    training: Examples
    evaluation_batch: int
    clock: Clock
    done: int = 0
    total: int = 1

    def __post_init__(self) -> None:
        self.device = torch.device(self.config.device)
        self.reported = -math.inf
        rows = torch.arange(len(self.training))
        if len(rows) > PROBE:  # the same examples for every trial
            rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PROBE]
        start = rows if self.training.y is not None else rows * self.training.seq_len
        x, y = self.training.take(start.to(self.device))
        self.probe = list(zip(x.split(self.evaluation_batch), y.split(self.evaluation_batch), strict=True))

    def trial(
        self, size: int, lr: float, seed: int, max_steps: int, *, tuning: bool
    ) -> Generator[AnyEvent, None, Trial]:
        """Train until two evaluations in a row reach the target, the loss is not finite, or `max_steps` are made."""
        net, source = self._net(size, lr, seed)
        step, train_s, target = 0, 0.0, self.config.law.target_loss
        steps, seconds, losses = [0], [0.0], [self._loss(net)]
        at = None
        while at is None and step < max_steps and math.isfinite(losses[-1]):
            count = min(max(1, int(step * (GRID - 1))), max_steps - step)
            train_s += yield from self._steps(net, source, count, f"batch {size}, learning rate {lr:.3g}, seed {seed}")
            step += count
            steps.append(step)
            seconds.append(train_s)
            losses.append(self._loss(net))
            at = paired_tests.to_target(steps[-3:], losses[-3:], target, lower_is_better=True)
        when = None if at is None else paired_tests.to_target(seconds[-3:], losses[-3:], target, lower_is_better=True)
        return Trial(
            batch_size=size,
            lr=lr,
            seed=seed,
            tuning=tuning,
            reached=at is not None,
            max_steps=max_steps,
            steps=at,
            samples=None if at is None else self._samples(at, size),
            train_s=when,
            step_s=train_s / step if step else None,
            last_loss=losses[-1],
        )

    def _steps(self, net: Net, source: Iterator[Batch], count: int, text: str) -> Generator[AnyEvent, None, float]:
        """Make `count` steps and return their seconds; the Progress events between them let the run be stopped."""
        train_s = 0.0
        while count:
            if self.clock() - self.reported >= _PROGRESS_EVERY_S:
                self.reported = self.clock()
                yield Progress(text=text, done=self.done, total=self.total)
            begun = self.clock()
            while count and self.clock() - begun < _PROGRESS_EVERY_S:
                net.backward(*next(source))
                net.update()
                count -= 1
            synchronize(self.device)
            train_s += self.clock() - begun
        return train_s

    def _net(self, size: int, lr: float, seed: int) -> tuple[Net, Iterator[Batch]]:
        model = models.build(
            self.config.model,
            self.data,
            seed=seed,
            device=self.device,
            checkpointing=self.config.activation_checkpointing,
        )
        net = Net(self.config, model, optimizers.build(self.config.optimizer, model), size)
        net.optimizer.lr = lr
        batches = Batches(self.training, size, seed)
        x, y = batches.first(size)
        for _ in range(_WARM_UP_STEPS):
            net.backward(x, y)
        net.forget_gradients()
        return net, iter(batches)

    def _loss(self, net: Net) -> float:
        """Mean loss over the probe examples, without label smoothing; this is not training time."""
        total = torch.zeros((), device=self.device)
        count = 0
        with torch.inference_mode(), net.averaged(), net.autocast():
            for x, y in self.probe:
                total += cross_entropy(net.model(x).float(), y, reduction="sum")
                count += y.numel()
        return total.item() / count

    def _samples(self, steps: float, size: int) -> int:
        """The number of samples in `steps` steps; the last batch of an epoch can be smaller."""
        epochs, rest = divmod(steps, ceil(len(self.training) / size))
        return round(epochs * len(self.training) + min(rest * size, len(self.training)))
