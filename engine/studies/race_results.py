"""Results of a race, also while it runs: the figures of each configuration, and the verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from engine.common.errors import ConfigError
from engine.events.base import TERMINAL, is_number
from engine.events.target import crossing
from engine.measurement import energy
from engine.store.columns import samples_at
from engine.store.run import Run
from engine.studies import paired_tests
from engine.studies.paired_tests import Verdict
from engine.studies.races import METRICS, Metric, Race, RacedVariant

CLAIM_SEEDS = paired_tests.MIN_PAIRS  # for two configurations; `seeds_needed` for more
_ALPHA = 0.05  # probability of any significant result in a race of equal configurations
# Share of it for what the race asks: the time to its target, else its metric. The rest is for its other figures.
_QUESTION = 0.8


# --- the results ------------------------------------------------------------------------------------------------------

AXES = ("steps", "samples", "seconds", "flops", "money", "joules")  # what a run spends until it reaches a target


@dataclass(frozen=True, slots=True)
class ToTarget:
    """What one run spent until it reached a target, by axis; all None where it did not."""

    reached: bool
    spent_s: float  # seconds of training, until the target or the end; NaN where the time is not known
    cost: dict[str, float | None]
    energy_doubt: float | None = None  # uncertainty of its joules, as a share of them
    between: tuple[int, int] | None = None  # steps of the evaluations between which the costs are interpolated


@dataclass(frozen=True, slots=True)
class VariantOutcome:
    """The figures of one configuration: medians over its seeds; None where a figure is not known (yet)."""

    label: str
    run_ids: list[str]
    status: dict[str, int]  # number of runs in each state
    why: list[str]  # reasons of runs that did not finish
    over: int  # runs that have ended in any state
    judged: int  # runs that reached the target, or finished or diverged without it; not those that were stopped before
    reached: int
    cost: dict[str, float | None]  # to the target: medians over the judged runs; None where half did not reach it
    expected_s: float | None  # expected running time: time spent by all runs / number of runs that reached the target
    test_accuracy: float | None
    test_loss: float | None
    samples_per_s: float | None
    steps_per_s: float | None
    memory_bytes: int | None  # of a step: weights, optimizer state and one step's peak
    busy: int  # number of runs during which other programs used the machine, so that their speed is too low
    has_energy: bool  # whether a counter measured each of its runs; else `cost["joules"]` is not known
    energy_doubt: float | None  # uncertainty of `cost["joules"]`, as a share: the largest of its runs
    loss_noise: float | None  # spread of the training loss around its moving average, late in the run
    # Test accuracy of always answering the largest class of the training split; None in reports of older versions.
    largest_class_accuracy: float | None = None
    share: dict[str, float | None] = field(default_factory=dict)  # value / value of the baseline, by figure
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # against the baseline, by metric
    # The widest steps between two evaluations in which one of its runs reached the target: the resolution of `cost`.
    between: tuple[int, int] | None = None
    imported: int = 0  # number of runs from another store or machine, which are unverified


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a race, for a target and a baseline."""

    metric: Metric
    target: float | None
    baseline: str
    seeds: int
    lanes: list[VariantOutcome]
    noise_floor: float | None  # of accuracy: the least variation from seed to seed, as a share

    @property
    def is_decided(self) -> bool:
        """Whether each configuration differs significantly from the baseline: in time to the target, else in the metric."""
        rivals = [lane for lane in self.lanes if lane.label != self.baseline]
        key = "to_target" if self.target is not None else self.metric
        return all(lane.verdicts.get(key) and lane.verdicts[key].state == "decided" for lane in rivals)


