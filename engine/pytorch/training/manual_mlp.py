"""A hand-written backward pass of a multilayer perceptron: a dozen kernel calls into buffers that are reused.

Autograd builds a graph, traverses it and allocates every gradient again in each step. For a small model that costs more
than its arithmetic: at batch size 1 a step of 784-128-10 took twice as long, at batch size 64 a third longer. The
gradients equal autograd's up to the last bits (tests/pytorch/test_manual_mlp.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.pytorch.training import kernels


@dataclass(slots=True)
class _Buffers:
    """The buffers for batches of one size: each layer's output, and the gradient of the loss with respect to it.

    Those for a smaller batch, the last of an epoch, are the first rows of those for a larger one.
    """

    outputs: list[Tensor]  # (rows, fan_out)
    deltas: list[Tensor]  # (rows, fan_out), the gradients
    transposed: list[Tensor]  # (fan_out, rows), views of the deltas
    minus: Tensor  # (rows, 1): -1 / rows, which the gradient of cross-entropy has at the label


class ManualMLP:
    """Loss and gradients of linear layers with ReLU between them under mean cross-entropy.

    `ManualMLP.of` makes one from a module and checks that the gradients below are those of that module.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """`layers` are the linear layers from input to output: float32, on the CPU, with biases, no layer twice."""
        self._weights, self._biases = (
            [layer.weight.detach() for layer in layers],
            [layer.bias.detach() for layer in layers],
        )
        self._transposed = [weight.t() for weight in self._weights]
        self._parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        self._gradients: list[Tensor] = []
        self._buffers: dict[int, _Buffers] = {}

    @classmethod
    def of(cls, module: nn.Module) -> ManualMLP | None:
        """The backward pass of `module`, or None if it is not exactly Linear, ReLU, ..., Linear; then use autograd.

        This looks at the module and never at the configuration that it was built from, so that a layer that changes
        there is never trained with the gradients of another layer. The module must be an nn.Sequential itself, because
        a subclass can do more. Its parameters must require gradients, be float32 on the CPU, and be used once; every
        layer must have a bias, and no hook may be registered.
        """
        if type(module) is not nn.Sequential or len(module) % 2 == 0:
            return None
        parts: list[nn.Module] = list(module)
        if any(type(part) is not kind for part, kind in zip(parts, cycle((nn.Linear, nn.ReLU)), strict=False)):
            return None
        layers = [part for part in parts if isinstance(part, nn.Linear)]
        parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        if len({id(p) for p in parameters if _is_plain(p)}) < len(parameters):  # one is not plain, or occurs twice
            return None
        hookable: list[nn.Module | Tensor] = [module, *parts, *parameters]
        is_replaced = any("forward" in vars(part) for part in (module, *parts))
        return None if is_replaced or any(map(kernels.has_hooks, hookable)) else cls(layers)

    def forget(self) -> None:
        """Free all buffers and gradients; the next backward pass reallocates them."""
        self._gradients, self._buffers = [], {}

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradients of a batch's mean cross-entropy to the parameters' `.grad`; returns that loss, a scalar.

        x is float32 (rows, values), y int64 (rows,) with the classes. The next call overwrites the gradients.
        """
        log_p = self.forward(x)
        self.gradients(x, y, log_p)
        return F.nll_loss(log_p, y)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (rows, classes) of a batch x (rows, values); the layers' outputs are kept in the buffers.

        Call this and `gradients` under one torch.no_grad(), because switching autograd off costs as much as a kernel.
        """
        buffers, last = self._buffers.get(len(x)) or self._new_buffers(len(x)), len(self._weights) - 1
        outputs, a = buffers.outputs, x
        for i, (weight, bias) in enumerate(zip(self._transposed, self._biases, strict=True)):
            a = torch.addmm(bias, a, weight, out=outputs[i])
            if i < last:
                a.relu_()
        return torch.log_softmax(a, 1)

    def gradients(self, x: Tensor, y: Tensor, log_p: Tensor) -> None:
        """Write the gradients after `forward` of the same batch: x (rows, values), y (rows,), log_p (rows, classes)."""
        rows, last = len(y), len(self._weights) - 1
        buffers = self._buffers[rows]
        outputs, deltas = buffers.outputs, buffers.deltas
        # The gradient of the mean loss with respect to the logits is (softmax - one-hot) / rows.
        torch.exp(log_p, out=deltas[last]).mul_(1 / rows).scatter_add_(1, y.unsqueeze(1), buffers.minus)
        for i in range(last, -1, -1):
            torch.mm(buffers.transposed[i], outputs[i - 1] if i else x, out=self._gradients[2 * i])
            torch.sum(deltas[i], 0, out=self._gradients[2 * i + 1])
            if i:
                delta = torch.mm(deltas[i], self._weights[i], out=deltas[i - 1])
                kernels.relu_backward_(delta, outputs[i - 1], 0, grad_input=delta)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _new_buffers(self, rows: int) -> _Buffers:
        if not self._gradients:
            self._gradients = [torch.empty_like(p, requires_grad=False) for p in self._parameters]
        if larger := next((held for size, held in self._buffers.items() if size > rows), None):
            outputs, deltas = ([buffer[:rows] for buffer in part] for part in (larger.outputs, larger.deltas))
        else:
            outputs, deltas = ([bias.new_empty(rows, len(bias)) for bias in self._biases] for _ in range(2))
        minus = torch.full((rows, 1), -1 / rows)
        self._buffers[rows] = _Buffers(outputs, deltas, [delta.t() for delta in deltas], minus)
        return self._buffers[rows]


def _is_plain(parameter: Tensor | None) -> bool:
    """Whether this is an nn.Parameter itself that requires gradients, float32, on the CPU (None is a missing bias)."""
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.dtype == torch.float32
        and parameter.device.type == "cpu"
    )
