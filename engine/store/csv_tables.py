"""The points of a run as CSV: numbers only, so that no spreadsheet takes a cell for a formula; empty where not known."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from engine.store.columns import COLUMNS

_WHOLE = {"step", "samples"}
NAN_IS_MEASURED = frozenset({"loss", "test_loss", "grad_norm"})  # in other columns NaN means: not known


class Columns(Protocol):
    """A table of numbers: its columns by name, each an array of shape (rows,)."""

    def __len__(self) -> int: ...
    def __getitem__(self, name: str, /) -> np.ndarray: ...


class Tables(Protocol):
    """What holds the tables of a run: `store.Run`, and a run in a report."""

    @property
    def steps(self) -> Columns: ...
    @property
    def evaluations(self) -> Columns: ...
    @property
    def hardware(self) -> Columns: ...
    @property
    def throughput(self) -> Columns: ...
    @property
    def grad_norms(self) -> Columns: ...


def csv_of(run: Tables) -> dict[str, str]:
    """Each table that has rows, by name; a column that is not known throughout is left out."""
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
    if math.isnan(value):
        return "nan" if name in NAN_IS_MEASURED else ""
    return f"{value:.0f}" if name in _WHOLE and math.isfinite(value) else f"{value:.17g}"
