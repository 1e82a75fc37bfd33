"""What `streamlit run dashboard/app.py` starts: the pages, our routes beside them, and the checks in front of both."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts dashboard/, not the root, on sys.path
    sys.path.insert(0, str(ROOT))

import streamlit as st
from starlette.routing import Mount

from dashboard.api import ROUTES
from dashboard.lifespan import lifespan
from dashboard.security import MIDDLEWARE

base_path = st.get_option("server.baseUrlPath").strip("/")
app = st.App(
    ROOT / "dashboard" / "main.py",
    routes=[Mount(f"/{base_path}", routes=ROUTES)] if base_path else ROUTES,
    middleware=MIDDLEWARE,
    lifespan=lifespan,
)
