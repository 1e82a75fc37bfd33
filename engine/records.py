"""What a run says, in order: the events of its log and the states they lead to.

An event is one line of JSON. Long arrays are packed (base64 of little-endian numbers), everything else is plain, so
`jq`, pandas or DuckDB read the log as JSON lines. Measured against the alternatives: an Arrow IPC stream is as cheap
per scalar but one rotten message ends the stream, and per-scalar text costs ten times as much.
"""

from __future__ import annotations

import base64
import math
from typing import Annotated, Any, Literal, NotRequired, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    model_validator,
    with_config,
)
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from engine.config import Cell, PrecisionName, RuntimeName
from engine.text import encodable

Status = Literal["queued", "starting", "running", "stopping", "finished", "cancelled", "failed", "interrupted"]
TERMINAL: frozenset[Status] = frozenset({"finished", "cancelled", "failed", "interrupted"})


def _unpack(dtype: str) -> PlainValidator:
    def unpack(value: Any) -> np.ndarray:
        if isinstance(value, str):
            return np.frombuffer(base64.b64decode(value, validate=True), dtype=dtype)
        return _row(value, dtype)

    return PlainValidator(unpack)


def _row(value: Any, dtype: str) -> np.ndarray:
    """One dimension of numbers; numpy's own refusals become pydantic's."""
    try:
        array = np.ascontiguousarray(value, dtype=dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not an array of numbers: {type(value).__name__}") from error
    if np.ndim(value) != 1:
        raise ValueError("not one row of numbers")
    return array


_PACK = PlainSerializer(lambda array: base64.b64encode(array.tobytes()).decode(), return_type=str)
Float32s = Annotated[np.ndarray, _unpack("<f4"), _PACK]  # (n,)
Float64s = Annotated[np.ndarray, _unpack("<f8"), _PACK]  # (n,)
Int32s = Annotated[np.ndarray, _unpack("<i4"), _PACK]  # (n,)


def _unpack_rate(value: Any) -> float | np.ndarray:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f8")
    if isinstance(value, int | float):
        return float(_row([value], "<f8")[0])
    return _row(value, "<f8")


def _pack_rate(value: float | np.ndarray) -> float | str:
    return value if isinstance(value, float) else base64.b64encode(value.astype("<f8").tobytes()).decode()


Rate = Annotated[float | np.ndarray, PlainValidator(_unpack_rate), PlainSerializer(_pack_rate)]  # one, or (n,)
NOTHING = np.empty(0)

# What arithmetic and dates can be made of. A log may come from anywhere: a value beyond is a record not understood.
Count = Annotated[int, Field(ge=0, lt=2**63)]
StepNumber = Annotated[int, Field(ge=1, lt=2**53)]
Moment = Annotated[float, Field(ge=0, lt=253_402_300_800)]  # Unix time until the year 10,000, s
Seconds = Annotated[float, Field(ge=0, lt=1e12)]


def _encodable(value: Any) -> Any:
    return encodable(value) if isinstance(value, str) else value


# Text from outside, such as a file's name inside an error: the log is UTF-8, and a last word that could not be written
# would leave its run without an end.
Words = Annotated[str, BeforeValidator(_encodable)]


Said = Annotated[str, BeforeValidator(lambda value: value[:2_000] if isinstance(value, str) else value)]  # for a report


class Event(BaseModel):
    """Base of everything a run says."""

    # NaN and infinity are facts about a run: JSON has no word for them, so they travel as the strings "NaN", "Infinity".
    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, ser_json_inf_nan="strings")


class Heat(BaseModel):
    """Runs that are to take turns in one process, so that what happens to the machine happens to all of them alike."""

    model_config = ConfigDict(frozen=True)

    id: str
    lanes: Annotated[int, Field(ge=1, le=64)]  # how many there are: none begins before all were asked for
    round: Annotated[int, Field(ge=1, le=10_000)] = 1  # a race that is given more seeds is judged once more


class Queued(Event):
    """The run was asked for. Written with the run's folder, so that asking is durable."""

    kind: Literal["queued"] = "queued"
    at: Moment
    order: int | None = None  # place among the store's submissions: unlike the clock's, these numbers only rise
    name: Words = ""
    group: str | None = None  # runs submitted together, for example one per seed
    heat: Heat | None = None
    owner: str = ""  # id of the actor who asked (engine.access)
    version: Words = ""  # of the Isoflop that wrote the configuration; an older one may not be able to read it


