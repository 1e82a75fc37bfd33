"""The ways to sign in: a one-time link, a shared token, a proxy's header, or an identity provider.

Link and token are exchanged for a cookie of ours. A cookie is valid for one store, one way to sign in and one port of
this machine, because browsers send cookies to every port of a host.
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
TEAM = "team"  # the name of all users of the shared token
WAYS = (
    "In settings.toml of the store choose one of: sign_in.method = 'oidc' (st.login, with a list of allowed e-mails "
    "or domains), 'proxy' (a header from a trusted proxy's address), or 'token' (one secret everybody shares)."
)


# --- the server's address ------------------------------------------------------------------------------------------------


def is_loopback(address: str) -> bool:
    """Whether an address or host name can be reached from this machine only; False if that is unknown."""
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
    """Check the settings before the server starts.

    Raises:
        ConfigError: if they would let everybody in, or nobody.
    """
    if not settings.is_team and not is_loopback(address or "0.0.0.0"):  # noqa: S104 - Streamlit's default
        raise ConfigError(
            f"server.address={address or '(every interface)'} can be reached from other machines without signing in.",
            fix=f"Listen on 127.0.0.1, or require signing in. {WAYS}",
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
    """The text in the terminal at the start: the dashboard's address and how to sign in. Later links use the same address."""
    if address in {None, "", "0.0.0.0", "::"}:  # noqa: S104 - every interface, so take an allowed host name
        named = [n for n in st.get_option("server.allowedHosts") if "*" not in n and not is_loopback(n)]
        address = named[0] if named else "127.0.0.1"
    host = f"[{address}]" if address and ":" in address else address
    url = f"http://{host}:{port}/{base_path.strip('/')}"
    keys.remember_url(root, url)
    if settings.sign_in.method == "link":
        return f"\n  Isoflop: {keys.sign_in_link(root, url)}\n\n  The link signs one browser in. Get another one: python -m engine link\n"
    return f"\n  Isoflop: {url}   (sign_in.method = {settings.sign_in.method!r})\n"


# --- our cookie -----------------------------------------------------------------------------------------------------


def cookie_name(scope: Scope) -> str:
    """The name of our cookie, which contains the port of the request."""
    return f"isoflop-{_port(Headers(scope=scope).get('host', ''), scope)}"


def _port(host: str, scope: Scope) -> str:
    port = host.rpartition(":")[2]
    return port if port.isdigit() else ("443" if is_encrypted(scope) else "80")


def is_encrypted(scope: Scope) -> bool:
    """Whether a request came through TLS."""
    return scope.get("scheme") in {"https", "wss"}


def issue_cookie(root: Path, settings: Settings) -> str:
    """The value of a cookie for a user of the link or the token."""
    return _serializer(root).dumps([settings.sign_in.method, _fingerprint(settings)])


def _serializer(root: Path) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(keys.cookie_key(root), salt="isoflop sign-in")


def _fingerprint(settings: Settings) -> str:
    """A hash of the shared token, so that a new token signs everybody out."""
    return hashlib.sha256(settings.sign_in.token.encode()).hexdigest()[:16]


def accept_token(root: Path, settings: Settings, token: str) -> bool:
    """Whether a token is valid. A link's token is valid once, and this call uses it up."""
    match settings.sign_in.method:
        case "link":
            return keys.redeem(root, token)
        case "token":
            return hmac.compare_digest(token.encode(), settings.sign_in.token.encode())
        case _:
            return False


# --- the user of a request ------------------------------------------------------------------------------------------------------


def actor_of(scope: Scope, root: Path, settings: Settings) -> Actor | None:
    """The user who sends a request, or None if nobody has signed in."""
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
    """All cookies with a name, because a server on another port of this machine may have set one too."""
    parts = ";".join(Headers(scope=scope).getlist("cookie")).split(";")
    return [value for part in parts if (value := cookie_parser(part).get(name))]


def _from_proxy(scope: Scope, settings: Settings) -> Actor | None:
    names = Headers(scope=scope).getlist(settings.sign_in.proxy_header)
    trusted = {_plain(address) for address in settings.sign_in.proxy_addresses}
    if not _peers(scope) <= trusted or len(names) != 1:
        return None
    name = names[0].strip()
    return Actor("proxy", name) if 0 < len(name) <= policy.LONGEST_NAME else None


def _peers(scope: Scope) -> set[str]:
    """The addresses that the connection may come from.

    uvicorn replaces the address of a trusted peer by that in X-Forwarded-For, with port 0 or the port given there. So a
    peer that stands in that header may really be any address that uvicorn trusts.
    """
    host, port = scope.get("client") or ("", None)
    forwarded = [part.strip() for line in Headers(scope=scope).getlist("x-forwarded-for") for part in line.split(",")]
    if port != 0 and not any(part == host or part.startswith((f"{host}:", f"[{host}]")) for part in forwarded):
        return {_plain(host)}
    trusted = {_plain(part.strip()) for part in os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1").split(",")}
    return trusted | {_plain(host)} if port else trusted


def _plain(address: str) -> str:
    """An address in its usual form: a server on `::` sees 10.0.0.5 as ::ffff:10.0.0.5."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(found, "ipv4_mapped", None) or found)


def _from_provider(scope: Scope, root: Path) -> Actor | None:
    """The e-mail in the cookie that Streamlit's st.login signs."""
    # A sign-out of all users also ends sessions by Streamlit's cookie, which is signed with a key of its own.
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
    """The names of the identity providers in .streamlit/secrets.toml, for st.login."""
    section = streamlit_private.auth_section()
    named = [name for name, value in section.items() if isinstance(value, Mapping) and "client_id" in value]
    return (["default"] if "client_id" in section else []) + named


def provider_link(provider: str) -> str:
    """The address to which st.login would send the browser."""
    return f"auth/login?provider={streamlit_private.provider_token(provider)}"
