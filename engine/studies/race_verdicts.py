"""The verdicts of a race in sentences, and its results as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable

from engine.common import units
from engine.common.sanitize import visible
from engine.studies.paired_tests import Verdict, pairs_needed
from engine.studies.race_results import CLAIM_SEEDS, Outcome, VariantOutcome, resolution_in_words

FIGURES = {"to_target": "target", "test_accuracy": "test accuracy"}  # verdicts in words: key -> name of the figure


def too_few_in_words(n: int, what: str = "seeds", *, needed: int = CLAIM_SEEDS) -> str:
    """The sentence beside a figure from `n` seeds, or repeats, when a significance test needs more."""
    return f"Preliminary: {n} of {needed} {what}."


def preliminary_in_words(verdict: Verdict) -> str:
    """The sentence beside a preliminary verdict."""
    return too_few_in_words(verdict.n, needed=pairs_needed(1 - verdict.level))


def verdicts_in_words(result: Outcome) -> list[str]:
    """A sentence for each configuration but the baseline, and each figure that is compared."""
    return [sentence for lane in result.lanes for sentence in _of_lane(lane, result.baseline)]


def _of_lane(lane: VariantOutcome, baseline: str) -> list[str]:
    figures = {key: what for key, what in FIGURES.items() if key in lane.verdicts}
    accuracy, loss = (lane.verdicts.get(key) for key in ("test_accuracy", "test_loss"))
    sentences = [verdict_in_words(lane.label, baseline, lane.verdicts[key], what) for key, what in figures.items()]
    if accuracy and loss and accuracy.is_identical and loss.is_identical:
        sentences[-1] = (
            f"{lane.label} and {baseline} have identical results: the same test accuracy and test loss in "
            f"{_each_of(accuracy.n)}."
        )
    return sentences


def _each_of(n: int) -> str:
    return f"each of {n} paired seeds" if n > 1 else "the one paired seed"


def correction_in_words(result: Outcome) -> str:
    """How the significance of several comparisons is corrected; empty before there are enough seeds."""
    found = [verdict for lane in result.lanes for verdict in lane.verdicts.values() if verdict.p_adjusted is not None]
    if not found:
        return ""
    return (
        f"Each p and interval is corrected for all {sum(len(lane.verdicts) for lane in result.lanes)} comparisons "
        "(Holm). Of races of equal configurations, at most 5 % show any significant difference."
    )


def verdict_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    """The paired difference of a configuration from the baseline, its interval, and whether it is significant.

    `what` is "target", "test accuracy" or "test loss".
    """
    seeds = f"{verdict.n} paired seeds"
    if verdict.is_identical:
        figure = "time to the target" if what == "target" else what
        return f"{lane} and {baseline} have the same {figure} in {_each_of(verdict.n)}."
    if verdict.reached_a == verdict.reached_b == 0:
        return f"Neither {lane} nor {baseline} reaches the target in {_each_of(verdict.n).replace('each', 'any')}."
    effect = _effect_in_words(lane, baseline, verdict, what)
    if verdict.state == "preliminary":
        return f"{effect}. {preliminary_in_words(verdict)}"
    decided = "Significant" if verdict.state == "decided" else "Not significant"
    if verdict.p is None or verdict.p_adjusted is None:  # of a report without p
        return f"{effect}. {decided}, from {seeds}."
    return f"{effect}. {decided} (p = {verdict.p_adjusted:.2g}, {seeds}).{_why_despite_interval(verdict)}"


def _why_despite_interval(verdict: Verdict) -> str:
    """Why a difference is not significant although its interval excludes zero: the exact test decides too."""
    if verdict.state == "decided" or verdict.low is None or verdict.high is None or verdict.low <= 0 <= verdict.high:
        return ""
    return (
        f" The interval excludes no difference, but the exact test does not: its p is {verdict.p:.2g} before the "
        f"correction, and {1 - verdict.level:.2g} is needed."
    )


def _effect_in_words(lane: str, baseline: str, verdict: Verdict, what: str) -> str:
    if what == "target":
        return _time_in_words(lane, baseline, verdict)
    if verdict.effect is None:
        words = f"A run of {lane} or {baseline} diverged, so their {what} is compared by rank only"
        wins = f"{lane} is better in {verdict.wins_b} of {verdict.n} seeds, {baseline} in {verdict.wins_a}"
        return words if verdict.wins_a is None else f"{words}: {wins}"
    sign, is_accuracy = (-1 if verdict.effect < 0 else 1), what == "test accuracy"
    scale = 100 * sign if is_accuracy else sign
    known = _interval_in_words(verdict, lambda end: f"{scale * end:.3g}", backwards=sign < 0)
    size = f"{scale * verdict.effect:.3g}{' points' if is_accuracy else ''}"
    return f"The mean {what} of {lane} is {size} {'higher' if sign > 0 else 'lower'} than that of {baseline}{known}"


def _time_in_words(lane: str, baseline: str, verdict: Verdict) -> str:
    """The ratio of the times to the target, or, where runs missed it, how many reached it and which were sooner."""
    known = _interval_in_words(verdict, lambda end: f"{1 + end:.2f}")
    ratio = (
        ""
        if verdict.effect is None
        else f"{lane} takes {1 + verdict.effect:.2f} times as long as {baseline} to reach the target{known}"
    )
    reached_a, reached_b, n = verdict.reached_a, verdict.reached_b, verdict.n
    average = "On average over the seeds, " if ratio and verdict.n > 1 else ""
    if reached_a is None or reached_b is None:  # of a report without these counts
        return (
            ratio or f"{lane} or {baseline} missed the target in half of its seeds or more, so only ranks are compared"
        )
    if reached_a == reached_b == n:
        return f"{average}{ratio}"
    counts = f"{lane} reaches the target in {reached_b} of {n} seeds, {baseline} in {reached_a} of {n}"
    wins = (
        f"A run that misses it counts as later than one that reaches it: {lane} is sooner in {verdict.wins_b} of {n} "
        f"seeds, {baseline} in {verdict.wins_a}"
    )
    return f"{counts}. {f'By the medians, {ratio}. ' if ratio else ''}{wins}"


def _interval_in_words(verdict: Verdict, write: Callable[[float], str], *, backwards: bool = False) -> str:
    if verdict.low is None or verdict.high is None:
        return ""
    ends = [write(verdict.low), write(verdict.high)]
    return f" ({100 * verdict.level:.4g} % interval {' to '.join(reversed(ends) if backwards else ends)})"


def table(result: Outcome) -> list[str]:
    """Lines for a terminal."""
    what = "" if result.target is None else f", target: {result.metric.replace('_', ' ')} {result.target:g}"
    lines = [f"{result.seeds} seed{'' if result.seeds == 1 else 's'}, baseline {visible(result.baseline)}{what}"]
    if result.noise_floor is not None:
        lines.append(
            f"  test accuracy varies by at least ± {100 * result.noise_floor:.2f} points from seed to seed (derived)"
        )
    for lane in result.lanes:
        states = ", ".join(f"{number} {status}" for status, number in lane.status.items())
        lines.append(f"{visible(lane.label)}  ({states}{imported_in_words(lane)})")
        lines.append(
            f"  test accuracy {units.accuracy(lane.test_accuracy)}{beside_largest_class(lane)}, test loss {units.loss(lane.test_loss)}, "
            f"{units.samples_per_s(lane.samples_per_s)}{busy_in_words(lane)}, {units.nbytes(lane.memory_bytes)} of step memory"
        )
        if result.target is not None:
            lines.append(f"  to the target: {cost_in_words(lane)}")
        lines += [f"  {visible(sentence)}" for sentence in _of_lane(lane, result.baseline)]
        lines += [f"  ! {visible(why)}" for why in lane.why]
    return [*lines, *filter(None, [correction_in_words(result)])]


def imported_in_words(lane: VariantOutcome) -> str:
    """A mark for a configuration with imported runs; else empty."""
    if not lane.imported:
        return ""
    runs = len(lane.run_ids)
    which = "" if lane.imported == runs else f"{lane.imported} of {runs} "
    return f"; {which}imported, unverified, times of another machine"


def beside_largest_class(lane: VariantOutcome) -> str:
    """The accuracy of always answering the largest class, in brackets; empty if it is unknown."""
    known = lane.largest_class_accuracy
    return "" if known is None else f" (largest class {units.accuracy(known)})"


def busy_in_words(lane: VariantOutcome) -> str:
    """A mark for figures of speed, where other programs used the machine; else empty."""
    known = sum(lane.status.values())
    return f" (machine was busy{f' in {lane.busy} of {known} runs' if known > 1 else ''})" if lane.busy else ""


def cost_in_words(lane: VariantOutcome) -> str:
    """What a configuration spent to reach the target, or how many of its runs reached it where there is no median."""
    arrived = "; ".join(filter(None, (reached_in_words(lane), resolution_in_words(lane))))
    if lane.cost["steps"] is None:
        return arrived
    if lane.cost["steps"] == 0:
        return f"reached before training; choose a harder target ({arrived})"
    samples = units.UNKNOWN if lane.cost["samples"] is None else f"{round(lane.cost['samples']):,}"
    return (
        f"{units.duration(lane.cost['seconds'])}, {round(lane.cost['steps']):,} steps, {samples} samples, "
        f"{units.flops(lane.cost['flops'])} ({arrived})"
    )


def reached_in_words(lane: VariantOutcome) -> str:
    """How many runs reached the target, of those that reached it or ended without it."""
    return f"reached by {lane.reached} of {lane.judged} run{'' if lane.judged == 1 else 's'}"
