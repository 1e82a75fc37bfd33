"""The live view of a race: lanes (configurations) with their seeds (runs) in shared charts, fed by one poll for all.

As with a single run the page is not rerun for new points. The target is set in the view. It comes back as state of the
component, because the page needs it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard.api.race import MOST_RUNS
from dashboard.widgets.component import addresses, nothing, stub
from engine.charts.facts import RACE_CHARTS, RACE_COLUMNS, as_json
from engine.charts.style import PALETTE
from engine.common.sanitize import LONGEST_NAME, visible

AXES = ("steps", "samples", "epochs", "seconds", "flops", "money", "joules")
METRICS = ("test_accuracy", "test_loss")
_CHARTS = as_json(RACE_CHARTS)


@dataclass(frozen=True, slots=True)
class RaceState:
    """The state that the view reports to the page. A new `target` and an `ended` each cause a rerun of the page."""

    target: dict[str, Any] | None  # {"metric": "test_accuracy" | "test_loss", "value": ratio or nats}; None: no target
    ended: dict[str, int] | None  # in the one rerun after the last run ended: how many finished, failed, ...


def race_view(
    lanes: Sequence[Mapping[str, Any]],
    *,
    key: str,
    target: Mapping[str, Any] | None = None,
    axis: str = "steps",
    alive: bool,
    price_per_hour: float | None = None,
    on_end: Callable[[], None] | None = None,
    on_target: Callable[[], None] | None = None,
) -> RaceState:
    """Draw the table and the charts of a race and update them while one of its runs is running.

    `lanes`: `{"label": str, "color": place in the palette, "runs": [{"id": str, "seed": int}], "baseline": bool}`. Seeds
    and lanes may be added with the same `key`, and the view keeps its points. `target` and `axis` are the first values of
    the view. Later they count only when they change, so the state that came back may be passed in again. `alive`: whether a
    run was running when the page was drawn; then the page reruns once at the end of the last run.
    """
    assert axis in AXES, axis
    shown = [_lane(lane) for lane in lanes]
    assert sum(len(lane["runs"]) for lane in shown) <= MOST_RUNS, "more runs than one poll may ask for"
    mount = st.components.v2.component("isoflop_race", js=stub("race.js"), isolate_styles=False)
    begin = target_of(target)
    result = mount(
        key=key,
        data={
            "key": key,
            "lanes": shown,
            "target": begin,
            "axis": axis,
            "alive": alive,
            "price": price_per_hour,
            "palette": list(PALETTE),
            "charts": _CHARTS,
            "how": RACE_COLUMNS,
        }
        | addresses(),
        default={"target": begin},
        on_target_change=on_target or nothing,
        on_ended_change=on_end or nothing,
    )
    return RaceState(target_of(result.get("target")), _ended(result.get("ended")))


def _lane(lane: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": visible(str(lane["label"]), LONGEST_NAME),
        "color": int(lane["color"]),
        "runs": [{"id": str(run["id"]), "seed": int(run["seed"])} for run in lane["runs"]],
        "baseline": bool(lane.get("baseline", False)),
    }


def target_of(sent: object) -> dict[str, Any] | None:
    """The target that a browser sent, or None if it is not valid."""
    if not isinstance(sent, Mapping):
        return None
    metric, value = sent.get("metric"), sent.get("value")
    if metric not in METRICS or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value) or value <= 0 or (metric == "test_accuracy" and value > 1):
        return None
    return {"metric": metric, "value": float(value)}


def _ended(sent: object) -> dict[str, int] | None:
    if not isinstance(sent, Mapping):
        return None
    return {str(status): int(n) for status, n in sent.items() if isinstance(n, int | float) and math.isfinite(n)}
