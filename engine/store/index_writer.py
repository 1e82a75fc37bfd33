"""Keeps the index up to date: the supervisor is its only writer."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from typing import Any

from engine.common.errors import StoreError
from engine.events.base import Status
from engine.store.index import Index, is_damage, put_aside
from engine.store.listing import RunRow
from engine.store.store import Store, logger

_CATCH_UP_S = 0.2


class KeptIndex:
    """The supervisor's index. It is derived, so nothing that happens to it stops a run: what cannot be written waits
    for `catch_up`, a damaged or deleted one is made anew, beside one of a newer Isoflop it is kept in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._behind: set[str] = set()  # runs whose rows are not what their folders say
        self._is_newer = False
        self._said = ""
        self._index = self._open()

    def _open(self) -> Index:
        try:
            return Index(self._store.root)
        except (StoreError, sqlite3.Error, OSError) as error:
            self._say(f"the index is not used, runs are listed from their folders: {error}")
            self._is_newer = isinstance(error, StoreError)
            return Index(None)

    @property
    def is_on_disk(self) -> bool:
        return self._index.path is not None

    @property
    def _db(self) -> sqlite3.Connection:
        return self._index._db

    def close(self) -> None:
        self._index.close()

    def ids(self, status: Sequence[Status] = ()) -> set[str]:
        try:
            return self._index.ids(status)
        except sqlite3.Error as error:
            self._suffer(error)
            return set()

    def rows(self, **query: Any) -> list[RunRow]:
        try:
            return self._index.rows(**query)
        except sqlite3.Error as error:
            self._suffer(error)
            return []

    def put(self, row: RunRow) -> None:
        self._write(row.run_id, lambda index: index.put(row))

    def remove(self, run_id: str) -> None:
        self._write(run_id, lambda index: index.remove(run_id))

    def rebuild(self) -> None:
        """Make it anew from the run folders, whatever is there."""
        self._begin_anew()
        self._follow()

    def _begin_anew(self) -> None:
        self._index.close()
        self._behind |= set(self._store.ids())
        try:
            self._index = Index.anew(self._store.root)
        except (sqlite3.Error, OSError) as error:
            self._say(f"the index could not be made anew: {error}")
            self._index = Index(None)

    def catch_up(self) -> None:
        """To be called now and then: write what could not be written, where one can again."""
        if not self._index.is_in_place():
            logger.warning("the index is not where it was: it is made anew")
            self._begin_anew()
        elif self._index.path is None and not self._is_newer:
            again = self._open()
            if again.path:
                self._index = again
                self._behind |= set(self._store.ids())
        self._follow(_CATCH_UP_S)

    def _follow(self, patience_s: float = math.inf) -> None:
        until = time.monotonic() + patience_s
        for run_id in sorted(self._behind):
            if time.monotonic() > until:  # the rest at the next call: a click in between should not wait for it
                return
            row = self._store.row(run_id)
            self.put(row) if row else self.remove(run_id)
            if run_id in self._behind:  # still no room: later
                return

    def _write(self, run_id: str, change: Callable[[Index], None]) -> None:
        self._behind.add(run_id)
        try:
            change(self._index)
        except sqlite3.Error as error:
            self._suffer(error)
        else:
            self._behind.discard(run_id)

    def _suffer(self, error: sqlite3.Error) -> None:
        if self._index.path and is_damage(error, self._index.path):
            logger.warning("the index is damaged (%s): it is made anew", error)
            self._index.close()
            put_aside(self._index.path, "damaged")
            self._index = self._open()
            self._behind |= set(self._store.ids())
        else:
            self._say(f"the index could not be written: {error}")

    def _say(self, what: str) -> None:
        """Once, not at every attempt."""
        if what != self._said:
            logger.warning("%s", what)
        self._said = what
