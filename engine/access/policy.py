"""Permissions on runs, and the audit log.

The page only hides actions that are not allowed. This module decides, for the page and for the supervisor.
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
OWN: frozenset[Action] = frozenset(
    {"cancel", "delete", "restore", "rename", "label"}
)  # what a runner can do to their own runs
AUDIT = "audit.jsonl"
LONGEST_NAME = 200


class AccessError(EngineError):
    """The role of the actor does not allow the action, or the run belongs to another user."""


@dataclass(frozen=True, slots=True)
class Actor:
    """A user: the way they signed in, and their name."""

    source: Literal["terminal", "local", "token", "proxy", "oidc"]
    name: str = ""

    @property
    def id(self) -> str:
        """The id in logs: `terminal`, `local`, `oidc:alice@example.org`."""
        return f"{self.source}:{self.name}" if self.name else self.source

    @classmethod
    def parse(cls, text: str) -> Self:
        """The actor with this id.

        Raises:
            ValueError: this is not the id of an actor.
        """
        source, _, name = text.partition(":")
        if source not in {"terminal", "local", "token", "proxy", "oidc"} or len(name) > LONGEST_NAME:
            raise ValueError(f"{text[:80]!r} is not an actor")
        return cls(source, name)  # type: ignore[arg-type]

    @property
    def in_words(self) -> str:
        """The name for messages."""
        return self.name or "you"


TERMINAL = Actor("terminal")  # a process that can write into the store's folder has all rights
LOCAL = Actor("local")  # the only user of this machine, signed in with the link from the terminal


def _is_listed(name: str, entries: tuple[str, ...]) -> bool:
    """Whether a name is one of the entries, or an e-mail address in one of their @domains; ASCII case does not matter."""
    name = _folded(name)
    domain = name.rpartition("@")[2] if name.count("@") == 1 else None
    return any(entry == name or (domain and entry == f"@{domain}") for entry in map(_folded, entries))


def _folded(name: str) -> str:
    """Lower only A to Z. In Unicode the Kelvin sign becomes k and ß becomes ss, so another user would match."""
    return re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), name)


def role_of(actor: Actor, settings: Settings) -> Role | None:
    """The role of an actor; None if they have no access."""
    if actor.source == "terminal":
        return "admin"
    if actor.source == "local":
        return None if settings.is_team else "admin"
    if actor.source != settings.sign_in.method:  # signed in with a method that is no longer used
        return None
    if settings.sign_in.allowed and not _is_listed(actor.name, settings.sign_in.allowed):
        return None
    if _is_listed(actor.name, settings.roles.admin):
        return "admin"
    if _is_listed(actor.name, settings.roles.runner):
        return "runner"
    return settings.roles.default or ("runner" if actor.source == "token" else "viewer")


def may(actor: Actor, action: Action, settings: Settings, *, owner: str = "") -> bool:
    """Whether an actor is allowed an action. `owner` is the id of the actor that submitted the run."""
    role = role_of(actor, settings)
    if role == "runner":
        return action == "submit" or (action in OWN and owner == actor.id)
    return role == "admin"


def require(actor: Actor, action: Action, settings: Settings, *, owner: str = "") -> None:
    """Check that an actor is allowed an action.

    Raises:
        AccessError: the actor is not.
    """
    if may(actor, action, settings, owner=owner):
        return
    role = role_of(actor, settings)
    if role is None:
        raise AccessError(f"{actor.in_words} may not use this store.", fix="Ask its admin for access.")
    if action == "monitor":
        raise AccessError("Only an admin can set how often the hardware is read.", fix="Ask an admin.")
    if role == "viewer" or action == "rebuild":
        raise AccessError(f"As {role} {actor.in_words} may not {action}.", fix="Ask an admin for another role.")
    whose = Actor.parse(owner).in_words if owner else "its admin"
    raise AccessError(f"{actor.in_words} may not {action} a run of {whose}.", fix="Ask its owner or an admin.")


def require_data(actor: Actor, config: RunConfig, settings: Settings) -> None:
    """Check the files that a run names. Users who are not admins can use uploads and `limits.data_folders`.

    Raises:
        AccessError: a file is elsewhere. The message does not tell whether it exists.
    """
    for field, path in (("source.path", config.source.path), ("infer.weights", config.infer.weights)):
        if path and not may_read(actor, path, settings):
            raise AccessError(
                f"{field} names a file outside the allowed folders.",
                fix="Upload the file, or ask an admin to add its folder to limits.data_folders.",
            )


def may_read(actor: Actor, path: str, settings: Settings) -> bool:
    """Whether an actor is allowed to use a file of this machine."""
    if role_of(actor, settings) == "admin":
        return True
    try:
        file = Path(path).expanduser().resolve()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, an unknown home folder
        return False
    folders = [cache_folder() / "uploads", *map(Path, settings.limits.data_folders)]
    return any(file.is_relative_to(folder.expanduser().resolve()) for folder in folders)


def audit(root: Path, actor: Actor, action: str, *, run_id: str = "", outcome: str = "done") -> None:
    """Append a line to the store's audit log, in one write, so that several processes can do it at once."""
    line = {"at": round(time.time(), 3), "actor": actor.id, "action": action, "run_id": run_id, "outcome": outcome}
    disk_space.with_reserve(root, lambda: _append(root / AUDIT, json.dumps(line).encode() + b"\n"))


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)
