"""One supervisor per store: the queue, the device slots, cancellation and the index. And the client everyone uses.

Nothing a client asks for can be lost: a submitted run is a folder on disk before anyone is told, every other command is
a file renamed into the inbox. Ringing the doorbell (a named pipe) only saves the supervisor's next look some time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import psutil

from engine import (
    access,
    admission,
    code_version,
    disk,
    hardware,
    limits,
    locks,
    planner,
    recorder,
    records,
    settings,
    sharing,
    units,
)
from engine.access import AccessError, Action, Actor
from engine.code_version import CODE_FILE, PID_FILE, RunningSupervisor
from engine.config import RunConfig
from engine.errors import ConfigError, EngineError, LimitReached, StoreError, StoreFull, StoreGone, WorkerLost
from engine.executor import AdoptedJob, ClaimedJob, Executor, Job, LocalExecutor
from engine.locks import claim, is_claimed
from engine.processes import end_helpers, is_same_process, without_secrets
from engine.store import (
    MTIME_TICK_NS,
    SUMMARY_POINTS,
    EventLog,
    KeptIndex,
    Run,
    StopRequest,
    Store,
    Wanted,
    ask_to_stop,
    clean_notes,
    clean_tags,
    left_word,
    row_of,
    stop_request,
    write_atomically,
)
from engine.text import clean_name

ROOT = Path(__file__).resolve().parent.parent
HAND_OVER = signal.SIGUSR1  # asks a supervisor to leave its runs to the next one, and to stand by if it runs by hand
IDLE_S = 300.0
GRACE_S = 30.0  # a dashboard that is started again within this finds its runs going on
_SIGTERM_AFTER_S, _SIGKILL_AFTER_S = 3.8, 4.3  # the run's own watch has ended it before, where it could
_LEAVING_S = 3.0  # a supervisor that is leaving lets go of its lock within this
_STARTING_S = 5.0  # one that was started rings its bell within this, or another is started
_HAND_OVER_S = 30.0  # a supervisor of other code has left within this, or it will not; usually 2 s, imports included
_HEAT_COMES_TOGETHER_S = 5.0  # its runs are asked for one after another, within milliseconds
_SHARED_PROCESS = "Another run of its race did not stop when asked, and the process they shared was ended."
_INDEX_LIVE_EVERY_S = 2.0
_INDEX_AT_A_TIME_S, _INDEX_AT_LEAST = 0.1, 20
_LONGEST_COMMAND = 65_536
UNDO_S = 10.0
_COUNTING = threading.Lock()  # of runs that wait: all pages of a dashboard are threads of one process

logger = logging.getLogger("isoflop.supervisor")
client_logger = logging.getLogger("isoflop.client")


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
        return self._submit([Wanted(config, name=name, key=key)], group)[0]

    def submit_heats(self, heats: Sequence[Sequence[Wanted]], *, group: str, round: int = 1) -> list[str]:
        """Queue the heats of a race, all of them or none and an error; returns the runs' ids, heat after heat.

        The runs of a heat take turns in one process; those on another device have a process of their own.
        """
        wanted: list[Wanted] = []
        for heat in heats:
            if len(heat) > 1 and (gang := next((run.config for run in heat if run.config.is_gang), None)):
                raise ConfigError(
                    f"parallel.num_ranks={gang.parallel.num_ranks} does not go with a race, whose runs take turns in one "
                    "process.",
                    fix="Run it by itself, or set parallel.num_ranks=1.",
                )
            runs = [run if run.key else run._replace(key=secrets.token_hex(16)) for run in heat]
            heat_id = hashlib.sha256(" ".join([group, *(run.key for run in runs)]).encode()).hexdigest()[:16]
            lanes = Counter(run.config.device for run in runs)
            for run in runs:
                device = run.config.device
                wanted.append(
                    run._replace(heat=records.Heat(id=f"{heat_id} {device}", lanes=lanes[device], round=round))
                )
        return self._submit(wanted, group)

    def _submit(self, wanted: Sequence[Wanted], group: str | None) -> list[str]:
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        for config in dict.fromkeys(w.config for w in wanted):
            access.require_data(self.actor, config, rules)
            limits.check_before(config, planner.check(config), rules.limits)
            if config.task == "infer" and config.infer.run:
                admission.check_run(config, self.store.run(config.infer.run, keep_points=1))
        self._replace_other_code()
        wanted = [w if w.key else w._replace(key=secrets.token_hex(16)) for w in wanted]
        made: list[str] = []
        with _COUNTING:  # or two who come at once would both find the last free place
            new = {run_id for w in wanted if not (self.store.runs / (run_id := self.store.id_of(w.key))).exists()}
            for row in self.store.rows(group=group) if group else ():  # who adds to a race changes its verdict
                if row.owner != self.actor.id:
                    self._require("cancel", rules, row.run_id, row.owner)
                if row.summary.imported:
                    raise ConfigError("This race was run elsewhere: here it cannot go on.", fix="Race its lanes anew.")
            self._require_room_in_queue(rules, len(new))
            try:
                for config, name, key, heat in wanted:
                    made.append(
                        self.store.create(config, name=name, group=group, heat=heat, owner=self.actor.id, key=key)
                    )
            except EngineError:
                for run_id in new.intersection(made):
                    self._take_back(run_id)
                raise
        for run_id in made:
            access.audit(self.store.root, self.actor, "submit", run_id=run_id)
        self.wake()
        return made

    def import_files(self, paths: Sequence[Path], **choices: Any) -> sharing.Imports:
        """Runs out of files from elsewhere, in the actor's name (`sharing.import_files`)."""
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        found = sharing.import_files(self.store, paths, owner=self.actor.id, **choices)
        for run_id in found.run_ids:
            access.audit(self.store.root, self.actor, "import", run_id=run_id)
        with contextlib.suppress(OSError):  # a supervisor that is there indexes them now, another one when it starts
            _ring(self.store)
        return found

    def _take_back(self, run_id: str) -> None:
        """Delete a run that was only just asked for; one that has begun meanwhile is cancelled."""
        with claim(self.store.folder(run_id)) as mine:
            if mine:
                self.store.delete(run_id)
                return
        self.cancel(run_id)

    def _require(self, action: Action, rules: settings.Settings, run_id: str = "", owner: str = "") -> None:
        try:
            access.require(self.actor, action, rules, owner=owner)
        except AccessError:
            access.audit(self.store.root, self.actor, action, run_id=run_id, outcome="refused")
            raise

    def _require_room_in_queue(self, rules: settings.Settings, new: int) -> None:
        waiting = [row.run_id for row in self.store.rows(status=("queued",))]
        if new and len(waiting) + new > rules.limits.queued:
            raise LimitReached(
                f"{len(waiting)} runs are waiting and {new} would come: limits.queued allows {rules.limits.queued}.",
                fix="Wait, stop some, or ask for fewer.",
            )
        if access.role_of(self.actor, rules) == "admin" or len(waiting) + new <= rules.limits.queued_per_user:
            return
        own = sum(self.store.owner(run_id) == self.actor.id for run_id in waiting)
        if new and own + new > rules.limits.queued_per_user:
            raise LimitReached(
                f"{own} runs of {self.actor.in_words} are waiting and {new} would come: limits.queued_per_user allows "
                f"{rules.limits.queued_per_user}.",
                fix="Wait, stop some, or ask for fewer.",
            )

    def cancel(self, run_id: str, *, reason: str = "cancelled by the user") -> None:
        """Ask a run to stop. Harmless for one that is over."""
        self._ask("cancel", run_id, reason=reason)

    def rename(self, run_id: str, name: str) -> None:
        """Call a run something else."""
        self._ask("rename", run_id, name=clean_name(name))

    def label(
        self, run_id: str, *, tags: Iterable[str] | None = None, notes: str | None = None, pinned: bool | None = None
    ) -> None:
        """Say something of a run, or pin it; what is None stays as it is."""
        changes: dict[str, Any] = {}
        if tags is not None:
            changes["tags"] = clean_tags(tags)
        if notes is not None:
            changes["notes"] = clean_notes(notes)
        if pinned is not None:
            changes["pinned"] = pinned
        self._ask("label", run_id, labels=json.dumps(changes))

    def restore(self, run_id: str) -> None:
        """Have a run back that was deleted with `undo` a moment ago."""
        owner = self.store.owner(run_id)
        self._require("restore", settings.load(self.store.root), run_id, owner)
        self._send({"command": "restore", "actor": self.actor.id, "run_id": run_id})

    def delete(self, run_id: str, *, undo: bool = False) -> None:
        """Delete a run that is over, or one that cannot even be read; with `undo` it can be had back for UNDO_S."""
        self.store.folder(run_id)
        try:
            over = self.store.run(run_id).is_over
        except StoreError:
            over = True
        if not over:
            raise StoreError(f"Run {run_id} is still at work.", fix="Stop it first.")
        self._ask("delete", run_id, **({"undo": "yes"} if undo else {}))

    def rebuild_index(self) -> None:
        self._ask("rebuild")

    def set_monitor_interval(self, interval_s: float) -> None:
        """How often the supervisor reads the machine's hardware; for everybody who looks."""
        self._ask("monitor", interval_s=str(recorder.parse_interval(interval_s)))

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
        """Make sure that a supervisor is there and looks now, and let runs go on for as long as this process lives.

        A supervisor of other code is asked to hand over, once: where two versions use one store at the same time, they
        would otherwise replace each other's supervisor for ever. `submit` asks each time.
        """
        try:
            locks.announce(self.store.root)
            other, digest = self._other_code()
            if other and _may_ask(self.store, other, digest):
                _ask_for_hand_over(self.store, other, digest)
            elif not _ring(self.store):
                _start_supervisor(self.store)
        except OSError as error:
            raise self.store.trouble() or disk.unwritable(error) from None

    def _other_code(self) -> tuple[RunningSupervisor | None, str]:
        digest = code_version.on_disk()
        return code_version.supervisor_of_other_code(self.store.root, digest), digest

    def _replace_other_code(self) -> None:
        """Wait until a supervisor of other code has handed over: it would start with that code what is submitted now.

        Raises StoreError when it is still there after `_HAND_OVER_S`.
        """
        until = time.monotonic() + _HAND_OVER_S
        try:
            while True:
                other, digest = self._other_code()
                if other is None:
                    return
                if time.monotonic() > until:
                    raise StoreError(
                        f"The supervisor of this store ({other.in_words()}) runs other code than this Isoflop and does not "
                        "hand over.",
                        fix=f"End process {other.pid}, then try again. supervisor.log in the store's folder may say why.",
                    )
                locks.announce(self.store.root)
                _ask_for_hand_over(self.store, other, digest)
                time.sleep(0.05)
        except OSError as error:
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
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # a store that was copied
            return False
        with contextlib.suppress(BlockingIOError):  # full: it will look anyway
            os.write(fd, b"!")
    except BrokenPipeError:  # it took the bell down this very moment
        return False
    finally:
        os.close(fd)
    return True


