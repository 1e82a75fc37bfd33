"""Pieces of the page Inference: what answers and which cells are measured, its price before it runs, and the live view.

`run=ID` in the address is the measurement that is looked at, `of=ID` the trained run whose weights are to answer,
`limit` the latency limit in ms, `by` the quantile held to it, `cell` the cell that is open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import streamlit as st

from dashboard import state
from dashboard.api.inference_cells import places
from dashboard.widgets import copy_buttons, run_parts
from dashboard.widgets.component import addresses, nothing, stub
from dashboard.widgets.run_actions import run_actions
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.base import PrecisionName
from engine.config.inference import infer_config
from engine.config.presets import DEFAULT_PRESET, PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe, model_in_words
from engine.config.tasks import RUNTIMES, Cell, Infer, RuntimeName
from engine.events.base import TERMINAL
from engine.hardware import probe
from engine.planning import request_checks
from engine.store.listing import RunRow
from engine.store.run import Run
from engine.studies.inference import RUNTIME_WORDS, Quantile
from engine.studies.inference_runtimes import offered
from engine.studies.inference_time import known_latencies, predicted_seconds, request_seconds

View = Literal["Matrix", "Software", "Arrivals"]
VIEWS: tuple[View, ...] = get_args(View)
WORDS: Mapping[View, str] = {
    "Matrix": "Which batch size and how many threads? Each cell answers requests one after another.",
    "Software": "The same weights run in other ways: what each gains, and what it costs in accuracy, size and start.",
    "Arrivals": "Requests arrive by chance, whether the last one is answered or not: waiting counts, as it does for a user.",
}
_SIZES = tuple(2**n for n in range(11))  # 1 to 1,024
_TEXT_SIZES = tuple(2**n for n in range(7))  # each answer of a decoder is many passes
_LIMIT_MS = 5.0
_OFFERED = 40  # trained runs to choose from
_READ = 200  # of the newest runs, to find them
_FILE = "file"
_GONE = {"failed", "cancelled", "interrupted"}
_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.1)  # of what it can answer: where queues begin, and beyond
_MOST_RATES = 12
_KEPT = ("infer.view", "infer.limit", "infer.by")
_KEPT_TEXTS = ("infer.of", "infer.knob.", "infer.file.")


# --- what stays ---------------------------------------------------------------------------------------------------


def keep_choices() -> None:
    """What was chosen is still so after a look at another page, where Streamlit forgets what is not drawn."""
    kept: dict[str, Any] = st.session_state.setdefault("infer.kept", {})
    texts = {key for key in [*st.session_state, *kept] if str(key).startswith(_KEPT_TEXTS)}
    for key in [*_KEPT, *map(str, texts)]:
        if key in st.session_state:
            kept[key] = st.session_state[key]
        if key in kept:  # set anew each time: a browser forgets what a view between two did not draw
            st.session_state[key] = kept[key]


def take_address() -> None:
    """A link typed or followed sets what it says; the page's own changes come back as the same link and change nothing."""
    params = dict(st.query_params) or st.session_state.get("infer.link", {})
    if params == st.session_state.get("infer.link") and "infer.view" in st.session_state:
        return
    run, of = state.open_run(params.get("run")), params.get("of")
    if run is not None and run.config.task != "infer":  # somebody asks how fast this run's net answers
        of, run = run.run_id, None
    view = params.get("view")
    st.session_state["infer.view"] = view if view in VIEWS else view_of(run.config) if run else "Matrix"
    shown = st.session_state["infer.shown"] = dict[str, str | None]()
    if run is not None:
        shown[st.session_state["infer.view"]] = run.run_id
    st.session_state["infer.missing"] = bool(params.get("run")) and run is None and of is None
    if run is not None:
        st.session_state["infer.of"] = _weights_of(run.config)
    elif of:
        st.session_state["infer.of"] = of
    st.session_state["infer.limit"] = _number(params.get("limit"), _LIMIT_MS)
    by = params.get("by")
    st.session_state["infer.by"] = by if by in get_args(Quantile) else "p99"
    st.session_state["infer.cell"] = params.get("cell")


def _number(text: str | None, otherwise: float) -> float:
    try:
        value = float(text or "")
    except ValueError:
        return otherwise
    return value if math.isfinite(value) and value > 0 else otherwise


