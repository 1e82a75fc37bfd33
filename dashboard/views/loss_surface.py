"""The view “Descent path” of the page Compare: the paths of runs on the loss surface around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

import streamlit as st

from dashboard import state
from dashboard.views.shared import ENDED_EARLY, newest_like, submit_button
from dashboard.widgets import run_parts
from engine.charts.loss_surface import descent_path_chart, percent
from engine.common import units
from engine.common.errors import EngineError
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Progress
from engine.store import weight_path
from engine.store.run import Run
from engine.studies.loss_surface import SurfaceData, config_for, read_surface


class Lane(TypedDict):
    """A run with its label and colour on the page."""

    label: str
    color: str
    run_id: str


def descent_view(lane_runs: Sequence[Lane]) -> None:
    """The loss surface around the paths of these runs: the button that computes it, its progress, or the chart."""
    usable, sentences = _usable(lane_runs)
    for sentence in sentences:
        st.caption(run_parts.literal(sentence))
    if not usable:
        return
    key = "descent." + "-".join(lane["run_id"] for lane, _ in usable)
    plane, split = _choices(key)
    try:
        config = config_for([run for _, run in usable], plane=plane, split=split)
    except EngineError as error:
        run_parts.error_box(error)
        return
    kept: dict[str, str] = st.session_state.setdefault("descent.runs", {})
    run = state.open_run(kept.get(config.fingerprint) or newest_like(config))
    if run is None or run.status in ENDED_EARLY:
        if run is not None:
            run_parts.why_box(run)
        _submit(config, kept, key)
        return
    kept[config.fingerprint] = run.run_id
    run.refresh()
    if run.is_over:
        _result(run, [lane for lane, _ in usable])
    else:
        _progress(run.run_id)


def _usable(lanes: Sequence[Lane]) -> tuple[list[tuple[Lane, Run]], list[str]]:
    """The runs that have a path, and one sentence for each other run that says why it has none."""
    usable, sentences = [], []
    for lane in lanes:
        run = state.open_run(lane["run_id"])
        if run is None:
            sentences.append(f"{lane['label']}: the run is not in this store any more.")
        elif run.status not in TERMINAL:
            sentences.append(f"{lane['label']}: the run has not ended yet. Its path is shown when the run has ended.")
        elif run.status == "failed":
            sentences.append(f"{lane['label']}: left out, because the run failed. {run.why()}")
        elif not (run.folder / weight_path.TRAJECTORY_FILE).exists():
            sentences.append(f"{lane['label']}: the run kept no checkpoints, so its path is not known.")
        else:
            usable.append((lane, run))
    return usable, sentences


def _choices(key: str) -> tuple[Literal["pca", "random"], Literal["train", "test"]]:
    left, right, _ = st.columns([1, 1, 1.2])
    plane: Literal["pca", "random"] = left.segmented_control(
        "Plane", ["pca", "random"], default="pca", required=True, key=f"{key}.plane",
        format_func={"pca": "Principal components", "random": "Random"}.__getitem__,
        help="Principal components: the two directions in which the checkpoints vary most. Random: two random "
        "directions, with each row of a weight matrix scaled to the norm of that row in the network (Li et al. "
        "2018); paths hardly move in that plane.",
    )  # fmt: skip
    split: Literal["train", "test"] = right.segmented_control(
        "Loss on", ["train", "test"], default="train", required=True, key=f"{key}.split",
        format_func={"train": "Training samples", "test": "Test samples"}.__getitem__,
        help="A random subset, the same at every point of the surface.",
    )  # fmt: skip
    return plane, split


def _submit(config: RunConfig, kept: dict[str, str], key: str) -> None:
    side = config.landscape.resolution
    st.caption(
        f"Computes the loss at {side} x {side} points of a plane through the checkpoints, on "
        f"{config.landscape.examples:,} samples, in a separate run."
    )
    run_id = submit_button(
        "Draw the loss surface", config, name="Loss surface", key=f"{key}.draw", icon=":material/landscape:", primary=False
    )  # fmt: skip
    if run_id:
        kept[config.fingerprint] = run_id
        st.rerun()


@st.fragment(run_every=1)
def _progress(run_id: str) -> None:
    """How many points are done; the whole page is drawn again when the surface is there."""
    run = run_parts.refreshed(run_id)
    done = run.latest(Progress)
    text = f"{done.text}: {done.done:,} of {done.total:,} losses" if done else f"Loss surface: {run.status}"
    run_parts.progress_of(run, text)


def _result(run: Run, lanes: Sequence[Lane]) -> None:
    try:
        surface = read_surface(run)
    except EngineError as error:
        run_parts.error_box(error)
        return
    figure = descent_path_chart(surface, [lane["label"] for lane in lanes], [lane["color"] for lane in lanes])
    st.plotly_chart(figure, key=f"descent.chart.{run.run_id}", theme=None, config={"displayModeBar": False})
    for sentence in in_words(surface):
        st.caption(run_parts.literal(sentence))


def in_words(surface: SurfaceData) -> list[str]:
    """What the chart shows, and what it cannot show."""
    event = surface.event
    directions = (
        "the two directions in which the checkpoints vary most"
        if event.plane == "pca"
        else "two random directions through the last weights of the first run"
    )
    blank = f" Blank: {event.num_not_finite:,} points where the loss is not finite." if event.num_not_finite else ""
    gap = (
        f"The plane misses about {units.loss(event.plane_gap)} of the loss (median over checkpoints)"
        if event.plane_gap is not None
        else "The loss of some checkpoints is not finite, so it is not known how much the plane misses"
    )
    return [
        f"Measured: mean {'training' if event.split == 'train' else 'test'} loss on {event.examples:,} samples, over a plane "
        f"along {directions}. A ring marks where a run started, a large dot where it ended.{blank}",
        f"The network has {event.parameters:,} weights and the chart has two dimensions: the plane shows "
        f"{percent(sum(event.explained))} of the checkpoints' variance (derived). {gap}; structure outside the plane is "
        "not shown.",
    ]
