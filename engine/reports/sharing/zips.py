"""A report as a zip: its JSON, the HTML page, the points as CSV and, on request, the weights.

An imported zip is checked before anything is unpacked, and its bytes are counted while it is unpacked. Only members
with known names are read, and none is written under a name from the zip.
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
from engine.reports.points import MAX_UNPACKED_BYTES
from engine.reports.report import Report
from engine.store.csv_tables import csv_of
from engine.store.run import Run

MAX_MEMBERS = 2_000
MAX_RATIO = 200
_SMALL = 65_536  # bytes; below this, the ratio is not checked
REPORT, PAGE, SUMS = "report.json", "report.html", "SHA256SUMS"
_README = """Made by Isoflop {version}: {title}

report.json   the whole report; an import reads this file (format: docs/report-schema.md)
report.html   the report as a page for any browser, offline; long runs have fewer points in it
csv/          the points of each run, one file per table
weights/      the weights of the runs as safetensors, if they were requested
SHA256SUMS    check all files: sha256sum -c SHA256SUMS
"""


def write_zip(path: Path, report: Report, runs: Mapping[str, Run]) -> None:
    """Write the zip, completely or not at all; `runs` maps the ids of the report to runs of the store.

    Raises:
        StoreError: The file cannot be written.
    """
    from engine.reports.html import page  # imports Plotly, which an import of files does not need

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
        raise StoreError(f"{path} cannot be written: {error.strerror}.", fix="Choose another file with -o.") from None
    finally:
        draft.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, name: str, content: bytes | Path, created: float) -> str:
    """Add a member and return its SHA-256. Its date is that of the report, so that equal reports give equal files."""
    info = zipfile.ZipInfo(name, time.gmtime(min(max(created, 3.2e8), 4.3e9))[:6])  # the range of dates in a zip
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


# --- an imported zip -------------------------------------------------------------------------------------------------


class Archive:
    """An imported zip whose members were all checked.

    Raises:
        StoreError: The zip is damaged or unsafe; the message names the member.
    """

    def __init__(self, path: Path) -> None:
        self._left = MAX_UNPACKED_BYTES
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
            raise _refused("it is not a complete zip file", "Export or send it again.") from None
        members = self._zip.infolist()
        if len(members) > MAX_MEMBERS:
            raise _refused(f"it has {len(members):,} members, the limit is {MAX_MEMBERS:,}")
        for member in members:
            _check_member(member)
        names = [member.orig_filename for member in members]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise _refused(f"it contains {_shown(twice)} twice")
        if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
            raise _refused(f"it would unpack to more than {MAX_UNPACKED_BYTES:,} bytes")
        _check_no_overlap(path, members, self._zip.start_dir)
        self.names = frozenset(names)

    def read(self, name: str) -> bytes:
        """The bytes of a member, counted while they are unpacked, because the size in the zip can be wrong.

        Raises:
            StoreError: The member is damaged, or unpacks to too many bytes.
        """  # noqa: DOC501
        pieces = []
        try:
            with self._zip.open(name) as member:
                while piece := member.read(2**20):
                    self._left -= len(piece)
                    if self._left < 0:
                        raise _refused(f"it unpacks to more than {MAX_UNPACKED_BYTES:,} bytes")
                    pieces.append(piece)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError):
            raise _refused(f"its member {_shown(name)} is damaged", "Export or send it again.") from None
        return b"".join(pieces)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    shown = _shown(name)
    parts = name.removesuffix("/").split("/")
    if "\\" in name:
        raise _refused(f"the member name {shown} contains a backslash")
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        raise _refused(f"the member name {shown} is an absolute path")
    if ".." in parts:
        raise _refused(f"the member name {shown} leads out of its folder")
    if any(part in {"", "."} for part in parts) or not name.isprintable():
        raise _refused(f"the member name {shown} is not an ordinary file name")
    if member.flag_bits & 0x41:
        raise _refused(f"its member {shown} is encrypted", "Send it without a password.")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise _refused(f"its member {shown} is a link or a device, not a file")
    if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise _refused(f"its member {shown} uses an unsupported compression", "Use deflate.")
    if member.file_size > max(_SMALL, MAX_RATIO * member.compress_size):
        raise _refused(f"its member {shown} unpacks to more than {MAX_RATIO} times its size")


_LOCAL = struct.Struct(
    "<4s5H3L2H"
)  # local file header, APPNOTE.TXT 4.3.7 (pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT)


def _check_no_overlap(path: Path, members: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse members that share bytes: a few kilobytes would unpack to gigabytes (CVE-2024-0450)."""  # noqa: DOC501
    before = 0
    with path.open("rb") as file:
        for member in sorted(members, key=lambda m: m.header_offset):
            file.seek(member.header_offset)
            header = file.read(_LOCAL.size)
            if len(header) < _LOCAL.size or header[:4] != b"PK\x03\x04":
                raise _refused("it is not a complete zip file", "Export or send it again.")
            *_, name_size, extra_size = _LOCAL.unpack(header)
            if member.header_offset < before:
                raise _refused(f"its member {_shown(member.orig_filename)} overlaps another one")
            before = member.header_offset + _LOCAL.size + name_size + extra_size + member.compress_size
    if before > end:
        raise _refused("its members overlap its directory")


def _refused(why: str, fix: str = "Ask for a file that Isoflop exported.") -> StoreError:
    return StoreError(f"This zip is refused: {why}.", fix=fix)


def _shown(name: str) -> str:
    return repr(name[:60])
