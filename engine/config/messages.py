"""Error messages for configurations: what is wrong, and what is allowed instead."""

from __future__ import annotations

import difflib
import json
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
    """The values that a field can have, from its definition, for example "a whole number from 1 to 1,024"."""
    if path == "batch_size":
        return "a whole number from 1 to the number of training samples, or full"
    if path == "landscape.runs":
        return "ids of up to 16 runs, each of 16 hex digits"
    if path == "infer.run":
        return "the id of a finished run, of 16 hex digits, or nothing"
    if path == "infer.cells":
        example = {"batch_size": 8, "threads": 1, "precision": "fp32", "runtime": "eager"}
        return f"a list of at most 512 combinations such as {json.dumps(example)}"
    if path == "parallel.devices":
        return "one of cpu, cuda:0, cuda:1, ... for each rank"
    if path == "device":
        return "cpu, or cuda:0, cuda:1, ... for an NVIDIA GPU on this machine"
    if path == "model" or (path and path in GROUPS):
        return "set through " + ", ".join(f"{path}.{key}" for key in known_keys(path))
    schema = _field_schema(path)
    return _schema_in_words(schema) if schema else "a value the field's description allows"


def explain(error: ValidationError) -> ConfigError:
    """The error for the first wrong field: the field, its value, what is allowed, what to do."""
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
        return ConfigError(f"{path} is missing.", fix=_must_be(path))
    field = re.sub(r"\.\d+", "", path)  # every member of a list has the same bounds
    return ConfigError(f"{path}={_excerpt(as_text(first['input']))} is not allowed.", fix=_must_be(field))


def _must_be(path: str) -> str:
    """A sentence with the values that a field can have."""
    values = allowed(path)
    return f"{path} {'is' if values.startswith('set') else 'must be'} {values}."


def _is_branch(part: object) -> bool:
    """Whether a part of an error's location is a member of a union that pydantic tried, not a key of the user."""
    return isinstance(part, str) and (part.startswith(("literal[", "function-", "constrained-")))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)' if a known name is similar, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


GROUPS: dict[str, type[Spec]] = {  # the specs by the path of their key
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
    """The keys below `path`; those of one model `family`, or of all families."""
    if path == "model":
        models = [MODELS[family]] if family in MODELS else MODELS.values()
        return list(dict.fromkeys(["family", "size", *(name for model in models for name in model.model_fields)]))
    return list(GROUPS[path].model_fields) if path in GROUPS else []


def _field_schema(path: str) -> dict[str, Any] | None:
    parent, _, leaf = path.rpartition(".")
    owners = list(MODELS.values()) if parent == "model" else [GROUPS[parent]] if parent in GROUPS else []
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
        return f"a list of at most {schema['maxItems']} values, each {_schema_in_words(schema['items'])}"
    if schema.get("type") in {"integer", "number"}:
        kind = "a whole number" if schema["type"] == "integer" else "a number"
        if "minimum" in schema and "maximum" in schema:
            return f"{kind} from {_bound(schema['minimum'])} to {_bound(schema['maximum'])}"
        words = {
            "minimum": "of at least",
            "exclusiveMinimum": "above",
            "maximum": "at most",
            "exclusiveMaximum": "below",
        }
        bounds = [f"{word} {_bound(schema[key])}" for key, word in words.items() if key in schema]
        return " ".join([kind, " and ".join(bounds)])
    return f"a {schema.get('type', 'value')}"


def _bound(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
