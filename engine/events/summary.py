"""The summary of a run, which lists, reports and `--json` show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator


class Summary(BaseModel):
    """The main results of a run. None means unknown, or not known yet."""

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

    @model_validator(mode="before")
    @classmethod
    def _memory_of_earlier_versions(cls, data: Any) -> Any:
        """Earlier files name the step memory `peak_memory_bytes`, and the first ones the process memory."""
        if not isinstance(data, Mapping) or "step_memory_bytes" in data or "peak_memory_bytes" not in data:
            return data
        then = "step_memory_bytes" if "process_memory_bytes" in data else "process_memory_bytes"
        return {**data, then: data["peak_memory_bytes"], "peak_memory_bytes": None}
