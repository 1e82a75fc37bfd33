"""Inference: how fast a trained model answers, and what to deploy. What is looked at is in the address."""

import streamlit as st

from dashboard import state
from dashboard.views import inference
from dashboard.widgets import component, run_parts
from engine.common.errors import EngineError

st.title("Inference", anchor=False)
inference.keep_choices()
inference.take_address()
view = st.segmented_control(
    "View", inference.VIEWS, key="infer.view", label_visibility="collapsed", required=True,
    format_func={"Matrix": "Batch x threads", "Software": "Software ladder", "Arrivals": "Arrivals"}.__getitem__,
)  # fmt: skip
assert view

left, right = st.columns([1, 2.7], gap="medium")
with left.container(border=True, key="form"):
    button = st.empty()  # above the fields, where it is in sight on every screen
    asked, wrong = None, None
    try:
        asked = inference.form(view)
        inference.price(asked)
    except EngineError as error:
        wrong = error
    may = state.client().may("submit")
    if (
        button.button(
            "Run", type="primary", width="stretch", icon=":material/bolt:", key="run", disabled=asked is None or not may,
            help=None if may else "As viewer you may look at measurements; an admin can let you start some.",
        )
        and asked
    ):  # fmt: skip
        try:
            st.session_state["infer.shown"][view] = inference.start(asked)
            st.session_state["infer.cell"] = None
        except EngineError as error:
            wrong = error
    if asked:
        inference.in_a_terminal(asked)

with right:
    if wrong:
        with st.container(key="problems"):
            run_parts.error_box(wrong)
    if st.session_state.get("infer.missing"):
        st.warning("The measurement of this link is not in this store, or cannot be read.", icon=":material/warning:")
    runs = inference.shown_runs(view)
    if runs:
        with st.container(key="run-view"):
            inference.show(runs)
    else:
        component.preload()
        inference.preview(view, asked)
inference.put_address(view, runs[0] if runs else None)
