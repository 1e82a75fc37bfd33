"""The fields of the form: how a field is named, which widget it has, and its value as the command line would have it.

A field is named by its path, `optimizer.lr` as on the command line. A field of a model is named by its family,
`rnn.cell`, so that each family keeps its own values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from engine.config.base import Spec, as_text
from engine.config.data import DATA, DatasetName, Source
from engine.config.models import MODELS
from engine.config.parallel import Parallel
from engine.config.run import RunConfig
from engine.config.training import OPTIMIZERS, Budget, Optimizer, Target

KEY = "experiment."


OWNERS: dict[str, type[Spec]] = {
    "": RunConfig,
    "source": Source,
    "optimizer": Optimizer,
    "budget": Budget,
    "target": Target,
    "parallel": Parallel,
    **MODELS,
}


_NOT_DRAWN = {
    "task",
    "model",
    "source",
    "optimizer",
    "budget",
    "target",
    "law",
    "landscape",
    "infer",
    "parallel",
    "family",
}


PATHS = [
    f"{prefix}.{name}".lstrip(".")
    for prefix, owner in OWNERS.items()
    for name in owner.model_fields
    if name not in _NOT_DRAWN
]


# Labels of the choices of a field whose values are no plain words.
WORDS: dict[str, Mapping[str, str]] = {
    "family": {name: model.label for name, model in MODELS.items()},
    "rnn.cell": {"tanh": "Plain (tanh)", "gru": "GRU", "lstm": "LSTM"},
    "rnn.readout": {"last": "Last step", "all": "All steps"},
    "data": {str(name): facts.title for name, facts in DATA.items()},
    "optimizer.name": {str(name): facts.label for name, facts in OPTIMIZERS.items()},
    "schedule": {
        "constant": "Constant",
        "cosine": "Cosine",
        "step": "Step decay",
        "one-cycle": "One cycle",
        "warm-up": "Warm-up",
    },
    "target.metric": {"test_accuracy": "Test accuracy", "test_loss": "Test loss"},
    "precision": {"fp32": "FP32", "tf32": "TF32", "bf16": "BF16", "fp16": "FP16"},
    "execution": {
        "eager": "Fast loop (eager)",
        "dataloader": "PyTorch tutorial loop (DataLoader)",
        "compiled": "Compiled",
        "cuda-graph": "CUDA graph",
    },
    "parallel.strategy": {
        "ddp": "DDP",
        "fsdp": "FSDP (fully_shard)",
        "data-parallel": "nn.DataParallel (historical)",
    },
}


# Step of the arrows of a number, where 1 is too small.
_STEPS = {
    "rnn.hidden_size": 32,
    "transformer.d_model": 32,
    "source.seq_len": 16,
    "source.num_examples": 1_024,
    "warmup_steps": 50,
}


# What an empty field means; shown in the empty field.
_EMPTY = {
    "mlp.hidden": "none: softmax regression",
    "source.label": "the last column",
    "parallel.devices": "one per rank",
}


# --- which fields the form shows ------------------------------------------------------------------------------------------


def model_fields() -> list[str]:
    """The paths of the fields of the chosen model."""
    family = value_of("family")
    hidden = ("family", *(MODELS[family].not_for_text if is_text() else ()))
    return [f"{family}.{name}" for name in MODELS[family].model_fields if name not in hidden]


def source_fields(data: DatasetName) -> list[str]:
    """The paths of the fields of a data set."""
    return [f"source.{name}" for name in DATA[data].fields]


def optimizer_knobs() -> list[str]:
    """The paths of the chosen optimizer's fields other than learning rate and weight decay."""
    return [f"optimizer.{name}" for name in OPTIMIZERS[value_of("optimizer.name")].knobs]


def is_text() -> bool:
    """Whether the chosen data set is text."""
    return DATA[value_of("data")].kind == "text"


# --- a field, its value and its widget ----------------------------------------------------------------------------


def value_of(path: str) -> Any:
    """The value of a field's widget."""
    return st.session_state[KEY + path]


def set_value(path: str, value: Any) -> None:
    """Set the value of a field's widget, before the widget is drawn."""
    st.session_state[KEY + path] = value


def field_of(path: str) -> FieldInfo:
    """The field of the configuration at a path."""
    prefix, _, name = path.rpartition(".")
    return OWNERS[prefix].model_fields[name]


def _is_choice(path: str) -> bool:
    return get_origin(field_of(path).annotation) is Literal


def _is_optional(path: str) -> bool:
    return type(None) in get_args(field_of(path).annotation)


def as_widget(path: str, value: Any) -> Any:
    """The value of a field as its widget holds it: as text for floats, lists and fields that may be none or a word."""
    if path == "batch_size" or _is_choice(path) or field_of(path).annotation in (bool, int, str):
        return value
    return ", ".join(map(as_text, value)) if isinstance(value, tuple) else "" if value is None else as_text(value)


def typed(path: str) -> str:
    """The value of a widget as a user types it on the command line."""
    return as_typed(path, value_of(path))


def as_typed(path: str, value: Any) -> str:
    """The value of a field's widget as text on the command line."""
    if not isinstance(value, str):
        return as_text(value).lower()
    text = value.strip()
    if get_origin(field_of(path).annotation) is tuple:
        parts = re.split(r"[,\s]+", text.strip("[]"))
        return f"[{','.join(filter(None, parts))}]"
    if path == "target.value" and re.fullmatch(r"[\d.]+ *%", text):
        return as_text(float(text.rstrip(" %")) / 100)
    return "none" if not text and _is_optional(path) else text


def assignments(paths: list[str]) -> list[str]:
    """The values of the widgets as assignments of the command line."""
    return [f"{assigned_path(path)}={typed(path)}" for path in paths]


def assigned_path(path: str) -> str:
    """The path of a field on the command line, where a field of a model is `model.NAME`."""
    prefix, _, name = path.rpartition(".")
    return f"model.{name}" if prefix in MODELS else path


def draw(path: str, label: str = "", **more: Any) -> None:
    """Draw the widget of a field; its type decides which one."""
    info = field_of(path)
    words: dict[str, Any] = {"label": label or info.title, "help": info.description, "key": KEY + path} | more
    if _is_choice(path):
        options, names = words.pop("options", get_args(info.annotation)), WORDS.get(path, {})
        st.selectbox(options=options, format_func=lambda word: names.get(word, word), **words)
    elif info.annotation is bool:
        st.toggle(**words)
    elif info.annotation is int:
        low, high = (next(getattr(m, b) for m in info.metadata if hasattr(m, b)) for b in ("ge", "le"))
        st.number_input(min_value=low, max_value=high, step=_STEPS.get(path, 1), **words)
    else:
        empty = _EMPTY.get(path, "none" if _is_optional(path) else None)
        st.text_input(**{"placeholder": empty} | words)


def draw_rows(paths: list[str]) -> None:
    """Draw two fields per row, and switches below them, one per row."""
    switches = [path for path in paths if field_of(path).annotation is bool]
    others = [path for path in paths if path not in switches]
    for i in range(0, len(others), 2):
        row = others[i : i + 2]
        for column, path in zip(st.columns(len(row), vertical_alignment="bottom", wrap=False), row, strict=True):
            with column:
                draw(path)
    for path in switches:
        draw(path)


def group(title: str, paths: list[str], *, key: str) -> Any:
    """An expander, closed at first. Its label counts the fields in it that differ from their defaults."""
    set_here = [path for path in paths if typed(path) != as_typed(path, as_widget(path, field_of(path).default))]
    label = f"{title} · {len(set_here)} set" if set_here else title
    return st.expander(label, key=f"group-{key}")
