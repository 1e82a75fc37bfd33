"""Events of training: steps, evaluations, memory, step breakdown, ranks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NotRequired, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, model_validator, with_config
from typing_extensions import TypedDict

from engine.events.base import NOTHING, Count, EncodableStr, Event, Float32s, Int32s, Kept, Rate, Seconds, StepNumber
from engine.events.machine import BUSY_FROM


class Compiled(Event):
    """The step was compiled or recorded as a graph, before the training clock starts."""

    kind: Literal["compiled"] = "compiled"
    seconds: Seconds


class Memory(Event):
    """The memory that a run's tensors take, without the rest of the process (on a CPU PyTorch alone takes about 320 MB).

    Weights, gradients, optimizer state and data are counted. The two peaks are those of the allocator: what a rehearsed
    step and two batches of an evaluation add to what is allocated before them. `None` in a log from before 0.2 means that
    only the step was measured. Not included: loading the data, and the copies of optimizer state and averaged weights
    that a rehearsal holds until it has restored them. On CUDA `allocated_bytes` is the allocator's peak over the whole
    run, and `reserved_bytes` is what it reserved on the device.
    """

    kind: Literal["memory"] = "memory"
    weight_bytes: Count  # with their moving average, if the run keeps one
    gradient_bytes: Count
    optimizer_bytes: Count
    data_bytes: Count  # training split and test split
    step_peak_bytes: Count | None  # activations, gradients and scratch
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    method: EncodableStr
    epoch_bytes: Count | None = None  # an epoch's random order, and the copy of the data in this order if there is one
    held_bytes: Count | None = None  # what a step leaves allocated until the next one: gradients and buffers
    evaluation_peak_bytes: Count | None = None  # outputs of layers and scratch
    checkpoint_bytes: Count = 0  # copies of the weights in CPU memory

    @property
    def step_memory_bytes(self) -> int | None:
        """Weights, optimizer state and the peak of a step, without the data set; None if that peak is unknown."""
        return None if self.step_peak_bytes is None else self.weight_bytes + self.optimizer_bytes + self.step_peak_bytes

    @property
    def evaluation_memory_bytes(self) -> int | None:
        """Weights, optimizer state, what a step leaves, and the peak of an evaluation, without the data set."""
        if self.held_bytes is None or self.evaluation_peak_bytes is None:
            return None
        return self.weight_bytes + self.optimizer_bytes + self.held_bytes + self.evaluation_peak_bytes

    @property
    def data_memory_bytes(self) -> int | None:
        """Both splits and an epoch's shuffled copy."""
        return None if self.epoch_bytes is None else self.data_bytes + self.epoch_bytes

    @property
    def peak_memory_bytes(self) -> int | None:
        """The peak of the whole training: a step or an evaluation, whichever takes more, with data and checkpoints."""
        step, evaluation, data = self.step_memory_bytes, self.evaluation_memory_bytes, self.data_memory_bytes
        if step is None or evaluation is None or data is None:
            return None
        return max(step, evaluation) + data + self.checkpoint_bytes


class StepSplit(Event):
    """Step breakdown: the time of each part of a step, from a few profiled steps that did not change the training.

    Seconds per optimizer step, as medians over the profiled steps. None if there is no such part, or if the execution
    mode cannot be profiled; `reason` then says why. The time of evaluations is in the Evaluation events.
    """

    kind: Literal["step_split"] = "step_split"
    data_s: Seconds | None = None  # fetching the batch
    forward_s: Seconds | None = None
    backward_s: Seconds | None = None
    optimizer_s: Seconds | None = None  # includes gradient clipping and weight averaging
    read_back_s: Seconds | None = None  # copying losses to the host
    steps: Count = 0  # number of profiled steps
    seconds: Seconds = 0.0  # total time of profiling
    method: EncodableStr = ""
    reason: EncodableStr = ""


