"""The tasks a run can have, and fields of those that do more than train one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, StringConstraints, model_validator

from engine.config.base import PrecisionName, Spec, as_text, field, number, values

TaskName = Literal["train", "batch-law", "landscape", "calibrate", "infer"]


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the other rooms must know of a task. Its generator is in `pytorch/tasks/`.

    Beside an implementation a room may register what belongs to one task, such as its plan, card or view, in a
    dictionary by task. A task that is not in such a dictionary gets the default of that room.
    """

    title: str  # its name
    about: str = ""  # what it does, shown for its runs where a training run has its figures; empty if there are figures
    trains_one_model: bool = False  # it takes optimizer steps until the budget ends, and saves the weights
    has_plan: bool = True  # parameters, FLOPs and memory of its model are computed beforehand
    measures_machine: bool = False  # its results are those of the machine, not of a model
    unused: frozenset[str] = frozenset()  # fields of a configuration that it does not read and reports leave out


TASKS: Mapping[TaskName, TaskFacts] = {
    "train": TaskFacts("Training", trains_one_model=True),
    "batch-law": TaskFacts(
        "Batch-size law",
        (
            "A batch-size law trains one model many times, each time until the same training loss. It shows how many "
            "steps, samples and seconds this takes at each batch size."
        ),
    ),
    "landscape": TaskFacts(
        "Loss surface",
        (
            "A loss surface does not train a model. It computes the loss on a plane through the checkpoints of some "
            "runs, to show their paths on it."
        ),
        has_plan=False,
    ),
    "calibrate": TaskFacts(
        "Calibration",
        (
            "A calibration does not train a model. It measures the device: matrix products in each precision, memory "
            "bandwidth, the overhead of operations and of recording, idle power, and the best number of threads. MFU "
            "and the roofline compare runs with these figures, not with a data sheet."
        ),
        has_plan=False,
        measures_machine=True,
    ),
    "infer": TaskFacts(
        "Inference",
        unused=frozenset(
            {"optimizer", "execution", "budget", "target", "law", "parallel", "evaluate_every", "landscape"}
        ),
    ),
}

MIN_BATCH_SIZES = 3  # the law has two parameters; a third batch size shows whether they fit


class Law(Spec):
    """The batch-size law: steps to a target training loss at many batch sizes, with the best learning rate of each."""

    batch_sizes: tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...] = values(
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "Batch sizes", min_length=1, max_length=64
    )
    """Sizes larger than the training set are left out."""
    full_batch: bool = field(True, "Full batch")
    """Adds the whole training set as one more batch size."""
    target_loss: float = number(0.2, "Target loss", gt=0, le=1e6)
    """Training loss that two consecutive evaluations must reach. It is the mean over the training set, or over 1,024
    samples of it."""
    lr_factor: float = number(1.5, "Learning rate factor", gt=1, le=10)
    """Factor between neighbouring learning rates. The search starts from optimizer.lr, or from the best rate of the
    neighbouring batch size, and continues until the rates on both sides need at least 1.2 times the steps of the best one.
    The best rate is then the minimum of a parabola through all trials (ln steps over ln rate)."""
    seeds: int = field(3, "Seeds", ge=1, le=100)
    """Trials at the best learning rate, with seeds that the search did not use."""
    tuning_seeds: int = field(3, "Tuning seeds", ge=1, le=100)
    """Trials of each learning rate in the search."""
    max_steps: int = field(10_000, "Maximum steps", ge=2, le=100_000_000)
    """A trial that needs more steps counts as one that did not reach the loss."""

    @model_validator(mode="after")
    def _enough_batch_sizes(self) -> Self:
        if len(set(self.batch_sizes)) + self.full_batch < MIN_BATCH_SIZES:
            raise ValueError(
                f"batch_sizes={as_text(self.batch_sizes)} is too short; the law needs at least {MIN_BATCH_SIZES} "
                "different batch sizes"
            )
        return self

    def sizes(self, train_examples: int) -> list[int]:
        """The batch sizes that a training set of `train_examples` samples allows, in rising order."""
        full = {train_examples} if self.full_batch else set()
        return sorted({size for size in self.batch_sizes if size <= train_examples} | full)