def axes_of(run: Run, price_per_hour: float | None = None) -> dict[str, np.ndarray]:
    """The positions of a run's evaluations on every axis, (n,) each. Samples are those seen at the evaluation's step."""
    steps, seconds = run.evaluations["step"], run.evaluations["seconds"]
    samples = samples_at(run.steps, steps)
    axes = {"steps": steps, "samples": samples, "seconds": seconds}
    if run.started:
        axes["flops"] = samples * run.started.train_flops_per_example
    if (joules := energy.joules_at(run, run.evaluations["elapsed"])) is not None:
        axes["joules"] = joules
    if price_per_hour:
        axes["money"] = seconds / 3600 * price_per_hour
    return {name: axis for name, axis in axes.items() if np.isfinite(axis).all()}  # an imported table may lack some


def to_target(run: Run, metric: Metric, target: float, price_per_hour: float | None = None) -> ToTarget:
    """What a run spent until it reached `target`, by the rule of `engine.events.target`.

    The costs are derived: interpolated between two evaluations. `price_per_hour` gives the cost in money.
    """
    with run.lock:  # other threads read a run that is still running
        axes = axes_of(run, price_per_hour)
        found = crossing(run.evaluations[metric], target, lower_is_better=metric == "test_loss")
        if found is None:
            spent = (run.steps.last("seconds") or 0.0) if "seconds" in axes else math.nan
            return ToTarget(False, spent, dict.fromkeys(AXES))
        cost = {name: found.on(axes[name]) if name in axes else None for name in AXES}
        at, seconds = found.on(run.evaluations["elapsed"]), cost["seconds"]
        doubt = energy.doubt_to_target(run, at) if cost["joules"] is not None else None
        before, first = run.evaluations["step"][[found.before, found.first]].astype(int).tolist()
        return ToTarget(True, math.nan if seconds is None else seconds, cost, doubt, (before, first))


def outcome(
    race: Race,
    *,
    metric: Metric = "test_accuracy",
    target: float | None = None,
    baseline: str = "",
    price_per_hour: float | None = None,
) -> Outcome:
    """The table and the verdicts of a race, also while it runs.

    `baseline` is the name of a configuration; by default the first one.

    Raises:
        ConfigError: the target is not allowed, or no configuration has the baseline's name.
    """
    check_target(metric, target)
    labels = [lane.label for lane in race.lanes]
    if baseline and baseline not in labels:
        raise ConfigError(f"baseline={baseline!r} is not a configuration.", fix=f"Choose from {', '.join(labels)}.")
    first = race.lanes[labels.index(baseline)] if baseline else race.lanes[0]
    reached = {
        lane.label: {
            seed: to_target(run, metric, target, price_per_hour)
            for seed, run in lane.runs.items()
            if len(run.evaluations)
        }
        if target is not None
        else {}
        for lane in race.lanes
    }
    base = _lane_outcome(first, reached[first.label])
    verdicts = _verdicts(race, first, reached, metric if target is None else "to_target")
    lanes = [
        base if lane is first else _against(_lane_outcome(lane, reached[lane.label]), base, verdicts[lane.label])
        for lane in race.lanes
    ]
    return Outcome(metric, target, first.label, len(race.seeds), lanes, _noise_floor(race))


def resolution_in_words(lane: VariantOutcome) -> str:
    """How the cost to the target is known, and how exactly; empty where no run reached the target."""
    if lane.between is None:
        return ""
    before, first = lane.between
    if lane.reached == 1:
        return f"derived: interpolated between the evaluations after steps {before:,} and {first:,}"
    return f"derived: interpolated between evaluations at most {first - before:,} step{'s' if first - before > 1 else ''} apart"


def check_target(metric: Metric, target: float | None) -> None:
    """Check a target; None is allowed.

    Raises:
        ConfigError: no run could reach the target, or every run has reached it before training.
    """
    if target is None:
        return
    if not math.isfinite(target) or target <= 0 or (metric == "test_accuracy" and target > 1):
        allowed = "a share above 0 up to 1 (97 % is 0.97)" if metric == "test_accuracy" else "a number above 0"
        raise ConfigError(f"target {metric}={target:g} is not allowed.", fix=f"Write {allowed}.")


