"""The batch-size law: steps to a target against batch size, and the batch size that reaches the target first.

McCandlish, Kaplan & Amodei 2018 (arXiv:1812.06162): S(B) = S_min (1 + B_crit/B), with B_crit = E_min/S_min. Up to about
B_crit a larger batch needs fewer steps; above it, mainly more samples. It is measured as in Shallue et al. 2019 (JMLR
20(112)): the learning rate is tuned at every batch size, and every trial counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from engine.common import units
from engine.common.errors import EngineError
from engine.config.tasks import MIN_BATCH_SIZES, Law
from engine.events.studies import Trial
from engine.studies.lr_tuning import Floats, Responses, fit_curves, responses

# Samples for the training loss of a trial, at most. With 2,048 and a finer grid, LeNet spent most time on evaluation.
PROBE = 1_024
GRID = 1.1  # evaluations are at every step first, then at steps this factor apart, with linear interpolation between
_GRIDS = (
    201,
    21,
    21,
    21,
    21,
)  # points of each search, log-spaced in B_crit, around the best point of the search before
_BEYOND = 1e3  # B_crit is searched up to this factor outside the measured batch sizes
_OUTLIER = 2.0  # a batch size further from the law than so many typical residuals counts less
_SMALLEST_SCALE = 0.05  # of ln S: a typical residual, at least
_REWEIGHTINGS = 4


@dataclass(frozen=True, slots=True)
class BatchLaw:
    """S(B) = s_min + e_min/B optimizer steps, E(B) = B S(B) samples to the target."""

    s_min: float  # the minimum number of steps, at any batch size
    e_min: float  # the minimum number of samples, at any batch size
    b_crit: float  # e_min/s_min: the batch size that needs twice s_min steps and twice e_min samples
    rms_log_residual: float  # of ln S of the points: 0.07 is a mean error of 7 %

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
    """Robust least squares of ln S - ln(S_min + E_min/B), so that relative errors count and an outlier counts less.

    `batch_sizes` and `steps` are (n,); a batch size can occur several times. For a given B_crit the best S_min is a mean, so
    the fit is a search in one dimension, on a grid, and cannot end in a local minimum. It does not fit the hyperbola in
    (S, E), because E = B S and both axes would have the same errors. Where B_crit is far outside the measured batch sizes,
    they show one end of the law only, and B_crit is not known.

    Raises EngineError for fewer than 3 different batch sizes, or steps that are not positive numbers. Leave out batch sizes
    that did not reach the target.
    """
    sizes, counts = _points(batch_sizes, steps)
    fit = _fit(sizes, np.log(counts)[None], _weights(sizes, np.log(counts)))
    s_min, b_crit = math.exp(fit.log_s_min[0]), math.exp(fit.log_b_crit[0])
    return BatchLaw(s_min, s_min * b_crit, b_crit, float(np.sqrt(np.square(fit.residuals[0]).mean())))


class _Fit(NamedTuple):
    log_b_crit: Floats  # (rows,)
    log_s_min: Floats  # (rows,)
    residuals: Floats  # (rows, n)


def _fit(sizes: Floats, log_steps: Floats, weights: Floats) -> _Fit:
    """The weighted fit of each row of `log_steps`, which is (rows, n); `sizes` and `weights` are (n,)."""
    rows, share = np.arange(len(log_steps)), weights / weights.sum()
    low = np.full(len(rows), math.log(sizes.min() / _BEYOND))
    high = np.full(len(rows), math.log(sizes.max() * _BEYOND))
    for points in _GRIDS:
        grid = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, points)
        residuals = log_steps[:, None] - np.log1p(np.exp(grid)[..., None] / sizes)
        log_s_min = residuals @ share
        residuals -= log_s_min[..., None]
        best = np.argmin(np.square(residuals) @ share, axis=1)
        low, high = grid[rows, np.maximum(best - 1, 0)], grid[rows, np.minimum(best + 1, points - 1)]
    return _Fit(grid[rows, best], log_s_min[rows, best], residuals[rows, best])


def _weights(sizes: Floats, log_steps: Floats) -> Floats:
    """Huber weights (n,): 1, and less for a point further from the fit than `_OUTLIER` typical residuals."""
    weights = np.ones_like(sizes)
    for _ in range(_REWEIGHTINGS):
        off = np.abs(_fit(sizes, log_steps[None], weights).residuals[0])
        typical = max(1.4826 * float(np.median(off)), _SMALLEST_SCALE)
        weights = np.minimum(1.0, _OUTLIER * typical / np.maximum(off, 1e-12))
    return weights


def bootstrap_batch_law(seen: Responses, *, level: float = 0.95, resamples: int = 400, seed: int = 0) -> Interval:
    """Interval of B_crit that includes the choice of the learning rates.

    A resample draws the deviations of all trials from the parabolas of their batch sizes, chooses the rates again from the
    tuning trials, moves the measuring trials to these rates, and repeats both fits. Three seeds have only ten distinct
    resamples, so a resample does not draw seeds: it multiplies the deviations of each seed of a batch size by one normal
    number (wild cluster bootstrap, Cameron, Gelbach & Miller 2008), widened by sqrt(n/(n-1) m/(m-2)) for n seeds and m trials
    of the batch size, because each parabola follows its own trials. Where the batch sizes are further from the law than this
    explains (the law and the parabola are approximate), it adds normal noise up to rms_log_residual sqrt(k/(k-2)), for k
    batch sizes and 2 parameters.
    """
    rng, sizes = np.random.default_rng(seed), np.array(seen.sizes, dtype=np.float64)
    curves = fit_curves(seen.place, seen.log_lr[None], seen.log_steps[None])
    groups, group = np.unique(np.stack([seen.place, seen.seed], axis=1), axis=0, return_inverse=True)
    n, m = np.bincount(groups[:, 0])[seen.place], np.bincount(seen.place)[seen.place]
    wider = np.sqrt(n / np.maximum(n - 1, 1) * m / np.maximum(m - 2, 1))
    deviations = (seen.log_steps - curves.fitted[0]) * wider
    drawn = rng.normal(size=(resamples, len(groups)))[:, group.ravel()] * deviations
    log_lr = _rates_chosen_again(seen, curves.fitted + drawn)
    means = curves.fitted + curves.curvature[0] * (
        np.square(log_lr - curves.log_lr[0, seen.place]) - np.square(seen.log_lr - curves.log_lr[0, seen.place])
    )
    steps = fit_curves(seen.place, log_lr, means + drawn).log_steps
    weights = _weights(sizes, curves.log_steps[0])
    off_the_law = np.square(_fit(sizes, curves.log_steps, weights).residuals).sum() / (len(sizes) - 2)
    unexplained = max(0.0, off_the_law - float(steps.var(axis=0).mean()))
    steps = steps + rng.normal(0, math.sqrt(unexplained), size=steps.shape)
    low, high = np.exp(np.quantile(_fit(sizes, steps, weights).log_b_crit, [(1 - level) / 2, (1 + level) / 2]))
    return Interval(float(low), float(high), level)


def _rates_chosen_again(seen: Responses, log_steps: Floats) -> Floats:
    """ln lr of each trial, (resamples, n): the measuring trials are at the best rate that the tuning trials of a resample show."""
    log_lr = np.repeat(seen.log_lr[None], len(log_steps), axis=0)
    tuning = ~seen.measured
    tuned, place = np.unique(seen.place[tuning], return_inverse=True)
    if not len(tuned):
        return log_lr
    chosen = fit_curves(place, log_lr[:, tuning], log_steps[:, tuning]).log_lr
    for i, at in enumerate(tuned):
        log_lr[:, seen.measured & (seen.place == at)] = chosen[:, [i]]
    return log_lr


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
    lr: float | None  # the learning rate chosen for the measuring seeds; None where none reached the target
    lrs_tried: int
    reached: int  # trials after tuning that reached the target
    measured: int  # trials after tuning
    steps: float | None  # geometric mean of the trials that reached the target
    step_s: float | None  # median of all trials
    in_fit: bool
    tuning_reached: int = 0  # tuning trials that reached the target
    best_steps: float | None = None  # minimum of the parabola through all its trials, to which the law is fitted


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a run; None where its trials are not sufficient, with the reason in `notes`."""

    sizes: tuple[BatchSizeResult, ...]
    law: BatchLaw | None
    b_crit: Interval | None
    step_time: StepTime | None
    best: BestBatch | None
    notes: tuple[str, ...]


