"""What each form of the weights (precision and runtime) answers on the test split, compared with eager fp32."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config.tasks import Cell
from engine.events.inference import Quality
from engine.events.lifecycle import Progress
from engine.pytorch.data import Examples
from engine.pytorch.inference.cells import MeasuredCell
from engine.pytorch.setup import Clock
from engine.pytorch.training.net import cross_entropy
from engine.studies.inference_runtimes import BASES

_FAIR_BATCH = (
    256  # forms with a fixed batch size are judged at the largest one up to this: a larger one is mostly filler
)


def judged_cells(measured: Iterable[MeasuredCell]) -> list[MeasuredCell]:
    """One combination for each form that answers, in the order of the forms' first combinations."""
    chosen: dict[tuple[str, str], MeasuredCell] = {}
    for each in measured:
        if each.answering and (each.form_key not in chosen or _is_better(each, chosen[each.form_key])):
            chosen[each.form_key] = each
    return list(chosen.values())


def _is_better(measured: MeasuredCell, other: MeasuredCell) -> bool:
    """Whether to judge a form with a fixed batch size by this combination rather than by the other."""
    return not measured.form.takes_any_batch and other.cell.batch_size < measured.cell.batch_size <= _FAIR_BATCH


@dataclass(slots=True)
class _Sums:
    """Sums over the test split."""

    loss: float = 0.0
    right: int = 0
    of_classes: Tensor | int = 0  # (classes,) number of samples

    def add(self, logits: Tensor, y: Tensor) -> None:
        self.of_classes = self.of_classes + torch.bincount(y.flatten(), minlength=logits.shape[-1])
        self.loss += cross_entropy(logits, y, reduction="sum").item()
        self.right += int((logits.argmax(-1) == y).sum().item())


def quality(
    measured: MeasuredCell,
    reference: Callable[[Tensor], Tensor],
    test: Examples,
    batch_size: int,
    *,
    set_up: Callable[[Cell], None],
    progress: Callable[[str], Iterator[Progress]],
    clock: Clock = time.perf_counter,
) -> Iterator[Progress | Quality]:
    """Evaluate a form on the test split and yield its Quality event, with Progress events before it.

    `reference` maps examples to the logits of eager fp32, which answers the same batches. `batch_size` is for forms
    that take any. `set_up` sets threads and precision of this process.
    """
    assert measured.answering
    begun, form = clock(), measured.form
    size_bytes, size_method = form.size()
    batch = batch_size if form.takes_any_batch else measured.cell.batch_size
    is_reference = form.precision == "fp32" and form.runtime in BASES
    own, base, count, difference = _Sums(), _Sums(), 0, 0.0
    for x, y in test.in_order(batch):
        with torch.inference_mode():
            set_up(measured.cell)
            own_x = x if form.takes_any_batch else _filled(x, batch)
            answers = measured.answering.predict(own_x)[: len(x)].to(y.device)
            set_up(Cell(threads=measured.cell.threads))  # the reference is in fp32, not in tf32
            expected = answers if is_reference else reference(x).float()
            own.add(answers, y)
            base.add(expected, y)
            difference = max(difference, float((answers - expected).abs().max()))
        count += y.numel()
        yield from progress(f"Quality of {form.runtime} in {form.precision}")
    yield Quality(
        precision=form.precision,
        runtime=form.runtime,
        test_accuracy=own.right / count,
        test_loss=own.loss / count,
        accuracy_change=(own.right - base.right) / count,
        loss_change=(own.loss - base.loss) / count,
        guess_accuracy=int(torch.as_tensor(own.of_classes).max()) / count,
        max_logit_difference=difference,
        examples=count,
        size_bytes=size_bytes,
        size_method=size_method,
        seconds=clock() - begun,
    )


def _filled(x: Tensor, batch: int) -> Tensor:
    """A smaller last batch, filled up with its first example, because some forms take only one batch size."""
    return x if len(x) == batch else torch.cat([x, x[:1].expand(batch - len(x), *x.shape[1:])])
