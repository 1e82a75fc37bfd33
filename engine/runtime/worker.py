"""The process of a run, or of the runs of a seed block: drives the tasks, samples the hardware and writes the event logs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from engine.access import settings
from engine.common.errors import ConfigError, EngineError, OutOfMemory, StoreError
from engine.events.catalog import AnyEvent
from engine.events.inference import Latency
from engine.events.lifecycle import Failed, Finished, Started, Starting, Stopping, Terminal
from engine.events.machine import HardwareSample
from engine.events.studies import Trial
from engine.events.training import Memory, Ranks, Steps
from engine.hardware import contention, energy_counters, probe, process_usage, sampler
from engine.measurement import calibration
from engine.planning import limits
from engine.pytorch.distributed.data_parallel import follow
from engine.pytorch.distributed.processes import RankProcesses
from engine.pytorch.tasks.registry import GENERATORS
from engine.store.event_log import EventLog
from engine.store.run import SUMMARY_POINTS, Run, read_config
from engine.store.stop_requests import SHARED_PROCESS_ENDED, StopRequest, stop_request
from engine.store.store import Store
from engine.system import disk_space
from engine.system.locks import claim
from engine.system.processes import own_identity

EndProcess = Callable[[], None]

_ORPHAN_GRACE_S = 5.0  # without a supervisor
_DETAIL_CHARS = 100_000  # of a traceback: that of a compiler can be long
_ANSWER_S = 2.5  # a task that does not react to a stop request within this is killed
_CLAIM_S = 0.5  # a supervisor that checks the claim of a run holds it for microseconds
_PEAK_OF_RANKS = (
    "highest sum of the ranks' resident memory, read four times a second; pages that they share, mostly PyTorch's, count "
    "in each"
)
_ORPHANED = StopRequest(status="interrupted", reason="The supervisor of this store ended while the run was running.")
_KILLED_WITH_ANOTHER = StopRequest(status="interrupted", reason=SHARED_PROCESS_ENDED)


class Stopped(Exception):
    """The run was asked to stop."""


def run(
    *folders: Path,
    supervisor_is_alive: Callable[[], bool] = lambda: True,
    end_process: Callable[[], None] | None = None,
) -> None:
    """Run the task of each `folder`/config.json to its end; each log gets a final event.

    Several folders are the runs of one seed block: they take turns, and the end of one does not end the others.

    A run starts only once: a folder is skipped if another process has started the run or the run is over. This happens
    when a supervisor was killed after it had requested the process, and the next supervisor requested another one.

    Args:
        folders: of the runs.
        supervisor_is_alive: without a supervisor for some seconds, the runs are interrupted.
        end_process: kills this process and its helpers, for a task that does not react to a stop request.

    Raises:
        StoreError: a log could not be written, after all runs have ended.
        EngineError: a run could not be read, after all others have ended.
    """
    slots: list[RunSlot] = []
    errors: list[Exception] = []  # the error of one run must not end the others
    with contextlib.ExitStack() as claims:
        for folder in folders:
            try:
                if (
                    claims.enter_context(claim(folder, patience_s=_CLAIM_S))
                    and Run(folder, keep_points=SUMMARY_POINTS).status == "queued"
                ):
                    slots.append(RunSlot(folder, shared=len(folders) > 1))
            except (OSError, EngineError) as error:
                errors.append(error)
        for slot in slots:
            slot.start_ranks()
        if slots:
            with _Watchdog(slots, supervisor_is_alive, end_process) as watchdog:
                errors += _take_turns(slots, watchdog)
    if errors:
        raise errors[0]


def _take_turns(slots: Sequence[RunSlot], watchdog: _Watchdog) -> list[StoreError]:
    """Drive all runs to their ends, one event at a time; returns the errors of writing their final events.

    The run with the least training time is next, so that a machine that gets hot or busy slows all runs alike.
    """
    running, errors = list(slots), []
    while running:
        slot = min(running, key=lambda slot: (slot.stop_requested is None, slot.trained_s, slot.turns))
        ended: Terminal | None = None
        try:
            if not slot.take_turn(watchdog):
                ended = Finished(at=time.time())
        except BaseException as error:  # noqa: BLE001 - last resort: any exception becomes the run's `Failed` event
            ended = _failed(error, slot.folder, slot.log.steps)
        if ended is None:
            continue
        running.remove(slot)
        if not running:
            watchdog.stop()
        try:
            slot.end(ended)
        except StoreError as error:  # the others can still be writable
            errors.append(error)
    return errors


class RunSlot:
    """One run of this process: its task and its log.

    `shared` says that other runs take turns with it in this process.
    """

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.folder, self.shared = folder, shared
        self.config = read_config(folder)
        self.log = EventLog(folder / "events.jsonl")
        self.energy = energy_counters.EnergyMeter(self.config.devices)
        self.ranks: RankProcesses | None = None
        self.peak_of_ranks = 0
        self._setup_error: Exception | None = None  # an error of `start_ranks`, raised in the first turn
        self.trained_s, self.turns = 0.0, 0
        self._past_turns_s: float = 0.0
        self._turn_began: float | None = None
        self.started_at: float | None = None
        self.stop_requested: StopRequest | None = None
        self.stop_requested_at = math.inf
        self.is_over = False
        self._writing = threading.Lock()
        self._final_event = threading.Lock()  # acquired once, by the thread that writes the final event; never released
        self._events: Generator[AnyEvent, None, None] | None = None
        self._guard: limits.Guard | None = None
        pid, pid_started = own_identity()
        self.log.append(Starting(at=time.time(), pid=pid, pid_started=pid_started))
        self.contention = contention.Contention(self.config.device, self.config.threads)

    def start_ranks(self) -> None:
        """Fork the other ranks of a data-parallel run. Call it before this process starts a second thread."""
        if not self.config.has_rank_processes:
            return
        if self.shared:
            self._setup_error = ConfigError(
                f"parallel.num_ranks={self.config.parallel.num_ranks} cannot be used in a race, whose runs take turns.",
                fix="Run it by itself, or set parallel.num_ranks=1.",
            )
            return
        try:
            self.ranks = RankProcesses(self.config, self.folder, follow)
        except Exception as error:  # noqa: BLE001 - raised in the first turn, where it becomes the `Failed` event
            self._setup_error = error
        else:
            pids = (os.getpid(), *self.ranks.pids)
            self.contention = contention.Contention(self.config.device, self.config.threads, pids=pids)

    def take_turn(self, watchdog: _Watchdog) -> bool:
        """Record the next event of the task; False if there is none.

        Raises:
            Exception: anything that the task raises, `Stopped` if the run was asked to stop, or LimitReached.
        """
        if self._setup_error:
            raise self._setup_error
        try:
            self._raise_if_stopped()
        except Exception as stop:
            if self._events is not None:
                self._throw_into_task(stop)
            raise
        self._turn_began, self.turns = time.monotonic(), self.turns + 1
        events, wall, cpu = self._task_events(), time.perf_counter(), time.thread_time()
        event = next(events, None)
        if event is None:
            return False
        if isinstance(event, Ranks):
            self.contention.look()
        if isinstance(event, Steps | Trial) or _worked_throughout(event):
            self.contention.trained(time.perf_counter() - wall, time.thread_time() - cpu)
        if isinstance(event, Started):
            event = self._with_calibration(event)
        if self.shared and isinstance(event, Memory):  # the allocator's peaks are those of all runs together
            event = event.model_copy(update={"allocated_bytes": None, "reserved_bytes": None})
        self.log.append(event)
        if isinstance(event, Started):
            self.started_at = time.perf_counter()
            self.contention.start()
            watchdog.begin(self)
        if isinstance(event, Steps):
            self.trained_s = event.train_s[1]
        assert self._guard
        try:
            self._raise_if_stopped()
            self._guard.check(self.log.steps)
        except Exception as stop:
            self._throw_into_task(stop)
            raise
        self._past_turns_s, self._turn_began = self._turns_s(), None
        return True

    def _with_calibration(self, event: Started) -> Started:
        """The event with the id of the calibration that a training run is compared with, if there is one."""
        found = None
        if self.config.task_facts.trains_one_model:
            with contextlib.suppress(EngineError, OSError):  # an unreadable store must not end the run
                device = str(event.environment.get("device") or "")
                found = calibration.latest(Store(self.folder.parent.parent), self.config.device, device)
        if found is None:
            return event
        return event.model_copy(update={"environment": event.environment | {calibration.RECORDED_AS: found.run_id}})

    def _turns_s(self) -> float:
        """Time of this run's own turns, s."""
        return self._past_turns_s + (0.0 if self._turn_began is None else time.monotonic() - self._turn_began)

    def _throw_into_task(self, stop: Exception) -> None:
        """Raise the stop in the task, which can yield one more event about a file that it leaves in the run's folder."""
        with contextlib.suppress(type(stop), StopIteration):
            self.log.append(self._task_events().throw(stop))

    def _task_events(self) -> Generator[AnyEvent, None, None]:
        if self._events is None:
            allowed = settings.load(self.folder.parent.parent).limits
            available = probe.probe().memory_available_bytes
            limits.limit_memory(self.config.device, allowed, available, self.config.num_processes)
            self._guard = limits.Guard(allowed, self.folder, clock=self._turns_s)
            more = {"rank_processes": self.ranks} if self.ranks else {}
            self._events = GENERATORS[self.config.task](self.config, self.folder, **more)
        return self._events

    def _raise_if_stopped(self) -> None:
        """Called between the task's events, usually every few tenths of a second.

        Raises:
            Stopped: the run was asked to stop.
        """
        self.check_stop_request()
        if self.stop_requested:
            raise Stopped(self.stop_requested.reason)
        if self.ranks:
            self.ranks.raise_if_lost()

    def check_stop_request(self) -> None:
        """Look for a stop request of the supervisor."""
        if self.stop_requested is None and (request := stop_request(self.folder)):
            self.request_stop(request)

    def request_stop(self, request: StopRequest) -> None:
        """Make the run stop at the end of this turn. The first request counts."""
        with self._writing:
            if self.stop_requested is None and not self.is_over:
                self.stop_requested_at = time.monotonic()
                self.stop_requested = request
                with contextlib.suppress(StoreError):  # the training thread raises it at its next event
                    self.log.append(Stopping(at=time.time(), reason=request.reason))

    def sample(self, sample: HardwareSample) -> None:
        """Record a hardware sample."""
        self.contention.saw_gpu_processes(sample.readings.get("gpu_other_processes"))
        if self.ranks:
            self.peak_of_ranks = max(self.peak_of_ranks, int(sample.readings.get("process_memory_bytes") or 0))
        if news := self.contention.news():
            sample = sample.model_copy(update={"busy": news})
        if self.shared:  # the counter is of the whole process, so the share of this run is unknown
            sample = sample.model_copy(update={"readings": sample.readings | {"energy_j": None}})
        with self._writing:
            if not self.is_over:
                self.log.append(sample)

    def end(self, ended: Terminal) -> None:
        """Write the final event: that of the stop request, if there is one, else `ended`.

        Raises:
            StoreError: the log could not be written.
        """
        if self._events is not None:
            with contextlib.suppress(BaseException):  # ignore errors raised by closing the generator
                self._events.close()
            self._events = None
        if self.ranks:
            with contextlib.suppress(Exception):
                self.ranks.close()
        with self._writing:
            self.is_over = True
        self._final_event.acquire()  # blocks forever if the watchdog is killing this process
        self.log.close(
            (self.stop_requested.final_event() if self.stop_requested else ended).model_copy(update=self._costs())
        )

    def end_before_kill(self, otherwise: Terminal) -> bool:
        """Write the final event of a run whose process is about to be killed; False if there is one already.

        The energy meter is not read, because a hanging driver can be the reason why the task does not react.
        """
        if not self._final_event.acquire(blocking=False):
            return False
        peak, method = self._peak()
        costs = {"peak_memory_bytes": peak, "peak_memory_method": method}
        last = self.stop_requested.final_event() if self.stop_requested else otherwise
        with contextlib.suppress(StoreError):  # the supervisor writes it
            self.log.close(last.model_copy(update=costs))
        return True

    def _peak(self) -> tuple[int | None, str]:
        if self.ranks and self.peak_of_ranks:
            return self.peak_of_ranks, _PEAK_OF_RANKS
        return process_usage.peak_memory_bytes()

    @property
    def is_stuck(self) -> bool:
        """Whether the task was asked to stop, or lost a rank, and did not react in time."""
        lost_at = self.ranks.lost_at if self.ranks and self.ranks.lost else math.inf
        return not self.is_over and time.monotonic() - min(self.stop_requested_at, lost_at) > _ANSWER_S

    def final_event_if_stuck(self) -> Terminal:
        """The final event of a run that is killed without a stop request of its own."""
        if self.ranks and self.ranks.lost:
            return _failed(self.ranks.lost, self.folder, self.log.steps)
        return _KILLED_WITH_ANOTHER.final_event()

    def _costs(self) -> dict[str, Any]:
        peak, peak_method = self._peak()
        joules, energy_method = self.energy.stop()
        source, window_s, period_s = self.energy.source, self.energy.window_s, self.energy.period_s
        if self.shared:
            joules, energy_method = (
                None,
                "It took turns with the other runs of its race, and the counter measures them together.",
            )
            source, window_s, period_s = "none", None, None
            peak_method = f"{peak_method}, together with the other runs of its race" if peak_method else ""
        return {
            "peak_memory_bytes": peak,
            "peak_memory_method": peak_method,
            "energy_j": joules,
            "energy_method": energy_method,
            "energy_source": source,
            "energy_window_s": window_s,
            "energy_period_s": period_s,
            "busy": self.contention.found(),
        }


