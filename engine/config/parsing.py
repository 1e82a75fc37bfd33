"""Reads configurations from JSON and from `--set` assignments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from pydantic import ValidationError

from engine.common.errors import ConfigError
from engine.config.base import as_text
from engine.config.messages import explain, known_keys, nearest
from engine.config.models import MLP, MODELS
from engine.config.run import RunConfig
from engine.config.training import FULL, OPTIMIZERS, OptimizerName


def parse_config(data: Any) -> RunConfig:
    """A RunConfig from plain data: parsed JSON, or the values of a form.

    Raises:
        ConfigError: The data is not a valid configuration.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"A configuration is a JSON object, not {type(data).__name__}.", fix="See the README for an example."
        )
    try:
        return RunConfig.model_validate(_tuples(data))
    except ValidationError as error:
        failure = explain(error)
        raise failure from None


def parse_config_json(text: str, *, name: str = "configuration") -> RunConfig:
    """A RunConfig from JSON. `name` stands for the text in error messages.

    Raises:
        ConfigError: The text is not JSON, or not a valid configuration.
    """
    try:
        return parse_config(json.loads(text, object_pairs_hook=_without_repetition))
    except ValueError as error:  # not JSON, or a number with more digits than Python reads
        raise ConfigError(f"{name} is not JSON: {error}.", fix="Correct the file, or start from `--preset`.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.", fix="A configuration has two levels.") from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ConfigError: It has a key twice; JSON would take the last one without a word.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ConfigError(f"The configuration has the key {twice[:60]!r} twice.", fix="Remove one of them.")
    return found


def with_overrides(base: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """`base` changed by `key.sub=value` assignments, as on the command line and in links.

    A new `model.family` starts from its defaults, and `model.size` sets all dimensions. An optimizer that reads the
    whole training set (gd) sets batch_size=full, and a change to another optimizer sets the default batch size, unless
    a batch size is also assigned. Raises ConfigError for an unknown key or a value that is not allowed.
    """
    changes = [_split(text) for text in assignments]
    keys = {key for key, _ in changes}
    data = base.model_dump()
    for key, value in changes:
        if key == "model.family" and value != data["model"].get("family"):
            data["model"] = {"family": value}
    if "model.size" in keys and isinstance(data["model"], dict):
        sized = MODELS.get(str(data["model"].get("family")), MLP).sizes["small"]
        data["model"] = {key: value for key, value in data["model"].items() if key not in sized}
    for key, value in changes:
        _assign(data, key, value)
    if "optimizer.name" in keys and "batch_size" not in keys and isinstance(data["optimizer"], dict):
        chosen = OPTIMIZERS.get(cast(OptimizerName, str(data["optimizer"].get("name"))))
        if chosen and chosen.full_batch:
            data["batch_size"] = FULL
        elif base.optimizer.facts.full_batch:
            data["batch_size"] = RunConfig.model_fields["batch_size"].default
    return parse_config(data)


def overrides_from(base: RunConfig, config: RunConfig) -> list[str]:
    """The shortest assignments that change `base` into `config`: the inverse of `with_overrides`."""
    before, after = _flat(base.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    if base.model.family != config.model.family:
        defaults = _flat(type(config.model)().model_dump(mode="json"), "model.")
        before = {k: v for k, v in before.items() if not k.startswith("model.")} | defaults | {"model.family": None}
    changed = [f"{key}={as_text(value)}" for key, value in after.items() if key not in before or before[key] != value]
    if any(c.startswith("optimizer.name=") for c in changed) and not any(c.startswith("batch_size=") for c in changed):
        changed.append(f"batch_size={as_text(config.batch_size)}")  # otherwise a change to or from gd would set it
    return changed


def _tuples(data: Any) -> Any:
    """`data` with tuples instead of lists, because strict validation refuses lists."""
    if isinstance(data, Mapping):
        return {key: _tuples(value) for key, value in data.items()}
    return tuple(map(_tuples, data)) if isinstance(data, list) else data


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} is not an assignment.", fix="Write it as key=value, for example batch_size=128.")
    key = key.strip()
    if key in _WORDS:
        return key, re.findall(r"[^\s,\[\]]+", value)
    if key == "infer.shape" and re.fullmatch(r"\s*\d+(x\d+)+\s*", value, re.ASCII):  # 1x28x28
        return key, list(map(_number, value.split("x")))
    return key, value.strip() if key in _TEXTS else parse_value(value.strip())


_TEXTS = {"source.path", "source.label", "infer.run", "infer.weights"}  # never parsed: a label column can be named 3
_LISTS = {"law.batch_sizes", "model.hidden", "source.shape", "lr_milestones", "infer.shape", "infer.cells"}
_WORDS = {"landscape.runs", "parallel.devices"}  # lists of text: a hex id can look like a number, 12345678901234e5
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII)  # also .01, 1e3 and 64.0


def parse_value(text: str) -> Any:
    """A scalar or list as in JSON; anything else is text. `512,256` is a list, `nan` and `inf` are numbers."""
    lowered = text.lower().lstrip("+")
    if lowered in {"nan", "inf", "-inf", "infinity", "-infinity"}:
        return float(lowered)
    if lowered in {"none", "null"}:
        return None
    if lowered in {"true", "false"}:
        return lowered == "true"
    if _NUMBER.fullmatch(lowered):
        return _number(lowered)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply, because a link can contain anything
        pass
    if "," in text:
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    return text


def _number(text: str) -> int | float:
    """A number. Whole numbers are int, whether written as 64, 64.0 or 1e3."""
    if text.lstrip("-").isdigit():
        return int(text[:100])  # more digits than any bound allows, because int() of a million digits is slow
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = data
    for depth, part in enumerate(parents):
        if part not in node or not isinstance(node[part], dict):
            known = known_keys(".".join(parents[:depth]))
            raise ConfigError(
                f"{key} is not a known key{nearest(part, known)}.", fix=f"Known here: {', '.join(known)}."
            )
        node = node[part]
    if key in _LISTS and isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]  # --set model.hidden=128
    if key in _LISTS and value in ("", None):
        value = []
    node[leaf] = value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
