"""Checks of a user's data: inputs that cannot teach a model, or that give the class away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.common import units
from engine.common.errors import ConfigError
from engine.data.user_files.files import quoted

_MOST_NAMED = 5
_DOMINANT = 0.8  # share of the largest class above which the user is warned
_FEW_CHANGES = 0.25  # of the class, compared with a random order of the rows
_EQUAL_STEPS = 0.9  # share of equal differences between the rows of a counter
_OTHER_SCALE = 10.0  # ratio of two ranges
_OUTSIDE = 0.01  # share of test values outside the training range


def refuse_constant(x: np.ndarray) -> None:
    """Check the training inputs (n, ...).

    Raises:
        ConfigError: All samples are equal.
    """
    if all((sample == x[0]).all() for sample in x):
        raise ConfigError(
            f"all {len(x):,} training inputs are equal, so a model can learn nothing from them.",
            fix="Check the file: images may be blank, or transparent where they should show something.",
        )


def constant_features(x: np.ndarray, names: Sequence[str]) -> list[str]:
    """A sentence about the features of vectors (n, f) that are the same in every training sample."""
    if x.ndim != 2 or not len(found := np.flatnonzero(x.min(axis=0) == x.max(axis=0))):
        return []
    they = "it tells" if len(found) == 1 else "they tell"
    return [f"{_features(found, names)} the same in every training sample, so {they} nothing."]


def row_counters(x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> list[str]:
    """Warnings of features of (n, f) that count the rows and predict the class, with labels (n,)."""
    start = np.diff(x[:10], axis=0)
    candidates = np.flatnonzero((start > 0).all(axis=0) | (start < 0).all(axis=0))
    share = np.bincount(y) / len(y)
    usual = len(y) * (1 - np.square(share).sum())  # changes of the class in a random order of the rows
    found = []
    for feature in candidates:
        steps = np.diff(x[:, feature])
        is_counter = ((steps > 0).all() or (steps < 0).all()) and (steps == np.median(steps)).mean() >= _EQUAL_STEPS
        if is_counter and np.count_nonzero(np.diff(y)) < _FEW_CHANGES * usual:
            found.append(feature)
    if not found:
        return []
    return [
        f"{_features(np.array(found), names)} a counter of the rows, and the rows are sorted by class: a model can read "
        "the class from it. Remove the column, or the accuracy says nothing about new data."
    ]


def class_balance(train: np.ndarray, test: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Warnings about classes that are not tested and about one that dominates, for the labels of both splits."""
    trained, tested = (np.bincount(y, minlength=len(classes)) for y in (train, test))
    found, untested = [], np.flatnonzero(tested == 0)
    if len(untested) == 1:
        name, count = quoted(classes[untested[0]]), int(trained[untested[0]])
        found.append(f"Class {name} is not tested: none of its {count:,} samples is in the test split.")
    elif len(untested):
        shown = ", ".join(quoted(classes[i]) for i in untested[:_MOST_NAMED])
        more = ", …" if len(untested) > _MOST_NAMED else ""
        found.append(f"{len(untested):,} of {len(classes):,} classes are not tested: {shown}{more}.")
    counts = trained + tested
    largest = int(counts.argmax())
    if (share := counts[largest] / counts.sum()) >= _DOMINANT:
        found.append(
            f"{units.percent(float(share))} of the samples have the class {quoted(classes[largest])}: always answering "
            "it is about as accurate."
        )
    return found


def other_range(train: np.ndarray, test: np.ndarray, names: Sequence[str] = ()) -> list[str]:
    """A warning if test inputs are scaled differently from training inputs or lie outside their range.

    For splits that the user made. Both are (n, f), compared by feature, or (n, c, h, w), compared as a whole.
    """
    axes = 0 if train.ndim == 2 else None
    low, high = (np.atleast_1d(f(train, axis=axes)).astype(np.float64) for f in (np.min, np.max))
    test_low, test_high = (np.atleast_1d(f(test, axis=axes)).astype(np.float64) for f in (np.min, np.max))
    width, test_width = high - low, test_high - test_low
    scaled = (len(test) >= 10) & (width > 0) & (_OTHER_SCALE * test_width < width) & (test_width > 0)
    scaled |= (width > 0) & (test_width > _OTHER_SCALE * width)
    beyond = (test < low) | (test > high) if axes is None else (test < low[None]) | (test > high[None])
    outside = np.atleast_1d(beyond.mean(axis=axes)) > _OUTSIDE
    outside &= (test_high > high + width) | (test_low < low - width)
    if not (found := np.flatnonzero(scaled | outside)).size:
        return []
    i = found[0]
    of_what = "" if axes is None else f" in {_features(found[:1], names, verb=False)}"
    more = f" ({len(found) - 1:,} more features are like this)" if len(found) > 1 else ""
    return [
        f"Test inputs lie outside the training range or are scaled differently{of_what}: training values go from "
        f"{low[i]:g} to {high[i]:g}, test values from {test_low[i]:g} to {test_high[i]:g}{more}."
    ]


def _features(found: np.ndarray, names: Sequence[str], *, verb: bool = True) -> str:
    shown = [quoted(names[i]) if len(names) else f"{i + 1}" for i in found[:_MOST_NAMED]]
    words = ", ".join(shown) + (", …" if len(found) > _MOST_NAMED else "")
    if len(found) == 1:
        return f"Feature {words}{' is' if verb else ''}"
    return f"{len(found):,} features ({words}) are"
