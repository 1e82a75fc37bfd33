"""The run folders and the index over them.

    $ISOFLOP_HOME/
      runs/<id>/config.json, events.jsonl, model.safetensors   the truth: one folder, one run, nothing shared
      inbox/                                                   commands on their way to the supervisor
      reserve                                                  room for last words on a full disk
      index.sqlite                                             derived: one row per run, rebuilt at will

A log line is an event's JSON with the CRC-32 of the rest as its last member. A reader follows by byte offset, leaves a
line that is still being written for the next time, and skips a line whose checksum is wrong and counts it.

A run that cannot be recorded is worth nothing: while its log cannot be written (the disk is full, or read-only) it goes
on for ten seconds, keeping what it has to say, and then ends as failed. The log stays a prefix of what was said.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import logging
import math
import os
import re
import secrets
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from engine import __version__, disk, query, records
from engine.code_version import is_newer
from engine.config import Cell, RunConfig, describe, parse_config_json
from engine.errors import ConfigError, StoreError, StoreGone
from engine.locks import is_claimed, lock
from engine.processes import is_same_process, own_identity
from engine.query import Condition
from engine.records import AnyEvent, Status, Summary
from engine.text import clean_name, encodable, visible, visible_json

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.([0-9a-f]{16}|import-[0-9a-f]{16}|deleted-[0-9a-f]{16}|reserve|.+\.[0-9a-f]{8})")
STOP_FILE = "stop"  # in a run's folder: its supervisor asks it to stop
WORD_FILE = "lost"  # beside it: a rank says why it ended rank 0, which writes the log
_LONGEST_WORD = 2_000
LABELS_FILE = "labels.json"  # beside the log: what people say of the run
MOST_TAGS, LONGEST_TAG, LONGEST_NOTES = 20, 40, 4_000
_IMPORTER, _PLACED = "importer.json", "placed.json"  # of an import: who makes it, and what it has begun to put in place
_PLACE = re.compile(r"runs/[0-9a-f]{16}|reports/[0-9a-f]{16}\.json")
_ORDER = "order"  # the number of the newest submission
_FLUSH_S = 0.2
_PATIENCE_S = 10.0  # a run goes on for so long while its log cannot be written
_LAST_WORD_S = 5.0  # and tries for so long to say how it ended
_CRC_MEMBER = b',"crc":"'
LINE_BYTES = 8 * 2**20  # the longest record: ten minutes of steps in one read-back are shorter
_CONFIG_BYTES = 2**20
_MOST_PROBLEMS = 50  # said one by one; the others are counted
_STALE_S = 60.0
_CATCH_UP_S = 0.2
STEPS_LINE = b'{"kind":"steps",'  # nearly all lines of a long log

logger = logging.getLogger("isoflop.store")


def default_root() -> Path:
    """`$ISOFLOP_HOME`, or ~/.isoflop."""
    return Path(os.environ.get("ISOFLOP_HOME") or Path.home() / ".isoflop").expanduser().resolve()


def private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, text: str) -> None:
    """All of the text under its name, or nothing; readable by the owner only."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


class StopRequest(BaseModel):
    """How a run shall end, and why."""

    status: Literal["cancelled", "interrupted"] = "cancelled"
    reason: str = "cancelled by the user"

    def last_word(self) -> records.Cancelled | records.Interrupted:
        kind = records.Cancelled if self.status == "cancelled" else records.Interrupted
        return kind(at=time.time(), reason=self.reason)


def ask_to_stop(folder: Path, request: StopRequest) -> None:
    write_atomically(folder / STOP_FILE, request.model_dump_json())


