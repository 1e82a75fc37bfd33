"""The form of an experiment: widgets whose titles, bounds and choices come from the configuration's own fields.

A field is named by its path, `optimizer.lr` as on the command line; a model's by its family, `rnn.cell`, so that each
family keeps what was typed. The form holds the configuration it was opened with and the fields it shows; a field that
is hidden because nothing uses it keeps what that configuration said, or goes back to its default.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from dashboard import state, uploads
from engine import downloads, hardware, loading, units
from engine.config import (
    BUDGETS,
    CUSTOM,
    FULL,
    MODELS,
    USER_DATA,
    Budget,
    DatasetName,
    Infer,
    Landscape,
    Model,
    Optimizer,
    Parallel,
    RunConfig,
    Source,
    Spec,
    Target,
    as_text,
    with_overrides,
)
from engine.datasets import RELEASES, TITLES, Dataset
from engine.errors import ConfigError
from engine.presets import PRESETS

_KEY = "experiment."
_OWNERS: dict[str, type[Spec]] = {
    "": RunConfig, "source": Source, "optimizer": Optimizer, "budget": Budget, "target": Target, "parallel": Parallel,
    **MODELS,
}  # fmt: skip
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

# What a choice is called where its own word says too little.
WORDS: dict[str, dict[str, str]] = {
    "family": {"mlp": "MLP", "cnn": "CNN", "rnn": "RNN", "transformer": "Transformer"},
    "rnn.cell": {"tanh": "Plain (tanh)", "gru": "GRU", "lstm": "LSTM"},
    "rnn.readout": {"last": "Last step", "all": "All steps"},
    "data": {str(name): title for name, title in TITLES.items()},
    "optimizer.name": {
        "gd": "Gradient descent", "sgd": "SGD", "momentum": "SGD, momentum", "nesterov": "SGD, Nesterov",
        "adagrad": "Adagrad", "rmsprop": "RMSprop", "adam": "Adam", "adamw": "AdamW", "muon": "Muon",
    },
    "schedule": {
        "constant": "Constant", "cosine": "Cosine", "step": "Steps down", "one-cycle": "One cycle", "warm-up": "Warm-up",
    },
    "target.metric": {"test_accuracy": "Test accuracy", "test_loss": "Test loss"},
    "precision": {"fp32": "FP32", "tf32": "TF32", "bf16": "BF16", "fp16": "FP16"},
    "execution": {
        "eager": "Fast loop (eager)", "dataloader": "Tutorial loop (DataLoader)", "compiled": "Compiled",
        "cuda-graph": "CUDA graph",
    },
    "parallel.strategy": {
        "ddp": "DDP", "fsdp": "FSDP (fully_shard)", "data-parallel": "nn.DataParallel (historical)",
    },
}  # fmt: skip

# A usual value to start from, where another optimizer's would be far off. gd and momentum as in the presets, nesterov like
# momentum, sgd without it a little higher; Adagrad, Adam, AdamW and Muon are torch.optim's defaults, RMSprop is Keras's.
USUAL_LR = {
    "gd": 0.5, "sgd": 0.05, "momentum": 0.02, "nesterov": 0.02, "adagrad": 0.01, "rmsprop": 1e-3, "adam": 1e-3,
    "adamw": 1e-3, "muon": 1e-3,
}  # fmt: skip
_USUAL_BUDGET = {"steps": "1000", "epochs": "10", "samples": "50000", "seconds": "10", "flops": "1e11"}

# Which fields are used by a choice.
_OF_DATA = {
    "text": ["source.path", "source.seq_len"],
    "synthetic": ["source.shape", "source.num_classes", "source.num_examples"],
    "csv": ["source.path", "source.label"],
    "numpy": ["source.path"],
    "images": ["source.path"],
}
_READS_TEXT = ("rnn", "transformer")
_NOT_OF_TEXT = {"rnn.bidirectional", "rnn.readout", "transformer.patch_size"}
_BETAS = ["optimizer.beta1", "optimizer.beta2"]
_OF_OPTIMIZER = {
    "momentum": ["optimizer.momentum"],
    "nesterov": ["optimizer.momentum"],
    "rmsprop": ["optimizer.alpha"],
    "adam": _BETAS,
    "adamw": _BETAS,
    "muon": ["optimizer.momentum", *_BETAS],
}
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

# What the arrows of a number add, where one is too little.
_STEPS = {
    "rnn.hidden_size": 32, "transformer.d_model": 32, "source.seq_len": 16, "source.num_examples": 1_024,
    "warmup_steps": 50,
}  # fmt: skip

_EMPTY = {
    "mlp.hidden": "none: softmax regression",
    "source.label": "the last column",
    "parallel.devices": "one of its own for each",
}  # what an empty field means


class Unfinished(ConfigError):
    """Nothing is wrong yet: the form waits for an answer."""


# --- the form and its configuration -------------------------------------------------------------------------------


def experiment_form(preset: str, config: RunConfig) -> tuple[str, RunConfig]:
    """Draw the form, at first as `config` says; returns the preset and configuration it now shows.

    Raises ConfigError, in the same sentence as on the command line, for what cannot be run, and Unfinished while a
    file is still to be chosen.
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
    """The form's experiment, or the given one with the sentence that says what is wrong in the form."""
    try:
        return *experiment_form(preset, config), None
    except ConfigError as error:
        return preset, config, error


