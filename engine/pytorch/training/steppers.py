"""Ways to run the same steps: a DataLoader loop, eager without its overhead, compiled, or captured as a CUDA graph.

Every way sees the same examples in the same order and does the same arithmetic up to rounding; the first ten losses of
all of them agree within 1e-4 in float32 (tests/test_execution.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from engine.config import run
from engine.config.run import RunConfig
from engine.pytorch.data import Batch, Batches, Examples, Order
from engine.pytorch.training import kernels, optimizers
from engine.pytorch.training.manual_mlp import ManualMLP

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Chunk:
    """The results of n consecutive steps, read back from the device."""

    losses: np.ndarray  # (n,) float32
    samples: np.ndarray  # (n,) int: examples of each step
    norm_at: np.ndarray  # (k,) int: indices of the steps whose gradient norm was measured
    norms: np.ndarray  # (k,) float32


class Net:
    """Model, loss and optimizer of a run: one optimizer step on a batch, whatever way it is executed."""

    def __init__(
        self, config: RunConfig, model: nn.Sequential, optimizer: optimizers.AnyOptimizer, micro_batch: int
    ) -> None:
        self.config, self.model, self.optimizer, self.micro_batch = config, model, optimizer, micro_batch
        self.called: nn.Module = model  # in training; a wrapper may take its place
        self.device_type = config.device.partition(":")[0]
        self.scaler = torch.amp.GradScaler(self.device_type) if config.precision == "fp16" else None
        self.average = [p.detach().clone() for p in optimizer.params] if config.ema_decay else []
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.loss
        self.manual_mlp = ManualMLP.of(model) if _is_plain(config) else None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch, a scalar; with smoothed labels where the run asks for them.

        x and y are as `cross_entropy` and the model take them: (batch, ...) inputs and their targets.
        """
        smoothing = self.config.label_smoothing
        if self.config.precision not in _AUTOCAST:
            return cross_entropy(self.called(x), y, smoothing)
        with self.autocast():
            return cross_entropy(self.called(x), y, smoothing)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context that the model runs in: torch.autocast in bf16 or fp16, else one that does nothing."""
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.device_type, dtype=dtype) if dtype else contextlib.nullcontext()

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Write the gradients of the mean loss over a batch (rows, ...) to the parameters; returns that loss, a scalar.

        A batch larger than a micro-batch is taken in parts, whose gradients add up. In fp16 the gradients are those of
        the scaled loss until `update` divides them.
        """
        if self.manual_mlp:
            return self.manual_mlp.backward(x, y)
        self.optimizer.zero_grad()
        if len(y) <= self.micro_batch:
            loss = self.forward(x, y)
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            return loss.detach()
        total = torch.zeros((), device=y.device)
        for part_x, part_y in zip(x.split(self.micro_batch), y.split(self.micro_batch), strict=True):
            loss = self.forward(part_x, part_y) * (len(part_y) / len(y))
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            total += loss.detach()
        return total

    def forget_gradients(self) -> None:
        """Free the gradients; the next backward pass reallocates them."""
        self.optimizer.zero_grad()
        if self.manual_mlp:
            self.manual_mlp.forget()

    def update(self) -> Tensor | None:
        """Move the weights by their gradients; returns the gradients' norm, a scalar, where clipping measured it.

        In fp16 torch.amp.GradScaler leaves the step out after an overflow and halves its scale.
        """
        if self.scaler is None:
            norm = self._norm_to_clip()
            self._move(norm)
            return norm
        # All that GradScaler asks of an optimizer. Ours is none of torch.optim, and the average belongs to the step.
        moved = cast(
            torch.optim.Optimizer,
            SimpleNamespace(param_groups=[{"params": self.optimizer.params}], step=self._move),
        )
        self.scaler.unscale_(moved)
        norm = self._norm_to_clip()
        self.scaler.step(moved, norm)
        self.scaler.update()
        return norm

    def _norm_to_clip(self) -> Tensor | None:
        return None if self.config.max_grad_norm is None else self.grad_norm()

    def _move(self, norm: Tensor | None) -> None:
        """Clip gradients whose norm is given, step, and let the average follow."""
        if self.config.max_grad_norm is not None and norm is not None:
            nn.utils.clip_grads_with_norm_(self.optimizer.params, self.config.max_grad_norm, norm)
        self.optimizer.step()
        if self.config.ema_decay:
            with torch.no_grad():  # or the average would carry a graph as long as the run
                kernels.foreach_lerp_(self.average, self.optimizer.params, 1 - self.config.ema_decay)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Context manager: run full steps with lr 0 and restore all state afterwards (for profiling).

        Yields a function that makes one step on a batch (x, y). Buffers of the model are not restored: no model here has
        any.
        """
        restore, lr, scaler = self.optimizer.remembered(), self.optimizer.lr, self.scaler
        average = [t.clone() for t in self.average]

        def step(x: Tensor, y: Tensor) -> None:
            self.backward(x, y)
            self.update()

        self.optimizer.lr, self.scaler = 0.0, scaler and torch.amp.GradScaler(self.device_type)
        self.forget_gradients()
        yield step
        restore()
        self.optimizer.lr, self.scaler = lr, scaler
        if average:
            kernels.foreach_copy_(self.average, average)
        self.forget_gradients()

    def grad_norm(self) -> Tensor:
        """Euclidean norm of all gradients together, a scalar on their device."""
        return nn.utils.get_total_norm([p.grad for p in self.optimizer.params if p.grad is not None])

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the model has its averaged weights, where the run keeps an average; then its own again."""
        if not self.average:
            yield
            return
        own = [p.detach().clone() for p in self.optimizer.params]
        with torch.no_grad():
            kernels.foreach_copy_(self.optimizer.params, self.average)
        try:
            yield
        finally:
            with torch.no_grad():
                kernels.foreach_copy_(self.optimizer.params, own)

    def evaluated(self, held_out: Examples, batch_size: int) -> tuple[float, float, int]:
        """Sum of the losses over a split, number of right answers, number of answers; the averaged weights give them."""
        with torch.inference_mode(), self.averaged(), self.autocast():
            loss, correct, count = totals(self.model, held_out.in_order(batch_size), held_out.x.device)
        return loss.item(), correct.item(), count

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, on the CPU; there they are the model's own, not copies."""
        return {name: t.contiguous().cpu() for name, t in self.model.state_dict().items()}


