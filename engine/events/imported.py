"""Events of imported runs: where a run comes from, and its points in columns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.events.base import Count, EncodableStr, Event, Float64s, Kept, Moment, Seconds


class Origin(BaseModel):
    """Where an imported run came from. Nothing here vouches for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Moment  # of the import
    form: Literal["report", "curve"]  # a report of Isoflop, or somebody's table of numbers
    title: EncodableStr = ""  # of the report; of a curve the name it was given
    made: Moment | None = None  # the report, by its own account
    isoflop: EncodableStr = ""  # the version that made it
    from_run_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""  # its id there
    content_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # of the report's JSON as it came
    hash_matches: bool | None = None  # with the hash the file names for itself; None where it names none
    notes: tuple[EncodableStr, ...] = ()  # what was left out, guessed, or does not fit


class Imported(Event):
    """The run was not made here: it is what a file says. Nothing of it runs, and it tells nothing of this machine.

    What its report says of it as a whole stands in `frozen` (summary, energy, figures, each as its own class writes it):
    they were made from all that was known there, which may be more than the file holds.
    """

    kind: Literal["imported"] = "imported"
    origin: Origin
    recorded_steps: Count  # more than there are rows of, where the report was thinned
    evaluation_s: Seconds = 0.0
    problems: tuple[EncodableStr, ...] = ()  # of its log, when the report was made
    missing_readings: dict[EncodableStr, EncodableStr] = Field(default_factory=dict)
    frozen: dict[str, Any]


class Rows(Event):
    """A piece of a table of an imported run, as its report holds it. A column that is not there is unknown."""

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
_RISING = ("seconds", "elapsed", "samples")  # clocks and counts; unknown throughout, or known throughout


def _check_rising(name: str, column: np.ndarray, *, whole: bool) -> None:
    if name in _RISING and np.isnan(column).all():
        return
    if not np.isfinite(column).all() or column.min() < 0 or column.max() >= 2**53:
        raise ValueError(f"{name} holds what is no number from 0 to 2^53")
    if (np.diff(column) < 0).any():
        raise ValueError(f"{name} falls from row to row")
    if whole and (column != np.rint(column)).any():
        raise ValueError(f"{name} holds fractions")