class Ranks(Event):
    """Times and memory of each rank of a data-parallel run over some steps: one value per rank, rank 0 first.

    Ranks wait for each other in every step, so their `step_s` are nearly equal. `own_s`, the part without waiting,
    shows which rank is slow. None means unknown, as with FSDP on a GPU, where communication and computation overlap.
    """

    kind: Literal["ranks"] = "ranks"
    kept: ClassVar[Kept] = "series"
    elapsed_s: Seconds  # end of the window
    steps: tuple[StepNumber, StepNumber]  # first and last of the window
    device: tuple[str, ...]
    step_s: tuple[Seconds, ...]  # mean time of a step
    communication_s: tuple[Seconds | None, ...]  # part of step_s with communication in progress
    waited_s: tuple[
        Seconds | None, ...
    ]  # part of step_s in which training waited for communication; the rest overlapped
    cpu_per_wall: tuple[Annotated[float, Field(ge=0)] | None, ...]  # CPU time of the rank / wall time
    memory_bytes: tuple[Count | None, ...]  # allocated at the end of the window
    method: EncodableStr

    @model_validator(mode="after")
    def _one_value_per_rank(self) -> Self:
        columns = (self.step_s, self.communication_s, self.waited_s, self.cpu_per_wall, self.memory_bytes)
        if not self.device or any(len(column) != len(self.device) for column in columns):
            raise ValueError(f"{len(self.device)} ranks, but {', '.join(str(len(c)) for c in columns)} values")
        if self.steps[0] > self.steps[1]:
            raise ValueError("steps that run backwards")
        return self

    @property
    def own_s(self) -> tuple[float | None, ...]:
        """Seconds of a step in which each rank did not wait for the others."""
        return tuple(
            None if waited is None else max(0.0, step - waited)
            for step, waited in zip(self.step_s, self.waited_s, strict=True)
        )

    @property
    def straggler(self) -> int | None:
        """The rank that the others wait for: its `own_s` is over 1.2 times that of the fastest rank; else None."""
        own = [s for s in self.own_s if s is not None]
        if len(own) < max(2, len(self.device)) or max(own) <= BUSY_FROM * min(own):
            return None
        return own.index(max(own))


class WarmUp(Event):
    """Steps before the training clock starts, because first calls allocate, select kernels and fill caches."""

    kind: Literal["warm_up"] = "warm_up"
    seconds: Seconds
    steps: Count


class Steps(Event):
    """Consecutive optimizer steps, whose losses were read from the device at once.

    `train_s` is the training clock (without warm-up and evaluation) before the first and after the last of the steps,
    with the device synchronised at both. `elapsed_s` is the wall time since Started at the same two moments.
    """

    kind: Literal["steps"] = "steps"
    kept: ClassVar[Kept] = "columns"
    first: StepNumber  # number of the first step, counting from 1
    loss: Float32s  # (n,) mean loss of each batch, before its optimizer step
    samples: Int32s  # (n,) samples of each step
    lr: Rate  # learning rate: (n,) values, or one for all steps
    train_s: tuple[Seconds, Seconds]
    elapsed_s: tuple[Seconds, Seconds]
    norm_steps: Int32s = Field(default=NOTHING, validate_default=True)  # (k,) numbers of the steps in grad_norm
    grad_norm: Float32s = Field(default=NOTHING, validate_default=True)  # (k,) gradient norms of these steps

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        n = len(self.loss)
        if not n or len(self.samples) != n or (isinstance(self.lr, np.ndarray) and len(self.lr) != n):
            raise ValueError(f"{n} losses, but {len(self.samples)} sample counts and {np.size(self.lr)} rates")
        if self.samples.min() < 0:
            raise ValueError("a step has a negative number of samples")
        if self.train_s[0] > self.train_s[1] or self.elapsed_s[0] > self.elapsed_s[1]:
            raise ValueError("time that runs backwards")
        if len(self.norm_steps) != len(self.grad_norm):
            raise ValueError(
                f"{len(self.norm_steps)} steps of gradient norms, but {len(self.grad_norm)} gradient norms"
            )
        if len(self.norm_steps) and not self.first <= self.norm_steps.min() <= self.norm_steps.max() < self.first + n:
            raise ValueError(f"gradient norms of steps outside {self.first} to {self.first + n - 1}")
        return self


@with_config(ConfigDict(val_json_bytes="base64"))
class PackedSteps(TypedDict):
    """`Steps` with arrays as bytes. Unpacking a thousand of them at once takes a third of the time when reading a log.

    `engine.store.event_log.decode_steps` applies the same checks as `Steps`.
    """

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
    """Test loss and test accuracy after `step` steps."""

    kind: Literal["evaluation"] = "evaluation"
    kept: ClassVar[Kept] = "columns"
    step: Count
    train_s: Seconds
    elapsed_s: Seconds
    test_loss: float
    test_accuracy: float  # 0..1
    test_accuracy_standard_error: float | None = None  # for text, from the spread between windows; see `Score`
    seconds: Seconds  # duration of this evaluation


class TargetReached(Event):
    """Where the run reached its target: at the first of two evaluations in a row that reach it.

    `step`, `train_s` and `elapsed_s` are derived: interpolated between the evaluations at the two steps of `between`,
    which are equal where the first evaluation of all reached it. Older logs have no `between`; their figures are those
    of the first evaluation that reached the target, and `engine.store.run.Run` interpolates them.
    """

    kind: Literal["target_reached"] = "target_reached"
    metric: str
    value: float
    step: Count
    train_s: Seconds
    elapsed_s: Seconds
    between: tuple[Count, Count] | None = None
