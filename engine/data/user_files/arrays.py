"""Reads arrays: an NPZ with x and y, an NPZ with both splits, or an NPY with the labels in its last column."""

from __future__ import annotations

import contextlib
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays
from engine.data.user_files.files import check_bytes, quoted, sha256_of
from engine.data.user_files.labels import MIN_EXAMPLES, check_number_of_classes, labelled, labelled_split, numbered

_PAIR = ("x", "y")
_PARTS = ("x_train", "y_train", "x_test", "y_test")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError)  # raised by zipfile and numpy for damaged files
_INVALID_HEADER = (
    TypeError,
    OverflowError,
    KeyError,
    tokenize.TokenError,
)  # raised by numpy for the header of an array


def read_numpy(path: Path, _: Source) -> Arrays:
    """Features (n, f) or images (n, c, h, w).

    Raises:
        ConfigError: As `user_files.read` does.
    """
    with path.open("rb") as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            file.seek(0)
            return _columns(path, _npy(file, path.name))
    arrays = read_npz(path)
    sha256 = sha256_of(path)
    if all(name in arrays for name in _PARTS):
        return _given_split(path.name, arrays, sha256)
    if all(name in arrays for name in _PAIR):
        x = _inputs(arrays["x"], "x")
        y, classes = _classes(_labels(arrays["y"], "y", len(x)), "y")
        return labelled(path.name, x, y, classes, sha256)
    raise ConfigError(
        f"has no arrays {' and '.join(_PAIR)}, nor {', '.join(_PARTS)}.", fix="Save it with np.savez(path, x=x, y=y)."
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Those of the arrays x, y, x_train, y_train, x_test and y_test that an .npz has; upper case names are accepted.

    Raises:
        ConfigError: The file is not a complete .npz, contains Python objects, or would unpack to more than 2 GiB.
        OSError: The file cannot be read.
    """
    with contextlib.suppress(*_DAMAGED, RuntimeError), zipfile.ZipFile(path) as archive:  # RuntimeError: encrypted
        members = {info.filename.removesuffix(".npy").lower(): info for info in archive.infolist()}
        wanted = {name: members[name] for name in (*_PAIR, *_PARTS) if name in members}
        if all(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in wanted.values()):
            check_bytes(sum(info.file_size for info in wanted.values()))
            arrays = {}
            for name, info in wanted.items():
                with archive.open(info) as file:
                    arrays[name] = _npy(file, name)
            return arrays
    raise ConfigError("is not a complete NPZ or NPY file.", fix="Save it again with np.savez(path, x=x, y=y).")


def _npy(file: IO[bytes], name: str) -> np.ndarray:
    """One array; the size in its header is checked before memory is allocated.

    Raises:
        ConfigError: The array is damaged, too large or contains Python objects.
    """
    with contextlib.suppress(*_DAMAGED, *_INVALID_HEADER):
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ConfigError(
                f"{name} contains Python objects, which are never unpickled.", fix="Convert it to numbers."
            )
        check_bytes(math.prod(shape) * dtype.itemsize)
        values = np.empty(math.prod(shape), dtype)
        if file.readinto(values.view(np.uint8)) == values.nbytes:  # type: ignore[attr-defined]
            return values.reshape(shape, order="F" if fortran else "C")
    raise ConfigError(f"{name} is not a complete array.", fix="Save it again with np.savez or np.save.")


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def _columns(path: Path, table: np.ndarray) -> Arrays:
    if table.ndim != 2 or table.shape[1] < 2:
        raise ConfigError(
            f"its array has shape {table.shape}; it must be (n, features + 1), with the label in the last column.",
            fix="Save images and labels with np.savez(path, x=x, y=y).",
        )
    x = _inputs(table[:, :-1], "its array")
    y, classes = _classes(table[:, -1], "the last column")
    return labelled(path.name, x, y, classes, sha256_of(path))


def _given_split(title: str, arrays: dict[str, np.ndarray], sha256: str) -> Arrays:
    """The data set with the split of the file.

    Raises:
        ConfigError: The splits do not fit together.
    """
    train_x, test_x = _inputs(arrays["x_train"], "x_train"), _inputs(arrays["x_test"], "x_test")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ConfigError(f"x_train has samples of shape {train_x.shape[1:]}, x_test of {test_x.shape[1:]}.")
    if train_x.dtype != test_x.dtype:
        train_x, test_x = train_x.astype(np.float32), test_x.astype(np.float32)
    labels = [_labels(arrays[name], name, n) for name, n in (("y_train", len(train_x)), ("y_test", len(test_x)))]
    y, classes = _classes(np.concatenate(labels), "y_train or y_test")
    train_y, test_y = y[: len(train_x)], y[len(train_x) :]
    if len(train_y) < MIN_EXAMPLES:
        raise ConfigError(f"has {len(train_y)} training samples; at least {MIN_EXAMPLES} are needed.")
    check_number_of_classes(classes)
    if unseen := sorted(set(test_y.tolist()) - set(train_y.tolist())):
        raise ConfigError(f"y_test has class {quoted(classes[unseen[0]])}, which y_train does not have.")
    return labelled_split(title, (train_x, train_y), (test_x, test_y), classes, sha256)


def _inputs(x: np.ndarray, name: str) -> np.ndarray:
    """Features (n, f) as float32, or images (n, c, h, w) as uint8 if they were bytes, else as float32.

    Raises:
        ConfigError: Dtype or shape is not supported, or a value is not finite.
    """
    if x.dtype.kind not in "buif":
        raise ConfigError(f"{name} has dtype {x.dtype}, which is not a number.")
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise ConfigError(
            f"{name} has shape {x.shape}.", fix="It must be (n, features), (n, h, w), (n, h, w, c) or (n, c, h, w)."
        )
    bytes_of_images = x.ndim > 2 and x.dtype.itemsize == 1 and x.dtype.kind in "bu"
    with np.errstate(over="ignore", invalid="ignore"):  # reported below
        x = channels_first(x) if x.ndim > 2 else x
        x = np.ascontiguousarray(x, dtype=np.uint8 if bytes_of_images else np.float32)
    if not bytes_of_images and not np.isfinite(x).all():
        example = int(np.argmin(np.isfinite(x).all(axis=tuple(range(1, x.ndim)))))
        raise ConfigError(f"{name}[{example}] has a number that is not finite in float32.", fix="Remove or scale it.")
    return x


def channels_first(x: np.ndarray) -> np.ndarray:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w).

    Four dimensions are (n, c, h, w) if c is 1 or 3 and h equals w, or if the last one is not 1, 3 or 4.
    """
    if x.ndim == 3:
        return x[:, None]
    planes_last = x.shape[1] in (1, 3) and x.shape[2] == x.shape[3]
    return x if planes_last or x.shape[3] not in (1, 3, 4) else x.transpose(0, 3, 1, 2)


def _labels(y: np.ndarray, name: str, count: int) -> np.ndarray:
    """Labels (count,) as numbers or text, from `y` of shape (count,) or (count, 1).

    Raises:
        ConfigError: Dtype or shape is another one.
    """
    if y.dtype.kind not in "buifU":
        raise ConfigError(f"{name} has dtype {y.dtype}; labels must be whole numbers or text.")
    if y.ndim == 2 and y.shape[1] > 1:
        raise ConfigError(
            f"{name} has shape {y.shape}, but one label per sample is needed.",
            fix="Convert one-hot labels with y.argmax(1).",
        )
    if y.size != count or y.ndim not in (1, 2):
        raise ConfigError(f"{name} has shape {y.shape} for {count:,} samples.", fix="Give one label per sample.")
    return y.reshape(-1)


def _classes(y: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) of numbers or text as (n,) int64, and the classes in order."""
    if y.dtype.kind == "U":
        values, index = np.unique(y, return_inverse=True)
        return index.astype(np.int64), tuple(map(str, values))
    return numbered(y.astype(np.float64), what=name)
