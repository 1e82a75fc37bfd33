"""Events of imported runs: their origin, and their tables in columns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.events.base import Count, EncodableStr, Event, Float64s, Kept, Moment, Seconds


class Origin(BaseModel):
    """Where an imported run comes from. Isoflop cannot verify any of it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Moment  # time of the import
    form: Literal["report", "curve"]  # report: made by Isoflop; curve: a CSV table
    title: EncodableStr = ""  # title of the report, or the name that the user gave to the curve
    made: Moment | None = None  # when the report was made, as the report states it
    isoflop: EncodableStr = ""  # version of Isoflop that made the report
    from_run_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""  # id of the run in the store that exported it
    content_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = (
        ""  # SHA-256 of the report's JSON as it was read
    )
    hash_matches: bool | None = None  # whether it equals the hash that the file states; None if the file states none
    notes: tuple[EncodableStr, ...] = ()  # what the import left out or guessed, and inconsistencies


class Imported(Event):
    """The run was imported from a file. It was not measured on this machine.

    `frozen` has what the report states about the run as a whole: summary, energy and figures, each as its class writes
    it. They were computed from the complete run, of which the file can hold fewer points.
    """

    kind: Literal["imported"] = "imported"
    origin: Origin
    recorded_steps: Count  # can exceed the number of rows, because a report can be downsampled
    evaluation_s: Seconds = 0.0
    problems: tuple[EncodableStr, ...] = ()  # problems of the run's log when the report was made
    missing_readings: dict[EncodableStr, EncodableStr] = Field(default_factory=dict)
    frozen: dict[str, Any]


class Rows(Event):
    """Consecutive rows of a table of an imported run. A column that is missing is unknown."""

    kind: Literal["rows"] = "rows"
    kept: ClassVar[Kept] = "columns"
    table: Literal["steps", "evaluations", "hardware", "throughput", "grad_norms"]
    columns: dict[str, Float64s]  # (n,) each

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) != 1 or not max(lengths):
            raise ValueError(f"columns of {', '.join(map(str, sorted(lengths))) or 'no'} rows")
        key = KEY_OF[self.table]
        if key not in self.columns:
            raise ValueError(f"{self.table} without {key}")
        for name in (key, *_RISING):
            if name in self.columns:
                _check_rising(name, self.columns[name], whole=name in {"step", "samples"})
        if self.table != "hardware" and key == "step" and (np.diff(self.columns[key]) <= 0).any():
            raise ValueError("step does not rise from row to row")
        if self.table == "steps" and self.columns[key][0] < 1:
            raise ValueError("steps are counted from 1")
        return self


KEY_OF = {"steps": "step", "evaluations": "step", "grad_norms": "step", "hardware": "elapsed", "throughput": "elapsed"}
_RISING = ("seconds", "elapsed", "samples")  # clocks and counts: either all values are known, or none is


def _check_rising(name: str, column: np.ndarray, *, whole: bool) -> None:
    if name in _RISING and np.isnan(column).all():
        return
    if not np.isfinite(column).all() or column.min() < 0 or column.max() >= 2**53:
        raise ValueError(f"{name} has a value outside 0 to 2^53")
    if (np.diff(column) < 0).any():
        raise ValueError(f"{name} falls from row to row")
    if whole and (column != np.rint(column)).any():
        raise ValueError(f"{name} has values that are not whole numbers")
