"""Which weights are measured: those of a trained run, of a file, or fresh ones of a preset."""

from __future__ import annotations

import time
from dataclasses import dataclass

import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.presets import DEFAULT_PRESET, PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe, model_in_words
from engine.config.tasks import Infer
from engine.events.base import TERMINAL
from engine.planning import request_checks
from engine.store.listing import RunRow

FILE = "file"  # the choice of a weights file, beside run ids and `preset:NAME`
_OFFERED_RUNS = 40
_SEARCHED_RUNS = 200  # newest runs among which trained ones are looked for
_TRAININGS = tuple(name for name, preset in PRESETS.items() if preset.config.task_facts.trains_one_model)


@dataclass(frozen=True, slots=True)
class Weights:
    """The model to measure, and the run that trained it or the file that holds it."""

    config: RunConfig  # of the model, its data and device
    run_id: str = ""
    file: str = ""


def choose_weights() -> Weights:
    """Draw the choice of weights: trained runs (newest first), a file, or fresh weights of a preset.

    Raises:
        ConfigError: A file was chosen and its path is still empty.
    """
    by_id = {row.run_id: row for row in trained_runs()}
    linked = st.session_state.get("infer.of", "")
    presets = [f"preset:{name}" for name in _TRAININGS]
    options = [*by_id, FILE, *presets]
    if linked not in options:
        if linked and not linked.startswith("preset:"):
            st.warning(_why_not(linked), icon=":material/warning:")
        st.session_state["infer.of"] = next(iter(by_id), f"preset:{DEFAULT_PRESET}")
    names = {run_id: _row_in_words(row) for run_id, row in by_id.items()}
    names |= {FILE: "A .safetensors file"}
    names |= {key: f"Fresh weights: {PRESETS[key.partition(':')[2]].title}" for key in presets}
    chosen = st.selectbox(
        "Weights", options, key="infer.of", format_func=names.__getitem__, on_change=_show_newest_measurement,
        help="Finished training runs, newest first; the measurement reports their test accuracy. Fresh weights are as fast as "
        "trained ones, but guess at random.",
    )  # fmt: skip
    if chosen in by_id:
        st.caption(run_parts.literal(describe(by_id[chosen].config)))
        return Weights(by_id[chosen].config, run_id=chosen)
    if chosen == FILE:
        return _choose_file()
    return Weights(preset_config(chosen.partition(":")[2]))


def _choose_file() -> Weights:
    st.session_state.setdefault("infer.file.model", DEFAULT_PRESET)
    name = st.selectbox(
        "Model", _TRAININGS, key="infer.file.model", format_func=lambda n: PRESETS[n].title,
        help="The model that these weights belong to, and its data.",
    )  # fmt: skip
    info = Infer.model_fields["weights"]
    path = st.text_input(
        info.title or "", key="infer.file.path", help=info.description, placeholder="/home/me/model.safetensors"
    )
    if not path.strip():
        raise ConfigError("No weights file is chosen yet.", fix="Type the path of a .safetensors file on this machine.")
    return Weights(preset_config(name), file=path.strip())


def trained_runs() -> list[RunRow]:
    """Finished training runs whose weights are still in the store, newest first."""
    store, found = state.store(), list[RunRow]()
    for row in store.rows(limit=_SEARCHED_RUNS):
        if _has_weights(row):
            found.append(row)
        if len(found) == _OFFERED_RUNS:
            break
    linked = st.session_state.get("infer.of", "")  # a link can name an older one
    if linked and linked not in {row.run_id for row in found} and store.has(linked):
        older = store.row(linked)
        found += [older] if older and _has_weights(older) else []
    return found


def _has_weights(row: RunRow) -> bool:
    file = state.store().runs / row.run_id / request_checks.WEIGHTS_FILE
    return row.config.task_facts.trains_one_model and row.status == "finished" and file.is_file()


def _row_in_words(row: RunRow) -> str:
    """What distinguishes the run comes first, because a narrow box cuts the rest."""
    config, accuracy = row.config, row.summary.test_accuracy
    figures = [units.accuracy(accuracy)] if accuracy is not None else []
    name = [visible(row.name, 30)] if row.name else []
    model = model_in_words(config.model, config.data)
    return " · ".join([*name, model, config.data, *figures, units.age(time.time() - row.created), row.run_id[:6]])


def _why_not(run_id: str) -> str:
    row = state.store().row(run_id) if state.store().has(run_id) else None
    if row is None:
        return "The training run of this link is not in this store. Measurements of its weights are kept."
    if not row.config.task_facts.trains_one_model:
        return "The run of this link is not a training run, so it has no weights."
    why = "it has not ended yet" if row.status not in TERMINAL else f"it ended as {row.status}, or its file was deleted"
    return f"The run of this link has no weights, because {why}. Choose a finished run."


def choice_of(config: RunConfig) -> str:
    """The value of the field “Weights” that leads to this measurement."""
    if config.infer.run:
        return config.infer.run
    same_model = [
        name for name in _TRAININGS
        if (PRESETS[name].config.model, PRESETS[name].config.data) == (config.model, config.data)
    ]  # fmt: skip
    preset = same_model[0] if same_model else DEFAULT_PRESET
    if config.infer.weights:
        st.session_state["infer.file.path"] = config.infer.weights
        st.session_state["infer.file.model"] = preset
        return FILE
    return f"preset:{preset}"


def _show_newest_measurement() -> None:
    """After other weights are chosen: show their newest measurement, if there is one."""
    st.session_state["infer.missing"] = False
    st.session_state["infer.shown"] = {}
    st.session_state["infer.cell"] = None
