"""The optimizers on fused kernels compute what torch.optim does, and the identities between them hold."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.config.models import CNN, MLP, RNN
from engine.config.training import Optimizer
from engine.data.datasets import DATASETS
from engine.pytorch import models
from engine.pytorch.training import optimizers
from engine.pytorch.training.net import cross_entropy

DATA, FUSED = DATASETS["digits"], {"fused": True}
NETS = {"mlp": MLP(hidden=(32,)), "cnn": CNN(), "rnn": RNN(hidden_size=8)}
every_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)


def trained(net, optimizer_of, *, steps=20, seed=3):
    """The weights after some steps on one batch of noise."""
    model = models.build(net, DATA, seed=seed)
    optimizer = optimizer_of(model)
    x = torch.randn(32, *INPUTS[type(net)], generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(x), torch.arange(32) % 10).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


INPUTS = {MLP: (64,), CNN: (1, 32, 32), RNN: (8, 8)}


def ours(name, **fields):
    return lambda model: optimizers.build(Optimizer(name=name, **fields), model)


def reference(name, **fields):
    return lambda model: optimizers.Reference(Optimizer(name=name, **fields), model)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, tolerance):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


# --- against torch.optim -------------------------------------------------------------------------------------------

BIT_IDENTICAL = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "gd": lambda p: torch.optim.SGD(p, lr=0.05, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.0, fused=True),
}


@every_net
@pytest.mark.parametrize("name", BIT_IDENTICAL)
def test_twenty_steps_are_bit_identical_to_torch_optim(name, net):
    theirs = trained(net, lambda model: BIT_IDENTICAL[name](model.parameters()))
    assert equal(trained(net, ours(name, lr=0.05)), theirs)


@every_net
@pytest.mark.parametrize("name", BIT_IDENTICAL)
def test_twenty_steps_without_private_kernels_are_torch_optims(name, net, torch_names):
    """Up to rounding, because the formulas differ: if a gradient is about eps, the root of its square is not exact."""
    theirs = trained(net, lambda model: BIT_IDENTICAL[name](model.parameters()))
    assert close(trained(net, ours(name, lr=0.05)), theirs, 1e-3)


@every_net
@pytest.mark.parametrize("name", BIT_IDENTICAL)
def test_weight_decay_is_torch_optims(name, net):
    fields = {"lr": 0.01, "weight_decay": 0.1}
    assert close(trained(net, ours(name, **fields), steps=8), trained(net, reference(name, **fields), steps=8), 1e-4)


def test_weight_decay_moves_the_weights():
    plain, decayed = (trained(NETS["mlp"], ours("sgd", lr=0.05, weight_decay=d)) for d in (0.0, 0.1))
    assert not close(plain, decayed, 1e-3)


# --- identities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_momentum_zero_is_sgd(name):
    assert equal(trained(NETS["mlp"], ours(name, lr=0.05, momentum=0.0)), trained(NETS["mlp"], ours("sgd", lr=0.05)))


def test_gd_and_sgd_are_one_rule():
    assert equal(trained(NETS["mlp"], ours("gd", lr=0.05)), trained(NETS["mlp"], ours("sgd", lr=0.05)))


def test_adamw_without_decay_is_adam():
    assert equal(trained(NETS["mlp"], ours("adamw")), trained(NETS["mlp"], ours("adam")))


def test_adamw_with_decay_is_not_adam_with_decay():
    both = [trained(NETS["mlp"], ours(name, lr=0.01, weight_decay=0.1)) for name in ("adamw", "adam")]
    assert not close(*both, 1e-3)


def test_nesterov_looks_ahead_of_momentum():
    assert not close(*(trained(NETS["mlp"], ours(name, lr=0.05)) for name in ("momentum", "nesterov")), 1e-4)


def test_adam_without_a_mean_is_rmsprop_with_its_bias_corrected():
    """Dividing v by 1 - b^t under the root multiplies the learning rate by the root of 1 - b^t, apart from eps."""
    alpha = 0.9

    class CorrectedRMSprop(optimizers.RMSprop):
        def step(self):
            self.count = getattr(self, "count", 0) + 1
            self.lr = 0.01 * (1 - alpha**self.count) ** 0.5
            super().step()

    adam = trained(NETS["mlp"], ours("adam", lr=0.01, beta1=0.0, beta2=alpha))
    rmsprop = trained(NETS["mlp"], lambda m: CorrectedRMSprop(list(m.parameters()), lr=0.01, alpha=alpha))
    # Where a gradient is as small as eps, the two roots differ: pixels that are always zero have none at all.
    assert close(adam, rmsprop, 2e-3)


def test_rmsprop_that_forgets_at_once_goes_by_the_sign():
    before = trained(NETS["mlp"], ours("rmsprop", alpha=0.0, lr=0.01), steps=0)
    after = trained(NETS["mlp"], ours("rmsprop", alpha=0.0, lr=0.01), steps=1)
    moves = torch.cat([(b - a).abs().flatten() for a, b in zip(before, after, strict=True)])
    assert torch.allclose(moves[moves > 0], torch.tensor(0.01), rtol=1e-2)


def test_adagrads_first_step_is_rmsprops_that_forgets_at_once():
    first = [trained(NETS["mlp"], ours("adagrad", lr=0.01), steps=1),
             trained(NETS["mlp"], ours("rmsprop", lr=0.01, alpha=0.0), steps=1)]  # fmt: skip
    assert close(*first, 1e-3)


# --- muon ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (20, 6), (6, 20), (1, 7)])
def test_newton_schulz_brings_all_singular_values_near_one(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    y = optimizers.orthogonal(x)
    assert torch.linalg.svdvals(y).sub(1).abs().max() < 0.35
    assert (y - u @ vh).norm() / (u @ vh).norm() < 0.35  # the same singular vectors


def test_muon_moves_matrices_and_leaves_the_rest_to_adamw():
    model = models.build(NETS["cnn"], DATA, seed=0)
    optimizer = optimizers.build(Optimizer(name="muon"), model)
    kinds = {p.ndim: set(optimizer.state[p]) for p in model.parameters()}
    assert kinds == {1: {"exp_avg", "exp_avg_sq"}, 2: {"momentum_buffer"}, 4: {"exp_avg", "exp_avg_sq"}}


@pytest.mark.parametrize(("steps", "tolerance"), [(1, 0.02), (10, 0.1)])
def test_muon_follows_torch_optim_muon(steps, tolerance):
    """torch.optim.Muon iterates in bfloat16 (three digits), so the difference is relative to the distance moved."""
    fields = {"lr": 0.01, "momentum": 0.95, "weight_decay": 0.1}
    start = trained(NETS["rnn"], ours("muon", **fields), steps=0)
    mine, theirs = (trained(NETS["rnn"], build("muon", **fields), steps=steps) for build in (ours, reference))
    for a, b, s in zip(mine, theirs, start, strict=True):
        assert (a - b).norm() < tolerance * (b - s).norm()


# --- a learning rate that moves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
def test_a_changed_learning_rate_counts_from_the_next_step(name):
    def alternating(build):
        def of(model):
            optimizer, rates, step = build(model), itertools.cycle([0.05, 0.001]), None
            step = optimizer.step

            def next_step():
                optimizer.lr = next(rates)
                step()

            optimizer.step = next_step
            return optimizer

        return of

    mine, theirs = (trained(NETS["mlp"], alternating(b(name, lr=1.0)), steps=6) for b in (ours, reference))
    assert close(mine, theirs, 1e-5)
