"""What is wrong with a configuration, and what is allowed instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.common.errors import ConfigError
from engine.config.base import Spec, as_text
from engine.config.data import Source
from engine.config.models import MODELS
from engine.config.parallel import Parallel
from engine.config.run import RunConfig
from engine.config.tasks import Cell, Infer, Landscape, Law
from engine.config.training import Budget, Optimizer, Target


def allowed(path: str) -> str:
    """What a field may hold, in words taken from its definition: 'a whole number from 1 to 1024'."""
    if path == "batch_size":
        return "a whole number from 1 to the number of training examples, or full"
    if path == "landscape.runs":
        return "ids of up to 16 runs, each of 16 hex digits"
    if path == "infer.run":
        return "the id of a finished run, of 16 hex digits, or nothing"
    if path == "infer.cells":
        return (
            'a list of at most 512 cells like {"batch_size": 8, "threads": 1, "precision": "fp32", "runtime": "eager"}'
        )
    if path == "parallel.devices":
        return "as many of cpu, cuda:0, cuda:1, ... as there are ranks"
    if path == "device":
        return "cpu, or cuda:0, cuda:1, ... for an NVIDIA GPU on this machine"
    if path == "model" or (path and path in _GROUPS):
        return "set through " + ", ".join(f"{path}.{key}" for key in known_keys(path))
    schema = _field_schema(path)
    return _schema_in_words(schema) if schema else "a value the field's description allows"


def explain(error: ValidationError) -> ConfigError:
    """An error for the first wrong field: the field, its value, what is allowed, what to do."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(p) for p in first["loc"] if p not in {*MODELS, "int", "constrained-int"} and not _is_branch(p))
    if first["type"] == "extra_forbidden":
        known = known_keys(path.rpartition(".")[0], family=str(first["loc"][1]) if path.startswith("model.") else "")
        leaf = path.rpartition(".")[2]
        return ConfigError(f"{path} is not a known key{nearest(leaf, known)}.", fix=f"Known here: {', '.join(known)}.")
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return ConfigError(f"{path}: {message}." if path else f"{message}.", fix="")
    if first["type"].startswith("union_tag"):
        value = first["input"].get("family") if isinstance(first["input"], Mapping) else first["input"]
        return ConfigError(f"model.family={value!r} is not known.", fix=f"Choose from {', '.join(MODELS)}.")
    if first["type"] == "missing":
        return ConfigError(f"{path} is missing.", fix=f"It may be {allowed(path)}.")
    field = re.sub(r"\.\d+", "", path)  # every member of a list has the same bounds
    return ConfigError(
        f"{path}={_excerpt(as_text(first['input']))} is not allowed.",
        fix=f"{field} {'is' if allowed(field).startswith('set') else 'may be'} {allowed(field)}.",
    )


def _is_branch(part: object) -> bool:
    """Whether a part of an error's location is a union member that pydantic tried, and not a key that the user
    wrote."""
    return isinstance(part, str) and (part.startswith(("literal[", "function-", "constrained-")))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)' if a known name is similar, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


_GROUPS: dict[str, type[Spec]] = {
    "": RunConfig,
    "source": Source,
    "optimizer": Optimizer,
    "budget": Budget,
    "target": Target,
    "law": Law,
    "landscape": Landscape,
    "parallel": Parallel,
    "infer": Infer,
    "infer.cells": Cell,
}


def known_keys(path: str, *, family: str = "") -> list[str]:
    if path == "model":
        models = [MODELS[family]] if family in MODELS else MODELS.values()
        return list(dict.fromkeys(["family", "size", *(name for model in models for name in model.model_fields)]))
    return list(_GROUPS[path].model_fields) if path in _GROUPS else []


def _field_schema(path: str) -> dict[str, Any] | None:
    parent, _, leaf = path.rpartition(".")
    owners = list(MODELS.values()) if parent == "model" else [_GROUPS[parent]] if parent in _GROUPS else []
    for owner in owners:
        if leaf in owner.model_fields:
            schema: dict[str, Any] = TypeAdapter(owner).json_schema()["properties"][leaf]
            return schema
    return None


def _schema_in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema_in_words(s) for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"a list of at most {schema['maxItems']} numbers, each {_schema_in_words(schema['items'])}"
    if schema.get("type") in {"integer", "number"}:
        kind = "a whole number" if schema["type"] == "integer" else "a number"
        low = (
            f"from {_bound(schema['minimum'])}"
            if "minimum" in schema
            else f"above {_bound(schema.get('exclusiveMinimum', 0))}"
        )
        high = [f"to {_bound(schema['maximum'])}"] if "maximum" in schema else []
        high += [f"below {_bound(schema['exclusiveMaximum'])}"] if "exclusiveMaximum" in schema else []
        return " ".join([kind, low, *high])
    return f"a {schema.get('type', 'value')}"


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
