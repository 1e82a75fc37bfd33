"""The training loop of a run: optimizer steps in chunks, evaluations between them, and a clock for training only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import numpy as np
import torch

from engine.common.errors import Diverged
from engine.config.schedules import lr_factor
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Artifact
from engine.events.target import columns_of, target_reached
from engine.events.training import Evaluation, Steps, TargetReached
from engine.planning import planner
from engine.pytorch.data import Examples
from engine.pytorch.setup import Clock, set_up_arithmetic, synchronize
from engine.pytorch.training.checkpoints import Checkpoints
from engine.pytorch.training.evaluation_grid import evaluation_grid
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import Stepper

_CHUNK_S = 0.1  # losses are read back this often: often enough for a chart, too seldom to slow the steps
_MAX_CHUNK = 2_000


class TrainingLoop:
    """Optimizer steps in chunks with evaluations between them; training time excludes the evaluations.

    `clock` gives seconds, and `origin` is its reading at `elapsed_s` = 0.
    """

    def __init__(
        self, net: Net, stepper: Stepper, held_out: Examples, plan: planner.Plan, clock: Clock, origin: float
    ) -> None:
        self.net, self.stepper, self.held_out, self.clock, self.origin = net, stepper, held_out, clock, origin
        self.config, self.total_steps = net.config, plan.total_steps
        self.device = torch.device(self.config.device)
        self.evaluation_batch, self.batch_size = plan.evaluation_batch, plan.batch_size
        self.step = self.samples = 0
        self.train_s = 0.0
        self.checkpoints = Checkpoints(net.config, net.model, plan.total_steps) if net.config.checkpoints else None
        self.chunk = 1  # grows until a chunk takes _CHUNK_S: the first point comes after one step
        self.grid = evaluation_grid(len(held_out))
        self.next_evaluation = next(self.grid)  # samples
        self.evaluations: deque[Evaluation] = deque(maxlen=3)  # the last ones: two that reach a target, and one before

    def run(self) -> Iterator[AnyEvent]:
        """Train until the budget is spent or the target is reached; yields Steps, Evaluation and TargetReached events.

        Raises:
            Diverged: The training loss became NaN or infinite.
        """
        if self.checkpoints:
            self.checkpoints.keep_if_due(0, 0.0)
        yield self._evaluate()
        while not self._is_over():
            event = self._steps(self._next_chunk())
            yield event
            self._check(event)
            if self.checkpoints:
                self.checkpoints.keep_if_due(self.step, self.train_s)
            if self._evaluation_is_due():
                yield self._evaluate()
                if target := self._target_reached():
                    yield target
                    return
        if self.evaluations[-1].step != self.step:
            yield self._evaluate()
            if target := self._target_reached():
                yield target

    def save_checkpoints(self, folder: Path) -> Artifact:
        """Write the checkpoints, the last weights included, to `folder`, and return the file's Artifact event."""
        assert self.checkpoints is not None
        self.checkpoints.end(self.step, self.train_s)
        return self.checkpoints.save(folder)

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
        else:  # a step has at most `batch_size` samples, so this many steps do not pass the point
            limits.append(ceil((self.next_evaluation - self.samples) / self.batch_size))
        if self.checkpoints:
            limits.append(self.checkpoints.steps_to_next(self.step, self.train_s))
        if (seconds := self.config.budget.seconds) is not None and self.step:
            left = (seconds - self.train_s) / (self.train_s / self.step)
            limits.append(max(1, ceil(left)))
        return min(limits)

    def _lrs(self, count: int) -> list[float]:
        """The learning rate of each of the next steps; with a time budget the schedule follows the training clock."""
        lr, per_step = self.config.optimizer.lr, self.train_s / self.step if self.step else 0.0
        if self.config.schedule == "constant" and self.step >= self.config.warmup_steps:
            return [lr] * count
        factors = []
        for i in range(count):
            share = (self.step + i) / self.total_steps if self.total_steps else 0.0
            if self.config.budget.seconds:
                share = max(share, (self.train_s + i * per_step) / self.config.budget.seconds)
            factors.append(lr_factor(self.config, self.step + i, min(share, 1.0)))
        return [lr * factor for factor in factors]

    def _steps(self, count: int) -> Steps:
        """Make `count` optimizer steps between two readings of the clock."""
        lrs = self._lrs(count)
        set_up_arithmetic(self.config)
        elapsed, start = self.clock() - self.origin, self.clock()
        chunk = self.stepper.steps(lrs)  # reading losses back waits for the device ...
        synchronize(self.device)  # ... but not for the last update
        took = self.clock() - start
        first, self.step = self.step + 1, self.step + count
        self.samples += int(chunk.samples.sum())
        train_s, self.train_s = self.train_s, self.train_s + took
        self.chunk = min(_MAX_CHUNK, max(1, round(count * min(4.0, _CHUNK_S / max(took, 1e-6)))))
        return Steps(
            first=first,
            loss=chunk.losses,
            samples=chunk.samples,
            lr=lrs[0] if min(lrs) == max(lrs) else np.array(lrs),
            train_s=(train_s, self.train_s),
            elapsed_s=(elapsed, elapsed + took),
            norm_steps=first + chunk.norm_at,
            grad_norm=chunk.norms,
        )

    def _check(self, event: Steps) -> None:
        bad = np.flatnonzero(~np.isfinite(event.loss))
        if len(bad):
            step, value = event.first + int(bad[0]), event.loss[bad[0]]
            raise Diverged(
                f"The loss became {'NaN' if np.isnan(value) else 'infinite'} at step {step} with "
                f"optimizer.lr={self.config.optimizer.lr:g}.",
                fix="Lower the learning rate.",
            )

    def _evaluation_is_due(self) -> bool:
        if isinstance(every := self.config.evaluate_every, int):
            return self.step % every == 0
        is_due = self.samples >= self.next_evaluation
        while self.samples >= self.next_evaluation:  # a large batch passes several points at once
            self.next_evaluation = next(self.grid)
        return is_due

    def _evaluate(self) -> Evaluation:
        """Measure test loss (a mean) and test accuracy over the whole test split; this is not training time."""
        set_up_arithmetic(self.config)
        start = self.clock()
        score = self.net.evaluated(self.held_out, self.evaluation_batch)
        now = self.clock()
        evaluation = Evaluation(
            step=self.step,
            train_s=self.train_s,
            elapsed_s=now - self.origin,
            test_loss=score.loss,
            test_accuracy=score.accuracy,
            test_accuracy_standard_error=score.standard_error,
            seconds=now - start,
        )
        self.evaluations.append(evaluation)
        return evaluation

    def _target_reached(self) -> TargetReached | None:
        """The TargetReached event, once the last two evaluations both reach the target."""
        return target_reached(self.config.target, columns_of(list(self.evaluations)))
