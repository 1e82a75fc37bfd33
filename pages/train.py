"""Train: set up an experiment, run it, watch it, stop it. The form and the run are in the address."""

import streamlit as st

from dashboard import forms, live, parts, state
from engine import planner
from engine.config import DEFAULT_PRESET, preset_config
from engine.errors import ConfigError, EngineError
from engine.store import Run

run = state.open_run(st.query_params.get("run"))
wanted = st.query_params.get("run")
wrong = None
try:
    preset, config = state.config_from_link(st.query_params)
    if run and set(st.query_params) == {"run"}:  # a bare link to a run: its own experiment fills the form
        config = run.config
        preset = state.closest_preset(config)
except ConfigError as error:
    preset, config, wrong = DEFAULT_PRESET, preset_config(DEFAULT_PRESET), error

# A link typed or followed shows what it says; the form's own changes come back as the same link and leave it alone.
link = dict(st.query_params)
if link != st.session_state.get("train.link"):
    forms.show_in_form(preset, config)


def submit() -> None:
    try:
        new = state.client().submit(st.session_state["train.config"])
    except EngineError as error:
        st.session_state["train.refused"] = error
        return
    st.session_state["train.run"] = new


def show(run: Run) -> None:
    """The run's title line, its live charts, and once it is over its final numbers."""
    run_id = run.run_id
    title, action = st.columns([5, 1], vertical_alignment="center")
    title.markdown(f"**{run.config.in_words()}**")
    if not run.is_over and action.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
        state.client().cancel(run_id)
    if run.is_over:
        parts.why_box(run)
        parts.final_figures(run)
    live.live_run(run_id, key=f"live-{run_id}", on_end=lambda: None)
    if run.is_over:
        parts.run_actions(run)


left, right = st.columns([1, 3.2], gap="medium")
with left.container(border=True, key="form"):
    preset, config, mistake = forms.form_or_default(preset, config)
    plan = None
    try:
        plan = planner.plan(config)
        planner.check(config)
    except EngineError as error:
        mistake = mistake or error
    st.session_state["train.config"] = config
    st.button(
        "Run",
        type="primary",
        width="stretch",
        icon=":material/play_arrow:",
        on_click=submit,
        key="run",
        disabled=mistake is not None,
    )

if started := st.session_state.pop("train.run", None):
    run = state.open_run(started)
params = state.link_params(preset, config, run.run_id if run else None)
if not mistake and params != dict(st.query_params):
    st.query_params.from_dict(params)
st.session_state["train.link"] = dict(st.query_params)

with right:
    for problem in (wrong, mistake, st.session_state.pop("train.refused", None)):
        if problem:
            parts.error_box(problem)
    if plan and not mistake:
        parts.plan_figures(plan)
    if run:
        show(run)
    elif wanted:
        st.warning("The run of this link is not in this store.", icon=":material/warning:")
    else:
        st.info(
            "Press Run: the training starts within a second and is drawn here as it happens.",
            icon=":material/play_circle:",
        )
