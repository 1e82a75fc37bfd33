"""The referee's own statistics, in plain numpy and scipy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats


def to_target(x: Sequence[float], values: Sequence[float], target: float, *, lower: bool = False) -> float | None:
    """Where `values` reach the target twice in a row, on a straight line from the evaluation before; None: never."""
    hits = [v <= target if lower else v >= target for v in values]
    for i, (this, following) in enumerate(itertools.pairwise(hits)):
        if this and following:
            return float(x[0]) if i == 0 else float(np.interp(0, *_line(x, values, target, i)))
    return None


def _line(x: Sequence[float], values: Sequence[float], target: float, i: int) -> tuple[list[float], list[float]]:
    """Distance from the target (rising) and position at the evaluations i - 1 and i."""
    pairs = sorted([(values[i - 1] - target, x[i - 1]), (values[i] - target, x[i])])
    return [a for a, _ in pairs], [b for _, b in pairs]


def sign_flip_p(difference: np.ndarray) -> float:
    """Two-sided p of the mean of n paired differences over all 2^n sign flips."""
    d = np.asarray(difference, dtype=np.float64)
    sums = [
        abs(sum(s * v for s, v in zip(signs, d, strict=True))) for signs in itertools.product((1, -1), repeat=len(d))
    ]
    return float(np.mean(np.array(sums) >= abs(d.sum()) - 1e-9 * np.abs(d).sum())) if np.any(d) else 1.0


def bootstrap_t(difference: np.ndarray, resamples: int = 2_000) -> np.ndarray:
    """Sorted t of the resamples that generator 0 draws."""
    d = np.asarray(difference, dtype=np.float64)
    drawn = d[np.random.default_rng(0).integers(0, len(d), (resamples, len(d)))]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (drawn.mean(axis=1) - d.mean()) / np.where(
            drawn.std(axis=1) < 1e-12 * d.std(), 0.0, drawn.std(axis=1, ddof=1)
        )
    return np.sort(np.where(np.isnan(t), 0.0, t))


def bootstrap_interval(difference: np.ndarray, level: float) -> tuple[float, float]:
    """The studentised bootstrap interval of the mean."""
    d, t = np.asarray(difference, dtype=np.float64), bootstrap_t(difference)
    cut = int((1 - level) / 2 * len(t) + 1e-9)
    return float(d.mean() - t[-1 - cut] * d.std(ddof=1)), float(d.mean() - t[cut] * d.std(ddof=1))


def bootstrap_p(difference: np.ndarray) -> float:
    """The smallest 1 - level at which the bootstrap interval excludes zero."""
    d, t = np.asarray(difference, dtype=np.float64), bootstrap_t(difference)
    observed = d.mean() / d.std(ddof=1)
    return min(1.0, 2 * min(np.mean(t >= observed), np.mean(t <= observed)))


def signed_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Ranks of |ln b/a| with the sign of b - a; infinity is "not reached", and ties of both are 0."""
    with np.errstate(invalid="ignore"):
        ratio = np.where(a == b, 0.0, np.log(b) - np.log(a))
    ranks = np.zeros(len(ratio))
    ranks[ratio != 0] = stats.rankdata(np.abs(ratio[ratio != 0]))
    return np.sign(ratio) * ranks


def fit_law(sizes: np.ndarray, steps: np.ndarray, *, robust: bool = False) -> tuple[float, float, float]:
    """S_min, B_crit and the rms residual of ln S = ln S_min + ln(1 + B_crit/B), by least squares.

    `robust` gives a point that is more than two typical residuals off the law less weight (Huber): four times, with 1.48
    times the median residual, at least 0.05, as the typical one.
    """
    weights = np.ones(len(sizes))
    for _ in range(4 if robust else 0):
        off = np.abs(_residuals(_least_squares(sizes, steps, weights), sizes, steps))
        weights = np.minimum(1, 2 * max(1.4826 * np.median(off), 0.05) / np.maximum(off, 1e-12))
    best = _least_squares(sizes, steps, weights)
    return math.exp(best[0]), math.exp(best[1]), math.sqrt(np.mean(_residuals(best, sizes, steps) ** 2))


def _residuals(p: np.ndarray, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.log(steps) - p[0] - np.log1p(np.exp(p[1]) / sizes)


def _least_squares(sizes: np.ndarray, steps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = [
        optimize.least_squares(
            lambda p: np.sqrt(weights) * _residuals(p, sizes, steps),
            (math.log(steps.min()), guess),
            xtol=1e-14,
            ftol=1e-14,
        )
        for guess in (0.0, 3.0, 6.0)
    ]
    return min(found, key=lambda fit: fit.cost).x


def parabolas(groups: Sequence[np.ndarray]) -> tuple[list[float], list[np.ndarray]]:
    """The least y of a parabola through each group (x, y), and its y at each x.

    All have one curvature of at least 0.1. The least y is that within the x tried.
    """
    places = np.concatenate([np.full(len(x), i) for i, (x, _) in enumerate(groups)])
    x, y = np.concatenate(groups, axis=1)
    middles = np.array([xs.mean() for xs, _ in groups])
    x = x - middles[places]
    own = np.eye(len(groups))[places]
    lines = np.concatenate([own, own * x[:, None]], axis=1)
    curvature = np.linalg.lstsq(np.column_stack([lines, x * x]), y, rcond=None)[0][-1]
    curvature = max(curvature, 0.1)
    level_slope = np.linalg.lstsq(lines, y - curvature * x * x, rcond=None)[0]
    levels, slopes = np.split(level_slope, 2)
    minima, fitted = [], []
    for i, (level, slope) in enumerate(zip(levels, slopes, strict=True)):
        tried = x[places == i]
        at = min(max(-slope / (2 * curvature), tried.min()), tried.max())
        minima.append(float(level + slope * at + curvature * at * at))
        fitted.append(level + slope * tried + curvature * tried * tried)
    return minima, fitted


def t_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean with Student's 95 % interval."""
    v = np.asarray(values, dtype=np.float64)
    half = stats.t.ppf(0.975, len(v) - 1) * stats.sem(v)
    return float(v.mean()), float(v.mean() - half), float(v.mean() + half)


def survival(times: Sequence[float], reached: Sequence[bool]) -> dict[float, float]:
    """Kaplan & Meier's share of runs that have not reached the target, by the times at which one reached it."""
    share, found = 1.0, {}
    for time in sorted({t for t, r in zip(times, reached, strict=True) if r}):
        at_risk = sum(t >= time for t in times)
        share *= 1 - sum(t == time and r for t, r in zip(times, reached, strict=True)) / at_risk
        found[time] = share
    return found


def median_or_none(values: Sequence[float | None]) -> float | None:
    """The median, where None is larger than any number."""
    middle = float(np.median([math.inf if v is None else v for v in values]))
    return middle if math.isfinite(middle) else None
