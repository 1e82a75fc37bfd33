"""Copies of all weights while a run trains, between its steps and outside its clock."""

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
    """At most `config.checkpoints` copies: the first weights, then evenly along the run's budget, and the last ones.

    They are those the optimizer moves, also where an average of them is what the run evaluates and saves.
    """

    def __init__(self, config: RunConfig, model: nn.Module, total_steps: int | None) -> None:
        self._params = list(model.parameters())
        self._most, self._total_steps, self._seconds = config.checkpoints, total_steps, config.budget.seconds
        self._weights = np.empty((self._most, sum(p.numel() for p in self._params)), np.float32)
        self._steps: list[int] = []
        self._train_s: list[float] = []
        self._passed = (
            0  # marks behind the run, of those at 0, 1 / (most - 1), ...; the end has no mark, it is always kept
        )

    def steps_to_next(self, step: int, train_s: float) -> int:
        """How many steps the next chunk may take, so that a copy falls where it should."""
        left = []
        if self._total_steps is not None:
            left.append(math.ceil(self._mark * self._total_steps) - step)
        if self._seconds is not None and step:
            left.append(math.ceil((self._mark * self._seconds - train_s) / (train_s / step)))
        return max(1, min(left, default=1))

    def look(self, step: int, train_s: float) -> None:
        """Keep a copy where one is due."""
        if self._passed < self._most - 1 and self._progress(step, train_s) >= self._mark:
            self._keep(step, train_s)
            while self._passed < self._most - 1 and self._progress(step, train_s) >= self._mark:
                self._passed += 1

    def end(self, step: int, train_s: float) -> None:
        """Keep the last weights; not where they are no numbers any more: there the path ends before."""
        if not self._steps or self._steps[-1] != step:
            self._keep(step, train_s)
            if not np.isfinite(self._weights[len(self._steps) - 1]).all():
                del self._steps[-1], self._train_s[-1]

    def save(self, folder: Path) -> Artifact:
        steps, train_s = np.array(self._steps, np.int64), np.array(self._train_s, np.float64)
        return weight_path.save(folder, weight_path.WeightPath(steps, train_s, self._weights[: len(steps)]))

    @property
    def _mark(self) -> float:
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
