"""The memory of a run: the data, the peak of a step and that of an evaluation, as `Memory` measures them.

Data, weights, gradients and optimizer state are exact. A peak follows the layers of a model through a forward and a backward
pass, with what PyTorch's own kernels keep, so it is an estimate: `python -m benchmarks.memory` compares it with the
measurement. It is made for kernels of a CPU; cuDNN needs other scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from engine import models
from engine.config.run import RunConfig
from engine.data.datasets import Dataset
from engine.models.arithmetic import FLOAT_BYTES, Layer

GATHER_LIMIT_BYTES = 2**30  # an epoch larger than this is gathered batch by batch
_LABEL_BYTES = 8  # int64: labels, example numbers, characters of a batch
_CPU_EVALUATION_BYTES = 2**22  # of the output of the largest layer in an evaluation; about the size of a core's cache
_GPU_EVALUATION_BYTES = 2**26
_MOST_EVALUATED = 1_000  # samples
_REFERENCE_SCRATCH = 2  # copies of the largest weight that a step of torch.optim holds, one parameter after the other


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes above weights, optimizer state and data."""

    step_peak_bytes: int
    held_bytes: int  # what a step leaves until the next one: gradients and buffers
    evaluation_peak_bytes: int


def peaks(config: RunConfig, data: Dataset, batch: int, micro: int, evaluation: int) -> Peaks:
    """The peaks of a run in one process.

    `batch` is samples of a step, `micro` those of one forward and backward pass, and `evaluation` those of one pass of an
    evaluation.
    """
    model, half = config.model, is_half(config)
    weights = FLOAT_BYTES * models.parameters(model, data)
    if writes_gradients(config):
        outputs = sum(product.fan_out for product in models.products(model, data))
        held = weights + FLOAT_BYTES * micro * (2 * outputs + 1)  # each layer's output and its gradient
        passes = held + FLOAT_BYTES * micro * data.num_classes
    else:
        held = weights
        passes = _passes(config, data, weights, micro, is_second=batch > micro) + FLOAT_BYTES * micro * _more(data)
    passes += 0 if reads_views(config, data, batch) else batch * batch_bytes(config, data)
    width = max(
        evaluation * layer.evaluation + layer.parameters * (layer.copies + (0.5 if half else 0))
        for layer in _flat(_layers(config, data, evaluation))
    )
    if data.kind == "text":  # other data is read where it is
        width += evaluation * (batch_bytes(config, data) / FLOAT_BYTES + _more(data))
    return Peaks(
        step_peak_bytes=int(max(passes, held + _scratch(config, data, weights))),
        held_bytes=held,
        evaluation_peak_bytes=int(FLOAT_BYTES * width) + (weights if config.ema_decay else 0),
    )


