"""Reads the user's file with the reader of its data kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config.data import DATA, DatasetName, Source
from engine.data.datasets import Arrays, Dataset
from engine.data.user_files.arrays import read_numpy
from engine.data.user_files.files import existing, naming_file
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
    """The arrays of `source.path`, split, with mean and std of the training split and the SHA-256 of the file.

    Features of a table are (n, features) float32, images and arrays (n, c, h, w) uint8 or float32, a text (n,) tokens.
    Raises ConfigError, which names the file and the place in it, if it cannot be read or has too little data.
    """
    path = existing(data, source)
    return naming_file(source, lambda: _READERS[data](path, source))


def facts_of(data: DatasetName, path: Path, source: Source) -> Dataset:
    """The facts of the data set that `read` would return, found in this process. Its errors do not name the file."""
    return images_facts(path) if DATA[data].is_folder else _READERS[data](path, source).facts