class Starting(Event):
    """A process was made for the run. A pid alone is no identity: pids are reused."""

    kind: Literal["starting"] = "starting"
    at: Moment
    pid: Count
    pid_started: float  # as engine.processes says it


class Started(Event):
    """The task stands: model and data are on the device. `elapsed_s` of later events counts from `at`."""

    kind: Literal["started"] = "started"
    at: Moment
    parameters: Count
    train_flops_per_example: Count
    train_examples: Annotated[Count, Field(ge=1)]
    test_examples: Count
    total_steps: Count | None  # None when only a time limit ends the run
    setup_s: Seconds  # loading data, building the model; never part of training time
    data_sha256: str | None = None  # of the user's own file
    environment: dict[str, Words | int | float | None] = Field(default_factory=dict)


class Preparing(Event):
    """Work before the task stands that can take long: a data set on its way from the web."""

    kind: Literal["preparing"] = "preparing"
    text: Words
    done_bytes: Count
    total_bytes: Count | None  # None where the server does not say


class Progress(Event):
    """How far a task is that takes no optimizer steps."""

    kind: Literal["progress"] = "progress"
    text: Words
    done: Count
    total: Annotated[Count, Field(ge=1)]


class Surface(Event):
    """The loss on a plane through weights, as `landscape.safetensors` holds it (engine.landscape)."""

    kind: Literal["surface"] = "surface"
    plane: Literal["pca", "random"]
    explained: tuple[
        float, float
    ]  # share of the checkpoints' variance along each axis, 0..1; the second's beyond the first's
    x: tuple[float, float]  # range
    y: tuple[float, float]
    resolution: Count
    loss_min: float  # of the finite ones; NaN where there is none
    loss_max: float
    num_not_finite: Count  # points of the grid where the loss was NaN or infinite
    plane_gap: float | None  # median over checkpoints of |loss at the checkpoint - loss at its shadow on the plane|
    checkpoints: Count
    parameters: Count
    split: Literal["train", "test"]
    examples: Count
    seconds: Seconds  # for the surface and the paths, without loading


