"""What training reports: steps, evaluations, memory, where a step's time goes."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, NotRequired, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, model_validator, with_config
from typing_extensions import TypedDict

from engine.events.base import NOTHING, Count, EncodableStr, Event, Float32s, Int32s, Kept, Rate, Seconds, StepNumber
from engine.events.machine import BUSY_FROM


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
    method: EncodableStr

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
    method: EncodableStr = ""
    reason: EncodableStr = ""


class Ranks(Event):
    """What each rank of a data-parallel run did over some steps: one value per rank, rank 0 first.

    Ranks wait for each other in every step, so their `step_s` are alike; who is slow shows in `own_s`, the part of it in
    which a rank did not wait. None where it cannot be told, as of FSDP on a GPU, where exchange and work overlap freely.
    """

    kind: Literal["ranks"] = "ranks"
    kept: ClassVar[Kept] = "series"
    elapsed_s: Seconds  # at the end of the window
    steps: tuple[StepNumber, StepNumber]  # first and last of the window
    device: tuple[str, ...]
    step_s: tuple[Seconds, ...]  # mean of a step
    communication_s: tuple[Seconds | None, ...]  # of it, while an exchange with the others was under way
    waited_s: tuple[Seconds | None, ...]  # of it, while training stood still for that; the rest went on beside it
    cpu_per_wall: tuple[Annotated[float, Field(ge=0)] | None, ...]  # processor time of the rank by time that passed
    memory_bytes: tuple[Count | None, ...]  # held at the end of the window
    method: EncodableStr

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
    kept: ClassVar[Kept] = "columns"
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
    kept: ClassVar[Kept] = "columns"
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
