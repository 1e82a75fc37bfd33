"""Fewer points for the same picture: what a chart of a given width can show, extremes kept."""

from __future__ import annotations

import numpy as np


def minmax(y: np.ndarray, limit: int) -> np.ndarray:
    """Sorted indices, at most `limit`, of the rows of `y` (n,) that draw the same line.

    The smallest and largest value of each bucket of consecutive rows stay, so no spike is lost, and so do the first
    and the last row and the first NaN or infinity of each bucket: a loss that diverged must not be thinned away.
    """
    assert limit >= 8, "a bucket needs room for its extremes"
    n = len(y)
    if n <= limit:
        return np.arange(n)
    odd = ~np.isfinite(y)
    buckets = (limit - 2) // (3 if odd.any() else 2)
    size = -(-n // buckets)
    starts = np.arange(buckets) * size

    def grid(values: np.ndarray, padding: float) -> np.ndarray:
        full = np.full(buckets * size, padding)
        full[:n] = values
        return full.reshape(buckets, size)

    lowest = starts + grid(np.where(odd, np.inf, y), np.inf).argmin(axis=1)
    highest = starts + grid(np.where(odd, -np.inf, y), -np.inf).argmax(axis=1)
    oddities = grid(odd, 0).astype(bool)
    first_odd = (starts + oddities.argmax(axis=1))[oddities.any(axis=1)]
    kept = np.unique(np.concatenate([[0, n - 1], lowest, highest, first_odd]))
    return kept[kept < n]
