"""The read-only routes of the live charts: a run's new points since a cursor, and the files for the browser.

All browsers share one incremental reader per run, so an update costs only the reading of the new records. The cursor
says how much of the run the browser has. Without a cursor it gets the whole run, thinned to what a chart can show. JSON
has no NaN and no infinity, so such a loss or gradient norm is sent as a gap with a mark.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import cursor, ranks, wire
from dashboard.api.readers import shared_run
from dashboard.api.wire import FULL_MEANS, FULL_POINTS, limit, marks, means, numbers, short
from dashboard.server.assets import ASSET_ROUTES
from engine.charts.facts import RUN_CHARTS
from engine.common.downsample import minmax
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.events.lifecycle import Preparing
from engine.events.training import Compiled, Ranks
from engine.measurement import alerts
from engine.store.columns import Table
from engine.store.run import Run

_PROBLEMS = 20
_FEWEST_SMOOTHED = 120  # rows; as in a report
_TABLES = ("steps", "evaluations", "hardware", "throughput", "grad_norms")
_LONGEST_TEXT = 300


# --- points -------------------------------------------------------------------------------------------------------


def _counts(run: Run) -> tuple[int, ...]:
    """How many rows, readings, problems and windows of ranks there are."""
    tables = (len(getattr(run, name)) for name in _TABLES)
    return (*tables, len(run.missing_readings), len(run.problems), len(run.all(Ranks)))


def points(run: Run, after: str = "", *, now: float | None = None) -> dict[str, Any]:
    """The answer to a poll: state, current values and the points after the cursor `after`, all from the same moment.

    `now` is Unix time, s.
    """
    with run.lock:
        counts = _counts(run)
        held = cursor.held(after, counts)
        *rows, missing, problems, windows = held or (0,) * len(counts)
        answer: dict[str, Any] = {"cursor": cursor.write(counts), "reset": held is None}
        answer |= _state(run, now or time.time())
        if held is None:
            untimed = any(len(table) and not _has_times(table) for table in (run.steps, run.evaluations))
            answer["about"] = about(run.config) | ({"over_steps": True} if untimed else {}) | few_rows(run)
        traces = _traces(run, dict(zip(_TABLES, rows, strict=True)), full=held is None)
        if len(run.all(Ranks)) > windows:
            traces |= ranks.traces(run, windows, full=held is None)
            answer["ranks"] = ranks.now(run)
        answer["traces"] = {name: trace for name, trace in traces.items() if trace}
        if len(run.missing_readings) > missing:
            answer["missing"] = {name: visible(why, _LONGEST_TEXT) for name, why in run.missing_readings.items()}
        if len(run.problems) > problems:
            answer["problems"] = [visible(text, _LONGEST_TEXT) for text in run.problems[problems:][:_PROBLEMS]]
        return answer


def _traces(run: Run, starts: Mapping[str, int], *, full: bool) -> dict[str, dict[str, Any] | None]:
    """The new points of every line in `RUN_CHARTS`; `starts` are the rows that the browser has."""
    found: dict[str, dict[str, Any] | None] = {}
    for chart in RUN_CHARTS:
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
    """The facts that the charts need about the configuration. They do not change, so they are sent once."""
    target = config.target
    return {
        "text": config.is_text,
        "gpu": config.device != "cpu",
        "lr_moves": _lr_moves(config),
        "target": None if target.value is None else {"metric": target.metric, "value": target.value},
    }


def few_rows(run: Run) -> dict[str, bool]:
    """The fact that the rows of an imported table are too few to be smoothed: each can be the mean of an epoch."""
    is_short = run.imported and run.imported.origin.form == "curve" and len(run.steps) < _FEWEST_SMOOTHED
    return {"few_rows": True} if is_short else {}


def _lr_moves(config: RunConfig) -> bool:
    """Whether the learning rate changes; a constant one gets no chart."""
    return config.schedule != "constant" or config.warmup_steps > 1


def preparing(run: Run) -> dict[str, Any] | None:
    """The long task before a run's first step: its text, and the bytes done and in all where known. None if there is none."""
    if run.is_over or len(run.steps):
        return None
    if run.started is None:
        p = run.latest(Preparing)
        return {"text": visible(p.text, _LONGEST_TEXT), "done": p.done_bytes, "total": p.total_bytes} if p else None
    if run.latest(Compiled) is None and run.config.execution in {"compiled", "cuda-graph"}:
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
        "compiled_s": short(compiled.seconds) if (compiled := run.latest(Compiled)) else None,
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
    """Seconds left, in proportion to the progress so far. None while there is too little progress for an estimate."""
    if not elapsed or not progress or progress < 0.01 or elapsed < 0.5:
        return None
    return elapsed * (1 - progress) / progress


def _trace(table: Table, column: str, start: int, *, full: bool, most: int = FULL_POINTS) -> dict[str, Any] | None:
    """The rows of a column after `start` as x, y and step (if the table has it), thinned with extremes kept.

    x is the elapsed time in seconds, or the step in an imported curve without times.
    """
    if start >= len(table) or not table.knows(column):
        return None
    y = table[column][start:]
    kept = minmax(y, limit(len(table), len(y), most, full=full))
    x = _horizontal(table)[start:]
    trace = {"x": _rounded(x[kept]), "y": numbers(y[kept])}
    if "step" in table.names:
        steps = table["step"][start:]
        trace["step"] = steps[kept].astype(int).tolist()
        if found := marks(y, table[column][start - 1] if start else 0.0):
            trace["marks"] = [[round(float(x[row]), 3), int(steps[row]), word] for row, word in found]
    return trace


def _noisy(table: Table, column: str, start: int, *, full: bool) -> dict[str, Any]:
    """The values of single steps and, unless every row is sent, means of groups of rows with their sizes."""
    raw = _trace(table, column, start, full=full)
    if raw is None:
        return {}
    y, x = table[column][start:], _horizontal(table)[start:]
    grouped = means(y, limit(len(table), len(y), FULL_MEANS, full=full))
    if grouped is None:
        return {column: raw}
    last, mean, n = grouped
    return {column: raw, f"{column}_mean": {"x": _rounded(x[last]), "y": numbers(mean), "n": n.tolist()}}


def _has_times(table: Table) -> bool:
    """Whether the times of a table with rows are known. An imported curve has all of them or none."""
    return bool(np.isfinite(table["elapsed"][-1]))


def _horizontal(table: Table) -> np.ndarray:
    return table["elapsed"] if _has_times(table) else table["step"]


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 3).tolist()


def get_points(request: Request) -> Response:
    """GET /api/runs/ID/points?after=CURSOR: see `points`."""
    run_id, after = request.path_params["run_id"], request.query_params.get("after", "")
    is_made, text = wire.text_of_run(lambda: points(shared_run(run_id), after))
    return wire.answer_of_text(text, 200 if is_made else 404)


ROUTES = [Route("/api/runs/{run_id}/points", get_points), *ASSET_ROUTES]
