"""Arithmetic of convolutional networks: LeNet-5 for images, three strided convolutions for signals."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from math import ceil, prod

from engine.common.errors import ConfigError
from engine.config.models import CNN
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Layer, Product, Stage, join, linear_layers

SIDE = 32  # input of LeNet-5 in pixels; smaller images are enlarged and padded to it (pytorch/data.py)
KERNEL = 5
POOL = 2
SIGNAL_CHANNELS = 25
SIGNAL_KERNELS = (5, 3, 3)  # all with stride 2 and padding 1
_CHANNEL_BLOCK = 16  # channels of oneDNN's blocked layout with AVX-512


class CNNFamily(Family[CNN]):
    """Convolutions, then fully connected layers."""

    has_convolutions = True

    def input_shape(self, model: CNN, data: Dataset) -> tuple[int, ...]:
        """(channels, height, width) of an image, (1, length) of a signal."""
        if data.kind != "image":
            return 1, *data.shape
        channels, height, width = data.shape
        scale = enlargement(height, width)
        return channels, max(SIDE, scale * height), max(SIDE, scale * width)

    def products(self, model: CNN, data: Dataset) -> list[Product]:
        """Convolutions, then fully connected layers. Raises ConfigError if a signal is too short."""
        channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
        kernels = (KERNEL**2,) * 2 if data.kind == "image" else SIGNAL_KERNELS
        ins = [self.input_shape(model, data)[0], *channels]
        convolutions = [
            Product("conv", k * i, o, rows=prod(size), input_gradient_rows=None if n else 0)
            for n, (k, i, o, size) in enumerate(zip(kernels, ins, channels, sizes, strict=False))
        ]
        dims = [cnn_features(model, data), *channels[len(kernels) :], data.num_classes]
        return convolutions + [Product("linear", i, o) for i, o in pairwise(dims)]

    def stages(self, model: CNN, data: Dataset, batch_size: int) -> list[Stage]:
        """One stage per convolution, and one for all fully connected layers."""
        channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
        found = []
        for c, size in zip(channels, sizes, strict=False):
            full = c * prod(size)
            if data.kind == "image":  # the output of ReLU, then the pooled values and their 64-bit indices
                pooled = c * prod(s // POOL for s in size)
                found.append(Stage(full + 3 * pooled, pooled))
            else:
                found.append(Stage(full, full))
        return [*found, Stage(sum(channels[len(sizes) :]) + data.num_classes, data.num_classes)]

    def layers(self, model: CNN, data: Dataset, batch_size: int, half: float) -> list[list[Layer]]:
        """One layer per convolution with ReLU and pooling, then the fully connected ones."""
        channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
        convolutions = [p for p in self.products(model, data) if p.kind == "conv"]
        shape = self.input_shape(model, data)
        found, inputs = [], prod(shape)
        padded_in = 0.0
        for n, (product, c, size) in enumerate(zip(convolutions, channels, sizes, strict=False)):
            full, is_last = half * c * prod(size), n == len(convolutions) - 1
            cast = (1 - half) * inputs if n == 0 else 0.0
            given = cast if n == 0 else half * inputs
            if data.kind == "image":
                pooled = c * prod(s // POOL for s in size)
                values, index = half * pooled, 2 * pooled
                # Behind the last pooling the features are flattened, so its gradient arrives in another memory format:
                # the output, the gradient and the indices are copied to that format.
                again = full + values + index if is_last else 0.0
                found.append(
                    Layer(
                        kept=cast + full + values + index,
                        forward=cast + 2 * full,
                        evaluation=max(given + full, 2 * full, full + values + index),
                        backward=cast + max(3 * full, 2 * full + index + values + again),
                        last=cast + full + (0 if n == 0 else half * inputs),
                        parameters=product.parameters,
                    )
                )
                inputs = pooled
            else:
                # oneDNN copies input and output to a layout with blocks of 16 channels.
                padded = half * _CHANNEL_BLOCK * ceil(c / _CHANNEL_BLOCK) * size[0]
                blocks = padded_in + padded
                found.append(
                    Layer(
                        kept=cast + full,
                        forward=cast + full + max(full, blocks),
                        evaluation=max(given + blocks + full, 2 * full) if n == 0 else given + blocks,
                        backward=cast + 3 * full,
                        last=cast + full + blocks + (0 if n == 0 else half * inputs),
                        parameters=product.parameters,
                    )
                )
                inputs, padded_in = c * size[0], padded
        dims = [cnn_features(model, data), *channels[len(convolutions) :], data.num_classes]
        return [*([layer] for layer in found), linear_layers(dims, half, is_first=False)]

    def image_border(self, model: CNN, data: Dataset) -> tuple[int, tuple[int, int]]:
        """Enlarges small images, and pads them to LeNet's input."""
        _, height, width = self.input_shape(model, data)
        return enlargement(*data.shape[1:]), (height, width)

    def why_not_shape(self, model: CNN, data: Dataset, shape: tuple[int, ...]) -> str:
        """Names the layer with other weights: the first convolution, or the first fully connected layer."""
        if data.kind != "image" or len(shape) != 3:
            return ""
        channels = data.shape[0]
        if shape[0] != channels:
            return f"its first convolution reads {channels} channel{'' if channels == 1 else 's'}, not {shape[0]}"
        try:
            needed = cnn_features(model, dataclasses.replace(data, shape=shape))
        except ConfigError:  # too small for the convolutions
            return ""
        trained = cnn_features(model, data)
        return (
            f"its first fully connected layer has weights for {trained:,} values, but {join(shape)} gives {needed:,}"
            if needed != trained
            else ""
        )


def enlargement(height: int, width: int) -> int:
    """Integer factor by which an image smaller than LeNet's input is enlarged before it is padded."""
    return max(1, min(SIDE // height, SIDE // width))


def cnn_channels(model: CNN, data: Dataset) -> tuple[int, ...]:
    """Channels and units of the layers: 6-16-120-84 for images, 25-25-25 for signals, times the width, at least 1."""
    base = (6, 16, 120, 84) if data.kind == "image" else (SIGNAL_CHANNELS,) * len(SIGNAL_KERNELS)
    return tuple(max(1, round(n * model.width)) for n in base)


def cnn_features(model: CNN, data: Dataset) -> int:
    """Number of inputs of the first fully connected layer.

    Raises ConfigError if a signal is too short for the convolutions.
    """
    channels, sizes = cnn_channels(model, data), _map_sizes(model, data)
    return channels[1] * prod(s // POOL for s in sizes[-1]) if data.kind == "image" else channels[-1] * sizes[-1][0]


def _map_sizes(model: CNN, data: Dataset) -> list[tuple[int, ...]]:
    """(height, width) or (length,) of the output of each convolution, before pooling.

    Raises:
        ConfigError: A signal is too short.
    """
    size, sizes = CNNFamily().input_shape(model, data)[1:], []
    if data.kind == "image":
        for _ in range(2):
            size = tuple(s - KERNEL + 1 for s in size)
            sizes.append(size)
            size = tuple(s // POOL for s in size)
        return sizes
    for kernel in SIGNAL_KERNELS:
        size = ((size[0] + 2 - kernel) // 2 + 1,)
        if size[0] < 1:
            raise ConfigError(
                f"model.family='cnn' cannot read samples of {data.shape[0]} values: its first convolution "
                f"spans {SIGNAL_KERNELS[0]}.",
                fix="Choose model.family=mlp.",
            )
        sizes.append(size)
    return sizes
