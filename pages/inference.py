"""Inference: how fast a trained model is, and what to deploy. The address says what is shown."""

import streamlit as st

from dashboard import state
from dashboard.views.inference import address, form, result
from dashboard.views.shared import VIEWER_NOTE
from dashboard.widgets import component, run_parts
from engine.common.errors import EngineError

st.title("Inference", anchor=False)
address.keep_choices()
address.take_address()
view = st.segmented_control(
    "View", address.VIEWS, key="infer.view", label_visibility="collapsed", required=True,
    format_func=address.TITLES.__getitem__,
)  # fmt: skip
assert view

left, right = st.columns([1, 2.7], gap="medium")
with left.container(border=True, key="form"):
    button = st.empty()  # above the fields, so that it is in sight on every screen
    request, wrong = None, None
    try:
        request = form.form(view)
        form.show_price(request)
    except EngineError as error:
        wrong = error
    allowed = state.client().may("submit")
    clicked = button.button(
        "Run", type="primary", width="stretch", icon=":material/bolt:", key="run",
        disabled=request is None or not allowed, help=None if allowed else VIEWER_NOTE,
    )  # fmt: skip
    if clicked and request:
        try:
            st.session_state["infer.shown"][view] = form.start(request)
            st.session_state["infer.cell"] = None
        except EngineError as error:
            wrong = error
    if request:
        form.show_command(request)

with right:
    if wrong:
        with st.container(key="problems"):
            run_parts.error_box(wrong)
    if st.session_state.get("infer.missing"):
        st.warning(
            "The measurement of this link is not in this store, or it cannot be read.", icon=":material/warning:"
        )
    runs = result.shown_runs(view)
    if runs:
        with st.container(key="run-view"):
            result.show(runs)
    else:
        component.preload()
        result.preview(view, request)
address.put_address(view, runs[0] if runs else None)
