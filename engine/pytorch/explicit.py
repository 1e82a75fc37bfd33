"""The gradients of a multilayer perceptron written out: the chain rule as a dozen kernel calls into buffers that stay.

Autograd builds a graph, walks it in another order and allocates every gradient anew, each step. For a small net that
costs more than its arithmetic: at batch size 1 a step of 784-128-10 took twice as long, at 64 a third longer. The
numbers are autograd's to the last bits (tests/test_explicit.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config import RunConfig


def applies(config: RunConfig) -> bool:
    """Where a run is as plain as this is: an MLP in float32 on the CPU, one batch per step, its labels as they are."""
    return (
        config.model.family == "mlp"
        and config.device == "cpu"
        and config.precision == "fp32"
        and config.execution == "eager"
        and config.grad_accumulation == 1
        and config.label_smoothing == 0
        and not config.activation_checkpointing
        and not config.is_parallel  # what wraps a model lives in autograd
    )


@dataclass(slots=True)
class _Buffers:
    """For batches of one size: each layer's output, the loss's gradient with respect to it, and that transposed."""

    outputs: list[Tensor]  # (rows, fan_out)
    deltas: list[Tensor]
    transposed: list[Tensor]  # views of the deltas
    minus: Tensor  # (rows, 1): what cross-entropy subtracts at the label


class ExplicitMLP:
    """Loss and gradients of linear layers with ReLU between them under mean cross-entropy."""

    def __init__(self, model: nn.Sequential) -> None:
        layers = [layer for layer in model if isinstance(layer, nn.Linear)]
        self._weights, self._biases = (
            [layer.weight.detach() for layer in layers],
            [layer.bias.detach() for layer in layers],
        )
        self._transposed = [weight.t() for weight in self._weights]
        self._parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
        self._gradients: list[Tensor] = []
        self._buffers: dict[int, _Buffers] = {}

    def forget(self) -> None:
        """Let go of all buffers; the next backward makes them again."""
        self._gradients, self._buffers = [], {}

    @torch.no_grad()
    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradients of the mean loss over x (rows, values), y (rows,) to the parameters; returns the loss."""
        log_p = self.forward(x)
        self.gradients(x, y, log_p)
        return F.nll_loss(log_p, y)

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms (rows, classes) of what the model gives each class; the layers' outputs stay in the buffers.

        This and `gradients` are to be called without autograd: to switch it off costs as much as a kernel.
        """
        buffers, last = self._buffers.get(len(x)) or self._new_buffers(len(x)), len(self._weights) - 1
        outputs, a = buffers.outputs, x
        for i, (weight, bias) in enumerate(zip(self._transposed, self._biases, strict=True)):
            a = torch.addmm(bias, a, weight, out=outputs[i])
            if i < last:
                a.relu_()
        return torch.log_softmax(a, 1)

    def gradients(self, x: Tensor, y: Tensor, log_p: Tensor) -> None:
        """The backward pass after `forward` of the same batch."""
        rows, last = len(y), len(self._weights) - 1
        buffers = self._buffers[rows]
        outputs, deltas = buffers.outputs, buffers.deltas
        # With respect to the logits the mean loss has the gradient (softmax - one-hot) / rows.
        torch.exp(log_p, out=deltas[last]).mul_(1 / rows).scatter_add_(1, y.unsqueeze(1), buffers.minus)
        for i in range(last, -1, -1):
            torch.mm(buffers.transposed[i], outputs[i - 1] if i else x, out=self._gradients[2 * i])
            torch.sum(deltas[i], 0, out=self._gradients[2 * i + 1])
            if i:
                delta = torch.mm(deltas[i], self._weights[i], out=deltas[i - 1])
                torch.ops.aten.threshold_backward.grad_input(delta, outputs[i - 1], 0, grad_input=delta)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _new_buffers(self, rows: int) -> _Buffers:
        if not self._gradients:
            self._gradients = [torch.empty_like(p, requires_grad=False) for p in self._parameters]
        outputs, deltas = ([bias.new_empty(rows, len(bias)) for bias in self._biases] for _ in range(2))
        minus = torch.full((rows, 1), -1 / rows)
        self._buffers[rows] = _Buffers(outputs, deltas, [delta.t() for delta in deltas], minus)
        return self._buffers[rows]
