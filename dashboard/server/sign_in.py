"""How a browser proves who uses it: a one-time link, a shared token, a proxy's word, or an identity provider.

The first two are traded for a cookie of ours. A cookie is good for one store, one way to sign in and one port of this
machine, for browsers do not tell ports apart.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import ipaddress
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from dashboard.server import streamlit_private
from engine.access import keys, policy
from engine.access.policy import Actor
from engine.access.settings import Settings
from engine.common.errors import ConfigError

COOKIE_MAX_AGE_S = 30 * 24 * 3600
TEAM = "team"  # the name of everyone who knows the shared token
WAYS = (
    "In settings.toml of the store choose one of: sign_in.method = 'oidc' (st.login, with a list of allowed e-mails "
    "or domains), 'proxy' (a header from a trusted proxy's address), or 'token' (one secret everybody shares)."
)


# --- where we listen ------------------------------------------------------------------------------------------------


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address or host name; one that cannot be told counts as open."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        pass
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(address, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(a.partition("%")[0]).is_loopback for a in found)


def check_start(address: str | None, settings: Settings) -> None:
    """Raises ConfigError when a start with these settings would let in whoever comes, or nobody at all."""
    if not settings.is_team and not is_loopback(address or "0.0.0.0"):  # noqa: S104 - Streamlit's default
        raise ConfigError(
            f"server.address={address or '(every interface)'} can be reached from other machines, and nobody would have to sign in.",
            fix=f"Listen on 127.0.0.1, or let people sign in. {WAYS}",
        )
    if settings.sign_in.method == "oidc":
        if importlib.util.find_spec("authlib") is None:
            raise ConfigError("sign_in.method='oidc' needs Authlib.", fix="`pip install Authlib`.")
        if not providers():
            raise ConfigError(
                "sign_in.method='oidc' needs a provider.",
                fix="Describe it under [auth] in .streamlit/secrets.toml, as Streamlit's st.login asks for.",
            )


def greeting(root: Path, settings: Settings, address: str | None, port: int, base_path: str) -> str:
    """What the terminal shows at the start: where to go, and how to get in. Links asked for later lead there too."""
    if address in {None, "", "0.0.0.0", "::"}:  # noqa: S104 - every interface: a name that is answered here
        named = [n for n in st.get_option("server.allowedHosts") if "*" not in n and not is_loopback(n)]
        address = named[0] if named else "127.0.0.1"
    host = f"[{address}]" if address and ":" in address else address
    url = f"http://{host}:{port}/{base_path.strip('/')}"
    keys.remember_url(root, url)
    if settings.sign_in.method == "link":
        return f"\n  Isoflop: {keys.sign_in_link(root, url)}\n\n  The link lets one browser in. Another one: python -m engine link\n"
    return f"\n  Isoflop: {url}   (sign_in.method = {settings.sign_in.method!r})\n"


# --- our cookie -----------------------------------------------------------------------------------------------------


def cookie_name(scope: Scope) -> str:
    return f"isoflop-{_port(Headers(scope=scope).get('host', ''), scope)}"


def _port(host: str, scope: Scope) -> str:
    port = host.rpartition(":")[2]
    return port if port.isdigit() else ("443" if is_encrypted(scope) else "80")


def is_encrypted(scope: Scope) -> bool:
    return scope.get("scheme") in {"https", "wss"}


def issue_cookie(root: Path, settings: Settings) -> str:
    """The value of a cookie for someone who showed the link or the token."""
    return _serializer(root).dumps([settings.sign_in.method, _fingerprint(settings)])


def _serializer(root: Path) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(keys.cookie_key(root), salt="isoflop sign-in")


def _fingerprint(settings: Settings) -> str:
    """Of the shared token: another token signs everybody out."""
    return hashlib.sha256(settings.sign_in.token.encode()).hexdigest()[:16]


def accepts(root: Path, settings: Settings, token: str) -> bool:
    """Whether this is what lets one in; a link's token is used up by asking."""
    match settings.sign_in.method:
        case "link":
            return keys.redeem(root, token)
        case "token":
            return hmac.compare_digest(token.encode(), settings.sign_in.token.encode())
        case _:
            return False


