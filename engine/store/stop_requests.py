"""Small files in a run's folder: the request to stop it, and why a rank ended it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from engine.events.lifecycle import Cancelled, Interrupted
from engine.system import disk_space
from engine.system.files import write_atomically

STOP_FILE = "stop"  # in a run's folder: its supervisor asks it to stop
CAUSE_FILE = "lost"  # beside it: a rank says why it ended rank 0, which writes the log
_LONGEST_CAUSE = 2_000


class StopRequest(BaseModel):
    """How a run shall end, and why."""

    status: Literal["cancelled", "interrupted"] = "cancelled"
    reason: str = "cancelled by the user"

    def last_word(self) -> Cancelled | Interrupted:
        kind = Cancelled if self.status == "cancelled" else Interrupted
        return kind(at=time.time(), reason=self.reason)


def ask_to_stop(folder: Path, request: StopRequest) -> None:
    write_atomically(folder / STOP_FILE, request.model_dump_json())


def stop_request(folder: Path) -> StopRequest | None:
    """What a run was asked, if it was. A request that cannot be read is one all the same."""
    try:
        return StopRequest.model_validate_json((folder / STOP_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return StopRequest()


def record_cause(folder: Path, text: str) -> None:
    """What somebody knows of the end of a run whose own process can say nothing any more."""
    with contextlib.suppress(OSError):
        write_atomically(folder / CAUSE_FILE, text)


def take_cause(folder: Path) -> str:
    """Such a word, and then it is gone; empty where there is none."""
    path = folder / CAUSE_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_CAUSE).decode(errors="replace")
    except OSError:
        return ""
    disk_space.remove(path)
    return text
