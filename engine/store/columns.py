"""Growing tables of numbers that hold the points of a run."""

from __future__ import annotations

from typing import Any

import numpy as np


class Table:
    """Columns of float64 that grow at the end; appending is amortised O(1).

    With `keep`, the table holds only about the newest `keep` rows (never fewer); `len` also counts the dropped rows.
    """

    def __init__(self, *names: str, keep: int | None = None) -> None:
        self.names = names
        self._data = np.empty((len(names), 64))
        self._rows = 0
        self._keep = keep
        self._dropped = 0
        # Columns that an imported table does not have. They hold NaN, which here does not mean a measured NaN.
        self.unknown: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return self._dropped + self._rows

    def extend(self, *columns: Any) -> None:
        """Append rows: one array of shape (rows,), or one number for all rows, per column in the order of `names`."""
        added = max(np.size(c) for c in columns)
        if self._rows + added > self._data.shape[1]:
            before = self._data[:, : self._rows]
            self._data = np.empty((len(self.names), max(2 * self._data.shape[1], self._rows + added)))
            self._data[:, : self._rows] = before  # the memory of new rows is not touched until they are written
        for row, column in zip(self._data, columns, strict=True):
            row[self._rows : self._rows + added] = column
        self._rows += added
        if self._keep is not None and self._rows > 8 * self._keep:
            self._data = self._data[:, self._rows - self._keep : self._rows].copy()
            self._dropped += self._rows - self._keep
            self._rows = self._keep

    def __getitem__(self, name: str) -> np.ndarray:
        return self._data[self.names.index(name), : self._rows]

    def knows(self, name: str) -> bool:
        """Whether the source of the rows had this column."""
        return name not in self.unknown

    def last(self, name: str) -> float | None:
        """The last value of a column; None in an empty table."""
        return float(self[name][-1]) if self._rows else None


def samples_at(steps: Any, step: np.ndarray) -> np.ndarray:
    """Samples seen after each of some steps (n,): 0 before the first step, NaN where the table `steps` does not say.

    An imported table can lack steps, which are interpolated, or samples.
    """
    if not len(steps):
        return np.where(step > 0, np.nan, 0.0)
    known = np.concatenate([[0.0], steps["step"]]), np.concatenate([[0.0], steps["samples"]])
    return np.interp(step, *known, right=np.nan)


HARDWARE = (
    "process_cpu_percent", "system_cpu_percent", "process_memory_bytes", "system_memory_used_bytes",
    "gpu_utilization_percent", "gpu_memory_used_bytes", "gpu_power_w", "gpu_temperature_c", "gpu_sm_clock_hz",
    "gpu_throttle_reasons", "gpu_other_processes", "energy_j", "cpu_power_w",
)  # fmt: skip
COLUMNS = {  # table of a run -> its columns
    "steps": ("step", "loss", "seconds", "elapsed", "samples", "lr"),
    "evaluations": ("step", "seconds", "elapsed", "test_loss", "test_accuracy"),
    "hardware": ("elapsed", *HARDWARE),
    "throughput": ("elapsed", "samples_per_s"),
    "grad_norms": ("step", "seconds", "elapsed", "grad_norm"),
}