def parse_target(text: str) -> tuple[Metric, float | None]:
    """A target as text: `test_accuracy=0.95`, `test_loss=0.3`, or `none`.

    Raises:
        ConfigError: the text is none of these, or the target is not allowed.
    """
    name, _, value = text.partition("=")
    if text.strip().lower() == "none":
        return "test_accuracy", None
    try:
        metric = {"test_accuracy": "test_accuracy", "test_loss": "test_loss"}[name.strip()]
        target = float(value)
    except (KeyError, ValueError):
        raise ConfigError(
            f"target {text!r} is not a target.", fix="Write test_accuracy=0.95 or test_loss=0.3."
        ) from None
    check_target(metric, target)  # type: ignore[arg-type]
    return metric, target  # type: ignore[return-value]


def survivals(race: Race, result: Outcome) -> list[tuple[str, paired_tests.Survival, float]]:
    """For each configuration with an evaluation: its name, its survival function, and the longest training time, s.

    The survival function is the share of its runs that have not reached the target yet, over training time.
    """
    found = []
    for lane in race.lanes:
        runs = [run for run in lane.runs.values() if len(run.evaluations)]
        if runs and result.target is not None:
            spent = [to_target(run, result.metric, result.target) for run in runs]
            if not all(math.isfinite(r.spent_s) for r in spent):
                continue
            survival = paired_tests.kaplan_meier([r.spent_s for r in spent], [r.reached for r in spent])
            found.append((lane.label, survival, max(run.evaluations.last("seconds") or 0.0 for run in runs)))
    return found


def _lane_outcome(lane: RacedVariant, reached: Mapping[int, ToTarget]) -> VariantOutcome:
    runs = list(lane.runs.values())
    over = [run for run in runs if run.is_over]
    counted = [run for run in runs if run.status == "finished"] or [run for run in runs if not run.is_over]
    summaries = [run.summary() for run in counted]  # not runs that just began, whose figures are near 0
    judged = [
        reached[seed]
        for seed, run in lane.runs.items()
        if seed in reached and (_is_judged(run) or reached[seed].reached)
    ]
    return VariantOutcome(
        label=lane.label,
        run_ids=[run.run_id for run in runs],
        status={status: sum(run.status == status for run in runs) for status in sorted({run.status for run in runs})},
        why=sorted({run.why() for run in over if run.why()}),
        over=len(over),
        judged=len(judged),
        reached=sum(r.reached for r in judged),
        cost={axis: paired_tests.median_or_not_reached([r.cost[axis] for r in judged]) for axis in AXES},
        expected_s=paired_tests.expected_running_time([r.spent_s for r in judged], [r.reached for r in judged])
        if judged and all(math.isfinite(r.spent_s) for r in judged)
        else None,
        test_accuracy=paired_tests.median_of_known([s.test_accuracy for s in summaries]),
        largest_class_accuracy=paired_tests.median_of_known([s.largest_class_accuracy for s in summaries]),
        test_loss=paired_tests.median_of_known([s.test_loss for s in summaries]),
        samples_per_s=paired_tests.median_of_known([s.samples_per_s for s in summaries]),
        steps_per_s=paired_tests.median_of_known([1 / s.step_seconds if s.step_seconds else None for s in summaries]),
        memory_bytes=next((s.step_memory_bytes for s in summaries if s.step_memory_bytes is not None), None),
        busy=sum(bool(s.busy) for s in summaries),
        has_energy=bool(runs) and all(np.isfinite(run.hardware["energy_j"]).any() for run in runs),
        energy_doubt=max((r.energy_doubt for r in judged if r.energy_doubt is not None), default=None),
        loss_noise=paired_tests.median_of_known([_loss_spread(run) for run in runs]),
        between=max((r.between for r in judged if r.between), key=lambda ends: ends[1] - ends[0], default=None),
        imported=sum(run.imported is not None for run in runs),
    )


