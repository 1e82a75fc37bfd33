"""The batch-size law: steps to a target against batch size, and the batch size that reaches the target first.

McCandlish, Kaplan & Amodei 2018 (arXiv:1812.06162): S(B) = S_min (1 + B_crit/B), with B_crit = E_min/S_min. Up to about
B_crit a larger batch needs fewer steps; above it, mainly more samples. It is measured as in Shallue et al. 2019 (JMLR
20(112)): the learning rate is tuned at every batch size, and every trial counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.common import units
from engine.common.errors import EngineError
from engine.config.tasks import MIN_BATCH_SIZES, Law
from engine.events.studies import Trial

Floats = NDArray[np.float64]

# Samples for the training loss of a trial, at most. With 2,048 and a finer grid, LeNet spent most time on evaluation.
PROBE = 1_024
GRID = 1.1  # evaluations are at every step first, then at steps this factor apart, with linear interpolation between
_GRIDS = (300, 41, 41, 41)  # points of each search, log-spaced in B_crit, around the best point of the search before
_BEYOND = 1e3  # B_crit is searched up to this factor outside the measured batch sizes


@dataclass(frozen=True, slots=True)
class BatchLaw:
    """S(B) = s_min + e_min/B optimizer steps, E(B) = B S(B) samples to the target."""

    s_min: float  # the minimum number of steps, at any batch size
    e_min: float  # the minimum number of samples, at any batch size
    b_crit: float  # e_min/s_min: the batch size that needs twice s_min steps and twice e_min samples
    rms_log_residual: float  # of ln S: 0.07 is a mean error of 7 %

    def steps(self, batch_size: float) -> float:
        """Steps to the target."""
        return self.s_min + self.e_min / batch_size

    def samples(self, batch_size: float) -> float:
        """Samples to the target."""
        return self.e_min + self.s_min * batch_size


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval at a confidence level (0..1)."""

    low: float
    high: float
    level: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step, t0_s + t1_s B: the overhead of a step, and the time of each sample."""

    t0_s: float
    t1_s: float

    def seconds(self, batch_size: float) -> float:
        """Seconds of one step at a batch size."""
        return self.t0_s + self.t1_s * batch_size


class BestBatch(NamedTuple):
    """The batch size that reaches the target first, and its training time, s."""

    b_star: float  # not rounded to a whole number; infinite where a larger batch takes no more time per step
    time_s: float


def fit_batch_law(batch_sizes: ArrayLike, steps: ArrayLike) -> BatchLaw:
    """Least squares of ln S - ln(S_min + E_min/B), so that relative errors count.

    `batch_sizes` and `steps` are (n,); a batch size can occur several times (once per seed). For a given B_crit the best
    S_min is a mean, so the fit is a search in one dimension, on a grid, and cannot end in a local minimum. It does not fit
    the hyperbola in (S, E), because E = B S and both axes would have the same errors. Where B_crit is far outside the
    measured batch sizes, they show one end of the law only, and B_crit is not known.

    Raises EngineError for fewer than 3 different batch sizes, or steps that are not positive numbers. Leave out batch sizes
    that did not reach the target.
    """
    sizes, counts = _points(batch_sizes, steps)
    log_steps = np.log(counts)

    def costs(log_b_crit: Floats) -> Floats:
        residual = log_steps - np.log1p(np.exp(log_b_crit)[:, None] / sizes)
        return np.asarray(np.square(residual - residual.mean(axis=1, keepdims=True)).sum(axis=1))

    low, high = math.log(sizes.min() / _BEYOND), math.log(sizes.max() * _BEYOND)
    for points in _GRIDS:
        grid = np.linspace(low, high, points)
        best = int(np.argmin(costs(grid)))
        low, high = grid[max(0, best - 1)], grid[min(points - 1, best + 1)]
    b_crit = math.exp(grid[best])
    s_min = math.exp(float(np.mean(log_steps - np.log1p(b_crit / sizes))))
    return BatchLaw(s_min, s_min * b_crit, b_crit, math.sqrt(costs(grid)[best] / len(sizes)))


def bootstrap_batch_law(
    batch_sizes: ArrayLike, steps_by_seed: ArrayLike, *, level: float = 0.95, resamples: int = 400, seed: int = 0
) -> Interval | None:
    """Interval of B_crit; `steps_by_seed` is (seeds, batch sizes). None for a single seed.

    Three seeds have only ten distinct resamples, so it draws the deviations of ln S from the mean of its batch size, from
    all batch sizes together, widened by sqrt(n/(n-1)) for n seeds (Davison & Hinkley 1997, section 6.2.3). Where the means
    are further from the law than the seeds explain (a badly tuned learning rate, or a law that does not quite hold), the
    deviations are widened to rms_log_residual sqrt(k/(k-2)), for k batch sizes and 2 parameters. The intervals are still a
    little too narrow: four runs on 8x8 digits with different seeds gave 34, 43, 47 and 48, with intervals of +-15 to 30 %.
    """
    log_steps = np.log(np.atleast_2d(np.asarray(steps_by_seed, dtype=np.float64)))
    sizes = np.asarray(batch_sizes, dtype=np.float64)
    n = len(log_steps)
    means = log_steps.mean(axis=0)
    off_the_law = fit_batch_law(sizes, np.exp(means)).rms_log_residual * math.sqrt(len(sizes) / (len(sizes) - 2))
    if n < 2:
        return None
    deviations = ((log_steps - means) * math.sqrt(n / (n - 1))).ravel()
    from_seeds = float(deviations.std()) / math.sqrt(n)
    rng = np.random.default_rng(seed)
    if from_seeds == 0:
        drawn = rng.normal(0, off_the_law, size=(resamples, len(sizes)))
    else:
        drawn = rng.choice(deviations, size=(resamples, n, len(sizes))).mean(axis=1) * max(
            1.0, off_the_law / from_seeds
        )
    b_crits = [fit_batch_law(sizes, np.exp(means + noise)).b_crit for noise in drawn]
    low, high = np.quantile(b_crits, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def fit_step_time(batch_sizes: ArrayLike, step_s: ArrayLike) -> StepTime:
    """t0_s + t1_s B by least squares of the relative error, neither below zero. `batch_sizes` and `step_s` are (n,).

    With absolute errors, a step of the full batch, which takes a hundred times as long, would determine the fit alone.
    Raises EngineError for fewer than 2 different batch sizes or times that are not positive.
    """
    sizes, times = _points(batch_sizes, step_s, at_least=2, what="Step times")
    columns = np.stack([1 / times, sizes / times], axis=1)
    (t0, t1), *_ = np.linalg.lstsq(columns, np.ones(len(times)), rcond=None)
    if t1 < 0:  # the best with t1 = 0; columns[:, 0] alone
        t0, t1 = columns[:, 0].sum() / np.square(columns[:, 0]).sum(), 0.0
    elif t0 < 0:
        t0, t1 = 0.0, columns[:, 1].sum() / np.square(columns[:, 1]).sum()
    return StepTime(float(t0), float(t1))


def best_batch(law: BatchLaw, step_time: StepTime) -> BestBatch:
    """The batch size that reaches the target first: B* = sqrt(B_crit t0/t1), T* = S_min t1 (sqrt(B_crit) + sqrt(t0/t1))^2.

    This is the minimum of S(B) (t0 + t1 B), which depends on the data (B_crit) and on the machine (t0/t1). It is flat, so
    batch sizes near it take about the same time. It is not limited by the size of a training set.
    """
    if step_time.t1_s == 0:
        return BestBatch(math.inf, law.s_min * step_time.t0_s)
    hardware = step_time.t0_s / step_time.t1_s
    time_s = law.s_min * step_time.t1_s * (math.sqrt(law.b_crit) + math.sqrt(hardware)) ** 2
    return BestBatch(math.sqrt(law.b_crit * hardware), time_s)


_KNOWN_TO = 0.15  # relative error of a fastest batch size


def rounded_batch(b_star: float) -> int:
    """A fastest batch size (finite), rounded to what is known: at most 15 %, to 1, 2 or 5 times a power of ten.

    The error of a measured B_crit is about 30 %, and the fastest batch varies with its square root.
    """
    unit = 10.0 ** math.floor(math.log10(_KNOWN_TO * b_star))
    step = max(1.0, max(unit * factor for factor in (1, 2, 5) if unit * factor <= _KNOWN_TO * b_star))
    return max(1, int(step * round(b_star / step)))


# --- from the trials of a run -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BatchSizeResult:
    """The results of the trials of one batch size."""

    batch_size: int
    lr: float | None  # the best learning rate; None where none reached the target
    lrs_tried: int
    reached: int  # trials after tuning that reached the target
    measured: int  # trials after tuning
    steps: float | None  # geometric mean of the trials that reached the target
    step_s: float | None  # median of all trials
    in_fit: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a run; None where its trials are not sufficient, with the reason in `notes`."""

    sizes: tuple[BatchSizeResult, ...]
    law: BatchLaw | None
    b_crit: Interval | None
    step_time: StepTime | None
    best: BestBatch | None
    notes: tuple[str, ...]


