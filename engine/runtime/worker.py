"""The process of a run, or of the runs of one heat: drives the tasks, samples the hardware, writes everything to the
runs' logs, has the last word."""

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
from engine.planning import limits
from engine.pytorch.distributed.data_parallel import follow
from engine.pytorch.distributed.processes import RankProcesses
from engine.pytorch.tasks.registry import GENERATORS
from engine.store.event_log import EventLog
from engine.store.run import SUMMARY_POINTS, Run, read_config
from engine.store.stop_requests import StopRequest, stop_request
from engine.system import disk_space
from engine.system.locks import claim
from engine.system.processes import own_identity

EndProcess = Callable[[], None]

_ORPHAN_GRACE_S = 5.0
_DETAIL_CHARS = 100_000  # of a traceback: a compiler's may be long
_ANSWER_S = 2.5  # what a step, a compiler or a parser may take before a run that was asked to stop is ended under it
_CLAIM_S = 0.5  # a supervisor that looks whether the run is claimed holds it for microseconds


_PEAK_OF_RANKS = (
    "highest sum of the ranks' resident memory, read four times a second; pages they share, PyTorch's above all, count in "
    "each"
)
_ORPHANED = StopRequest(
    status="interrupted", reason="The supervisor of this store went away while the run was running."
)
_IN_STEP = StopRequest(
    status="interrupted",
    reason="Another run of its race did not stop when asked, and the process they shared was ended.",
)


class Stopped(Exception):
    """The run was asked to stop."""


def run(
    *folders: Path,
    supervisor_is_alive: Callable[[], bool] = lambda: True,
    end_process: Callable[[], None] | None = None,
) -> None:
    """Run the task of each `folder`/config.json to its end; always leaves a terminal event.

    Several are the runs of one heat: they take turns, and the end of one is not the end of the others.

    A run starts once: where another process has begun it, or it is over, nothing happens. That is so when a supervisor
    was killed just after it had asked for the process, and the next one asked for another.

    `end_process` ends this process and its helpers at once, for a task that does not look up when asked to stop.
    """
    lanes: list[RunSlot] = []
    troubles: list[Exception] = []  # of one run, which are not the others'
    with contextlib.ExitStack() as claims:
        for folder in folders:
            try:
                if (
                    claims.enter_context(claim(folder, patience_s=_CLAIM_S))
                    and Run(folder, keep_points=SUMMARY_POINTS).status == "queued"
                ):
                    lanes.append(RunSlot(folder, shared=len(folders) > 1))
            except (OSError, EngineError) as error:
                troubles.append(error)
        for lane in lanes:
            lane.call_ranks()
        if lanes:
            with _Watch(lanes, supervisor_is_alive, end_process) as watch:
                troubles += _take_turns(lanes, watch)
    if troubles:
        raise troubles[0]


def _take_turns(lanes: Sequence[RunSlot], watch: _Watch) -> list[StoreError]:
    """One event of one run at a time, whichever has trained least, to the end of all; what could not be written.

    So no run waits for another's whole training, and a machine that grows hot or busy does so for all of them alike.
    """
    going, troubles = list(lanes), []
    while going:
        lane = min(going, key=lambda lane: (lane.asked is None, lane.trained_s, lane.turns))
        ended: Terminal | None = None
        try:
            if not lane.take_turn(watch):
                ended = Finished(at=time.time())
        except BaseException as error:  # the one border where anything may arrive: it becomes the run's last word
            ended = _failed(error, lane.folder, lane.log.steps)
        if ended is None:
            continue
        going.remove(lane)
        if not going:
            watch.stop()
        try:
            lane.end(ended)
        except StoreError as error:  # the others may have room
            troubles.append(error)
    return troubles


