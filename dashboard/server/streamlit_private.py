"""The non-public parts of Streamlit that the dashboard needs. They are checked when the server starts.

Streamlit may move or rename them in any release. The imports are inside the functions, because an installed version
without one of them must still reach `check`, which reports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from engine.common.errors import ConfigError

TESTED = ">=1.67,<1.68"  # as in requirements.txt
NEEDED: Mapping[str, tuple[str, ...]] = {
    "streamlit": ("App",),  # public, but younger than the rest of the interface
    "streamlit.auth_util": ("encode_provider_token", "get_cookie_with_chunks", "get_secrets_auth_section"),
    "streamlit.web.server.server_util": ("get_cookie_secret",),
    "streamlit.web.server.starlette.starlette_app_utils": ("decode_signed_value",),
    "streamlit.web.server.starlette.starlette_server_config": ("USER_COOKIE_NAME",),
}
_INDEX_HTML = Path(st.__file__).parent / "static" / "index.html"


def check() -> None:
    """Check the installed Streamlit.

    Raises:
        ConfigError: if it lacks a name or file that the dashboard needs.
    """
    missing = [name for module, names in NEEDED.items() for name in _missing_in(module, names)]
    missing += [] if _INDEX_HTML.is_file() else [str(_INDEX_HTML.relative_to(_INDEX_HTML.parents[2]))]
    if missing:
        raise ConfigError(
            f"The installed Streamlit {st.__version__} lacks {', '.join(missing)}, which the dashboard needs.",
            fix=f"Install a version that the dashboard was tested with: pip install 'streamlit{TESTED}'.",
        )


def _missing_in(module: str, names: tuple[str, ...]) -> list[str]:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return [module]
    return [f"{module}.{name}" for name in names if not hasattr(found, name)]


def index_html() -> str:
    """The HTML page of the installed Streamlit."""
    return _INDEX_HTML.read_text(encoding="utf-8")


def user_cookie(cookies: Callable[[str], Iterable[str]], max_age_days: float) -> bytes | None:
    """The JSON in the cookie of st.login, after its signature and age are checked. None if there is no such cookie.

    `cookies` gives the values of all cookies with a name, because a long cookie is split over several names.
    """
    from streamlit.auth_util import get_cookie_with_chunks
    from streamlit.web.server.server_util import get_cookie_secret
    from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
    from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

    secret = get_cookie_secret()

    def signed(name: str) -> bytes | None:
        decoded = (decode_signed_value(secret, name, value, max_age_days) for value in cookies(name))
        return next(filter(None, decoded), None)

    return get_cookie_with_chunks(signed, USER_COOKIE_NAME)


def auth_section() -> Mapping[str, Any]:
    """The section [auth] of .streamlit/secrets.toml; empty if there is none."""
    from streamlit.auth_util import get_secrets_auth_section

    section = get_secrets_auth_section()
    return section.to_dict() if section else {}


def provider_token(provider: str) -> str:
    """The name of a provider in the address of st.login's sign-in."""
    from streamlit.auth_util import encode_provider_token

    return encode_provider_token(provider)