class _Asked(NamedTuple):
    """A supervisor that this process asked to hand over."""

    supervisor: RunningSupervisor
    digest: str  # of the code that should take its place
    at: float  # time.monotonic()


_asked: dict[Path, _Asked] = {}


def _may_ask(store: Store, other: RunningSupervisor, digest: str) -> bool:
    """Whether `other` is the first supervisor of other code since the files changed, and has not refused."""
    asked = _asked.get(store.root)
    if asked is None or asked.digest != digest:
        return True
    return asked.supervisor == other and time.monotonic() - asked.at < _HAND_OVER_S


def _ask_for_hand_over(store: Store, other: RunningSupervisor, digest: str) -> None:
    """Start a supervisor of the code on disk, which asks `other` to leave as soon as it has loaded that code.

    So code that cannot be loaded costs the running supervisor nothing. The first time it is logged as a warning, which
    a process without a log, as the command line, shows on stderr.
    """
    asked = _asked.get(store.root)
    if asked is None or (asked.supervisor, asked.digest) != (other, digest):
        _asked[store.root] = _Asked(other, digest, time.monotonic())
        client_logger.warning(
            "The supervisor of this store (%s) runs other code than this Isoflop: it hands over to a new one, and its runs go on.",
            other.in_words(),
        )
    _start_successor(store)