def outcome(trials: Sequence[Trial], *, budget_s: float | None = None) -> Outcome:
    """The law from a run's trials, also while it runs; `budget_s` is the time budget of the run.

    A batch size is left out of the fit, with a note, if one of its seeds did not reach the target: its other seeds alone
    would make it look faster than it is.
    """
    most = max((_measuring(trials, size) for size in {t.batch_size for t in trials}), default=0)
    sizes = tuple(_at(trials, size, most) for size in sorted({t.batch_size for t in trials}))
    notes = [_left_out(at, most) for at in sizes if not at.in_fit]
    if budget_s and sum(t.trained_s or 0.0 for t in trials) >= budget_s:
        notes.append(f"budget.seconds={budget_s:g} ended the study at batch size {trials[-1].batch_size}.")
    timed = [(at.batch_size, at.step_s) for at in sizes if at.step_s]
    step_time = fit_step_time(*zip(*timed, strict=True)) if len(timed) > 1 else None
    fitted = [at.batch_size for at in sizes if at.in_fit]
    seen = responses(trials, fitted)
    log_steps = fit_curves(seen.place, seen.log_lr[None], seen.log_steps[None]).log_steps[0] if fitted else np.empty(0)
    sizes = tuple(
        replace(at, best_steps=math.exp(log_steps[fitted.index(at.batch_size)])) if at.in_fit else at for at in sizes
    )
    try:
        law = fit_batch_law(fitted, np.exp(log_steps))
    except EngineError as error:
        return Outcome(sizes, None, None, step_time, None, (*notes, str(error)))
    interval = bootstrap_batch_law(seen) if most > 1 else None
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
                f"minimum number of steps (fit to the best rates, mean error {units.percent(law.rms_log_residual)})",
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
        tuning_reached=sum(t.reached for t in of_size if t.tuning),
        measured=len(measuring),
        steps=math.exp(sum(map(math.log, steps)) / len(steps)) if steps else None,
        step_s=float(np.median(times)) if times else None,
        in_fit=len(steps) == len(measuring) == most > 0,
    )


def _left_out(at: BatchSizeResult, most: int) -> str:
    if not at.measured and at.tuning_reached:
        return f"Batch size {at.batch_size}: its learning rate was not chosen yet; not in the fit."
    if not at.measured:
        return f"Batch size {at.batch_size}: none of {at.lrs_tried} learning rates reached the target (yet); not in the fit."
    if at.reached < at.measured:
        return f"Batch size {at.batch_size}: {at.measured - at.reached} of {at.measured} seeds did not reach the target; not in the fit."
    if at.measured < most:
        return f"Batch size {at.batch_size}: {at.measured} of {most} seeds are done; not in the fit."
    return f"Batch size {at.batch_size}: the target was reached before the first step; not in the fit."


# Measured with a small network on 8x8 digits, on one thread of an AVX2 CPU; used for estimates before any trial.
_ASSUMED = BatchLaw(s_min=22, e_min=900, b_crit=41, rms_log_residual=0)
_ASSUMED_OVERHEAD_S = 150e-6  # of a step or an evaluation
_ASSUMED_FLOPS_PER_S = 2e10
_LRS_TRIED = 4.0


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