def outcome(trials: Sequence[Trial]) -> Outcome:
    """The law from a run's trials, also while it runs.

    A batch size is left out of the fit, with a note, if one of its seeds did not reach the target: its other seeds alone
    would make it look faster than it is.
    """
    most = max((_measuring(trials, size) for size in {t.batch_size for t in trials}), default=0)
    sizes = tuple(_at(trials, size, most) for size in sorted({t.batch_size for t in trials}))
    notes = [_left_out(at, most) for at in sizes if not at.in_fit]
    timed = [(at.batch_size, at.step_s) for at in sizes if at.step_s]
    step_time = fit_step_time(*zip(*timed, strict=True)) if len(timed) > 1 else None
    fitted = [at.batch_size for at in sizes if at.in_fit]
    by_seed = [[t.steps or 0.0 for t in trials if not t.tuning and t.batch_size == size] for size in fitted]
    try:
        law = fit_batch_law(np.repeat(fitted, most), np.ravel(by_seed))
    except EngineError as error:
        return Outcome(sizes, None, None, step_time, None, (*notes, str(error)))
    interval = bootstrap_batch_law(fitted, np.transpose(by_seed))
    if not min(fitted) <= law.b_crit <= max(fitted):
        notes.append(
            f"B_crit is {law.b_crit:.3g}, outside the measured batch sizes ({min(fitted)} to {max(fitted)}), which show one "
            "end of the law only."
        )
    best = best_batch(law, step_time) if step_time else None
    return Outcome(sizes, law, interval, step_time, best, tuple(notes))


