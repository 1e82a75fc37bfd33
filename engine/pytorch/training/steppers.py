"""Ways to execute the steps of a run: with a DataLoader, eager without its overhead, compiled, or as a CUDA graph.

Each one sees the same examples in the same order and does the same arithmetic up to rounding: their first ten losses
agree within 1e-4 in float32 (tests/pytorch/test_steppers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.config.run import ExecutionName
from engine.pytorch.data import Batch, Batches, Examples, Order
from engine.pytorch.training import kernels, optimizers
from engine.pytorch.training.net import Net


@dataclass(frozen=True, slots=True)
class Chunk:
    """The results of n consecutive steps, read back from the device."""

    losses: np.ndarray  # (n,) float32
    samples: np.ndarray  # (n,) int: examples of each step
    norm_at: np.ndarray  # (k,) int: indices of the steps whose gradient norm was measured
    norms: np.ndarray  # (k,) float32


class Stepper(Protocol):
    """Makes the optimizer steps of a run. Call `prepare` and `warm_up` once before the first step."""

    def prepare(self) -> None:
        """Do what is needed once before the first step, such as compiling."""

    def warm_up(self, steps: int) -> None:
        """Choose kernels and allocate by `steps` forward and backward passes; the weights stay as they were drawn."""

    def steps(self, lrs: Sequence[float]) -> Chunk:
        """One optimizer step for each learning rate; returns when their losses are on the host."""
        ...


class Eager:
    """Data stays on the device, batches are views of one gather per epoch, losses are read back once per chunk."""

    def __init__(self, net: Net, examples: Examples, batch_size: int, seed: int) -> None:
        self.net, self.batches = net, Batches(examples, batch_size, seed)
        self._source = iter(self.batches)

    def prepare(self) -> None:
        """Do what is needed once before the first step: here, nothing."""

    def warm_up(self, steps: int) -> None:
        """Choose kernels and allocate by `steps` forward and backward passes; the weights stay as they were drawn."""
        x, y = self.batches.first(self.batches.batch_size)
        for _ in range(steps):
            self.net.backward(x, y)
        self.net.forget_gradients()

    def steps(self, lrs: Sequence[float]) -> Chunk:
        """One optimizer step for each learning rate; returns when their losses are on the host."""
        net, source, losses, sizes, norms = self.net, self._source, [], [], []
        for lr in lrs:
            net.optimizer.lr = lr
            x, y = next(source)
            losses.append(net.backward(x, y))
            if (norm := net.update()) is not None:
                norms.append(norm)
            sizes.append(len(y))
            del x, y  # views of this epoch's copy, which must be freed before the next epoch is gathered
        return read_back(losses, sizes, norms or [net.grad_norm()])


def read_back(losses: Sequence[Tensor], sizes: Sequence[int], norms: Sequence[Tensor]) -> Chunk:
    """The chunk of some steps; waits for the device.

    `losses` are scalars or vectors, together one value for each step; `norms` are of every step or of the last ones;
    `sizes` are the numbers of examples.
    """
    values, measured = (torch.stack(list(t)) if t[0].ndim == 0 else torch.cat(list(t)) for t in (losses, norms))
    at = np.arange(len(values) - len(measured), len(values))
    return Chunk(values.float().cpu().numpy(), np.array(sizes), at, measured.float().cpu().numpy())


class Compiled(Eager):
    """Eager steps whose forward pass, loss and backward pass are compiled by torch.compile."""

    def prepare(self) -> None:
        """Compile for a whole batch and for the smaller one at the end of an epoch, so that no step compiles."""
        self.net.forward = torch.compile(self.net.loss, dynamic=False)
        size, count = self.batches.batch_size, len(self.batches.examples)
        for rows in {min(size, self.net.micro_batch), count % size % self.net.micro_batch, size % self.net.micro_batch}:
            if rows:
                self.net.backward(*self.batches.first(rows))
        self.net.forget_gradients()


class DataLoaderStepper:
    """The loop of PyTorch's tutorials as the baseline: DataLoader, torch.optim with its defaults, .item() each step."""

    def __init__(self, net: Net, examples: Examples, batch_size: int, seed: int) -> None:
        self.net, self.examples, self.device = net, examples, torch.device(net.config.device)
        items = Items(examples)
        self.loader = DataLoader(items, batch_size=batch_size, sampler=_Shuffled(examples, seed))
        self._first = DataLoader(items, batch_size=batch_size, sampler=range(len(examples)))
        self._source = self.loaded()

    def loaded(self) -> Iterator[Batch]:
        """Endless batches, each moved to the device when it is asked for."""
        while True:
            for x, y in self.loader:
                yield x.to(self.device), y.to(self.device)

    def prepare(self) -> None:
        """Do what is needed once before the first step: here, nothing."""

    def warm_up(self, steps: int) -> None:
        """As Eager.warm_up."""
        x, y = next(iter(self._first))
        for _ in range(steps):
            self.net.backward(x.to(self.device), y.to(self.device))
        self.net.forget_gradients()

    def steps(self, lrs: Sequence[float]) -> Chunk:
        """One optimizer step for each learning rate; the loss of every step is read back at once."""
        net, losses, sizes, norms = self.net, [], [], []
        for lr in lrs:
            net.optimizer.lr = lr
            x, y = next(self._source)
            losses.append(net.backward(x, y).item())
            if (norm := net.update()) is not None:
                norms.append(norm)
            sizes.append(len(y))
        return read_back([torch.tensor(losses)], sizes, norms or [net.grad_norm()])


