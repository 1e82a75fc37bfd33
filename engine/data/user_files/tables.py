"""Reads a table: a CSV with a header row. One column is the label; the others become features."""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays, Preview
from engine.data.user_files.features import MISSING, Features, features_of, is_number
from engine.data.user_files.files import check_bytes, quoted, sha256_of
from engine.data.user_files.labels import labelled, looks_like_regression, numbered

MAX_COLUMNS = 100_000
_PREVIEW_ROWS = 5
_MOST_NAMED = 5  # columns, rows or classes in one sentence


def read_csv(path: Path, source: Source) -> Arrays:
    """Features (n, f) float64 in the order of their columns; float32 if that loses nothing.

    Raises:
        ConfigError: As `user_files.read` does.
    """
    header = _header(path)
    names, label = header.names, _label_column(header.names, source.label)
    first = _first_rows(path, header)
    table = _table(path, header, label, first)
    if table.num_rows == 0:
        raise ConfigError("has no rows below its header.")
    texts = pc.utf8_trim_whitespace(table.column(label).combine_chunks())
    kept = np.flatnonzero(~pc.is_in(texts, pa.array(sorted(MISSING))).to_numpy(zero_copy_only=False))
    notes = _without_label(path, header, len(texts), kept)
    if not len(kept):
        raise ConfigError(f"label column {quoted(names[label])} is empty.", fix="Choose another label.")
    if len(kept) < len(texts):
        table, texts = table.take(kept), texts.take(kept)

    def row_of(index: int) -> int:
        return _line(path, header, int(kept[index]))

    features = {
        i: features_of(table.column(i).combine_chunks(), name, row_of, decimal_comma=header.delimiter != ",")
        for i, name in enumerate(names)
        if i != label
    }
    x, y = _joined(list(features.values()), len(texts)), _text_labels(texts, names[label])
    uses = ["label" if i == label else features[i].use for i in range(len(names))]
    notes += _uses_in_words(names, uses)
    return labelled(
        path.name,
        x,
        *y,
        sha256_of(path),
        notes=notes,
        names=[name for column in features.values() for name in column.names],
        preview=Preview(columns=tuple(names), uses=tuple(uses), rows=tuple(map(tuple, first[:_PREVIEW_ROWS]))),
    )


def column_names(path: Path) -> list[str]:
    """The names of the columns. Raises ConfigError as `_header` does."""
    return _header(path).names


def _joined(columns: Sequence[Features], rows: int) -> np.ndarray:
    """All features (n, f).

    Raises:
        ConfigError: There are none, or too many.
    """
    width = sum(len(column.names) for column in columns)
    if not width:
        reasons = "; ".join(dict.fromkeys(column.use for column in columns))
        raise ConfigError(f"has no column that can be a feature ({reasons}).", fix="Add a column of numbers.")
    dtype = np.result_type(*(column.values for column in columns))
    check_bytes(rows * width * dtype.itemsize)
    return np.concatenate([column.values for column in columns], axis=1, dtype=dtype)


def _without_label(path: Path, header: _Header, count: int, kept: np.ndarray) -> list[str]:
    """The sentence about rows without a label, if there are any."""
    if len(kept) == count:
        return []
    missing = np.setdiff1d(np.arange(count), kept)
    rows = ", ".join(str(_line(path, header, int(i))) for i in missing[:_MOST_NAMED])
    more = ", …" if len(missing) > _MOST_NAMED else ""
    if len(missing) == 1:
        return [f"1 row has no label and is left out (row {rows})."]
    return [f"{len(missing):,} rows have no label and are left out (rows {rows}{more})."]


def _uses_in_words(names: Sequence[str], uses: Sequence[str]) -> list[str]:
    """A sentence for each way in which columns are read, except plain numbers and the label."""
    by_use: dict[str, list[str]] = {}
    for name, use in zip(names, uses, strict=True):
        if use not in ("number", "label"):
            by_use.setdefault(use, []).append(quoted(name))
    sentences = []
    for use, columns in by_use.items():
        shown = ", ".join(columns[:_MOST_NAMED]) + (", …" if len(columns) > _MOST_NAMED else "")
        what = f"{len(columns):,} columns ({shown})" if len(columns) > 1 else f"Column {shown}"
        verb = "are" if len(columns) > 1 else "is"
        sentences.append(f"{what} {verb} {use}." if use.startswith("left out") else f"{what} {verb} read as {use}.")
    return sentences


@dataclass(frozen=True, slots=True)
class _Header:
    names: list[str]
    delimiter: str  # comma, semicolon or tab
    lines: int  # of the file; a quoted name can contain a line break


def _header(path: Path) -> _Header:
    """The column names and the delimiter.

    Raises:
        ConfigError: The file is not a CSV in UTF-8, or its first row is not a header.
    """
    with path.open("rb") as file:
        lines = _first_record(file)
        start = b"".join(lines)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ConfigError("is a text in UTF-16.", fix="Save it as UTF-8.")
        if b"\0" in start + file.read(65_536):
            raise ConfigError("is not a CSV: it contains zero bytes.")
    try:
        text = start.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError("is not a CSV in UTF-8.", fix="Save it as UTF-8.") from None
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", text).count)
    try:
        rows = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        names = [" ".join(name.split()) for name in next(rows, [])]
    except csv.Error:
        raise ConfigError("is not a CSV: its first row is not a header.") from None
    _check_names(names)
    return _Header(names, delimiter, len(lines))


