"""The training loop of a run: optimizer steps in chunks, evaluations between them, and a clock for training only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from engine.common.errors import Diverged
from engine.config.schedules import lr_factor
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Artifact
from engine.events.training import Evaluation, Steps, TargetReached
from engine.planning import planner
from engine.pytorch.data import Examples
from engine.pytorch.setup import Clock, set_up_arithmetic, synchronize
from engine.pytorch.training.checkpoints import Checkpoints
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import Stepper

_CHUNK_S = 0.1  # losses are read back this often: often enough for a chart, too seldom to slow the steps
_MAX_CHUNK = 2_000
# With evaluate_every=auto, training time between two evaluations is at least so long ...
_EVALUATE_EVERY_S = 0.05
_EVALUATE_SHARE = 4  # ... and at least so many times the duration of the last evaluation


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
        self.evaluation_batch = plan.evaluation_batch
        self.step = 0
        self.train_s = 0.0
        self.checkpoints = Checkpoints(net.config, net.model, plan.total_steps) if net.config.checkpoints else None
        self.chunk = 1  # grows until a chunk takes _CHUNK_S: the first point comes after one step
        self.evaluated = (-1, 0.0, 0.0)  # step, training clock, duration of the last evaluation
        self.reached: Evaluation | None = None  # the first of the evaluations in a row that reach the target

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
                evaluation = self._evaluate()
                yield evaluation
                if target := self._target_reached(evaluation):
                    yield target
                    return
        if self.evaluated[0] != self.step:
            evaluation = self._evaluate()
            yield evaluation
            if target := self._target_reached(evaluation):
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
        if self.checkpoints:
            limits.append(self.checkpoints.steps_to_next(self.step, self.train_s))
        if (seconds := self.config.budget.seconds) is not None and self.step:
            left = (seconds - self.train_s) / (self.train_s / self.step)
            limits.append(max(1, math.ceil(left)))
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
        step, train_s, took = self.evaluated
        if isinstance(every := self.config.evaluate_every, int):
            return self.step % every == 0
        return self.step > step and self.train_s - train_s >= max(_EVALUATE_EVERY_S, _EVALUATE_SHARE * took)

    def _evaluate(self) -> Evaluation:
        """Measure test loss (a mean) and test accuracy over the whole test split; this is not training time."""
        set_up_arithmetic(self.config)
        start = self.clock()
        score = self.net.evaluated(self.held_out, self.evaluation_batch)
        now = self.clock()
        self.evaluated = (self.step, self.train_s, now - start)
        return Evaluation(
            step=self.step,
            train_s=self.train_s,
            elapsed_s=now - self.origin,
            test_loss=score.loss,
            test_accuracy=score.accuracy,
            test_accuracy_standard_error=score.standard_error,
            seconds=now - start,
        )

    def _target_reached(self, evaluation: Evaluation) -> TargetReached | None:
        """The TargetReached event after two evaluations in a row that reach the target, because one can be luck.

        The time to the target is that of the first of the two.
        """
        target = self.config.target
        if target.value is None:
            return None
        value = getattr(evaluation, target.metric)
        if not (value >= target.value if target.metric == "test_accuracy" else value <= target.value):
            self.reached = None
            return None
        first, self.reached = self.reached, self.reached or evaluation
        if first is None:
            return None
        return TargetReached(
            metric=target.metric,
            value=getattr(first, target.metric),
            step=first.step,
            train_s=first.train_s,
            elapsed_s=first.elapsed_s,
        )
