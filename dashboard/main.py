"""The frame of every page: title, look, navigation. `app.py` starts it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts dashboard/, not the root, on sys.path
    sys.path.insert(0, str(ROOT))

import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.common.errors import StoreError, StoreGone

ASSETS = Path(__file__).parent / "assets"

st.set_page_config(page_title="Isoflop", page_icon=str(ASSETS / "icon.svg"), layout="wide")
st.logo(str(ASSETS / "icon.svg"), size="large")
st.html(ASSETS / "page.css")

pages = ROOT / "pages"
page = st.navigation(
    [
        st.Page(pages / "start.py", title="Start", icon=":material/home:", default=True),
        st.Page(pages / "train.py", title="Train", icon=":material/play_circle:", url_path="train"),
        st.Page(pages / "compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
        st.Page(pages / "inference.py", title="Inference", icon=":material/bolt:", url_path="inference"),
        st.Page(pages / "scale.py", title="Scale", icon=":material/hub:", url_path="scale"),
        st.Page(pages / "hardware.py", title="Hardware", icon=":material/memory:", url_path="hardware"),
        st.Page(pages / "library.py", title="Library", icon=":material/list:", url_path="runs"),
    ],
    position="top",
)


def store_can_be_read() -> bool:
    """Show what is wrong with the store above every page. Returns whether the page can be shown."""
    try:
        trouble = state.store().trouble()
    except StoreError as error:
        run_parts.error_box(error)
        return False
    if trouble:
        run_parts.error_box(trouble)
    return not isinstance(trouble, StoreGone)


if store_can_be_read():
    run_parts.show_user()
    page.run()
