"""What nobody foresaw: the page gets an id, the server's log the rest under that id. No viewer sees a traceback."""

from __future__ import annotations

import logging
import secrets

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from dashboard.widgets import run_parts
from engine.common.errors import EngineError

logger = logging.getLogger("isoflop.dashboard")
_WORDS = "Something broke that should not. The server's log says more under the id {}."


def in_a_page(error: Exception) -> bool:
    """Streamlit calls this for an error of a page's script; True: it is said already."""
    if isinstance(error, EngineError):
        run_parts.error_box(error)
    else:
        st.error(_WORDS.format(_logged(error)), icon=":material/error:")
    return True


def in_a_route(_: Request, error: Exception) -> Response:
    return PlainTextResponse(_WORDS.format(_logged(error)), status_code=500)


def _logged(error: Exception) -> str:
    error_id = secrets.token_hex(4)
    logger.error("error %s", error_id, exc_info=error)
    return error_id
