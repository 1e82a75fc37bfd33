"""What a run is: one frozen value with JSON and a fingerprint. Those with a name are in `presets.py`.

Each fact about a field (title, bounds, choices, help) stands here once; form, command line, errors and reports read
it from here. Whatever needs a data set's size or a device is checked in `planner.py`.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from engine.errors import ConfigError

FULL = "full"  # the batch size of batch gradient descent: the whole training set

OptimizerName = Literal["gd", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon"]
ScheduleName = Literal["constant", "cosine", "step", "one-cycle", "warm-up"]
PrecisionName = Literal["fp32", "tf32", "bf16", "fp16"]
ExecutionName = Literal["eager", "dataloader", "compiled", "cuda-graph"]
DatasetName = Literal[
    "mnist5k", "digits", "mnist1d", "mnist", "fashion-mnist", "cifar10", "text", "synthetic", "csv", "numpy", "images"
]
SizeName = Literal["tiny", "small", "base", "large"]
RuntimeName = Literal[
    "eager", "inference_mode", "channels_last", "compiled", "exported", "onnxruntime", "int8", "onnxruntime-int8"
]
StrategyName = Literal["ddp", "fsdp", "data-parallel"]
DeviceName = Annotated[str, StringConstraints(pattern=r"^(cpu|cuda:\d{1,3})$")]
USER_DATA: frozenset[DatasetName] = frozenset({"csv", "numpy", "images"})  # read from source.path


class Spec(BaseModel):
    """Base of all configuration values: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="constants")


class Model(Spec):
    """Base of the model families: `size=base` sets every dimension at once; the dimensions are what is kept."""

    sizes: ClassVar[Mapping[SizeName, Mapping[str, Any]]]

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
        """Where the size dial stands: the name whose dimensions these are, or custom."""
        own = self.model_dump()
        for name, dimensions in self.sizes.items():
            if all(own[key] == value for key, value in dimensions.items()):
                return name
        return "custom"


CUSTOM = "custom"


class MLP(Model):
    """Multilayer perceptron: fully connected layers with ReLU between them."""

    sizes = {
        "tiny": {"hidden": (32,)},
        "small": {"hidden": (128,)},
        "base": {"hidden": (512, 256)},
        "large": {"hidden": (2048, 1024)},
    }

    family: Literal["mlp"] = "mlp"
    hidden: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (128,),
        min_length=0,
        max_length=16,
        strict=False,
        title="Hidden layers",
        description="Units of each hidden layer, first to last. None at all is softmax regression.",
    )


class CNN(Model):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998) for images; for one-dimensional signals three strided
    convolutions of 25 channels, the reference net of MNIST-1D (Greydanus & Kobak 2020, arXiv:2011.14439)."""

    sizes = {"tiny": {"width": 0.5}, "small": {"width": 1.0}, "base": {"width": 2.0}, "large": {"width": 4.0}}

    family: Literal["cnn"] = "cnn"
    width: float = Field(
        1.0,
        ge=0.25,
        le=32,
        allow_inf_nan=False,
        title="Width",
        description="Multiplies every layer's channels and units; 1 is LeNet's 6-16-120-84.",
    )


class RNN(Model):
    """Recurrent net: reads an image row by row, a signal value by value, a text character by character."""

    sizes = {
        "tiny": {"hidden_size": 32, "num_layers": 1},
        "small": {"hidden_size": 128, "num_layers": 1},
        "base": {"hidden_size": 256, "num_layers": 2},
        "large": {"hidden_size": 512, "num_layers": 2},
    }

    family: Literal["rnn"] = "rnn"
    cell: Literal["tanh", "gru", "lstm"] = Field(
        "gru",
        title="Cell",
        description="tanh is the plain recurrent net; gru and lstm have gates that decide what is kept.",
    )
    hidden_size: int = Field(128, ge=1, le=16_384, title="Hidden size", description="Units of the state.")
    num_layers: int = Field(1, ge=1, le=32, title="Layers", description="Recurrent layers on top of each other.")
    bidirectional: bool = Field(
        False,
        title="Both directions",
        description="A second pass reads from the end. Not for text: it would see ahead.",
    )
    readout: Literal["last", "all"] = Field(
        "last",
        title="Answer from",
        description="The last step's state, or the states of all steps side by side. On text every step answers.",
    )


class Transformer(Model):
    """Pre-norm Transformer: patches of an image or signal (Dosovitskiy et al. 2021), or a causal decoder for text."""

    sizes = {
        "tiny": {"num_layers": 2, "d_model": 64, "num_heads": 2},
        "small": {"num_layers": 4, "d_model": 128, "num_heads": 4},
        "base": {"num_layers": 6, "d_model": 256, "num_heads": 8},
        "large": {"num_layers": 8, "d_model": 512, "num_heads": 8},
    }

    family: Literal["transformer"] = "transformer"
    num_layers: int = Field(4, ge=1, le=64, title="Layers", description="Blocks of attention and MLP.")
    d_model: int = Field(128, ge=8, le=8_192, title="Model width", description="Units of the residual stream.")
    num_heads: int = Field(4, ge=1, le=64, title="Attention heads", description="The model width is shared among them.")
    patch_size: Annotated[int, Field(ge=1, le=1_024)] | Literal["auto"] = Field(
        "auto",
        title="Patch size",
        description="Pixels of a patch's side; auto takes an eighth of the image, at most 64 patches of a signal.",
    )

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.d_model % self.num_heads:
            raise ValueError(f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}")
        return self


class Source(Spec):
    """Where the examples come from, where the data set's name leaves that open."""

    path: str = Field(
        "",
        max_length=4_096,
        title="File",
        description="Your file (CSV, NPZ, NPY, text) or folder of images with one folder per class.",
    )
    label: str = Field(
        "",
        max_length=256,
        title="Label column",
        description="Column of a CSV that is to be predicted; empty: the last.",
    )
    seq_len: int = Field(
        64,
        ge=2,
        le=16_384,
        title="Context",
        description="Characters of one example, and how far a text model looks back.",
    )
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (1, 28, 28),
        min_length=1,
        max_length=3,
        strict=False,
        title="Shape",
        description="Of one synthetic example: channels, height, width; or one number for a vector.",
    )
    num_classes: int = Field(10, ge=2, le=100_000, title="Classes", description="Of synthetic data.")
    num_examples: int = Field(4_096, ge=2, le=10_000_000, title="Examples", description="Of synthetic data.")


