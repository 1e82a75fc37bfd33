"""Who needs a store, and who runs a run: locks of the operating system, which die with the process that holds them.

No pid, no time stamp and no file that someone must delete: whatever is killed, nothing stale is left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_NEEDED = "needed.lock"
_ANNOUNCE_S = 1.0  # the supervisor looks at the lock for microseconds at a time

_announced: dict[Path, int] = {}  # store -> descriptor that holds its lock
_announcing = threading.Lock()


def lock(fd: int, kind: int = fcntl.LOCK_EX, *, patience_s: float = 0.0) -> bool:
    """Lock an open file; False when another still has it after `patience_s`."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
        time.sleep(0.05)


# --- who needs a store ---------------------------------------------------------------------------------------------


def announce(root: Path) -> None:
    """Show that this process needs the store's supervisor, and its runs to go on, for as long as it lives."""
    with _announcing:
        held = _announced.get(root)
        if held is not None and _is_still_there(held, root / _NEEDED):
            return
        withdraw(root)
        fd = os.open(root / _NEEDED, os.O_RDWR | os.O_CREAT, 0o600)
        if lock(fd, fcntl.LOCK_SH, patience_s=_ANNOUNCE_S):
            _announced[root] = fd
        else:  # the next time
            os.close(fd)


def withdraw(root: Path) -> None:
    """This process needs the store no more."""
    fd = _announced.pop(root, None)
    if fd is not None:
        os.close(fd)


def is_needed(root: Path) -> bool:
    """Whether a process that announced itself lives."""
    fd = os.open(root / _NEEDED, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return not lock(fd)
    finally:
        os.close(fd)


def _is_still_there(fd: int, path: Path) -> bool:
    """A store that was removed and made again has another file: nobody looks at ours any more."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False


# --- who runs a run ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claim(folder: Path, *, patience_s: float = 0.0) -> Iterator[bool]:
    """Be the one process that writes a run's log; False when another is. Raises OSError when the folder is gone."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield lock(fd, patience_s=patience_s)
    finally:
        os.close(fd)


def is_claimed(folder: Path) -> bool:
    """Whether a process is at work on a run."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
