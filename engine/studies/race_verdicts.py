"""The verdicts of a race in sentences, and its results as text for a terminal."""

from __future__ import annotations

from engine.common import units
from engine.common.sanitize import visible
from engine.studies.paired_tests import Verdict
from engine.studies.race_results import CLAIM_SEEDS, Outcome, VariantOutcome


def too_few_in_words(n: int, what: str = "seeds") -> str:
    """The sentence beside a figure from `n` seeds, or repeats, when a significance test needs more."""
    return f"Preliminary: {n} of {CLAIM_SEEDS} {what}."


def verdict_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    """The paired difference of a configuration from the baseline, its interval, and whether it is significant.

    `what` is "target", "accuracy" or "loss".
    """
    effect = _effect_in_words(lane, baseline, verdict, what)
    if verdict.state == "preliminary":
        return f"{effect}. {too_few_in_words(verdict.n)}"
    return f"{effect}. {'Significant' if verdict.state == 'decided' else 'Not significant'}, from {verdict.n} paired seeds."


def _effect_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    if verdict.effect is None and what != "target":
        return f"{lane} and {baseline} are compared by rank only, because a run of one of them diverged"
    if verdict.effect is None:
        return f"{lane} and {baseline} are not comparable: at least one of them missed the {what} in half of its seeds"
    interval = f"{100 * verdict.level:.3g} % interval"
    ends = None if verdict.low is None or verdict.high is None else (verdict.low, verdict.high)
    if verdict.relative:
        known = f" ({interval} {1 + ends[0]:.2f} to {1 + ends[1]:.2f})" if ends else ""
        return f"{lane} takes {1 + verdict.effect:.2f} times as long as {baseline} to reach the {what}{known}"
    sign, is_accuracy = (-1 if verdict.effect < 0 else 1), what == "accuracy"
    scale = 100 * sign if is_accuracy else sign
    known = f" ({interval} {' to '.join(f'{scale * end:.3g}' for end in ends[::sign])})" if ends else ""
    size = f"{scale * verdict.effect:.3g}"
    if is_accuracy:
        return f"{lane} is {size} points {'more' if sign > 0 else 'less'} accurate than {baseline}{known}"
    return f"{lane} has a test {what} {size} {'higher' if sign > 0 else 'lower'} than {baseline}{known}"


def table(result: Outcome) -> list[str]:
    """Lines for a terminal."""
    what = "" if result.target is None else f", target {result.metric} {result.target:g}"
    lines = [f"{result.seeds} seed{'' if result.seeds == 1 else 's'}, baseline {visible(result.baseline)}{what}"]
    if result.noise_floor is not None:
        lines.append(
            f"  accuracy varies by at least ± {100 * result.noise_floor:.2f} points from seed to seed (derived)"
        )
    for lane in result.lanes:
        states = ", ".join(f"{number} {status}" for status, number in lane.status.items())
        lines.append(f"{visible(lane.label)}  ({states})")
        lines.append(
            f"  test accuracy {units.accuracy(lane.test_accuracy)}{beside_largest_class(lane)}, test loss {units.loss(lane.test_loss)}, "
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


def beside_largest_class(lane: VariantOutcome) -> str:
    """The accuracy of always answering the largest class, in brackets; empty if it is unknown."""
    known = lane.largest_class_accuracy
    return "" if known is None else f" (largest class {units.accuracy(known)})"


def busy_in_words(lane: VariantOutcome) -> str:
    """A mark for figures of speed, where other programs used the machine; else empty."""
    known = sum(lane.status.values())
    return f" (machine was busy{f' in {lane.busy} of {known} runs' if known > 1 else ''})" if lane.busy else ""


def cost_in_words(lane: VariantOutcome) -> str:
    """What a configuration spent to reach the target, or that it did not reach it."""
    arrived = f"{lane.reached} of {lane.judged} runs"
    if lane.cost["steps"] is None:
        return f"not reached ({arrived})"
    if lane.cost["steps"] == 0:
        return f"reached before training; choose a harder target ({arrived})"
    samples = units.UNKNOWN if lane.cost["samples"] is None else f"{round(lane.cost['samples']):,}"
    return (
        f"{units.duration(lane.cost['seconds'])}, {round(lane.cost['steps']):,} steps, {samples} samples, "
        f"{units.flops(lane.cost['flops'])} ({arrived})"
    )