_started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}


def _start_supervisor(store: Store) -> None:
    """In a session of its own: it outlives the page and the terminal that needed it first, and ends by itself.

    One that was just started is waited for: 50 runs submitted at once are not 50 supervisors.
    """
    process, when = _started.get(store.root, (None, 0.0))
    if process and process.poll() is None and time.monotonic() - when < _STARTING_S:
        return
    fd = os.open(store.root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "supervise", "--on-demand", "--store", str(store.root)],
            cwd=ROOT, env=without_secrets(os.environ) | {"PYTHONPATH": path}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        )  # fmt: skip
    finally:
        os.close(fd)
    _started[store.root] = process, time.monotonic()


def _start_successor(store: Store) -> bool:
    """Start a supervisor beside one of other code. False when one was started a moment ago, even if it has ended: code
    that cannot be loaded is not tried in a loop."""
    _, when = _started.get(store.root, (None, -math.inf))
    if time.monotonic() - when < _STARTING_S:
        return False
    _start_supervisor(store)
    return True


def rebuild_index(store: Store) -> str:
    """Make the index anew, here or by the supervisor that is at work; returns who did."""
    with _lock_file(store) as lock:
        if locks.lock(lock.fileno()):
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


# --- the supervisor itself -----------------------------------------------------------------------------------------


