"""The read-only routes of the live charts: a run's new points since a cursor, and the files the browser needs.

A browser polls; all browsers share one incremental reader per run, so an update costs what is new, not what there is.
The cursor says how much of the run the browser holds. Without one it gets the whole run, thinned to what a chart can
show; a loss or gradient norm that is no number cannot travel in JSON and comes as a mark beside a gap.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dashboard import ranks
from dashboard.thinning import FULL_MEANS, FULL_POINTS, limit, marks, means, numbers, short
from engine import alerts, figures
from engine.config import RunConfig
from engine.downsample import minmax
from engine.errors import StoreError
from engine.store import Run, Store, Table, default_root
from engine.text import visible

_LR_POINTS = 500
_REFRESH_S = 0.1
_IDLE_S = 120.0
_MOST_READERS = 12
_IN_USE_S = 5.0
_MOST_IN_USE = 160  # two comparisons of the largest size
_PROBLEMS = 20
_LONGEST_TEXT = 300

# --- one reader per run -------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.run: Run | None = None
        self.refreshed = -math.inf
        self.used = -math.inf


class Readers:
    """One incremental reader per run for everybody who watches it; idle ones and those of deleted runs are dropped."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._readers: OrderedDict[str, _Reader] = OrderedDict()  # the least recently used first

    def __len__(self) -> int:
        return len(self._readers)

    def run(self, run_id: str) -> Run:
        """The run as of at most 0.1 s ago; raises StoreError when it is not there or cannot be read."""
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
        """Those of a page that is open stay, however many runs it compares: reading one anew costs all of its log."""
        held, idle_s = len(self._readers), now - oldest.used
        return idle_s > _IDLE_S or held > _MOST_IN_USE or (held > _MOST_READERS and idle_s > _IN_USE_S)


def shared_run(run_id: str) -> Run:
    """The run from the reader everybody shares; raises StoreError when it is not there."""
    return _readers(default_root()).run(run_id)


@functools.cache
def _readers(root: Path) -> Readers:
    return Readers(Store(root))


# --- cursor -------------------------------------------------------------------------------------------------------


def _counts(run: Run) -> tuple[int, ...]:
    """How much there is of everything an answer may carry."""
    tables = (run.steps, run.evaluations, run.hardware, run.throughput, run.grad_norms)
    return (*map(len, tables), len(run.missing_readings), len(run.problems), len(run.ranks))


def _parse_cursor(text: str, counts: tuple[int, ...]) -> tuple[int, ...] | None:
    """What the browser holds; None when it should start anew (no cursor, or one that cannot be of this run)."""
    if not re.fullmatch(r"\d{1,12}(-\d{1,12}){7}", text):
        return None
    held = tuple(map(int, text.split("-")))
    return held if all(h <= c for h, c in zip(held, counts, strict=True)) else None


# --- points -------------------------------------------------------------------------------------------------------


def points(run: Run, cursor: str = "", *, now: float | None = None) -> dict[str, Any]:
    """The answer to a poll, all of it from one moment: state, current values and the points after `cursor`."""
    with run.lock:
        counts = _counts(run)
        held = _parse_cursor(cursor, counts)
        steps, evaluations, hardware, throughput, grad_norms, missing, problems, windows = held or (0,) * len(counts)
        answer = {"cursor": "-".join(map(str, counts)), "reset": held is None} | _state(run, now or time.time())
        if held is None:
            answer["about"] = about(run.config) | {"how": figures.CHARTS}
        traces = _noisy(run.steps, "loss", steps, full=held is None)
        traces |= _noisy(run.grad_norms, "grad_norm", grad_norms, full=held is None)
        traces |= {
            "test_loss": _trace(run.evaluations, "test_loss", evaluations, full=held is None),
            "accuracy": _trace(run.evaluations, "test_accuracy", evaluations, full=held is None),
            "throughput": _trace(run.throughput, "samples_per_s", throughput, full=held is None),
        }
        if _lr_moves(run.config):
            traces["lr"] = _trace(run.steps, "lr", steps, full=held is None, most=_LR_POINTS)
        for name, column in _HARDWARE.items():
            if np.isfinite(run.hardware[column]).any():
                traces[name] = _trace(run.hardware, column, hardware, full=held is None)
        if len(run.ranks) > windows:
            traces |= ranks.traces(run, windows, full=held is None)
            answer["ranks"] = ranks.now(run)
        answer["traces"] = {name: trace for name, trace in traces.items() if trace}
        if len(run.missing_readings) > missing:
            answer["missing"] = {name: visible(why, _LONGEST_TEXT) for name, why in run.missing_readings.items()}
        if len(run.problems) > problems:
            answer["problems"] = [visible(text, _LONGEST_TEXT) for text in run.problems[problems:][:_PROBLEMS]]
        return answer


