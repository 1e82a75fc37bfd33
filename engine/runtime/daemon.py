"""The process of the supervisor: its lock, its loop and its end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Literal

import psutil

from engine.common.errors import StoreError, StoreGone
from engine.hardware import history
from engine.runtime.client import open_lock_file, ring_doorbell, start_successor
from engine.runtime.executor import LocalExecutor
from engine.runtime.supervisor import Supervisor, logger
from engine.store.store import Store
from engine.system import code_version, disk_space, locks
from engine.system.code_version import CODE_FILE, PID_FILE
from engine.system.files import write_atomically

HAND_OVER = signal.SIGUSR1  # asks a supervisor to leave; one that a user started then waits for the lock again
IDLE_S = 300.0  # a supervisor without work exits after this
GRACE_S = 30.0  # a dashboard that restarts within this finds its runs still running
_LEAVING_S = 3.0  # a supervisor that leaves releases its lock within this


class _Clients:
    """Whether a process needs the supervisor: a dashboard, or a command that follows its run."""

    def __init__(self, root: Path, grace_s: float) -> None:
        self.root, self.grace_s = root, grace_s
        self._last_seen = time.monotonic()

    def are_present(self) -> bool:
        """Whether a client holds `needed.lock`."""
        if present := locks.is_needed(self.root):
            self._last_seen = time.monotonic()
        return present

    def are_gone(self) -> bool:
        """True when no client has held `needed.lock` for `grace_s`."""
        return not self.are_present() and time.monotonic() - self._last_seen > self.grace_s

    def reason(self) -> str:
        """Why runs are interrupted when all clients are gone."""
        return (
            f"The dashboard or command that the run needs ended and did not restart within {self.grace_s:g} s. "
            "Run it again; runs continue without a dashboard while `python -m engine supervise` runs."
        )


def serve(store: Store, *, idle_s: float = IDLE_S, grace_s: float = math.inf, standby: bool = False) -> bool:
    """Run the store's supervisor until it is no longer needed; False if another one runs already.

    It exits after `idle_s` seconds without work. When no client has needed the store for `grace_s` seconds, its runs are
    interrupted and it exits. With `standby`, it waits until another supervisor leaves, and keeps the runs going meanwhile.

    A supervisor of other code is asked to leave, and its running runs are adopted. A supervisor with `standby` that is
    asked to leave waits for the lock again.

    Raises:
        StoreError: the store cannot be used.
    """
    if _ask_other_code_to_leave(store):
        grace_s = math.inf  # its runs need no client
    how = _serve(store, idle_s=idle_s, grace_s=grace_s, standby=standby)
    try:
        while standby and how == "handed over":
            locks.announce(store.root)
            _stop_on_signals()
            time.sleep(_LEAVING_S)  # so that the process that asked takes the lock first
            how = _serve(store, idle_s=idle_s, grace_s=grace_s, standby=standby)
    except KeyboardInterrupt:  # do not wait for the runs as multiprocessing does at exit
        pass
    return how != "refused"


def _serve(store: Store, *, idle_s: float, grace_s: float, standby: bool) -> Literal["refused", "handed over", "left"]:
    with open_lock_file(store) as lock:
        if not (_wait_for_lock(store, lock.fileno()) if standby else locks.lock(lock.fileno(), patience_s=_LEAVING_S)):
            return "refused"
        folder = _StoreFolder(store, lock.fileno())
        stop = _on_signals()  # before another process can read the pid
        disk_space.with_reserve(store.root, lambda: _write_identity(store.root))
        executor = LocalExecutor()
        supervisor = Supervisor(store, executor)
        supervisor.recorder = history.Recorder(store.root)
        supervisor.may_start = lambda: not stop and _is_current(store)
        try:
            _supervise(supervisor, executor, folder, _Clients(store.root, grace_s), idle_s, stop)
        except (OSError, StoreError) as error:
            if folder.is_ours():
                raise
            logger.warning("the store was moved, deleted or replaced, leaving it: %s", error)
            if not folder.has_runs():
                supervisor.abandon()
        supervisor.recorder.stop()
        supervisor.index.close()
        if folder.is_ours():
            for name in (PID_FILE, CODE_FILE):
                (store.root / name).unlink(missing_ok=True)
        logger.info("leaving")
        return "handed over" if HAND_OVER in stop else "left"


def _ask_other_code_to_leave(store: Store) -> bool:
    """Ask a supervisor of other code to leave its runs to us; True if a user started it with an older version.

    SIGTERM works for every version. But a supervisor that a user started must stand by, not end; versions that record
    their code understand HAND_OVER.
    """
    other = code_version.supervisor_of_other_code(store.root, code_version.LOADED)
    if other is None:
        return False
    logger.info("asking the supervisor of other code (%s) to hand over", other.in_words())
    started_by_user = False
    try:
        if not other.digest:
            started_by_user = "--on-demand" not in psutil.Process(other.pid).cmdline()
        os.kill(other.pid, HAND_OVER if other.digest else signal.SIGTERM)
        ring_doorbell(store)  # it looks now
    except (OSError, psutil.Error) as error:
        logger.warning("it cannot be signalled: %s", error)
    return started_by_user


def _write_identity(root: Path) -> None:
    """Record the process of the supervisor and its code. The pid comes last, so that its reader finds the code, too."""
    own = code_version.own_supervisor()
    write_atomically(root / CODE_FILE, own.as_json())
    write_atomically(root / PID_FILE, f"{own.pid} {own.started}")


def _is_current(store: Store) -> bool:
    """Whether this process and its fork server run the code on disk. If not, a successor is started."""
    if code_version.on_disk() == code_version.LOADED:
        return True
    if start_successor(store):
        logger.info("the files of the engine changed: no run starts until a new supervisor takes over")
    return False


def _wait_for_lock(store: Store, lock: int) -> bool:
    """Wait for the lock and keep the runs of its holder going; True when this process has become the supervisor."""
    taken = locks.lock(lock)
    if not taken:
        locks.announce(store.root)
        logger.info("this store has a supervisor: keeping its runs going until this process can take over")
        taken = locks.lock(lock, patience_s=math.inf)
    locks.withdraw(store.root)
    return taken


class _StoreFolder:
    """The store's folder as the supervisor found it.

    After it was moved, deleted or replaced, the supervisor must not write: the data would be accepted and lost.
    """

    def __init__(self, store: Store, lock: int) -> None:
        self._store, self._lock = store, lock
        self._runs = store.runs.stat()

    def is_ours(self) -> bool:
        """Whether the folder is still the one that we locked."""
        return disk_space.same_file(self._store.root / "supervisor.lock", self._lock) and self.has_runs()

    def has_runs(self) -> bool:
        """Whether the runs folder is still the same one."""
        try:
            return os.path.samestat(self._store.runs.stat(), self._runs)
        except OSError:
            return False

    def check(self) -> None:
        """Check that the folder is still ours.

        Raises:
            StoreGone: it is not.
        """
        if not self.is_ours():
            raise StoreGone("Its folder was moved, deleted or replaced.")


def _supervise(
    supervisor: Supervisor,
    executor: LocalExecutor,
    folder: _StoreFolder,
    clients: _Clients,
    idle_s: float,
    stop: list[int],
) -> None:
    logger.info("supervising")
    if network := disk_space.network_file_system(supervisor.store.root):
        logger.warning("the store is on a network file system (%s): use it from one machine only", network)
    executor.warm()
    supervisor.recover()
    if supervisor.recorder:
        supervisor.recorder.start()
    while True:
        with _doorbell(supervisor.store) as pipe:
            _serve_until_idle(supervisor, pipe, folder, clients, idle_s, stop)
        supervisor.tick()  # a client may have written while the pipe was removed
        if supervisor.is_idle or stop:
            break


def _serve_until_idle(
    supervisor: Supervisor, pipe: int, folder: _StoreFolder, clients: _Clients, idle_s: float, stop: list[int]
) -> None:
    busy_at, interrupted = time.monotonic(), False
    while not stop and time.monotonic() - busy_at < idle_s:
        folder.check()
        supervisor.tick()
        if clients.are_gone():
            if interrupted and supervisor.is_idle:
                return
            if not supervisor.is_idle:
                supervisor.interrupt_all(clients.reason())
                interrupted = True
        if not supervisor.is_idle or supervisor.unindexed or clients.are_present():
            busy_at = time.monotonic()
        patience = 0.0 if supervisor.unindexed else 1.0 if supervisor.is_idle else 0.25
        ready = wait_for_any([pipe, *supervisor.sentinels()], timeout=patience)
        if pipe in ready:
            os.read(pipe, 4096)
            busy_at = time.monotonic()


def _on_signals() -> list[int]:
    """A list that receives the signals that ask the supervisor to leave; the next one adopts its runs."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, HAND_OVER):
        signal.signal(number, lambda n, _: received.append(n))
    return received


def _stop_on_signals() -> None:
    """Let these signals end the process again, except HAND_OVER, which can come twice or late."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(HAND_OVER, signal.SIG_IGN)


@contextlib.contextmanager
def _doorbell(store: Store):  # type: ignore[no-untyped-def]
    """The named pipe that clients write to; yields its file descriptor."""
    path = store.root / "doorbell"
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # open for writing too: never at end of file
    try:
        yield fd
    finally:
        if disk_space.same_file(path, fd):  # a store that replaced ours has its own pipe
            path.unlink(missing_ok=True)
        os.close(fd)
