"""A run's states, from queued to its end."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.events.base import Count, EncodableStr, Event, Kept, Moment, Seconds
from engine.events.machine import Busy


class SeedBlock(BaseModel):
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
    name: EncodableStr = ""
    group: str | None = None  # runs submitted together, for example one per seed
    heat: SeedBlock | None = None
    owner: str = ""  # id of the actor who asked (engine.access)
    version: EncodableStr = ""  # of the Isoflop that wrote the configuration; an older one may not be able to read it


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
    environment: dict[str, EncodableStr | int | float | None] = Field(default_factory=dict)


class Preparing(Event):
    """Work before the task stands that can take long: a data set on its way from the web."""

    kind: Literal["preparing"] = "preparing"
    text: EncodableStr
    done_bytes: Count
    total_bytes: Count | None  # None where the server does not say


class Progress(Event):
    """How far a task is that takes no optimizer steps."""

    kind: Literal["progress"] = "progress"
    text: EncodableStr
    done: Count
    total: Annotated[Count, Field(ge=1)]


class Artifact(Event):
    """A file the run left in its folder."""

    kind: Literal["artifact"] = "artifact"
    kept: ClassVar[Kept] = "every"
    name: EncodableStr
    size_bytes: Count
    sha256: str


class Stopping(Event):
    """Someone asked the run to stop."""

    kind: Literal["stopping"] = "stopping"
    at: Moment
    reason: EncodableStr = "cancelled by the user"


class Terminal(Event):
    """The last word of a run. Counts and checksum make missing points noticeable."""

    at: Moment
    steps: Count = 0
    evaluations: Count = 0
    checksum: str = ""  # CRC-32 of every byte of the log before this line
    peak_memory_bytes: Count | None = None
    peak_memory_method: EncodableStr = ""
    energy_j: float | None = None
    energy_method: EncodableStr = ""  # how it was had, or why it is not known
    energy_source: Literal["nvml", "rapl", "none"] | None = None  # None: from before it was recorded
    energy_window_s: Seconds | None = None  # between the counter's two readings
    energy_period_s: Seconds | None = None  # how often the counter moves
    busy: Busy | None = None


class Finished(Terminal):
    kind: Literal["finished"] = "finished"


class Cancelled(Terminal):
    kind: Literal["cancelled"] = "cancelled"
    reason: EncodableStr = ""


class Failed(Terminal):
    kind: Literal["failed"] = "failed"
    cause: str  # class of the error: Diverged, OutOfMemory, WorkerLost, ...
    message: EncodableStr
    fix: EncodableStr = ""
    step: Count | None = None
    detail: EncodableStr = ""  # traceback; for the log, never for the page


class Interrupted(Terminal):
    kind: Literal["interrupted"] = "interrupted"
    reason: EncodableStr
