"""Identity of processes (pid and start time, because pids are reused), and their environments."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

RUN_VARIABLE = "ISOFLOP_RUN"  # environment variable with run ids, inherited by every process that a run starts
_TOLERANCE_S = 0.05  # start times have a resolution of 0.01 s
_SECRET_NAME = re.compile(
    r"^STREAMLIT_|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|AUTH|(API|ACCESS|PRIVATE|SSH|ENCRYPTION)_?KEY"
    r"|_(PAT|PWD|PASS|DSN)$|^PGPASS",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]+@")  # a URL with a password
_FOR_DOWNLOADS = re.compile(r"(^|_)PROXY$|^ISOFLOP_MIRROR$", re.IGNORECASE)

_HOSTS_PIDS = "pid:[4026531836]"  # the pid namespace of the host: PROC_PID_INIT_INO in include/linux/proc_ns.h


def has_own_pids(proc: Path = Path("/proc")) -> bool:
    """Whether this process is in a container with its own pids, which drivers on the host may not know."""
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) != _HOSTS_PIDS
    except OSError:  # not Linux, or no permission
        return False


def process_started(pid: int) -> float | None:
    """Start time of a process in seconds; None if there is no such process, or only its zombie.

    On Linux it counts from boot, because psutil's Unix time changes when the clock is set, and a run must not lose its
    supervisor then. On other systems it is Unix time.
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
    """Whether the process that began at `started` (as `process_started` returns it) still runs."""
    found = process_started(pid)
    return found is not None and abs(found - started) < _TOLERANCE_S


def own_identity() -> tuple[int, float]:
    """Pid and start time of this process."""
    pid = os.getpid()
    return pid, process_started(pid) or 0.0


def end_helpers(session: int, run_id: str) -> None:
    """Kill the processes that an ended run left in its session: compilers and their parents.

    Session numbers are reused, so a process is killed only if its environment also names the run.
    """
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            carried = psutil.Process(pid).environ().get(RUN_VARIABLE, "") if os.getsid(pid) == session else ""
            if run_id in carried.split():
                os.kill(pid, signal.SIGKILL)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that look like secrets. Proxies stay, because downloads need them."""
    return {
        name: value
        for name, value in environment.items()
        if _FOR_DOWNLOADS.search(name) or not holds_secret(name, value)
    }


def holds_secret(name: str, value: str) -> bool:
    """Whether an environment variable looks like a secret, by its name or its value."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))
