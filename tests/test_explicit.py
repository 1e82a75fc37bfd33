"""The written-out gradients of a multilayer perceptron are autograd's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine.config import MLP, RunConfig, with_overrides
from engine.datasets import DATASETS
from engine.pytorch import explicit, models

DATA = DATASETS["digits"]


def batch(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 64, generator=generator), torch.randint(10, (rows,), generator=generator)


def autograd(model, x, y):
    for p in model.parameters():
        p.grad = None
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("hidden", [(), (32,), (50, 20), (7, 33, 1, 5)])
@pytest.mark.parametrize("rows", [1, 2, 64, 333])
def test_loss_and_gradients_are_autograds(hidden, rows):
    model, (x, y) = models.build(MLP(hidden=hidden), DATA, seed=1), batch(rows)
    loss, gradients = autograd(model, x, y)
    assert explicit.ExplicitMLP(model).backward(x, y).item() == pytest.approx(loss, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_batches_of_several_sizes_take_turns():
    model = models.build(MLP(hidden=(16,)), DATA, seed=1)
    written = explicit.ExplicitMLP(model)
    for rows, seed in [(64, 1), (30, 2), (64, 3), (1, 4), (30, 5)]:
        x, y = batch(rows, seed)
        _, gradients = autograd(model, x, y)
        written.backward(x, y)
        assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(model.parameters(), gradients, strict=True))


def test_it_follows_weights_that_were_moved_in_place():
    model, (x, y) = models.build(MLP(hidden=(16,)), DATA, seed=1), batch(8)
    written = explicit.ExplicitMLP(model)
    before = written.backward(x, y).item()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    assert written.backward(x, y).item() == pytest.approx(F.cross_entropy(model(x), y).item()) != before


def test_a_loss_without_bounds_is_told_as_it_is():
    model = models.build(MLP(hidden=(16,)), DATA, seed=1)
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    assert torch.isnan(explicit.ExplicitMLP(model).backward(*batch(8)))


@pytest.mark.parametrize(
    "assignment",
    ["model.family=cnn", "model.family=rnn", "device=cuda:0", "precision=bf16", "execution=dataloader",
     "execution=compiled", "grad_accumulation=2", "label_smoothing=0.1", "activation_checkpointing=true"],
)  # fmt: skip
def test_what_is_not_as_plain_goes_through_autograd(assignment):
    assert explicit.applies(RunConfig())
    assert not explicit.applies(with_overrides(RunConfig(), [assignment]))
