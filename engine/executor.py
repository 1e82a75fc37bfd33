"""Turns a queued run into a process. `Executor.start(folder) -> Job`, the same face for every way of running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Protocol

from engine.processes import is_same_process, own_identity, process_started


class Job(Protocol):
    """A run's process."""

    pid: int
    pid_started: float

    def is_alive(self) -> bool: ...

    def signal(self, number: int) -> None: ...

    def cause_of_death(self) -> str: ...


class Executor(Protocol):
    """A way of running: here in this process, in a forked one, on another machine."""

    def start(self, folder: Path) -> Job: ...


@dataclass
class AdoptedJob:
    """A run's process that an earlier supervisor started and that is still at work."""

    pid: int
    pid_started: float

    def is_alive(self) -> bool:
        return is_same_process(self.pid, self.pid_started)

    def signal(self, number: int) -> None:
        if self.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def cause_of_death(self) -> str:
        return "its process ended without a last word"


@dataclass
class _ForkedJob(AdoptedJob):
    process: ForkServerProcess

    def is_alive(self) -> bool:
        # The fork server tells how its children end. Were it killed, they would all seem to end with it.
        return self.process.is_alive() or is_same_process(self.pid, self.pid_started)

    def cause_of_death(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        return f"its process ended with exit code {code}"


class LocalExecutor:
    """Forks each run from a warm server that has torch imported, one thread, and no CUDA context.

    A fork begins its first step about 50 ms after it was asked for; a fresh interpreter needs seconds to import torch.
    """

    def __init__(self) -> None:
        # libgomp reads these when torch is imported. Threads that spin while they wait made two threads up to 46x
        # slower than one on a busy machine.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cuda:i is then NVML's i-th GPU, whatever the models
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engine.preload"])

    def warm(self) -> None:
        """Start the fork server now, so that the first run finds it warm."""
        process = self._context.Process(target=_nothing)
        process.start()
        process.join()

    def start(self, folder: Path) -> Job:
        process = self._context.Process(target=_child, args=(str(folder), *own_identity()), daemon=False)
        process.start()
        assert process.pid is not None
        return _ForkedJob(process.pid, process_started(process.pid) or 0.0, process)


class InlineExecutor:
    """Runs in this process, one after another: for tests and a debugger."""

    def start(self, folder: Path) -> Job:
        from engine import worker

        worker.run(folder)
        return AdoptedJob(os.getpid(), -1.0)


def _nothing() -> None:
    pass


def _child(folder: str, supervisor_pid: int, supervisor_started: float) -> None:
    from engine import worker

    worker.leave_the_terminal()
    root = Path(folder).parent.parent
    worker.run(Path(folder), supervisor_is_alive=lambda: has_supervisor(root, supervisor_pid, supervisor_started))


def has_supervisor(root: Path, pid: int, started: float) -> bool:
    """Whether the supervisor that started us, or a later one of the same store, is at work."""
    if is_same_process(pid, started):
        return True
    try:
        text = (root / "supervisor.pid").read_text(encoding="utf-8")
        later_pid, later_started = text.split()
        return is_same_process(int(later_pid), float(later_started))
    except (OSError, ValueError):
        return False
