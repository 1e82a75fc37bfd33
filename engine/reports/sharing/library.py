"""Imported reports as the store keeps them: title, notes and conclusions, beside the runs they came with."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.common import units
from engine.common.errors import StoreError
from engine.events.imported import Origin
from engine.reports.report import Conclusion
from engine.store.run import Run
from engine.store.store import Store

_ID = re.compile(r"[0-9a-f]{16}")
_MOST_BYTES = 2**24


class SavedReport(BaseModel):
    """A report without its runs: those are runs of the store, and may have been deleted since."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    report_id: str
    title: str
    created: float  # by the report's own account
    origin: Origin
    notes: str
    conclusions: list[Conclusion]
    run_ids: list[str]
    group_ids: list[str]
    owner: str = ""


def saved_reports(store: Store) -> list[SavedReport]:
    """Newest import first. One that cannot be read hides no other."""
    found = []
    for path in (store.root / "reports").glob("*.json"):
        if _ID.fullmatch(path.stem):
            with contextlib.suppress(StoreError):
                found.append(saved_report(store, path.stem))
    return sorted(found, key=lambda report: report.origin.at, reverse=True)


def saved_report(store: Store, report_id: str) -> SavedReport:
    """Raises StoreError where there is none, or it cannot be read."""
    try:
        path = _path(store, report_id)
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        return SavedReport.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ValidationError):
        raise StoreError(f"There is no report {report_id[:20]!r} in this store, or it cannot be read.") from None


def delete_report(store: Store, report_id: str) -> None:
    """Forget a report; its runs stay."""
    with contextlib.suppress(FileNotFoundError):
        _path(store, report_id).unlink()


def origin_in_words(run: Run) -> list[str]:
    """What is to be known of a run that was not made here, a sentence each; nothing of one that was."""
    if run.imported is None:
        return []
    origin = run.imported.origin
    what = (
        "a table of numbers; its configuration is what was said when it was imported"
        if origin.form == "curve"
        else f"the report {origin.title!r}"
    )
    said = [f"Imported, unverified: on {units.date(origin.at)}, from {what}."]
    if origin.hash_matches is False:
        said.append("Its content hash does not match: the file was changed after it was exported.")
    if len(run.steps) < run.imported.recorded_steps:
        said.append(
            f"It holds {len(run.steps):,} of {run.imported.recorded_steps:,} steps; the figures are from all of them."
        )
    return said + list(origin.notes)


def _path(store: Store, report_id: str) -> Path:
    if not _ID.fullmatch(report_id):
        raise ValueError("no id")
    return store.root / "reports" / f"{report_id}.json"
