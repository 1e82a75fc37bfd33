"""The figures of a scaling study as a table, as text for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from engine.common import units
from engine.common.sanitize import visible
from engine.config.summary import model_in_words
from engine.config.training import FULL
from engine.studies.scaling_estimates import Estimate
from engine.studies.scaling_results import LaneFigures, Outcome
from engine.studies.scaling_text import agreement, averages, batch_in_words, fits, headline, intervals, reasons

Row = tuple[str, list[str], str]  # title, a text per lane, how it was obtained


def rows(found: Outcome) -> list[Row]:
    """The figures of every lane as text, and how each was obtained."""

    def row(title: str, how: str, read: Callable[[LaneFigures], str]) -> Row:
        return title, [read(at) for at in found.lanes], how

    table = [
        row("Global batch size", "chosen", lambda at: batch_in_words(at.batch_size)),
        row(
            "Batch size per rank",
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
            "All-reduce time",
            "measured",
            lambda at: "none" if at.ranks == 1 else units.duration(at.communication_s),
        ),
        row("CPU cores per rank", "measured", lambda at: "–" if at.cpu_share is None else f"{at.cpu_share:.2f}"),
        row("Process memory", "measured, all ranks", lambda at: units.nbytes(at.memory_bytes)),
        row("Energy of a run", _energy_how(found), lambda at: units.energy(at.joules)),
    ]
    if found.target:
        table += [
            row(
                "Time to target",
                "derived: interpolated between evaluations",
                lambda at: _reached(at, at.seconds_to_target, units.duration),
            ),
            row("Energy to target", _energy_how(found), lambda at: units.energy(at.joules_to_target)),
        ]
        if any(at.money_to_target is not None for at in found.lanes):
            money = f"derived, {found.currency}".rstrip(", ")
            table.append(row("Money to target", money, lambda at: units.about(at.money_to_target)))
    return table


def _per_rank(at: LaneFigures) -> str:
    return "–" if at.per_rank_batch is None else f"{at.per_rank_batch:g}"


def _estimate(e: Estimate | None, at: LaneFigures) -> str:
    if e is None:
        return units.UNKNOWN
    return f"{e.value:.2f}" + (f" ({e.interval})" if e.interval else "") + (" so far" if at.is_provisional else "")


def _percent(e: Estimate | None, at: LaneFigures) -> str:
    if e is None:
        return units.UNKNOWN
    ends = f" ({100 * e.low:.0f} to {100 * e.high:.0f})" if e.low is not None and e.high is not None else ""
    return f"{units.percent(e.value)}{ends}" + (" so far" if at.is_provisional else "")


def _waits(at: LaneFigures) -> str:
    if at.ranks == 1:
        return "none"
    return units.UNKNOWN if at.waited_s is None else f"{units.percent(at.waited_share)}, {units.duration(at.waited_s)}"


def _energy_how(found: Outcome) -> str:
    return "measured" if any(at.joules is not None for at in found.lanes) else "not available here"


def _reached(at: LaneFigures, value: float | None, write: Callable[[float], str]) -> str:
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
    lines.append(f"  - {averages()}")
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
        "serial_share_unknown": found.why_no_serial or None,
        "scaled_serial_share_unknown": found.why_no_scaled_serial or None,
        "interval": intervals(),
        "average": averages(),
        "communication_method": found.method or None,
        "target": None if found.target is None else {"metric": found.target[0], "value": found.target[1]},
        "verdict": headline(found),
        "reasons": [*reasons(found), *fits(found), *filter(None, [agreement(found)])],
        "statuses": {run.run_id: run.status for run in found.study.runs},
        "over": found.study.is_over,
    }
