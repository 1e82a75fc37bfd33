"""Model families as arithmetic: layers, parameters, FLOPs and bytes in closed form, without building anything.

FLOPs follow `torch.utils.flop_counter`: a multiply-add is 2, matrix products and convolutions only. Training counts
the forward pass, the gradient of every weight, and the gradient of every layer's input but the first layer's, which
nobody needs; "backward is twice forward" would overcount by exactly that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

from engine.config import CNN, MLP, ModelSpec, Optimizer
from engine.datasets import Dataset

FLOAT_BYTES = 4
CNN_SIDE = 32  # LeNet's input; smaller images are padded or enlarged to it (pytorch/data.py)
KERNEL = 5
POOL = 2


@dataclass(frozen=True, slots=True)
class Layer:
    """One weighted layer, per example: `positions` products of a (fan_in,) vector with a (fan_in, fan_out) matrix."""

    kind: str  # "linear" or "conv"
    fan_in: int
    fan_out: int
    positions: int = 1  # output pixels of a convolution

    @property
    def parameters(self) -> int:
        return self.fan_in * self.fan_out + self.fan_out  # weights and biases

    @property
    def forward_flops(self) -> int:
        return 2 * self.positions * self.fan_in * self.fan_out

    @property
    def outputs(self) -> int:
        return self.positions * self.fan_out


def layers(model: ModelSpec, data: Dataset) -> list[Layer]:
    """The weighted layers in order, for the images and classes of `data`."""
    return _mlp_layers(model, data) if isinstance(model, MLP) else _lenet_layers(model, data)


def _mlp_layers(model: MLP, data: Dataset) -> list[Layer]:
    dims = [prod(data.shape), *model.hidden, data.num_classes]
    return [Layer("linear", i, o) for i, o in pairwise(dims)]


def lenet_channels(model: CNN) -> tuple[int, int, int, int]:
    """LeNet's 6-16-120-84, each times the width and at least 1."""
    c1, c2, f1, f2 = (max(1, round(n * model.width)) for n in (6, 16, 120, 84))
    return c1, c2, f1, f2


def _lenet_layers(model: CNN, data: Dataset) -> list[Layer]:
    c1, c2, f1, f2 = lenet_channels(model)
    side1 = CNN_SIDE - KERNEL + 1  # 28
    side2 = side1 // POOL - KERNEL + 1  # 10
    return [
        Layer("conv", KERNEL**2, c1, side1**2),
        Layer("conv", KERNEL**2 * c1, c2, side2**2),
        Layer("linear", c2 * (side2 // POOL) ** 2, f1),
        Layer("linear", f1, f2),
        Layer("linear", f2, data.num_classes),
    ]


def parameters(model: ModelSpec, data: Dataset) -> int:
    return sum(layer.parameters for layer in layers(model, data))


def forward_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    return sum(layer.forward_flops for layer in layers(model, data))


def train_flops_per_example(model: ModelSpec, data: Dataset) -> int:
    """Forward, weight gradients, and input gradients of all layers but the first: 3x forward less one."""
    all_layers = layers(model, data)
    return 3 * sum(layer.forward_flops for layer in all_layers) - all_layers[0].forward_flops


_STATE_PER_PARAMETER = {"sgd": 0, "gd": 0, "momentum": 1, "adam": 2}  # float32 values an optimizer keeps per parameter


def optimizer_bytes(optimizer: Optimizer, num_parameters: int) -> int:
    """Bytes of optimizer state that grow with the model (step counters, some bytes a tensor, are left out)."""
    return _STATE_PER_PARAMETER[optimizer.name] * FLOAT_BYTES * num_parameters


def activation_bytes_per_example(model: ModelSpec, data: Dataset) -> int:
    """An estimate of what one example keeps for the backward pass: the input and each layer's output, twice for a
    convolution (before and after pooling's index)."""
    side = CNN_SIDE**2 if isinstance(model, CNN) else prod(data.shape)
    kept = sum(layer.outputs * (2 if layer.kind == "conv" else 1) for layer in layers(model, data))
    return FLOAT_BYTES * (side + kept)
