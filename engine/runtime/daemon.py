"""The supervisor's process: its lock, its loop and its end."""

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
from engine.runtime.client import _start_successor, open_lock_file, ring_doorbell
from engine.runtime.executor import LocalExecutor
from engine.runtime.supervisor import Supervisor, logger
from engine.store.store import Store
from engine.system import code_version, disk_space, locks
from engine.system.code_version import CODE_FILE, PID_FILE
from engine.system.files import write_atomically

HAND_OVER = signal.SIGUSR1  # asks a supervisor to leave its runs to the next one, and to stand by if it runs by hand
IDLE_S = 300.0
GRACE_S = 30.0  # a dashboard that is started again within this finds its runs going on
_LEAVING_S = 3.0  # a supervisor that is leaving lets go of its lock within this


class _Need:
    """Whether anyone needs the store's supervisor: a dashboard, or a command that follows its run."""

    def __init__(self, root: Path, grace_s: float) -> None:
        self.root, self.grace_s = root, grace_s
        self._last_seen = time.monotonic()

    def is_there(self) -> bool:
        if there := locks.is_needed(self.root):
            self._last_seen = time.monotonic()
        return there

    def is_gone(self) -> bool:
        """Nobody came within the grace: what needed it was not restarted but ended."""
        return not self.is_there() and time.monotonic() - self._last_seen > self.grace_s

    def words(self) -> str:
        return (
            f"Nobody needed it any more: the dashboard or command it ran for ended and was not back within {self.grace_s:g} s. "
            "Run it again; runs go on without a dashboard while `python -m engine supervise` runs."
        )


def serve(store: Store, *, idle_s: float = IDLE_S, grace_s: float = math.inf, standby: bool = False) -> bool:
    """Be the store's supervisor until nobody needs one; False when another already is.

    When everybody who announced a need of the store has been gone for `grace_s`, its runs are interrupted and the
    supervisor leaves. With `standby`, another supervisor is waited for, and meanwhile its runs go on.

    A supervisor of other code is asked to leave, and its runs, which go on, are adopted. One with `standby` that is asked
    the same stands by from then on.
    """
    if _ask_other_code_to_leave(store):
        grace_s = math.inf  # its runs were to go on with nobody there
    how = _serve(store, idle_s=idle_s, grace_s=grace_s, standby=standby)
    try:
        while standby and how == "handed over":
            locks.announce(store.root)
            _stop_on_signals()
            time.sleep(_LEAVING_S)  # the process that asked takes the lock first
            how = _serve(store, idle_s=idle_s, grace_s=grace_s, standby=standby)
    except KeyboardInterrupt:  # leave as a supervisor does: without multiprocessing's wait for the runs it started
        pass
    return how != "refused"


def _serve(store: Store, *, idle_s: float, grace_s: float, standby: bool) -> Literal["refused", "handed over", "left"]:
    with open_lock_file(store) as lock:
        if not (_wait_for_lock(store, lock.fileno()) if standby else locks.lock(lock.fileno(), patience_s=_LEAVING_S)):
            return "refused"
        place = _Place(store, lock.fileno())
        stop = _on_signals()  # before anybody can read whom to signal
        disk_space.with_reserve(store.root, lambda: _write_identity(store.root))
        executor = LocalExecutor()
        supervisor = Supervisor(store, executor)
        supervisor.recorder = history.Recorder(store.root)
        supervisor.may_start = lambda: not stop and _is_current(store)
        try:
            _supervise(supervisor, executor, place, _Need(store.root, grace_s), idle_s, stop)
        except (OSError, StoreError) as error:
            if place.is_ours():
                raise
            logger.warning("the store is not what it was, leaving it: %s", error)
            if not place.has_runs():
                supervisor.abandon()
        supervisor.recorder.stop()
        supervisor.index.close()
        if place.is_ours():
            for name in (PID_FILE, CODE_FILE):
                (store.root / name).unlink(missing_ok=True)
        logger.info("leaving")
        return "handed over" if HAND_OVER in stop else "left"


def _ask_other_code_to_leave(store: Store) -> bool:
    """Ask a supervisor of other code than ours to leave its runs to us; True where an older version ran it by hand.

    SIGTERM means that to a supervisor of every version. But one that runs by hand should stand by, not end: where it
    wrote its code down it understands HAND_OVER.
    """
    other = code_version.supervisor_of_other_code(store.root, code_version.LOADED)
    if other is None:
        return False
    logger.info("asking the supervisor of other code (%s) to hand over", other.in_words())
    by_hand = False
    try:
        if not other.digest:
            by_hand = "--on-demand" not in psutil.Process(other.pid).cmdline()
        os.kill(other.pid, HAND_OVER if other.digest else signal.SIGTERM)
        ring_doorbell(store)  # it looks now
    except (OSError, psutil.Error) as error:
        logger.warning("it cannot be asked: %s", error)
    return by_hand


