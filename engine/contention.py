"""Whether a run had the machine to itself: the time its work took against what it would have taken undisturbed.

One thread on a CPU: wall by CPU time of the training thread, over training alone. Several threads wait for each other
in ordinary work, so there only the time counts in which one was ready and no core was free, as the kernel's scheduler
keeps it. A run on a GPU waits for its device: what counts is whether the thread that feeds it waited for a core.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from engine import hardware
from engine.records import Busy

_LEAST_CPU_S = 0.02  # of training: below, one interruption is as long as the work


class Contention:
    """Watches one run of this process. The thread that trains tells it of its turns; any may ask what was found by now."""

    def __init__(
        self,
        device: str,
        threads: int,
        *,
        tasks: Path = Path("/proc/self/task"),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._on_gpu = hardware.gpu_index(device) is not None
        self._threads, self._tasks, self._clock = threads, tasks, clock
        self._wall_s = self._cpu_s = 0.0
        self._began: tuple[float, float, float] | None = None  # wall, CPU and waiting for a core, s
        self._gpu_processes: int | None = None
        self._said: Busy | None = None
        self._thread = 0  # that trains

    def start(self) -> None:
        """Training is about to begin, in this thread."""
        self._thread = threading.get_native_id()
        self._began = self._scheduled()

    def trained(self, wall_s: float, cpu_s: float) -> None:
        """A turn of training took so long, and so much of it this thread was on a core."""
        self._wall_s += wall_s
        self._cpu_s += cpu_s

    def saw_gpu_processes(self, others: float | None) -> None:
        """How many other processes were on the run's GPU at one moment."""
        if others is not None:
            self._gpu_processes = max(self._gpu_processes or 0, int(others))

    def found(self) -> Busy:
        slowdown, method = self._slowdown()
        return Busy(slowdown=slowdown, slowdown_method=method, gpu_processes=self._gpu_processes)

    def news(self) -> Busy | None:
        """What was found by now, where it is another story than at the last call."""
        found = self.found()
        if self._said is not None and not _differs(self._said, found):
            return None
        self._said = found
        return found

    def _slowdown(self) -> tuple[float | None, str]:
        if not self._on_gpu and self._threads == 1:
            if self._cpu_s < _LEAST_CPU_S:
                return None, "it trained too short a time to tell"
            return self._wall_s / self._cpu_s, "wall by CPU time of the training thread, over training alone"
        now = self._scheduled()
        if self._began is None or now is None:
            return None, "this system does not say how long a thread waited for a core"
        wall_s, cpu_s, waited_s = (after - before for after, before in zip(now, self._began, strict=True))
        if self._on_gpu:
            return wall_s / max(wall_s - waited_s, 1e-9), "the thread that feeds the GPU waited for a core"
        if cpu_s < _LEAST_CPU_S:
            return None, "it trained too short a time to tell"
        return (cpu_s + waited_s) / cpu_s, "all threads, time on a core and waiting for one by time on a core"

    def _scheduled(self) -> tuple[float, float, float] | None:
        """Wall time, and of this thread (on a GPU) or all of this process time on a core and waiting for one, s.

        A thread's schedstat holds both in ns (Documentation/scheduler/sched-stats.rst).
        """
        own = f"{self._thread}/schedstat" if self._on_gpu else "*/schedstat"
        cpu_s = waited_s = 0.0
        for path in self._tasks.glob(own):
            with contextlib.suppress(OSError, ValueError):  # a thread that ended meanwhile
                ran, waited, _ = path.read_text().split()
                cpu_s, waited_s = cpu_s + int(ran) / 1e9, waited_s + int(waited) / 1e9
        return (self._clock(), cpu_s, waited_s) if cpu_s else None


def _differs(before: Busy, now: Busy) -> bool:
    """Whether it is worth a record: another verdict, another number of neighbours, or slower by a tenth."""
    if (before.is_busy, before.gpu_processes) != (now.is_busy, now.gpu_processes):
        return True
    return bool(now.is_busy) and abs((now.slowdown or 0) - (before.slowdown or 0)) > 0.1 * (before.slowdown or 0)
