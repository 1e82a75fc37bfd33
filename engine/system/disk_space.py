"""The disk of a store: free space, a reserve for final events, write errors, network file systems."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.common import units
from engine.common.errors import StoreError, StoreFull

NEW_RUNS_NEED_BYTES = 500 * 2**20
RECORDING_NEEDS_BYTES = 64 * 2**20
RESERVE_BYTES = 2**20
# A file in the store's root. It is deleted when the disk is full, so that runs can still write their final events.
RESERVE = "reserve"
_FULL = {errno.ENOSPC, errno.EDQUOT}
# Network file systems. SQLite's write-ahead log needs memory that all its processes share, so one machine:
# https://sqlite.org/wal.html
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs", "lustre", "beegfs"}
FIX_FULL = "Delete runs or free space on it, then run it again."

T = TypeVar("T")


def free_bytes(place: Path | int) -> int | None:
    """Bytes that a user without root rights can still write there; None if the file system does not report them."""
    try:
        stats = os.statvfs(place)
    except OSError:
        return None
    return stats.f_bavail * stats.f_frsize if stats.f_blocks else None


def is_short(place: Path | int) -> bool:
    """Whether there is too little space to continue recording."""
    free = free_bytes(place)
    return free is not None and free < RECORDING_NEEDS_BYTES


def is_full(error: OSError) -> bool:
    """Whether an error means that the disk, or the user's quota on it, is full."""
    return error.errno in _FULL


def shortage(place: Path | int) -> StoreFull:
    """The error of a run that can no longer be recorded."""
    free = free_bytes(place)
    left = "The store's disk is full" + ("." if free is None else f": {units.nbytes(free)} free.")
    return StoreFull(f"{left} Recording stops below {units.nbytes(RECORDING_NEEDS_BYTES)}.", fix=FIX_FULL)


def unwritable(error: OSError, what: str = "The store") -> StoreError:
    """The StoreError for a failed write. It names no path, because pages show it to users who may not see paths."""
    if is_full(error):
        return StoreFull(f"{what} cannot be written: its disk is full.", fix="Delete runs or free space on it.")
    reason = error.strerror or type(error).__name__
    return StoreError(f"{what} cannot be written: {reason}.", fix="Check its owner, its permissions and its disk.")


def require_room_for_a_run(root: Path) -> None:
    """Check that a new run can be recorded completely.

    Raises:
        StoreFull: The disk has less free space than a new run needs.
    """
    free = free_bytes(root)
    if free is not None and free < NEW_RUNS_NEED_BYTES:
        raise StoreFull(
            f"The store's disk has {units.nbytes(free)} free; a new run needs {units.nbytes(NEW_RUNS_NEED_BYTES)}.",
            fix="Delete runs or free space on it.",
        )


def keep_reserve(root: Path) -> None:
    """Create the reserve if it is missing and there is space. It has random bytes, because zeros can take no space."""
    path = root / RESERVE
    free = free_bytes(root)
    if path.exists() or (free is not None and free < RECORDING_NEEDS_BYTES + RESERVE_BYTES):
        return
    with contextlib.suppress(OSError):
        draft = path.with_name(f".{RESERVE}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(os.urandom(RESERVE_BYTES))
        draft.replace(path)


def release_reserve(root: Path) -> bool:
    """Delete the reserve; True if there was one, so a write that failed on a full disk can be retried."""
    try:
        (root / RESERVE).unlink()
    except OSError:
        return False
    return True


def with_reserve(root: Path, write: Callable[[], T]) -> T:
    """Call `write`; if the disk is full, delete the reserve and call it once more.

    Raises:
        StoreError: The write failed for another reason, or failed again.
    """
    try:
        return write()
    except OSError as error:
        failure = unwritable(error)
        if not is_full(error) or not release_reserve(root):
            raise failure from None
    try:
        return write()
    except OSError as error:
        failure = unwritable(error)
    raise failure


def same_file(path: Path, fd: int) -> bool:
    """Whether `fd` is still the file at `path`. Writes to a file that was deleted succeed, and are lost."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116 - a plain call, made at every flush
    except OSError:
        return False


def remove(path: Path) -> None:
    """Remove a file or folder as far as possible; nothing happens if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The type of the network file system that holds `path`, such as "nfs"; None if it is local or unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found, deepest = None, -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mounted = Path(fields[1].replace("\\040", " ").replace("\\134", "\\"))
        if len(mounted.parts) >= deepest and path.is_relative_to(
            mounted
        ):  # of two mounts at one place the later one counts
            found, deepest = fields[2], len(mounted.parts)
    return found if found in _NETWORK else None
