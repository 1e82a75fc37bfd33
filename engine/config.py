"""The configuration of a run: one frozen value with JSON and a fingerprint. Named configurations are in `presets.py`.

Each fact about a field (title, bounds, choices, help) stands here once, and so does each fact about a choice
(optimizer, data set, model family). The form, the command line, error messages and reports read them from here. Checks
that need the size of a data set or a device are in `planner.py`.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from engine.errors import ConfigError

# --- shared by all parts of a configuration ---------------------------------------------------------------------------

PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
DeviceName = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")]


class Spec(BaseModel):
    """Base class of all configuration values: frozen; unknown keys are refused.

    The string below a field is its help text (`use_attribute_docstrings`).
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants", use_attribute_docstrings=True
    )


def field(default: Any, title: str, **constraints: Any) -> Any:
    """A field of a Spec with the title that the form shows; `constraints` are those of `pydantic.Field`."""
    return Field(default, title=title, **constraints)


def number(default: float | None, title: str, **constraints: Any) -> Any:
    """A float field that is never NaN or infinite, within the bounds ge, gt, le and lt."""
    return field(default, title, allow_inf_nan=False, **constraints)


def values(default: tuple[Any, ...], title: str, **lengths: int) -> Any:
    """A field that holds a tuple of min_length to max_length values; lists from JSON are accepted too."""
    return field(default, title, strict=False, **lengths)


def as_text(value: Any) -> str:
    """A value as a user types it on the command line; a number keeps all its digits."""
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


# --- data -------------------------------------------------------------------------------------------------------------

DatasetName = Literal[
    "mnist5k", "digits", "mnist1d", "mnist", "fashion-mnist", "cifar10", "text", "synthetic", "csv", "numpy", "images"
]
DataKind = Literal["image", "vector", "text"]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is known of a data set by its name alone. `datasets.py` has sizes, classes and where the files are."""

    title: str
    kind: DataKind | None  # None: it depends on the file, or on source.shape
    fields: tuple[str, ...] = ()  # fields of Source that this data set reads
    is_yours: bool = False  # read from the user's source.path, which must be set
    is_folder: bool = False  # source.path is a folder, not a file
    measures_speed_only: bool = False  # random numbers: nothing can be learned from them
    suffixes: tuple[str, ...] = ()  # file types the browser may upload; the first names the stored file
    file_name: str = ""  # what a report calls the user's file, whose real name is private


DATA: Mapping[DatasetName, DataFacts] = {
    "mnist5k": DataFacts("MNIST, 5,000 images", "image"),
    "digits": DataFacts("Digits, 1,797 images of 8x8", "image"),
    "mnist1d": DataFacts("MNIST-1D, 5,000 signals", "vector"),
    "mnist": DataFacts("MNIST, 70,000 images", "image"),
    "fashion-mnist": DataFacts("Fashion-MNIST, 70,000 images", "image"),
    "cifar10": DataFacts("CIFAR-10, 60,000 colour images", "image"),
    "text": DataFacts(
        "Text, character by character",
        "text",
        ("path", "seq_len"),
        suffixes=("txt", "md", "csv", "json", "py"),
        file_name="text.txt",
    ),
    "synthetic": DataFacts(
        "Synthetic, for speed only", None, ("shape", "num_classes", "num_examples"), measures_speed_only=True
    ),
    "csv": DataFacts(
        "Your table (CSV)",
        "vector",
        ("path", "label"),
        is_yours=True,
        suffixes=("csv", "tsv", "txt"),
        file_name="table.csv",
    ),
    "numpy": DataFacts(
        "Your arrays (NPZ, NPY)", None, ("path",), is_yours=True, suffixes=("npz", "npy"), file_name="arrays.npz"
    ),
    "images": DataFacts("Your folder of images", "image", ("path",), is_yours=True, is_folder=True, file_name="images"),
}
USER_DATA: frozenset[DatasetName] = frozenset(name for name, facts in DATA.items() if facts.is_yours)


class Source(Spec):
    """Where the examples come from, if the name of the data set does not say it."""

    path: str = field("", "File", max_length=4_096)
    """Your file (CSV, NPZ, NPY, text), or a folder of images with one subfolder per class."""
    label: str = field("", "Label column", max_length=256)
    """CSV column to predict. Empty: the last column."""
    seq_len: int = field(64, "Context", ge=2, le=16_384)
    """Characters of one example: a text model sees this many at once."""
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = values((1, 28, 28), "Shape", min_length=1, max_length=3)
    """Shape of one synthetic example: channels, height, width; or one number for a vector."""
    num_classes: int = field(10, "Classes", ge=2, le=100_000)
    """Number of classes of synthetic data."""
    num_examples: int = field(4_096, "Examples", ge=2, le=10_000_000)
    """Number of synthetic training examples."""


# --- models -----------------------------------------------------------------------------------------------------------

SizeName = Literal["tiny", "small", "base", "large"]
CUSTOM = "custom"


class Model(Spec):
    """Base class of the model families. `size=base` sets every dimension at once; only the dimensions are stored.

    A family is a spec here, its arithmetic in `engine/models/<family>.py` and its module in `pytorch/models.py`.
    """

    sizes: ClassVar[Mapping[SizeName, Mapping[str, Any]]]
    label: ClassVar[str]  # name in the form
    reads_text: ClassVar[bool] = False
    not_for_text: ClassVar[tuple[str, ...]] = ()  # fields without a meaning for text

    @model_validator(mode="before")
    @classmethod
    def _dimensions_of_a_size(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "size" not in data:
            return data
        size, given = data["size"], {key: value for key, value in data.items() if key != "size"}
        if size == CUSTOM:
            return given
        if not isinstance(size, str) or size not in cls.sizes:
            raise ValueError(f"size={size!r} is not allowed; it may be one of {', '.join([*cls.sizes, CUSTOM])}")
        return {**cls.sizes[cast(SizeName, size)], **given}

    @property
    def size(self) -> SizeName | Literal["custom"]:
        """The size whose dimensions this model has, or "custom"."""
        own = self.model_dump()
        for name, dimensions in self.sizes.items():
            if all(own[key] == value for key, value in dimensions.items()):
                return name
        return "custom"

    def in_words(self, data: DataFacts) -> str:
        """A short name for lists, with the main dimensions."""
        raise NotImplementedError

    def why_not_text(self) -> str:
        """Why this model cannot be trained on text and what to set instead; "" if it can."""
        if self.reads_text:
            return ""
        readers = " or ".join(sorted((name for name, model in MODELS.items() if model.reads_text), reverse=True))
        return (
            f"model.family='{_family_name(type(self))}' does not go with data='text': it does not read in order; set "
            f"model.family={readers}"
        )


class MLP(Model):
    """Multilayer perceptron: fully connected layers with ReLU between them."""

    label = "MLP"
    sizes = {
        "tiny": {"hidden": (32,)},
        "small": {"hidden": (128,)},
        "base": {"hidden": (512, 256)},
        "large": {"hidden": (2048, 1024)},
    }

    family: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = values(
        (128,), "Hidden layers", min_length=0, max_length=16
    )
    """Units of each hidden layer, from first to last. Without any, the model is softmax regression."""

    def in_words(self, data: DataFacts) -> str:
        return "MLP " + "-".join(map(str, self.hidden)) if self.hidden else "softmax regression"


class CNN(Model):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998) for images. For one-dimensional signals: three strided
    convolutions of 25 channels, the reference net of MNIST-1D (Greydanus & Kobak 2020, arXiv:2011.14439)."""

    label = "CNN"
    sizes = {"tiny": {"width": 0.5}, "small": {"width": 1.0}, "base": {"width": 2.0}, "large": {"width": 4.0}}

    family: Literal["cnn"] = "cnn"
    width: float = number(1.0, "Width", ge=0.25, le=32)
    """Multiplies the channels and units of every layer; 1 is LeNet's 6-16-120-84."""

    def in_words(self, data: DataFacts) -> str:
        name = "CNN" if data.is_yours else "1-D CNN" if data.kind == "vector" else "LeNet"
        return name if self.width == 1 else f"{name} x{self.width:g}"