def _against(lane: VariantOutcome, base: VariantOutcome, verdicts: dict[str, Verdict]) -> VariantOutcome:
    """The configuration with its ratios to the baseline, and its verdicts."""
    figures = ("test_accuracy", "test_loss", "samples_per_s", "steps_per_s", "memory_bytes")
    share = {name: paired_tests.percent_of_baseline(getattr(lane, name), getattr(base, name)) for name in figures}
    share |= {axis: paired_tests.percent_of_baseline(lane.cost[axis], base.cost[axis]) for axis in AXES}
    return replace(lane, share=share, verdicts=verdicts)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def seeds_needed(num_lanes: int, looks: int = 1) -> int:
    """The fewest seeds with which a race of `num_lanes` >= 2 configurations can be significant, at its test number `looks`.

    At the first test: see SEEDS_NEEDED_IN_WORDS.
    """
    return paired_tests.pairs_needed(paired_tests.level_of_test(_ALPHA, looks) * _QUESTION / (num_lanes - 1))


SEEDS_NEEDED_IN_WORDS = "6 seeds with two configurations, 7 with three, 8 with four or five, 9 with six"


def _verdicts(
    race: Race, first: RacedVariant, reached: Mapping[str, Mapping[int, ToTarget]], question: str
) -> dict[str, dict[str, Verdict]]:
    """The verdicts of each configuration against the baseline `first`, by figure, corrected for all of them together."""
    rivals = [lane for lane in race.lanes if lane is not first]
    names = ["test_accuracy", "test_loss", *(["to_target"] if question == "to_target" else [])]
    tests = {(lane.label, name): test for lane in rivals for name, test in _tests(lane, first, reached).items()}
    shares = _shares([lane.label for lane in rivals], names, question)
    found = paired_tests.corrected(tests, shares, level=1 - _ALPHA, looks=_looks(race)) if tests else {}
    return {
        lane.label: {name: found[lane.label, name] for name in names if (lane.label, name) in found} for lane in rivals
    }


def _shares(rivals: Sequence[str], names: Sequence[str], question: str) -> dict[tuple[str, str], float]:
    """How the level is divided between all comparisons: the same for each configuration, most for the question."""
    other = (1 - _QUESTION) / (len(names) - 1)
    return {(lane, name): (_QUESTION if name == question else other) / len(rivals) for lane in rivals for name in names}


def _tests(
    raced: RacedVariant, first: RacedVariant, reached: Mapping[str, Mapping[int, ToTarget]]
) -> dict[str, Callable[[float], Verdict]]:
    """A test of each figure, which takes the confidence level, from the seeds that both configurations have finished."""
    both = [s for s in raced.runs if s in first.runs and _is_judged(raced.runs[s]) and _is_judged(first.runs[s])]
    if not both:
        return {}
    a, b = [first.runs[s] for s in both], [raced.runs[s] for s in both]
    tests: dict[str, Callable[[float], Verdict]]
    tests = {
        metric: partial(_verdict, a, b, metric) for metric in METRICS if all(_has(run, metric) for run in (*a, *b))
    }
    pairs = [(reached[first.label].get(s), reached[raced.label].get(s)) for s in both]
    known = [(x, y) for x, y in pairs if x and y and math.isfinite(x.spent_s) and math.isfinite(y.spent_s)]
    if len(known) == len(both):
        tests["to_target"] = partial(_verdict_on_times, known)
    return tests


def _has(run: Run, metric: Metric) -> bool:
    """Whether the metric was recorded; an imported table can lack it, which is no divergence."""
    return not run.imported or (len(run.evaluations) > 0 and run.evaluations.knows(metric))


def _is_judged(run: Run) -> bool:
    """Whether a run counts in verdicts: it finished, or it diverged, which is the fault of its configuration."""
    return run.status == "finished" or run.has_diverged


def _verdict(a: Sequence[Run], b: Sequence[Run], metric: str, level: float) -> Verdict:
    """The verdict on the last evaluations. A diverged run ranks below all others; then ranks are compared, not values."""
    lower = metric == "test_loss"
    values = [[run.evaluations.last(metric) if run.status == "finished" else None for run in runs] for runs in (a, b)]
    if all(is_number(value) for row in values for value in row):
        return paired_tests.verdict(*values, lower_is_better=lower, level=level)  # type: ignore[arg-type]
    known = [[is_number(value) for value in row] for row in values]
    losses = [[_positive(value, lower) for value in row] for row in values]
    ranked = paired_tests.verdict_to_target(losses[0], known[0], losses[1], known[1], level=level)
    return replace(ranked, effect=None, relative=False, reached_a=None, reached_b=None)


