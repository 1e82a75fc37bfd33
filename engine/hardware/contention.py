"""Detects interference: whether other programs slowed a run down, and how much.

For a run on the CPU with one thread, the slowdown is the wall time divided by the CPU time of the training thread, during
training only. Several threads or ranks also wait for each other, which is normal, so there only the time counts in which
a thread was ready and no core was free, as the kernel's scheduler records it. A run on a GPU waits for the GPU, so there
only the time counts in which the thread that feeds the GPU waited for a core.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engine.events.machine import Busy
from engine.hardware import probe

_LEAST_CPU_S = 0.02  # of training: in less time, one interruption can be as long as the work


class Contention:
    """Watches one run of this process. The training thread reports its turns; any thread can ask for the result so far."""

    def __init__(
        self,
        device: str,
        threads: int,
        *,
        tasks: Path = Path("/proc/self/task"),
        clock: Callable[[], float] = time.perf_counter,
        pids: Sequence[int] = (),
    ) -> None:
        """`threads` is the run's thread count, `pids` are the processes of its ranks when there are several."""
        self._on_gpu = probe.gpu_index(device) is not None
        self._tasks = [Path(f"/proc/{pid}/task") for pid in pids] or [tasks]
        self._threads, self._clock, self._has_ranks = threads, clock, bool(pids)
        self._wall_s = self._cpu_s = 0.0
        self._by_thread: dict[Path, tuple[int, int]] = {}  # ns on a core and waiting for one, also of ended threads
        self._began: tuple[float, float, float] | None = None  # wall, CPU and waiting for a core, s
        self._gpu_processes: int | None = None
        self._reported: Busy | None = None
        self._thread = 0  # native id of the training thread

    def start(self) -> None:
        """Call this in the training thread, before training."""
        self._thread = threading.get_native_id()
        self._began = self._scheduled()

    def look(self) -> None:
        """Read the times of all threads now, because those of ranks are lost when they end."""
        self._scheduled()

    def trained(self, wall_s: float, cpu_s: float) -> None:
        """Add a turn of training: its wall time, and the CPU time of this thread in it."""
        self._wall_s += wall_s
        self._cpu_s += cpu_s

    def saw_gpu_processes(self, others: float | None) -> None:
        """Add a reading of the number of other processes on the run's GPU; None is unknown."""
        if others is not None:
            self._gpu_processes = max(self._gpu_processes or 0, int(others))

    def found(self) -> Busy:
        """The slowdown so far and how it was measured, and the most other processes seen on the GPU."""
        slowdown, method = self._slowdown()
        return Busy(slowdown=slowdown, slowdown_method=method, gpu_processes=self._gpu_processes)

    def news(self) -> Busy | None:
        """The result so far; None when it hardly differs from that of the last call."""
        found = self.found()
        if self._reported is not None and not _differs(self._reported, found):
            return None
        self._reported = found
        return found

    def _slowdown(self) -> tuple[float | None, str]:
        if not self._on_gpu and self._threads == 1 and not self._has_ranks:
            if self._cpu_s < _LEAST_CPU_S:
                return None, "it trained for too short a time to measure this"
            return self._wall_s / self._cpu_s, "wall time / CPU time of the training thread, during training only"
        now = self._scheduled()
        if self._began is None or now is None:
            return None, "this system does not report how long a thread waited for a core"
        wall_s, cpu_s, waited_s = (after - before for after, before in zip(now, self._began, strict=True))
        if self._on_gpu:
            method = "wall time / wall time without waiting for a core, of the thread that feeds the GPU"
            return wall_s / max(wall_s - waited_s, 1e-9), method
        if cpu_s < _LEAST_CPU_S:
            return None, "it trained for too short a time to measure this"
        return (cpu_s + waited_s) / cpu_s, "(time on a core + time waiting for one) / time on a core, of all threads"

    def _scheduled(self) -> tuple[float, float, float] | None:
        """Wall time, time on a core and time waiting for a core, s; None where the system does not report them.

        The latter two are those of the training thread for a run on a GPU, else of all threads. A thread's schedstat holds
        both in ns (Documentation/scheduler/sched-stats.rst).
        """
        own = f"{self._thread}/schedstat" if self._on_gpu else "*/schedstat"
        for tasks in self._tasks:
            self._by_thread |= _thread_times(tasks, own)
        found = _total_s(self._by_thread)
        return (self._clock(), *found) if found else None


TASKS = Path("/proc/self/task")


def scheduled_s(tasks: Path = TASKS, threads: str = "*/schedstat") -> tuple[float, float] | None:
    """Seconds that this process's threads were on a core and waited for one; None where the system does not report them."""
    return _total_s(_thread_times(tasks, threads))


def _thread_times(tasks: Path, threads: str) -> dict[Path, tuple[int, int]]:
    """Of each thread, ns on a core and ns waiting for one."""
    found = {}
    for path in tasks.glob(threads):
        with contextlib.suppress(OSError, ValueError):  # the thread has ended
            ran, waited, _ = path.read_text().split()
            found[path] = int(ran), int(waited)
    return found


def _total_s(by_thread: Mapping[Path, tuple[int, int]]) -> tuple[float, float] | None:
    times = list(by_thread.values())
    cpu_s, waited_s = sum(ran for ran, _ in times) / 1e9, sum(waited for _, waited in times) / 1e9
    return (cpu_s, waited_s) if cpu_s else None


def _differs(before: Busy, now: Busy) -> bool:
    """Whether the change is worth an event: another verdict or number of processes, or a slowdown that changed by 10 %."""
    if (before.is_busy, before.gpu_processes) != (now.is_busy, now.gpu_processes):
        return True
    return bool(now.is_busy) and abs((now.slowdown or 0) - (before.slowdown or 0)) > 0.1 * (before.slowdown or 0)
