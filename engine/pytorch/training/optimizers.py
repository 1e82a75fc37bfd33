"""Optimizers on torch's fused kernels: one call updates every parameter.

`kernels.py` has the kernels, the reason why they are called directly, and fallbacks for a torch without them.
tests/pytorch/test_optimizers.py compares them with torch.optim, bit by bit where the rule is the same.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import training
from engine.pytorch.training import kernels

EPS = 1e-8  # torch.optim's default for the adaptive optimizers, from Kingma & Ba 2015 (arXiv:1412.6980)
ADAGRAD_EPS = 1e-10  # the default of torch.optim.Adagrad


def build(spec: training.Optimizer, model: nn.Module) -> Optimizer:
    """The optimizer of a spec, for all parameters of the model."""
    return IMPLEMENTATIONS[spec.name].build(spec, model)


class Reference:
    """torch.optim's own classes with their defaults, with the interface of `Optimizer`.

    It is the baseline of measurements and the reference of tests.
    """

    def __init__(self, spec: training.Optimizer, model: nn.Module) -> None:
        self.params: list[Tensor] = list(model.parameters())
        self._optimizers = torch_optimizers(spec, model)

    @property
    def lr(self) -> float | Tensor:
        """The learning rate of the next step; setting it sets that of every parameter group."""
        lr: float | Tensor = self._optimizers[0].param_groups[0]["lr"]
        return lr

    @lr.setter
    def lr(self, lr: float | Tensor) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(self) -> None:
        """Move the parameters by their gradients."""
        for optimizer in self._optimizers:
            optimizer.step()

    def remembered(self) -> Callable[[], None]:
        """A function that restores the present state of the optimizers (not of the parameters)."""
        states = [copy.deepcopy(optimizer.state_dict()) for optimizer in self._optimizers]

        def restore() -> None:
            for optimizer, state in zip(self._optimizers, states, strict=True):
                optimizer.load_state_dict(state)

        return restore


def torch_optimizers(spec: training.Optimizer, model: nn.Module) -> list[torch.optim.Optimizer]:
    """torch.optim's own optimizers of a spec, with their defaults; Muon has an AdamW for what is not a matrix."""
    return IMPLEMENTATIONS[spec.name].reference(spec, model)


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices (rows, columns) that Muon updates: those of linear layers and recurrent cells.

    Embeddings are not among them, because they are only looked up; the kernel of a convolution is not a matrix.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.RNNBase)]
    return [weight for layer in layers for weight in layer.parameters(recurse=False) if weight.ndim == 2]


