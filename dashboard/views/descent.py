"""The two pictures of descent: a bowl with two weights, computed exactly, and the loss surface around real runs.

Both are parts of a page: `toy_view()`, and `descent_view(lanes)` for runs that kept checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.charts import style
from engine.charts.loss_surface import descent_path_chart, percent
from engine.common import units
from engine.common.errors import EngineError
from engine.config.run import RunConfig
from engine.config.training import OPTIMIZERS, OptimizerName
from engine.events.base import TERMINAL
from engine.events.lifecycle import Progress
from engine.store import weight_path
from engine.store.run import Run
from engine.studies import quadratic_bowl
from engine.studies.loss_surface import SurfaceData, config_for, read_surface

_ASSETS = Path(__file__).parents[1] / "assets"

# --- the toy ------------------------------------------------------------------------------------------------------

_STEPS = 200
_CONDITIONS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
_RATES = tuple(m * 10.0**e for e in range(-4, 1) for m in (1, 1.5, 2, 3, 5, 7))
_HTML = """<div class="toy"><canvas role="img" aria-label="Walks of the chosen optimizers over the level lines of the loss"></canvas>
<div class="toy-controls"><button type="button">Play</button><input type="range" min="0" step="1" aria-label="Step">
<output></output></div><ul aria-label="Loss at this step"></ul></div>"""


def quadratic_bowl_view() -> None:
    """Knobs, and the walks they lead to. Exact arithmetic of two weights: nothing here is measured."""
    st.caption(
        "The loss is (x² + κ·y²) / 2: a bowl with two weights, no data and no net. Computed here, exact, with the update "
        "rules the runs use; nothing is measured."
    )
    knobs, picture = st.columns([1, 2.4], gap="medium")
    with knobs:
        bowl, hyper, noise, names = _knobs()
    walks = [quadratic_bowl.walk(name, bowl, hyper, steps=_STEPS, noise=noise) for name in names]
    with picture:
        _mount_walks(bowl, walks)
        st.caption("  \n".join(_bounds_in_words(bowl, hyper, noise, names)))


def _knobs() -> tuple[quadratic_bowl.Bowl, quadratic_bowl.Hyper, float, list[OptimizerName]]:
    condition = st.select_slider(
        "Condition number κ", _CONDITIONS, 10, key="toy.condition",
        help="How many times steeper the bowl is along y than along x. The steep direction limits the learning rate, the "
        "flat one decides how long it takes.",
    )  # fmt: skip
    lr = st.select_slider(
        "Learning rate", _RATES, 0.15, key="toy.lr", format_func=lambda value: f"{value:g}",
        help="Size of a step, the same for every optimizer here. Gradient descent is stable below 2/κ; adaptive optimizers "
        "divide by the size of their gradients, so the same number means another length of step.",
    )  # fmt: skip
    momentum = st.slider(
        "Momentum", 0.0, 0.99, 0.9, 0.01, key="toy.momentum",
        help="Share of the last step that is kept: of Momentum and Nesterov. Adam keeps 0.9 of its mean here, its default.",
    )  # fmt: skip
    noise = st.slider(
        "Gradient noise", 0.0, 10.0, 0.0, 0.5, key="toy.noise",
        help="Standard deviation of what is added to each component of the gradient, as a mini-batch would; the same draws "
        "for all but gradient descent, which stays exact.",
    )  # fmt: skip
    chosen = st.pills(
        "Optimizers", list(quadratic_bowl.RULES), selection_mode="multi", default=["gd", "momentum", "adam"], key="toy.names",
        format_func=_label, wrap=True,
        help="All start at the same point. SGD is gradient descent with the noise above; without noise both are the same. AdamW "
        "is Adam with a weight decay of 0.01. Muon is not here: its rule is for weight matrices, and for single weights it "
        "uses AdamW.",
    )  # fmt: skip
    names = [name for name in quadratic_bowl.RULES if name in chosen]
    return quadratic_bowl.Bowl(float(condition)), quadratic_bowl.Hyper(lr=lr, momentum=momentum), noise, names


def _label(name: OptimizerName) -> str:
    return OPTIMIZERS[name].label


def _mount_walks(bowl: quadratic_bowl.Bowl, walks: Sequence[quadratic_bowl.Walk]) -> None:
    mount = st.components.v2.component(
        f"isoflop_toy_{_assets_version()}", html=_HTML, css=_text("toy.css"), js=_text("toy.js")
    )
    mount(key="toy.walks", data={"condition": bowl.condition, "steps": _STEPS, "walks": [_as_data(w) for w in walks]})


def _as_data(walked: quadratic_bowl.Walk) -> dict[str, Any]:
    place = list(quadratic_bowl.RULES).index(walked.name)
    return {
        "label": _label(walked.name), "color": style.colour(place), "dashed": style.dash(place) != "solid",
        "x": _short(walked.xy[:, 0]), "y": _short(walked.xy[:, 1]), "loss": _short(walked.loss),
        "diverged_at": walked.diverged_at,
    }  # fmt: skip


def _short(values: np.ndarray) -> list[float]:
    """Four digits are finer than a pixel."""
    return [float(f"{value:.4g}") for value in values]


def _bounds_in_words(
    bowl: quadratic_bowl.Bowl, hyper: quadratic_bowl.Hyper, noise: float, names: Sequence[OptimizerName]
) -> list[str]:
    """For each rule that has a bound, on which side of it this learning rate is."""
    sentences, adaptive = [], []
    for name in names:
        bound = quadratic_bowl.stability_bound(name, bowl, hyper)
        if bound is None:
            adaptive.append(_label(name))
            continue
        formula = " (2/κ)" if OPTIMIZERS[name].is_plain else ""
        if hyper.lr >= bound:
            end = "along y it does not come closer" if hyper.lr == bound else "it grows along y and diverges"
        elif noise and not OPTIMIZERS[name].full_batch:
            end = "it ends up wandering around the minimum, as far as the noise carries it"
        else:
            end = "it converges"
        sentences.append(
            f"{_label(name)} is stable below a learning rate of {bound:.3g}{formula}: at {hyper.lr:g} {end}."
        )
    if adaptive:
        sentences.append(
            f"{', '.join(adaptive)}: no bound of this kind, as the steps are divided by the size of the gradients so far."
        )
    return sentences


def _text(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _assets_version() -> str:
    return hashlib.sha256((_text("toy.js") + _text("toy.css") + _HTML).encode()).hexdigest()[:8]


# --- the loss surface of real runs ----------------------------------------------------------------------------------


class Lane(TypedDict):
    """A run as the page shows it."""

    label: str
    color: str
    run_id: str


def descent_view(lane_runs: Sequence[Lane]) -> None:
    """The loss surface around the paths of these runs: a button that has it computed, its progress, the chart."""
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
    run = state.open_run(kept.get(config.fingerprint) or _computed_before(config))
    if run is None or run.status in {"failed", "cancelled", "interrupted"}:
        if run is not None:
            run_parts.why_box(run)
        _offer(config, kept, key)
        return
    kept[config.fingerprint] = run.run_id
    run.refresh()
    if run.is_over:
        _show(run, [lane for lane, _ in usable])
    else:
        _follow(run.run_id)


def _usable(lanes: Sequence[Lane]) -> tuple[list[tuple[Lane, Run]], list[str]]:
    """The lanes that have a path, and in words why the others have none on the picture."""
    usable, sentences = [], []
    for lane in lanes:
        run = state.open_run(lane["run_id"])
        if run is None:
            sentences.append(f"{lane['label']}: its run is not in this store any more.")
        elif run.status not in TERMINAL:
            sentences.append(f"{lane['label']}: still at work; its path is there once it is over.")
        elif run.status == "failed":
            sentences.append(f"{lane['label']}: left out, it failed. {run.why()}")
        elif not (run.folder / weight_path.TRAJECTORY_FILE).exists():
            sentences.append(f"{lane['label']}: kept no checkpoints, so its path is not known.")
        else:
            usable.append((lane, run))
    return usable, sentences


def _choices(key: str) -> tuple[Literal["pca", "random"], Literal["train", "test"]]:
    left, right, _ = st.columns([1, 1, 1.2])
    plane: Literal["pca", "random"] = left.segmented_control(
        "Plane", ["pca", "random"], default="pca", required=True, key=f"{key}.plane",
        format_func={"pca": "Main directions", "random": "Random"}.__getitem__,
        help="Main directions: the two in which the checkpoints vary most (principal components). Random: two directions "
        "drawn at random, each row of a weight matrix as long as the net's own (Li et al. 2018); paths barely move in it.",
    )  # fmt: skip
    split: Literal["train", "test"] = right.segmented_control(
        "Loss on", ["train", "test"], default="train", required=True, key=f"{key}.split",
        format_func={"train": "Training examples", "test": "Held-out examples"}.__getitem__,
        help="The same examples, chosen once at random, at every point of the surface.",
    )  # fmt: skip
    return plane, split


def _computed_before(config: RunConfig) -> str | None:
    """The newest run of the same surface that stands or is on its way: a page that is opened again shows it."""
    rows = state.store().rows(limit=200)
    alike = (row for row in rows if row.config.task == "landscape" and row.config == config)
    return next((row.run_id for row in alike if row.status not in {"failed", "cancelled", "interrupted"}), None)


def _offer(config: RunConfig, kept: dict[str, str], key: str) -> None:
    side = config.landscape.resolution
    st.caption(
        f"The loss at {side} x {side} points of a plane through the checkpoints, on {config.landscape.examples:,} examples; "
        "computed as a run of its own."
    )
    may = state.client().may("submit")
    if st.button(
        "Draw the loss surface", icon=":material/landscape:", key=f"{key}.draw", disabled=not may,
        help=None if may else "As viewer you may look at runs; an admin can let you start some.",
    ):  # fmt: skip
        try:
            kept[config.fingerprint] = state.submit(config, name="Loss surface")
        except EngineError as error:
            run_parts.error_box(error)
            return
        st.rerun()


@st.fragment(run_every=1)
def _follow(run_id: str) -> None:
    """How far the surface is; the page is drawn anew once it is there."""
    run = run_parts.refreshed(run_id)
    said = run.latest(Progress)
    text = f"{said.text}: {said.done:,} of {said.total:,} losses" if said else f"Loss surface: {run.status}"
    run_parts.progress_of(run, text)


def _show(run: Run, lanes: Sequence[Lane]) -> None:
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
    """What the picture shows, and what it hides."""
    said = surface.event
    where = "training" if said.split == "train" else "held-out"
    shown = sum(said.explained)
    directions = (
        "the two directions in which the checkpoints vary most"
        if said.plane == "pca"
        else "two random directions through the last weights of the first run"
    )
    blank = f" Blank: {said.num_not_finite:,} points where it is no finite number." if said.num_not_finite else ""
    gap = (
        f"the loss at a checkpoint itself and at its shadow on the plane differ by {units.loss(said.plane_gap)} (median)"
        if said.plane_gap is not None
        else "the loss at some checkpoints, or at their shadows on the plane, is no finite number"
    )
    return [
        f"Measured: the mean loss on {said.examples:,} {where} examples over a plane along {directions}. A ring is where a "
        f"run began, a large dot where it ended.{blank}",
        f"The net has {said.parameters:,} weights, the picture two dimensions: the plane shows "
        f"{percent(shown)} of the checkpoints' variance (derived), and {gap}. A valley or ridge seen here is one of this "
        "plane; what lies off it is not seen.",
    ]
