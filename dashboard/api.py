"""The read-only routes of the live charts: a run's new points since a cursor, and the files the browser needs.

A browser polls; all browsers share one incremental reader per run, so the cost of an update is that of the new records.
The cursor says how much of the run the browser holds. Without one it gets the whole run, thinned to what a chart can
show. A loss or gradient norm that is NaN or infinite has no JSON: it is sent as a gap with a mark.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from dashboard import cursor, ranks
from dashboard import thinning as wire
from dashboard.thinning import FULL_MEANS, FULL_POINTS, limit, marks, means, numbers, short
from engine import alerts, chart_facts
from engine.config import RunConfig
from engine.downsample import minmax
from engine.errors import StoreError
from engine.store import Run, Store, Table, default_root
from engine.text import visible

_REFRESH_S = 0.1
_IDLE_S = 120.0
_MOST_READERS = 12
_IN_USE_S = 5.0
_MOST_IN_USE = 160  # two comparisons of the largest size
_PROBLEMS = 20
_TABLES = ("steps", "evaluations", "hardware", "throughput", "grad_norms")
_LONGEST_TEXT = 300

# --- one reader per run -------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.run: Run | None = None
        self.refreshed = -math.inf
        self.used = -math.inf


class Readers:
    """One incremental reader per run for all who watch it; idle readers and those of deleted runs are dropped."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, _Reader] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._readers)

    def run(self, run_id: str) -> Run:
        """The run as it was at most 0.1 s ago. Raises StoreError where it does not exist or cannot be read."""
        reader = self._reader(run_id)
        try:
            folder = self._store.folder(run_id)
            with reader.lock:  # two browsers that open a long run at once read it once
                if reader.run is None:
                    reader.run, reader.refreshed = Run(folder), self._clock()
                elif not reader.run.is_over and self._clock() - reader.refreshed >= _REFRESH_S:
                    reader.run.refresh()
                    reader.refreshed = self._clock()
                return reader.run
        except StoreError:
            with self._lock:
                self._readers.pop(run_id, None)
            raise

    def _reader(self, run_id: str) -> _Reader:
        with self._lock:
            now = self._clock()
            reader = self._readers.setdefault(run_id, _Reader())
            reader.used = now
            self._readers.move_to_end(run_id)
            while self._may_let_go(next(iter(self._readers.values())), now):
                self._readers.popitem(last=False)
            return reader

    def _may_let_go(self, oldest: _Reader, now: float) -> bool:
        """True where the oldest reader can go. Those of an open page stay, because a new one reads the whole log."""
        held, idle_s = len(self._readers), now - oldest.used
        return idle_s > _IDLE_S or held > _MOST_IN_USE or (held > _MOST_READERS and idle_s > _IN_USE_S)


def shared_run(run_id: str) -> Run:
    """The run from the reader that everybody shares. Raises StoreError where it does not exist."""
    return _readers(default_root()).run(run_id)


@functools.cache
def _readers(root: Path) -> Readers:
    return Readers(Store(root))


# --- points -------------------------------------------------------------------------------------------------------


def _counts(run: Run) -> tuple[int, ...]:
    """How many rows, readings, problems and windows of ranks there are."""
    tables = (len(getattr(run, name)) for name in _TABLES)
    return (*tables, len(run.missing_readings), len(run.problems), len(run.ranks))


def points(run: Run, after: str = "", *, now: float | None = None) -> dict[str, Any]:
    """The answer to a poll, all from one moment: state, current values and the points after the cursor `after`."""
    with run.lock:
        counts = _counts(run)
        held = cursor.held(after, counts)
        *rows, missing, problems, windows = held or (0,) * len(counts)
        answer = {"cursor": cursor.write(counts), "reset": held is None} | _state(run, now or time.time())
        if held is None:
            answer["about"] = about(run.config)
        traces = _traces(run, dict(zip(_TABLES, rows, strict=True)), full=held is None)
        if len(run.ranks) > windows:
            traces |= ranks.traces(run, windows, full=held is None)
            answer["ranks"] = ranks.now(run)
        answer["traces"] = {name: trace for name, trace in traces.items() if trace}
        if len(run.missing_readings) > missing:
            answer["missing"] = {name: visible(why, _LONGEST_TEXT) for name, why in run.missing_readings.items()}
        if len(run.problems) > problems:
            answer["problems"] = [visible(text, _LONGEST_TEXT) for text in run.problems[problems:][:_PROBLEMS]]
        return answer


