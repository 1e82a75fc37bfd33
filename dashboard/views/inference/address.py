"""What the page Inference shows, in the address and in the session.

`run=ID` is the measurement that is shown, `of=ID` the trained run whose weights are used, `limit` the latency limit in ms,
`by` the quantile that the limit applies to, `cell` the combination that is open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import streamlit as st

from dashboard import state
from dashboard.views import shared
from dashboard.views.inference.weights import FILE, choice_of
from engine.config.run import RunConfig
from engine.store.run import Run
from engine.studies.inference import Quantile

View = Literal["Matrix", "Software", "Arrivals"]  # as written in addresses
VIEWS: tuple[View, ...] = get_args(View)
TITLES: Mapping[View, str] = {"Matrix": "Batch x threads", "Software": "Runtimes", "Arrivals": "Load test"}
_LIMIT_MS = 5.0
_KEPT = ("infer.view", "infer.limit", "infer.by")
_KEPT_PREFIXES = ("infer.of", "infer.knob.", "infer.file.")


def keep_choices() -> None:
    """Keep what was chosen after a look at another page."""
    shared.keep_choices("infer.kept", _KEPT, prefixes=_KEPT_PREFIXES, always_set=True)


def take_address() -> None:
    """Set what a typed or followed link names. The page's own changes come back as the same link and change nothing."""
    params = dict(st.query_params) or st.session_state.get("infer.link", {})
    if params == st.session_state.get("infer.link") and "infer.view" in st.session_state:
        return
    run, of = state.open_run(params.get("run")), params.get("of")
    if run is not None and run.config.task != "infer":  # a link to a training run asks for its inference
        of, run = run.run_id, None
    view = params.get("view")
    st.session_state["infer.view"] = view if view in VIEWS else view_of(run.config) if run else "Matrix"
    shown = st.session_state["infer.shown"] = dict[str, str | None]()
    if run is not None:
        shown[st.session_state["infer.view"]] = run.run_id
    st.session_state["infer.missing"] = bool(params.get("run")) and run is None and of is None
    if run is not None:
        st.session_state["infer.of"] = choice_of(run.config)
    elif of:
        st.session_state["infer.of"] = of
    st.session_state["infer.limit"] = _limit_of(params.get("limit"))
    by = params.get("by")
    st.session_state["infer.by"] = by if by in get_args(Quantile) else "p99"
    st.session_state["infer.cell"] = params.get("cell")


def _limit_of(text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return _LIMIT_MS
    return value if math.isfinite(value) and value > 0 else _LIMIT_MS


def put_address(view: View, run: Run | None) -> None:
    """Write what is shown into the address."""
    params: dict[str, str] = {"view": view}
    if run is not None:
        params["run"] = run.run_id
    elif (of := st.session_state.get("infer.of", "")) and of != FILE and not of.startswith("preset:"):
        params["of"] = of
    if (limit := st.session_state["infer.limit"]) != _LIMIT_MS:
        params["limit"] = f"{limit:g}"
    if (by := st.session_state["infer.by"]) != "p99":
        params["by"] = by
    if run is not None and (cell := st.session_state.get("infer.cell")):
        params["cell"] = cell
    if params != dict(st.query_params):
        st.query_params.from_dict(params)
    st.session_state["infer.link"] = params


def view_of(config: RunConfig) -> View:
    """The view a measurement belongs to."""
    if config.infer.load == "open":
        return "Arrivals"
    return "Software" if len({cell.runtime for cell in config.cells}) > 1 else "Matrix"