class Measurement(BaseModel):
    """One quantity of a calibration, from many calls. `p05` is what the 5th percentile of their times comes to, and the
    figure to quote: on a busy machine the mean tells of the others, and the best of many of one lucky call."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str  # gemm, thin_gemm, copy, triad, to_device, to_host, op, launch, round_trip, recording, idle_power
    unit: Literal["flops_per_s", "bytes_per_s", "s", "w"]
    dtype: str | None = None
    shape: tuple[Count, ...] = ()  # (m, k, n) of a product; (bytes,) touched by a copy
    threads: Annotated[Count, Field(ge=1)] = 1
    p05: Annotated[float, Field(ge=0)]  # from the 5th percentile of the times of all rounds
    best: Annotated[float, Field(ge=0)]  # from the shortest
    median: Annotated[float, Field(ge=0)]
    spread: Annotated[float, Field(ge=0)] | None = (
        None  # of `p05` over the rounds, (max - min) / median; None of one round
    )
    calls: Count


class Calibration(Event):
    """What this machine reaches, measured. What could not be measured is in `missing`, with the reason."""

    kind: Literal["calibration"] = "calibration"
    at: Moment
    device: str
    device_name: Words
    threads: tuple[Annotated[Count, Field(ge=1)], ...]  # the counts that were tried
    versions: dict[str, Words | None]
    measurements: tuple[Measurement, ...]
    missing: dict[str, Words] = Field(default_factory=dict)
    rounds: Count
    seconds: Seconds
    wall_per_cpu: float | None = None  # of this process while one thread worked; 1 where nobody else wanted the core
    others_on_gpu: Count | None = None  # other programs on the device; None on a CPU, or where NVML does not say
    others_reason: Words = ""


class Compiled(Event):
    """Compiling or recording the step, before the clock starts."""

    kind: Literal["compiled"] = "compiled"
    seconds: Seconds


class Memory(Event):
    """What training needs, apart from everything else the process holds (on a CPU PyTorch alone is about 320 MB).

    Weights, gradients and optimizer state are exact. `step_peak_bytes` is the allocator's peak above weights, optimizer
    state and data within one step: activations, gradients and scratch. On CUDA `allocated_bytes` is the allocator's
    peak over the whole run, data and evaluations included, and `reserved_bytes` what it took from the device.
    """

    kind: Literal["memory"] = "memory"
    weight_bytes: Count
    gradient_bytes: Count
    optimizer_bytes: Count
    data_bytes: Count
    step_peak_bytes: Count | None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    method: Words

    @property
    def training_bytes(self) -> int | None:
        """Weights, optimizer state and the peak of a step; the data set is apart."""
        return None if self.step_peak_bytes is None else self.weight_bytes + self.optimizer_bytes + self.step_peak_bytes


class StepSplit(Event):
    """Where the time of a step goes, from a few steps that were profiled outside training and moved nothing.

    Seconds per optimizer step, medians over the profiled ones. None where there is no such part, or where the way of
    running cannot be taken apart; `reason` then says why. What evaluation takes is in the run's own evaluations.
    """

    kind: Literal["step_split"] = "step_split"
    data_s: Seconds | None = None  # fetching the batch
    forward_s: Seconds | None = None
    backward_s: Seconds | None = None
    optimizer_s: Seconds | None = None  # with clipping and averaging, where the run has them
    read_back_s: Seconds | None = None  # of losses to the host
    steps: Count = 0  # how many were profiled
    seconds: Seconds = 0.0  # what all of it took
    method: Words = ""
    reason: Words = ""


class Ranks(Event):
    """What each rank of a data-parallel run did over some steps: one value per rank, rank 0 first.

    Ranks wait for each other in every step, so their `step_s` are alike; who is slow shows in `own_s`, the part of it in
    which a rank did not wait. None where it cannot be told, as of FSDP on a GPU, where exchange and work overlap freely.
    """

    kind: Literal["ranks"] = "ranks"
    elapsed_s: Seconds  # at the end of the window
    steps: tuple[StepNumber, StepNumber]  # first and last of the window
    device: tuple[str, ...]
    step_s: tuple[Seconds, ...]  # mean of a step
    communication_s: tuple[Seconds | None, ...]  # of it, while an exchange with the others was under way
    waited_s: tuple[Seconds | None, ...]  # of it, while training stood still for that; the rest went on beside it
    cpu_per_wall: tuple[Annotated[float, Field(ge=0)] | None, ...]  # processor time of the rank by time that passed
    memory_bytes: tuple[Count | None, ...]  # held at the end of the window
    method: Words

    @model_validator(mode="after")
    def _one_value_per_rank(self) -> Self:
        columns = (self.step_s, self.communication_s, self.waited_s, self.cpu_per_wall, self.memory_bytes)
        if not self.device or any(len(column) != len(self.device) for column in columns):
            raise ValueError(
                f"{len(self.device)} ranks do not go with {', '.join(str(len(c)) for c in columns)} values"
            )
        if self.steps[0] > self.steps[1]:
            raise ValueError("steps that run backwards")
        return self

    @property
    def own_s(self) -> tuple[float | None, ...]:
        """Seconds of a step in which each rank worked by itself."""
        return tuple(
            None if waited is None else max(0.0, step - waited)
            for step, waited in zip(self.step_s, self.waited_s, strict=True)
        )

    @property
    def straggler(self) -> int | None:
        """The rank the others wait for: its own work takes 1.2 times that of the quickest; None where there is none."""
        own = [s for s in self.own_s if s is not None]
        if len(own) < max(2, len(self.device)) or max(own) <= BUSY_FROM * min(own):
            return None
        return own.index(max(own))


class WarmUp(Event):
    """Work before the clock starts: first calls allocate, pick kernels and fill caches."""

    kind: Literal["warm_up"] = "warm_up"
    seconds: Seconds
    steps: Count


class Steps(Event):
    """A batch of consecutive optimizer steps, read from the device at once.

    `train_s` is the training clock (no warm-up, no evaluation) before the first and after the last of the steps, the
    device synchronised at both; `elapsed_s` is wall time since Started at the same two moments.
    """

    kind: Literal["steps"] = "steps"
    first: StepNumber  # number of the first step, counting from 1
    loss: Float32s  # (n,) mean loss of each step's batch, before that step
    samples: Int32s  # (n,) examples in each step
    lr: Rate  # of every step, or one for all of them
    train_s: tuple[Seconds, Seconds]
    elapsed_s: tuple[Seconds, Seconds]
    norm_steps: Int32s = Field(default=NOTHING, validate_default=True)  # (k,) numbers of the steps whose ...
    grad_norm: Float32s = Field(default=NOTHING, validate_default=True)  # (k,) ... gradient norm was measured

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        n = len(self.loss)
        if not n or len(self.samples) != n or (isinstance(self.lr, np.ndarray) and len(self.lr) != n):
            raise ValueError(
                f"{n} losses do not go with {len(self.samples)} sample counts and {np.size(self.lr)} rates"
            )
        if self.samples.min() < 0:
            raise ValueError("a step of fewer than no samples")
        if self.train_s[0] > self.train_s[1] or self.elapsed_s[0] > self.elapsed_s[1]:
            raise ValueError("time that runs backwards")
        if len(self.norm_steps) != len(self.grad_norm):
            raise ValueError(f"{len(self.norm_steps)} steps do not go with {len(self.grad_norm)} gradient norms")
        if len(self.norm_steps) and not self.first <= self.norm_steps.min() <= self.norm_steps.max() < self.first + n:
            raise ValueError(f"gradient norms of steps outside {self.first} to {self.first + n - 1}")
        return self


@with_config(ConfigDict(val_json_bytes="base64"))
class PackedSteps(TypedDict):
    """`Steps` as its line holds it, arrays still bytes: who reads a long log unpacks a thousand of them at once, in a
    third of the time. `engine.store.decode_steps` asks of it what `Steps` asks of itself."""

    first: StepNumber
    loss: bytes
    samples: bytes
    lr: float | bytes
    train_s: tuple[Seconds, Seconds]
    elapsed_s: tuple[Seconds, Seconds]
    norm_steps: NotRequired[bytes]
    grad_norm: NotRequired[bytes]


PACKED_STEPS: TypeAdapter[PackedSteps] = TypeAdapter(PackedSteps)


class Evaluation(Event):
    """Loss and accuracy on the held-out split, after `step` steps."""

    kind: Literal["evaluation"] = "evaluation"
    step: Count
    train_s: Seconds
    elapsed_s: Seconds
    test_loss: float
    test_accuracy: float  # 0..1
    seconds: Seconds  # what this evaluation took


class TargetReached(Event):
    """The first of two evaluations in a row that reached the run's target."""

    kind: Literal["target_reached"] = "target_reached"
    metric: str
    value: float
    step: Count
    train_s: Seconds
    elapsed_s: Seconds


