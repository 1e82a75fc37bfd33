"""All events of a run's log, and the status of the run after each.

An event is one line of JSON. Long arrays are packed (base64 of little-endian numbers); everything else is plain, so
`jq`, pandas or DuckDB read the log as JSON lines. Measured alternatives: an Arrow IPC stream costs as little per
scalar, but one damaged message makes the rest unreadable; text for arrays costs ten times as much per scalar.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from engine.events.base import TERMINAL, Status
from engine.events.imported import Imported, Rows
from engine.events.inference import Latency, NotRun, Quality
from engine.events.lifecycle import (
    Artifact,
    Cancelled,
    Failed,
    Finished,
    Interrupted,
    Preparing,
    Progress,
    Queued,
    Started,
    Starting,
    Stopping,
)
from engine.events.machine import Calibration, HardwareSample
from engine.events.studies import Surface, Trial
from engine.events.training import Compiled, Evaluation, Memory, Ranks, Steps, StepSplit, TargetReached, WarmUp

AnyEvent = (
    Queued
    | Starting
    | Preparing
    | Started
    | Compiled
    | WarmUp
    | Memory
    | Steps
    | Evaluation
    | TargetReached
    | Progress
    | Trial
    | HardwareSample
    | Artifact
    | Stopping
    | Surface
    | Calibration
    | StepSplit
    | Latency
    | Quality
    | NotRun
    | Ranks
    | Imported
    | Rows
    | Finished
    | Cancelled
    | Failed
    | Interrupted
)
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
    """The status of a run after an event. A terminal status never changes."""
    if before in TERMINAL:
        return before
    after = _STATUS_AFTER.get(event.kind, before)
    return before if before == "stopping" and after not in TERMINAL else after
