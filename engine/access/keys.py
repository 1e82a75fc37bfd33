"""The secrets of a store, in files that only the owner can read: the key that signs cookies, and the sign-in token."""

from __future__ import annotations

import contextlib
import hmac
import secrets
from pathlib import Path

from engine.system.files import private_folder, write_atomically

_COOKIE_KEY, _LINK_TOKEN = "cookie.key", "link.token"  # names of files
_SHORTEST = 20
_URL = "dashboard.url"
DEFAULT_URL = "http://127.0.0.1:8501"


def cookie_key(root: Path) -> str:
    """The key that signs the cookies of signed-in users; created if there is none."""
    return _read_or_make(root, _COOKIE_KEY)


def signed_out_at(root: Path) -> float:
    """Unix time (s) when all users were last signed out, or when the key was created."""
    cookie_key(root)
    return (_folder(root) / _COOKIE_KEY).stat().st_mtime


def sign_everyone_out(root: Path) -> None:
    """Sign all users out: new secrets make earlier cookies and links invalid."""
    for name in (_COOKIE_KEY, _LINK_TOKEN):
        write_atomically(_folder(root) / name, secrets.token_urlsafe(32))


def link_token(root: Path) -> str:
    """The token of the next sign-in link; it can be used once."""
    return _read_or_make(root, _LINK_TOKEN)


def remember_url(root: Path, url: str) -> None:
    """Record the URL of the dashboard that started last, for later sign-in links."""
    write_atomically(_folder(root) / _URL, url)


def sign_in_link(root: Path, url: str = "") -> str:
    """The URL that signs one browser in; `url` defaults to that of the dashboard that started last."""
    if not url:
        with contextlib.suppress(OSError):
            url = (_folder(root) / _URL).read_text(encoding="utf-8")
    return f"{(url or DEFAULT_URL).rstrip('/')}/?token={link_token(root)}"


def redeem(root: Path, token: str) -> bool:
    """Whether this is the token of the link. A match uses it up: the next link has another token."""
    path = _folder(root) / _LINK_TOKEN
    if not hmac.compare_digest(token.encode(), link_token(root).encode()):
        return False
    used = path.with_name(f".used.{secrets.token_hex(4)}")
    try:
        path.rename(used)  # of two requests with the same link only one can rename it
    except FileNotFoundError:
        return False
    used_token = used.read_text(encoding="utf-8")
    used.unlink()
    return hmac.compare_digest(token.encode(), used_token.encode())


def _read_or_make(root: Path, name: str) -> str:
    path = _folder(root) / name
    with contextlib.suppress(FileNotFoundError):
        if len(text := path.read_text(encoding="utf-8").strip()) >= _SHORTEST:
            return text
        path.unlink(missing_ok=True)  # emptied by a crash or a user: not a secret
    draft = path.with_name(f".{name}.{secrets.token_hex(4)}")
    write_atomically(draft, secrets.token_urlsafe(32))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(draft)  # all or nothing, and the first process wins
    draft.unlink()
    return path.read_text(encoding="utf-8")


def _folder(root: Path) -> Path:
    private_folder(root)
    return private_folder(root / "keys")
