"""Imports files into the store. A process of its own reads each file, and either all files are imported or none is."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import visible
from engine.reports.sharing.curve_tables import Columns
from engine.reports.sharing.curves import CurveChoices
from engine.reports.sharing.library import delete_report, saved_reports
from engine.store.store import Store
from engine.system import sandbox

MAX_BYTES = 50_000_000
IMPORT_MEMORY_BYTES = 4 << 30
IMPORT_S = 120
_MOST_ON_DISK = 2 << 30


@dataclass
class Imports:
    """The ids of imported runs, groups and reports, and warnings about the files."""

    run_ids: list[str] = field(default_factory=list)
    group_ids: list[str] = field(default_factory=list)
    report_ids: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_files(
    store: Store,
    paths: Sequence[Path],
    *,
    names: Sequence[str] = (),
    owner: str = "",
    curve: CurveChoices | Sequence[CurveChoices] | None = None,
    clock: Callable[[], float] = time.time,
) -> Imports:
    """Import the runs of reports (JSON, HTML, zip) and curves (CSV), all or none.

    Args:
        store: The store that receives the runs.
        paths: The files.
        names: The names of the files, if their paths are temporary (uploads).
        owner: The user who imports.
        curve: How to read a CSV: for all files, or one for each.
        clock: Unix time in seconds.

    Raises:
        StoreError: A file is not a report, is damaged or too large when unpacked, or the store cannot be written.
        ConfigError: A file does not exist, cannot be read, or is too large. Both errors name the file.
    """
    if trouble := store.trouble():
        raise trouble
    found = Imports()
    names = list(names) or [path.name for path in paths]
    for path, name in zip(paths, names, strict=True):
        _check(path, name)
    curves = [curve or CurveChoices()] * len(paths) if curve is None or isinstance(curve, CurveChoices) else curve
    with store.staging() as staging:
        first_with = dict[str, str]()  # content hash: the file that has it
        for path, name, choices in zip(paths, names, curves, strict=True):
            made = _read(store, staging, path, name, owner, choices, clock(), list(first_with))
            if same_as := made.get("same_as"):
                found.warnings.append(_prefixed(name, f"the same report as {visible(first_with[same_as], 80)}."))
                continue
            if made["content_hash"]:
                first_with[made["content_hash"]] = name
            found.run_ids += made["run_ids"]
            found.group_ids += made["group_ids"]
            found.report_ids += [made["report_id"]] if made["report_id"] else []
            found.warnings += [_prefixed(name, warning) for warning in made["warnings"]]
        store.put_in_place(staging)
    for report in saved_reports(store):  # of an earlier import, whose runs were deleted
        if report.origin.content_hash in first_with and report.report_id not in found.report_ids:
            delete_report(store, report.report_id)
    return found


def _check(path: Path, name: str) -> None:
    try:
        status = path.stat()
        readable = os.access(path, os.R_OK)
    except (OSError, ValueError):
        raise ConfigError(_prefixed(name, "the file does not exist."), fix="Name an existing file.") from None
    if not stat.S_ISREG(status.st_mode) or not readable:
        raise ConfigError(_prefixed(name, "this is not a readable file."), fix="Name an HTML, JSON, zip or CSV file.")
    if status.st_size > MAX_BYTES:
        raise ConfigError(
            _prefixed(name, f"the file has {status.st_size:,} bytes; the limit is {MAX_BYTES:,}."),
            fix="Export fewer runs, or the HTML page, which contains fewer points.",
        )


def columns_in(path: Path, name: str) -> Columns:
    """The columns of a table of another tool, to choose from.

    Raises:
        StoreError: It is not a table.
        ConfigError: It does not exist, cannot be read, or is too large. Both errors name the file.
    """
    _check(path, name)
    return Columns(**_ask({"only_columns": True, "path": str(path.absolute())}, name))


def _read(
    store: Store,
    staging: Path,
    path: Path,
    name: str,
    owner: str,
    curve: CurveChoices,
    now: float,
    read: list[str],
) -> dict[str, Any]:
    request = {
        "read": read,
        "path": str(path.absolute()),
        "name": name,
        "root": str(store.root),
        "staging": str(staging),
        "owner": owner,
        "choices": curve.model_dump_json(),
        "now": now,
    }
    return _ask(request, name)


def _ask(request: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        made: dict[str, Any] = sandbox.ask(
            "engine.reports.sharing",
            request,
            seconds=IMPORT_S,
            memory_bytes=IMPORT_MEMORY_BYTES,
            file_bytes=_MOST_ON_DISK,
        )
        return made
    except ConfigError as error:
        raise StoreError(_prefixed(name, error.message), fix=error.fix) from None


def _prefixed(name: str, what: str) -> str:
    return f"{visible(name, 80)}: {what}"
