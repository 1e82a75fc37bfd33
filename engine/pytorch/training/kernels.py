"""Every name of torch that is private or deprecated, and a fallback for a torch without it.

The rest of the engine uses public names only. Private kernels are used because the public ones are slow: torch.optim's
`step` and `zero_grad` run profiler hooks, parameter groups and checks that cost 90 us per step, and its functions cost
27 us, half of a step of 784-128-10 at batch size 1. torch may rename or remove private names, so each one has a
fallback on public operations; the choice is made once, at import. A kernel that refuses our arguments counts as
missing. tests/pytorch/test_kernels.py compares kernels and fallbacks.

Set the environment variable ISOFLOP_PUBLIC_TORCH=1 to use the fallbacks with any torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

HIDDEN_BY = "ISOFLOP_PUBLIC_TORCH"
_RECOMPILE_LIMITS = {"recompile_limit": 1_024, "accumulated_recompile_limit": 4_096}  # more than any run compiles


def _private(path: str) -> Any | None:
    """The object at a dotted path below torch; None if torch has none or the environment variable hides it."""
    if os.environ.get(HIDDEN_BY):
        return None
    found: Any = torch
    names = path.split(".")
    for i, name in enumerate(names, start=1):  # sys.modules as well, because torch.optim deletes its modules' names
        found = sys.modules.get(".".join(["torch", *names[:i]])) or getattr(found, name, None)
    return found


def _chosen(
    path: str,
    fallback: Callable[..., Any],
    *trial: object,
    constants: dict[str, object] | None = None,
    **options: object,
) -> Callable[..., Any]:
    """torch's function at a dotted path if it takes the arguments of a trial call, else the fallback.

    `constants` are arguments that never change here and that the fallback does not have.
    """
    function = _private(path)
    if function is None:
        return fallback
    function = functools.partial(function, **constants) if constants else function
    try:
        function(*trial, **options)
    except (TypeError, RuntimeError):  # it takes other arguments, or does not run on this device
        return fallback
    found: Callable[..., Any] = function
    return found


# --- fallbacks: the rules of torch.optim, one tensor at a time (optimizers.py has the papers) ----------------------


def _sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    velocities: Sequence[Tensor],
    *,
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    for i, (p, g) in enumerate(zip(params, grads, strict=True)):
        change = g.add(p, alpha=weight_decay)
        if momentum:
            velocity = velocities[i].mul_(momentum).add_(change)
            change = change.add(velocity, alpha=momentum) if nesterov else velocity
        p.sub_(change * lr)


def _adam(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    means: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    state_steps: Sequence[Tensor],
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool = False,
) -> None:
    for p, g, mean, square, count in zip(params, grads, means, squares, state_steps, strict=True):
        if decoupled:
            p.mul_(1 - lr * weight_decay)
        else:
            g = g.add(p, alpha=weight_decay)
        mean.lerp_(g, 1 - beta1)
        square.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        steps = count.double()  # in float32, 1 - 0.999 has only four correct digits
        root = (square / (1 - beta2**steps)).sqrt_().add_(eps)
        p.sub_(mean / root * (lr / (1 - beta1**steps)))


def _adagrad(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    sums: Sequence[Tensor],
    *,
    state_steps: Sequence[Tensor],
    lr: float | Tensor,
    eps: float,
    weight_decay: float,
) -> None:
    for p, g, total in zip(params, grads, sums, strict=True):
        change = g.add(p, alpha=weight_decay)
        total.addcmul_(change, change)
        p.sub_(change / total.sqrt().add_(eps) * lr)


def _rmsprop(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    squares: Sequence[Tensor],
    *,
    state_steps: Sequence[Tensor],
    lr: float | Tensor,
    alpha: float,
    eps: float,
    weight_decay: float,
) -> None:
    for p, g, square in zip(params, grads, squares, strict=True):
        change = g.add(p, alpha=weight_decay)
        square.mul_(alpha).addcmul_(change, change, value=1 - alpha)
        p.sub_(change / square.sqrt().add_(eps) * lr)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _lerp(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def _threshold_backward(gradient: Tensor, outputs: Tensor, threshold: float, *, grad_input: Tensor) -> Tensor:
    return grad_input.copy_(gradient).masked_fill_(outputs <= threshold, 0)


# --- what the engine calls ----------------------------------------------------------------------------------------
# The optimizer kernels move lists of parameters in place by lists of gradients of the same shapes. State tensors have
# the shape of their parameter. `state_steps` is a list of scalars, one per parameter, which include this step already
# (for rmsprop the kernel counts them, and nothing reads them). `lr` can be a scalar tensor on the parameters' device.


def _one() -> list[Tensor]:
    return [torch.zeros(1)]


_COUNTS = {"state_steps": [torch.ones(())]}
_RATES: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0}
_BETAS: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}

# sgd_(params, grads, velocities or [], *, lr, momentum, weight_decay, nesterov)
sgd_ = _chosen(
    "_fused_sgd_",
    _sgd,
    _one(),
    _one(),
    [],
    momentum=0.0,
    nesterov=False,
    **_RATES,
    constants={"dampening": 0.0, "maximize": False, "is_first_step": False},
)
# adam_ and adamw_(params, grads, means, squares, *, state_steps, lr, beta1, beta2, eps, weight_decay)
_AMSGRAD: dict[str, object] = {"max_exp_avg_sqs": [], "amsgrad": False, "maximize": False}
adam_ = _chosen(
    "_fused_adam_", _adam, _one(), _one(), _one(), _one(), **_COUNTS, **_RATES, **_BETAS, constants=_AMSGRAD
)
adamw_ = _chosen(
    "_fused_adamw_",
    functools.partial(_adam, decoupled=True),
    _one(),
    _one(),
    _one(),
    _one(),
    **_COUNTS,
    **_RATES,
    **_BETAS,
    constants=_AMSGRAD,
)
# adagrad_(params, grads, sums, *, state_steps, lr, eps, weight_decay)
adagrad_ = _chosen(
    "_fused_adagrad_",
    _adagrad,
    _one(),
    _one(),
    _one(),
    **_COUNTS,
    **_RATES,
    eps=1e-10,
    constants={"lr_decay": 0.0, "maximize": False},
)
# rmsprop_(params, grads, squares, *, state_steps, lr, alpha, eps, weight_decay); torch has no fused kernel for it
rmsprop_ = _chosen(
    "optim.rmsprop.rmsprop",
    _rmsprop,
    _one(),
    _one(),
    _one(),
    **_COUNTS,
    **_RATES,
    alpha=0.99,
    eps=1e-8,
    constants={
        "grad_avgs": [],
        "momentum_buffer_list": [],
        "foreach": True,
        "momentum": 0.0,
        "centered": False,
        "maximize": False,
    },
)
# foreach_copy_(targets, sources) and foreach_lerp_(tensors, ends, weight): lists of tensors of equal shapes
foreach_copy_ = _chosen("_foreach_copy_", _copy, _one(), _one())
foreach_lerp_ = _chosen("_foreach_lerp_", _lerp, _one(), _one(), 0.5)
# relu_backward_(gradient, outputs, 0, grad_input=gradient): the gradient before a ReLU from that after it, in place
relu_backward_ = _chosen(
    "ops.aten.threshold_backward.grad_input", _threshold_backward, _one()[0], _one()[0], 0, grad_input=_one()[0]
)


def int_mm() -> Callable[[Tensor, Tensor], Tensor] | None:
    """torch's product of int8 matrices, (m, k) times (k, n) to int32 (m, n), or None if torch has none."""
    return _private("_int_mm")


