"""Turns the text of a table's column into features: numbers, dates, yes and no, or one feature per category."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.common.errors import ConfigError
from engine.data.user_files.files import quoted
from engine.data.user_files.labels import narrowed

MOST_CATEGORIES = 50

# What pandas and Arrow write for a missing value. "None" is not one of them, because it is often a class.
MISSING = frozenset({"", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "-nan", "-NaN", "null", "NULL"})
_MISSING = pa.array(sorted(MISSING))
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_COMMA_NUMBER = r"^[+-]?[0-9]*,[0-9]+([eE][+-]?[0-9]+)?$"
_YES_AND_NO = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
_YES = {"true", "yes", "t", "y"}
_DATE_FORMATS = ("%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y")  # besides ISO 8601
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Features:
    """The features of one column: `values` (n, k) float64, or float32 if exact. A column that is left out has none."""

    values: np.ndarray
    names: tuple[str, ...]  # of each feature
    use: str  # how the column is read, or why it is left out


def is_number(text: str) -> bool:
    """Whether a text is written as a number, with a decimal point."""
    return re.match(_NUMBER, text) is not None


def features_of(column: pa.Array, name: str, row_of: Callable[[int], int], *, decimal_comma: bool) -> Features:
    """The features of a column of texts or numbers (n,). `row_of` gives the row in the file of an index.

    With `decimal_comma`, 1,10 is 1.10.

    Raises:
        ConfigError: A number is missing or not finite, or some values are numbers and others are not.
    """
    is_text = pa.types.is_string(column.type)
    texts = pc.utf8_trim_whitespace(column) if is_text else column
    missing = (pc.is_in(texts, _MISSING) if is_text else texts.is_null()).to_numpy(zero_copy_only=False)
    if missing.all():
        return _left_out(len(texts), "every value is missing")
    if not is_text:
        return _number(texts, missing, name, row_of)
    numbers = _numbers(texts, missing, decimal_comma)
    if 2 * numbers.sum() >= (~missing).sum():
        return _number_in_text(texts, missing, numbers, name, row_of)
    return _words(texts, missing, name, row_of)


def _numbers(texts: pa.Array, missing: np.ndarray, decimal_comma: bool) -> np.ndarray:
    """Mask (n,) of the texts that are numbers."""
    numbers = pc.match_substring_regex(texts, _NUMBER).to_numpy(zero_copy_only=False)
    if not decimal_comma:
        return numbers
    with_comma = pc.match_substring_regex(texts, _COMMA_NUMBER).to_numpy(zero_copy_only=False)
    points = pc.match_substring(texts, ".").to_numpy(zero_copy_only=False)
    return numbers | with_comma if with_comma.any() and not points[~missing].any() else numbers


def _number_in_text(
    texts: pa.Array, missing: np.ndarray, numbers: np.ndarray, name: str, row_of: Callable[[int], int]
) -> Features:
    if not (missing | numbers).all():
        wrong = int(np.argmin(missing | numbers))
        value = texts[wrong].as_py()
        has_comma = re.match(_COMMA_NUMBER, value) is not None
        raise ConfigError(
            f"row {row_of(wrong)}, column {quoted(name)} has the value {quoted(value)}, but features must be numbers.",
            fix="Write numbers with a decimal point."
            if has_comma
            else "Correct it, or name the column in source.label if it is the label.",
        )
    commas = pc.match_substring(texts, ",").to_numpy(zero_copy_only=False).any()
    plain = pc.replace_substring(pc.utf8_ltrim(texts, "+"), ",", ".")
    known = pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), plain)
    return _number(pc.cast(known, pa.float64()), missing, name, row_of, with_commas=commas)


def _number(
    column: pa.Array, missing: np.ndarray, name: str, row_of: Callable[[int], int], *, with_commas: bool = False
) -> Features:
    if missing.any():
        raise ConfigError(
            f"row {row_of(int(np.argmax(missing)))}, column {quoted(name)} is empty or NaN.",
            fix="Fill it, or remove the row or the column.",
        )
    values = column.to_numpy(zero_copy_only=False)
    if not (finite := _is_finite(values)).all():
        raise ConfigError(
            f"row {row_of(int(np.argmin(finite)))}, column {quoted(name)} is not finite in float32.",
            fix="Remove or scale it.",
        )
    use = "number with decimal commas" if with_commas else "number"
    return Features(narrowed(values)[:, None], (name,), use)


def _is_finite(values: np.ndarray) -> np.ndarray:
    """Mask of the values that are finite in float32, in which models compute."""
    with np.errstate(over="ignore"):
        return np.isfinite(values.astype(np.float32))


def _words(texts: pa.Array, missing: np.ndarray, name: str, row_of: Callable[[int], int]) -> Features:
    """Dates, yes and no, or categories; text with many different values is left out.

    Raises:
        ConfigError: A date is missing.
    """
    encoded = texts.dictionary_encode()
    words, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    known = [word for word in words if word not in MISSING]
    lowered = {word.lower() for word in known}
    if not missing.any() and len(lowered) == 2 and lowered in _YES_AND_NO:
        values = np.array([float(word.lower() in _YES) for word in words])
        yes = next(word for word in words if word.lower() in _YES)
        return Features(values[index][:, None], (name,), f"yes or no: {quoted(yes)} is 1")
    if (days := _days(pa.array(known))) is not None:
        if missing.any():
            raise ConfigError(
                f"row {row_of(int(np.argmax(missing)))}, column {quoted(name)} has no date.",
                fix="Fill it, or remove the row or the column.",
            )
        return Features(days[index][:, None], (name,), "date, as days since 1970-01-01")
    if len(words) == 1:
        return _left_out(len(texts), "the same text in every row")
    if len(known) > MOST_CATEGORIES or 2 * len(words) > len(texts):
        return _left_out(len(texts), f"text with {len(known):,} different values")
    order = sorted(range(len(words)), key=lambda i: (words[i] in MISSING, words[i]))  # the missing ones come last
    columns = np.empty(len(words), np.int64)
    columns[order] = np.arange(len(words))
    one_hot = np.zeros((len(texts), len(words)), np.float32)
    one_hot[np.arange(len(texts)), columns[index]] = 1
    shown = ["missing" if words[i] in MISSING else words[i] for i in order]
    use = f"{len(known)} categories, one-hot" + (", and one for missing values" if missing.any() else "")
    return Features(one_hot, tuple(f"{name}={word}" for word in shown), use)


def _days(dates: pa.Array) -> np.ndarray | None:
    """Days (n,) since 1970-01-01 of texts that all are dates of one format; None if they are not, or could be of two."""
    found: list[np.ndarray] = []
    for zone in (None, "UTC"):
        try:
            found.append(_in_days(pc.cast(dates, pa.timestamp("us", zone))))
        except pa.ArrowInvalid:
            continue
    if not found:
        parsed = [pc.strptime(dates, format=form, unit="s", error_is_null=True) for form in _DATE_FORMATS]
        found = [_in_days(days) for days in parsed if not days.null_count]
    return found[0] if found and all(np.array_equal(found[0], other) for other in found[1:]) else None


def _in_days(moments: pa.Array) -> np.ndarray:
    return moments.to_numpy(zero_copy_only=False).astype("M8[us]").astype(np.float64) / (_DAY_S * 1e6)


def _left_out(rows: int, reason: str) -> Features:
    return Features(np.empty((rows, 0), np.float32), (), f"left out: {reason}")
