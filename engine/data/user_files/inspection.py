"""What is in a file, found in a process of its own (`__main__.py`) and remembered until the file changes."""

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
from engine.data.user_files.files import about, existing
from engine.system import sandbox

INSPECT_MEMORY_BYTES = 4 << 30
INSPECT_S = 60

_DATASET = TypeAdapter(Dataset)
_FORMAT = 2  # raise it when a reader finds something else in the same file


def inspect(data: DatasetName, source: Source) -> Dataset:
    """What `read` would find, without its examples.

    Parsed once per version of the file, in a process that may use 4 GiB and 60 s; remembered in memory and in the cache
    folder. Raises ConfigError as `read` does, and when the process runs into its limits.
    """
    path = existing(data, source)
    return about(source, lambda: _known(_Version.of(data, source, path)))


def _known(version: _Version) -> Dataset:
    found = _inspected(version)
    if isinstance(found, ConfigError):
        raise ConfigError(found.message, fix=found.fix)  # a new one: raised, the remembered one would keep its frames
    return found


class _Version(NamedTuple):
    """A file at one moment and how it is looked at: what is remembered goes by it."""

    data: DatasetName
    path: str
    size: int  # of a folder: number of files
    ctime_ns: int  # of a folder: the newest. Not the mtime: `cp -p` brings an old one along, chmod leaves it
    label: str
    seq_len: int

    @classmethod
    def of(cls, data: DatasetName, source: Source, path: Path) -> _Version:
        label = source.label if "label" in DATA[data].fields else ""
        seq_len = source.seq_len if "seq_len" in DATA[data].fields else 0
        return cls(data, str(path), *_size_and_ctime(path), label, seq_len)

    @property
    def remembered_at(self) -> Path:
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
    """A file that is wrong stays so until it changes: its error is remembered too, running out of time is not."""
    with contextlib.suppress(OSError, ValidationError):
        return _DATASET.validate_json(version.remembered_at.read_bytes())
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
        keep(version.remembered_at, _DATASET.dump_json(facts))
    return facts
