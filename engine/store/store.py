"""The store: its run folders, and lists of runs from the index over them."""

from __future__ import annotations

import heapq
import os
import re
import sqlite3
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from engine.common.errors import StoreError
from engine.config.run import RunConfig
from engine.events.base import TERMINAL, Status
from engine.events.lifecycle import SeedBlock
from engine.events.summary import Summary
from engine.store.index import Index, Stamp, check_order, index_in_memory, matching_lines
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
from engine.store.run import SUMMARY_POINTS, needed_version, queued_event, read_config
from engine.store.run_folders import RunFolders
from engine.system.locks import is_claimed

_MAX_UNINDEXED_READ = 200  # runs that a list reads from their folders


def default_root() -> Path:
    """`$ISOFLOP_HOME`, or ~/.isoflop."""
    return Path(os.environ.get("ISOFLOP_HOME") or Path.home() / ".isoflop").expanduser().resolve()


class Submission(NamedTuple):
    """A run to submit. The same `key` always makes the same run; an empty one makes a new run."""

    config: RunConfig
    name: str = ""
    key: str = ""
    heat: SeedBlock | None = None


Result = TypeVar("Result")


class Store(RunFolders):
    """The folder of all runs. Every process can read it; only the supervisor writes the index.

    Raises:
        StoreError: the folder cannot be created or used.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__((root or default_root()).expanduser().resolve())
        self._unindexed_as_of: tuple[Stamp | None, frozenset[str]] = (None, frozenset())
        self._created: dict[str, float] = {}  # creation times of runs that are not indexed yet

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
        """Races, scaling studies, load tests and repeated runs: groups of runs that were submitted together, newest first."""
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

    def row(self, run_id: str) -> RunRow | None:
        """The row of a run, from its folder; None if it cannot be read."""
        try:
            return row_of(self.run(run_id, keep_points=SUMMARY_POINTS))
        except StoreError:
            return None
