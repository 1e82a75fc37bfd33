"""What a race came to: the table, the verdicts, and the sentences for them, from whatever is recorded by now."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.common import units
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.events.base import TERMINAL, is_number
from engine.events.lifecycle import Failed
from engine.measurement import energy
from engine.store.run import Run
from engine.studies import paired_tests
from engine.studies.paired_tests import Verdict
from engine.studies.races import Metric, Race, RacedVariant

CLAIM_SEEDS = paired_tests.MIN_PAIRS
# --- what it came to ------------------------------------------------------------------------------------------------

AXES = {  # what a target may cost, and how each is had
    "steps": "measured",
    "samples": "measured",
    "seconds": "measured",
    "flops": "derived",
    "money": "derived",
    "joules": "measured",
}


@dataclass(frozen=True, slots=True)
class ToTarget:
    """What one run spent until it reached a target, by axis; all None where it did not."""

    reached: bool
    spent_s: float  # seconds of training, until the target or the end; NaN where there was no clock
    cost: dict[str, float | None]
    energy_doubt: float | None = None  # uncertainty of its joules, as a share of them


@dataclass(frozen=True, slots=True)
class VariantOutcome:
    """A lane in figures: medians over its seeds, None where nothing is known (yet)."""

    label: str
    run_ids: list[str]
    status: dict[str, int]  # how many runs are in which state
    why: list[str]  # of runs that did not finish
    over: int  # runs that have ended, however
    judged: int  # runs that reached the target, or have ended and did not; not those that were stopped before
    reached: int
    cost: dict[str, float | None]  # to the target: medians over the judged, None where half of them did not reach it
    expected_s: float | None  # expected running time: all time spent by the number that arrived
    test_accuracy: float | None
    test_loss: float | None
    samples_per_s: float | None
    steps_per_s: float | None
    memory_bytes: int | None  # of training: weights, optimizer state and one step's peak
    busy: int  # of its runs: how many ran while something else used the machine, so that its speed is no fair one
    has_energy: bool  # whether a counter followed each of its runs: `cost["joules"]` is not known otherwise
    energy_doubt: float | None  # uncertainty of `cost["joules"]`, as a share: the largest of its runs'
    loss_noise: float | None  # spread of the training loss around its own mean, late in the run
    share: dict[str, float | None] = field(default_factory=dict)  # value / the baseline's, by figure
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # against the baseline, by metric


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a race came to, against a target and a baseline."""

    metric: Metric
    target: float | None
    baseline: str
    seeds: int
    lanes: list[VariantOutcome]
    noise_floor: float | None  # of accuracy: what luck alone moves between seeds, at least

    @property
    def is_decided(self) -> bool:
        """Whether each lane has a verdict on each metric that was asked about."""
        rivals = [lane for lane in self.lanes if lane.label != self.baseline]
        key = "to_target" if self.target is not None else self.metric
        return all(lane.verdicts.get(key) and lane.verdicts[key].state == "decided" for lane in rivals)


def axes_of(run: Run, price_per_hour: float | None = None) -> dict[str, np.ndarray]:
    """The evaluations of a run on every axis: (n,) each. Samples are those seen at the step of the evaluation."""
    steps, seconds = run.evaluations["step"], run.evaluations["seconds"]
    known = np.concatenate([[0.0], run.steps["step"]]), np.concatenate([[0.0], run.steps["samples"]])
    samples = np.interp(steps, *known)
    axes = {"steps": steps, "samples": samples, "seconds": seconds}
    if run.imported:  # somebody's table may know neither
        axes = {
            name: axis
            for name, axis in axes.items()
            if np.isfinite(axis).all() and (name != "samples" or len(run.steps))
        }
    if run.started:
        axes["flops"] = samples * run.started.train_flops_per_example
    if (joules := energy.joules_at(run, run.evaluations["elapsed"])) is not None:
        axes["joules"] = joules
    if price_per_hour:
        axes["money"] = seconds / 3600 * price_per_hour
    return axes