def put_address(view: View, run: Run | None) -> None:
    """The address says what is looked at."""
    params: dict[str, str] = {"view": view}
    if run is not None:
        params["run"] = run.run_id
    elif (of := st.session_state.get("infer.of", "")) and of not in {_FILE} and not of.startswith("preset:"):
        params["of"] = of
    if (limit := st.session_state["infer.limit"]) != _LIMIT_MS:
        params["limit"] = f"{limit:g}"
    if (by := st.session_state["infer.by"]) != "p99":
        params["by"] = by
    if run is not None and (cell := st.session_state.get("infer.cell")):
        params["cell"] = cell
    if params != dict(st.query_params):
        st.query_params.from_dict(params)
    st.session_state["infer.link"] = params


def view_of(config: RunConfig) -> View:
    """The view a measurement belongs to."""
    if config.infer.load == "open":
        return "Arrivals"
    forms = {(cell.runtime, cell.precision) for cell in config.cells}
    return "Software" if len({runtime for runtime, _ in forms}) > 1 else "Matrix"


# --- which weights answer -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weights:
    """What answers: the net, and the run that trained it or the file that holds it."""

    config: RunConfig  # of the net, its data and device
    run_id: str = ""
    file: str = ""

    @property
    def choice(self) -> str:
        return self.run_id or (_FILE if self.file else "")


def choose_weights() -> Weights:
    """A trained run, newest first, a preset with fresh weights, or a file. Raises ConfigError while a file is to be named."""
    rows = trained_runs()
    linked = st.session_state.get("infer.of", "")
    by_id = {row.run_id: row for row in rows}
    presets = [f"preset:{name}" for name, preset in PRESETS.items() if preset.config.task_facts.trains_one_model]
    options = [*by_id, _FILE, *presets]
    if linked not in options:
        if linked and not linked.startswith("preset:"):
            st.warning(_why_not(linked), icon=":material/warning:")
        st.session_state["infer.of"] = next(iter(by_id), f"preset:{DEFAULT_PRESET}")
    names = {run_id: _row_in_words(row) for run_id, row in by_id.items()}
    names |= {_FILE: "A .safetensors file of yours"}
    names |= {key: f"Fresh weights: {PRESETS[key.partition(':')[2]].title}" for key in presets}
    chosen = st.selectbox(
        "Weights", options, key="infer.of", format_func=names.__getitem__, on_change=_take_weights,
        help="Finished training runs, newest first: their weights answer, and accuracy is theirs. Fresh weights answer as fast "
        "and guess.",
    )  # fmt: skip
    if chosen in by_id:
        st.caption(run_parts.literal(describe(by_id[chosen].config)))
        return Weights(by_id[chosen].config, run_id=chosen)
    if chosen == _FILE:
        return _file()
    return Weights(preset_config(chosen.partition(":")[2]))


def _file() -> Weights:
    st.session_state.setdefault("infer.file.model", DEFAULT_PRESET)
    trainings = [name for name, preset in PRESETS.items() if preset.config.task_facts.trains_one_model]
    name = st.selectbox(
        "Model", trainings, key="infer.file.model", format_func=lambda n: PRESETS[n].title,
        help="The net these weights are of, and the data it answers for.",
    )  # fmt: skip
    info = Infer.model_fields["weights"]
    path = st.text_input(
        info.title or "", key="infer.file.path", help=info.description, placeholder="/home/me/model.safetensors"
    )
    if not path.strip():
        raise ConfigError("No weights file is named yet.", fix="Type the path of a .safetensors file on this machine.")
    return Weights(preset_config(name), file=path.strip())


def trained_runs() -> list[RunRow]:
    """Finished training runs whose weights are still there, the newest first."""
    store, found = state.store(), list[RunRow]()
    for row in store.rows(limit=_READ):
        if _can_answer(row):
            found.append(row)
        if len(found) == _OFFERED:
            break
    wanted = st.session_state.get("infer.of", "")  # a link may name an older one
    if wanted and wanted not in {row.run_id for row in found} and store.has(wanted):
        older = store.row(wanted)
        found += [older] if older and _can_answer(older) else []
    return found


def _can_answer(row: RunRow) -> bool:
    file = state.store().runs / row.run_id / request_checks.WEIGHTS_FILE
    return row.config.task_facts.trains_one_model and row.status == "finished" and file.is_file()


