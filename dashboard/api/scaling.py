"""The read-only route of a scaling study: its progress, and its charts if they have changed.

The charts are those of a report (`engine.charts.scaling`); the browser applies its theme. They are made once for all
browsers.
"""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import wire
from dashboard.api.readers import shared_run
from dashboard.api.wire import short
from engine.charts.scaling import efficiency_chart, speedup_chart, step_chart
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.store.store import Store, default_root
from engine.studies import scaling, scaling_results
from engine.studies.scaling import Study
from engine.studies.scaling_results import Outcome

_KEPT_S = 0.3
_MOST_KEPT = 16
_LONGEST_TEXT = 300
_UNDER_WAY = ("running", "stopping", "starting")
_kept: OrderedDict[tuple[Path, str], tuple[float, dict[str, Any]]] = OrderedDict()
_lock = threading.Lock()


def answer(group: str, after: str = "") -> dict[str, Any]:
    """The state of a study and its figures; without the figures if the browser has them already (`after`).

    Raises:
        EngineError: if there is no such group, or it is not a scaling study.
    """
    whole = _fresh(default_root(), group)
    return {k: v for k, v in whole.items() if k != "figures"} if after == whole["cursor"] else whole


def _fresh(root: Path, group: str) -> dict[str, Any]:
    """The answer as of at most 0.3 s ago, so that ten browsers cause one reading.

    A study that was over is read again too, because repeats may have been added.
    """
    with _lock:
        at, known = _kept.get((root, group), (-1e9, {}))
        if known and time.monotonic() - at < _KEPT_S:
            return known
        new = _new_answer(_store(root), group, known)
        _kept[root, group] = time.monotonic(), new
        _kept.move_to_end((root, group))
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
        return new


@functools.cache
def _store(root: Path) -> Store:
    return Store(root)


def _new_answer(store: Store, group: str, known: dict[str, Any]) -> dict[str, Any]:
    """A new answer. Its figures are made only if they would look different, because they cost ten times the rest.

    Raises:
        EngineError: if there is no such study.
    """
    study = scaling.find(store, group, shared_run)
    if study is None:
        raise EngineError("This study is not in this store.", fix="Start a new one.")
    found = scaling_results.outcome_of(study)
    cursor = hashlib.sha256(repr(_looks_of(found)).encode()).hexdigest()[:16]
    figures = known["figures"] if known.get("cursor") == cursor else _figures(found)
    return {"cursor": cursor} | _state(study) | {"figures": figures}


def _looks_of(found: Outcome) -> list[tuple[object, ...]]:
    """The values in the figures, rounded to what is visible.

    Provisional values are rounded more, because otherwise they would change with every poll.
    """
    rows: list[tuple[object, ...]] = []
    for at in found.lanes:
        digits = 2 if at.is_provisional else 4
        ends = (at.speedup.value, at.speedup.low, at.speedup.high, at.speedup.n) if at.speedup else ()
        numbers = (at.step_s, at.own_s, at.waited_s, at.for_slowest_s, *ends)
        shown = (None if n is None else f"{n:.{digits}g}" for n in numbers)
        rows.append((at.mode, at.ranks, at.shared, at.is_provisional, *shown))
    return rows


def _figures(found: Outcome) -> dict[str, Any]:
    if not any(at.step_s for at in found.lanes):
        return {}
    drawn = {
        "speedup": speedup_chart(found),
        "efficiency": efficiency_chart(found),
        "step": step_chart(found),
    }
    return {name: _plain(figure) for name, figure in drawn.items()}


def _plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as JSON without its template, because the page applies its own theme."""
    drawn: dict[str, Any] = json.loads(figure.to_json())
    drawn["layout"].pop("template", None)
    return {"data": drawn["data"], "layout": drawn["layout"]}


def _state(study: Study) -> dict[str, Any]:
    runs = study.runs
    over = [run for run in runs if run.is_over]
    now = next(((lane, run) for lane in study.lanes for run in lane.runs.values() if run.status in _UNDER_WAY), None)
    statuses = {run.status for run in runs}
    ended = next((s for s in ("failed", "cancelled", "interrupted") if s in statuses), "finished")
    return {
        "status": ended if len(over) == len(runs) else "running" if now or over else "queued",
        "over": len(over) == len(runs),
        "done": len(over),
        "of": len(runs),
        "now": visible(now[0].label, _LONGEST_TEXT) if now else "",
        "progress": short((len(over) + (now[1].progress() or 0.0 if now else 0.0)) / len(runs)),
    }


def get_scale(request: Request) -> Response:
    """GET /api/scale?study=GROUP&after=CURSOR: see `answer`."""
    try:
        body = answer(request.query_params.get("study", ""), request.query_params.get("after", ""))
    except EngineError as error:
        return wire.answer({"error": visible(error.message, _LONGEST_TEXT)}, 404)
    return wire.answer(body)


ROUTES = [Route("/api/scale", get_scale)]
