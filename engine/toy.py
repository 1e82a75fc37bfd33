"""Descent on a bowl with two weights: what an optimizer's rule does by itself, without data or a net. Exact, not measured.

The loss is (x^2 + kappa y^2) / 2. Its curvature is 1 along x and kappa along y, so kappa is the condition number of its
Hessian. The rules are those of engine/pytorch/optim.py, which are torch.optim's (tests/test_toy.py compares).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Name = Literal["gd", "momentum", "adam", "rmsprop", "adagrad", "nesterov", "sgd"]
NAMES: tuple[Name, ...] = ("gd", "momentum", "adam", "rmsprop", "adagrad", "nesterov", "sgd")
START = (-4.0, 1.5)
_EPS, _ADAGRAD_EPS = 1e-8, 1e-10  # torch.optim's defaults
_LOST = 1e3  # a loss this many times the first: the walk has left for good, and is cut

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]  # weights, gradient -> the next weights


@dataclass(frozen=True, slots=True)
class Bowl:
    """f(x, y) = (x^2 + condition y^2) / 2."""

    condition: float

    def loss(self, w: np.ndarray) -> np.ndarray:
        """Of points (..., 2)."""
        return 0.5 * (w[..., 0] ** 2 + self.condition * w[..., 1] ** 2)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return w * np.array([1.0, self.condition])


@dataclass(frozen=True, slots=True)
class Hyper:
    """What the rules share; torch.optim's defaults but for the learning rate."""

    lr: float
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    alpha: float = 0.99


@dataclass(frozen=True, slots=True)
class Walk:
    """Where an optimizer went, from the start; cut where it is lost."""

    name: Name
    xy: np.ndarray  # (n + 1, 2)
    loss: np.ndarray  # (n + 1,)
    diverged_at: int | None  # the step whose loss was more than a thousand times the first


def walk(
    name: Name, bowl: Bowl, hyper: Hyper, *, steps: int = 200, noise: float = 0.0, seed: int = 0,
    start: tuple[float, float] = START,
) -> Walk:  # fmt: skip
    """`steps` steps. The gradient of all but gd is off by normal noise of this standard deviation in each component,
    the same for every optimizer of a seed."""
    rule, w = _rule(name, hyper), np.array(start)
    off = np.random.default_rng(seed).standard_normal((steps, 2)) * (0.0 if name == "gd" else noise)
    xy, lost = [w], None
    most = _LOST * bowl.loss(w)
    for step in range(steps):
        w = rule(w, bowl.gradient(w) + off[step])
        xy.append(w)
        if not bowl.loss(w) <= most:
            lost = step + 1
            break
    points = np.array(xy)
    return Walk(name, points, bowl.loss(points), lost)


def stability_bound(name: Name, bowl: Bowl, hyper: Hyper) -> float | None:
    """The learning rate from which a walk without noise grows along the steepest direction; None for the adaptive
    rules, whose steps have no such bound of their own.

    With curvature L gd multiplies that weight by 1 - lr L each step, so lr < 2 / L. With momentum m the same question
    for z^2 - (1 + m - lr L) z + m gives 2 (1 + m) / L, and for Nesterov's z^2 - (1 - lr L) ((1 + m) z - m) gives
    2 (1 + m) / ((1 + 2 m) L).
    """
    curvature, m = max(1.0, bowl.condition), hyper.momentum
    match name:
        case "gd" | "sgd":
            return 2 / curvature
        case "momentum":
            return 2 * (1 + m) / curvature
        case "nesterov":
            return 2 * (1 + m) / ((1 + 2 * m) * curvature)
        case _:
            return None


# --- the rules ----------------------------------------------------------------------------------------------------


def _rule(name: Name, hyper: Hyper) -> Rule:
    match name:
        case "gd" | "sgd":
            return lambda w, g: w - hyper.lr * g
        case "momentum" | "nesterov":
            return _momentum(hyper, nesterov=name == "nesterov")
        case "adagrad":
            return _adagrad(hyper)
        case "rmsprop":
            return _rmsprop(hyper)
        case "adam":
            return _adam(hyper)


def _momentum(hyper: Hyper, *, nesterov: bool) -> Rule:
    v = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal v
        v = hyper.momentum * v + g
        return w - hyper.lr * (g + hyper.momentum * v if nesterov else v)

    return step


def _adagrad(hyper: Hyper) -> Rule:
    total = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal total
        total = total + g * g
        return w - hyper.lr * g / (np.sqrt(total) + _ADAGRAD_EPS)

    return step


def _rmsprop(hyper: Hyper) -> Rule:
    square = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal square
        square = hyper.alpha * square + (1 - hyper.alpha) * g * g
        return w - hyper.lr * g / (np.sqrt(square) + _EPS)

    return step


def _adam(hyper: Hyper) -> Rule:
    mean, square, count = np.zeros(2), np.zeros(2), 0

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal mean, square, count
        count += 1
        mean = hyper.beta1 * mean + (1 - hyper.beta1) * g
        square = hyper.beta2 * square + (1 - hyper.beta2) * g * g
        unbiased = mean / (1 - hyper.beta1**count)
        return w - hyper.lr * unbiased / (np.sqrt(square / (1 - hyper.beta2**count)) + _EPS)

    return step
