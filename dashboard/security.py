"""Who may talk to the dashboard: browsers on this machine, from the dashboard's own pages.

A page on the internet can make a browser send requests to 127.0.0.1, and can point its own host name there (DNS
rebinding). Streamlit checks its own socket only; these checks stand in front of every route.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
}
_OWN_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class SafetyHeaders:
    """Puts HEADERS on each answer, refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)


class OwnPagesOnly:
    """Refuses requests for another host, and sockets and changes that another site's page asks for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = why_refused(scope) if scope["type"] in {"http", "websocket"} else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            status, reason = refusal
            await PlainTextResponse(reason, status_code=status)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})  # the server answers 403


def why_refused(scope: Scope) -> tuple[int, str] | None:
    """Status and reason, or None for a request that may pass."""
    headers = Headers(scope=scope)
    hosts, origins = headers.getlist("host"), headers.getlist("origin")
    if len(hosts) != 1 or not _OWN_HOST.fullmatch(hosts[0]):
        return 400, "This address is not served here."
    # Scripts and curl send no Origin and no browser cookie is at stake; a browser always sends one with a change.
    needs_origin = scope["type"] == "websocket"
    if (needs_origin or scope["method"] not in _SAFE_METHODS) and not _same_origin(hosts[0], origins, needs_origin):
        return 403, "This request comes from another site."
    return None


def _same_origin(host: str, origins: list[str], required: bool) -> bool:
    """Host and port of the Origin are the Host's: another port on this machine is another site."""
    if not origins:
        return not required
    return len(origins) == 1 and origins[0].lower() in {f"http://{host.lower()}", f"https://{host.lower()}"}


MIDDLEWARE = [Middleware(SafetyHeaders), Middleware(OwnPagesOnly)]
