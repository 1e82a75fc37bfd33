"""Checks of the host and origin of every request, and the security headers of every response.

A page on the internet can make a browser send requests to 127.0.0.1, and can point its own host name there (DNS
rebinding). Streamlit checks its own socket only, so these checks run before every route.
"""

from __future__ import annotations

import base64
import hashlib
import re

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.server import streamlit_private
from dashboard.server.auth_middleware import AuthMiddleware


def _inline_scripts() -> str:
    """Hashes of the inline scripts in the installed Streamlit's own page; the browser refuses any other inline script."""
    scripts = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", streamlit_private.index_html(), re.DOTALL)
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' blob: {_inline_scripts()}",  # blob: Streamlit loads a component's script this way
            "style-src 'self' 'unsafe-inline'",  # Streamlit makes its styles in the browser
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "media-src 'self' blob:",
            "worker-src 'self' blob:",
            "connect-src 'self'",
            "frame-src 'none'",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    ),
}
_HOST = re.compile(r"(?P<name>[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:\d{1,5})?", re.IGNORECASE)
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class SafetyHeaders:
    """Middleware that adds HEADERS to each response, also to refusals."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request and add HEADERS to its response (ASGI)."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)  # one of our pages may set stricter ones
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OwnPagesOnly:
    """Middleware that refuses requests for another host, and sockets and changes from another site's page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse a request (ASGI)."""
        refusal = why_refused(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, reason = refusal
            await PlainTextResponse(reason, status_code=status)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})  # the server answers 403


def why_refused(scope: Scope) -> tuple[int, str] | None:
    """Status and reason of the refusal, or None for a request that may pass."""
    headers = Headers(scope=scope)
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not _is_ours(hosts[0]):
        return 400, "This address is not served here."
    # Scripts and curl send no Origin, and they have no browser cookie. A browser always sends an Origin with a change.
    needs_origin = scope["type"] == "websocket"
    if (needs_origin or scope["method"] not in _SAFE_METHODS) and not _same_origin(hosts[0], origins, needs_origin):
        return 403, "This request comes from another site."
    return None


def _is_ours(host: str) -> bool:
    """Whether a Host header is one of `server.allowedHosts`, where `*.example.org` stands for all hosts below it."""
    found = _HOST.fullmatch(host)
    if not found:
        return False
    name = found["name"].strip("[]").lower().rstrip(".")
    allowed = [
        str(entry).strip().strip("[]").lower() for entry in st.get_option("server.allowedHosts") or _THIS_MACHINE
    ]
    return any(name == entry or (entry.startswith("*.") and name.endswith(entry[1:])) for entry in allowed)


def _same_origin(host: str, origins: list[str], required: bool) -> bool:
    """Whether Origin and Host have the same host and port; another port on this machine is another site."""
    if not origins:
        return not required
    return len(origins) == 1 and origins[0].lower() in {f"http://{host.lower()}", f"https://{host.lower()}"}


MIDDLEWARE = [Middleware(SafetyHeaders), Middleware(OwnPagesOnly), Middleware(AuthMiddleware)]