class Optimizer(Spec):
    """How a gradient becomes a step."""

    name: OptimizerName = Field(
        "adam",
        title="Optimizer",
        description="gd is plain gradient descent on the whole training set; the others go by mini-batches. muon "
        "orthogonalises the steps of weight matrices and leaves the rest to adamw.",
    )
    lr: float = Field(1e-3, gt=0, le=1e6, allow_inf_nan=False, title="Learning rate", description="Size of a step.")
    momentum: float = Field(
        0.9,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Momentum",
        description="Share of the last step kept; momentum, nesterov and muon.",
    )
    beta1: float = Field(
        0.9,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Beta 1",
        description="How long gradients are averaged; adam, adamw, and muon's share of adamw.",
    )
    beta2: float = Field(
        0.999,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Beta 2",
        description="How long squared gradients are averaged; adam, adamw, and muon's share of adamw.",
    )
    alpha: float = Field(
        0.99,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Alpha",
        description="How long squared gradients are averaged; rmsprop.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        le=1e3,
        allow_inf_nan=False,
        title="Weight decay",
        description="Pull of every weight towards zero: added to the gradient; with adamw and muon a share of lr x weight.",
    )


class Budget(Spec):
    """When a run ends: at the first limit it reaches."""

    steps: int | None = Field(None, ge=1, le=100_000_000, title="Steps", description="Optimizer steps.")
    epochs: float | None = Field(
        None, gt=0, le=1_000_000, allow_inf_nan=False, title="Epochs", description="Passes over the training set."
    )
    samples: int | None = Field(None, ge=1, le=10**15, title="Samples", description="Training examples seen.")
    seconds: float | None = Field(
        None, gt=0, le=86_400, allow_inf_nan=False, title="Seconds", description="Training time, without evaluation."
    )
    flops: float | None = Field(
        None, gt=0, le=1e24, allow_inf_nan=False, title="FLOPs", description="Arithmetic of training, derived."
    )

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if all(getattr(self, name) is None for name in BUDGETS):
            raise ValueError(f"needs at least one of {', '.join(BUDGETS)}")
        return self


BUDGETS = tuple(Budget.model_fields)


class Target(Spec):
    """What a run is to reach; it ends once two evaluations in a row have."""

    metric: Literal["test_accuracy", "test_loss"] = Field(
        "test_accuracy", title="Target", description="Measured on the held-out split."
    )
    value: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        title="Target value",
        description="Accuracy (0 to 1) at least, or loss at most; none trains to the end of the budget.",
    )

    @model_validator(mode="after")
    def _accuracy_is_a_share(self) -> Self:
        if self.metric == "test_accuracy" and self.value is not None and self.value > 1:
            raise ValueError(f"value={self.value:g} is not allowed: accuracy is a share from 0 to 1, 97 % is 0.97")
        return self


