"""The form of the page Inference: what is measured, how long that takes, and the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.views.inference.address import View
from dashboard.views.inference.cells import (
    load_test_cells,
    matrix_cells,
    runtime_in_words,
    software_cells,
    usable_cores,
)
from dashboard.views.inference.weights import Weights, choose_weights
from dashboard.widgets import copy_buttons, run_parts
from engine.common import units
from engine.common.errors import ConfigError
from engine.config.inference import infer_config
from engine.config.run import RunConfig
from engine.config.tasks import RUNTIMES, Cell, Infer
from engine.hardware import probe
from engine.planning import request_checks
from engine.studies.inference_time import known_latencies, predicted_seconds, request_seconds

_LOADS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.1)  # of the highest rate that can be answered: queues grow from about 0.8 on
_MOST_RATES = 12


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """What the form describes: one run, or one run per rate of a load test."""

    configs: tuple[RunConfig, ...]
    predicted_s: float
    how: str  # how the prediction was made


def form(view: View) -> InferenceRequest:
    """Draw the form and return its request.

    Raises:
        ConfigError: The request cannot be measured; the message says why.
        EngineError: Its weights or its data cannot be read.
    """
    weights = choose_weights()
    base = weights.config.model_copy(update={"device": _choose_device(weights.config)})
    if base.is_text:
        st.caption("A text model reads a prompt and generates characters one by one. Both parts are timed separately.")
    with st.container(key="infer-cells"):
        cells = {"Matrix": matrix_cells, "Software": software_cells, "Arrivals": load_test_cells}[view](base)
    rates = _choose_rates(weights, base, cells[0]) if view == "Arrivals" and cells else []
    choices = _choose_more(view, base)
    if not cells:
        raise ConfigError("No combination is chosen.", fix="Choose at least one, or click “all” in the corner.")
    return _checked(weights, base, cells, rates, choices)


def _choose_device(config: RunConfig) -> str:
    """Drawn only where there is more than one device."""
    choices = probe.device_choices(state.machine())
    if len(choices) == 1:
        return choices[0]
    default = config.device if config.device in choices else choices[-1]
    st.session_state.setdefault("infer.knob.device", default)
    return str(st.segmented_control("Device", choices, key="infer.knob.device", required=True) or default)


def _choose_rates(weights: Weights, base: RunConfig, cell: Cell) -> list[float]:
    """Requests per second, one run each. The default rates are shares of the highest rate this combination can answer."""
    config = _config_of(weights, base, [cell], {})
    request_s, origin = _known_latencies(config).get(cell), "measured"
    if request_s is None:
        request_s, origin = request_seconds(config, state.check(config), cell), "estimated"
    text = ", ".join(f"{float(f'{load / request_s:.2g}'):g}" for load in _LOADS)
    key = f"infer.knob.rates.{text}"
    st.session_state.setdefault(key, text)
    info = Infer.model_fields["rate"]
    typed = st.text_input(
        "Rates (requests/s)", key=key, help=f"{info.description} Each rate is measured in its own run.", max_chars=200
    )
    loads = ", ".join(f"{100 * load:g}" for load in _LOADS)
    most = units.count(round(1 / request_s))
    st.caption(run_parts.literal(f"Default: {loads} % of the highest possible rate, {most} requests/s ({origin})."))
    return parse_rates(typed)


def parse_rates(text: str) -> list[float]:
    """Rates in requests per second, ascending, from text such as `50, 100, 200`.

    Raises:
        ConfigError: The text is not a list of 1 to 12 numbers above 0 and at most 1,000,000.
    """
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
            fix=f"Write 1 to {_MOST_RATES} numbers, each above 0 and at most 1,000,000.",
        )
    return rates


def _choose_more(view: View, base: RunConfig) -> dict[str, Any]:
    """Draw the settings that a first measurement does not need; returns fields of `Infer`."""
    choices: dict[str, Any] = {"seconds": _choose_seconds(view)}
    with st.expander("More", icon=":material/tune:"):
        if view != "Software":
            st.session_state.setdefault("infer.knob.runtime", "inference_mode")
            help = Cell.model_fields["runtime"].description
            st.selectbox("Runtime", RUNTIMES, key="infer.knob.runtime", format_func=runtime_in_words, help=help)
        if view == "Matrix" and base.device == "cpu":
            st.session_state.setdefault("infer.knob.precision", "fp32")
            info = Cell.model_fields["precision"]
            st.selectbox(info.title or "", ["fp32", "bf16", "fp16"], key="infer.knob.precision", help=info.description)
        # At thousands of requests a second, the usual number of requests would end a rate before its queue has grown.
        many = 1_000_000 if view == "Arrivals" else None
        choices["requests"] = _choose_number("requests", default=many, key=f"requests.{view}")
        for name in ("rounds", "warm_up"):
            choices[name] = _choose_number(name)
        if base.is_text:
            for name in ("prompt_len", "new_tokens"):
                choices[name] = _choose_number(name)
            info = Infer.model_fields["cache"]
            st.session_state.setdefault("infer.knob.cache", True)
            choices["cache"] = st.toggle(info.title or "", key="infer.knob.cache", help=info.description)
        else:
            info = Infer.model_fields["shape"]
            shape = st.text_input(
                info.title or "", key="infer.knob.shape", help=info.description, placeholder="shape of the data", max_chars=40
            )  # fmt: skip
            choices["shape"] = parse_shape(shape)
    return choices


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape in text such as `1x28x28`, `1 28 28` or `1, 28, 28`; () for an empty text.

    Raises:
        ConfigError: The text is not a shape.
    """
    words = text.replace("x", " ").replace(",", " ").replace("×", " ").split()
    if not all(word.isdecimal() and word.isascii() and len(word) < 6 for word in words):
        raise ConfigError(
            f"Input shape {text!r} is not allowed.", fix="Write whole numbers, such as 1x28x28, or leave it empty."
        )
    return tuple(map(int, words))


