"""Shared by all measurements: spread, table, and a result file with the conditions."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.hardware import probe

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one figure."""

    n: int
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median and percentiles of the values."""
        p10, median, p90 = np.percentile(values, [10, 50, 90])
        return cls(len(values), float(median), float(p10), float(p90))

    def text(self, digits: int = 2, *, scale: float = 1.0) -> str:
        """The text "median (p10-p90)", with values multiplied by `scale`."""
        median, p10, p90 = (f"{v * scale:,.{digits}f}" for v in (self.median, self.p10, self.p90))
        return f"{median} ({p10}-{p90})"


def conditions() -> dict[str, Any]:
    """Hardware and versions: enough to repeat the measurement, nothing that identifies the machine."""
    cpu = probe.probe().cpu
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu.name,
        "usable_cores": cpu.usable_cores,
        "isa": None if cpu.isa is None else list(cpu.isa),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "spread": "p10-p90",
    }


def load() -> float:
    """Load average over the last minute; above the number of cores, times are not reliable."""
    return os.getloadavg()[0]


def save(name: str, figures: Mapping[str, Any], *, load_before: float) -> None:
    """Write `results/<name>.json`."""
    content = conditions() | {"load_1min": {"before": load_before, "after": load()}} | dict(figures)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\n{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name} written")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is left-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, ["-" * w for w in widths], *rows]:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def verdict(reached: bool) -> str:
    """Whether a goal was reached, as a word."""
    return "reached" if reached else "MISSED"


def _plain(value: Any) -> Any:
    """The value with numbers rounded to six digits, so that people can read and compare the file."""
    match value:
        case Spread():
            return _plain(asdict(value))
        case dict():
            return {key: _plain(v) for key, v in value.items()}
        case list() | tuple():
            return [_plain(v) for v in value]
        case float():
            return float(f"{value:.6g}")
        case _:
            return value
