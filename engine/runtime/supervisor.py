"""The supervisor, one per store: the queue, the device slots, cancellation and the index.

No request of a client can be lost: a submitted run is a folder on disk before `submit` returns, and every other command
is a file that is renamed into the inbox. The doorbell (a named pipe) only makes the supervisor look sooner.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import stat
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.access import policy, settings
from engine.access.policy import Actor
from engine.common import units
from engine.common.errors import EngineError, StoreError, StoreFull, StoreGone, WorkerLost
from engine.events.base import TERMINAL, is_number
from engine.events.lifecycle import Cancelled, Failed, Interrupted, Terminal
from engine.hardware import history, probe
from engine.runtime.client import LONGEST_COMMAND, UNDO_S
from engine.runtime.executor import AdoptedJob, ClaimedJob, Executor, Job
from engine.runtime.scheduler import by_seed_block, slots_needed
from engine.store.event_log import EventLog
from engine.store.index import MTIME_TICK_NS
from engine.store.index_writer import KeptIndex
from engine.store.labels import clean_notes, clean_tags
from engine.store.listing import row_of
from engine.store.run import SUMMARY_POINTS, Run
from engine.store.stop_requests import SHARED_PROCESS_ENDED, StopRequest, ask_to_stop, stop_request, take_cause
from engine.store.store import Store
from engine.system import disk_space
from engine.system.locks import claim, is_claimed
from engine.system.processes import end_helpers, is_same_process

_SIGTERM_AFTER_S, _SIGKILL_AFTER_S = 3.8, 4.3  # later than the worker's own watchdog
_SEED_BLOCK_COMPLETE_S = 5.0  # its runs are submitted one after another, within milliseconds
_INDEX_LIVE_EVERY_S = 2.0
_INDEX_AT_A_TIME_S, _INDEX_AT_LEAST = 0.1, 20  # per tick

logger = logging.getLogger("isoflop.supervisor")


class Supervisor:
    """Starts queued runs on free devices, stops runs on request, and writes the final event of runs that died."""

    def __init__(self, store: Store, executor: Executor, *, machine: probe.Machine | None = None) -> None:
        self.store, self.executor = store, executor
        self.index = KeptIndex(store)
        self.machine = machine or probe.probe()
        self.active: dict[str, tuple[Run, Job]] = {}
        self.queue: dict[str, Run] = {}
        self.stopping: dict[str, tuple[float, StopRequest]] = {}  # run id -> when and how it was asked to stop
        self._known: set[str] = set()
        self.unindexed: list[str] = []  # runs that are over and wait to be indexed
        self._to_delete: set[str] = set()  # once their process has ended
        self._trash: dict[str, float] = {}  # deleted run that can be restored -> until when (time.monotonic())
        self._unwritten: dict[str, tuple[Run, Terminal]] = {}  # final events that could not be written yet
        self._incomplete: dict[str, float] = {}  # seed block -> when it was first seen without all of its runs
        self._indexed_at = 0.0
        self._runs_seen = 0  # mtime of the runs folder at the last scan, ns
        self.recorder: history.Recorder | None = None  # hardware history of the machine; runs do not need it
        self.may_start: Callable[[], bool] = lambda: True  # called just before runs start

    @property
    def is_idle(self) -> bool:
        """Whether no run is active or queued and no deleted run can be restored."""
        return not self.active and not self.queue and not self._trash

    def recover(self) -> None:
        """Take over from an earlier supervisor: adopt running runs, and end those whose process died."""
        disk_space.keep_reserve(self.store.root)
        for path in self.store.sweep():
            logger.info("removed %s, which a crash left incomplete", path.name)
        over = self.index.ids(status=tuple(TERMINAL))
        on_disk = set(self.store.ids())
        for run_id in self.index.ids() - on_disk:
            self.index.remove(run_id)
        self._register_all(on_disk - over)
        self._known |= on_disk

    def _register(self, run: Run) -> None:
        if run.is_over:
            pass
        elif job := _running_job(run):
            logger.info("adopted %s", run.run_id)
            self._adopt(run, job)
        elif request := stop_request(run.folder):
            self._write_final_event(run, request.final_event())
        elif run.status == "queued" and run.queued is None:  # it may have been over, so it is not run again
            self._write_final_event(run, Interrupted(at=time.time(), reason="Its log was lost or damaged."))
        elif run.status == "queued":
            self.queue[run.run_id] = run
        else:
            _clean_up_after(run)
            self._write_final_event(
                run, Interrupted(at=time.time(), reason="The machine or the supervisor stopped while it ran.")
            )
        self.index.put(row_of(run))

    def _adopt(self, run: Run, job: Job) -> None:
        """Watch a run that has a process, and continue a stop that an earlier supervisor began."""
        self.active[run.run_id] = (run, job)
        if request := stop_request(run.folder):
            self.stopping.setdefault(run.run_id, (time.monotonic(), request))

    def tick(self) -> None:
        """Do all work that is due; returns soon."""
        self._take_commands()
        self._find_new_runs()
        self._escalate_stops()
        self._reap_finished_jobs()
        self._start_queued_runs()
        self._index_live_runs()
        self._retry_final_events()
        self._index_some()
        self._empty_trash()
        if self.recorder:
            self.recorder.look_at((run for run, _ in self.active.values()), time.time())

    def _open(self, run_id: str) -> Run | None:
        try:
            return self.store.run(run_id, keep_points=SUMMARY_POINTS)
        except StoreError as error:  # an unreadable run must not hide the others
            logger.warning("%s", error)
            return None

    def _find_new_runs(self) -> None:
        try:
            looked, changed = time.time_ns(), self.store.runs.stat().st_mtime_ns
        except FileNotFoundError:
            raise StoreGone("The folder of all runs is gone.") from None
        if changed == self._runs_seen:
            return
        # A change within one tick of the file system's clock leaves the same mtime, so trust only an older one.
        self._runs_seen = changed if looked - changed > MTIME_TICK_NS else 0
        self._register_all(set(self.store.ids()) - self._known)

    def _register_all(self, run_ids: set[str]) -> None:
        """Take in runs in the order of their submission. Runs that are over are indexed little by little."""
        ended = {run_id for run_id in run_ids if self.store.has_ended(run_id)}
        self._known |= ended
        self.unindexed += ended
        self._index_some()
        runs = [run for run_id in run_ids - ended if (run := self._open(run_id))]
        for run in sorted(runs, key=lambda r: r.order):
            self._known.add(run.run_id)
            self._register(run)

    def _index_some(self) -> None:
        """Index some of the runs that are over. 10,000 runs take seconds, and a user's command must not wait for all."""
        until = time.monotonic() + _INDEX_AT_A_TIME_S
        for number in range(len(self.unindexed)):
            if number >= _INDEX_AT_LEAST and time.monotonic() > until:
                break
            run_id = self.unindexed.pop()
            if (self.store.runs / run_id).exists() and (run := self._open(run_id)):
                self._register(run)

    def _take_commands(self) -> None:
        for path in sorted(self.store.inbox.glob("[0-9]*.json")):
            try:
                self._execute(_read_command(path))
            except (OSError, ValueError, KeyError, RecursionError, EngineError) as error:
                logger.warning("command %s was not executed: %s", path.name, error)
            disk_space.remove(path)

    def _execute(self, command: dict[str, str]) -> None:
        """Execute a command if its actor is allowed to; both outcomes go to the audit log.

        Raises:
            EngineError: the actor is not allowed to, or the command failed.
            ValueError: there is no such command.
        """
        actor, action, run_id = Actor.parse(command["actor"]), command["command"], command.get("run_id", "")
        if action not in {"cancel", "rename", "label", "delete", "restore", "rebuild", "monitor"}:
            raise ValueError(f"unknown command {action!r}")
        try:
            owner = self.store.owner(run_id) if run_id else ""
            policy.require(actor, action, settings.load(self.store.root), owner=owner)  # type: ignore[arg-type]
        except EngineError:
            policy.audit(self.store.root, actor, action, run_id=run_id, outcome="refused")
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
                interval_s = history.parse_interval(command["interval_s"])
                if self.recorder:
                    self.recorder.set_interval(interval_s)
        policy.audit(self.store.root, actor, action, run_id=run_id)

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
        }
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
        """Interrupt all queued and active runs."""
        for run_id in [*self.queue, *self.active]:
            self._stop(run_id, StopRequest(status="interrupted", reason=reason))

    def _stop(self, run_id: str, request: StopRequest) -> None:
        run = self.queue.pop(run_id, None)
        if run and not self._write_final_event(
            run, request.final_event()
        ):  # a killed supervisor had forked its process
            self._adopt(run, _running_job(run) or ClaimedJob(run.folder))
        if run_id not in self.active or run_id in self.stopping:
            return
        run, _ = self.active[run_id]
        _refresh(run)
        if run.is_over or (run.starting is None and self._write_final_event(run, request.final_event())):
            return  # a process that starts late finds it over
        self.stopping[run_id] = time.monotonic(), request  # first, because a run without a stop file gets a signal
        disk_space.with_reserve(self.store.root, lambda: ask_to_stop(run.folder, request))

    def _delete(self, run_id: str, *, undo: bool = False) -> None:
        if run_id in self.active:  # its process has not ended yet
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
        """Signal runs that did not stop: every run is over within five seconds of the request."""
        for run_id, (asked, _) in self.stopping.items():
            waited = time.monotonic() - asked
            if waited <= _SIGTERM_AFTER_S:
                continue
            run, job = self.active[run_id]
            _refresh(run)
            if not self._has_left_its_seed_block(run):
                job.signal(signal.SIGKILL if waited > _SIGKILL_AFTER_S else signal.SIGTERM)

    def _reap_finished_jobs(self) -> None:
        broken = {run.heat for run_id, (run, _) in self.active.items() if run.heat and run_id in self.stopping}
        for run_id, (run, job) in list(self.active.items()):
            if job.is_alive():
                if self._has_left_its_seed_block(run):  # its process continues with the others
                    self._retire(run)
                continue
            _refresh(run)
            if not run.is_over and (owner := _running_job(run)):
                if isinstance(owner, AdoptedJob):  # another process started it first, and continues
                    self._adopt(run, owner)
                continue  # or a thread of its process is about to end it
            _clean_up_after(run)
            _, request = self.stopping.get(run_id, (0.0, None))
            last = self._final_event_for(run, job, request, shared_with_stopped=run.heat in broken)
            if run.is_over or self._write_final_event(run, last):
                self._retire(run)

    def _has_left_its_seed_block(self, run: Run) -> bool:
        """Whether a run is over but others of its seed block are not."""
        if not run.heat or not run.is_over:
            return False
        return any(other.heat == run.heat and not other.is_over for other, _ in self.active.values())

    def _retire(self, run: Run) -> None:
        """Stop watching a run that is over."""
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

    def _final_event_for(
        self, run: Run, job: Job, request: StopRequest | None, *, shared_with_stopped: bool
    ) -> Terminal:
        if request and request.status == "cancelled":
            return Cancelled(at=time.time(), reason="It did not stop when asked and was ended.")
        if request:
            return request.final_event()
        if shared_with_stopped:
            return Interrupted(at=time.time(), reason=SHARED_PROCESS_ENDED)
        held = run.hardware.last("process_memory_bytes")
        memory = f"; its last process memory was {units.nbytes(held)}" if is_number(held) else ""
        cause, smaller = job.cause_of_death(), "a smaller model or batch"
        if run.config.has_rank_processes:
            cause = take_cause(run.folder) or f"rank 0, which leads the others: {cause}"
            smaller = f"fewer ranks, {smaller}"
        return Failed(
            at=time.time(),
            cause=WorkerLost.__name__,
            message=f"The run was lost: {cause}{memory}.",
            fix=f"Its points so far are kept. Run it again; if it is lost again, try {smaller}.",
            step=len(run.steps) or None,
        )

    def _write_final_event(self, run: Run, last: Terminal) -> bool:
        """Write the final event of a run without a process, later if its log cannot be written now.

        False if a process has claimed the run and will end it itself.
        """
        self._unwritten.pop(run.run_id, None)
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
        except (OSError, StoreError) as error:  # it must not stop the other runs
            logger.warning("the final event of %s could not be written: %s", run.run_id, error)
            if run.folder.exists():
                full = isinstance(error, StoreFull) or (isinstance(error, OSError) and disk_space.is_full(error))
                self._unwritten[run.run_id] = run, _failed_by_full_disk(last) if full else last
        return True

    def _retry_final_events(self) -> None:
        for run, last in list(self._unwritten.values()):
            _refresh(run)
            if run.is_over or not run.folder.exists():
                del self._unwritten[run.run_id]
            elif not disk_space.is_short(self.store.root):
                self._write_final_event(run, last)

    def _start_queued_runs(self) -> None:
        """Start queued runs: first come, first served on each device. A run that waits for one device delays no other.

        A data-parallel run gets all of its devices or none, and reserves free ones while it waits. The runs of a seed
        block start together. The seed blocks of one race on one device run one after another, because they are compared
        and must not slow each other down.
        """
        used, racing = Counter[str](), set[tuple[str | None, str]]()
        for runs in by_seed_block(run for run, _ in self.active.values()).values():
            used += slots_needed(runs)
            racing |= {(runs[0].group, runs[0].config.device)} if runs[0].heat else set()
        full: set[str] = set()
        for seed_block_id, runs in by_seed_block(self.queue.values()).items():
            device, needs = runs[0].config.device, slots_needed(runs)
            if runs[0].heat and ((runs[0].group, device) in racing or not self._is_complete(seed_block_id, runs)):
                continue
            if any(name in full or not self._has_room(name, used[name], share) for name, share in needs.items()):
                full |= set(needs)  # no later run takes the devices that it waits for
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

    def _is_complete(self, seed_block_id: str, runs: Sequence[Run]) -> bool:
        """Whether all runs of a seed block were submitted. After _SEED_BLOCK_COMPLETE_S the others are not waited for."""
        block = runs[0].heat
        if block and len(runs) < block.lanes:
            since = self._incomplete.setdefault(seed_block_id, time.monotonic())
            if time.monotonic() - since < _SEED_BLOCK_COMPLETE_S:
                return False
        self._incomplete.pop(seed_block_id, None)
        return True

    def _start(self, runs: Sequence[Run]) -> None:
        try:
            job = self.executor.start(*(run.folder for run in runs))
        except (OSError, EOFError) as error:  # no memory for another process, or the fork server died
            logger.warning("%s could not be started: %r", runs[0].run_id, error)
            failed = Failed(
                at=time.time(),
                cause=WorkerLost.__name__,
                message=f"No process could be started for the run: {error}.",
                fix="Free some memory, then run it again.",
            )
            for run in runs:
                self._write_final_event(run, failed)
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
            disk_space.keep_reserve(self.store.root)

    def abandon(self) -> None:
        """End the processes of all runs of a store that is gone. They would notice it themselves, but can be busy."""
        for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
            for _, job in self.active.values():
                job.signal(number)
            until = time.monotonic() + patience_s
            while any(job.is_alive() for _, job in self.active.values()) and time.monotonic() < until:
                time.sleep(0.05)

    def sentinels(self) -> list[int]:
        """File descriptors that become readable when a run's process ends. Runs of a seed block share one."""
        return list({fd for _, job in self.active.values() if (fd := job.sentinel()) is not None})


