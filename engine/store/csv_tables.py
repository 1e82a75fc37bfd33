"""The points of a run as CSV. Cells are numbers only, so that no spreadsheet reads one as a formula; unknown is empty."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from engine.store.columns import COLUMNS

WHOLE = frozenset({"step", "samples"})
NAN_IS_MEASURED = frozenset({"loss", "test_loss", "grad_norm"})  # in other columns NaN means unknown


class Columns(Protocol):
    """A table of numbers: its columns by name, each an array of shape (rows,)."""

    def __len__(self) -> int: ...
    def __getitem__(self, name: str, /) -> np.ndarray: ...


class Tables(Protocol):
    """An object with the tables of a run: `store.run.Run`, or a run in a report."""

    @property
    def steps(self) -> Columns:
        """One row per optimizer step."""
        ...

    @property
    def evaluations(self) -> Columns:
        """One row per evaluation on the test split."""
        ...

    @property
    def hardware(self) -> Columns:
        """One row per hardware sample."""
        ...

    @property
    def throughput(self) -> Columns:
        """Samples/s, one row per time window."""
        ...

    @property
    def grad_norms(self) -> Columns:
        """One row per measured gradient norm."""
        ...


def csv_of(run: Tables) -> dict[str, str]:
    """CSV text of each table that has rows, by table name. A column with no known value is left out."""
    found = {}
    for name, columns in COLUMNS.items():
        table = getattr(run, name)
        known = [column for column in columns if len(table) and not np.isnan(table[column]).all()]
        if known:
            found[name] = _csv(known, table)
    return found


def _csv(columns: list[str], table: Columns) -> str:
    lines = [",".join(columns)]
    rows = zip(*(table[column].tolist() for column in columns), strict=True)
    lines += [",".join(csv_cell(name, value) for name, value in zip(columns, row, strict=True)) for row in rows]
    return "\n".join(lines) + "\n"


def csv_cell(name: str, value: float) -> str:
    """The CSV cell for a value of a column: a number, `nan`, or empty if the value is unknown."""
    if math.isnan(value):
        return "nan" if name in NAN_IS_MEASURED else ""
    return f"{value:.0f}" if name in WHOLE and math.isfinite(value) else f"{value:.17g}"