class Law(Spec):
    """The batch-size law: steps to a training loss at many batch sizes, the learning rate tuned at each."""

    batch_sizes: tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...] = Field(
        (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        min_length=1,
        max_length=64,
        strict=False,
        title="Batch sizes",
        description="Those larger than the training set are left out.",
    )
    full_batch: bool = Field(True, title="Full batch", description="The whole training set is one more batch size.")
    target_loss: float = Field(
        0.2,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        title="Target loss",
        description="Training loss, over the training set or 1,024 examples of it, that two evaluations in a row must reach.",
    )
    lr_factor: float = Field(
        1.5,
        gt=1,
        le=10,
        allow_inf_nan=False,
        title="Grid of learning rates",
        description="Factor between neighbours; a batch size tries them from optimizer.lr or its neighbour's best until "
        "the best one lies between two worse.",
    )
    seeds: int = Field(
        3,
        ge=1,
        le=100,
        title="Seeds",
        description="Trials at the best learning rate, of other seeds than those that chose it.",
    )
    tuning_seeds: int = Field(3, ge=1, le=100, title="Seeds to tune", description="Trials of each learning rate tried.")
    max_steps: int = Field(
        10_000, ge=2, le=100_000_000, title="Steps at most", description="A trial that needs more has not reached it."
    )

    @model_validator(mode="after")
    def _enough_batch_sizes(self) -> Self:
        if len(set(self.batch_sizes)) + self.full_batch < MIN_BATCH_SIZES:
            raise ValueError(
                f"batch_sizes={as_text(self.batch_sizes)}: a law takes at least {MIN_BATCH_SIZES} different ones; add some"
            )
        return self

    def sizes(self, train_examples: int) -> list[int]:
        """The batch sizes there are in a training set, rising."""
        full = {train_examples} if self.full_batch else set()
        return sorted({size for size in self.batch_sizes if size <= train_examples} | full)


MIN_BATCH_SIZES = 3  # two parameters, and something left to see whether they fit


class Landscape(Spec):
    """Which part of the loss surface is drawn: a plane through the checkpoints of some runs."""

    runs: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")], ...] = Field(
        (),
        max_length=16,
        strict=False,
        title="Runs",
        description="Ids of the runs whose paths lie on the surface. They kept checkpoints, of one model on one data set.",
    )
    plane: Literal["pca", "random"] = Field(
        "pca",
        title="Plane",
        description="pca is spanned by the two directions the checkpoints vary most in; random by two drawn at random, "
        "each filter as long as the weights' own (Li et al. 2018, arXiv:1712.09913).",
    )
    resolution: int = Field(
        41, ge=11, le=101, title="Resolution", description="Points along each side at which the loss is computed."
    )
    split: Literal["train", "test"] = Field(
        "train", title="Split", description="Which examples the loss is the mean of."
    )
    examples: int = Field(
        1_024,
        ge=16,
        le=1_000_000,
        title="Examples",
        description="So many of the split, the same ones at every point; more are slower and less noisy.",
    )
    margin: float = Field(
        0.25,
        ge=0,
        le=10,
        allow_inf_nan=False,
        title="Margin",
        description="How far beyond the paths the surface goes on, as a share of their extent.",
    )

    @model_validator(mode="after")
    def _each_run_once(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs names the same run twice")
        return self


MOST_IN_A_REQUEST = 65_536


class Cell(Spec):
    """One way to serve a model: how many examples a request brings, and what answers it."""

    batch_size: int = Field(1, ge=1, le=MOST_IN_A_REQUEST, title="Batch size", description="Examples of one request.")
    threads: int = Field(1, ge=1, le=1_024, title="Threads", description="CPU threads for one operation.")
    precision: PrecisionName = Field(
        "fp32", title="Precision", description="Of weights and arithmetic: bf16 and fp16 halve the weights."
    )
    runtime: RuntimeName = Field(
        "inference_mode",
        title="Software",
        description="eager: PyTorch as in training, autograd on; inference_mode: without autograd; channels_last: images "
        "laid out by pixel; compiled: torch.compile; exported: torch.export; onnxruntime: ONNX Runtime; int8: PyTorch's "
        "dynamic quantisation of linear and recurrent layers; onnxruntime-int8: ONNX Runtime's of matrix products.",
    )


RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)