def to_target(run: Run, metric: Metric, target: float, price_per_hour: float | None = None) -> ToTarget:
    """By the crossing rule: the first of two evaluations in a row that reach it, interpolated to the one before."""
    with run.lock:  # a run that goes on is read by others meanwhile
        values, lower = run.evaluations[metric], metric == "test_loss"
        axes = axes_of(run, price_per_hour)
        cost = {
            name: paired_tests.to_target(axes[name], values, target, lower_is_better=lower) if name in axes else None
            for name in AXES
        }
        reached, spent = cost["steps"] is not None, cost["seconds"]
        if spent is None:
            spent = math.nan if reached or "seconds" not in axes else run.steps.last("seconds") or 0.0
        at = paired_tests.to_target(run.evaluations["elapsed"], values, target, lower_is_better=lower)
        doubt = energy.doubt_to_target(run, at) if cost["joules"] is not None else None
        return ToTarget(reached, spent, cost, doubt)


def outcome(
    race: Race,
    *,
    metric: Metric = "test_accuracy",
    target: float | None = None,
    baseline: str = "",
    price_per_hour: float | None = None,
) -> Outcome:
    """The table and the verdicts of a race, from whatever is recorded by now. Raises ConfigError for a bad target."""
    check_target(metric, target)
    labels = [lane.label for lane in race.lanes]
    if baseline and baseline not in labels:
        raise ConfigError(f"baseline={baseline!r} is not a lane.", fix=f"Choose from {', '.join(labels)}.")
    first = race.lanes[labels.index(baseline)] if baseline else race.lanes[0]
    reached = {
        lane.label: {
            seed: to_target(run, metric, target, price_per_hour) for seed, run in lane.runs.items() if len(run.evaluations)
        } if target is not None else {}
        for lane in race.lanes
    }  # fmt: skip
    base = _lane_outcome(first, reached[first.label])
    lanes = [
        base
        if lane is first
        else _against(_lane_outcome(lane, reached[lane.label]), base, lane, first, reached, _looks(race))
        for lane in race.lanes
    ]
    return Outcome(metric, target, first.label, len(race.seeds), lanes, _noise_floor(race))


def check_target(metric: Metric, target: float | None) -> None:
    """Raises ConfigError for a target nothing could reach, or everything has."""
    if target is None:
        return
    if not math.isfinite(target) or target <= 0 or (metric == "test_accuracy" and target > 1):
        allowed = "a share above 0 up to 1 (97 % is 0.97)" if metric == "test_accuracy" else "a number above 0"
        raise ConfigError(f"target {metric}={target:g} is not allowed.", fix=f"It may be {allowed}.")


def parse_target(text: str) -> tuple[Metric, float | None]:
    """`test_accuracy=0.95`, `test_loss=0.3`, or none; raises ConfigError."""
    name, _, value = text.partition("=")
    if text.strip().lower() == "none":
        return "test_accuracy", None
    try:
        metric = {"test_accuracy": "test_accuracy", "test_loss": "test_loss"}[name.strip()]
        target = float(value)
    except (KeyError, ValueError):
        raise ConfigError(
            f"target {text!r} is not understood.", fix="Write test_accuracy=0.95 or test_loss=0.3."
        ) from None
    check_target(metric, target)  # type: ignore[arg-type]
    return metric, target  # type: ignore[return-value]


def survivals(race: Race, result: Outcome) -> list[tuple[str, paired_tests.Survival, float]]:
    """For each lane that has begun: its name, the share of its runs that have not reached the target yet, and the longest
    time any of them trained."""
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
    summaries = [run.summary() for run in counted]  # a run that only just began would pull the median to nothing
    judged = [
        reached[seed] for seed, run in lane.runs.items() if seed in reached and (_counts(run) or reached[seed].reached)
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
        test_loss=paired_tests.median_of_known([s.test_loss for s in summaries]),
        samples_per_s=paired_tests.median_of_known([s.samples_per_s for s in summaries]),
        steps_per_s=paired_tests.median_of_known(
            [s.steps / s.train_seconds if s.train_seconds else None for s in summaries]
        ),
        memory_bytes=next((s.peak_memory_bytes for s in summaries if s.peak_memory_bytes is not None), None),
        busy=sum(bool(s.busy) for s in summaries),
        has_energy=bool(runs) and all(np.isfinite(run.hardware["energy_j"]).any() for run in runs),
        energy_doubt=max((r.energy_doubt for r in judged if r.energy_doubt is not None), default=None),
        loss_noise=paired_tests.median_of_known([_loss_spread(run) for run in runs]),
    )


