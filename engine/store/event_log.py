"""The event log: JSON lines with packed arrays. Each line has a checksum."""

from __future__ import annotations

import contextlib
import math
import os
import re
import struct
import threading
import time
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from engine.common.errors import StoreError, StoreGone
from engine.events.base import Event
from engine.events.catalog import EVENT, AnyEvent
from engine.events.lifecycle import Terminal
from engine.events.machine import HardwareSample
from engine.events.training import PACKED_STEPS, Evaluation, PackedSteps, Steps
from engine.system import disk_space

_FLUSH_S = 0.2
_PATIENCE_S = 10.0  # a run continues this long while its log cannot be written
_FINAL_EVENT_S = 5.0  # and tries this long to write its final event
_CRC_MEMBER = b',"crc":"'
LINE_BYTES = 8 * 2**20  # the longest event: ten minutes of steps in one read-back are shorter
STEPS_LINE = b'{"kind":"steps",'  # nearly all lines of a long log


def encode(event: Event) -> bytes:
    """The log line of an event: its JSON, with the CRC-32 of that JSON as the last member."""
    body = event.model_dump_json().encode()
    return body[:-1] + _CRC_MEMBER + b'%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> AnyEvent:
    """The event of one complete line.

    Raises:
        StoreError: the line is damaged, or its event is unknown.
    """
    return decode_as(line, EVENT)


Record = TypeVar("Record")


def decode_as(line: bytes, kinds: TypeAdapter[Record]) -> Record:
    """The event of one complete line, of the given kinds.

    Raises:
        StoreError: the line is damaged, or its event is not one of these kinds.
    """  # noqa: DOC501
    body = _checked(line)
    try:
        return kinds.validate_json(body)
    except ValidationError as error:
        raise _not_understood(error.errors()[0]["msg"]) from None


def decode_steps(line: bytes) -> PackedSteps:
    """The event of a line that starts with `STEPS_LINE`. Its arrays stay packed; their lengths are checked.

    Raises:
        StoreError: the line is damaged, or its values contradict each other.
    """  # noqa: DOC501
    packed = decode_as(line, PACKED_STEPS)
    size, lr = len(packed["loss"]), packed["lr"]
    if not size or size % 4 or len(packed["samples"]) != size or (isinstance(lr, bytes) and len(lr) != 2 * size):
        raise _not_understood("its arrays differ in length")
    if max(packed["samples"][3::4]) > 127:  # the sign of a little-endian number is in its last byte
        raise _not_understood("a step has a negative number of samples")
    (t0, t1), (e0, e1) = packed["train_s"], packed["elapsed_s"]
    if t0 > t1 or e0 > e1:
        raise _not_understood("its times run backwards")
    if norm_steps := packed.get("norm_steps", b""):
        _check_norms(packed, norm_steps)
    elif packed.get("grad_norm"):
        raise _not_understood("it has gradient norms without steps")
    return packed


def _check_norms(packed: PackedSteps, norm_steps: bytes) -> None:
    if len(norm_steps) % 4 or len(packed.get("grad_norm", b"")) != len(norm_steps):
        raise _not_understood("its gradient norms and their steps differ in length")
    numbers = struct.unpack(f"<{len(norm_steps) // 4}i", norm_steps)
    first, size = packed["first"], len(packed["loss"]) // 4
    if not first <= min(numbers) <= max(numbers) < first + size:
        raise _not_understood(f"it has gradient norms of steps outside {first} to {first + size - 1}")


def _checked(line: bytes) -> bytes:
    """The JSON of a complete line without its checksum.

    Raises:
        StoreError: the checksum does not match.
    """
    head, found, tail = line.rpartition(_CRC_MEMBER)
    body = head + b"}"
    if not found or tail.rstrip(b"\n") != b'%08x"}' % zlib.crc32(body):
        raise StoreError("The checksum of an event does not match.", fix="It is skipped; the other events are read.")
    return body


def _not_understood(why: str) -> StoreError:
    return StoreError(f"An event cannot be read: {why}.", fix="A newer Isoflop can perhaps read it.")


