"""The quadratic bowl: the rules equal torch.optim's, walks grow above the bound, and diverged walks end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.config import training
from engine.pytorch.training import optimizers
from engine.studies import quadratic_bowl

HYPER = quadratic_bowl.Hyper(lr=0.02)


class Point(torch.nn.Module):
    """The two weights as a net has them, in float64."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(quadratic_bowl.START, dtype=torch.float64))


def torch_walk(name, bowl, hyper, steps, noise=0.0, make=optimizers.torch_optimizers):
    """torch.optim's own on the same bowl with the same noise."""
    point = Point()
    decay = hyper.weight_decay if training.OPTIMIZERS[name].decoupled else 0.0
    spec = training.Optimizer(name=name, lr=hyper.lr, momentum=hyper.momentum, weight_decay=decay)
    made = make(spec, point)
    optimizer = made[0] if isinstance(made, list) else made
    off = torch.from_numpy(np.random.default_rng(0).standard_normal((steps, 2)) * noise)
    curvature, seen = torch.tensor([1.0, bowl.condition], dtype=torch.float64), [point.w.detach().clone()]
    for step in range(steps):
        optimizer.zero_grad()
        ((0.5 * curvature * point.w**2).sum() + off[step] @ point.w).backward()
        optimizer.step()
        seen.append(point.w.detach().clone())
    return torch.stack(seen).numpy()


@pytest.mark.parametrize("name", quadratic_bowl.RULES)
@pytest.mark.parametrize("make", [optimizers.torch_optimizers, optimizers.build], ids=["torch.optim", "ours"])
def test_a_walk_equals_that_of_the_real_optimizer(name, make):
    bowl, noise = quadratic_bowl.Bowl(20.0), 0.0 if name == "gd" else 0.5
    walked = quadratic_bowl.walk(name, bowl, HYPER, steps=150, noise=noise)
    assert np.allclose(walked.xy, torch_walk(name, bowl, HYPER, 150, noise, make), atol=1e-6)


@pytest.mark.parametrize("name", ["gd", "momentum", "nesterov"])
@pytest.mark.parametrize("condition", [1.0, 30.0, 1000.0])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_below_the_bound_a_walk_shrinks_and_above_it_grows(name, condition, momentum):
    bowl = quadratic_bowl.Bowl(condition)
    bound = quadratic_bowl.stability_bound(name, bowl, quadratic_bowl.Hyper(lr=1.0, momentum=momentum))
    below, above = (
        quadratic_bowl.walk(name, bowl, quadratic_bowl.Hyper(lr=share * bound, momentum=momentum), steps=2_000)
        for share in (0.98, 1.02)
    )
    assert below.diverged_at is None
    assert below.xy[-1][1] == pytest.approx(0, abs=1e-3)
    assert above.diverged_at is not None


def test_a_diverged_walk_ends_where_it_diverged():
    walked = quadratic_bowl.walk("gd", quadratic_bowl.Bowl(10.0), quadratic_bowl.Hyper(lr=0.5), steps=100)
    assert walked.diverged_at == len(walked.xy) - 1 < 10
    assert np.isfinite(walked.xy).all()
    assert walked.loss[-1] > 1e3 * walked.loss[0] > walked.loss[-2]


def test_the_adaptive_rules_have_no_bound():
    assert {
        quadratic_bowl.stability_bound(name, quadratic_bowl.Bowl(9.0), HYPER)
        for name in ("adam", "adamw", "rmsprop", "adagrad")
    } == {None}


def test_noise_is_the_same_for_all_but_gd_and_comes_from_the_seed():
    bowl = quadratic_bowl.Bowl(5.0)
    assert np.array_equal(
        quadratic_bowl.walk("gd", bowl, HYPER, noise=2.0).xy, quadratic_bowl.walk("gd", bowl, HYPER).xy
    )
    sgd = quadratic_bowl.walk("sgd", bowl, HYPER, noise=2.0).xy
    assert np.array_equal(
        sgd, quadratic_bowl.walk("momentum", bowl, quadratic_bowl.Hyper(lr=0.02, momentum=0.0), noise=2.0).xy
    )
    assert not np.array_equal(sgd, quadratic_bowl.walk("sgd", bowl, HYPER, noise=2.0, seed=1).xy)


def test_sgd_without_noise_is_gd():
    assert np.array_equal(
        quadratic_bowl.walk("sgd", quadratic_bowl.Bowl(5.0), HYPER).xy,
        quadratic_bowl.walk("gd", quadratic_bowl.Bowl(5.0), HYPER).xy,
    )


def test_optimizers_with_a_rule_for_matrices_have_no_walk():
    """A new optimizer may come without a walk, but one of these would walk as AdamW."""
    assert not [name for name in quadratic_bowl.RULES if training.OPTIMIZERS[name].for_matrices]
