"""The newest readings in one file of fixed size: one process writes it, others read along.

    header   what the columns are, how many records there are; never changes
    notes    twice, written in turns: a JSON document beside the numbers
    records  number, checksum, time, values; record n lies in place n modulo their number

A record counts when its checksum fits, so a reader that meets one half-written, or a writer that was killed at it, loses
that one. Plain reads and writes, no memory map: on a full disk, or where somebody cut the file short, a map ends the process
by a signal, and a write is an error like any other. All of the room is taken when the file is made.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

_MAGIC = b"ISORING1"
_HEADER = struct.Struct("<8sII")  # magic, length and checksum of the JSON that follows
_NOTE = struct.Struct("<QII")  # number, length, checksum
_RECORD = struct.Struct("<QI4x")  # number from 1 on, checksum of number and values
_PAGE = 4_096
_AT_ONCE = 64  # records that a reader who follows takes with one read
_LONGEST_HEADER = 2**20


class NotARing(Exception):
    """The file is none of ours, or of another version."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a file is for: its columns, its size, and what a reader must know of them."""

    columns: tuple[str, ...]
    capacity: int
    notes_bytes: int
    about: Mapping[str, Any]

    @property
    def record_bytes(self) -> int:
        return _RECORD.size + 8 * (1 + len(self.columns))

    def as_json(self, ring_id: str) -> bytes:
        content = {"id": ring_id, "columns": self.columns, "capacity": self.capacity, "notes_bytes": self.notes_bytes}
        return json.dumps(content | {"about": self.about}).encode()


class Ring:
    """The file as a reader has it: opened once, read by number. Raises OSError or NotARing."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        self.fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            self.id, self.shape, self._notes_at = _read_header(self.fd)
        except Exception:
            os.close(self.fd)
            raise
        self._records_at = self._notes_at + 2 * self.shape.notes_bytes
        columns = len(self.shape.columns)
        self._dtype = np.dtype(
            [("seq", "<u8"), ("crc", "<u4"), ("", "<u4"), ("at", "<f8"), ("values", "<f8", (columns,))]
        )

    def close(self) -> None:
        os.close(self.fd)

    def rows(self, after: int = 0) -> tuple[int, np.ndarray]:
        """Number of the newest record, and the records after number `after` as rows of time and values, (n, 1 + columns).

        All that are there when the reader was overtaken, or has none yet.
        """
        found = self._following(after) if after else None
        if found is None:
            found = self._valid(self._read(0, self.shape.capacity))
            found = found[np.argsort(found["seq"])]
            after = 0
        newest = int(found["seq"][-1]) if len(found) else after
        return newest, np.column_stack([found["at"], found["values"]])

    def notes(self) -> tuple[int, dict[str, Any]]:
        """The newest document and its number; 0 and nothing before the first."""
        return max((self._note(place) for place in (0, 1)), key=lambda note: note[0])

    def _following(self, after: int) -> np.ndarray | None:
        """The records after one that the reader has; None when they were overwritten meanwhile."""
        parts, newest = [], after
        while True:
            part = self._read((newest + 1) % self.shape.capacity, _AT_ONCE)
            number = newest + 1 + np.arange(len(part))
            if len(part) and part["seq"][0] > newest + 1:
                return None
            fits = self._valid(part[part["seq"] == number])
            parts.append(fits)
            if len(fits) < len(part) or not len(part):
                return np.concatenate(parts)
            newest += len(fits)

    def _read(self, place: int, count: int) -> np.ndarray:
        """Up to `count` records from a place on, not beyond the last place."""
        size = self.shape.record_bytes
        count = min(count, self.shape.capacity - place)
        data = os.pread(self.fd, count * size, self._records_at + place * size)
        return np.frombuffer(data[: len(data) // size * size], self._dtype)

    def _valid(self, found: np.ndarray) -> np.ndarray:
        """Those that are whole, and not left over from the round before."""
        found = found[found["seq"] > 0]
        data, size = found.tobytes(), self.shape.record_bytes
        whole = [_checksum(data[n * size : (n + 1) * size]) == crc for n, crc in enumerate(found["crc"].tolist())]
        found = found[np.array(whole, dtype=bool)]
        return found[found["seq"] + np.uint64(self.shape.capacity) > found["seq"].max()] if len(found) else found

    def _note(self, place: int) -> tuple[int, dict[str, Any]]:
        data = os.pread(self.fd, self.shape.notes_bytes, self._notes_at + place * self.shape.notes_bytes)
        if len(data) < _NOTE.size:
            return 0, {}
        number, length, checksum = _NOTE.unpack_from(data)
        text = data[_NOTE.size : _NOTE.size + length]
        if not number or len(text) != length or zlib.crc32(text) != checksum:
            return 0, {}
        return number, json.loads(text)


class Writer(Ring):
    """The file as its one writer has it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, write=True)
        self.newest, _ = self.rows()
        self._noted, _ = self.notes()
        self._pack = struct.Struct(f"<{1 + len(self.shape.columns)}d")

    @classmethod
    def take_up(cls, path: Path, shape: Shape) -> Self:
        """Write on where an earlier process ended. A file with other columns is made anew, with what it held of ours."""
        before = None
        try:
            held = cls(path)
            if held.shape == shape and path.stat().st_size == _file_bytes(shape, held._notes_at):
                return held
            before = held
        except (OSError, NotARing):
            pass
        _make(path, shape)
        made = cls(path)
        if before is not None:
            made._carry_over(before)
            before.close()
        return made

    def append(self, at: float, values: Sequence[float | None]) -> None:
        number = self.newest + 1
        packed = self._pack.pack(at, *(np.nan if value is None else value for value in values))
        head = _RECORD.pack(number, 0)
        record = _RECORD.pack(number, _checksum(head + packed)) + packed
        place = number % self.shape.capacity
        _write(self.fd, record, self._records_at + place * self.shape.record_bytes)
        self.newest = number

    def note(self, content: Mapping[str, Any]) -> bool:
        """Replace the document; False for one that is too long."""
        text = json.dumps(content, separators=(",", ":")).encode()
        if _NOTE.size + len(text) > self.shape.notes_bytes:
            return False
        number = self._noted + 1
        place = self._notes_at + number % 2 * self.shape.notes_bytes
        _write(self.fd, _NOTE.pack(number, len(text), zlib.crc32(text)) + text, place)
        self._noted = number
        return True

    def _carry_over(self, before: Ring) -> None:
        _, rows = before.rows()
        held = {name: place for place, name in enumerate(before.shape.columns, 1)}
        for row in rows[-self.shape.capacity :].tolist():
            self.append(row[0], [row[held[name]] if name in held else None for name in self.shape.columns])
        self.note(before.notes()[1])


