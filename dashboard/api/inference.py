"""The read-only route of the page Inference: the cells with new rounds, the recommendation, and one cell in full.

The browser may share the machine with the measurement, so an answer holds only what is new: the numbers of a cell after
each of its rounds, and the distribution and timeline of the open cell alone. Several runs in one answer are one
measurement: the same weights at several offered rates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, cast, get_args

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import cursor, wire
from dashboard.api.inference_cells import LONGEST_TEXT, Axes, cell_as_json, places
from dashboard.api.inference_detail import detail_as_json, version_of
from dashboard.api.inference_runtimes import runtimes_as_json
from dashboard.api.inference_verdict import verdict
from dashboard.api.readers import shared_run
from dashboard.api.run import preparing, seconds_left
from dashboard.api.wire import short
from engine.common.errors import StoreError
from engine.common.sanitize import visible
from engine.events.base import Status
from engine.events.lifecycle import Progress
from engine.store.run import Run
from engine.studies.inference import Quantile

MOST_RUNS = 16


def figures(
    runs: Sequence[Run],
    after: str = "",
    *,
    limit_s: float | None = None,
    quantile: Quantile = "p99",
    cell: str = "",
    held: str = "",
    now: float | None = None,
) -> dict[str, Any]:
    """The answer to a poll.

    It holds the state of the runs, the cells with a new round since the cursor `after`, the recommendation for a latency
    limit of `limit_s` s, and the open `cell` unless the browser has its version `held`. `now` is Unix time, s.
    """
    now = now or time.time()
    all_of_them = places(runs)
    axes = Axes.of(all_of_them)
    rounds = [place.round for place in all_of_them]
    had = cursor.held(after, rounds)
    answer: dict[str, Any] = {"cursor": cursor.write(rounds), "reset": had is None} | _state(runs, now)
    if had is None:
        text = runs[0].config.is_text
        answer["about"] = axes.about() | {"unit": "answers/s" if text else "samples/s"}
    moved = [p for p, n, before in zip(all_of_them, rounds, had or [-1] * len(rounds), strict=True) if n > before]
    if moved:
        answer["cells"] = [cell_as_json(place, axes) for place in moved]
    answer["verdict"] = verdict(runs, all_of_them, limit_s, quantile)
    if (moved or had is None) and (ladder := runtimes_as_json(runs)):
        answer["ladder"] = ladder
    open_cell = next((place for place in all_of_them if place.key == cell), None) if cell else None
    if open_cell and version_of(open_cell) != held and (whole := detail_as_json(open_cell)):
        answer["detail"] = whole
    return answer


def _state(runs: Sequence[Run], now: float) -> dict[str, Any]:
    """The state of all runs together: that of the run under way, or the worst one when all are over."""
    busy = next((run for run in runs if run.status in {"running", "stopping", "starting"}), None)
    left = next((run for run in runs if not run.is_over), None)
    bad = next((run for run in runs if run.status != "finished"), runs[-1])
    run = busy or left or bad
    over = left is None
    progress = sum(1.0 if r.is_over else r.progress() or 0.0 for r in runs) / len(runs)
    newest = run.hardware.last("elapsed") or 0.0
    began = [r.started.at for r in runs if r.started]
    elapsed = None
    if began:
        elapsed = sum(r.hardware.last("elapsed") or 0.0 for r in runs) if over else max(0.0, now - min(began))
    doing = run.latest(Progress)
    return {
        "status": run.status,
        "over": over,
        "why": visible(run.why(), LONGEST_TEXT),
        "progress": short(progress) if run.started or over else None,
        "elapsed_s": short(elapsed),
        "left_s": None if over else short(seconds_left(elapsed, progress)),
        "age_s": short(max(0.0, now - run.started.at - newest)) if run.started and not over and newest else None,
        "doing": visible(doing.text, LONGEST_TEXT) if doing and not over else _waiting(run.status, over),
        "preparing": preparing(run),
    }


def _waiting(status: Status, over: bool) -> str | None:
    return None if over else {"queued": "waiting for other runs to end", "starting": "starting"}.get(status)


def get_inference(request: Request) -> Response:
    """GET /api/inference?runs=ID,ID&after=CURSOR&limit_s=0.005&quantile=p99&cell=KEY&held=VERSION: see `figures`."""
    query = request.query_params
    ids = [run_id for run_id in query.get("runs", "").split(",") if run_id]
    if not 0 < len(ids) <= MOST_RUNS:
        return _refused(f"Ask for 1 to {MOST_RUNS} runs, not {len(ids)}.", 400)
    try:
        runs = [shared_run(run_id) for run_id in ids]
    except StoreError as error:
        return _refused(error.message, 404)
    if other := next((run for run in runs if run.config.task != "infer"), None):
        return _refused(f"Run {other.run_id} does not measure inference.", 404)
    quantile = query.get("quantile", "p99")
    answer = figures(
        runs,
        query.get("after", ""),
        limit_s=_seconds(query.get("limit_s", "")),
        quantile=cast(Quantile, quantile) if quantile in get_args(Quantile) else "p99",
        cell=query.get("cell", ""),
        held=query.get("held", ""),
    )
    return wire.answer(answer)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _refused(why: str, status: int) -> Response:
    return wire.answer({"error": visible(why, LONGEST_TEXT)}, status)


ROUTES = [Route("/api/inference", get_inference)]
