"""One supervisor per store: the queue, the device slots, cancellation and the index. And the client everyone uses.

Nothing a client asks for can be lost: a submitted run is a folder on disk before anyone is told, every other command is
a file renamed into the inbox. Ringing the doorbell (a named pipe) only saves the supervisor's next look some time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import IO

from engine import access, disk, hardware, limits, planner, records, settings
from engine.access import AccessError, Action, Actor
from engine.config import RunConfig
from engine.errors import EngineError, LimitReached, StoreError, StoreFull, StoreGone, WorkerLost
from engine.executor import AdoptedJob, Executor, Job, LocalExecutor
from engine.processes import is_same_process, own_identity
from engine.store import STOP_FILE, SUMMARY_POINTS, EventLog, KeptIndex, Run, Store, row_of, write_atomically
from engine.text import clean_name

ROOT = Path(__file__).resolve().parent.parent
IDLE_S = 300.0
_SIGTERM_AFTER_S, _SIGKILL_AFTER_S = 4.0, 8.0
_INDEX_LIVE_EVERY_S = 2.0
_MTIME_TICK_NS = 50_000_000
_LONGEST_COMMAND = 65_536
_COUNTING = threading.Lock()  # of runs that wait: all pages of a dashboard are threads of one process

logger = logging.getLogger("isoflop.supervisor")


# --- the client's side ---------------------------------------------------------------------------------------------


class Client:
    """What the page and the command line do with runs, in the name of `actor`. Reading is `Store`'s; this asks for changes.

    What an actor may not do raises AccessError here, and is refused again by the supervisor, which decides.
    """

    def __init__(self, store: Store, actor: Actor = access.TERMINAL) -> None:
        self.store, self.actor = store, actor

    def submit(self, config: RunConfig, *, name: str = "", group: str | None = None, key: str = "") -> str:
        """Queue a run and return its id; refused configurations raise and leave nothing behind.

        One `key` starts one run, however often it is asked for.
        """
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        access.require_data(self.actor, config, rules)
        limits.check_before(config, planner.check(config), rules.limits)
        with _COUNTING:  # or two who come at once would both find the last free place
            self._require_room_in_queue(rules)
            run_id = self.store.create(config, name=name, group=group, owner=self.actor.id, key=key)
        access.audit(self.store.root, self.actor, "submit", run_id=run_id)
        self.wake()
        return run_id

    def _require(self, action: Action, rules: settings.Settings, run_id: str = "", owner: str = "") -> None:
        try:
            access.require(self.actor, action, rules, owner=owner)
        except AccessError:
            access.audit(self.store.root, self.actor, action, run_id=run_id, outcome="refused")
            raise

    def _require_room_in_queue(self, rules: settings.Settings) -> None:
        waiting = [row.run_id for row in self.store.rows(status=("queued",))]
        if len(waiting) >= rules.limits.queued:
            raise LimitReached(
                f"{len(waiting)} runs are waiting already, as many as limits.queued allows.", fix="Wait, or stop some."
            )
        if access.role_of(self.actor, rules) == "admin" or len(waiting) < rules.limits.queued_per_user:
            return
        own = sum(self.store.owner(run_id) == self.actor.id for run_id in waiting)
        if own >= rules.limits.queued_per_user:
            raise LimitReached(
                f"{own} runs of {self.actor.in_words} are waiting, as many as limits.queued_per_user allows.",
                fix="Wait, or stop some.",
            )

    def cancel(self, run_id: str, *, reason: str = "cancelled by the user") -> None:
        """Ask a run to stop. Harmless for one that is over."""
        self._ask("cancel", run_id, reason=reason)

    def rename(self, run_id: str, name: str) -> None:
        """Call a run something else."""
        self._ask("rename", run_id, name=clean_name(name))

    def delete(self, run_id: str) -> None:
        """Delete a run that is over, or one that cannot even be read."""
        self.store.folder(run_id)
        try:
            over = self.store.run(run_id).is_over
        except StoreError:
            over = True
        if not over:
            raise StoreError(f"Run {run_id} is still at work.", fix="Stop it first.")
        self._ask("delete", run_id)

    def rebuild_index(self) -> None:
        self._ask("rebuild")

    def may(self, action: Action, run_id: str = "") -> bool:
        """Whether the actor may do this; for a page that offers only what it can do."""
        owner = self.store.owner(run_id) if run_id else ""
        return access.may(self.actor, action, settings.load(self.store.root), owner=owner)

    def _ask(self, action: Action, run_id: str = "", **details: str) -> None:
        owner = ""
        if run_id:
            self.store.folder(run_id)
            owner = self.store.owner(run_id)
        self._require(action, settings.load(self.store.root), run_id, owner)
        self._send({"command": action, "actor": self.actor.id, "run_id": run_id} | details)

    def wake(self) -> None:
        """Make sure that a supervisor is there and looks now."""
        try:
            if not _ring(self.store):
                _start_supervisor(self.store)
        except OSError as error:  # the store is gone, or cannot be written
            raise self.store.trouble() or disk.unwritable(error) from None

    def _send(self, command: dict[str, str]) -> None:
        self.store.post(json.dumps(command))
        self.wake()


def _ring(store: Store) -> bool:
    """True when a supervisor heard it."""
    try:
        fd = os.open(store.root / "doorbell", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO}:  # no pipe, or nobody reads it
            return False
        raise
    try:
        with contextlib.suppress(BlockingIOError):  # full: it will look anyway
            os.write(fd, b"!")
    except BrokenPipeError:  # it took the bell down this very moment
        return False
    finally:
        os.close(fd)
    return True


def _start_supervisor(store: Store) -> None:
    """In a session of its own: it outlives the page and the terminal that needed it first."""
    fd = os.open(store.root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        subprocess.Popen(
            [sys.executable, "-m", "engine", "supervise", "--store", str(store.root)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        )  # fmt: skip
    finally:
        os.close(fd)


# --- the supervisor itself -----------------------------------------------------------------------------------------


class Supervisor:
    """Starts queued runs where there is room, ends them when asked, and tells the truth about those that vanish."""

    def __init__(self, store: Store, executor: Executor, *, machine: hardware.Machine | None = None) -> None:
        self.store, self.executor = store, executor
        self.index = KeptIndex(store)
        self.machine = machine or hardware.probe()
        self.active: dict[str, tuple[Run, Job]] = {}
        self.queue: dict[str, Run] = {}
        self.stopping: dict[str, float] = {}  # run id -> when it was asked to stop
        self._known: set[str] = set()
        self._to_delete: set[str] = set()  # as soon as their process is gone
        self._unsaid: dict[str, tuple[Run, records.Terminal]] = {}  # last words that could not be written yet
        self._indexed_at = 0.0
        self._runs_seen = 0  # mtime of the runs folder at the last look

    @property
    def is_idle(self) -> bool:
        return not self.active and not self.queue

    def recover(self) -> None:
        """Take over from an earlier supervisor: adopt runs still at work, end those whose process is gone."""
        disk.keep_reserve(self.store.root)
        for path in self.store.sweep():
            logger.info("removed %s, left half-made by a crash", path.name)
        over = {row.run_id for row in self.index.rows(status=tuple(records.TERMINAL))}
        on_disk = set(self.store.ids())
        for run_id in self.index.ids() - on_disk:
            self.index.remove(run_id)
        self._place_all(on_disk - over)
        self._known |= on_disk

    def _place(self, run: Run) -> None:
        starting = run.starting
        if run.is_over:
            pass
        elif run.status == "queued" and run.queued is None:  # it may have been over: it is not run once more
            self._end(run, records.Interrupted(at=time.time(), reason="Its log was lost, or is damaged."))
        elif run.status == "queued":
            self.queue[run.run_id] = run
        elif starting and is_same_process(starting.pid, starting.pid_started):
            logger.info("adopted %s", run.run_id)
            self.active[run.run_id] = (run, AdoptedJob(starting.pid, starting.pid_started))
        else:
            self._end(
                run, records.Interrupted(at=time.time(), reason="The machine or the supervisor stopped while it ran.")
            )
        self.index.put(row_of(run))

    def tick(self) -> None:
        """One look at everything; returns soon."""
        self._take_commands()
        self._find_new_runs()
        self._escalate_stops()
        self._bury_the_dead()
        self._start_what_fits()
        self._index_live_runs()
        self._say_the_unsaid()

    def _open(self, run_id: str) -> Run | None:
        try:
            return self.store.run(run_id, keep_points=SUMMARY_POINTS)
        except StoreError as error:  # one unreadable run never hides the others
            logger.warning("%s", error)
            return None

    def _find_new_runs(self) -> None:
        try:
            looked, changed = time.time_ns(), self.store.runs.stat().st_mtime_ns
        except FileNotFoundError:
            raise StoreGone("The folder of all runs is gone.") from None
        if changed == self._runs_seen:
            return
        # Within one tick of the file system's clock a later change leaves the same time: trust only an older one.
        self._runs_seen = changed if looked - changed > _MTIME_TICK_NS else 0
        self._place_all(set(self.store.ids()) - self._known)

    def _place_all(self, run_ids: set[str]) -> None:
        """In the order they were asked for."""
        runs = [run for run_id in run_ids if (run := self._open(run_id))]
        for run in sorted(runs, key=lambda r: r.created):
            self._known.add(run.run_id)
            self._place(run)

    def _take_commands(self) -> None:
        for path in sorted(self.store.inbox.glob("[0-9]*.json")):
            try:
                self._obey(_read_command(path))
            except (OSError, ValueError, KeyError, RecursionError, EngineError) as error:
                logger.warning("command %s was not carried out: %s", path.name, error)
            if path.is_dir():
                disk.remove(path)
            path.unlink(missing_ok=True)

    def _obey(self, command: dict[str, str]) -> None:
        """Carry out what an actor may ask for; either way it is written to the audit log."""
        actor, action, run_id = Actor.parse(command["actor"]), command["command"], command.get("run_id", "")
        if action not in {"cancel", "rename", "delete", "rebuild"}:
            raise ValueError(f"unknown command {action!r}")
        try:
            owner = self.store.owner(run_id) if run_id else ""
            access.require(actor, action, settings.load(self.store.root), owner=owner)  # type: ignore[arg-type]
        except EngineError:
            access.audit(self.store.root, actor, action, run_id=run_id, outcome="refused")
            raise
        match action:
            case "cancel":
                self._cancel(run_id, command.get("reason", ""))
            case "rename":
                self._rename(run_id, command["name"])
            case "delete":
                self._delete(run_id)
            case "rebuild":
                self.index.rebuild()
        access.audit(self.store.root, actor, action, run_id=run_id)

    def _rename(self, run_id: str, name: str) -> None:
        self.store.rename(run_id, name)
        if run := self._open(run_id):
            self.index.put(row_of(run))

    def _cancel(self, run_id: str, reason: str) -> None:
        self._find_new_runs()
        if run_id in self.queue:
            self._end(self.queue.pop(run_id), records.Cancelled(at=time.time(), reason=reason))
        elif run_id in self.active and run_id not in self.stopping:
            self.stopping[run_id] = time.monotonic()  # first: who cannot be asked in writing is told by a signal
            path = self.store.folder(run_id) / STOP_FILE
            disk.with_reserve(self.store.root, lambda: write_atomically(path, reason))

    def _delete(self, run_id: str) -> None:
        if run_id in self.active:  # its last word is written, its process about to end; or it is still at work
            run, _ = self.active[run_id]
            _refresh(run)
            if run.is_over:
                self._to_delete.add(run_id)
        elif run_id not in self.queue:
            self.store.delete(run_id)
            self.index.remove(run_id)
            self._known.discard(run_id)

    def _escalate_stops(self) -> None:
        """A run that does not answer is told more firmly: dead within ten seconds of being asked."""
        for run_id, asked in self.stopping.items():
            waited = time.monotonic() - asked
            if waited > _SIGKILL_AFTER_S:
                self.active[run_id][1].signal(signal.SIGKILL)
            elif waited > _SIGTERM_AFTER_S:
                self.active[run_id][1].signal(signal.SIGTERM)

    def _bury_the_dead(self) -> None:
        for run_id, (run, job) in list(self.active.items()):
            if job.is_alive():
                continue
            del self.active[run_id]
            stopped = self.stopping.pop(run_id, None) is not None
            _refresh(run)
            if not run.is_over:
                self._end(run, self._last_word_for(run, job, stopped=stopped))
            if not run.folder.exists():
                self.index.remove(run_id)
                continue
            self.index.put(row_of(run))
            logger.info("%s %s", run_id, run.status)
            if run_id in self._to_delete:
                self._to_delete.discard(run_id)
                self._delete(run_id)

    def _last_word_for(self, run: Run, job: Job, *, stopped: bool) -> records.Terminal:
        if stopped:
            return records.Cancelled(at=time.time(), reason="It did not stop when asked and was ended.")
        return records.Failed(
            at=time.time(), cause=WorkerLost.__name__, message=f"The run was lost: {job.cause_of_death()}.",
            fix="Its points up to then are kept. Run it again; if it repeats, try a smaller model or batch.",
            step=len(run.steps) or None,
        )  # fmt: skip

    def _end(self, run: Run, last: records.Terminal) -> None:
        """Speak for a run that has no process (any more); where its log cannot be written now, later."""
        log = run.folder / "events.jsonl"
        self._unsaid.pop(run.run_id, None)
        try:
            EventLog(log, patience_s=0).close(last, steps=len(run.steps), evaluations=len(run.evaluations))
            run.refresh()
            self.index.put(row_of(run))
        except (OSError, StoreError) as error:  # the other runs go on
            logger.warning("%s could not be ended in its log: %s", run.run_id, error)
            if run.folder.exists():
                full = isinstance(error, StoreFull) or (isinstance(error, OSError) and disk.is_full(error))
                self._unsaid[run.run_id] = run, _lost_to_a_full_disk(last) if full else last

    def _say_the_unsaid(self) -> None:
        for run, last in list(self._unsaid.values()):
            _refresh(run)
            if run.is_over or not run.folder.exists():
                del self._unsaid[run.run_id]
            elif not disk.is_short(self.store.root):
                self._end(run, last)

    def _start_what_fits(self) -> None:
        """First come, first served on each device; a run that waits for one device holds up no other."""
        used = Counter[str]()
        for run, _ in self.active.values():
            used[run.config.device] += _share(run.config)
        full: set[str] = set()
        for run_id, run in list(self.queue.items()):
            device = run.config.device
            room = self.machine.cpu.usable_cores if device == "cpu" else 1
            if device in full or (used[device] and used[device] + _share(run.config) > room):
                full.add(device)
                continue
            del self.queue[run_id]
            self._start(run)
            used[device] += _share(run.config)

    def _start(self, run: Run) -> None:
        try:
            self.active[run.run_id] = (run, self.executor.start(run.folder))
        except (OSError, EOFError) as error:  # no room for another process, or the fork server died under us
            logger.warning("%s could not be started: %r", run.run_id, error)
            self._end(
                run,
                records.Failed(
                    at=time.time(), cause=WorkerLost.__name__, message=f"No process could be started for the run: {error}.",
                    fix="Free some memory, then run it again.",
                ),
            )  # fmt: skip

    def _index_live_runs(self) -> None:
        due = time.monotonic() - self._indexed_at >= _INDEX_LIVE_EVERY_S
        for run, _ in self.active.values():
            before = run.status
            _refresh(run)
            if due or run.status != before:
                self.index.put(row_of(run))
        if due:
            self._indexed_at = time.monotonic()
            self.index.catch_up()
            disk.keep_reserve(self.store.root)

    def abandon(self) -> None:
        """End all runs: what they would still write is lost. They notice by themselves, but may be busy."""
        for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            for _, job in self.active.values():
                job.signal(number)
            until = time.monotonic() + patience_s
            while any(job.is_alive() for _, job in self.active.values()) and time.monotonic() < until:
                time.sleep(0.05)

    def sentinels(self) -> list[int]:
        """File descriptors that become readable when a run's process ends."""
        processes = [getattr(job, "process", None) for _, job in self.active.values()]
        return [p.sentinel for p in processes if p is not None and p.is_alive()]


