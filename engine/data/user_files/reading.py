"""Each kind of data by its own reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config.data import DATA, DatasetName, Source
from engine.data.datasets import Arrays, Dataset
from engine.data.user_files.arrays import read_numpy
from engine.data.user_files.files import about, existing
from engine.data.user_files.images import images_facts, read_images
from engine.data.user_files.tables import read_csv
from engine.data.user_files.text import read_text

_READERS: dict[DatasetName, Callable[[Path, Source], Arrays]] = {
    "csv": read_csv,
    "numpy": read_numpy,
    "images": read_images,
    "text": read_text,
}


def read(data: DatasetName, source: Source) -> Arrays:
    """The examples of `source.path`: split, with mean and std of the training split and the file's SHA-256.

    A table's features are (n, features) float32, arrays and images (n, c, h, w) uint8 or float32, a text its tokens.
    Raises ConfigError when it cannot be read or learned from: the file, what is wrong and where, what to do.
    """
    path = existing(data, source)
    return about(source, lambda: _READERS[data](path, source))


def facts_of(data: DatasetName, path: Path, source: Source) -> Dataset:
    """What `read` would find, looked for in this process; its errors do not name the file."""
    return images_facts(path) if DATA[data].is_folder else _READERS[data](path, source).facts
