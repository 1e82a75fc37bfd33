"""The process of one run: drives a task, samples the hardware, writes everything to the run's log, has the last word."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine import disk, hardware, limits, records, sampler, settings
from engine.config import RunConfig
from engine.errors import EngineError, OutOfMemory
from engine.processes import own_identity
from engine.pytorch.train import train
from engine.records import AnyEvent
from engine.store import STOP_FILE, EventLog, read_config

Task = Callable[..., Iterator[AnyEvent]]
TASKS: dict[str, Task] = {"train": train}

_ORPHAN_GRACE_S = 5.0
_DETAIL_CHARS = 100_000  # of a traceback: a compiler's may be long


class Stopped(Exception):
    """The run was asked to stop."""


class Orphaned(Exception):
    """The supervisor is gone for good."""


def run(folder: Path, *, supervisor_is_alive: Callable[[], bool] = lambda: True) -> None:
    """Run the task of `folder`/config.json to its end; always leaves a terminal event."""
    config = read_config(folder)
    log = EventLog(folder / "events.jsonl")
    pid, pid_started = own_identity()
    log.append(records.Starting(at=time.time(), pid=pid, pid_started=pid_started))
    energy = sampler.EnergyMeter(config.device)
    watch = _Watch(folder, supervisor_is_alive, log, energy)
    ended: records.Terminal
    try:
        with watch:
            _drive(config, folder, log, watch)
        ended = records.Finished(at=time.time())
    except Stopped as stop:
        log.append(records.Stopping(at=time.time(), reason=str(stop)))
        ended = records.Cancelled(at=time.time(), reason=str(stop))
    except Orphaned:
        ended = records.Interrupted(
            at=time.time(), reason="The supervisor of this store went away while the run was running."
        )
    except BaseException as error:  # the one border where anything may arrive: it becomes the run's last word
        ended = _failed(error, folder, log.steps)
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
            watch.raise_if_asked()
            guard.check(log.steps)


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
    """The run's second thread: samples the hardware, flushes the log, and looks whether the run should stop."""

    def __init__(
        self, folder: Path, supervisor_is_alive: Callable[[], bool], log: EventLog, energy: sampler.EnergyMeter
    ) -> None:
        self._stop_file = folder / STOP_FILE
        self._supervisor_is_alive = supervisor_is_alive
        self._log = log
        self._energy = energy
        self._sampler: sampler.Sampler | None = None
        self._over = threading.Event()
        self._orphaned = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self.began: float | None = None

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
        with contextlib.suppress(FileNotFoundError):
            raise Stopped(self._stop_file.read_text(encoding="utf-8").strip() or "cancelled by the user")
        if self._orphaned.is_set():
            raise Orphaned

    def _look(self) -> None:
        alone_since, beat = None, 0
        while not self._over.wait(0.1):
            self._log.flush_if_due()
            beat += 1
            if beat % 10:
                continue
            if self._supervisor_is_alive():
                alone_since = None
            elif alone_since is None:
                alone_since = time.monotonic()
            elif time.monotonic() - alone_since > _ORPHAN_GRACE_S:
                self._orphaned.set()


def leave_the_terminal() -> None:
    """Ctrl-C in a terminal goes to the whole process group: who started the run decides what it means, not the run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
