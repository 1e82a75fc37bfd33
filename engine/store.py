"""The run folders and the index over them.

    $ISOFLOP_HOME/
      runs/<id>/config.json, events.jsonl, model.safetensors   the truth: one folder, one run, nothing shared
      inbox/                                                   commands on their way to the supervisor
      index.sqlite                                             derived: one row per run, rebuilt at will

A log line is an event's JSON with the CRC-32 of the rest as its last member. A reader follows by byte offset, leaves a
line that is still being written for the next time, and skips a line whose checksum is wrong and counts it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import secrets
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ValidationError

from engine import records
from engine.config import RunConfig, parse_config_json
from engine.errors import ConfigError, StoreError
from engine.locks import lock
from engine.records import AnyEvent, Status, Summary

_RUN_ID = re.compile(r"[0-9a-f]{16}")
STOP_FILE = "stop"  # in a run's folder: its supervisor asks it to stop
_ORDER = "order"  # the number of the newest submission
_FLUSH_S = 0.2
_CRC_MEMBER = b',"crc":"'
_SCHEMA_VERSION = 1


def default_root() -> Path:
    """`$ISOFLOP_HOME`, or ~/.isoflop."""
    return Path(os.environ.get("ISOFLOP_HOME") or Path.home() / ".isoflop").expanduser().resolve()


def _private_folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_atomically(path: Path, text: str) -> None:
    """All of the text under its name, or nothing; readable by the owner only."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


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


# --- the event log ------------------------------------------------------------------------------------------------


def encode(event: AnyEvent) -> bytes:
    body = event.model_dump_json().encode()
    return body[:-1] + _CRC_MEMBER + b'%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> AnyEvent:
    """The event of one whole line; raises StoreError when the line is not what was written."""
    head, found, tail = line.rpartition(_CRC_MEMBER)
    body = head + b"}"
    if not found or tail[:8] != b"%08x" % zlib.crc32(body):
        raise StoreError("A record's checksum does not match.", fix="It is skipped; the other records stand.")
    try:
        return records.EVENT.validate_json(body)
    except ValidationError as error:
        raise StoreError(
            f"A record is not understood: {error.errors()[0]['msg']}.", fix="A newer Isoflop may read it."
        ) from None


