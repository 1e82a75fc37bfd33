"""Tables of numbers in a report: columns that are packed into JSON without loss and unpacked within a byte budget."""

from __future__ import annotations

import base64
import zlib
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, PlainSerializer, PlainValidator, RootModel, ValidationInfo

from engine.store.columns import Table

MAX_UNPACKED_BYTES = 500_000_000  # of all columns and files of an imported report


def _pack(values: np.ndarray) -> dict[str, Any]:
    """Pack a column without loss: whole numbers (or nanoseconds) as differences, others as floats."""  # noqa: DOC501
    for per in (1, 1_000_000_000):
        whole = _whole(values, per)
        if whole is not None:
            return {"deltas": _deflated(np.diff(whole, prepend=0)), "per": per}
    for name in ("float32", "float64"):
        with np.errstate(over="ignore"):
            small = values.astype(name)
        if np.array_equal(small.astype(np.float64), values, equal_nan=True):
            return {name: _deflated(small)}
    raise AssertionError("float64 always packs a float64 column without loss")


def _whole(values: np.ndarray, per: int) -> np.ndarray | None:
    if not np.isfinite(values).all() or (len(values) and np.abs(values).max() > 2**53 / per):
        return None
    whole = np.rint(values * per)
    return whole.astype(np.int64) if np.array_equal(whole / per, values) else None


class UnpackBudget:
    """How many bytes an imported report can still unpack to, so that a small file cannot fill the memory."""

    def __init__(self, size: int | None = None) -> None:
        self.size = self.left = MAX_UNPACKED_BYTES if size is None else size

    def take(self, size: int) -> None:
        """Subtract `size` bytes.

        Raises:
            ValueError: The budget is exceeded.
        """
        self.left -= size
        if self.left < 0:
            raise ValueError(f"it would unpack to more than {self.size:,} bytes")


def _unpack(packed: Any, info: ValidationInfo) -> np.ndarray:
    if isinstance(packed, np.ndarray):
        return np.asarray(packed, np.float64)
    budget = info.context if isinstance(info.context, UnpackBudget) else UnpackBudget()
    match packed:
        case {"deltas": str(text), "per": 1 | 1_000_000_000 as per}:
            return np.cumsum(_inflated(text, "<i8", budget)) / per
        case {"float32": str(text)}:
            return _inflated(text, "<f4", budget).astype(np.float64)
        case {"float64": str(text)}:
            return _inflated(text, "<f8", budget).astype(np.float64)
    raise ValueError("a column is {deltas, per}, {float32} or {float64}")


def _deflated(values: np.ndarray) -> str:
    little = values.astype(values.dtype.newbyteorder("<"))
    return base64.b64encode(zlib.compress(little.tobytes(), 9)).decode()


def _inflated(text: str, dtype: str, budget: UnpackBudget) -> np.ndarray:
    stream = zlib.decompressobj()
    size = np.dtype(dtype).itemsize
    try:
        data = stream.decompress(base64.b64decode(text, validate=True), budget.left * size // 8 + 1)
    except zlib.error as error:
        raise ValueError(f"a column cannot be unpacked: {error}") from None
    budget.take(len(data) * 8 // size)  # every column is float64 in memory
    if not stream.eof:
        raise ValueError("a column is incomplete")
    if len(data) % size:
        raise ValueError("the last number of a column is incomplete")
    return np.frombuffer(data, dtype)


Column = Annotated[np.ndarray, PlainValidator(_unpack), PlainSerializer(_pack, return_type=dict)]


class Points(RootModel[dict[str, Column]]):
    """A frozen table: columns (n,) float64 by name. A column that it does not hold is unknown and reads as NaN."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    @classmethod
    def of(cls, table: Table) -> Points:
        """Copy the present rows, without unknown columns. Times are rounded to the nanosecond."""
        times, known = ("seconds", "elapsed"), [name for name in table.names if table.knows(name)]
        return cls({n: np.rint(table[n] * 1e9) / 1e9 if n in times else table[n].copy() for n in known})

    def knows(self, name: str) -> bool:
        """Whether the table holds this column."""
        return name in self.root

    def model_post_init(self, _context: Any) -> None:
        """Check the table.

        Raises:
            ValueError: The columns differ in length; pydantic reports it as a ValidationError.
        """
        if len({len(column) for column in self.root.values()}) > 1:
            raise ValueError("the columns of a table differ in length")

    def __len__(self) -> int:
        return len(next(iter(self.root.values()), ()))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.root[name] if name in self.root else np.full(len(self), np.nan)

    def rows(self, kept: np.ndarray) -> Points:
        """The table with only the rows of `kept`, their numbers or a mask (n,)."""
        return Points({name: column[kept] for name, column in self.root.items()})
