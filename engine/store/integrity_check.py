"""`python -m engine check`: reads the whole store and reports what is missing, damaged, foreign or readable by others."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from engine import __version__
from engine.common import units
from engine.common.errors import StoreError
from engine.events.base import TERMINAL
from engine.events.lifecycle import Artifact
from engine.store.index import Index
from engine.store.listing import RunRow, row_of
from engine.store.run import Run
from engine.store.store import Store
from engine.system import disk_space

_OUR_FILES = re.compile(
    r"runs|reports|inbox|keys|order|doorbell|reserve|settings\.toml|audit\.jsonl|needed\.lock|supervisor\.(lock|pid|log|json)|monitor\.(json|jsonl|previous\.jsonl|ring|looked)|"
    r"index\.sqlite(-wal|-shm|-journal|\.v\d+|\.damaged|\.newer)?"
)


@dataclass
class Findings:
    """What a check found: `problems` need a repair, `notes` do not."""

    runs: int = 0
    indexed: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


def check(store: Store) -> Findings:
    """Read every run, the index and the permissions of all files. Changes nothing."""
    found = Findings(versions=_versions())
    rows = _check_index(store, found)
    for run_id in sorted(store.ids()):
        found.runs += 1
        found.problems += check_run(store, run_id, rows.get(run_id))
    if rows:
        missing = len(rows.keys() - store.ids())
        found.problems += [f"The index has {missing} runs that have no folder.{_REBUILD}"] if missing else []
    found.problems += _too_open(store.root)
    found.notes += _notes(store)
    return found


_REBUILD = " Rebuild it: `python -m engine check --rebuild`."


def check_run(store: Store, run_id: str, row: RunRow | None) -> Iterator[str]:
    """The problems of one run; `row` is its row in the index, if there is one."""
    try:
        run = store.run(run_id)
    except StoreError as error:
        yield error.message
        return
    if run.queued is None:
        yield f"Run {run_id}: its log, or the beginning of it, is missing."
    imported = run.imported.problems if run.imported else ()  # problems of the store that it was exported from
    for problem in run.problems:
        if problem in imported:
            continue
        yield f"Run {run_id}: {problem}".removesuffix(".") + "."
    if run.last_word and (tail := _unread(run)):
        yield f"Run {run_id}: its log has {tail:,} bytes after the final event."
    for artifact in run.all(Artifact):
        path = run.folder / Path(artifact.name).name
        size = path.stat().st_size if path.is_file() else None
        if size != artifact.size_bytes:
            yield f"Run {run_id}: {path.name} has {size or 0:,} of {artifact.size_bytes:,} bytes."
    # The index can lag behind a running run.
    if row and (row.status in TERMINAL or run.is_over) and not _is_up_to_date(row, run):
        yield f"Run {run_id}: it is {_brief(row)} in the index, but {_brief(row_of(run))} in its folder.{_REBUILD}"


def _unread(run: Run) -> int:
    with contextlib.suppress(OSError):
        return max(0, (run.folder / "events.jsonl").stat().st_size - run.offset)
    return 0


def _is_up_to_date(row: RunRow, run: Run) -> bool:
    if row.status not in TERMINAL and run.last_word:  # it may have ended just now
        run.refresh()
    return row.model_dump_json() == row_of(run).model_dump_json()


def _brief(row: RunRow) -> str:
    return f"{row.status} with {units.exact(row.summary.steps)} steps"


def _check_index(store: Store, found: Findings) -> dict[str, RunRow]:
    """The rows of the index by run id; empty if it cannot be used, which is a problem unless there is no index yet."""
    try:
        with Index.reading(store.root) as index:
            if damage := index.damage():
                found.problems.append(f"The index is damaged: {damage}.{_REBUILD}")
                return {}
            found.versions["schema"] = str(index.version)
            rows = index.rows()
            unreadable = len(index.unreadable)
    except FileNotFoundError:
        found.notes.append("There is no index yet: runs are listed from their folders.")
        return {}
    except StoreError as error:
        found.problems.append(str(error))
        return {}
    except sqlite3.Error as error:
        found.problems.append(f"The index cannot be read: {error}.{_REBUILD}")
        return {}
    found.indexed = len(rows)
    if unreadable:
        found.problems.append(f"The index has {unreadable} rows that cannot be read.{_REBUILD}")
    return {row.run_id: row for row in rows}


def _too_open(root: Path) -> list[str]:
    """The problem that other users of this machine can read or write some files, if they can."""
    wide = [path for path in (root, *root.rglob("*")) if _is_open_to_others(path)]
    names = ", ".join(f"{path.relative_to(root)} ({stat.S_IMODE(path.stat().st_mode):04o})" for path in wide[:5])
    more = f" and {len(wide) - 5:,} more" if len(wide) > 5 else ""
    return (
        [f"Other users of this machine can access {names}{more}. Remove their access: chmod -R go= {root}"]
        if wide
        else []
    )


def _is_open_to_others(path: Path) -> bool:
    try:
        return not path.is_symlink() and bool(path.stat().st_mode & 0o077)
    except OSError:  # deleted meanwhile
        return False


def _notes(store: Store) -> Iterator[str]:
    free = disk_space.free_bytes(store.root)
    if free is not None and free < disk_space.NEW_RUNS_NEED_BYTES:
        needed = units.nbytes(disk_space.NEW_RUNS_NEED_BYTES)
        yield f"The store's disk has {units.nbytes(free)} free: new runs need {needed}."
    for path in store.leftovers():
        yield f"{path.name} was left incomplete by a crash: the supervisor removes it when it starts."
    foreign = [path.name for path in store.root.iterdir() if not path.name.startswith(".") and not _is_ours(path.name)]
    foreign += [f"runs/{p.name}" for p in store.runs.iterdir() if not p.name.startswith(".") and not store.has(p.name)]
    for name in sorted(foreign):
        yield f"{name} was not made by Isoflop."
    for path in sorted(store.root.glob("index.sqlite.*")):
        if path.suffix in {".damaged", ".newer"} or re.fullmatch(r"\.v\d+", path.suffix):
            yield f"{path.name} is an old index: it can be deleted."
    if network := disk_space.network_file_system(store.root):
        yield f"The store is on a network file system ({network}): use it from one machine only."
    if has_wal_reset_bug(sqlite3.sqlite_version_info):
        yield (
            f"SQLite {sqlite3.sqlite_version} can lose data that two processes write at once. Only the supervisor writes, "
            "so nothing is lost. Other programs must only read the index."
        )


def _is_ours(name: str) -> bool:
    return _OUR_FILES.fullmatch(name) is not None


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether this SQLite can lose committed pages when two processes checkpoint at once.

    Fixed in 3.51.3, 3.50.7 and 3.44.6: https://sqlite.org/wal.html#walresetbug
    """
    if not (3, 7, 0) <= version < (3, 51, 3):
        return False
    return not ((3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0))


def _versions() -> dict[str, str]:
    return {"isoflop": __version__, "python": sys.version.split()[0], "sqlite": sqlite3.sqlite_version}
