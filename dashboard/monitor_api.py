"""The read-only route of the page Hardware: the readings in the supervisor's ring file.

A browser polls with the cursor of its last answer and gets the new rows. Where it has nothing or has fallen behind, it
gets the last quarter of an hour, each trace thinned with its extremes kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard import cursor
from dashboard import thinning as wire
from dashboard.thinning import FULL_POINTS, numbers
from engine import disk, gpus, locks
from engine.downsample import minmax
from engine.monitor import METRICS, metric_of
from engine.recorder import KEPT_S, RESTING, RING, load_settings, look
from engine.ring import NotARing, Ring
from engine.store import default_root

MOST_CORES = 8  # drawn one by one; of more only the mean, the busiest, and their newest readings are sent
_ALL_POINTS = 40_000  # of all traces together, for a browser that has nothing
_FEWEST = 300
_MOST_NEW_ROWS = 400  # a browser that slept gets the whole, thinned
_GAP_S = 2.0
_LATE_S = 5.0  # beyond three beats: then readings have stopped


class _Open:
    """The ring file, opened again where another one has replaced it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rings: dict[Path, Ring] = {}

    def ring(self, root: Path) -> Ring:
        """Raises OSError or NotARing."""
        with self._lock:
            held = self._rings.get(root)
            if held is None or not disk.same_file(root / RING, held.fd):
                # The replaced ring is closed when nobody reads it any more.
                self._rings[root] = held = _Closing(root / RING)
            return held


class _Closing(Ring):
    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()


_OPEN = _Open()


# --- the answer ---------------------------------------------------------------------------------------------------


def readings(root: Path, after: str = "", *, now: float | None = None) -> dict[str, Any]:
    """The answer to a poll: everything, or what is new after the cursor `after`; where nothing is new, the reason."""
    now = now or time.time()
    interval_s = load_settings(root).interval_s
    answer: dict[str, Any] = {"now": round(now, 3), "interval_s": interval_s}
    try:
        ring = _OPEN.ring(root)
        held = _held(after, ring.id)
        newest, rows = ring.rows(held[0] if held else 0)
        noted, notes = ring.notes()
    except (OSError, NotARing):
        return answer | {"cursor": "", "reset": True, "why": _why_stopped(root), "traces": {}}
    if held and (newest < held[0] or len(rows) > _MOST_NEW_ROWS):
        held, (newest, rows) = None, ring.rows()
    answer |= {"cursor": f"{ring.id}-{cursor.write((newest, noted))}", "reset": held is None}
    columns = ring.shape.columns
    if held is None:
        rows = _in_order(rows, now)
        answer |= {"about": _about(ring), "traces": _traces(rows, columns)}
    elif len(rows):
        answer["rows"] = _rows(rows, columns)
    last = rows if len(rows) else ring.rows(newest - 1)[1]
    if (not len(last) or now - last[-1, 0] > 3 * interval_s + _LATE_S) and (why := _why_stopped(root)):
        answer["why"] = why
    if len(rows):
        answer["newest"] = round(float(rows[-1, 0]), 3)
        answer["latest"] = _latest(rows[-1], columns)
    if held is None or noted != held[1]:
        answer |= _notes(notes)
    return answer


def _held(text: str, ring_id: str) -> tuple[int, ...] | None:
    """Numbers of the newest reading and notes that a browser holds of this ring; None where it must start again."""
    of, _, counts = text.partition("-")
    held = cursor.numbers(counts, 2)
    return held if held and of == ring_id and held[0] else None


def _why_stopped(root: Path) -> str:
    if disk.is_short(root):
        return "The store's disk is nearly full, so readings are not kept."
    try:
        return (
            "" if _has_supervisor(root) else "No supervisor is running, so nothing is read. The dashboard starts one."
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
    """The rows of the last quarter of an hour, without those in the future, left there by a clock that was set back."""
    at = rows[:, 0]
    later = np.minimum.accumulate(at[::-1])[::-1]
    return rows[(at >= now - KEPT_S) & (at <= later)]


def _shown(columns: Sequence[str]) -> list[int]:
    """Places of the columns that are drawn as lines."""
    cores = sum(name.startswith("core") for name in columns)
    return [n for n, name in enumerate(columns) if cores <= MOST_CORES or not name.startswith("core")]


def _about(ring: Ring) -> dict[str, Any]:
    """What does not change, sent once: columns, devices, metrics, and the reasons why a clock is limited."""
    columns = ring.shape.columns
    return {
        "columns": [columns[n] for n in _shown(columns)],
        "cores": sum(name.startswith("core") for name in columns),
        "gpus": ring.shape.about.get("gpus", []),
        "metrics": {key: asdict(METRICS[key]) for key in dict.fromkeys(map(metric_of, columns)) if key in METRICS},
        "throttle": {str(bit): words for bit, words in gpus.THROTTLE.items()},
        "throttle_harmless": gpus.NOT_THROTTLED,
        "resting": RESTING,
    }


def _traces(rows: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    """Each column's own rows: those that draw the same line."""
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
    """Rows before which nothing was read for longer than around them: no line may lead there."""
    gaps = np.diff(at)
    around = np.maximum(np.append(0.0, gaps[:-1]), np.append(gaps[1:], 0.0))
    return 1 + np.flatnonzero(gaps > np.maximum(_GAP_S, 3 * around))


def _rows(rows: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    shown = [n for n in _shown(columns) if np.isfinite(rows[:, 1 + n]).any()]
    return {"x": np.round(rows[:, 0], 2).tolist(), "y": {columns[n]: numbers(rows[:, 1 + n]) for n in shown}}


def _latest(row: np.ndarray, columns: Sequence[str]) -> dict[str, Any]:
    """What is shown only as it is now: the busy share of each core."""
    return {"cores": numbers(np.round(row[1 + n]) for n, name in enumerate(columns) if name.startswith("core"))}


def _notes(notes: dict[str, Any]) -> dict[str, Any]:
    missing = {name: reason for reason, names in notes.get("missing", {}).items() for name in names}
    return {
        "missing": missing,
        "processes": notes.get("processes", []),
        "runs": notes.get("spans", []),
        "rests": notes.get("rests", []),
    }


def get_hardware(request: Request) -> Response:
    look(default_root())
    return wire.answer(readings(default_root(), request.query_params.get("after", "")))


ROUTES = [Route("/api/hardware", get_hardware)]
