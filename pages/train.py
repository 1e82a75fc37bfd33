"""Train: set up an experiment, run it, watch it, stop it. The address names form values and run."""

import streamlit as st

from dashboard import state
from dashboard.live.run import live_run
from dashboard.views.shared import VIEWER_NOTE
from dashboard.widgets import config_form, copy_buttons, data_preview, run_parts, run_results
from dashboard.widgets.component import preload
from dashboard.widgets.run_actions import run_actions
from engine.common.errors import ConfigError, EngineError
from engine.config.presets import DEFAULT_PRESET, preset_config
from engine.events.lifecycle import Progress
from engine.reports import sharing
from engine.store.run import Run

# Coming back from another page shows what was here before.
params = dict(st.query_params) or st.session_state.get("train.link", {})
wanted = params.get("run")
run = state.open_run(wanted)
if run and run_parts.page_of(run) != run_parts.TRAIN:  # studies are shown on other pages
    st.session_state.pop("train.link", None)  # coming back shows the form
    st.switch_page(run_parts.page_of(run), query_params=run_parts.address_of(run))
wrong = None
try:
    preset, config = state.config_from_link(params)
    if run and set(params) == {"run"}:  # a link that names only a run: the form shows the run's experiment
        config = run.config
        preset = state.closest_preset(config)
except ConfigError as error:
    preset, config, wrong = DEFAULT_PRESET, preset_config(DEFAULT_PRESET), error

# A typed or followed link sets the form. The form's own changes come back as the same link and change nothing.
if params != st.session_state.get("train.link") or not config_form.is_shown():
    config_form.show_in_form(preset, config)


def submit() -> None:
    """Start a run of what the form shows."""
    try:
        _, chosen = config_form.current()
        st.session_state["train.run"] = state.submit(chosen)
    except EngineError as error:
        st.session_state["train.refused"] = error


@st.fragment(run_every=0.7)
def show_progress(run_id: str) -> None:
    """The progress of a run without live charts; the page is drawn again when it ends."""
    run = run_parts.refreshed(run_id)
    progress = run.latest(Progress)
    run_parts.progress_of(run, progress.text if progress else "Starting")


def show(run: Run) -> None:
    """The title of the run and its live charts; after the end also its final figures."""
    run_id, is_over = run.run_id, run.is_over  # read once, because the run goes on while the page is drawn
    title, action = st.columns([5, 1], vertical_alignment="center")
    title.markdown(f"**{run_parts.literal(sharing.run_in_words(run))}**")
    can_stop = not is_over and state.client().may("cancel", run_id)
    if can_stop and action.button("Stop", key="stop", icon=":material/stop:", width="stretch"):
        state.client().cancel(run_id)
    if is_over:
        run_parts.why_box(run)
        run_results.final_figures(run)
        run_results.data_of(run)
    if run.config.task_facts.about:  # such as a loss surface whose runs were deleted
        if is_over:
            run_actions(run)
        else:
            show_progress(run_id)
        return
    live_run(run_id, key=f"live-{run_id}", alive=not is_over)
    if is_over:
        run_results.split_of(run)
        run_results.hardware_of(run)
        run_actions(run)


left, right = st.columns([1, 2.7], gap="medium")
with left.container(border=True, key="form"):
    button = st.empty()  # above the fields, so that it is in sight on every screen
    preset, config, mistake = config_form.form_or_default(preset, config)
    plan, refused = None, None
    try:
        plan = None if mistake else state.check(config)
    except EngineError as error:
        refused = error
    allowed = state.client().may("submit")
    button.button(
        "Run",
        type="primary",
        width="stretch",
        icon=":material/play_arrow:",
        on_click=submit,
        key="run",
        disabled=bool(mistake or refused) or not allowed,
        help=None if allowed else VIEWER_NOTE,
    )
    copy_buttons.copy_buttons("" if mistake else state.command_line(config), key="copy-form")

if started := st.session_state.pop("train.run", None):
    run = state.open_run(started)
if not mistake:
    params = state.link_params(preset, config, run.run_id if run else None)
    if params != dict(st.query_params):
        st.query_params.from_dict(params)
st.session_state["train.link"] = params

with right:
    problems = [wrong, mistake or refused, st.session_state.pop("train.refused", None)]
    if any(problems):
        with st.container(key="problems"):
            for problem in {
                str(p): p for p in problems if p
            }.values():  # after a click right after a typo, both are the same
                (run_parts.hint if isinstance(problem, config_form.Unfinished) else run_parts.error_box)(problem)
    if plan:
        run_results.plan_figures(plan)
        for warning in plan.warnings:
            run_parts.warn(warning)
        data_preview.draw_preview(config, notes=plan.notes, is_open=run is None)
    if run:
        with st.container(key="run-view"):
            show(run)
        st.stop()
    preload()
    if wanted:
        st.warning("The run of this link is not in this store.", icon=":material/warning:")
    elif plan:
        st.info("Press Run to start training. Charts update live.", icon=":material/play_circle:")