class EventLog:
    """Appends a run's events. One process writes at a time; several threads of it may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(fd, "ab", buffering=0)
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._flushed_at = -math.inf
        _end_a_torn_line(path, self._file)
        self.checksum = zlib.crc32(path.read_bytes())
        self.steps = 0
        self.evaluations = 0

    def append(self, event: AnyEvent) -> None:
        line = encode(event)
        with self._lock:
            self._pending.append(line)
            self.checksum = zlib.crc32(line, self.checksum)
            first_point = isinstance(event, records.Steps) and not self.steps  # someone waits for it
            if isinstance(event, records.Steps):
                self.steps += len(event.loss)
            elif isinstance(event, records.Evaluation):
                self.evaluations += 1
            quiet = isinstance(event, records.Steps | records.HardwareSample)
            if not quiet or first_point or time.monotonic() - self._flushed_at >= _FLUSH_S:
                self._write()

    def flush_if_due(self) -> None:
        with self._lock:
            if self._pending and time.monotonic() - self._flushed_at >= _FLUSH_S:
                self._write()

    def close(self, last: records.Terminal, *, steps: int | None = None, evaluations: int | None = None) -> None:
        """Write the run's last word, with the counts and checksum a reader compares against.

        Who speaks for a process that is gone passes the counts it could read.
        """
        with self._lock:
            counted = {
                "steps": self.steps if steps is None else steps,
                "evaluations": self.evaluations if evaluations is None else evaluations,
                "checksum": f"{self.checksum:08x}",
            }
            self._pending.append(encode(last.model_copy(update=counted)))  # type: ignore[arg-type]
            self._write()
            os.fsync(self._file.fileno())
            self._file.close()

    def _write(self) -> None:
        self._file.write(b"".join(self._pending))
        self._pending.clear()
        self._flushed_at = time.monotonic()


def _end_a_torn_line(path: Path, file: Any) -> None:
    """After a crash the last line may be half: end it, so that it is one rotten record and the next line is whole."""
    size = path.stat().st_size
    if size:
        with path.open("rb") as reader:
            reader.seek(size - 1)
            if reader.read(1) != b"\n":
                file.write(b"\n")


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

    def last(self, name: str) -> float | None:
        return float(self[name][-1]) if self._rows else None


HARDWARE = (
    "process_cpu_percent", "system_cpu_percent", "process_memory_bytes", "system_memory_used_bytes",
    "gpu_utilization_percent", "gpu_memory_used_bytes", "gpu_power_w", "gpu_temperature_c",
)  # fmt: skip
_THROUGHPUT_WINDOW_S = 0.2
SUMMARY_POINTS = 1_000  # of each kind: more than any figure of a summary looks back


class Run:
    """One run as its folder tells it. `refresh()` reads what was added since the last time; safe across threads."""

    def __init__(self, folder: Path, *, keep_points: int | None = None) -> None:
        self.folder = folder
        self.run_id = folder.name
        self.lock = threading.RLock()
        self.config: RunConfig = read_config(folder)
        self.status: Status = "queued"
        self.queued: records.Queued | None = None
        self.starting: records.Starting | None = None
        self.started: records.Started | None = None
        self.preparing: records.Preparing | None = None
        self.compiled: records.Compiled | None = None
        self.warm_up: records.WarmUp | None = None
        self.memory: records.Memory | None = None
        self.target_reached: records.TargetReached | None = None
        self.last_word: records.Finished | records.Cancelled | records.Failed | records.Interrupted | None = None
        self.artifacts: list[records.Artifact] = []
        self.missing_readings: dict[str, str] = {}
        self.problems: list[str] = []
        self.steps = Table("step", "loss", "seconds", "elapsed", "samples", "lr", keep=keep_points)
        self.evaluations = Table("step", "seconds", "elapsed", "test_loss", "test_accuracy", keep=keep_points)
        self.hardware = Table("elapsed", *HARDWARE, keep=keep_points)
        self.throughput = Table("elapsed", "samples_per_s", keep=keep_points)
        self.grad_norms = Table("step", "seconds", "elapsed", "grad_norm", keep=keep_points)
        self._window = (0.0, 0)  # seconds and samples not yet in `throughput`
        self._offset = 0
        self._checksum = 0
        self.refresh()

    @property
    def is_over(self) -> bool:
        return self.status in records.TERMINAL

    @property
    def name(self) -> str:
        return self.queued.name if self.queued else ""

    @property
    def created(self) -> float:
        if self.queued:
            return self.queued.at
        try:
            return self.folder.stat().st_mtime
        except OSError:
            return 0.0

    @property
    def order(self) -> int:
        """Its place among the submissions of its store."""
        return (self.queued and self.queued.order) or int(self.created * 1e6)

    def refresh(self) -> bool:
        """Read on from the cursor; True when something was new."""
        with self.lock:
            try:
                with (self.folder / "events.jsonl").open("rb") as file:
                    file.seek(self._offset)
                    data = file.read()
            except FileNotFoundError:
                return False
            except OSError as error:
                raise StoreError(
                    f"The log of run {self.run_id} cannot be read: {error.strerror}.",
                    fix="Check the file's owner and rights.",
                ) from None
            whole = data.rfind(b"\n") + 1  # a line still being written waits for the next time
            for line in data[:whole].splitlines(keepends=True):
                self._read_line(line)
                self._offset += len(line)
            return whole > 0

    def _read_line(self, line: bytes) -> None:
        before = self._checksum
        self._checksum = zlib.crc32(line, before)
        try:
            event = decode(line)
        except StoreError as error:
            self.problems.append(f"at byte {self._offset}: {error.message}")
            return
        if isinstance(event, records.Terminal):
            self._check_completeness(event, before)
        if not self.is_over:
            self._take(event)
            self.status = records.status_after(self.status, event)

    def _check_completeness(self, last: records.Terminal, checksum: int) -> None:
        if last.checksum and last.checksum != f"{checksum:08x}":
            self.problems.append(
                f"the log is not as it was written: {len(self.steps)} of {last.steps} steps and "
                f"{len(self.evaluations)} of {last.evaluations} evaluations can be read"
            )

    def _take(self, event: AnyEvent) -> None:
        match event:
            case records.Steps():
                self._take_steps(event)
            case records.Evaluation(step=step, train_s=s, elapsed_s=e, test_loss=loss, test_accuracy=accuracy):
                self.evaluations.extend(step, s, e, loss, accuracy)
            case records.HardwareSample(elapsed_s=elapsed, readings=readings, missing=missing):
                values = [readings.get(name) for name in HARDWARE]
                self.hardware.extend(elapsed, *(math.nan if v is None else v for v in values))
                self.missing_readings |= missing
            case records.Queued():
                self.queued = event
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
            case records.TargetReached():
                self.target_reached = event
            case records.Artifact():
                self.artifacts.append(event)
            case records.Finished() | records.Cancelled() | records.Failed() | records.Interrupted():
                self.last_word = event
                seconds, count = self._window
                if seconds and not len(self.throughput):  # a run shorter than one window has a throughput too
                    self.throughput.extend(self.steps.last("elapsed"), count / seconds)
            case _:
                pass

    def _take_steps(self, event: records.Steps) -> None:
        n = len(event.loss)
        share = np.arange(1, n + 1) / n  # within one read-back the clock was not read: steps share it evenly
        samples = np.cumsum(event.samples, dtype=np.float64)
        (t0, t1), (e0, e1) = event.train_s, event.elapsed_s
        before = self.steps.last("samples") or 0.0
        seconds_of, elapsed_of = t0 + (t1 - t0) * share, e0 + (e1 - e0) * share
        self.steps.extend(
            np.arange(event.first, event.first + n), event.loss, seconds_of, elapsed_of, before + samples, event.lr
        )
        if len(event.norm_steps):
            at = event.norm_steps - event.first
            self.grad_norms.extend(event.norm_steps, seconds_of[at], elapsed_of[at], event.grad_norm)
        seconds, count = self._window[0] + (t1 - t0), self._window[1] + int(samples[-1])
        if seconds >= _THROUGHPUT_WINDOW_S:
            self.throughput.extend(e1, count / seconds)
            seconds, count = 0.0, 0
        self._window = (seconds, count)

    def summary(self) -> Summary:
        with self.lock:
            steps, started, last = len(self.steps), self.started, self.last_word
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
                target_step=self.target_reached.step if self.target_reached else None,
                target_seconds=self.target_reached.train_s if self.target_reached else None,
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
        budget = self.config.budget
        shares = [len(self.steps) / self.started.total_steps] if self.started.total_steps else []
        if budget.seconds:
            shares.append((self.steps.last("seconds") or 0.0) / budget.seconds)
        return min(1.0, max(shares))


def _recent_mean(steps: Table, started: records.Started | None) -> float | None:
    """Mean loss over the last epoch's steps (at most the last 100): one batch alone is mostly noise."""
    if not len(steps):
        return None
    samples, loss = steps["samples"][-100:], steps["loss"][-100:]
    if started:
        loss = loss[samples > samples[-1] - started.train_examples]
    return float(np.mean(loss))


