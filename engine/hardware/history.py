"""Keeps the last 15 minutes of the machine's readings in the store, for the page Hardware.

A thread of the supervisor reads everything four times a second, or at the interval that a user chose. It neither delays
the supervisor's work nor keeps the supervisor alive. When readings cannot be written, for example on a full disk, it logs
that and tries again later, and runs are not affected.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.hardware import probe
from engine.hardware.monitor import Monitor, Snapshot
from engine.hardware.readings_log import Readings, Writer
from engine.hardware.sampler import beats
from engine.store.run import Run
from engine.system import disk_space
from engine.system.files import write_atomically

SETTINGS, LOOKED = "monitor.json", "monitor.looked"
KEPT_S = 900.0
# The choices on the page. A client can set any value between the first and the last.
INTERVALS_S = (0.25, 1.0, 2.0, 5.0, 10.0)
REST_AFTER_S = KEPT_S  # the length of the history: a page that is opened again within it shows no gap
RESTING = f"Not read, so that the GPU can sleep: for {REST_AFTER_S / 60:.0f} min this page was not open and no run used a GPU."
_LOOK_EVERY_S = 5.0
_NOTE_EVERY_S = 1.0
_RETRY_S = 30.0
_REOPEN_DRIVER_S = 60.0
_MOST_SPANS = 100
_LONGEST_WORDS = 120

logger = logging.getLogger("isoflop.monitor")


class MonitorSettings(BaseModel):
    """What a user chose for the readings of a store: the seconds between two of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: float = Field(INTERVALS_S[0], ge=INTERVALS_S[0], le=INTERVALS_S[-1], allow_inf_nan=False)


def parse_interval(text: object) -> float:
    """Seconds between two readings.

    Raises:
        ConfigError: `text` is not a number, or is out of bounds.
    """
    try:
        return MonitorSettings.model_validate({"interval_s": text}).interval_s
    except ValidationError:
        low, high = INTERVALS_S[0], INTERVALS_S[-1]
        raise ConfigError(
            f"interval_s={visible(str(text), 40)} is not between {low:g} and {high:g}.",
            fix=f"Choose from {low:g} to {high:g} seconds.",
        ) from None


def load_settings(root: Path) -> MonitorSettings:
    """The settings of a store; the defaults where there is no file or it cannot be read."""
    try:
        return MonitorSettings.model_validate_json((root / SETTINGS).read_bytes())
    except (OSError, ValidationError):
        return MonitorSettings()


_looked_at: dict[Path, float] = {}  # store -> when this process last called look(), on its monotonic clock


def look(root: Path) -> None:
    """Tell the recorder that a page shows the readings, so that it goes on reading GPUs."""
    now = time.monotonic()
    if now - _looked_at.get(root, -math.inf) >= _LOOK_EVERY_S:
        _looked_at[root] = now
        with contextlib.suppress(OSError):  # the store is read-only or full: the page shows the readings that exist
            (root / LOOKED).touch(mode=0o600)


@dataclass(frozen=True, slots=True)
class Span:
    """The time in which a run was running; `end` is None until it ends."""

    run_id: str
    words: str  # name or description of the run
    begin: float  # Unix time, s
    end: float | None