def _row_in_words(row: RunRow) -> str:
    """What tells it from others comes first: a narrow box cuts the rest."""
    config, accuracy = row.config, row.summary.test_accuracy
    right = [units.accuracy(accuracy)] if accuracy is not None else []
    name = [visible(row.name, 30)] if row.name else []
    net = model_in_words(config.model, config.data)
    return " · ".join([*name, net, config.data, *right, units.age(time.time() - row.created), row.run_id[:6]])


def _why_not(run_id: str) -> str:
    row = state.store().row(run_id) if state.store().has(run_id) else None
    if row is None:
        return "The run whose weights were to answer is not in this store. What was measured of it stands."
    if not row.config.task_facts.trains_one_model:
        return "The run of this link trained nothing: it has no weights."
    why = "it is not over yet" if row.status not in TERMINAL else f"it ended as {row.status}, or its file is gone"
    return f"The run of this link has no weights: {why}. Choose a finished one."


def _weights_of(config: RunConfig) -> str:
    """The choice a measurement was made with."""
    if config.infer.run:
        return config.infer.run
    if config.infer.weights:
        st.session_state["infer.file.path"] = config.infer.weights
    alike = [
        name for name, preset in PRESETS.items()
        if preset.config.task_facts.trains_one_model and (preset.config.model, preset.config.data) == (config.model, config.data)
    ]  # fmt: skip
    if config.infer.weights:
        st.session_state["infer.file.model"] = alike[0] if alike else DEFAULT_PRESET
        return _FILE
    return f"preset:{alike[0] if alike else DEFAULT_PRESET}"


def _take_weights() -> None:
    """Other weights: what was measured of them before is shown, or nothing."""
    st.session_state["infer.missing"] = False
    _look_up()


def _look_up() -> None:
    st.session_state["infer.shown"] = {}
    st.session_state["infer.cell"] = None


def newest_of(choice: str, view: View) -> str | None:
    """The newest measurement of some weights for a view that stands or is on its way."""
    for row in state.store().rows(limit=_READ):
        if row.config.task != "infer" or row.status in _GONE or view_of(row.config) != view:
            continue
        name = choice.partition(":")[2] if choice.startswith("preset:") else ""
        if row.config.infer.run == choice or (name and _is_fresh(row.config, preset_config(name))):
            return row.run_id
    return None


def _is_fresh(config: RunConfig, preset: RunConfig) -> bool:
    mine = (config.model, config.data, config.source)
    return not serving_origin(config) and mine == (preset.model, preset.data, preset.source)


def serving_origin(config: RunConfig) -> str:
    return config.infer.run or config.infer.weights


# --- what is measured ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What the form asks for: one run, or one per offered rate."""

    configs: tuple[RunConfig, ...]
    predicted_s: float
    how: str


def form(view: View) -> InferenceRequest:
    """The card that says what is measured; raises EngineError with the sentence that says why it cannot be."""
    weights = choose_weights()
    device = _device(weights.config)
    base = weights.config.model_copy(update={"device": device})
    if base.is_text:
        st.caption("A decoder reads a prompt and answers character by character: both are timed apart.")
    with st.container(key="infer-cells"):
        cells = {"Matrix": _matrix_cells, "Software": _software_cells, "Arrivals": _arrival_cells}[view](base)
    rates = _rates(weights, base, cells[0]) if view == "Arrivals" and cells else []
    choices = _more(view, base)
    if not cells:
        raise ConfigError("No cell is chosen.", fix="Choose at least one, or the corner for all of them.")
    return _checked(weights, base, cells, rates, choices)


