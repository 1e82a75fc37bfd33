"""The frame of every page: title, look, navigation. `app.py` starts it."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts dashboard/, not the root, on sys.path
    sys.path.insert(0, str(ROOT))

import streamlit as st

from dashboard import parts

ASSETS = Path(__file__).parent / "assets"

st.set_page_config(page_title="Isoflop", page_icon=str(ASSETS / "icon.svg"), layout="wide")
st.logo(str(ASSETS / "icon.svg"), size="large")
st.html(ASSETS / "page.css")

parts.person()
pages = ROOT / "pages"
st.navigation(
    [
        st.Page(pages / "start.py", title="Start", icon=":material/home:", default=True),
        st.Page(pages / "train.py", title="Train", icon=":material/play_circle:", url_path="train"),
        st.Page(pages / "runs.py", title="Runs", icon=":material/list:", url_path="runs"),
    ],
    position="top",
).run()