class Optimizer(ABC):
    """The part of torch.optim.Optimizer that training uses.

    `lr` can change between steps. For steps that are captured as a CUDA graph it is a scalar tensor on the GPU.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float | Tensor, weight_decay: float = 0.0) -> None:
        self.params: list[Tensor] = list(parameters)
        self.lr, self.weight_decay = lr, weight_decay
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for p in self.params}
        self._counters: list[Tensor] = []

    def zero_grad(self) -> None:
        """Set every gradient to None."""
        for p in self.params:
            p.grad = None

    @abstractmethod
    def step(self) -> None:
        """Move the parameters by their gradients."""

    def remembered(self) -> Callable[[], None]:
        """A function that restores the present state of the optimizer (not of the parameters)."""
        tensors = self.state_tensors()
        copies = [tensor.clone() for tensor in tensors]
        return lambda: kernels.foreach_copy_(tensors, copies) if tensors else None

    def state_tensors(self) -> list[Tensor]:
        """All tensors that a step changes beside the parameters: running means of their shapes, and step counts."""
        return [*(tensor for states in self.state.values() for tensor in states.values()), *self._counters]

    def _new_state(self, name: str) -> list[Tensor]:
        """A tensor of zeros for every parameter, in its memory format, because the kernels iterate over memory."""
        for p in self.params:
            self.state[p][name] = torch.zeros_like(p, requires_grad=False)
        return [self.state[p][name] for p in self.params]

    def _new_counts(self, number: int) -> list[Tensor]:
        """Step counters, scalars on the device of the parameters."""
        device = self.params[0].device if self.params else None
        self._counters = [torch.zeros((), device=device) for _ in range(number)]
        return self._counters

    def _grads(self) -> list[Tensor]:
        grads = [p.grad for p in self.params if p.grad is not None]
        assert len(grads) == len(self.params), "every parameter must have a gradient"
        return grads


class SGD(Optimizer):
    """torch.optim.SGD: v = momentum * v + gradient, w -= lr * v.

    `momentum` as in Polyak 1964; with `nesterov` the gradient is added to the next v (Sutskever et al. 2013, section
    2).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.momentum, self.nesterov = momentum, nesterov and momentum > 0
        # Velocities start at zero, so the first one is the gradient, as in torch.optim.SGD without dampening.
        self._velocities = self._new_state("momentum_buffer") if momentum else []

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        kernels.sgd_(
            self.params,
            self._grads(),
            self._velocities,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


class Adam(Optimizer):
    """torch.optim.Adam (Kingma & Ba 2015, arXiv:1412.6980), with bias correction and without AMSGrad.

    `decoupled` weight decay makes it AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        decoupled: bool = False,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.betas, self.decoupled = betas, decoupled
        self._means, self._squares = self._new_state("exp_avg"), self._new_state("exp_avg_sq")
        (self._count,) = self._new_counts(1)
        self._counts = [self._count] * len(self.params)  # the kernel reads one per parameter

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        self._count.add_(1)
        kernel = kernels.adamw_ if self.decoupled else kernels.adam_
        kernel(
            self.params,
            self._grads(),
            self._means,
            self._squares,
            state_steps=self._counts,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            eps=EPS,
            weight_decay=self.weight_decay,
        )


class Adagrad(Optimizer):
    """torch.optim.Adagrad (Duchi et al. 2011, JMLR 12): the gradient over the root of the sum of its squares."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float | Tensor, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self._sums = self._new_state("sum")
        (self._count,) = self._new_counts(1)
        self._counts = [self._count] * len(self.params)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        self._count.add_(1)
        kernels.adagrad_(
            self.params,
            self._grads(),
            self._sums,
            state_steps=self._counts,
            lr=self.lr,
            eps=ADAGRAD_EPS,
            weight_decay=self.weight_decay,
        )


class RMSprop(Optimizer):
    """torch.optim.RMSprop (Hinton 2012, lecture 6e): the gradient over the root of the running mean of its squares.

    torch has no fused kernel for it.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float | Tensor, weight_decay: float = 0.0, alpha: float = 0.99
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay)
        self.alpha = alpha
        self._squares, self._counts = self._new_state("square_avg"), self._new_counts(len(self.params))

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        kernels.rmsprop_(
            self.params,
            self._grads(),
            self._squares,
            state_steps=self._counts,
            lr=self.lr,
            alpha=self.alpha,
            eps=EPS,
            weight_decay=self.weight_decay,
        )


class Muon(Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for weight matrices, AdamW for everything else.

    Muon makes the momentum of each matrix orthogonal. The step is scaled by 0.2 sqrt(larger side) to the root mean
    square of AdamW's steps (Liu et al. 2025, arXiv:2502.16982), so that one learning rate serves both. torch.optim.Muon
    iterates in bfloat16; a CPU without bfloat16 arithmetic would take fifty times as long, so here the CPU iterates in
    float32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], matrices: list[nn.Parameter], spec: training.Optimizer
    ) -> None:
        super().__init__(parameters, lr=spec.lr, weight_decay=spec.weight_decay)
        chosen = {id(p) for p in matrices}
        self.momentum, self._matrices = spec.momentum, matrices
        rest = [p for p in self.params if id(p) not in chosen]
        self._adamw = Adam(
            rest,  # type: ignore[arg-type]
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            betas=(spec.beta1, spec.beta2),
            decoupled=True,
        )
        self.state |= self._adamw.state
        self._counters = self._adamw._counters
        for p in matrices:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters by their gradients."""
        self._adamw.lr = self.lr
        self._adamw.step()
        for p in self._matrices:
            assert p.grad is not None
            buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - self.momentum)
            update = orthogonal(p.grad.lerp(buffer, self.momentum))
            p.mul_(1 - self.lr * self.weight_decay)
            p.sub_(update * (0.2 * math.sqrt(max(p.shape)) * self.lr))


