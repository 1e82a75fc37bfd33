"""Turns a queued run, or the runs of a heat, into a process. `Executor.start(*folders) -> Job`, the same face for every
way of running."""

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

_ATTEMPTS, _PAUSE_S = 10, 0.2  # the fork server may be killed while it forks: once it is quite gone, another starts
_UNTOLD = 255  # multiprocessing's exit code for a child whose fork server is gone and can tell no more
_SUCCESSOR_S = 30.0  # who needs the store starts the next supervisor well within this

logger = logging.getLogger("isoflop.executor")


class Job(Protocol):
    """A run's process."""

    def is_alive(self) -> bool: ...

    def signal(self, number: int) -> None:
        """To the process and the helpers it started, where it is still the one it was."""

    def cause_of_death(self) -> str: ...

    def sentinel(self) -> int | None:
        """A descriptor that becomes readable when the process ends, where there is one."""


class Executor(Protocol):
    """A way of running: here in this process, in a forked one, on another machine."""

    def start(self, *folders: Path) -> Job: ...


@dataclass
class AdoptedJob:
    """A run's process that an earlier supervisor started and that is still at work."""

    pid: int
    pid_started: float

    def is_alive(self) -> bool:
        return is_same_process(self.pid, self.pid_started)

    def signal(self, number: int) -> None:
        if not self.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:  # so young that it leads no group yet
                os.kill(self.pid, number)

    def cause_of_death(self) -> str:
        return "its process ended without a last word"

    def sentinel(self) -> int | None:
        return None


@dataclass
class ClaimedJob:
    """A process of which only its claim on the run is seen: it has not yet said which it is, or is about to be gone."""

    folder: Path

    def is_alive(self) -> bool:
        return is_claimed(self.folder)

    def signal(self, number: int) -> None: ...

    def cause_of_death(self) -> str:
        return "its process ended without a last word"

    def sentinel(self) -> int | None:
        return None


class _ForkedJob:
    """Asks for the fork in a thread: a fork server that still imports torch answers after seconds, and until then the
    supervisor has other things to do."""

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
        if self._thread.is_alive():
            return True
        if self._process is None or self._identity is None:
            return False
        # The fork server tells how its children end. Were it killed, they would all seem to end with it.
        return self._process.is_alive() or self._identity.is_alive()

    def signal(self, number: int) -> None:
        if self._identity:
            self._identity.signal(number)

    def cause_of_death(self) -> str:
        if self._error is not None:
            return f"no process could be started for it ({self._error})"
        code = self._process.exitcode if self._process else None
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"its process was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
        if code == _UNTOLD:
            return "its process ended without a last word"
        return f"its process ended with exit code {code}"

    def sentinel(self) -> int | None:
        process = self._process
        return process.sentinel if process and process.is_alive() else None


class LocalExecutor:
    """Forks each run from a warm server that has torch imported, one thread, and no CUDA context.

    A fork begins its first step about 50 ms after it was asked for; a fresh interpreter needs seconds to import torch.
    """

    def __init__(self) -> None:
        for name in set(os.environ) - set(without_secrets(os.environ)):  # a run's process has no use for them
            del os.environ[name]
        # libgomp reads these when torch is imported. Threads that spin while they wait made two threads up to 46x
        # slower than one on a busy machine.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # cuda:i is then NVML's i-th GPU, whatever the models
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["engine.runtime.preload"])

    def warm(self) -> None:
        """Have the fork server started beside, so that the first run finds it warm."""
        threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def _warm(self) -> None:
        process = self._context.Process(target=_nothing)
        try:
            process.start()
        except (OSError, EOFError) as error:
            logger.warning("the fork server could not be warmed: %r", error)
        else:
            process.join()

    def start(self, *folders: Path) -> Job:
        return _ForkedJob(self._context, folders)


class InlineExecutor:
    """Runs in this process, one after another: for tests and a debugger."""

    def start(self, *folders: Path) -> Job:
        from engine.runtime import worker

        worker.run(*folders)
        return AdoptedJob(os.getpid(), -1.0)


def _nothing() -> None:
    pass


def _child(folders: tuple[str, ...], supervisor_pid: int, supervisor_started: float) -> None:
    from engine.runtime import worker

    worker.leave_the_terminal()
    _offer_to_the_oom_killer()
    paths = [Path(folder) for folder in folders]
    os.environ[RUN_VARIABLE] = " ".join(path.name for path in paths)
    watched = Supervision(paths[0].parent.parent, supervisor_pid, supervisor_started)
    worker.run(*paths, supervisor_is_alive=watched.is_there, end_process=_end_group)


def _offer_to_the_oom_killer() -> None:
    """Where memory runs out the kernel ends this run, not the page or the supervisor (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _end_group() -> None:
    """End this process and the helpers it started, at once."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


class Supervision:
    """What a run's process knows of its supervisor: the one that started it, or a later one of the same store."""

    def __init__(self, root: Path, pid: int, started: float) -> None:
        self.root, self.pid, self.started = root, pid, started
        self._lost_at: float | None = None

    def is_there(self) -> bool:
        """Whether one is at work, or someone is there who will start the next."""
        if self._is_at_work():
            self._lost_at = None
            return True
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        try:
            return now - self._lost_at < _SUCCESSOR_S and is_needed(self.root)
        except OSError:  # the store is gone
            return False

    def _is_at_work(self) -> bool:
        return is_same_process(self.pid, self.started) or running_supervisor(self.root) is not None
