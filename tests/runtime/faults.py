"""Helpers for tests of faults: small and full disks, logs and the index."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.events.training import Steps
from engine.store.index import Index
from engine.system import disk_space

MIB = 2**20


def delete(root: Path) -> None:
    """Delete a store, also while its supervisor removes files at the same time."""
    while root.exists():
        shutil.rmtree(root, ignore_errors=True)


def log_of(run):
    return run.folder / "events.jsonl"


def steps_of(count, first=1):
    """An event of some steps, as a task yields it."""
    return Steps(
        first=first,
        loss=np.ones(count),
        samples=np.full(count, 4),
        lr=0.1,
        train_s=(first, first + 1),
        elapsed_s=(first, first + 1),
    )


@contextlib.contextmanager
def mounted(folder: Path, size: str):
    """A small file system; skips the test if we cannot mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill a disk except for `leave` bytes, while other processes write there, too."""
    path = folder / "filler"
    with path.open("ab") as file:
        while (room := disk_space.free_bytes(folder) - leave) > 0:
            piece = room - 8 * MIB if room > 16 * MIB else min(room, 4_096)  # the free space can shrink meanwhile
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), path.stat().st_size, piece)
    return path


def indexed(store):
    with contextlib.suppress(sqlite3.Error, FileNotFoundError), Index.reading(store.root) as index:
        return index.rows()
    return []
