"""Small files in a run's folder: the request to stop the run, and the cause of a death that a rank recorded."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from engine.events.lifecycle import Cancelled, Interrupted
from engine.system import disk_space
from engine.system.files import write_atomically

STOP_FILE = "stop"  # the supervisor asks the run to stop
CAUSE_FILE = "lost"  # a rank records why it ended rank 0, which writes the event log
_LONGEST_CAUSE = 2_000
SHARED_PROCESS_ENDED = "Another run of its race did not stop when asked, and the process they shared was ended."


class StopRequest(BaseModel):
    """The status that a run must end with, and the reason."""

    status: Literal["cancelled", "interrupted"] = "cancelled"
    reason: str = "cancelled by the user"

    def final_event(self) -> Cancelled | Interrupted:
        """The final event of a run that this request ended, with the time of now."""
        kind = Cancelled if self.status == "cancelled" else Interrupted
        return kind(at=time.time(), reason=self.reason)


def ask_to_stop(folder: Path, request: StopRequest) -> None:
    """Write the stop request into a run's folder."""
    write_atomically(folder / STOP_FILE, request.model_dump_json())


def stop_request(folder: Path) -> StopRequest | None:
    """The stop request of a run, or None. A file that cannot be read also counts as a request to cancel."""
    try:
        return StopRequest.model_validate_json((folder / STOP_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return StopRequest()


def record_cause(folder: Path, text: str) -> None:
    """Record why a run died, for the supervisor to put into its final event. A surviving rank calls this."""
    with contextlib.suppress(OSError):
        write_atomically(folder / CAUSE_FILE, text)


def take_cause(folder: Path) -> str:
    """Read and delete the recorded cause; empty if there is none."""
    path = folder / CAUSE_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_CAUSE).decode(errors="replace")
    except OSError:
        return ""
    disk_space.remove(path)
    return text
