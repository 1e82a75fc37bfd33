"""Keeps the index up to date. The supervisor is its only writer."""

from __future__ import annotations

import logging
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.common.errors import StoreError
from engine.events.base import Status
from engine.store.index import Index, is_damage, move_aside
from engine.store.listing import RunRow
from engine.store.store import Store

_CATCH_UP_S = 0.2

logger = logging.getLogger("isoflop.store")


class KeptIndex:
    """The supervisor's index. It is derived data, so none of its errors stops a run.

    Rows that cannot be written wait for `catch_up`. A damaged or deleted index is rebuilt. If the file is one of a newer
    Isoflop, the index is kept in memory instead.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._stale: set[str] = set()  # runs whose rows are older than their folders
        self._is_newer = False
        self._last_warning = ""
        self._index = self._open()

    def _open(self) -> Index:
        try:
            return Index(self._store.root)
        except (StoreError, sqlite3.Error, OSError) as error:
            self._warn_once(f"the index cannot be used, so runs are listed from their folders: {error}")
            self._is_newer = isinstance(error, StoreError)
            return Index(None)

    @property
    def is_on_disk(self) -> bool:
        """Whether the index is a file, not a substitute in memory."""
        return self._index.path is not None

    @property
    def _db(self) -> sqlite3.Connection:
        return self._index._db

    def close(self) -> None:
        """Close the connection."""
        self._index.close()

    def ids(self, status: Sequence[Status] = ()) -> set[str]:
        """The ids of the indexed runs; empty if the index cannot be read."""
        try:
            return self._index.ids(status)
        except sqlite3.Error as error:
            self._handle_error(error)
            return set()

    def rows(self, **query: Any) -> list[RunRow]:
        """`Index.rows`; empty if the index cannot be read."""
        try:
            return self._index.rows(**query)
        except sqlite3.Error as error:
            self._handle_error(error)
            return []

    def put(self, row: RunRow) -> None:
        """Write the row of a run, now or in a later `catch_up`."""
        self._write(row.run_id, lambda index: index.put(row))

    def remove(self, run_id: str) -> None:
        """Delete the row of a run, now or in a later `catch_up`."""
        self._write(run_id, lambda index: index.remove(run_id))

    def rebuild(self) -> None:
        """Rebuild the index from the run folders."""
        self._recreate()
        self._write_stale()

    def _recreate(self) -> None:
        self._index.close()
        self._stale |= set(self._store.ids())
        try:
            self._index = Index.recreate(self._store.root)
        except (sqlite3.Error, OSError) as error:
            self._warn_once(f"the index could not be rebuilt: {error}")
            self._index = Index(None)

    def catch_up(self) -> None:
        """Retry the rows that could not be written. Call this every few seconds."""
        if not self._index.is_in_place():
            logger.warning("the index was moved or deleted: it is rebuilt")
            self._recreate()
        elif self._index.path is None and not self._is_newer:
            reopened = self._open()
            if reopened.path:
                self._index = reopened
                self._stale |= set(self._store.ids())
        self._write_stale(_CATCH_UP_S)

    def _write_stale(self, patience_s: float = math.inf) -> None:
        until = time.monotonic() + patience_s
        for run_id in sorted(self._stale):
            if time.monotonic() > until:  # the rest at the next call, so that a user's command does not wait for it
                return
            row = self._store.row(run_id)
            self.put(row) if row else self.remove(run_id)
            if run_id in self._stale:  # still no room
                return

    def _write(self, run_id: str, change: Callable[[Index], None]) -> None:
        self._stale.add(run_id)
        try:
            change(self._index)
        except sqlite3.Error as error:
            self._handle_error(error)
        else:
            self._stale.discard(run_id)

    def _handle_error(self, error: sqlite3.Error) -> None:
        if self._index.path and is_damage(error, self._index.path):
            logger.warning("the index is damaged (%s): it is rebuilt", error)
            self._index.close()
            move_aside(self._index.path, "damaged")
            self._index = self._open()
            self._stale |= set(self._store.ids())
        else:
            self._warn_once(f"the index could not be written: {error}")

    def _warn_once(self, message: str) -> None:
        """Log a warning once, not at every attempt."""
        if message != self._last_warning:
            logger.warning("%s", message)
        self._last_warning = message
