"""The learning rate of each batch size: which trials to make, and what all of them say about the best rate.

Near the best learning rate, ln S (steps to the target) is about a parabola of ln lr. Its minimum is flat and its trials are
noisy: on 8x8 digits, rates 1.7 times apart need the same steps within 4 %, and seeds differ by 10 to 25 %. The best of a few
rates is therefore chosen by noise. A parabola through all trials uses every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.config.tasks import Law
from engine.events.studies import Trial

Floats = NDArray[np.float64]

# Limits of steps, as multiples of a number of steps that reached the target:
_WORSE = 2.0  # a learning rate is given up after so many times the steps of the best one
_SLACK = 3.0  # a tuned larger batch needs no more steps than a smaller one; so many times as many are allowed for noise
_FAR = 10.0  # a measuring seed is given up after so many times the steps of the seeds that chose the rate
_WIDEST = 12  # grid points on either side of the first one that are tried until a learning rate reaches the target
_CLEARLY_WORSE = 1.2  # the search ends when the rates on both sides need so many times the steps of the best one
_WINDOW = 0.35  # ln S above the best up to which a learning rate is part of the parabola
_FLATTEST = 0.1  # smallest curvature; below it, noise alone would put the minimum at an end


class Ask(NamedTuple):
    """A trial to make."""

    batch_size: int
    lr: float
    seed: int
    max_steps: int
    tuning: bool


# Asks for trials and takes each one's result: of a law, the batch sizes, the first learning rate and the first seed.
Search = Callable[[Law, Sequence[int], float, int], Generator[Ask, Trial, None]]


class Responses(NamedTuple):
    """The trials that say something about the best rate of their batch size. All arrays are (n,)."""

    sizes: tuple[int, ...]  # the batch sizes, rising
    place: NDArray[np.int64]  # index in `sizes` of each trial
    log_lr: Floats
    log_steps: Floats
    seed: NDArray[np.int64]
    measured: NDArray[np.bool_]  # False for a tuning trial


class Curves(NamedTuple):
    """The minimum of each batch size's parabola: arrays (resamples, batch sizes)."""

    log_lr: Floats
    log_steps: Floats
    fitted: Floats  # ln S of each trial on its parabola, (resamples, n)
    curvature: Floats  # (resamples,): ln S = minimum + curvature (ln lr - ln best lr)^2


def responses(trials: Sequence[Trial], sizes: Sequence[int]) -> Responses:
    """The trials at rates that reached the target with every seed and are not far from the best one."""
    rows: list[tuple[int, float, float, int, bool]] = []
    for place, size in enumerate(sizes):
        by_rate: dict[tuple[float, bool], list[Trial]] = {}
        for trial in trials:
            if trial.batch_size == size:
                by_rate.setdefault((trial.lr, trial.tuning), []).append(trial)
        means = {
            key: float(np.mean([math.log(max(t.steps or 0.0, 1e-9)) for t in made]))
            for key, made in by_rate.items()
            if all(t.steps is not None for t in made)
        }
        best = min((mean for (_, tuning), mean in means.items() if tuning), default=0.0)
        rows += [
            (place, math.log(t.lr), math.log(max(t.steps or 0.0, 1e-9)), t.seed, not t.tuning)
            for key, mean in means.items()
            if not key[1] or mean <= best + _WINDOW
            for t in by_rate[key]
        ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return Responses(
        tuple(sizes),
        np.array(columns[0], dtype=np.int64),
        np.array(columns[1], dtype=np.float64),
        np.array(columns[2], dtype=np.float64),
        np.array(columns[3], dtype=np.int64),
        np.array(columns[4], dtype=np.bool_),
    )


def fit_curves(place: NDArray[np.int64], log_lr: Floats, log_steps: Floats) -> Curves:
    """A parabola per batch size by least squares, all with the same curvature, which few trials cannot tell apart.

    `place` is (n,) with values 0 to k - 1; `log_lr` and `log_steps` are (resamples, n). The best rate is searched between the
    rates tried.
    """
    k = int(place.max()) + 1
    parts, top, bottom = [], np.zeros(len(log_steps)), np.zeros(len(log_steps))
    for i in range(k):
        at = np.flatnonzero(place == i)
        middle = log_lr[:, at].mean(axis=1, keepdims=True)
        x = log_lr[:, at] - middle
        spread = np.square(x).sum(axis=1, keepdims=True)
        y, q = _without_line(log_steps[:, at], x, spread), _without_line(x * x, x, spread)
        top += (q.rest * y.rest).sum(axis=1)
        bottom += np.square(q.rest).sum(axis=1)
        parts.append((at, middle, x, y, q))
    curvature = np.maximum(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 1e-12), _FLATTEST)
    fitted, best_lr, best = np.empty_like(log_steps), np.empty((len(top), k)), np.empty((len(top), k))
    c = curvature[:, None]
    for i, (at, middle, x, y, q) in enumerate(parts):
        level, slope = y.level - c * q.level, y.slope - c * q.slope
        lowest = np.clip(-slope / (2 * c), x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True))
        fitted[:, at] = level + slope * x + c * x * x
        best_lr[:, [i]] = middle + lowest
        best[:, [i]] = level + slope * lowest + c * lowest * lowest
    return Curves(best_lr, best, fitted, curvature)


