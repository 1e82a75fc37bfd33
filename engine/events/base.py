"""The base class of events, and the types of their fields: packed arrays, bounded numbers, text."""

from __future__ import annotations

import base64
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from engine.common.sanitize import encodable
from engine.events.summary import Work

Status = Literal["queued", "starting", "running", "stopping", "finished", "cancelled", "failed", "interrupted"]
TERMINAL: frozenset[Status] = frozenset({"finished", "cancelled", "failed", "interrupted"})


def _unpack(dtype: str) -> PlainValidator:
    def unpack(value: Any) -> np.ndarray:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype=dtype)
        return _vector(value, dtype)

    return PlainValidator(unpack)


def _vector(value: Any, dtype: str) -> np.ndarray:
    """`value` as an array (n,).

    Raises:
        ValueError: It is none. Pydantic expects this class where numpy raises TypeError.
    """
    try:
        array = np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not an array of numbers: {type(value).__name__}") from error
    if np.ndim(value) != 1:
        raise ValueError("not a one-dimensional array")
    return array


_PACK = PlainSerializer(lambda array: base64.b64encode(array.tobytes()).decode(), return_type=str)
Float32s = Annotated[np.ndarray, _unpack("<f4"), _PACK]  # (n,)
Float64s = Annotated[np.ndarray, _unpack("<f8"), _PACK]  # (n,)
Int32s = Annotated[np.ndarray, _unpack("<i4"), _PACK]  # (n,)


def _unpack_rate(value: Any) -> float | np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f8")
    if isinstance(value, int | float):
        return float(_vector([value], "<f8")[0])
    return _vector(value, "<f8")


def _pack_rate(value: float | np.ndarray) -> float | str:
    return value if isinstance(value, float) else base64.b64encode(value.astype("<f8").tobytes()).decode()


Rate = Annotated[float | np.ndarray, PlainValidator(_unpack_rate), PlainSerializer(_pack_rate)]  # scalar or (n,)
NOTHING = np.empty(0)

# Bounds within which arithmetic and dates work. Logs can come from elsewhere; a value outside makes an event invalid.
Count = Annotated[int, Field(ge=0, lt=2**63)]
StepNumber = Annotated[int, Field(ge=1, lt=2**53)]
Moment = Annotated[float, Field(ge=0, lt=253_402_300_800)]  # Unix time until the year 10,000, s
Seconds = Annotated[float, Field(ge=0, lt=1e12)]


def _encodable(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value


# Text from outside, such as a file name inside an error. The log is UTF-8; if a final event could not be encoded, its
# run would never end.
EncodableStr = Annotated[str, BeforeValidator(_encodable)]

# Text in a report, cut after 2,000 characters.
BoundedStr = Annotated[str, BeforeValidator(lambda value: value[:2_000] if isinstance(value, str) else value)]


Kept = Literal["latest", "every", "each key", "series", "columns"]
"""How `Run` keeps the events of a class. latest: only the last one. every: all, in order. each key: the last one of each
`key`. series: all, or as many of the last ones as the reader keeps points. columns: none, because tables hold its
numbers."""


class Event(BaseModel):
    """Base class of the events of a run."""

    # A diverged run has NaN and infinity. JSON has no such numbers, so they are the strings "NaN" and "Infinity".
    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="strings")

    if TYPE_CHECKING:
        kind: str  # each class declares its own, with a default: its name in the log

    kept: ClassVar[Kept] = "latest"

    def facts(self) -> list[tuple[str, str]]:
        """Title and text of each number and text of the event, for a task that has no card of its own."""
        plain = ((name, value) for name, value in self if name != "kind" and isinstance(value, str | int | float))
        return [(name, f"{value:.6g}" if isinstance(value, float) else str(value)) for name, value in plain]

    @property
    def work(self) -> Work | None:
        """The work of the trial that the event reports; the summary of a study adds them up. None: it reports no trial."""
        return None

    @property
    def key(self) -> Hashable:
        """What two events of a class share if the later one replaces the earlier; used where `kept` is "each key"."""
        return None


def is_number(value: float | None) -> bool:
    """Whether a value is known and finite."""
    return value is not None and math.isfinite(value)
