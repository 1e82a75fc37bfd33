"""Arithmetic of multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from math import isqrt, prod

from engine.config.models import MLP
from engine.data.datasets import Dataset
from engine.models.arithmetic import Family, Layer, Product, Stage, join, linear_layers


class MLPFamily(Family[MLP]):
    """Fully connected layers over all values of a sample."""

    has_written_gradients = True

    def input_shape(self, model: MLP, data: Dataset) -> tuple[int, ...]:
        """(values,): all values of a sample in one vector."""
        return (prod(data.shape),)

    def products(self, model: MLP, data: Dataset) -> list[Product]:
        """One product per layer; pixels need no gradient."""
        dims = [prod(data.shape), *model.hidden, data.num_classes]
        return [
            Product("linear", i, o, input_gradient_rows=None if n else 0) for n, (i, o) in enumerate(pairwise(dims))
        ]

    def stages(self, model: MLP, data: Dataset, batch_size: int) -> list[Stage]:
        """About sqrt(n) stages for n hidden layers (Chen et al. 2016, arXiv:1604.06174), and one for the output."""
        size = max(1, isqrt(len(model.hidden)))
        parts = [model.hidden[i : i + size] for i in range(0, len(model.hidden), size)]
        return [*(Stage(sum(part), part[-1]) for part in parts), Stage(data.num_classes, data.num_classes)]

    def layers(self, model: MLP, data: Dataset, batch_size: int, half: float) -> list[list[Layer]]:
        """One layer per matrix product."""
        dims = [prod(data.shape), *model.hidden, data.num_classes]
        found = linear_layers(dims, half, is_first=True)
        size = max(1, isqrt(len(model.hidden)))
        return [*(found[i : i + size] for i in range(0, len(model.hidden), size)), found[-1:]]

    def why_not_shape(self, model: MLP, data: Dataset, shape: tuple[int, ...]) -> str:
        """Names the number of inputs of the first layer."""
        return f"its first layer has weights for {prod(data.shape):,} values, but {join(shape)} gives {prod(shape):,}"
