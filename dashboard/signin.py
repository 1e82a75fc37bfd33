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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from engine import access, keys
from engine.access import Actor
from engine.errors import ConfigError
from engine.settings import Settings

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
    host = f"[{address}]" if address and ":" in address else address or "127.0.0.1"
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
            return _from_provider(scope)
        case _:
            return _from_cookie(scope, root, settings)


def _from_cookie(scope: Scope, root: Path, settings: Settings) -> Actor | None:
    try:
        held = _serializer(root).loads(_cookies(scope).get(cookie_name(scope), ""), max_age=COOKIE_MAX_AGE_S)
    except BadData:
        return None
    if held != [settings.sign_in.method, _fingerprint(settings)]:
        return None
    return access.LOCAL if settings.sign_in.method == "link" else Actor("token", TEAM)


def _cookies(scope: Scope) -> dict[str, str]:
    return cookie_parser(Headers(scope=scope).get("cookie", ""))


def _from_proxy(scope: Scope, settings: Settings) -> Actor | None:
    names = Headers(scope=scope).getlist(settings.sign_in.proxy_header)
    if not _peers(scope) <= set(settings.sign_in.proxy_addresses) or len(names) != 1 or not names[0].strip():
        return None
    return Actor("proxy", names[0].strip()[:200])


def _peers(scope: Scope) -> set[str]:
    """Whose connection it is, at most: uvicorn puts X-Forwarded-For in the place of the peers it trusts, with port 0."""
    host, port = scope.get("client") or ("", 0)
    if port:
        return {host}
    return {part.strip() for part in os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1").split(",")}


def _from_provider(scope: Scope) -> Actor | None:
    """The e-mail in the cookie that Streamlit's st.login signs."""
    from streamlit.auth_util import get_cookie_with_chunks
    from streamlit.web.server.server_util import get_cookie_secret
    from streamlit.web.server.starlette.starlette_app_utils import decode_signed_value
    from streamlit.web.server.starlette.starlette_server_config import USER_COOKIE_NAME

    cookies, secret = _cookies(scope), get_cookie_secret()
    found = get_cookie_with_chunks(
        lambda name: decode_signed_value(secret, name, cookies.get(name, "")), USER_COOKIE_NAME
    )
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
    from streamlit.auth_util import get_secrets_auth_section

    section = get_secrets_auth_section()
    if not section:
        return []
    named = [name for name, value in section.to_dict().items() if isinstance(value, Mapping) and "client_id" in value]
    return (["default"] if "client_id" in section else []) + named


def provider_link(provider: str) -> str:
    """Where st.login would send the browser."""
    from streamlit.auth_util import encode_provider_token

    return f"auth/login?provider={encode_provider_token(provider)}"