class Infer(Spec):
    """Inference: requests answered one at a time by trained or fresh weights, in one or many cells."""

    run: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16})?$")] = Field(
        "",
        title="Run",
        description="Id of the finished run whose weights answer; its model and data are this run's own. Empty: fresh "
        "weights of the seed, whose speed is the same and whose answers are guesses.",
    )
    weights: str = Field(
        "",
        max_length=4_096,
        title="Weights file",
        description="Your own weights of this model instead: a .safetensors file.",
    )
    shape: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field(
        (),
        max_length=4,
        strict=False,
        title="Input shape",
        description="Of one example, as the data has it or as the model reads it; a 1 for the batch may stand before. "
        "Empty: the data's.",
    )
    load: Literal["closed", "open"] = Field(
        "closed",
        title="Load",
        description="closed: the next request is sent when the last one is answered. open: requests arrive by chance, at "
        "the rate, whether the last one is answered or not; latency then counts from the arrival.",
    )
    rate: float = Field(
        100.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        title="Rate",
        description="Requests per second that arrive in the open loop, independently of each other (Poisson).",
    )
    requests: int = Field(
        10_000, ge=1, le=10_000_000, title="Requests", description="Timed requests of a cell, at most."
    )
    seconds: float = Field(
        1.0,
        gt=0,
        le=600,
        allow_inf_nan=False,
        title="Seconds",
        description="Timed seconds of a cell; up to five times as long where they hold fewer than 100 requests.",
    )
    warm_up: int = Field(
        10, ge=1, le=10_000, title="Warm-up", description="Requests before the first that counts, of each cell."
    )
    rounds: int = Field(
        5, ge=1, le=100, title="Rounds", description="Cells take turns so many times, each time in another order."
    )
    cells: tuple[Cell, ...] = Field(
        (),
        max_length=512,
        strict=False,
        title="Cells",
        description="What is measured, in turns. None: one, of batch_size, threads, precision and infer.runtime.",
    )
    runtime: RuntimeName = Field(
        "inference_mode", title="Software", description=str(Cell.model_fields["runtime"].description)
    )
    prompt_len: int = Field(
        16, ge=1, le=16_384, title="Prompt", description="Characters a request of a text model brings."
    )
    new_tokens: int = Field(
        32, ge=1, le=16_384, title="New characters", description="Characters a text model answers a request with."
    )
    cache: bool = Field(
        True,
        title="KV cache",
        description="Keys and values (or a recurrent state) of what was read are kept; off: all of it is read again for "
        "every new character.",
    )

    @model_validator(mode="after")
    def _one_origin_of_weights(self) -> Self:
        if self.run and self.weights:
            raise ValueError("run and weights exclude each other; give the run's id or a file, not both")
        if len(set(self.cells)) < len(self.cells):
            raise ValueError("cells names the same cell twice")
        return self


class Parallel(Spec):
    """How many devices share each batch. `batch_size` stays that of all of them together."""

    num_ranks: int = Field(
        1,
        ge=1,
        le=64,
        title="Ranks",
        description="Processes that share each batch, one per GPU or CPU core; each takes batch size / ranks examples of it.",
    )
    strategy: StrategyName = Field(
        "ddp",
        title="Strategy",
        description="ddp: each rank holds the whole model, gradients are added up (DistributedDataParallel); fsdp: weights, "
        "gradients and optimizer state are shared out among the ranks (fully_shard); data-parallel: one process and its "
        "threads (nn.DataParallel), the historical baseline, which on a CPU only passes calls through.",
    )
    devices: tuple[DeviceName, ...] = Field(
        (),
        max_length=64,
        strict=False,
        title="Devices of the ranks",
        description="One for each rank, the first of them `device`; empty: the CPU for each, or the GPUs from `device` on. "
        "Naming the CPU more often than it has cores makes ranks share cores.",
    )
    timeout_s: float = Field(
        30.0,
        ge=1,
        le=3_600,
        allow_inf_nan=False,
        title="Patience",
        description="Seconds that a rank may be silent, or let the others wait, before the run ends and names it.",
    )

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