def current() -> tuple[str, RunConfig]:
    """The preset and configuration the form holds at this moment, a change that was just made included.

    A button's callback runs before the page is drawn anew: it must read the widgets, not what was drawn last.
    """
    if _value("data") in USER_DATA and not _value("source.path").strip():
        what = "Type the folder's path" if _value("data") == "images" else "Upload a file or type its path"
        raise Unfinished(f"{TITLES[_value('data')]}: nothing is chosen yet.", fix=f"{what}, under Data.")
    family = f"model.family={_value('family')}"
    return _value("preset"), with_overrides(_what_is_hidden(), [family, *_assignments(_shown())])


def is_shown() -> bool:
    """Whether the form holds an experiment; Streamlit forgets a page's widgets when another page is shown."""
    return f"{_KEY}preset" in st.session_state


def show_in_form(preset: str, config: RunConfig) -> None:
    """Make the form show another experiment from the next time it is drawn."""
    for key in [k for k in st.session_state if str(k).startswith(_KEY)]:
        del st.session_state[key]
    _fill(preset, config)


def _fill(preset: str, config: RunConfig) -> None:
    """The configuration as the widgets' own values. The form is one of training, whatever the run did whose link it shows."""
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
    """What the form was opened with, as far as the choices that were made since still use it."""
    opened: RunConfig = _value("opened")
    changes: dict[str, Any] = {}
    if _value("data") != opened.data:
        changes |= {"source": Source(), "model": type(opened.model)()}
    if _value("optimizer.name") != opened.optimizer.name:
        changes["optimizer"] = Optimizer()
    if _value("schedule") != opened.schedule:
        changes |= {
            name: RunConfig.model_fields[name].default for name in _OF_SCHEDULE["cosine"] + _OF_SCHEDULE["step"]
        }
    return opened.model_copy(update=changes)


def _shown() -> list[str]:
    """The fields the form shows for what is chosen in it."""
    name = _value("optimizer.name")
    return [
        *_model_fields(), "data", *_OF_DATA.get(_value("data"), []),
        "optimizer.name", "optimizer.lr", "optimizer.weight_decay", *_OF_OPTIMIZER.get(name, []),
        "schedule", *_OF_SCHEDULE[_value("schedule")], "batch_size",
        *(f"budget.{unit}" for unit in BUDGETS), "target.metric", "target.value",
        *_TRICKS, *_EXECUTION, *_RANKS, *_MORE,
    ]  # fmt: skip


def _model_fields() -> list[str]:
    family = _value("family")
    paths = [f"{family}.{name}" for name in MODELS[family].model_fields if name != "family"]
    return [path for path in paths if _value("data") != "text" or path not in _NOT_OF_TEXT]


def _assignments(paths: list[str]) -> list[str]:
    """The widgets' values in the words of the command line."""
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
    """Streamlit forgets the value of a widget that is not drawn: hidden layers while the form shows LeNet."""
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
    """A field's value as its widget holds it: numbers with a point, lists and what may be none or a word are typed."""
    if path == "batch_size" or _is_choice(path) or _field(path).annotation in (bool, int, str):
        return value
    return ", ".join(map(as_text, value)) if isinstance(value, tuple) else "" if value is None else as_text(value)


def _typed(path: str) -> str:
    """A widget's value as one types it on the command line."""
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
    """A field as the widget its type asks for."""
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
    """Two fields beside each other; one that is left over, and switches below, by themselves."""
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
    data = list(TITLES)
    ordered = sorted(PRESETS, key=lambda name: data.index(PRESETS[name].config.data))
    st.selectbox(
        "Start from", ordered, format_func=lambda n: PRESETS[n].title, key=f"{_KEY}preset", on_change=_take_preset
    )
    st.caption(PRESETS[_value("preset")].teaches)


def _take_preset() -> None:
    preset = _value("preset")
    _fill(preset, PRESETS[preset].config)