def quantize_dynamic() -> Callable[..., nn.Module] | None:
    """torch.ao.quantization.quantize_dynamic (int8 weights of linear and recurrent layers), or None if torch has none.

    torch.ao is deprecated and will be removed.
    """
    return _private("ao.quantization.quantize_dynamic")


def has_hooks(owner: nn.Module | Tensor) -> bool:
    """Whether a module or a parameter has a forward or backward hook, or all modules have one.

    True as well if torch no longer has the attributes that show it, because hooks cannot be excluded then.
    """
    if isinstance(owner, Tensor):
        attributes = ["_backward_hooks", "_post_accumulate_grad_hooks"]
    else:
        attributes = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"]
    everywhere = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)
    return bool(everywhere()) or any(getattr(owner, name, True) for name in attributes)


def import_compiler() -> None:
    """Import torch._dynamo if torch has it, because the first optimizer step would import it (1.5 s)."""
    if importlib.util.find_spec("torch._dynamo"):
        importlib.import_module("torch._dynamo")


def raise_recompile_limits() -> None:
    """Let torch.compile keep many variants of one function, because beyond its limit it silently falls back to eager.

    Limits that this torch does not have are left out.
    """
    limits = _private("_dynamo.config")
    for name, least in _RECOMPILE_LIMITS.items():
        if hasattr(limits, name):
            setattr(limits, name, max(least, getattr(limits, name)))