def _write_identity(root: Path) -> None:
    """Who is the supervisor now, and with which code. The pid last: whoever finds it finds the code too."""
    own = code_version.own_supervisor()
    write_atomically(root / CODE_FILE, own.as_json())
    write_atomically(root / PID_FILE, f"{own.pid} {own.started}")


def _is_current(store: Store) -> bool:
    """Whether this process and its fork server run the engine's files as they are; where not, have a successor started."""
    if code_version.on_disk() == code_version.LOADED:
        return True
    if _start_successor(store):
        logger.info("the engine's files changed: no run starts until a supervisor that loads them takes over")
    return False


def _wait_for_lock(store: Store, lock: int) -> bool:
    """Wait for the lock, and let the runs of the supervisor that has it go on meanwhile; True when it is ours."""
    taken = locks.lock(lock)
    if not taken:
        locks.announce(store.root)
        logger.info("this store has a supervisor: keeping its runs going, and taking its place when it leaves")
        taken = locks.lock(lock, patience_s=math.inf)
    locks.withdraw(store.root)
    return taken


class _Place:
    """The store's folder as its supervisor found it. One that is moved, deleted or replaced is not to be written to:
    the file system would take it all, and nobody would ever read it."""

    def __init__(self, store: Store, lock: int) -> None:
        self._store, self._lock = store, lock
        self._runs = store.runs.stat()

    def is_ours(self) -> bool:
        return disk_space.same_file(self._store.root / "supervisor.lock", self._lock) and self.has_runs()

    def has_runs(self) -> bool:
        try:
            return os.path.samestat(self._store.runs.stat(), self._runs)
        except OSError:
            return False

    def check(self) -> None:
        if not self.is_ours():
            raise StoreGone("Its folder was moved, deleted or replaced.")


def _supervise(
    supervisor: Supervisor, executor: LocalExecutor, place: _Place, need: _Need, idle_s: float, stop: list[int]
) -> None:
    logger.info("supervising")
    if network := disk_space.network_file_system(supervisor.store.root):
        logger.warning("the store lies on a network file system (%s): use it from one machine only", network)
    executor.warm()
    supervisor.recover()
    if supervisor.recorder:
        supervisor.recorder.start()
    while True:
        with _doorbell(supervisor.store) as bell:
            _serve_until_idle(supervisor, bell, place, need, idle_s, stop)
        supervisor.tick()  # who rang while the bell was taken down is heard here
        if supervisor.is_idle or stop:
            break


def _serve_until_idle(
    supervisor: Supervisor, bell: int, place: _Place, need: _Need, idle_s: float, stop: list[int]
) -> None:
    busy_at, interrupted = time.monotonic(), False
    while not stop and time.monotonic() - busy_at < idle_s:
        place.check()
        supervisor.tick()
        if need.is_gone():
            if interrupted and supervisor.is_idle:
                return
            if not supervisor.is_idle:
                supervisor.interrupt_all(need.words())
                interrupted = True
        if not supervisor.is_idle or supervisor.unindexed or need.is_there():
            busy_at = time.monotonic()
        patience = 0.0 if supervisor.unindexed else 1.0 if supervisor.is_idle else 0.25
        ready = wait_for_any([bell, *supervisor.sentinels()], timeout=patience)
        if bell in ready:
            os.read(bell, 4096)
            busy_at = time.monotonic()


def _on_signals() -> list[int]:
    """The signals that asked the supervisor to leave, as they come; its runs stay for the next one to adopt."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, HAND_OVER):
        signal.signal(number, lambda n, _: received.append(n))
    return received


def _stop_on_signals() -> None:
    """The same signals end this process again, except HAND_OVER, which may come a second time, or too late."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(HAND_OVER, signal.SIG_IGN)


@contextlib.contextmanager
def _doorbell(store: Store):  # type: ignore[no-untyped-def]
    path = store.root / "doorbell"
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # open for writing too: never at end of file
    try:
        yield fd
    finally:
        if disk_space.same_file(path, fd):  # in a store that took the place of ours it is another's
            path.unlink(missing_ok=True)
        os.close(fd)