def _refresh(run: Run) -> None:
    """Read on; a log that cannot be read (any more) stops no other run."""
    try:
        run.refresh()
    except StoreError as error:
        logger.warning("%s", error)


def _lost_to_a_full_disk(last: records.Terminal) -> records.Terminal:
    """A process that could not write its log ends without a last word: the disk is why, not what became of it."""
    if not isinstance(last, records.Failed):
        return last
    message = "The store's disk was full: the run could not be recorded any more."
    return last.model_copy(update={"cause": StoreFull.__name__, "message": message, "fix": disk.FIX_FULL})


def _read_command(path: Path) -> dict[str, str]:
    """What lies in the inbox, whatever it is: a pipe or an endless file would hold up every run."""
    if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > _LONGEST_COMMAND:
        raise ValueError(f"it is no file of at most {_LONGEST_COMMAND:,} bytes")
    command = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(command, dict) or not all(isinstance(value, str) for value in command.values()):
        raise ValueError("it is not an object of texts")
    return command


def _share(config: RunConfig) -> int:
    """How much of its device a run takes: a GPU whole, a CPU by its threads."""
    return config.threads if config.device == "cpu" else 1


def serve(store: Store, *, idle_s: float = IDLE_S) -> bool:
    """Be the store's supervisor until nobody needs one; False when another already is."""
    with _lock_file(store) as lock:
        if not _locked(lock.fileno()):
            return False
        place = _Place(store, lock.fileno())
        identity = "{} {}".format(*own_identity())
        disk.with_reserve(store.root, lambda: write_atomically(store.root / "supervisor.pid", identity))
        executor = LocalExecutor()
        supervisor = Supervisor(store, executor)
        try:
            _supervise(supervisor, executor, place, idle_s)
        except (OSError, StoreError) as error:
            if place.is_ours():
                raise
            logger.warning("the store is not what it was, leaving it: %s", error)
            if not place.has_runs():
                supervisor.abandon()
        supervisor.index.close()
        if place.is_ours():
            (store.root / "supervisor.pid").unlink(missing_ok=True)
        logger.info("leaving")
        return True


