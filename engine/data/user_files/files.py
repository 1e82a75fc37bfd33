"""The file itself: whether it is there, may be read and is not too large; and errors that name it."""

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
MAX_ARRAY_BYTES = 2 << 30  # of an array as it lies in memory: a small zip may unpack to anything
MAX_TEXT_BYTES = 100_000_000

_Result = TypeVar("_Result")


def about(source: Source, work: Callable[[], _Result]) -> _Result:
    """What `work` returns; its errors name the file."""
    try:
        return work()
    except ConfigError as error:
        raise _naming(source, error) from None
    except OSError as error:
        raise _naming(source, system_error(error, Path(source.path))) from None


def system_error(error: OSError, path: Path) -> ConfigError:
    """What the operating system said of the file, or of one inside the folder, in words."""
    name = Path(os.fsdecode(error.filename or path)).name
    inside = "" if name in path.parts else f"its {quoted(name)} "
    if isinstance(error, PermissionError):
        return ConfigError(f"{inside}may not be read by this user.", fix="Change its permissions.")
    return ConfigError(f"{inside}cannot be read: {error.strerror or error}.")


def _naming(source: Source, error: ConfigError) -> ConfigError:
    shown = source.path if len(source.path) <= 100 else f"…{source.path[-99:]}"
    return ConfigError(f"source.path={shown}: {error.message}", fix=error.fix)


def existing(data: DatasetName, source: Source) -> Path:
    """The file or folder, which exists, is of the right kind and size and may be read; raises ConfigError otherwise."""
    if not source.path.strip():
        what = "a folder of images" if DATA[data].is_folder else "a file"
        raise ConfigError(f"source.path is empty: data={data} needs {what}.", fix="Name it in source.path.")
    return about(source, lambda: _checked(data, _expanded(source.path)))


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser().resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):  # also no such user, or a zero byte
        raise ConfigError(
            "there is no such file or folder.", fix="The path is one on the machine that runs Isoflop."
        ) from None


def _checked(data: DatasetName, path: Path) -> Path:
    status = path.stat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if DATA[data].is_folder and not is_folder:
        raise ConfigError("is a file.", fix="Images are read from a folder with one subfolder per class.")
    if not DATA[data].is_folder and is_folder:
        raise ConfigError(f"is a folder, data={data} needs a file.", fix="Name the file in it, or choose data=images.")
    if not is_folder and not stat.S_ISREG(status.st_mode):
        raise ConfigError("is not an ordinary file.", fix="Copy its content into a file.")
    if not os.access(path, os.R_OK | (os.X_OK if is_folder else 0)):
        raise ConfigError("may not be read by this user.", fix="Change its permissions.")
    if not is_folder and status.st_size == 0:
        raise ConfigError("is empty.")
    limit = {"csv": MAX_CSV_BYTES, "numpy": MAX_ARRAY_BYTES, "text": MAX_TEXT_BYTES}.get(data)
    if limit and status.st_size > limit:
        raise ConfigError(
            f"has {status.st_size:,} bytes, more than the {limit:,} that are read.", fix="Use a part of it."
        )
    return path


def check_bytes(size: int) -> None:
    """Raises ConfigError when arrays of so many bytes are not read."""
    if size > MAX_ARRAY_BYTES:
        raise ConfigError(
            f"unpacks to {size:,} bytes, more than the {MAX_ARRAY_BYTES:,} that are read.", fix="Use a part of it."
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of what is in the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quoted(text: str, *, length: int = 40) -> str:
    """Somebody's text inside a sentence: short, and with nothing in it that moves a cursor."""
    return repr(text if len(text) <= length else f"{text[: length - 1]}…")
