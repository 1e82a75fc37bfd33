"""Data sets by name, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from engine.config.base import Spec, field, values

DatasetName = Literal[
    "mnist5k", "digits", "mnist1d", "mnist", "fashion-mnist", "cifar10", "text", "synthetic", "csv", "numpy", "images"
]
DataKind = Literal["image", "vector", "text"]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Facts of a data set that follow from its name. `engine/data/datasets.py` has sizes, classes and files."""

    title: str
    kind: DataKind | None  # None if it depends on the file or on source.shape
    fields: tuple[str, ...] = ()  # fields of Source that this data set reads
    is_yours: bool = False  # the user's own data in source.path, which must be set
    is_folder: bool = False  # source.path is a folder, not a file
    measures_speed_only: bool = False  # random numbers: nothing can be learned from them
    suffixes: tuple[str, ...] = ()  # file types that can be uploaded; the first one is the suffix of the stored file
    file_name: str = ""  # name of the user's file in reports, because its real name is private


DATA: Mapping[DatasetName, DataFacts] = {
    "mnist5k": DataFacts("MNIST, 5,000 images", "image"),
    "digits": DataFacts("Digits, 1,797 images of 8x8", "image"),
    "mnist1d": DataFacts("MNIST-1D, 5,000 signals", "vector"),
    "mnist": DataFacts("MNIST, 70,000 images", "image"),
    "fashion-mnist": DataFacts("Fashion-MNIST, 70,000 images", "image"),
    "cifar10": DataFacts("CIFAR-10, 60,000 colour images", "image"),
    "text": DataFacts(
        "Text, character by character",
        "text",
        ("path", "seq_len"),
        suffixes=("txt", "md", "csv", "json", "py"),
        file_name="text.txt",
    ),
    "synthetic": DataFacts(
        "Synthetic, for speed only", None, ("shape", "num_classes", "num_examples"), measures_speed_only=True
    ),
    "csv": DataFacts(
        "Your table (CSV)",
        "vector",
        ("path", "label"),
        is_yours=True,
        suffixes=("csv", "tsv", "txt"),
        file_name="table.csv",
    ),
    "numpy": DataFacts(
        "Your arrays (NPZ, NPY)", None, ("path",), is_yours=True, suffixes=("npz", "npy"), file_name="arrays.npz"
    ),
    "images": DataFacts("Your folder of images", "image", ("path",), is_yours=True, is_folder=True, file_name="images"),
}
USER_DATA: frozenset[DatasetName] = frozenset(name for name, facts in DATA.items() if facts.is_yours)


class Source(Spec):
    """Options of data sets that are not defined by their name alone."""

    path: str = field("", "File", max_length=4_096)
    """Your file (CSV, NPZ, NPY, text), or a folder of images with one subfolder per class."""
    label: str = field("", "Label column", max_length=256)
    """CSV column to predict. Empty: the last column."""
    seq_len: int = field(64, "Context", ge=2, le=16_384)
    """Characters of one sample. A text model reads this many at once."""
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = values((1, 28, 28), "Shape", min_length=1, max_length=3)
    """Shape of one synthetic sample: channels, height, width; or one number for a vector."""
    num_classes: int = field(10, "Classes", ge=2, le=100_000)
    """Number of classes of synthetic data."""
    num_examples: int = field(4_096, "Samples", ge=2, le=10_000_000)
    """Number of synthetic training samples."""