class RNN(Model):
    """Recurrent net: reads an image row by row, a signal value by value, a text character by character."""

    label = "RNN"
    reads_text = True
    not_for_text = ("bidirectional", "readout")
    sizes = {
        "tiny": {"hidden_size": 32, "num_layers": 1},
        "small": {"hidden_size": 128, "num_layers": 1},
        "base": {"hidden_size": 256, "num_layers": 2},
        "large": {"hidden_size": 512, "num_layers": 2},
    }

    family: Literal["rnn"] = "rnn"
    cell: Literal["tanh", "gru", "lstm"] = field("gru", "Cell")
    """tanh is the plain recurrent net; gru and lstm have gates that decide what the state keeps."""
    hidden_size: int = field(128, "Hidden size", ge=1, le=16_384)
    """Units of the state."""
    num_layers: int = field(1, "Layers", ge=1, le=32)
    """Number of recurrent layers, one on top of the other."""
    bidirectional: bool = field(False, "Both directions")
    """Adds a second pass that reads from the end. Not for text, because it would read the character to predict."""
    readout: Literal["last", "all"] = field("last", "Readout")
    """What the classifier reads: the state of the last step, or the states of all steps. On text each step
    predicts."""

    def in_words(self, data: DataFacts) -> str:
        both = "bidirectional " if self.bidirectional else ""
        layers = f"{self.num_layers}x" if self.num_layers > 1 else ""
        return f"{both}{'RNN' if self.cell == 'tanh' else self.cell.upper()} {layers}{self.hidden_size}"

    def why_not_text(self) -> str:
        return (
            "model.bidirectional=true does not go with data='text': reading from the end shows the character that is "
            "to be predicted; set it to false"
            if self.bidirectional
            else ""
        )


