"""Everything that leaves with a report, said before it is written."""

from __future__ import annotations

from dataclasses import dataclass

from engine.common import units
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.reports.report import ENVIRONMENT, TABLES, Report, ReportRun


@dataclass(frozen=True, slots=True)
class Leaving:
    """One thing that is in the report: of which run (none: of all), what it is, and the text itself."""

    run: str
    what: str
    text: str


def preview(report: Report) -> list[Leaving]:
    """What stands in the report. What it never holds (paths, user, host, addresses, tokens) is not listed: it is not there."""
    rows = [Leaving("", "Title", report.title), Leaving("", "Isoflop", report.isoflop)]
    rows += [Leaving("", "Notes", report.notes)] if report.notes else []
    rows += [
        Leaving(
            "",
            "Conclusion",
            f"a race of {', '.join(lane.label for lane in c.outcome.lanes)}: table, costs and verdicts",
        )
        for c in report.conclusions
    ]
    for run in report.runs:
        rows += [Leaving(run.run_id, what, visible(text)) for what, text in _of_run(run) if text]
    return rows


def _of_run(run: ReportRun) -> list[tuple[str, str]]:
    rows = [
        ("Name", run.name),
        ("Configuration", describe(run.config)),
        ("Name of your file", run.config.source.path),
        ("Name of your weights", run.config.infer.weights),
        ("Column of your file", run.config.source.label),
        ("Hash of your file", run.data_sha256 or ""),
        ("State", f"{run.status}, begun {units.date(run.created)}"),
        ("Reason of its end", run.why),
        ("Machine", "; ".join(f"{ENVIRONMENT[k][0]} {ENVIRONMENT[k][1](v)}" for k, v in run.environment.items() if k in ENVIRONMENT and v is not None)),
        ("Not available there", "; ".join(sorted({why.rstrip(".") for why in run.missing_readings.values()}))),
        ("Problems of its log", "; ".join(run.problems)),
        ("Points", ", ".join(f"{len(getattr(run, table)):,} {table.replace('_', ' ')}" for table in TABLES)),
        ("Summary, energy and figures", f"{len(run.figures)} figures with their methods"),
        ("Other records", ", ".join(f"{n} {kind}" for kind, n in _counted(run).items())),
        ("Files", ", ".join(f"{file.name} ({units.nbytes(file.size_bytes)})" for file in run.files)),
        ("Imported before from", run.imported.title if run.imported else ""),
    ]  # fmt: skip
    return rows


def _counted(run: ReportRun) -> dict[str, int]:
    kinds = [event.kind for event in run.said] + ["trial"] * len(run.trials)
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
