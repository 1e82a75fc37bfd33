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
_LEAST_FOR_INTERVAL = 3  # with two pairs Student's t is 12.7, and the interval is too wide to be useful


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from n paired repeats; no interval from fewer than three."""

    value: float
    low: float | None
    high: float | None
    n: int

    def scaled(self, factor: float) -> Estimate:
        """The estimate times a factor."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Estimate(self.value * factor, low, high, self.n)

    @property
    def interval(self) -> str:
        """The interval as text; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


def paired_ratio(values: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Geometric mean of values / baseline (n,), one of each per repeat, with Student's t interval of the mean log ratio.

    Pairs cancel what both runs of a repeat share, such as a warm or busy machine.

    Raises:
        EngineError: there are no pairs, the lengths differ, or a value is not a positive number.
    """
    a, b = _row(values), _row(baseline)
    if a.shape != b.shape or not len(a):
        raise EngineError(f"There are {len(a)} values but {len(b)} baselines.", fix="Give one pair per repeat.")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise EngineError("A ratio needs numbers above 0.", fix="Leave out runs that took no steps, and name them.")
    logs = np.log(a) - np.log(b)
    mean, half = float(logs.mean()), _half_width(logs)
    if half is None:
        return Estimate(math.exp(mean), None, None, len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def geometric_mean(values: ArrayLike) -> float | None:
    """Geometric mean of positive values (n,), None without one. The ratio of two such means is that of `paired_ratio`."""
    row = _row(values)
    return math.exp(float(np.log(row).mean())) if len(row) else None


def mean_of(values: ArrayLike) -> Estimate:
    """Arithmetic mean of values (n,), with Student's t interval from three values on."""
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

    It is not bounded. Above 1, several ranks take longer than one; below 0, the speed-up is larger than the number of ranks.
    The law covers neither case (`possible_share`). Raises EngineError where no point has more than one rank.
    """
    n, speedup = _points(ranks, speedups)
    x, y = 1 - 1 / n, 1 / speedup - 1 / n
    return float(x @ y / (x @ x))


def scaled_serial_share(ranks: ArrayLike, speedups: ArrayLike) -> float:
    """Gustafson's serial share s of the time of n ranks, by least squares: scaled speed-up = n - (n - 1) s.

    Raises EngineError where no point has more than one rank.
    """
    n, speedup = _points(ranks, speedups)
    x, y = n - 1, n - speedup
    return float(x @ y / (x @ x))


def possible_share(fitted: Estimate) -> tuple[Estimate | None, str]:
    """The fitted serial share, with an interval within 0..1; or None and the reason, as a part of a sentence.

    A share outside 0..1 is the fit of a law that does not hold.
    """
    low, high = fitted.low, fitted.high
    if low is not None and high is not None and high - low > 1:
        return None, "the repeats differ too much"
    if fitted.value > 1:
        return None, (
            "several ranks are slower than one. The law has no term for communication and cannot describe this; more ranks "
            "would not help"
        )
    if fitted.value < 0:
        return None, "the speed-up is larger than the number of ranks, which the law does not cover"
    inside = Estimate(
        fitted.value, None if low is None else max(0.0, low), None if high is None else min(1.0, high), fitted.n
    )
    return inside, ""


def amdahl(serial: float, ranks: ArrayLike) -> Floats:
    """The speed-up (n,) of Amdahl's law for rank counts (n,)."""
    n = np.asarray(ranks, dtype=np.float64)
    return np.asarray(1 / (serial + (1 - serial) / n), dtype=np.float64)


def _points(ranks: ArrayLike, speedups: ArrayLike) -> tuple[Floats, Floats]:
    n, speedup = _row(ranks), _row(speedups)
    if n.shape != speedup.shape:
        raise EngineError(f"There are {len(n)} rank counts but {len(speedup)} speed-ups.", fix="Give one for each.")
    if not (n > 1).any():
        raise EngineError("One rank is not enough to find a serial share.", fix="Measure two or more.")
    if not (np.isfinite(speedup).all() and (speedup > 0).all()):
        raise EngineError(
            "Each speed-up must be a number above 0.", fix="Leave out runs that took no steps, and name them."
        )
    return n, speedup


def _row(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))
