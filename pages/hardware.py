"""Hardware: live use, calibration and roofline of this machine. The address names the view."""

from collections.abc import Callable

import streamlit as st

from dashboard.live.hardware import monitor_view
from dashboard.views.calibration import calibrate_view
from dashboard.views.roofline import roofline_view

VIEWS: dict[str, Callable[[], None]] = {
    "Monitor": monitor_view,
    "Calibrate": calibrate_view,
    "Roofline": roofline_view,
}

st.title("Hardware", anchor=False)
if "hardware.view" not in st.session_state:
    linked = st.query_params.get("view", "Monitor")
    st.session_state["hardware.view"] = linked if linked in VIEWS else "Monitor"
chosen = st.segmented_control("View", list(VIEWS), key="hardware.view", label_visibility="collapsed", required=True)
view = chosen or "Monitor"
if st.query_params.get("view") != view:
    st.query_params.from_dict({"view": view})
VIEWS[view]()
