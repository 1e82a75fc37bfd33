"""What a scaling study says: whether more devices are worth it here, why not, and its figures for a table and for scripts.

Each sentence is made of the study's own figures; what was not measured is not said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from engine.common import units
from engine.common.sanitize import visible
from engine.config.summary import model_in_words
from engine.config.training import FULL
from engine.events.base import TERMINAL
from engine.events.machine import BUSY_FROM
from engine.studies.race_results import CLAIM_SEEDS, too_few_in_words
from engine.studies.scaling_estimates import LEVEL, Estimate
from engine.studies.scaling_results import AGREES, At, Outcome, rank_times

_PAYS = 0.7  # efficiency from which another device is called worth it: it does most of the first one's work
_HALF = 0.5  # below it the devices added together do less than one of them could
_SHOWS = 0.1  # of what is lost to the ideal: a smaller part is not named
_SLOWED = 1.1  # times as long for the same examples: from here on ranks are said to be in each other's way
_PARTED = 3  # losses that agree for fewer steps are not those of the same training
_STARVED = 0.8  # of a core that a rank could have used: with less something else wanted it


def headline(found: Outcome) -> str:
    """Whether more ranks are worth it here, and how sure that is."""
    judged = [at for at in found.of("strong") if at.ranks > 1 and at.speedup and not at.is_provisional]
    own = [at for at in judged if not at.shared] or judged
    if not own:
        return _not_yet(found)
    best = max(own, key=_value)
    paying = [at for at in own if at.ranks < best.ranks and _pays(at)]
    if paying and not _pays(best):
        most = max(paying, key=_value)
        further = f"{best.ranks} ranks are {_value(best):.2f} times as fast, at {best.ranks / _value(best):.1f} times the device time of an example."
        return f"{_worth(most)} {further} {_sure(found, most)}"
    return f"{_worth(best)} {_sure(found, best)}"


def _value(at: At) -> float:
    return at.speedup.value if at.speedup else 0.0


def _pays(at: At) -> bool:
    """Whether each of its devices does most of what one alone does, and that is not luck."""
    if at.speedup is None or _value(at) < _PAYS * at.ranks:
        return False
    return _value(at) > 1 and (at.speedup.low is None or at.speedup.low > 1)


def _not_yet(found: Outcome) -> str:
    runs = found.study.runs
    if any(run.status not in TERMINAL for run in runs):
        return "Measuring: whether more ranks are worth it here is known once one and several ranks have finished."
    over = sum(run.status == "finished" for run in runs)
    return f"No answer: {over} of {len(runs)} runs finished, and none on several ranks together with its run on one."


def _worth(at: At) -> str:
    speedup, n = at.speedup, at.ranks
    assert speedup
    told = f" (95 % interval {speedup.interval})" if speedup.interval else ""
    efficiency = speedup.value / n
    if speedup.low is not None and speedup.low <= 1 <= (speedup.high or 0):
        return f"No gain to be seen here: {n} ranks train {speedup.value:.2f} times as fast as one{told}."
    if speedup.value <= 1:
        return f"Not worth it here: {n} ranks train only {speedup.value:.2f} times as fast as one{told}: one device is quicker."
    fast = (
        f"{n} ranks train {speedup.value:.2f} times as fast as one{told}, {units.percent(efficiency)} of the ideal {n}"
    )
    if efficiency >= _PAYS:
        return f"Worth it here: {fast}."
    cost = f"Each example costs {1 / efficiency:.1f} times the device time."
    return f"{'Faster, at a price' if efficiency >= _HALF else 'Hardly worth it here'}: {fast}. {cost}"


def _sure(found: Outcome, at: At) -> str:
    assert at.speedup
    n = at.speedup.n
    told = too_few_in_words(n, "repeats") if n < CLAIM_SEEDS else f"From {n} paired repeats."
    if 2 * sum(lane.busy for lane in found.lanes) > len(found.study.runs):
        told += " Other programs wanted the cores meanwhile: measure it again when the machine is quiet."
    return told


def reasons(found: Outcome) -> list[str]:
    """Why the ranks do not reach the ideal, the largest part first; what else is to be known of them."""
    at = _blamed(found)
    said = _losses(found, at) if at else []
    said += [
        f"{at.label}: {at.ranks} ranks share {_cores(found)}: beyond one rank per core nothing can be gained."
        for at in found.lanes
        if at.shared and at.speedup and at.mode == "strong"
    ]
    if found.base.strategy == "data-parallel" and found.base.device == "cpu":
        said.append(
            "nn.DataParallel, the historical baseline, only passes calls through on a CPU: one process works as if alone."
        )
    said += _weak(found) + _stragglers(found) + _busy(found)
    return said


def _blamed(found: Outcome) -> At | None:
    """The lane whose loss is explained: the most ranks that have a device each."""
    judged = [at for at in found.of("strong") if at.ranks > 1 and at.speedup and at.step_s and not at.is_provisional]
    own = [at for at in judged if not at.shared] or judged
    return own[-1] if own else None


def _losses(found: Outcome, at: At) -> list[str]:
    """What a step takes beyond its share of one rank's, taken apart."""
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