def _choose_seconds(view: View) -> float:
    info, key = Infer.model_fields["seconds"], f"infer.knob.seconds.{view}"
    st.session_state.setdefault(key, 2.0 if view == "Arrivals" else info.default)
    label = "Seconds per rate" if view == "Arrivals" else "Seconds per combination"
    return float(st.number_input(label, 0.05, 600.0, step=0.5, key=key, help=info.description, format="%g"))


def _choose_number(name: str, *, default: int | None = None, key: str = "") -> int:
    info, key = Infer.model_fields[name], f"infer.knob.{key or name}"
    low, high = (next(getattr(m, b) for m in info.metadata if hasattr(m, b)) for b in ("ge", "le"))
    st.session_state.setdefault(key, info.default if default is None else default)
    return int(st.number_input(info.title or "", low, high, key=key, help=info.description))


def _config_of(weights: Weights, base: RunConfig, cells: Sequence[Cell], choices: Mapping[str, Any]) -> RunConfig:
    """The run that measures these combinations. It reserves all usable cores, because a run beside it would disturb it."""
    cells = sorted(cells, key=lambda c: (RUNTIMES.index(c.runtime), c.precision, c.threads, c.batch_size))
    threads = max([usable_cores(), *(cell.threads for cell in cells)]) if base.device == "cpu" else 1
    return infer_config(
        base, weights.run_id, threads=threads, batch_size=cells[0].batch_size,
        cells=[cell.model_dump() for cell in cells], weights=weights.file, **choices,
    )  # fmt: skip


def _checked(
    weights: Weights, base: RunConfig, cells: Sequence[Cell], rates: Sequence[float], choices: Mapping[str, Any]
) -> InferenceRequest:
    loads: list[dict[str, Any]] = [{"load": "open", "rate": rate} for rate in rates] or [{}]
    configs = tuple(_config_of(weights, base, cells, {**choices, **load}) for load in loads)
    plan = state.check(configs[0])
    if weights.run_id:
        run = state.open_run(weights.run_id)
        if run is None:
            raise ConfigError("The run with these weights was deleted.", fix="Choose another run.")
        request_checks.check_run(configs[0], run)
    found = state.calibration_of(base.device, _device_name(base.device))
    calibrated = found.calibration if found else None
    known = _known_latencies(configs[0])
    predicted = [predicted_seconds(config, plan, calibrated=calibrated, known=known) for config in configs]
    return InferenceRequest(configs, sum(p.total_s for p in predicted), predicted[0].how)


def _device_name(device: str) -> str:
    machine = state.machine()
    return next((gpu.name for gpu in machine.gpus if f"cuda:{gpu.index}" == device), machine.cpu.name)


def _known_latencies(config: RunConfig) -> dict[Cell, float]:
    same_model = config.model_copy(update={"infer": Infer(), "batch_size": 1, "threads": 1})
    infer = config.infer
    return known_latencies_of(
        str(state.store().root), same_model.fingerprint, infer.prompt_len, infer.new_tokens, infer.cache, config
    )


@st.cache_resource(ttl=20, max_entries=64)  # it reads up to twenty runs
def known_latencies_of(
    root: str, fingerprint: str, prompt_len: int, new_tokens: int, cache: bool, _config: RunConfig
) -> dict[Cell, float]:
    """Median seconds per request of combinations that were measured before. The first five arguments are the cache key."""
    return known_latencies(state.store(), _config)


def show_price(request: InferenceRequest) -> None:
    """How long the measurement will take."""
    config, cells = request.configs[0], sum(len(config.cells) for config in request.configs)
    what = (
        f"{len(request.configs)} rates"
        if len(request.configs) > 1
        else f"{cells} combination{'' if cells == 1 else 's'}"
    )
    cores = "both" if config.threads == 2 else f"all {config.threads}"
    waits = config.device == "cpu" and config.threads > 1
    note = f" Uses {cores} cores, so it starts when other runs have finished." if waits else ""
    st.caption(run_parts.literal(f"{what}: about {units.duration(request.predicted_s)} ({request.how}).{note}"))


def start(request: InferenceRequest) -> str:
    """Submit the measurement; returns the id of its (first) run. A double click submits one measurement."""
    if len(request.configs) == 1:
        return state.submit(request.configs[0])
    group = state.key_of(" ".join(config.model_dump_json() for config in request.configs))[:16]
    ids = [
        state.client().submit(c, name=f"{c.infer.rate:g} requests/s", group=group, key=f"{group} {n}")
        for n, c in enumerate(request.configs)
    ]
    return ids[0]


def show_command(request: InferenceRequest) -> None:
    """The command line of the same measurement, to copy."""
    commands = "\n".join(state.command_line(config) for config in request.configs)
    copy_buttons.copy_buttons(commands, key="copy-form")
    with st.expander("CLI command"):
        st.code(commands, language="shell", wrap_lines=True)
