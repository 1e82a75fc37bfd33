"""Removes paths, secrets, addresses, serial numbers, and user and host names from the texts of a report.

An error message, a driver or a file can put them into a text. The rest of the text stays: an error without its path
still says what went wrong.
"""

from __future__ import annotations

import functools
import getpass
import os
import re
import socket
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from engine.config.data import DATA
from engine.config.run import RunConfig
from engine.system.processes import holds_secret

LONGEST_TEXT = 2_000
_WEIGHTS = "weights.safetensors"

_IN_PATH = r"~'\"<>:,;()/\\"
# The name of a folder can contain a few spaces. A path can be quoted, or end before the next word.
_PATH = re.compile(
    rf"(?<![\w./:\\])(?:~|[A-Za-z]:)?[/\\]+(?:[^\s{_IN_PATH}]+(?: [^\s{_IN_PATH}]+){{0,4}} ?[/\\])+([^\s{_IN_PATH}]+)"
)
_ENDINGS = r"\.(?:csv|tsv|npz|npy|txt|png|jpe?g|bmp|gif|webp|tiff?|parquet|json|zip|safetensors)\b"
_FILE = re.compile(rf"(?<=['\"‘“])[^'\"’”\n]*?{_ENDINGS}(?=['\"’”])|[^\s'\"/\\<>:|?*(),;=]+{_ENDINGS}", re.IGNORECASE)
_OUR_FILES = {
    *(facts.file_name for facts in DATA.values() if facts.file_name), _WEIGHTS, "config.json", "labels.json",
    "landscape.safetensors", "model.safetensors", "trajectory.safetensors",
}  # fmt: skip
_IN_HEX = r"[0-9A-Fa-f]"
_RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("(secret)", re.compile(r"(?<=://)[^/@\s]+(?=@)")),
    ("(secret)", re.compile(r"(?i)(?<=bearer )\S+|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]+")),
    ("(secret)", re.compile(r"\b(?:hf_|sk-|gh[opsu]_|github_pat_|glpat-|xox[abps]-|AKIA|AIza|ya29\.)[\w.-]{8,}")),
    (r"\1(secret)", re.compile(
        r"(?i)(\b\w*(?:token|password|passwd|secret|credential|api[_-]?key|authorization|cookie)\w*\s*[:=]\s*)['\"]?(?=[^\s'\",;]*[A-Za-z])[^\s'\",;]{5,}"
    )),
    ("(serial number)", re.compile(rf"\b(?:GPU-|MIG-)?{_IN_HEX}{{8}}-(?:{_IN_HEX}{{4}}-){{3}}{_IN_HEX}{{12}}\b")),
    (r"\1(serial number)", re.compile(r"(?i)(\b(?:serial(?: (?:number|no\.?))?|s/n)\s*[:=#]?\s*)(?=\S*\d)[\w-]{4,}")),
    ("(address)", re.compile(rf"\b(?:{_IN_HEX}{{2}}[:-]){{5}}{_IN_HEX}{{2}}\b")),  # MAC
    ("(address)", re.compile(
        rf"(?<![\w:.])(?:(?:{_IN_HEX}{{1,4}}:){{7}}{_IN_HEX}{{1,4}}|(?:{_IN_HEX}{{1,4}}(?::{_IN_HEX}{{1,4}})*)?::"
        rf"(?:{_IN_HEX}{{1,4}}(?::{_IN_HEX}{{1,4}})*)?)(?:%\w+)?(?![\w:])"
    )),
    ("(address)", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.]*\w)")),
    ("(address)", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")),
    ("(secret)", re.compile(r"(?<![\w+/-])(?=[\w+/-]*\d)(?=[\w+/-]*[A-Za-z])[\w+/-]{32,}={0,2}(?![\w+/-])")),
)  # fmt: skip

Model = TypeVar("Model", bound=BaseModel)


