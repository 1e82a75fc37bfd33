"""Descent on a quadratic with two weights: what the rule of an optimizer does without data and without a model.

The loss is (x^2 + kappa y^2) / 2. Its curvature is 1 along x and kappa along y, so kappa is the condition number of its
Hessian. The rules are those of engine/pytorch/training/optimizers.py and torch.optim (tests/studies/test_quadratic_bowl.py
compares them), so the walks are exact and nothing is measured.

Muon is left out. Its rule is for weight matrices, whose singular values it makes equal. Two single weights are no matrix,
and Muon uses AdamW for such weights, so its walk would be that of AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from engine.config.training import OPTIMIZERS, OptimizerName

START = (-4.0, 1.5)
_EPS, _ADAGRAD_EPS = 1e-8, 1e-10  # torch.optim's defaults
_DIVERGED = 1e3  # a walk whose loss is this many times the first one has diverged and ends

Step = Callable[[np.ndarray, np.ndarray], np.ndarray]  # weights, gradient -> the next weights


@dataclass(frozen=True, slots=True)
class Bowl:
    """The quadratic f(x, y) = (x^2 + condition y^2) / 2."""

    condition: float

    def loss(self, w: np.ndarray) -> np.ndarray:
        """The loss (...) of points (..., 2)."""
        return 0.5 * (w[..., 0] ** 2 + self.condition * w[..., 1] ** 2)

    def gradient(self, w: np.ndarray) -> np.ndarray:
        """The gradient (..., 2) at points (..., 2)."""
        return w * np.array([1.0, self.condition])


@dataclass(frozen=True, slots=True)
class Hyper:
    """Hyperparameters of all rules. Defaults are torch.optim's; AdamW decays weights as its default there does."""

    lr: float
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    alpha: float = 0.99
    weight_decay: float = 0.01  # only of the decoupled rules


@dataclass(frozen=True, slots=True)
class Walk:
    """The path of an optimizer from the start; it ends at the step where it diverged."""

    name: OptimizerName
    xy: np.ndarray  # (n + 1, 2)
    loss: np.ndarray  # (n + 1,)
    diverged_at: int | None  # the step whose loss was more than a thousand times the first one


def walk(
    name: OptimizerName,
    bowl: Bowl,
    hyper: Hyper,
    *,
    steps: int = 200,
    noise: float = 0.0,
    seed: int = 0,
    start: tuple[float, float] = START,
) -> Walk:
    """The path of `steps` steps.

    Gradients have normal noise of standard deviation `noise` in each component, the same for every optimizer of a seed;
    gradient descent (full batch) has none. Raises KeyError for a name not in `RULES`.
    """
    step_of, w = RULES[name].start(hyper), np.array(start)
    scale = 0.0 if OPTIMIZERS[name].full_batch else noise
    noises = np.random.default_rng(seed).standard_normal((steps, 2)) * scale
    xy, diverged_at = [w], None
    most = _DIVERGED * bowl.loss(w)
    for step in range(steps):
        w = step_of(w, bowl.gradient(w) + noises[step])
        xy.append(w)
        if not bowl.loss(w) <= most:
            diverged_at = step + 1
            break
    points = np.array(xy)
    return Walk(name, points, bowl.loss(points), diverged_at)


def stability_bound(name: OptimizerName, bowl: Bowl, hyper: Hyper) -> float | None:
    """The learning rate from which a walk without noise grows along the steepest direction.

    None for the adaptive rules, whose steps have no such bound. With curvature L, gd multiplies that weight by 1 - lr L
    in each step, so lr < 2 / L. With momentum m the roots of z^2 - (1 + m - lr L) z + m give 2 (1 + m) / L, and for
    Nesterov those of z^2 - (1 - lr L) ((1 + m) z - m) give 2 (1 + m) / ((1 + 2 m) L).
    """
    bound = RULES[name].bound
    return None if bound is None else bound(max(1.0, bowl.condition), hyper.momentum)


# --- the rules ----------------------------------------------------------------------------------------------------


def _plain(hyper: Hyper) -> Step:
    return lambda w, g: w - hyper.lr * g


def _momentum(hyper: Hyper, *, nesterov: bool = False) -> Step:
    v = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal v
        v = hyper.momentum * v + g
        return w - hyper.lr * (g + hyper.momentum * v if nesterov else v)

    return step


def _adagrad(hyper: Hyper) -> Step:
    total = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal total
        total = total + g * g
        return w - hyper.lr * g / (np.sqrt(total) + _ADAGRAD_EPS)

    return step


def _rmsprop(hyper: Hyper) -> Step:
    square = np.zeros(2)

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal square
        square = hyper.alpha * square + (1 - hyper.alpha) * g * g
        return w - hyper.lr * g / (np.sqrt(square) + _EPS)

    return step


def _adam(hyper: Hyper, *, decay: float = 0.0) -> Step:
    mean, square, count = np.zeros(2), np.zeros(2), 0

    def step(w: np.ndarray, g: np.ndarray) -> np.ndarray:
        nonlocal mean, square, count
        count += 1
        mean = hyper.beta1 * mean + (1 - hyper.beta1) * g
        square = hyper.beta2 * square + (1 - hyper.beta2) * g * g
        unbiased = mean / (1 - hyper.beta1**count)
        w = w * (1 - hyper.lr * decay)
        return w - hyper.lr * unbiased / (np.sqrt(square / (1 - hyper.beta2**count)) + _EPS)

    return step


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of an optimizer for two weights."""

    start: Callable[[Hyper], Step]  # a step function with a fresh state
    bound: Callable[[float, float], float] | None = None  # of curvature and momentum: see `stability_bound`


RULES: Mapping[OptimizerName, Rule] = {  # in the order of their colours
    "gd": Rule(_plain, lambda curvature, _: 2 / curvature),
    "momentum": Rule(_momentum, lambda curvature, m: 2 * (1 + m) / curvature),
    "adam": Rule(_adam),
    "rmsprop": Rule(_rmsprop),
    "adagrad": Rule(_adagrad),
    "nesterov": Rule(
        lambda hyper: _momentum(hyper, nesterov=True), lambda curvature, m: 2 * (1 + m) / ((1 + 2 * m) * curvature)
    ),
    "sgd": Rule(_plain, lambda curvature, _: 2 / curvature),
    "adamw": Rule(lambda hyper: _adam(hyper, decay=hyper.weight_decay)),
}