class RunConfig(Spec):
    """One experiment. Two equal values are the same experiment on every machine."""

    task: Literal["train", "batch-law", "landscape", "calibrate", "infer"] = Field(
        "train",
        title="Task",
        description="train trains; batch-law trains many times to find the law of the batch size; landscape computes the "
        "loss on a plane through the checkpoints of other runs; calibrate measures what the device reaches, with up to "
        "`threads` CPU threads; infer measures how fast weights answer requests.",
    )
    model: Annotated[MLP | CNN | RNN | Transformer, Field(discriminator="family")] = Field(MLP(), title="Model")
    data: DatasetName = Field(
        "mnist5k",
        title="Data",
        description="What is learned: released data sets, text, random numbers, or a file of yours.",
    )
    source: Source = Field(Source(), title="Source")
    optimizer: Optimizer = Field(Optimizer(), title="Optimizer")
    schedule: ScheduleName = Field(
        "constant",
        title="Schedule",
        description="How the learning rate moves over the run: constant; cosine down to lr_end; step, times lr_gamma at "
        "each milestone; one-cycle, up and down again (Smith 2018); warm-up, up and then constant.",
    )
    warmup_steps: int = Field(
        0,
        ge=0,
        le=100_000_000,
        title="Warm-up steps",
        description="The learning rate climbs in a line over these steps, before constant, cosine or step; "
        "warm-up takes a tenth of the run when this is 0.",
    )
    lr_end: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, title="Ends at", description="Share of the learning rate cosine ends at."
    )
    lr_gamma: float = Field(
        0.1,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        title="Drops to",
        description="Factor of the step schedule at a milestone.",
    )
    lr_milestones: tuple[Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)], ...] = Field(
        (0.5, 0.75),
        min_length=1,
        max_length=16,
        strict=False,
        title="Milestones",
        description="Where the step schedule drops, as shares of the run.",
    )
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["full"] = Field(
        64,
        title="Batch size",
        description="Examples that go through the net at once; full is the whole training set (batch gradient descent).",
    )
    grad_accumulation: int = Field(
        1,
        ge=1,
        le=10_000,
        title="Gradient accumulation",
        description="Batches whose gradients are added up for one optimizer step; full is cut into so many.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        title="Label smoothing",
        description="Share of the target spread over all classes (Szegedy et al. 2016); in the training loss alone.",
    )
    max_grad_norm: float | None = Field(
        None,
        gt=0,
        le=1e9,
        allow_inf_nan=False,
        title="Gradient clipping",
        description="A longer gradient is shortened to this norm; none leaves it.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        title="Weight averaging",
        description="Evaluates and saves an exponential moving average of the weights with this decay; none: the weights.",
    )
    activation_checkpointing: bool = Field(
        False,
        title="Activation checkpointing",
        description="Forgets activations and computes them again in the backward pass: less memory, more time.",
    )
    precision: PrecisionName = Field(
        "fp32",
        title="Precision",
        description="Of matrix products: fp32; tf32 (NVIDIA Ampere and later); bf16 or fp16 by autocast, fp16 with loss scaling.",
    )
    execution: ExecutionName = Field(
        "eager",
        title="Execution",
        description="eager: data on the device, fused, read back in chunks; dataloader: the loop of the tutorials; "
        "compiled: torch.compile; cuda-graph: steps recorded once and replayed on an NVIDIA GPU.",
    )
    budget: Budget = Field(Budget(epochs=20.0), title="Budget")
    target: Target = Field(Target(), title="Target")
    law: Law = Field(Law(), title="Batch-size law")
    device: DeviceName = Field("cpu", title="Device", description="cpu, or cuda:i for the i-th NVIDIA GPU.")
    parallel: Parallel = Field(Parallel(), title="Data-parallel")
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        title="Threads",
        description="CPU threads for one operation, of each rank. One is fastest for small nets: waiting threads cost more "
        "than they give.",
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, title="Seed", description="Fixes the first weights and the order of the data."
    )
    evaluate_every: Annotated[int, Field(ge=1, le=100_000_000)] | Literal["auto"] = Field(
        "auto",
        title="Evaluate every",
        description="Steps between evaluations on the held-out split; auto spends at most about a fifth of the time on them.",
    )

    checkpoints: int = Field(
        0,
        ge=0,
        le=200,
        title="Checkpoints",
        description="Copies of all weights kept along the run, evenly and with the first and the last, to draw its path "
        "over the loss surface; 0 keeps none. Their time is not training time.",
    )
    landscape: Landscape = Field(Landscape(), title="Loss surface")
    infer: Infer = Field(Infer(), title="Inference")

    @model_validator(mode="after")
    def _gd_takes_the_whole_set(self) -> Self:
        if self.optimizer.name == "gd" and self.batch_size != FULL:
            raise ValueError(
                f"batch_size={self.batch_size} does not go with optimizer.name='gd': gradient descent uses the whole "
                "training set; set batch_size=full, or optimizer.name=sgd for mini-batches"
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
                "batch_size=full does not go with task='infer': a request brings a number of examples; set batch_size=1, or more"
            )
        assert isinstance(self.batch_size, int)
        if not self.infer.cells and self.batch_size > MOST_IN_A_REQUEST:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {MOST_IN_A_REQUEST} examples a request may bring; set fewer"
            )
        if (most := max((cell.threads for cell in self.infer.cells), default=1)) > self.threads:
            raise ValueError(
                f"threads={self.threads} is less than the {most} of a cell: it is what the run may take; set threads={most}"
            )
        return self

    @model_validator(mode="after")
    def _model_reads_the_data(self) -> Self:
        if self.data == "text" and self.model.family in {"mlp", "cnn"}:
            raise ValueError(
                f"model.family='{self.model.family}' does not go with data='text': it has no order of characters; "
                "set model.family=transformer or rnn"
            )
        if self.data == "text" and isinstance(self.model, RNN) and self.model.bidirectional:
            raise ValueError(
                "model.bidirectional=true does not go with data='text': reading from the end shows the character that is "
                "to be predicted; set it to false"
            )
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
        """What is recorded once must be the same in every replay, and ask the CPU nothing."""
        if self.device == "cpu":
            raise ValueError(
                "execution='cuda-graph' needs an NVIDIA GPU; set device=cuda:0, or execution=eager for device='cpu'"
            )
        if self.optimizer.name not in GRAPH_OPTIMIZERS:
            raise ValueError(
                f"optimizer.name='{self.optimizer.name}' does not go with execution='cuda-graph'; choose from "
                f"{', '.join(GRAPH_OPTIMIZERS)}, or set execution=eager"
            )
        if self.precision == "fp16":
            raise ValueError(
                "precision='fp16' does not go with execution='cuda-graph': loss scaling decides after each step; set "
                "precision=bf16, or execution=eager"
            )

    @model_validator(mode="after")
    def _law_is_of_plain_training(self) -> Self:
        """Each trial is as short as it must be: nothing may depend on how long it is."""
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
        if self.optimizer.name == "gd":
            raise ValueError("optimizer.name='gd' does not go with task='batch-law'; set optimizer.name=sgd")
        return self

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        """What data-parallel training does not combine with, in one sentence each."""
        parallel, strategy = self.parallel, self.parallel.strategy
        if parallel.devices and parallel.devices[0] != self.device:
            raise ValueError(
                f"parallel.devices begins with {parallel.devices[0]} and device is {self.device}; set device={parallel.devices[0]}"
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
        """What needs whole weights, or decides by them, on every rank."""
        refused = {
            "optimizer.name='muon'": self.optimizer.name == "muon",
            "precision='fp16'": self.precision == "fp16",
            f"checkpoints={self.checkpoints}": self.checkpoints > 0,
        }
        for said in (text for text, is_asked in refused.items() if is_asked):
            raise ValueError(
                f"{said} does not go with parallel.strategy='fsdp', where no rank holds a whole weight; set "
                "parallel.strategy=ddp"
            )

    @property
    def is_parallel(self) -> bool:
        """Whether ranks train it together. Also of one rank whose device is named: to see what the wrapper costs."""
        return self.parallel.num_ranks > 1 or bool(self.parallel.devices)

    @property
    def devices(self) -> tuple[str, ...]:
        """The device of each rank."""
        if self.parallel.devices or self.parallel.num_ranks == 1:
            return self.parallel.devices or (self.device,)
        kind, _, first = self.device.partition(":")
        numbers = range(int(first or 0), int(first or 0) + self.parallel.num_ranks)
        return tuple("cpu" if kind == "cpu" else f"cuda:{i}" for i in numbers)

    @property
    def is_gang(self) -> bool:
        """Whether its ranks are processes: nn.DataParallel serves all of its devices from one."""
        return self.is_parallel and self.parallel.strategy != "data-parallel"

    @property
    def num_processes(self) -> int:
        return self.parallel.num_ranks if self.is_gang else 1

    @property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every field: same fingerprint, same experiment.

        Fields at their defaults are left out, so that a field added later moves no fingerprint.
        """
        said = self.model_dump(mode="json", exclude_defaults=True)
        said["model"] = {"family": self.model.family} | self.model.model_dump(mode="json", exclude_defaults=True)
        canonical = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What a run of task infer measures."""
        assert isinstance(self.batch_size, int)
        if self.infer.cells:
            return self.infer.cells
        return (
            Cell(
                batch_size=self.batch_size, threads=self.threads, precision=self.precision, runtime=self.infer.runtime
            ),
        )  # fmt: skip

    def in_words(self) -> str:
        """A line a person can read in a list: model, data, optimizer, batch size, what is unusual, budget, device."""
        if self.task == "calibrate":
            return f"calibration of this machine · {self.device} · up to {self.threads} thread{'' if self.threads == 1 else 's'}"
        if self.task == "landscape":
            runs, side = len(self.landscape.runs), self.landscape.resolution
            paths = f"{runs} run{'' if runs == 1 else 's'}"
            return f"loss surface of {paths} · {model_in_words(self.model, self.data)} · {self.data} · {side}x{side}"
        if self.task == "infer":
            return _inference_in_words(self)
        return " · ".join(
            [
                model_in_words(self.model, self.data),
                self.data,
                *(_law_in_words(self) if self.task == "batch-law" else _training_in_words(self)),
                _devices_in_words(self),
            ]
        )


GRAPH_OPTIMIZERS: tuple[OptimizerName, ...] = ("gd", "sgd", "momentum", "nesterov", "adam", "adamw")


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
    """LeNet answers: batch 1-1024 x 1-2 threads · mnist5k · cpu."""
    cells = config.cells
    sizes, threads = sorted({c.batch_size for c in cells}), sorted({c.threads for c in cells})
    on_cpu = config.device == "cpu"
    at = f" x {_ends(threads)} thread{'' if threads == [1] else 's'}" if on_cpu else ""
    precisions = list(dict.fromkeys(c.precision for c in cells))
    runtimes = list(dict.fromkeys(c.runtime for c in cells))
    words = [f"{model_in_words(config.model, config.data)} answers: batch {_ends(sizes)}{at}"]
    words += [", ".join(precisions)] if precisions != ["fp32"] else []
    words += [", ".join(runtimes)] if runtimes != ["inference_mode"] else []
    if config.data == "text":
        words.append(f"{config.infer.prompt_len} + {config.infer.new_tokens} characters")
        words += [] if config.infer.cache else ["no cache"]
    words += [f"open loop, {config.infer.rate:g} requests/s"] if config.infer.load == "open" else []
    return " · ".join([*words, config.data, config.device])


def _ends(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]}-{values[-1]}"


