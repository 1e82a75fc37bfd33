"""Events that change the status of a run, from queued to the final event, and its progress until training starts."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.events.base import Count, EncodableStr, Event, Kept, Moment, Seconds
from engine.events.machine import Busy


class SeedBlock(BaseModel):
    """Runs of one seed that take turns in one process, so that disturbances of the machine affect all equally."""

    model_config = ConfigDict(frozen=True)

    id: str
    lanes: Annotated[int, Field(ge=1, le=64)]  # number of runs; none starts before all are queued
    round: Annotated[int, Field(ge=1, le=10_000)] = (
        1  # 1 for the first seeds of a race; each later addition of seeds is tested once more
    )


class Queued(Event):
    """The run was submitted. It is written together with the run's folder, so that a submission survives a crash."""

    kind: Literal["queued"] = "queued"
    at: Moment
    order: int | None = None  # number of the submission in the store; unlike the clock it never goes back
    name: EncodableStr = ""
    group: str | None = None  # runs submitted together, for example one per seed
    heat: SeedBlock | None = None
    owner: str = ""  # id of the actor who submitted it (engine.access)
    data_version: str | None = None  # of the user's own data (`Dataset.version`) at submission
    version: EncodableStr = ""  # version of Isoflop that wrote the configuration; an older one may be unable to read it


class Starting(Event):
    """The run has a process. It is identified by pid and start time, because pids are reused."""

    kind: Literal["starting"] = "starting"
    at: Moment
    pid: Count
    pid_started: float  # as engine.system.processes.process_started returns it


class Started(Event):
    """Model and data are on the device. `elapsed_s` of later events counts from `at`."""

    kind: Literal["started"] = "started"
    at: Moment
    parameters: Count
    train_flops_per_example: Count
    train_examples: Annotated[Count, Field(ge=1)]
    test_examples: Count
    total_steps: Count | None  # None if the budget has no limit in steps
    setup_s: Seconds  # loading data, building the model; never part of training time
    data_sha256: str | None = None  # SHA-256 of the user's own file
    data_version: str | None = None  # as in Queued; another one says that the data was changed in between
    data_notes: tuple[EncodableStr, ...] = ()  # sentences: how the user's data was read, and what of it is not used
    data_warnings: tuple[EncodableStr, ...] = ()  # sentences: reasons to doubt the test accuracy
    # Test accuracy of always answering the most frequent class (for text, character) of the training split.
    largest_class_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    environment: dict[str, EncodableStr | int | float | None] = Field(default_factory=dict)


class Preparing(Event):
    """Progress of a long preparation before Started: the download of a data set."""

    kind: Literal["preparing"] = "preparing"
    text: EncodableStr
    done_bytes: Count
    total_bytes: Count | None  # None if the server does not state it


class Progress(Event):
    """Progress of a task without optimizer steps."""

    kind: Literal["progress"] = "progress"
    text: EncodableStr
    done: Count
    total: Annotated[Count, Field(ge=1)]


class Artifact(Event):
    """A file that the run wrote into its folder."""

    kind: Literal["artifact"] = "artifact"
    kept: ClassVar[Kept] = "every"
    name: EncodableStr
    size_bytes: Count
    sha256: str


class Stopping(Event):
    """The run was asked to stop."""

    kind: Literal["stopping"] = "stopping"
    at: Moment
    reason: EncodableStr = "cancelled by the user"


class Terminal(Event):
    """The final event of a run. Its counts and checksum reveal missing or changed lines."""

    at: Moment
    steps: Count = 0
    evaluations: Count = 0
    checksum: str = ""  # CRC-32 of every byte of the log before this line
    peak_memory_bytes: Count | None = None
    peak_memory_method: EncodableStr = ""
    energy_j: float | None = None
    energy_method: EncodableStr = ""  # how it was measured, or why it is unknown
    energy_source: Literal["nvml", "rapl", "none"] | None = None  # None in logs of older versions
    energy_window_s: Seconds | None = None  # time between the two readings of the counter
    energy_period_s: Seconds | None = None  # update period of the counter
    busy: Busy | None = None


class Finished(Terminal):
    """The run completed: it reached its budget or its target."""

    kind: Literal["finished"] = "finished"


class Cancelled(Terminal):
    """The run stopped because a user asked for it."""

    kind: Literal["cancelled"] = "cancelled"
    reason: EncodableStr = ""


class Failed(Terminal):
    """The run ended with an error."""

    kind: Literal["failed"] = "failed"
    cause: str  # class of the error: Diverged, OutOfMemory, WorkerLost, ...
    message: EncodableStr
    fix: EncodableStr = ""
    step: Count | None = None
    detail: EncodableStr = ""  # traceback; shown in the log only, never on a page


class Interrupted(Terminal):
    """The run was stopped by the system, for example by a shutdown."""

    kind: Literal["interrupted"] = "interrupted"
    reason: EncodableStr