def _first_record(file: IO[bytes]) -> list[bytes]:
    """The lines of the first row: a line break inside quotes does not end it."""
    lines = [file.readline(16 << 20)]
    while sum(line.count(b'"') for line in lines) % 2 and len(lines) < 1_000:
        if not (line := file.readline(65_536)):
            break
        lines.append(line)
    return lines


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2:
        raise ConfigError(
            f"has {len(names)} column; a feature and a label are needed.", fix="Separate the columns by commas."
        )
    if len(names) > MAX_COLUMNS:
        raise ConfigError(f"has {len(names):,} columns, more than the limit of {MAX_COLUMNS:,}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    numbers = [name for name in names if is_number(name)]
    # pandas names columns 0, 1, 2, ...; names such as 5.1 or -3, or a number that occurs twice, are data
    if len(numbers) >= len(names) - 1 and (any(map(is_number, twice)) or not all(map(str.isdigit, numbers))):
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


_SAMPLED_ROWS = 100
_SAMPLED_BYTES = 4 << 20


def _first_rows(path: Path, header: _Header) -> list[list[str]]:
    """The first data rows as text. A row that is cut off, or has more or fewer columns than the header, ends them."""
    with path.open("rb") as file:
        for _ in range(header.lines):
            file.readline()
        content = file.read(_SAMPLED_BYTES)
    found: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader(io.StringIO(content.decode(errors="replace"), newline=""), delimiter=header.delimiter):
            if row and len(row) != len(header.names):
                break
            found += [[value.strip() for value in row]] if row else []
            if len(found) == _SAMPLED_ROWS:
                return found
    return found[:-1] if len(content) == _SAMPLED_BYTES else found


_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+)")
_CONVERSION = re.compile(r"column #(\d+): .*conversion error", re.DOTALL)
_MOST_ATTEMPTS = 20
_TEXT_BYTES = 1 << 30  # Arrow reserves a block for each column of text


def _table(path: Path, header: _Header, label: int, first: Sequence[Sequence[str]]) -> pa.Table:
    """The label as text; a column as float64 if all of its values are numbers or missing, else as text.

    Columns are named by position, because users' names can be any text. `first` has the first rows.

    Raises:
        ConfigError: The table cannot be read.
    """
    count = len(header.names)
    text = {i for i in range(count) if any(not is_number(row[i]) and row[i] not in MISSING for row in first)} | {label}
    attempts = 0
    while True:
        types = {str(i): pa.string() if i in text else pa.float64() for i in range(count)}
        try:
            return _read(path, header, types, min(16 << 20, max(1 << 20, _TEXT_BYTES // len(text))))
        except pa.ArrowInvalid as error:
            found, attempts = _CONVERSION.search(str(error)), attempts + 1
            if not found or int(found[1]) in text:
                failure = _table_error(str(error), path, header)
                raise failure from None
            # Its first text is further down.
            text = text | {int(found[1])} if attempts < _MOST_ATTEMPTS else set(range(count))


def _read(path: Path, header: _Header, types: dict[str, pa.DataType], block_bytes: int) -> pa.Table:
    # one thread, because only then errors state the row
    reading = arrow_csv.ReadOptions(
        use_threads=False, column_names=list(types), skip_rows=header.lines, block_size=block_bytes
    )
    parsing = arrow_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True)
    converting = arrow_csv.ConvertOptions(column_types=types, null_values=sorted(MISSING))
    with pa.OSFile(str(path)) as file:  # not the path, because read_csv would unpack a .gz
        return arrow_csv.read_csv(file, reading, parsing, converting)


def _table_error(text: str, path: Path, header: _Header) -> ConfigError:
    """The ConfigError for an error message of pyarrow."""
    if found := _RAGGED.search(text):
        row, expected, there = map(int, found.groups())
        return ConfigError(
            f"row {_line(path, header, row - header.lines - 1)} has {there} columns, but the header has {expected}.",
            fix="Repair or remove the row.",
        )
    if "Empty CSV" in text:
        return ConfigError("has no rows below its header.")
    return ConfigError("cannot be read as a CSV in UTF-8.", fix="Save it as a CSV in UTF-8.")


def _line(path: Path, header: _Header, index: int) -> int:
    """The row number in a spreadsheet of the data row `index`, counting from 0. It counts blank lines; pyarrow does not."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.reader(file, delimiter=header.delimiter)
        filled = (number for number, row in enumerate(rows, start=1) if row)
        return next(islice(filled, index + 1, None), index + 2)


def _text_labels(texts: pa.Array, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels (n,) int64, and the classes: sorted as numbers if all are numbers, else as text.

    Raises:
        ConfigError: `numbered` refuses the labels.
    """
    encoded = texts.dictionary_encode()
    words, index = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if all(map(_prints_back, words)) and len(set(map(float, words))) == len(words):
        return numbered(np.array(words, dtype=np.float64)[index], what=f"label column {quoted(name)}")
    if all(map(is_number, words)):
        looks_like_regression(np.bincount(index), what=f"label column {quoted(name)}")
    order = sorted(range(len(words)), key=words.__getitem__)
    rank = np.empty(len(words), np.int64)
    rank[order] = np.arange(len(words))
    return rank[index], tuple(words[i] for i in order)


def _prints_back(text: str) -> bool:
    """Whether a text is a number that is printed as this text. Others, such as 1_10, 007 or 1.10, are names."""
    try:
        value = float(text)
        return math.isfinite(value) and text in (repr(value), str(int(value)))
    except ValueError:
        return False
