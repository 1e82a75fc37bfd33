"""The data of each rank for the live view of a distributed run: a line for each rank and quantity, and the newest values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dashboard.api.wire import numbers, short
from engine.common.downsample import minmax
from engine.common.sanitize import visible
from engine.events.training import Ranks
from engine.store.run import Run

MOST_LINES = 8  # the number of colours; the table has all ranks
_LONGEST_TEXT = 300
_ALL_POINTS = 500  # of a line, because an hour of 64 ranks would be too much to send

Value = Callable[[Ranks, int], float | None]


def _share(window: Ranks, rank: int) -> float | None:
    waited, step = window.waited_s[rank], window.step_s[rank]
    return None if waited is None or not step else min(1.0, waited / step)


_COLUMNS: dict[str, Value] = {
    "own": lambda window, rank: window.own_s[rank],
    "waits": _share,
    "cpu": lambda window, rank: window.cpu_per_wall[rank],
    "memory": lambda window, rank: window.memory_bytes[rank],
}


def traces(run: Run, start: int, *, full: bool) -> dict[str, Any]:
    """The windows after `start` as lines: `rank0_own` in s, `rank0_waits` as a share of the step, `rank0_cpu` in cores,
    `rank0_memory` in bytes, and so on for each rank."""
    windows = run.all(Ranks) if full else run.all(Ranks)[start:]
    if not windows:
        return {}
    found = {"rank0_step": _line(windows, lambda window, _: window.step_s[0], 0)}
    for rank in range(min(MOST_LINES, len(windows[0].device))):
        found |= {f"rank{rank}_{name}": _line(windows, read, rank) for name, read in _COLUMNS.items()}
    return {name: line for name, line in found.items() if line}


def _line(windows: list[Ranks], read: Value, rank: int) -> dict[str, Any] | None:
    known = [None if rank >= len(window.device) else read(window, rank) for window in windows]
    y = np.array([np.nan if value is None else value for value in known], dtype=np.float64)
    if not np.isfinite(y).any():
        return None
    kept = minmax(y, _ALL_POINTS)
    x = np.round([window.elapsed_s for window in windows], 3)[kept]
    return {"x": x.tolist(), "y": numbers(y[kept])}


def now(run: Run) -> dict[str, Any] | None:
    """The newest values of every rank, and the rank that the others wait for. None before the first window."""
    last = run.latest(Ranks)
    if last is None:
        return None
    rows = [
        {
            "device": visible(device, 40),
            "step_s": short(last.step_s[rank]),
            "own_s": short(last.own_s[rank]),
            "waits": short(_share(last, rank)),
            "cpu": short(last.cpu_per_wall[rank]),
            "memory": last.memory_bytes[rank],
        }
        for rank, device in enumerate(last.device)
    ]
    method = visible(last.method, _LONGEST_TEXT)
    return {"rows": rows, "straggler": last.straggler, "steps": list(last.steps), "method": method}