class Trial(Event):
    """One short training towards a training loss, with one batch size, learning rate and seed.

    `steps` is interpolated between evaluations; None, like `samples` and `train_s`, where the target was not reached within
    `max_steps` or before the loss became NaN or infinite.
    """

    kind: Literal["trial"] = "trial"
    batch_size: Annotated[Count, Field(ge=1)]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seed: Count
    tuning: bool  # it chose the learning rate; the others measure at the best one
    reached: bool
    max_steps: Count  # when it would have been given up; in tuning soon after the best rate so far
    steps: Annotated[float, Field(ge=0, lt=2**53)] | None = None
    samples: Count | None = None  # examples used until then, an epoch's smaller last batch as it is
    train_s: Seconds | None = None  # training clock until then, evaluations left out
    step_s: Seconds | None = None  # mean time of all steps it made; None where it made none
    last_loss: float  # training loss where it ended

    @model_validator(mode="after")
    def _reached_has_steps(self) -> Self:
        if self.reached != (self.steps is not None):
            raise ValueError(f"reached={self.reached} does not go with steps={self.steps}")
        return self


# Bins of every histogram: the same edges everywhere, so that those of two rounds, runs or machines can be added.
BIN_BASE_S = 1e-7
BIN_RATIO = 2 ** (1 / 32)  # 2.2 % wide
_MOST_BINS = 4_096  # up to more seconds than there are


