"""What `streamlit run dashboard/app.py` starts: the pages, our routes beside them, and the checks in front of both."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts dashboard/, not the root, on sys.path
    sys.path.insert(0, str(ROOT))

import streamlit as st

from dashboard import streamlit_private
from engine.errors import ConfigError

try:
    streamlit_private.check()  # before the imports that need what it checks
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

from starlette.routing import Route

from dashboard import api, compare_api, gate, inference_api, mishaps, monitor_api, scale_api, signin
from dashboard.lifespan import lifespan
from dashboard.security import MIDDLEWARE
from engine import settings
from engine.store import default_root

try:
    signin.check_start(st.get_option("server.address"), settings.load(default_root()))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

prefix = gate.prefix()
routes = [*api.ROUTES, *compare_api.ROUTES, *monitor_api.ROUTES, *inference_api.ROUTES, *scale_api.ROUTES]
app = st.App(
    ROOT / "dashboard" / "main.py",
    routes=[Route(prefix + route.path, route.endpoint) for route in routes],  # a Mount would swallow Streamlit's own
    middleware=MIDDLEWARE,
    lifespan=lifespan,
    on_script_error=mishaps.in_a_page,
    exception_handlers={Exception: mishaps.in_a_route},
)
