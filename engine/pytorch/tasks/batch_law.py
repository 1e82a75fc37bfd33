"""The batch-size law as a task: many short training runs in one process, each one a Trial event.

`studies.lr_tuning` says which trials to make: at every batch size the learning rate is tuned, then other seeds measure.
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
from engine.events.target import to_target
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Batch, Batches, Examples, tensors
from engine.pytorch.loading import data_facts, load_dataset
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, synchronize, torch_device
from engine.pytorch.training import optimizers
from engine.pytorch.training.net import Net, cross_entropy
from engine.studies.batch_law import GRID, PROBE
from engine.studies.lr_tuning import Ask, Search, search

_WARM_UP_STEPS = 3
_PROGRESS_EVERY_S = 0.25


def batch_law(
    config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter, asks: Search = search
) -> Generator[AnyEvent, None, None]:
    """Yield the trials of every batch size of `config.law`, from the smallest to the largest.

    If no learning rate reaches the target at a batch size, its trials show that, and the next batch size follows. The run
    ends early when the training time of all trials reaches `config.budget.seconds`.
    `clock` gives seconds; `asks` says which trials to make. Nothing is left in `folder`.

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
    asking = asks(config.law, sizes, config.optimizer.lr, config.seed)
    ask, left_s = next(asking, None), config.budget.seconds or math.inf
    while ask:
        bench.done, bench.total = sizes.index(ask.batch_size), len(sizes)
        trial = yield from bench.trial(ask)
        yield trial
        left_s -= trial.trained_s or 0.0
        if left_s <= 0:
            break
        try:
            ask = asking.send(trial)
        except StopIteration:
            ask = None
    else:
        yield Progress(text="", done=len(sizes), total=len(sizes))


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

    def trial(self, ask: Ask) -> Generator[AnyEvent, None, Trial]:
        """Train until two evaluations in a row reach the target, the loss is not finite, or `max_steps` are made."""
        size, lr, seed, max_steps, tuning = ask
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
            at = to_target(steps[-3:], losses[-3:], target, lower_is_better=True)
        when = None if at is None else to_target(seconds[-3:], losses[-3:], target, lower_is_better=True)
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
            steps_made=step,
            samples_made=self._samples(step, size),
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