def _checksum(record: bytes) -> int:
    return zlib.crc32(record[_RECORD.size :], zlib.crc32(record[:8]))


def _read_header(fd: int) -> tuple[str, Shape, int]:
    """The file's id, its shape, and where the notes begin."""
    start = os.pread(fd, _HEADER.size, 0)
    if len(start) < _HEADER.size:
        raise NotARing("It is too short.")
    magic, length, checksum = _HEADER.unpack(start)
    if magic != _MAGIC or length > _LONGEST_HEADER:
        raise NotARing("It is no file of readings, or another version wrote it.")
    text = os.pread(fd, length, _HEADER.size)
    if zlib.crc32(text) != checksum:
        raise NotARing("Its header is damaged.")
    said = json.loads(text)
    shape = Shape(tuple(said["columns"]), said["capacity"], said["notes_bytes"], said["about"])
    return said["id"], shape, _header_bytes(length)


def _header_bytes(length: int) -> int:
    return -(-(_HEADER.size + length) // _PAGE) * _PAGE


def _file_bytes(shape: Shape, notes_at: int) -> int:
    return notes_at + 2 * shape.notes_bytes + shape.capacity * shape.record_bytes


def _make(path: Path, shape: Shape) -> None:
    """An empty file under its name, with all of its room taken, or nothing and an OSError."""
    text = shape.as_json(secrets.token_hex(8))
    header = (_HEADER.pack(_MAGIC, len(text), zlib.crc32(text)) + text).ljust(_header_bytes(len(text)), b"\0")
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(header)
            rest = _file_bytes(shape, len(header)) - len(header)
            for _ in range(rest // _PAGE):  # zeros that are written, not skipped: a hole takes its room later, or not
                file.write(bytes(_PAGE))
            file.write(bytes(rest % _PAGE))
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def _write(fd: int, data: bytes, place: int) -> None:
    written = os.pwrite(fd, data, place)
    if written != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
