"""Lists the content of a report before it is written."""

from __future__ import annotations

from dataclasses import dataclass

from engine.common import units
from engine.common.sanitize import visible
from engine.reports.frozen_run import ENVIRONMENT, TABLES, ReportRun
from engine.reports.report import Report


@dataclass(frozen=True, slots=True)
class ReportItem:
    """One item of the report: the id of its run ("" for the whole report), what it is, and its text."""

    run: str
    what: str
    text: str


def preview(report: Report) -> list[ReportItem]:
    """List the content of the report."""
    rows = [ReportItem("", "Title", report.title), ReportItem("", "Isoflop", report.isoflop)]
    rows += [ReportItem("", "Notes", report.notes)] if report.notes else []
    rows += [
        ReportItem(
            "",
            "Conclusion",
            f"race of {', '.join(lane.label for lane in c.outcome.lanes)}: table, costs and verdicts",
        )
        for c in report.conclusions
    ]
    for run in report.runs:
        rows += [ReportItem(run.run_id, what, visible(text)) for what, text in _of_run(run) if text]
    return rows


def _of_run(run: ReportRun) -> list[tuple[str, str]]:
    rows = [
        ("Name", run.name),
        ("Configuration", run.about),
        ("Name of your file", run.config.source.path),
        ("Name of your weights", run.config.infer.weights),
        ("Column of your file", run.config.source.label),
        ("Hash of your file", run.data_sha256 or ""),
        ("Status", f"{run.status}, created {units.date(run.created)}"),
        ("Reason of the status", run.why),
        (
            "Machine",
            "; ".join(
                f"{ENVIRONMENT[k][0]} {ENVIRONMENT[k][1](v)}"
                for k, v in run.environment.items()
                if k in ENVIRONMENT and v is not None
            ),
        ),
        (
            "Not available on that machine",
            "; ".join(sorted({why.rstrip(".") for why in run.missing_readings.values()})),
        ),
        ("Problems of the log", "; ".join(run.problems)),
        ("Points", ", ".join(f"{len(getattr(run, table)):,} {table.replace('_', ' ')}" for table in TABLES)),
        ("Summary, energy and figures", f"{len(run.figures)} figures with their methods"),
        ("Other events", ", ".join(f"{n} {kind}" for kind, n in _counted(run).items())),
        ("Files", ", ".join(f"{file.name} ({units.nbytes(file.size_bytes)})" for file in run.files)),
        ("Imported from", run.imported.title if run.imported else ""),
    ]
    return rows


def _counted(run: ReportRun) -> dict[str, int]:
    kinds = [event.kind for event in run.said] + ["trial"] * len(run.trials)
    return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
