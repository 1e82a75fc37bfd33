"""The run folders and the index over them.

    $ISOFLOP_HOME/
      runs/<id>/config.json, events.jsonl, model.safetensors   the source of truth: one folder per run, nothing shared
      inbox/                                                   commands to the supervisor
      reserve                                                  disk space for final events on a full disk
      index.sqlite                                             derived: one row per run, can be rebuilt

A log line is the JSON of an event, with the CRC-32 of the rest as its last member. A reader follows the log by byte
offset. It leaves a line that is still being written for the next time, and skips and counts lines with a wrong checksum.

While the log of a run cannot be written (the disk is full or read-only), the run continues for ten seconds and buffers
its events. Then it fails. The log is always a prefix of the events.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import logging
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from engine import __version__
from engine.common.errors import StoreError, StoreGone
from engine.common.sanitize import clean_name, visible
from engine.config.run import RunConfig
from engine.events.base import TERMINAL, Status
from engine.events.lifecycle import Queued, SeedBlock
from engine.events.summary import Summary
from engine.store.event_log import decode, encode
from engine.store.index import Index, Stamp, check_order, index_in_memory, matching_lines
from engine.store.labels import LABELS_FILE, Labels
from engine.store.listing import (
    GroupLine,
    Listing,
    RunLine,
    RunRow,
    in_order,
    line_of,
    matches_search,
    row_of,
    sort_key,
)
from engine.store.query import Condition
from engine.store.run import SUMMARY_POINTS, Run, needed_version, queued_event, read_config
from engine.system import disk_space
from engine.system.files import private_folder, write_atomically
from engine.system.locks import is_claimed, lock
from engine.system.processes import is_same_process, own_identity

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.([0-9a-f]{16}|import-[0-9a-f]{16}|deleted-[0-9a-f]{16}|reserve|.+\.[0-9a-f]{8})")
_IMPORTER, _PLACED = "importer.json", "placed.json"  # in an import's folder: its process, and what it moves into place
_PLACE = re.compile(r"runs/[0-9a-f]{16}|reports/[0-9a-f]{16}\.json")
_ORDER = "order"  # file with the number of the newest submission
_STALE_S = 60.0  # an older draft was left by a crash
_MAX_UNINDEXED_READ = 200  # runs that a list reads from their folders

logger = logging.getLogger("isoflop.store")


def default_root() -> Path:
    """`$ISOFLOP_HOME`, or ~/.isoflop."""
    return Path(os.environ.get("ISOFLOP_HOME") or Path.home() / ".isoflop").expanduser().resolve()


class Submission(NamedTuple):
    """A run to submit. The same `key` always makes the same run; an empty one makes a new run."""

    config: RunConfig
    name: str = ""
    key: str = ""
    heat: SeedBlock | None = None


def _gone() -> StoreGone:
    """The error for a store whose folder vanished."""
    return StoreGone(
        "The store's folder is gone: it was moved or deleted while it was in use.",
        fix="Put it back, or start again with ISOFLOP_HOME set to a folder you own.",
    )


Result = TypeVar("Result")


class Store:
    """The folder of all runs. Every process can read it; only the supervisor writes the index.

    Raises:
        StoreError: the folder cannot be created or used.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser().resolve()
        self.runs = self.root / "runs"
        self.inbox = self.root / "inbox"
        self._unindexed_as_of: tuple[Stamp | None, frozenset[str]] = (None, frozenset())
        self._created: dict[str, float] = {}  # creation times of runs that are not indexed yet
        try:
            for folder in (self.root, self.runs, self.inbox):
                private_folder(folder)
                os.scandir(folder).close()
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be used: {error.strerror}.", fix="Set ISOFLOP_HOME to a folder you own."
            ) from None

    def trouble(self) -> StoreError | None:
        """The reason why no run can be created now; None if one can."""
        if not self.runs.is_dir():
            return _gone()
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (self.root, self.runs, self.inbox)):
            return StoreError(
                "The store can be read, but not written: no run can start or be changed.",
                fix="Check the owner and permissions of its folder, or set ISOFLOP_HOME to a folder you own.",
            )
        try:
            disk_space.require_room_for_a_run(self.root)
        except StoreError as error:
            return error
        return None

    def create(
        self,
        config: RunConfig,
        *,
        name: str = "",
        group: str | None = None,
        heat: SeedBlock | None = None,
        owner: str = "",
        key: str = "",
    ) -> str:
        """Create a queued run, completely or not at all; returns its id.

        If the run of `key` exists, for example after a double click, its id is returned.

        Raises:
            ConfigError: the name is not valid.
            StoreError: the store cannot be written.
        """  # noqa: DOC501
        name = clean_name(name)
        if trouble := self.trouble():
            raise trouble
        run_id = self.id_of(key)
        if (self.runs / run_id).exists():
            return run_id
        draft = self.runs / f".{run_id}.{secrets.token_hex(4)}"
        try:
            draft.mkdir(mode=0o700)
            write_atomically(draft / "config.json", config.model_dump_json(indent=1))
            queued = encode(
                Queued(
                    at=time.time(),
                    order=self.next_order(),
                    name=name,
                    group=group,
                    heat=heat,
                    owner=owner,
                    version=__version__,
                )
            )
            write_atomically(draft / "events.jsonl", queued.decode())
            draft.rename(self.runs / run_id)
        except OSError as error:
            disk_space.remove(draft)
            if not (self.runs / run_id).exists():  # else another process created it first
                raise disk_space.unwritable(error) from None
        return run_id

    @staticmethod
    def id_of(key: str) -> str:
        """The id of the run of a key; a new id if the key is empty."""
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else secrets.token_hex(8)

    def owner(self, run_id: str) -> str:
        """The id of the actor that submitted a run, also a hidden one; empty if unknown."""
        for folder in (self.runs / run_id, self.runs / f".deleted-{run_id}") if _RUN_ID.fullmatch(run_id) else ():
            if first := queued_event(folder):
                return first.owner
        return ""

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name.

        Raises:
            ConfigError: the name is not valid.
            StoreError: there is no such run.
        """
        self.label(run_id, {"name": clean_name(name)})

    def label(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Change some labels of a run.

        Raises:
            StoreError: there is no such run.
        """
        path = self.folder(run_id) / LABELS_FILE
        labels = Labels()
        with contextlib.suppress(OSError, ValueError):
            labels = Labels.model_validate_json(path.read_bytes())
        changed = Labels.model_validate(labels.model_dump() | dict(changes))
        write_atomically(path, changed.model_dump_json(exclude_none=True))

    def post(self, command: str) -> None:
        """Write a command for the supervisor into the inbox.

        On a full disk it uses the reserve, because deleting runs must remain possible.

        Raises:
            StoreError: the inbox cannot be written.
        """

        def write() -> None:
            write_atomically(self.inbox / f"{self.next_order():020d}-{secrets.token_hex(4)}.json", command)

        try:
            disk_space.with_reserve(self.root, write)
        except StoreError as error:
            raise (_gone() if not self.inbox.is_dir() else error) from None

    def sweep(self) -> list[Path]:
        """Remove what a crash left incomplete, when a supervisor starts; returns the removed paths."""
        # A young draft can belong to a live process. A `.deleted-` folder cannot: only the supervisor, which is just
        # starting, deletes runs.
        swept = [
            path
            for path in self.leftovers()
            if not path.name.startswith(".import-")
            if path.name.startswith(".deleted-") or time.time() - path.lstat().st_mtime > _STALE_S
        ]
        for path in swept:
            disk_space.remove(path)
        return swept + self._undo_dead_imports()

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A hidden folder for the `runs/<id>` and `reports/<id>.json` of an import; removed at the end of the block.

        Raises:
            StoreError: the store cannot be written.
        """  # noqa: DOC501
        self._undo_dead_imports()
        folder = self.runs / f".import-{secrets.token_hex(8)}"
        try:
            for made in (folder, folder / "runs", folder / "reports"):
                made.mkdir(mode=0o700)
            write_atomically(folder / _IMPORTER, json.dumps(own_identity()))
        except OSError as error:
            disk_space.remove(folder)
            raise disk_space.unwritable(error) from None
        try:
            yield folder
        finally:
            self._undo_import(folder)

    def put_in_place(self, folder: Path) -> None:
        """Move the contents of a `staging` folder into the store: all of them, or after an error none.

        If the process is killed in between, the next import or supervisor undoes it.

        Raises:
            StoreError: the store cannot be written.
        """  # noqa: DOC501
        made = sorted(
            f"{path.parent.name}/{path.name}" for kind in ("runs", "reports") for path in (folder / kind).iterdir()
        )
        assert all(map(_PLACE.fullmatch, made)), "an import contains only runs and reports"
        try:
            private_folder(self.root / "reports")
            write_atomically(folder / _PLACED, json.dumps(made))
            for place in made:
                (folder / place).rename(self.root / place)
            (folder / _PLACED).unlink()
        except OSError as error:
            raise disk_space.unwritable(error) from None

    def _undo_import(self, folder: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            for place in json.loads((folder / _PLACED).read_text(encoding="utf-8")):
                if _PLACE.fullmatch(place) and not (folder / place).exists():
                    disk_space.remove(self.root / place)
        disk_space.remove(folder)

    def _undo_dead_imports(self) -> list[Path]:
        """Undo imports whose process died."""
        left = [
            path for path in self.runs.glob(".import-*") if _DRAFT.fullmatch(path.name) and not _is_importer_alive(path)
        ]
        for path in left:
            self._undo_import(path)
        return left

    def leftovers(self) -> list[Path]:
        """Drafts of runs and commands, and runs that are being deleted: in progress, or left by a crash."""
        hidden = [*self.runs.glob(".*"), *self.inbox.glob(".*"), *self.root.glob(".*")]
        return sorted(path for path in hidden if _DRAFT.fullmatch(path.name))

    def next_order(self) -> int:
        """A number larger than every earlier one of this store, even if the clock was set back.

        It is the Unix time in microseconds whenever that is larger, so the order also survives the loss of the file.
        """
        with os.fdopen(os.open(self.root / _ORDER, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            lock(file.fileno(), patience_s=5.0)
            text = file.read(32)
            order = max(time.time_ns() // 1_000, int(text) + 1 if text.isdigit() else 0)
            file.seek(0)
            file.write(b"%d" % order)
            file.truncate()
            return order

    def folder(self, run_id: str) -> Path:
        """The folder of a run. An id is 16 hex digits, so no user text becomes a path.

        Raises:
            StoreError: there is no such run. StoreGone if the store was deleted.
        """  # noqa: DOC501
        if not self.runs.is_dir():
            raise _gone()
        if not _RUN_ID.fullmatch(run_id) or not (self.runs / run_id).is_dir():
            raise StoreError(
                f"There is no run {run_id!r} in this store.", fix="`python -m engine list` shows all runs."
            )
        return self.runs / run_id

    def run(self, run_id: str, *, keep_points: int | None = None) -> Run:
        """A run with all its points, or with about the newest `keep_points` of each kind.

        SUMMARY_POINTS are enough for the status and the summary of any run.

        Raises:
            StoreError: there is no such run, or it cannot be read.
        """
        return Run(self.folder(run_id), keep_points=keep_points)

    def find(self, prefix: str) -> str:
        """The id of the only run whose id starts with `prefix`, or of the newest run for `last`.

        Raises:
            StoreError: no run or several runs match.
        """
        if prefix == "last":
            rows = self.rows(limit=1)
            if rows:
                return rows[0].run_id
        matches = [i for i in self.ids() if i.startswith(prefix)] if re.fullmatch(r"[0-9a-f]+", prefix) else []
        if len(matches) > 1:
            raise StoreError(f"{prefix!r} matches {len(matches)} runs.", fix="Type more of the id.")
        return matches[0] if matches else self.folder(prefix).name

    def has(self, name: str) -> bool:
        """Whether a file name of the runs folder is a run id."""
        return _RUN_ID.fullmatch(name) is not None

    def ids(self) -> list[str]:
        """The ids of all runs, in no order.

        Raises:
            StoreError: the store cannot be read. StoreGone if it was deleted.
        """  # noqa: DOC501
        try:
            with os.scandir(self.runs) as entries:
                return [entry.name for entry in entries if _RUN_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            raise _gone() from None
        except OSError as error:
            raise StoreError(
                f"The store cannot be read: {error.strerror}.", fix="Check its owner, its permissions and its disk."
            ) from None

    def delete(self, run_id: str) -> None:
        """Delete a run: it is hidden first, so that no half-deleted run is ever listed.

        Raises:
            StoreError: there is no such run.
        """
        self.hide(run_id)
        self.forget(run_id)

    def hide(self, run_id: str) -> None:
        """Hide a run; `restore` brings it back.

        Raises:
            StoreError: there is no such run.
        """
        self.folder(run_id).rename(self.runs / f".deleted-{run_id}")

    def forget(self, run_id: str) -> None:
        """Delete a hidden run for good; no error if there is none."""
        if _RUN_ID.fullmatch(run_id):
            disk_space.remove(self.runs / f".deleted-{run_id}")

    def restore(self, run_id: str) -> None:
        """Bring a hidden run back.

        Raises:
            StoreError: the run was deleted for good.
        """
        hidden = self.runs / f".deleted-{run_id}"
        if not _RUN_ID.fullmatch(run_id) or not hidden.is_dir() or (self.runs / run_id).exists():
            raise StoreError(f"Run {visible(run_id, 20)} cannot be restored: it was deleted for good.")
        hidden.rename(self.runs / run_id)

    def rows(
        self,
        *,
        limit: int | None = None,
        order: str = "created",
        status: Sequence[Status] = (),
        group: str | None = None,
    ) -> list[RunRow]:
        """Rows of runs, newest (or largest) first.

        Runs that are not indexed yet, or all runs if the index cannot be used, are read from their folders.

        Raises:
            StoreError: the order is unknown, or the store cannot be read.
        """
        check_order(order)
        found, unindexed = self._query_index(
            lambda index: (
                index.rows(limit=limit, order=order, status=status, group=group),
                frozenset(index.unreadable),
            )
        )
        rows, unreadable = found or ([], frozenset())
        rows = [self.row(row.run_id) or row if self._ended_since(row.run_id, row.status) else row for row in rows]
        newest_are_enough = order == "created" and limit is not None and not status and group is None
        read, _ = self._read_unindexed(unindexed | unreadable, limit if newest_are_enough else None)
        fresh = [r for r in read if (not status or r.status in status) and (group is None or r.group == group)]
        if fresh:
            rows = sorted(rows + fresh, key=lambda r: (sort_key(r, order), r.created), reverse=True)
        return rows[:limit]

    def listing(
        self,
        *,
        search: str = "",
        status: Sequence[Status] = (),
        where: Sequence[Condition] = (),
        order: str = "created",
        descending: bool = True,
        pinned_first: bool = False,
        limit: int = 100,
        offset: int = 0,
    ) -> Listing:
        """A page of the runs that match. Unknown values come last in both directions.

        Each word of `search` must be part of the name, the configuration in words, the status, the id, the reason of the
        end, the tags or the notes; case does not matter. Runs that are not indexed yet are read from their folders. They
        come last if the list is sorted by a field that a list does not show.

        Raises:
            StoreError: the order is unknown, or the store cannot be read.
        """
        check_order(order)

        def page(index: Index, offset: int, limit: int) -> tuple[list[RunLine], int]:
            return index.lines(
                search,
                status,
                order,
                descending=descending,
                limit=limit,
                offset=offset,
                where=where,
                pinned_first=pinned_first,
            )

        found, unindexed = self._query_index(lambda index: page(index, offset, limit))
        read, unread = self._read_unindexed(unindexed, _MAX_UNINDEXED_READ)
        fresh = [line_of(row) for row in matching_lines(read, search, status, where)]
        if fresh and offset and found:  # new runs shift others to later pages, so take all earlier lines as well
            found, unindexed = self._query_index(lambda index: page(index, 0, offset + limit))
            fresh = [line for line in fresh if line.run_id in unindexed]
        lines, total = found or ([], 0)
        current = [self._current_line(line) for line in lines]
        lines = [line for line in current if matches_search(line, search, status)]
        total -= len(current) - len(lines)
        if fresh:
            lines = in_order(lines + fresh, order, descending, pinned_first)[offset : offset + limit]
        return Listing(lines, total + len(fresh), unread)

    def values(
        self,
        fields: Sequence[str],
        *,
        search: str = "",
        status: Sequence[Status] = (),
        where: Sequence[Condition] = (),
        run_ids: Sequence[str] | None = None,
    ) -> dict[str, tuple[Any, ...]]:
        """Values of some fields (engine.store.query) of the runs that match, or of those with these ids, by run id.

        Raises:
            ConfigError: a field is unknown.
        """

        def ask(index: Index) -> dict[str, tuple[Any, ...]]:
            return index.values(fields, search, status, where, run_ids)

        found, unindexed = self._query_index(ask)
        read, _ = self._read_unindexed(unindexed if run_ids is None else unindexed & set(run_ids), _MAX_UNINDEXED_READ)
        with index_in_memory(read) as index:
            return (found or {}) | (ask(index) if read else {})

    def groups(self, *, limit: int = 100) -> list[GroupLine]:
        """Races, scaling studies and repeated runs: groups of runs that were submitted together, newest first."""
        found, unindexed = self._query_index(lambda index: index.groups(limit))
        read, _ = self._read_unindexed(unindexed, _MAX_UNINDEXED_READ)
        with index_in_memory(read) as index:
            fresh = {line.group: line for line in index.groups(limit)} if read else {}
        older = [fresh.pop(g.group).merged_with(g) if g.group in fresh else g for g in found or []]
        return sorted([*older, *fresh.values()], key=lambda g: g.created, reverse=True)[:limit]

    def _query_index(self, query: Callable[[Index], Result]) -> tuple[Result | None, frozenset[str]]:
        """The result of a query of the index, None if it cannot be read; and the runs that it did not contain then."""
        stamp = Stamp.of(self.runs, self.root / "index.sqlite", self.root / "index.sqlite-wal")
        try:
            with Index.reading(self.root) as index:
                if stamp is None or stamp != self._unindexed_as_of[0]:
                    self._unindexed_as_of = stamp, frozenset(self.ids()) - index.ids()
                elif self._unindexed_as_of[1]:  # rows may have been added since the stamp
                    return query(index), self._unindexed_as_of[1] - index.ids()
                return query(index), self._unindexed_as_of[1]
        except (sqlite3.Error, OSError, StoreError):
            return None, frozenset(self.ids())

    def _read_unindexed(self, run_ids: Collection[str], most: int | None) -> tuple[list[RunRow], int]:
        """Rows of the newest `most` of these runs, from their folders; and the number of the others."""
        chosen = run_ids
        if most is not None and len(run_ids) > most:
            self._created = {i: self._created.get(i) or self._created_at(i) for i in run_ids}
            chosen = heapq.nlargest(most, run_ids, key=self._created.__getitem__)
        rows = [row for run_id in chosen if (row := self.row(run_id) or self._row_for_newer_version(run_id))]
        return rows, len(run_ids) - len(chosen)

    def _row_for_newer_version(self, run_id: str) -> RunRow | None:
        """The row of a queued run that only a newer Isoflop can read; its status is `failed`, as it cannot start here.

        The row is only shown, never written to the log or the index, because a newer Isoflop may run it.
        """
        folder = self.runs / run_id
        queued = queued_event(folder)
        needs = needed_version(queued)
        if not queued or not needs or is_claimed(folder) or self._last_kind(run_id) != "queued":
            return None
        try:
            read_config(folder)
        except StoreError:
            return RunRow(
                run_id=run_id,
                name=queued.name,
                status="failed",
                created=queued.at,
                config=RunConfig(),
                summary=Summary(),
                group=queued.group,
                owner=queued.owner,
                why=needs,
                needs=needs,
            )
        return None

    def _created_at(self, run_id: str) -> float:
        """Unix time of the submission, from the first line of the log."""
        first = queued_event(self.runs / run_id)
        return first.at if first else 0.0

    def _current_line(self, line: RunLine) -> RunLine:
        if self._ended_since(line.run_id, line.status) and (row := self.row(line.run_id)):
            return line_of(row)
        return line

    def _ended_since(self, run_id: str, status: Status) -> bool:
        """Whether a run that is not over in the index has ended in its folder, because the index can lag."""
        return status not in TERMINAL and self.has_ended(run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether the log ends with a final event; reads only the end of the log."""
        return self._last_kind(run_id) in TERMINAL

    def _last_kind(self, run_id: str) -> str:
        """The kind of the last event of the log; empty if it cannot be read."""
        with (
            contextlib.suppress(OSError, StoreError, IndexError),
            (self.runs / run_id / "events.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            return decode(file.read().splitlines(keepends=True)[-1]).kind
        return ""

    def row(self, run_id: str) -> RunRow | None:
        """The row of a run, from its folder; None if it cannot be read."""
        try:
            return row_of(self.run(run_id, keep_points=SUMMARY_POINTS))
        except StoreError:
            return None


def _is_importer_alive(folder: Path) -> bool:
    """Whether the process of an import is alive. It may not have recorded itself yet in the first moments."""
    try:
        pid, started = json.loads((folder / _IMPORTER).read_text(encoding="utf-8"))
        return is_same_process(pid, started)
    except (OSError, ValueError, TypeError):
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime < _STALE_S
        return False