def _against(
    lane: VariantOutcome, base: VariantOutcome, raced: RacedVariant, first: RacedVariant,
    reached: Mapping[str, Mapping[int, ToTarget]], looks: int,
) -> VariantOutcome:  # fmt: skip
    """The lane with its verdicts against the baseline, from seeds both have ended."""
    both = [s for s in raced.runs if s in first.runs and _counts(raced.runs[s]) and _counts(first.runs[s])]
    verdicts: dict[str, Verdict] = {}
    if both:
        a, b = [first.runs[s] for s in both], [raced.runs[s] for s in both]
        verdicts["test_accuracy"] = _verdict(a, b, "test_accuracy", looks)
        verdicts["test_loss"] = _verdict(a, b, "test_loss", looks)
        pairs = [(reached[first.label].get(s), reached[raced.label].get(s)) for s in both]
        if all(x and y and math.isfinite(x.spent_s) and math.isfinite(y.spent_s) for x, y in pairs):
            verdicts["to_target"] = _verdict_on_times(pairs, looks)  # type: ignore[arg-type]
    figures = ("test_accuracy", "test_loss", "samples_per_s", "steps_per_s", "memory_bytes")
    share = {name: paired_tests.percent_of_baseline(getattr(lane, name), getattr(base, name)) for name in figures}
    share |= {axis: paired_tests.percent_of_baseline(lane.cost[axis], base.cost[axis]) for axis in AXES}
    return replace(lane, share=share, verdicts=verdicts)


def _counts(run: Run) -> bool:
    """Whether a run has said all it will about its lane: it finished, or failed by its own configuration."""
    return run.status == "finished" or (isinstance(run.last_word, Failed) and run.last_word.cause == "Diverged")


def _verdict(a: Sequence[Run], b: Sequence[Run], metric: Metric, looks: int) -> Verdict:
    """On the last evaluation. A run that diverged has lost to any that did not: then only the order counts."""
    lower = metric == "test_loss"
    values = [[run.evaluations.last(metric) if run.status == "finished" else None for run in runs] for runs in (a, b)]
    if all(is_number(value) for row in values for value in row):
        return paired_tests.verdict(*values, lower_is_better=lower, looks=looks)  # type: ignore[arg-type]
    there = [[is_number(value) for value in row] for row in values]
    losses = [[_positive(value, lower) for value in row] for row in values]
    ranked = paired_tests.verdict_to_target(losses[0], there[0], losses[1], there[1], looks=looks)
    return replace(ranked, effect=None, relative=False)


def _positive(value: float | None, lower: bool) -> float:
    """What is better when it is smaller, for a comparison of ranks; anything for a value that is not known."""
    if not is_number(value) or value is None:
        return 1.0
    return max(value if lower else 1 - value, 1e-12)


def _verdict_on_times(pairs: Sequence[tuple[ToTarget, ToTarget]], looks: int) -> Verdict:
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    if all(r.reached and r.spent_s > 0 for r in (*a, *b)):
        return paired_tests.verdict(
            [r.spent_s for r in a], [r.spent_s for r in b], lower_is_better=True, relative=True, looks=looks
        )
    times = [[max(r.spent_s, 1e-9) for r in rows] for rows in (a, b)]
    return paired_tests.verdict_to_target(
        times[0], [r.reached for r in a], times[1], [r.reached for r in b], looks=looks
    )


def _looks(race: Race) -> int:
    """How often the race was judged: once for each round of seeds after which there were enough for a verdict."""
    begun: dict[int, int] = {}  # seed -> the round it came in
    for run in race.runs:
        number = run.heat.round if run.heat else 1
        begun[run.config.seed] = min(number, begun.get(run.config.seed, number))
    rounds = set(begun.values())
    return max(1, sum(sum(came <= number for came in begun.values()) >= CLAIM_SEEDS for number in rounds))


