"""The summary of a run, which lists, reports and `--json` show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator

N = TypeVar("N", int, float)


class Work(NamedTuple):
    """The work of one trial of a study. None: the trial did not record it, or its task does no such work."""

    steps: int | None = None  # optimizer steps
    samples: int | None = None  # trained on; of inference: answered
    train_seconds: float | None = None
    samples_per_s: float | None = None

    @classmethod
    def total(cls, trials: Sequence[Work]) -> Work:
        """The sums over all trials, None where one trial is unknown. Several trials have no common rate."""
        return cls(
            steps=_sum([trial.steps for trial in trials]),
            samples=_sum([trial.samples for trial in trials]),
            train_seconds=_sum([trial.train_seconds for trial in trials]),
            samples_per_s=trials[0].samples_per_s if len(trials) == 1 else None,
        )


def _sum(values: Sequence[N | None]) -> N | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], start=known[0]) if known and len(known) == len(values) else None


class Summary(BaseModel):
    """The main results of a run. None means unknown, not known yet, or that the task has no such figure.

    The counts and times of a study, such as a batch-size law, are sums over its trials (`Event.work`).
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    steps: int | None = None
    samples: int | None = None  # of inference: samples answered in timed requests
    epochs: float | None = None
    train_seconds: float | None = None
    samples_per_s: float | None = None
    final_train_loss: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None
    largest_class_accuracy: float | None = (
        None  # test accuracy of always answering the largest class of the training split
    )
    flops: int | None = None
    mfu: float | None = None  # needs the measured peak of this machine (`engine calibrate`)
    step_memory_bytes: int | None = None  # step memory: weights, optimizer state and the peak of one step
    evaluation_memory_bytes: int | None = None  # the same with what a step leaves and the peak of an evaluation
    data_memory_bytes: int | None = None  # both splits and an epoch's shuffled copy
    peak_memory_bytes: int | None = (
        None  # training memory: the larger of step and evaluation, with data and checkpoints
    )
    process_memory_bytes: int | None = None  # process memory: peak of the whole process, with PyTorch
    energy_j: float | None = None
    target_step: int | None = None  # None if there is no target, or it was not reached
    target_seconds: float | None = None  # training time to the target
    busy: bool | None = None  # whether other programs used the machine, which worsens throughput and times
    busy_why: str = ""
    imported: Literal["report", "curve"] | None = (
        None  # form of the file that an imported run comes from; None for a run of this store
    )

    @property
    def step_seconds(self) -> float | None:
        """Mean training time of a step, s."""
        return self.train_seconds / self.steps if self.train_seconds is not None and self.steps else None

    @property
    def flops_per_s(self) -> float | None:
        """FLOPs / training time."""
        return self.flops / self.train_seconds if self.flops and self.train_seconds else None

    @model_validator(mode="before")
    @classmethod
    def _memory_of_earlier_versions(cls, data: Any) -> Any:
        """Earlier files name the step memory `peak_memory_bytes`, and the first ones the process memory."""
        if not isinstance(data, Mapping) or "step_memory_bytes" in data or "peak_memory_bytes" not in data:
            return data
        then = "step_memory_bytes" if "process_memory_bytes" in data else "process_memory_bytes"
        return {**data, then: data["peak_memory_bytes"], "peak_memory_bytes": None}
