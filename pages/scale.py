"""Scale: one training on 1, 2, 4 ... ranks, and whether more devices pay off here. The address names the study."""

import streamlit as st

from dashboard import state
from dashboard.views.scaling import form, result
from dashboard.views.shared import VIEWER_NOTE
from dashboard.widgets import component, copy_buttons, run_parts
from engine.common.errors import EngineError

st.title("Scale", anchor=False)
form.keep_choices()
if "study" not in st.query_params and st.session_state.get("scale.last"):
    st.query_params["study"] = st.session_state["scale.last"]  # coming back shows the study that was open before

left, right = st.columns([1, 2.7], gap="medium")
wrong: EngineError | None = None
with left.container(border=True, key="form"):
    button = st.empty()  # above the fields, so that it is in sight on every screen
    request = form.form(st.query_params.get("preset", form.DEFAULT))
    wrong = request.wrong
    allowed = state.client().may("submit")
    if button.button(
        "Start", type="primary", width="stretch", icon=":material/hub:", key="run",
        disabled=bool(wrong or request.only_one_rank) or not allowed,
        help=None if allowed else VIEWER_NOTE,
    ):  # fmt: skip
        try:
            st.session_state["scale.started"] = form.start(request)
        except EngineError as error:
            wrong = error

with left:
    copy_buttons.copy_buttons(request.command, key="copy-form")
group = st.session_state.pop("scale.started", None) or st.query_params.get("study")
study = None
try:
    study = result.open_study(group)
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
            result.show_study(study, request.target)
        st.stop()
    component.preload()
    if group and not wrong:
        st.warning("The study of this link is not in this store.", icon=":material/warning:")
    if request.only_one_rank:
        st.info(run_parts.literal(request.only_one_rank), icon=":material/info:")
    elif not wrong:
        form.preview(request)
