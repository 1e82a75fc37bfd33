"""Unexpected errors: the page shows an id, and the server's log has the traceback under that id."""

from __future__ import annotations

import logging
import secrets

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dashboard.widgets import run_parts
from engine.common.errors import EngineError

logger = logging.getLogger("isoflop.dashboard")
_WORDS = "Unexpected error. The server's log has the details under the id {}."


def on_page_error(error: Exception) -> bool:
    """Show an error of a page's script. Called by Streamlit; True means that the error is handled."""
    if isinstance(error, EngineError):
        run_parts.error_box(error)
    else:
        st.error(_WORDS.format(_log(error)), icon=":material/error:")
    return True


def on_route_error(_: Request, error: Exception) -> Response:
    """The response of a route that raised an unexpected error."""
    return PlainTextResponse(_WORDS.format(_log(error)), status_code=500)


def _log(error: Exception) -> str:
    error_id = secrets.token_hex(4)
    logger.error("error %s", error_id, exc_info=error)
    return error_id
