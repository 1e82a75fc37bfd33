"""The base class of configuration values, and helpers that define their fields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
DeviceName = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")]


class Spec(BaseModel):
    """Base class of all configuration values: frozen; unknown keys are refused.

    The string below a field is its help text (`use_attribute_docstrings`).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )


def field(default: Any, title: str, **constraints: Any) -> Any:
    """A field of a Spec with the title that the form shows; `constraints` are those of `pydantic.Field`."""
    return Field(default, title=title, **constraints)


def number(default: float | None, title: str, **constraints: Any) -> Any:
    """A float field that is never NaN or infinite, within the bounds ge, gt, le and lt."""
    return field(default, title, allow_inf_nan=False, **constraints)


def values(default: tuple[Any, ...], title: str, **lengths: int) -> Any:
    """A field that holds a tuple of min_length to max_length values; lists from JSON are accepted too."""
    return field(default, title, strict=False, **lengths)


def as_text(value: Any) -> str:
    """A value as a user types it on the command line. Numbers keep all their digits."""
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)
