"""The hand-written gradients of a multilayer perceptron equal autograd's, and no other module gets them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engine.config.models import MLP
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.data.datasets import DATASETS
from engine.pytorch import models
from engine.pytorch.training import optimizers
from engine.pytorch.training.manual_mlp import ManualMLP
from engine.pytorch.training.net import Net

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
    assert ManualMLP.of(model).backward(x, y).item() == pytest.approx(loss, rel=1e-6)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-5, atol=1e-7)


def test_batches_of_several_sizes_take_turns():
    model = models.build(MLP(hidden=(16,)), DATA, seed=1)
    written = ManualMLP.of(model)
    for rows, seed in [(64, 1), (30, 2), (64, 3), (1, 4), (30, 5)]:
        x, y = batch(rows, seed)
        _, gradients = autograd(model, x, y)
        written.backward(x, y)
        assert all(torch.allclose(p.grad, g, atol=1e-6) for p, g in zip(model.parameters(), gradients, strict=True))


def test_it_follows_weights_that_were_moved_in_place():
    model, (x, y) = models.build(MLP(hidden=(16,)), DATA, seed=1), batch(8)
    written = ManualMLP.of(model)
    before = written.backward(x, y).item()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    assert written.backward(x, y).item() == pytest.approx(F.cross_entropy(model(x), y).item()) != before


def test_a_loss_without_bounds_is_told_as_it_is():
    model = models.build(MLP(hidden=(16,)), DATA, seed=1)
    with torch.no_grad():
        model[0].weight.fill_(float("inf"))
    assert torch.isnan(ManualMLP.of(model).backward(*batch(8)))


# --- which modules it takes, and which steps ----------------------------------------------------------------------


def mlp(hidden=(16, 12)):
    return models.build(MLP(hidden=hidden), DATA, seed=1)


def net_of(model, *assignments):
    chosen = with_overrides(PRESETS["digits-mlp"].config, assignments)
    return Net(chosen, model, optimizers.build(chosen.optimizer, model), micro_batch=64)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Identity, nn.LeakyReLU, nn.ReLU6])
def test_a_model_whose_activation_was_swapped_trains_with_autograds_gradients(activation):
    model, (x, y) = mlp(), batch(64)
    model[1] = activation()
    net = net_of(model)
    for _ in range(5):
        loss, gradients = autograd(model, x, y)
        assert net.backward(x, y).item() == pytest.approx(loss, rel=1e-6)
        assert all(torch.allclose(p.grad, g, atol=1e-7) for p, g in zip(model.parameters(), gradients, strict=True))
        net.update()


def changed(change):
    model = mlp()
    other = change(model)
    return other if isinstance(other, nn.Sequential) else model


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


def double_the_output(module, inputs, output):
    return 2 * output


OTHERS = {
    "another activation": lambda m: m.__setitem__(1, nn.Tanh()),
    "no activation": lambda m: nn.Sequential(m[0], m[2]),
    "an activation at the end": lambda m: m.append(nn.ReLU()),
    "a layer more": lambda m: m.insert(1, nn.LayerNorm(16)),
    "no layer": lambda m: nn.Sequential(),
    "no bias": lambda m: m.__setitem__(2, nn.Linear(16, 12, bias=False)),
    "one layer used twice": lambda m: nn.Sequential(layer := nn.Linear(64, 64), nn.ReLU(), layer),
    "one weight used twice": lambda m: setattr(m[2], "bias", m[0].bias),
    "a frozen weight": lambda m: m[0].weight.requires_grad_(False),
    "another precision": lambda m: m.double(),
    "another device": lambda m: m.to("meta"),
    "another Sequential": lambda m: Doubled(*m),
    "a Linear of its own": lambda m: m.__setitem__(0, type("Mine", (nn.Linear,), {})(64, 16)),
    "another forward": lambda m: setattr(m[0], "forward", lambda x: x[:, :16]),
    "a forward hook": lambda m: m[0].register_forward_hook(double_the_output),
    "a hook on the model": lambda m: m.register_forward_hook(double_the_output),
    "a forward pre-hook": lambda m: m[0].register_forward_pre_hook(lambda module, inputs: None),
    "a backward hook": lambda m: m[0].register_full_backward_hook(lambda module, a, b: None),
    "a backward pre-hook": lambda m: m[0].register_full_backward_pre_hook(lambda module, a: None),
    "a hook on a gradient": lambda m: m[0].weight.register_hook(lambda g: 2 * g),
    "a hook after a gradient": lambda m: m[0].weight.register_post_accumulate_grad_hook(lambda p: None),
    "a parametrization": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_any_other_module_is_left_to_autograd(change):
    assert ManualMLP.of(mlp()) is not None
    assert ManualMLP.of(changed(change)) is None


def test_a_module_is_left_to_autograd_while_a_hook_watches_all_modules():
    handle = nn.modules.module.register_module_forward_hook(double_the_output)
    try:
        assert ManualMLP.of(mlp()) is None
    finally:
        handle.remove()
    assert ManualMLP.of(mlp()) is not None


@pytest.mark.parametrize("family", ["cnn", "rnn", "transformer"])
def test_other_families_are_left_to_autograd(family):
    chosen = with_overrides(RunConfig(), ["data=digits", f"model.family={family}"])
    assert ManualMLP.of(models.build(chosen.model, DATA, seed=1)) is None


@pytest.mark.parametrize(
    "assignment",
    ["precision=bf16", "execution=dataloader", "execution=compiled", "grad_accumulation=2", "label_smoothing=0.1"],
)
def test_steps_that_are_not_as_plain_are_left_to_autograd(assignment):
    assert net_of(mlp()).manual_mlp is not None
    assert net_of(mlp(), assignment).manual_mlp is None


def test_a_checkpointed_model_is_left_to_autograd():
    assert ManualMLP.of(models.build(MLP(hidden=(16, 12)), DATA, seed=1, checkpointing=True)) is None
