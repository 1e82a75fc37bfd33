"""The event log: JSON lines with packed arrays, each line with a checksum."""

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
_PATIENCE_S = 10.0  # a run goes on for so long while its log cannot be written
_FINAL_EVENT_S = 5.0  # and tries for so long to say how it ended
_CRC_MEMBER = b',"crc":"'
LINE_BYTES = 8 * 2**20  # the longest record: ten minutes of steps in one read-back are shorter
STEPS_LINE = b'{"kind":"steps",'  # nearly all lines of a long log


# --- the event log ------------------------------------------------------------------------------------------------


def encode(event: Event) -> bytes:
    """The event's line of a log: its JSON, with the CRC-32 of that as the last member."""
    body = event.model_dump_json().encode()
    return body[:-1] + _CRC_MEMBER + b'%08x"}\n' % zlib.crc32(body)


def decode(line: bytes) -> AnyEvent:
    """The event of one whole line; raises StoreError when the line is not what was written."""
    return decode_as(line, EVENT)


Record = TypeVar("Record")


def decode_as(line: bytes, kinds: TypeAdapter[Record]) -> Record:
    """The record of one whole line, of the kinds given; raises StoreError when the line is not what was written."""
    body = _checked(line)
    try:
        return kinds.validate_json(body)
    except ValidationError as error:
        raise _not_understood(error.errors()[0]["msg"]) from None


def decode_steps(line: bytes) -> PackedSteps:
    """The same for a line that starts with `STEPS_LINE`, arrays left packed but of the right lengths."""
    packed = decode_as(line, PACKED_STEPS)
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


def _check_norms(packed: PackedSteps, norm_steps: bytes) -> None:
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
            first_point = isinstance(event, Steps) and not self.steps  # someone waits for it
            if isinstance(event, Steps):
                self.steps += len(event.loss)
            elif isinstance(event, Evaluation):
                self.evaluations += 1
            quiet = isinstance(event, Steps | HardwareSample)
            if not quiet or first_point or time.monotonic() - self._flushed_at >= _FLUSH_S:
                try:
                    self._write()
                except StoreError:  # said to who trains, not to the thread that samples
                    if not isinstance(event, HardwareSample):
                        raise

    def flush_if_due(self) -> None:
        """Never raises: the thread that watches a run has more to look after. The next `append` says what is wrong."""
        with self._lock:
            if self._pending and time.monotonic() - self._flushed_at >= _FLUSH_S:
                with contextlib.suppress(StoreError):
                    self._write()

    def close(self, last: Terminal, *, steps: int | None = None, evaluations: int | None = None) -> None:
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
                raise self._in_words(error) from None
        else:
            self._failing_since = None
            self._flushed_at = time.monotonic()

    def _in_words(self, error: OSError | StoreError) -> StoreError:
        if isinstance(error, StoreError):
            return error
        return (
            disk_space.shortage(self._file.fileno())
            if disk_space.is_full(error)
            else disk_space.unwritable(error, "The run's log")
        )

    def _write_out(self) -> None:
        """A disk that fills up takes a part of what it is given: the rest follows it, so no line is torn."""
        fd = self._file.fileno()
        if not disk_space.same_file(self.path, fd):
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


_KIND = re.compile(rb'\{"kind":"(\w+)"')


def events_of(folder: Path, but: Collection[str]) -> Iterator[AnyEvent]:
    """The records of a run's log that can be read, but those of some kinds, which are not even unpacked."""
    with contextlib.suppress(FileNotFoundError), (folder / "events.jsonl").open("rb") as file:
        while line := file.readline(LINE_BYTES):
            found = _KIND.match(line)
            if found and found[1].decode() not in but:
                with contextlib.suppress(StoreError):  # whoever reads the run says so
                    yield decode(line)
