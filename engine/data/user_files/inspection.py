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
from engine.data.datasets import Dataset
from engine.data.downloads import cache_folder, keep
from engine.data.user_files.files import existing, naming_file
from engine.system import sandbox

INSPECT_MEMORY_BYTES = 4 << 30
INSPECT_S = 60

_DATASET = TypeAdapter(Dataset)
_FORMAT = 2  # increase it when a reader returns other facts for the same file


def inspect(data: DatasetName, source: Source) -> Dataset:
    """The facts of the data set that `read` would return.

    Each version of the file is parsed once, in a process with limits of 4 GiB and 60 s. The facts are cached in memory
    and in the cache folder. Raises ConfigError as `read` does, and if the process exceeds its limits.
    """
    path = existing(data, source)
    return naming_file(source, lambda: _cached_facts(_Version.of(data, source, path)))


def _cached_facts(version: _Version) -> Dataset:
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


def _size_and_ctime(path: Path) -> tuple[int, int]:
    if not path.is_dir():
        status = path.stat()
        return status.st_size, status.st_ctime_ns
    newest, count = path.stat().st_ctime_ns, 0
    for folder in (entry for entry in os.scandir(path) if entry.is_dir()):
        times = [entry.stat(follow_symlinks=False).st_ctime_ns for entry in os.scandir(folder.path)]
        newest, count = max(newest, folder.stat().st_ctime_ns, *times), count + len(times)
    return count, newest


@lru_cache(maxsize=256)
def _inspected(version: _Version) -> Dataset | ConfigError:
    """The facts or the error of a file. Both are cached, but not NoAnswer: another attempt can succeed.

    Raises:
        NoAnswer: The process crashed or ran out of time.
    """
    with contextlib.suppress(OSError, ValidationError):
        return _DATASET.validate_json(version.cache_path.read_bytes())
    try:
        answer = sandbox.ask(
            "engine.data.user_files", version._asdict(), seconds=INSPECT_S, memory_bytes=INSPECT_MEMORY_BYTES
        )
    except sandbox.NoAnswer:
        raise
    except ConfigError as error:
        return error
    facts = _DATASET.validate_python(answer)
    with contextlib.suppress(OSError):  # without a cache it is parsed again
        keep(version.cache_path, _DATASET.dump_json(facts))
    return facts
