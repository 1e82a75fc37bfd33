"""`python -m engine.reports.sharing`: the limited process that reads an imported file and writes run folders."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.common import units
from engine.common.errors import StoreError
from engine.common.sanitize import visible
from engine.events.imported import Origin
from engine.reports.report import Conclusion, Report, hash_in, json_in
from engine.reports.sharing.curve_tables import columns_of, is_table
from engine.reports.sharing.curves import CurveChoices, read_curve
from engine.reports.sharing.library import SavedReport, report_with_hash
from engine.reports.sharing.rebuilding import Names, rebuild
from engine.reports.sharing.zips import REPORT, SUMS, Archive
from engine.store.store import Store
from engine.system import sandbox
from engine.system.files import write_atomically


@dataclasses.dataclass
class _OpenedFile:
    """An opened file: its report, the hash of its JSON, the hash it claims, and a reader of the files beside it."""

    report: Report
    form: str
    content_hash: str = ""
    named_hash: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    read: Callable[[str], bytes | None] = lambda name: None


def import_file(request: dict[str, Any]) -> dict[str, Any]:
    """Write the folders of all runs of a file into a staging folder; return the new ids and the warnings.

    A report whose content is in the store, or in `read`, the hashes of the files before it, is not written again.
    """
    path, name, now = Path(request["path"]), request["name"], request["now"]
    opened = _open(path, name, CurveChoices.model_validate_json(request["choices"]), now)
    report, store, staging = opened.report, Store(Path(request["root"])), Path(request["staging"])
    if opened.content_hash in request["read"]:
        return {"same_as": opened.content_hash}
    if opened.content_hash and (same := report_with_hash(store, opened.content_hash)):
        warning = (
            f"This report was imported before, on {units.date(same.origin.at)}. Its runs are in this store already."
        )
        ids = {"run_ids": same.run_ids, "group_ids": same.group_ids, "report_id": same.report_id}
        return ids | {"content_hash": opened.content_hash, "warnings": [warning]}
    matches = _matches(opened)
    origin = Origin(
        at=now,
        form=opened.form,
        title=visible(report.title, 200),
        made=report.created,
        isoflop=visible(report.isoflop, 40),
        content_hash=opened.content_hash,
        hash_matches=matches,
        notes=tuple(opened.notes),
    )
    names = Names.of(report)
    warnings = list(opened.notes)
    if matches is False:
        warnings.append(
            f"The content hash does not match, because the file was changed after the export: it names {opened.named_hash}, "
            f"but its content has {opened.content_hash}."
        )
    if len({run.created for run in report.runs}) and report.created > now + 86_400:
        warnings.append("The report's date is in the future.")
    for run in report.runs:
        new_id = names.runs[run.run_id]
        missing = rebuild(
            run,
            staging / "runs" / new_id,
            origin,
            names,
            owner=request["owner"],
            order=store.next_order(),
            read=opened.read,
        )
        warnings += [f"{visible(run.name, 60) or run.run_id}: {what}" for what in missing]
    if thinned := [run for run in report.runs if run.is_thinned]:
        held, recorded = sum(len(run.steps) for run in thinned), sum(run.recorded_steps for run in thinned)
        whose = f" of {len(thinned)} runs" if len(report.runs) > 1 else ""
        warnings.append(
            f"The file contains {held:,} of {recorded:,} steps{whose}; the .json and .zip exports contain all."
        )
    run_ids, group_ids = list(names.runs.values()), list(names.groups.values())
    report_id = secrets.token_hex(8) if opened.form == "report" else None
    if report_id:
        saved = SavedReport(
            report_id=report_id,
            title=origin.title,
            created=report.created,
            origin=origin,
            notes=report.notes,
            run_ids=run_ids,
            conclusions=[_with_new_ids(names, conclusion) for conclusion in report.conclusions],
            group_ids=group_ids,
            owner=request["owner"],
        )
        write_atomically(staging / "reports" / f"{report_id}.json", saved.model_dump_json())
    new_ids = {"run_ids": run_ids, "group_ids": group_ids, "report_id": report_id}
    return new_ids | {"content_hash": opened.content_hash, "warnings": warnings}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The columns of a table to choose from, or the ids of the runs that `import_file` wrote."""
    if request.get("only_columns"):
        return dataclasses.asdict(columns_of(_text(Path(request["path"]))))
    return import_file(request)


def _open(path: Path, name: str, choices: CurveChoices, now: float) -> _OpenedFile:
    with path.open("rb") as file:
        head = file.read(1_024).lstrip()
    if head.startswith(b"PK"):
        return _open_zip(path)
    if head.startswith(b"PAR1"):
        raise StoreError(
            "This is a Parquet table of points, which cannot be imported.",
            fix="Export the runs as .html, .json or .zip, or save the table as CSV.",
        )
    text = _text(path)
    if head.startswith(b"<"):
        json_text = json_in(text)
        return _OpenedFile(Report.from_json(json_text), "report", _hash(json_text), hash_in(text))
    if head.startswith((b"{", b"[")) or not is_table(name):
        return _OpenedFile(Report.from_json(text), "report", _hash(text))
    report, notes = read_curve(text, name, choices, now=now)
    return _OpenedFile(report, "curve", notes=notes)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise StoreError(
            "This is neither a zip nor UTF-8 text.", fix="Choose a file that Isoflop exported, or a CSV."
        ) from None


def _open_zip(path: Path) -> _OpenedFile:
    archive = Archive(path)
    if REPORT not in archive.names:
        raise StoreError(f"This zip contains no {REPORT}.", fix="Choose a zip that Isoflop exported.")
    text = archive.read(REPORT)
    named = ""
    if SUMS in archive.names:
        lines = archive.read(SUMS).decode(errors="replace").splitlines()
        named = next((line.partition("  ")[0] for line in lines if line.endswith(f"  {REPORT}")), "")[:64]
    return _OpenedFile(
        Report.from_json(text),
        "report",
        hashlib.sha256(text).hexdigest(),
        named,
        read=lambda name: archive.read(name) if name in archive.names else None,
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _matches(opened: _OpenedFile) -> bool | None:
    """Whether the claimed hash is that of the bytes, or of the report after reformatting; None if none is claimed."""
    if not opened.named_hash:
        return None
    return opened.named_hash in {opened.content_hash, opened.report.content_hash}


def _with_new_ids(names: Names, conclusion: Conclusion) -> Conclusion:
    """The conclusion with the new ids of its runs."""
    lanes = [
        dataclasses.replace(lane, run_ids=[names.runs[run_id] for run_id in lane.run_ids])
        for lane in conclusion.outcome.lanes
    ]
    group = names.groups.get(conclusion.group) if conclusion.group else None
    return conclusion.model_copy(
        update={"group": group, "outcome": dataclasses.replace(conclusion.outcome, lanes=lanes)}
    )


if __name__ == "__main__":
    sandbox.serve(answer)