def stop_request(folder: Path) -> StopRequest | None:
    """What a run was asked, if it was. A request that cannot be read is one all the same."""
    try:
        return StopRequest.model_validate_json((folder / STOP_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return StopRequest()


def leave_word(folder: Path, text: str) -> None:
    """What somebody knows of the end of a run whose own process can say nothing any more."""
    with contextlib.suppress(OSError):
        write_atomically(folder / WORD_FILE, text)


def left_word(folder: Path) -> str:
    """Such a word, and then it is gone; empty where there is none."""
    path = folder / WORD_FILE
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST_WORD).decode(errors="replace")
    except OSError:
        return ""
    disk.remove(path)
    return text


class Labels(BaseModel):
    """What people say of a run. It lies beside the log, which only grows and only by who runs it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str | None = None  # None: as it was called when it was asked for
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without blanks around them, each once. Raises ConfigError for too many, too long or invisible ones."""
    found = tuple(dict.fromkeys(clean_name(tag) for tag in tags if tag.strip()))
    if long := next((tag for tag in found if len(tag) > LONGEST_TAG or "," in tag), None):
        raise ConfigError(
            f"The tag {visible(long, 30)!r} is too long or holds a comma.",
            fix=f"A tag may have {LONGEST_TAG} characters.",
        )
    if len(found) > MOST_TAGS:
        raise ConfigError(f"{len(found)} tags are too many.", fix=f"A run may have {MOST_TAGS}.")
    return found


def clean_notes(text: str) -> str:
    if len(text) > LONGEST_NOTES:
        raise ConfigError(f"The notes have {len(text):,} characters.", fix=f"They may have {LONGEST_NOTES:,}.")
    return encodable(text.strip())


# --- the event log ------------------------------------------------------------------------------------------------


def encode(event: records.Event) -> bytes:
    """The event's line of a log: its JSON, with the CRC-32 of that as the last member."""
    body = event.model_dump_json().encode()
    return body[:-1] + _CRC_MEMBER + b'%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> AnyEvent:
    """The event of one whole line; raises StoreError when the line is not what was written."""
    return decode_as(line, records.EVENT)


Record = TypeVar("Record")


def decode_as(line: bytes, kinds: TypeAdapter[Record]) -> Record:
    """The record of one whole line, of the kinds given; raises StoreError when the line is not what was written."""
    body = _checked(line)
    try:
        return kinds.validate_json(body)
    except ValidationError as error:
        raise _not_understood(error.errors()[0]["msg"]) from None


def decode_steps(line: bytes) -> records.PackedSteps:
    """The same for a line that starts with `STEPS_LINE`, arrays left packed but of the right lengths."""
    packed = decode_as(line, records.PACKED_STEPS)
    size, lr = len(packed["loss"]), packed["lr"]
    if not size or size % 4 or len(packed["samples"]) != size or (isinstance(lr, bytes) and len(lr) != 2 * size):
        raise _not_understood("its arrays are not of one length")
    if max(packed["samples"][3::4]) > 127:  # the sign of a little-endian number is in its last byte
        raise _not_understood("a step of fewer than no samples")
    (t0, t1), (e0, e1) = packed["train_s"], packed["elapsed_s"]
    if t0 > t1 or e0 > e1:
        raise _not_understood("time that runs backwards")
    if norm_steps := packed.get("norm_steps", b""):
        _check_norms(packed, norm_steps)
    elif packed.get("grad_norm"):
        raise _not_understood("gradient norms of no steps")
    return packed


def _check_norms(packed: records.PackedSteps, norm_steps: bytes) -> None:
    if len(norm_steps) % 4 or len(packed.get("grad_norm", b"")) != len(norm_steps):
        raise _not_understood("its gradient norms are not of one length")
    numbers = struct.unpack(f"<{len(norm_steps) // 4}i", norm_steps)
    first, size = packed["first"], len(packed["loss"]) // 4
    if not first <= min(numbers) <= max(numbers) < first + size:
        raise _not_understood(f"gradient norms of steps outside {first} to {first + size - 1}")


def _checked(line: bytes) -> bytes:
    """What a whole line says, without its checksum."""
    head, found, tail = line.rpartition(_CRC_MEMBER)
    body = head + b"}"
    if not found or tail.rstrip(b"\n") != b'%08x"}' % zlib.crc32(body):
        raise StoreError("A record's checksum does not match.", fix="It is skipped; the other records stand.")
    return body


def _not_understood(why: str) -> StoreError:
    return StoreError(f"A record is not understood: {why}.", fix="A newer Isoflop may read it.")


class EventLog:
    """Appends a run's events. One process writes at a time; several threads of it may.

    Raises StoreGone at once when the log is not where it was, StoreError when it could not be written for `patience_s`
    (StoreFull when the disk is the reason); OSError when it cannot even be opened.
    """

    def __init__(self, path: Path, *, patience_s: float | None = None) -> None:
        self.path = path
        self._patience_s = _PATIENCE_S if patience_s is None else patience_s
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(fd, "ab", buffering=0)
        self._lock = threading.Lock()
        self.checksum, torn = _checksum_of(path)
        # After a crash the last line may be half: ended, it is one rotten record and the next line is whole.
        self._pending = bytearray(b"\n" if torn else b"")
        self.checksum = zlib.crc32(self._pending, self.checksum)
        self._flushed_at = -math.inf
        self._failing_since: float | None = None
        self.steps = 0
        self.evaluations = 0

    def append(self, event: AnyEvent) -> None:
        line = encode(event)
        with self._lock:
            self._pending += line
            self.checksum = zlib.crc32(line, self.checksum)
            first_point = isinstance(event, records.Steps) and not self.steps  # someone waits for it
            if isinstance(event, records.Steps):
                self.steps += len(event.loss)
            elif isinstance(event, records.Evaluation):
                self.evaluations += 1
            quiet = isinstance(event, records.Steps | records.HardwareSample)
            if not quiet or first_point or time.monotonic() - self._flushed_at >= _FLUSH_S:
                try:
                    self._write()
                except StoreError:  # said to who trains, not to the thread that samples
                    if not isinstance(event, records.HardwareSample):
                        raise

    def flush_if_due(self) -> None:
        """Never raises: the thread that watches a run has more to look after. The next `append` says what is wrong."""
        with self._lock:
            if self._pending and time.monotonic() - self._flushed_at >= _FLUSH_S:
                with contextlib.suppress(StoreError):
                    self._write()

    def close(self, last: records.Terminal, *, steps: int | None = None, evaluations: int | None = None) -> None:
        """Write the run's last word, with the counts and checksum a reader compares against.

        Who speaks for a process that is gone passes the counts it could read. On a full disk the store's reserve is
        given up for it.
        """
        with self._lock, self._file:
            counted = {
                "steps": self.steps if steps is None else steps,
                "evaluations": self.evaluations if evaluations is None else evaluations,
                "checksum": f"{self.checksum:08x}",
            }
            self._pending += encode(last.model_copy(update=counted))
            until = time.monotonic() + min(_LAST_WORD_S, self._patience_s)
            while True:
                try:
                    self._write_out()
                    os.fsync(self._file.fileno())
                    return
                except OSError as error:
                    if disk.is_full(error) and disk.release_reserve(self.path.parents[2]):
                        continue
                    if time.monotonic() >= until:
                        raise disk.unwritable(error, "The run's log") from None
                    time.sleep(0.1)

    def _write(self) -> None:
        try:
            self._write_out()
            if disk.is_short(self._file.fileno()):
                raise disk.shortage(self._file.fileno())
        except StoreGone:
            raise
        except (OSError, StoreError) as error:
            now = time.monotonic()
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since >= self._patience_s:
                raise self._in_words(error) from None
        else:
            self._failing_since = None
            self._flushed_at = time.monotonic()

    def _in_words(self, error: OSError | StoreError) -> StoreError:
        if isinstance(error, StoreError):
            return error
        return disk.shortage(self._file.fileno()) if disk.is_full(error) else disk.unwritable(error, "The run's log")

    def _write_out(self) -> None:
        """A disk that fills up takes a part of what it is given: the rest follows it, so no line is torn."""
        fd = self._file.fileno()
        if not disk.same_file(self.path, fd):
            raise StoreGone("The run's folder is gone: it was moved or deleted while the run was at work.")
        while self._pending:
            del self._pending[: os.write(fd, self._pending)]


def _checksum_of(path: Path) -> tuple[int, bool]:
    """CRC-32 of a whole file, and whether its last line has no end."""
    checksum, piece = 0, b"\n"
    with path.open("rb") as file:
        while read := file.read(2**20):
            checksum, piece = zlib.crc32(read, checksum), read
    return checksum, not piece.endswith(b"\n")


# --- a run, read incrementally ------------------------------------------------------------------------------------


class Table:
    """Columns of float64 that grow at the end; appending is amortised O(1).

    With `keep`, only about the newest that many rows (never fewer) are held; `len` counts those let go as well.
    """

    def __init__(self, *names: str, keep: int | None = None) -> None:
        self.names = names
        self._data = np.empty((len(names), 64))
        self._rows = 0
        self._keep = keep
        self._let_go = 0
        self.unknown: frozenset[str] = (
            frozenset()
        )  # columns that who imported the rows knows nothing of: NaN, but not measured

    def __len__(self) -> int:
        return self._let_go + self._rows

    def extend(self, *columns: Any) -> None:
        added = max(np.size(c) for c in columns)
        while self._rows + added > self._data.shape[1]:
            self._data = np.concatenate([self._data, np.empty_like(self._data)], axis=1)
        for row, column in zip(self._data, columns, strict=True):
            row[self._rows : self._rows + added] = column
        self._rows += added
        if self._keep is not None and self._rows > 8 * self._keep:
            self._data = self._data[:, self._rows - self._keep : self._rows].copy()
            self._let_go += self._rows - self._keep
            self._rows = self._keep

    def __getitem__(self, name: str) -> np.ndarray:
        return self._data[self.names.index(name), : self._rows]

    def knows(self, name: str) -> bool:
        return name not in self.unknown

    def last(self, name: str) -> float | None:
        return float(self[name][-1]) if self._rows else None


HARDWARE = (
    "process_cpu_percent", "system_cpu_percent", "process_memory_bytes", "system_memory_used_bytes",
    "gpu_utilization_percent", "gpu_memory_used_bytes", "gpu_power_w", "gpu_temperature_c", "gpu_sm_clock_hz",
    "gpu_throttle_reasons", "gpu_other_processes", "energy_j", "cpu_power_w",
)  # fmt: skip
COLUMNS = {  # of the tables of a run
    "steps": ("step", "loss", "seconds", "elapsed", "samples", "lr"),
    "evaluations": ("step", "seconds", "elapsed", "test_loss", "test_accuracy"),
    "hardware": ("elapsed", *HARDWARE),
    "throughput": ("elapsed", "samples_per_s"),
    "grad_norms": ("step", "seconds", "elapsed", "grad_norm"),
}
THROUGHPUT_WINDOW_S = 0.2
SUMMARY_POINTS = 1_000  # of each kind: more than any figure of a summary looks back
_TAKEN_TOGETHER = 1_024  # records: 100,000 of one step each are read in 0.9 s instead of 6, and never held all at once


class Run:
    """One run as its folder tells it. `refresh()` reads what was added since the last time; safe across threads."""

    def __init__(self, folder: Path, *, keep_points: int | None = None) -> None:
        self.folder = folder
        self.run_id = folder.name
        self.lock = threading.RLock()
        self._keep_points = keep_points
        self.config: RunConfig = read_config(folder)
        self.status: Status = "queued"
        self.queued: records.Queued | None = None
        self.imported: records.Imported | None = None  # where it was not made here
        self.starting: records.Starting | None = None
        self.started: records.Started | None = None
        self.preparing: records.Preparing | None = None
        self.compiled: records.Compiled | None = None
        self.warm_up: records.WarmUp | None = None
        self.memory: records.Memory | None = None
        self.step_split: records.StepSplit | None = None
        self.evaluation_s = 0.0  # all evaluations together
        self.target_reached: records.TargetReached | None = None
        self.surface: records.Surface | None = None
        self.calibration: records.Calibration | None = None
        self.done_so_far: records.Progress | None = None  # of a task without steps
        self._busy_so_far: records.Busy | None = None
        self.last_word: records.Finished | records.Cancelled | records.Failed | records.Interrupted | None = None
        self.artifacts: list[records.Artifact] = []
        self.trials: list[records.Trial] = []  # of a batch-size law
        self.latencies: dict[Cell, records.Latency] = {}  # of inference: the last word of each cell
        self.qualities: dict[tuple[str, str], records.Quality] = {}  # by precision and runtime
        self.not_run: dict[Cell, records.NotRun] = {}
        self.ranks: list[records.Ranks] = []  # of a data-parallel run, one for each second
        self.missing_readings: dict[str, str] = {}
        self.problems: list[str] = []
        self.num_damaged = 0  # records that could not be read
        self.steps, self.evaluations, self.hardware, self.throughput, self.grad_norms = (
            Table(*names, keep=keep_points) for names in COLUMNS.values()
        )
        self._frozen_summary: Summary | None = None  # of an imported run
        self._window = (0.0, 0)  # seconds and samples not yet in `throughput`
        self._newest_step = 0
        self._steps_read: list[records.PackedSteps] = []  # not yet in `steps`
        self._hardware_read: list[list[float | None]] = []  # nor in `hardware`
        self._offset = 0
        self._checksum = 0
        self._too_long = False  # within a line that is longer than any record
        self.refresh()

    @property
    def offset(self) -> int:
        """How many bytes of the log are read."""
        return self._offset

    @property
    def is_over(self) -> bool:
        return self.status in records.TERMINAL

    @property
    def labels(self) -> Labels:
        """As they are now; none where the file cannot be read."""
        with contextlib.suppress(OSError, ValueError):
            return Labels.model_validate_json((self.folder / LABELS_FILE).read_bytes())
        return Labels()

    @property
    def name(self) -> str:
        name = self.labels.name
        return name if name is not None else self.queued.name if self.queued else ""

    @property
    def owner(self) -> str:
        """The id of who asked for it (engine.access)."""
        return self.queued.owner if self.queued else ""

    @property
    def created(self) -> float:
        if self.queued:
            return self.queued.at
        try:
            return self.folder.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def group(self) -> str | None:
        """What it was submitted together with."""
        return self.queued.group if self.queued else None

    @property
    def heat(self) -> records.Heat | None:
        """Whom it takes turns with."""
        return self.queued.heat if self.queued else None

    @property
    def order(self) -> int:
        """Its place among the submissions of its store."""
        return (self.queued and self.queued.order) or int(self.created * 1e6)

    def refresh(self) -> bool:
        """Read on from the cursor; True when something was new."""
        with self.lock:
            try:
                with (self.folder / "events.jsonl").open("rb") as file:
                    if os.fstat(file.fileno()).st_size < self._offset:
                        raise StoreError(
                            f"The log of run {self.run_id} became shorter while it was read.",
                            fix="Was it restored, or edited? Open the run anew.",
                        )
                    file.seek(self._offset)
                    return self._read(file)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StoreError(
                    f"The log of run {self.run_id} cannot be read: {error.strerror}.",
                    fix="Check the file's owner and rights.",
                ) from None

    def _read(self, file: BinaryIO) -> bool:
        """Whole lines; one still being written waits for the next time. Never more than one line is in memory."""
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
            self._damaged(f"A record is longer than {LINE_BYTES:,} bytes.")
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
            if isinstance(event, records.Steps):  # the same, written with other blanks or in another order
                self._read_steps(_packed(event))
                return
        except StoreError as error:
            self._damaged(error.message)
            return
        if isinstance(event, records.Terminal):
            self._take_what_was_read()
            self._check_completeness(event, before)
        if not self.is_over:
            self._take(event)
            self.status = records.status_after(self.status, event)

    def _check_completeness(self, last: records.Terminal, checksum: int) -> None:
        more = self.num_damaged - _MOST_PROBLEMS
        if more > 0:
            self.problems.append(f"{more:,} more records cannot be read")
        if last.checksum and last.checksum != f"{checksum:08x}":
            self.problems.append(
                f"the log is not as it was written: {len(self.steps)} of {last.steps} steps and "
                f"{len(self.evaluations)} of {last.evaluations} evaluations can be read"
            )

    def _take(self, event: AnyEvent) -> None:
        match event:
            case records.Evaluation(step=step) if step <= _last_step(self.evaluations):
                self._damaged(f"The evaluation of step {step} is not in order.")
            case records.Evaluation(step=step, train_s=s, elapsed_s=e, test_loss=loss, test_accuracy=accuracy):
                self.evaluations.extend(step, s, e, loss, accuracy)
                self.evaluation_s += event.seconds
            case records.HardwareSample(elapsed_s=elapsed, readings=readings, missing=missing):
                self._hardware_read.append([elapsed, *map(readings.get, HARDWARE)])
                self.missing_readings |= missing
                self._busy_so_far = event.busy or self._busy_so_far
            case records.Queued():
                self.queued = event
            case records.Imported():
                self._take_import(event)
            case records.Rows():
                self._take_rows(event)
            case records.Starting():
                self.starting = event
            case records.Started():
                self.started = event
            case records.Preparing():
                self.preparing = event
            case records.Compiled():
                self.compiled = event
            case records.WarmUp():
                self.warm_up = event
            case records.Memory():
                self.memory = event
            case records.StepSplit():
                self.step_split = event
            case records.TargetReached():
                self.target_reached = event
            case records.Artifact():
                self.artifacts.append(event)
            case records.Trial():
                self.trials.append(event)
            case records.Latency():
                self.latencies[event.cell] = event
            case records.Quality():
                self.qualities[event.precision, event.runtime] = event
            case records.NotRun():
                self.not_run[event.cell] = event
            case records.Ranks():
                self.ranks.append(event)
                if self._keep_points is not None:
                    del self.ranks[: -self._keep_points]
            case records.Surface():
                self.surface = event
            case records.Calibration():
                self.calibration = event
            case records.Progress():
                self.done_so_far = event
            case records.Finished() | records.Cancelled() | records.Failed() | records.Interrupted():
                self.last_word = event
                seconds, count = self._window
                if seconds and not len(self.throughput):  # a run shorter than one window has a throughput too
                    self.throughput.extend(self.steps.last("elapsed"), count / seconds)
            case _:
                pass

    def _take_import(self, event: records.Imported) -> None:
        try:
            self._frozen_summary = Summary.model_validate(event.frozen.get("summary"))
        except ValidationError:
            self._damaged("What its report says of it as a whole is not understood.")
        self.imported = event
        self.evaluation_s = event.evaluation_s
        self.problems += event.problems
        self.missing_readings |= event.missing_readings

    def _take_rows(self, event: records.Rows) -> None:
        table: Table = getattr(self, event.table)
        key = records.KEY_OF[event.table]
        if len(table) and event.columns[key][0] < (table.last(key) or 0.0):
            self._damaged(f"Rows of {event.table} are not in order.")
            return
        missing = frozenset(table.names) - event.columns.keys()
        table.unknown = table.unknown & missing if len(table) else missing
        nothing = np.full(len(event.columns[key]), math.nan)
        table.extend(*(event.columns.get(name, nothing) for name in table.names))

    def _read_steps(self, read: records.PackedSteps) -> None:
        last = read["first"] + len(read["loss"]) // 4 - 1
        if read["first"] <= self._newest_step:  # written twice, or lines that changed places
            raise StoreError(f"Steps {read['first']} to {last} are not in order.", fix="They are skipped.")
        if self.is_over:
            return
        self._newest_step = last
        self._steps_read.append(read)
        if len(self._steps_read) >= _TAKEN_TOGETHER:
            self._take_what_was_read()

    def _take_what_was_read(self) -> None:
        if rows := self._hardware_read:
            self.hardware.extend(*np.array(rows, dtype=np.float64).T)  # a reading that failed, None, becomes NaN
            self._hardware_read = []
        if read := self._steps_read:
            self._take_steps(read)
            self._steps_read = []

    def _take_steps(self, read: list[records.PackedSteps]) -> None:
        n = np.array([len(r["loss"]) // 4 for r in read])
        start = np.cumsum(n) - n  # where each record's steps begin among all that were read
        first = np.array([r["first"] for r in read])
        index = np.arange(n.sum()) - np.repeat(start, n)
        share = (index + 1) / np.repeat(n, n)  # within one read-back the clock was not read: steps share it evenly
        (t0, t1), (e0, e1) = (np.array([r[clock] for r in read]).T for clock in ("train_s", "elapsed_s"))
        seconds = np.repeat(t0, n) + np.repeat(t1 - t0, n) * share
        elapsed = np.repeat(e0, n) + np.repeat(e1 - e0, n) * share
        samples = np.cumsum(_joined((r["samples"] for r in read), "<i4"), dtype=np.float64)
        before = self.steps.last("samples") or 0.0
        self.steps.extend(
            np.repeat(first, n) + index, _joined((r["loss"] for r in read), "<f4"), seconds, elapsed, before + samples,
            _joined(map(_rates, read), "<f8"),
        )  # fmt: skip
        if len(norm_steps := _joined((r.get("norm_steps", b"") for r in read), "<i4")):
            k = np.array([len(r.get("norm_steps", b"")) // 4 for r in read])
            at = norm_steps - np.repeat(first - start, k)
            norms = _joined((r.get("grad_norm", b"") for r in read), "<f4")
            self.grad_norms.extend(norm_steps, seconds[at], elapsed[at], norms)
        self._take_throughput((t1 - t0).tolist(), e1.tolist(), np.diff(samples[start + n - 1], prepend=0.0).tolist())

    def _take_throughput(self, seconds: list[float], elapsed: list[float], samples: list[float]) -> None:
        """From the training time and the samples of each read-back: one value for each window."""
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
        with self.lock:
            if self._frozen_summary:  # made from all steps; the file may hold fewer
                return self._frozen_summary
            steps, started, last = len(self.steps), self.started, self.last_word
            if self.config.task == "infer":
                return self._summary_of_inference()
            samples = int(self.steps.last("samples") or 0)
            seconds = self.steps.last("seconds") or 0.0
            return Summary(
                steps=steps,
                samples=samples,
                epochs=samples / started.train_examples if started else 0.0,
                train_seconds=seconds,
                samples_per_s=samples / seconds if seconds else None,
                final_train_loss=_recent_mean(self.steps, self.started),
                test_loss=self.evaluations.last("test_loss"),
                test_accuracy=self.evaluations.last("test_accuracy"),
                flops=samples * started.train_flops_per_example if started else None,
                peak_memory_bytes=self.memory.training_bytes if self.memory else None,
                process_memory_bytes=last.peak_memory_bytes if last else None,
                energy_j=last.energy_j if last else None,
                busy=self.busy.is_busy if self.busy else None,
                busy_why=self.busy.in_words if self.busy else "",
                target_step=self.target_reached.step if self.target_reached else None,
                target_seconds=self.target_reached.train_s if self.target_reached else None,
            )

    @property
    def busy(self) -> records.Busy | None:
        """What else used the machine, by now or, once the run is over, in all."""
        return (self.last_word.busy if self.last_word else None) or self._busy_so_far

    def _summary_of_inference(self) -> Summary:
        """The best throughput of any cell, and what the weights answer in their first form."""
        last, quality = self.last_word, next(iter(self.qualities.values()), None)
        return Summary(
            samples_per_s=max((found.samples_per_s for found in self.latencies.values()), default=None),
            test_loss=quality.test_loss if quality else None,
            test_accuracy=quality.test_accuracy if quality else None,
            process_memory_bytes=last.peak_memory_bytes if last else None,
            energy_j=last.energy_j if last else None,
            busy=last.busy.is_busy if last and last.busy else None,
            busy_why=last.busy.in_words if last and last.busy else "",
        )

    def why(self) -> str:
        """In words, why a run ended as it did; empty for one that finished or still runs."""
        match self.last_word:
            case records.Failed(message=message, fix=fix):
                return f"{message} {fix}".strip()
            case records.Cancelled(reason=reason) | records.Interrupted(reason=reason):
                return reason
            case _:
                return ""

    def progress(self) -> float | None:
        """Share of the budget used, 0..1, by whichever limit is nearest; None before the run started."""
        if self.started is None:
            return None
        if self.config.task != "train":
            done = self.done_so_far
            return 1.0 if self.status == "finished" else min(1.0, done.done / done.total) if done else 0.0
        budget = self.config.budget
        shares = [len(self.steps) / self.started.total_steps] if self.started.total_steps else []
        if budget.seconds:
            shares.append((self.steps.last("seconds") or 0.0) / budget.seconds)
        return min(1.0, max(shares, default=0.0))


def _last_step(table: Table) -> float:
    last = table.last("step")
    return -1 if last is None else last


def _packed(event: records.Steps) -> records.PackedSteps:
    return {
        "first": event.first, "loss": event.loss.tobytes(), "samples": event.samples.tobytes(),
        "lr": event.lr if isinstance(event.lr, float) else event.lr.astype("<f8").tobytes(), "train_s": event.train_s,
        "elapsed_s": event.elapsed_s, "norm_steps": event.norm_steps.astype("<i4").tobytes(),
        "grad_norm": event.grad_norm.astype("<f4").tobytes(),
    }  # fmt: skip


def _joined(parts: Iterable[bytes], dtype: str) -> np.ndarray:
    return np.frombuffer(b"".join(parts), dtype)


def _rates(read: records.PackedSteps) -> bytes:
    """The learning rate of every step, packed."""
    lr = read["lr"]
    return lr if isinstance(lr, bytes) else struct.pack("<d", lr) * (len(read["loss"]) // 4)


def _recent_mean(steps: Table, started: records.Started | None) -> float | None:
    """Mean loss over the last epoch's steps (at most the last 100): one batch alone is mostly noise."""
    if not len(steps):
        return None
    samples, loss = steps["samples"][-100:], steps["loss"][-100:]
    if started:
        loss = loss[samples > samples[-1] - started.train_examples]
    return float(np.mean(loss))


_KIND = re.compile(rb'\{"kind":"(\w+)"')


def events_of(folder: Path, but: Collection[str]) -> Iterator[AnyEvent]:
    """The records of a run's log that can be read, but those of some kinds, which are not even unpacked."""
    with contextlib.suppress(FileNotFoundError), (folder / "events.jsonl").open("rb") as file:
        while line := file.readline(LINE_BYTES):
            found = _KIND.match(line)
            if found and found[1].decode() not in but:
                with contextlib.suppress(StoreError):  # whoever reads the run says so
                    yield decode(line)


def read_config(folder: Path) -> RunConfig:
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
        if needs := _newer_version(_queued(folder)):
            raise StoreError(f"Run {folder.name} {needs}.", fix="Update Isoflop.") from None
        raise StoreError(f"Run {folder.name} cannot be read: {error.message}", fix=error.fix) from None


def _queued(folder: Path) -> records.Queued | None:
    """The first event of a run's log; None where it cannot be read."""
    with contextlib.suppress(OSError, StoreError), (folder / "events.jsonl").open("rb") as file:
        first = decode(file.readline(65_536))
        return first if isinstance(first, records.Queued) else None
    return None


def _newer_version(queued: records.Queued | None) -> str:
    """Which Isoflop a run needs, in words, where a newer one than this asked for it; else empty."""
    return f"needs Isoflop >= {queued.version}" if queued and is_newer(queued.version) else ""


# --- the store ----------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """A run that is asked for; one `key` makes one run."""

    config: RunConfig
    name: str = ""
    key: str = ""
    heat: records.Heat | None = None


class RunRow(BaseModel):
    """A run in a list: what the index holds of it."""

    run_id: str
    name: str
    status: Status
    created: float
    config: RunConfig
    summary: Summary
    group: str | None = None
    owner: str = ""
    why: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False
    needs: str = ""  # the newer Isoflop that alone can read it; `config` is then the default, not the run's


def _gone() -> StoreGone:
    return StoreGone(
        "The store's folder is gone: it was moved or deleted while it was in use.",
        fix="Put it back, or start again with ISOFLOP_HOME set to a folder you own.",
    )


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class RunLine:
    """A run in a long list: what stands in its columns, without its configuration."""

    run_id: str
    name: str
    status: Status
    created: float
    group: str | None
    why: str
    words: str  # the experiment, as RunConfig.in_words says it
    seed: int | None
    test_accuracy: float | None
    final_train_loss: float | None
    samples_per_s: float | None
    train_seconds: float | None
    steps: int
    busy: bool | None  # whether something else used the machine; None is not known
    tags: tuple[str, ...] = ()
    notes: str = ""
    pinned: bool = False

    @property
    def is_imported(self) -> bool:
        return self.words.endswith(IMPORTED)


@dataclass(frozen=True, slots=True)
class GroupLine:
    """Runs that were asked for together, in a list."""

    group: str
    created: float
    num_runs: int
    num_alive: int
    num_lanes: int  # that differ in more than their seed, or in their name
    most_ranks: int
    lanes: tuple[str, ...]  # some of their names
    data: str
    is_imported: bool

    def with_more(self, other: GroupLine) -> GroupLine:
        """The same group, a part of whose runs is elsewhere."""
        return replace(
            self, created=min(self.created, other.created), num_runs=self.num_runs + other.num_runs,
            num_alive=self.num_alive + other.num_alive, num_lanes=max(self.num_lanes, other.num_lanes),
            most_ranks=max(self.most_ranks, other.most_ranks), lanes=tuple(dict.fromkeys(self.lanes + other.lanes)),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a list of runs."""

    lines: list[RunLine]
    total: int  # that match, on all pages
    unread: int  # not yet in the index and too many to read for a list: they come with the index, in seconds


class Store:
    """The folder all runs live in. Anyone may read; the supervisor alone writes the index."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser().resolve()
        self.runs = self.root / "runs"
        self.inbox = self.root / "inbox"
        self._compared: tuple[Stamp | None, frozenset[str]] = (None, frozenset())
        self._created: dict[str, float] = {}  # of runs the index does not know yet
        try:
            for folder in (self.root, self.runs, self.inbox):
                private_folder(folder)
                os.scandir(folder).close()
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be used: {error.strerror}.", fix="Set ISOFLOP_HOME to a folder you own."
            ) from None

    def trouble(self) -> StoreError | None:
        """What stands in the way of new runs, in words for whoever asks for one; None where nothing does."""
        if not self.runs.is_dir():
            return _gone()
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (self.root, self.runs, self.inbox)):
            return StoreError(
                "The store can be read, but not written: no run can start or be changed.",
                fix="Check the owner and rights of its folder, or set ISOFLOP_HOME to a folder you own.",
            )
        try:
            disk.require_room_for_a_run(self.root)
        except StoreError as error:
            return error
        return None

    def create(
        self, config: RunConfig, *, name: str = "", group: str | None = None, heat: records.Heat | None = None,
        owner: str = "", key: str = "",
    ) -> str:  # fmt: skip
        """A new queued run, on disk as a whole or not at all; returns its id.

        One `key` makes one run: asked again with the same, for a click that came twice, it returns that run.
        Raises ConfigError for a bad name.
        """
        name = clean_name(name)
        if trouble := self.trouble():
            raise trouble
        run_id = self.id_of(key)
        if (self.runs / run_id).exists():
            return run_id
        draft = self.runs / f".{run_id}.{secrets.token_hex(4)}"
        try:
            draft.mkdir(mode=0o700)
            write_atomically(draft / "config.json", config.model_dump_json(indent=1))
            queued = encode(
                records.Queued(
                    at=time.time(), order=self.next_order(), name=name, group=group, heat=heat, owner=owner,
                    version=__version__,
                )
            )  # fmt: skip
            write_atomically(draft / "events.jsonl", queued.decode())
            draft.rename(self.runs / run_id)
        except OSError as error:
            disk.remove(draft)
            if not (self.runs / run_id).exists():  # else the other click was faster
                raise disk.unwritable(error) from None
        return run_id

    @staticmethod
    def id_of(key: str) -> str:
        """The id of the run that a key makes; without one, a new id."""
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else secrets.token_hex(8)

    def owner(self, run_id: str) -> str:
        """The id of who asked for a run; empty where its log does not say."""
        for folder in (self.runs / run_id, self.runs / f".deleted-{run_id}") if _RUN_ID.fullmatch(run_id) else ():
            if first := _queued(folder):
                return first.owner
        return ""

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self.label(run_id, {"name": clean_name(name)})

    def label(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Change some of a run's labels; the others stay."""
        path = self.folder(run_id) / LABELS_FILE
        labels = Labels()
        with contextlib.suppress(OSError, ValueError):
            labels = Labels.model_validate_json(path.read_bytes())
        changed = Labels.model_validate(labels.model_dump() | dict(changes))
        write_atomically(path, changed.model_dump_json(exclude_none=True))

    def post(self, command: str) -> None:
        """Leave a command for the supervisor; on a full disk too, for deleting runs is what helps there."""

        def write() -> None:
            write_atomically(self.inbox / f"{self.next_order():020d}-{secrets.token_hex(4)}.json", command)

        try:
            disk.with_reserve(self.root, write)
        except StoreError as error:
            raise (_gone() if not self.inbox.is_dir() else error) from None

    def sweep(self) -> list[Path]:
        """Remove what a crash left half-made or half-deleted, for a supervisor that starts; returns what is gone."""
        # A draft may be somebody's, just now; only the one supervisor deletes runs, and that one is starting.
        swept = [
            path for path in self.leftovers() if not path.name.startswith(".import-")
            if path.name.startswith(".deleted-") or time.time() - path.lstat().st_mtime > _STALE_S
        ]  # fmt: skip
        for path in swept:
            disk.remove(path)
        return swept + self._sweep_imports()

    # --- several at once: an import is there as a whole, or not at all

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder to make `runs/<id>` and `reports/<id>.json` in, out of sight; gone at the end of the block."""
        self._sweep_imports()
        folder = self.runs / f".import-{secrets.token_hex(8)}"
        try:
            for made in (folder, folder / "runs", folder / "reports"):
                made.mkdir(mode=0o700)
            write_atomically(folder / _IMPORTER, json.dumps(own_identity()))
        except OSError as error:
            disk.remove(folder)
            raise disk.unwritable(error) from None
        try:
            yield folder
        finally:
            self._take_back(folder)

    def put_in_place(self, folder: Path) -> None:
        """All that was made in a folder of `staging`. Ended in between, it is undone: here, or by who looks next."""
        made = sorted(
            f"{path.parent.name}/{path.name}" for kind in ("runs", "reports") for path in (folder / kind).iterdir()
        )
        assert all(map(_PLACE.fullmatch, made)), "an import makes nothing else"
        try:
            private_folder(self.root / "reports")
            write_atomically(folder / _PLACED, json.dumps(made))
            for place in made:
                (folder / place).rename(self.root / place)
            (folder / _PLACED).unlink()
        except OSError as error:
            raise disk.unwritable(error) from None

    def _take_back(self, folder: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            for place in json.loads((folder / _PLACED).read_text(encoding="utf-8")):
                if _PLACE.fullmatch(place) and not (folder / place).exists():
                    disk.remove(self.root / place)
        disk.remove(folder)

    def _sweep_imports(self) -> list[Path]:
        """Undo what a process that is gone was about to import."""
        left = [path for path in self.runs.glob(".import-*") if _DRAFT.fullmatch(path.name) and not _is_at_work(path)]
        for path in left:
            self._take_back(path)
        return left

    def leftovers(self) -> list[Path]:
        """Drafts of runs and commands, and runs that were being deleted: at work for an instant, or left by a crash."""
        hidden = [*self.runs.glob(".*"), *self.inbox.glob(".*"), *self.root.glob(".*")]
        return sorted(path for path in hidden if _DRAFT.fullmatch(path.name))

    def next_order(self) -> int:
        """A number larger than every earlier one of this store, whatever the clock does in between.

        Microseconds of the clock where it went forwards, so that a lost file costs nothing: only what is submitted after
        both, a loss and a clock set back, would come too early.
        """
        with os.fdopen(os.open(self.root / _ORDER, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            lock(file.fileno(), patience_s=5.0)
            text = file.read(32)
            order = max(time.time_ns() // 1_000, int(text) + 1 if text.isdigit() else 0)
            file.seek(0)
            file.write(b"%d" % order)
            file.truncate()
            return order

    def folder(self, run_id: str) -> Path:
        """Where a run lives. Ids are hex of our own making, so no text of a user becomes a path."""
        if not self.runs.is_dir():
            raise _gone()
        if not _RUN_ID.fullmatch(run_id) or not (self.runs / run_id).is_dir():
            raise StoreError(
                f"There is no run {run_id!r} in this store.", fix="`python -m engine list` shows what there is."
            )
        return self.runs / run_id

    def run(self, run_id: str, *, keep_points: int | None = None) -> Run:
        """A run with all its points, or with the newest `keep_points` of each kind: enough for its state and summary,
        however long it was."""
        return Run(self.folder(run_id), keep_points=keep_points)

    def find(self, prefix: str) -> str:
        """The one run whose id starts with `prefix`; `last` is the newest."""
        if prefix == "last":
            rows = self.rows(limit=1)
            if rows:
                return rows[0].run_id
        matches = [i for i in self.ids() if i.startswith(prefix)] if re.fullmatch(r"[0-9a-f]+", prefix) else []
        if len(matches) > 1:
            raise StoreError(f"{prefix!r} fits {len(matches)} runs.", fix="Type more of the id.")
        return matches[0] if matches else self.folder(prefix).name

    def has(self, name: str) -> bool:
        """Whether something in the runs folder is a run, by its name."""
        return _RUN_ID.fullmatch(name) is not None

    def ids(self) -> list[str]:
        try:
            with os.scandir(self.runs) as entries:
                return [entry.name for entry in entries if _RUN_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            raise _gone() from None
        except OSError as error:
            raise StoreError(
                f"The store cannot be read: {error.strerror}.", fix="Check its owner, its rights and its disk."
            ) from None

    def delete(self, run_id: str) -> None:
        """Remove a run's folder: hidden at once, then emptied, so that no half-deleted run is ever listed."""
        self.hide(run_id)
        self.forget(run_id)

    def hide(self, run_id: str) -> None:
        """The first half: the run is no more, but can still be had back."""
        self.folder(run_id).rename(self.runs / f".deleted-{run_id}")

    def forget(self, run_id: str) -> None:
        """The second half; harmless where there is nothing to forget."""
        if _RUN_ID.fullmatch(run_id):
            disk.remove(self.runs / f".deleted-{run_id}")

    def restore(self, run_id: str) -> None:
        """Have a hidden run back. Raises StoreError where it is gone for good."""
        hidden = self.runs / f".deleted-{run_id}"
        if not _RUN_ID.fullmatch(run_id) or not hidden.is_dir() or (self.runs / run_id).exists():
            raise StoreError(f"Run {visible(run_id, 20)} cannot be had back: it is gone for good.")
        hidden.rename(self.runs / run_id)

    def rows(
        self,
        *,
        limit: int | None = None,
        order: str = "created",
        status: Sequence[Status] = (),
        group: str | None = None,
    ) -> list[RunRow]:
        """Runs from the index, newest (or largest) first; runs the index does not know yet are read from their folders."""
        _check_order(order)
        # Whatever is wrong with the index (there is none, it is damaged, a newer Isoflop wrote it): the folders stand.
        found, unindexed = self._ask_index(
            lambda index: (
                index.rows(limit=limit, order=order, status=status, group=group), frozenset(index.unreadable)
            )
        )  # fmt: skip
        rows, unreadable = found or ([], frozenset())
        rows = [self.row(row.run_id) or row if self._ended_since(row.run_id, row.status) else row for row in rows]
        newest_are_enough = order == "created" and limit is not None and not status and group is None
        read, _ = self._read_unindexed(unindexed | unreadable, limit if newest_are_enough else None)
        fresh = [r for r in read if (not status or r.status in status) and (group is None or r.group == group)]
        if fresh:
            rows = sorted(rows + fresh, key=lambda r: (_sort_key(r, order), r.created), reverse=True)
        return rows[:limit]

    def listing(
        self, *, search: str = "", status: Sequence[Status] = (), where: Sequence[Condition] = (), order: str = "created",
        descending: bool = True, pinned_first: bool = False, limit: int = 100, offset: int = 0,
    ) -> Listing:  # fmt: skip
        """A page of the runs that match, in the index's own order; a value that is not known comes last either way.

        Each word of `search` must be found in the name, the experiment in words, the status, the id, the reason of the
        end, tags or notes, in any case of letters. Rows of runs the index does not know yet are read from their folders;
        where they are sorted by what a list does not show, they come last.
        """
        _check_order(order)

        def page(index: Index, offset: int, limit: int) -> tuple[list[RunLine], int]:
            return index.lines(
                search, status, order, descending=descending, limit=limit, offset=offset, where=where,
                pinned_first=pinned_first,
            )  # fmt: skip

        found, unindexed = self._ask_index(lambda index: page(index, offset, limit))
        read, unread = self._read_unindexed(unindexed, _MOST_READ_FOR_A_LIST)
        fresh = [line_of(row) for row in _matching(read, search, status, where)]
        if fresh and offset and found:  # they may push others over the edge of a page: take all that stand before it
            found, unindexed = self._ask_index(lambda index: page(index, 0, offset + limit))
            fresh = [line for line in fresh if line.run_id in unindexed]
        lines, total = found or ([], 0)
        now = [self._as_it_is(line) for line in lines]
        lines = [line for line in now if _matches(line, search, status)]
        total -= len(now) - len(lines)
        if fresh:
            lines = _in_order(lines + fresh, order, descending, pinned_first)[offset : offset + limit]
        return Listing(lines, total + len(fresh), unread)

    def values(
        self, fields: Sequence[str], *, search: str = "", status: Sequence[Status] = (), where: Sequence[Condition] = (),
        run_ids: Sequence[str] | None = None,
    ) -> dict[str, tuple[Any, ...]]:  # fmt: skip
        """Some fields (engine.query) of the runs that match, or of those with these ids, by id."""

        def ask(index: Index) -> dict[str, tuple[Any, ...]]:
            return index.values(fields, search, status, where, run_ids)

        found, unindexed = self._ask_index(ask)
        read, _ = self._read_unindexed(
            unindexed if run_ids is None else unindexed & set(run_ids), _MOST_READ_FOR_A_LIST
        )
        with _in_memory(read) as index:
            return (found or {}) | (ask(index) if read else {})

    def groups(self, *, limit: int = 100) -> list[GroupLine]:
        """Races, scaling studies and repeats: runs that were asked for together, the newest first."""
        found, unindexed = self._ask_index(lambda index: index.groups(limit))
        read, _ = self._read_unindexed(unindexed, _MOST_READ_FOR_A_LIST)
        with _in_memory(read) as index:
            fresh = {line.group: line for line in index.groups(limit)} if read else {}
        older = [fresh.pop(g.group).with_more(g) if g.group in fresh else g for g in found or []]
        return sorted([*older, *fresh.values()], key=lambda g: g.created, reverse=True)[:limit]

    def _ask_index(self, ask: Callable[[Index], Answer]) -> tuple[Answer | None, frozenset[str]]:
        """What the index answers, None when it cannot be read; and the runs it did not know when it answered."""
        stamp = Stamp.of(self.runs, self.root / "index.sqlite", self.root / "index.sqlite-wal")
        try:
            with Index.reading(self.root) as index:
                if stamp is None or stamp != self._compared[0]:
                    self._compared = stamp, frozenset(self.ids()) - index.ids()
                elif self._compared[1]:  # the index may have gone on between the stamp and now
                    return ask(index), self._compared[1] - index.ids()
                return ask(index), self._compared[1]
        except (sqlite3.Error, OSError, StoreError):
            return None, frozenset(self.ids())

    def _read_unindexed(self, run_ids: Collection[str], most: int | None) -> tuple[list[RunRow], int]:
        """Rows of at most `most` runs, the newest, from their folders; and how many were left out."""
        chosen = run_ids
        if most is not None and len(run_ids) > most:
            self._created = {i: self._created.get(i) or self._asked_for_at(i) for i in run_ids}
            chosen = heapq.nlargest(most, run_ids, key=self._created.__getitem__)
        rows = [row for run_id in chosen if (row := self.row(run_id) or self._row_of_newer(run_id))]
        return rows, len(run_ids) - len(chosen)

    def _row_of_newer(self, run_id: str) -> RunRow | None:
        """The row of a run that waits and that only a newer Isoflop can read: `failed`, for nobody here can start it.

        It is shown and never written, not to the log and not to the index: a newer Isoflop runs it.
        """
        folder = self.runs / run_id
        queued = _queued(folder)
        needs = _newer_version(queued)
        if not queued or not needs or is_claimed(folder) or self._last_kind(run_id) != "queued":
            return None
        try:
            read_config(folder)
        except StoreError:
            return RunRow(
                run_id=run_id, name=queued.name, status="failed", created=queued.at, config=RunConfig(), summary=Summary(),
                group=queued.group, owner=queued.owner, why=needs, needs=needs,
            )  # fmt: skip
        return None

    def _asked_for_at(self, run_id: str) -> float:
        """When a run was created, from the first line of its log."""
        first = _queued(self.runs / run_id)
        return first.at if first else 0.0

    def _as_it_is(self, line: RunLine) -> RunLine:
        if self._ended_since(line.run_id, line.status) and (row := self.row(line.run_id)):
            return line_of(row)
        return line

    def _ended_since(self, run_id: str, status: Status) -> bool:
        """Whether a run the index has as alive has said its last word: the folder is the truth, the index may lag."""
        return status not in records.TERMINAL and self.has_ended(run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether the log ends with a last word; reads the end of the log only."""
        return self._last_kind(run_id) in records.TERMINAL

    def _last_kind(self, run_id: str) -> str:
        """The kind of the log's last event; empty where it cannot be read."""
        with (
            contextlib.suppress(OSError, StoreError, IndexError),
            (self.runs / run_id / "events.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            return decode(file.read().splitlines(keepends=True)[-1]).kind
        return ""

    def row(self, run_id: str) -> RunRow | None:
        """A run as a list shows it, from its folder; None for one that cannot be read."""
        try:
            return row_of(self.run(run_id, keep_points=SUMMARY_POINTS))
        except StoreError:
            return None


def _is_at_work(folder: Path) -> bool:
    """Whether the process that makes an import goes on; a moment ago it may not have said yet who it is."""
    try:
        pid, started = json.loads((folder / _IMPORTER).read_text(encoding="utf-8"))
        return is_same_process(pid, started)
    except (OSError, ValueError, TypeError):
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime < _STALE_S
        return False


def row_of(run: Run) -> RunRow:
    labels = run.labels
    return RunRow(
        run_id=run.run_id, name=run.name, status=run.status, created=run.created, config=run.config,
        summary=run.summary(), group=run.group, owner=run.owner, why=run.why(),
        tags=labels.tags, notes=labels.notes, pinned=labels.pinned,
    )  # fmt: skip


def line_of(row: RunRow) -> RunLine:
    s = row.summary
    return RunLine(
        row.run_id, row.name, row.status, row.created, row.group, row.why, words_of(row), row.config.seed,
        _finite(s.test_accuracy), _finite(s.final_train_loss), _finite(s.samples_per_s), s.train_seconds, s.steps,
        s.busy, row.tags, row.notes, row.pinned,
    )  # fmt: skip


IMPORTED = "imported, unverified"


def words_of(row: RunRow) -> str:
    """The experiment in words; of one that was not made here, that it was not."""
    if row.needs:
        return f"cannot be read here: {row.needs}"
    match row.summary.imported:
        case "report" if row.config.task == "calibrate":
            return f"calibration of another machine · {row.config.device} · {IMPORTED}"
        case "report":
            return f"{describe(row.config)} · {IMPORTED}"
        case "curve":  # its configuration is not known
            return f"a curve on {row.config.data} · {IMPORTED}"
        case _:
            return describe(row.config)


def _finite(value: float | None) -> float | None:
    """An index cannot tell NaN from unknown, and nothing that is no number has a place in an order."""
    return value if records.is_number(value) else None


def _in_order(lines: list[RunLine], order: str, descending: bool, pinned_first: bool) -> list[RunLine]:
    """As the index orders them: unknown values last, equal ones by age."""
    newest_first = sorted(lines, key=lambda line: line.created, reverse=True)
    known = [line for line in newest_first if getattr(line, order, None) is not None]
    unknown = [line for line in newest_first if getattr(line, order, None) is None]
    ordered = sorted(known, key=lambda line: getattr(line, order), reverse=descending) + unknown
    return sorted(ordered, key=lambda line: not line.pinned) if pinned_first else ordered


def _searched(line: RunLine) -> str:
    """What a search looks through."""
    return "\n".join([line.name, line.words, line.status, line.run_id, line.why, *line.tags, line.notes]).casefold()


def _words(search: str) -> list[str]:
    """Words to look for; a text that is no UTF-8 finds nothing but hurts nobody."""
    return search.encode(errors="replace").decode().casefold().split()[:_MOST_WORDS]


def _matches(line: RunLine, search: str, status: Sequence[Status]) -> bool:
    searched = _searched(line)
    return (not status or line.status in status) and all(word in searched for word in _words(search))


@contextlib.contextmanager
def _in_memory(rows: Iterable[RunRow]) -> Iterator[Index]:
    """An index of some runs alone, to ask the same of it."""
    index = Index(None)
    try:
        for row in rows:
            index.put(row)
        yield index
    finally:
        index.close()


def _matching(
    rows: Sequence[RunRow], search: str, status: Sequence[Status], where: Sequence[Condition]
) -> list[RunRow]:
    found = [row for row in rows if _matches(line_of(row), search, status)]
    if not found or not where:
        return found
    with _in_memory(found) as index:
        known = index.values((), "", (), where, None)
    return [row for row in found if row.run_id in known]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes whenever one of some files or folders does."""

    seen: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, *paths: Path) -> Stamp | None:
        """None where one was changed just now: within one tick of the file system's clock a later change would leave
        the same stamp."""
        now, seen = time.time_ns(), []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:
                seen.append((0, 0, 0))
                continue
            if now - stat.st_mtime_ns <= MTIME_TICK_NS:
                return None
            seen.append((stat.st_ino, stat.st_size, stat.st_mtime_ns))
        return cls(tuple(seen))


def _sort_key(row: RunRow, order: str) -> float:
    value = row.created if order == "created" else getattr(row.summary, order)
    return value if records.is_number(value) else -math.inf


# --- the index ----------------------------------------------------------------------------------------------------

SORTABLE = ("created", "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps")  # quickly
MTIME_TICK_NS = 50_000_000
_MOST_READ_FOR_A_LIST = 200
_MOST_WORDS = 100
# A row with its configuration fills a page of the file: a list that has to pass over it reads 40 MB for 10,000 runs.
# An index with all that a list shows, looks through and sorts by is read instead: 5 MB.
_LISTED = (
    "name", "status", "created", "grouped", "why", "words", "seed",
    "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps", "busy", "tags", "notes", "pinned",
)  # fmt: skip
_LISTED_IN_5 = _LISTED[:-3]
_LISTED_IN_3 = _LISTED_IN_5[:-1]
# Step n leads from schema n to n + 1. What is released stays as it is: a change is one more step.
_MIGRATIONS: list[Iterable[str]] = [
    (
        """
        create table runs (
          run_id text primary key, name text not null, status text not null, created real not null, grouped text,
          config text not null, summary text not null, why text not null,
          test_accuracy real, final_train_loss real, samples_per_s real, train_seconds real, steps integer
        ) without rowid
        """,
        "create index runs_created on runs(created)",
        "create index runs_test_accuracy on runs(test_accuracy)",
        "create index runs_final_train_loss on runs(final_train_loss)",
        "create index runs_samples_per_s on runs(samples_per_s)",
    ),
    (
        "alter table runs add column owner text not null default ''",
        "alter table runs add column updated real",  # Unix time of the row, s
    ),
    (
        "alter table runs add column words text",
        "alter table runs add column seed integer",
        "alter table runs add column searched text",
        "create index runs_train_seconds on runs(train_seconds)",
        "create index runs_steps on runs(steps)",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in _LISTED_IN_3 if c != 'created')})",
    ),
    ("create index runs_grouped on runs(grouped) where grouped is not null",),
    (
        "alter table runs add column busy integer",
        "update runs set busy = json_extract(summary, '$.busy') where json_valid(summary)",
        "drop index runs_listed",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in _LISTED_IN_5 if c != 'created')})",
    ),
    (
        "alter table runs add column tags text not null default ''",  # one a line
        "alter table runs add column notes text not null default ''",
        "alter table runs add column pinned integer not null default 0",
        "drop index runs_listed",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in _LISTED if c != 'created')})",
    ),
]
_COLUMNS = (
    "run_id", "name", "status", "created", "grouped", "config", "summary", "why", *SORTABLE[1:], "owner", "updated",
    "words", "seed", "searched", "busy", "tags", "notes", "pinned",
)  # fmt: skip


def _check_order(order: str) -> None:
    if order not in SORTABLE and order not in query.FIGURES:
        raise StoreError(f"order={order!r} is not a column.", fix=f"Choose from {', '.join(SORTABLE)}.")


class Index:
    """One row per run. The supervisor is the only process that opens it for writing: SQLite before 3.44.6 can lose
    a WAL that two processes checkpoint at once.

    Opening for writing puts a damaged file aside and begins an empty one. Raises StoreError for one of a newer Isoflop,
    which is left as it is, and sqlite3.OperationalError when the file cannot be used (no room, no right). Without a
    root it is in memory.
    """

    def __init__(self, root: Path | None, *, readonly: bool = False) -> None:
        path = root and root / "index.sqlite"
        if readonly and path and not path.exists():
            raise FileNotFoundError(path)
        self.path = path
        self.unreadable: set[str] = set()  # runs whose rows could not be read; their folders can
        try:
            self._open(path, readonly)
        except sqlite3.DatabaseError as error:
            if readonly or path is None or not is_damage(error, path):
                raise
            _put_aside(path, "damaged")
            self._open(path, readonly)

    def _open(self, path: Path | None, readonly: bool) -> None:
        if path is None:
            self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        else:
            self._db = _connect(path, readonly)
        try:
            self.version = _version_of(self._db)
            if readonly:
                return
            if damage := self.damage():
                raise sqlite3.DatabaseError(damage)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            _migrate(self._db, path, self.version)
            self._db.execute(f"select {', '.join(_COLUMNS)} from runs limit 0")  # a schema can rot, too
            self.version = len(_MIGRATIONS)
            self._fill_listing()
            self._file = path.stat() if path else None
        except (sqlite3.Error, OSError, StoreError):
            self._db.close()
            raise

    @classmethod
    def anew(cls, root: Path) -> Index:
        """An empty one; what was there and cannot be used is put aside."""
        path = root / "index.sqlite"
        try:
            index = cls(root)
        except StoreError:
            _put_aside(path, "newer")
            return cls(root)
        try:
            index.clear()
        except sqlite3.DatabaseError as error:
            index.close()
            if not is_damage(error, path):
                raise
            _put_aside(path, "damaged")
            return cls(root)
        return index

    def is_in_place(self) -> bool:
        """Whether what is written arrives in the file of that name: writing to a deleted one succeeds, and is lost."""
        if self.path is None or self._file is None:
            return self.path is None
        try:
            return os.path.samestat(self.path.stat(), self._file)
        except OSError:
            return False

    @classmethod
    @contextlib.contextmanager
    def reading(cls, root: Path) -> Iterator[Index]:
        """All that is asked of it in the block, it answers as of one moment."""
        index = cls(root, readonly=True)
        try:
            index._db.execute("begin")
            yield index
        finally:
            index.close()

    def damage(self) -> str:
        """What SQLite finds wrong with the file, in its own words; empty for a sound one."""
        said = self._db.execute("pragma quick_check(1)").fetchone()[0]
        return "" if said == "ok" else str(said).splitlines()[-1].strip(". ")

    def close(self) -> None:
        self._db.close()

    def put(self, row: RunRow) -> None:
        line = line_of(row)
        values = (
            row.run_id, row.name, row.status, row.created, row.group, row.config.model_dump_json(),
            row.summary.model_dump_json(), row.why, *(getattr(line, column) for column in SORTABLE[1:]), row.owner,
            time.time(), line.words, line.seed, _searched(line), line.busy, "\n".join(row.tags), row.notes, row.pinned,
        )  # fmt: skip
        marks = ",".join("?" * len(values))
        self._db.execute(f"insert or replace into runs ({', '.join(_COLUMNS)}) values ({marks})", values)

    def remove(self, run_id: str) -> None:
        self._db.execute("delete from runs where run_id = ?", (run_id,))

    def clear(self) -> None:
        self._db.execute("delete from runs")

    def _fill_listing(self) -> None:
        """For rows that were put before there was a listing."""
        fields = "run_id, name, status, created, grouped, config, summary, why, owner, tags, notes, pinned"
        for columns in self._db.execute(f"select {fields} from runs where searched is null").fetchall():
            if row := _row_from(*columns):
                self.put(row)
            else:
                self.remove(columns[0])  # it cannot be read: the folder can

    def ids(self, status: Sequence[Status] = ()) -> set[str]:
        where = f"where status in ({','.join('?' * len(status))})" if status else ""
        return {row[0] for row in self._db.execute(f"select run_id from runs {where}", tuple(status))}

    def lines(
        self, search: str, status: Sequence[Status], order: str, *, descending: bool, limit: int, offset: int,
        where: Sequence[Condition] = (), pinned_first: bool = False,
    ) -> tuple[list[RunLine], int]:  # fmt: skip
        """A page of the lines that match, and how many match."""
        _check_order(order)
        self._require_listing()
        condition, parameters = _where(search, status, where)
        by = order if order in SORTABLE else query.value_of(order)[0]
        direction = f"{'pinned desc, ' if pinned_first else ''}{by} {'desc' if descending else 'asc'}"
        found = self._db.execute(
            f"select run_id, {', '.join(_LISTED)} from runs {condition} "
            f"order by {direction} nulls last, created desc limit ? offset ?",
            (*parameters, limit, offset),
        )
        lines = [_line_from(columns) for columns in found]
        total = self._db.execute(f"select count(*) from runs {condition}", parameters).fetchone()[0]
        return lines, total

    def values(
        self, fields: Sequence[str], search: str, status: Sequence[Status], where: Sequence[Condition],
        run_ids: Sequence[str] | None,
    ) -> dict[str, tuple[Any, ...]]:  # fmt: skip
        """Some fields of the runs that match, by id."""
        self._require_listing()
        asked = [query.value_of(field) for field in fields]
        condition, parameters = _where(search, status, where)
        if run_ids is not None:
            condition += f"{' and' if condition else 'where'} run_id in ({','.join('?' * len(run_ids))})"
            parameters = (*parameters, *run_ids)
        found = self._db.execute(
            f"select {', '.join(['run_id', *(text for text, _ in asked)])} from runs {condition}",
            (*(p for _, known in asked for p in known), *parameters),
        )
        return {columns[0]: columns[1:] for columns in found}

    def groups(self, limit: int) -> list[GroupLine]:
        self._require_listing()
        over = ", ".join(f"'{status}'" for status in sorted(records.TERMINAL))
        found = self._db.execute(
            f"""
            select grouped, min(created), count(*), sum(status not in ({over})), count(distinct words || char(10) || name),
              max(json_extract(config, '$.parallel.num_ranks')), group_concat(distinct nullif(name, '')),
              min(json_extract(config, '$.data')), max(json_extract(summary, '$.imported') is not null)
            from runs where grouped is not null group by grouped order by min(created) desc limit ?
            """,
            (limit,),
        )
        return [
            GroupLine(group, created, n, alive, lanes, ranks or 1, tuple((names or "").split(",")[:6]), data or "", bool(theirs))
            for group, created, n, alive, lanes, ranks, names, data, theirs in found
        ]  # fmt: skip

    def _require_listing(self) -> None:
        if self.version < len(_MIGRATIONS):  # a supervisor of before may still be at work on it
            raise StoreError(f"The index has no listing yet (schema {self.version}).")

    def rows(
        self,
        *,
        limit: int | None = None,
        order: str = "created",
        status: Sequence[Status] = (),
        group: str | None = None,
    ) -> list[RunRow]:
        _check_order(order)
        conditions = [f"status in ({','.join('?' * len(status))})"] if status else []
        conditions += ["grouped = ?"] if group is not None else []
        where = f"where {' and '.join(conditions)}" if conditions else ""
        found = self._db.execute(
            f"select run_id, name, status, created, grouped, config, summary, why, {self._newer} from runs {where} "
            f"order by {order} desc nulls last limit ?",
            (*status, *([] if group is None else [group]), -1 if limit is None else limit),
        )
        return [row for columns in found if (row := self._readable(columns))]

    @property
    def _newer(self) -> str:
        """Columns that came later; a supervisor of before may still be at work on an index without them."""
        owner = "owner" if self.version > 1 else "''"
        return f"{owner}, tags, notes, pinned" if self.version > 5 else f"{owner}, '', '', 0"

    def _readable(self, columns: tuple[Any, ...]) -> RunRow | None:
        row = _row_from(*columns)
        if row is None:
            self.unreadable.add(columns[0])
        return row


def _line_from(columns: tuple[Any, ...]) -> RunLine:
    *listed, busy, tags, notes, pinned = columns
    said = (tuple(tags.split("\n") if tags else ()), notes, bool(pinned))
    values = [*listed, None if busy is None else bool(busy), *said]  # SQLite knows no bool
    return RunLine(*values)


def _where(search: str, status: Sequence[Status], where: Sequence[Condition]) -> tuple[str, tuple[Any, ...]]:
    """The words first, which the listing alone answers; SQL for it, and its parameters."""
    words = _words(search)
    found: list[tuple[str, tuple[Any, ...]]] = [("instr(searched, ?)", (word,)) for word in words]
    found += [(f"status in ({','.join('?' * len(status))})", tuple(status))] if status else []
    found += [condition.sql() for condition in where]
    if not found:
        return "", ()
    return f"where {' and '.join(text for text, _ in found)}", tuple(p for _, known in found for p in known)


def _row_from(
    run_id: str,
    name: str,
    status: Status,
    created: float,
    group: str | None,
    config: str,
    summary: str,
    why: str,
    owner: str,
    tags: str,
    notes: str,
    pinned: int,
) -> RunRow | None:
    """A row as it was put; None for one that cannot be read, which must not hide the others."""
    try:
        return RunRow(
            run_id=run_id, name=name, status=status, created=created, group=group, why=why, owner=owner,
            config=parse_config_json(config), summary=Summary.model_validate_json(summary),
            tags=tuple(tags.split("\n") if tags else ()), notes=notes, pinned=bool(pinned),
        )  # fmt: skip
    except (ConfigError, ValidationError, TypeError):
        return None


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if not readonly:
        with contextlib.suppress(IsADirectoryError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the files beside it the same rights
            path.chmod(0o600)
    uri = f"{path.as_uri()}?mode={'ro' if readonly else 'rw'}"
    return sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)


def _version_of(db: sqlite3.Connection) -> int:
    version: int = db.execute("pragma user_version").fetchone()[0]
    if version > len(_MIGRATIONS):
        raise StoreError(
            f"The index of this store was written by a newer Isoflop (schema {version}).",
            fix="Update Isoflop, or make it anew: `python -m engine check --rebuild`.",
        )
    return version


def _migrate(db: sqlite3.Connection, path: Path | None, version: int) -> None:
    """Step by step to the present schema, each step whole or not at all. The file of before is kept beside it."""
    if version < 0:
        raise sqlite3.DatabaseError(f"there is no schema {version}")
    if path and 0 < version < len(_MIGRATIONS):
        _back_up(db, path.with_name(f"{path.name}.v{version}"))
    for number, statements in enumerate(_MIGRATIONS[version:], start=version + 1):
        db.execute("begin immediate")
        try:
            for statement in statements:
                db.execute(statement)
            db.execute(f"pragma user_version={number}")
            db.execute("commit")
        except sqlite3.Error:
            db.execute("rollback")
            raise


def _back_up(db: sqlite3.Connection, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            db.backup(copy)
        draft.replace(path)
    except (sqlite3.Error, OSError):
        draft.unlink(missing_ok=True)
        raise


def is_damage(error: sqlite3.Error, path: Path) -> bool:
    """Whether a file is not (or no longer) an index; otherwise it is, but cannot be used now: locked, no room, no right."""
    if path.is_dir() or not isinstance(error, sqlite3.OperationalError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)  # without one: text that is not UTF-8
    return code & 0xFF in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def _put_aside(path: Path, why: str) -> None:
    """The index is derived: one that cannot be used makes way for one made anew from the run folders."""
    aside = path.with_name(f"{path.name}.{why}")
    disk.remove(aside)
    with contextlib.suppress(FileNotFoundError):
        path.replace(aside)
    for rest in ("-wal", "-shm"):
        disk.remove(path.with_name(path.name + rest))


class KeptIndex:
    """The supervisor's index. It is derived, so nothing that happens to it stops a run: what cannot be written waits
    for `catch_up`, a damaged or deleted one is made anew, beside one of a newer Isoflop it is kept in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._behind: set[str] = set()  # runs whose rows are not what their folders say
        self._is_newer = False
        self._said = ""
        self._index = self._open()

    def _open(self) -> Index:
        try:
            return Index(self._store.root)
        except (StoreError, sqlite3.Error, OSError) as error:
            self._say(f"the index is not used, runs are listed from their folders: {error}")
            self._is_newer = isinstance(error, StoreError)
            return Index(None)

    @property
    def is_on_disk(self) -> bool:
        return self._index.path is not None

    @property
    def _db(self) -> sqlite3.Connection:
        return self._index._db

    def close(self) -> None:
        self._index.close()

    def ids(self, status: Sequence[Status] = ()) -> set[str]:
        try:
            return self._index.ids(status)
        except sqlite3.Error as error:
            self._suffer(error)
            return set()

    def rows(self, **query: Any) -> list[RunRow]:
        try:
            return self._index.rows(**query)
        except sqlite3.Error as error:
            self._suffer(error)
            return []

    def put(self, row: RunRow) -> None:
        self._write(row.run_id, lambda index: index.put(row))

    def remove(self, run_id: str) -> None:
        self._write(run_id, lambda index: index.remove(run_id))

    def rebuild(self) -> None:
        """Make it anew from the run folders, whatever is there."""
        self._begin_anew()
        self._follow()

    def _begin_anew(self) -> None:
        self._index.close()
        self._behind |= set(self._store.ids())
        try:
            self._index = Index.anew(self._store.root)
        except (sqlite3.Error, OSError) as error:
            self._say(f"the index could not be made anew: {error}")
            self._index = Index(None)

    def catch_up(self) -> None:
        """To be called now and then: write what could not be written, where one can again."""
        if not self._index.is_in_place():
            logger.warning("the index is not where it was: it is made anew")
            self._begin_anew()
        elif self._index.path is None and not self._is_newer:
            again = self._open()
            if again.path:
                self._index = again
                self._behind |= set(self._store.ids())
        self._follow(_CATCH_UP_S)

    def _follow(self, patience_s: float = math.inf) -> None:
        until = time.monotonic() + patience_s
        for run_id in sorted(self._behind):
            if time.monotonic() > until:  # the rest at the next call: a click in between should not wait for it
                return
            row = self._store.row(run_id)
            self.put(row) if row else self.remove(run_id)
            if run_id in self._behind:  # still no room: later
                return

    def _write(self, run_id: str, change: Callable[[Index], None]) -> None:
        self._behind.add(run_id)
        try:
            change(self._index)
        except sqlite3.Error as error:
            self._suffer(error)
        else:
            self._behind.discard(run_id)

    def _suffer(self, error: sqlite3.Error) -> None:
        if self._index.path and is_damage(error, self._index.path):
            logger.warning("the index is damaged (%s): it is made anew", error)
            self._index.close()
            _put_aside(self._index.path, "damaged")
            self._index = self._open()
            self._behind |= set(self._store.ids())
        else:
            self._say(f"the index could not be written: {error}")

    def _say(self, what: str) -> None:
        """Once, not at every attempt."""
        if what != self._said:
            logger.warning("%s", what)
        self._said = what


def json_text(value: Any) -> str:
    """Exact JSON: NaN and infinity, which JSON has no word for, become null."""
    return visible_json(json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, np.ndarray):
        return _without_nan(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
