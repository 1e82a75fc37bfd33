"""The check of every request: RULES decide who may send it, and a request without a rule is refused.

The rules cover Streamlit's own routes as well as ours. A test walks all routes of the app and fails on one without a
rule, so that a new route, ours or a newer Streamlit's, is closed until it gets one.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import math
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, parse_qsl, quote, urlencode

import streamlit as st
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard.server import sign_in
from engine.access import policy, settings
from engine.access.policy import Actor
from engine.access.settings import Settings
from engine.common.errors import ConfigError
from engine.store.store import default_root

Decision = Literal["anyone", "viewer", "runner", "sign-in", "provider", "nobody"]
ACTOR_HEADER = "x-isoflop-actor"
_LOOK, _ALL = frozenset({"GET", "HEAD"}), frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_MOST_BODY_BYTES = 4_096
_SLOWEST_BODY_S = 10.0
_WRONG_TOKEN_WAIT_S = 0.5
_LOG_EVERY_S = 60.0
_MOST_SOCKETS = 200  # of one user; all users of the shared token count as one
_CHECK_EVERY_S = 1.0  # how often a socket's user is checked again while the server sends
_NOT_FOUND = "There is nothing here."
_CLOSE: Message = {"type": "websocket.close", "code": 1008, "reason": "Sign in first."}
_FROM_HERE = frozenset({"same-origin", "none"})  # Sec-Fetch-Site of our own page, and of a typed address

logger = logging.getLogger("isoflop.access")


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may send requests to a path. Paths are without server.baseUrlPath; the first matching rule decides."""

    path: str  # a regular expression that must match all of it
    methods: frozenset[str]
    decision: Decision


def _rule(path: str, decision: Decision, *methods: str) -> Rule:
    return Rule(path, frozenset(methods) or _LOOK, decision)


RULES = (
    _rule(r"/_stcore/health", "anyone", "GET", "HEAD", "OPTIONS"),  # the answer is only "ok"
    _rule(r"/sign-in", "sign-in", "GET", "HEAD", "POST"),
    _rule(r"/sign-out", "sign-in"),
    _rule(r"/auth/(login|logout)|/oauth2callback", "provider"),
    _rule(r"/_stcore/(metrics|script-health-check)", "nobody", *_ALL),  # Streamlit's usage numbers stay private
    _rule(r"/_stcore/agent/.*", "nobody", *_ALL),
    _rule(r"/_stcore/stream", "viewer", "WEBSOCKET"),
    _rule(r"/_stcore/host-config", "viewer"),
    _rule(r"/_stcore/upload_file/[^/]+/[^/]+", "runner", "PUT", "DELETE", "OPTIONS"),
    _rule(r"/_stcore/bidi-components/.*", "viewer", "GET", "HEAD", "OPTIONS"),
    _rule(r"/_stcore/.*", "nobody", *_ALL, "WEBSOCKET"),
    _rule(r"/(media|component)/.*", "viewer", "GET", "HEAD", "OPTIONS"),
    _rule(r"/api/runs/[^/]+/points|/api/compare|/api/hardware|/api/inference|/api/scale", "viewer"),
    _rule(r"/assets/[^/]+", "viewer"),
    _rule(r"/(?!_stcore(/|$)|api(/|$)).*", "viewer"),  # Streamlit's page and scripts, at every other address
)


def decide(path: str, method: str) -> Decision:
    """Who may send this request; `nobody` if no rule matches."""
    for rule in RULES:
        if method in rule.methods and re.fullmatch(rule.path, path, re.DOTALL):
            return rule.decision
    return "nobody"