def evaluation_batch(config: RunConfig, data: Dataset) -> int:
    """Samples of one pass of an evaluation.

    On a CPU the largest output stays in a core's cache: that takes a fraction of the memory, and as long as larger passes.
    """
    limit = _CPU_EVALUATION_BYTES if config.device == "cpu" else _GPU_EVALUATION_BYTES
    most = min(_MOST_EVALUATED, data.test_examples)
    return max(1, min(most, limit // (FLOAT_BYTES * models.largest_output(config.model, data))))


def evaluation_bytes(config: RunConfig, data: Dataset, count: int) -> int:
    """Most bytes of a forward pass without autograd over `count` samples, an estimate."""
    return int(FLOAT_BYTES * count * max(layer.evaluation for layer in _flat(_layers(config, data, count))))


def writes_gradients(config: RunConfig) -> bool:
    """Whether the gradients of this run are written out instead of computed by autograd (`ManualMLP`).

    That is mean cross-entropy of one whole batch of an MLP in float32, eager, on the CPU. `ManualMLP.of` checks the module.
    """
    return (
        models.family_of(config.model).has_written_gradients
        and config.device == "cpu"
        and config.precision == "fp32"
        and config.execution == "eager"
        and config.grad_accumulation == 1
        and config.label_smoothing == 0
        and not config.activation_checkpointing
        and not config.is_parallel  # the wrapper around the model needs autograd
    )


def is_half(config: RunConfig) -> bool:
    """Whether matrix products compute in 16 bits under autocast."""
    return config.precision in {"bf16", "fp16"}


# --- data -----------------------------------------------------------------------------------------------------------


def split_bytes(config: RunConfig, data: Dataset) -> tuple[int, int]:
    """Bytes of the training split and of the test split, with their labels."""
    training, test = (count * _example_bytes(config, data) for count in (data.train_examples, data.test_examples))
    return training, test


def data_bytes(config: RunConfig, data: Dataset) -> int:
    """Bytes of both splits on the device of the run."""
    training, test = split_bytes(config, data)
    return test if config.execution == "dataloader" and config.device != "cpu" else training + test


def epoch_bytes(config: RunConfig, data: Dataset, batch: int) -> int:
    """Bytes of an epoch's random order, and of the copy of the training split in this order if there is one."""
    if config.execution == "dataloader" or (batch == data.train_examples and data.kind != "text"):
        return 0
    copy = split_bytes(config, data)[0] // config.num_processes if gathers(config, data, batch) else 0
    return _LABEL_BYTES * data.train_examples + copy


def gathers(config: RunConfig, data: Dataset, batch: int) -> bool:
    """Whether each epoch is copied once in its random order, so that batches are views of it."""
    if data.kind == "text" or batch == data.train_examples or config.execution in {"dataloader", "cuda-graph"}:
        return False
    copied = FLOAT_BYTES * prod(models.input_shape(config.model, data)) * data.train_examples
    return copied // config.num_processes <= GATHER_LIMIT_BYTES  # a rank copies only its own share


def reads_views(config: RunConfig, data: Dataset, batch: int) -> bool:
    """Whether a step reads its batch where the data is; otherwise every step makes a tensor of it."""
    if config.execution == "dataloader" or data.kind == "text":
        return False
    return batch == data.train_examples or gathers(config, data, batch)


def batch_bytes(config: RunConfig, data: Dataset) -> int:
    """Bytes of one sample in a batch of its own."""
    if data.kind == "text":  # input and targets are views of one window
        return _LABEL_BYTES * (prod(data.shape) + 1)
    return _example_bytes(config, data)


def _example_bytes(config: RunConfig, data: Dataset) -> int:
    if data.kind == "text":
        return FLOAT_BYTES * prod(data.shape)  # int32
    return FLOAT_BYTES * prod(models.input_shape(config.model, data)) + _LABEL_BYTES


def _more(data: Dataset) -> int:
    """Values of a sample that the loss of a text copies: its targets, in a row."""
    return _LABEL_BYTES // FLOAT_BYTES * prod(data.shape) if data.kind == "text" else 0


# --- a step ---------------------------------------------------------------------------------------------------------


def _layers(config: RunConfig, data: Dataset, count: int) -> list[list[Layer]]:
    return models.layers(config.model, data, count, half=is_half(config))


def _flat(stages: list[list[Layer]]) -> list[Layer]:
    return [layer for stage in stages for layer in stage]


def _passes(config: RunConfig, data: Dataset, weights: int, count: int, *, is_second: bool) -> int:
    """Peak of a forward and a backward pass over `count` samples, with the gradients that exist by then.

    In a second pass, whose gradients are added to those of the first, all of them exist from the beginning.
    """
    stages, cast = _layers(config, data, count), 0.5 if is_half(config) else 0.0  # autocast's copies of the weights
    outputs = [stage.output for stage in models.stages(config.model, data, count)]
    checkpointed = len(stages) - 1 if config.activation_checkpointing else 0  # the first ones
    total = weights / FLOAT_BYTES
    others = total - sum(layer.parameters for layer in _flat(stages))  # of no layer: they come last
    held, peak, begins = 0.0, 0.0, []
    for i, stage in enumerate(stages):
        begins.append(held)
        inside, highest = _forward(stage, held, count, cast)
        peak = max(peak, highest)
        held = held + count * outputs[i] if i < checkpointed else inside
    gradients = total if is_second else 0.0
    for i, stage in reversed(list(enumerate(stages))):
        if i < checkpointed:  # computed again, while the gradient of its output waits
            peak = max(peak, gradients + count * outputs[i] + _forward(stage, begins[i], count, cast)[1])
        before = [begins[i]]
        for layer in stage:
            before.append(before[-1] + count * layer.kept + cast * layer.parameters)
        for layer, kept in zip(reversed(stage), reversed(before[:-1]), strict=True):
            base = gradients + kept + (cast + layer.backward_copies) * layer.parameters
            with_own = base + (1 + cast) * layer.parameters + count * layer.last
            peak = max(peak, base + count * layer.backward, with_own)
            gradients += 0 if is_second else layer.parameters
    return int(FLOAT_BYTES * max(peak, gradients + (0 if is_second else others)))


def _forward(stage: list[Layer], held: float, count: int, cast: float) -> tuple[float, float]:
    """What is kept after the forward pass of a stage, and the most within it; `held` is what is kept before it."""
    peak = held
    for layer in stage:
        weights = cast * layer.parameters
        peak = max(peak, held + weights + count * max(layer.forward, layer.kept) + layer.copies * layer.parameters)
        held += weights + count * layer.kept
    return held, peak


def _scratch(config: RunConfig, data: Dataset, weights: int) -> int:
    """Temporary bytes of an optimizer step."""
    facts = config.optimizer.facts
    rows, columns = models.largest_matrix(config.model, data)
    largest, gram = FLOAT_BYTES * rows * columns, FLOAT_BYTES * min(rows, columns) ** 2
    if config.execution == "dataloader":  # torch.optim moves one parameter after the other
        return _REFERENCE_SCRATCH * largest if facts.keeps_state else 0
    if facts.for_matrices:  # one matrix after the other, with two products of its rows
        return facts.scratch * largest + 2 * gram
    return facts.scratch * weights
