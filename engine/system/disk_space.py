"""What the disk under a store does to it: it fills up, cannot be written, is taken away, lies on another machine."""

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
RESERVE = "reserve"  # in the store's root: given up on a full disk, so that runs can still say how they ended
_FULL = {errno.ENOSPC, errno.EDQUOT}
# Write-ahead logging needs memory shared by all who open a database, and these are shared by machines:
# https://sqlite.org/wal.html
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "glusterfs", "lustre", "beegfs"}
FIX_FULL = "Delete runs or free space on it, then run it again."

T = TypeVar("T")


def free_bytes(place: Path | int) -> int | None:
    """What an ordinary user may still write there; None where the file system does not say."""
    try:
        said = os.statvfs(place)
    except OSError:
        return None
    return said.f_bavail * said.f_frsize if said.f_blocks else None


def is_short(place: Path | int) -> bool:
    """Whether there is too little room to go on recording."""
    free = free_bytes(place)
    return free is not None and free < RECORDING_NEEDS_BYTES


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def shortage(place: Path | int) -> StoreFull:
    """The error of a run that cannot be recorded any more."""
    free = free_bytes(place)
    left = "The store's disk is full" + ("." if free is None else f": {units.nbytes(free)} free.")
    return StoreFull(f"{left} Recording stops below {units.nbytes(RECORDING_NEEDS_BYTES)}.", fix=FIX_FULL)


def unwritable(error: OSError, what: str = "The store") -> StoreError:
    """`error` in words, without a path: the page shows it, too."""
    if is_full(error):
        return StoreFull(f"{what} cannot be written: its disk is full.", fix="Delete runs or free space on it.")
    reason = error.strerror or type(error).__name__
    return StoreError(f"{what} cannot be written: {reason}.", fix="Check its owner, its rights and its disk.")


def require_room_for_a_run(root: Path) -> None:
    """Raise StoreFull where a run could not be recorded to its end."""
    free = free_bytes(root)
    if free is not None and free < NEW_RUNS_NEED_BYTES:
        raise StoreFull(
            f"The store's disk has {units.nbytes(free)} free; a new run needs {units.nbytes(NEW_RUNS_NEED_BYTES)}.",
            fix="Delete runs or free space on it.",
        )


def keep_reserve(root: Path) -> None:
    """Lay the reserve by, or again, where there is room for it. Noise, as some file systems store zeros in no space."""
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
    """True when there was one: what failed for want of room may work now."""
    try:
        (root / RESERVE).unlink()
    except OSError:
        return False
    return True


def with_reserve(root: Path, write: Callable[[], T]) -> T:
    """`write()`, on a full disk once more without the reserve. Raises StoreError where it cannot be done."""
    try:
        return write()
    except OSError as error:
        if not is_full(error) or not release_reserve(root):
            raise unwritable(error) from None
    try:
        return write()
    except OSError as error:
        raise unwritable(error) from None


def same_file(path: Path, fd: int) -> bool:
    """Whether what is open is still what lies at the path: writing to a deleted file succeeds, and is lost."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116 - a plain call, made at every flush
    except OSError:
        return False


def remove(path: Path) -> None:
    """Whatever it is, file or folder; harmless where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def network_file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The type of a file system shared by machines that `path` lies on; None for a local one, or where it is not said."""
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
        if len(mounted.parts) >= deepest and path.is_relative_to(mounted):  # of two at one place the later one counts
            found, deepest = fields[2], len(mounted.parts)
    return found if found in _NETWORK else None
