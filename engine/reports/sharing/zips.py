"""A report as a zip: the JSON that is the truth, the page drawn from it, its points as CSV and, where asked, its weights.

A zip from elsewhere is gone through before anything in it is unpacked, and counted while it is; of its members only those
of our own names are read, and none is written under a name of its own.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from engine.common.errors import StoreError
from engine.reports.report import MAX_UNPACKED_BYTES, Report
from engine.store.csv_tables import csv_of
from engine.store.run import Run

MAX_MEMBERS = 2_000
MAX_RATIO = 200
_SMALL = 65_536  # bytes unpacked: a ratio says nothing about less
REPORT, PAGE, SUMS = "report.json", "report.html", "SHA256SUMS"
_README = """Made by Isoflop {version}: {title}

report.json   everything, and what an import reads; docs/report-schema.md says what stands where
report.html   the same to look at, in any browser, offline; of long runs with fewer points
csv/          the points of each run, one file per table
weights/      weights of runs as safetensors, where they were asked for
SHA256SUMS    checks all of it: sha256sum -c SHA256SUMS
"""


def write_zip(path: Path, report: Report, runs: Mapping[str, Run]) -> None:
    """All or nothing under `path`; `runs` are those of the report by id. Raises StoreError."""
    from engine.reports.html import page  # brings Plotly, which an import does not need

    members: dict[str, bytes | Path] = {
        "README.txt": _README.format(version=report.isoflop, title=report.title).encode(),
        REPORT: report.to_json().encode(),
        PAGE: page.render(report).encode(),
    }
    for run in report.runs:
        for name, text in csv_of(run).items():
            members[f"csv/{run.run_id}-{name}.csv"] = text.encode()
        for file in run.files:
            if file.data is None:
                members[f"weights/{run.run_id}/{file.name}"] = runs[run.run_id].folder / file.name
    draft = path.with_name(f".{path.name}.part")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            sums = [f"{_add(archive, name, content, report.created)}  {name}\n" for name, content in members.items()]
            _add(archive, SUMS, "".join(sums).encode(), report.created)
        draft.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.", fix="Choose another place with -o.") from None
    finally:
        draft.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path, created: float) -> str:
    """Returns the member's SHA-256. Its date is the report's: the same report makes the same file."""
    info = zipfile.ZipInfo(name, time.gmtime(min(max(created, 3.2e8), 4.3e9))[:6])  # what a zip can say
    info.compress_type = zipfile.ZIP_STORED if isinstance(content, Path) else zipfile.ZIP_DEFLATED
    info.external_attr = 0o600 << 16
    digest = hashlib.sha256()
    with archive.open(info, "w") as member, _opened(content) as file:
        while piece := file.read(2**20):
            digest.update(piece)
            member.write(piece)
    return digest.hexdigest()


def _opened(content: bytes | Path) -> IO[bytes]:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


# --- a zip from elsewhere -------------------------------------------------------------------------------------------


class Archive:
    """A zip that was gone through. Raises StoreError, naming the member, for one that is not an honest zip of ours."""

    def __init__(self, path: Path) -> None:
        self._left = MAX_UNPACKED_BYTES
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
            raise _refused("it is not a whole zip file", "Export or send it again.") from None
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise _refused(f"it has {len(members):,} members, more than {MAX_MEMBERS:,}")
        for member in members:
            _check_member(member)
        names = [member.orig_filename for member in members]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _refused(f"{_shown(twice)} is in it twice")
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise _refused(f"it would unpack to more than {MAX_UNPACKED_BYTES:,} bytes")
        _check_apart(path, members, self._zip.start_dir)
        self.names = frozenset(names)

    def read(self, name: str) -> bytes:
        """A member, counted as it unpacks, whatever the zip says of its size."""
        pieces = []
        try:
            with self._zip.open(name) as member:
                while piece := member.read(2**20):
                    self._left -= len(piece)
                    if self._left < 0:
                        raise _refused(f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                    pieces.append(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
            raise _refused(f"{_shown(name)} in it is damaged", "Export or send it again.") from None
        return b"".join(pieces)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    shown = _shown(name)
    parts = name.removesuffix("/").split("/")
    if "\\" in name:
        raise _refused(f"the name {shown} in it holds a backslash")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refused(f"the name {shown} in it begins at a root or a drive")
    if ".." in parts:
        raise _refused(f"the name {shown} in it leads out of its folder")
    if any(part in {"", "."} for part in parts) or not name.isprintable():
        raise _refused(f"the name {shown} in it is not one of an ordinary file")
    if member.flag_bits & 0x41:
        raise _refused(f"{shown} in it is encrypted", "Send it without a password.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _refused(f"{shown} in it is a link or a device, not a file")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise _refused(f"{shown} in it is packed in a way that is not read", "Pack it by deflate.")
    if member.file_size > max(_SMALL, MAX_RATIO * member.compress_size):
        raise _refused(f"{shown} in it unpacks to more than {MAX_RATIO} times its size")


_LOCAL = struct.Struct("<4s5H3L2H")  # https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT 4.3.7


def _check_apart(path: Path, members: list[zipfile.ZipInfo], end: int) -> None:
    """No two members share bytes: that is how a few kilobytes unpack to gigabytes (CVE-2024-0450)."""
    before = 0
    with path.open("rb") as file:
        for member in sorted(members, key=lambda m: m.header_offset):
            file.seek(member.header_offset)
            header = file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
                raise _refused("it is not a whole zip file", "Export or send it again.")
            *_, name_size, extra_size = _LOCAL.unpack(header)
            if member.header_offset < before:
                raise _refused(f"{_shown(member.orig_filename)} in it overlaps another member")
            before = member.header_offset + _LOCAL.size + name_size + extra_size + member.compress_size
    if before > end:
        raise _refused("its members overlap its directory")


def _refused(why: str, fix: str = "Ask for a file that Isoflop exported.") -> StoreError:
    return StoreError(f"This zip is refused: {why}.", fix=fix)


def _shown(name: str) -> str:
    return repr(name[:60])
