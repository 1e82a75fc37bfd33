"""All events of a run's log, and the status of the run after each.

An event is one line of JSON. Long arrays are packed (base64 of little-endian numbers); everything else is plain, so
`jq`, pandas or DuckDB read the log as JSON lines. Measured alternatives: an Arrow IPC stream costs as little per
scalar, but one damaged message makes the rest unreadable; text for arrays costs ten times as much per scalar.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field, TypeAdapter

from engine import events
from engine.events.base import TERMINAL, Event, Status


def _kinds(base: type[Event]) -> Iterator[type[Event]]:
    for event_class in base.__subclasses__():
        if "kind" in event_class.model_fields:
            yield event_class
        yield from _kinds(event_class)


for _module in pkgutil.iter_modules(events.__path__, f"{events.__name__}."):
    if _module.name != __name__:
        importlib.import_module(_module.name)

if TYPE_CHECKING:
    AnyEvent = Event
else:
    # Every class in this package, so a new one needs no entry here; by name, because the order of imports varies.
    AnyEvent = Union[tuple(sorted(_kinds(Event), key=lambda event_class: event_class.__name__))]  # noqa: UP007
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
