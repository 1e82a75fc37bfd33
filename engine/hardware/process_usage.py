"""CPU time and memory of processes: the run's own, those of its ranks, and Isoflop's."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from engine.hardware.rates import FIRST, Unavailable, Values

if sys.platform != "win32":
    import resource


class ProcessCpu:
    """CPU time of this process over wall time since the last call, in percent of one core.

    The process clock counts nanoseconds. /proc/self/stat and psutil count ticks of 10 ms, which is 4 % of the quarter
    of a second between two readings.
    """

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._last = (clock(), cpu_clock())

    def __call__(self) -> float:
        """Percent of one core.

        Raises:
            Unavailable: no time has passed since the last call.
        """
        at, cpu = self._clock(), self._cpu_clock()
        window, used = at - self._last[0], cpu - self._last[1]
        self._last = (at, cpu)
        if window <= 0:
            raise Unavailable("No time has passed since the last reading.")
        return 100 * used / window


class CpuOfRanks:
    """CPU time of several processes, s, in clock ticks of 10 ms. An ended process counts with its last reading."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._cpu_s = dict.fromkeys(pids, 0.0)

    def __call__(self) -> float:
        """CPU time since the processes started, s."""
        for pid in self._cpu_s:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                self._cpu_s[pid] = times.user + times.system
        return sum(self._cpu_s.values())


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process; None where it has ended or the system does not report it."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(None if pid == "self" else int(pid)).memory_info().rss)
    return None


def memory_of(pids: Sequence[int]) -> float:
    """Resident memory of several processes, bytes. Pages that they share, such as PyTorch's code, count in each."""
    return float(sum(resident_bytes(pid) or 0 for pid in pids))


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> tuple[int | None, str]:
    """The most memory that this process has held at once, and how that was measured; None and the reason without it."""
    method = "peak resident memory of the whole process, includes PyTorch itself"
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE):
            return int(found[1]) * 1024, method
    if sys.platform == "win32":
        return None, "This operating system does not report the peak memory of a process."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), method  # bytes on macOS, KiB elsewhere (getrusage(2))


class OwnUsage:
    """CPU time and memory of Isoflop's own processes. A process that ended since the last reading no longer counts."""

    def __init__(self, root: Path, clock: Callable[[], float], processes: Callable[[], Mapping[int, str]]) -> None:
        """`processes` returns pid -> run id. `root` is the folder that holds /proc."""
        self._proc, self._clock, self._processes = root / "proc", clock, processes
        self._last: tuple[float, dict[int, float]] | None = None

    def __call__(self) -> Values:
        """CPU percent since the last reading, and resident memory in bytes.

        Raises:
            Unavailable: none of the processes is known or visible.
        """
        if not (ours := self._processes()):
            raise Unavailable("Only the supervisor knows Isoflop's processes; see the page Hardware.")
        found = {pid: use for pid in ours if (use := _use_of(self._proc, pid)) is not None}
        if not found:
            raise Unavailable("None of Isoflop's processes is visible from here.")
        before, now = self._last, (self._clock(), {pid: cpu_s for pid, (cpu_s, _) in found.items()})
        self._last = now
        memory = float(sum(resident for _, resident in found.values()))
        if before is None or now[0] <= before[0]:
            return {"own.cpu_percent": Unavailable(FIRST), "own.memory_bytes": memory}
        # CPU time from before the first reading of a process does not belong to this beat.
        used = sum(max(0.0, cpu_s - before[1].get(pid, cpu_s)) for pid, cpu_s in now[1].items())
        return {"own.cpu_percent": 100 * used / (now[0] - before[0]), "own.memory_bytes": memory}


def _use_of(proc: Path, pid: int) -> tuple[float, int] | None:
    """CPU time in s and resident memory in bytes of a process; None when it has ended."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - at every beat
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if (proc / "self").exists() or not psutil.pid_exists(pid):
            return None
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    # proc_pid_stat(5): utime and stime are fields 14 and 15, rss is field 24 in pages. `fields` begins with field 3.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