def _device(config: RunConfig) -> str:
    """Asked only where there is more than one."""
    choices = probe.device_choices(state.machine())
    if len(choices) == 1:
        return choices[0]
    default = config.device if config.device in choices else choices[-1]
    st.session_state.setdefault("infer.knob.device", default)
    return str(st.segmented_control("Device", choices, key="infer.knob.device", required=True) or default)


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all usable cores."""
    return sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores})


def _usable() -> int:
    return state.machine().cpu.usable_cores


def _matrix_cells(base: RunConfig) -> list[Cell]:
    """Batch sizes down, threads across; on a GPU precisions."""
    on_gpu, text = base.device != "cpu", base.is_text
    sizes = _TEXT_SIZES if text else _SIZES
    columns: list[Any] = ["fp32", "tf32", "bf16", "fp16"] if on_gpu else list(thread_counts(_usable()))
    every = sizes if len(columns) <= 4 else sizes[::2]  # of many threads in powers of four
    default = [f"{size}x{column}" for size in every for column in (columns[:1] if on_gpu else columns)]
    kind = f"{'text' if text else 'rows'}-{'gpu' if on_gpu else 'cpu'}"
    st.markdown(":small[Cells: batch size down, " + ("precision" if on_gpu else "threads") + " across]")
    chosen = pick(
        [{"id": str(size), "label": f"{size:,}"} for size in sizes],
        [{"id": str(c), "label": _column(c), "name": _column_in_words(c)} for c in columns],
        default=default, key=f"infer.pick.{kind}",
    )  # fmt: skip
    runtime = _kept_runtime(base)
    precision = cast(PrecisionName, "fp32" if on_gpu else st.session_state.get("infer.knob.precision", "fp32"))
    pairs = [key.split("x") for key in chosen]
    if on_gpu:
        return [Cell(batch_size=int(b), precision=cast(Any, p), runtime=runtime) for b, p in pairs]
    return [Cell(batch_size=int(b), threads=int(n), precision=precision, runtime=runtime) for b, n in pairs]


def _column(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value} thread{'' if value == 1 else 's'}"


def _column_in_words(value: int | str) -> str:
    return _column(value)


def pick(
    rows: Sequence[Mapping[str, str]], columns: Sequence[Mapping[str, str]], *, default: Sequence[str], key: str
) -> list[str]:
    """Cells chosen one by one, `ROWxCOLUMN`, in the order of the rows."""
    every = [f"{row['id']}x{column['id']}" for row in rows for column in columns]
    kept = [cell for cell in st.session_state.get(f"{key}.kept", default) if cell in every]
    mount = st.components.v2.component("isoflop_inference_pick", js=stub("inference.js", "pick"), isolate_styles=False)
    result = mount(
        key=key,
        data={"key": key, "rows": rows, "columns": columns, "corner": "all", "chosen": kept, "disabled": False}
        | addresses(),
        default={"cells": kept},
        on_cells_change=nothing,
    )
    said = result.get("cells")
    chosen = set(said if isinstance(said, list) else kept) & set(every)  # as it comes from a browser
    st.session_state[f"{key}.kept"] = [cell for cell in every if cell in chosen]
    return st.session_state[f"{key}.kept"]


def _software_cells(base: RunConfig) -> list[Cell]:
    sizes = _TEXT_SIZES if base.is_text else _SIZES
    st.session_state.setdefault("infer.knob.runtimes", _offered_here(base))
    runtimes = st.pills(
        "Software", list(RUNTIMES), selection_mode="multi", key="infer.knob.runtimes", format_func=_runtime_in_words,
        help=Cell.model_fields["runtime"].description,
    )  # fmt: skip
    st.session_state.setdefault("infer.knob.sizes", [1, sizes[-5]])
    chosen = st.pills(
        "Batch sizes", list(sizes), selection_mode="multi", key="infer.knob.sizes", format_func=lambda b: f"{b:,}"
    )
    threads = _threads_knob(base)
    ordered = [runtime for runtime in RUNTIMES if runtime in runtimes]
    return [Cell(batch_size=b, threads=threads, runtime=r) for r in ordered for b in sorted(chosen)]


def _offered_here(base: RunConfig) -> list[RuntimeName]:
    """All but what this net cannot use, and but compiling, whose price is minutes."""
    config = infer_config(base)
    return [r for r in RUNTIMES if r != "compiled" and not offered(config, Cell(runtime=r))]


def _runtime_in_words(runtime: RuntimeName) -> str:
    return RUNTIME_WORDS[runtime]


def _threads_knob(base: RunConfig) -> int:
    counts = thread_counts(_usable())
    if base.device != "cpu" or len(counts) == 1:
        return 1
    st.session_state.setdefault("infer.knob.threads", 1)
    info = Cell.model_fields["threads"]
    return int(
        st.segmented_control(info.title or "", counts, key="infer.knob.threads", required=True, help=info.description)
        or 1
    )


def _arrival_cells(base: RunConfig) -> list[Cell]:
    info = Cell.model_fields["batch_size"]
    st.session_state.setdefault("infer.knob.batch", 1)
    size = st.number_input(info.title or "", 1, 65_536, key="infer.knob.batch", help=info.description)
    return [Cell(batch_size=int(size), threads=_threads_knob(base), runtime=_kept_runtime(base))]


def _kept_runtime(base: RunConfig) -> RuntimeName:
    return cast(RuntimeName, st.session_state.get("infer.knob.runtime", "inference_mode"))


def _rates(weights: Weights, base: RunConfig, cell: Cell) -> list[float]:
    """Requests per second, one run each; at first shares of what this cell was measured, or is estimated, to answer."""
    config = _assembled(weights, base, [cell], {})
    known = _known(config)
    request_s = known.get(cell)
    origin = "measured"
    if request_s is None:
        plan = state.check(config)
        request_s, origin = request_seconds(config, plan, cell), "estimated"
    rates = [float(f"{share / request_s:.2g}") for share in _SHARES]
    text = ", ".join(f"{rate:g}" for rate in rates)
    key = f"infer.knob.rates.{text}"
    st.session_state.setdefault(key, text)
    info = Infer.model_fields["rate"]
    typed = st.text_input(
        "Rates (requests/s)", key=key, help=f"{info.description} Each rate is a run of its own.", max_chars=200
    )
    st.caption(
        run_parts.literal(f"At first {', '.join(f'{100 * s:g}' for s in _SHARES)} % of what it answers one after another: "
                      f"{units.count(round(1 / request_s))}/s, {origin}.")
    )  # fmt: skip
    return parse_rates(typed)


def parse_rates(text: str) -> list[float]:
    """Raises ConfigError for what is no rate."""
    words = text.replace(",", " ").split()
    try:
        rates = sorted({float(word) for word in words})
    except ValueError:
        raise ConfigError(
            f"Rates {text!r} are not numbers.", fix="Write requests per second, such as 50, 100, 200."
        ) from None
    if not 0 < len(rates) <= _MOST_RATES or not all(math.isfinite(r) and 0 < r <= 1e6 for r in rates):
        raise ConfigError(
            f"Rates {text!r} are not allowed.",
            fix=f"Write 1 to {_MOST_RATES} of them, each above 0 and at most 1,000,000.",
        )
    return rates


def _more(view: View, base: RunConfig) -> dict[str, Any]:
    """What a first look can do without; fields of `Infer`."""
    choices: dict[str, Any] = {"seconds": _seconds_knob(view)}
    with st.expander("More", icon=":material/tune:"):
        if view != "Software":
            names = list(RUNTIMES)
            st.session_state.setdefault("infer.knob.runtime", "inference_mode")
            info = Cell.model_fields["runtime"]
            st.selectbox(
                info.title or "", names, key="infer.knob.runtime", format_func=_runtime_in_words, help=info.description
            )
        if view == "Matrix" and base.device == "cpu":
            st.session_state.setdefault("infer.knob.precision", "fp32")
            info = Cell.model_fields["precision"]
            st.selectbox(info.title or "", ["fp32", "bf16", "fp16"], key="infer.knob.precision", help=info.description)
        # At thousands of arrivals a second the usual number of requests would end a rate before its queue has grown.
        choices["requests"] = _whole(
            "requests", default=1_000_000 if view == "Arrivals" else None, key=f"requests.{view}"
        )
        for name in ("rounds", "warm_up"):
            choices[name] = _whole(name)
        if base.is_text:
            for name in ("prompt_len", "new_tokens"):
                choices[name] = _whole(name)
            info = Infer.model_fields["cache"]
            st.session_state.setdefault("infer.knob.cache", True)
            choices["cache"] = st.toggle(info.title or "", key="infer.knob.cache", help=info.description)
        else:
            info = Infer.model_fields["shape"]
            shape = st.text_input(
                info.title or "",
                key="infer.knob.shape",
                help=info.description,
                placeholder="the data's own",
                max_chars=40,
            )
            choices["shape"] = parse_shape(shape)
    return choices


def parse_shape(text: str) -> tuple[int, ...]:
    """1x28x28, 1 28 28 or 1, 28, 28. Raises ConfigError for what is no shape."""
    words = text.replace("x", " ").replace(",", " ").replace("×", " ").split()
    if not all(word.isdecimal() and word.isascii() and len(word) < 6 for word in words):
        raise ConfigError(
            f"Input shape {text!r} is not allowed.", fix="Write whole numbers, such as 1x28x28, or nothing."
        )
    return tuple(map(int, words))


def _seconds_knob(view: View) -> float:
    info = Infer.model_fields["seconds"]
    key = f"infer.knob.seconds.{view}"
    st.session_state.setdefault(key, 2.0 if view == "Arrivals" else info.default)
    return float(
        st.number_input(
            "Seconds per rate" if view == "Arrivals" else "Seconds per cell",
            0.05,
            600.0,
            step=0.5,
            key=key,
            help=info.description,
            format="%g",
        )
    )


def _whole(name: str, *, default: int | None = None, key: str = "") -> int:
    info, key = Infer.model_fields[name], f"infer.knob.{key or name}"
    low, high = (next(getattr(m, b) for m in info.metadata if hasattr(m, b)) for b in ("ge", "le"))
    st.session_state.setdefault(key, info.default if default is None else default)
    return int(st.number_input(info.title or "", low, high, key=key, help=info.description))


def _assembled(weights: Weights, base: RunConfig, cells: Sequence[Cell], choices: Mapping[str, Any]) -> RunConfig:
    """All usable cores are taken, though a cell may use one: a run beside it would be measured with it."""
    cells = sorted(cells, key=lambda c: (RUNTIMES.index(c.runtime), c.precision, c.threads, c.batch_size))
    threads = max([_usable(), *(cell.threads for cell in cells)]) if base.device == "cpu" else 1
    return infer_config(
        base, weights.run_id, threads=threads, batch_size=cells[0].batch_size,
        cells=[cell.model_dump() for cell in cells], weights=weights.file, **choices,
    )  # fmt: skip


def _checked(
    weights: Weights, base: RunConfig, cells: Sequence[Cell], rates: Sequence[float], choices: Mapping[str, Any]
) -> InferenceRequest:
    loads: list[dict[str, Any]] = [{"load": "open", "rate": rate} for rate in rates] or [{}]
    configs = tuple(_assembled(weights, base, cells, {**choices, **load}) for load in loads)
    plan = state.check(configs[0])
    if weights.run_id:
        run = state.open_run(weights.run_id)
        if run is None:
            raise ConfigError("The run whose weights were to answer is gone.", fix="Choose another one.")
        request_checks.check_run(configs[0], run)
    calibrated = state.calibration_of(base.device, _device_name(base.device))
    known = _known(configs[0])
    made = calibrated.calibration if calibrated else None
    predicted = [predicted_seconds(c, plan, calibrated=made, known=known) for c in configs]
    return InferenceRequest(configs, sum(p.total_s for p in predicted), predicted[0].how)


def _device_name(device: str) -> str:
    machine = state.machine()
    return next((gpu.name for gpu in machine.gpus if f"cuda:{gpu.index}" == device), machine.cpu.name)


def _known(config: RunConfig) -> dict[Cell, float]:
    """Read from up to twenty runs: kept for a while."""
    alike = config.model_copy(update={"infer": Infer(), "batch_size": 1, "threads": 1})
    infer = config.infer
    return _known_of(
        str(state.store().root), alike.fingerprint, infer.prompt_len, infer.new_tokens, infer.cache, config
    )


@st.cache_resource(ttl=20, max_entries=64)
def _known_of(
    root: str, fingerprint: str, prompt_len: int, new_tokens: int, cache: bool, _config: RunConfig
) -> dict[Cell, float]:
    return known_latencies(state.store(), _config)


def price(asked: InferenceRequest) -> None:
    """How long it takes, before it does."""
    cells = sum(len(config.cells) for config in asked.configs)
    what = f"{len(asked.configs)} rates" if len(asked.configs) > 1 else f"{cells} cell{'' if cells == 1 else 's'}"
    alone = (
        f" It takes all {asked.configs[0].threads} usable cores for itself, so it waits until other runs are over."
        if asked.configs[0].device == "cpu" and asked.configs[0].threads > 1
        else ""
    )
    st.caption(run_parts.literal(f"{what}: about {units.duration(asked.predicted_s)} ({asked.how}).{alone}"))


def start(asked: InferenceRequest) -> str:
    """Ask for the measurement; returns the id of its (first) run. A double click asks for one."""
    if len(asked.configs) == 1:
        return state.submit(asked.configs[0])
    group = state.key_of(" ".join(config.model_dump_json() for config in asked.configs))[:16]
    ids = [state.client().submit(c, group=group, key=f"{group} {n}") for n, c in enumerate(asked.configs)]
    return ids[0]


# --- what is shown ------------------------------------------------------------------------------------------------


def shown_runs(view: View) -> list[Run]:
    """The measurement this view shows, as its runs: one, or one per offered rate."""
    shown = st.session_state["infer.shown"]
    if view not in shown:
        shown[view] = newest_of(st.session_state.get("infer.of", ""), view)
    run = state.open_run(shown[view])
    if run is None:
        return []
    if not run.group:
        return [run]
    rows = state.store().rows(group=run.group)
    runs = [other for row in rows if (other := state.open_run(row.run_id)) and other.config.task == "infer"]
    return sorted(runs or [run], key=lambda r: r.config.infer.rate)


def show(runs: Sequence[Run]) -> None:
    """The limit, the live view, and once it is over what one does with it."""
    for run in runs:
        run.refresh()
    over = all(run.is_over for run in runs)
    title, action = st.columns([5, 1], vertical_alignment="center")
    title.markdown(f"**{run_parts.literal(_title(runs))}**")
    may_stop = not over and all(state.client().may("cancel", run.run_id) for run in runs)
    if may_stop and action.button("Stop", key="infer.stop", icon=":material/stop:", width="stretch"):
        for run in runs:
            if not run.is_over:
                state.client().cancel(run.run_id)
    for run in runs:
        if run.is_over:
            run_parts.why_box(run)
    limit_s, by = _limit()
    _live(runs, limit_s, by, alive=not over)
    if over and len(runs) == 1:
        run_actions(runs[0])


def _title(runs: Sequence[Run]) -> str:
    config = runs[0].config
    if len(runs) == 1:
        return runs[0].name or describe(config)
    rates = [run.config.infer.rate for run in runs]
    return f"{describe(config).partition(' · open')[0]} · {len(runs)} rates, {rates[0]:g} to {rates[-1]:g} requests/s"


def _limit() -> tuple[float, Quantile]:
    with st.container(horizontal=True, vertical_alignment="bottom", key="infer-limit"):
        limit = st.number_input(
            "Latency limit (ms)", 0.001, 600_000.0, key="infer.limit", format="%g", step=1.0, width=170,
            help="How long an answer may take. The sentence below names the cell with the best throughput under it.",
        )  # fmt: skip
        by = st.selectbox(
            "Held to it", list(get_args(Quantile)), key="infer.by", width=170,
            format_func=lambda q: {"p99": "p99 of requests", "p90": "p90", "p50": "p50, the median", "max": "every request"}[q],
            help="p99: one request in a hundred may take longer.",
        )  # fmt: skip
    return limit / 1e3, cast(Quantile, by)


def _live(runs: Sequence[Run], limit_s: float, by: Quantile, *, alive: bool) -> None:
    """The component that polls by itself; a cell that was opened in it comes back and is put into the address."""
    key = f"inference-{runs[0].run_id}"
    mount = st.components.v2.component("isoflop_inference", js=stub("inference.js"), isolate_styles=False)
    keys = {place.key for place in places(runs)}
    linked = st.session_state.get("infer.cell")
    linked = linked if linked in keys else None
    result = mount(
        key=key,
        data={
            "key": key, "runs": [run.run_id for run in runs], "alive": alive, "limit_s": limit_s, "quantile": by, "cell": linked,
        } | addresses(),
        default={"cell": linked},
        on_cell_change=nothing,
        on_ended_change=nothing,
    )  # fmt: skip
    opened = result.get("cell")
    st.session_state["infer.cell"] = opened if opened in keys else None


def preview(view: View, asked: InferenceRequest | None) -> None:
    """What is to be done first, and what it will show."""
    st.markdown(run_parts.literal(WORDS[view]))
    if asked:
        st.info("Press Run: the figures are drawn here as they are measured.", icon=":material/bolt:")
    if not trained_runs():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption("No finished training run is in this store yet: fresh weights answer as fast, and guess.")
            st.page_link("../pages/train.py", label="Train one", icon=":material/play_circle:")


def in_a_terminal(asked: InferenceRequest) -> None:
    """The same from a terminal, to copy."""
    commands = "\n".join(state.command_line(config) for config in asked.configs)
    copy_buttons.copy_buttons(commands, key="copy-form")
    with st.expander("The same in a terminal"):
        st.code(commands, language="shell", wrap_lines=True)