def infer_config(base: RunConfig, run_id: str = "", **choices: Any) -> RunConfig:
    """The run that measures how fast a net answers: of the finished run `run_id`, whose configuration `base` is, or
    without one the net of `base` with fresh weights. `choices` are fields of `Infer`, and batch_size, threads, precision.
    """
    own = {"batch_size": 1, "threads": 1, "precision": "fp32"}
    own |= {name: choices.pop(name) for name in list(choices) if name in own}
    return parse_config(
        {
            "task": "infer", "model": base.model.model_dump(), "data": base.data, "source": base.source.model_dump(),
            "device": base.device, "seed": base.seed, "budget": {"steps": 1}, **own,
            "infer": Infer().model_dump() | choices | {"run": run_id},
        }
    )  # fmt: skip


def infer_matrix(
    config: RunConfig,
    batch_sizes: Sequence[int],
    threads: Sequence[int] = (1,),
    precisions: Sequence[PrecisionName] = ("fp32",),
    runtimes: Sequence[RuntimeName] = ("inference_mode",),
) -> RunConfig:
    """The same with a cell for every combination."""
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
    """What is switched on beside the basics."""
    words: list[str] = [config.schedule] if config.schedule != "constant" else []
    words += [config.precision] if config.precision != "fp32" else []
    words += [config.execution] if config.execution != "eager" else []
    words += ["checkpointing"] if config.activation_checkpointing else []
    return words


