"""The live view of one run: header and charts in one component that polls `/api/runs/ID/points`.

The page is not rerun for new points, so a chart is never mounted twice and the reader's zoom stays. Streamlit sends the
inline script with each mount, so it is a stub that imports assets/live.js.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard.widgets.component import addresses, nothing, stub
from engine.charts.facts import RANK_CHARTS, RUN_CHARTS, as_json

_CHARTS = as_json([*RUN_CHARTS, *RANK_CHARTS])


def live_run(run_id: str, *, key: str, alive: bool, on_end: Callable[[], None] | None = None) -> None:
    """Draw the charts of a run and update them while it runs.

    `alive`: whether the run was running when the page was drawn. When such a run ends, `on_end` is called and the page
    reruns once.
    """
    mount = st.components.v2.component("isoflop_live_run", js=stub("live.js"), isolate_styles=False)
    mount(
        key=key,
        data={"run_id": run_id, "alive": alive, "charts": _CHARTS} | addresses(),
        on_ended_change=on_end or nothing,
    )
