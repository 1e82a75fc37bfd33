"""Each rank's share of the batches that one process alone would train on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.planning.memory import GATHER_LIMIT_BYTES
from engine.pytorch.data import Batch, Examples, Order


@dataclass(frozen=True, slots=True)
class Share:
    """The part of a batch of `rows` examples that one rank takes: x and y hold `count` of them.

    If `count` is 0, x and y hold one example with weight 0, because the other ranks wait for this rank in the
    collectives.
    """

    x: Tensor
    y: Tensor
    count: int
    rows: int

    def parts(self, number: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Cut the share into `number` parts, as every rank does: x, y, and the weight in the batch's mean loss."""
        if number == 1:
            yield self.x, self.y, self.count / self.rows
            return
        for x, y in zip(self.x.tensor_split(number), self.y.tensor_split(number), strict=True):
            if len(y) and self.count:
                yield x, y, len(y) / self.rows
            else:
                yield self.x[:1], self.y[:1], 0.0


class Shares:
    """Endless shares of the batches that one process alone would see (engine.pytorch.data.Batches)."""

    def __init__(self, examples: Examples, batch_size: int, seed: int, rank: int, num_ranks: int) -> None:
        self.examples, self.batch_size, self.rank, self.num_ranks = examples, batch_size, rank, num_ranks
        self._order = Order(examples, seed)
        self._is_full_batch = batch_size == len(examples) and examples.y is not None
        size = examples.x.numel() * examples.x.element_size()
        self._gathers = examples.y is not None and size <= GATHER_LIMIT_BYTES * num_ranks

    def __iter__(self) -> Iterator[Share]:
        while True:
            yield from self._epoch()

    def _epoch(self) -> Iterator[Share]:
        examples, y = self.examples, self.examples.y
        if self._is_full_batch:
            assert y is not None
            mine = bounds(len(y), self.rank, self.num_ranks)  # not empty: a batch holds an example for each rank
            yield Share(examples.x[mine], y[mine], mine.stop - mine.start, len(y))
            return
        batches = self._order.epoch().to(examples.x.device).split(self.batch_size)
        mine_of = [batch[bounds(len(batch), self.rank, self.num_ranks)] for batch in batches]
        own: Iterator[Batch]
        if self._gathers:  # one gather per epoch, of this rank's share alone; its batches are views
            x, labels = examples.take(torch.cat(mine_of))
            sizes = [len(mine) for mine in mine_of]
            own = zip(x.split(sizes), labels.split(sizes), strict=True)
        else:
            own = map(examples.take, mine_of)
        for batch, (x, labels) in zip(batches, own, strict=True):
            yield self._share(x, labels, batch)

    def first(self) -> Share:
        """A share for warming up; it does not advance the random order."""
        index = self.examples.first_index(self.batch_size)
        mine = index[bounds(self.batch_size, self.rank, self.num_ranks)]
        return self._share(*self.examples.take(mine), index)

    def _share(self, x: Tensor, y: Tensor, batch: Tensor) -> Share:
        return Share(x, y, len(y), len(batch)) if len(y) else Share(*self.examples.take(batch[:1]), 0, len(batch))


def bounds(count: int, rank: int, num_ranks: int) -> slice:
    """The slice of `count` items in a row that belongs to a rank.

    Sizes differ by one at most, and the first ranks have the larger ones.
    """
    size, more = divmod(count, num_ranks)
    begin = rank * size + min(rank, more)
    return slice(begin, begin + size + (rank < more))
