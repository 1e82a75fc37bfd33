"""Data sets as tensors: read from the installed packages, checked, split once and for all, laid out for a model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import torch

from engine.config import DatasetName
from engine.datasets import DATASETS, Dataset
from engine.errors import ConfigError
from engine.families import CNN_SIDE

_SPLIT_SEED = 20_260_101  # the split is a fact of the data set: no run's seed moves it
_TEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Split:
    """Images (n, 1, h, w) float32, standardised, and labels (n,) int64."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    def to(self, device: torch.device) -> Split:
        return Split(*(t.to(device) for t in (self.train_x, self.train_y, self.test_x, self.test_y)))


def load(name: DatasetName, *, side: int | None = None) -> Split:
    """The fixed train / held-out split of a data set; `side=32` pads or enlarges images to LeNet's input.

    Raises ConfigError when the package's file is missing or not the one released.
    """
    facts = DATASETS[name]
    pixels, labels = _read(facts)
    images = torch.from_numpy(pixels.astype(np.float32) / facts.max_value).view(-1, 1, *facts.shape)
    if side == CNN_SIDE:
        images = _to_lenet_input(images)
    images = (images - facts.mean) / facts.std
    test = _held_out(labels)
    y = torch.from_numpy(labels)
    return Split(images[~test], y[~test], images[test], y[test])


@lru_cache(maxsize=4)  # the fork server reads once, before it forks: a worker finds the pixels in memory
def _read(facts: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, h*w) uint8 and labels (n,) int64 from a gzipped CSV whose last column is the label."""
    try:
        content = _file(facts).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{facts.title}: the file in {facts.package} cannot be read: {error.strerror}.",
            fix="Reinstall requirements.txt.",
        ) from None
    if hashlib.sha256(content).hexdigest() != facts.sha256:
        raise ConfigError(
            f"{facts.title}: the file in {facts.package} is not the one released.", fix="Reinstall requirements.txt."
        )
    with pa.input_stream(pa.BufferReader(content), compression="gzip") as stream:
        options = arrow_csv.ReadOptions(autogenerate_column_names=True, use_threads=False)
        table = arrow_csv.read_csv(stream, read_options=options)
    columns = np.stack([column.to_numpy() for column in table.columns], axis=1)
    return columns[:, :-1].astype(np.uint8), columns[:, -1].astype(np.int64)


def preload() -> None:
    """Read every bundled data set into this process; one that cannot be read is left for the run that needs it."""
    for facts in DATASETS.values():
        with contextlib.suppress(ConfigError):
            _read(facts)


def _file(facts: Dataset) -> Path:
    """Found without importing the package: that alone would cost seconds."""
    spec = importlib.util.find_spec(facts.package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"{facts.title}: the package {facts.package} is not installed.", fix="Install requirements.txt."
        )
    return Path(spec.origin).parent / facts.file


def _held_out(labels: np.ndarray) -> np.ndarray:
    """(n,) bool: a fifth of every class, chosen by a fixed seed. The files are sorted by class: a plain cut would
    leave whole classes out."""
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        test[rng.permutation(members)[: round(_TEST_SHARE * len(members))]] = True
    return test


def _to_lenet_input(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, h, w) to (n, 1, 32, 32): whole-number enlargement, then a black border."""
    scale = CNN_SIDE // images.shape[-1]
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    border = (CNN_SIDE - images.shape[-1]) // 2
    return torch.nn.functional.pad(images, [border] * 4)
