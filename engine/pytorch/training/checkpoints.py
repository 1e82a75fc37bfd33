"""Checkpoints of a run: copies of all weights, made between its steps and outside its training time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine.config.run import RunConfig
from engine.events.lifecycle import Artifact
from engine.store import weight_path


class Checkpoints:
    """At most `config.checkpoints` copies of the weights: the first, then evenly over the budget, and the last.

    They are the weights that the optimizer moves, also if the run evaluates and saves an average of them.
    """

    def __init__(self, config: RunConfig, model: nn.Module, total_steps: int | None) -> None:
        self._params = list(model.parameters())
        self._most, self._total_steps, self._seconds = config.checkpoints, total_steps, config.budget.seconds
        self._weights = np.empty((self._most, sum(p.numel() for p in self._params)), np.float32)
        self._steps: list[int] = []
        self._train_s: list[float] = []
        # Copies are due at shares 0, 1 / (most - 1), ... of the budget; the last weights are always kept.
        self._passed = 0

    def steps_to_next(self, step: int, train_s: float) -> int:
        """How many steps the next chunk can make at most, so that it ends where the next copy is due."""
        left = []
        if self._total_steps is not None:
            left.append(math.ceil(self._next_share * self._total_steps) - step)
        if self._seconds is not None and step:
            left.append(math.ceil((self._next_share * self._seconds - train_s) / (train_s / step)))
        return max(1, min(left, default=1))

    def keep_if_due(self, step: int, train_s: float) -> None:
        """Copy the weights if a copy is due after `step` steps and `train_s` seconds of training."""
        if self._passed < self._most - 1 and self._progress(step, train_s) >= self._next_share:
            self._keep(step, train_s)
            while self._passed < self._most - 1 and self._progress(step, train_s) >= self._next_share:
                self._passed += 1

    def end(self, step: int, train_s: float) -> None:
        """Keep the last weights, unless one of them is NaN or infinite: the path then ends at the copy before."""
        if not self._steps or self._steps[-1] != step:
            self._keep(step, train_s)
            if not np.isfinite(self._weights[len(self._steps) - 1]).all():
                del self._steps[-1], self._train_s[-1]

    def save(self, folder: Path) -> Artifact:
        """Write the copies to the run's folder as `weight_path` describes, and return the file's Artifact event."""
        steps, train_s = np.array(self._steps, np.int64), np.array(self._train_s, np.float64)
        return weight_path.save(folder, weight_path.WeightPath(steps, train_s, self._weights[: len(steps)]))

    @property
    def _next_share(self) -> float:
        return self._passed / (self._most - 1) if self._most > 1 else 1.0

    def _progress(self, step: int, train_s: float) -> float:
        by_steps = step / self._total_steps if self._total_steps else 0.0
        return max(by_steps, train_s / self._seconds if self._seconds else 0.0)

    @torch.no_grad()
    def _keep(self, step: int, train_s: float) -> None:
        copy = torch.cat([p.reshape(-1) for p in self._params])
        self._weights[len(self._steps)] = copy.float().cpu().numpy()
        self._steps.append(step)
        self._train_s.append(train_s)
