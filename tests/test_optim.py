"""The lean optimizers do what torch.optim does, to the last bit."""

import pytest
import torch
import torch.nn.functional as F

from engine.config import CNN, MLP, Optimizer
from engine.datasets import DATASETS
from engine.pytorch import models, optim

REFERENCES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "gd": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
}


def trained_weights(spec, build_optimizer):
    model = models.build(spec, DATASETS["mnist5k"], seed=3)
    optimizer = build_optimizer(model.parameters())
    side = models.input_side(spec) or 28
    x = torch.randn(32, 1, side, side, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        loss = F.cross_entropy(model(x), torch.arange(32) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("spec", [MLP(hidden=(32,)), CNN()], ids=["mlp", "cnn"])
@pytest.mark.parametrize("name", REFERENCES)
def test_twenty_steps_are_bit_identical_to_torch_optim(name, spec):
    ours = trained_weights(spec, lambda p: optim.build(Optimizer(name=name, lr=0.05), p))
    reference = trained_weights(spec, REFERENCES[name])
    assert all(torch.equal(a, b) for a, b in zip(ours, reference, strict=True))


def test_momentum_zero_is_sgd():
    with_zero = trained_weights(MLP(), lambda p: optim.build(Optimizer(name="momentum", lr=0.05, momentum=0.0), p))
    plain = trained_weights(MLP(), lambda p: optim.build(Optimizer(name="sgd", lr=0.05), p))
    assert all(torch.equal(a, b) for a, b in zip(with_zero, plain, strict=True))
