"""What a run is: one frozen value with JSON, a fingerprint and presets.

Each fact about a field (title, bounds, choices, help) stands here once; form, command line, errors and reports read
it from here. Whatever needs a data set's size or a device is checked in `planner.py`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from engine.errors import ConfigError

FULL = "full"  # the batch size of batch gradient descent: the whole training set

OptimizerName = Literal["sgd", "momentum", "adam", "gd"]
DatasetName = Literal["mnist5k", "digits"]


class Spec(BaseModel):
    """Base of all configuration values: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")


class MLP(Spec):
    """Multilayer perceptron: fully connected layers with ReLU between them."""

    family: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (128,),
        min_length=0,
        max_length=16,
        strict=False,
        title="Hidden layers",
        description="Units of each hidden layer, first to last. None at all is softmax regression.",
    )


class CNN(Spec):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998): two 5x5 convolutions and three linear layers on 32x32."""

    family: Literal["cnn"] = "cnn"
    width: float = Field(
        1.0,
        ge=0.25,
        le=32,
        allow_inf_nan=False,
        title="Width",
        description="Multiplies every layer's channels and units; 1 is LeNet's 6-16-120-84.",
    )


class Optimizer(Spec):
    """How a gradient becomes a step."""

    name: OptimizerName = Field(
        "adam",
        title="Optimizer",
        description="sgd, sgd with momentum, Adam, or gd: plain gradient descent on the whole training set.",
    )
    lr: float = Field(1e-3, gt=0, le=1e6, allow_inf_nan=False, title="Learning rate", description="Size of a step.")
    momentum: float = Field(
        0.9,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Momentum",
        description="Share of the last step kept; momentum only.",
    )


class Budget(Spec):
    """When a run ends: at the first limit it reaches."""

    steps: int | None = Field(None, ge=1, le=100_000_000, title="Steps", description="Optimizer steps.")
    epochs: float | None = Field(
        None, gt=0, le=1_000_000, allow_inf_nan=False, title="Epochs", description="Passes over the training set."
    )
    seconds: float | None = Field(
        None, gt=0, le=86_400, allow_inf_nan=False, title="Seconds", description="Training time, without evaluation."
    )

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.steps is None and self.epochs is None and self.seconds is None:
            raise ValueError("needs at least one of steps, epochs, seconds")
        return self


class RunConfig(Spec):
    """One experiment. Two equal values are the same experiment on every machine."""

    task: Literal["train"] = Field("train", title="Task")
    model: Annotated[MLP | CNN, Field(discriminator="family")] = Field(MLP(), title="Model")
    data: DatasetName = Field("mnist5k", title="Data", description="Real images that come with the installation.")
    optimizer: Optimizer = Field(Optimizer(), title="Optimizer")
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["full"] = Field(
        64,
        title="Batch size",
        description="Examples per step; full is the whole training set (batch gradient descent).",
    )
    budget: Budget = Field(Budget(epochs=20.0), title="Budget")
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")] = Field(
        "cpu", title="Device", description="cpu, or cuda:i for the i-th NVIDIA GPU."
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        title="Threads",
        description="CPU threads for one operation. One is fastest for small nets: waiting threads cost more than they give.",
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, title="Seed", description="Fixes the first weights and the order of the data."
    )
    evaluate_every: Annotated[int, Field(ge=1, le=100_000_000)] | Literal["auto"] = Field(
        "auto",
        title="Evaluate every",
        description="Steps between evaluations on the held-out split; auto spends at most about a fifth of the time on them.",
    )

    @model_validator(mode="after")
    def _gd_takes_the_whole_set(self) -> Self:
        if self.optimizer.name == "gd" and self.batch_size != FULL:
            raise ValueError(
                f"batch_size={self.batch_size} does not go with optimizer.name='gd': gradient descent uses the whole "
                "training set; set batch_size=full, or optimizer.name=sgd for mini-batches"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every field: same fingerprint, same experiment."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def in_words(self) -> str:
        """A line a person can read in a list: model, data, optimizer, batch size, budget, device."""
        return " · ".join(
            [
                model_in_words(self.model),
                self.data,
                f"{self.optimizer.name} {self.optimizer.lr:g}",
                "full batch" if self.batch_size == FULL else f"batch {self.batch_size}",
                budget_in_words(self.budget),
                self.device,
            ]
        )


ModelSpec = MLP | CNN


def model_in_words(model: ModelSpec) -> str:
    if isinstance(model, CNN):
        return "LeNet" if model.width == 1 else f"LeNet x{model.width:g}"
    return "MLP " + "-".join(map(str, model.hidden)) if model.hidden else "softmax regression"


def budget_in_words(budget: Budget) -> str:
    limits = [(budget.steps, "step"), (budget.epochs, "epoch"), (budget.seconds, "second")]
    return " or ".join(f"{as_text(v)} {unit}{'' if v == 1 else 's'}" for v, unit in limits if v is not None)


def _preset(title: str, teaches: str, **fields: Any) -> Preset:
    return Preset(title=title, teaches=teaches, config=RunConfig.model_validate(fields))


class Preset(Spec):
    """A named configuration and what there is to see in it."""

    title: str
    teaches: str
    config: RunConfig


_MOMENTUM = {"name": "momentum", "lr": 0.02, "momentum": 0.9}
PRESETS: Mapping[str, Preset] = {
    "mnist-mlp": _preset(
        "MLP 784-128-10 on MNIST",
        "A small fully connected net that passes 90 % within a second of training.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "mnist-mlp-large": _preset(
        "MLP 784-512-256-10 on MNIST",
        "Five times the parameters: does it pay?",
        model={"family": "mlp", "hidden": [512, 256]},
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=64,
        budget={"epochs": 20.0},
    ),
    "lenet": _preset(
        "LeNet on MNIST",
        "Convolutions see shapes: fewer parameters than the small MLP, better answers.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM,
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "lenet-source": _preset(
        "LeNet, learning rate 0.001",
        "The same net with a learning rate twenty times smaller: it has not arrived when the budget ends.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM | {"lr": 1e-3},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "digits-mlp": _preset(
        "MLP 64-64-10 on 8x8 digits",
        "The smallest real experiment: 1,797 images of 8x8 pixels.",
        model={"family": "mlp", "hidden": [64]},
        data="digits",
        optimizer={"name": "adam", "lr": 1e-3},
        batch_size=32,
        budget={"epochs": 40.0},
    ),
    "lr-too-high": _preset(
        "A learning rate too high",
        "The same LeNet with steps five times as long: the loss jumps about instead of settling, and once it sits at "
        "2.30 the net only guesses among ten digits.",
        model={"family": "cnn"},
        optimizer=_MOMENTUM | {"lr": 0.1},
        batch_size=64,
        budget={"epochs": 10.0},
    ),
    "mnist-gd": _preset(
        "Batch gradient descent",
        "The whole training set for every step: a smooth curve, but few steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "gd", "lr": 0.5},
        batch_size="full",
        budget={"seconds": 10.0},
    ),
    "mnist-stochastic": _preset(
        "Stochastic gradient descent",
        "One example per step: many noisy steps.",
        model={"family": "mlp", "hidden": [128]},
        optimizer={"name": "sgd", "lr": 0.01},
        batch_size=1,
        budget={"seconds": 10.0},
    ),
}
DEFAULT_PRESET = "mnist-mlp"


# --- from text to a config, with one clear sentence when it cannot be ---------------------------------------------


def preset_config(name: str) -> RunConfig:
    """The configuration of a preset; a ConfigError names the ones there are."""
    if name not in PRESETS:
        raise ConfigError(
            f"preset={name!r} is not known{_nearest(name, PRESETS)}.", fix=f"Choose from {', '.join(PRESETS)}."
        )
    return PRESETS[name].config


def parse_config(data: Any) -> RunConfig:
    """A RunConfig from plain data (a parsed JSON file, a form); raises ConfigError in one sentence."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"A configuration is a JSON object, not {type(data).__name__}.", fix="See the README for an example."
        )
    try:
        return RunConfig.model_validate(_tuples(data))
    except ValidationError as error:
        raise explain(error) from None