def _traces(run: Run, starts: Mapping[str, int], *, full: bool) -> dict[str, dict[str, Any] | None]:
    """The new points of every line in `chart_facts.RUN_CHARTS`; `starts` are the rows that the browser holds."""
    found: dict[str, dict[str, Any] | None] = {}
    for chart in chart_facts.RUN_CHARTS:
        if chart.shown == "lr_moves" and not _lr_moves(run.config):
            continue
        for line in chart.lines:
            table, start = getattr(run, line.table), starts[line.table]
            if line.table == "hardware" and not np.isfinite(table[line.column]).any():
                continue
            if line.is_noisy:
                found |= _noisy(table, line.column, start, full=full)
            else:
                found[line.key] = _trace(table, line.column, start, full=full, most=line.most_points or FULL_POINTS)
    return found


def about(config: RunConfig) -> dict[str, Any]:
    """What the charts need of the configuration; it does not change, so it is sent once."""
    target = config.target
    return {
        "text": config.is_text,
        "gpu": config.device != "cpu",
        "lr_moves": _lr_moves(config),
        "target": None if target.value is None else {"metric": target.metric, "value": target.value},
    }


def _lr_moves(config: RunConfig) -> bool:
    """Whether the learning rate changes; a constant one gets no chart."""
    return config.schedule != "constant" or config.warmup_steps > 1


def preparing(run: Run) -> dict[str, Any] | None:
    """The long task that a run does before its first step: its text, and bytes done of a total where known."""
    if run.is_over or len(run.steps):
        return None
    if run.started is None:
        p = run.preparing
        return {"text": visible(p.text, _LONGEST_TEXT), "done": p.done_bytes, "total": p.total_bytes} if p else None
    if run.compiled is None and run.config.execution in {"compiled", "cuda-graph"}:
        return {"text": "Compiling", "done": None, "total": None}
    return None


def _state(run: Run, now: float) -> dict[str, Any]:
    """The state of the run; `age_s` is the age of its newest point."""
    seen = [t.last("elapsed") or 0.0 for t in (run.steps, run.evaluations, run.hardware)]
    newest = max(seen)
    elapsed = None
    if run.started:
        elapsed = newest if run.is_over else max(newest, now - run.started.at)
    progress = run.progress()
    summary = run.summary()
    rare = {
        "preparing": preparing(run),
        "compiled_s": short(run.compiled.seconds) if run.compiled else None,
        "reached": run.target_reached.model_dump(exclude={"kind", "metric"}) if run.target_reached else None,
        "summary": json.loads(summary.model_dump_json()) if run.is_over else None,
        "busy": visible(summary.busy_why, _LONGEST_TEXT) if summary.busy else None,
        "alerts": [visible(a.in_words, _LONGEST_TEXT) for a in alerts.of_run(run, now)] or None,
    }
    return {
        "status": run.status,
        "over": run.is_over,
        "why": visible(run.why(), _LONGEST_TEXT),
        "progress": short(progress),
        "elapsed_s": short(elapsed),
        "left_s": None if run.is_over else short(seconds_left(elapsed, progress)),
        "age_s": short(max(0.0, elapsed - newest)) if elapsed is not None and len(run.steps) else None,
        "steps": summary.steps,
        "epochs": short(summary.epochs),
        "train_seconds": short(summary.train_seconds),
        "current": {
            "loss": short(summary.final_train_loss),  # already a mean over the last steps
            "test_accuracy": short(summary.test_accuracy),
            "samples_per_s": short(summary.samples_per_s if run.is_over else run.throughput.last("samples_per_s")),
        },
    } | {name: value for name, value in rare.items() if value is not None}


def seconds_left(elapsed: float | None, progress: float | None) -> float | None:
    """Seconds left, in proportion to the progress so far; None while too little is done for an estimate."""
    if not elapsed or not progress or progress < 0.01 or elapsed < 0.5:
        return None
    return elapsed * (1 - progress) / progress


