"""Classes and splits: labels as numbers from 0, and a test split with a fifth of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.common.errors import ConfigError
from engine.data.datasets import Arrays, Dataset, Preview, split_mask, standardisation
from engine.data.user_files import checks
from engine.data.user_files.files import quoted

MIN_EXAMPLES = 10
MAX_CLASSES = 10_000


def labelled(title: str, x: np.ndarray, y: np.ndarray, classes: Sequence[str], sha256: str, **more: Any) -> Arrays:
    """A data set with a fifth of every class in its test split; the order of the file is kept.

    `x` is (n, f) or (n, c, h, w), `y` (n,) int64; `more` goes to `labelled_split`. Raises ConfigError as `split` and
    `labelled_split` do.
    """
    test = split(y, classes)
    warnings = checks.row_counters(x, y, more.get("names", ())) if x.ndim == 2 else []
    return labelled_split(title, (x[~test], y[~test]), (x[test], y[test]), classes, sha256, warnings=warnings, **more)


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


def check_training_split(count: int, classes: Sequence[str]) -> None:
    """Check the training split of a data set that brings its own split.

    Raises:
        ConfigError: It has too few samples, or the number of classes is not allowed.
    """
    if count < MIN_EXAMPLES:
        raise ConfigError(f"has {count} training samples; at least {MIN_EXAMPLES} are needed.")
    check_number_of_classes(classes)


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
    *,
    version: str = "",
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    names: Sequence[str] = (),
    preview: Preview | None = None,
) -> Arrays:
    """A data set with a given split: `train` and `test` are (x, y). Mean and std are those of the training split.

    `names` are those of the features. Raises ConfigError if all training inputs are equal.
    """
    checks.refuse_constant(train[0])
    shape = train[0].shape[1:]
    facts = Dataset(
        title=title,
        kind="vector" if len(shape) == 1 else "image",
        shape=shape,
        num_classes=len(classes),
        train_examples=len(train[0]),
        test_examples=len(test[0]),
        notes=(*notes, *checks.constant_features(train[0], names)),
        warnings=(*warnings, *checks.class_balance(train[1], test[1], classes)),
        version=version or sha256,
    )
    return Arrays(facts, *train, *test, *standardisation(train[0]), tuple(classes), sha256, preview)


def narrowed(x: np.ndarray) -> np.ndarray:
    """`x` as float32 if that changes no value, else unchanged."""
    with np.errstate(over="ignore"):
        narrow = x.astype(np.float32)
    return narrow if np.array_equal(narrow, x, equal_nan=True) else x


def numbered(labels: np.ndarray, *, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) of numbers as (n,) int64, and the classes in order. `what` names the labels in messages.

    Raises:
        ConfigError: The numbers are not whole, or so many differ that they look like regression targets.
    """
    whole = np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)
    if not whole.all():
        first = labels[int(np.argmin(whole))]
        if not np.isfinite(first):
            raise ConfigError(f"{what} has the value {first:g}, which is no label.", fix="Remove these samples.")
        raise ConfigError(f"{what} has the value {first:g}; labels must be whole numbers or text.", fix=_REGRESSION)
    values, y, counts = np.unique(labels, return_inverse=True, return_counts=True)
    looks_like_regression(counts, what=what)
    return y.reshape(-1).astype(np.int64), tuple(str(int(value)) for value in values)


def looks_like_regression(counts: np.ndarray, *, what: str) -> None:
    """Check how often each label occurs, (classes,).

    Raises:
        ConfigError: There are many different numbers, and some of them occur once.
    """
    if len(counts) > max(20, counts.sum() // 4) and counts.min() < 2:
        raise ConfigError(f"{what} has {len(counts):,} different numbers in {counts.sum():,} samples.", fix=_REGRESSION)


_REGRESSION = "This looks like regression, which Isoflop does not support. Choose a label with few different values."
