"""A run's model with its loss and optimizer: one optimizer step on a batch, and the score of an evaluation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.config.run import RunConfig
from engine.planning.memory import writes_gradients
from engine.pytorch.data import Batch, Examples
from engine.pytorch.training import kernels, optimizers
from engine.pytorch.training.manual_mlp import ManualMLP

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Net:
    """Model, loss and optimizer of a run: one optimizer step on a batch. The steppers execute it."""

    without_autograd: Callable[[], contextlib.AbstractContextManager[object]] = torch.inference_mode

    def __init__(
        self, config: RunConfig, model: nn.Sequential, optimizer: optimizers.AnyOptimizer, micro_batch: int
    ) -> None:
        self.config, self.model, self.optimizer, self.micro_batch = config, model, optimizer, micro_batch
        self.called: nn.Module = model  # what training calls: the model, or a wrapper such as DDP around it
        self.device_type = config.device.partition(":")[0]
        self.scaler = torch.amp.GradScaler(self.device_type) if config.precision == "fp16" else None
        self.average = [p.detach().clone() for p in optimizer.params] if config.ema_decay else []
        self.forward: Callable[[Tensor, Tensor], Tensor] = self.loss
        self.manual_mlp = ManualMLP.of(model) if writes_gradients(config) else None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of a batch in nats, a scalar; with smoothed labels where the run asks for them.

        x are the model's inputs (batch, ...), y the targets as `cross_entropy` takes them.
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

        In fp16 torch.amp.GradScaler skips the step after an overflow and halves its scale (Micikevicius et al. 2018,
        arXiv:1710.03740).
        """
        if self.scaler is None:
            norm = self._norm_to_clip()
            self._move(norm)
            return norm
        # GradScaler uses only these of an optimizer. Ours is not from torch.optim, and a step updates the average too.
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
        """Clip the gradients if their norm is given, make the optimizer step, and update the averaged weights."""
        if self.config.max_grad_norm is not None and norm is not None:
            nn.utils.clip_grads_with_norm_(self.optimizer.params, self.config.max_grad_norm, norm)
        self.optimizer.step()
        if self.config.ema_decay:
            with torch.no_grad():  # otherwise the average would keep the autograd graph of the whole run
                kernels.foreach_lerp_(self.average, self.optimizer.params, 1 - self.config.ema_decay)

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Context manager: run full steps with lr 0 and restore all state afterwards (for profiling).

        Yields a function that makes one step on a batch (x, y). Buffers of the model are not restored: no model here
        has any.
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
        """Context manager: the model has its averaged weights in the block, where the run keeps an average."""
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

    def evaluated(self, held_out: Examples, batch_size: int) -> Score:
        """The score on a split, of the averaged weights where the run keeps an average.

        `batch_size` is that of the evaluation.
        """
        return Score.of(self.sums(held_out.in_order(batch_size), held_out.x.device))

    def sums(self, batches: Iterable[Batch], device: torch.device) -> Tensor:
        """The `totals` of an evaluation over batches on `device`, with the averaged weights where there are any."""
        with self.without_autograd(), self.averaged(), self.autocast():
            return totals(self.model, batches, device)

    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by name, on the CPU; of a model on the CPU they are its own tensors, not copies."""
        return {name: t.contiguous().cpu() for name, t in self.model.state_dict().items()}


@dataclass(frozen=True, slots=True)
class Score:
    """Mean loss and accuracy on a split; for text also the standard error of the accuracy."""

    loss: float
    accuracy: float  # 0..1
    standard_error: float | None

    @classmethod
    def of(cls, sums: Tensor) -> Score:
        """The score from `totals`; waits for the device.

        The characters of a window of text are not independent, so the standard error is that of the mean of the windows'
        accuracies. Where a sample has one answer it is None, because it follows from the accuracy and the number of samples.
        """
        loss, correct, squares, answers, samples = sums.tolist()
        error = None
        if answers > samples > 1:
            variance = (squares - correct**2 / samples) / (samples - 1)  # of the right answers of a window
            error = math.sqrt(max(variance, 0.0) / samples) * samples / answers
        return cls(loss / answers, correct / answers, error)


def totals(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> Tensor:
    """Sums over batches (5,) float64 on `device`, which `Score.of` reads.

    They are: losses, right answers, squared right answers of each sample, answers, samples. Text has an answer at every
    position, other data one for each sample.
    """
    loss = torch.zeros((), device=device)
    correct, squares = torch.zeros(2, device=device, dtype=torch.int64)
    answers = samples = 0
    for x, y in batches:
        logits = model(x)
        loss += cross_entropy(logits.float(), y, reduction="sum")
        right = logits.argmax(-1) == y
        correct += right.sum()
        if y.ndim > 1:
            squares += right.sum(1).square().sum()
        answers, samples = answers + y.numel(), samples + len(y)
        del x, y, logits, right  # otherwise they would be held while the next batch is computed
    counts = torch.tensor([answers, samples], device=device, dtype=torch.float64)
    return torch.cat([torch.stack([loss.double(), correct.double(), squares.double()]), counts])


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0, *, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats of logits (batch, classes) and classes y (batch,), a scalar.

    Logits (batch, seq_len, characters) go with a target at every position, y (batch, seq_len). `smoothing` is the share
    of every label that is spread over all classes; `reduction` is "mean" or "sum".
    """
    if logits.ndim > 2:
        logits, y = logits.flatten(0, -2), y.flatten()
    return F.cross_entropy(logits, y, label_smoothing=smoothing, reduction=reduction)