def _trace(table: Table, column: str, start: int, *, full: bool, most: int = FULL_POINTS) -> dict[str, Any] | None:
    """The rows of a column after `start` as x, y and step (where the table has one), thinned with extremes kept."""
    if start >= len(table) or not table.knows(column):
        return None
    y = table[column][start:]
    kept = minmax(y, limit(len(table), len(y), most, full=full))
    trace = {"x": _times(table["elapsed"][start:][kept]), "y": numbers(y[kept])}
    if "step" in table.names:
        steps, elapsed = table["step"][start:], table["elapsed"][start:]
        trace["step"] = steps[kept].astype(int).tolist()
        if found := marks(y, table[column][start - 1] if start else 0.0):
            trace["marks"] = [[round(float(elapsed[row]), 3), int(steps[row]), word] for row, word in found]
    return trace


def _noisy(table: Table, column: str, start: int, *, full: bool) -> dict[str, Any]:
    """A quantity of single steps and means of groups of them, each with its number of rows.

    There are no means where every row is sent.
    """
    raw = _trace(table, column, start, full=full)
    if raw is None:
        return {}
    y, elapsed = table[column][start:], table["elapsed"][start:]
    grouped = means(y, limit(len(table), len(y), FULL_MEANS, full=full))
    if grouped is None:
        return {column: raw}
    last, mean, n = grouped
    return {column: raw, f"{column}_mean": {"x": _times(elapsed[last]), "y": numbers(mean), "n": n.tolist()}}


def _times(values: np.ndarray) -> list[float]:
    return np.round(values, 3).tolist()


def get_points(request: Request) -> Response:
    try:
        run = shared_run(request.path_params["run_id"])
    except StoreError as error:
        return wire.answer({"error": error.message}, 404)
    return wire.answer(points(run, request.query_params.get("after", "")))


# --- files --------------------------------------------------------------------------------------------------------

_FOLDER = Path(__file__).parent / "assets"
_ASSETS = {
    "card.js": "text/javascript",
    "common.js": "text/javascript",
    "copy.js": "text/javascript",
    "inference.js": "text/javascript",
    "inference.css": "text/css",
    "lanes.js": "text/javascript",
    "live.js": "text/javascript",
    "live.css": "text/css",
    "monitor.js": "text/javascript",
    "monitor.css": "text/css",
    "race.js": "text/javascript",
    "race.css": "text/css",
    "scale.js": "text/javascript",
    "scale.css": "text/css",
    "inter.woff2": "font/woff2",
    "icon.svg": "image/svg+xml",
}
PLOTLY_VERSION = version("plotly")


@functools.cache
def _asset(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()


@functools.cache
def assets_version() -> str:
    """A hash of the components' files. It is part of their addresses, so no browser keeps an old file."""
    ours = b"".join(_asset(name) for name in _ASSETS if name.endswith((".js", ".css")))
    return hashlib.sha256(ours).hexdigest()[:12]


def get_asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:  # the name only selects; it never becomes a path
        return PlainTextResponse("There is no such file.", status_code=404)
    return Response(_asset(name), media_type=_ASSETS[name], headers=_caching(request))


@functools.cache
def _plotly(*, compressed: bool) -> bytes:
    """The plotly package's own plotly.min.js: the version that the figures are made for, without a network."""
    if compressed:
        return gzip.compress(_plotly(compressed=False), compresslevel=6, mtime=0)
    return files("plotly").joinpath("package_data", "plotly.min.js").read_bytes()


def get_plotly(request: Request) -> Response:
    headers = _caching(request) | {"Vary": "Accept-Encoding"}
    compressed = "gzip" in request.headers.get("accept-encoding", "")
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return Response(_plotly(compressed=compressed), media_type="text/javascript", headers=headers)


def _caching(request: Request) -> dict[str, str]:
    """A file under an address with a version never changes; any other is fetched again after an hour."""
    forever = bool(request.query_params.get("v"))
    return {"Cache-Control": "public, max-age=31536000, immutable" if forever else "public, max-age=3600"}


ASSET_ROUTES = [Route("/assets/plotly.min.js", get_plotly), Route("/assets/{name}", get_asset)]
ROUTES = [Route("/api/runs/{run_id}/points", get_points), *ASSET_ROUTES]