# --- who it is ------------------------------------------------------------------------------------------------------


def who(scope: Scope, root: Path, settings: Settings) -> Actor | None:
    """Who sends a request, or None for somebody who has not signed in."""
    match settings.sign_in.method:
        case "proxy":
            return _from_proxy(scope, settings)
        case "oidc":
            return _from_provider(scope, root)
        case _:
            return _from_cookie(scope, root, settings)


def _from_cookie(scope: Scope, root: Path, settings: Settings) -> Actor | None:
    serializer, expected = _serializer(root), [settings.sign_in.method, _fingerprint(settings)]
    if not any(_held(serializer, value) == expected for value in _cookies(scope, cookie_name(scope))):
        return None
    return policy.LOCAL if settings.sign_in.method == "link" else Actor("token", TEAM)


def _held(serializer: URLSafeTimedSerializer, value: str) -> object:
    try:
        return serializer.loads(value, max_age=COOKIE_MAX_AGE_S)
    except BadData:
        return None


def _cookies(scope: Scope, name: str) -> list[str]:
    """Every cookie of a name: a server on another port of this machine may have set one beside ours."""
    parts = ";".join(Headers(scope=scope).getlist("cookie")).split(";")
    return [value for part in parts if (value := cookie_parser(part).get(name))]


def _from_proxy(scope: Scope, settings: Settings) -> Actor | None:
    names = Headers(scope=scope).getlist(settings.sign_in.proxy_header)
    believed = {_plain(address) for address in settings.sign_in.proxy_addresses}
    if not _peers(scope) <= believed or len(names) != 1:
        return None
    name = names[0].strip()
    return Actor("proxy", name) if 0 < len(name) <= policy.LONGEST_NAME else None


def _peers(scope: Scope) -> set[str]:
    """Whose connection it is, at most.

    uvicorn puts what X-Forwarded-For says in the place of a peer it trusts: with port 0, or with the port that is said
    there too. So a peer that is named in that header may be one that uvicorn trusts.
    """
    host, port = scope.get("client") or ("", None)
    said = [part.strip() for line in Headers(scope=scope).getlist("x-forwarded-for") for part in line.split(",")]
    if port != 0 and not any(part == host or part.startswith((f"{host}:", f"[{host}]")) for part in said):
        return {_plain(host)}
    trusted = {_plain(part.strip()) for part in os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1").split(",")}
    return trusted | {_plain(host)} if port else trusted


def _plain(address: str) -> str:
    """An address as it is usually written: ::ffff:10.0.0.5 is how a server on `::` sees 10.0.0.5."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(found, "ipv4_mapped", None) or found)


def _from_provider(scope: Scope, root: Path) -> Actor | None:
    """The e-mail in the cookie that Streamlit's st.login signs."""
    # Whoever signed in before everyone was signed out is out, though Streamlit's cookie is signed with a key of its own.
    days = min(COOKIE_MAX_AGE_S, int(time.time()) - int(keys.signed_out_at(root)) + 0.5) / 86_400
    found = streamlit_private.user_cookie(lambda name: _cookies(scope, name), days)
    try:
        user: Mapping[str, Any] = json.loads(found or b"{}")
    except ValueError:
        return None
    origin = f"{'https' if is_encrypted(scope) else 'http'}://{Headers(scope=scope).get('host', '')}"
    email = user.get("email")
    if not isinstance(email, str) or not email or user.get("is_logged_in") is not True or user.get("origin") != origin:
        return None
    return Actor("oidc", email[:200]) if user.get("email_verified", True) is True else None


def providers() -> list[str]:
    """The identity providers of .streamlit/secrets.toml, as st.login names them."""
    section = streamlit_private.auth_section()
    named = [name for name, value in section.items() if isinstance(value, Mapping) and "client_id" in value]
    return (["default"] if "client_id" in section else []) + named


def provider_link(provider: str) -> str:
    """Where st.login would send the browser."""
    return f"auth/login?provider={streamlit_private.provider_token(provider)}"
