"""Whether a run had the machine to itself: the time its work took against what it would have taken undisturbed.

One thread on a CPU: wall by CPU time of the training thread, over training alone. Several threads or ranks wait for each other
in ordinary work, so there only the time counts in which one was ready and no core was free, as the kernel's scheduler
keeps it. A run on a GPU waits for its device: what counts is whether the thread that feeds it waited for a core.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

from engine import hardware
from engine.records import Busy

_LEAST_CPU_S = 0.02  # of training: below, one interruption is as long as the work


class Contention:
    """Watches one run of this process. All calls come from the thread that trains."""

    def __init__(
        self,
        device: str,
        threads: int,
        *,
        tasks: Path = Path("/proc/self/task"),
        clock: Callable[[], float] = time.perf_counter,
        pids: Sequence[int] = (),
    ) -> None:
        """`pids` are those of a data-parallel run's ranks."""
        self._on_gpu = hardware.gpu_index(device) is not None
        self._tasks = [Path(f"/proc/{pid}/task") for pid in pids] or [tasks]
        self._threads, self._clock, self._is_gang = threads, clock, bool(pids)
        self._wall_s = self._cpu_s = 0.0
        self._told: dict[Path, tuple[int, int]] = {}  # by each thread, also by those that have ended
        self._began: tuple[float, float, float] | None = None  # wall, CPU and waiting for a core, s
        self._gpu_processes: int | None = None

    def start(self) -> None:
        """Training is about to begin."""
        self._began = self._scheduled()

    def look(self) -> None:
        """What ranks tell is gone with them: to be asked while they are there."""
        self._scheduled()

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

    def _slowdown(self) -> tuple[float | None, str]:
        if not self._on_gpu and self._threads == 1 and not self._is_gang:
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
        own = f"{threading.get_native_id()}/schedstat" if self._on_gpu else "*/schedstat"
        for path in chain.from_iterable(tasks.glob(own) for tasks in self._tasks):
            with contextlib.suppress(OSError, ValueError):  # a thread that ended meanwhile
                ran, waited, _ = path.read_text().split()
                self._told[path] = int(ran), int(waited)
        cpu_s, waited_s = (
            (sum(column) / 1e9 for column in zip(*self._told.values(), strict=True)) if self._told else (0, 0)
        )
        return (self._clock(), cpu_s, waited_s) if cpu_s else None
