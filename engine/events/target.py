"""When a series of evaluations reaches a target. The one rule of the product: runs, races, reports and pages use it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.common import units
from engine.common.errors import EngineError
from engine.config.training import Target
from engine.events.training import Evaluation, TargetReached

METRICS = ("test_loss", "test_accuracy")


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where a series reaches a target: between two of its evaluations, or at its first one."""

    before: int  # index of the evaluation before it; that of the first one if there is none
    first: int  # index of the first of two evaluations in a row that reach the target
    share: float  # of the way from `before` to `first`, 0 to 1, by linear interpolation of the values

    def on(self, axis: ArrayLike) -> float:
        """The position on an axis, of which `axis` (n,) has the positions of the evaluations."""
        at = np.asarray(axis, dtype=np.float64)
        return float(at[self.before] + self.share * (at[self.first] - at[self.before]))


def crossing(values: ArrayLike, target: float, *, lower_is_better: bool) -> Crossing | None:
    """Where `values` (n,) reach `target`: at the first of two evaluations in a row that reach it, interpolated from the
    evaluation before; None where there are none.

    One evaluation alone can be due to noise, because it is the best of many noisy values. So a series of which only the
    last evaluation reaches the target has not reached it. NaN never reaches it. There is nothing to interpolate at the
    first evaluation of all, and after a NaN or infinity.
    """
    series = np.atleast_1d(np.asarray(values, dtype=np.float64))
    reaches = _reaches(series, target, lower_is_better)
    both = np.flatnonzero(reaches[:-1] & reaches[1:])
    if not len(both):
        return None
    i = int(both[0])
    if i == 0:
        return Crossing(0, 0, 1.0)
    last, value = float(series[i - 1]), float(series[i])
    is_known = math.isfinite(last) and math.isfinite(value)
    return Crossing(i - 1, i, (target - last) / (value - last) if is_known else 1.0)


def to_target(x: ArrayLike, values: ArrayLike, target: float, *, lower_is_better: bool) -> float | None:
    """Position on the axis `x` (n,) where `values` (n,) reach `target`, as `crossing` says; None where they do not.

    Raises:
        EngineError: the lengths differ.
    """
    if np.shape(x) != np.shape(values):
        raise EngineError(
            f"There are {np.size(x)} positions but {np.size(values)} values.", fix="Give one of each per evaluation."
        )
    found = crossing(values, target, lower_is_better=lower_is_better)
    return found.on(x) if found else None


class Evaluations(Protocol):
    """The evaluations of a run by column, each (n,): step, seconds, elapsed, test_loss, test_accuracy."""

    def __getitem__(self, name: str, /) -> ArrayLike: ...


def columns_of(evaluations: Sequence[Evaluation]) -> dict[str, list[float]]:
    """Evaluations as columns."""
    fields = {"step": "step", "seconds": "train_s", "elapsed": "elapsed_s"} | {name: name for name in METRICS}
    return {name: [getattr(evaluation, field) for evaluation in evaluations] for name, field in fields.items()}


def target_reached(target: Target, evaluations: Evaluations) -> TargetReached | None:
    """The event of a run whose evaluations reach its target; None where they do not, or without a target."""
    if target.value is None:
        return None
    values, steps = np.asarray(evaluations[target.metric]), np.asarray(evaluations["step"])
    found = crossing(values, target.value, lower_is_better=target.metric == "test_loss")
    if found is None:
        return None
    return TargetReached(
        metric=target.metric,
        value=target.value if found.share < 1 else values[found.first],
        step=round(found.on(steps)),
        train_s=found.on(evaluations["seconds"]),
        elapsed_s=found.on(evaluations["elapsed"]),
        between=(steps[found.before], steps[found.first]),
    )


def when_reached(target: Target, reached: TargetReached | None, evaluations: Evaluations) -> str:
    """Where a run reached its target and how that is known, or why it counts as not reached, in words."""
    steps, values = np.asarray(evaluations["step"]), np.asarray(evaluations[target.metric])
    if reached is None:
        if (
            target.value is not None
            and len(values)
            and _reaches(values, target.value, target.metric == "test_loss")[-1]
        ):
            return f"not reached: only the last evaluation, after step {steps[-1]:,.0f}, reaches it, and it takes two in a row"
        return "not reached"
    words = f"reached at step {reached.step:,}, after {units.duration(reached.train_s)} of training"
    if reached.between is None:  # an old report without these evaluations
        return words
    before, first = reached.between
    if before == first:
        return f"{words} (measured by the first evaluation)"
    return f"{words} (derived: interpolated between the evaluations after steps {before:,} and {first:,})"


def _reaches(values: ArrayLike, target: float, lower_is_better: bool) -> NDArray[np.bool_]:
    series = np.asarray(values, dtype=np.float64)
    return series <= target if lower_is_better else series >= target