class _Place:
    """The store's folder as its supervisor found it. One that is moved, deleted or replaced is not to be written to:
    the file system would take it all, and nobody would ever read it."""

    def __init__(self, store: Store, lock: int) -> None:
        self._store, self._lock = store, lock
        self._runs = store.runs.stat()

    def is_ours(self) -> bool:
        return disk.same_file(self._store.root / "supervisor.lock", self._lock) and self.has_runs()

    def has_runs(self) -> bool:
        try:
            return os.path.samestat(self._store.runs.stat(), self._runs)
        except OSError:
            return False

    def check(self) -> None:
        if not self.is_ours():
            raise StoreGone("Its folder was moved, deleted or replaced.")


def _supervise(supervisor: Supervisor, executor: LocalExecutor, place: _Place, idle_s: float) -> None:
    stop = _on_signals()
    logger.info("supervising")
    if network := disk.network_file_system(supervisor.store.root):
        logger.warning("the store lies on a network file system (%s): use it from one machine only", network)
    supervisor.recover()
    if supervisor.is_idle:
        supervisor.tick()
    if supervisor.is_idle:
        try:
            executor.warm()
        except (OSError, EOFError) as error:
            logger.warning("the fork server could not be warmed: %r", error)
    while True:
        with _doorbell(supervisor.store) as bell:
            _serve_until_idle(supervisor, bell, place, idle_s, stop)
        supervisor.tick()  # who rang while the bell was taken down is heard here
        if supervisor.is_idle or stop:
            break


