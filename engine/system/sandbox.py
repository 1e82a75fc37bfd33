"""A process of its own, under limits, for a file that somebody else wrote: it may break down, and nothing else does.

It is asked by JSON on its stdin and answers by JSON on its stdout, with what it found or with what is wrong.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.common.errors import ConfigError, EngineError

SMALLER = "Try a smaller part of it."


class NoAnswer(ConfigError):
    """The process came to no answer: asked again, it may."""


_TOO_SLOW = "could not be read within {:g} s."


def ask(
    module: str, question: dict[str, Any], *, seconds: float, memory_bytes: int, file_bytes: int | None = None
) -> Any:
    """What `python -m module` answers. Raises NoAnswer when it comes to none, ConfigError when it answers
    with what is wrong."""
    asked = {
        "question": question, "seconds": seconds, "memory_bytes": memory_bytes, "file_bytes": file_bytes, "parent": os.getpid()
    }  # fmt: skip
    environment = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",  # its threads would reserve address space
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],  # -P: nothing is imported from the current folder
            input=json.dumps(asked).encode(), capture_output=True, timeout=seconds, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoAnswer(_TOO_SLOW.format(seconds), fix=SMALLER) from None
    if done.returncode == -signal.SIGXCPU:
        raise NoAnswer(_TOO_SLOW.format(seconds), fix=SMALLER)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"signal {-done.returncode}"
        raise NoAnswer(f"the process that read it broke down ({re.sub(r'[^ -~]', '?', said)[:60]!r}).", fix=SMALLER)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ConfigError(answer["error"], fix=answer["fix"])
    return answer["found"]


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """The other side: limit this process, and print what `answer` makes of the question."""
    asked = json.loads(sys.stdin.buffer.read())
    seconds, memory_bytes = math.ceil(asked["seconds"]), asked["memory_bytes"]
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # also where it waits: who asked may be gone
    threading.Thread(target=_end_with, args=(asked["parent"],), daemon=True).start()
    limits = [(resource.RLIMIT_CPU, (seconds, seconds + 1)), (resource.RLIMIT_AS, (memory_bytes,) * 2)]
    limits += [(resource.RLIMIT_FSIZE, (asked["file_bytes"],) * 2)] if asked["file_bytes"] else []
    for kind, most in limits:
        with contextlib.suppress(ValueError, OSError):  # a lower one is set, or macOS, which has none on address space
            resource.setrlimit(kind, most)
    try:
        said = {"found": answer(asked["question"])}
    except EngineError as error:
        said = {"error": error.message, "fix": error.fix}
    except MemoryError:
        said = {"error": f"needs more than {memory_bytes / 2**30:g} GiB of memory to be read.", "fix": SMALLER}
    print(json.dumps(said))


def _end_with(parent: int) -> None:
    """Nobody waits for an answer when who asked is gone."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