def _communication(found: Outcome, at: At) -> str:
    if not at.waited_s:
        return ""
    waits = (
        f", {units.percent((at.for_slowest_s or 0) / at.waited_s)} of it for a slower rank"
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
        f"Communication: of a step of {units.duration(at.step_s)} a rank stands still for {units.duration(at.waited_s)} "
        f"({units.percent(at.waited_share)}) in the{what}{waits} (measured on {at.ranks} ranks)."
    )


def _computing(found: Outcome, at: At, one: float) -> str:
    """Computing that did not become 1/n: slowed by the other ranks, where weak scaling shows it, or too small a piece."""
    assert at.own_s is not None
    weak = next((w for w in found.of("weak") if w.ranks == at.ranks and w.own_s), None)
    besides = ", and the cores with other programs" if _is_starved(at) or at.busy else ""
    if weak and weak.own_s and weak.own_s > _SLOWED * one:
        return (
            f"Shared machine: with the same {_batch(found.base.batch_size)} examples each, {at.ranks} ranks at once compute "
            f"{weak.own_s / one:.2f} times as long as one alone: they share caches and memory bandwidth{besides}, and {at.strategy} "
            "adds work of its own (measured together)."
        )
    if at.own_s > one:
        return (
            f"Overhead: beside waiting a rank works {units.duration(at.own_s)} in a step, longer than the {units.duration(one)} of one "
            f"rank on all {_batch(found.base.batch_size)} examples: what {at.strategy} does around the training costs more than is "
            "shared out (measured)."
        )
    per = (
        f"{at.per_rank_batch:g} examples in the place of {_batch(found.base.batch_size)}"
        if at.per_rank_batch
        else "a share"
    )
    return (
        f"Small pieces: a rank computes {per} in {units.duration(at.own_s)}, {at.own_s / one:.2f} of the "
        f"{units.duration(one)} on one rank where {1 / at.ranks:.2f} would be ideal: starting operations costs the same for "
        "fewer examples (measured)."
    )


def _weak(found: Outcome) -> list[str]:
    lanes = [at for at in found.of("weak") if at.ranks > 1 and at.speedup and not at.is_provisional and not at.shared]
    if not lanes:
        return []
    at = lanes[-1]
    assert at.speedup
    told = f" ({at.speedup.interval})" if at.speedup.interval else ""
    return [
        f"With {_batch(found.base.batch_size)} examples for each rank, {at.ranks} ranks see {at.speedup.value:.2f} times the "
        f"examples per second{told}. Their batch is then {_batch(at.batch_size)}: another training, whose learning rate wants "
        "tuning, and beyond the critical batch (Compare, Batch-size law) it takes more examples to the same loss."
    ]


def _stragglers(found: Outcome) -> list[str]:
    """Ranks that hold up the others; once for each lane."""
    said = []
    for lane in found.study.lanes:
        seen = [t.straggler for run in lane.runs.values() if (t := rank_times(run.ranks)) and t.straggler]
        if len(seen) * 2 > len(lane.runs):
            rank, times = seen[-1]
            said.append(
                f"{lane.label}: rank {rank} works {times:.1f} times as long as the quickest in each step (named from {BUSY_FROM:g} on), "
                "and the others wait for it."
            )
    return said


def _busy(found: Outcome) -> list[str]:
    busy, runs = sum(at.busy for at in found.lanes), len(found.study.runs)
    starved = [at for at in found.lanes if at.ranks > 1 and not at.shared and _is_starved(at)]
    said = [
        f"{at.label}: each rank got {at.cpu_share:.2f} of a core: something else wanted the cores." for at in starved
    ]
    if busy:
        said.append(
            f"The machine was busy with something else in {busy} of {runs} runs: on a quiet one the figures may differ."
        )
    return said