def _draw_model() -> None:
    text = _value("data") == "text"
    names = WORDS["family"]
    st.segmented_control(
        "Model", [f for f in MODELS if not text or f in _READS_TEXT], format_func=names.__getitem__,
        key=f"{_KEY}family", required=True, width="stretch", wrap=False,
        help="Text is read in order: by a Transformer or an RNN." if text else None,
    )  # fmt: skip
    _draw_size()
    paths = _model_fields()
    if len(paths) == 1:
        _draw(paths[0])
    else:
        _draw_rows(paths)


def _draw_size() -> None:
    """The dial stands where the dimensions below put it; custom is where no size has them."""
    size = _size()
    _set("size", size)
    st.segmented_control(
        "Size", [*_sizes(), *([CUSTOM] if size == CUSTOM else [])], format_func=str.capitalize, key=f"{_KEY}size",
        required=True, width="stretch", wrap=False, on_change=_take_size,
        help="Sets every dimension below at once. Dimensions of your own make it custom.",
    )  # fmt: skip


def _sizes() -> dict[str, Any]:
    return {str(size): dimensions for size, dimensions in MODELS[_value("family")].sizes.items()}


def _size() -> str:
    try:
        family = f"model.family={_value('family')}"
        model: Model = with_overrides(RunConfig(), [family, *_assignments(_model_fields())]).model
    except ConfigError:  # said beside the form
        return CUSTOM
    return model.size


def _take_size() -> None:
    for name, value in _sizes().get(_value("size"), {}).items():
        path = f"{_value('family')}.{name}"
        _set(path, _as_widget(path, value))


# --- data ---------------------------------------------------------------------------------------------------------


def _draw_data() -> Dataset | None:
    """The data set and the fields it needs; returns what is known of it, or None while that is nothing."""
    data: DatasetName = _value("data")
    facts = _facts(data)
    _draw("data", on_change=_take_data, help=facts.source if facts and facts.source else _field("data").description)
    if facts:
        st.caption(_in_words(data, facts))
    paths = _OF_DATA.get(data, [])
    if "source.path" in paths:
        with _group("Your own text", ["source.path"]) if data == "text" else st.container():
            _draw_file(data)
    _draw_rows([path for path in paths if path != "source.path"])
    return facts


def _draw_file(data: DatasetName) -> None:
    if data in uploads.TYPES and state.client().may("submit"):
        st.file_uploader(
            "Your file", type=list(uploads.TYPES[data]), key=f"upload.{data}",
            on_change=_take_upload, args=(data,), help="Kept on this machine, under the hash of its content.",
        )  # fmt: skip
    placeholder = {"text": "Python's documentation", "images": "/home/me/pictures"}.get(data, "/home/me/data")
    label = "Folder, one subfolder per class" if data == "images" else "or its path on this machine"
    _draw("source.path", label, placeholder=placeholder, on_change=_set, args=("new_data", True))


def _take_upload(data: str) -> None:
    if file := st.session_state[f"upload.{data}"]:
        try:
            _set("source.path", str(uploads.keep(data, file.getvalue())))
            _set("new_data", True)
        except ConfigError as error:
            st.session_state["train.refused"] = error


def _take_data() -> None:
    """Each data set has its own file; a model that cannot read the new one makes way."""
    data, before, files = _value("data"), _value("data_was"), _value("files")
    files[before] = _value("source.path"), _value("source.label")
    for path, value in zip(("source.path", "source.label"), files.get(data, ("", "")), strict=True):
        _set(path, value)
    _set("data_was", data)
    _set("new_data", True)
    if data == "text" and _value("family") not in _READS_TEXT:
        st.toast(f"Text is read in order: the model changed from {WORDS['family'][_value('family')]} to Transformer.")
        _set("family", "transformer")


def _facts(data: DatasetName) -> Dataset | None:
    try:
        source = with_overrides(RunConfig(), _assignments(_OF_DATA.get(data, []))).source
        if not source.path:
            return None if data in USER_DATA else loading.facts(data, source)
        if not state.may_read(source.path):
            return None
        with st.spinner("Reading your file …", show_time=True):
            return loading.facts(data, source)
    except ConfigError:  # said beside the form
        return None


def _in_words(data: DatasetName, facts: Dataset) -> str:
    """What a data set is, in a line."""
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
    """What the first run will fetch; empty when it is all here."""
    release, folder = RELEASES.get(data), downloads.cache_folder()
    if release is None or (folder / f"{release.name}.npz").exists():
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
    """The optimizer's own field that is no fine-tuning."""
    return [path for path in _OF_OPTIMIZER.get(_value("optimizer.name"), []) if path == "optimizer.momentum"]


