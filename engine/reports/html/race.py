"""The results of a race: verdicts in sentences, and cost to target and final figures of each configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.charts import training
from engine.common import units
from engine.config.training import Target
from engine.reports.html.parts import Head, PlacedRun
from engine.reports.report import Report
from engine.studies import race_results, race_verdicts
from engine.studies.race_results import Outcome, VariantOutcome

Cost = tuple[str, str, Callable[[float | None], str]]  # axis, title, formatter
_COSTS: tuple[Cost, ...] = (
    ("seconds", "Training time", units.duration),
    ("steps", "Steps", lambda value: units.count(value and round(value))),
    ("samples", "Samples", lambda value: units.count(value and round(value))),
    ("flops", "FLOPs", units.flops),
    ("joules", "Energy", units.energy),
    ("money", "Price", lambda value: units.UNKNOWN if value is None else f"{value:.3g}"),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The card of one conclusion."""

    sentences: list[str]
    noise: str  # how much accuracy varies between seeds; "" if unknown
    heads: list[str]
    rows: list[tuple[Head, list[str]]]  # a configuration, and a cell per head
    busy: str  # how many runs of which configurations had a busy machine
    result: Outcome


def verdicts(report: Report, runs: Sequence[PlacedRun]) -> list[Verdict]:
    """One card per conclusion of the report."""
    return [_verdict(conclusion.outcome, runs) for conclusion in report.conclusions]


def _verdict(result: Outcome, runs: Sequence[PlacedRun]) -> Verdict:
    sentences = race_verdicts.verdicts_in_words(result)
    if correction := race_verdicts.correction_in_words(result):
        sentences.append(correction)
    noise = ""
    if result.noise_floor is not None:
        noise = (
            f"Between seeds, test accuracy varies by at least {100 * result.noise_floor:.2f} points (derived); a verdict "
            f"needs {race_results.seeds_needed(len(result.lanes))} seeds."
        )
    costs = [cost for cost in _COSTS if any(lane.cost.get(cost[0]) is not None for lane in result.lanes)]
    to_target = (
        []
        if result.target is None
        else [
            f"To the target {training.target_in_words(Target.model_construct(metric=result.metric, value=result.target))}",
            *(c[1] for c in costs),
        ]
    )
    return Verdict(
        sentences or ["No verdict yet, because no seed has finished in two configurations."],
        noise,
        [*to_target, "Test accuracy", "Test loss", "Throughput", "Step memory"],
        [_lane_row(lane, result, costs, runs) for lane in result.lanes],
        ", ".join(f"{lane.busy} of {sum(lane.status.values())} of {lane.label}" for lane in result.lanes if lane.busy),
        result,
    )


def _lane_row(
    lane: VariantOutcome, result: Outcome, costs: Sequence[Cost], runs: Sequence[PlacedRun]
) -> tuple[Head, list[str]]:
    place = next((run.place for run in runs if run.run.run_id in lane.run_ids), None)
    cells = []
    if result.target is not None:
        reached = lane.cost.get("steps") is not None
        said = race_results.resolution_in_words(lane)
        cells.append(race_verdicts.reached_in_words(lane) + (f"; {said}" if said else ""))
        for axis, _, write in costs:
            value = lane.cost.get(axis)
            is_missing = value is None and not reached
            cells.append(units.UNKNOWN if is_missing else _beside(write(value), lane.share.get(axis)))
    cells += [
        units.accuracy(lane.test_accuracy) + race_verdicts.beside_largest_class(lane).replace(" %", "\u00a0%"),
        units.loss(lane.test_loss),
        _beside(units.samples_per_s(lane.samples_per_s), lane.share.get("samples_per_s")),
        units.nbytes(lane.memory_bytes),
    ]
    return Head(lane.label) if place is None else Head.of(lane.label, place), cells


def _beside(text: str, share: float | None) -> str:
    """A figure, with its share of the baseline's value in brackets."""
    return text if share is None else f"{text} ({units.percent(share)})".replace(" %", "\u00a0%")