def facts(found: Outcome) -> list[tuple[str, str, str]]:
    """The results as title, value and how each was obtained, for the command line and reports."""
    law, time, best = found.law, found.step_time, found.best
    rows = []
    if law:
        i = found.b_crit
        between = (
            f"; {units.percent(i.level)} interval {units.about(i.low)} to {units.about(i.high)}"
            if i
            else "; one seed gives no interval"
        )
        rows += [
            (
                "S_min",
                f"{units.about(law.s_min)} steps",
                f"minimum number of steps (fit, mean error {units.percent(law.rms_log_residual)})",
            ),
            ("E_min", f"{units.about(law.e_min)} samples", "minimum number of samples (fit)"),
            ("B_crit", units.about(law.b_crit), f"E_min/S_min{between}"),
        ]
    if time:
        text = f"{units.duration(time.t0_s)} + {units.duration(time.t1_s)} per sample"
        rows.append(("One step", text, "fit of measured times"))
    if best:
        where = f"about {rounded_batch(best.b_star):,}" if math.isfinite(best.b_star) else "the largest possible"
        text = f"{where}, {units.duration(best.time_s)} of training"
        rows.append(("Fastest batch", text, "derived: sqrt(B_crit t0/t1); it can be larger than the training set"))
    return rows


def _measuring(trials: Sequence[Trial], size: int) -> int:
    return sum(t.batch_size == size and not t.tuning for t in trials)


