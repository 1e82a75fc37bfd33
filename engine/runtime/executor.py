"""Starts a process for a queued run, or for the runs of a seed block: `Executor.start(*folders) -> Job`."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Protocol

from engine.system.code_version import running_supervisor
from engine.system.locks import is_claimed, is_needed
from engine.system.processes import RUN_VARIABLE, is_same_process, own_identity, process_started, without_secrets

_ATTEMPTS, _PAUSE_S = 10, 0.2  # the fork server can be killed while it forks; when it has ended, another starts
_EXIT_UNKNOWN = 255  # multiprocessing's exit code for a child whose fork server died
_SUCCESSOR_S = 30.0  # a client starts the next supervisor well within this
_NO_FINAL_EVENT = "its process ended without a final event"

logger = logging.getLogger("isoflop.executor")


class Job(Protocol):
    """A run's process."""

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to the process and its helpers, unless its pid belongs to another process now."""

    def cause_of_death(self) -> str:
        """Why the process ended, as a part of a sentence."""
        ...

    def sentinel(self) -> int | None:
        """A file descriptor that becomes readable when the process ends, or None."""


class Executor(Protocol):
    """A way to run: in this process, in a forked one, or on another machine."""

    def start(self, *folders: Path) -> Job:
        """Start one process for the runs in these folders."""
        ...


@dataclass
class AdoptedJob:
    """A running process of a run that an earlier supervisor started."""

    pid: int
    pid_started: float

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return is_same_process(self.pid, self.pid_started)

    def signal(self, number: int) -> None:
        """Send a signal to the process and its helpers."""
        if not self.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:  # it has not created its process group yet
                os.kill(self.pid, number)

    def cause_of_death(self) -> str:
        """Why the process ended, as a part of a sentence."""
        return _NO_FINAL_EVENT

    def sentinel(self) -> int | None:
        """None: the end of such a process can only be polled."""
        return None


@dataclass
class ClaimedJob:
    """A process known only by its claim on the run: it has not recorded its pid yet, or is about to end."""

    folder: Path

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        return is_claimed(self.folder)

    def signal(self, number: int) -> None:
        """Does nothing: the pid is unknown."""

    def cause_of_death(self) -> str:
        """Why the process ended, as a part of a sentence."""
        return _NO_FINAL_EVENT

    def sentinel(self) -> int | None:
        """None: the end of such a process can only be polled."""
        return None


class _ForkedJob:
    """A forked process. A thread requests the fork, because a fork server that still imports torch answers after seconds."""

    def __init__(self, context: ForkServerContext, folders: tuple[Path, ...]) -> None:
        self._process: ForkServerProcess | None = None
        self._identity: AdoptedJob | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fork, args=(context, folders), name="fork", daemon=True)
        self._thread.start()

    def _fork(self, context: ForkServerContext, folders: tuple[Path, ...]) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            process = context.Process(target=_child, args=(tuple(map(str, folders)), *own_identity()), daemon=False)
            try:
                process.start()
            except (OSError, EOFError) as error:
                logger.warning("attempt %d to fork for %s failed: %r", attempt, folders[0].name, error)
                self._error = error
                time.sleep(_PAUSE_S)
                continue
            assert process.pid is not None
            self._identity = AdoptedJob(process.pid, process_started(process.pid) or 0.0)
            self._process, self._error = process, None
            return

    def is_alive(self) -> bool:
        """Whether the process has not ended."""
        if self._thread.is_alive():
            return True
        if self._process is None or self._identity is None:
            return False
        # The fork server reports the end of its children. If it was killed, all of them seem to have ended.
        return self._process.is_alive() or self._identity.is_alive()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its helpers."""
        if self._identity:
            self._identity.signal(number)

    def cause_of_death(self) -> str:
        """Why the process ended, as a part of a sentence."""
        if self._error is not None:
            return f"no process could be started for it ({self._error})"
        code = self._process.exitcode if self._process else None
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        if code == _EXIT_UNKNOWN:
            return _NO_FINAL_EVENT
        return f"its process ended with exit code {code}"

    def sentinel(self) -> int | None:
        """None: the end of such a process can only be polled."""
        process = self._process
        return process.sentinel if process and process.is_alive() else None


class LocalExecutor:
    """Forks each run from a server that has imported torch, with one thread and no CUDA context.

    A forked run starts its first step about 50 ms after the request; a new interpreter needs seconds to import torch.
    """

    def __init__(self) -> None:
        for name in set(os.environ) - set(without_secrets(os.environ)):  # the process of a run must not see them
            del os.environ[name]
        # libgomp reads these when torch is imported. With active waiting, two threads were up to 46 times slower than
        # one on a busy machine.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # so that cuda:i is NVML's GPU i
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engine.runtime.preload"])

    def warm(self) -> None:
        """Start the fork server in a thread, so that the first run does not wait for the import of torch."""
        threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def _warm(self) -> None:
        process = self._context.Process(target=_do_nothing)
        try:
            process.start()
        except (OSError, EOFError) as error:
            logger.warning("the fork server could not be started: %r", error)
        else:
            process.join()

    def start(self, *folders: Path) -> Job:
        """Fork one process for the runs in these folders."""
        return _ForkedJob(self._context, folders)


class InlineExecutor:
    """Runs in this process, one run after another, for tests and a debugger."""

    def start(self, *folders: Path) -> Job:
        """Run the runs in these folders to their end."""
        from engine.runtime import worker

        worker.run(*folders)
        return AdoptedJob(os.getpid(), -1.0)


def _do_nothing() -> None:
    pass


def _child(folders: tuple[str, ...], supervisor_pid: int, supervisor_started: float) -> None:
    from engine.runtime import worker

    worker.leave_the_terminal()
    _prefer_for_oom_killer()
    paths = [Path(folder) for folder in folders]
    os.environ[RUN_VARIABLE] = " ".join(path.name for path in paths)
    supervision = Supervision(paths[0].parent.parent, supervisor_pid, supervisor_started)
    worker.run(*paths, supervisor_is_alive=supervision.is_alive, end_process=_end_group)


def _prefer_for_oom_killer() -> None:
    """Let the kernel kill this run first when memory runs out, not the page or the supervisor (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _end_group() -> None:
    """Kill this process and its helpers at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Supervision:
    """The supervisor as the process of a run sees it: the one that started the run, or a later one of the store."""

    def __init__(self, root: Path, pid: int, started: float) -> None:
        self.root, self.pid, self.started = root, pid, started
        self._lost_at: float | None = None

    def is_alive(self) -> bool:
        """Whether a supervisor runs, or a client can still start the next one."""
        if self._is_running():
            self._lost_at = None
            return True
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        try:
            return now - self._lost_at < _SUCCESSOR_S and is_needed(self.root)
        except OSError:  # the store was deleted
            return False

    def _is_running(self) -> bool:
        return is_same_process(self.pid, self.started) or running_supervisor(self.root) is not None
