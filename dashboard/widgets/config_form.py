"""The form of an experiment: widgets whose titles, bounds and choices come from the fields of the configuration.

The form holds the configuration it was opened with and the fields it shows. A field that is hidden, because no choice
uses it, keeps the value of that configuration or returns to its default.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard.widgets.form_data import draw_data
from dashboard.widgets.form_fields import (
    KEY,
    OWNERS,
    PATHS,
    WORDS,
    as_widget,
    assignments,
    draw,
    draw_rows,
    is_text,
    model_fields,
    optimizer_knobs,
    set_value,
    source_fields,
    value_of,
)
from dashboard.widgets.form_training import (
    DISTRIBUTED,
    EVALUATION,
    EXECUTION,
    REGULARIZATION,
    SCHEDULE_FIELDS,
    draw_batch_size,
    draw_budget,
    draw_groups,
    draw_optimizer,
)
from engine.common.errors import ConfigError
from engine.config.data import DATA, Source
from engine.config.models import CUSTOM, MODELS, Model
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.config.tasks import Infer, Landscape
from engine.config.training import BUDGETS, Optimizer


class Unfinished(ConfigError):
    """The form is not complete yet: the user still has to choose something."""


def experiment_form(preset: str, config: RunConfig) -> tuple[str, RunConfig]:
    """Draw the form, at first with the values of `config`. Returns the preset and configuration that it shows now.

    Raises:
        ConfigError: if the configuration cannot run, with the same message as on the command line.
        Unfinished: while the user still has to choose a file.
    """
    if not is_shown():
        _fill(preset, config)
    _keep_hidden_widgets()
    _draw_preset()
    _draw_model()
    facts = draw_data()
    draw_optimizer()
    draw_batch_size(facts)
    draw_budget()
    draw_groups()
    return current()


def form_or_default(preset: str, config: RunConfig) -> tuple[str, RunConfig, ConfigError | None]:
    """The experiment in the form, or the given one with the form's error."""
    try:
        return *experiment_form(preset, config), None
    except ConfigError as error:
        return preset, config, error


def current() -> tuple[str, RunConfig]:
    """The preset and configuration in the form, including a change that was just made.

    The callback of a button runs before the page is drawn again, so it must read the widgets and not the last drawing.

    Raises:
        ConfigError: if the configuration cannot run.
        Unfinished: while the user still has to choose a file.
    """
    data = DATA[value_of("data")]
    if data.is_yours and not value_of("source.path").strip():
        what = "Type the path of the folder" if data.is_folder else "Upload a file or type its path"
        raise Unfinished(f"{data.title}: nothing is chosen yet.", fix=f"{what}, under Data.")
    family = f"model.family={value_of('family')}"
    return value_of("preset"), with_overrides(_hidden_values(), [family, *assignments(_shown_paths())])


def is_shown() -> bool:
    """Whether the form holds an experiment. Streamlit forgets the widgets of a page when it shows another page."""
    return f"{KEY}preset" in st.session_state


def show_in_form(preset: str, config: RunConfig) -> None:
    """Make the form show another experiment when it is drawn next."""
    for key in [k for k in st.session_state if str(k).startswith(KEY)]:
        del st.session_state[key]
    _fill(preset, config)


def _fill(preset: str, config: RunConfig) -> None:
    """Set the widgets to the values of a configuration, as one of training whatever its task is."""
    config = config.model_copy(update={"task": "train", "landscape": Landscape(), "infer": Infer()})
    family = config.model.family
    unit = next(name for name in BUDGETS if getattr(config.budget, name) is not None)
    own = {"preset": preset, "opened": config, "family": family, "unit": unit, "unit_was": unit}
    for name, value in (own | {"data_was": config.data, "files": {}, "new_data": False}).items():
        set_value(name, value)
    groups = {prefix: getattr(config, prefix, None) for prefix in OWNERS} | {"": config}
    groups |= {name: config.model if name == family else model() for name, model in MODELS.items()}
    for path in PATHS:
        prefix, _, name = path.rpartition(".")
        set_value(path, as_widget(path, getattr(groups[prefix], name)))


def _hidden_values() -> RunConfig:
    """The configuration the form was opened with. Parts whose choice has changed since have their defaults."""
    opened: RunConfig = value_of("opened")
    changes: dict[str, Any] = {}
    if value_of("data") != opened.data:
        changes |= {"source": Source(), "model": type(opened.model)()}
    if value_of("optimizer.name") != opened.optimizer.name:
        changes["optimizer"] = Optimizer()
    if value_of("schedule") != opened.schedule:
        fields = {name for names in SCHEDULE_FIELDS.values() for name in names}
        changes |= {name: RunConfig.model_fields[name].default for name in fields}
    return opened.model_copy(update=changes)


def _shown_paths() -> list[str]:
    """The paths of the fields that the form shows for the present choices."""
    return [
        *model_fields(),
        "data",
        *source_fields(value_of("data")),
        *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", *optimizer_knobs()),
        *("schedule", *SCHEDULE_FIELDS[value_of("schedule")], "batch_size"),
        *(f"budget.{unit}" for unit in BUDGETS),
        *("target.metric", "target.value"),
        *REGULARIZATION,
        *EXECUTION,
        *DISTRIBUTED,
        *EVALUATION,
    ]


def _keep_hidden_widgets() -> None:
    """Set every value again, because Streamlit forgets the values of widgets that are not drawn."""
    for key in [k for k in st.session_state if str(k).startswith(KEY)]:
        st.session_state[key] = st.session_state[key]


# --- preset and model ---------------------------------------------------------------------------------------------


def _draw_preset() -> None:
    data = list(DATA)
    ordered = sorted(PRESETS, key=lambda name: data.index(PRESETS[name].config.data))
    st.selectbox(
        "Start from", ordered, format_func=lambda n: PRESETS[n].title, key=f"{KEY}preset", on_change=_preset_changed
    )
    st.caption(PRESETS[value_of("preset")].teaches)


def _preset_changed() -> None:
    preset = value_of("preset")
    _fill(preset, PRESETS[preset].config)


def _draw_model() -> None:
    text = is_text()
    st.segmented_control(
        "Model",
        [name for name, model in MODELS.items() if model.reads_text or not text],
        format_func=WORDS["family"].__getitem__,
        key=f"{KEY}family",
        required=True,
        width="stretch",
        wrap=False,
        help="Text needs a sequence model: a Transformer or an RNN." if text else None,
    )
    _draw_size()
    paths = model_fields()
    if len(paths) == 1:
        draw(paths[0])
    else:
        draw_rows(paths)


def _draw_size() -> None:
    """Draw the size of the model: custom if no size has the dimensions in the fields below."""
    size = _size()
    set_value("size", size)
    st.segmented_control(
        "Size",
        [*_sizes(), *([CUSTOM] if size == CUSTOM else [])],
        format_func=str.capitalize,
        key=f"{KEY}size",
        required=True,
        width="stretch",
        wrap=False,
        on_change=_size_changed,
        help="Sets all dimensions below at once. Any other dimensions are a custom size.",
    )


def _sizes() -> dict[str, Any]:
    return {str(size): dimensions for size, dimensions in MODELS[value_of("family")].sizes.items()}


def _size() -> str:
    try:
        family = f"model.family={value_of('family')}"
        model: Model = with_overrides(RunConfig(), [family, *assignments(model_fields())]).model
    except ConfigError:  # shown beside the form
        return CUSTOM
    return model.size


def _size_changed() -> None:
    for name, value in _sizes().get(value_of("size"), {}).items():
        path = f"{value_of('family')}.{name}"
        set_value(path, as_widget(path, value))