def read_config(folder: Path) -> RunConfig:
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        return parse_config_json(text, name="config.json")
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(
            f"Run {folder.name} has no readable config.json: {type(error).__name__}.", fix="Delete the run."
        ) from None
    except ConfigError as error:
        raise StoreError(f"Run {folder.name} cannot be read: {error.message}", fix=error.fix) from None


# --- the store ----------------------------------------------------------------------------------------------------


class RunRow(BaseModel):
    """A run in a list: what the index holds of it."""

    run_id: str
    name: str
    status: Status
    created: float
    config: RunConfig
    summary: Summary
    group: str | None = None
    why: str = ""


class Store:
    """The folder all runs live in. Anyone may read; the supervisor alone writes the index."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_root()).expanduser().resolve()
        self.runs = self.root / "runs"
        self.inbox = self.root / "inbox"
        try:
            for folder in (self.root, self.runs, self.inbox):
                _private_folder(folder)
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be used: {error.strerror}.", fix="Set ISOFLOP_HOME to a folder you own."
            ) from None

    def create(self, config: RunConfig, *, name: str = "", group: str | None = None) -> str:
        """A new queued run, on disk as a whole or not at all; returns its id."""
        run_id = secrets.token_hex(8)
        draft = self.runs / f".{run_id}"
        draft.mkdir(mode=0o700)
        write_atomically(draft / "config.json", config.model_dump_json(indent=1))
        log = EventLog(draft / "events.jsonl")
        log.append(records.Queued(at=time.time(), order=self.next_order(), name=name, group=group))
        draft.rename(self.runs / run_id)
        return run_id

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

    def ids(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.runs) if _RUN_ID.fullmatch(entry.name)]

    def delete(self, run_id: str) -> None:
        """Remove a run's folder: hidden at once, then emptied, so that no half-deleted run is ever listed."""
        hidden = self.runs / f".deleted-{run_id}"
        self.folder(run_id).rename(hidden)
        shutil.rmtree(hidden)

    def rows(self, *, limit: int | None = None, order: str = "created", status: Sequence[Status] = ()) -> list[RunRow]:
        """Runs from the index, newest (or largest) first; runs the index does not know yet are read from their folders."""
        rows, unindexed = [], set(self.ids())
        with contextlib.suppress(sqlite3.DatabaseError, FileNotFoundError), Index.reading(self.root) as index:
            known = index.ids()
            rows = index.rows(limit=limit, order=order, status=status)
            unindexed -= known
        rows = [self._row(row.run_id) or row if self._ended_since(row) else row for row in rows]
        fresh = [row for run_id in unindexed if (row := self._row(run_id)) and (not status or row.status in status)]
        if fresh:
            rows = sorted(rows + fresh, key=lambda r: (_sort_key(r, order), r.created), reverse=True)
        return rows[:limit]

    def _ended_since(self, row: RunRow) -> bool:
        """Whether a run the index has as alive has said its last word: the folder is the truth, the index may lag."""
        if row.status in records.TERMINAL:
            return False
        with (
            contextlib.suppress(OSError, StoreError, IndexError),
            (self.runs / row.run_id / "events.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            return isinstance(decode(file.read().splitlines(keepends=True)[-1]), records.Terminal)
        return False

    def _row(self, run_id: str) -> RunRow | None:
        try:
            return row_of(self.run(run_id, keep_points=SUMMARY_POINTS))
        except StoreError:
            return None


def row_of(run: Run) -> RunRow:
    return RunRow(
        run_id=run.run_id, name=run.name, status=run.status, created=run.created, config=run.config,
        summary=run.summary(), group=run.queued.group if run.queued else None, why=run.why(),
    )  # fmt: skip


def _sort_key(row: RunRow, order: str) -> float:
    value = row.created if order == "created" else getattr(row.summary, order)
    return value if records.is_number(value) else -math.inf


# --- the index ----------------------------------------------------------------------------------------------------

SORTABLE = ("created", "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps")
_CREATE = """
create table runs (
  run_id text primary key, name text not null, status text not null, created real not null, grouped text,
  config text not null, summary text not null, why text not null,
  test_accuracy real, final_train_loss real, samples_per_s real, train_seconds real, steps integer
) without rowid;
create index runs_created on runs(created);
create index runs_test_accuracy on runs(test_accuracy);
create index runs_final_train_loss on runs(final_train_loss);
create index runs_samples_per_s on runs(samples_per_s);
"""


class Index:
    """One row per run. The supervisor is the only process that opens it for writing: SQLite before 3.44.6 can lose
    a WAL that two processes checkpoint at once."""

    def __init__(self, root: Path, *, readonly: bool = False) -> None:
        path = root / "index.sqlite"
        if readonly and not path.exists():
            raise FileNotFoundError(path)
        try:
            self._db, version = _open_index(path, readonly)
        except sqlite3.DatabaseError as error:
            if readonly or isinstance(error, sqlite3.OperationalError):  # locked, no permission: not damaged
                raise
            _put_aside(path)
            self._db, version = _open_index(path, readonly)
        if not readonly:
            path.chmod(0o600)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=normal")
            if version == 0:
                self._db.executescript(f"begin immediate; {_CREATE} pragma user_version={_SCHEMA_VERSION}; commit;")

    @classmethod
    @contextlib.contextmanager
    def reading(cls, root: Path) -> Iterator[Index]:
        index = cls(root, readonly=True)
        try:
            yield index
        finally:
            index.close()

    def close(self) -> None:
        self._db.close()

    def put(self, row: RunRow) -> None:
        s = row.summary
        values = (
            row.run_id, row.name, row.status, row.created, row.group, row.config.model_dump_json(), s.model_dump_json(),
            row.why, s.test_accuracy, s.final_train_loss, s.samples_per_s, s.train_seconds, s.steps,
        )  # fmt: skip
        self._db.execute("begin immediate")
        self._db.execute(f"insert or replace into runs values ({','.join('?' * len(values))})", values)
        self._db.execute("commit")

    def remove(self, run_id: str) -> None:
        self._db.execute("delete from runs where run_id = ?", (run_id,))

    def clear(self) -> None:
        self._db.execute("delete from runs")

    def ids(self) -> set[str]:
        return {row[0] for row in self._db.execute("select run_id from runs")}

    def rows(self, *, limit: int | None = None, order: str = "created", status: Sequence[Status] = ()) -> list[RunRow]:
        if order not in SORTABLE:
            raise StoreError(f"order={order!r} is not a column.", fix=f"Choose from {', '.join(SORTABLE)}.")
        where = f"where status in ({','.join('?' * len(status))})" if status else ""
        found = self._db.execute(
            f"select run_id, name, status, created, grouped, config, summary, why from runs {where} "
            f"order by {order} desc nulls last limit ?",
            (*status, -1 if limit is None else limit),
        )
        return [row for columns in found if (row := _row_from(*columns))]


def _row_from(
    run_id: str, name: str, status: Status, created: float, group: str | None, config: str, summary: str, why: str
) -> RunRow | None:
    """A row as it was put; None for one that cannot be read, which must not hide the others."""
    try:
        return RunRow(
            run_id=run_id, name=name, status=status, created=created, group=group, why=why,
            config=parse_config_json(config), summary=Summary.model_validate_json(summary),
        )  # fmt: skip
    except (ConfigError, ValidationError):
        return None


def _open_index(path: Path, readonly: bool) -> tuple[sqlite3.Connection, int]:
    """The database and its schema's version. Raises sqlite3.DatabaseError when it is damaged, StoreError when newer."""
    uri = f"{path.as_uri()}?mode={'ro' if readonly else 'rwc'}"
    db = sqlite3.connect(uri, uri=True, timeout=5, isolation_level=None, check_same_thread=False)
    try:
        version = db.execute("pragma user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise StoreError(
                f"The index of {path.parent} was written by a newer Isoflop (schema {version}).", fix="Update Isoflop."
            )
        if not readonly and db.execute("pragma quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("quick_check found damage")
    except (sqlite3.Error, StoreError):
        db.close()
        raise
    return db, version


def _put_aside(path: Path) -> None:
    """The index is derived: a damaged one makes way for one made anew from the run folders."""
    path.replace(path.with_name(f"{path.name}.damaged"))
    for rest in ("-wal", "-shm"):
        path.with_name(path.name + rest).unlink(missing_ok=True)


def check(store: Store) -> list[str]:
    """Problems found by reading every run: what is missing or rotten, each in a sentence that names the run."""
    problems = []
    for run_id in sorted(store.ids()):
        try:
            run = store.run(run_id)
        except StoreError as error:
            problems.append(error.message)
            continue
        problems += [f"Run {run_id}: {problem}." for problem in run.problems]
    return problems


def json_text(value: Any) -> str:
    """Exact JSON: NaN and infinity, which JSON has no word for, become null."""
    return json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False)


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
