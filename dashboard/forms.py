"""The form of an experiment: widgets whose titles, bounds and choices come from the configuration's own fields."""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st
from pydantic.fields import FieldInfo

from dashboard import state
from engine import hardware
from engine.config import (
    CNN,
    FULL,
    MLP,
    PRESETS,
    Budget,
    DatasetName,
    Optimizer,
    OptimizerName,
    RunConfig,
    as_text,
    with_overrides,
)
from engine.datasets import DATASETS
from engine.errors import ConfigError

_KEY = "experiment."
_FAMILIES = {"mlp": "MLP", "cnn": "LeNet"}
_OPTIMIZERS = {
    "sgd": "SGD",
    "momentum": "SGD with momentum",
    "adam": "Adam",
    "gd": "Gradient descent (full batch)",
}
_BUDGETS = ("epochs", "steps", "seconds")


def experiment_form(preset: str, config: RunConfig) -> tuple[str, RunConfig]:
    """Draw the form, at first as `config` says; returns the preset and configuration it now shows.

    Raises ConfigError, in the same sentence as on the command line, for what cannot be run.
    """
    if not is_shown():
        _fill(preset, config)
    _keep_what_is_not_drawn()
    st.selectbox(
        "Start from", list(PRESETS), format_func=lambda n: PRESETS[n].title, key=f"{_KEY}preset", on_change=_take_preset
    )
    st.caption(PRESETS[_value("preset")].teaches)
    _draw_model()
    _draw_data()
    _draw_optimizer()
    _draw_batch_size()
    _draw_budget()
    _draw_more()
    return current()


def current() -> tuple[str, RunConfig]:
    """The preset and configuration the form holds at this moment, a change that was just made included.

    A button's callback runs before the page is drawn anew: it must read the widgets, not what was drawn last.
    """
    preset = _value("preset")
    return preset, with_overrides(PRESETS[preset].config, _assignments())


def _assignments() -> list[str]:
    """The widgets' values in the words of the command line."""
    if _value("family") == "mlp":
        sizes = [part.strip() for part in _value("hidden").split(",") if part.strip()]
        assignments = ["model.family=mlp", f"model.hidden=[{','.join(sizes)}]"]
    else:
        assignments = ["model.family=cnn", f"model.width={_value('width')!r}"]
    assignments += [f"optimizer.name={_value('optimizer')}", f"optimizer.lr={_value('lr').strip()}"]
    if _value("optimizer") == "momentum":
        assignments.append(f"optimizer.momentum={_value('momentum')}")
    batch_size = FULL if _value("optimizer") == "gd" else _value("batch_size")
    budget = {_value("budget"): _value("amount").strip()} | _other_limits()
    return [
        *assignments,
        f"data={_value('data')}",
        f"batch_size={batch_size}",
        *(f"budget.{name}={budget.get(name, 'none')}" for name in _BUDGETS),
        *(f"{name}={_value(name)}" for name in ("device", "threads", "seed", "evaluate_every")),
    ]


def _keep_what_is_not_drawn() -> None:
    """Streamlit forgets the value of a widget that is not drawn: hidden layers while the form shows LeNet."""
    for key in [k for k in st.session_state if str(k).startswith(_KEY)]:
        st.session_state[key] = st.session_state[key]


def is_shown() -> bool:
    """Whether the form holds an experiment; Streamlit forgets a page's widgets when another page is shown."""
    return f"{_KEY}preset" in st.session_state


def show_in_form(preset: str, config: RunConfig) -> None:
    """Make the form show another experiment from the next time it is drawn."""
    for key in [k for k in st.session_state if str(k).startswith(_KEY)]:
        del st.session_state[key]
    _fill(preset, config)


def _take_preset() -> None:
    preset = st.session_state[f"{_KEY}preset"]
    _fill(preset, PRESETS[preset].config)


def _fill(preset: str, config: RunConfig) -> None:
    """The configuration as the widgets' own values."""
    limits = {name: as_text(v) for name in _BUDGETS if (v := getattr(config.budget, name)) is not None}
    budget = next(iter(limits))
    values: dict[str, Any] = {
        "preset": preset,
        "family": config.model.family,
        "hidden": ", ".join(map(str, config.model.hidden)) if isinstance(config.model, MLP) else "128",
        "width": config.model.width if isinstance(config.model, CNN) else 1.0,
        "data": config.data,
        "optimizer": config.optimizer.name,
        "lr": as_text(config.optimizer.lr),
        "momentum": as_text(config.optimizer.momentum),
        "batch_size": config.batch_size,
        "budget": budget,
        "amount": limits[budget],
        "other_limits": limits,
        "seed": config.seed,
        "threads": config.threads,
        "device": config.device,
        "evaluate_every": str(config.evaluate_every),
    }
    for name, value in values.items():
        st.session_state[_KEY + name] = value