class _Line(NamedTuple):
    level: Floats
    slope: Floats
    rest: Floats


def _without_line(y: Floats, x: Floats, spread: Floats) -> _Line:
    """Level, slope and rest of y after least squares on x, whose mean is 0."""
    level = y.mean(axis=1, keepdims=True)
    slope = np.divide((x * y).sum(axis=1, keepdims=True), spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return _Line(level, slope, y - level - slope * x)


# --- the search -------------------------------------------------------------------------------------------------------


def search(law: Law, sizes: Sequence[int], lr: float, seed: int) -> Generator[Ask, Trial, None]:
    """Ask for the trials of every batch size, from the smallest to the largest, and take each one's result.

    A geometric grid around the best rate of the batch size before is extended until the rates on both sides are clearly
    worse than the best one. Then other seeds measure at the minimum of the parabola, because the seeds that chose a rate are
    biased in its favour. A batch size where no rate reaches the target is left.
    """
    made: list[Trial] = []
    limit = law.max_steps
    first = seed + law.tuning_seeds  # the first seed that measures
    for size in sizes:
        tuned = yield from _tuned(law, size, lr, limit, seed, made)
        if tuned is None:
            continue
        lr, needed = tuned
        for each in range(first, first + law.seeds):
            made += [(yield Ask(size, lr, each, _at_most(law, _FAR * needed), tuning=False))]
        limit = _at_most(law, _SLACK * needed)


def _tuned(
    law: Law, size: int, start: float, limit: int, seed: int, made: list[Trial]
) -> Generator[Ask, Trial, tuple[float, float] | None]:
    """The best learning rate and its steps to the target; None if no rate reaches it. Adds the trials to `made`."""
    # By grid point: the geometric mean of the steps over the seeds, infinite if a seed did not reach the target.
    needed: dict[int, float] = {}

    def attempt(place: int) -> Generator[Ask, Trial, None]:
        best, logs = min(needed.values(), default=math.inf), []
        allowed = limit if best == math.inf else min(limit, _at_most(law, _WORSE * best))
        needed[place] = math.inf
        for each in range(seed, seed + law.tuning_seeds):
            trial = yield Ask(size, start * law.lr_factor**place, each, allowed, tuning=True)
            made.append(trial)
            if trial.steps is None:
                return
            logs.append(math.log(max(trial.steps, 1e-9)))
        needed[place] = math.exp(sum(logs) / len(logs))

    for place in _from_center():
        yield from attempt(place)
        if needed[place] < math.inf:
            break
    else:
        return None
    while (further := _next(needed)) is not None:
        yield from attempt(further)
    seen = responses(made, sorted({t.batch_size for t in made}))
    curves = fit_curves(seen.place, seen.log_lr[None], seen.log_steps[None])
    return math.exp(curves.log_lr[0, -1]), math.exp(curves.log_steps[0, -1])


def _next(needed: dict[int, float]) -> int | None:
    """The next grid point, above the known ones first; None when both ends are clearly worse than the best point."""
    enough = _CLEARLY_WORSE * min(needed.values())
    top, bottom = max(needed), min(needed)
    if needed[top] < enough:
        return top + 1
    return bottom - 1 if needed[bottom] < enough else None


def _at_most(law: Law, steps: float) -> int:
    return min(law.max_steps, ceil(steps) + 2)  # 2 more, because two evaluations must reach the target


def _from_center() -> Iterator[int]:
    """0, 1, -1, 2, -2, ..."""
    yield 0
    for distance in range(1, _WIDEST + 1):
        yield from (distance, -distance)