ModelSpec = MLP | CNN | RNN | Transformer
MODELS: Mapping[str, type[Model]] = {"mlp": MLP, "cnn": CNN, "rnn": RNN, "transformer": Transformer}


def model_in_words(model: ModelSpec, data: DatasetName = "mnist5k") -> str:
    match model:
        case CNN():
            name = "1-D CNN" if data == "mnist1d" else "CNN" if data in USER_DATA else "LeNet"
            return name if model.width == 1 else f"{name} x{model.width:g}"
        case MLP():
            return "MLP " + "-".join(map(str, model.hidden)) if model.hidden else "softmax regression"
        case RNN():
            both = "bidirectional " if model.bidirectional else ""
            layers = f"{model.num_layers}x" if model.num_layers > 1 else ""
            return f"{both}{'RNN' if model.cell == 'tanh' else model.cell.upper()} {layers}{model.hidden_size}"
        case Transformer():
            return f"Transformer {model.num_layers}x{model.d_model}"


_UNITS = {"steps": "step", "epochs": "epoch", "samples": "sample", "seconds": "second", "flops": "FLOP"}


def budget_in_words(budget: Budget) -> str:
    limits = [(getattr(budget, name), unit) for name, unit in _UNITS.items()]
    return " or ".join(f"{as_text(v)} {unit}{'' if v == 1 else 's'}" for v, unit in limits if v is not None)