def _is_plain(config: RunConfig) -> bool:
    """Whether a step is what `ManualMLP.backward` computes: mean cross-entropy of one whole batch, in float32, eagerly.

    This is about the loss and the way of running; of the model `ManualMLP.of` decides.
    """
    return (
        config.precision == "fp32"
        and config.execution == "eager"
        and config.grad_accumulation == 1
        and config.label_smoothing == 0
        and not config.is_parallel  # its wrapper around the model works through autograd
    )


def totals(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Sum of the losses over some batches (float32), number of right answers (int64), number of answers.

    The first two are scalars on `device`: reading them waits for it. Text has an answer at every position.
    """
    loss = torch.zeros((), device=device)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    for x, y in batches:
        logits = model(x)
        loss += cross_entropy(logits.float(), y, reduction="sum")
        correct += (logits.argmax(-1) == y).sum()
        count += y.numel()
    return loss, correct, count


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (batch, classes) and classes y (batch,), a scalar.

    Logits (batch, seq_len, characters) go with a target at every position, y (batch, seq_len). `smoothing` is the share
    of every label that is spread over all classes; `reduction` is "mean" or "sum".
    """
    if logits.ndim > 2:
        logits, y = logits.flatten(0, -2), y.flatten()
    return F.cross_entropy(logits, y, label_smoothing=smoothing, reduction=reduction)


# --- the ways -----------------------------------------------------------------------------------------------------


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
            del x, y  # views of this epoch's copy: it goes before the next one comes
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
    """Forward pass and loss, and with them the backward pass, through torch.compile."""

    def prepare(self) -> None:
        """Compile for a whole batch and for the smaller one at the end of an epoch: neither is then met in a step."""
        self.net.forward = torch.compile(self.net.loss, dynamic=False)
        size, count = self.batches.batch_size, len(self.batches.examples)
        for rows in {min(size, self.net.micro_batch), count % size % self.net.micro_batch, size % self.net.micro_batch}:
            if rows:
                self.net.backward(*self.batches.first(rows))
        self.net.forget_gradients()


class DataLoaderStepper:
    """The loop of PyTorch's tutorials, the baseline: DataLoader, torch.optim with its defaults, .item() each step."""

    def __init__(self, net: Net, examples: Examples, batch_size: int, seed: int) -> None:
        self.net, self.examples, self.device = net, examples, torch.device(net.config.device)
        items = Items(examples)
        self.loader = DataLoader(items, batch_size=batch_size, sampler=_Shuffled(examples, seed))
        self._first = DataLoader(items, batch_size=batch_size, sampler=range(len(examples)))
        self._source = self._batches()

    def _batches(self) -> Iterator[Batch]:
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
    """Examples one by one, as DataLoader asks for them."""

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
    """The order every way of running sees."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self._order, self._count = Order(examples, seed), len(examples)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order.epoch().tolist())

    def __len__(self) -> int:
        return self._count


class CudaGraph:
    """Steps captured once and replayed: batches are chosen on the device, and the CPU starts many steps at once.

    There are up to three captures: many whole batches, one whole batch, and the smaller batch at the end of an epoch.
    With `capture=False` the same steps run without a graph, on any device (for tests).
    """

    MOST_STEPS = 64  # of one replay

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
        # One memory pool for all: nothing lives from replay to replay.
        pool = torch.cuda.graph_pool_handle() if self.capture else None
        self.captured = {kind: CapturedSteps(self.net, self.examples, *kind, pool=pool) for kind in kinds}

    def warm_up(self, steps: int) -> None:
        """Nothing to do: capturing has run every kernel before."""

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
        """As many of the next batches, but at most `most`, as one capture takes."""
        if not self._left:
            self._left = list(self.order.epoch().to(self.examples.x.device).split(self.batch_size))
        ready = self._left[: self.many]
        fits = len(ready) == self.many <= most and len(ready[-1]) == self.batch_size
        taken, self._left = (ready, self._left[self.many :]) if fits else (self._left[:1], self._left[1:])
        return taken


class CapturedSteps:
    """`count` optimizer steps on batches of `rows` examples; example numbers and learning rates lie in fixed tensors.

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
        """Make the steps on example numbers `batches`, count tensors (rows,); returns losses and gradient norms (count,).

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
        """Capturing wants kernels that have run before. What those runs changed is restored."""
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


Stepper = Eager | DataLoaderStepper | CudaGraph
STEPPERS: dict[run.ExecutionName, Callable[[Net, Examples, int, int], Stepper]] = {
    "eager": Eager,
    "dataloader": DataLoaderStepper,
    "compiled": Compiled,
    "cuda-graph": CudaGraph,
}