def anonymous(text: str) -> str:
    """The text without paths, secrets, addresses, serial numbers, user and host; file names stay."""
    text = _PATH.sub(r"…/\1", text.replace(str(Path.home()), "~"))
    for replacement, pattern in _RULES:
        text = pattern.sub(replacement, text)
    for value in _environment_values():
        text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "(environment)", text)
    for replacement, name in _identity():
        text = re.sub(rf"\b{re.escape(name)}\b", replacement, text)
    return text[:LONGEST_TEXT]


def _environment_values() -> list[str]:
    """Values of environment variables that an ordinary text would not contain by chance; longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= (4 if holds_secret(name, value) else 8) and not value.isdigit()
        and (holds_secret(name, value) or not value.isalpha())
    }  # fmt: skip
    return sorted(values, key=len, reverse=True)


@functools.cache
def _identity() -> tuple[tuple[str, str], ...]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # in a container, the user id can lack a name
        user = ""
    named = (("(host)", socket.gethostname()), ("(user)", user))
    return tuple((word, name) for word, name in named if len(name) >= 3 and not name.isdigit())


@dataclass(frozen=True, slots=True)
class Redaction:
    """Redacts the texts of one run; `file_names` keeps the names of the user's own files, but never their folders."""

    config: RunConfig
    file_names: bool = False

    def text(self, text: str) -> str:
        """The redacted text."""
        text = anonymous(self._without_source(text))
        return text if self.file_names else _FILE.sub(_file, text)

    def configuration(self) -> RunConfig:
        """The configuration with bare file names, or with neutral names if file names are removed."""
        config = self.config
        if config.source.path:
            source = config.source.model_copy(update={"path": self._shown(config.source.path)})
            config = config.model_copy(update={"source": source})
        if config.infer.weights:
            infer = config.infer.model_copy(update={"weights": self._shown(config.infer.weights)})
            config = config.model_copy(update={"infer": infer})
        return config

    def model(self, value: Model) -> Model:
        """The event with every text redacted; values of a `Literal` are not texts."""
        redacted: Model = _each_text(value, self.text)
        return redacted

    def _shown(self, path: str) -> str:
        """The name of the user's file at `path`, or a neutral name if file names are removed."""
        name, neutral = anonymous(_name(path)), self._neutral_name(path)
        return name if self.file_names or name == neutral else neutral

    def _neutral_name(self, path: str) -> str:
        if path == self.config.infer.weights:
            return _WEIGHTS
        return DATA[self.config.data].file_name or "data"

    def _without_source(self, text: str) -> str:
        """The text without the paths of the user's files, which can be relative, have spaces, or be cut in front."""
        for path in filter(None, (self.config.source.path, self.config.infer.weights)):
            name, shown = _name(path), self._shown(path)
            for written in (os.path.expanduser(path), path, f"…{path[-99:]}"):  # noqa: PTH111 - unlike Path.expanduser, it accepts an unknown ~user
                text = text.replace(written, shown) if name in written else text
            text = text if self.file_names or len(name) < 3 else text.replace(name, shown)
        return text


def _name(path: str) -> str:
    name = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return name if name.strip("~. ") else "data"  # an empty name would make the configuration invalid


def _file(found: re.Match[str]) -> str:
    return found[0] if found[0] in _OUR_FILES else "(file)"


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case BaseModel():
            fields = {
                n: getattr(value, n)
                for n, field in type(value).model_fields.items()
                if _can_hold_text(field.annotation)
            }
            return value.model_copy(update={name: _each_text(inner, change) for name, inner in fields.items()})
        case dict():
            return {key: _each_text(inner, change) for key, inner in value.items()}
        case tuple() | list():
            return type(value)(_each_text(inner, change) for inner in value)
        case _:
            return value


def _can_hold_text(annotation: Any) -> bool:
    if typing.get_origin(annotation) is typing.Literal:
        return False
    if arguments := typing.get_args(annotation):
        return any(map(_can_hold_text, arguments))
    return (
        annotation is str or annotation is Any or (isinstance(annotation, type) and issubclass(annotation, BaseModel))
    )