class Histogram(BaseModel):
    """How many durations fell into each bin: bin k holds those from BIN_BASE_S * BIN_RATIO**k up to the next."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True)

    first: Annotated[int, Field(ge=0, lt=_MOST_BINS)] = 0  # k of the first bin that is kept
    counts: Int32s = Field(default=NOTHING, validate_default=True)  # (n,) of it and those after it

    @model_validator(mode="after")
    def _counts_are_counts(self) -> Self:
        if len(self.counts) > _MOST_BINS or (len(self.counts) and self.counts.min() < 0):
            raise ValueError("a histogram of fewer than none, or of too many bins")
        return self

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        if not len(seconds):
            return cls()
        bins = np.floor(np.log2(np.maximum(seconds, BIN_BASE_S) / BIN_BASE_S) * 32).astype(np.int64)
        bins = np.minimum(bins, _MOST_BINS - 1)
        first = int(bins.min())
        return cls(first=first, counts=np.bincount(bins - first).astype("<i4"))

    @property
    def edges_s(self) -> np.ndarray:
        """(n + 1,): bin i lies between edges i and i + 1."""
        return BIN_BASE_S * BIN_RATIO ** np.arange(self.first, self.first + len(self.counts) + 1)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def __add__(self, other: Self) -> Self:
        parts = [h for h in (self, other) if len(h.counts)]
        if not parts:
            return self
        first, end = min(h.first for h in parts), max(h.first + len(h.counts) for h in parts)
        counts = np.zeros(end - first, "<i4")
        for part in parts:
            counts[part.first - first : part.first - first + len(part.counts)] += part.counts
        return type(self)(first=first, counts=counts)

    def quantile(self, share: float) -> float | None:
        """The upper edge of the bin that holds it: at most a bin's width too much; None of nothing."""
        if not self.total:
            return None
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(share * self.total)))
        return float(self.edges_s[min(place, len(self.counts) - 1) + 1])


class Quantiles(BaseModel):
    """Of durations, each the smallest that so large a share of them did not exceed; of fewer than 100, p99 is the longest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds

    @classmethod
    def of(cls, seconds: np.ndarray) -> Self:
        """Of at least one."""
        p50, p90, p99 = np.percentile(seconds, [50, 90, 99], method="inverted_cdf")
        return cls(
            p50_s=float(p50),
            p90_s=float(p90),
            p99_s=float(p99),
            max_s=float(seconds.max()),
            mean_s=float(seconds.mean()),
        )


class Latency(Event):
    """One cell of an inference run as measured so far: written again after each round, and the last one counts.

    Times are those of requests after warm-up, the device synchronised at both ends. In the closed loop a request begins
    when it is sent; in the open loop when it arrived, so what it waited is in its latency (no coordinated omission).
    """

    kind: Literal["latency"] = "latency"
    cell: Cell
    load: Literal["closed", "open"] = "closed"
    round: Annotated[Count, Field(ge=1)]
    rounds: Annotated[Count, Field(ge=1)]
    requests: Annotated[Count, Field(ge=1)]
    seconds: Seconds  # wall time of the timed slices together
    p50_s: Seconds
    p90_s: Seconds
    p99_s: Seconds
    max_s: Seconds
    mean_s: Seconds
    samples_per_s: Annotated[float, Field(ge=0)]  # examples answered by `seconds`
    histogram: Histogram
    start_s: Float32s  # (k,) when requests began, since Started; at most some 2,000, extremes kept
    latency_s: Float32s  # (k,)
    prepare_s: Seconds = 0.0  # making the form that answers, once: exporting, quantising
    first_request_s: Seconds | None = None  # cold start: from the weights on disk to the first answer
    first_method: Words = ""  # what is in it, or why it is not known
    warm_up_s: Seconds = 0.0
    warm_up_requests: Count = 0
    wall_per_cpu: float | None = None  # of the timed slices; 1 where nobody else wanted the cores
    peak_memory_bytes: Count | None = None  # above the weights, while it answered
    memory_method: Words = ""
    energy_j: float | None = None  # of the timed slices
    energy_method: Words = ""  # how it was had, or why it is not known
    offered_per_s: float | None = None  # open loop: requests that arrived, by its seconds
    reached_per_s: float | None = None  # and that were answered
    queue: Quantiles | None = None  # and what they waited
    unanswered: Count = 0  # arrived, and not answered when its time was over; their wait so far counts as their latency
    ttft: Quantiles | None = None  # of text: to the first new character
    tpot: Quantiles | None = None  # and for each one after it
    tokens_per_s: float | None = None  # new characters of all examples
    cache: bool | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        if len(self.start_s) != len(self.latency_s):
            raise ValueError(f"{len(self.start_s)} starts do not go with {len(self.latency_s)} latencies")
        return self

    @property
    def samples_per_j(self) -> float | None:
        return self.requests * self.cell.batch_size / self.energy_j if self.energy_j else None


class Quality(Event):
    """What one form of the weights answers on the whole held-out split, and how large it is."""

    kind: Literal["quality"] = "quality"
    precision: PrecisionName
    runtime: RuntimeName
    test_accuracy: float  # 0..1
    test_loss: float
    accuracy_change: float | None = None  # against eager fp32 on the same examples
    loss_change: float | None = None
    max_logit_difference: float | None = None  # the largest |difference| of any answer to eager fp32's
    examples: Count
    size_bytes: Count | None = None  # on disk, in this form
    size_method: Words = ""
    seconds: Seconds


class NotRun(Event):
    """A cell that is not measured, and why."""

    kind: Literal["not_run"] = "not_run"
    cell: Cell
    reason: Words


class Busy(BaseModel):
    """What else used the machine while the run trained. None is not known, which is not the same as nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slowdown: Annotated[float, Field(ge=0)] | None = None  # what the work took by what it would have taken undisturbed
    slowdown_method: Words = ""  # how it was had, or why it is not known
    gpu_processes: Count | None = None  # of others on the run's GPU: the most that were seen at once

    @property
    def is_busy(self) -> bool | None:
        if (self.slowdown or 0) > BUSY_FROM or self.gpu_processes:
            return True
        return None if self.slowdown is None and self.gpu_processes is None else False

    @property
    def in_words(self) -> str:
        """Why throughput and training time are worse than this machine's own; empty where they are not."""
        words = []
        if self.slowdown is not None and self.slowdown > BUSY_FROM:
            words.append(f"the work took {self.slowdown:.2f} times as long as undisturbed ({self.slowdown_method})")
        if self.gpu_processes:
            words.append(
                f"{self.gpu_processes} other process{'es' if self.gpu_processes > 1 else ''} used the same GPU"
            )
        return "; ".join(words)


