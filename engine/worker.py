"""The process of one run: drives a task, samples the hardware, writes everything to the run's log, has the last word."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from engine import disk, hardware, limits, records, sampler, settings
from engine.config import RunConfig
from engine.errors import EngineError, OutOfMemory
from engine.locks import claim
from engine.processes import own_identity
from engine.pytorch.landscape import landscape
from engine.pytorch.train import train
from engine.records import AnyEvent
from engine.store import SUMMARY_POINTS, EventLog, Run, StopRequest, read_config, stop_request

Task = Callable[..., Iterator[AnyEvent]]
TASKS: dict[str, Task] = {"train": train, "landscape": landscape}

_ORPHAN_GRACE_S = 5.0
_DETAIL_CHARS = 100_000  # of a traceback: a compiler's may be long
_ANSWER_S = 2.5  # what a step, a compiler or a parser may take before a run that was asked to stop is ended under it
_CLAIM_S = 0.5  # a supervisor that looks whether the run is claimed holds it for microseconds


_ORPHANED = StopRequest(
    status="interrupted", reason="The supervisor of this store went away while the run was running."
)


class Stopped(Exception):
    """The run was asked to stop."""


def run(
    folder: Path,
    *,
    supervisor_is_alive: Callable[[], bool] = lambda: True,
    end_process: Callable[[], None] | None = None,
) -> None:
    """Run the task of `folder`/config.json to its end; always leaves a terminal event.

    A run starts once: where another process has begun it, or it is over, nothing happens. That is so when a supervisor
    was killed just after it had asked for the process, and the next one asked for another.

    `end_process` ends this process and its helpers at once, for a task that does not look up when asked to stop.
    """
    with claim(folder, patience_s=_CLAIM_S) as mine:
        if mine and Run(folder, keep_points=SUMMARY_POINTS).status == "queued":
            _run(folder, supervisor_is_alive, end_process)


def _run(folder: Path, supervisor_is_alive: Callable[[], bool], end_process: Callable[[], None] | None) -> None:
    config = read_config(folder)
    log = EventLog(folder / "events.jsonl")
    pid, pid_started = own_identity()
    log.append(records.Starting(at=time.time(), pid=pid, pid_started=pid_started))
    energy = sampler.EnergyMeter(config.device)
    watch = _Watch(folder, supervisor_is_alive, log, energy, end_process)
    ended: records.Terminal
    try:
        with watch:
            _drive(config, folder, log, watch)
        ended = records.Finished(at=time.time())
    except BaseException as error:  # the one border where anything may arrive: it becomes the run's last word
        ended = _failed(error, folder, log.steps)
    if watch.asked:  # whatever came of it meanwhile
        ended = watch.asked.last_word()
    watch.have_the_last_word()
    log.close(ended.model_copy(update=_costs(energy)))


def _costs(energy: sampler.EnergyMeter) -> dict[str, Any]:
    peak, peak_method = sampler.peak_memory_bytes()
    joules, energy_method = energy.stop()
    return {
        "peak_memory_bytes": peak,
        "peak_memory_method": peak_method,
        "energy_j": joules,
        "energy_method": energy_method,
    }


def _drive(config: RunConfig, folder: Path, log: EventLog, watch: _Watch) -> None:
    allowed = settings.load(folder.parent.parent).limits
    limits.limit_memory(config.device, allowed, hardware.probe().memory_available_bytes)
    guard = limits.Guard(allowed, folder)
    events = TASKS[config.task](config, folder)
    with contextlib.closing(events):  # type: ignore[type-var]
        for event in events:
            log.append(event)
            if isinstance(event, records.Started):
                watch.begin(config.device)
            try:
                watch.raise_if_asked()
                guard.check(log.steps)
            except Exception as stop:
                _hand_over(events, stop, log)
                raise


def _hand_over(events: Iterator[AnyEvent], stop: Exception, log: EventLog) -> None:
    """Tell a task why it ends; it may answer with one more event, of what it leaves in the run's folder."""
    if isinstance(events, Generator):
        with contextlib.suppress(type(stop), StopIteration):
            log.append(events.throw(stop))