def _value(name: str) -> Any:
    return st.session_state[_KEY + name]


def _field(owner: type, name: str) -> FieldInfo:
    info: FieldInfo = owner.model_fields[name]  # type: ignore[attr-defined]
    return info


def _words(owner: type, name: str) -> dict[str, Any]:
    """A widget's label, help and key, from the field."""
    info = _field(owner, name)
    return {"label": info.title or name, "help": info.description, "key": _KEY + name}


def _draw_model() -> None:
    st.segmented_control(
        "Model", list(_FAMILIES), format_func=_FAMILIES.__getitem__, key=f"{_KEY}family", required=True, width="stretch"
    )
    if _value("family") == "mlp":
        st.text_input(**_words(MLP, "hidden"), placeholder="512, 256")
    else:
        widths = sorted({0.25, 0.5, 1.0, 2.0, 4.0, 8.0, _value("width")})
        st.select_slider(**_words(CNN, "width"), options=widths, format_func=lambda w: f"{w:g}x")


def _draw_data() -> None:
    st.selectbox(
        **_words(RunConfig, "data"), options=get_args(DatasetName), format_func=lambda name: DATASETS[name].title
    )


def _draw_optimizer() -> None:
    st.selectbox(
        "Optimizer", get_args(OptimizerName), format_func=_OPTIMIZERS.__getitem__, key=f"{_KEY}optimizer",
        help=_field(Optimizer, "name").description,
    )  # fmt: skip
    st.text_input(**_words(Optimizer, "lr"))
    if _value("optimizer") == "momentum":
        st.text_input(**_words(Optimizer, "momentum"))


def _draw_batch_size() -> None:
    full_only = _value("optimizer") == "gd"
    if full_only:
        st.session_state[f"{_KEY}batch_size"] = FULL
    largest = DATASETS[_value("data")].train_examples
    numbers = {2**i for i in range(largest.bit_length())} | {v for v in [_value("batch_size")] if v != FULL}
    st.select_slider(
        **_words(RunConfig, "batch_size"), options=[*sorted(numbers), FULL], disabled=full_only,
        format_func=lambda b: f"full ({largest:,})" if b == FULL else f"{b:,}",
    )  # fmt: skip


def _draw_budget() -> None:
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    right.selectbox(
        "Unit of the budget", _BUDGETS, key=f"{_KEY}budget", label_visibility="collapsed",
        format_func=lambda name: (_field(Budget, name).title or name).lower(),
    )  # fmt: skip
    left.text_input("Train for", key=f"{_KEY}amount", help="The run ends here. Evaluation comes on top.")
    if others := _other_limits():
        words = " or ".join(f"{amount} {unit}" for unit, amount in others.items())
        st.caption(f"or {words}, whichever comes first")


def _other_limits() -> dict[str, str]:
    """Limits a link may carry beside the one the form shows."""
    limits: dict[str, str] = _value("other_limits")
    return {unit: amount for unit, amount in limits.items() if unit != _value("budget")}


def _draw_more() -> None:
    machine = state.machine()
    with st.expander("More"):
        devices = hardware.device_choices(machine)
        chosen = _value("device")
        st.selectbox(**_words(RunConfig, "device"), options=[*devices, *([] if chosen in devices else [chosen])])
        cores = max(machine.cpu.usable_cores, _value("threads"))
        if cores > 1:
            st.slider(**_words(RunConfig, "threads"), min_value=1, max_value=cores)
        st.number_input(**_words(RunConfig, "seed"), min_value=0, max_value=2**32 - 1, step=1)
        st.text_input(**_words(RunConfig, "evaluate_every"))


def form_or_default(preset: str, config: RunConfig) -> tuple[str, RunConfig, ConfigError | None]:
    """The form's experiment, or the given one with the sentence that says what is wrong in the form."""
    try:
        return *experiment_form(preset, config), None
    except ConfigError as error:
        return preset, config, error
