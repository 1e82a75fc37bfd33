"""Data sets as tensors: laid out as a model reads them, resident on the device, in a random order per epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.config.models import ModelSpec
from engine.data.datasets import Arrays, Dataset
from engine.models import family_of
from engine.planning.planner import GATHER_LIMIT_BYTES
from engine.pytorch.models import arranged

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Examples:
    """One split on a device: x (n, *input_shape) float32 and y (n,) int64; of text x is all its characters (m,)."""

    x: Tensor
    y: Tensor | None
    seq_len: int = 0  # of text: example i begins at character i * seq_len, and predicts the next one everywhere

    def __len__(self) -> int:
        return len(self.x) if self.y is not None else (len(self.x) - 1) // self.seq_len

    def to(self, device: torch.device) -> Examples:
        return Examples(self.x.to(device), None if self.y is None else self.y.to(device), self.seq_len)

    def take(self, index: Tensor) -> Batch:
        """Examples by number; of text, windows by the character they begin at: read as a ring, none is too late."""
        if self.y is not None:
            return self.x.index_select(0, index), self.y.index_select(0, index)  # 2.5x as fast as self.x[index]
        span = torch.arange(self.seq_len + 1, device=index.device)
        windows = self.x.take((index.unsqueeze(1) + span) % len(self.x)).long()
        return windows[:, :-1], windows[:, 1:]

    def in_order(self, size: int) -> Iterator[Batch]:
        """All examples in batches of `size`, the last one smaller."""
        for part in torch.arange(len(self), device=self.x.device).split(size):
            yield self.take(part if self.y is not None else part * self.seq_len)


def tensors(arrays: Arrays, model: ModelSpec) -> tuple[Examples, Examples]:
    """The training and the held-out split, standardised and laid out for a model."""
    if arrays.train_y is None or arrays.test_y is None:
        seq_len = arrays.facts.shape[0]
        return tuple(
            Examples(torch.from_numpy(x.astype(np.int32)), None, seq_len) for x in (arrays.train_x, arrays.test_x)
        )  # type: ignore[return-value]
    splits = ((arrays.train_x, arrays.train_y), (arrays.test_x, arrays.test_y))
    return tuple(Examples(_laid_out(x, arrays, model), torch.from_numpy(y)) for x, y in splits)  # type: ignore[return-value]


def _laid_out(raw: np.ndarray, arrays: Arrays, model: ModelSpec) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(raw)).to(torch.float32, copy=True)  # the raw examples stay as they are
    if arrays.facts.kind == "image":  # borders are black like the paper, so they come before standardising
        x = _bordered(x, model, arrays.facts)
    x = x.sub_(torch.from_numpy(arrays.mean)).div_(torch.from_numpy(arrays.std))
    return arranged(x, model, arrays.facts)


def _bordered(x: Tensor, model: ModelSpec, data: Dataset) -> Tensor:
    """Images (n, c, h, w) enlarged by a whole number, then padded, as the model's family asks."""
    scale, goal = family_of(model).image_border(model, data)
    if scale > 1:
        x = x.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    if tuple(x.shape[-2:]) == goal:
        return x
    down, right = goal[0] - x.shape[-2], goal[1] - x.shape[-1]
    return F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])


class Order:
    """Endless epochs of example numbers (n,), each in another random order that depends on seed and epoch alone.

    Drawn on the CPU, so that every device sees the same order. Of text they are the characters where windows begin:
    each epoch cuts the text anew, at a random place.
    """

    def __init__(self, examples: Examples, seed: int) -> None:
        self._examples = examples
        self._generator = torch.Generator().manual_seed(seed)

    def epoch(self) -> Tensor:
        examples = self._examples
        order = torch.randperm(len(examples), generator=self._generator)
        if examples.y is None:
            order = order * examples.seq_len + torch.randint(examples.seq_len, (1,), generator=self._generator)
        return order


class Batches:
    """Endless batches; every example is seen once per epoch, and the last batch of an epoch may be smaller."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self.examples, self.batch_size = examples, batch_size
        self.order = Order(examples, seed)
        self.full = batch_size == len(examples) and examples.y is not None
        size = examples.x.numel() * examples.x.element_size()
        self.gathers = examples.y is not None and size <= GATHER_LIMIT_BYTES

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self._epoch()

    def _epoch(self) -> Iterator[Batch]:
        examples = self.examples
        if self.full:
            assert examples.y is not None
            yield examples.x, examples.y  # order does not matter: no gather
            return
        order = self.order.epoch().to(examples.x.device)
        if self.gathers:  # one gather an epoch; its batches are views
            x, y = examples.take(order)
            yield from zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        else:
            for part in order.split(self.batch_size):
                yield examples.take(part)

    def first(self, size: int) -> Batch:
        """A batch to warm up with, without moving the order."""
        index = torch.arange(size, device=self.examples.x.device)
        return self.examples.take(index if self.examples.y is not None else index * self.examples.seq_len)
