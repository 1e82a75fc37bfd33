"""Downsampling of curves for charts: the extremes of each bucket are kept."""

from __future__ import annotations

import numpy as np


def minmax(y: np.ndarray, limit: int) -> np.ndarray:
    """Sorted indices, at most `limit` (>= 8), of the values of `y` (n,) that draw the same line as all of them.

    Each bucket of consecutive values keeps its smallest and largest one, so no spike is lost, and its first NaN or
    infinity, because the point where a loss diverged must stay visible. The first and the last value are also kept.
    """
    assert limit >= 8, "one bucket needs up to 5 points"
    n = len(y)
    if n <= limit:
        return np.arange(n)
    not_finite = ~np.isfinite(y)
    buckets = (limit - 2) // (3 if not_finite.any() else 2)
    size = -(-n // buckets)
    starts = np.arange(buckets) * size

    def grid(values: np.ndarray, padding: float) -> np.ndarray:
        full = np.full(buckets * size, padding)
        full[:n] = values
        return full.reshape(buckets, size)

    lowest = starts + grid(np.where(not_finite, np.inf, y), np.inf).argmin(axis=1)
    highest = starts + grid(np.where(not_finite, -np.inf, y), -np.inf).argmax(axis=1)
    not_finite_grid = grid(not_finite, 0).astype(bool)
    first_not_finite = (starts + not_finite_grid.argmax(axis=1))[not_finite_grid.any(axis=1)]
    kept = np.unique(np.concatenate([[0, n - 1], lowest, highest, first_not_finite]))
    return kept[kept < n]