class Items(Dataset[Batch]):
    """Examples as a map-style data set for DataLoader, which reads them one by one."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Batch:
        examples = self.examples
        if examples.y is not None:
            return examples.x[i], examples.y[i]
        x, y = examples.take(torch.tensor([i]))
        return x[0], y[0]


class _Shuffled(Sampler[int]):
    """The random order that all steppers share."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self._order, self._count = Order(examples, seed), len(examples)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.epoch().tolist())

    def __len__(self) -> int:
        return self._count


class CudaGraph:
    """Steps captured once and replayed: batches are gathered on the device, and the CPU starts many steps at once.

    There are up to three captures: many whole batches, one whole batch, and the smaller batch at the end of an epoch.
    With `capture=False` the same steps run without a graph, on any device (for tests).
    """

    MOST_STEPS = 64  # in one replay

    def __init__(self, net: Net, examples: Examples, batch_size: int, seed: int, *, capture: bool = True) -> None:
        self.net, self.examples, self.batch_size, self.capture = net, examples, batch_size, capture
        self.order = Order(examples, seed)
        self._left: list[Tensor] = []  # batches of this epoch still to come, as example numbers
        whole = len(examples) // batch_size
        most = max(1, self.MOST_STEPS // -(-batch_size // net.micro_batch))
        self.many = max(1, whole // -(-whole // most))

    def prepare(self) -> None:
        """Capture the steps; the weights and the optimizer's state stay as they were."""
        rest = len(self.examples) % self.batch_size
        kinds = {(self.many, self.batch_size), (1, self.batch_size)} | ({(1, rest)} if rest else set())
        # One memory pool for all captures, because no tensor in it is needed after a replay.
        pool = torch.cuda.graph_pool_handle() if self.capture else None
        self.captured = {kind: CapturedSteps(self.net, self.examples, *kind, pool=pool) for kind in kinds}

    def warm_up(self, steps: int) -> None:
        """Do nothing: capturing has run every kernel already."""

    def steps(self, lrs: Sequence[float]) -> Chunk:
        """One optimizer step for each learning rate; returns when their losses are on the host."""
        losses, sizes, norms, done = [], [], [], 0
        while done < len(lrs):
            batches = self._next(len(lrs) - done)
            captured = self.captured[len(batches), len(batches[0])]
            loss, norm = captured.play(batches, lrs[done : done + len(batches)])
            losses.append(loss)
            norms.append(norm)
            sizes += [len(batch) for batch in batches]
            done += len(batches)
        if self.net.config.max_grad_norm is None:
            norms = [norms[-1][-1:]]
        return read_back(losses, sizes, norms)

    def _next(self, most: int) -> list[Tensor]:
        """The next batches that one capture takes, as example numbers: `many` whole ones or one, and at most `most`."""
        if not self._left:
            self._left = list(self.order.epoch().to(self.examples.x.device).split(self.batch_size))
        ready = self._left[: self.many]
        fits = len(ready) == self.many <= most and len(ready[-1]) == self.batch_size
        taken, self._left = (ready, self._left[self.many :]) if fits else (self._left[:1], self._left[1:])
        return taken


class CapturedSteps:
    """`count` optimizer steps on batches of `rows` examples, with example numbers and learning rates in fixed tensors.

    `pool` is the memory pool of the CUDA graph that is captured; with None the steps run without a graph.
    """

    def __init__(self, net: Net, examples: Examples, count: int, rows: int, *, pool: Any | None) -> None:
        self.net, self.examples = net, examples
        device = examples.x.device
        self.index = torch.zeros(count, rows, dtype=torch.int64, device=device)
        self.lrs = torch.zeros(count, device=device)
        self.losses, self.norms = torch.zeros(count, device=device), torch.zeros(count, device=device)
        self.graph = self._captured(pool) if pool else None

    def play(self, batches: Sequence[Tensor], lrs: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Make the steps on `batches`, example numbers in tensors (rows,); returns losses and gradient norms (count,).

        Without clipping only the last norm is measured.
        """
        self.index.copy_(torch.stack(list(batches)))
        self.lrs.copy_(torch.tensor(lrs))
        if self.graph:
            self.graph.replay()
        else:
            self._run()
        return self.losses.clone(), self.norms.clone()

    def _run(self) -> None:
        net, last = self.net, len(self.index) - 1
        for i, index in enumerate(self.index):
            net.optimizer.lr = self.lrs[i]
            x, y = self.examples.take(index)
            self.losses[i].copy_(net.backward(x, y))
            if (norm := net.update()) is not None:
                self.norms[i].copy_(norm)
            elif i == last:
                self.norms[i].copy_(net.grad_norm())

    def _captured(self, pool: Any) -> torch.cuda.CUDAGraph:
        """Capture the steps as a graph. Kernels must have run before, so the steps run twice and are then undone."""
        assert isinstance(self.net.optimizer, optimizers.Optimizer)
        own = [*self.net.optimizer.params, *self.net.optimizer.state_tensors(), *self.net.average]
        with torch.no_grad():
            kept = [t.clone() for t in own]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad():
            kernels.foreach_copy_(own, kept)
        del kept
        self.net.forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._run()
        self.net.forget_gradients()
        return graph


# Each makes a stepper from: net, training examples, batch size, seed of the order.
STEPPERS: Mapping[ExecutionName, Callable[[Net, Examples, int, int], Stepper]] = {
    "eager": Eager,
    "dataloader": DataLoaderStepper,
    "compiled": Compiled,
    "cuda-graph": CudaGraph,
}
