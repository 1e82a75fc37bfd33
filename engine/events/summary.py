"""A run's summary: what lists, reports and `--json` show of it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


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
