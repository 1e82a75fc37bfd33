"""The training task: a generator of events.

Where the speed comes from, against the loop of the tutorials: data stays on the device, each epoch is gathered once in
its random order and batches are views of it, the optimizer is fused, and losses are read back once per chunk of steps
instead of once per step.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from engine import families, hardware, planner, records
from engine.config import RunConfig
from engine.datasets import DATASETS
from engine.errors import DeviceError, Diverged
from engine.pytorch import data as datasets
from engine.pytorch import models, optim
from engine.records import AnyEvent

Clock = Callable[[], float]

_CHUNK_S = 0.1  # read losses back this often: a chart needs no more, a step feels no less
_MAX_CHUNK = 2_000
_WARM_UP_STEPS = 3
_EVALUATE_EVERY_S = 0.05  # of training time, at least
_EVALUATE_SHARE = 4  # and at least this many times as long as the last evaluation took
_GATHER_LIMIT_BYTES = 2**30  # an epoch larger than this is gathered batch by batch


def train(config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter) -> Iterator[AnyEvent]:
    """Train as `config` says; weights go to `folder`/model.safetensors.

    Raises Diverged when the loss becomes NaN or infinite, after the steps that led there were yielded.
    """
    begun = clock()
    device = _device(config)
    torch.set_num_threads(config.threads)
    facts = DATASETS[config.data]
    split = datasets.load(config.data, side=models.input_side(config.model)).to(device)
    model = models.build(config.model, facts, seed=config.seed, device=device)
    optimizer = optim.build(config.optimizer, model.parameters())
    plan = planner.plan(config)
    batches = _Batches(split.train_x, split.train_y, plan.batch_size, config.seed)
    _synchronize(device)
    origin = clock()  # of elapsed_s, the axis the hardware is on as well
    yield records.Started(
        at=time.time(),
        parameters=sum(p.numel() for p in model.parameters()),
        train_flops_per_example=families.train_flops_per_example(config.model, facts),
        train_examples=len(split.train_y),
        test_examples=len(split.test_y),
        total_steps=plan.total_steps,
        setup_s=clock() - begun,
        environment=_environment(device),
    )
    begun = clock()
    _warm_up(model, optimizer, batches, device)
    yield records.WarmUp(seconds=clock() - begun, steps=_WARM_UP_STEPS)
    yield from _Loop(config, model, optimizer, batches, split, device, plan.total_steps, clock, origin).run()
    yield _save(model, folder)


class _Batches:
    """Endless batches in a random order that depends on the seed and the epoch alone.

    Every example is seen once per epoch; the last batch of an epoch may be smaller.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, batch_size: int, seed: int) -> None:
        self.x, self.y, self.batch_size = x, y, batch_size
        self.full = batch_size == len(y)
        self.gathers = x.numel() * x.element_size() <= _GATHER_LIMIT_BYTES
        self._generator = torch.Generator(x.device).manual_seed(seed)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield from self._epoch()

    def _epoch(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.full:
            yield self.x, self.y  # order does not matter: no gather
            return
        order = torch.randperm(len(self.y), generator=self._generator, device=self.x.device)
        if self.gathers:  # one gather an epoch; its batches are views
            x, y = self.x.index_select(0, order), self.y.index_select(0, order)  # 2.5x as fast as self.x[order]
            yield from zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        else:
            for part in order.split(self.batch_size):
                yield self.x.index_select(0, part), self.y.index_select(0, part)


class _Loop:
    """Steps in chunks, evaluations between them, one clock for each."""

    def __init__(
        self,
        config: RunConfig,
        model: nn.Module,
        optimizer: optim.Optimizer,
        batches: _Batches,
        split: datasets.Split,
        device: torch.device,
        total_steps: int | None,
        clock: Clock,
        origin: float,
    ) -> None:
        self.config, self.model, self.optimizer, self.split = config, model, optimizer, split
        self.device, self.total_steps, self.clock = device, total_steps, clock
        self.batches = iter(batches)
        self.step = 0
        self.train_s = 0.0
        self.origin = origin
        self.chunk = 1  # grows until a chunk takes _CHUNK_S: the first point comes after one step
        self.evaluated = (-1, 0.0, 0.0)  # step, training clock, duration of the last evaluation

    def run(self) -> Iterator[AnyEvent]:
        yield self._evaluate()
        while not self._is_over():
            event = self._steps(self._next_chunk())
            yield event
            self._check(event)
            if self._evaluation_is_due():
                yield self._evaluate()
        if self.evaluated[0] != self.step:
            yield self._evaluate()

    def _is_over(self) -> bool:
        seconds = self.config.budget.seconds
        out_of_steps = self.total_steps is not None and self.step >= self.total_steps
        return out_of_steps or (seconds is not None and self.train_s >= seconds)

    def _next_chunk(self) -> int:
        limits = [self.chunk]
        if self.total_steps is not None:
            limits.append(self.total_steps - self.step)
        if isinstance(every := self.config.evaluate_every, int):
            limits.append(every - self.step % every)
        if (seconds := self.config.budget.seconds) is not None and self.step:
            left = (seconds - self.train_s) / (self.train_s / self.step)
            limits.append(max(1, math.ceil(left)))
        return min(limits)

    def _steps(self, count: int) -> records.Steps:
        """`count` optimizer steps between two readings of the clock."""
        model, optimizer, batches = self.model, self.optimizer, self.batches
        losses, sizes = [], []
        elapsed, start = self.clock() - self.origin, self.clock()
        for _ in range(count):
            x, y = next(batches)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(y))
        values = torch.stack(losses).cpu().numpy()  # reading back waits for the device ...
        _synchronize(self.device)  # ... but not for the last update
        took = self.clock() - start
        first, self.step = self.step + 1, self.step + count
        train_s, self.train_s = self.train_s, self.train_s + took
        self.chunk = min(_MAX_CHUNK, max(1, round(count * min(4.0, _CHUNK_S / max(took, 1e-6)))))
        return records.Steps(
            first=first,
            loss=values,
            samples=np.array(sizes),
            lr=self.config.optimizer.lr,
            train_s=(train_s, self.train_s),
            elapsed_s=(elapsed, elapsed + took),
        )

    def _check(self, event: records.Steps) -> None:
        bad = np.flatnonzero(~np.isfinite(event.loss))
        if len(bad):
            step, value = event.first + int(bad[0]), event.loss[bad[0]]
            raise Diverged(
                f"The loss became {'NaN' if np.isnan(value) else 'infinite'} at step {step} with optimizer.lr={self.config.optimizer.lr:g}.",
                fix="Lower the learning rate.",
            )

    def _evaluation_is_due(self) -> bool:
        step, train_s, took = self.evaluated
        if isinstance(every := self.config.evaluate_every, int):
            return self.step % every == 0
        return self.step > step and self.train_s - train_s >= max(_EVALUATE_EVERY_S, _EVALUATE_SHARE * took)

    def _evaluate(self) -> records.Evaluation:
        """Mean loss and accuracy over the whole held-out split; its time is not training time."""
        start = self.clock()
        self.model.eval()
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device, dtype=torch.int64)
        with torch.inference_mode():
            for x, y in zip(self.split.test_x.split(1000), self.split.test_y.split(1000), strict=True):
                logits = self.model(x)
                loss += F.cross_entropy(logits, y, reduction="sum")
                correct += (logits.argmax(1) == y).sum()
        self.model.train()
        n = len(self.split.test_y)
        test_loss, accuracy = loss.item() / n, correct.item() / n
        now = self.clock()
        self.evaluated = (self.step, self.train_s, now - start)
        return records.Evaluation(
            step=self.step,
            train_s=self.train_s,
            elapsed_s=now - self.origin,
            test_loss=test_loss,
            test_accuracy=accuracy,
            seconds=now - start,
        )


