"""The app that `streamlit run dashboard/app.py` starts: the pages, our routes, and the checks before both."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # Streamlit puts dashboard/, not the root, on sys.path
    sys.path.insert(0, str(ROOT))

import streamlit as st

from dashboard.server import streamlit_private
from engine.common.errors import ConfigError

try:
    streamlit_private.check()  # before the imports that need the checked names
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

from starlette.routing import Route

from dashboard.api import hardware as hardware_api
from dashboard.api import inference as inference_api
from dashboard.api import race as race_api
from dashboard.api import run as run_api
from dashboard.api import scaling as scaling_api
from dashboard.server import auth_middleware, sign_in
from dashboard.server.headers import MIDDLEWARE
from dashboard.server.lifespan import lifespan
from dashboard.widgets import error_page
from engine.access import settings
from engine.store.store import default_root

try:
    sign_in.check_start(st.get_option("server.address"), settings.load(default_root()))
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)

prefix = auth_middleware.prefix()
routes = [*run_api.ROUTES, *race_api.ROUTES, *hardware_api.ROUTES, *inference_api.ROUTES, *scaling_api.ROUTES]
app = st.App(
    ROOT / "dashboard" / "main.py",
    routes=[
        Route(prefix + route.path, route.endpoint) for route in routes
    ],  # a Mount would also match Streamlit's own routes
    middleware=MIDDLEWARE,
    lifespan=lifespan,
    on_script_error=error_page.on_page_error,
    exception_handlers={Exception: error_page.on_route_error},
)
