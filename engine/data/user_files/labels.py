"""Classes and splits: labels as numbers from 0, and a fifth of every class held out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.common.errors import ConfigError
from engine.data.datasets import Arrays, Dataset, held_out, standardisation
from engine.data.user_files.files import quoted

MIN_EXAMPLES = 10
MAX_CLASSES = 10_000


def labelled(title: str, x: np.ndarray, y: np.ndarray, classes: Sequence[str], sha256: str) -> Arrays:
    """Examples in the file's order, a fifth of every class held out. `x` (n, f) or (n, c, h, w), `y` (n,) int64."""
    test = split(y, classes)
    return labelled_split(title, (x[~test], y[~test]), (x[test], y[test]), classes, sha256)


def split(y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n,) bool, what is held out; raises ConfigError where there is too little to learn from and to test on."""
    counts = np.bincount(y, minlength=len(classes))
    if len(y) < MIN_EXAMPLES:
        raise ConfigError(f"has {len(y)} examples, at least {MIN_EXAMPLES} are needed.")
    check_number_of_classes(classes)
    if counts.min() < 2:
        raise ConfigError(
            f"class {quoted(classes[int(counts.argmin())])} has a single example, at least 2 are needed.",
            fix="Remove it, add examples of it, or choose another label.",
        )
    test = held_out(y)
    if not test.any():
        raise ConfigError("no class has the 3 examples of which one can be held out.", fix="Add examples.")
    return test


def check_number_of_classes(classes: Sequence[str]) -> None:
    """Raises ConfigError when there is nothing to tell apart, or too much."""
    if len(classes) < 2:
        raise ConfigError(
            f"all labels are {quoted(classes[0])}: there is nothing to tell apart.", fix="Choose another label."
        )
    if len(classes) > MAX_CLASSES:
        raise ConfigError(f"has {len(classes):,} classes, more than {MAX_CLASSES:,}.", fix="Choose another label.")


def labelled_split(
    title: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: Sequence[str],
    sha256: str,
) -> Arrays:
    """Examples that are split already, x and y to train on and x and y held out; mean and std are of the former."""
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
    """(n,) int64 and the classes in order, of (n,) numbers. Raises ConfigError when they look like measurements."""
    whole = np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)
    if not whole.all():
        first = labels[int(np.argmin(whole))]
        raise ConfigError(f"{what} holds {first:g}, labels are whole numbers or text.", fix=_REGRESSION)
    values, y = np.unique(labels, return_inverse=True)
    if len(values) > max(20, len(labels) // 4):
        raise ConfigError(
            f"{what} holds {len(values):,} different numbers in {len(labels):,} examples.", fix=_REGRESSION
        )
    return y.reshape(-1).astype(np.int64), tuple(str(int(value)) for value in values)


_REGRESSION = "That looks like regression, which Isoflop does not do; choose a label with few different values."
