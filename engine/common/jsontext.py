"""JSON text, with NaN and infinity as null."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.common.sanitize import visible_json

_PIECE = 65_536  # values of an array that are text at one time
_LARGEST = 2.0**63


JSON_ESCAPES = "isoflop.json"  # a handler of encoding errors: characters that the encoding lacks become JSON escapes
codecs.register_error(JSON_ESCAPES, lambda error: _escapes(error))


def _escapes(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


@dataclass(frozen=True, slots=True)
class Counts:
    """Whole numbers (n,) in float64, as the tables of a run hold them; NaN is unknown."""

    values: np.ndarray


def json_text(value: Any) -> str:
    """`value` as standard JSON. NaN and infinity become null, because JSON has no number for them."""
    return "".join(json_pieces(value))


def json_pieces(value: Any) -> Iterator[str]:
    """The text of `json_text` in pieces, so that the columns of a long run are never text all at once."""
    match value:
        case dict():
            yield "{"
            for number, (key, inner) in enumerate(value.items()):
                yield f"{', ' if number else ''}{_plain(str(key))}: "
                yield from json_pieces(inner)
            yield "}"
        case list() | tuple():
            yield "["
            for number, inner in enumerate(value):
                yield ", " if number else ""
                yield from json_pieces(inner)
            yield "]"
        case np.ndarray() | Counts():
            yield from _array(value)
        case float() if not math.isfinite(value):
            yield "null"
        case _:
            yield _plain(value)


def _plain(value: Any) -> str:
    return visible_json(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _array(column: np.ndarray | Counts) -> Iterator[str]:
    values = column.values if isinstance(column, Counts) else column
    yield "["
    for first in range(0, len(values), _PIECE):
        piece = values[first : first + _PIECE]
        yield (", " if first else "") + (_few(piece, column) if len(values) <= _PIECE else _many(piece, column))
    yield "]"


def _few(piece: np.ndarray, column: np.ndarray | Counts) -> str:
    numbers = [v if math.isfinite(v) else None for v in piece.tolist()]
    whole = isinstance(column, Counts)
    return json.dumps([None if v is None else int(v) for v in numbers] if whole else numbers)[1:-1]


def _many(piece: np.ndarray, column: np.ndarray | Counts) -> str:
    """As `_few`, five times as fast. Its import takes longer than a few numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    known = np.isfinite(piece)
    if isinstance(column, Counts):
        known &= np.abs(piece) < _LARGEST
        piece = np.where(known, piece, 0).astype(np.int64)
    text = pc.fill_null(pc.cast(pa.array(piece, mask=~known), pa.string()), "null")
    joined = pc.binary_join(pa.ListArray.from_arrays([0, len(text)], text), ", ")[0]
    return str(joined.as_py())