def _failed(error: BaseException, folder: Path, step: int) -> records.Failed:
    detail = "".join(traceback.format_exception(error))[-_DETAIL_CHARS:]
    if "No space left on device" in str(error):  # whatever wrote: an artifact is not written by us alone
        error = disk.shortage(folder)
    if isinstance(error, EngineError):
        cause, message, fix = type(error).__name__, error.message, error.fix
    elif isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        cause, message, fix = OutOfMemory.__name__, limits.in_words(error), "Choose a smaller batch or model."
    else:
        cause, message = type(error).__name__, f"Something broke that should not: {type(error).__name__}."
        fix = "Please report it with the run's log."
    return records.Failed(at=time.time(), cause=cause, message=message, fix=fix, step=step or None, detail=detail)


class _Watch:
    """The run's second thread: samples the hardware, flushes the log, and looks whether the run should stop.

    The run is asked to stop in the first thread. Where that one is deep in a long step, a compiler or a parser, this one
    says the last word after `_ANSWER_S` and ends the process.
    """

    def __init__(
        self,
        folder: Path,
        supervisor_is_alive: Callable[[], bool],
        log: EventLog,
        energy: sampler.EnergyMeter,
        end_process: Callable[[], None] | None = None,
    ) -> None:
        self._folder = folder
        self._supervisor_is_alive = supervisor_is_alive
        self._log = log
        self._energy = energy
        self._end_process = end_process
        self._sampler: sampler.Sampler | None = None
        self._over = threading.Event()
        self._asking = threading.Lock()
        self._last_word = threading.Lock()  # taken once, never given back
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.began: float | None = None
        self.asked: StopRequest | None = None
        self._asked_at = math.inf

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def begin(self, device: str) -> None:
        """The run's time axis starts now: from here on the hardware is sampled."""
        self.began = time.perf_counter()
        self._energy.start()
        self._sampler = sampler.Sampler(device, clock=self._clock, emit=self._log.append, energy=self._energy)
        self._sampler.start()

    def _clock(self) -> float:
        assert self.began is not None
        return time.perf_counter() - self.began

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        if self._sampler:
            self._sampler.stop()
        self._thread.join(timeout=2)

    def raise_if_asked(self) -> None:
        """Called between the task's events, at most some tenths of a second apart."""
        self._notice()
        if self.asked:
            raise Stopped(self.asked.reason)

    def have_the_last_word(self) -> None:
        """Returns in the one thread that may end the log; never, where this process is already being ended."""
        self._last_word.acquire()

    def _notice(self) -> None:
        if self.asked is None and (request := stop_request(self._folder)):
            self._ask(request)

    def _ask(self, request: StopRequest) -> None:
        with self._asking:
            if self.asked is None:
                self._asked_at = time.monotonic()
                self.asked = request
                self._log.append(records.Stopping(at=time.time(), reason=request.reason))

    def _look(self) -> None:
        alone_since, beat = None, 0
        while not self._over.wait(0.1):
            self._log.flush_if_due()
            self._notice()
            if time.monotonic() - self._asked_at > _ANSWER_S and self._end_process:
                self._end_now(self._end_process)
            beat += 1
            if beat % 10:
                continue
            if self._supervisor_is_alive():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _ORPHAN_GRACE_S:
                self._ask(_ORPHANED)

    def _end_now(self, end_process: Callable[[], None]) -> None:
        """The energy meter is left alone: a driver that hangs may be why the run does not answer."""
        if not self._last_word.acquire(blocking=False) or self.asked is None:
            return
        peak, method = sampler.peak_memory_bytes()
        said = {"peak_memory_bytes": peak, "peak_memory_method": method}
        try:
            self._log.close(self.asked.last_word().model_copy(update=said))
        finally:
            end_process()


def leave_the_terminal() -> None:
    """Ctrl-C in a terminal goes to the whole process group: who started the run decides what it means, not the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
