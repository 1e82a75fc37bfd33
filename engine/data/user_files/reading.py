"""Reads the user's file with the reader of its data kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.config.data import DATA, DatasetName, Source
from engine.data.datasets import Arrays, Dataset, Preview
from engine.data.user_files.arrays import read_numpy
from engine.data.user_files.files import existing, naming_file
from engine.data.user_files.images import inspect_images, read_images
from engine.data.user_files.previews import preview_of
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

    Features of a table are (n, features) float32 or float64, images and arrays (n, c, h, w) uint8, float32 or float64, a
    text (n,) tokens.
    Raises ConfigError, which names the file and the place in it, if it cannot be read or has too little data.
    """
    path = existing(data, source)
    return naming_file(source, lambda: _READERS[data](path, source))


def inspect_here(data: DatasetName, path: Path, source: Source) -> tuple[Dataset, Preview]:
    """The facts of the data set that `read` would return, and a preview of it, found in this process.

    Its errors do not name the file.
    """
    if DATA[data].is_folder:
        return inspect_images(path)
    arrays = _READERS[data](path, source)
    return arrays.facts, preview_of(arrays)