def _is_starved(at: At) -> bool:
    """Whether ranks on a CPU worked for less than the time in which they did not wait for each other."""
    if at.cpu_share is None or at.waited_share is None or at.device != "cpu":
        return False
    return at.cpu_share < _STARVED * (1 - at.waited_share)


def _cores(found: Outcome) -> str:
    cores = next((run.started.environment.get("usable_cores") for run in found.study.runs if run.started), None)
    return f"{cores} usable core{'' if cores == 1 else 's'}" if isinstance(cores, int) else "the cores"


def _batch(size: int | str) -> str:
    return size if isinstance(size, str) else f"{size:,}"


def fits(found: Outcome) -> list[str]:
    """What the two laws make of it."""
    said = []
    if (s := found.serial) is not None:
        said.append(f"Amdahl's law, fitted: {_amdahl(s)} {_points(found)}")
    if (s := found.scaled_serial) is not None:
        said.append(f"Gustafson's law, fitted to weak scaling: serial share {_share(s)} of the time of several ranks.")
    return said


def _amdahl(s: Estimate) -> str:
    if s.low is not None and s.high is not None and s.high - s.low > 1:
        return f"serial share {_share(s)}: these repeats differ too much to tell it."
    if s.value >= 1:
        return (
            f"serial share {_share(s)}. Above 100 % several ranks are slower than one, which the law, that knows no "
            "communication, cannot say: more ranks would not help either."
        )
    if s.value <= 0:
        return f"serial share {_share(s)}: no part of a step that ranks would not share is to be seen."
    return f"serial share {_share(s)}, so at most {1 / s.value:.3g} times as fast however many ranks."


def _share(s: Estimate) -> str:
    words = units.percent(s.value)
    if s.low is None or s.high is None:
        return words
    return f"{words} (95 % interval {units.percent(s.low)} to {units.percent(s.high)})"


def _points(found: Outcome) -> str:
    numbers = [at.ranks for at in found.of("strong") if at.ranks > 1 and at.speedup]
    if len(numbers) > 1:
        return ""
    return f"It rests on {numbers[0]} ranks alone: one figure, so nothing is left to see whether the law holds."


def agreement(found: Outcome) -> str:
    """For how long several ranks take the same steps as one; empty before it is known."""
    known = [(at.same_for, at.compared) for at in found.of("strong") if at.same_for is not None]
    if not known:
        return ""
    same, compared = min(known)
    if same < min(_PARTED, compared):
        return (
            f"The losses part from those on one rank after {same} steps (measured). They should not: low precision or a rate at "
            "the edge of divergence can do that; else please report it."
        )
    if same == compared:
        return f"Several ranks take the same steps as one: all {compared:,} losses agree to {AGREES:g} (measured)."
    return (
        f"Several ranks take the same steps as one: the first {same:,} of {compared:,} losses agree to {AGREES:g} (measured). "
        "Gradients are added up in another order, and training makes that rounding grow."
    )


def intervals() -> str:
    return f"Bars: {units.percent(LEVEL)} intervals, Student's t of the log ratios of paired repeats (same seed, one rank against several)."


# --- a table ----------------------------------------------------------------------------------------------------------


Row = tuple[str, list[str], str]  # title, a text per lane, how it was had


def rows(found: Outcome) -> list[Row]:
    """The figures of every lane in words, and how each was had."""

    def row(title: str, how: str, read: Callable[[At], str]) -> Row:
        return title, [read(at) for at in found.lanes], how

    table = [
        row("Global batch", "chosen", lambda at: _batch(at.batch_size)),
        row(
            "Batch of a rank",
            "derived",
            lambda at: FULL if at.per_rank_batch is None and at.ranks == 1 else _per_rank(at),
        ),
        row("Machine was busy in", "measured", lambda at: f"{at.busy} of {len(at.run_ids)} runs"),
        row(
            "Samples per second",
            "derived",
            lambda at: units.count(at.samples_per_s and round(at.samples_per_s)),
        ),
        row("One step", "measured", lambda at: units.duration(at.step_s)),
        row("Speed-up", "measured", lambda at: _estimate(at.speedup, at) if at.ranks > 1 else "1"),
        row("Efficiency", "measured", lambda at: _percent(at.efficiency, at) if at.ranks > 1 else "100 %"),
        row("Waits in all-reduce", "measured", _waits),
        row(
            "All-reduce under way",
            "measured",
            lambda at: "none" if at.ranks == 1 else units.duration(at.communication_s),
        ),
        row("Cores a rank got", "measured", lambda at: "–" if at.cpu_share is None else f"{at.cpu_share:.2f}"),
        row("Memory of all ranks", "measured", lambda at: units.nbytes(at.memory_bytes)),
        row("Energy of a run", _energy_how(found), lambda at: units.energy(at.joules)),
    ]
    if found.target:
        table += [
            row("Time to target", "measured", lambda at: _reached(at, at.seconds_to_target, units.duration)),
            row("Energy to target", _energy_how(found), lambda at: units.energy(at.joules_to_target)),
        ]
        if any(at.money_to_target is not None for at in found.lanes):
            money = f"derived, {found.currency}".rstrip(", ")
            table.append(row("Money to target", money, lambda at: units.about(at.money_to_target)))
    return table