class Recorder:
    """Reads the machine in a thread of its own and keeps the readings in the store at `root`.

    GPUs are not read when for 15 minutes no page showed the readings and no run used a GPU, because a laptop's GPU cannot
    sleep while it is read four times a second. They are read again when a page asks or a run starts.
    """

    def __init__(
        self,
        root: Path,
        *,
        open_monitor: Callable[..., Monitor] = Monitor,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self._open_monitor, self._clock = root, open_monitor, clock
        self.interval_s = load_settings(root).interval_s
        # The supervisor's thread replaces these three as a whole.
        self.processes: Mapping[int, str] = {os.getpid(): ""}  # pid -> run id
        self.spans: tuple[Span, ...] = ()
        self.uses_a_gpu = False  # whether a run uses a GPU
        self._gpus_wanted_at: float | None = None  # when readings of GPUs were last asked for
        self._looked: int | None = None
        self._is_resting = False
        self._rests: list[tuple[float, float | None]] = []  # when GPUs were not read: begin and end, Unix time
        self._running: dict[str, tuple[Run, Span]] = {}
        self._log: Writer | None = None
        self._spans_before: tuple[Span, ...] | None = None  # those that an earlier supervisor noted, read once
        self._noted: tuple[float, dict[str, Any]] = (-_NOTE_EVERY_S, {})
        self._retry_at = self._reopen_driver_at = 0.0
        self._logged_error = ""
        self._stopped, self._changed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stop the thread. A reading that hangs is abandoned after `timeout_s`."""
        self._stopped.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- called in the supervisor's thread

    def set_interval(self, interval_s: float) -> None:
        """Use another interval, also in later supervisors. Raises StoreError where it cannot be saved."""
        self.interval_s = interval_s
        disk_space.with_reserve(
            self.root,
            lambda: write_atomically(self.root / SETTINGS, MonitorSettings(interval_s=interval_s).model_dump_json()),
        )
        self._changed.set()

    def look_at(self, runs: Iterable[Run], now: float) -> None:
        """Take over the processes and the spans of the `runs` that are running at `now` (Unix time, s)."""
        runs = list(runs)
        self.processes = {run.starting.pid: run.run_id for run in reversed(runs) if run.starting} | {os.getpid(): ""}
        self.uses_a_gpu = any(probe.gpu_index(run.config.device) is not None for run in runs)
        ids = {run.run_id for run in runs}
        over = [_ended(*self._running.pop(run_id), now) for run_id in self._running.keys() - ids]
        for run in runs:
            began = run.started or run.starting
            if began and run.run_id not in self._running:
                words = visible(run.name or describe(run.config), _LONGEST_WORDS)
                self._running[run.run_id] = run, Span(run.run_id, words, began.at, None)
        alive = [span for _, span in self._running.values()]
        if over or len(alive) != sum(span.end is None for span in self.spans):
            kept = [span for span in self.spans if span.end is not None and span.end > now - KEPT_S]
            self.spans = tuple((kept + over + alive)[-_MOST_SPANS:])

    # --- called in the monitor's thread

    def _run(self) -> None:
        """Read until stop(). A bug ends only this thread, with a traceback in supervisor.log."""
        monitor = self._open_monitor(lambda: self.processes)
        try:
            self._keep_reading(monitor)
        finally:
            monitor.close()

    def _keep_reading(self, monitor: Monitor) -> None:
        monitor.read()  # rates of the first beat count from here
        while not self._stopped.is_set():
            self._changed.clear()
            for _ in beats(self._clock, self._changed.wait, self.interval_s):
                self.beat(monitor)

    def beat(self, monitor: Monitor) -> None:
        """Read everything once and keep the readings."""
        now = self._clock()
        if now < self._retry_at:
            return
        self._update_resting(monitor, now)
        snapshot = monitor.read()
        self._note_rest(snapshot.at)
        if not self._is_resting and monitor.has_lost_a_gpu(snapshot) and now >= self._reopen_driver_at:
            self._reopen_driver_at = now + _REOPEN_DRIVER_S
            columns = monitor.columns
            monitor.open_gpus()
            if monitor.columns != columns:
                self._close_log()
                return
        try:
            self._keep(monitor, snapshot, now)
            self._logged_error = ""
        except OSError as error:
            self._close_log()
            self._retry_at = now + _RETRY_S
            if str(error) != self._logged_error:
                logger.warning("readings are not kept for the page Hardware: %s", error)
            self._logged_error = str(error)

    def _update_resting(self, monitor: Monitor, now: float) -> None:
        looked = _changed_at(self.root / LOOKED)
        if self.uses_a_gpu or looked != self._looked or self._gpus_wanted_at is None:
            self._looked, self._gpus_wanted_at = looked, now
        if (now - self._gpus_wanted_at > REST_AFTER_S) == self._is_resting:
            return
        self._is_resting = not self._is_resting
        if self._is_resting:
            monitor.rest_gpus(RESTING)
            return
        columns = monitor.columns
        monitor.open_gpus()
        if monitor.columns != columns:
            self._close_log()

    def _note_rest(self, at: float) -> None:
        rests = [(begin, end) for begin, end in self._rests if end is None or end > at - KEPT_S]
        if self._is_resting and (not rests or rests[-1][1] is not None):
            rests.append((at, None))
        elif not self._is_resting and rests and rests[-1][1] is None:
            rests[-1] = rests[-1][0], at
        self._rests = rests

    def _keep(self, monitor: Monitor, snapshot: Snapshot, now: float) -> None:
        """Append a snapshot to the log.

        Raises:
            OSError: it cannot be written, or the disk is nearly full and the space is reserved for runs.
        """
        if disk_space.is_short(self.root):
            raise OSError(errno.ENOSPC, "the store's disk is nearly full")
        if self._log and not self._log.is_in_place:
            self._close_log()
        if self._log is None:
            self._log = self._open_log(monitor)
        self._log.append(snapshot.at, [snapshot.readings[name] for name in self._log.columns.names])
        noted_at, noted = self._noted
        if now - noted_at >= _NOTE_EVERY_S:
            notes = self._notes(snapshot)
            if notes != noted:
                self._log.note(notes)
            self._noted = now, notes

    def _open_log(self, monitor: Monitor) -> Writer:
        log = Writer(self.root, monitor.columns, monitor.gpu_names)
        if self._spans_before is None:
            self._spans_before = _spans_in(log.held) if log.held else ()
        log.held = None  # 15 minutes of readings: free them
        self._noted = (-_NOTE_EVERY_S, {})
        return log

    def _close_log(self) -> None:
        if self._log:
            self._log.close()
            self._log = None

    def _notes(self, snapshot: Snapshot) -> dict[str, Any]:
        """What a page shows beside the numbers: reasons (each once, with its columns), holders of GPU memory, and runs."""
        missing: dict[str, list[str]] = {}
        for name, reason in snapshot.missing.items():
            missing.setdefault(reason, []).append(name)
        ours = {span.run_id for span in self.spans}
        before = [
            span
            for span in self._spans_before or ()
            if span.run_id not in ours and (span.end or 0) > snapshot.at - KEPT_S
        ]
        return {
            "interval_s": self.interval_s,
            "missing": missing,
            "processes": [asdict(process) for process in snapshot.processes],
            "spans": [asdict(span) for span in (*before, *self.spans)],
            "rests": self._rests,
        }


def _changed_at(path: Path) -> int | None:
    """Time of the last change of a file, ns; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _ended(run: Run, span: Span, now: float) -> Span:
    return Span(span.run_id, span.words, span.begin, run.last_word.at if run.last_word else now)


def _spans_in(held: Readings) -> tuple[Span, ...]:
    """The runs that an earlier supervisor noted. One without an end went on at least until the last reading."""
    last = float(held.rows[-1, 0]) if len(held.rows) else 0.0
    noted = [Span(**span) for span in held.notes.get("spans", [])]
    return tuple(Span(span.run_id, span.words, span.begin, span.end or last) for span in noted)
