"""The results of a scaling study in words: whether more ranks are worth it here, and why not.

Each sentence is made of the study's own measurements.
"""

from __future__ import annotations

from engine.common import units
from engine.events.base import TERMINAL
from engine.events.machine import BUSY_FROM
from engine.events.training import Ranks
from engine.studies.race_results import CLAIM_SEEDS
from engine.studies.race_verdicts import too_few_in_words
from engine.studies.scaling_estimates import LEVEL, Estimate
from engine.studies.scaling_results import AGREES, LaneFigures, Outcome, rank_times

_WORTH_IT = 0.7  # efficiency from which more ranks are called worth it
_HALF = 0.5  # below this efficiency, all added devices together do less than one device alone could
_SHOWS = 0.1  # a smaller share of the loss against the ideal is not mentioned
_SLOWED = 1.1  # times as long for the same samples: from here on the ranks are said to slow each other down
_SAME_STEPS = 3  # losses that agree for fewer steps are not those of the same training
_STARVED = 0.8  # a rank with a smaller share of its core had to wait for other programs


def headline(found: Outcome) -> str:
    """Whether more ranks are worth it here, and from how many repeats that is known."""
    judged = [at for at in found.of("strong") if at.ranks > 1 and at.speedup and not at.is_provisional]
    own = [at for at in judged if not at.shared] or judged
    if not own:
        return _not_yet(found)
    best = max(own, key=_value)
    paying = [at for at in own if at.ranks < best.ranks and _pays(at)]
    if paying and not _pays(best):
        most = max(paying, key=_value)
        further = (
            f"{best.ranks} ranks are {_value(best):.2f} times as fast, at {best.ranks / _value(best):.1f} times the device "
            "time per sample."
        )
        return f"{_worth(most)} {further} {_repeats(found, most)}"
    return f"{_worth(best)} {_repeats(found, best)}"


def _value(at: LaneFigures) -> float:
    return at.speedup.value if at.speedup else 0.0


def _pays(at: LaneFigures) -> bool:
    """Whether its efficiency is high enough and its speed-up significant."""
    if at.speedup is None or _value(at) < _WORTH_IT * at.ranks:
        return False
    return _value(at) > 1 and (at.speedup.low is None or at.speedup.low > 1)


def _not_yet(found: Outcome) -> str:
    runs = found.study.runs
    if any(run.status not in TERMINAL for run in runs):
        return "Measuring. The first result appears when a run on one rank and one on several ranks have finished."
    over = sum(run.status == "finished" for run in runs)
    return f"No result: {over} of {len(runs)} runs finished, and no pair of runs on one and on several ranks."


def _worth(at: LaneFigures) -> str:
    speedup, n = at.speedup, at.ranks
    assert speedup
    interval = f" (95 % interval {speedup.interval})" if speedup.interval else ""
    efficiency = speedup.value / n
    times = f"{n} ranks train {speedup.value:.2f} times as fast as one{interval}"
    if speedup.low is not None and speedup.low <= 1 <= (speedup.high or 0):
        return f"No significant speed-up here: {times}."
    if speedup.value <= 1:
        return f"Not worth it here: {times}, so one device is faster."
    fast = f"{times}, {units.percent(efficiency)} of the ideal {n}"
    if efficiency >= _WORTH_IT:
        return f"Worth it here: {fast}."
    cost = f"Each sample takes {1 / efficiency:.1f} times the device time."
    return f"{'Faster, at a cost' if efficiency >= _HALF else 'Hardly worth it here'}: {fast}. {cost}"


def _repeats(found: Outcome, at: LaneFigures) -> str:
    assert at.speedup
    n = at.speedup.n
    words = too_few_in_words(n, "repeats") if n < CLAIM_SEEDS else f"From {n} paired repeats."
    if 2 * sum(lane.busy for lane in found.lanes) > len(found.study.runs):
        words += " The machine was busy in most runs. Measure again when it is idle."
    return words


def reasons(found: Outcome) -> list[str]:
    """Why the ranks do not reach the ideal, the largest part first; then other facts that affect the figures."""
    at = _explained(found)
    sentences = _losses(found, at) if at else []
    sentences += [
        f"{at.label}: the ranks share {_cores(found)}. More than one rank per core brings no speed-up."
        for at in found.lanes
        if at.shared and at.speedup and at.mode == "strong"
    ]
    if found.base.strategy == "data-parallel" and found.base.device == "cpu":
        sentences.append(
            "On a CPU, nn.DataParallel (the historical baseline) uses one process, as does a run without it."
        )
    return sentences + _weak(found) + _stragglers(found) + _busy(found)


