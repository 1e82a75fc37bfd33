"""Which process is which: a pid alone is no identity, for pids are used again."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_TOLERANCE_S = 0.05  # start times are known to a hundredth of a second


def process_started(pid: int) -> float | None:
    """When a process began, or None when there is none (or only its zombie).

    On Linux in seconds since boot: psutil's Unix time moves with every step of the clock, and a run must not lose its
    supervisor because the clock was set. Elsewhere in Unix time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] == "Z" else int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_same_process(pid: int, started: float) -> bool:
    found = process_started(pid)
    return found is not None and abs(found - started) < _TOLERANCE_S


def own_identity() -> tuple[int, float]:
    """This process's pid and when it began."""
    pid = os.getpid()
    return pid, process_started(pid) or 0.0
