"""Estimates of a scaling study from paired repeats: speed-up, means with intervals, Amdahl's and Gustafson's serial shares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.common.errors import EngineError
from engine.studies import paired_tests

Floats = NDArray[np.float64]

LEVEL = 0.95
_LEAST_FOR_INTERVAL = 3  # of two pairs Student's t is 12.7: an interval that says nothing


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from n paired repeats; no interval from fewer than three."""

    value: float
    low: float | None
    high: float | None
    n: int

    def scaled(self, factor: float) -> Estimate:
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Estimate(self.value * factor, low, high, self.n)

    @property
    def interval(self) -> str:
        """In words; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


def paired_ratio(values: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Geometric mean of values / baseline, one of each per repeat, with Student's t interval of the mean log ratio.

    What a repeat had in common, a machine that was warm or busy, is in both and cancels. Raises EngineError for values that
    are not positive numbers.
    """
    a, b = _row(values), _row(baseline)
    if a.shape != b.shape or not len(a):
        raise EngineError(f"{len(a)} values do not go with {len(b)}.", fix="Give one pair per repeat.")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise EngineError("A ratio needs numbers above 0.", fix="Leave out runs that took no steps, and name them.")
    logs = np.log(a) - np.log(b)
    mean, half = float(logs.mean()), _half_width(logs)
    if half is None:
        return Estimate(math.exp(mean), None, None, len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def mean_of(values: ArrayLike) -> Estimate:
    """Arithmetic mean with Student's t interval, of three values or more."""
    row = _row(values)
    mean, half = float(row.mean()), _half_width(row)
    return Estimate(mean, None if half is None else mean - half, None if half is None else mean + half, len(row))


def _half_width(values: Floats) -> float | None:
    n = len(values)
    if n < _LEAST_FOR_INTERVAL:
        return None
    return paired_tests.t_quantile((1 + LEVEL) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)


def serial_share(ranks: ArrayLike, speedups: ArrayLike) -> float:
    """Amdahl's serial share s by least squares of the times: T(n)/T(1) = s + (1 - s)/n.

    Not bounded: above 1 more ranks take longer than one, below 0 they gain more than their number; the law has no word for
    either. Raises EngineError where no point has more than one rank.
    """
    n, speedup = _points(ranks, speedups)
    x, y = 1 - 1 / n, 1 / speedup - 1 / n
    return float(x @ y / (x @ x))


def scaled_serial_share(ranks: ArrayLike, speedups: ArrayLike) -> float:
    """Gustafson's serial share s of the time of n ranks, by least squares: scaled speed-up = n - (n - 1) s."""
    n, speedup = _points(ranks, speedups)
    x, y = n - 1, n - speedup
    return float(x @ y / (x @ x))


def amdahl(serial: float, ranks: ArrayLike) -> Floats:
    n = np.asarray(ranks, dtype=np.float64)
    return np.asarray(1 / (serial + (1 - serial) / n), dtype=np.float64)


def _points(ranks: ArrayLike, speedups: ArrayLike) -> tuple[Floats, Floats]:
    n, speedup = _row(ranks), _row(speedups)
    if n.shape != speedup.shape:
        raise EngineError(
            f"{len(n)} numbers of ranks do not go with {len(speedup)} speed-ups.", fix="Give one for each."
        )
    if not (n > 1).any():
        raise EngineError("One rank alone has no serial share to be found.", fix="Measure two or more.")
    if not (np.isfinite(speedup).all() and (speedup > 0).all()):
        raise EngineError("A speed-up is a number above 0.", fix="Leave out runs that took no steps, and name them.")
    return n, speedup


def _row(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))
