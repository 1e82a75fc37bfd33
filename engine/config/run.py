"""The configuration of a run: one frozen value with JSON and a fingerprint. Named configurations are in `presets.py`.

Each fact about a field (title, bounds, choices, help) stands in this room once, and so does each fact about a choice
(optimizer, data set, model family). The form, the command line, error messages and reports read them from here. Checks
that need the size of a data set or a device are in `engine/planning/planner.py`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from engine.config.base import DeviceName, PrecisionName, Spec, field, number, values
from engine.config.data import DATA, USER_DATA, DatasetName, Source
from engine.config.models import MLP, ModelSpec
from engine.config.parallel import Parallel
from engine.config.tasks import MOST_IN_A_REQUEST, TASKS, Cell, Infer, Landscape, Law, TaskFacts, TaskName
from engine.config.training import FULL, OPTIMIZERS, Budget, Optimizer, ScheduleName, Target

ExecutionName = Literal["eager", "dataloader", "compiled", "cuda-graph"]


class RunConfig(Spec):
    """The configuration of one run. Equal values are the same experiment on every machine."""

    task: TaskName = field("train", "Task")
    """train: train one model. batch-law: train many times to fit the batch-size law. landscape: compute the loss on a
    plane through the checkpoints of other runs. calibrate: measure the peaks of the device, with up to `threads` CPU
    threads. infer: measure the latency and throughput of inference."""
    model: Annotated[ModelSpec, Field(discriminator="family")] = field(MLP(), "Model")
    data: DatasetName = field("mnist5k", "Data")
    """The data set: a released one, text, random numbers, or your own file."""
    source: Source = field(Source(), "Source")
    optimizer: Optimizer = field(Optimizer(), "Optimizer")
    schedule: ScheduleName = field("constant", "Schedule")
    """How the learning rate changes during the run. constant: not at all. cosine: it falls to lr_end. step: it is
    multiplied by lr_gamma at each milestone. one-cycle: it rises, then falls (Smith 2018). warm-up: it rises, then
    stays constant."""
    warmup_steps: int = field(0, "Warm-up steps", ge=0, le=100_000_000)
    """Steps in which the learning rate rises linearly, before the schedule constant, cosine or step begins. With 0 the
    warm-up schedule takes a tenth of the run."""
    lr_end: float = number(0.0, "Final learning rate", ge=0, le=1)
    """Share of the learning rate at the end of the cosine schedule."""
    lr_gamma: float = number(0.1, "Step factor", gt=0, lt=1)
    """Factor by which the step schedule multiplies the learning rate at each milestone."""
    lr_milestones: tuple[Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)], ...] = values(
        (0.5, 0.75), "Milestones", min_length=1, max_length=16
    )
    """When the step schedule multiplies the learning rate, as shares of the run."""
    batch_size: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["full"] = field(64, "Batch size")
    """Samples in one forward and backward pass. full: the whole training set (batch gradient descent)."""
    grad_accumulation: int = field(1, "Gradient accumulation", ge=1, le=10_000)
    """Number of batches whose gradients are summed for one optimizer step. A full batch is split into this many."""
    label_smoothing: float = number(0.0, "Label smoothing", ge=0, lt=1)
    """Share of the target that is spread over all classes (Szegedy et al. 2016). It affects only the training loss."""
    max_grad_norm: float | None = number(None, "Gradient clipping", gt=0, le=1e9)
    """Largest norm of the gradient; a larger gradient is scaled down to it. none: no clipping."""
    ema_decay: float | None = number(None, "Weight averaging", gt=0, lt=1)
    """Decay of an exponential moving average (EMA) of the weights, which is evaluated and saved instead of the weights.
    none: no average."""
    activation_checkpointing: bool = field(False, "Activation checkpointing")
    """Frees activations and computes them again in the backward pass, which needs less memory and more time."""
    precision: PrecisionName = field("fp32", "Precision")
    """Number format of matrix products: fp32; tf32 (NVIDIA Ampere and later); bf16 or fp16 with autocast, fp16 also
    with loss scaling."""
    execution: ExecutionName = field("eager", "Execution")
    """eager: data on the device, fused optimizer, losses copied to the host in chunks. dataloader: the DataLoader loop
    of PyTorch's tutorials. compiled: torch.compile. cuda-graph: the step is recorded once and replayed on an NVIDIA
    GPU."""
    budget: Budget = field(Budget(epochs=20.0), "Budget")
    target: Target = field(Target(), "Target")
    law: Law = field(Law(), "Batch-size law")
    device: DeviceName = field("cpu", "Device")
    """cpu, or cuda:i for the i-th NVIDIA GPU."""
    parallel: Parallel = field(Parallel(), "Data-parallel")
    threads: int = field(1, "Threads", ge=1, le=1024)
    """CPU threads per operation, in each rank. One is fastest for small models, because threads then cost more time
    for synchronisation than they save."""
    seed: int = field(0, "Seed", ge=0, le=2**32 - 1)
    """Determines the initial weights and the order of the data."""
    evaluate_every: Annotated[int, Field(ge=1, le=100_000_000)] | Literal["auto"] = field("auto", "Evaluate every")
    """Steps between evaluations on the test split. auto: after fixed numbers of samples, which are the same for all runs
    on a data set, so that evaluation takes about a fifth of the time or less."""
    checkpoints: int = field(0, "Checkpoints", ge=0, le=200)
    """Copies of all weights that are saved during the run at equal intervals, to draw its path over the loss surface.
    They include the initial and the final weights. Saving is not counted as training time. 0: none."""
    landscape: Landscape = field(Landscape(), "Loss surface")
    infer: Infer = field(Infer(), "Inference")

    @model_validator(mode="after")
    def _check_full_batch(self) -> Self:
        if self.optimizer.facts.full_batch and self.batch_size != FULL:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be combined with optimizer.name='{self.optimizer.name}': "
                "gradient descent uses the whole training set; set batch_size=full, or optimizer.name=sgd for "
                "mini-batches"
            )
        return self

    @model_validator(mode="after")
    def _check_surface(self) -> Self:
        if self.task == "landscape" and not self.landscape.runs:
            raise ValueError("landscape.runs is missing; task='landscape' draws the paths of these runs")
        return self

    @model_validator(mode="after")
    def _check_requests(self) -> Self:
        if self.task != "infer":
            return self
        if self.batch_size == FULL:
            raise ValueError(
                "batch_size=full cannot be combined with task='infer', because a request has a number of samples; "
                "set batch_size=1 or more"
            )
        assert isinstance(self.batch_size, int)
        if not self.infer.cells and self.batch_size > MOST_IN_A_REQUEST:
            raise ValueError(
                f"batch_size={self.batch_size} is more than the {MOST_IN_A_REQUEST} samples that a request can have"
            )
        if (most := max((cell.threads for cell in self.infer.cells), default=1)) > self.threads:
            raise ValueError(
                f"threads={self.threads} is less than the {most} threads of a combination; set threads={most}"
            )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.is_text and (reason := self.model.why_not_text()):
            raise ValueError(reason)
        if self.data in USER_DATA and not self.source.path:
            raise ValueError(f"source.path is missing; data='{self.data}' reads your own file or folder")
        return self

    @model_validator(mode="after")
    def _check_execution(self) -> Self:
        if self.execution == "cuda-graph":
            self._check_cuda_graph()
        if self.schedule == "one-cycle" and self.warmup_steps:
            raise ValueError(
                "warmup_steps cannot be combined with schedule='one-cycle', which has its own warm-up; set it to 0"
            )
        return self

    def _check_cuda_graph(self) -> None:
        """Refuse settings that a recorded step cannot have: it is always the same, and cannot wait for the CPU.

        Raises:
            ValueError: Device, optimizer or precision cannot be recorded.
        """
        if self.device == "cpu":
            raise ValueError(
                "execution='cuda-graph' needs an NVIDIA GPU; set device=cuda:0, or execution=eager for device='cpu'"
            )
        if not self.optimizer.facts.capturable:
            capturable = [name for name, facts in OPTIMIZERS.items() if facts.capturable]
            raise ValueError(
                f"optimizer.name='{self.optimizer.name}' cannot be combined with execution='cuda-graph'; choose from "
                f"{', '.join(capturable)}, or set execution=eager"
            )
        if self.precision == "fp16":
            raise ValueError(
                "precision='fp16' cannot be combined with execution='cuda-graph', because loss scaling checks each "
                "step; set precision=bf16, or execution=eager"
            )

    @model_validator(mode="after")
    def _check_law(self) -> Self:
        """Refuse settings that depend on the length of a run, because a trial ends when it reaches the target loss.

        Raises:
            ValueError: There is such a setting, or gradient descent on the full batch.
        """
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
                raise ValueError(f"{name}={given} cannot be combined with task='batch-law'; set {name}={value}")
        if self.optimizer.facts.full_batch:
            raise ValueError(
                f"optimizer.name='{self.optimizer.name}' cannot be combined with task='batch-law'; set "
                "optimizer.name=sgd"
            )
        return self

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        """Refuse settings that do not go with data-parallel training.

        Raises:
            ValueError: There is such a setting.
        """
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
            raise ValueError(
                f"task='{self.task}' cannot be combined with {many}; only training is data-parallel; set num_ranks=1"
            )
        if self.execution != "eager":
            raise ValueError(f"execution='{self.execution}' cannot be combined with {many}; set execution=eager")
        if isinstance(self.batch_size, int) and self.batch_size < parallel.num_ranks:
            raise ValueError(
                f"batch_size={self.batch_size} is less than {many}, but each rank needs a sample; set batch_size="
                f"{parallel.num_ranks} or more"
            )
        if strategy == "fsdp":
            self._check_sharding()
        return self

    def _check_sharding(self) -> None:
        """Refuse settings that need complete weights on every rank.

        Raises:
            ValueError: There is such a setting.
        """
        refused = {
            f"optimizer.name='{self.optimizer.name}'": self.optimizer.facts.for_matrices,
            "precision='fp16'": self.precision == "fp16",
            f"checkpoints={self.checkpoints}": self.checkpoints > 0,
        }
        for setting in (text for text, is_set in refused.items() if is_set):
            raise ValueError(
                f"{setting} cannot be combined with parallel.strategy='fsdp', because no rank has complete weights; "
                "set parallel.strategy=ddp"
            )

    @property
    def task_facts(self) -> TaskFacts:
        """What is known of the task of this run."""
        return TASKS[self.task]

    @property
    def is_text(self) -> bool:
        """Whether the data set is text."""
        return DATA[self.data].kind == "text"

    @property
    def predictions_per_sample(self) -> int:
        """Number of predictions on one sample: for text, whose samples are windows, one at every character."""
        return self.source.seq_len if self.is_text else 1

    @property
    def is_parallel(self) -> bool:
        """Whether a data-parallel wrapper is used. It is also used for one rank with `parallel.devices`, to measure its
        overhead."""
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
    def has_rank_processes(self) -> bool:
        """Whether each rank is a process; nn.DataParallel uses all of its devices from one process."""
        return self.is_parallel and self.parallel.strategy != "data-parallel"

    @property
    def num_processes(self) -> int:
        """Number of rank processes; 1 without them."""
        return self.parallel.num_ranks if self.has_rank_processes else 1

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
        """The combinations that an inference run measures."""
        assert isinstance(self.batch_size, int)
        if self.infer.cells:
            return self.infer.cells
        own = Cell(
            batch_size=self.batch_size, threads=self.threads, precision=self.precision, runtime=self.infer.runtime
        )
        return (own,)
