"""Facts of a user's file, found in a separate process (`__main__.py`) and cached until the file changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from engine.common.errors import ConfigError
from engine.config.data import DATA, DatasetName, Source
from engine.data.datasets import Dataset, Preview
from engine.data.downloads import cache_folder, keep
from engine.data.user_files.files import existing, naming_file
from engine.system import sandbox

INSPECT_MEMORY_BYTES = 4 << 30
INSPECT_S = 60


class Inspected(NamedTuple):
    """What the process finds in a file."""

    facts: Dataset
    preview: Preview


_INSPECTED = TypeAdapter(Inspected)
_FORMAT = 3  # increase it when a reader returns other facts for the same file


def inspect(data: DatasetName, source: Source) -> Dataset:
    """The facts of the data set that `read` would return.

    Each version of the file is parsed once, in a process with limits of 4 GiB and 60 s. The facts are cached in memory
    and in the cache folder. Raises ConfigError as `read` does, and if the process exceeds its limits.
    """
    return _inspect(data, source).facts


def preview(data: DatasetName, source: Source) -> Preview:
    """The preview of the data set, found and cached with its facts. Raises ConfigError as `inspect` does."""
    return _inspect(data, source).preview


def columns(source: Source) -> tuple[str, ...]:
    """The column names of a table, read in a process of the same kind; the label need not be one of them.

    Raises ConfigError if the header cannot be read.
    """
    path = existing("csv", source)
    return naming_file(source, lambda: _columns(str(path), *_size_and_ctime(path)))


@lru_cache(maxsize=64)  # by the version of the file
def _columns(path: str, size: int, ctime_ns: int) -> tuple[str, ...]:
    found = sandbox.ask(
        "engine.data.user_files", {"columns_of": path}, seconds=INSPECT_S, memory_bytes=INSPECT_MEMORY_BYTES
    )
    return tuple(map(str, found))


def _inspect(data: DatasetName, source: Source) -> Inspected:
    path = existing(data, source)
    return naming_file(source, lambda: _cached(_Version.of(data, source, path)))


def _cached(version: _Version) -> Inspected:
    found = _inspected(version)
    if isinstance(found, ConfigError):
        raise ConfigError(
            found.message, fix=found.fix
        )  # a copy, because the cached one would keep the frames of its traceback
    return found


class _Version(NamedTuple):
    """The key of the cache: a file at one moment, and the options with which it is read."""

    data: DatasetName
    path: str
    size: int  # bytes of a file; number of files in a folder
    ctime_ns: int  # newest ctime of a folder. Not the mtime, which `cp -p` copies and chmod does not change
    label: str
    seq_len: int

    @classmethod
    def of(cls, data: DatasetName, source: Source, path: Path) -> _Version:
        label = source.label if "label" in DATA[data].fields else ""
        seq_len = source.seq_len if "seq_len" in DATA[data].fields else 0
        return cls(data, str(path), *_size_and_ctime(path), label, seq_len)

    @property
    def cache_path(self) -> Path:
        digest = hashlib.sha256(repr((_FORMAT, *self)).encode()).hexdigest()
        return cache_folder() / "inspected" / f"{digest[:32]}.json"


_DEPTH = 2  # of the folders below a folder of images: train/class/


def _size_and_ctime(path: Path, depth: int = _DEPTH) -> tuple[int, int]:
    status = path.stat()
    if not path.is_dir():
        return status.st_size, status.st_ctime_ns
    newest, count = status.st_ctime_ns, 0
    for entry in os.scandir(path):
        if entry.is_dir() and depth:
            files, time = _size_and_ctime(Path(entry.path), depth - 1)
        else:
            files, time = 1, entry.stat(follow_symlinks=False).st_ctime_ns
        newest, count = max(newest, time), count + files
    return count, newest


@lru_cache(maxsize=256)
def _inspected(version: _Version) -> Inspected | ConfigError:
    """The facts and the preview, or the error, of a file. Both are cached, but not NoAnswer: another attempt can succeed.

    Raises:
        NoAnswer: The process crashed or ran out of time.
    """
    with contextlib.suppress(OSError, ValidationError):
        return _INSPECTED.validate_json(version.cache_path.read_bytes())
    try:
        answer = sandbox.ask(
            "engine.data.user_files", version._asdict(), seconds=INSPECT_S, memory_bytes=INSPECT_MEMORY_BYTES
        )
    except sandbox.NoAnswer:
        raise
    except ConfigError as error:
        return error
    found = _INSPECTED.validate_python(answer)
    with contextlib.suppress(OSError):  # without a cache it is parsed again
        keep(version.cache_path, _INSPECTED.dump_json(found))
    return found