class Landscape(Spec):
    """The loss surface: the loss on a plane through the checkpoints of some runs."""

    runs: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")], ...] = values((), "Runs", max_length=16)
    """Ids of the runs whose paths are drawn. They need checkpoints of the same model on the same data set."""
    plane: Literal["pca", "random"] = field("pca", "Plane")
    """pca: the plane of the two directions in which the checkpoints vary most. random: the plane of two random
    directions, with each filter scaled to the norm of that filter's weights (Li et al. 2018, arXiv:1712.09913)."""
    resolution: int = field(41, "Resolution", ge=11, le=101)
    """Grid points along each side. The loss is computed at every grid point."""
    split: Literal["train", "test"] = field("train", "Split")
    """Split on which the loss is computed."""
    examples: int = field(1_024, "Samples", ge=16, le=1_000_000)
    """Number of samples of the split, the same ones at every point. More samples take longer and reduce noise."""
    margin: float = number(0.25, "Margin", ge=0, le=10)
    """Margin of the surface around the paths, as a share of their extent."""

    @model_validator(mode="after")
    def _each_run_once(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs contains a run twice")
        return self


RuntimeName = Literal[
    "eager", "inference_mode", "channels_last", "compiled", "exported", "onnxruntime", "int8", "onnxruntime-int8"
]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
MOST_IN_A_REQUEST = 65_536


class Cell(Spec):
    """One combination of batch size, threads, precision and runtime."""

    batch_size: int = field(1, "Batch size", ge=1, le=MOST_IN_A_REQUEST)
    """Samples of one request."""
    threads: int = field(1, "Threads", ge=1, le=1_024)
    """CPU threads per operation."""
    precision: PrecisionName = field("fp32", "Precision")
    """Number format of weights and computation. bf16 and fp16 halve the size of the weights."""
    runtime: RuntimeName = field("inference_mode", "Runtime")
    """eager: PyTorch as in training, with autograd. inference_mode: PyTorch without autograd. channels_last: the
    channels_last memory format for images. compiled: torch.compile. exported: torch.export. onnxruntime: ONNX Runtime.
    int8: PyTorch's dynamic quantisation of linear and recurrent layers. onnxruntime-int8: ONNX Runtime's dynamic
    quantisation of matrix products."""


class Infer(Spec):
    """Inference: a trained or untrained model answers requests one at a time, in one or many combinations."""

    run: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16})?$")] = field("", "Run")
    """Id of the finished run with the weights. Model and data must be those of this run. Empty: untrained weights from
    the seed. They are equally fast, but their accuracy is that of guessing."""
    weights: str = field("", "Weights file", max_length=4_096)
    """A .safetensors file with your own weights of this model, instead of those of a run."""
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = values((), "Input shape", max_length=4)
    """Shape of one sample, as in the data or as the model reads it; a batch dimension of 1 can come first. Empty: the
    shape of the data."""
    load: Literal["closed", "open"] = field("closed", "Load")
    """closed: each request is sent when the previous one is answered. open: requests arrive at random (Poisson) at the
    given rate; latency then includes the time in the queue."""
    rate: float = number(100.0, "Rate", gt=0, le=1e6)
    """Requests per second in the open loop."""
    requests: int = field(10_000, "Requests", ge=1, le=10_000_000)
    """Maximum number of timed requests per combination."""
    seconds: float = number(1.0, "Seconds", gt=0, le=600)
    """Timed seconds per combination, or up to five times as long until there are 100 requests."""
    warm_up: int = field(10, "Warm-up", ge=1, le=10_000)
    """Requests per combination before the timed ones."""
    rounds: int = field(5, "Rounds", ge=1, le=100)
    """Number of rounds. Each round measures all combinations in another order."""
    cells: tuple[Cell, ...] = values((), "Combinations", max_length=512)
    """The combinations to measure. Empty: the one of batch_size, threads, precision and infer.runtime."""
    runtime: RuntimeName = field("inference_mode", "Runtime", description=Cell.model_fields["runtime"].description)
    prompt_len: int = field(16, "Prompt length", ge=1, le=16_384)
    """Characters of the prompt in each request to a text model."""
    new_tokens: int = field(32, "New characters", ge=1, le=16_384)
    """Characters that a text model generates per request."""
    cache: bool = field(True, "KV cache")
    """Keeps the keys and values (or the recurrent state) of the text so far. Off: the model reads the whole text again
    for every new character."""

    @model_validator(mode="after")
    def _one_origin_of_weights(self) -> Self:
        if self.run and self.weights:
            raise ValueError("run and weights are both set; give the id of a run or a file, not both")
        if len(set(self.cells)) < len(self.cells):
            raise ValueError("cells contains a combination twice")
        return self
