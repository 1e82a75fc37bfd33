"""Checks that a file exists, is readable and not too large; error messages that name the file."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from engine.common.errors import ConfigError
from engine.config.data import DATA, DatasetName, Source

MAX_CSV_BYTES = 1 << 30
MAX_ARRAY_BYTES = 2 << 30  # size in memory, because a small zip can unpack to any size
MAX_TEXT_BYTES = 100_000_000

_Result = TypeVar("_Result")


def naming_file(source: Source, work: Callable[[], _Result]) -> _Result:
    """The result of `work`.

    Raises:
        ConfigError: `work` raised a ConfigError or an OSError. The message names the file.
    """
    try:
        return work()
    except ConfigError as error:
        failure = error
    except OSError as error:
        failure = system_error(error, Path(source.path))
    shown = source.path if len(source.path) <= 100 else f"…{source.path[-99:]}"
    raise ConfigError(f"source.path={shown}: {failure.message}", fix=failure.fix)


def system_error(error: OSError, path: Path) -> ConfigError:
    """The ConfigError for an OSError of the file, or of a file inside the folder."""
    name = Path(os.fsdecode(error.filename or path)).name
    inside = "" if name in path.parts else f"its {quoted(name)} "
    if isinstance(error, PermissionError):
        return ConfigError(f"{inside}is not readable for this user.", fix="Change its permissions.")
    return ConfigError(f"{inside}cannot be read: {error.strerror or error}.")


def existing(data: DatasetName, source: Source) -> Path:
    """The path of the file or folder, after checks of its kind, size and permissions.

    Raises:
        ConfigError: It does not exist or cannot be used.
    """
    if not source.path.strip():
        what = "a folder of images" if DATA[data].is_folder else "a file"
        raise ConfigError(f"source.path is empty: data={data} needs {what}.", fix="Name it in source.path.")
    return naming_file(source, lambda: _checked(data, _expanded(source.path)))


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve(strict=True)
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        RuntimeError,
    ):  # also an unknown user after ~, or a zero byte
        raise ConfigError(
            "there is no such file or folder.", fix="Give a path on the machine that runs Isoflop."
        ) from None


def _checked(data: DatasetName, path: Path) -> Path:
    status = path.stat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if DATA[data].is_folder and not is_folder:
        raise ConfigError("is a file.", fix="Give a folder of images with one subfolder per class.")
    if not DATA[data].is_folder and is_folder:
        raise ConfigError(
            f"is a folder, but data={data} needs a file.", fix="Name a file in it, or choose data=images."
        )
    if not is_folder and not stat.S_ISREG(status.st_mode):
        raise ConfigError("is not a regular file.", fix="Copy its content into a file.")
    if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
        raise ConfigError("is not readable for this user.", fix="Change its permissions.")
    if not is_folder and status.st_size == 0:
        raise ConfigError("is empty.")
    limit = {"csv": MAX_CSV_BYTES, "numpy": MAX_ARRAY_BYTES, "text": MAX_TEXT_BYTES}.get(data)
    if limit and status.st_size > limit:
        raise ConfigError(f"has {status.st_size:,} bytes, more than the limit of {limit:,}.", fix="Use a part of it.")
    return path


def check_bytes(size: int) -> None:
    """Check the size of arrays in memory.

    Raises:
        ConfigError: It is above `MAX_ARRAY_BYTES`.
    """
    if size > MAX_ARRAY_BYTES:
        raise ConfigError(
            f"unpacks to {size:,} bytes, more than the limit of {MAX_ARRAY_BYTES:,}.", fix="Use a part of it."
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quoted(text: str, *, length: int = 40) -> str:
    """Untrusted text for a message: in quotes, with control characters escaped, cut after `length` characters."""
    return repr(text if len(text) <= length else f"{text[: length - 1]}…")