class RunSlot:
    """One run of this process: its task and its log. `shared` is the process with others that take turns with it."""

    def __init__(self, folder: Path, *, shared: bool) -> None:
        self.folder, self.shared = folder, shared
        self.config = read_config(folder)
        self.log = EventLog(folder / "events.jsonl")
        self.energy = energy_counters.EnergyMeter(self.config.devices)
        self.gang: RankProcesses | None = None
        self.peak_of_ranks = 0
        self._trouble: Exception | None = None  # before the first turn
        self.trained_s, self.turns = 0.0, 0
        self._own_s: float = 0.0
        self._turn_began: float | None = None
        self.began: float | None = None
        self.asked: StopRequest | None = None
        self.asked_at = math.inf
        self.is_over = False
        self._writing = threading.Lock()
        self._final_event = threading.Lock()  # taken once, never given back
        self._events: Generator[AnyEvent, None, None] | None = None
        self._guard: limits.Guard | None = None
        pid, pid_started = own_identity()
        self.log.append(Starting(at=time.time(), pid=pid, pid_started=pid_started))
        self.contention = contention.Contention(self.config.device, self.config.threads)

    def call_ranks(self) -> None:
        """Fork the other ranks of a data-parallel run. To be called before this process has a second thread."""
        if not self.config.has_rank_processes:
            return
        try:
            if self.shared:
                raise ConfigError(
                    f"parallel.num_ranks={self.config.parallel.num_ranks} does not go with a race, whose runs take turns.",
                    fix="Run it by itself, or set parallel.num_ranks=1.",
                )
            self.gang = RankProcesses(self.config, self.folder, follow)
        except Exception as error:  # the run says it, at its first turn
            self._trouble = error
        else:
            pids = (os.getpid(), *self.gang.pids)
            self.contention = contention.Contention(self.config.device, self.config.threads, pids=pids)

    def take_turn(self, watch: _Watch) -> bool:
        """The next event of the task; False when there is none. Raises Stopped when the run was asked to stop."""
        if self._trouble:
            raise self._trouble
        try:
            self._raise_if_asked()
        except Exception as stop:
            if self._events is not None:
                self._hand_over(stop)
            raise
        self._turn_began, self.turns = time.monotonic(), self.turns + 1
        events, wall, cpu = self._task(), time.perf_counter(), time.thread_time()
        event = next(events, None)
        if event is None:
            return False
        if isinstance(event, Ranks):
            self.contention.look()
        if isinstance(event, Steps | Trial) or _kept_busy(event):
            self.contention.trained(time.perf_counter() - wall, time.thread_time() - cpu)
        if self.shared and isinstance(event, Memory):  # the allocator's peaks are those of all of them
            event = event.model_copy(update={"allocated_bytes": None, "reserved_bytes": None})
        self.log.append(event)
        if isinstance(event, Started):
            self.began = time.perf_counter()
            self.contention.start()
            watch.begin(self)
        if isinstance(event, Steps):
            self.trained_s = event.train_s[1]
        assert self._guard
        try:
            self._raise_if_asked()
            self._guard.check(self.log.steps)
        except Exception as stop:
            self._hand_over(stop)
            raise
        self._own_s, self._turn_began = self._own_clock(), None
        return True

    def _own_clock(self) -> float:
        """Seconds of this run's own turns."""
        return self._own_s + (0.0 if self._turn_began is None else time.monotonic() - self._turn_began)

    def _hand_over(self, stop: Exception) -> None:
        """Tell the task why it ends; it may answer with one more event, of what it leaves in the run's folder."""
        with contextlib.suppress(type(stop), StopIteration):
            self.log.append(self._task().throw(stop))

    def _task(self) -> Generator[AnyEvent, None, None]:
        if self._events is None:
            allowed = settings.load(self.folder.parent.parent).limits
            available = probe.probe().memory_available_bytes
            limits.limit_memory(self.config.device, allowed, available, self.config.num_processes)
            self._guard = limits.Guard(allowed, self.folder, clock=self._own_clock)
            more = {"rank_processes": self.gang} if self.gang else {}
            self._events = GENERATORS[self.config.task](self.config, self.folder, **more)
        return self._events

    def _raise_if_asked(self) -> None:
        """Called between the task's events, at most some tenths of a second apart."""
        self.notice()
        if self.asked:
            raise Stopped(self.asked.reason)
        if self.gang:
            self.gang.raise_if_lost()

    def notice(self) -> None:
        if self.asked is None and (request := stop_request(self.folder)):
            self.ask(request)

    def ask(self, request: StopRequest) -> None:
        with self._writing:
            if self.asked is None and not self.is_over:
                self.asked_at = time.monotonic()
                self.asked = request
                with contextlib.suppress(StoreError):  # the next event says it, to who trains
                    self.log.append(Stopping(at=time.time(), reason=request.reason))

    def sample(self, sample: HardwareSample) -> None:
        self.contention.saw_gpu_processes(sample.readings.get("gpu_other_processes"))
        if self.gang:
            self.peak_of_ranks = max(self.peak_of_ranks, int(sample.readings.get("process_memory_bytes") or 0))
        if news := self.contention.news():
            sample = sample.model_copy(update={"busy": news})
        if self.shared:  # the counters are the process's: what of it is this run's cannot be told
            sample = sample.model_copy(update={"readings": sample.readings | {"energy_j": None}})
        with self._writing:
            if not self.is_over:
                self.log.append(sample)

    def end(self, ended: Terminal) -> None:
        """Write the last word. It is what was asked for, whatever came of it meanwhile."""
        if self._events is not None:
            with contextlib.suppress(BaseException):  # what it says in being closed is not why it ended
                self._events.close()
            self._events = None
        if self.gang:
            with contextlib.suppress(Exception):
                self.gang.close()
        with self._writing:
            self.is_over = True
        self._final_event.acquire()  # never, where this process is already being ended
        self.log.close((self.asked.last_word() if self.asked else ended).model_copy(update=self._costs()))

    def end_now(self, otherwise: Terminal) -> bool:
        """Write the last word of a run whose task does not answer, or shares the process of one; False if it is said.

        The energy meter is left alone: a driver that hangs may be why the run does not answer.
        """
        if not self._final_event.acquire(blocking=False):
            return False
        peak, method = self._peak()
        said = {"peak_memory_bytes": peak, "peak_memory_method": method}
        last = self.asked.last_word() if self.asked else otherwise
        with contextlib.suppress(StoreError):  # the supervisor will say it
            self.log.close(last.model_copy(update=said))
        return True

    def _peak(self) -> tuple[int | None, str]:
        if self.gang and self.peak_of_ranks:
            return self.peak_of_ranks, _PEAK_OF_RANKS
        return process_usage.peak_memory_bytes()

    @property
    def is_stuck(self) -> bool:
        """Whether its task was asked to stop, or lost a rank, and has not answered in time."""
        lost_at = self.gang.lost_at if self.gang and self.gang.lost else math.inf
        return not self.is_over and time.monotonic() - min(self.asked_at, lost_at) > _ANSWER_S

    def final_event_if_stuck(self) -> Terminal:
        if self.gang and self.gang.lost:
            return _failed(self.gang.lost, self.folder, self.log.steps)
        return _IN_STEP.last_word()

    def _costs(self) -> dict[str, Any]:
        peak, peak_method = self._peak()
        joules, energy_method = self.energy.stop()
        source, window_s, period_s = self.energy.source, self.energy.window_s, self.energy.period_s
        if self.shared:
            joules, energy_method = None, "It took turns with the other runs of its race: their energy is one."
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


