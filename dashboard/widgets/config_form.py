"""The form of an experiment: widgets whose titles, bounds and choices come from the fields of the configuration.

A field is named by its path, `optimizer.lr` as on the command line. A field of a model is named by its family,
`rnn.cell`, so that each family keeps its own values. The form holds the configuration it was opened with and the fields
it shows. A field that is hidden, because no choice uses it, keeps the value of that configuration or returns to its
default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from dashboard import state
from dashboard.widgets import uploads
from engine.common import units
from engine.common.errors import ConfigError
from engine.config.base import Spec, as_text
from engine.config.data import DATA, USER_DATA, DatasetName, Source
from engine.config.models import CUSTOM, MODELS, Model
from engine.config.parallel import Parallel
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.config.tasks import Infer, Landscape
from engine.config.training import BUDGETS, FULL, OPTIMIZERS, Budget, Optimizer, Target
from engine.data import downloads, loading
from engine.data.datasets import KNOWN, Dataset, Release
from engine.hardware import probe

_KEY = "experiment."
_OWNERS: dict[str, type[Spec]] = {
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
_PATHS = [
    f"{prefix}.{name}".lstrip(".")
    for prefix, owner in _OWNERS.items()
    for name in owner.model_fields
    if name not in _NOT_DRAWN
]

# Labels of the choices of a field, where the value itself says too little.
WORDS: dict[str, Mapping[str, str]] = {
    "family": {name: model.label for name, model in MODELS.items()},
    "rnn.cell": {"tanh": "Plain (tanh)", "gru": "GRU", "lstm": "LSTM"},
    "rnn.readout": {"last": "Last step", "all": "All steps"},
    "data": {str(name): facts.title for name, facts in DATA.items()},
    "optimizer.name": {str(name): facts.label for name, facts in OPTIMIZERS.items()},
    "schedule": {
        "constant": "Constant",
        "cosine": "Cosine",
        "step": "Steps down",
        "one-cycle": "One cycle",
        "warm-up": "Warm-up",
    },
    "target.metric": {"test_accuracy": "Test accuracy", "test_loss": "Test loss"},
    "precision": {"fp32": "FP32", "tf32": "TF32", "bf16": "BF16", "fp16": "FP16"},
    "execution": {
        "eager": "Fast loop (eager)",
        "dataloader": "Tutorial loop (DataLoader)",
        "compiled": "Compiled",
        "cuda-graph": "CUDA graph",
    },
    "parallel.strategy": {
        "ddp": "DDP",
        "fsdp": "FSDP (fully_shard)",
        "data-parallel": "nn.DataParallel (historical)",
    },
}

_USUAL_BUDGET = {"steps": "1000", "epochs": "10", "samples": "50000", "seconds": "10", "flops": "1e11"}

# The fields that a schedule uses.
_OF_SCHEDULE = {
    "constant": ["warmup_steps"],
    "cosine": ["warmup_steps", "lr_end"],
    "step": ["warmup_steps", "lr_gamma", "lr_milestones"],
    "warm-up": ["warmup_steps"],
    "one-cycle": [],
}
_TRICKS = ["grad_accumulation", "label_smoothing", "max_grad_norm", "ema_decay", "activation_checkpointing"]
_EXECUTION = ["precision", "execution", "device", "threads"]
_RANKS = ["parallel.num_ranks", "parallel.strategy", "parallel.devices", "parallel.timeout_s"]
_MORE = ["seed", "evaluate_every", "checkpoints"]

# Step of the arrows of a number, where 1 is too small.
_STEPS = {
    "rnn.hidden_size": 32,
    "transformer.d_model": 32,
    "source.seq_len": 16,
    "source.num_examples": 1_024,
    "warmup_steps": 50,
}

# What an empty field means; it is shown in the field.
_EMPTY = {
    "mlp.hidden": "none: softmax regression",
    "source.label": "the last column",
    "parallel.devices": "one per rank",
}


class Unfinished(ConfigError):
    """The form is not complete yet: the user still has to choose something."""


# --- the form and its configuration -------------------------------------------------------------------------------


def experiment_form(preset: str, config: RunConfig) -> tuple[str, RunConfig]:
    """Draw the form, at first with the values of `config`; return the preset and configuration it shows now.

    Raises ConfigError, with the same sentence as on the command line, for a configuration that cannot run, and
    Unfinished while the user still has to choose a file.
    """
    if not is_shown():
        _fill(preset, config)
    _keep_what_is_not_drawn()
    _draw_preset()
    _draw_model()
    facts = _draw_data()
    _draw_optimizer()
    _draw_batch_size(facts)
    _draw_budget()
    _draw_rest()
    return current()


def form_or_default(preset: str, config: RunConfig) -> tuple[str, RunConfig, ConfigError | None]:
    """The experiment in the form, or the given one with the error of the form."""
    try:
        return *experiment_form(preset, config), None
    except ConfigError as error:
        return preset, config, error


def current() -> tuple[str, RunConfig]:
    """The preset and configuration in the form now, with a change that was just made.

    The callback of a button runs before the page is drawn again, so it must read the widgets and not what was drawn
    last. Raises ConfigError or Unfinished, as `experiment_form`.
    """
    data = DATA[_value("data")]
    if data.is_yours and not _value("source.path").strip():
        what = "Type the path of the folder" if data.is_folder else "Upload a file or type its path"
        raise Unfinished(f"{data.title}: nothing is chosen yet.", fix=f"{what}, under Data.")
    family = f"model.family={_value('family')}"
    return _value("preset"), with_overrides(_what_is_hidden(), [family, *_assignments(_shown())])


def is_shown() -> bool:
    """Whether the form holds an experiment; Streamlit forgets the widgets of a page when it shows another page."""
    return f"{_KEY}preset" in st.session_state


def show_in_form(preset: str, config: RunConfig) -> None:
    """Make the form show another experiment when it is drawn next."""
    for key in [k for k in st.session_state if str(k).startswith(_KEY)]:
        del st.session_state[key]
    _fill(preset, config)


def _fill(preset: str, config: RunConfig) -> None:
    """Set the widgets to the values of the configuration. The form is for training, also if the configuration is that
    of a run with another task."""
    config = config.model_copy(update={"task": "train", "landscape": Landscape(), "infer": Infer()})
    family = config.model.family
    unit = next(name for name in BUDGETS if getattr(config.budget, name) is not None)
    own = {"preset": preset, "opened": config, "family": family, "unit": unit, "unit_was": unit}
    for name, value in (own | {"data_was": config.data, "files": {}, "new_data": False}).items():
        _set(name, value)
    groups = {prefix: getattr(config, prefix, None) for prefix in _OWNERS} | {"": config}
    groups |= {name: config.model if name == family else model() for name, model in MODELS.items()}
    for path in _PATHS:
        prefix, _, name = path.rpartition(".")
        _set(path, _as_widget(path, getattr(groups[prefix], name)))


def _what_is_hidden() -> RunConfig:
    """The configuration the form was opened with, without the parts that belong to choices made since."""
    opened: RunConfig = _value("opened")
    changes: dict[str, Any] = {}
    if _value("data") != opened.data:
        changes |= {"source": Source(), "model": type(opened.model)()}
    if _value("optimizer.name") != opened.optimizer.name:
        changes["optimizer"] = Optimizer()
    if _value("schedule") != opened.schedule:
        fields = {name for names in _OF_SCHEDULE.values() for name in names}
        changes |= {name: RunConfig.model_fields[name].default for name in fields}
    return opened.model_copy(update=changes)


def _shown() -> list[str]:
    """The fields that the form shows for the choices made in it."""
    return [
        *_model_fields(),
        "data",
        *_source_fields(_value("data")),
        *("optimizer.name", "optimizer.lr", "optimizer.weight_decay", *_knobs()),
        *("schedule", *_OF_SCHEDULE[_value("schedule")], "batch_size"),
        *(f"budget.{unit}" for unit in BUDGETS),
        *("target.metric", "target.value"),
        *_TRICKS,
        *_EXECUTION,
        *_RANKS,
        *_MORE,
    ]


def _model_fields() -> list[str]:
    family = _value("family")
    hidden = ("family", *(MODELS[family].not_for_text if _is_text() else ()))
    return [f"{family}.{name}" for name in MODELS[family].model_fields if name not in hidden]


def _source_fields(data: DatasetName) -> list[str]:
    return [f"source.{name}" for name in DATA[data].fields]


def _knobs() -> list[str]:
    """The fields of the chosen optimizer beside learning rate and weight decay."""
    return [f"optimizer.{name}" for name in OPTIMIZERS[_value("optimizer.name")].knobs]


def _is_text() -> bool:
    return DATA[_value("data")].kind == "text"


def _assignments(paths: list[str]) -> list[str]:
    """The values of the widgets as assignments of the command line."""
    return [f"{_assigned(path)}={_typed(path)}" for path in paths]


def _assigned(path: str) -> str:
    prefix, _, name = path.rpartition(".")
    return f"model.{name}" if prefix in MODELS else path


# --- a field, its value and its widget ----------------------------------------------------------------------------


def _value(path: str) -> Any:
    return st.session_state[_KEY + path]


def _set(path: str, value: Any) -> None:
    st.session_state[_KEY + path] = value


def _keep_what_is_not_drawn() -> None:
    """Set every value again, because Streamlit forgets those of widgets that are not drawn (hidden layers beside
    LeNet)."""
    for key in [k for k in st.session_state if str(k).startswith(_KEY)]:
        st.session_state[key] = st.session_state[key]


def _field(path: str) -> FieldInfo:
    prefix, _, name = path.rpartition(".")
    return _OWNERS[prefix].model_fields[name]


def _is_choice(path: str) -> bool:
    return get_origin(_field(path).annotation) is Literal


def _is_optional(path: str) -> bool:
    return type(None) in get_args(_field(path).annotation)


def _as_widget(path: str, value: Any) -> Any:
    """The value of a field as its widget holds it. Floats, lists, and fields that may be none or a word are text."""
    if path == "batch_size" or _is_choice(path) or _field(path).annotation in (bool, int, str):
        return value
    return ", ".join(map(as_text, value)) if isinstance(value, tuple) else "" if value is None else as_text(value)


def _typed(path: str) -> str:
    """The value of a widget as a user types it on the command line."""
    return _as_typed(path, _value(path))


def _as_typed(path: str, value: Any) -> str:
    if not isinstance(value, str):
        return as_text(value).lower()
    text = value.strip()
    if get_origin(_field(path).annotation) is tuple:
        parts = re.split(r"[,\s]+", text.strip("[]"))
        return f"[{','.join(filter(None, parts))}]"
    if path == "target.value" and re.fullmatch(r"[\d.]+ *%", text):
        return as_text(float(text.rstrip(" %")) / 100)
    return "none" if not text and _is_optional(path) else text


def _draw(path: str, label: str = "", **more: Any) -> None:
    """Draw a field with the widget of its type."""
    info = _field(path)
    words: dict[str, Any] = {"label": label or info.title, "help": info.description, "key": _KEY + path} | more
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


def _draw_rows(paths: list[str]) -> None:
    """Draw two fields per row, and switches below them, one per row."""
    switches = [path for path in paths if _field(path).annotation is bool]
    others = [path for path in paths if path not in switches]
    for i in range(0, len(others), 2):
        row = others[i : i + 2]
        for column, path in zip(st.columns(len(row), vertical_alignment="bottom", wrap=False), row, strict=True):
            with column:
                _draw(path)
    for path in switches:
        _draw(path)


# --- preset and model ---------------------------------------------------------------------------------------------


def _draw_preset() -> None:
    data = list(DATA)
    ordered = sorted(PRESETS, key=lambda name: data.index(PRESETS[name].config.data))
    st.selectbox(
        "Start from", ordered, format_func=lambda n: PRESETS[n].title, key=f"{_KEY}preset", on_change=_take_preset
    )
    st.caption(PRESETS[_value("preset")].teaches)


def _take_preset() -> None:
    preset = _value("preset")
    _fill(preset, PRESETS[preset].config)


def _draw_model() -> None:
    text = _is_text()
    st.segmented_control(
        "Model",
        [name for name, model in MODELS.items() if model.reads_text or not text],
        format_func=WORDS["family"].__getitem__,
        key=f"{_KEY}family",
        required=True,
        width="stretch",
        wrap=False,
        help="Text needs a model that reads in order: a Transformer or an RNN." if text else None,
    )
    _draw_size()
    paths = _model_fields()
    if len(paths) == 1:
        _draw(paths[0])
    else:
        _draw_rows(paths)


def _draw_size() -> None:
    """Draw the size, which follows from the dimensions below it: custom if no size has these dimensions."""
    size = _size()
    _set("size", size)
    st.segmented_control(
        "Size",
        [*_sizes(), *([CUSTOM] if size == CUSTOM else [])],
        format_func=str.capitalize,
        key=f"{_KEY}size",
        required=True,
        width="stretch",
        wrap=False,
        on_change=_take_size,
        help="Sets every dimension below at once. Other dimensions make it custom.",
    )


def _sizes() -> dict[str, Any]:
    return {str(size): dimensions for size, dimensions in MODELS[_value("family")].sizes.items()}


def _size() -> str:
    try:
        family = f"model.family={_value('family')}"
        model: Model = with_overrides(RunConfig(), [family, *_assignments(_model_fields())]).model
    except ConfigError:  # shown beside the form
        return CUSTOM
    return model.size


def _take_size() -> None:
    for name, value in _sizes().get(_value("size"), {}).items():
        path = f"{_value('family')}.{name}"
        _set(path, _as_widget(path, value))


# --- data ---------------------------------------------------------------------------------------------------------


def _draw_data() -> Dataset | None:
    """Draw the data set and its fields; return its facts, or None while they are unknown."""
    data: DatasetName = _value("data")
    facts = _facts(data)
    _draw("data", on_change=_take_data, help=facts.source if facts and facts.source else _field("data").description)
    if facts:
        st.caption(_in_words(data, facts))
    paths = _source_fields(data)
    if "source.path" in paths:
        with st.container() if DATA[data].is_yours else _group("Your own text", ["source.path"]):
            _draw_file(data)
    _draw_rows([path for path in paths if path != "source.path"])
    return facts


def _draw_file(data: DatasetName) -> None:
    facts = DATA[data]
    if facts.suffixes and state.client().may("submit"):
        st.file_uploader(
            "Your file",
            type=list(facts.suffixes),
            key=f"upload.{data}",
            on_change=_take_upload,
            args=(data,),
            help="Kept on this machine, named by the hash of its content.",
        )
    example = (
        "/home/me/pictures" if facts.is_folder else "/home/me/data" if facts.is_yours else "Python's documentation"
    )
    label = "Folder, one subfolder per class" if facts.is_folder else "or its path on this machine"
    _draw("source.path", label, placeholder=example, on_change=_set, args=("new_data", True))


def _take_upload(data: DatasetName) -> None:
    if file := st.session_state[f"upload.{data}"]:
        try:
            _set("source.path", str(uploads.keep(data, file.getvalue())))
            _set("new_data", True)
        except ConfigError as error:
            st.session_state["train.refused"] = error


def _take_data() -> None:
    """Show the file of the new data set, and replace a model that cannot read it."""
    data, before, files = _value("data"), _value("data_was"), _value("files")
    files[before] = _value("source.path"), _value("source.label")
    for path, value in zip(("source.path", "source.label"), files.get(data, ("", "")), strict=True):
        _set(path, value)
    _set("data_was", data)
    _set("new_data", True)
    chosen = MODELS[_value("family")]
    if _is_text() and not chosen.reads_text:
        reader = [name for name, model in MODELS.items() if model.reads_text][-1]
        label = MODELS[reader].label
        st.toast(f"Text needs a model that reads in order: the model changed from {chosen.label} to {label}.")
        _set("family", reader)


def _facts(data: DatasetName) -> Dataset | None:
    try:
        source = with_overrides(RunConfig(), _assignments(_source_fields(data))).source
        if not source.path:
            return None if data in USER_DATA else loading.facts(data, source)
        if not state.may_read(source.path):
            return None
        with st.spinner("Reading your file …", show_time=True):
            return loading.facts(data, source)
    except ConfigError:  # shown beside the form
        return None


def _in_words(data: DatasetName, facts: Dataset) -> str:
    """A line about a data set: size, shape, licence, download."""
    examples = f"{facts.train_examples:,} to train on, {facts.test_examples:,} held out"
    if facts.kind == "text":
        what = f"{examples}: stretches of {facts.shape[0]} characters, {facts.num_classes} different"
    elif facts.kind == "vector":
        what = f"{examples}, {facts.shape[0]} values each, {facts.num_classes} classes"
    else:
        channels, height, width = facts.shape
        colours = {1: "", 3: ", colour"}.get(channels, f", {channels} channels")
        what = f"{examples}, {height}x{width} pixels{colours}, {facts.num_classes} classes"
    rest = [facts.licence and f"Licence: {facts.licence}", _download(data)]
    return ". ".join([what, *filter(None, rest)]) + "."


def _download(data: DatasetName) -> str:
    """What the first run downloads; "" if nothing is missing."""
    release, folder = KNOWN[data].origin if data in KNOWN else None, downloads.cache_folder()
    if not isinstance(release, Release) or (folder / f"{release.name}.npz").exists():
        return ""
    places = [(folder / archive.name, folder / release.name / archive.name) for archive in release.archives]
    here = all(any(path.exists() for path in paths) for paths in places)
    return "" if here else f"Downloaded on first use, {units.nbytes(release.size_bytes)}"


# --- optimizer, batch, budget -------------------------------------------------------------------------------------


def _draw_optimizer() -> None:
    left, right = st.columns([3, 2], wrap=False)
    with left:
        _draw("optimizer.name", on_change=_take_optimizer)
    with right:
        _draw("optimizer.lr")
    _draw_rows(_in_sight())


def _in_sight() -> list[str]:
    """The knob that is shown beside the optimizer; the others are in a group below."""
    return [path for path in _knobs() if path == "optimizer.momentum"]


def _take_optimizer() -> None:
    """Set the usual learning rate of the new optimizer, and the full batch or mini-batches, as it needs."""
    facts = OPTIMIZERS[_value("optimizer.name")]
    _set("optimizer.lr", as_text(facts.usual_lr))
    if facts.full_batch:
        _set("batch_size", FULL)
    elif _value("batch_size") == FULL:
        _set("batch_size", RunConfig.model_fields["batch_size"].default)


def _draw_batch_size(facts: Dataset | None) -> None:
    largest = facts.train_examples if facts else 4_096
    if facts and _value(
        "new_data"
    ):  # a small data set must not be refused for a batch size that was chosen for another one
        _set("new_data", False)
        if _value("batch_size") != FULL and _value("batch_size") > largest:
            _set("batch_size", 2 ** (largest.bit_length() - 1))
    numbers = {2**i for i in range(largest.bit_length())} | {v for v in [_value("batch_size")] if v != FULL}
    info = _field("batch_size")
    st.select_slider(
        info.title or "",
        options=[*sorted(numbers), FULL],
        key=f"{_KEY}batch_size",
        help=info.description,
        disabled=OPTIMIZERS[_value("optimizer.name")].full_batch,
        format_func=lambda b: f"{b:,}" if b != FULL else f"full ({largest:,})" if facts else FULL,
    )


def _draw_budget() -> None:
    unit = _value("unit")
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    right.selectbox(
        "Unit of the budget",
        BUDGETS,
        key=f"{_KEY}unit",
        label_visibility="collapsed",
        on_change=_take_unit,
        format_func=lambda name: _title(f"budget.{name}"),
    )
    with left:
        _draw(f"budget.{unit}", "Train for", help="The run ends after this much training. Evaluation takes extra time.")
    if others := [f"{_value(f'budget.{u}')} {_title(f'budget.{u}')}" for u in _other_units() if _value(f"budget.{u}")]:
        st.caption(f"or {' or '.join(others)}, whichever comes first")


def _title(path: str) -> str:
    title = _field(path).title or path
    return title if title.isupper() or title == "FLOPs" else title.lower()


def _other_units() -> list[str]:
    return [unit for unit in BUDGETS if unit != _value("unit")]


def _take_unit() -> None:
    """Move the limit to the new unit; a limit that this unit already has is kept."""
    unit = _value("unit")
    _set(f"budget.{_value('unit_was')}", "")
    _set(f"budget.{unit}", _value(f"budget.{unit}") or _USUAL_BUDGET[unit])
    _set("unit_was", unit)


# --- groups that are closed at first ------------------------------------------------------------------------------


def _draw_rest() -> None:
    fine = [path for path in _knobs() if path not in _in_sight()]
    paths = [*_OF_SCHEDULE[_value("schedule")], "optimizer.weight_decay", *fine]
    with _group("Schedule and optimizer", ["schedule", *paths]):
        _draw("schedule")
        _draw_rows(paths)
    with _group("Tricks", _TRICKS):
        _draw_rows(_TRICKS)
    with _group("Stop early", ["target.value"]):
        _draw_stopping()
    with _group("Precision and execution", _EXECUTION):
        _draw_execution()
    with _group("Ranks and devices", _RANKS):
        _draw_ranks()
    with _group("Seed and evaluation", _MORE):
        _draw_rows(_MORE)


def _group(title: str, paths: list[str]) -> Any:
    """An expander, closed at first; its label counts the fields in it that are not at their defaults."""
    set_here = [path for path in paths if _typed(path) != _as_typed(path, _as_widget(path, _field(path).default))]
    label = f"{title} · {len(set_here)} set" if set_here else title
    return st.expander(label, key=f"group-{title.split()[0].lower()}")


def _draw_stopping() -> None:
    st.caption("Ends the run once two evaluations in a row have reached the target.")
    left, right = st.columns(2, wrap=False)
    with left:
        _draw("target.metric")
    with right:
        loss = _value("target.metric") == "test_loss"
        _draw(
            "target.value",
            "At most" if loss else "At least",
            placeholder="0.1" if loss else "97 %",
            help="A loss." if loss else "97 % or 0.97. Empty: the run goes on to the end of its budget.",
        )
    st.caption("Further limits: the run ends at the first it reaches.")
    _draw_rows([f"budget.{unit}" for unit in _other_units()])


def _draw_ranks() -> None:
    """Draw the fields of data-parallel training, and the share of the batch that each rank gets."""
    st.caption("Several processes share each batch, on several GPUs or cores.")
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    with left:
        _draw("parallel.num_ranks")
    with right:
        _draw("parallel.strategy")
    ranks, batch = _value("parallel.num_ranks"), _value("batch_size")
    if ranks > 1 and isinstance(batch, int):
        st.caption(f"Global batch {batch:,} = {ranks} ranks x {batch / ranks:,.4g}.")
    elif ranks > 1:
        st.caption(f"Global batch: the whole training set, an equal share for each of {ranks} ranks.")
    _draw("parallel.devices")
    _draw("parallel.timeout_s")
    st.page_link(
        "../pages/scale.py", label="Does it pay? Scale", icon=":material/hub:", query_params={"preset": "train"}
    )


def _draw_execution() -> None:
    machine = state.machine()
    _draw("precision")
    _draw("execution")
    devices, chosen = probe.device_choices(machine), _value("device")
    words = _field("device")
    st.selectbox(
        words.title or "",
        [*devices, *([] if chosen in devices else [chosen])],
        key=f"{_KEY}device",
        help=words.description,
    )
    if (cores := max(machine.cpu.usable_cores, _value("threads"))) > 1:
        threads = _field("threads")
        st.slider(threads.title or "", 1, cores, key=f"{_KEY}threads", help=threads.description)