BUSY_FROM = 1.2  # up to here the sampler, the system and the clock's own grain explain it


class HardwareSample(Event):
    """One beat of the sampler. A reading that failed is None; its reason is said once, in `missing`."""

    kind: Literal["hardware"] = "hardware"
    elapsed_s: Seconds
    readings: dict[str, float | None]  # names of engine.sampler.READINGS: unit in the name
    missing: dict[str, Words] = Field(default_factory=dict)
    busy: Busy | None = None  # since the run's start; said when it changes


class Artifact(Event):
    """A file the run left in its folder."""

    kind: Literal["artifact"] = "artifact"
    name: Words
    size_bytes: Count
    sha256: str


class Stopping(Event):
    """Someone asked the run to stop."""

    kind: Literal["stopping"] = "stopping"
    at: Moment
    reason: Words = "cancelled by the user"


class Terminal(Event):
    """The last word of a run. Counts and checksum make missing points noticeable."""

    at: Moment
    steps: Count = 0
    evaluations: Count = 0
    checksum: str = ""  # CRC-32 of every byte of the log before this line
    peak_memory_bytes: Count | None = None
    peak_memory_method: Words = ""
    energy_j: float | None = None
    energy_method: Words = ""  # how it was had, or why it is not known
    energy_source: Literal["nvml", "rapl", "none"] | None = None  # None: from before it was recorded
    energy_window_s: Seconds | None = None  # between the counter's two readings
    energy_period_s: Seconds | None = None  # how often the counter moves
    busy: Busy | None = None


class Finished(Terminal):
    kind: Literal["finished"] = "finished"


class Cancelled(Terminal):
    kind: Literal["cancelled"] = "cancelled"
    reason: Words = ""


class Failed(Terminal):
    kind: Literal["failed"] = "failed"
    cause: str  # class of the error: Diverged, OutOfMemory, WorkerLost, ...
    message: Words
    fix: Words = ""
    step: Count | None = None
    detail: Words = ""  # traceback; for the log, never for the page


class Interrupted(Terminal):
    kind: Literal["interrupted"] = "interrupted"
    reason: Words


