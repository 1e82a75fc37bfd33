"""Limits of one run, checked before it starts where possible, and while it runs."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from engine.access.settings import Limits
from engine.common import units
from engine.common.errors import LimitReached
from engine.config.run import RunConfig
from engine.planning.planner import Plan

_LOOK_EVERY_S = 1.0


def check_before(config: RunConfig, plan: Plan, limits: Limits) -> None:
    """Check the budget of a run.

    Raises:
        LimitReached: the budget is larger than a limit.
    """
    if limits.wall_time_s and (config.budget.seconds or 0) > limits.wall_time_s:
        raise LimitReached(
            f"budget.seconds={config.budget.seconds:g} is more than the {units.duration(limits.wall_time_s)} a run "
            "can last here.",
            fix=f"Choose at most {limits.wall_time_s:g}, or raise limits.wall_time_s in settings.toml.",
        )
    if limits.points and (plan.total_steps or 0) > limits.points:
        raise LimitReached(
            f"{plan.total_steps:,} steps are more than the {limits.points:,} a run can record here.",
            fix="Choose a smaller budget or larger batches, or raise limits.points in settings.toml.",
        )


class Guard:
    """Checks between the events of a run whether it is within its limits."""

    def __init__(self, limits: Limits, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._folder, self._clock = limits, folder, clock
        self._began = self._looked = clock()

    def check(self, steps: int) -> None:
        """Check all limits; `steps` is the number of steps recorded so far.

        Raises:
            LimitReached: a limit is exceeded; the message names it.
        """  # noqa: DOC501
        limits, now = self._limits, self._clock()
        if limits.points and steps > limits.points:
            raise _reached("points", f"{limits.points:,} recorded steps")
        if limits.wall_time_s and now - self._began > limits.wall_time_s:
            raise _reached("wall_time_s", f"{units.duration(limits.wall_time_s)} of wall time")
        if limits.disk_bytes and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            if folder_bytes(self._folder) > limits.disk_bytes:
                raise _reached("disk_bytes", f"{units.nbytes(limits.disk_bytes)} on disk")


def _reached(name: str, what: str) -> LimitReached:
    return LimitReached(
        f"The run reached the limit of {what}.",
        fix=f"Its points are kept. Choose a smaller run, or raise limits.{name} in settings.toml.",
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, without its subfolders; 0 if it cannot be read."""
    with contextlib.suppress(OSError):
        return sum(entry.stat().st_size for entry in os.scandir(folder))
    return 0


def limit_memory(device: str, limits: Limits, available_bytes: int, num_ranks: int = 1) -> int | None:
    """Limit the memory that this process can still allocate; return the limit in bytes, or None if none was set.

    Each of `num_ranks` ranks gets an equal share. An allocation beyond the limit raises an error in this process;
    without a limit the kernel would kill some process without a message. Only a run on the CPU is limited, because CUDA
    maps address space that it never fills. The limit is RLIMIT_DATA, which on Linux counts private writable memory
    (setrlimit(2)); RLIMIT_AS would also count mapped files and reserved arenas.
    """
    held = _data_bytes()
    if device != "cpu" or held is None:
        return None
    import resource

    may_take = min(limits.memory_bytes or available_bytes, available_bytes) // num_ranks
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = held + may_take if hard == resource.RLIM_INFINITY else min(held + may_take, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return may_take


def _data_bytes(status: Path = Path("/proc/self/status")) -> int | None:
    """Private writable memory of this process as the kernel counts it against RLIMIT_DATA; None if it is unknown."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmData:\s+(\d+) kB", status.read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return None


def in_words(error: BaseException) -> str:
    """A sentence for an error of a failed allocation, with its size if the error contains it."""
    if found := re.search(r"(?i)tried to allocate ([\d.]+) ?(bytes|MiB|GiB|KiB)", str(error)):
        size = float(found[1]) * {"bytes": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}[found[2].lower()]
        return f"The run ran out of memory when it asked for {units.nbytes(int(size))} more."
    return "The run ran out of memory."