class Supervisor:
    """Starts queued runs where there is room, ends them when asked, and tells the truth about those that vanish."""

    def __init__(self, store: Store, executor: Executor, *, machine: hardware.Machine | None = None) -> None:
        self.store, self.executor = store, executor
        self.index = KeptIndex(store)
        self.machine = machine or hardware.probe()
        self.active: dict[str, tuple[Run, Job]] = {}
        self.queue: dict[str, Run] = {}
        self.stopping: dict[str, tuple[float, StopRequest]] = {}  # run id -> when and how it was asked to stop
        self._known: set[str] = set()
        self.unindexed: list[str] = []  # runs that are over and wait to be indexed
        self._to_delete: set[str] = set()  # as soon as their process is gone
        self._trash: dict[str, float] = {}  # deleted runs that can still be had back, and until when
        self._unsaid: dict[str, tuple[Run, records.Terminal]] = {}  # last words that could not be written yet
        self._incomplete: dict[str, float] = {}  # heat -> when it was first seen without all of its runs
        self._indexed_at = 0.0
        self._runs_seen = 0  # mtime of the runs folder at the last look
        self.recorder: recorder.Recorder | None = None  # of what the machine does; not needed for runs
        self.may_start: Callable[[], bool] = lambda: True  # asked just before runs would start

    @property
    def is_idle(self) -> bool:
        return not self.active and not self.queue and not self._trash

    def recover(self) -> None:
        """Take over from an earlier supervisor: adopt runs still at work, end those whose process is gone."""
        disk.keep_reserve(self.store.root)
        for path in self.store.sweep():
            logger.info("removed %s, left half-made by a crash", path.name)
        over = self.index.ids(status=tuple(records.TERMINAL))
        on_disk = set(self.store.ids())
        for run_id in self.index.ids() - on_disk:
            self.index.remove(run_id)
        self._place_all(on_disk - over)
        self._known |= on_disk

    def _place(self, run: Run) -> None:
        if run.is_over:
            pass
        elif job := _job_at_work(run):
            logger.info("adopted %s", run.run_id)
            self._take_on(run, job)
        elif request := stop_request(run.folder):
            self._end(run, request.last_word())
        elif run.status == "queued" and run.queued is None:  # it may have been over: it is not run once more
            self._end(run, records.Interrupted(at=time.time(), reason="Its log was lost, or is damaged."))
        elif run.status == "queued":
            self.queue[run.run_id] = run
        else:
            _clear_up_after(run)
            self._end(
                run, records.Interrupted(at=time.time(), reason="The machine or the supervisor stopped while it ran.")
            )
        self.index.put(row_of(run))

    def _take_on(self, run: Run, job: Job) -> None:
        """Look after a run whose process is there, and go on asking it to stop where an earlier supervisor did."""
        self.active[run.run_id] = (run, job)
        if request := stop_request(run.folder):
            self.stopping.setdefault(run.run_id, (time.monotonic(), request))

    def tick(self) -> None:
        """One look at everything; returns soon."""
        self._take_commands()
        self._find_new_runs()
        self._escalate_stops()
        self._bury_the_dead()
        self._start_what_fits()
        self._index_live_runs()
        self._say_the_unsaid()
        self._index_some()
        self._empty_trash()
        if self.recorder:
            self.recorder.look_at((run for run, _ in self.active.values()), time.time())

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
        self._runs_seen = changed if looked - changed > MTIME_TICK_NS else 0
        self._place_all(set(self.store.ids()) - self._known)

    def _place_all(self, run_ids: set[str]) -> None:
        """In the order they were asked for; runs that are over only have to be indexed, and nobody waits for that."""
        ended = {run_id for run_id in run_ids if self.store.has_ended(run_id)}
        self._known |= ended
        self.unindexed += ended
        self._index_some()
        runs = [run for run_id in run_ids - ended if (run := self._open(run_id))]
        for run in sorted(runs, key=lambda r: r.order):
            self._known.add(run.run_id)
            self._place(run)

    def _index_some(self) -> None:
        """A part of what is over and not yet indexed: 10,000 runs take seconds, a click in between waits for one part."""
        until = time.monotonic() + _INDEX_AT_A_TIME_S
        for number in range(len(self.unindexed)):
            if number >= _INDEX_AT_LEAST and time.monotonic() > until:
                break
            run_id = self.unindexed.pop()
            if (self.store.runs / run_id).exists() and (run := self._open(run_id)):
                self._place(run)

    def _take_commands(self) -> None:
        for path in sorted(self.store.inbox.glob("[0-9]*.json")):
            try:
                self._obey(_read_command(path))
            except (OSError, ValueError, KeyError, RecursionError, EngineError) as error:
                logger.warning("command %s was not carried out: %s", path.name, error)
            disk.remove(path)

    def _obey(self, command: dict[str, str]) -> None:
        """Carry out what an actor may ask for; either way it is written to the audit log."""
        actor, action, run_id = Actor.parse(command["actor"]), command["command"], command.get("run_id", "")
        if action not in {"cancel", "rename", "label", "delete", "restore", "rebuild", "monitor"}:
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
            case "label":
                self._label(run_id, json.loads(command["labels"]))
            case "delete":
                self._delete(run_id, undo=bool(command.get("undo")))
            case "restore":
                self._restore(run_id)
            case "rebuild":
                self.index.rebuild()
            case "monitor":
                interval_s = recorder.parse_interval(command["interval_s"])
                if self.recorder:
                    self.recorder.set_interval(interval_s)
        access.audit(self.store.root, actor, action, run_id=run_id)

    def _rename(self, run_id: str, name: str) -> None:
        self.store.rename(run_id, name)
        if run := self._open(run_id):
            self.index.put(row_of(run))

    def _label(self, run_id: str, changes: Any) -> None:
        if not isinstance(changes, dict) or not set(changes) <= {"tags", "notes", "pinned"}:
            raise ValueError("unknown labels")
        checked = changes | {
            name: clean(changes[name])
            for name, clean in (("tags", clean_tags), ("notes", clean_notes))
            if name in changes
        }  # fmt: skip
        self.store.label(run_id, checked)
        if run := self._open(run_id):
            self.index.put(row_of(run))

    def _restore(self, run_id: str) -> None:
        self._trash.pop(run_id, None)
        self.store.restore(run_id)
        self._known.add(run_id)
        if run := self._open(run_id):
            self.index.put(row_of(run))

    def _empty_trash(self) -> None:
        for run_id, due in list(self._trash.items()):
            if time.monotonic() >= due:
                del self._trash[run_id]
                self.store.forget(run_id)

    def _cancel(self, run_id: str, reason: str) -> None:
        self._find_new_runs()
        self._stop(run_id, StopRequest(status="cancelled", reason=reason))

    def interrupt_all(self, reason: str) -> None:
        """Stop every run there is: nobody needs them any more."""
        for run_id in [*self.queue, *self.active]:
            self._stop(run_id, StopRequest(status="interrupted", reason=reason))

    def _stop(self, run_id: str, request: StopRequest) -> None:
        run = self.queue.pop(run_id, None)
        if run and not self._end(run, request.last_word()):  # forked by a supervisor that was killed
            self._take_on(run, _job_at_work(run) or ClaimedJob(run.folder))
        if run_id not in self.active or run_id in self.stopping:
            return
        run, _ = self.active[run_id]
        _refresh(run)
        if run.is_over or (run.starting is None and self._end(run, request.last_word())):
            return  # its process, should one come, finds it over
        self.stopping[run_id] = time.monotonic(), request  # first: who cannot be asked in writing is told by a signal
        disk.with_reserve(self.store.root, lambda: ask_to_stop(run.folder, request))

    def _delete(self, run_id: str, *, undo: bool = False) -> None:
        if run_id in self.active:  # its last word is written, its process about to end; or it is still at work
            run, _ = self.active[run_id]
            _refresh(run)
            if run.is_over:
                self._to_delete.add(run_id)
        elif run_id not in self.queue:
            self.store.hide(run_id)
            self.index.remove(run_id)
            self._known.discard(run_id)
            if undo:
                self._trash[run_id] = time.monotonic() + UNDO_S
            else:
                self.store.forget(run_id)

    def _escalate_stops(self) -> None:
        """A run that does not answer is told more firmly: it is over within five seconds of being asked."""
        for run_id, (asked, _) in self.stopping.items():
            waited = time.monotonic() - asked
            if waited <= _SIGTERM_AFTER_S:
                continue
            run, job = self.active[run_id]
            _refresh(run)
            if not self._has_left_its_heat(run):
                job.signal(signal.SIGKILL if waited > _SIGKILL_AFTER_S else signal.SIGTERM)

    def _bury_the_dead(self) -> None:
        broken = {run.heat for run_id, (run, _) in self.active.items() if run.heat and run_id in self.stopping}
        for run_id, (run, job) in list(self.active.items()):
            if job.is_alive():
                if self._has_left_its_heat(run):  # its process goes on for the others
                    self._let_go(run)
                continue
            _refresh(run)
            if not run.is_over and (owner := _job_at_work(run)):
                if isinstance(owner, AdoptedJob):  # another process began it first, and goes on
                    self._take_on(run, owner)
                continue  # or a thread of this one is still about to end
            _clear_up_after(run)
            _, request = self.stopping.get(run_id, (0.0, None))
            last = self._last_word_for(run, job, request, shared_with_stopped=run.heat in broken)
            if run.is_over or self._end(run, last):
                self._let_go(run)

    def _has_left_its_heat(self, run: Run) -> bool:
        """Whether a run is over while others it takes turns with are not."""
        if not run.heat or not run.is_over:
            return False
        return any(other.heat == run.heat and not other.is_over for other, _ in self.active.values())

    def _let_go(self, run: Run) -> None:
        """Look no more after a run that is over."""
        del self.active[run.run_id]
        self.stopping.pop(run.run_id, None)
        if not run.folder.exists():
            self.index.remove(run.run_id)
            return
        self.index.put(row_of(run))
        logger.info("%s %s", run.run_id, run.status)
        if run.run_id in self._to_delete:
            self._to_delete.discard(run.run_id)
            self._delete(run.run_id)

    def _last_word_for(
        self, run: Run, job: Job, request: StopRequest | None, *, shared_with_stopped: bool
    ) -> records.Terminal:
        if request and request.status == "cancelled":
            return records.Cancelled(at=time.time(), reason="It did not stop when asked and was ended.")
        if request:
            return request.last_word()
        if shared_with_stopped:
            return records.Interrupted(at=time.time(), reason=_SHARED_PROCESS)
        held = run.hardware.last("process_memory_bytes")
        memory = f"; it last held {units.nbytes(held)} of memory" if records.is_number(held) else ""
        if run.config.is_gang:
            known = left_word(run.folder) or f"rank 0, which leads the others: {job.cause_of_death()}"
            return records.Failed(
                at=time.time(), cause=WorkerLost.__name__, message=f"The run was lost: {known}{memory}.",
                fix="Its points up to then are kept. Run it again; if it repeats, try fewer ranks, a smaller model or batch.",
                step=len(run.steps) or None,
            )  # fmt: skip
        return records.Failed(
            at=time.time(), cause=WorkerLost.__name__, message=f"The run was lost: {job.cause_of_death()}{memory}.",
            fix="Its points up to then are kept. Run it again; if it repeats, try a smaller model or batch.",
            step=len(run.steps) or None,
        )  # fmt: skip

    def _end(self, run: Run, last: records.Terminal) -> bool:
        """Speak for a run that has no process (any more), where its log cannot be written now, later; False where one
        is about to speak for itself."""
        self._unsaid.pop(run.run_id, None)
        try:
            with claim(run.folder) as mine:
                if not mine:
                    return False
                _refresh(run)
                if not run.is_over:
                    log = EventLog(run.folder / "events.jsonl", patience_s=0)
                    log.close(last, steps=len(run.steps), evaluations=len(run.evaluations))
            run.refresh()
            self.index.put(row_of(run))
        except (OSError, StoreError) as error:  # the other runs go on
            logger.warning("%s could not be ended in its log: %s", run.run_id, error)
            if run.folder.exists():
                full = isinstance(error, StoreFull) or (isinstance(error, OSError) and disk.is_full(error))
                self._unsaid[run.run_id] = run, _lost_to_a_full_disk(last) if full else last
        return True

    def _say_the_unsaid(self) -> None:
        for run, last in list(self._unsaid.values()):
            _refresh(run)
            if run.is_over or not run.folder.exists():
                del self._unsaid[run.run_id]
            elif not disk.is_short(self.store.root):
                self._end(run, last)

    def _start_what_fits(self) -> None:
        """First come, first served on each device; a run that waits for one device holds up no other.

        A data-parallel run gets all of its devices or none, and keeps those that come free for itself while it waits.
        The runs of a heat start together, and the heats of one race on one device one after another: they are compared,
        so they must not be in each other's way.
        """
        used, racing = Counter[str](), set[tuple[str | None, str]]()
        for runs in _by_heat(run for run, _ in self.active.values()).values():
            used += _needs(runs)
            racing |= {(runs[0].group, runs[0].config.device)} if runs[0].heat else set()
        full: set[str] = set()
        for heat_id, runs in _by_heat(self.queue.values()).items():
            device, needs = runs[0].config.device, _needs(runs)
            if runs[0].heat and ((runs[0].group, device) in racing or not self._is_complete(heat_id, runs)):
                continue
            if any(name in full or not self._has_room(name, used[name], share) for name, share in needs.items()):
                full |= set(needs)  # nobody who came later takes what it waits for
                continue
            if not self.may_start():
                return
            for run in runs:
                del self.queue[run.run_id]
            self._start(runs)
            used += needs
            racing |= {(runs[0].group, device)} if runs[0].heat else set()

    def _has_room(self, device: str, used: int, share: int) -> bool:
        room = self.machine.cpu.usable_cores if device == "cpu" else 1
        return not used or used + share <= room

    def _is_complete(self, heat_id: str, runs: Sequence[Run]) -> bool:
        """Whether all of a heat were asked for; after a while whoever is there begins without the others."""
        heat = runs[0].heat
        if heat and len(runs) < heat.lanes:
            since = self._incomplete.setdefault(heat_id, time.monotonic())
            if time.monotonic() - since < _HEAT_COMES_TOGETHER_S:
                return False
        self._incomplete.pop(heat_id, None)
        return True

    def _start(self, runs: Sequence[Run]) -> None:
        try:
            job = self.executor.start(*(run.folder for run in runs))
        except (OSError, EOFError) as error:  # no room for another process, or the fork server died under us
            logger.warning("%s could not be started: %r", runs[0].run_id, error)
            failed = records.Failed(
                at=time.time(), cause=WorkerLost.__name__, message=f"No process could be started for the run: {error}.",
                fix="Free some memory, then run it again.",
            )  # fmt: skip
            for run in runs:
                self._end(run, failed)
            return
        for run in runs:
            self.active[run.run_id] = (run, job)

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
        return [fd for _, job in self.active.values() if (fd := job.sentinel()) is not None]


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


