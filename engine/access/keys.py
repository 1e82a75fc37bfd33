"""The store's own secrets, in files only their owner may read: what signs the cookies, and the link that lets one in."""

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
    """What signs the cookies of everyone who is signed in; made when there is none."""
    return _read_or_make(root, _COOKIE_KEY)


def signed_out_at(root: Path) -> float:
    """When everyone was signed out last, or the key was made: Unix time."""
    cookie_key(root)
    return (_folder(root) / _COOKIE_KEY).stat().st_mtime


def sign_everyone_out(root: Path) -> None:
    """A new key: no cookie of before is good any more, and no link either."""
    for name in (_COOKIE_KEY, _LINK_TOKEN):
        write_atomically(_folder(root) / name, secrets.token_urlsafe(32))


def link_token(root: Path) -> str:
    """The token of the next sign-in link; it is good for one use."""
    return _read_or_make(root, _LINK_TOKEN)


def remember_url(root: Path, url: str) -> None:
    """Where the dashboard that started last is, for links asked for later."""
    write_atomically(_folder(root) / _URL, url)


def sign_in_link(root: Path, url: str = "") -> str:
    """The address that lets one browser in; without a url, where the dashboard started last."""
    if not url:
        with contextlib.suppress(OSError):
            url = (_folder(root) / _URL).read_text(encoding="utf-8")
    return f"{(url or DEFAULT_URL).rstrip('/')}/?token={link_token(root)}"


def redeem(root: Path, token: str) -> bool:
    """Whether this is the token of the link. It is used up by that: the next link has another."""
    path = _folder(root) / _LINK_TOKEN
    if not hmac.compare_digest(token.encode(), link_token(root).encode()):
        return False
    used = path.with_name(f".used.{secrets.token_hex(4)}")
    try:
        path.rename(used)  # of two who come at once with the same link, one finds it gone
    except FileNotFoundError:
        return False
    was = used.read_text(encoding="utf-8")
    used.unlink()
    return hmac.compare_digest(token.encode(), was.encode())


def _read_or_make(root: Path, name: str) -> str:
    path = _folder(root) / name
    with contextlib.suppress(FileNotFoundError):
        if len(text := path.read_text(encoding="utf-8").strip()) >= _SHORTEST:
            return text
        path.unlink(missing_ok=True)  # emptied by a crash of the disk, or by hand: nobody's secret
    draft = path.with_name(f".{name}.{secrets.token_hex(4)}")
    write_atomically(draft, secrets.token_urlsafe(32))
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(draft)  # all or nothing, and whoever came first stays
    draft.unlink()
    return path.read_text(encoding="utf-8")


def _folder(root: Path) -> Path:
    private_folder(root)
    return private_folder(root / "keys")
