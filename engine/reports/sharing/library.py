"""Imported reports in the store: title, notes and conclusions; their runs are ordinary runs of the store."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.common import units
from engine.common.errors import StoreError
from engine.config.summary import describe
from engine.events.imported import Origin
from engine.reports.report import Conclusion
from engine.store.run import Run
from engine.store.store import Store

_ID = re.compile(r"[0-9a-f]{16}")
_MOST_BYTES = 2**24


class SavedReport(BaseModel):
    """An imported report without its runs, which are in the store and can have been deleted since."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    report_id: str
    title: str
    created: float  # Unix time that the report itself names
    origin: Origin
    notes: str
    conclusions: list[Conclusion]
    run_ids: list[str]
    group_ids: list[str]
    owner: str = ""


def saved_reports(store: Store) -> list[SavedReport]:
    """All imported reports, newest import first; unreadable ones are skipped."""
    found = []
    for path in (store.root / "reports").glob("*.json"):
        if _ID.fullmatch(path.stem):
            with contextlib.suppress(StoreError):
                found.append(saved_report(store, path.stem))
    return sorted(found, key=lambda report: report.origin.at, reverse=True)


def saved_report(store: Store, report_id: str) -> SavedReport:
    """The imported report with this id.

    Raises:
        StoreError: There is none, or it cannot be read.
    """  # noqa: DOC501
    try:
        path = _path(store, report_id)
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        return SavedReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ValidationError):
        raise StoreError(f"There is no report {report_id[:20]!r} in this store, or it cannot be read.") from None


def report_with_hash(store: Store, content_hash: str) -> SavedReport | None:
    """The imported report with this content, if all of its runs are still in the store."""
    same = (report for report in saved_reports(store) if report.origin.content_hash == content_hash)
    return next((r for r in same if all((store.root / "runs" / run_id).is_dir() for run_id in r.run_ids)), None)


def delete_report(store: Store, report_id: str) -> None:
    """Delete an imported report; its runs stay."""
    with contextlib.suppress(FileNotFoundError):
        _path(store, report_id).unlink()


def run_in_words(run: Run) -> str:
    """The configuration as one line, as far as it is known: of an imported table, only the data set is."""
    is_table = run.imported is not None and run.imported.origin.form == "curve"
    return f"a curve on {run.config.data}" if is_table else describe(run.config)


def origin_in_words(run: Run) -> list[str]:
    """Sentences on where an imported run is from; empty for a run of this store."""
    if run.imported is None:
        return []
    origin = run.imported.origin
    what = (
        "a table of numbers; the person who imported it stated its configuration"
        if origin.form == "curve"
        else f"the report {origin.title!r}"
    )
    sentences = [f"Imported, unverified: on {units.date(origin.at)}, from {what}."]
    if origin.hash_matches is False:
        sentences.append("Its content hash does not match, because the file was changed after the export.")
    if len(run.steps) < run.imported.recorded_steps:
        sentences.append(
            f"It contains {len(run.steps):,} of {run.imported.recorded_steps:,} steps; its figures are computed from all of them."
        )
    return sentences + list(origin.notes)


def _path(store: Store, report_id: str) -> Path:
    if not _ID.fullmatch(report_id):
        raise ValueError("not an id")
    return store.root / "reports" / f"{report_id}.json"