def _per_rank(at: At) -> str:
    return "–" if at.per_rank_batch is None else f"{at.per_rank_batch:g}"


def _estimate(e: Estimate | None, at: At) -> str:
    if e is None:
        return units.UNKNOWN
    return f"{e.value:.2f}" + (f" ({e.interval})" if e.interval else "") + (" so far" if at.is_provisional else "")


def _percent(e: Estimate | None, at: At) -> str:
    if e is None:
        return units.UNKNOWN
    ends = f" ({100 * e.low:.0f} to {100 * e.high:.0f})" if e.low is not None and e.high is not None else ""
    return f"{units.percent(e.value)}{ends}" + (" so far" if at.is_provisional else "")


def _waits(at: At) -> str:
    if at.ranks == 1:
        return "none"
    return units.UNKNOWN if at.waited_s is None else f"{units.percent(at.waited_share)}, {units.duration(at.waited_s)}"


def _energy_how(found: Outcome) -> str:
    return "measured" if any(at.joules is not None for at in found.lanes) else "not available here"


def _reached(at: At, value: float | None, write: Callable[[float], str]) -> str:
    if value is not None:
        return write(value)
    return "not reached" if at.status.get("finished") else units.UNKNOWN


def table(found: Outcome) -> list[str]:
    """Lines for a terminal."""
    base = found.base
    config = found.study.base.config
    lines = [
        f"{model_in_words(config.model, config.data)} on {config.data}, {config.parallel.strategy}, {_seeds(found)}"
    ]
    widths = [max(len(at.label), 12) for at in found.lanes]
    lines.append(" " * 22 + "  ".join(visible(at.label).rjust(w) for at, w in zip(found.lanes, widths, strict=True)))
    for title, texts, how in rows(found):
        cells = "  ".join(text.rjust(w) for text, w in zip(texts, widths, strict=True))
        lines.append(f"  {title:<20}{cells}{f'   ({how})' if how else ''}")
    lines.append(headline(found))
    lines += [f"  - {visible(text)}" for text in (*reasons(found), *fits(found), agreement(found)) if text]
    for at in found.lanes:
        lines += [f"  ! {visible(at.label)}: {visible(why)}" for why in at.why]
    if found.why_no_energy and base.joules is None:
        lines.append(f"  - No energy: {visible(found.why_no_energy)}")
    return lines


def _seeds(found: Outcome) -> str:
    n = len(found.study.seeds)
    return f"{n} repeat{'' if n == 1 else 's'}"


def as_json(found: Outcome) -> dict[str, Any]:
    """The study for scripts; unknown is null."""

    def plain(e: Estimate | None) -> Mapping[str, Any] | None:
        return None if e is None else asdict(e)

    return {
        "group_id": found.study.race.group,
        "seeds": found.study.seeds,
        "lanes": [
            {name: getattr(at, name) for name in at.__slots__ if name != "speedup"}
            | {
                "speedup": plain(at.speedup),
                "efficiency": plain(at.efficiency),
                "per_rank_batch": at.per_rank_batch,
                "waited_share": at.waited_share,
            }
            for at in found.lanes
        ],
        "serial_share": plain(found.serial),
        "scaled_serial_share": plain(found.scaled_serial),
        "interval": intervals(),
        "communication_method": found.method or None,
        "target": None if found.target is None else {"metric": found.target[0], "value": found.target[1]},
        "verdict": headline(found),
        "reasons": [*reasons(found), *fits(found), *filter(None, [agreement(found)])],
        "statuses": {run.run_id: run.status for run in found.study.runs},
        "over": found.study.is_over,
    }
