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
from engine.data.user_files import checks
from engine.data.user_files.files import check_bytes, quoted, sha256_of
from engine.data.user_files.labels import check_training_split, labelled, labelled_split, narrowed, numbered

_PAIR = ("x", "y")
_PARTS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION = ("x_val", "y_val")
# Names that other programs use for x and y, in the order in which they are preferred; the last ones are MedMNIST's.
_X, _Y = ("x", "data", "features", "images"), ("y", "target", "targets", "label", "labels")
_ALIASES = dict.fromkeys(_X, "x") | dict.fromkeys(_Y, "y")
for _split, _names in {"train": ("train",), "test": ("test",), "val": ("val", "valid")}.items():
    for _name in _names:
        _ALIASES |= {f"{alias}_{_name}": f"x_{_split}" for alias in _X} | {
            f"{_name}_{alias}": f"x_{_split}" for alias in _X
        }
        _ALIASES |= {f"{alias}_{_name}": f"y_{_split}" for alias in _Y} | {
            f"{_name}_{alias}": f"y_{_split}" for alias in _Y
        }
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
    arrays, members = _named(path)
    sha256, notes = sha256_of(path), []
    if not all(name in arrays for name in _PARTS) and all(name in arrays for name in (*_PARTS[:2], *_VALIDATION)):
        for part in ("x", "y"):
            arrays[f"{part}_test"], members[f"{part}_test"] = arrays.pop(f"{part}_val"), members.pop(f"{part}_val")
        notes.append("The validation split of the file is the test split.")
    if all(name in arrays for name in _PARTS):
        return _given_split(path.name, arrays, sha256, notes + _unused(members, _PARTS))
    for pair in (_PAIR, _PARTS[:2]):
        if all(name in arrays for name in pair):
            x = _inputs(arrays[pair[0]], pair[0])
            y, classes = _classes(_labels(arrays[pair[1]], pair[1], len(x)), pair[1])
            layout = _layout_in_words(arrays[pair[0]])
            return labelled(path.name, x, y, classes, sha256, notes=layout + _unused(members, pair))
    has = ", ".join(list(members.values())[:5]) or "none"
    raise ConfigError(
        f"has no arrays {' and '.join(_PAIR)}, nor {', '.join(_PARTS)}. It has: {has[:60]}.",
        fix="Save it with np.savez(path, x=x, y=y).",
    )


