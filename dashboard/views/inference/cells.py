"""Which combinations of batch size, threads, precision and runtime are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import streamlit as st

from dashboard import state
from dashboard.widgets.component import addresses, nothing, stub
from engine.config.base import PrecisionName
from engine.config.inference import infer_config
from engine.config.run import RunConfig
from engine.config.tasks import RUNTIMES, Cell, RuntimeName
from engine.studies.inference import RUNTIME_WORDS
from engine.studies.inference_runtimes import offered

_SIZES = tuple(2**n for n in range(11))  # 1 to 1,024
_TEXT_SIZES = tuple(2**n for n in range(7))  # smaller, because a text model runs one pass per generated character


def thread_counts(cores: int) -> list[int]:
    """1, 2, 4, ... and all usable cores."""
    return sorted({2**n for n in range(cores.bit_length()) if 2**n <= cores} | {cores})


def usable_cores() -> int:
    """CPU cores that this process can use."""
    return state.machine().cpu.usable_cores


def matrix_cells(base: RunConfig) -> list[Cell]:
    """Draw the grid of batch sizes (rows) and threads (columns; on a GPU precisions); return what is chosen."""
    on_gpu, is_text = base.device != "cpu", base.is_text
    sizes = _TEXT_SIZES if is_text else _SIZES
    columns: list[Any] = ["fp32", "tf32", "bf16", "fp16"] if on_gpu else list(thread_counts(usable_cores()))
    at_first = sizes if len(columns) <= 4 else sizes[::2]  # with many thread counts only every second batch size
    default = [f"{size}x{column}" for size in at_first for column in (columns[:1] if on_gpu else columns)]
    kind = f"{'text' if is_text else 'rows'}-{'gpu' if on_gpu else 'cpu'}"
    st.markdown(f":small[Combinations (rows: batch size, columns: {'precision' if on_gpu else 'threads'})]")
    chosen = pick(
        [{"id": str(size), "label": f"{size:,}"} for size in sizes],
        [{"id": str(column), "label": _column_title(column), "name": _column_title(column)} for column in columns],
        default=default, key=f"infer.pick.{kind}",
    )  # fmt: skip
    runtime = _chosen_runtime()
    precision = cast(PrecisionName, "fp32" if on_gpu else st.session_state.get("infer.knob.precision", "fp32"))
    pairs = [key.split("x") for key in chosen]
    if on_gpu:
        return [Cell(batch_size=int(b), precision=cast(Any, p), runtime=runtime) for b, p in pairs]
    return [Cell(batch_size=int(b), threads=int(n), precision=precision, runtime=runtime) for b, n in pairs]


def _column_title(value: int | str) -> str:
    return value if isinstance(value, str) else f"{value} thread{'' if value == 1 else 's'}"


def pick(
    rows: Sequence[Mapping[str, str]], columns: Sequence[Mapping[str, str]], *, default: Sequence[str], key: str
) -> list[str]:
    """Draw a grid of check boxes; return the chosen combinations as `ROWxCOLUMN`, in the order of the rows."""
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
    cells = result.get("cells")
    chosen = set(cells if isinstance(cells, list) else kept) & set(every)  # a browser can send anything
    st.session_state[f"{key}.kept"] = [cell for cell in every if cell in chosen]
    return st.session_state[f"{key}.kept"]


def software_cells(base: RunConfig) -> list[Cell]:
    """Draw the choice of runtimes and batch sizes; return every combination of them."""
    sizes = _TEXT_SIZES if base.is_text else _SIZES
    st.session_state.setdefault("infer.knob.runtimes", _runtimes_at_first(base))
    runtimes = st.pills(
        "Runtimes", list(RUNTIMES), selection_mode="multi", key="infer.knob.runtimes", format_func=runtime_in_words,
        help=Cell.model_fields["runtime"].description,
    )  # fmt: skip
    st.session_state.setdefault("infer.knob.sizes", [1, sizes[-5]])
    chosen = st.pills(
        "Batch sizes", list(sizes), selection_mode="multi", key="infer.knob.sizes", format_func=lambda b: f"{b:,}"
    )
    threads = _choose_threads(base)
    ordered = [runtime for runtime in RUNTIMES if runtime in runtimes]
    return [Cell(batch_size=b, threads=threads, runtime=r) for r in ordered for b in sorted(chosen)]


def _runtimes_at_first(base: RunConfig) -> list[RuntimeName]:
    """All runtimes this model can use, except compiling, which takes minutes."""
    config = infer_config(base)
    return [r for r in RUNTIMES if r != "compiled" and not offered(config, Cell(runtime=r))]


def runtime_in_words(runtime: RuntimeName) -> str:
    """The name of a runtime on pages."""
    return RUNTIME_WORDS[runtime]


def load_test_cells(base: RunConfig) -> list[Cell]:
    """Draw batch size and threads of the load test; return its one combination."""
    info = Cell.model_fields["batch_size"]
    st.session_state.setdefault("infer.knob.batch", 1)
    size = st.number_input(info.title or "", 1, 65_536, key="infer.knob.batch", help=info.description)
    return [Cell(batch_size=int(size), threads=_choose_threads(base), runtime=_chosen_runtime())]


def _choose_threads(base: RunConfig) -> int:
    counts = thread_counts(usable_cores())
    if base.device != "cpu" or len(counts) == 1:
        return 1
    st.session_state.setdefault("infer.knob.threads", 1)
    info = Cell.model_fields["threads"]
    chosen = st.segmented_control(
        info.title or "", counts, key="infer.knob.threads", required=True, help=info.description
    )
    return int(chosen or 1)


def _chosen_runtime() -> RuntimeName:
    """The runtime chosen under “More”, which is drawn below the combinations."""
    return cast(RuntimeName, st.session_state.get("infer.knob.runtime", "inference_mode"))