class Transformer(Model):
    """Pre-norm Transformer: patches of an image or signal (Dosovitskiy et al. 2021), or a causal decoder for text."""

    label = "Transformer"
    reads_text = True
    not_for_text = ("patch_size",)
    sizes = {
        "tiny": {"num_layers": 2, "d_model": 64, "num_heads": 2},
        "small": {"num_layers": 4, "d_model": 128, "num_heads": 4},
        "base": {"num_layers": 6, "d_model": 256, "num_heads": 8},
        "large": {"num_layers": 8, "d_model": 512, "num_heads": 8},
    }

    family: Literal["transformer"] = "transformer"
    num_layers: int = field(4, "Layers", ge=1, le=64)
    """Number of blocks of attention and MLP."""
    d_model: int = field(128, "Model width", ge=8, le=8_192)
    """Units of the residual stream."""
    num_heads: int = field(4, "Attention heads", ge=1, le=64)
    """The heads share the model width equally."""
    patch_size: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = field("auto", "Patch size")
    """Side of a patch in pixels. auto is an eighth of the image's side; a signal is cut into at most 64 patches."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        return self

    def in_words(self, data: DataFacts) -> str:
        return f"Transformer {self.num_layers}x{self.d_model}"


def _family_name(model: type[Model]) -> str:
    name: str = model.model_fields["family"].default
    return name


ModelSpec = MLP | CNN | RNN | Transformer
MODELS: Mapping[str, type[Model]] = {_family_name(model): model for model in get_args(ModelSpec)}


# --- training ---------------------------------------------------------------------------------------------------------

FULL = "full"  # the batch size of batch gradient descent: the whole training set
OptimizerName = Literal["gd", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "step", "one-cycle", "warm-up"]


@dataclass(frozen=True, slots=True)
class OptimizerFacts:
    """What the form, the planner, reports and advice must know of an optimizer; its step is in `pytorch/optim.py`."""

    label: str  # name in the form
    usual_lr: float  # a good first learning rate; another optimizer's would often be far off
    knobs: tuple[str, ...] = ()  # fields of Optimizer it reads beside lr and weight_decay
    states_per_parameter: int = 0  # float32 values kept for each parameter
    states_with_momentum: int = 0  # further ones, kept only if momentum > 0
    states_per_matrix_entry: int | None = None  # for entries of weight matrices, if they are kept in another way
    scratch: int = 0  # copies of all weights that one step holds for a moment, because its kernels are not fused
    capturable: bool = True  # its step can be recorded in a CUDA graph
    decoupled: bool = False  # weight decay is lr x weight, not a part of the gradient
    full_batch: bool = False  # each step reads the whole training set
    is_plain: bool = False  # a step is the learning rate times the gradient

    @property
    def keeps_state(self) -> bool:
        """Whether a step reads and writes more than weights and gradients."""
        return self.states_per_parameter + self.states_with_momentum > 0

    @property
    def for_matrices(self) -> bool:
        """Whether it has a rule of its own for whole weight matrices, and another one for all other parameters."""
        return self.states_per_matrix_entry is not None


# The usual learning rates of gd and momentum are those of the presets. Nesterov's is momentum's, and sgd without
# momentum takes a little more. Those of Adagrad, Adam, AdamW and Muon are torch.optim's defaults, RMSprop's is that of
# Keras.
OPTIMIZERS: Mapping[OptimizerName, OptimizerFacts] = {
    "gd": OptimizerFacts("Gradient descent", 0.5, full_batch=True, is_plain=True),
    "sgd": OptimizerFacts("SGD", 0.05, is_plain=True),
    "momentum": OptimizerFacts("SGD, momentum", 0.02, ("momentum",), states_with_momentum=1),
    "nesterov": OptimizerFacts("SGD, Nesterov", 0.02, ("momentum",), states_with_momentum=1),
    "adagrad": OptimizerFacts("Adagrad", 0.01, states_per_parameter=1, capturable=False),
    "rmsprop": OptimizerFacts("RMSprop", 1e-3, ("alpha",), states_per_parameter=1, scratch=1, capturable=False),
    "adam": OptimizerFacts("Adam", 1e-3, ("beta1", "beta2"), states_per_parameter=2),
    "adamw": OptimizerFacts("AdamW", 1e-3, ("beta1", "beta2"), states_per_parameter=2, decoupled=True),
    "muon": OptimizerFacts(
        "Muon",
        1e-3,
        ("momentum", "beta1", "beta2"),
        states_per_parameter=2,
        states_per_matrix_entry=1,
        scratch=4,
        capturable=False,
        decoupled=True,
    ),
}


def _listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _used_by(knob: str) -> str:
    return f"Used by {_listed([name for name, facts in OPTIMIZERS.items() if knob in facts.knobs])}."


class Optimizer(Spec):
    """How a step is computed from a gradient."""

    name: OptimizerName = field("adam", "Optimizer")
    """gd is gradient descent on the whole training set; all others use mini-batches. muon orthogonalises the steps
    of weight matrices and uses adamw for all other parameters."""
    lr: float = number(1e-3, "Learning rate", gt=0, le=1e6)
    """Size of a step."""
    momentum: float = number(
        0.9, "Momentum", description=f"Share of the last step that is kept. {_used_by('momentum')}", ge=0, lt=1
    )
    beta1: float = number(
        0.9, "Beta 1", description=f"Decay of the mean of the gradients. {_used_by('beta1')}", ge=0, lt=1
    )
    beta2: float = number(
        0.999, "Beta 2", description=f"Decay of the mean of the squared gradients. {_used_by('beta2')}", ge=0, lt=1
    )
    alpha: float = number(
        0.99, "Alpha", description=f"Decay of the mean of the squared gradients. {_used_by('alpha')}", ge=0, lt=1
    )
    weight_decay: float = number(
        0.0,
        "Weight decay",
        description="Pulls every weight towards zero. It is added to the gradient; with "
        f"{_listed([name for name, facts in OPTIMIZERS.items() if facts.decoupled])} it is subtracted as a share of "
        "lr x weight.",
        ge=0,
        le=1e3,
    )

    @property
    def facts(self) -> OptimizerFacts:
        """What is known of this optimizer."""
        return OPTIMIZERS[self.name]


class Budget(Spec):
    """When a run ends: at the first limit it reaches."""

    steps: int | None = field(None, "Steps", ge=1, le=100_000_000)
    """Optimizer steps."""
    epochs: float | None = number(None, "Epochs", gt=0, le=1_000_000)
    """Passes over the training set."""
    samples: int | None = field(None, "Samples", ge=1, le=10**15)
    """Training examples seen."""
    seconds: float | None = number(None, "Seconds", gt=0, le=86_400)
    """Training time, without evaluation."""
    flops: float | None = number(None, "FLOPs", gt=0, le=1e24)
    """Arithmetic of training, computed in closed form."""

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError(f"needs at least one of {', '.join(BUDGETS)}")
        return self


BUDGETS = tuple(Budget.model_fields)


class Target(Spec):
    """A result that ends the run once two evaluations in a row have reached it."""

    metric: Literal["test_accuracy", "test_loss"] = field("test_accuracy", "Target")
    """Measured on the held-out split."""
    value: float | None = number(None, "Target value", ge=0)
    """Smallest accuracy (0 to 1) or largest loss. none: train to the end of the budget."""

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.metric == "test_accuracy" and self.value is not None and self.value > 1:
            raise ValueError(f"value={self.value:g} is not allowed: accuracy is a share from 0 to 1, 97 % is 0.97")
        return self


# --- tasks that are no single training --------------------------------------------------------------------------------

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


# --- several devices --------------------------------------------------------------------------------------------------

StrategyName = Literal["ddp", "fsdp", "data-parallel"]


class Parallel(Spec):
    """How many devices share each batch. `batch_size` is the global batch size, of all devices together."""

    num_ranks: int = field(1, "Ranks", ge=1, le=64)
    """Processes that share each batch, one per GPU or CPU core; each takes batch size / ranks of its examples."""
    strategy: StrategyName = field("ddp", "Strategy")
    """ddp: each rank holds the whole model, and gradients are averaged (DistributedDataParallel). fsdp: weights,
    gradients and optimizer state are sharded over the ranks (fully_shard). data-parallel: one process with threads
    (nn.DataParallel), the historical baseline; on a CPU it only passes calls through."""
    devices: tuple[DeviceName, ...] = values((), "Devices of the ranks", max_length=64)
    """One device per rank; the first one must equal `device`. Empty: the CPU for every rank, or the GPUs from
    `device` on. If the CPU is named more often than it has cores, ranks share cores."""
    timeout_s: float = number(30.0, "Timeout", ge=1, le=3_600)
    """Seconds a rank may be silent, or keep the others waiting, before the run ends and names that rank."""

    @model_validator(mode="after")
    def _a_device_for_each_rank(self) -> Self:
        if not self.devices:
            return self
        if len(self.devices) != self.num_ranks:
            raise ValueError(
                f"devices names {len(self.devices)} for num_ranks={self.num_ranks}; name one for each rank, or none"
            )
        gpus = [device for device in self.devices if device != "cpu"]
        if gpus and len(gpus) < self.num_ranks:
            raise ValueError(f"devices={as_text(self.devices)} mixes CPU and GPUs; ranks share one kind of device")
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"devices={as_text(self.devices)} names a GPU twice; each rank takes one of its own")
        return self


# --- the whole run ----------------------------------------------------------------------------------------------------

ExecutionName = Literal["eager", "dataloader", "compiled", "cuda-graph"]


class RunConfig(Spec):
    """One experiment. Two equal values are the same experiment on every machine."""

    task: Literal["train", "batch-law", "landscape", "calibrate", "infer"] = field("train", "Task")
    """train: train one model. batch-law: train many times to find the law of the batch size. landscape: compute the
    loss on a plane through the checkpoints of other runs. calibrate: measure what the device reaches, with up to
    `threads` CPU threads. infer: measure how fast a model answers requests."""
    model: Annotated[MLP | CNN | RNN | Transformer, Field(discriminator="family")] = field(MLP(), "Model")
    data: DatasetName = field("mnist5k", "Data")
    """The training data: a released data set, text, random numbers, or your own file."""
    source: Source = field(Source(), "Source")
    optimizer: Optimizer = field(Optimizer(), "Optimizer")
    schedule: ScheduleName = field("constant", "Schedule")
    """How the learning rate changes over the run. constant: it does not. cosine: falls to lr_end. step: is
    multiplied by lr_gamma at each milestone. one-cycle: rises and falls again (Smith 2018). warm-up: rises, then
    stays constant."""
    warmup_steps: int = field(0, "Warm-up steps", ge=0, le=100_000_000)
    """The learning rate rises linearly over these steps, before constant, cosine or step begins. The warm-up
    schedule takes a tenth of the run if this is 0."""
    lr_end: float = number(0.0, "Ends at", ge=0, le=1)
    """Share of the learning rate at which cosine ends."""
    lr_gamma: float = number(0.1, "Drops to", gt=0, lt=1)
    """Factor of the step schedule at each milestone."""
    lr_milestones: tuple[Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)], ...] = values(
        (0.5, 0.75), "Milestones", min_length=1, max_length=16
    )
    """Where the step schedule drops, as shares of the run."""
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["full"] = field(64, "Batch size")
    """Examples in one forward and backward pass. full is the whole training set (batch gradient descent)."""
    grad_accumulation: int = field(1, "Gradient accumulation", ge=1, le=10_000)
    """Batches whose gradients are added up for one optimizer step; a full batch is split into this many."""
    label_smoothing: float = number(0.0, "Label smoothing", ge=0, lt=1)
    """Share of the target that is spread over all classes (Szegedy et al. 2016), only in the training loss."""
    max_grad_norm: float | None = number(None, "Gradient clipping", gt=0, le=1e9)
    """A gradient with a larger norm is scaled down to it. none: no clipping."""
    ema_decay: float | None = number(None, "Weight averaging", gt=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then evaluated and saved. none: no
    average."""
    activation_checkpointing: bool = field(False, "Activation checkpointing")
    """Frees activations and computes them again in the backward pass: less memory, more time."""
    precision: PrecisionName = field("fp32", "Precision")
    """Number format of matrix products: fp32; tf32 (NVIDIA Ampere and later); bf16 or fp16 by autocast, fp16 with
    loss scaling."""
    execution: ExecutionName = field("eager", "Execution")
    """eager: data on the device, fused optimizer, losses read back in chunks. dataloader: the DataLoader loop of
    PyTorch's tutorials. compiled: torch.compile. cuda-graph: steps recorded once and replayed on an NVIDIA GPU."""
    budget: Budget = field(Budget(epochs=20.0), "Budget")
    target: Target = field(Target(), "Target")
    law: Law = field(Law(), "Batch-size law")
    device: DeviceName = field("cpu", "Device")
    """cpu, or cuda:i for the i-th NVIDIA GPU."""
    parallel: Parallel = field(Parallel(), "Data-parallel")
    threads: int = field(1, "Threads", ge=1, le=1024)
    """CPU threads for one operation, in each rank. One is fastest for small models, because threads that wait for
    each other cost more than they save."""
    seed: int = field(0, "Seed", ge=0, le=2**32 - 1)
    """Sets the first weights and the order of the data."""
    evaluate_every: Annotated[int, Field(ge=1, le=100_000_000)] | Literal["auto"] = field("auto", "Evaluate every")
    """Steps between evaluations on the held-out split. auto spends at most about a fifth of the time on them."""

    checkpoints: int = field(0, "Checkpoints", ge=0, le=200)
    """Copies of all weights kept during the run, evenly spaced with the first and the last, to draw its path over
    the loss surface. 0 keeps none. Their time is not counted as training time."""
    landscape: Landscape = field(Landscape(), "Loss surface")
    infer: Infer = field(Infer(), "Inference")

    @model_validator(mode="after")
    def _gd_takes_the_whole_set(self) -> Self:
        if self.optimizer.facts.full_batch and self.batch_size != FULL:
            raise ValueError(
                f"batch_size={self.batch_size} does not go with optimizer.name='{self.optimizer.name}': gradient "
                "descent uses the whole training set; set batch_size=full, or optimizer.name=sgd for mini-batches"
            )
        return self

    @model_validator(mode="after")
    def _a_surface_needs_paths(self) -> Self:
        if self.task == "landscape" and not self.landscape.runs:
            raise ValueError("landscape.runs is missing: task='landscape' draws the paths of runs; set landscape.runs")
        return self

    @model_validator(mode="after")
    def _requests_have_a_size(self) -> Self:
        if self.task != "infer":
            return self
        if self.batch_size == FULL:
            raise ValueError(
                "batch_size=full does not go with task='infer': a request brings a number of examples; set "
                "batch_size=1, or more"
            )
        assert isinstance(self.batch_size, int)
        if not self.infer.cells and self.batch_size > MOST_IN_A_REQUEST:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {MOST_IN_A_REQUEST} examples a request may bring; "
                "set fewer"
            )
        if (most := max((cell.threads for cell in self.infer.cells), default=1)) > self.threads:
            raise ValueError(f"threads={self.threads} is less than the {most} threads of a cell; set threads={most}")
        return self

    @model_validator(mode="after")
    def _model_reads_the_data(self) -> Self:
        if self.is_text and (reason := self.model.why_not_text()):
            raise ValueError(reason)
        if self.data in USER_DATA and not self.source.path:
            raise ValueError(
                f"source.path is missing: data='{self.data}' is read from a file of yours; set source.path"
            )
        return self

    @model_validator(mode="after")
    def _execution_fits(self) -> Self:
        if self.execution == "cuda-graph":
            self._cuda_graph_fits()
        if self.schedule == "one-cycle" and self.warmup_steps:
            raise ValueError("warmup_steps does not go with schedule='one-cycle', which climbs by itself; set it to 0")
        return self

    def _cuda_graph_fits(self) -> None:
        """Refuse what a recorded step cannot do: change between replays, or wait for a decision of the CPU."""
        if self.device == "cpu":
            raise ValueError(
                "execution='cuda-graph' needs an NVIDIA GPU; set device=cuda:0, or execution=eager for device='cpu'"
            )
        if not self.optimizer.facts.capturable:
            capturable = [name for name, facts in OPTIMIZERS.items() if facts.capturable]
            raise ValueError(
                f"optimizer.name='{self.optimizer.name}' does not go with execution='cuda-graph'; choose from "
                f"{', '.join(capturable)}, or set execution=eager"
            )
        if self.precision == "fp16":
            raise ValueError(
                "precision='fp16' does not go with execution='cuda-graph': loss scaling decides after each step; set "
                "precision=bf16, or execution=eager"
            )

    @model_validator(mode="after")
    def _law_is_of_plain_training(self) -> Self:
        """Refuse settings that depend on the length of a run, because a trial ends when it reaches the loss."""
        if self.task != "batch-law":
            return self
        plain: dict[str, Any] = {
            "schedule": "constant",
            "warmup_steps": 0,
            "execution": "eager",
            "grad_accumulation": 1,
        }
        for name, value in plain.items():
            if (given := getattr(self, name)) != value:
                raise ValueError(f"{name}={given} does not go with task='batch-law'; set {name}={value}")
        if self.optimizer.facts.full_batch:
            raise ValueError(
                f"optimizer.name='{self.optimizer.name}' does not go with task='batch-law'; set optimizer.name=sgd"
            )
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        """Refuse what does not combine with data-parallel training."""
        parallel, strategy = self.parallel, self.parallel.strategy
        if parallel.devices and parallel.devices[0] != self.device:
            raise ValueError(
                f"parallel.devices begins with {parallel.devices[0]} and device is {self.device}; set "
                f"device={parallel.devices[0]}"
            )
        if not self.is_parallel:
            return self
        many = f"parallel.num_ranks={parallel.num_ranks}"
        if self.task != "train":
            raise ValueError(f"task='{self.task}' does not go with {many}: only training is shared; set num_ranks=1")
        if self.execution != "eager":
            raise ValueError(f"execution='{self.execution}' does not go with {many}; set execution=eager")
        if isinstance(self.batch_size, int) and self.batch_size < parallel.num_ranks:
            raise ValueError(
                f"batch_size={self.batch_size} is less than {many}: each rank needs an example; set batch_size="
                f"{parallel.num_ranks} or more"
            )
        if strategy == "fsdp":
            self._sharding_fits()
        return self

    def _sharding_fits(self) -> None:
        """Refuse settings that need whole weights, or decisions on them, on every rank."""
        refused = {
            f"optimizer.name='{self.optimizer.name}'": self.optimizer.facts.for_matrices,
            "precision='fp16'": self.precision == "fp16",
            f"checkpoints={self.checkpoints}": self.checkpoints > 0,
        }
        for setting in (text for text, is_set in refused.items() if is_set):
            raise ValueError(
                f"{setting} does not go with parallel.strategy='fsdp', where no rank holds a whole weight; set "
                "parallel.strategy=ddp"
            )

    @property
    def is_text(self) -> bool:
        """Whether the examples are text."""
        return DATA[self.data].kind == "text"

    @property
    def is_parallel(self) -> bool:
        """Whether a data-parallel wrapper is used. True also for one rank whose device is named, to measure its
        cost."""
        return self.parallel.num_ranks > 1 or bool(self.parallel.devices)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each rank, e.g. ("cuda:0", "cuda:1")."""
        if self.parallel.devices or self.parallel.num_ranks == 1:
            return self.parallel.devices or (self.device,)
        kind, _, first = self.device.partition(":")
        numbers = range(int(first or 0), int(first or 0) + self.parallel.num_ranks)
        return tuple("cpu" if kind == "cpu" else f"cuda:{i}" for i in numbers)

    @property
    def is_gang(self) -> bool:
        """Whether the ranks are processes; nn.DataParallel serves all of its devices from one process."""
        return self.is_parallel and self.parallel.strategy != "data-parallel"

    @property
    def num_processes(self) -> int:
        """Number of rank processes; 1 without them."""
        return self.parallel.num_ranks if self.is_gang else 1

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every field: equal fingerprints mean the same experiment.

        Fields at their defaults are left out, so that a field added later changes no fingerprint.
        """
        data = self.model_dump(mode="json", exclude_defaults=True)
        data["model"] = {"family": self.model.family} | self.model.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that a run with task infer measures."""
        assert isinstance(self.batch_size, int)
        if self.infer.cells:
            return self.infer.cells
        own = Cell(
            batch_size=self.batch_size, threads=self.threads, precision=self.precision, runtime=self.infer.runtime
        )
        return (own,)


# --- a configuration in words -----------------------------------------------------------------------------------------


def describe(config: RunConfig) -> str:
    """One line for lists: model, data, optimizer, batch size, unusual settings, budget and device."""
    model = model_in_words(config.model, config.data)
    if config.task == "calibrate":
        return f"calibration of this machine · {config.device} · up to {_counted(config.threads, 'thread')}"
    if config.task == "landscape":
        paths, side = _counted(len(config.landscape.runs), "run"), config.landscape.resolution
        return f"loss surface of {paths} · {model} · {config.data} · {side}x{side}"
    if config.task == "infer":
        return _inference_in_words(config)
    middle = _law_in_words(config) if config.task == "batch-law" else _training_in_words(config)
    return " · ".join([model, config.data, *middle, _devices_in_words(config)])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _training_in_words(config: RunConfig) -> list[str]:
    return [
        f"{config.optimizer.name} {config.optimizer.lr:g}",
        _batch_in_words(config),
        *_unusual_in_words(config),
        budget_in_words(config.budget),
    ]


def _devices_in_words(config: RunConfig) -> str:
    if not config.is_parallel:
        return config.device
    many, kind = config.parallel.num_ranks, config.device.partition(":")[0]
    return f"{many} x {kind} ({config.parallel.strategy})"


def _law_in_words(config: RunConfig) -> list[str]:
    law = config.law
    ends = [*map(str, sorted(law.batch_sizes)), *([FULL] if law.full_batch else [])]
    return [
        config.optimizer.name,
        f"batch law {ends[0]} to {ends[-1]}",
        *_unusual_in_words(config),
        f"training loss {law.target_loss:g}",
    ]


def _inference_in_words(config: RunConfig) -> str:
    """For example: LeNet answers: batch 1-1024 x 1-2 threads · mnist5k · cpu."""
    cells = config.cells
    sizes, threads = sorted({c.batch_size for c in cells}), sorted({c.threads for c in cells})
    on_cpu = config.device == "cpu"
    at = f" x {_ends(threads)} thread{'' if threads == [1] else 's'}" if on_cpu else ""
    precisions = list(dict.fromkeys(c.precision for c in cells))
    runtimes = list(dict.fromkeys(c.runtime for c in cells))
    words = [f"{model_in_words(config.model, config.data)} answers: batch {_ends(sizes)}{at}"]
    words += [", ".join(precisions)] if precisions != ["fp32"] else []
    words += [", ".join(runtimes)] if runtimes != ["inference_mode"] else []
    if config.is_text:
        words.append(f"{config.infer.prompt_len} + {config.infer.new_tokens} characters")
        words += [] if config.infer.cache else ["no cache"]
    words += [f"open loop, {config.infer.rate:g} requests/s"] if config.infer.load == "open" else []
    return " · ".join([*words, config.data, config.device])


def _ends(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def infer_config(base: RunConfig, run_id: str = "", **choices: Any) -> RunConfig:
    """The configuration of a run that measures inference.

    The weights are those of the finished run `run_id` with the configuration `base`, or without an id fresh weights of
    the model of `base`. `choices` are fields of `Infer`, and batch_size, threads and precision. Raises ConfigError.
    """
    own = {"batch_size": 1, "threads": 1, "precision": "fp32"}
    own |= {name: choices.pop(name) for name in list(choices) if name in own}
    kept = base.model_dump(include={"model", "data", "source", "device", "seed"})
    infer = Infer().model_dump() | choices | {"run": run_id}
    return parse_config({"task": "infer", **kept, "budget": {"steps": 1}, **own, "infer": infer})


def infer_matrix(
    config: RunConfig,
    batch_sizes: Sequence[int],
    threads: Sequence[int] = (1,),
    precisions: Sequence[PrecisionName] = ("fp32",),
    runtimes: Sequence[RuntimeName] = ("inference_mode",),
) -> RunConfig:
    """`config` with a cell for every combination of the given values. Raises ConfigError."""
    cells = [
        {"batch_size": b, "threads": n, "precision": p, "runtime": r}
        for r, p, n, b in itertools.product(
            *(dict.fromkeys(axis) for axis in (runtimes, precisions, threads, batch_sizes))
        )
    ]
    infer = config.infer.model_dump() | {"cells": cells}
    most = max([config.threads, *threads])
    return parse_config(config.model_dump() | {"threads": most, "infer": infer})


def _batch_in_words(config: RunConfig) -> str:
    batch = "full batch" if config.batch_size == FULL else f"batch {config.batch_size}"
    return batch if config.grad_accumulation == 1 else f"{batch} x {config.grad_accumulation}"


def _unusual_in_words(config: RunConfig) -> list[str]:
    """Settings that differ from their defaults and change how the run trains."""
    words: list[str] = [config.schedule] if config.schedule != "constant" else []
    words += [config.precision] if config.precision != "fp32" else []
    words += [config.execution] if config.execution != "eager" else []
    words += ["checkpointing"] if config.activation_checkpointing else []
    return words


def model_in_words(model: ModelSpec, data: DatasetName = "mnist5k") -> str:
    """A short name of the model on this data set, for lists and messages."""
    return model.in_words(DATA[data])


_UNITS = {"steps": "step", "epochs": "epoch", "samples": "sample", "seconds": "second", "flops": "FLOP"}


def budget_in_words(budget: Budget) -> str:
    """The limits of a budget: 20 epochs or 10 seconds."""
    limits = [(getattr(budget, name), unit) for name, unit in _UNITS.items()]
    return " or ".join(f"{as_text(v)} {unit}{'' if v == 1 else 's'}" for v, unit in limits if v is not None)


# --- from text to a configuration, and the sentence that says why it is refused ---------------------------------------


def parse_config(data: Any) -> RunConfig:
    """A RunConfig from plain data (a parsed JSON file, a form). Raises ConfigError with one sentence."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"A configuration is a JSON object, not {type(data).__name__}.", fix="See the README for an example."
        )
    try:
        return RunConfig.model_validate(_tuples(data))
    except ValidationError as error:
        raise explain(error) from None


