"""Reads a table: a CSV with a header row. One column is the label; the others are features."""

from __future__ import annotations

import csv
import difflib
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays
from engine.data.user_files.files import quoted, sha256_of
from engine.data.user_files.labels import labelled, numbered

MAX_COLUMNS = 100_000


def read_csv(path: Path, source: Source) -> Arrays:
    """Features (n, f) float32 in the order of their columns.

    Raises:
        ConfigError: As `user_files.read` does.
    """
    names, delimiter = _header(path)
    label = _label_column(names, source.label)
    table = _table(path, names, delimiter, label)
    if table.num_rows == 0:
        raise ConfigError("has no rows below its header.")
    features = [i for i in range(len(names)) if i != label]
    x = np.empty((table.num_rows, len(features)), np.float32)
    for i, column in enumerate(features):
        x[:, i] = _feature(table.column(column), names[column], path)
    y, classes = _text_labels(table.column(label), names[label], path)
    return labelled(path.name, x, y, classes, sha256_of(path))


def _header(path: Path) -> tuple[list[str], str]:
    """The column names and the delimiter: comma, semicolon or tab.

    Raises:
        ConfigError: The file is not a CSV in UTF-8, or its first row is not a header.
    """
    with path.open("rb") as file:
        start = file.readline(16 << 20)
        if b"\0" in start + file.read(65_536):
            raise ConfigError("is not a CSV: it contains zero bytes.")
    try:
        line = start.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("is not a CSV in UTF-8.", fix="Save it as UTF-8.") from None
    delimiter = max(",;\t", key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error:
        raise ConfigError("is not a CSV: its first row is not a header.") from None
    _check_names(names)
    return names, delimiter


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise ConfigError(
            f"has {len(names)} column; a feature and a label are needed.", fix="Separate the columns by commas."
        )
    if len(names) > MAX_COLUMNS:
        raise ConfigError(f"has {len(names):,} columns, more than the limit of {MAX_COLUMNS:,}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    numbers = [name for name in names if _is_number(name)]
    # pandas names columns 0, 1, 2, ...; names such as 5.1 or -3, or a number that occurs twice, are data
    if len(numbers) >= len(names) - 1 and (any(map(_is_number, twice)) or not all(map(str.isdigit, numbers))):
        raise ConfigError(
            "its first row has numbers instead of column names.", fix="Add a row of column names above the data."
        )
    if twice:
        where = [str(i + 1) for i, name in enumerate(names) if name == twice[0]]
        raise ConfigError(
            f"columns {' and '.join(where[:2])} have the same name, {quoted(twice[0])}.", fix="Rename one of them."
        )


def _label_column(names: Sequence[str], label: str) -> int:
    if not label:
        return len(names) - 1
    if label in names:
        return names.index(label)
    near = difflib.get_close_matches(label, names, n=1)
    hint = f" (did you mean {quoted(near[0])}?)" if near else ""
    columns = ", ".join(names)
    raise ConfigError(
        f"source.label={label[:60]} is not one of its columns{hint}.",
        fix=f"Columns: {columns if len(columns) <= 60 else columns[:59] + '…'}",
    )


_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_CONVERSION = re.compile(r"column #(\d+): Row #(\d+): CSV conversion error to \w+: invalid value '(.*)'", re.DOTALL)


def _table(path: Path, names: Sequence[str], delimiter: str, label: int) -> pa.Table:
    """Features as float32, the label as text. Columns are named by position, because users' names can be any text."""
    columns = list(map(str, range(len(names))))
    types = {name: pa.string() if i == label else pa.float32() for i, name in enumerate(columns)}
    # one thread, because only then errors state the row
    reading = arrow_csv.ReadOptions(use_threads=False, column_names=columns, skip_rows=1, block_size=16 << 20)
    parsing = arrow_csv.ParseOptions(delimiter=delimiter)
    try:
        with pa.OSFile(str(path)) as file:  # not the path, because read_csv would unpack a .gz
            return arrow_csv.read_csv(file, reading, parsing, arrow_csv.ConvertOptions(column_types=types))
    except pa.ArrowInvalid as error:
        failure = _table_error(str(error), names, path)
        raise failure from None


def _table_error(text: str, names: Sequence[str], path: Path) -> ConfigError:
    """The ConfigError for an error message of pyarrow."""
    if found := _RAGGED.search(text):
        row, expected, there = found.groups()
        return ConfigError(
            f"row {_line(path, int(row))} has {there} columns, but the header has {expected}.",
            fix="Repair or remove the row.",
        )
    if found := _CONVERSION.search(text):
        column, row, value = found.groups()
        return ConfigError(
            f"row {_line(path, int(row))}, column {quoted(names[int(column)])} has the value {quoted(value)}, "
            "but features must be numbers.",
            fix="Remove the column, or name it in source.label if it is the label.",
        )
    if "Empty CSV" in text:
        return ConfigError("has no rows below its header.")
    return ConfigError("cannot be read as a CSV in UTF-8.", fix="Save it as a CSV in UTF-8.")


def _line(path: Path, row: int) -> int:
    """The row number in a spreadsheet, which counts blank lines; pyarrow's `row` does not."""
    with path.open("rb") as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip(b"\r\n"))
        return next(islice(filled, row - 1, None), row)


def _feature(column: pa.ChunkedArray, name: str, path: Path) -> np.ndarray:
    """The values of a column, (n,) float32.

    Raises:
        ConfigError: A value is missing or not finite.
    """
    if column.null_count:
        row = _line(path, pc.index(column.is_null(), pa.scalar(True)).as_py() + 2)
        raise ConfigError(
            f"row {row}, column {quoted(name)} is empty or NaN.", fix="Fill it, or remove the row or the column."
        )
    values = column.to_numpy()
    if not np.isfinite(values).all():
        row = _line(path, int(np.argmin(np.isfinite(values))) + 2)
        raise ConfigError(f"row {row}, column {quoted(name)} is not finite in float32.", fix="Remove or scale it.")
    return values


def _text_labels(column: pa.ChunkedArray, name: str, path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) int64, and the classes: sorted as numbers if all are numbers, else as text.

    Raises:
        ConfigError: A label is empty, or `numbered` refuses the labels.
    """
    encoded = pc.utf8_trim_whitespace(column).combine_chunks().dictionary_encode()
    texts, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if "" in texts:
        row = _line(path, int(np.argmax(index == texts.index(""))) + 2)
        raise ConfigError(f"row {row}, label column {quoted(name)} is empty.", fix="Fill it or remove the row.")
    if all(map(_is_number, texts)):
        return numbered(np.array(texts, dtype=np.float64)[index], what=f"label column {quoted(name)}")
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rank = np.empty(len(texts), np.int64)
    rank[order] = np.arange(len(texts))
    return rank[index], tuple(texts[i] for i in order)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
