"""The closed forms of the model families against PyTorch's own modules, flop counter and optimizers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from engine import families
from engine.config import CNN, MLP, PRESETS, Optimizer
from engine.datasets import DATASETS
from engine.pytorch import models, optim

CASES = {name: (preset.config.model, preset.config.data) for name, preset in PRESETS.items()} | {
    "softmax": (MLP(hidden=()), "mnist5k"),
    "deep": (MLP(hidden=(7, 33, 1, 5)), "mnist5k"),
    "digits-wide": (MLP(hidden=(512, 512)), "digits"),
    "lenet-quarter": (CNN(width=0.25), "mnist5k"),
    "lenet-odd": (CNN(width=1.7), "mnist5k"),
    "lenet-4": (CNN(width=4.0), "mnist5k"),
    "lenet-digits": (CNN(), "digits"),
}
every_case = pytest.mark.parametrize(("model", "data"), CASES.values(), ids=CASES)
every_batch = pytest.mark.parametrize("batch_size", [1, 7, 64])


def on_meta(model, data, batch_size):
    """The module and a batch of its input, without memory behind them."""
    shape = (models.input_side(model),) * 2 if models.input_side(model) else DATASETS[data].shape
    module = models.build(model, DATASETS[data], seed=0, device="meta")
    return module, torch.empty(batch_size, 1, *shape, device="meta")


@every_case
def test_parameters_match_the_module(model, data):
    module, _ = on_meta(model, data, 1)
    assert families.parameters(model, DATASETS[data]) == sum(p.numel() for p in module.parameters())


@every_case
@every_batch
def test_forward_flops_match_the_torch_flop_counter(model, data, batch_size):
    module, x = on_meta(model, data, batch_size)
    with FlopCounterMode(display=False) as counter:
        module(x)
    assert families.forward_flops_per_example(model, DATASETS[data]) * batch_size == counter.get_total_flops()


@every_case
@every_batch
def test_training_flops_match_the_torch_flop_counter(model, data, batch_size):
    module, x = on_meta(model, data, batch_size)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(module(x), torch.empty(batch_size, dtype=torch.int64, device="meta")).backward()
    assert families.train_flops_per_example(model, DATASETS[data]) * batch_size == counter.get_total_flops()


@pytest.mark.parametrize("name", ["sgd", "gd", "momentum", "adam"])
def test_optimizer_bytes_match_the_optimizers_state_after_a_step(name):
    module, spec = torch.nn.Linear(30, 20), Optimizer(name=name)
    optimizer = optim.build(spec, module.parameters())
    module(torch.zeros(1, 30)).sum().backward()
    optimizer.step()
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    held = sum(t.nbytes for t in tensors if t.dim())  # a step counter has no dimension
    assert families.optimizer_bytes(spec, 620) == held