def parse_config_json(text: str, *, name: str = "configuration") -> RunConfig:
    """A RunConfig from JSON; `name` is what an error message calls the text. Raises ConfigError."""
    try:
        return parse_config(json.loads(text))
    except ValueError as error:  # not JSON, or a number of more digits than Python reads
        raise ConfigError(f"{name} is not JSON: {error}.", fix="Correct the file, or start from `--preset`.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.", fix="A configuration has two levels.") from None


def with_overrides(base: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """`base` changed by `key.sub=value` assignments, as on the command line and in links.

    A new `model.family` starts from its defaults, and `model.size` sets all of its dimensions. An optimizer that reads
    the whole training set (gd) sets the full batch unless a batch size is assigned as well; leaving it returns to
    mini-batches. Raises ConfigError for an unknown key or a value that is not allowed.
    """
    changes = [_split(text) for text in assignments]
    keys = {key for key, _ in changes}
    data = base.model_dump()
    for key, value in changes:
        if key == "model.family" and value != data["model"].get("family"):
            data["model"] = {"family": value}
    if "model.size" in keys and isinstance(data["model"], dict):
        sized = MODELS.get(str(data["model"].get("family")), MLP).sizes["small"]
        data["model"] = {key: value for key, value in data["model"].items() if key not in sized}
    for key, value in changes:
        _assign(data, key, value)
    if "optimizer.name" in keys and "batch_size" not in keys and isinstance(data["optimizer"], dict):
        chosen = OPTIMIZERS.get(cast(OptimizerName, str(data["optimizer"].get("name"))))
        if chosen and chosen.full_batch:
            data["batch_size"] = FULL
        elif base.optimizer.facts.full_batch:
            data["batch_size"] = RunConfig.model_fields["batch_size"].default
    return parse_config(data)


def overrides_from(base: RunConfig, config: RunConfig) -> list[str]:
    """The shortest assignments that turn `base` into `config`; the inverse of `with_overrides`."""
    before, after = _flat(base.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    if base.model.family != config.model.family:
        defaults = _flat(type(config.model)().model_dump(mode="json"), "model.")
        before = {k: v for k, v in before.items() if not k.startswith("model.")} | defaults | {"model.family": None}
    changed = [f"{key}={as_text(value)}" for key, value in after.items() if key not in before or before[key] != value]
    if any(c.startswith("optimizer.name=") for c in changed) and not any(c.startswith("batch_size=") for c in changed):
        changed.append(f"batch_size={as_text(config.batch_size)}")  # choosing or leaving gd would otherwise move it
    return changed


def allowed(path: str) -> str:
    """What a field may hold, in words taken from its definition: 'a whole number from 1 to 1024'."""
    if path == "batch_size":
        return "a whole number from 1 to the number of training examples, or full"
    if path == "landscape.runs":
        return "ids of up to 16 runs, each of 16 hex digits"
    if path == "infer.run":
        return "the id of a finished run, of 16 hex digits, or nothing"
    if path == "infer.cells":
        return (
            'a list of at most 512 cells like {"batch_size": 8, "threads": 1, "precision": "fp32", "runtime": "eager"}'
        )
    if path == "parallel.devices":
        return "as many of cpu, cuda:0, cuda:1, ... as there are ranks"
    if path == "device":
        return "cpu, or cuda:0, cuda:1, ... for an NVIDIA GPU on this machine"
    if path == "model" or (path and path in _GROUPS):
        return "set through " + ", ".join(f"{path}.{key}" for key in _known_keys(path))
    schema = _field_schema(path)
    return _schema_in_words(schema) if schema else "a value the field's description allows"


def explain(error: ValidationError) -> ConfigError:
    """An error for the first wrong field: the field, its value, what is allowed, what to do."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(p) for p in first["loc"] if p not in {*MODELS, "int", "constrained-int"} and not _is_branch(p))
    if first["type"] == "extra_forbidden":
        known = _known_keys(path.rpartition(".")[0], family=str(first["loc"][1]) if path.startswith("model.") else "")
        leaf = path.rpartition(".")[2]
        return ConfigError(f"{path} is not a known key{nearest(leaf, known)}.", fix=f"Known here: {', '.join(known)}.")
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return ConfigError(f"{path}: {message}." if path else f"{message}.", fix="")
    if first["type"].startswith("union_tag"):
        value = first["input"].get("family") if isinstance(first["input"], Mapping) else first["input"]
        return ConfigError(f"model.family={value!r} is not known.", fix=f"Choose from {', '.join(MODELS)}.")
    if first["type"] == "missing":
        return ConfigError(f"{path} is missing.", fix=f"It may be {allowed(path)}.")
    field = re.sub(r"\.\d+", "", path)  # every member of a list has the same bounds
    return ConfigError(
        f"{path}={_excerpt(as_text(first['input']))} is not allowed.",
        fix=f"{field} {'is' if allowed(field).startswith('set') else 'may be'} {allowed(field)}.",
    )


def _is_branch(part: object) -> bool:
    """Whether a part of an error's location is a union member that pydantic tried, and not a key that the user
    wrote."""
    return isinstance(part, str) and (part.startswith(("literal[", "function-", "constrained-")))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)' if a known name is similar, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _tuples(data: Any) -> Any:
    """`data` with lists as tuples, because strict validation refuses a list for a tuple."""
    if isinstance(data, Mapping):
        return {key: _tuples(value) for key, value in data.items()}
    return tuple(map(_tuples, data)) if isinstance(data, list) else data


def _split(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"{text!r} is not an assignment.", fix="Write it as key=value, for example batch_size=128.")
    key = key.strip()
    if key in _WORDS:
        return key, re.findall(r"[^\s,\[\]]+", value)
    if key == "infer.shape" and re.fullmatch(r"\s*\d+(x\d+)+\s*", value):  # 1x28x28
        return key, list(map(_number, value.split("x")))
    return key, value.strip() if key in _TEXTS else parse_value(value.strip())


_TEXTS = {"source.path", "source.label", "infer.run", "infer.weights"}  # never parsed: a label column may be named 3
_LISTS = {"law.batch_sizes", "model.hidden", "source.shape", "lr_milestones", "infer.shape", "infer.cells"}
_WORDS = {
    "landscape.runs",
    "parallel.devices",
}  # lists of texts: an id of hex digits may look like a number, 12345678901234e5
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")  # as people type them: .01, 1e3, 64.0


def parse_value(text: str) -> Any:
    """A scalar or list as in JSON; anything else is text. `512,256` is a list, `nan` and `inf` are numbers."""
    lowered = text.lower().lstrip("+")
    if lowered in {"nan", "inf", "-inf", "infinity", "-infinity"}:
        return float(lowered)
    if lowered in {"none", "null"}:
        return None
    if lowered in {"true", "false"}:
        return lowered == "true"
    if _NUMBER.fullmatch(lowered):
        return _number(lowered)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # nested too deeply: a link may hold anything
        pass
    if "," in text:
        return [parse_value(part.strip()) for part in text.split(",") if part.strip()]
    return text


def _number(text: str) -> int | float:
    """A number; a whole number is an int, whether it is written 64, 64.0 or 1e3."""
    if text.lstrip("-").isdigit():
        return int(text[:100])  # more digits than any bound allows, because int() of a million digits is slow
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _assign(data: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = data
    for depth, part in enumerate(parents):
        if part not in node or not isinstance(node[part], dict):
            known = _known_keys(".".join(parents[:depth]))
            raise ConfigError(
                f"{key} is not a known key{nearest(part, known)}.", fix=f"Known here: {', '.join(known)}."
            )
        node = node[part]
    if key in _LISTS and isinstance(value, int | float) and not isinstance(value, bool):
        value = [value]  # --set model.hidden=128
    if key in _LISTS and value in ("", None):
        value = []
    node[leaf] = value


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _excerpt(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


_GROUPS: dict[str, type[Spec]] = {
    "": RunConfig,
    "source": Source,
    "optimizer": Optimizer,
    "budget": Budget,
    "target": Target,
    "law": Law,
    "landscape": Landscape,
    "parallel": Parallel,
    "infer": Infer,
    "infer.cells": Cell,
}


def _known_keys(path: str, *, family: str = "") -> list[str]:
    if path == "model":
        models = [MODELS[family]] if family in MODELS else MODELS.values()
        return list(dict.fromkeys(["family", "size", *(name for model in models for name in model.model_fields)]))
    return list(_GROUPS[path].model_fields) if path in _GROUPS else []


def _field_schema(path: str) -> dict[str, Any] | None:
    parent, _, leaf = path.rpartition(".")
    owners = list(MODELS.values()) if parent == "model" else [_GROUPS[parent]] if parent in _GROUPS else []
    for owner in owners:
        if leaf in owner.model_fields:
            schema: dict[str, Any] = TypeAdapter(owner).json_schema()["properties"][leaf]
            return schema
    return None


def _schema_in_words(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema_in_words(s) for s in schema["anyOf"] if s.get("type") != "null")
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"a list of at most {schema['maxItems']} numbers, each {_schema_in_words(schema['items'])}"
    if schema.get("type") in {"integer", "number"}:
        kind = "a whole number" if schema["type"] == "integer" else "a number"
        low = (
            f"from {_bound(schema['minimum'])}"
            if "minimum" in schema
            else f"above {_bound(schema.get('exclusiveMinimum', 0))}"
        )
        high = [f"to {_bound(schema['maximum'])}"] if "maximum" in schema else []
        high += [f"below {_bound(schema['exclusiveMaximum'])}"] if "exclusiveMaximum" in schema else []
        return " ".join([kind, low, *high])
    return f"a {schema.get('type', 'value')}"


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