def _refresh(run: Run) -> None:
    """Read new events; an unreadable log must not stop the other runs."""
    try:
        run.refresh()
    except StoreError as error:
        logger.warning("%s", error)


def _failed_by_full_disk(last: Terminal) -> Terminal:
    """The final event of a run that died because its log could not be written: the full disk is the cause."""
    if not isinstance(last, Failed):
        return last
    message = "The store's disk was full, so the run could not be recorded."
    return last.model_copy(update={"cause": StoreFull.__name__, "message": message, "fix": disk_space.FIX_FULL})


def _read_command(path: Path) -> dict[str, str]:
    """Read a command file.

    Raises:
        ValueError: it is not a small JSON file. A pipe or an endless file would block the supervisor.
    """
    if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > LONGEST_COMMAND:
        raise ValueError(f"it is not a file of at most {LONGEST_COMMAND:,} bytes")
    command = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(command, dict) or not all(isinstance(value, str) for value in command.values()):
        raise ValueError("it is not a JSON object of strings")
    return command


def _running_job(run: Run) -> Job | None:
    """The process of a run, also one that another supervisor started; None if there is none.

    The process holds the run's claim. A pid and a start time alone are not enough: after a reboot of the machine another
    process can have both.
    """
    if not is_claimed(run.folder):
        return None
    run.refresh()
    starting = run.starting
    if starting and is_same_process(starting.pid, starting.pid_started):
        return AdoptedJob(starting.pid, starting.pid_started)
    return ClaimedJob(run.folder)  # it has not recorded its pid yet, or is about to end


def _clean_up_after(run: Run) -> None:
    """End the helper processes of a dead run, and remove the drafts that it was writing."""
    if run.starting:
        end_helpers(run.starting.pid, run.run_id)
    for draft in run.folder.glob(".*"):
        with contextlib.suppress(OSError):
            draft.unlink()
