"""torch's private names: all of them are in one module, and each has a fallback that computes the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.pytorch.inference.runtimes import FORMS, NotOffered
from engine.pytorch.training import kernels

ENGINE = Path(__file__).resolve().parents[2] / "engine"
PRIVATE = r"torch(\.\w+)*\._(?!_)|torch\.ao\b|torch\.ops\b|optim\.rmsprop\b"
RATES = {"lr": 0.01, "weight_decay": 0.1}
BETAS = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
SHAPES = [(3, 4), (5,), (2, 3, 2, 2)]


def test_torchs_private_names_stand_in_one_module():
    found = [
        f"{path.relative_to(ENGINE)}: {line.strip()}"
        for path in ENGINE.rglob("*.py")
        if path.name != "kernels.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(PRIVATE, line.split('f"')[0].split("#")[0])
    ]
    assert (ENGINE / "pytorch/training/kernels.py").exists()
    assert not found


def test_the_pinned_torch_has_every_private_name():
    fallbacks = {name for name, value in vars(kernels).items() if getattr(value, "__module__", "") == kernels.__name__}
    chosen = [name for name in vars(kernels) if name.endswith("_") and not name.startswith("_")]
    assert len(chosen) == 8
    assert not fallbacks & set(chosen)
    assert kernels.int_mm() and kernels.quantize_dynamic()


def tensors(seed: int, *, positive: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [t.abs() for t in drawn] if positive else drawn


CASES = {
    "sgd": ("sgd_", 0, {**RATES, "momentum": 0.0, "nesterov": False}),
    "momentum": ("sgd_", 1, {**RATES, "momentum": 0.9, "nesterov": False}),
    "nesterov": ("sgd_", 1, {**RATES, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam_", 2, {**RATES, **BETAS}),
    "adamw": ("adamw_", 2, {**RATES, **BETAS}),
    "adagrad": ("adagrad_", 1, {**RATES, "eps": 1e-10}),
    "rmsprop": ("rmsprop_", 1, {**RATES, "alpha": 0.99, "eps": 1e-8}),
}


def moved(name: str, states: int, options: dict, *, tensor_lr: bool = False) -> list[torch.Tensor]:
    """Parameters and states after three calls of a kernel."""
    params, state = tensors(0), [tensors(seed, positive=True) for seed in range(10, 10 + states)]
    options = options | ({"lr": torch.tensor(options["lr"])} if tensor_lr else {})
    for step in (1, 2, 3):
        counts = {} if name == "sgd_" else {"state_steps": [torch.tensor(float(step))] * len(params)}
        kernel = getattr(kernels, name)
        kernel(params, tensors(step), *(state or [[]] if name == "sgd_" else state), **counts, **options)
    return [*params, *(t for part in state for t in part)]


@pytest.fixture
def before_hiding() -> dict[str, list[torch.Tensor]]:
    return {case: moved(*arguments) for case, arguments in CASES.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_fallback_moves_parameters_and_states_as_its_kernel_does(before_hiding, torch_names, case, tensor_lr):
    for here, there in zip(moved(*CASES[case], tensor_lr=tensor_lr), before_hiding[case], strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


def test_lists_are_copied_and_interpolated(torch_names):
    a, b = tensors(0), tensors(1)
    kernels.foreach_copy_(a, b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    kernels.foreach_lerp_(a, tensors(2), 0.25)
    for x, y, z in zip(a, b, tensors(2), strict=True):
        torch.testing.assert_close(x, 0.75 * y + 0.25 * z)


def test_a_relus_gradient_is_autograds_also_where_the_output_is_no_number(torch_names):
    outputs = torch.tensor([-1.0, 0.0, 2.0, float("nan"), 0.0])
    gradient = torch.tensor([1.0, float("inf"), 3.0, 4.0, float("nan")])
    told = kernels.relu_backward_(gradient, outputs, 0, grad_input=gradient)
    assert told is gradient
    assert gradient.tolist() == [0.0, 0.0, 3.0, 4.0, 0.0]


def test_a_kernel_that_takes_other_arguments_counts_as_missing(monkeypatch):
    monkeypatch.setattr(torch, "_foreach_copy_", lambda targets: None)
    assert kernels._chosen("_foreach_copy_", kernels._copy, [torch.zeros(1)], [torch.zeros(1)]) is kernels._copy


def test_without_dynamic_quantisation_int8_is_not_offered(monkeypatch):
    monkeypatch.setenv(kernels.HIDDEN_BY, "1")
    with pytest.raises(NotOffered, match="no dynamic quantisation"):
        FORMS["int8"].prepare(object())


def test_recompile_limits_are_raised_and_never_lowered(monkeypatch):
    from torch._dynamo import config

    assert kernels._private("_dynamo.config") is config
    limits = SimpleNamespace(recompile_limit=8, accumulated_recompile_limit=10_000)
    monkeypatch.setattr(kernels, "_private", lambda path: limits)
    kernels.raise_recompile_limits()
    assert (limits.recompile_limit, limits.accumulated_recompile_limit) == (1_024, 10_000)


def test_recompile_limits_that_torch_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setenv(kernels.HIDDEN_BY, "1")
    kernels.raise_recompile_limits()
