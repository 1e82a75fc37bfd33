"""Who may do what to a run, and the audit log of what they did.

The page only hides what is not allowed; here it is decided, for the page and for the supervisor that carries it out.
"""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from engine.access.settings import Role, Settings
from engine.common.errors import EngineError
from engine.config.run import RunConfig
from engine.data.downloads import cache_folder
from engine.system import disk_space

Action = Literal["submit", "cancel", "delete", "restore", "rename", "label", "rebuild", "monitor"]
OWN: frozenset[Action] = frozenset({"cancel", "delete", "restore", "rename", "label"})  # to one's own runs
AUDIT = "audit.jsonl"
LONGEST_NAME = 200


class AccessError(EngineError):
    """Somebody asked for what their role does not allow, or what belongs to someone else."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A person, by the name under which they signed in, and how that is known."""

    source: Literal["terminal", "local", "token", "proxy", "oidc"]
    name: str = ""

    @property
    def id(self) -> str:
        """What is written down: `terminal`, `local`, `oidc:alice@example.org`."""
        return f"{self.source}:{self.name}" if self.name else self.source

    @classmethod
    def parse(cls, text: str) -> Self:
        source, _, name = text.partition(":")
        if source not in {"terminal", "local", "token", "proxy", "oidc"} or len(name) > LONGEST_NAME:
            raise ValueError(f"{text[:80]!r} names no actor")
        return cls(source, name)  # type: ignore[arg-type]

    @property
    def in_words(self) -> str:
        return self.name or "you"


TERMINAL = Actor("terminal")  # who can write into the store's folder owns it
LOCAL = Actor("local")  # the page of one person's own machine, opened with the link from the terminal


def is_listed(name: str, entries: tuple[str, ...]) -> bool:
    """Whether a name is one of the entries, or an e-mail of one of their @domains; capitals do not matter."""
    name = _folded(name)
    domain = name.rpartition("@")[2] if name.count("@") == 1 else None
    return any(entry == name or (domain and entry == f"@{domain}") for entry in map(_folded, entries))


def _folded(name: str) -> str:
    """A to Z only: in Unicode the Kelvin sign becomes a k and ß becomes ss, so somebody else would be on the list."""
    return re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), name)


def role_of(actor: Actor, settings: Settings) -> Role | None:
    """None for somebody who may not even look."""
    if actor.source == "terminal":
        return "admin"
    if actor.source == "local":
        return None if settings.is_team else "admin"
    if actor.source != settings.sign_in.method:  # signed in another way than is asked for now
        return None
    if settings.sign_in.allowed and not is_listed(actor.name, settings.sign_in.allowed):
        return None
    if is_listed(actor.name, settings.roles.admin):
        return "admin"
    if is_listed(actor.name, settings.roles.runner):
        return "runner"
    return settings.roles.default or ("runner" if actor.source == "token" else "viewer")


def may(actor: Actor, action: Action, settings: Settings, *, owner: str = "") -> bool:
    """Whether an actor may do this; `owner` is the id of who started the run it is done to."""
    role = role_of(actor, settings)
    if role == "runner":
        return action == "submit" or (action in OWN and owner == actor.id)
    return role == "admin"


def require(actor: Actor, action: Action, settings: Settings, *, owner: str = "") -> None:
    """Raises AccessError where `may` says no."""
    if may(actor, action, settings, owner=owner):
        return
    role = role_of(actor, settings)
    if role is None:
        raise AccessError(f"{actor.in_words} may not use this store.", fix="Ask its admin for access.")
    if action == "monitor":
        raise AccessError("How often the machine is read is for an admin to choose.", fix="Ask an admin.")
    if role == "viewer" or action == "rebuild":
        raise AccessError(f"As {role} {actor.in_words} may not {action}.", fix="Ask an admin for another role.")
    whose = Actor.parse(owner).in_words if owner else "its admin"
    raise AccessError(f"{actor.in_words} may not {action} a run of {whose}.", fix="Ask its owner or an admin.")


def require_data(actor: Actor, config: RunConfig, settings: Settings) -> None:
    """A person who is no admin may use uploads and the folders of `limits.data_folders`, not any file of this machine.

    Raises AccessError for other places; the same for those that are not there, so that nothing is told of them.
    """
    for field, path in (("source.path", config.source.path), ("infer.weights", config.infer.weights)):
        if path and not may_read(actor, path, settings):
            raise AccessError(
                f"{field} names a file that may not be used here.",
                fix="Upload the file, or ask an admin to add its folder to limits.data_folders.",
            )


def may_read(actor: Actor, path: str, settings: Settings) -> bool:
    if role_of(actor, settings) == "admin":
        return True
    try:
        place = Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, nobody's home
        return False
    folders = [cache_folder() / "uploads", *map(Path, settings.limits.data_folders)]
    return any(place.is_relative_to(folder.expanduser().resolve()) for folder in folders)


def audit(root: Path, actor: Actor, action: str, *, run_id: str = "", outcome: str = "done") -> None:
    """Append a line to the store's audit log: whole lines of one write each, so that several processes may."""
    line = {"at": round(time.time(), 3), "actor": actor.id, "action": action, "run_id": run_id, "outcome": outcome}
    disk_space.with_reserve(root, lambda: _append(root / AUDIT, json.dumps(line).encode() + b"\n"))


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
