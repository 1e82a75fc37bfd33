"""Statistics of races: significance tests of paired seeds, noise floor, survival.

Everything here is a pure function of numbers. NaN stands for a missing value, such as a diverged loss. A test raises an
error for it instead of dropping its pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.common.errors import EngineError

Floats = NDArray[np.float64]

MIN_PAIRS = 6  # fewer are never significant: five pairs have no sign-flip p below 0.0625, three only ten resamples
_RESAMPLES = 2_000
_EXACT_UP_TO = 16  # pairs: 2^15 ways to flip signs; beyond, as many are drawn at random


# --- verdicts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """The paired difference of b from a, and whether it is significant.

    `effect` is the mean of b - a, or the ratio b/a - 1 where `relative` (-0.1: b's value is 10 % lower). `low` and `high` are
    its interval at confidence `level`; None where there are too few pairs, or only ranks were compared.
    """

    winner: Literal["a", "b"] | None
    state: Literal["decided", "inconclusive", "preliminary"]
    n: int  # pairs
    effect: float | None  # None only where a median was not reached
    low: float | None
    high: float | None
    relative: bool
    level: float  # of the interval and the test, after the correction for several tests
    method: str  # as text for the page
    p: float | None = None  # of this comparison alone: the larger one of both tests; None where there are too few pairs
    p_adjusted: float | None = None  # corrected for all comparisons; significant where it is at most 0.05
    wins_a: int | None = None  # pairs in which a is better; equal pairs count for neither
    wins_b: int | None = None
    reached_a: int | None = None  # runs of the pairs that reached the target; None where no target is compared
    reached_b: int | None = None

    @property
    def is_identical(self) -> bool:
        """Whether all pairs have the same value."""
        return self.effect == 0 and self.wins_a == self.wins_b == 0


def pairs_needed(alpha: float) -> int:
    """The fewest pairs whose sign-flip test can have p <= `alpha` (0..1): with n pairs, p is at least 2^(1-n)."""
    return math.ceil(1 - math.log2(alpha))


def verdict(
    a: ArrayLike,
    b: ArrayLike,
    *,
    lower_is_better: bool,
    relative: bool = False,
    level: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Which of two is better, from one value of each per seed: a[i] and b[i], both (n,), share seed i.

    The difference is significant ("decided") when two conditions hold: an exact sign-flip test of the mean difference
    (Fisher 1935, section 21) has p <= 1 - level, and the studentised bootstrap interval (Efron & Tibshirani 1993, section
    12.5) does not contain zero. The first one limits false positives of "A against A" to 1 - level for any distribution,
    because swapping the two labels of a seed changes nothing. The second one guards against skewed differences, and is the
    interval shown. A percentile bootstrap alone is not enough: in 3,000 races of A against A it was significant in 15 %
    with 6 pairs and in 10 % with 10.

    With fewer than `pairs_needed(1 - level)` pairs (6 at a level of 0.95) the result is preliminary: there is no winner and
    no interval. Both conditions together have less power than a t test: where the paired t test of normal differences has
    a power of 0.80, this verdict has 0.58 with 6 pairs, 0.69 with 8, 0.73 with 10 and 0.78 with 16 (1,500 simulated races
    each). With `relative` the logarithms are compared: geometric mean of b/a.
    Raises EngineError for unequal lengths, no pairs, values that are not finite, or ratios of values <= 0.
    """
    first, second = _pairs(a, b, relative)
    difference = second - first
    n, alpha = len(difference), 1 - level
    mean = float(difference.mean())
    effect = math.expm1(mean) if relative else mean
    wins = _wins(difference, lower_is_better)
    if n < pairs_needed(alpha):
        return _preliminary(n, effect, relative, level, wins)
    t = _studentised(difference, seed)
    p = max(sign_flip_p(difference, seed=seed), _bootstrap_p(difference, t))
    low, high = _interval(difference, t, alpha)
    if relative:
        low, high = _ratio(low), _ratio(high)
    winner = _winner(mean, lower_is_better) if p <= alpha else None
    method = f"{n} paired seeds, exact sign-flip test and studentised bootstrap of the {'log ratio' if relative else 'difference'}"
    return Verdict(winner, _state(p, alpha), n, effect, low, high, relative, level, method, p, p, *wins)


def verdict_to_target(
    times_a: ArrayLike,
    reached_a: ArrayLike,
    times_b: ArrayLike,
    reached_b: ArrayLike,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Which of two reaches a target sooner, where some runs did not reach it: these count as later than all others.

    `times` and `reached` are (n,); the times of runs that did not reach the target are not used. Each seed is a win, a loss
    or a tie (neither reached it). Wins and losses are ranked by the ratio of the two times, where a run without the target
    ranks highest, and the signed ranks are tested with the exact sign-flip test (Wilcoxon 1945, with Pratt's zeros left
    out). `effect` is median b / median a - 1, or None where half or more of either did not reach it; there is no interval.
    Where all reached it, `verdict` with relative=True detects smaller differences and gives an interval.
    Raises EngineError for unequal lengths, no pairs, or a reached time that is not a positive number.
    """
    a, b = _times(times_a, reached_a), _times(times_b, reached_b)
    _same_length(a, b, "values of a", "values of b")
    n, alpha = len(a), 1 - level
    effect = _ratio_of_medians(a, b)
    scores = _signed_ranks(a, b)
    counts = (*_wins(scores, True), int(np.isfinite(a).sum()), int(np.isfinite(b).sum()))
    if n < pairs_needed(alpha):
        return _preliminary(n, effect, True, level, counts)
    p = sign_flip_p(scores, seed=seed)
    winner = _winner(float(scores.sum()), lower_is_better=True) if p <= alpha else None
    wins_a, wins_b, *_ = counts
    method = f"{n} paired seeds (b sooner in {wins_b}, later in {wins_a}, neither in {n - wins_a - wins_b}), exact signed-rank test"
    return Verdict(winner, _state(p, alpha), n, effect, None, None, True, level, method, p, p, *counts)


_FIRST = 0.8  # part of alpha for the first test of a race; the rest is kept for tests after more seeds


def level_of_test(alpha: float, looks: int) -> float:
    """The level (0..1) of the test number `looks` of a race that grows: 0.8 alpha / looks, so 4, 2, 1.3 and 1 % of alpha = 5 %.

    The sum of these levels exceeds alpha, but the tests share most of their seeds. That a race of equal configurations is
    significant at any of its tests in at most 5 % is shown by simulation, not proven (docs/compare.md).
    """
    return _FIRST * alpha / looks


_Key = TypeVar("_Key")


def corrected(
    tests: Mapping[_Key, Callable[[float], Verdict]],
    shares: Mapping[_Key, float],
    *,
    level: float = 0.95,
    looks: int = 1,
) -> dict[_Key, Verdict]:
    """The verdicts of several comparisons, of which with probability `level` none is significant by chance.

    Each test takes its confidence level. The correction is that of Holm (1979) with weights: `shares` divide 1 - level
    between all planned comparisons (sum 1), and a significant comparison passes its share on to the others. It holds
    however the comparisons depend on each other. A planned comparison that is not in `tests` keeps its share.

    At the k-th time that the comparisons are tested, as seeds are added, `looks` = k and all of this is done at the level
    `level_of_test(1 - level, k)`.
    """
    alpha = level_of_test(1 - level, looks)
    p = {key: 1.0 if (found := test(1 - alpha).p) is None else found for key, test in tests.items()}
    made = {}
    for key, (own, adjusted) in holm(p, shares, alpha).items():
        judged = tests[key](1 - own)
        more = f", Holm's correction over {len(shares)} comparisons" if len(shares) > 1 else ""
        more += f", test {looks} of this race" if looks > 1 else ""
        if judged.state != "preliminary":
            p_adjusted = min(1.0, adjusted * (1 - level) / alpha)
            judged = replace(judged, p_adjusted=p_adjusted, method=judged.method + more)
        made[key] = judged
    return {key: made[key] for key in tests}


def holm(p: Mapping[_Key, float], shares: Mapping[_Key, float], alpha: float) -> dict[_Key, tuple[float, float]]:
    """For each comparison, the level (0..1) at which Holm's procedure tests it, and its adjusted p.

    The comparison with the smallest p/share is tested at alpha times its share. If it is significant, its share is divided
    among the others in proportion to theirs, and so on; the rest keeps the levels of the step at which this ends. An
    adjusted p is the smallest alpha at which a comparison is significant.
    """
    found: dict[_Key, tuple[float, float]] = {}
    tested = untested = 1.0  # share of the comparisons that are not significant; that of those that come later
    worst = 0.0
    for key in sorted(p, key=lambda key: p[key] / shares[key]):
        worst = max(worst, min(1.0, p[key] * untested / shares[key]))
        found[key] = alpha * min(1.0, shares[key] / tested), worst
        untested -= shares[key]
        if worst <= alpha:
            tested = untested
    return found


def sign_flip_p(difference: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p of the mean paired difference (n,), over all ways to swap the labels within pairs (Fisher 1935).

    It is exact up to 16 pairs. Above, it uses 32,768 random swaps and counts the observed one among them, which keeps the
    test valid (Phipson & Smyth 2010). Without pairs that differ, p is 1. `scipy.stats.permutation_test` gives the same p
    but takes 1.1 s for 16 pairs, where this takes 16 ms.
    """
    d = _row(difference)
    d = d[d != 0]
    if not len(d):
        return 1.0
    observed = abs(d.sum()) * (1 - 1e-12)  # sums of the same numbers in another order
    if len(d) <= _EXACT_UP_TO:
        return float(np.mean(np.abs(_all_signs(len(d)) @ d) >= observed))
    flips = np.random.default_rng(seed).choice((-1.0, 1.0), size=(2 ** (_EXACT_UP_TO - 1), len(d)))
    return float((1 + np.sum(np.abs(flips @ d) >= observed)) / (1 + len(flips)))


@cache
def _all_signs(n: int) -> Floats:
    """(2^(n-1), n): every way to flip signs; of two ways that differ in all signs, one."""
    ways = np.arange(2 ** (n - 1))[:, None] >> np.arange(n)
    signs: Floats = np.asarray(1.0 - 2.0 * (ways & 1), dtype=np.float64)
    return signs


def _studentised(difference: Floats, seed: int) -> Floats | None:
    """Bootstrap of t, sorted: deviation of a resample's mean / its spread. None where all pairs have the same difference.

    A resample without spread counts as infinitely far, which widens the interval.
    """
    n, mean, error = len(difference), float(difference.mean()), float(difference.std(ddof=1))
    if error <= 1e-12 * abs(mean):
        return None
    resamples = difference[_drawn(n, seed)]
    off, spread = resamples.mean(axis=1) - mean, resamples.std(axis=1, ddof=1)
    far = np.where(off == 0, 0.0, np.copysign(np.inf, off))
    t: Floats = np.sort(np.divide(off, spread, out=far, where=spread > 1e-12 * error))
    return t


@cache
def _drawn(n: int, seed: int) -> NDArray[np.int64]:
    """(resamples, n): which of n pairs each resample contains."""
    return np.random.default_rng(seed).integers(0, n, (_RESAMPLES, n))


def _interval(difference: Floats, t: Floats | None, alpha: float) -> tuple[float, float]:
    """The bootstrap-t interval of the mean at the confidence 1 - alpha."""
    mean, cut = float(difference.mean()), int(alpha / 2 * _RESAMPLES)
    if t is None:
        return mean, mean
    error = float(difference.std(ddof=1))
    return mean - float(t[_RESAMPLES - 1 - cut]) * error, mean - float(t[cut]) * error


def _bootstrap_p(difference: Floats, t: Floats | None) -> float:
    """The smallest alpha whose `_interval` excludes zero."""
    mean = float(difference.mean())
    if t is None:
        return 0.0 if mean else 1.0
    observed = mean / float(difference.std(ddof=1))
    return min(1.0, 2 * min(int((t >= observed).sum()), int((t <= observed).sum())) / _RESAMPLES)


def _preliminary(n: int, effect: float | None, relative: bool, level: float, counts: Sequence[int]) -> Verdict:
    method = f"{n} paired seed{'' if n == 1 else 's'}; a significance test needs at least {pairs_needed(1 - level)}"
    return Verdict(None, "preliminary", n, effect, None, None, relative, level, method, None, None, *counts)


def _state(p: float, alpha: float) -> Literal["decided", "inconclusive"]:
    return "decided" if p <= alpha else "inconclusive"


def _wins(difference: Floats, lower_is_better: bool) -> tuple[int, int]:
    """Pairs in which a is better, and those in which b is, from b - a (n,)."""
    lower, higher = int((difference < 0).sum()), int((difference > 0).sum())
    return (higher, lower) if lower_is_better else (lower, higher)


def _winner(effect: float, lower_is_better: bool) -> Literal["a", "b"]:
    return "b" if (effect < 0) == lower_is_better else "a"


def _ratio(log_ratio: float) -> float:
    return math.expm1(min(log_ratio, 700.0))


def _pairs(a: ArrayLike, b: ArrayLike, relative: bool) -> tuple[Floats, Floats]:
    first, second = _row(a), _row(b)
    _same_length(first, second, "values of a", "values of b")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        missing = int((~np.isfinite(first)).sum() + (~np.isfinite(second)).sum())
        raise EngineError(
            f"{missing} of {2 * len(first)} values are not finite numbers.",
            fix="Use verdict_to_target, which counts runs without a value instead of dropping them.",
        )
    if relative and min(first.min(), second.min()) <= 0:
        raise EngineError(
            f"A ratio needs values above 0, not {min(first.min(), second.min()):g}.", fix="Compare the difference."
        )
    return (np.log(first), np.log(second)) if relative else (first, second)


def _times(times: ArrayLike, reached: ArrayLike) -> Floats:
    """Times (n,), infinity where the target was not reached.

    Raises:
        EngineError: a time is not a positive number.
    """
    t, r = _row(times), np.asarray(reached, dtype=bool)
    _same_length(t, r, "times", "marks of reached")
    if bad := [float(x) for x in t[r] if not (math.isfinite(x) and x > 0)]:
        raise EngineError(f"A time to a target cannot be {bad[0]:g}.", fix="Mark the run as not reached.")
    return np.where(r, t, np.inf)


def _signed_ranks(a: Floats, b: Floats) -> Floats:
    """Rank of each pair's |ln b/a| among those that differ, with the sign of b - a; ties share their mean rank."""
    with np.errstate(invalid="ignore"):
        log_ratio = np.where(a == b, 0.0, np.log(b) - np.log(a))
    size = np.abs(log_ratio[log_ratio != 0])
    smaller, not_larger = size[:, None] > size, size[:, None] >= size
    scores = np.zeros(len(a))
    scores[log_ratio != 0] = (smaller.sum(axis=1) + not_larger.sum(axis=1) + 1) / 2
    ranks: Floats = np.copysign(scores, log_ratio)
    return ranks


def _ratio_of_medians(a: Floats, b: Floats) -> float | None:
    low, high = _median(a), _median(b)
    return high / low - 1 if low is not None and high is not None else None


def _median(times: Floats) -> float | None:
    ordered = np.sort(times)
    upper = float(ordered[len(ordered) // 2])
    return (float(ordered[(len(ordered) - 1) // 2]) + upper) / 2 if math.isfinite(upper) else None


# --- Student's t and the noise of a test set -------------------------------------------------------------------------------


def t_quantile(p: float, df: int) -> float:
    """The p-quantile (0 < p < 1) of Student's t distribution with `df` >= 1 degrees of freedom."""
    from scipy.special import stdtrit  # what scipy.stats.t.ppf calls; scipy.stats itself takes 0.7 s more to import

    return float(stdtrit(df, p))


def noise_floor(error: float, num_predictions: int) -> float:
    """The smallest standard deviation of a test error (0..1) from seed to seed: sqrt(error/(2 num_predictions)).

    For networks whose ensemble is calibrated, E[p(1-p)] = error/2 per prediction (after Jordan 2023, arXiv:2304.01910).
    Measured standard deviations were 1 to 1.6 times this, so it is a lower bound, not an estimate.
    """
    return math.sqrt(error / (2 * num_predictions))


# --- runs that did not reach the target -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Survival:
    """Share of runs that have not reached the target after each of `times`: a step function, 1 before the first time."""

    times: Floats  # (k,) rising; at each of them a run reached the target
    share: Floats  # (k,) 0..1, from that time on

    @property
    def median(self) -> float | None:
        """The first time at which at least half have reached the target; None where fewer reached it."""
        reached = np.flatnonzero(self.share <= 0.5 + 1e-12)
        return float(self.times[reached[0]]) if len(reached) else None


def kaplan_meier(times: ArrayLike, reached: ArrayLike) -> Survival:
    """Share of runs that have not reached the target yet, over time (Kaplan & Meier 1958).

    `times` (n,) is when each run reached the target or, where `reached` (n,) is False, when it ended without reaching it
    (censored). Raises EngineError for unequal lengths or no runs. The times must be finite, otherwise scipy raises
    ValueError.
    """
    from scipy import stats  # here, because it takes 0.8 s of CPU to import

    t, r = _row(times), np.asarray(reached, dtype=bool)
    _same_length(t, r, "times", "marks of reached")
    moments = np.unique(t[r])
    if not len(moments):
        return Survival(moments, np.empty(0))
    share = stats.ecdf(stats.CensoredData(uncensored=t[r], right=t[~r])).sf
    return Survival(moments, np.asarray(share.evaluate(moments), dtype=np.float64))


def expected_running_time(times: ArrayLike, reached: ArrayLike) -> float | None:
    """Expected time when failed runs are restarted: time spent by all runs / number of successes; None without a success.

    This is the aRT of COCO (Hansen et al. 2021, arXiv:1603.08785). The mean of the successes alone would reward giving up
    early. `times` and `reached` are (n,).
    """
    t, r = _row(times), np.asarray(reached, dtype=bool)
    _same_length(t, r, "times", "marks of reached")
    return float(t.sum() / r.sum()) if r.any() else None


# --- medians of several runs ------------------------------------------------------------------------------------------


def median_of_known(values: Iterable[float | None]) -> float | None:
    """The median of the values that are finite numbers; None where there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.median(known)) if known else None


def median_or_not_reached(values: Sequence[float | None]) -> float | None:
    """The median, where None counts as larger than any number; None where the median is not a number."""
    if not values:
        return None
    middle = float(np.median([math.inf if value is None else value for value in values]))
    return middle if math.isfinite(middle) else None


def percent_of_baseline(value: float | None, baseline: float | None) -> float | None:
    """value / baseline as a ratio (1.0 is 100 %; `units.percent` writes it); None where either is unknown or 0 divides."""
    if value is None or baseline is None or not (math.isfinite(value) and math.isfinite(baseline)) or baseline == 0:
        return None
    return value / baseline


def _row(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _same_length(a: NDArray, b: NDArray, one: str, other: str) -> None:
    """Check that both are (n,), n > 0.

    Raises:
        EngineError: they are not.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise EngineError(f"There are {a.size} {one} but {b.size} {other}.", fix="Give one of each per seed or point.")
    if not a.size:
        raise EngineError(f"There are no {one}.", fix="Give at least one.")
