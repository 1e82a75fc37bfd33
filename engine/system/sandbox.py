"""Parses untrusted files in a separate process with limits, so that a crash of the parser affects nothing else.

The process reads its question as JSON from stdin and writes its answer as JSON to stdout: a result, or an error.
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
    """The process gave no answer, because it crashed or ran out of time; another attempt can succeed."""


_TOO_SLOW = "could not be read within {:g} s."


def ask(
    module: str, question: dict[str, Any], *, seconds: float, memory_bytes: int, file_bytes: int | None = None
) -> Any:
    """The answer of `python -m module` to `question`, within `seconds` of wall time and `memory_bytes`.

    The process can write no file of more than `file_bytes`.

    Raises:
        NoAnswer: The process crashed or ran out of time.
        ConfigError: It answered with an error.
    """
    request = {
        "question": question,
        "seconds": seconds,
        "memory_bytes": memory_bytes,
        "file_bytes": file_bytes,
        "parent": os.getpid(),
    }
    environment = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONUTF8": "1",
        "OPENBLAS_NUM_THREADS": "1",  # its threads would reserve address space
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],  # -P: import nothing from the current folder
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(_TOO_SLOW.format(seconds), fix=SMALLER) from None
    if done.returncode == -signal.SIGXCPU:
        raise NoAnswer(_TOO_SLOW.format(seconds), fix=SMALLER)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"signal {-done.returncode}"
        raise NoAnswer(f"the process that read it crashed ({re.sub(r'[^ -~]', '?', reason)[:60]!r}).", fix=SMALLER)
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ConfigError(answer["error"], fix=answer["fix"])
    return answer["found"]


def serve(answer: Callable[[dict[str, Any]], Any]) -> None:
    """Run in the separate process: set the limits, and print the answer of `answer` to the question."""
    request = json.loads(sys.stdin.buffer.read())
    seconds, memory_bytes = math.ceil(request["seconds"]), request["memory_bytes"]
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)  # wall time, so that it also ends when the caller is gone
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    limits = [(resource.RLIMIT_CPU, (seconds, seconds + 1)), (resource.RLIMIT_AS, (memory_bytes,) * 2)]
    limits += [(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)] if request["file_bytes"] else []
    for kind, most in limits:
        with contextlib.suppress(
            ValueError, OSError
        ):  # a lower limit is set already, or macOS has no limit of address space
            resource.setrlimit(kind, most)
    try:
        reply = {"found": answer(request["question"])}
    except EngineError as error:
        reply = {"error": error.message, "fix": error.fix}
    except MemoryError:
        reply = {"error": f"needs more than {memory_bytes / 2**30:g} GiB of memory to be read.", "fix": SMALLER}
    print(json.dumps(reply))


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, because nothing waits for the answer."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
