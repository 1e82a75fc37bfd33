"""The last quarter of an hour of this machine, kept by the supervisor in a ring file that pages read along.

A thread reads everything four times a second, or as seldom as somebody asked. It never holds up the supervisor's own work
and does not keep it alive; where readings cannot be kept (a full disk) it says so and tries again later, and runs go on.
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

from engine import disk, hardware
from engine.config import describe
from engine.errors import ConfigError
from engine.monitor import Monitor, Snapshot
from engine.ring import NotARing, Ring, Shape, Writer
from engine.sampler import beats
from engine.store import Run, write_atomically
from engine.text import visible

RING, SETTINGS, LOOKED = "monitor.ring", "monitor.json", "monitor.looked"
KEPT_S = 900.0
INTERVALS_S = (0.25, 1.0, 2.0, 5.0, 10.0)  # what a page offers; any between the first and the last may be asked for
REST_AFTER_S = KEPT_S  # as long as the history reaches: a page opened again within it has no hole
RESTING = (
    f"Not read: for {REST_AFTER_S / 60:.0f} min nobody looked here and no run used a GPU, so it is let alone to sleep."
)
_LOOK_EVERY_S = 5.0
_CAPACITY = round(KEPT_S / INTERVALS_S[0])
_NOTES_BYTES = 2**17
_NOTE_EVERY_S = 1.0
_TRY_AGAIN_S = 30.0
_ASK_DRIVER_AGAIN_S = 60.0
_MOST_SPANS = 100
_LONGEST_WORDS = 120

logger = logging.getLogger("isoflop.monitor")


class MonitorSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    interval_s: float = Field(INTERVALS_S[0], ge=INTERVALS_S[0], le=INTERVALS_S[-1], allow_inf_nan=False)


def parse_interval(text: object) -> float:
    """Seconds between two readings. Raises ConfigError for what is no number or out of bounds."""
    try:
        return MonitorSettings.model_validate({"interval_s": text}).interval_s
    except ValidationError:
        low, high = INTERVALS_S[0], INTERVALS_S[-1]
        raise ConfigError(
            f"interval_s={visible(str(text), 40)} is not between {low:g} and {high:g}.",
            fix=f"Choose from {low:g} to {high:g} seconds.",
        ) from None


def load_settings(root: Path) -> MonitorSettings:
    """As they were chosen; a file that cannot be read is the same as none."""
    try:
        return MonitorSettings.model_validate_json((root / SETTINGS).read_bytes())
    except (OSError, ValidationError):
        return MonitorSettings()


_looked_at: dict[Path, float] = {}  # by this process, on its monotonic clock


def look(root: Path) -> None:
    """Somebody looks at the readings: those of GPUs, too, go on."""
    now = time.monotonic()
    if now - _looked_at.get(root, -math.inf) >= _LOOK_EVERY_S:
        _looked_at[root] = now
        with contextlib.suppress(OSError):  # a store that may only be read, or is full: it shows what there is
            (root / LOOKED).touch(mode=0o600)


@dataclass(frozen=True, slots=True)
class Span:
    """A run on the time axis; `end` is None while it goes on."""

    run_id: str
    words: str
    begin: float  # Unix time
    end: float | None


class Recorder:
    """Reads the machine in a thread of its own and keeps what it read.

    GPUs are left alone when nobody has looked and no run has used one for a quarter of an hour: being asked four times a
    second keeps the one of a laptop awake. They are read again with the next look or run.
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
        self.processes: Mapping[int, str] = {os.getpid(): ""}  # replaced as a whole, by the supervisor's own thread
        self.spans: tuple[Span, ...] = ()  # likewise
        self.uses_a_gpu = False  # likewise: whether a run does
        self._wanted_at: float | None = None  # when readings of GPUs were last asked for
        self._looked: int | None = None
        self._is_resting = False
        self._rests: list[tuple[float, float | None]] = []  # of the GPUs: from when to when, Unix time
        self._at_work: dict[str, tuple[Run, Span]] = {}
        self._ring: Writer | None = None
        self._spans_before: tuple[Span, ...] | None = None  # of an earlier supervisor, taken over once
        self._noted: tuple[float, dict[str, Any]] = (-_NOTE_EVERY_S, {})
        self._again_at = self._driver_again_at = 0.0
        self._said = ""
        self._stopped, self._changed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """No reading after this. One that hangs is left behind."""
        self._stopped.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- the supervisor's thread

    def set_interval(self, interval_s: float) -> None:
        """From now on, and for the supervisors that follow."""
        self.interval_s = interval_s
        disk.with_reserve(
            self.root,
            lambda: write_atomically(self.root / SETTINGS, MonitorSettings(interval_s=interval_s).model_dump_json()),
        )
        self._changed.set()

    def look_at(self, runs: Iterable[Run], now: float) -> None:
        """Which runs are at work: their processes are ours, and they are spans on the time axis."""
        runs = list(runs)
        self.processes = {run.starting.pid: run.run_id for run in reversed(runs) if run.starting} | {os.getpid(): ""}
        self.uses_a_gpu = any(hardware.gpu_index(run.config.device) is not None for run in runs)
        ids = {run.run_id for run in runs}
        over = [_over(*self._at_work.pop(run_id), now) for run_id in self._at_work.keys() - ids]
        for run in runs:
            began = run.started or run.starting
            if began and run.run_id not in self._at_work:
                words = visible(run.name or describe(run.config), _LONGEST_WORDS)
                self._at_work[run.run_id] = run, Span(run.run_id, words, began.at, None)
        alive = [span for _, span in self._at_work.values()]
        if over or len(alive) != sum(span.end is None for span in self.spans):
            kept = [span for span in self.spans if span.end is not None and span.end > now - KEPT_S]
            self.spans = tuple((kept + over + alive)[-_MOST_SPANS:])

    # --- the monitor's thread

    def _run(self) -> None:
        try:
            monitor = self._open_monitor(lambda: self.processes)
            try:
                self._keep_reading(monitor)
            finally:
                monitor.close()
        except (
            Exception
        ):  # the border of this thread: without it the runs go on, and the page says that readings stopped
            logger.exception("the monitor stopped")

    def _keep_reading(self, monitor: Monitor) -> None:
        monitor.read()  # rates count from here
        while not self._stopped.is_set():
            self._changed.clear()
            for _ in beats(self._clock, self._changed.wait, self.interval_s):
                self.beat(monitor)

    def beat(self, monitor: Monitor) -> None:
        """Read everything once and keep it."""
        now = self._clock()
        if now < self._again_at:
            return
        self._rest_or_wake(monitor, now)
        snapshot = monitor.read()
        self._note_rest(snapshot.at)
        if not self._is_resting and monitor.has_lost_a_gpu(snapshot) and now >= self._driver_again_at:
            self._driver_again_at = now + _ASK_DRIVER_AGAIN_S
            columns = monitor.columns
            monitor.open_gpus()
            if monitor.columns != columns:
                self._let_go()
                return
        try:
            self._keep(monitor, snapshot, now)
            self._said = ""
        except (OSError, NotARing) as error:
            self._let_go()
            self._again_at = now + _TRY_AGAIN_S
            if str(error) != self._said:
                logger.warning("readings are not kept for the page Hardware: %s", error)
            self._said = str(error)

    def _rest_or_wake(self, monitor: Monitor, now: float) -> None:
        looked = _changed_at(self.root / LOOKED)
        if self.uses_a_gpu or looked != self._looked or self._wanted_at is None:
            self._looked, self._wanted_at = looked, now
        if (now - self._wanted_at > REST_AFTER_S) == self._is_resting:
            return
        self._is_resting = not self._is_resting
        if self._is_resting:
            monitor.rest_gpus(RESTING)
            return
        columns = monitor.columns
        monitor.open_gpus()
        if monitor.columns != columns:
            self._let_go()

    def _note_rest(self, at: float) -> None:
        rests = [(begin, end) for begin, end in self._rests if end is None or end > at - KEPT_S]
        if self._is_resting and (not rests or rests[-1][1] is not None):
            rests.append((at, None))
        elif not self._is_resting and rests and rests[-1][1] is None:
            rests[-1] = rests[-1][0], at
        self._rests = rests

    def _keep(self, monitor: Monitor, snapshot: Snapshot, now: float) -> None:
        if self._ring and not disk.same_file(self.root / RING, self._ring.fd):
            self._let_go()
        if self._ring is None:
            self._ring = self._open_ring(monitor)
        self._ring.append(snapshot.at, [snapshot.readings[name] for name in self._ring.shape.columns])
        noted_at, noted = self._noted
        if now - noted_at >= _NOTE_EVERY_S:
            notes = self._notes(snapshot)
            if notes != noted and not self._ring.note(notes):
                self._ring.note(notes | {"processes": [], "spans": []})
            self._noted = now, notes

    def _open_ring(self, monitor: Monitor) -> Writer:
        """The file as it was left, or a new one; none where runs will need the room."""
        columns = monitor.columns
        shape = Shape(columns, _CAPACITY, _NOTES_BYTES, {"gpus": list(monitor.gpu_names)})
        if not (self.root / RING).exists() and disk.is_short(self.root):
            raise OSError(errno.ENOSPC, "the store's disk is nearly full")
        ring = Writer.take_up(self.root / RING, shape)
        if self._spans_before is None:
            self._spans_before = _spans_in(ring)
        self._noted = (-_NOTE_EVERY_S, {})
        return ring

    def _let_go(self) -> None:
        if self._ring:
            self._ring.close()
            self._ring = None

    def _notes(self, snapshot: Snapshot) -> dict[str, Any]:
        """Beside the numbers: reasons (each once, with the columns it stands for), who holds GPU memory, runs."""
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
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _over(run: Run, span: Span, now: float) -> Span:
    return Span(span.run_id, span.words, span.begin, run.last_word.at if run.last_word else now)


def _spans_in(ring: Ring) -> tuple[Span, ...]:
    """The runs an earlier supervisor told of; what was going on when it ended went on at least until its last reading."""
    _, rows = ring.rows()
    last = float(rows[-1, 0]) if len(rows) else 0.0
    said = [Span(**span) for span in ring.notes()[1].get("spans", [])]
    return tuple(Span(span.run_id, span.words, span.begin, span.end or last) for span in said)