def _explained(found: Outcome) -> LaneFigures | None:
    """The lane whose loss is explained: the most ranks that have a device each."""
    judged = [at for at in found.of("strong") if at.ranks > 1 and at.speedup and at.step_s and not at.is_provisional]
    own = [at for at in judged if not at.shared] or judged
    return own[-1] if own else None


def _losses(found: Outcome, at: LaneFigures) -> list[str]:
    """The parts of the time by which a step is longer than the ideal, the largest first."""
    one = found.base.step_s
    if not one or not at.step_s or at.waited_s is None or at.own_s is None:
        return []
    lost = at.step_s - one / at.ranks
    if lost <= _SHOWS * one / at.ranks:
        return []
    parts = [
        (at.waited_s, _communication(found, at)),
        (at.own_s - one / at.ranks, _computing(found, at, one)),
    ]
    return [text for size, text in sorted(parts, reverse=True) if size > _SHOWS * lost and text]


def _communication(found: Outcome, at: LaneFigures) -> str:
    if not at.waited_s:
        return ""
    waits = (
        f", of which {units.percent((at.for_slowest_s or 0) / at.waited_s)} for a slower rank"
        if at.for_slowest_s and at.for_slowest_s > _SHOWS * at.waited_s
        else ""
    )
    size = next((run.started.parameters * 4 for run in found.study.runs if run.started), None)
    sharded = found.study.base.config.parallel.strategy == "fsdp"
    what = (
        " exchange of weights and gradients"
        if sharded
        else f" all-reduce of {units.nbytes(size)} of gradients"
        if size
        else " all-reduce"
    )
    return (
        f"Communication: in a step of {units.duration(at.step_s)} a rank waits {units.duration(at.waited_s)} "
        f"({units.percent(at.waited_share)}) for the{what}{waits} (measured on {at.ranks} ranks)."
    )


def _computing(found: Outcome, at: LaneFigures, one: float) -> str:
    """Why a rank's own work is more than 1/n: the ranks slow each other down (shown by weak scaling), overhead, small batches."""
    assert at.own_s is not None
    weak = next((w for w in found.of("weak") if w.ranks == at.ranks and w.own_s), None)
    besides = ", and their cores with other programs" if _is_starved(at) or at.busy else ""
    if weak and weak.own_s and weak.own_s > _SLOWED * one:
        return (
            f"Shared machine: with {batch_in_words(found.base.batch_size)} samples each, {at.ranks} ranks compute {weak.own_s / one:.2f} "
            f"times as long as one rank alone. They share caches and memory bandwidth{besides}, and {at.strategy} adds "
            "overhead (measured together)."
        )
    if at.own_s > one:
        return (
            f"Overhead: without waiting, a step of a rank takes {units.duration(at.own_s)}, longer than the {units.duration(one)} "
            f"of one rank with all {batch_in_words(found.base.batch_size)} samples. The overhead of {at.strategy} is larger than the time "
            "that sharing the batch saves (measured)."
        )
    batch = f"{at.per_rank_batch:g} samples" if at.per_rank_batch else "its share of the samples"
    return (
        f"Small batches: a rank takes {units.duration(at.own_s)} for {batch}, {at.own_s / one:.2f} times the "
        f"{units.duration(one)} of one rank for {batch_in_words(found.base.batch_size)}; {1 / at.ranks:.2f} would be ideal. The overhead "
        "of an operation does not fall with the batch size (measured)."
    )


def _weak(found: Outcome) -> list[str]:
    lanes = [at for at in found.of("weak") if at.ranks > 1 and at.speedup and not at.is_provisional and not at.shared]
    if not lanes:
        return []
    at = lanes[-1]
    assert at.speedup
    interval = f" (95 % interval {at.speedup.interval})" if at.speedup.interval else ""
    return [
        f"With {batch_in_words(found.base.batch_size)} samples for each rank, {at.ranks} ranks process {at.speedup.value:.2f} times as "
        f"many samples per second as one{interval}. Their batch size is then {batch_in_words(at.batch_size)}, so the learning rate must "
        "be tuned again. Above the critical batch size (Compare, Batch-size law) the same loss needs more samples."
    ]