def _worked_throughout(event: AnyEvent) -> bool:
    """Whether the process worked without a break. In the open loop it sleeps until the next request arrives."""
    return isinstance(event, Latency) and event.load == "closed"


def _failed(error: BaseException, folder: Path, step: int) -> Failed:
    detail = "".join(traceback.format_exception(error))[-_DETAIL_CHARS:]
    if "No space left on device" in str(error):  # also from libraries that write artifacts
        error = disk_space.shortage(folder)
    if isinstance(error, EngineError):
        cause, message, fix = type(error).__name__, error.message, error.fix
    elif isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        cause, message, fix = OutOfMemory.__name__, limits.in_words(error), "Choose a smaller batch or model."
    else:
        cause, message = type(error).__name__, f"An unexpected error occurred: {type(error).__name__}."
        fix = "Please report it with the run's log."
    return Failed(at=time.time(), cause=cause, message=message, fix=fix, step=step or None, detail=detail)


class _Watchdog:
    """The second thread: samples the hardware, flushes the logs and looks for stop requests.

    A run stops in the first thread, between two events. If that thread does not get there within `_ANSWER_S`, because of
    a long step, a compiler or a parser, this thread writes the final event of every run and kills the process.
    """

    def __init__(
        self, slots: Sequence[RunSlot], supervisor_is_alive: Callable[[], bool], end_process: EndProcess | None = None
    ) -> None:
        self._slots = slots
        self._supervisor_is_alive = supervisor_is_alive
        self._end_process = end_process
        self._sampler: sampler.Sampler | None = None
        self._origin = 0.0
        self._missing: dict[str, str] = {}  # reading -> why it is missing, for runs that start later
        self._informed: set[RunSlot] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def begin(self, slot: RunSlot) -> None:
        """Start the run's time axis and the sampling of its hardware."""
        slot.energy.start()
        if self._sampler is None:
            self._origin = time.perf_counter()
            self._sampler = sampler.Sampler(
                slot.config.devices,
                clock=lambda: time.perf_counter() - self._origin,
                emit=self._emit,
                energy=slot.energy,
                pids=(os.getpid(), *slot.ranks.pids) if slot.ranks else None,
            )
            self._sampler.start()

    def _emit(self, sample: HardwareSample) -> None:
        """Record a sample in every run that has started, on its own time axis."""
        self._missing |= sample.missing
        for slot in self._slots:
            if slot.started_at is None or (at := sample.elapsed_s + self._origin - slot.started_at) < 0:
                continue
            news = sample.missing if slot in self._informed else self._missing
            self._informed.add(slot)
            slot.sample(sample.model_copy(update={"elapsed_s": at, "missing": dict(news)}))

    def stop(self) -> None:
        """Stop sampling and watching."""
        self._over.set()
        if self._sampler:
            self._sampler.stop()
        self._thread.join(timeout=2)

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def _watch(self) -> None:
        alone_since, beats = None, 0
        while not self._over.wait(0.1):
            for slot in self._slots:
                if not slot.is_over:
                    slot.log.flush_if_due()
                    slot.check_stop_request()
            stuck = [slot for slot in self._slots if slot.is_stuck]
            if stuck and self._end_process:
                self._kill_stuck(stuck, self._end_process)
            beats += 1
            if beats % 10:
                continue
            if self._supervisor_is_alive():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _ORPHAN_GRACE_S:
                for slot in self._slots:
                    slot.request_stop(_ORPHANED)

    def _kill_stuck(self, stuck: Sequence[RunSlot], end_process: EndProcess) -> None:
        killing = False
        try:
            for slot in [*stuck, *self._slots]:  # stuck runs first: if they end just now, nothing is killed
                if slot in stuck or (killing and not slot.is_over):
                    killing |= slot.end_before_kill(slot.final_event_if_stuck())
        finally:
            if killing:
                end_process()


def leave_the_terminal() -> None:
    """Leave the process group of the terminal, so that Ctrl-C reaches only the command, which decides about the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
