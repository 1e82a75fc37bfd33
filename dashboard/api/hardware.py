"""The read-only route of the page Hardware: the readings that the supervisor records.

A browser polls with the cursor of its last answer. A new browser, or one that is far behind, gets the last 15
minutes, each trace thinned with its extremes kept. Otherwise it gets the new rows, with one time for all columns.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import cursor, wire
from dashboard.api.wire import FULL_POINTS, numbers
from engine.common.downsample import minmax
from engine.hardware import gpus
from engine.hardware.history import KEPT_S, RESTING, load_settings, look
from engine.hardware.monitor import METRICS, metric_of
from engine.hardware.readings_log import Reader, Readings
from engine.store.store import default_root
from engine.system import code_version, disk_space, locks

MOST_CORES = 8  # with more cores, only their mean, the busiest one and the newest readings are sent
_ALL_POINTS = 40_000  # of all traces together, for a new browser
_FEWEST = 300
_MOST_NEW_ROWS = 400  # a browser that is further behind gets everything, thinned
_GAP_S = 2.0
_LATE_S = 5.0  # readings have stopped when the newest is older than three beats and this


_readers: dict[Path, Reader] = {}  # by store

# --- the answer ---------------------------------------------------------------------------------------------------


def readings(root: Path, after: str = "", *, now: float | None = None) -> dict[str, Any]:
    """The answer to a poll: the readings after the cursor `after`, or all of them; and the reason if readings have stopped.

    `now` is Unix time, s.
    """
    now = now or time.time()
    interval_s = load_settings(root).interval_s
    answer: dict[str, Any] = {"now": round(now, 3), "interval_s": interval_s}
    try:
        reader = _readers.setdefault(root, Reader(root))
        held = _held(after)
        found = reader.read(held[1] if held else 0)
        if held and (found.id != held[0] or found.newest < held[1] or len(found.rows) > _MOST_NEW_ROWS):
            held, found = None, reader.read()
    except OSError:
        found = None
    if found is None or not found.id:
        return answer | {"cursor": "", "reset": True, "why": _why_stopped(root), "traces": {}}
    rows, columns = found.rows, found.columns
    answer |= {"cursor": f"{found.id}-{cursor.write((found.newest, found.notes_number))}", "reset": held is None}
    if held is None:
        rows = _in_order(rows, now)
        answer |= {"about": _about(found), "traces": _traces(rows, columns)}
    elif len(rows):
        answer["rows"] = _rows(rows, columns)
    last = rows[-1, 0] if len(rows) else found.newest_at
    if (last is None or now - last > 3 * interval_s + _LATE_S) and (why := _why_stopped(root)):
        answer["why"] = why
    if len(rows):
        answer["newest"] = round(float(rows[-1, 0]), 3)
        answer["latest"] = _latest(rows[-1], columns)
    if held is None or found.notes_number != held[2]:
        answer |= _notes(found.notes)
    return answer


def _held(text: str) -> tuple[str, int, int] | None:
    """What a browser has: the id of the columns and the numbers of its newest reading and notes. None if it has nothing."""
    columns, _, counts = text.partition("-")
    held = cursor.numbers(counts, 2)
    return (columns, held[0], held[1]) if held and held[0] else None


def _why_stopped(root: Path) -> str:
    """Why there are no new readings, in a sentence; empty if the reason is unknown."""
    if disk_space.is_short(root):
        return "The store's disk is nearly full, so readings are not recorded."
    try:
        if not _has_supervisor(root):
            return "No supervisor is running, so nothing is read. The dashboard starts one."
        other = code_version.supervisor_of_other_code(root, code_version.on_disk())
        return (
            f"The supervisor ({other.in_words()}) runs another version of the code than this Isoflop." if other else ""
        )
    except OSError:
        return "The store cannot be read."


def _has_supervisor(root: Path) -> bool:
    try:
        with (root / "supervisor.lock").open("rb") as file:
            return not locks.lock(file.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def _in_order(rows: np.ndarray, now: float) -> np.ndarray:
    """The rows of the last 15 minutes, without rows in the future, which exist when the clock was set back."""
    at = rows[:, 0]
    later = np.minimum.accumulate(at[::-1])[::-1]
    return rows[(at >= now - KEPT_S) & (at <= later)]


def _shown(columns: Sequence[str]) -> list[int]:
    """Places of the columns that are drawn as lines."""
    cores = sum(name.startswith("core") for name in columns)
    return [n for n, name in enumerate(columns) if cores <= MOST_CORES or not name.startswith("core")]


def _about(found: Readings) -> dict[str, Any]:
    """The description of the columns, sent once."""
    columns = found.columns
    return {
        "columns": [columns[n] for n in _shown(columns)],
        "cores": sum(name.startswith("core") for name in columns),
        "gpus": list(found.gpus),
        "metrics": {key: asdict(METRICS[key]) for key in dict.fromkeys(map(metric_of, columns)) if key in METRICS},
        "throttle": {str(bit): words for bit, words in gpus.THROTTLE.items()},
        "throttle_harmless": gpus.NOT_THROTTLED,
        "resting": RESTING,
    }


def _traces(rows: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    """The points of each column's line, thinned so that the line looks the same."""
    if not len(rows):
        return {}
    shown = _shown(columns)
    most = min(FULL_POINTS, max(_FEWEST, _ALL_POINTS // len(shown)))
    x = np.round(rows[:, 0], 2)
    breaks = _breaks(rows[:, 0])
    traces = {}
    for n in shown:
        y = rows[:, 1 + n]
        if np.isfinite(y).any():
            kept = minmax(y, most)
            places = np.searchsorted(kept, breaks)
            broken_x, broken_y = np.insert(x[kept], places, x[breaks] - 0.01), np.insert(y[kept], places, np.nan)
            traces[columns[n]] = {"x": broken_x.tolist(), "y": numbers(broken_y)}
    return traces


def _breaks(at: np.ndarray) -> np.ndarray:
    """Indices of the rows after a gap, where the line is broken. A gap is much longer than the intervals around it."""
    gaps = np.diff(at)
    around = np.maximum(np.append(0.0, gaps[:-1]), np.append(gaps[1:], 0.0))
    return 1 + np.flatnonzero(gaps > np.maximum(_GAP_S, 3 * around))


def _rows(rows: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    shown = [n for n in _shown(columns) if np.isfinite(rows[:, 1 + n]).any()]
    return {"x": np.round(rows[:, 0], 2).tolist(), "y": {columns[n]: numbers(rows[:, 1 + n]) for n in shown}}


def _latest(row: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    """The readings that a page shows without a line: the busy share of each core."""
    return {"cores": numbers(np.round(row[1 + n]) for n, name in enumerate(columns) if name.startswith("core"))}


def _notes(notes: Mapping[str, Any]) -> dict[str, Any]:
    missing = {name: reason for reason, names in notes.get("missing", {}).items() for name in names}
    return {
        "missing": missing,
        "processes": notes.get("processes", []),
        "runs": notes.get("spans", []),
        "rests": notes.get("rests", []),
    }


def get_hardware(request: Request) -> Response:
    """GET /api/hardware?after=CURSOR: the readings as JSON. A poll also tells the recorder that a page is open."""
    look(default_root())
    return wire.answer(readings(default_root(), request.query_params.get("after", "")))


ROUTES = [Route("/api/hardware", get_hardware)]