def _take_optimizer() -> None:
    """Another optimizer starts from a learning rate that is usual for it; gd takes the whole set, the others batches."""
    name = _value("optimizer.name")
    _set("optimizer.lr", as_text(USUAL_LR[name]))
    if name == "gd":
        _set("batch_size", FULL)
    elif _value("batch_size") == FULL:
        _set("batch_size", RunConfig.model_fields["batch_size"].default)


def _draw_batch_size(facts: Dataset | None) -> None:
    largest = facts.train_examples if facts else 4_096
    if facts and _value("new_data"):  # a few examples should not be refused for a batch nobody chose for them
        _set("new_data", False)
        if _value("batch_size") != FULL and _value("batch_size") > largest:
            _set("batch_size", 2 ** (largest.bit_length() - 1))
    numbers = {2**i for i in range(largest.bit_length())} | {v for v in [_value("batch_size")] if v != FULL}
    info = _field("batch_size")
    st.select_slider(
        info.title or "", options=[*sorted(numbers), FULL], key=f"{_KEY}batch_size", help=info.description,
        disabled=_value("optimizer.name") == "gd",
        format_func=lambda b: f"{b:,}" if b != FULL else f"full ({largest:,})" if facts else FULL,
    )  # fmt: skip


def _draw_budget() -> None:
    unit = _value("unit")
    left, right = st.columns([2, 3], vertical_alignment="bottom", wrap=False)
    right.selectbox(
        "Unit of the budget", BUDGETS, key=f"{_KEY}unit", label_visibility="collapsed", on_change=_take_unit,
        format_func=lambda name: _title(f"budget.{name}"),
    )  # fmt: skip
    with left:
        _draw(f"budget.{unit}", "Train for", help="The run ends here. Evaluation comes on top.")
    if others := [f"{_value(f'budget.{u}')} {_title(f'budget.{u}')}" for u in _other_units() if _value(f"budget.{u}")]:
        st.caption(f"or {' or '.join(others)}, whichever comes first")


def _title(path: str) -> str:
    title = _field(path).title or path
    return title if title.isupper() or title == "FLOPs" else title.lower()


def _other_units() -> list[str]:
    return [unit for unit in BUDGETS if unit != _value("unit")]


def _take_unit() -> None:
    """Another unit replaces the limit; one that was set beside it becomes the first."""
    unit = _value("unit")
    _set(f"budget.{_value('unit_was')}", "")
    _set(f"budget.{unit}", _value(f"budget.{unit}") or _USUAL_BUDGET[unit])
    _set("unit_was", unit)


# --- what a first look can do without -----------------------------------------------------------------------------


def _draw_rest() -> None:
    fine = [path for path in _OF_OPTIMIZER.get(_value("optimizer.name"), []) if path not in _in_sight()]
    with _group(
        "Schedule and optimizer", ["schedule", *_OF_SCHEDULE[_value("schedule")], "optimizer.weight_decay", *fine]
    ):
        _draw("schedule")
        _draw_rows([*_OF_SCHEDULE[_value("schedule")], "optimizer.weight_decay", *fine])
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
    """Closed until it is opened; its label says what in it is not as usual."""
    set_here = [path for path in paths if _typed(path) != _as_typed(path, _as_widget(path, _field(path).default))]
    return st.expander(f"{title} · {len(set_here)} set" if set_here else title, key=f"group-{title.split()[0].lower()}")


def _draw_stopping() -> None:
    st.caption("Ends the run once two evaluations in a row have reached the target.")
    left, right = st.columns(2, wrap=False)
    with left:
        _draw("target.metric")
    with right:
        loss = _value("target.metric") == "test_loss"
        _draw("target.value", "At most" if loss else "At least", placeholder="0.1" if loss else "97 %",
              help="A loss." if loss else "97 % or 0.97. Empty: the run goes on to the end of its budget.")  # fmt: skip
    st.caption("Further limits: the run ends at the first it reaches.")
    _draw_rows([f"budget.{unit}" for unit in _other_units()])


def _draw_ranks() -> None:
    """Several processes that share each batch, and what of it each of them gets."""
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
    devices, chosen = hardware.device_choices(machine), _value("device")
    words = _field("device")
    st.selectbox(
        words.title or "", [*devices, *([] if chosen in devices else [chosen])], key=f"{_KEY}device",
        help=words.description,
    )  # fmt: skip
    if (cores := max(machine.cpu.usable_cores, _value("threads"))) > 1:
        threads = _field("threads")
        st.slider(threads.title or "", 1, cores, key=f"{_KEY}threads", help=threads.description)
