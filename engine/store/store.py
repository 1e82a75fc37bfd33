"""The run folders and the index over them.

    $ISOFLOP_HOME/
      runs/<id>/config.json, events.jsonl, model.safetensors   the truth: one folder, one run, nothing shared
      inbox/                                                   commands on their way to the supervisor
      reserve                                                  room for last words on a full disk
      index.sqlite                                             derived: one row per run, rebuilt at will

A log line is an event's JSON with the CRC-32 of the rest as its last member. A reader follows by byte offset, leaves a
line that is still being written for the next time, and skips a line whose checksum is wrong and counts it.

A run that cannot be recorded is worth nothing: while its log cannot be written (the disk is full, or read-only) it goes
on for ten seconds, keeping what it has to say, and then ends as failed. The log stays a prefix of what was said.
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
from engine.store.run import SUMMARY_POINTS, Run, _newer_version, _queued, read_config
from engine.system import disk_space
from engine.system.files import private_folder, write_atomically
from engine.system.locks import is_claimed, lock
from engine.system.processes import is_same_process, own_identity

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.([0-9a-f]{16}|import-[0-9a-f]{16}|deleted-[0-9a-f]{16}|reserve|.+\.[0-9a-f]{8})")
_IMPORTER, _PLACED = "importer.json", "placed.json"  # of an import: who makes it, and what it has begun to put in place
_PLACE = re.compile(r"runs/[0-9a-f]{16}|reports/[0-9a-f]{16}\.json")
_ORDER = "order"  # the number of the newest submission
_STALE_S = 60.0

logger = logging.getLogger("isoflop.store")


def default_root() -> Path:
    """`$ISOFLOP_HOME`, or ~/.isoflop."""
    return Path(os.environ.get("ISOFLOP_HOME") or Path.home() / ".isoflop").expanduser().resolve()


# --- the store ----------------------------------------------------------------------------------------------------


class Submission(NamedTuple):
    """A run that is asked for; one `key` makes one run."""

    config: RunConfig
    name: str = ""
    key: str = ""
    heat: SeedBlock | None = None


def _gone() -> StoreGone:
    return StoreGone(
        "The store's folder is gone: it was moved or deleted while it was in use.",
        fix="Put it back, or start again with ISOFLOP_HOME set to a folder you own.",
    )


Answer = TypeVar("Answer")


class Store:
    """The folder all runs live in. Anyone may read; the supervisor alone writes the index."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser().resolve()
        self.runs = self.root / "runs"
        self.inbox = self.root / "inbox"
        self._compared: tuple[Stamp | None, frozenset[str]] = (None, frozenset())
        self._created: dict[str, float] = {}  # of runs the index does not know yet
        try:
            for folder in (self.root, self.runs, self.inbox):
                private_folder(folder)
                os.scandir(folder).close()
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be used: {error.strerror}.", fix="Set ISOFLOP_HOME to a folder you own."
            ) from None

    def trouble(self) -> StoreError | None:
        """What stands in the way of new runs, in words for whoever asks for one; None where nothing does."""
        if not self.runs.is_dir():
            return _gone()
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (self.root, self.runs, self.inbox)):
            return StoreError(
                "The store can be read, but not written: no run can start or be changed.",
                fix="Check the owner and rights of its folder, or set ISOFLOP_HOME to a folder you own.",
            )
        try:
            disk_space.require_room_for_a_run(self.root)
        except StoreError as error:
            return error
        return None

    def create(
        self, config: RunConfig, *, name: str = "", group: str | None = None, heat: SeedBlock | None = None,
        owner: str = "", key: str = "",
    ) -> str:  # fmt: skip
        """A new queued run, on disk as a whole or not at all; returns its id.

        One `key` makes one run: asked again with the same, for a click that came twice, it returns that run.
        Raises ConfigError for a bad name.
        """
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
                    at=time.time(), order=self.next_order(), name=name, group=group, heat=heat, owner=owner,
                    version=__version__,
                )
            )  # fmt: skip
            write_atomically(draft / "events.jsonl", queued.decode())
            draft.rename(self.runs / run_id)
        except OSError as error:
            disk_space.remove(draft)
            if not (self.runs / run_id).exists():  # else the other click was faster
                raise disk_space.unwritable(error) from None
        return run_id

    @staticmethod
    def id_of(key: str) -> str:
        """The id of the run that a key makes; without one, a new id."""
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else secrets.token_hex(8)

    def owner(self, run_id: str) -> str:
        """The id of who asked for a run; empty where its log does not say."""
        for folder in (self.runs / run_id, self.runs / f".deleted-{run_id}") if _RUN_ID.fullmatch(run_id) else ():
            if first := _queued(folder):
                return first.owner
        return ""

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self.label(run_id, {"name": clean_name(name)})

    def label(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Change some of a run's labels; the others stay."""
        path = self.folder(run_id) / LABELS_FILE
        labels = Labels()
        with contextlib.suppress(OSError, ValueError):
            labels = Labels.model_validate_json(path.read_bytes())
        changed = Labels.model_validate(labels.model_dump() | dict(changes))
        write_atomically(path, changed.model_dump_json(exclude_none=True))

    def post(self, command: str) -> None:
        """Leave a command for the supervisor; on a full disk too, for deleting runs is what helps there."""

        def write() -> None:
            write_atomically(self.inbox / f"{self.next_order():020d}-{secrets.token_hex(4)}.json", command)

        try:
            disk_space.with_reserve(self.root, write)
        except StoreError as error:
            raise (_gone() if not self.inbox.is_dir() else error) from None

    def sweep(self) -> list[Path]:
        """Remove what a crash left half-made or half-deleted, for a supervisor that starts; returns what is gone."""
        # A draft may be somebody's, just now; only the one supervisor deletes runs, and that one is starting.
        swept = [
            path for path in self.leftovers() if not path.name.startswith(".import-")
            if path.name.startswith(".deleted-") or time.time() - path.lstat().st_mtime > _STALE_S
        ]  # fmt: skip
        for path in swept:
            disk_space.remove(path)
        return swept + self._sweep_imports()

    # --- several at once: an import is there as a whole, or not at all

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make `runs/<id>` and `reports/<id>.json` in, out of sight; gone at the end of the block."""
        self._sweep_imports()
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
            self._take_back(folder)

    def put_in_place(self, folder: Path) -> None:
        """All that was made in a folder of `staging`. Ended in between, it is undone: here, or by who looks next."""
        made = sorted(
            f"{path.parent.name}/{path.name}" for kind in ("runs", "reports") for path in (folder / kind).iterdir()
        )
        assert all(map(_PLACE.fullmatch, made)), "an import makes nothing else"
        try:
            private_folder(self.root / "reports")
            write_atomically(folder / _PLACED, json.dumps(made))
            for place in made:
                (folder / place).rename(self.root / place)
            (folder / _PLACED).unlink()
        except OSError as error:
            raise disk_space.unwritable(error) from None

    def _take_back(self, folder: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            for place in json.loads((folder / _PLACED).read_text(encoding="utf-8")):
                if _PLACE.fullmatch(place) and not (folder / place).exists():
                    disk_space.remove(self.root / place)
        disk_space.remove(folder)

    def _sweep_imports(self) -> list[Path]:
        """Undo what a process that is gone was about to import."""
        left = [path for path in self.runs.glob(".import-*") if _DRAFT.fullmatch(path.name) and not _is_at_work(path)]
        for path in left:
            self._take_back(path)
        return left

    def leftovers(self) -> list[Path]:
        """Drafts of runs and commands, and runs that were being deleted: at work for an instant, or left by a crash."""
        hidden = [*self.runs.glob(".*"), *self.inbox.glob(".*"), *self.root.glob(".*")]
        return sorted(path for path in hidden if _DRAFT.fullmatch(path.name))

    def next_order(self) -> int:
        """A number larger than every earlier one of this store, whatever the clock does in between.

        Microseconds of the clock where it went forwards, so that a lost file costs nothing: only what is submitted after
        both, a loss and a clock set back, would come too early.
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
        """Where a run lives. Ids are hex of our own making, so no text of a user becomes a path."""
        if not self.runs.is_dir():
            raise _gone()
        if not _RUN_ID.fullmatch(run_id) or not (self.runs / run_id).is_dir():
            raise StoreError(
                f"There is no run {run_id!r} in this store.", fix="`python -m engine list` shows what there is."
            )
        return self.runs / run_id

    def run(self, run_id: str, *, keep_points: int | None = None) -> Run:
        """A run with all its points, or with the newest `keep_points` of each kind: enough for its state and summary,
        however long it was."""
        return Run(self.folder(run_id), keep_points=keep_points)

    def find(self, prefix: str) -> str:
        """The one run whose id starts with `prefix`; `last` is the newest."""
        if prefix == "last":
            rows = self.rows(limit=1)
            if rows:
                return rows[0].run_id
        matches = [i for i in self.ids() if i.startswith(prefix)] if re.fullmatch(r"[0-9a-f]+", prefix) else []
        if len(matches) > 1:
            raise StoreError(f"{prefix!r} fits {len(matches)} runs.", fix="Type more of the id.")
        return matches[0] if matches else self.folder(prefix).name

    def has(self, name: str) -> bool:
        """Whether something in the runs folder is a run, by its name."""
        return _RUN_ID.fullmatch(name) is not None

    def ids(self) -> list[str]:
        try:
            with os.scandir(self.runs) as entries:
                return [entry.name for entry in entries if _RUN_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            raise _gone() from None
        except OSError as error:
            raise StoreError(
                f"The store cannot be read: {error.strerror}.", fix="Check its owner, its rights and its disk."
            ) from None

    def delete(self, run_id: str) -> None:
        """Remove a run's folder: hidden at once, then emptied, so that no half-deleted run is ever listed."""
        self.hide(run_id)
        self.forget(run_id)

    def hide(self, run_id: str) -> None:
        """The first half: the run is no more, but can still be had back."""
        self.folder(run_id).rename(self.runs / f".deleted-{run_id}")

    def forget(self, run_id: str) -> None:
        """The second half; harmless where there is nothing to forget."""
        if _RUN_ID.fullmatch(run_id):
            disk_space.remove(self.runs / f".deleted-{run_id}")

    def restore(self, run_id: str) -> None:
        """Have a hidden run back. Raises StoreError where it is gone for good."""
        hidden = self.runs / f".deleted-{run_id}"
        if not _RUN_ID.fullmatch(run_id) or not hidden.is_dir() or (self.runs / run_id).exists():
            raise StoreError(f"Run {visible(run_id, 20)} cannot be had back: it is gone for good.")
        hidden.rename(self.runs / run_id)

    def rows(
        self,
        *,
        limit: int | None = None,
        order: str = "created",
        status: Sequence[Status] = (),
        group: str | None = None,
    ) -> list[RunRow]:
        """Runs from the index, newest (or largest) first; runs the index does not know yet are read from their folders."""
        check_order(order)
        # Whatever is wrong with the index (there is none, it is damaged, a newer Isoflop wrote it): the folders stand.
        found, unindexed = self._ask_index(
            lambda index: (
                index.rows(limit=limit, order=order, status=status, group=group), frozenset(index.unreadable)
            )
        )  # fmt: skip
        rows, unreadable = found or ([], frozenset())
        rows = [self.row(row.run_id) or row if self._ended_since(row.run_id, row.status) else row for row in rows]
        newest_are_enough = order == "created" and limit is not None and not status and group is None
        read, _ = self._read_unindexed(unindexed | unreadable, limit if newest_are_enough else None)
        fresh = [r for r in read if (not status or r.status in status) and (group is None or r.group == group)]
        if fresh:
            rows = sorted(rows + fresh, key=lambda r: (sort_key(r, order), r.created), reverse=True)
        return rows[:limit]

    def listing(
        self, *, search: str = "", status: Sequence[Status] = (), where: Sequence[Condition] = (), order: str = "created",
        descending: bool = True, pinned_first: bool = False, limit: int = 100, offset: int = 0,
    ) -> Listing:  # fmt: skip
        """A page of the runs that match, in the index's own order; a value that is not known comes last either way.

        Each word of `search` must be found in the name, the experiment in words, the status, the id, the reason of the
        end, tags or notes, in any case of letters. Rows of runs the index does not know yet are read from their folders;
        where they are sorted by what a list does not show, they come last.
        """
        check_order(order)

        def page(index: Index, offset: int, limit: int) -> tuple[list[RunLine], int]:
            return index.lines(
                search, status, order, descending=descending, limit=limit, offset=offset, where=where,
                pinned_first=pinned_first,
            )  # fmt: skip

        found, unindexed = self._ask_index(lambda index: page(index, offset, limit))
        read, unread = self._read_unindexed(unindexed, _MOST_READ_FOR_A_LIST)
        fresh = [line_of(row) for row in matching_lines(read, search, status, where)]
        if fresh and offset and found:  # they may push others over the edge of a page: take all that stand before it
            found, unindexed = self._ask_index(lambda index: page(index, 0, offset + limit))
            fresh = [line for line in fresh if line.run_id in unindexed]
        lines, total = found or ([], 0)
        now = [self._as_it_is(line) for line in lines]
        lines = [line for line in now if matches_search(line, search, status)]
        total -= len(now) - len(lines)
        if fresh:
            lines = in_order(lines + fresh, order, descending, pinned_first)[offset : offset + limit]
        return Listing(lines, total + len(fresh), unread)

    def values(
        self, fields: Sequence[str], *, search: str = "", status: Sequence[Status] = (), where: Sequence[Condition] = (),
        run_ids: Sequence[str] | None = None,
    ) -> dict[str, tuple[Any, ...]]:  # fmt: skip
        """Some fields (engine.query) of the runs that match, or of those with these ids, by id."""

        def ask(index: Index) -> dict[str, tuple[Any, ...]]:
            return index.values(fields, search, status, where, run_ids)

        found, unindexed = self._ask_index(ask)
        read, _ = self._read_unindexed(
            unindexed if run_ids is None else unindexed & set(run_ids), _MOST_READ_FOR_A_LIST
        )
        with index_in_memory(read) as index:
            return (found or {}) | (ask(index) if read else {})

    def groups(self, *, limit: int = 100) -> list[GroupLine]:
        """Races, scaling studies and repeats: runs that were asked for together, the newest first."""
        found, unindexed = self._ask_index(lambda index: index.groups(limit))
        read, _ = self._read_unindexed(unindexed, _MOST_READ_FOR_A_LIST)
        with index_in_memory(read) as index:
            fresh = {line.group: line for line in index.groups(limit)} if read else {}
        older = [fresh.pop(g.group).with_more(g) if g.group in fresh else g for g in found or []]
        return sorted([*older, *fresh.values()], key=lambda g: g.created, reverse=True)[:limit]

    def _ask_index(self, ask: Callable[[Index], Answer]) -> tuple[Answer | None, frozenset[str]]:
        """What the index answers, None when it cannot be read; and the runs it did not know when it answered."""
        stamp = Stamp.of(self.runs, self.root / "index.sqlite", self.root / "index.sqlite-wal")
        try:
            with Index.reading(self.root) as index:
                if stamp is None or stamp != self._compared[0]:
                    self._compared = stamp, frozenset(self.ids()) - index.ids()
                elif self._compared[1]:  # the index may have gone on between the stamp and now
                    return ask(index), self._compared[1] - index.ids()
                return ask(index), self._compared[1]
        except (sqlite3.Error, OSError, StoreError):
            return None, frozenset(self.ids())

    def _read_unindexed(self, run_ids: Collection[str], most: int | None) -> tuple[list[RunRow], int]:
        """Rows of at most `most` runs, the newest, from their folders; and how many were left out."""
        chosen = run_ids
        if most is not None and len(run_ids) > most:
            self._created = {i: self._created.get(i) or self._asked_for_at(i) for i in run_ids}
            chosen = heapq.nlargest(most, run_ids, key=self._created.__getitem__)
        rows = [row for run_id in chosen if (row := self.row(run_id) or self._row_of_newer(run_id))]
        return rows, len(run_ids) - len(chosen)

    def _row_of_newer(self, run_id: str) -> RunRow | None:
        """The row of a run that waits and that only a newer Isoflop can read: `failed`, for nobody here can start it.

        It is shown and never written, not to the log and not to the index: a newer Isoflop runs it.
        """
        folder = self.runs / run_id
        queued = _queued(folder)
        needs = _newer_version(queued)
        if not queued or not needs or is_claimed(folder) or self._last_kind(run_id) != "queued":
            return None
        try:
            read_config(folder)
        except StoreError:
            return RunRow(
                run_id=run_id, name=queued.name, status="failed", created=queued.at, config=RunConfig(), summary=Summary(),
                group=queued.group, owner=queued.owner, why=needs, needs=needs,
            )  # fmt: skip
        return None

    def _asked_for_at(self, run_id: str) -> float:
        """When a run was created, from the first line of its log."""
        first = _queued(self.runs / run_id)
        return first.at if first else 0.0

    def _as_it_is(self, line: RunLine) -> RunLine:
        if self._ended_since(line.run_id, line.status) and (row := self.row(line.run_id)):
            return line_of(row)
        return line

    def _ended_since(self, run_id: str, status: Status) -> bool:
        """Whether a run the index has as alive has said its last word: the folder is the truth, the index may lag."""
        return status not in TERMINAL and self.has_ended(run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether the log ends with a last word; reads the end of the log only."""
        return self._last_kind(run_id) in TERMINAL

    def _last_kind(self, run_id: str) -> str:
        """The kind of the log's last event; empty where it cannot be read."""
        with (
            contextlib.suppress(OSError, StoreError, IndexError),
            (self.runs / run_id / "events.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            return decode(file.read().splitlines(keepends=True)[-1]).kind
        return ""

    def row(self, run_id: str) -> RunRow | None:
        """A run as a list shows it, from its folder; None for one that cannot be read."""
        try:
            return row_of(self.run(run_id, keep_points=SUMMARY_POINTS))
        except StoreError:
            return None


def _is_at_work(folder: Path) -> bool:
    """Whether the process that makes an import goes on; a moment ago it may not have said yet who it is."""
    try:
        pid, started = json.loads((folder / _IMPORTER).read_text(encoding="utf-8"))
        return is_same_process(pid, started)
    except (OSError, ValueError, TypeError):
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime < _STALE_S
        return False


_MOST_READ_FOR_A_LIST = 200