def _stragglers(found: Outcome) -> list[str]:
    """The rank that the others wait for, in each lane that has one in most of its runs."""
    sentences = []
    for lane in found.study.lanes:
        seen = [t.straggler for run in lane.runs.values() if (t := rank_times(run.all(Ranks))) and t.straggler]
        if len(seen) * 2 > len(lane.runs):
            rank, times = seen[-1]
            sentences.append(
                f"{lane.label}: the own work of rank {rank} takes {times:.1f} times as long as that of the fastest "
                f"rank, and the others wait for it (reported from {BUSY_FROM:g} times on)."
            )
    return sentences


def _busy(found: Outcome) -> list[str]:
    busy, runs = sum(at.busy for at in found.lanes), len(found.study.runs)
    starved = [at for at in found.lanes if at.ranks > 1 and not at.shared and _is_starved(at)]
    sentences = [
        f"{at.label}: each rank got {units.percent(at.cpu_share)} of a core, because other programs were running."
        for at in starved
    ]
    if busy:
        sentences.append(f"The machine was busy in {busy} of {runs} runs. On an idle machine the figures can differ.")
    return sentences


def _is_starved(at: LaneFigures) -> bool:
    """Whether ranks on a CPU had less CPU time than the time in which they did not wait for each other."""
    if at.cpu_share is None or at.waited_share is None or at.device != "cpu":
        return False
    return at.cpu_share < _STARVED * (1 - at.waited_share)


def _cores(found: Outcome) -> str:
    cores = next((run.started.environment.get("usable_cores") for run in found.study.runs if run.started), None)
    return f"{cores} usable core{'' if cores == 1 else 's'}" if isinstance(cores, int) else "the cores"


def batch_in_words(size: int | str) -> str:
    """A batch size as text: `1,024`, `full`."""
    return size if isinstance(size, str) else f"{size:,}"


def fits(found: Outcome) -> list[str]:
    """The fits of Amdahl's and Gustafson's laws in words, or why a fit gives no serial share."""
    sentences = []
    if (s := found.serial) is not None:
        sentences.append(f"Amdahl's law, fitted: {_amdahl(s)} {_points(found)}".rstrip())
    elif found.why_no_serial:
        sentences.append(f"Amdahl's law, fitted: serial share not known, because {found.why_no_serial}.")
    if (s := found.scaled_serial) is not None:
        sentences.append(
            f"Gustafson's law, fitted to weak scaling: serial share {_share(s)} of the time of several ranks."
        )
    elif found.why_no_scaled_serial:
        why = found.why_no_scaled_serial
        sentences.append(f"Gustafson's law, fitted to weak scaling: serial share not known, because {why}.")
    return sentences


def _amdahl(s: Estimate) -> str:
    if s.value == 0:
        return f"serial share {_share(s)}. No serial part was measured."
    return f"serial share {_share(s)}, so at most {1 / s.value:.3g} times as fast with any number of ranks."


def _share(s: Estimate) -> str:
    words = units.percent(s.value)
    if s.low is None or s.high is None:
        return words
    return f"{words} (95 % interval {units.percent(s.low)} to {units.percent(s.high)})"


def _points(found: Outcome) -> str:
    numbers = [at.ranks for at in found.of("strong") if at.ranks > 1 and at.speedup]
    if len(numbers) > 1:
        return ""
    return f"Based on one rank count only ({numbers[0]}), so the fit cannot be checked."


def agreement(found: Outcome) -> str:
    """Whether several ranks take the same steps as one; empty before that is known."""
    known = [(at.same_for, at.compared) for at in found.of("strong") if at.same_for is not None]
    if not known:
        return ""
    same, compared = min(known)
    if same < min(_SAME_STEPS, compared):
        return (
            f"The losses differ from those of one rank after {same} steps (measured). Low precision or a learning rate close to "
            "divergence can cause this. Otherwise it is a bug, so please report it."
        )
    if same == compared:
        return f"Several ranks take the same steps as one: all {compared:,} losses agree to {AGREES:g} (measured)."
    return (
        f"Several ranks take the same steps as one: the first {same:,} of {compared:,} losses agree to {AGREES:g} (measured). "
        "Gradients are summed in another order, and training amplifies this rounding difference."
    )


def averages() -> str:
    """How the figures of a lane are averaged over its repeats."""
    return (
        "Times, samples per second and speed-ups are geometric means over the repeats that all rank counts have finished, so "
        "a speed-up is the ratio of the samples per second. Energy and figures to the target are medians over the finished runs."
    )


def intervals() -> str:
    """How the intervals of a study are computed."""
    return (
        f"Bars: {units.percent(LEVEL)} intervals, Student's t of the log ratios of paired repeats (same seed, several ranks "
        "against one)."
    )