_HARDWARE = {
    "process_memory": "process_memory_bytes",
    "process_cpu": "process_cpu_percent",
    "system_cpu": "system_cpu_percent",
    "gpu_utilization": "gpu_utilization_percent",
    "gpu_memory": "gpu_memory_used_bytes",
    "gpu_power": "gpu_power_w",
    "cpu_power": "cpu_power_w",
}


def about(config: RunConfig) -> dict[str, Any]:
    """What of the configuration the charts need; it stays, so it is sent once."""
    target = config.target
    return {
        "text": config.is_text,
        "gpu": config.device != "cpu",
        "lr_moves": _lr_moves(config),
        "target": None if target.value is None else {"metric": target.metric, "value": target.value},
    }


def _lr_moves(config: RunConfig) -> bool:
    """Whether the learning rate is to change: a constant one is no chart, and costs an update nothing."""
    return config.schedule != "constant" or config.warmup_steps > 1


def preparing(run: Run) -> dict[str, Any] | None:
    """What a run does before its first step that can take long: its words, and bytes done of a total where known."""
    if run.is_over or len(run.steps):
        return None
    if run.started is None:
        p = run.preparing
        return {"text": visible(p.text, _LONGEST_TEXT), "done": p.done_bytes, "total": p.total_bytes} if p else None
    if run.compiled is None and run.config.execution in {"compiled", "cuda-graph"}:
        return {"text": "Compiling", "done": None, "total": None}
    return None


def _state(run: Run, now: float) -> dict[str, Any]:
    """Where the run is; `age_s` is how old its newest point is."""
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
    """By rule of three; None while too little is done to tell."""
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
    """A quantity of single steps, and beside it the means of groups of them, each with the number of rows it stands for.

    Where every row is sent there are none.
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
        return JSONResponse({"error": error.message}, status_code=404, headers=NO_STORE)
    body = json.dumps(points(run, request.query_params.get("after", "")), separators=(",", ":"), allow_nan=False)
    return Response(body, media_type="application/json", headers=NO_STORE)


# --- files --------------------------------------------------------------------------------------------------------

NO_STORE = {"Cache-Control": "no-store"}
_FOLDER = Path(__file__).parent / "assets"
_ASSETS = {
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
    """Changes when the components' files do: it stands in their addresses, so no browser keeps an old one."""
    ours = b"".join(_asset(name) for name in _ASSETS if name.endswith((".js", ".css")))
    return hashlib.sha256(ours).hexdigest()[:12]


def get_asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _ASSETS:  # the name only selects; it never becomes a path
        return PlainTextResponse("There is no such file.", status_code=404)
    return Response(_asset(name), media_type=_ASSETS[name], headers=_caching(request))


@functools.cache
def _plotly(*, compressed: bool) -> bytes:
    """The plotly package's own plotly.min.js: always the version the figures are made for, and no network needed."""
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
    """An address that names a version is good for ever; any other is asked for again after an hour."""
    forever = bool(request.query_params.get("v"))
    return {"Cache-Control": "public, max-age=31536000, immutable" if forever else "public, max-age=3600"}


ROUTES = [
    Route("/api/runs/{run_id}/points", get_points),
    Route("/assets/plotly.min.js", get_plotly),
    Route("/assets/{name}", get_asset),
]
