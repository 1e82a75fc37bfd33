"""The right side of the page Inference: the measurement that is shown, or what a measurement would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import streamlit as st

from dashboard import state
from dashboard.api.inference_cells import places
from dashboard.views import shared
from dashboard.views.inference.address import View, view_of
from dashboard.views.inference.form import InferenceRequest
from dashboard.views.inference.weights import trained_runs
from dashboard.widgets import run_parts
from dashboard.widgets.component import addresses, nothing, stub
from dashboard.widgets.run_actions import run_actions
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.store.run import Run
from engine.studies.inference import Quantile

ABOUT: Mapping[View, str] = {
    "Matrix": "Which batch size and how many threads? Each combination answers requests one after another.",
    "Software": "The same weights in several runtimes: how much faster each is, and what it costs in accuracy, size and "
    "start-up time.",
    "Arrivals": "Requests arrive at random (Poisson). Latency includes time in the queue.",
}
_QUANTILES: Mapping[Quantile, str] = {
    "p99": "p99 of requests",
    "p90": "p90",
    "p50": "p50, the median",
    "max": "every request",
}
_SEARCHED_RUNS = 200  # newest runs among which a measurement of the chosen weights is looked for


def shown_runs(view: View) -> list[Run]:
    """The runs of the measurement this view shows: one, or one per rate of a load test."""
    shown = st.session_state["infer.shown"]
    if view not in shown:
        shown[view] = _newest_of(st.session_state.get("infer.of", ""), view)
    run = state.open_run(shown[view])
    if run is None:
        return []
    if not run.group:
        return [run]
    rows = state.store().rows(group=run.group)
    runs = [other for row in rows if (other := state.open_run(row.run_id)) and other.config.task == "infer"]
    return sorted(runs or [run], key=lambda r: r.config.infer.rate)


def _newest_of(choice: str, view: View) -> str | None:
    """The newest measurement of the chosen weights for a view that finished or has not ended yet."""
    preset = preset_config(choice.partition(":")[2]) if choice.startswith("preset:") else None
    for row in state.store().rows(limit=_SEARCHED_RUNS):
        if row.config.task != "infer" or row.status in shared.ENDED_EARLY or view_of(row.config) != view:
            continue
        if row.config.infer.run == choice or (preset and _has_fresh_weights(row.config, preset)):
            return row.run_id
    return None


def _has_fresh_weights(config: RunConfig, preset: RunConfig) -> bool:
    same_model = (config.model, config.data, config.source) == (preset.model, preset.data, preset.source)
    return same_model and not (config.infer.run or config.infer.weights)


def show(runs: Sequence[Run]) -> None:
    """Title, latency limit and the live view; after the end also what can be done with the run."""
    for run in runs:
        run.refresh()
    is_over = all(run.is_over for run in runs)
    title, action = st.columns([5, 1], vertical_alignment="center")
    title.markdown(f"**{run_parts.literal(_title(runs))}**")
    can_stop = shared.can_stop(runs)
    if can_stop and action.button("Stop", key="infer.stop", icon=":material/stop:", width="stretch"):
        shared.stop(runs)
    for run in runs:
        if run.is_over:
            run_parts.why_box(run)
    limit_s, by = _choose_limit()
    live_view(runs, limit_s, by, alive=not is_over)
    if is_over and len(runs) == 1:
        run_actions(runs[0])


def _title(runs: Sequence[Run]) -> str:
    config = runs[0].config
    if len(runs) == 1:
        return runs[0].name or describe(config)
    rates = [run.config.infer.rate for run in runs]
    return f"{describe(config).partition(' · open')[0]} · {len(runs)} rates, {rates[0]:g} to {rates[-1]:g} requests/s"


def _choose_limit() -> tuple[float, Quantile]:
    with st.container(horizontal=True, vertical_alignment="bottom", key="infer-limit"):
        limit = st.number_input(
            "Latency limit (ms)", 0.001, 600_000.0, key="infer.limit", format="%g", step=1.0, width=170,
            help="How long one request can take. The sentence below names the combination with the highest throughput within "
            "this limit.",
        )  # fmt: skip
        by = st.selectbox(
            "Metric", list(get_args(Quantile)), key="infer.by", width=170, format_func=_QUANTILES.__getitem__,
            help="The latency that must be within the limit. p99: one request in a hundred can take longer.",
        )  # fmt: skip
    return limit / 1e3, cast(Quantile, by)


def live_view(runs: Sequence[Run], limit_s: float, by: Quantile, *, alive: bool) -> None:
    """Mount the component that polls for results; the combination opened in it goes into the address."""
    key = f"inference-{runs[0].run_id}"
    mount = st.components.v2.component("isoflop_inference", js=stub("inference.js"), isolate_styles=False)
    keys = {place.key for place in places(runs)}
    linked = st.session_state.get("infer.cell")
    linked = linked if linked in keys else None
    result = mount(
        key=key,
        data={
            "key": key, "runs": [run.run_id for run in runs], "alive": alive, "limit_s": limit_s, "quantile": by, "cell": linked,
        } | addresses(),
        default={"cell": linked},
        on_cell_change=nothing,
        on_ended_change=nothing,
    )  # fmt: skip
    opened = result.get("cell")
    st.session_state["infer.cell"] = opened if opened in keys else None


def preview(view: View, request: InferenceRequest | None) -> None:
    """What the view will show, and what to do first."""
    st.markdown(run_parts.literal(ABOUT[view]))
    if request:
        st.info("Press Run to start. Results appear here while they are measured.", icon=":material/bolt:")
    if not trained_runs():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(
                "There is no finished training run in this store yet. Fresh weights are as fast, but they guess at random."
            )
            st.page_link("../pages/train.py", label="Train a model", icon=":material/play_circle:")
