"""The modules the specs describe."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from engine.config import CNN, ModelSpec
from engine.datasets import Dataset
from engine.families import CNN_SIDE, KERNEL, POOL, layers, lenet_channels


def build(model: ModelSpec, data: Dataset, *, seed: int, device: torch.device | str = "cpu") -> nn.Module:
    """The model with its first weights: a function of spec, data set and seed alone.

    Weights are drawn on the CPU, so that every device starts from the same ones. On the meta device nothing is drawn.
    """
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            return _module(model, data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(model, data)
    if isinstance(model, CNN):
        # oneDNN's and cuDNN's convolutions like channels last: 1.3x the tutorial loop on LeNet.
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.to(device)


def input_side(model: ModelSpec) -> int | None:
    """Side the images must have, or None for the data set's own."""
    return CNN_SIDE if isinstance(model, CNN) else None


def _module(model: ModelSpec, data: Dataset) -> nn.Module:
    return _lenet(model, data) if isinstance(model, CNN) else _mlp(model, data)


def _mlp(model: ModelSpec, data: Dataset) -> nn.Module:
    all_layers = layers(model, data)
    dims = [all_layers[0].fan_in, *(layer.fan_out for layer in all_layers)]
    parts: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(dims):
        parts += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _lenet(model: CNN, data: Dataset) -> nn.Module:
    c1, c2, f1, f2 = lenet_channels(model)
    flat = layers(model, data)[2].fan_in
    return nn.Sequential(
        nn.Conv2d(1, c1, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL),
        nn.Conv2d(c1, c2, KERNEL), nn.ReLU(), nn.MaxPool2d(POOL),
        nn.Flatten(),
        nn.Linear(flat, f1), nn.ReLU(), nn.Linear(f1, f2), nn.ReLU(), nn.Linear(f2, data.num_classes),
    )  # fmt: skip