def _kept_busy(event: AnyEvent) -> bool:
    """In the open loop a process sleeps until the next request arrives: nobody kept it from working."""
    return isinstance(event, Latency) and event.load == "closed"


def _failed(error: BaseException, folder: Path, step: int) -> Failed:
    detail = "".join(traceback.format_exception(error))[-_DETAIL_CHARS:]
    if "No space left on device" in str(error):  # whatever wrote: an artifact is not written by us alone
        error = disk_space.shortage(folder)
    if isinstance(error, EngineError):
        cause, message, fix = type(error).__name__, error.message, error.fix
    elif isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        cause, message, fix = OutOfMemory.__name__, limits.in_words(error), "Choose a smaller batch or model."
    else:
        cause, message = type(error).__name__, f"Something broke that should not: {type(error).__name__}."
        fix = "Please report it with the run's log."
    return Failed(at=time.time(), cause=cause, message=message, fix=fix, step=step or None, detail=detail)


class _Watch:
    """The second thread: samples the hardware, flushes the logs, and looks whether a run should stop.

    A run is asked to stop in the first thread. Where that one is deep in a long step, a compiler or a parser, this one
    says the last word of every run after `_ANSWER_S` and ends the process.
    """

    def __init__(
        self, lanes: Sequence[RunSlot], supervisor_is_alive: Callable[[], bool], end_process: EndProcess | None = None
    ) -> None:
        self._lanes = lanes
        self._supervisor_is_alive = supervisor_is_alive
        self._end_process = end_process
        self._sampler: sampler.Sampler | None = None
        self._origin = 0.0
        self._missing: dict[str, str] = {}  # reading -> why, for a run that begins later
        self._told: set[RunSlot] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def begin(self, lane: RunSlot) -> None:
        """The run's time axis starts now: from here on the hardware is sampled."""
        lane.energy.start()
        if self._sampler is None:
            self._origin = time.perf_counter()
            self._sampler = sampler.Sampler(
                lane.config.devices,
                clock=lambda: time.perf_counter() - self._origin,
                emit=self._emit,
                energy=lane.energy,
                pids=(os.getpid(), *lane.gang.pids) if lane.gang else None,
            )
            self._sampler.start()

    def _emit(self, sample: HardwareSample) -> None:
        """One sample for every run that has begun, each on its own time axis."""
        self._missing |= sample.missing
        for lane in self._lanes:
            if lane.began is None or (at := sample.elapsed_s + self._origin - lane.began) < 0:
                continue
            news = sample.missing if lane in self._told else self._missing
            self._told.add(lane)
            lane.sample(sample.model_copy(update={"elapsed_s": at, "missing": dict(news)}))

    def stop(self) -> None:
        self._over.set()
        if self._sampler:
            self._sampler.stop()
        self._thread.join(timeout=2)

    def __exit__(self, *error: Any) -> None:
        self.stop()

    def _look(self) -> None:
        alone_since, beat = None, 0
        while not self._over.wait(0.1):
            for lane in self._lanes:
                if not lane.is_over:
                    lane.log.flush_if_due()
                    lane.notice()
            stuck = [lane for lane in self._lanes if lane.is_stuck]
            if stuck and self._end_process:
                self._end_now(stuck, self._end_process)
            beat += 1
            if beat % 10:
                continue
            if self._supervisor_is_alive():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _ORPHAN_GRACE_S:
                for lane in self._lanes:
                    lane.ask(_ORPHANED)

    def _end_now(self, stuck: Sequence[RunSlot], end_process: EndProcess) -> None:
        said = False
        try:
            for lane in [*stuck, *self._lanes]:  # theirs first: were they just about to end, nothing is to be done
                if lane in stuck or (said and not lane.is_over):
                    said |= lane.end_now(lane.final_event_if_stuck())
        finally:
            if said:
                end_process()


def leave_the_terminal() -> None:
    """Ctrl-C in a terminal goes to the whole process group: who started the run decides what it means, not the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
