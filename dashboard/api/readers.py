"""One shared reader per run that a browser looks at."""

from __future__ import annotations

import functools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from engine.common.errors import StoreError
from engine.store.run import Run
from engine.store.store import Store, default_root

_REFRESH_S = 0.1
_IDLE_S = 120.0
_MOST_READERS = 12
_IN_USE_S = 5.0
_MOST_IN_USE = 160  # two comparisons of the largest size


class _Reader:
    """The run that is read, and when it was read and used last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.run: Run | None = None
        self.refreshed = -math.inf
        self.used = -math.inf


class Readers:
    """One incremental reader per run for all browsers. Idle readers and readers of deleted runs are dropped."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, _Reader] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._readers)

    def run(self, run_id: str) -> Run:
        """The run as it was at most 0.1 s ago.

        Raises:
            StoreError: if the run does not exist or cannot be read.
        """
        reader = self._reader(run_id)
        try:
            folder = self._store.folder(run_id)
            with reader.lock:  # two browsers that open a long run at once read it once
                if reader.run is None:
                    reader.run, reader.refreshed = Run(folder), self._clock()
                elif not reader.run.is_over and self._clock() - reader.refreshed >= _REFRESH_S:
                    reader.run.refresh()
                    reader.refreshed = self._clock()
                return reader.run
        except StoreError:
            with self._lock:
                self._readers.pop(run_id, None)
            raise

    def _reader(self, run_id: str) -> _Reader:
        with self._lock:
            now = self._clock()
            reader = self._readers.setdefault(run_id, _Reader())
            reader.used = now
            self._readers.move_to_end(run_id)
            while self._may_drop(next(iter(self._readers.values())), now):
                self._readers.popitem(last=False)
            return reader

    def _may_drop(self, oldest: _Reader, now: float) -> bool:
        """Whether the oldest reader may be dropped. Those of an open page stay, because a new one reads the whole log."""
        held, idle_s = len(self._readers), now - oldest.used
        return idle_s > _IDLE_S or held > _MOST_IN_USE or (held > _MOST_READERS and idle_s > _IN_USE_S)


def shared_run(run_id: str) -> Run:
    """The run from the shared readers of this store. Raises StoreError if it does not exist."""
    return _readers(default_root()).run(run_id)


@functools.cache
def _readers(root: Path) -> Readers:
    return Readers(Store(root))