class AuthMiddleware:
    """Middleware that applies RULES to every request and passes the user to the pages in a header."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._sockets = Counter[str]()  # of each user
        self._settings_log, self._sign_in_log = _RateLimiter(), _RateLimiter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as its rule says (ASGI)."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        answer = await self._answer(scope, receive)
        if scope["type"] == "http":
            await (answer or self.app)(scope, receive, send)
        elif answer:
            await send(_CLOSE)  # the server answers 403
        else:
            await self._watch_socket(scope, receive, send)

    async def _watch_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Close the socket when its user signs out or loses access; it may be open for days."""
        actor, checked_at, has_access = Headers(scope=scope)[ACTOR_HEADER], time.monotonic(), True

        async def closed(max_age_s: float) -> bool:
            nonlocal checked_at, has_access
            if has_access and time.monotonic() - checked_at >= max_age_s:
                has_access, checked_at = self._has_access(scope), time.monotonic()
                if not has_access:
                    await send(_CLOSE)
            return not has_access

        async def checked_receive() -> Message:
            message = await receive()
            return {"type": "websocket.disconnect", "code": 1008} if await closed(0) else message

        async def checked_send(message: Message) -> None:
            if not await closed(_CHECK_EVERY_S):
                await send(message)

        if self._sockets[actor] >= _MOST_SOCKETS:
            await send(_CLOSE)
            return
        self._sockets[actor] += 1
        try:
            await self.app(scope, checked_receive, checked_send)
        finally:
            self._sockets[actor] -= 1

    @staticmethod
    def _has_access(scope: Scope) -> bool:
        with contextlib.suppress(ConfigError):
            rules = settings.load(root := default_root())
            actor = sign_in.actor_of(scope, root, rules)
            if actor is not None and quote(actor.id) == Headers(scope=scope)[ACTOR_HEADER]:
                return policy.role_of(actor, rules) is not None
        return False

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Our own response instead of the app's; None for a request that passes."""
        root = default_root()
        try:
            rules = settings.load(root)
        except ConfigError as error:
            if self._settings_log.count_due():
                logger.error("%s", error)
            return PlainTextResponse(
                "The settings of this store are invalid. The server's log has the details.", status_code=503
            )
        headers = MutableHeaders(scope=scope)
        del headers[ACTOR_HEADER]  # only this middleware sets the user
        if not rules.is_team and not _arrived_on_loopback(scope):
            return PlainTextResponse(
                "This dashboard can only be used on the machine on which it runs.", status_code=403
            )
        if _path(scope) in {"/sign-out", "/auth/logout"} and headers.get("sec-fetch-site", "none") not in _FROM_HERE:
            return PlainTextResponse("Sign out from the page itself.", status_code=403)
        match decide(_path(scope), scope.get("method", "WEBSOCKET")):
            case "anyone":
                return None
            case "nobody":
                return PlainTextResponse(_NOT_FOUND, status_code=404)
            case "provider":
                return None if rules.sign_in.method == "oidc" else PlainTextResponse(_NOT_FOUND, 404)
            case "sign-in":
                return await self._sign_in_or_out(Request(scope, receive), root, rules)
            case needed:
                return await self._authorize(scope, root, rules, needed)

    async def _authorize(self, scope: Scope, root: Path, rules: Settings, needed: Decision) -> Response | None:
        token = _token_in_address(scope)
        if token is not None and scope["type"] == "http" and rules.sign_in.method in {"link", "token"}:
            return await self._exchange_token(scope, root, rules, token, _address(scope))
        actor = sign_in.actor_of(scope, root, rules)
        if actor is None:
            return _refusal(scope, rules)
        role = policy.role_of(actor, rules)
        if role is None:
            return _page(f"{actor.name} may not use this dashboard. Ask its admin for access.", 403, sign_out=True)
        if needed == "runner" and role == "viewer":
            return PlainTextResponse("A viewer may not do this.", status_code=403)
        MutableHeaders(scope=scope).append(ACTOR_HEADER, quote(actor.id))
        return None

    async def _sign_in_or_out(self, request: Request, root: Path, rules: Settings) -> Response:
        scope = request.scope
        if _path(scope) == "/sign-out":
            target = "/auth/logout" if rules.sign_in.method == "oidc" else "/sign-in"
            answer: Response = RedirectResponse(prefix() + target, status_code=303)
            answer.delete_cookie(sign_in.cookie_name(scope))
            return answer
        if request.method != "POST":
            return _refusal(scope, rules)
        form = parse_qs((await _body(request)).decode(errors="replace"))
        return await self._exchange_token(scope, root, rules, form.get("token", [""])[0].strip(), prefix() + "/")

    async def _exchange_token(self, scope: Scope, root: Path, rules: Settings, token: str, target: str) -> Response:
        """Exchange a token for a cookie and redirect to the address without the token."""
        if not await asyncio.to_thread(sign_in.accept_token, root, rules, token):
            if sign_in.actor_of(scope, root, rules):  # an old link, opened by somebody who is signed in
                return RedirectResponse(target, status_code=303)
            await asyncio.sleep(_WRONG_TOKEN_WAIT_S)
            if times := self._sign_in_log.count_due():
                outcome = "refused" if times == 1 else f"refused {times:,} times"
                await asyncio.to_thread(policy.audit, root, Actor("token"), "sign in", outcome=outcome)
            return _refusal(scope, rules, wrong=True)
        await asyncio.to_thread(policy.audit, root, _actor_of_token(rules), "sign in")
        answer = RedirectResponse(target, status_code=303, headers={"Cache-Control": "no-store"})
        answer.set_cookie(
            sign_in.cookie_name(scope),
            sign_in.issue_cookie(root, rules),
            max_age=sign_in.COOKIE_MAX_AGE_S,
            httponly=True,
            samesite="strict",
            secure=sign_in.is_encrypted(scope),
        )
        return answer


async def _body(request: Request) -> bytes:
    """The body of a form; empty if it is too long or arrives too slowly."""
    body = b""
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_SLOWEST_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _MOST_BODY_BYTES:
                    return b""
        return body
    return b""


class _RateLimiter:
    """Limits log lines that an unauthenticated client can cause to one a minute, so that nobody can fill the disk."""

    def __init__(self) -> None:
        self._count, self._next = 0, -math.inf

    def count_due(self) -> int:
        """Count one event. Returns the events since the last line if a line is due, otherwise 0."""
        self._count += 1
        if time.monotonic() < self._next:
            return 0
        count, self._count, self._next = self._count, 0, time.monotonic() + _LOG_EVERY_S
        return count


def _actor_of_token(rules: Settings) -> Actor:
    return policy.LOCAL if rules.sign_in.method == "link" else Actor("token", sign_in.TEAM)


