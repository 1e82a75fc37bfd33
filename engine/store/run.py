"""One run, read from its folder and followed while its event log grows."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import threading
import zlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np
from pydantic import ValidationError

from engine.common.errors import ConfigError, StoreError
from engine.config.parsing import parse_config_json
from engine.config.run import RunConfig
from engine.events.base import TERMINAL, Event, Status
from engine.events.catalog import AnyEvent, status_after
from engine.events.imported import KEY_OF, Imported, Rows
from engine.events.inference import Latency, NotRun, Quality
from engine.events.lifecycle import (
    Cancelled,
    Failed,
    Interrupted,
    Progress,
    Queued,
    SeedBlock,
    Started,
    Starting,
    Terminal,
)
from engine.events.machine import Busy, HardwareSample
from engine.events.studies import Trial
from engine.events.summary import Summary, Work
from engine.events.target import target_reached
from engine.events.training import (
    Evaluation,
    Memory,
    PackedSteps,
    Steps,
    StepSplit,
    TargetReached,
)
from engine.store.columns import COLUMNS, HARDWARE, Table
from engine.store.event_log import LINE_BYTES, STEPS_LINE, decode, decode_steps
from engine.store.labels import LABELS_FILE, Labels
from engine.system.code_version import is_newer

_CONFIG_BYTES = 2**20
_MOST_PROBLEMS = 50  # described one by one; the others are only counted
THROUGHPUT_WINDOW_S = 0.2
_COUNTED = (*Work._fields, "epochs", "flops")  # figures that follow from the work
E = TypeVar("E", bound=Event)
SUMMARY_POINTS = 1_000  # of each kind: no figure of a summary needs more
_TAKEN_TOGETHER = 1_024  # events: 100,000 of one step each are read in 0.9 s instead of 6, and are never all in memory


class Run:
    """One run, read from its folder. `refresh()` reads the events that were added since; threads can share it.

    With `keep_points`, only about the newest `keep_points` rows of each table are held.

    Raises:
        StoreError: the configuration or the log cannot be read.
    """

    def __init__(self, folder: Path, *, keep_points: int | None = None) -> None:
        self.folder = folder
        self.run_id = folder.name
        self.lock = threading.RLock()
        self._keep_points = keep_points
        self.config: RunConfig = read_config(folder)
        self.status: Status = "queued"
        self._latest: dict[type, Event] = {}  # by class, also by the base class Terminal
        self._every: defaultdict[type[Event], list[Event]] = defaultdict(list)
        self._by_key: defaultdict[type[Event], dict[Hashable, Event]] = defaultdict(dict)
        self.evaluation_s = 0.0  # duration of all evaluations
        self.accuracy_standard_error: float | None = None  # of the last evaluation, where it is recorded
        self._busy_so_far: Busy | None = None
        self.missing_readings: dict[str, str] = {}
        self.problems: list[str] = []
        self.num_damaged = 0  # events that could not be read
        self.steps, self.evaluations, self.hardware, self.throughput, self.grad_norms = (
            Table(*names, keep=keep_points) for names in COLUMNS.values()
        )
        self._frozen_summary: Summary | None = None  # of an imported run
        self._window = (0.0, 0)  # training seconds and samples that are not yet in `throughput`
        self._newest_step = 0
        self._steps_read: list[PackedSteps] = []  # not yet in `steps`
        self._hardware_read: list[list[float | None]] = []  # not yet in `hardware`
        self._offset = 0
        self._checksum = 0
        self._too_long = False  # the cursor is within a line longer than LINE_BYTES
        self.refresh()

    @property
    def offset(self) -> int:
        """Number of bytes of the log that were read."""
        return self._offset

    def latest(self, kind: type[E]) -> E | None:
        """The last event of a class, or of its subclasses; None without one."""
        return cast("E | None", self._latest.get(kind))

    def all(self, kind: type[E]) -> list[E]:
        """The events of a class, oldest first, as far as the class keeps them (`Event.kept`). Do not change the list."""
        if kind.kept == "each key":
            return list(self.by_key(kind).values())
        if kind.kept == "latest":
            return [event] if (event := self.latest(kind)) else []
        return cast("list[E]", self._every[kind])

    def by_key(self, kind: type[E]) -> dict[Hashable, E]:
        """The last event of each key of a class that is kept by key. Do not change the dictionary."""
        return cast("dict[Hashable, E]", self._by_key[kind])

    @property
    def kinds(self) -> list[type[Event]]:
        """The classes of which the run has events, in the order of their first ones."""
        return list({type(event): None for event in self._latest.values()})

    # Events that many readers ask for. `ReportRun` (engine.reports.report) has most of them under the same names.

    @property
    def queued(self) -> Queued | None:
        """The submission."""
        return self.latest(Queued)

    @property
    def imported(self) -> Imported | None:
        """The origin of a run that was not made in this store."""
        return self.latest(Imported)

    @property
    def starting(self) -> Starting | None:
        """The process that was made for the run."""
        return self.latest(Starting)

    @property
    def started(self) -> Started | None:
        """The facts of the run that are known once model and data are on the device."""
        return self.latest(Started)

    @property
    def memory(self) -> Memory | None:
        """The memory that training needs."""
        return self.latest(Memory)

    @property
    def step_split(self) -> StepSplit | None:
        """The seconds of each part of a step."""
        return self.latest(StepSplit)

    @property
    def target_reached(self) -> TargetReached | None:
        """The evaluation that reached the target."""
        return self.latest(TargetReached)

    @property
    def last_word(self) -> Terminal | None:
        """The final event."""
        return self.latest(Terminal)

    @property
    def trials(self) -> list[Trial]:
        """The trials of a batch-size law."""
        return self.all(Trial)

    @property
    def latencies(self) -> list[Latency]:
        """The newest measurement of each cell of an inference run."""
        return self.all(Latency)

    @property
    def qualities(self) -> list[Quality]:
        """The quality of each form of the weights of an inference run."""
        return self.all(Quality)

    @property
    def not_run(self) -> list[NotRun]:
        """The cells of an inference run that are not measured."""
        return self.all(NotRun)

    @property
    def is_over(self) -> bool:
        """Whether the run has ended, in any way."""
        return self.status in TERMINAL

    @property
    def labels(self) -> Labels:
        """The present labels; empty ones if the file cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return Labels.model_validate_json((self.folder / LABELS_FILE).read_bytes())
        return Labels()

    @property
    def name(self) -> str:
        """The label, or the name that the run was submitted with."""
        name = self.labels.name
        return name if name is not None else self.queued.name if self.queued else ""

    @property
    def owner(self) -> str:
        """The id of the actor that submitted the run (engine.access.policy)."""
        return self.queued.owner if self.queued else ""

    @property
    def created(self) -> float:
        """Unix time of the submission, s."""
        if self.queued:
            return self.queued.at
        try:
            return self.folder.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def group(self) -> str | None:
        """The id of the group that the run was submitted with."""
        return self.queued.group if self.queued else None

    @property
    def heat(self) -> SeedBlock | None:
        """The seed block: the runs that this run takes turns with in one process."""
        return self.queued.heat if self.queued else None

    @property
    def order(self) -> int:
        """The number of the submission; it grows from run to run of a store."""
        return (self.queued and self.queued.order) or int(self.created * 1e6)

    def refresh(self) -> bool:
        """Read the events after the cursor; True if there were any.

        Raises:
            StoreError: the log cannot be read, or became shorter.
        """
        with self.lock:
            try:
                with (self.folder / "events.jsonl").open("rb") as file:
                    if os.fstat(file.fileno()).st_size < self._offset:
                        raise StoreError(
                            f"The log of run {self.run_id} became shorter while it was read.",
                            fix="Was it restored or edited? Open the run again.",
                        )
                    file.seek(self._offset)
                    return self._read(file)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StoreError(
                    f"The log of run {self.run_id} cannot be read: {error.strerror}.",
                    fix="Check the file's owner and permissions.",
                ) from None

    def _read(self, file: BinaryIO) -> bool:
        """Read complete lines, one at a time; a line that is still being written is left for the next call."""
        before = self._offset
        while line := file.readline(LINE_BYTES):
            whole = line.endswith(b"\n")
            if not whole and not self._too_long and len(line) < LINE_BYTES:
                break
            if self._too_long or not whole:
                self._skip(line, whole)
            else:
                self._read_line(line)
            self._offset += len(line)
        self._take_what_was_read()
        return self._offset > before

    def _skip(self, part: bytes, ends: bool) -> None:
        if not self._too_long:
            self._damaged(f"An event is longer than {LINE_BYTES:,} bytes.")
        self._too_long = not ends
        self._checksum = zlib.crc32(part, self._checksum)

    def _damaged(self, what: str) -> None:
        self.num_damaged += 1
        if self.num_damaged <= _MOST_PROBLEMS:
            self.problems.append(f"at byte {self._offset}: {what}")

    def _read_line(self, line: bytes) -> None:
        before = self._checksum
        self._checksum = zlib.crc32(line, before)
        try:
            if line.startswith(STEPS_LINE):
                self._read_steps(decode_steps(line))
                return
            event = decode(line)
            if isinstance(event, Steps):  # written with other blanks or in another order of fields
                self._read_steps(_packed(event))
                return
        except StoreError as error:
            self._damaged(error.message)
            return
        if isinstance(event, Terminal):
            self._take_what_was_read()
            self._check_completeness(event, before)
        if not self.is_over:
            self._take(event)
            self.status = status_after(self.status, event)

    def _check_completeness(self, last: Terminal, checksum: int) -> None:
        more = self.num_damaged - _MOST_PROBLEMS
        if more > 0:
            self.problems.append(f"{more:,} more events cannot be read")
        if last.checksum and last.checksum != f"{checksum:08x}":
            self.problems.append(
                f"the log was changed after it was written: {len(self.steps)} of {last.steps} steps and "
                f"{len(self.evaluations)} of {last.evaluations} evaluations can be read"
            )

    def _take(self, event: AnyEvent) -> None:
        match event:
            case Evaluation(step=step) if step <= _last_step(self.evaluations):
                self._damaged(f"The evaluation of step {step} is not in order.")
            case Evaluation(step=step, train_s=s, elapsed_s=e, test_loss=loss, test_accuracy=accuracy):
                self.evaluations.extend(step, s, e, loss, accuracy)
                self.evaluation_s += event.seconds
                self.accuracy_standard_error = event.test_accuracy_standard_error
            case HardwareSample(elapsed_s=elapsed, readings=readings, missing=missing):
                self._hardware_read.append([elapsed, *map(readings.get, HARDWARE)])
                self.missing_readings |= missing
                self._busy_so_far = event.busy or self._busy_so_far
            case Imported():
                self._take_import(event)
            case Rows():
                self._take_rows(event)
            case TargetReached(between=None):
                event = self._interpolated(event)
            case Terminal():
                seconds, count = self._window
                if seconds and not len(self.throughput):  # a run shorter than one window has a throughput, too
                    self.throughput.extend(self.steps.last("elapsed"), count / seconds)
            case _:
                pass
        self._keep(event)

    def _interpolated(self, event: TargetReached) -> TargetReached:
        """The event of an older Isoflop by the present rule, as far as the run still has its evaluations."""
        with contextlib.suppress(ValueError):  # times that are unknown or damaged
            found = target_reached(self.config.target, self.evaluations)
            if found and found.between and found.between[1] == event.step:
                return found
        return event

    def _keep(self, event: Event) -> None:
        """Keep an event as its class says (`Event.kept`)."""
        event_class, kept = type(event), event.kept
        if kept == "columns":
            return
        for kind in event_class.__mro__:
            if kind is Event:
                break
            self._latest[kind] = event
        if kept == "each key":
            self._by_key[event_class][event.key] = event
        elif kept != "latest":
            self._every[event_class].append(event)
            if kept == "series" and self._keep_points is not None:
                del self._every[event_class][: -self._keep_points]

    def _take_import(self, event: Imported) -> None:
        try:
            self._frozen_summary = Summary.model_validate(event.frozen.get("summary"))
        except ValidationError:
            self._damaged("The summary in its report cannot be read.")
        self.evaluation_s = event.evaluation_s
        self.problems += event.problems
        self.missing_readings |= event.missing_readings

    def _take_rows(self, event: Rows) -> None:
        table: Table = getattr(self, event.table)
        key = KEY_OF[event.table]
        if len(table) and event.columns[key][0] < (table.last(key) or 0.0):
            self._damaged(f"Rows of {event.table} are not in order.")
            return
        missing = frozenset(table.names) - event.columns.keys()
        table.unknown = table.unknown & missing if len(table) else missing
        nothing = np.full(len(event.columns[key]), math.nan)
        table.extend(*(event.columns.get(name, nothing) for name in table.names))

    def _read_steps(self, read: PackedSteps) -> None:
        last = read["first"] + len(read["loss"]) // 4 - 1
        if read["first"] <= self._newest_step:  # lines that were written twice or changed places
            raise StoreError(f"Steps {read['first']} to {last} are not in order.", fix="They are skipped.")
        if self.is_over:
            return
        self._newest_step = last
        self._steps_read.append(read)
        if len(self._steps_read) >= _TAKEN_TOGETHER:
            self._take_what_was_read()

    def _take_what_was_read(self) -> None:
        if rows := self._hardware_read:
            self.hardware.extend(*np.array(rows, dtype=np.float64).T)  # None, a failed reading, becomes NaN
            self._hardware_read = []
        if read := self._steps_read:
            self._take_steps(read)
            self._steps_read = []

    def _take_steps(self, read: list[PackedSteps]) -> None:
        n = np.array([len(r["loss"]) // 4 for r in read])
        start = np.cumsum(n) - n  # index of the first step of each event
        first = np.array([r["first"] for r in read])
        index = np.arange(n.sum()) - np.repeat(start, n)
        share = (index + 1) / np.repeat(n, n)  # the clock is read once per event, so its steps share the time evenly
        (t0, t1), (e0, e1) = (np.array([r[clock] for r in read]).T for clock in ("train_s", "elapsed_s"))
        seconds = np.repeat(t0, n) + np.repeat(t1 - t0, n) * share
        elapsed = np.repeat(e0, n) + np.repeat(e1 - e0, n) * share
        samples = np.cumsum(_joined((r["samples"] for r in read), "<i4"), dtype=np.float64)
        before = self.steps.last("samples") or 0.0
        self.steps.extend(
            np.repeat(first, n) + index,
            _joined((r["loss"] for r in read), "<f4"),
            seconds,
            elapsed,
            before + samples,
            _joined(map(_rates, read), "<f8"),
        )
        if len(norm_steps := _joined((r.get("norm_steps", b"") for r in read), "<i4")):
            k = np.array([len(r.get("norm_steps", b"")) // 4 for r in read])
            at = norm_steps - np.repeat(first - start, k)
            norms = _joined((r.get("grad_norm", b"") for r in read), "<f4")
            self.grad_norms.extend(norm_steps, seconds[at], elapsed[at], norms)
        self._take_throughput((t1 - t0).tolist(), e1.tolist(), np.diff(samples[start + n - 1], prepend=0.0).tolist())

    def _take_throughput(self, seconds: list[float], elapsed: list[float], samples: list[float]) -> None:
        """Add one throughput per window, from the training time and the samples of each event."""
        window, count = self._window
        rows = []
        for s, e, n in zip(seconds, elapsed, samples, strict=True):
            window, count = window + s, count + int(n)
            if window >= THROUGHPUT_WINDOW_S:
                rows.append((e, count / window))
                window, count = 0.0, 0
        self._window = (window, count)
        if rows:
            self.throughput.extend(*np.array(rows).T)

    def summary(self) -> Summary:
        """The figures of the run so far; those of the report for an imported run."""
        with self.lock:
            frozen = self._frozen_summary  # made from all steps; the imported file can hold fewer
            if not frozen:
                return self._summary()
            again = self._at_target() | (self._tested() if self.has_diverged else {})
            if frozen.steps == 0 and not self.config.task_facts.trains_one_model:
                # An early report says 0 where its study did not count.
                again |= {name: getattr(self._summary(), name) for name in _COUNTED}
            return frozen.model_copy(update=again)

    def _summary(self) -> Summary:
        """The figures, from the events."""
        started, last = self.started, self.last_word
        work = self._training() if self.config.task_facts.trains_one_model else self._trials()
        trained = work.samples if work.steps is not None else None  # not those that inference answered
        return Summary(
            steps=work.steps,
            samples=work.samples,
            epochs=trained and (trained / started.train_examples if started else None),
            train_seconds=work.train_seconds,
            samples_per_s=work.samples_per_s,
            final_train_loss=_recent_mean(self.steps, self.started),
            **self._tested(),
            largest_class_accuracy=started.largest_class_accuracy if started else None,
            flops=trained * started.train_flops_per_example if started and trained is not None else None,
            step_memory_bytes=self.memory.step_memory_bytes if self.memory else None,
            evaluation_memory_bytes=self.memory.evaluation_memory_bytes if self.memory else None,
            data_memory_bytes=self.memory.data_memory_bytes if self.memory else None,
            peak_memory_bytes=self.memory.peak_memory_bytes if self.memory else None,
            process_memory_bytes=last.peak_memory_bytes if last else None,
            energy_j=last.energy_j if last else None,
            busy=self.busy.is_busy if self.busy else None,
            busy_why=self.busy.in_words if self.busy else "",
            **self._at_target(),
        )

    def _tested(self) -> dict[str, Any]:
        """The figures on the test samples. The last evaluation of a run that diverged is one of other weights, from before."""
        if self.has_diverged:
            return {"test_loss": None, "test_accuracy": None}
        if quality := next(iter(self.qualities), None):
            return {"test_loss": quality.test_loss, "test_accuracy": quality.test_accuracy}
        return {name: self.evaluations.last(name) for name in ("test_loss", "test_accuracy")}

    def _at_target(self) -> dict[str, Any]:
        """Where the run reached its target; empty if it did not."""
        reached = self.target_reached
        return {"target_step": reached.step, "target_seconds": reached.train_s} if reached else {}

    def _training(self) -> Work:
        """The work of a run that trains one model."""
        samples, seconds = int(self.steps.last("samples") or 0), self.steps.last("seconds") or 0.0
        return Work(len(self.steps), samples, seconds, samples / seconds if seconds else None)

    def _trials(self) -> Work:
        """The work of all trials of a study."""
        events = [event for kind in self.kinds for event in self.all(kind)]
        return Work.total([work for event in events if (work := event.work)])

    @property
    def has_diverged(self) -> bool:
        """Whether the run ended because its training loss became NaN or infinite."""
        return isinstance(self.last_word, Failed) and self.last_word.cause == "Diverged"

    @property
    def diverged_at(self) -> int | None:
        """The first step whose training loss was NaN or infinite, of a run that ended because of that; else None."""
        if not self.has_diverged:
            return None
        bad = np.flatnonzero(~np.isfinite(self.steps["loss"]))
        return int(self.steps["step"][bad[0]]) if len(bad) else None

    @property
    def busy(self) -> Busy | None:
        """What other programs used the machine: so far, or in all once the run is over."""
        return (self.last_word.busy if self.last_word else None) or self._busy_so_far

    def why(self) -> str:
        """Why the run failed or was stopped, in words; empty if it finished or is not over."""
        match self.last_word:
            case Failed(message=message, fix=fix):
                return f"{message} {fix}".strip()
            case Cancelled(reason=reason) | Interrupted(reason=reason):
                return reason
            case _:
                return ""

    def progress(self) -> float | None:
        """Share of the budget used, 0..1, for the limit that is nearest; None before the run started."""
        if self.started is None:
            return None
        if not self.config.task_facts.trains_one_model:
            done = self.latest(Progress)
            return 1.0 if self.status == "finished" else min(1.0, done.done / done.total) if done else 0.0
        budget = self.config.budget
        shares = [len(self.steps) / self.started.total_steps] if self.started.total_steps else []
        if budget.seconds:
            shares.append((self.steps.last("seconds") or 0.0) / budget.seconds)
        return min(1.0, max(shares, default=0.0))


def _last_step(table: Table) -> float:
    last = table.last("step")
    return -1 if last is None else last


def _packed(event: Steps) -> PackedSteps:
    return {
        "first": event.first,
        "loss": event.loss.tobytes(),
        "samples": event.samples.tobytes(),
        "lr": event.lr if isinstance(event.lr, float) else event.lr.astype("<f8").tobytes(),
        "train_s": event.train_s,
        "elapsed_s": event.elapsed_s,
        "norm_steps": event.norm_steps.astype("<i4").tobytes(),
        "grad_norm": event.grad_norm.astype("<f4").tobytes(),
    }


def _joined(parts: Iterable[bytes], dtype: str) -> np.ndarray:
    return np.frombuffer(b"".join(parts), dtype)


def _rates(read: PackedSteps) -> bytes:
    """The learning rate of each step, packed as float64."""
    lr = read["lr"]
    return lr if isinstance(lr, bytes) else struct.pack("<d", lr) * (len(read["loss"]) // 4)


def _recent_mean(steps: Table, started: Started | None) -> float | None:
    """Mean training loss over the steps of the last epoch, at most the last 100: one batch alone is mostly noise."""
    if not len(steps):
        return None
    samples, loss = steps["samples"][-100:], steps["loss"][-100:]
    if started:
        loss = loss[samples > samples[-1] - started.train_examples]
    return float(np.mean(loss))


def read_config(folder: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
        StoreError: config.json is missing, damaged or of a newer Isoflop.
    """  # noqa: DOC501 - the ConfigError does not leave the function
    try:
        with (folder / "config.json").open("rb") as file:
            content = file.read(_CONFIG_BYTES + 1)
        if len(content) > _CONFIG_BYTES:
            raise ConfigError(f"config.json is larger than {_CONFIG_BYTES:,} bytes.", fix="Delete the run.")
        text = content.decode()
        return parse_config_json(text, name="config.json")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"Run {folder.name} has no readable config.json: {type(error).__name__}.", fix="Delete the run."
        ) from None
    except ConfigError as error:
        if needs := needed_version(queued_event(folder)):
            raise StoreError(f"Run {folder.name} {needs}.", fix="Update Isoflop.") from None
        raise StoreError(f"Run {folder.name} cannot be read: {error.message}", fix=error.fix) from None


def queued_event(folder: Path) -> Queued | None:
    """The first event of a run's log; None if it cannot be read."""
    with contextlib.suppress(OSError, StoreError), (folder / "events.jsonl").open("rb") as file:
        first = decode(file.readline(65_536))
        return first if isinstance(first, Queued) else None
    return None


def needed_version(queued: Queued | None) -> str:
    """The Isoflop version that a run needs, in words, if a newer one submitted it; else empty."""
    return f"needs Isoflop >= {queued.version}" if queued and is_newer(queued.version) else ""
