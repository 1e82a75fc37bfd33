"""Scale: one training on 1, 2, 4 ... ranks, live, and whether more devices are worth it here. The study is in the address."""

import streamlit as st

from dashboard import state
from dashboard.views import scaling
from dashboard.widgets import component, copy_buttons, run_parts
from engine.common.errors import EngineError

st.title("Scale", anchor=False)
scaling.keep_choices()
if "study" not in st.query_params and st.session_state.get("scale.last"):
    st.query_params["study"] = st.session_state["scale.last"]  # coming back shows what was here before

left, right = st.columns([1, 2.7], gap="medium")
wrong: EngineError | None = None
with left.container(border=True, key="form"):
    button = st.empty()  # above the fields, where it is in sight on every screen
    asked = scaling.form(st.query_params.get("preset", scaling.DEFAULT))
    wrong = asked.wrong
    may = state.client().may("submit")
    if button.button(
        "Start", type="primary", width="stretch", icon=":material/hub:", key="run",
        disabled=bool(wrong or asked.alone) or not may,
        help=None if may else "As viewer you may look at studies; an admin can let you start some.",
    ):  # fmt: skip
        try:
            st.session_state["scale.started"] = scaling.start(asked)
        except EngineError as error:
            wrong = error

with left:
    copy_buttons.copy_buttons(asked.command, key="copy-form")
group = st.session_state.pop("scale.started", None) or st.query_params.get("study")
study = None
try:
    study = scaling.open_study(group)
except EngineError as error:
    wrong = wrong or error
params = {"preset": st.session_state["scale.preset"]} | ({"study": study.race.group} if study else {})
if params != dict(st.query_params):
    st.query_params.from_dict(params)
st.session_state["scale.last"] = study.race.group if study else None

with right:
    if wrong:
        with st.container(key="problems"):
            run_parts.error_box(wrong)
    if study:
        with st.container(key="run-view"):
            scaling.show_study(study, asked.target)
        st.stop()
    component.preload()
    if group and not wrong:
        st.warning("The study of this link is not in this store.", icon=":material/warning:")
    if asked.alone:
        st.info(run_parts.literal(asked.alone), icon=":material/info:")
    elif not wrong:
        scaling.preview(asked)