def _loss_spread(run: Run) -> float | None:
    """Standard deviation of single batches' losses around a running mean, over the last fifth of the run: what the
    gradient's noise does to the loss. None for too few steps."""
    with run.lock:
        loss = run.steps["loss"][-max(50, len(run.steps) // 5) :].copy()
    if len(loss) < 50 or not np.isfinite(loss).all():
        return None
    smooth = np.convolve(loss, np.ones(25) / 25, "valid")
    return float((loss[12 : 12 + len(smooth)] - smooth).std())


def _noise_floor(race: Race) -> float | None:
    """sqrt(err / 2 n_test) at the best accuracy so far; before the first evaluation nothing is known."""
    best = [run for run in race.runs if run.started and is_number(run.evaluations.last("test_accuracy"))]
    if not best:
        return None
    run = max(best, key=lambda r: r.evaluations.last("test_accuracy") or 0.0)
    error = 1 - (run.evaluations.last("test_accuracy") or 0.0)
    assert run.started
    return paired_tests.noise_floor(error, run.started.test_examples) if run.started.test_examples else None


# --- in words -------------------------------------------------------------------------------------------------------


def too_few_in_words(n: int, what: str = "seeds") -> str:
    """The sentence beside a figure from `n` seeds, or repeats, when a verdict takes more."""
    return f"Preliminary: {n} of the {CLAIM_SEEDS} {what} a verdict takes."


def verdict_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    """One sentence: who, by how much, how sure."""
    if verdict.state == "decided":
        winner, loser = (lane, baseline) if verdict.winner == "b" else (baseline, lane)
        return f"{winner} beats {loser}: {_effect_in_words(lane, baseline, verdict, what)}."
    told = _effect_in_words(lane, baseline, verdict, what)
    if verdict.state == "preliminary":
        return f"Preliminary, {verdict.n} of {CLAIM_SEEDS} seeds: {told}."
    return f"Inconclusive: {told}, which may be luck."


def _effect_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    if verdict.effect is None and what != "target":
        return f"{lane} and {baseline} are compared by rank alone, as a run of one of them diverged"
    if verdict.effect is None:
        return f"{lane} and {baseline} do not both reach the {what} in most seeds"
    known = verdict.low is not None and verdict.high is not None
    if verdict.relative:
        ends = f" ({verdict.level:.3g} interval {1 + verdict.low:.2f} to {1 + verdict.high:.2f})" if known else ""  # type: ignore[operator]
        return f"{lane} takes {1 + verdict.effect:.2f} times as long to the {what} as {baseline}{ends}"
    scale, unit = (100, " points") if what == "accuracy" else (1, "")
    ends = f" ({verdict.level:.3g} interval {scale * verdict.low:+.3g} to {scale * verdict.high:+.3g})" if known else ""  # type: ignore[operator]
    return f"{lane} ends {scale * verdict.effect:+.3g}{unit} in {what} from {baseline}{ends}"


def table(result: Outcome) -> list[str]:
    """Lines for a terminal."""
    what = "" if result.target is None else f", target {result.metric} {result.target:g}"
    lines = [f"{result.seeds} seed{'' if result.seeds == 1 else 's'}, baseline {visible(result.baseline)}{what}"]
    if result.noise_floor is not None:
        lines.append(f"  luck alone moves accuracy by about {100 * result.noise_floor:.2f} points (derived)")
    for lane in result.lanes:
        states = ", ".join(f"{number} {status}" for status, number in lane.status.items())
        lines.append(f"{visible(lane.label)}  ({states})")
        lines.append(
            f"  accuracy {units.accuracy(lane.test_accuracy)}, loss {units.loss(lane.test_loss)}, "
            f"{units.samples_per_s(lane.samples_per_s)}{busy_in_words(lane)}, {units.nbytes(lane.memory_bytes)} of training memory"
        )
        if result.target is not None:
            lines.append(f"  to the target: {cost_in_words(lane)}")
        lines += [
            f"  {visible(verdict_in_words(lane.label, result.baseline, lane.verdicts[key], what))}"
            for key, what in (("to_target", "target"), ("test_accuracy", "accuracy"))
            if key in lane.verdicts
        ]
        lines += [f"  ! {visible(why)}" for why in lane.why]
    return lines


def busy_in_words(lane: VariantOutcome) -> str:
    """A mark for figures of speed, where something else used the machine meanwhile."""
    known = sum(lane.status.values())
    return f" (machine was busy{f' in {lane.busy} of {known} runs' if known > 1 else ''})" if lane.busy else ""


def cost_in_words(lane: VariantOutcome) -> str:
    """What a lane spent to the target; that it was not reached is said, never left out."""
    arrived = f"{lane.reached} of {lane.judged} runs"
    if lane.cost["steps"] is None:
        return f"not reached ({arrived})"
    if lane.cost["steps"] == 0:
        return f"reached before training began: choose a harder one ({arrived})"
    samples = units.UNKNOWN if lane.cost["samples"] is None else f"{round(lane.cost['samples']):,}"
    return (
        f"{units.duration(lane.cost['seconds'])}, {round(lane.cost['steps']):,} steps, {samples} samples, "
        f"{units.flops(lane.cost['flops'])} ({arrived})"
    )


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
        "statuses": {run.run_id: run.status for run in race.runs},
        "over": all(run.status in TERMINAL for run in race.runs),
    }
