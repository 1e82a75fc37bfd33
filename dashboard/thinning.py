"""What a browser gets of a table's rows after its cursor: how many, their means and marks, and numbers as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

FULL_POINTS = 1_500  # per trace, when a browser has nothing yet: about what a chart's pixels can show
FULL_MEANS = 500
_FEWEST_NEW_POINTS = 24  # per trace and update
_MARKS = 40


def limit(total: int, new: int, most: int, *, full: bool) -> int:
    """Points to send of `new` rows out of `total`: an update is as dense as the whole run would be drawn, so that a fast
    run does not fill the browser, and the half a run that one update brings is not drawn coarser than the rest."""
    return most if full else int(max(_FEWEST_NEW_POINTS, most * new / total))


def means(y: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Means of groups of consecutive rows of `y` (n,): last row, mean and number of finite rows of each group.

    The extremes that are kept of a noisy loss say nothing of its mean, so a smooth line must not be drawn through
    them: it is drawn through the means. None where `most` rows can all be sent: they are their own means.
    """
    group = -(-len(y) // most)
    if group <= 1:
        return None
    first = np.arange(0, len(y), group)
    finite = np.isfinite(y)
    n = np.add.reduceat(finite, first, dtype=int)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        mean = np.add.reduceat(np.where(finite, y, 0.0), first) / n
    return np.minimum(first + group, len(y)) - 1, mean, n


def marks(y: np.ndarray, before: float) -> list[tuple[int, str]]:
    """Where a value stops being a number: row and "NaN", "+inf" or "-inf" of the first of each such stretch."""
    odd = np.flatnonzero(~np.isfinite(y))
    found = []
    for i in odd[:10_000].tolist():
        word = _word(y[i])
        if word and word != _word(y[i - 1] if i else before):
            found.append((i, word))
    return found[:_MARKS]


def _word(value: float) -> str | None:
    if math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else "+inf" if value > 0 else "-inf"


def numbers(values: Iterable[float]) -> list[float | None]:
    return [short(v) for v in values]


def short(value: float | None) -> float | None:
    """Six significant digits are more than a chart can show; None for what JSON has no word for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