def _at(trials: Sequence[Trial], size: int, most: int) -> BatchSizeResult:
    of_size = [t for t in trials if t.batch_size == size]
    measuring = [t for t in of_size if not t.tuning]
    steps = [t.steps for t in measuring if t.steps]
    times = [t.step_s for t in of_size if t.step_s]
    return BatchSizeResult(
        batch_size=size,
        lr=measuring[0].lr if measuring else None,
        lrs_tried=len({t.lr for t in of_size if t.tuning}),
        reached=sum(t.reached for t in measuring),
        measured=len(measuring),
        steps=math.exp(sum(map(math.log, steps)) / len(steps)) if steps else None,
        step_s=float(np.median(times)) if times else None,
        in_fit=len(steps) == len(measuring) == most > 0,
    )


def _left_out(at: BatchSizeResult, most: int) -> str:
    if not at.measured:
        return f"Batch size {at.batch_size}: none of {at.lrs_tried} learning rates reached the target (yet); not in the fit."
    if at.reached < at.measured:
        return f"Batch size {at.batch_size}: {at.measured - at.reached} of {at.measured} seeds did not reach the target; not in the fit."
    if at.measured < most:
        return f"Batch size {at.batch_size}: {at.measured} of {most} seeds are done; not in the fit."
    return f"Batch size {at.batch_size}: the target was reached before the first step; not in the fit."


# Measured with a small network on 8x8 digits, on one thread of an AVX2 CPU; used for estimates before any trial.
_ASSUMED = BatchLaw(s_min=25, e_min=900, b_crit=36, rms_log_residual=0)
_ASSUMED_OVERHEAD_S = 150e-6  # of a step or an evaluation
_ASSUMED_FLOPS_PER_S = 2e10
_LRS_TRIED = 3.5


def estimate_seconds(
    law: Law, *, train_examples: int, forward_flops_per_example: int, train_flops_per_example: int
) -> float:
    """A rough estimate of the seconds of a whole run, from an assumed law and speed.

    It can be wrong by several times, and assumes a target about as hard as a training loss of 0.2 on 8x8 digits.
    """
    probe, total = min(PROBE, train_examples), 0.0
    for size in law.sizes(train_examples):
        steps = min(law.max_steps, _ASSUMED.steps(size))
        evaluations = min(steps, 20 + max(0.0, math.log(steps / 20) / math.log(GRID)))
        step_s = _ASSUMED_OVERHEAD_S + size * train_flops_per_example / _ASSUMED_FLOPS_PER_S
        evaluation_s = _ASSUMED_OVERHEAD_S + probe * forward_flops_per_example / _ASSUMED_FLOPS_PER_S
        total += (_LRS_TRIED * law.tuning_seeds + law.seeds) * (steps * step_s + evaluations * evaluation_s)
    return total


def _points(
    batch_sizes: ArrayLike, values: ArrayLike, *, at_least: int = MIN_BATCH_SIZES, what: str = "The batch law"
) -> tuple[Floats, Floats]:
    """Both as float64 (n,).

    Raises:
        EngineError: the lengths differ, a number is not positive, or there are too few different batch sizes.
    """
    sizes = np.atleast_1d(np.asarray(batch_sizes, dtype=np.float64))
    numbers = np.atleast_1d(np.asarray(values, dtype=np.float64))
    if sizes.shape != numbers.shape:
        raise EngineError(f"There are {sizes.size} batch sizes but {numbers.size} values.", fix="Give one for each.")
    if not (np.isfinite(numbers).all() and (numbers > 0).all() and (sizes > 0).all()):
        raise EngineError(
            f"{what}: not every batch size has a positive number.",
            fix="Leave out batch sizes that did not reach the target, and name them.",
        )
    if (different := len(np.unique(sizes))) < at_least:
        raise EngineError(
            f"{what}: {different} different batch size{'' if different == 1 else 's'} reached the target, fewer than {at_least}.",
            fix="Add batch sizes, choose an easier target, or allow more steps.",
        )
    return sizes, numbers