def parse_config_json(text: str, *, name: str = "configuration") -> RunConfig:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name} is not JSON: {error}.", fix="Correct the file, or start from `--preset`.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.", fix="A configuration has two levels.") from None
    return parse_config(data)


def with_overrides(base: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """`base` changed by `key.sub=value` assignments, as on the command line and in links.

    Changing `model.family` starts that family from its defaults; choosing `gd` means the full batch unless a batch
    size is assigned as well, and leaving `gd` returns to mini-batches.
    """
    changes = [_split(text) for text in assignments]
    keys = {key for key, _ in changes}
    data = base.model_dump()
    for key, value in changes:
        if key == "model.family" and value != data["model"].get("family"):
            data["model"] = {"family": value}
    for key, value in changes:
        _assign(data, key, value)
    if "optimizer.name" in keys and "batch_size" not in keys and isinstance(data["optimizer"], dict):
        if data["optimizer"].get("name") == "gd":
            data["batch_size"] = FULL
        elif base.optimizer.name == "gd":
            data["batch_size"] = RunConfig.model_fields["batch_size"].default
    return parse_config(data)


def overrides_from(base: RunConfig, config: RunConfig) -> list[str]:
    """The shortest assignments that lead from `base` to `config`; the inverse of `with_overrides`."""
    before, after = _flat(base.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    if base.model.family != config.model.family:
        defaults = _flat(type(config.model)().model_dump(mode="json"), "model.")
        before = {k: v for k, v in before.items() if not k.startswith("model.")} | defaults | {"model.family": None}
    changed = [f"{key}={as_text(value)}" for key, value in after.items() if key not in before or before[key] != value]
    if any(c.startswith("optimizer.name=") for c in changed) and not any(c.startswith("batch_size=") for c in changed):
        changed.append(f"batch_size={as_text(config.batch_size)}")  # choosing or leaving gd would otherwise move it
    return changed


def allowed(path: str) -> str:
    """What a field may hold, in words, from the one place that states it: 'a whole number from 1 to 1024'."""
    if path == "batch_size":
        return "a whole number from 1 to the number of training examples, or full"
    if path == "device":
        return "cpu, or cuda:0, cuda:1, ... for an NVIDIA GPU on this machine"
    if path in {"model", "optimizer", "budget"}:
        return "set through " + ", ".join(f"{path}.{key}" for key in _known_keys(path))
    schema = _field_schema(path)
    return _schema_in_words(schema) if schema else "a value the field's description allows"


def explain(error: ValidationError) -> ConfigError:
    """One sentence for the first thing that is wrong: field, value, what is allowed, what to do."""
    first = error.errors(include_url=False)[0]
    path = ".".join(
        str(p) for p in first["loc"] if p not in {"mlp", "cnn", "int", "constrained-int"} and not _is_branch(p)
    )
    if first["type"] == "extra_forbidden":
        known = _known_keys(path.rpartition(".")[0], family=str(first["loc"][1]) if path.startswith("model.") else "")
        leaf = path.rpartition(".")[2]
        return ConfigError(f"{path} is not a known key{_nearest(leaf, known)}.", fix=f"Known here: {', '.join(known)}.")
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return ConfigError(f"{path}: {message}." if path else f"{message}.", fix="")
    if first["type"].startswith("union_tag"):
        value = first["input"].get("family") if isinstance(first["input"], Mapping) else first["input"]
        return ConfigError(f"model.family={value!r} is not known.", fix="Choose from mlp, cnn.")
    if first["type"] == "missing":
        return ConfigError(f"{path} is missing.", fix=f"It may be {allowed(path)}.")
    field = path.rstrip("0123456789").rstrip(".")
    return ConfigError(
        f"{path}={_excerpt(as_text(first['input']))} is not allowed.",
        fix=f"{field} {'is' if allowed(field).startswith('set') else 'may be'} {allowed(field)}.",
    )


def _is_branch(part: object) -> bool:
    """pydantic names the tried member of a union in the location; a user never wrote that."""
    return isinstance(part, str) and (part.startswith(("literal[", "function-", "constrained-")))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _tuples(data: Any) -> Any:
    """JSON lists as tuples: strict validation takes no list for a tuple."""
    if isinstance(data, Mapping):
        return {key: _tuples(value) for key, value in data.items()}
    return tuple(map(_tuples, data)) if isinstance(data, list) else data


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} is not an assignment.", fix="Write it as key=value, for example batch_size=128.")
    return key.strip(), parse_value(value.strip())


_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")  # as people type them: .01, 1e3, 64.0


def parse_value(text: str) -> Any:
    """A scalar or list as JSON writes it; anything else is text. `512,256` is a list, `nan` and `inf` are numbers."""
    lowered = text.lower().lstrip("+")
    if lowered in {"nan", "inf", "-inf", "infinity", "-infinity"}:
        return float(lowered)
    if lowered in {"none", "null"}:
        return None
    if _NUMBER.fullmatch(lowered):
        return _number(lowered)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # nested too deeply: a link may hold anything
        pass
    if "," in text:
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    return text


def _number(text: str) -> int | float:
    """A whole number as int, however it is written: 64, 64.0, 1e3."""
    if text.lstrip("-").isdigit():
        return int(text[:100])  # more digits than any bound allows; int() of a million digits takes its time
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = data
    for depth, part in enumerate(parents):
        if part not in node or not isinstance(node[part], dict):
            known = _known_keys(".".join(parents[:depth]))
            raise ConfigError(
                f"{key} is not a known key{_nearest(part, known)}.", fix=f"Known here: {', '.join(known)}."
            )
        node = node[part]
    if key == "model.hidden" and isinstance(value, int) and not isinstance(value, bool):
        value = [value]  # --set model.hidden=128
    if key == "model.hidden" and value in ("", None):
        value = []
    node[leaf] = value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def as_text(value: Any) -> str:
    """A value as one types it; a number keeps all its digits."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


_MODELS: dict[str, type[Spec]] = {"mlp": MLP, "cnn": CNN}


def _known_keys(path: str, *, family: str = "") -> list[str]:
    if path == "model" and family in _MODELS:
        return list(_MODELS[family].model_fields)
    if path == "model":
        return sorted({name for model in _MODELS.values() for name in model.model_fields})
    nested: dict[str, type[Spec]] = {"": RunConfig, "optimizer": Optimizer, "budget": Budget}
    return list(nested[path].model_fields) if path in nested else []


def _field_schema(path: str) -> dict[str, Any] | None:
    parent, _, leaf = path.rpartition(".")
    owners: dict[str, list[type[Spec]]] = {
        "": [RunConfig],
        "optimizer": [Optimizer],
        "budget": [Budget],
        "model": [MLP, CNN],
    }
    for owner in owners.get(parent, []):
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
        high = (
            f"to {_bound(schema['maximum'])}" if "maximum" in schema else f"below {_bound(schema['exclusiveMaximum'])}"
        )
        return f"{kind} {low} {high}"
    return f"a {schema.get('type', 'value')}"


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