def _unused(members: dict[str, str], used: tuple[str, ...]) -> list[str]:
    """The sentence about the arrays of a file that are not used, if there are any."""
    names = [quoted(member) for name, member in members.items() if name not in used]
    if not names:
        return []
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
    return [f"Not used: {len(names)} array{'s' if len(names) > 1 else ''} of the file ({shown})."]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Those of the arrays x, y, x_train, y_train, x_test, y_test, x_val and y_val that an .npz has.

    Upper case and the names that other programs give them are accepted.

    Raises:
        ConfigError: The file is not a complete .npz, contains Python objects, or would unpack to more than 2 GiB.
        OSError: The file cannot be read.
    """
    return _named(path)[0]


def _named(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by the names of `read_npz`, and the name of each array in the file by its name here.

    An array that is not read has the same name in both.

    Raises:
        ConfigError: As `read_npz` does.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise ConfigError("is not a regular file.", fix="Copy its content into a file.")
    with contextlib.suppress(*_DAMAGED, RuntimeError), zipfile.ZipFile(path) as archive:  # RuntimeError: encrypted
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        wanted: dict[str, str] = {}  # the name in the file of each array
        for alias, name in _ALIASES.items():
            found = next((member for member in members if member.lower() == alias), None)
            if found is not None:
                wanted.setdefault(name, found)
        infos = {name: members[found] for name, found in wanted.items()}
        if all(info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in infos.values()):
            check_bytes(sum(info.file_size for info in infos.values()))
            arrays = {}
            for name, info in infos.items():
                with archive.open(info) as file:
                    arrays[name] = _npy(file, wanted[name])
            return arrays, wanted | {member: member for member in members if member not in wanted.values()}
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


def _given_split(title: str, arrays: dict[str, np.ndarray], sha256: str, notes: list[str]) -> Arrays:
    """The data set with the split of the file.

    Raises:
        ConfigError: The splits do not fit together.
    """
    train_x, test_x = _inputs(arrays["x_train"], "x_train"), _inputs(arrays["x_test"], "x_test")
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ConfigError(f"x_train has samples of shape {train_x.shape[1:]}, x_test of {test_x.shape[1:]}.")
    if train_x.dtype != test_x.dtype:
        common = np.result_type(train_x, test_x, np.float32)
        train_x, test_x = train_x.astype(common), test_x.astype(common)
    labels = [_labels(arrays[name], name, n) for name, n in (("y_train", len(train_x)), ("y_test", len(test_x)))]
    y, classes = _classes(np.concatenate(labels), "y_train or y_test")
    train_y, test_y = y[: len(train_x)], y[len(train_x) :]
    check_training_split(len(train_y), classes)
    if unseen := sorted(set(test_y.tolist()) - set(train_y.tolist())):
        raise ConfigError(f"y_test has class {quoted(classes[unseen[0]])}, which y_train does not have.")
    return labelled_split(
        title,
        (train_x, train_y),
        (test_x, test_y),
        classes,
        sha256,
        notes=_layout_in_words(arrays["x_train"]) + notes,
        warnings=checks.other_range(train_x, test_x),
    )


def _inputs(x: np.ndarray, name: str) -> np.ndarray:
    """Features (n, f), or images (n, c, h, w): uint8 images if they were bytes, else float64, or float32 if exact.

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
    x = channels_first(x) if x.ndim > 2 else x
    if bytes_of_images:
        return np.ascontiguousarray(x, dtype=np.uint8)
    fits_float32 = x.dtype.itemsize < 4 or x.dtype == np.dtype(np.float32)
    x = np.ascontiguousarray(x, dtype=np.float32 if fits_float32 else np.float64)
    finite = np.isfinite(x) & (np.abs(x) <= np.finfo(np.float32).max)
    if not finite.all():
        example = int(np.argmin(finite.all(axis=tuple(range(1, x.ndim)))))
        raise ConfigError(f"{name}[{example}] has a number that is not finite in float32.", fix="Remove or scale it.")
    return narrowed(x)


_FEW_CHANNELS = 4


def channels_first(x: np.ndarray) -> np.ndarray:
    """(n, h, w), (n, h, w, c) or (n, c, h, w) as (n, c, h, w).

    Of four dimensions, the channels are those of which there are at most 4. If that does not decide, h equals w, and
    else the channels are the first of the three.
    """
    if x.ndim == 3:
        return x[:, None]
    first, height, last = x.shape[1:]
    few_first, few_last = first <= _FEW_CHANNELS, last <= _FEW_CHANNELS
    is_last = few_last if few_first != few_last else first == height != last
    return x.transpose(0, 3, 1, 2) if is_last else x


def _layout_in_words(x: np.ndarray) -> list[str]:
    """How images of four dimensions are read."""
    if x.ndim != 4:
        return []
    channels, height, width = channels_first(x[:1]).shape[1:]
    return [
        f"Arrays of shape {x.shape[1:]} are read as {channels} channel{'s' * (channels > 1)} of {height}x{width} pixels."
    ]


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
    """Labels (n,) of numbers or text as (n,) int64, and the classes in order.

    Raises:
        ConfigError: A label is empty, or `numbered` refuses the labels.
    """
    if y.dtype.kind == "U":
        values, index = np.unique(y, return_inverse=True)
        if values[0].strip() == "":
            raise ConfigError(
                f"{name}[{int(np.argmin(index))}] is an empty text.", fix="Remove the samples without a label."
            )
        return index.astype(np.int64), tuple(map(str, values))
    return numbered(y.astype(np.float64), what=name)
