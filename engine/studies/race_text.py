"""What a race teaches, in sentences: each from its own figures, nothing that is not measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.common import units
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.events.base import TERMINAL
from engine.studies.race_results import Outcome, VariantOutcome, too_few_in_words
from engine.studies.races import Race, RacedVariant

BUDGETS_IN_WORDS: Mapping[str, str] = {
    "seconds": "Equal seconds: the machine decides with. Small batches pay the overhead of many steps, large ones their arithmetic.",
    "samples": "Equal samples: small batches take more steps from the same examples, so they are favoured where a step costs little.",
    "epochs": "Equal epochs: stochastic descent takes as many steps as there are examples while batch descent takes one. Small batches are favoured.",
    "steps": "Equal steps: a step of the full batch reads every example, one of stochastic descent a single one. Large batches are favoured.",
    "flops": "Equal arithmetic: as equal samples for one net, and it lets nets of different size compete.",
}  # fmt: skip


def formula(config: RunConfig) -> str | None:
    """The update rule of plain descent for a lane's batch size, as LaTeX; None for other optimizers."""
    if not config.optimizer.facts.is_plain:
        return None
    if config.batch_size == FULL:
        return r"w \leftarrow w - \eta\,\frac{1}{N}\sum_{i=1}^{N}\nabla \ell_i(w)"
    if config.batch_size == 1:
        return r"w \leftarrow w - \eta\,\nabla \ell_i(w)"
    return rf"w \leftarrow w - \eta\,\frac{{1}}{{{config.batch_size}}}\sum_{{i \in \text{{batch}}}}\nabla \ell_i(w)"


def recommendation(result: Outcome, *, made_here: bool = True) -> str | None:
    """Which lane to use and how sure that is; None before any has a figure to go by. A race of elsewhere says nothing of this
    machine."""
    arrived = [lane for lane in result.lanes if lane.cost["seconds"] is not None and lane.reached]
    if arrived and all(lane.cost["steps"] == 0 for lane in arrived):
        return f"{target_in_words(result)[0].upper()}{target_in_words(result)[1:]} was reached before training began: choose a harder target."
    if result.target is not None and arrived:
        best = min(arrived, key=lambda lane: lane.cost["seconds"] or 0.0)
        others = [lane for lane in result.lanes if lane is not best]
        told = [_slower(lane, best) for lane in others]
        where = " on this machine" if made_here else ""
        words = f"{best.label} reaches {target_in_words(result)} first{where}, after {units.duration(best.cost['seconds'])} of training"
        return f"{words}; {', '.join(told)}. {_sure(result, best, 'to_target')}"
    known = [lane for lane in result.lanes if lane.test_accuracy is not None]
    if not known or any(status not in TERMINAL for lane in result.lanes for status in lane.status):
        return None
    best = max(known, key=lambda lane: lane.test_accuracy or 0.0)
    missed = f"No lane reaches {target_in_words(result)} in most of its runs. " if result.target is not None else ""
    return f"{missed}{best.label} ends with the best accuracy, {units.accuracy(best.test_accuracy)}. {_sure(result, best, 'test_accuracy')}"


def _slower(lane: VariantOutcome, best: VariantOutcome) -> str:
    mine, least = lane.cost["seconds"], best.cost["seconds"]
    if mine is None or not least:
        return f"{lane.label} {_without(lane)}"
    return f"{lane.label} takes {mine / least:.1f} times as long"


def _without(lane: VariantOutcome) -> str:
    """Why a lane has no time to the target."""
    if any(status not in TERMINAL for status in lane.status):
        return "has not reached it yet"
    if lane.status.get("failed") == lane.over:
        return "failed"
    return "does not reach it within the budget" if lane.judged else "was stopped before"


def _sure(result: Outcome, best: VariantOutcome, key: str) -> str:
    """How far seeds carry the sentence before: against the baseline, or of the rivals where the baseline is best."""
    rivals = [lane for lane in result.lanes if lane.label != result.baseline]
    about = [best] if best.label != result.baseline else rivals
    verdicts = [lane.verdicts.get(key) for lane in about]
    if any(v is None or v.state == "preliminary" for v in verdicts):
        n = min((v.n if v else 0) for v in verdicts) if verdicts else 0
        return too_few_in_words(n)
    wins = "b" if best.label != result.baseline else "a"
    lost = [lane.label for lane, v in zip(about, verdicts, strict=True) if not v or v.winner != wins]
    if lost and best.label != result.baseline:
        return f"Against {result.baseline} that may be luck: the verdict is inconclusive."
    if lost:
        return f"Against {', '.join(lost)} that may be luck: the verdict is inconclusive."
    return f"Decided against {result.baseline if best.label != result.baseline else 'all others'}, from {verdicts[0].n if verdicts[0] else 0} paired seeds."


def target_in_words(result: Outcome) -> str:
    assert result.target is not None
    if result.metric == "test_accuracy":
        return f"{units.percent(result.target, digits=0 if round(100 * result.target, 6).is_integer() else 1)} test accuracy"
    return f"a test loss of {units.loss(result.target)}"


def batch_sentences(race: Race, result: Outcome) -> list[str]:
    """What the full batch costs in samples and what a batch of one costs in time, where both or one of them raced."""
    raced = {lane.label: lane for lane in race.lanes}
    sentences: list[str] = []
    full = [lane for lane in result.lanes if raced[lane.label].config.batch_size == FULL]
    one = [lane for lane in result.lanes if raced[lane.label].config.batch_size == 1]
    between = [lane for lane in result.lanes if lane not in full and lane not in one]
    if full and (thrifty := _least(between + one, "samples")) and thrifty is not full[0]:
        sentences += _of_full(full[0], thrifty, raced[full[0].label])
    if one and (quick := _fastest(between)):
        sentences += _of_one(one[0], quick)
    return sentences


def _of_full(full: VariantOutcome, thrifty: VariantOutcome, lane: RacedVariant) -> list[str]:
    examples = next((run.started.train_examples for run in lane.runs.values() if run.started), None)
    mine, least = full.cost["samples"], thrifty.cost["samples"]
    if examples is None or not least:
        return []
    if mine is None and not full.judged:
        return []
    reads = f"Each step of {full.label} reads all {examples:,} training examples"
    if mine is None:
        return [
            f"{reads}; within the budget that was not enough, while {thrifty.label} needed {round(least):,} samples."
        ]
    return [
        f"{reads}: {round(mine):,} samples to the target, {mine / least:.0f} times those of {thrifty.label} ({round(least):,})."
    ]


def _of_one(one: VariantOutcome, quick: VariantOutcome) -> list[str]:
    if not one.samples_per_s or not quick.samples_per_s:
        return []
    return [
        f"{one.label} spends a whole step on each example: {units.duration(1 / one.samples_per_s)} per example, "
        f"{quick.samples_per_s / one.samples_per_s:.0f} times as long as {quick.label} ({units.duration(1 / quick.samples_per_s)})."
    ]


def _least(lanes: Sequence[VariantOutcome], axis: str) -> VariantOutcome | None:
    known = [lane for lane in lanes if lane.cost[axis] is not None]
    return min(known, key=lambda lane: lane.cost[axis] or 0.0) if known else None


def _fastest(lanes: Sequence[VariantOutcome]) -> VariantOutcome | None:
    known = [lane for lane in lanes if lane.samples_per_s]
    return max(known, key=lambda lane: lane.samples_per_s or 0.0) if known else None
