"""`python -m engine.userdata`: the process in which `inspection.py` has a file parsed, under limits."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config import Source
from engine.errors import ConfigError
from engine.userdata.files import system_error
from engine.userdata.inspection import SMALLER
from engine.userdata.reading import facts_of


def main() -> None:
    """A question on stdin, what was found or what is wrong with it on stdout, both JSON."""
    asked = json.loads(sys.stdin.buffer.read())
    seconds, memory_bytes = math.ceil(asked["seconds"]), asked["memory_bytes"]
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # also where it waits: who asked may be gone
    threading.Thread(target=_end_with, args=(asked["parent"],), daemon=True).start()
    for kind, limits in ((resource.RLIMIT_CPU, (seconds, seconds + 1)), (resource.RLIMIT_AS, (memory_bytes,) * 2)):
        with contextlib.suppress(ValueError, OSError):  # a lower one is set, or macOS, which has none on address space
            resource.setrlimit(kind, limits)
    print(json.dumps(_answer(asked)))


def _end_with(parent: int) -> None:
    """Nobody waits for an answer when who asked is gone."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    path = Path(asked["path"])
    source = Source(path=asked["path"], label=asked["label"], seq_len=asked["seq_len"] or 2)
    try:
        return {"facts": asdict(facts_of(asked["data"], path, source))}
    except ConfigError as error:
        wrong = error
    except MemoryError:
        wrong = ConfigError(f"needs more than {asked['memory_bytes'] / 2**30:g} GiB of memory to be read.", fix=SMALLER)
    except OSError as error:
        wrong = system_error(error, path)
    return {"error": wrong.message, "fix": wrong.fix}


if __name__ == "__main__":
    main()