# --- addresses --------------------------------------------------------------------------------------------------------


def prefix() -> str:
    """The beginning of all our addresses: server.baseUrlPath."""
    base = (st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{base}" if base else ""


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    base = prefix()
    return (path[len(base) :] or "/") if base and (path == base or path.startswith(base + "/")) else path


def _token_in_address(scope: Scope) -> str | None:
    found = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token")
    return found[0] if found else None


def _address(scope: Scope) -> str:
    """The address of a request without its token. It has one leading slash, because two would name another host."""
    query = [(k, v) for k, v in parse_qsl(scope.get("query_string", b"").decode("latin-1")) if k != "token"]
    path = "/" + quote(scope["path"].lstrip("/\\"))
    return path + ("?" + urlencode(query) if query else "")


def _arrived_on_loopback(scope: Scope) -> bool:
    """Whether a request arrived at a loopback address, also if the server was not started by `streamlit run`."""
    host = (scope.get("server") or ("",))[0]
    return sign_in.is_loopback(host) if host and host[0] in "0123456789abcdef:" else True


# --- pages for users who are not signed in -----------------------------------------------------------------------------


def _refusal(scope: Scope, rules: Settings, *, wrong: bool = False) -> Response:
    headers = Headers(scope=scope)
    if "text/html" not in headers.get("accept", ""):
        return PlainTextResponse("Sign in first.", status_code=401)
    if not wrong and headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") == "navigate":
        # After a link on another site the browser leaves out the SameSite=Strict cookie. It sends the cookie when our page
        # loads the address again.
        return _page("", 401, again=_address(scope))
    match rules.sign_in.method:
        case "link":
            used = "That link was used before or belongs to another store. " if wrong else ""
            text = f"{used}Open the link that the terminal printed when the dashboard started, or get another one with:"
            return _page(text, 401, command="python -m engine link", field="Or paste the token of the link")
        case "token":
            return _page("That token is wrong." if wrong else "", 401, field="Shared token")
        case "oidc":
            links = {name: f"{prefix()}/{sign_in.provider_link(name)}" for name in sign_in.providers()}
            return _page("", 401, links=links)
        case _:
            return _page("Open this dashboard through its proxy, which signs you in.", 401)


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f2a; --soft: #5b6270; --line: #e3e6ec; --page: #f6f7f9; --card: #fff; --accent: #4f6bed }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #9aa3b2; --line: #2a303c; --page: #101319; --card: #181c24; --accent: #5b76f0 }
}
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--page); color: var(--ink);
  font: 15px/1.5 Inter, system-ui, sans-serif }
main { box-sizing: border-box; width: min(30rem, calc(100vw - 2rem)); padding: 1.75rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px }
h1 { margin: 0 0 .5rem; font-size: 1.35rem }
p { margin: .5rem 0 } label { display: block; margin-top: 1.25rem; color: var(--soft) }
code { display: block; padding: .5rem .75rem; border: 1px solid var(--line); border-radius: 6px; overflow-wrap: anywhere }
form { margin: 0 } .row { display: flex; gap: .5rem; margin-top: .35rem }
input { flex: 1; min-width: 0; padding: .5rem .75rem; border: 1px solid var(--line); border-radius: 6px; font: inherit;
  background: var(--page); color: inherit }
button, a.button { display: inline-block; padding: .5rem 1rem; border: 0; border-radius: 6px; background: var(--accent);
  color: #fff; font: inherit; font-weight: 600; text-decoration: none; cursor: pointer }
"""
_CSP = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"


def _page(
    text: str,
    status: int,
    *,
    command: str = "",
    field: str = "",
    links: dict[str, str] | None = None,
    again: str = "",
    sign_out: bool = False,
) -> HTMLResponse:
    """A complete page of our own, because a user who is not signed in gets no other file of the app."""
    parts = [f"<p>{html.escape(text)}</p>" if text else ""]
    if command:
        parts.append(f"<code>{html.escape(command)}</code>")
    for name, address in (links or {}).items():
        words = "Sign in" if name == "default" else f"Sign in with {name}"
        parts.append(f'<p><a class="button" href="{html.escape(address)}">{html.escape(words)}</a></p>')
    if field:
        parts.append(
            f'<form method="post" action="{prefix()}/sign-in"><label for="token">{html.escape(field)}</label><div class="row">'
            '<input id="token" name="token" type="password" autocomplete="current-password" required>'
            "<button>Sign in</button></div></form>"
        )
    if sign_out:
        parts.append(f'<p><a class="button" href="{prefix()}/sign-out">Sign out</a></p>')
    refresh = f'<meta http-equiv="refresh" content="0; url={html.escape(again)}">' if again else ""
    body = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{refresh}<title>Isoflop</title><style>{_STYLE}</style><main><h1>Isoflop</h1>{''.join(parts)}</main></html>"
    )
    # With no-referrer a browser would send "Origin: null" with the form.
    own = {"Cache-Control": "no-store", "Content-Security-Policy": _CSP, "Referrer-Policy": "same-origin"}
    return HTMLResponse(body, status, headers=own)
