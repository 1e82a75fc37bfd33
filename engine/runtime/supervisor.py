"""One supervisor per store: the queue, the device slots, cancellation and the index. And the client everyone uses.

Nothing a client asks for can be lost: a submitted run is a folder on disk before anyone is told, every other command is
a file renamed into the inbox. Ringing the doorbell (a named pipe) only saves the supervisor's next look some time.
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
from engine.store.stop_requests import StopRequest, ask_to_stop, stop_request, take_cause
from engine.store.store import Store
from engine.system import disk_space
from engine.system.locks import claim, is_claimed
from engine.system.processes import end_helpers, is_same_process

_SIGTERM_AFTER_S, _SIGKILL_AFTER_S = 3.8, 4.3  # the run's own watch has ended it before, where it could
_SEED_BLOCK_COMPLETE_S = 5.0  # its runs are asked for one after another, within milliseconds
_SHARED_PROCESS = "Another run of its race did not stop when asked, and the process they shared was ended."
_INDEX_LIVE_EVERY_S = 2.0
_INDEX_AT_A_TIME_S, _INDEX_AT_LEAST = 0.1, 20

logger = logging.getLogger("isoflop.supervisor")


# --- the supervisor itself -----------------------------------------------------------------------------------------


class Supervisor:
    """Starts queued runs where there is room, ends them when asked, and tells the truth about those that vanish."""

    def __init__(self, store: Store, executor: Executor, *, machine: probe.Machine | None = None) -> None:
        self.store, self.executor = store, executor
        self.index = KeptIndex(store)
        self.machine = machine or probe.probe()
        self.active: dict[str, tuple[Run, Job]] = {}
        self.queue: dict[str, Run] = {}
        self.stopping: dict[str, tuple[float, StopRequest]] = {}  # run id -> when and how it was asked to stop
        self._known: set[str] = set()
        self.unindexed: list[str] = []  # runs that are over and wait to be indexed
        self._to_delete: set[str] = set()  # as soon as their process is gone
        self._trash: dict[str, float] = {}  # deleted runs that can still be had back, and until when
        self._unsaid: dict[str, tuple[Run, Terminal]] = {}  # last words that could not be written yet
        self._incomplete: dict[str, float] = {}  # heat -> when it was first seen without all of its runs
        self._indexed_at = 0.0
        self._runs_seen = 0  # mtime of the runs folder at the last look
        self.recorder: history.Recorder | None = None  # of what the machine does; not needed for runs
        self.may_start: Callable[[], bool] = lambda: True  # asked just before runs would start

    @property
    def is_idle(self) -> bool:
        return not self.active and not self.queue and not self._trash

    def recover(self) -> None:
        """Take over from an earlier supervisor: adopt runs still at work, end those whose process is gone."""
        disk_space.keep_reserve(self.store.root)
        for path in self.store.sweep():
            logger.info("removed %s, left half-made by a crash", path.name)
        over = self.index.ids(status=tuple(TERMINAL))
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
            self._end(run, Interrupted(at=time.time(), reason="Its log was lost, or is damaged."))
        elif run.status == "queued":
            self.queue[run.run_id] = run
        else:
            _clear_up_after(run)
            self._end(run, Interrupted(at=time.time(), reason="The machine or the supervisor stopped while it ran."))
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
        self._reap_finished_jobs()
        self._start_what_fits()
        self._index_live_runs()
        self._retry_final_events()
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
            disk_space.remove(path)

    def _obey(self, command: dict[str, str]) -> None:
        """Carry out what an actor may ask for; either way it is written to the audit log."""
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
        disk_space.with_reserve(self.store.root, lambda: ask_to_stop(run.folder, request))

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
            if not self._has_left_its_seed_block(run):
                job.signal(signal.SIGKILL if waited > _SIGKILL_AFTER_S else signal.SIGTERM)

    def _reap_finished_jobs(self) -> None:
        broken = {run.heat for run_id, (run, _) in self.active.items() if run.heat and run_id in self.stopping}
        for run_id, (run, job) in list(self.active.items()):
            if job.is_alive():
                if self._has_left_its_seed_block(run):  # its process goes on for the others
                    self._let_go(run)
                continue
            _refresh(run)
            if not run.is_over and (owner := _job_at_work(run)):
                if isinstance(owner, AdoptedJob):  # another process began it first, and goes on
                    self._take_on(run, owner)
                continue  # or a thread of this one is still about to end
            _clear_up_after(run)
            _, request = self.stopping.get(run_id, (0.0, None))
            last = self._final_event_for(run, job, request, shared_with_stopped=run.heat in broken)
            if run.is_over or self._end(run, last):
                self._let_go(run)

    def _has_left_its_seed_block(self, run: Run) -> bool:
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

    def _final_event_for(
        self, run: Run, job: Job, request: StopRequest | None, *, shared_with_stopped: bool
    ) -> Terminal:
        if request and request.status == "cancelled":
            return Cancelled(at=time.time(), reason="It did not stop when asked and was ended.")
        if request:
            return request.last_word()
        if shared_with_stopped:
            return Interrupted(at=time.time(), reason=_SHARED_PROCESS)
        held = run.hardware.last("process_memory_bytes")
        memory = f"; it last held {units.nbytes(held)} of memory" if is_number(held) else ""
        if run.config.has_rank_processes:
            known = take_cause(run.folder) or f"rank 0, which leads the others: {job.cause_of_death()}"
            return Failed(
                at=time.time(), cause=WorkerLost.__name__, message=f"The run was lost: {known}{memory}.",
                fix="Its points up to then are kept. Run it again; if it repeats, try fewer ranks, a smaller model or batch.",
                step=len(run.steps) or None,
            )  # fmt: skip
        return Failed(
            at=time.time(), cause=WorkerLost.__name__, message=f"The run was lost: {job.cause_of_death()}{memory}.",
            fix="Its points up to then are kept. Run it again; if it repeats, try a smaller model or batch.",
            step=len(run.steps) or None,
        )  # fmt: skip

    def _end(self, run: Run, last: Terminal) -> bool:
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
                full = isinstance(error, StoreFull) or (isinstance(error, OSError) and disk_space.is_full(error))
                self._unsaid[run.run_id] = run, _lost_to_a_full_disk(last) if full else last
        return True

    def _retry_final_events(self) -> None:
        for run, last in list(self._unsaid.values()):
            _refresh(run)
            if run.is_over or not run.folder.exists():
                del self._unsaid[run.run_id]
            elif not disk_space.is_short(self.store.root):
                self._end(run, last)

    def _start_what_fits(self) -> None:
        """First come, first served on each device; a run that waits for one device holds up no other.

        A data-parallel run gets all of its devices or none, and keeps those that come free for itself while it waits.
        The runs of a heat start together, and the heats of one race on one device one after another: they are compared,
        so they must not be in each other's way.
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

    def _is_complete(self, seed_block_id: str, runs: Sequence[Run]) -> bool:
        """Whether all of a heat were asked for; after a while whoever is there begins without the others."""
        heat = runs[0].heat
        if heat and len(runs) < heat.lanes:
            since = self._incomplete.setdefault(seed_block_id, time.monotonic())
            if time.monotonic() - since < _SEED_BLOCK_COMPLETE_S:
                return False
        self._incomplete.pop(seed_block_id, None)
        return True

    def _start(self, runs: Sequence[Run]) -> None:
        try:
            job = self.executor.start(*(run.folder for run in runs))
        except (OSError, EOFError) as error:  # no room for another process, or the fork server died under us
            logger.warning("%s could not be started: %r", runs[0].run_id, error)
            failed = Failed(
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
            disk_space.keep_reserve(self.store.root)

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


def _lost_to_a_full_disk(last: Terminal) -> Terminal:
    """A process that could not write its log ends without a last word: the disk is why, not what became of it."""
    if not isinstance(last, Failed):
        return last
    message = "The store's disk was full: the run could not be recorded any more."
    return last.model_copy(update={"cause": StoreFull.__name__, "message": message, "fix": disk_space.FIX_FULL})


def _read_command(path: Path) -> dict[str, str]:
    """What lies in the inbox, whatever it is: a pipe or an endless file would hold up every run."""
    if not stat.S_ISREG(path.lstat().st_mode) or path.stat().st_size > LONGEST_COMMAND:
        raise ValueError(f"it is no file of at most {LONGEST_COMMAND:,} bytes")
    command = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(command, dict) or not all(isinstance(value, str) for value in command.values()):
        raise ValueError("it is not an object of texts")
    return command


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
