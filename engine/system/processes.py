"""Which process is which: a pid alone is no identity, for pids are used again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import psutil

RUN_VARIABLE = "ISOFLOP_RUN"  # in the environment of a run's process, and so of every helper it starts
_TOLERANCE_S = 0.05  # start times are known to a hundredth of a second
_SECRET_NAME = re.compile(
    r"^STREAMLIT_|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|COOKIE|AUTH|(API|ACCESS|PRIVATE|SSH|ENCRYPTION)_?KEY"
    r"|_(PAT|PWD|PASS|DSN)$|^PGPASS",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]+@")  # an address with a password in it
_FOR_DOWNLOADS = re.compile(r"(^|_)PROXY$|^ISOFLOP_MIRROR$", re.IGNORECASE)


_HOSTS_PIDS = "pid:[4026531836]"  # the first namespace of every kernel: PROC_PID_INIT_INO of include/linux/proc_ns.h


def has_own_pids(proc: Path = Path("/proc")) -> bool:
    """Whether this process lives in a container with process numbers of its own, which a driver of the host may not know."""
    try:
        return str((proc / "self" / "ns" / "pid").readlink()) != _HOSTS_PIDS
    except OSError:  # no such thing here, or not for us to see
        return False


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


def end_helpers(session: int, run_id: str) -> None:
    """Kill what a run's process that is gone left in its session: compilers, and the processes that call them.

    The session's number may long be someone else's, so each of them must also carry the run's name in its environment.
    """
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            carried = psutil.Process(pid).environ().get(RUN_VARIABLE, "") if os.getsid(pid) == session else ""
            if run_id in carried.split():
                os.kill(pid, signal.SIGKILL)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what looks like a secret, by its name or its value; proxies stay, downloads need them."""
    return {
        name: value
        for name, value in environment.items()
        if _FOR_DOWNLOADS.search(name) or not holds_secret(name, value)
    }


def holds_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment looks like a secret, by its name or its value."""
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))
