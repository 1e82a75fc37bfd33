"""The view “Two weights” of the page Compare: optimizers on a quadratic bowl with two weights, computed exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from engine.charts import style
from engine.config.training import OPTIMIZERS, OptimizerName
from engine.studies import quadratic_bowl

_ASSETS = Path(__file__).parents[1] / "assets"
_STEPS = 200
_CONDITIONS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
_RATES = tuple(m * 10.0**e for e in range(-4, 1) for m in (1, 1.5, 2, 3, 5, 7))
_HTML = """<div class="toy"><canvas role="img" aria-label="Paths of the chosen optimizers over the contour lines of the loss"></canvas>
<div class="toy-controls"><button type="button">Play</button><input type="range" min="0" step="1" aria-label="Step">
<output></output></div><ul aria-label="Loss at this step"></ul></div>"""


def quadratic_bowl_view() -> None:
    """Form, and the path of each optimizer. Nothing here is measured: the paths are computed exactly."""
    st.caption(
        "The loss is (x² + κ·y²) / 2, a bowl with two weights, no data and no network. The paths are computed exactly with "
        "the update rules that runs use; nothing is measured."
    )
    form, picture = st.columns([1, 2.4], gap="medium")
    with form:
        bowl, hyper, noise, names = _form()
    walks = [quadratic_bowl.walk(name, bowl, hyper, steps=_STEPS, noise=noise) for name in names]
    with picture:
        _mount_walks(bowl, walks)
        st.caption("  \n".join(_bounds_in_words(bowl, hyper, noise, names)))


def _form() -> tuple[quadratic_bowl.Bowl, quadratic_bowl.Hyper, float, list[OptimizerName]]:
    condition = st.select_slider(
        "Condition number κ", _CONDITIONS, 10, key="toy.condition",
        help="How many times steeper the bowl is along y than along x. The steep direction limits the learning rate; the "
        "flat direction decides how many steps are needed.",
    )  # fmt: skip
    lr = st.select_slider(
        "Learning rate", _RATES, 0.15, key="toy.lr", format_func=lambda value: f"{value:g}",
        help="How far the weights move per step, the same for every optimizer here. Gradient descent is stable below 2/κ. "
        "Adaptive optimizers divide by the size of their gradients, so the same value gives another step length.",
    )  # fmt: skip
    momentum = st.slider(
        "Momentum", 0.0, 0.99, 0.9, 0.01, key="toy.momentum",
        help="Share of the last step that Momentum and Nesterov keep. Adam uses its default of 0.9 here.",
    )  # fmt: skip
    noise = st.slider(
        "Gradient noise", 0.0, 10.0, 0.0, 0.5, key="toy.noise",
        help="Standard deviation of the noise that is added to each component of the gradient, as a mini-batch would add it. "
        "All optimizers get the same noise, except gradient descent, which stays exact.",
    )  # fmt: skip
    chosen = st.pills(
        "Optimizers", list(quadratic_bowl.RULES), selection_mode="multi", default=["gd", "momentum", "adam"], key="toy.names",
        format_func=_label, wrap=True,
        help="All start at the same point. SGD is gradient descent with the noise above; without noise both are the same. AdamW "
        "is Adam with a weight decay of 0.01. Muon is missing because its rule is for weight matrices; for single weights it "
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
    data = {"condition": bowl.condition, "steps": _STEPS, "walks": [walk_as_data(walk) for walk in walks]}
    mount(key="toy.walks", data=data)


def walk_as_data(walk: quadratic_bowl.Walk) -> dict[str, Any]:
    """What the browser gets of one optimizer's path: label, colour, coordinates and loss per step."""
    place = list(quadratic_bowl.RULES).index(walk.name)
    return {
        "label": _label(walk.name), "color": style.colour(place), "dashed": style.dash(place) != "solid",
        "x": _rounded(walk.xy[:, 0]), "y": _rounded(walk.xy[:, 1]), "loss": _rounded(walk.loss),
        "diverged_at": walk.diverged_at,
    }  # fmt: skip


def _rounded(values: np.ndarray) -> list[float]:
    """Four digits are finer than a pixel."""
    return [float(f"{value:.4g}") for value in values]


def _bounds_in_words(
    bowl: quadratic_bowl.Bowl, hyper: quadratic_bowl.Hyper, noise: float, names: Sequence[OptimizerName]
) -> list[str]:
    """For each rule with a stability bound, whether this learning rate is below it."""
    sentences, adaptive = [], []
    for name in names:
        bound = quadratic_bowl.stability_bound(name, bowl, hyper)
        if bound is None:
            adaptive.append(_label(name))
            continue
        formula = " (2/κ)" if OPTIMIZERS[name].is_plain else ""
        if hyper.lr >= bound:
            end = "it does not come closer along y" if hyper.lr == bound else "it grows along y and diverges"
        elif noise and not OPTIMIZERS[name].full_batch:
            end = "it keeps moving around the minimum because of the noise"
        else:
            end = "it converges"
        sentences.append(
            f"{_label(name)} is stable below a learning rate of {bound:.3g}{formula}: at {hyper.lr:g} {end}."
        )
    if adaptive:
        verb = "has" if len(adaptive) == 1 else "have"
        sentences.append(
            f"{', '.join(adaptive)} {verb} no such bound, because the steps are divided by the size of the gradients so far."
        )
    return sentences


def _text(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _assets_version() -> str:
    return hashlib.sha256((_text("toy.js") + _text("toy.css") + _HTML).encode()).hexdigest()[:8]
