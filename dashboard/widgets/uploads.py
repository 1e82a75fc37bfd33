"""Uploaded files, named by the hash of their content, so that the same file is the same experiment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from engine.common import units
from engine.common.errors import ConfigError
from engine.config.data import DATA, DatasetName
from engine.data import downloads
from engine.system import disk_space


def keep(data: DatasetName, content: bytes) -> Path:
    """Write an upload into the data cache folder, readable by its owner only. The user's file name is not used.

    Raises:
        ConfigError: if the file cannot be written or the disk has too little space.
    """
    folder = downloads.cache_folder() / "uploads"
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.{_suffix(data, content)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():  # an unchanged file is not inspected again
            _write(path, content)
    except OSError as error:
        raise ConfigError(
            f"The upload could not be stored in {folder}: {error.strerror or error}.",
            fix="Set ISOFLOP_DATA to a folder you own.",
        ) from None
    return path


def _suffix(data: DatasetName, content: bytes) -> str:
    """The suffix of the file; the content decides where a data set has two formats."""
    return "npy" if content.startswith(b"\x93NUMPY") else DATA[data].suffixes[0]


def _write(path: Path, content: bytes) -> None:
    """Write all of the content or nothing.

    Raises:
        ConfigError: if the disk has too little space.
    """
    free = disk_space.free_bytes(path.parent)
    if free is not None and free - len(content) < disk_space.NEW_RUNS_NEED_BYTES:
        raise ConfigError(
            f"The upload of {units.nbytes(len(content))} does not fit: the disk has {units.nbytes(free)} free, and runs "
            f"need {units.nbytes(disk_space.NEW_RUNS_NEED_BYTES)}.",
            fix="Free disk space, or upload less data.",
        )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