def _positive(value: float | None, lower: bool) -> float:
    """A positive number that is smaller for a better value, for a comparison of ranks; 1 for an unknown value."""
    if not is_number(value) or value is None:
        return 1.0
    return max(value if lower else 1 - value, 1e-12)


def _verdict_on_times(pairs: Sequence[tuple[ToTarget, ToTarget]], level: float) -> Verdict:
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    if all(r.reached and r.spent_s > 0 for r in (*a, *b)):
        found = paired_tests.verdict(
            [r.spent_s for r in a], [r.spent_s for r in b], lower_is_better=True, relative=True, level=level
        )
        return replace(found, reached_a=len(a), reached_b=len(b))
    times = [[max(r.spent_s, 1e-9) for r in rows] for rows in (a, b)]
    return paired_tests.verdict_to_target(
        times[0], [r.reached for r in a], times[1], [r.reached for r in b], level=level
    )


def _looks(race: Race) -> int:
    """How often the race was tested: after each round of seeds with which it could be significant."""
    begun: dict[int, int] = {}  # seed -> the round that added it
    for run in race.runs:
        number = run.heat.round if run.heat else 1
        begun[run.config.seed] = min(number, begun.get(run.config.seed, number))
    looks = 0
    for number in sorted(set(begun.values())):
        looks += sum(added <= number for added in begun.values()) >= seeds_needed(max(2, len(race.lanes)), looks + 1)
    return max(1, looks)


def _loss_spread(run: Run) -> float | None:
    """Standard deviation of the batches' losses around a moving average, over the last fifth of the run.

    It shows the noise of the gradient. None for too few steps.
    """
    with run.lock:
        loss = run.steps["loss"][-max(50, len(run.steps) // 5) :].copy()
    if len(loss) < 50 or not np.isfinite(loss).all():
        return None
    smooth = np.convolve(loss, np.ones(25) / 25, "valid")
    return float((loss[12 : 12 + len(smooth)] - smooth).std())


def _noise_floor(race: Race) -> float | None:
    """The noise floor at the best accuracy so far; None before the first evaluation."""
    best = [
        run
        for run in race.runs
        if run.started and not run.has_diverged and is_number(run.evaluations.last("test_accuracy"))
    ]
    if not best:
        return None
    run = max(best, key=lambda r: r.evaluations.last("test_accuracy") or 0.0)
    error = 1 - (run.evaluations.last("test_accuracy") or 0.0)
    assert run.started
    predictions = run.started.test_examples * run.config.predictions_per_sample
    return paired_tests.noise_floor(error, predictions) if predictions else None


def as_json(race: Race, result: Outcome) -> dict[str, Any]:
    """The table, the verdicts and the run ids, for scripts."""
    return {
        "group_id": race.group,
        "seeds": race.seeds,
        "target": None if result.target is None else {"metric": result.metric, "value": result.target},
        "baseline": result.baseline,
        "noise_floor": result.noise_floor,
        "lanes": [
            {name: getattr(lane, name) for name in lane.__slots__ if name != "verdicts"}
            | {"verdicts": {key: {n: getattr(v, n) for n in v.__slots__} for key, v in lane.verdicts.items()}}
            for lane in result.lanes
        ],
        "decided": result.is_decided,
        "survival": {
            label: {"seconds": curve.times.tolist(), "share": curve.share.tolist()}
            for label, curve, _ in survivals(race, result)
        },
        "statuses": {run.run_id: run.status for run in race.runs},
        "over": all(run.status in TERMINAL for run in race.runs),
        "imported": [run.run_id for run in race.runs if run.imported],
    }