def orthogonal(x: Tensor) -> Tensor:
    """The orthogonal factor of a matrix x (m, n), approximately: a matrix of its shape and dtype.

    Its singular values lie between about 0.7 and 1.2, because five Newton-Schulz iterations with the coefficients of
    Jordan et al. 2024 (kellerjordan.github.io/posts/muon) trade exactness for speed.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x.float() if x.device.type == "cpu" else x.bfloat16()
    y = y.T if (tall := x.shape[0] > x.shape[1]) else y
    y = y / y.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = y @ y.T
        y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.T if tall else y).to(x.dtype)


# --- by name --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Implementation:
    """How to build an optimizer of this module, and those of torch.optim that it must equal."""

    build: Callable[[training.Optimizer, nn.Module], Optimizer]
    reference: Callable[[training.Optimizer, nn.Module], list[torch.optim.Optimizer]]


def _shared(spec: training.Optimizer) -> dict[str, Any]:
    return {"lr": spec.lr, "weight_decay": spec.weight_decay}


def _sgd(*, momentum: bool = False, nesterov: bool = False) -> Implementation:
    def momentum_of(spec: training.Optimizer) -> float:
        return spec.momentum if momentum else 0.0

    return Implementation(
        lambda spec, model: SGD(model.parameters(), **_shared(spec), momentum=momentum_of(spec), nesterov=nesterov),
        lambda spec, model: [
            torch.optim.SGD(
                model.parameters(),
                **_shared(spec),
                momentum=momentum_of(spec),
                nesterov=nesterov and momentum_of(spec) > 0,
            )
        ],
    )


def _adam(theirs: Callable[..., torch.optim.Optimizer], *, decoupled: bool) -> Implementation:
    def betas(spec: training.Optimizer) -> tuple[float, float]:
        return spec.beta1, spec.beta2

    return Implementation(
        lambda spec, model: Adam(model.parameters(), **_shared(spec), betas=betas(spec), decoupled=decoupled),
        lambda spec, model: [theirs(model.parameters(), **_shared(spec), betas=betas(spec))],
    )


def _torch_muon(spec: training.Optimizer, model: nn.Module) -> list[torch.optim.Optimizer]:
    chosen = matrices(model)
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in chosen)]
    muon = torch.optim.Muon(chosen, **_shared(spec), momentum=spec.momentum, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, **_shared(spec), betas=(spec.beta1, spec.beta2))]


IMPLEMENTATIONS: Mapping[training.OptimizerName, Implementation] = {
    "gd": _sgd(),  # differs from sgd only by its batch, the whole training split
    "sgd": _sgd(),
    "momentum": _sgd(momentum=True),
    "nesterov": _sgd(momentum=True, nesterov=True),
    "adagrad": Implementation(
        lambda spec, model: Adagrad(model.parameters(), **_shared(spec)),
        lambda spec, model: [torch.optim.Adagrad(model.parameters(), **_shared(spec))],
    ),
    "rmsprop": Implementation(
        lambda spec, model: RMSprop(model.parameters(), **_shared(spec), alpha=spec.alpha),
        lambda spec, model: [torch.optim.RMSprop(model.parameters(), **_shared(spec), alpha=spec.alpha)],
    ),
    "adam": _adam(torch.optim.Adam, decoupled=False),
    "adamw": _adam(torch.optim.AdamW, decoupled=True),
    "muon": Implementation(lambda spec, model: Muon(model.parameters(), matrices(model), spec), _torch_muon),
}

AnyOptimizer = Optimizer | Reference
