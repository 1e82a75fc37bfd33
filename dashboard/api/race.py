"""The read-only route of a comparison: the new points of many runs in one answer.

Every point has each possible horizontal axis (step, samples, seconds of training; epochs, FLOPs and money follow
from them), so that the browser can change the axis without a request. The more runs there are, the fewer points each gets.
"""

from __future__ import annotations

import contextlib
import json
import re
from itertools import zip_longest
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import cursor, wire
from dashboard.api.readers import shared_run
from dashboard.api.run import about, few_rows, preparing
from dashboard.api.wire import FULL_MEANS, FULL_POINTS, limit, marks, means, numbers, short
from engine.charts.facts import RACE_CHARTS
from engine.common.downsample import minmax
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.events.summary import Summary
from engine.store.columns import Table, samples_at
from engine.store.run import Run
from engine.studies import race_results
from engine.studies.races import Metric

MOST_RUNS = 72
_ALL_POINTS = 9_000  # per kind of trace, all runs together: about what a browser redraws twice a second
_FEWEST = 160
_LONGEST_TEXT = 300
NO_TARGET: tuple[Metric, float | None] = ("test_accuracy", None)


def points_each(num_runs: int) -> int:
    """The most points of a trace for each of `num_runs` runs."""
    return min(FULL_POINTS, max(_FEWEST, _ALL_POINTS // max(1, num_runs)))


# --- one run ------------------------------------------------------------------------------------------------------


def points(
    run: Run, after: str = "", *, most: int = FULL_POINTS, target: tuple[Metric, float | None] = NO_TARGET
) -> dict[str, Any]:
    """State, current values and the points of one run after the cursor `after`, all from the same moment.

    `reached` says where the run reached `target`; it is left out while the run has not.
    """
    with run.lock:
        counts = (len(run.steps), len(run.evaluations), len(run.grad_norms), int(run.started is not None))
        held = cursor.held(after, counts)
        steps, evaluations, grad_norms, started = held or (0, 0, 0, 0)
        full = held is None
        answer = {"cursor": cursor.write(counts), "reset": full} | _state(run)
        if full or counts[3] > started:
            answer["about"] = _about(run)
        starts = {"steps": steps, "evaluations": evaluations, "grad_norms": grad_norms}
        traces: dict[str, dict[str, Any] | None] = {}
        for line in (line for chart in RACE_CHARTS for line in chart.lines):
            table, start = getattr(run, line.table), starts[line.table]
            if line.is_noisy:
                traces |= _noisy(run, table, line.column, start, most, full=full)
            else:
                traces[line.key] = _trace(run, table, line.column, start, most, full=full)
        answer["traces"] = {name: trace for name, trace in traces.items() if trace}
        if at := _reached(run, *target):
            answer["reached"] = at
        return answer


def _reached(run: Run, metric: Metric, target: float | None) -> dict[str, Any] | None:
    """Where the run reached a target, on the horizontal axes that the points have, and between which evaluations."""
    found = race_results.to_target(run, metric, target) if target is not None else None
    if found is None or not found.reached:
        return None
    axes = {"step": found.cost["steps"], "samples": found.cost["samples"], "train_s": found.cost["seconds"]}
    return {name: value for name, value in axes.items() if value is not None} | {"between": found.between}


def _about(run: Run) -> dict[str, Any]:
    """The facts that the charts need about a run: sent once, and again when it has started."""
    started, config = run.started, run.config
    return {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "target": about(config)["target"],
        "accuracy_is_of_text": config.is_text,
        "train_examples": started.train_examples if started else _examples_of(run.summary()),
        "test_predictions": started.test_examples * config.predictions_per_sample if started else None,
        "flops_per_example": started.train_flops_per_example if started else None,
        "total_steps": started.total_steps if started else None,
    } | few_rows(run)


def _examples_of(summary: Summary) -> int | None:
    """The samples of an epoch of an imported table; None if it does not say."""
    return round(summary.samples / summary.epochs) if summary.samples and summary.epochs else None


def _state(run: Run) -> dict[str, Any]:
    summary, waits = run.summary(), preparing(run)
    state: dict[str, Any] = {
        "status": run.status,
        "over": run.is_over,
        "why": visible(run.why(), _LONGEST_TEXT),
        "progress": short(run.progress()),
    }
    if summary.busy:
        state["busy"] = visible(summary.busy_why, _LONGEST_TEXT)
    if waits:
        state["preparing"] = waits
    if summary.steps:
        state["current"] = {
            "steps": summary.steps,
            "samples": summary.samples,
            "train_s": short(summary.train_seconds),
            "loss": short(summary.final_train_loss),
            "test_loss": short(summary.test_loss),
            "accuracy": short(summary.test_accuracy),
            "samples_per_s": short(summary.samples_per_s if run.is_over else run.throughput.last("samples_per_s")),
        }
    if run.is_over:
        state["energy_j"] = short(summary.energy_j)
    return state


# --- traces -------------------------------------------------------------------------------------------------------


def _trace(run: Run, table: Table, column: str, start: int, most: int, *, full: bool) -> dict[str, Any] | None:
    """The rows of a column after `start`, thinned with extremes kept, with all horizontal axes."""
    if start >= len(table) or not table.knows(column):
        return None
    y = table[column][start:]
    kept = minmax(y, limit(len(table), len(y), most, full=full))
    trace = _along(run, table, start + kept) | {"y": numbers(y[kept])}
    if found := marks(y, table[column][start - 1] if start else 0.0):
        at = _along(run, table, start + np.array([row for row, _ in found]))
        words, unknown = [word for _, word in found], [None] * len(found)
        axes = at["step"], at.get("samples", unknown), at.get("train_s", unknown)
        trace["marks"] = list(zip(*axes, words, strict=True))
    return trace


def _noisy(run: Run, table: Table, column: str, start: int, most: int, *, full: bool) -> dict[str, Any]:
    """The values of single steps and, unless every row is sent, means of groups of rows with their sizes."""
    raw = _trace(run, table, column, start, most, full=full)
    y = table[column][start:]
    grouped = means(y, limit(len(table), len(y), min(most, FULL_MEANS), full=full)) if raw else None
    if grouped is None:
        return {column: raw}
    last, mean, n = grouped
    return {column: raw, f"{column}_mean": _along(run, table, start + last) | {"y": numbers(mean), "n": n.tolist()}}


def _along(run: Run, table: Table, rows: np.ndarray) -> dict[str, list[Any]]:
    """The horizontal axes of some rows: steps, samples and seconds of training until then.

    An imported curve may have no samples or no times: such an axis is left out.
    """
    step = table["step"][rows]
    samples, seconds = np.rint(samples_at(run.steps, step)), table["seconds"][rows]
    axes: dict[str, list[Any]] = {"step": step.astype(int).tolist()}
    if np.isfinite(samples).all():
        axes["samples"] = samples.astype(int).tolist()
    if np.isfinite(seconds).all():
        axes["train_s"] = np.round(seconds, 4).tolist()
    return axes


# --- the route ----------------------------------------------------------------------------------------------------


def get_compare(request: Request) -> Response:
    """GET /api/compare?runs=ID,ID&after=CURSOR;CURSOR&of=N&target=METRIC=VALUE: new points, and where the target was reached.

    `of` counts all runs of the view, asked for or not; `target` is optional.
    """
    ids = [run_id for run_id in request.query_params.get("runs", "").split(",") if run_id]
    if not 0 < len(ids) <= MOST_RUNS:
        return wire.answer({"error": f"Ask for 1 to {MOST_RUNS} runs, not {len(ids)}."}, 400)
    cursors = request.query_params.get("after", "").split(";")[: len(ids)]
    most = points_each(max(len(ids), _count(request.query_params.get("of", ""))))
    target = NO_TARGET
    with contextlib.suppress(ConfigError):  # a target that no run can have
        target = race_results.parse_target(request.query_params.get("target") or "none")
    parts = [
        f"{json.dumps(visible(run_id, _LONGEST_TEXT))}:{_text_of(run_id, after, most, target)}"
        for run_id, after in zip_longest(ids, cursors, fillvalue="")
    ]
    return wire.answer_of_text(f'{{"most":{most},"runs":{{{",".join(parts)}}}}}')


def _count(text: str) -> int:
    return min(MOST_RUNS, int(text)) if re.fullmatch(r"\d{1,4}", text, re.ASCII) else 0


def _text_of(run_id: str, after: str, most: int, target: tuple[Metric, float | None]) -> str:
    return wire.text_of_run(lambda: points(shared_run(run_id), after, most=most, target=target))[1]


ROUTES = [Route("/api/compare", get_compare)]
