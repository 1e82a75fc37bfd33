"""Sentences on a race, each made of the race's own measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.common import units
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.events.base import TERMINAL
from engine.studies.race_results import Outcome, VariantOutcome, seeds_needed
from engine.studies.race_verdicts import preliminary_in_words, too_few_in_words
from engine.studies.races import Race, RacedVariant

BUDGETS_IN_WORDS: Mapping[str, str] = {
    "seconds": "All configurations train for the same time. Small batches spend it on the overhead of many steps, large "
    "batches on the computation of each step.",
    "samples": "All configurations use the same number of samples. Small batches take more steps, which favours them if a "
    "step takes little time.",
    "epochs": "All configurations train for the same number of epochs. Batch size 1 takes one step per sample, the full "
    "batch one step per epoch. This favours small batches.",
    "steps": "All configurations take the same number of steps. A full-batch step reads every sample, a step with batch "
    "size 1 reads one. This favours large batches.",
    "flops": "All configurations use the same FLOPs. For one model this means the same number of samples. Models of "
    "different sizes can be compared too.",
}


def formula(config: RunConfig) -> str | None:
    """The update rule of gradient descent for the batch size of `config`, as LaTeX; None for other optimizers."""
    if not config.optimizer.facts.is_plain:
        return None
    if config.batch_size == FULL:
        return r"w \leftarrow w - \eta\,\frac{1}{N}\sum_{i=1}^{N}\nabla \ell_i(w)"
    if config.batch_size == 1:
        return r"w \leftarrow w - \eta\,\nabla \ell_i(w)"
    return rf"w \leftarrow w - \eta\,\frac{{1}}{{{config.batch_size}}}\sum_{{i \in \text{{batch}}}}\nabla \ell_i(w)"


def recommendation(result: Outcome, *, made_here: bool = True) -> str | None:
    """Which configuration is best and whether that is significant; None before there are results.

    `made_here` is False for imported runs, whose times are those of another machine.
    """
    arrived = [lane for lane in result.lanes if lane.cost["seconds"] is not None and lane.reached]
    if arrived and all(lane.cost["steps"] == 0 for lane in arrived):
        target = target_in_words(result)
        return f"{target[0].upper()}{target[1:]} was reached before training. Choose a harder target."
    if result.target is not None and arrived:
        best = min(arrived, key=lambda lane: lane.cost["seconds"] or 0.0)
        others = [lane for lane in result.lanes if lane is not best]
        slower = [_slower(lane, best) for lane in others]
        where = " on this machine" if made_here else ""
        medians = " (medians)" if result.seeds > 1 else ""  # the verdicts below are of means
        words = f"{best.label} reaches {target_in_words(result)} first{where}, after {units.duration(best.cost['seconds'])} of training{medians}"
        return f"{words}; {', '.join(slower)}. {_significance(result, best, 'to_target')}"
    known = [lane for lane in result.lanes if lane.test_accuracy is not None]
    if not known or any(status not in TERMINAL for lane in result.lanes for status in lane.status):
        return None
    best = max(known, key=lambda lane: lane.test_accuracy or 0.0)
    missed = (
        "" if result.target is None else f"No configuration reaches {target_in_words(result)} in most of its runs. "
    )
    accuracy = units.accuracy(best.test_accuracy)
    if len(known) == len(result.lanes) and all(lane.test_accuracy == best.test_accuracy for lane in known):
        return f"{missed}All configurations have the same median test accuracy, {accuracy}."
    return (
        f"{missed}{best.label} has the best test accuracy, {accuracy}. {_significance(result, best, 'test_accuracy')}"
    )


def _slower(lane: VariantOutcome, best: VariantOutcome) -> str:
    own, least = lane.cost["seconds"], best.cost["seconds"]
    if own is None or not least:
        return f"{lane.label} {_why_not_reached(lane)}"
    return f"{lane.label} takes {own / least:.1f} times as long"


def _why_not_reached(lane: VariantOutcome) -> str:
    if any(status not in TERMINAL for status in lane.status):
        return "has not reached the target yet"
    if lane.status.get("failed") == lane.over:
        return "failed"
    if not lane.judged:
        return "was stopped before it reached the target"
    reached = f"reached the target in only {lane.reached} of {lane.judged} runs"
    return reached if lane.reached else "did not reach the target within the budget"


def _significance(result: Outcome, best: VariantOutcome, key: str) -> str:
    """Whether the best configuration differs significantly from the baseline, or from all others where it is the baseline."""
    is_baseline = best.label == result.baseline
    compared = [lane for lane in result.lanes if lane is not best] if is_baseline else [best]
    verdicts = [lane.verdicts.get(key) for lane in compared]
    if any(v is None for v in verdicts):
        return too_few_in_words(0, needed=seeds_needed(len(result.lanes)))
    known = [v for v in verdicts if v]
    if open_ones := [v for v in known if v.state == "preliminary"]:
        return preliminary_in_words(min(open_ones, key=lambda v: v.n))
    winner = "a" if is_baseline else "b"
    others = [lane.label for lane, v in zip(compared, known, strict=True) if v.winner != winner]
    if others:
        return f"The difference from {', '.join(others) if is_baseline else result.baseline} is not significant."
    return f"Significant against {'all others' if is_baseline else result.baseline} ({known[0].n} paired seeds)."


def target_in_words(result: Outcome) -> str:
    """The target of a race that has one: `95 % test accuracy`, `a test loss of 0.30`."""
    assert result.target is not None
    if result.metric == "test_accuracy":
        return f"{units.percent(result.target, digits=0 if round(100 * result.target, 6).is_integer() else 1)} test accuracy"
    return f"a test loss of {units.loss(result.target)}"


def batch_sentences(race: Race, result: Outcome) -> list[str]:
    """What the full batch costs in samples, and a batch size of 1 in time, for a race with such configurations."""
    raced = {lane.label: lane for lane in race.lanes}
    sentences: list[str] = []
    full = [lane for lane in result.lanes if raced[lane.label].config.batch_size == FULL]
    one = [lane for lane in result.lanes if raced[lane.label].config.batch_size == 1]
    between = [lane for lane in result.lanes if lane not in full and lane not in one]
    if full and (fewest := _least(between + one, "samples")):
        sentences += _of_full(full[0], fewest, raced[full[0].label])
    if one and (fastest := _fastest(between)):
        sentences += _of_one(one[0], fastest)
    return sentences


def _of_full(full: VariantOutcome, fewest: VariantOutcome, lane: RacedVariant) -> list[str]:
    examples = next((run.started.train_examples for run in lane.runs.values() if run.started), None)
    own, least = full.cost["samples"], fewest.cost["samples"]
    if examples is None or not least or (own is None and not full.judged):
        return []
    reads = f"Each step of {full.label} reads all {examples:,} training samples."
    if own is None:
        return [f"{reads} It did not reach the target in the budget; {fewest.label} needed {round(least):,} samples."]
    times = f"{own / least:.0f} times as many as {fewest.label} ({round(least):,})"
    return [f"{reads} It needs {round(own):,} samples to reach the target, {times}."]


def _of_one(one: VariantOutcome, fastest: VariantOutcome) -> list[str]:
    if not one.samples_per_s or not fastest.samples_per_s:
        return []
    return [
        f"{one.label} takes one step per sample: {units.duration(1 / one.samples_per_s)} per sample, "
        f"{fastest.samples_per_s / one.samples_per_s:.0f} times as long as {fastest.label} "
        f"({units.duration(1 / fastest.samples_per_s)})."
    ]


def _least(lanes: Sequence[VariantOutcome], axis: str) -> VariantOutcome | None:
    known = [lane for lane in lanes if lane.cost[axis] is not None]
    return min(known, key=lambda lane: lane.cost[axis] or 0.0) if known else None


def _fastest(lanes: Sequence[VariantOutcome]) -> VariantOutcome | None:
    known = [lane for lane in lanes if lane.samples_per_s]
    return max(known, key=lambda lane: lane.samples_per_s or 0.0) if known else None
