"""File locks that say which processes need a store, and which process runs a run.

The operating system releases a lock when its process ends. Unlike pid files or time stamps, a lock can therefore not be
left behind by a killed process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from engine.system.disk_space import same_file

_NEEDED = "needed.lock"
_ANNOUNCE_S = 1.0  # more than enough: the supervisor holds the lock for microseconds when it looks

_announced: dict[Path, int] = {}  # store -> descriptor that holds its lock
_announcing = threading.Lock()


def lock(fd: int, kind: int = fcntl.LOCK_EX, *, patience_s: float = 0.0) -> bool:
    """Lock an open file; False if another process still holds the lock after `patience_s` seconds."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(0.05)


# --- processes that need a store ------------------------------------------------------------------------------------


def announce(root: Path) -> None:
    """Hold the shared lock that keeps the store's supervisor and runs alive while this process needs them."""
    with _announcing:
        held = _announced.get(root)
        if held is not None and same_file(root / _NEEDED, held):
            return  # otherwise the store was deleted and created again, with another lock file
        withdraw(root)
        fd = os.open(root / _NEEDED, os.O_RDWR | os.O_CREAT, 0o600)
        if lock(fd, fcntl.LOCK_SH, patience_s=_ANNOUNCE_S):
            _announced[root] = fd
        else:  # the supervisor holds it just now; the next call tries again
            os.close(fd)


def withdraw(root: Path) -> None:
    """Release the lock of `announce`."""
    fd = _announced.pop(root, None)
    if fd is not None:
        os.close(fd)


def is_needed(root: Path) -> bool:
    """Whether a process holds the lock of `announce`."""
    fd = os.open(root / _NEEDED, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return not lock(fd)
    finally:
        os.close(fd)


# --- the process of a run ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def claim(folder: Path, *, patience_s: float = 0.0) -> Iterator[bool]:
    """Context manager: True if this process holds the run's lock and can write its log; False if another one holds it.

    Raises OSError if the run's folder does not exist.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield lock(fd, patience_s=patience_s)
    finally:
        os.close(fd)


def is_claimed(folder: Path) -> bool:
    """Whether a process holds the lock of a run, that is, writes its log."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