def _warm_up(model: nn.Module, optimizer: optim.Optimizer, batches: _Batches, device: torch.device) -> None:
    """First calls choose kernels and allocate. Forward and backward only: the weights stay as they were drawn."""
    x, y = batches.x[: batches.batch_size], batches.y[: batches.batch_size]
    for _ in range(_WARM_UP_STEPS):
        F.cross_entropy(model(x), y).backward()
        optimizer.zero_grad()
    _synchronize(device)


def _device(config: RunConfig) -> torch.device:
    if config.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise DeviceError(
                f"device={config.device} cannot be used: this PyTorch ({torch.__version__}) sees no CUDA device.",
                fix="Install the CUDA build of the same version (README, With a GPU), or choose device=cpu.",
            )
        if int(config.device.partition(":")[2]) >= torch.cuda.device_count():
            raise DeviceError(
                f"device={config.device} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices.",
                fix="Choose a smaller number.",
            )
    return torch.device(config.device)


def _synchronize(device: torch.device) -> None:
    """Kernels on a GPU run asynchronously: without this a clock would time their launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _environment(device: torch.device) -> dict[str, str | int | float | None]:
    return hardware.environment(hardware.probe(), str(device)) | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }


def _save(model: nn.Module, folder: Path) -> records.Artifact:
    """Weights without pickle, under a name that is there whole or not at all."""
    path, draft = folder / "model.safetensors", folder / ".model.safetensors"
    save_file({name: t.contiguous().cpu() for name, t in model.state_dict().items()}, draft)
    draft.chmod(0o600)
    draft.replace(path)
    content = path.read_bytes()
    return records.Artifact(name=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
