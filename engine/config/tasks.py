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
            "A batch-size law is many short trainings of one net, each until the same training loss: how many "
            "steps, examples and seconds that takes at every batch size."
        ),
    ),
    "landscape": TaskFacts(
        "Loss surface",
        (
            "A loss surface trains nothing. It computes the loss on a plane through the weights that some runs "
            "kept, so that their paths can be seen on it."
        ),
        has_plan=False,
    ),
    "calibrate": TaskFacts(
        "Calibration",
        (
            "A calibration trains nothing. It measures what a device reaches: matrix products in each precision, "
            "memory bandwidth, the cost of starting operations and of recording, idle power, and how many threads"
            " pay. MFU and the roofline compare runs with these figures, not with a data sheet."
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

MIN_BATCH_SIZES = 3  # the law has two parameters; a third value shows whether they fit


class Law(Spec):
    """The batch-size law: steps to a training loss at many batch sizes, with the learning rate tuned for each."""

    batch_sizes: tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...] = values(
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "Batch sizes", min_length=1, max_length=64
    )
    """Sizes larger than the training set are left out."""
    full_batch: bool = field(True, "Full batch")
    """Adds the whole training set as one more batch size."""
    target_loss: float = number(0.2, "Target loss", gt=0, le=1e6)
    """Training loss that two evaluations in a row must reach. It is the mean over the training set, or over 1,024
    examples of it."""
    lr_factor: float = number(1.5, "Grid of learning rates", gt=1, le=10)
    """Factor between neighbouring learning rates. The search starts from optimizer.lr, or from the best rate of the
    neighbouring batch size, and goes on until the best rate lies between two worse ones."""
    seeds: int = field(3, "Seeds", ge=1, le=100)
    """Trials at the best learning rate, with other seeds than the ones that chose it."""
    tuning_seeds: int = field(3, "Tuning seeds", ge=1, le=100)
    """Trials of each learning rate in the search."""
    max_steps: int = field(10_000, "Most steps", ge=2, le=100_000_000)
    """A trial that needs more steps counts as not having reached the loss."""

    @model_validator(mode="after")
    def _enough_batch_sizes(self) -> Self:
        if len(set(self.batch_sizes)) + self.full_batch < MIN_BATCH_SIZES:
            raise ValueError(
                f"batch_sizes={as_text(self.batch_sizes)}: a law takes at least {MIN_BATCH_SIZES} different ones; "
                "add some"
            )
        return self

    def sizes(self, train_examples: int) -> list[int]:
        """The batch sizes that a training set of `train_examples` allows, in rising order."""
        full = {train_examples} if self.full_batch else set()
        return sorted({size for size in self.batch_sizes if size <= train_examples} | full)


class Landscape(Spec):
    """Which part of the loss surface is drawn: a plane through the checkpoints of some runs."""

    runs: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")], ...] = values((), "Runs", max_length=16)
    """Ids of the runs whose paths are drawn. They must have kept checkpoints of the same model on the same data
    set."""
    plane: Literal["pca", "random"] = field("pca", "Plane")
    """pca: spanned by the two directions in which the checkpoints vary most. random: spanned by two random
    directions, each filter scaled to the norm of the weights' own (Li et al. 2018, arXiv:1712.09913)."""
    resolution: int = field(41, "Resolution", ge=11, le=101)
    """Points along each side; the loss is computed at every point of the grid."""
    split: Literal["train", "test"] = field("train", "Split")
    """Examples over which the loss is averaged."""
    examples: int = field(1_024, "Examples", ge=16, le=1_000_000)
    """Number of examples of the split, the same ones at every point. More examples take longer and give less
    noise."""
    margin: float = number(0.25, "Margin", ge=0, le=10)
    """How far the surface goes beyond the paths, as a share of their extent."""

    @model_validator(mode="after")
    def _each_run_once(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs names the same run twice")
        return self


RuntimeName = Literal[
    "eager", "inference_mode", "channels_last", "compiled", "exported", "onnxruntime", "int8", "onnxruntime-int8"
]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
MOST_IN_A_REQUEST = 65_536


class Cell(Spec):
    """One way to serve a model: the size of a request and the software that answers it."""

    batch_size: int = field(1, "Batch size", ge=1, le=MOST_IN_A_REQUEST)
    """Examples of one request."""
    threads: int = field(1, "Threads", ge=1, le=1_024)
    """CPU threads for one operation."""
    precision: PrecisionName = field("fp32", "Precision")
    """Number format of weights and arithmetic; bf16 and fp16 halve the size of the weights."""
    runtime: RuntimeName = field("inference_mode", "Software")
    """eager: PyTorch as in training, with autograd. inference_mode: PyTorch without autograd. channels_last: images
    in memory pixel by pixel. compiled: torch.compile. exported: torch.export. onnxruntime: ONNX Runtime. int8:
    PyTorch's dynamic quantisation of linear and recurrent layers. onnxruntime-int8: ONNX Runtime's dynamic
    quantisation of matrix products."""


class Infer(Spec):
    """Inference: requests are answered one at a time by trained or fresh weights, in one or many cells."""

    run: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16})?$")] = field("", "Run")
    """Id of the finished run whose weights answer; model and data must be those of that run. Empty: fresh weights
    drawn from the seed. They are as fast, but their answers are guesses."""
    weights: str = field("", "Weights file", max_length=4_096)
    """A .safetensors file with your own weights of this model, instead of a run."""
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = values((), "Input shape", max_length=4)
    """Shape of one example, as in the data or as the model reads it; a batch dimension of 1 may come first. Empty:
    the shape of the data."""
    load: Literal["closed", "open"] = field("closed", "Load")
    """closed: the next request is sent when the last one is answered. open: requests arrive at random at the given
    rate, whether the last one is answered or not; latency then counts from the arrival."""
    rate: float = number(100.0, "Rate", gt=0, le=1e6)
    """Requests per second in the open loop; they arrive independently of each other (Poisson)."""
    requests: int = field(10_000, "Requests", ge=1, le=10_000_000)
    """Most timed requests of a cell."""
    seconds: float = number(1.0, "Seconds", gt=0, le=600)
    """Timed seconds of a cell; up to five times as long if they hold fewer than 100 requests."""
    warm_up: int = field(10, "Warm-up", ge=1, le=10_000)
    """Requests of each cell before the timed ones."""
    rounds: int = field(5, "Rounds", ge=1, le=100)
    """How often the cells take turns, each time in another order."""
    cells: tuple[Cell, ...] = values((), "Cells", max_length=512)
    """The cells to measure, in turns. Without any: one cell of batch_size, threads, precision and infer.runtime."""
    runtime: RuntimeName = field("inference_mode", "Software", description=Cell.model_fields["runtime"].description)
    prompt_len: int = field(16, "Prompt", ge=1, le=16_384)
    """Characters of the prompt in a request to a text model."""
    new_tokens: int = field(32, "New characters", ge=1, le=16_384)
    """Characters that a text model generates per request."""
    cache: bool = field(True, "KV cache")
    """Keeps the keys and values (or the recurrent state) of the text so far. Off: the whole text is read again for
    every new character."""

    @model_validator(mode="after")
    def _one_origin_of_weights(self) -> Self:
        if self.run and self.weights:
            raise ValueError("run and weights exclude each other; give the run's id or a file, not both")
        if len(set(self.cells)) < len(self.cells):
            raise ValueError("cells names the same cell twice")
        return self
