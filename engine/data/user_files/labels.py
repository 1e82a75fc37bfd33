"""Classes and splits: labels as numbers from 0, and a test split with a fifth of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.common.errors import ConfigError
from engine.data.datasets import Arrays, Dataset, split_mask, standardisation
from engine.data.user_files.files import quoted

MIN_EXAMPLES = 10
MAX_CLASSES = 10_000


def labelled(title: str, x: np.ndarray, y: np.ndarray, classes: Sequence[str], sha256: str) -> Arrays:
    """A data set with a fifth of every class in its test split; the order of the file is kept.

    `x` is (n, f) or (n, c, h, w), `y` (n,) int64. Raises ConfigError as `split` does.
    """
    test = split(y, classes)
    return labelled_split(title, (x[~test], y[~test]), (x[test], y[test]), classes, sha256)


def split(y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Mask of the test split, (n,) bool, for labels (n,) int64.

    Raises:
        ConfigError: There are too few samples to train or to test, or the number of classes is not allowed.
    """
    counts = np.bincount(y, minlength=len(classes))
    if len(y) < MIN_EXAMPLES:
        raise ConfigError(f"has {len(y)} samples; at least {MIN_EXAMPLES} are needed.")
    check_number_of_classes(classes)
    if counts.min() < 2:
        raise ConfigError(
            f"class {quoted(classes[int(counts.argmin())])} has a single sample; at least 2 are needed.",
            fix="Remove it, add samples of it, or choose another label.",
        )
    test = split_mask(y)
    if not test.any():
        raise ConfigError("no class has 3 samples, of which one could be used for testing.", fix="Add samples.")
    return test


def check_number_of_classes(classes: Sequence[str]) -> None:
    """Check the number of classes.

    Raises:
        ConfigError: There is one class, or more than `MAX_CLASSES`.
    """
    if len(classes) < 2:
        raise ConfigError(
            f"all labels are {quoted(classes[0])}; at least 2 classes are needed.", fix="Choose another label."
        )
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f"has {len(classes):,} classes, more than the limit of {MAX_CLASSES:,}.", fix="Choose another label."
        )


def labelled_split(
    title: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    sha256: str,
) -> Arrays:
    """A data set with a given split: `train` and `test` are (x, y). Mean and std are those of the training split."""
    shape = train[0].shape[1:]
    facts = Dataset(
        title=title,
        kind="vector" if len(shape) == 1 else "image",
        shape=shape,
        num_classes=len(classes),
        train_examples=len(train[0]),
        test_examples=len(test[0]),
    )
    return Arrays(facts, *train, *test, *standardisation(train[0]), tuple(classes), sha256)


def numbered(labels: np.ndarray, *, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) of numbers as (n,) int64, and the classes in order. `what` names the labels in messages.

    Raises:
        ConfigError: The numbers are not whole, or so many differ that they look like regression targets.
    """
    whole = np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)
    if not whole.all():
        first = labels[int(np.argmin(whole))]
        raise ConfigError(f"{what} has the value {first:g}; labels must be whole numbers or text.", fix=_REGRESSION)
    values, y = np.unique(labels, return_inverse=True)
    if len(values) > max(20, len(labels) // 4):
        raise ConfigError(f"{what} has {len(values):,} different numbers in {len(labels):,} samples.", fix=_REGRESSION)
    return y.reshape(-1).astype(np.int64), tuple(str(int(value)) for value in values)


_REGRESSION = "This looks like regression, which Isoflop does not support. Choose a label with few different values."
