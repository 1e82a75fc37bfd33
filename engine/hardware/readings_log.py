"""The newest readings of the machine, in two files of event-log lines: one process writes them, others follow.

A line is a record with its CRC-32, as in a run's log (`engine.store`): `columns` names the values of the readings after
it, `reading` is one row, `notes` is what a page shows beside the numbers. When the current file is full, it replaces the
previous one, so both together hold at least the last `CAPACITY` readings and have a bounded size.

Readers take no lock: they skip a line that is incomplete or damaged. One write call makes one line, so a writer that is
killed loses at most the line it was writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from engine.common.errors import StoreError
from engine.events.base import Count, Event, Float64s, Moment
from engine.store.event_log import decode_as, encode
from engine.system import disk_space

CURRENT, PREVIOUS = "monitor.jsonl", "monitor.previous.jsonl"
CAPACITY = 3_600  # readings: 15 minutes of 4 a second
_FILE_BYTES = 32 * 2**20  # of each file, at most: CAPACITY readings of 800 columns
_BEFORE = "monitor.ring"  # a binary file that earlier versions kept readings in


class Columns(Event):
    """The names of the values of all readings after it. Another list of names has another `id`."""

    kind: Literal["columns"] = "columns"
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    names: tuple[str, ...]
    gpus: tuple[str, ...]  # model names, by index


class Reading(Event):
    """All values of one moment; NaN where there is none. Numbers begin at 1 and rise by 1."""

    kind: Literal["reading"] = "reading"
    number: Count
    at: Moment
    values: Float64s  # (columns,)


class Notes(Event):
    """A JSON object that replaces the one before. Numbers begin at 1 and rise by 1."""

    kind: Literal["notes"] = "notes"
    number: Count
    content: dict[str, Any]


_RECORD: TypeAdapter[Columns | Reading | Notes] = TypeAdapter(
    Annotated[Columns | Reading | Notes, Field(discriminator="kind")]
)


@dataclass(frozen=True, slots=True)
class Readings:
    """The rows that a reader asked for, with the names of their columns and the notes."""

    id: str  # of the columns
    columns: tuple[str, ...]
    gpus: tuple[str, ...]
    newest: int  # number of the newest reading; 0 before the first
    newest_at: float | None  # its Unix time, s
    rows: np.ndarray  # (n, 1 + columns): Unix time in s, then the values
    notes_number: int  # 0 before the first
    notes: Mapping[str, Any]


class Reader:
    """Follows the log of a store and holds its newest `CAPACITY` readings. Several threads can use one reader."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._forget()

    def read(self, after: int = 0) -> Readings:
        """The readings after number `after`; all that are held where `after` is 0 or older than those.

        Raises FileNotFoundError where there is no log, OSError where it cannot be read.
        """
        with self._lock:
            if self._file is None or not disk_space.same_file(self._root / CURRENT, self._file.fileno()):
                self._start_anew()
            else:
                self._take_lines(self._file)
            new = [row for _, row in takewhile(lambda numbered: numbered[0] > after, reversed(self._rows))]
            rows = np.stack(new[::-1]) if new else np.empty((0, 1 + len(self._columns.names)))
            c, n = self._columns, self._notes
            at = float(self._rows[-1][1][0]) if self._rows else None
            return Readings(c.id, c.names, c.gpus, self._newest, at, rows, n.number, n.content)

    def close(self) -> None:
        """Close the file. The next `read` opens it again."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None

    def _forget(self) -> None:
        self._rows: deque[tuple[int, np.ndarray]] = deque(maxlen=CAPACITY)  # number, and a row (1 + columns,)
        self._columns = Columns.model_construct(id="", names=(), gpus=())
        self._notes = Notes(number=0, content={})
        self._newest = 0

    def _start_anew(self) -> None:
        """Read both files.

        The current one is opened first. When it is replaced meanwhile, it is read twice, which changes nothing, because a
        reading whose number is not new is skipped.

        Raises:
            FileNotFoundError: there is neither file.
        """
        if self._file is not None:
            self._file.close()
            self._file = None
        self._forget()
        with contextlib.suppress(FileNotFoundError):  # the writer is between two files
            self._file = (self._root / CURRENT).open("rb", buffering=0)
        try:
            with (self._root / PREVIOUS).open("rb", buffering=0) as previous:
                self._take_lines(previous)
        except FileNotFoundError:
            if self._file is None:
                raise
        if self._file is not None:
            self._take_lines(self._file)

    def _take_lines(self, file: BinaryIO) -> None:
        """Take the lines that are complete. An incomplete one is left for the next call."""
        start = file.tell()
        text = file.read(min(2 * _FILE_BYTES, os.fstat(file.fileno()).st_size - start))
        end = text.rfind(b"\n") + 1
        file.seek(start + end)
        for line in text[:end].splitlines(keepends=True):
            with contextlib.suppress(StoreError):  # a damaged line, or one of another version
                self._take(decode_as(line, _RECORD))

    def _take(self, record: Columns | Reading | Notes) -> None:
        match record:
            case Columns():
                self._rename(record)
            case Reading() if record.number > self._newest and len(record.values) == len(self._columns.names):
                self._rows.append((record.number, np.append(record.at, record.values)))
                self._newest = record.number
            case Notes() if record.number > self._notes.number:
                self._notes = record

    def _rename(self, columns: Columns) -> None:
        """Keep the values of columns that stay, under their new places."""
        if columns.names != self._columns.names:
            held = {name: place for place, name in enumerate(self._columns.names, 1)}
            stay = [place for place, name in enumerate(columns.names, 1) if name in held]
            before = [0, *(held[columns.names[place - 1]] for place in stay)]
            for _ in range(len(self._rows)):
                row = np.full(1 + len(columns.names), np.nan)
                number, old = self._rows.popleft()
                row[[0, *stay]] = old[before]
                self._rows.append((number, row))
        self._columns = columns


class Writer:
    """Appends to the log of a store, from one thread of one process."""

    def __init__(self, root: Path, columns: Sequence[str], gpus: Sequence[str]) -> None:
        """Continue the log of an earlier process; `held` is what that left. Files that are no such log are replaced.

        Raises:
            OSError: the files cannot be read or written.
        """
        self._root = root
        reader = Reader(root)
        try:
            found = reader.read()
        except FileNotFoundError:
            found = None
        finally:
            reader.close()
        (root / _BEFORE).unlink(missing_ok=True)
        if found is None or not found.id:
            for name in (CURRENT, PREVIOUS):
                (root / name).unlink(missing_ok=True)
        self.held: Readings | None = found if found and found.id else None
        self._newest, self._notes = (found.newest, found.notes_number) if found else (0, 0)
        self._content: Mapping[str, Any] = found.notes if found else {}
        goes_on = found is not None and (found.columns, found.gpus) == (tuple(columns), tuple(gpus))
        name = found.id if found and goes_on and (root / CURRENT).exists() else secrets.token_hex(8)
        self.columns = Columns(id=name, names=tuple(columns), gpus=tuple(gpus))
        self._fd = -1
        try:
            self._open()
        except OSError:
            self.close()
            raise

    @property
    def is_in_place(self) -> bool:
        """Whether the file is still under its name: what is written to a deleted file is lost."""
        return disk_space.same_file(self._root / CURRENT, self._fd)

    def append(self, at: float, values: Sequence[float | None]) -> None:
        """Add the values, one for each column, of a moment (Unix time, s). Raises OSError when the disk is full."""
        if self._readings >= CAPACITY or self._bytes >= _FILE_BYTES:
            self.close()
            (self._root / CURRENT).replace(self._root / PREVIOUS)
            self._open()
            self.note(self._content)
        numbers = np.array([np.nan if value is None else value for value in values], dtype="<f8")
        # Not validated, because these values are our own and this runs at every beat.
        self._write(Reading.model_construct(number=self._newest + 1, at=at, values=numbers))
        self._newest += 1
        self._readings += 1

    def note(self, content: Mapping[str, Any]) -> None:
        """Replace the notes. Raises OSError when the disk is full."""
        self._write(Notes(number=self._notes + 1, content=dict(content)))
        self._notes, self._content = self._notes + 1, content

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """Open the current file and write what each file begins with."""
        self._fd = os.open(self._root / CURRENT, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._bytes = os.fstat(self._fd).st_size
        self._readings = (self._root / CURRENT).read_bytes().count(b'{"kind":"reading"')
        if self._bytes and os.pread(self._fd, 1, self._bytes - 1) != b"\n":
            os.write(self._fd, b"\n")  # end a line that was cut off, so that only that one is lost
        self._write(self.columns)

    def _write(self, record: Event) -> None:
        line = encode(record)
        if os.write(self._fd, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._bytes += len(line)