# --- from text to a config, with one clear sentence when it cannot be ---------------------------------------------


def parse_config(data: Any) -> RunConfig:
    """A RunConfig from plain data (a parsed JSON file, a form); raises ConfigError in one sentence."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            f"A configuration is a JSON object, not {type(data).__name__}.", fix="See the README for an example."
        )
    try:
        return RunConfig.model_validate(_tuples(data))
    except ValidationError as error:
        raise explain(error) from None


def parse_config_json(text: str, *, name: str = "configuration") -> RunConfig:
    try:
        return parse_config(json.loads(text))
    except ValueError as error:  # not JSON, or a number of more digits than Python reads
        raise ConfigError(f"{name} is not JSON: {error}.", fix="Correct the file, or start from `--preset`.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.", fix="A configuration has two levels.") from None


def with_overrides(base: RunConfig, assignments: Iterable[str]) -> RunConfig:
    """`base` changed by `key.sub=value` assignments, as on the command line and in links.

    Changing `model.family` starts that family from its defaults; `model.size` sets all of its dimensions; choosing `gd` means the full batch unless a batch
    size is assigned as well, and leaving `gd` returns to mini-batches.
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
        if data["optimizer"].get("name") == "gd":
            data["batch_size"] = FULL
        elif base.optimizer.name == "gd":
            data["batch_size"] = RunConfig.model_fields["batch_size"].default
    return parse_config(data)


def overrides_from(base: RunConfig, config: RunConfig) -> list[str]:
    """The shortest assignments that lead from `base` to `config`; the inverse of `with_overrides`."""
    before, after = _flat(base.model_dump(mode="json")), _flat(config.model_dump(mode="json"))
    if base.model.family != config.model.family:
        defaults = _flat(type(config.model)().model_dump(mode="json"), "model.")
        before = {k: v for k, v in before.items() if not k.startswith("model.")} | defaults | {"model.family": None}
    changed = [f"{key}={as_text(value)}" for key, value in after.items() if key not in before or before[key] != value]
    if any(c.startswith("optimizer.name=") for c in changed) and not any(c.startswith("batch_size=") for c in changed):
        changed.append(f"batch_size={as_text(config.batch_size)}")  # choosing or leaving gd would otherwise move it
    return changed


def allowed(path: str) -> str:
    """What a field may hold, in words, from the one place that states it: 'a whole number from 1 to 1024'."""
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
    """One sentence for the first thing that is wrong: field, value, what is allowed, what to do."""
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
    field = re.sub(r"\.\d+", "", path)  # of which member of a list is no part of what the field may be
    return ConfigError(
        f"{path}={_excerpt(as_text(first['input']))} is not allowed.",
        fix=f"{field} {'is' if allowed(field).startswith('set') else 'may be'} {allowed(field)}.",
    )


def _is_branch(part: object) -> bool:
    """pydantic names the tried member of a union in the location; a user never wrote that."""
    return isinstance(part, str) and (part.startswith(("literal[", "function-", "constrained-")))


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean x?)', or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _tuples(data: Any) -> Any:
    """JSON lists as tuples: strict validation takes no list for a tuple."""
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


_TEXTS = {"source.path", "source.label", "infer.run", "infer.weights"}  # a label column may be called 3
_LISTS = {"law.batch_sizes", "model.hidden", "source.shape", "lr_milestones", "infer.shape", "infer.cells"}
_WORDS = {"landscape.runs", "parallel.devices"}  # lists of texts; hex digits may look like a number: 12345678901234e5
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")  # as people type them: .01, 1e3, 64.0


def parse_value(text: str) -> Any:
    """A scalar or list as JSON writes it; anything else is text. `512,256` is a list, `nan` and `inf` are numbers."""
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
    """A whole number as int, however it is written: 64, 64.0, 1e3."""
    if text.lstrip("-").isdigit():
        return int(text[:100])  # more digits than any bound allows; int() of a million digits takes its time
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


def as_text(value: Any) -> str:
    """A value as one types it; a number keeps all its digits."""
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(as_text, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


_GROUPS: dict[str, type[Spec]] = {
    "": RunConfig, "source": Source, "optimizer": Optimizer, "budget": Budget, "target": Target,
    "law": Law, "landscape": Landscape, "parallel": Parallel, "infer": Infer, "infer.cells": Cell,
}  # fmt: skip


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
        high = (
            f"to {_bound(schema['maximum'])}" if "maximum" in schema else f"below {_bound(schema['exclusiveMaximum'])}"
        )
        return f"{kind} {low} {high}"
    return f"a {schema.get('type', 'value')}"


def _bound(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