def _serve_until_idle(supervisor: Supervisor, bell: int, place: _Place, idle_s: float, stop: list[int]) -> None:
    needed_at = time.monotonic()
    while not stop and time.monotonic() - needed_at < idle_s:
        place.check()
        supervisor.tick()
        if not supervisor.is_idle:
            needed_at = time.monotonic()
        ready = wait_for_any([bell, *supervisor.sentinels()], timeout=1.0 if supervisor.is_idle else 0.25)
        if bell in ready:
            os.read(bell, 4096)
            needed_at = time.monotonic()


def _on_signals() -> list[int]:
    """The signals that asked the supervisor to leave, as they come; its runs stay for the next one to adopt."""
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, _: received.append(n))
    return received


def rebuild_index(store: Store) -> str:
    """Make the index anew, here or by the supervisor that is at work; returns who did."""
    with _lock_file(store) as lock:
        if _locked(lock.fileno(), attempts=1):
            index = KeptIndex(store)
            index.rebuild()
            index.close()
            if not index.is_on_disk:
                raise store.trouble() or StoreError("The index cannot be written.", fix="Check its owner and rights.")
            return "here"
    Client(store).rebuild_index()
    until = time.monotonic() + 60
    while any(store.inbox.glob("[0-9]*.json")) and time.monotonic() < until:
        time.sleep(0.1)
    return "by the supervisor"


def _lock_file(store: Store) -> IO[str]:
    try:
        return os.fdopen(os.open(store.root / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise store.trouble() or disk.unwritable(error) from None


def _locked(fd: int, *, attempts: int = 30) -> bool:
    """An OS lock dies with its process: no stale lock file can keep a store shut. One that is leaving is waited for."""
    for _ in range(attempts):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.1)
    return False


@contextlib.contextmanager
def _doorbell(store: Store):  # type: ignore[no-untyped-def]
    path = store.root / "doorbell"
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # open for writing too: never at end of file
    try:
        yield fd
    finally:
        if disk.same_file(path, fd):  # in a store that took the place of ours it is another's
            path.unlink(missing_ok=True)
        os.close(fd)