class Origin(BaseModel):
    """Where an imported run came from. Nothing here vouches for it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Moment  # of the import
    form: Literal["report", "curve"]  # a report of Isoflop, or somebody's table of numbers
    title: Words = ""  # of the report; of a curve the name it was given
    made: Moment | None = None  # the report, by its own account
    isoflop: Words = ""  # the version that made it
    from_run_id: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""  # its id there
    content_hash: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""  # of the report's JSON as it came
    hash_matches: bool | None = None  # with the hash the file names for itself; None where it names none
    notes: tuple[Words, ...] = ()  # what was left out, guessed, or does not fit


class Imported(Event):
    """The run was not made here: it is what a file says. Nothing of it runs, and it tells nothing of this machine.

    What its report says of it as a whole stands in `frozen` (summary, energy, figures, each as its own class writes it):
    they were made from all that was known there, which may be more than the file holds.
    """

    kind: Literal["imported"] = "imported"
    origin: Origin
    recorded_steps: Count  # more than there are rows of, where the report was thinned
    evaluation_s: Seconds = 0.0
    problems: tuple[Words, ...] = ()  # of its log, when the report was made
    missing_readings: dict[Words, Words] = Field(default_factory=dict)
    frozen: dict[str, Any]


class Rows(Event):
    """A piece of a table of an imported run, as its report holds it. A column that is not there is unknown."""

    kind: Literal["rows"] = "rows"
    table: Literal["steps", "evaluations", "hardware", "throughput", "grad_norms"]
    columns: dict[str, Float64s]  # (n,) each

    @model_validator(mode="after")
    def _is_a_table(self) -> Self:
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) != 1 or not max(lengths):
            raise ValueError(f"columns of {', '.join(map(str, sorted(lengths))) or 'no'} rows")
        key = KEY_OF[self.table]
        if key not in self.columns:
            raise ValueError(f"{self.table} without {key}")
        for name in (key, *_RISING):
            if name in self.columns:
                _check_rising(name, self.columns[name], whole=name in {"step", "samples"})
        if self.table != "hardware" and key == "step" and (np.diff(self.columns[key]) <= 0).any():
            raise ValueError("step does not rise from row to row")
        if self.table == "steps" and self.columns[key][0] < 1:
            raise ValueError("steps are counted from 1")
        return self


KEY_OF = {"steps": "step", "evaluations": "step", "grad_norms": "step", "hardware": "elapsed", "throughput": "elapsed"}
_RISING = ("seconds", "elapsed", "samples")  # clocks and counts; unknown throughout, or known throughout


def _check_rising(name: str, column: np.ndarray, *, whole: bool) -> None:
    if name in _RISING and np.isnan(column).all():
        return
    if not np.isfinite(column).all() or column.min() < 0 or column.max() >= 2**53:
        raise ValueError(f"{name} holds what is no number from 0 to 2^53")
    if (np.diff(column) < 0).any():
        raise ValueError(f"{name} falls from row to row")
    if whole and (column != np.rint(column)).any():
        raise ValueError(f"{name} holds fractions")


AnyEvent = (
    Queued | Starting | Preparing | Started | Compiled | WarmUp | Memory | Steps | Evaluation | TargetReached | Progress | Trial
    | HardwareSample | Artifact | Stopping | Surface | Calibration | StepSplit | Latency | Quality | NotRun | Ranks
    | Imported | Rows
    | Finished | Cancelled | Failed | Interrupted
)  # fmt: skip
EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="kind")])

_STATUS_AFTER: dict[str, Status] = {
    "queued": "queued",
    "starting": "starting",
    "started": "running",
    "stopping": "stopping",
    "finished": "finished",
    "cancelled": "cancelled",
    "failed": "failed",
    "interrupted": "interrupted",
}


def status_after(before: Status, event: AnyEvent) -> Status:
    """The state a run is in after an event; a terminal state never changes."""
    if before in TERMINAL:
        return before
    after = _STATUS_AFTER.get(event.kind, before)
    return before if before == "stopping" and after not in TERMINAL else after


class Summary(BaseModel):
    """A run in a dozen numbers; None where it is not known (yet)."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    steps: int = 0
    samples: int = 0
    epochs: float = 0.0
    train_seconds: float = 0.0
    samples_per_s: float | None = None
    final_train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    flops: int | None = None
    mfu: float | None = None  # needs this machine's measured peak: engine calibrate
    peak_memory_bytes: int | None = None  # of training: weights, optimizer state and one step's peak
    process_memory_bytes: int | None = None  # the whole process at its highest, PyTorch included
    energy_j: float | None = None
    target_step: int | None = None  # None: no target, or not reached
    target_seconds: float | None = None  # of training
    busy: bool | None = (
        None  # whether something else used the machine: throughput and times are then worse than its own
    )
    busy_why: str = ""
    imported: Literal["report", "curve"] | None = None  # not made here: what it came from


def is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