class EventLog:
    """Appends the events of a run. One process writes at a time; its threads can share the log.

    Raises:
        OSError: the log cannot be opened.
        StoreGone: the log was moved or deleted; raised at once.
        StoreError: the log could not be written for `patience_s` seconds. StoreFull if the disk is full.
    """

    def __init__(self, path: Path, *, patience_s: float | None = None) -> None:
        self.path = path
        self._patience_s = _PATIENCE_S if patience_s is None else patience_s
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(fd, "ab", buffering=0)
        self._lock = threading.Lock()
        self.checksum, torn = _checksum_of(path)
        # Terminate a line that a crash left half-written, so that only that event is lost.
        self._pending = bytearray(b"\n" if torn else b"")
        self.checksum = zlib.crc32(self._pending, self.checksum)
        self._flushed_at = -math.inf
        self._failing_since: float | None = None
        self.steps = 0
        self.evaluations = 0

    def append(self, event: AnyEvent) -> None:
        """Append an event. Steps and hardware samples are buffered for up to _FLUSH_S.

        Raises:
            StoreError: see the class. Never for a hardware sample, because the sampling thread cannot end the run.
        """
        line = encode(event)
        with self._lock:
            self._pending += line
            self.checksum = zlib.crc32(line, self.checksum)
            first_point = isinstance(event, Steps) and not self.steps  # a user waits for it
            if isinstance(event, Steps):
                self.steps += len(event.loss)
            elif isinstance(event, Evaluation):
                self.evaluations += 1
            quiet = isinstance(event, Steps | HardwareSample)
            if not quiet or first_point or time.monotonic() - self._flushed_at >= _FLUSH_S:
                try:
                    self._write()
                except StoreError:  # raise only in the training thread
                    if not isinstance(event, HardwareSample):
                        raise

    def flush_if_due(self) -> None:
        """Write the buffered events if _FLUSH_S has passed. Errors are left to the next `append`."""
        with self._lock:
            if self._pending and time.monotonic() - self._flushed_at >= _FLUSH_S:
                with contextlib.suppress(StoreError):
                    self._write()

    def close(self, last: Terminal, *, steps: int | None = None, evaluations: int | None = None) -> None:
        """Write the final event, with the counts and the checksum that a reader compares against.

        The supervisor, which ends runs whose process died, passes the counts that it read from the log. On a full disk
        the store's reserve is released to make room.

        Raises:
            StoreError: the log could not be written for some seconds.
        """  # noqa: DOC501
        with self._lock, self._file:
            counted = {
                "steps": self.steps if steps is None else steps,
                "evaluations": self.evaluations if evaluations is None else evaluations,
                "checksum": f"{self.checksum:08x}",
            }
            self._pending += encode(last.model_copy(update=counted))
            until = time.monotonic() + min(_FINAL_EVENT_S, self._patience_s)
            while True:
                try:
                    self._write_out()
                    os.fsync(self._file.fileno())
                    return
                except OSError as error:
                    if disk_space.is_full(error) and disk_space.release_reserve(self.path.parents[2]):
                        continue
                    if time.monotonic() >= until:
                        raise disk_space.unwritable(error, "The run's log") from None
                    time.sleep(0.1)

    def _write(self) -> None:
        try:
            self._write_out()
            if disk_space.is_short(self._file.fileno()):
                raise disk_space.shortage(self._file.fileno())
        except StoreGone:
            raise
        except (OSError, StoreError) as error:
            now = time.monotonic()
            self._failing_since = now if self._failing_since is None else self._failing_since
            if now - self._failing_since >= self._patience_s:
                raise self._as_store_error(error) from None
        else:
            self._failing_since = None
            self._flushed_at = time.monotonic()

    def _as_store_error(self, error: OSError | StoreError) -> StoreError:
        if isinstance(error, StoreError):
            return error
        return (
            disk_space.shortage(self._file.fileno())
            if disk_space.is_full(error)
            else disk_space.unwritable(error, "The run's log")
        )

    def _write_out(self) -> None:
        """Write the buffer.

        A disk that fills up accepts only a part of it; the rest is written later, so no line is torn.

        Raises:
            StoreGone: the log was moved or deleted.
        """
        fd = self._file.fileno()
        if not disk_space.same_file(self.path, fd):
            raise StoreGone("The run's folder is gone: it was moved or deleted during the run.")
        while self._pending:
            del self._pending[: os.write(fd, self._pending)]


def _checksum_of(path: Path) -> tuple[int, bool]:
    """CRC-32 of a file, and whether its last line is incomplete."""
    checksum, piece = 0, b"\n"
    with path.open("rb") as file:
        while read := file.read(2**20):
            checksum, piece = zlib.crc32(read, checksum), read
    return checksum, not piece.endswith(b"\n")


_KIND = re.compile(rb'\{"kind":"(\w+)"')


def events_of(folder: Path, excluded: Collection[str]) -> Iterator[AnyEvent]:
    """The readable events of a run's log, without the excluded kinds, which are not even decoded."""
    with contextlib.suppress(FileNotFoundError), (folder / "events.jsonl").open("rb") as file:
        while line := file.readline(LINE_BYTES):
            found = _KIND.match(line)
            if found and found[1].decode() not in excluded:
                with contextlib.suppress(StoreError):  # `Run` reports damaged lines
                    yield decode(line)