def _needs(runs: Sequence[Run]) -> Counter[str]:
    """How much of which devices runs of one process take: a GPU whole, the CPU by threads, of each rank."""
    configs = [run.config for run in runs]
    if configs[0].device == "cpu":
        return Counter({"cpu": max(config.threads * config.num_processes for config in configs)})
    return Counter(dict.fromkeys((device for config in configs for device in config.devices), 1))


def _by_heat(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that start together, in their order; a run of no heat by itself."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.heat.id if run.heat else run.run_id, []).append(run)
    return together


def _job_at_work(run: Run) -> Job | None:
    """The process that runs a run, whoever started it. It holds the run's claim: after a restart of the machine another
    process may have its pid, and have begun as long after the start."""
    if not is_claimed(run.folder):
        return None
    run.refresh()
    starting = run.starting
    if starting and is_same_process(starting.pid, starting.pid_started):
        return AdoptedJob(starting.pid, starting.pid_started)
    return ClaimedJob(run.folder)  # not yet, or hardly any more


def _clear_up_after(run: Run) -> None:
    """End and remove what a run's process that is gone had started: its helpers, and files it was writing."""
    if run.starting:
        end_helpers(run.starting.pid, run.run_id)
    for draft in run.folder.glob(".*"):
        with contextlib.suppress(OSError):
            draft.unlink()


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
    with _lock_file(store) as lock:
        if not (_stood_by(store, lock.fileno()) if standby else locks.lock(lock.fileno(), patience_s=_LEAVING_S)):
            return "refused"
        place = _Place(store, lock.fileno())
        stop = _on_signals()  # before anybody can read whom to signal
        disk.with_reserve(store.root, lambda: _write_identity(store.root))
        executor = LocalExecutor()
        supervisor = Supervisor(store, executor)
        supervisor.recorder = recorder.Recorder(store.root)
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
        _ring(store)  # it looks now
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


def _stood_by(store: Store, lock: int) -> bool:
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
        return disk.same_file(self._store.root / "supervisor.lock", self._lock) and self.has_runs()

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
    if network := disk.network_file_system(supervisor.store.root):
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
        if disk.same_file(path, fd):  # in a store that took the place of ours it is another's
            path.unlink(missing_ok=True)
        os.close(fd)
