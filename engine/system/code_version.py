"""Which code a process runs: the version of Isoflop, and a digest of the engine's files.

A supervisor and its fork server keep the code that they loaded at their start. The supervisor therefore records it, and
each client compares the record with the files on disk before it submits a run. This module is imported first, so it
imports only the standard library and `engine.system.processes`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import engine
from engine.system.processes import is_same_process, own_identity

CODE_FILE = "supervisor.json"  # a second file, because older versions read supervisor.pid in its present format
PID_FILE = "supervisor.pid"


def digest_of(folder: Path) -> str:
    """First 16 hex digits of a SHA-256 over names and contents of all Python files below a folder.

    It does not use modification times, because two copies of one release are the same code, and a checkout that changes
    only times must not restart the supervisor. For 111 files it takes 2.7 ms; sizes and times would take 1.0 ms.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        try:
            content = path.read_bytes()
        except OSError:  # an upgrade has just removed it
            continue
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def on_disk() -> str:
    """Digest of the engine's files on disk, which a process started now would load."""
    return digest_of(Path(engine.__path__[0]))


# Computed before the other modules are imported: a file edited during the imports makes the digest differ, never match.
LOADED = on_disk()


@dataclass(frozen=True, slots=True)
class RunningSupervisor:
    """The running supervisor of a store. One of a version without CODE_FILE has version and digest ""."""

    pid: int
    started: float  # as `process_started` returns it
    version: str = ""
    digest: str = ""

    def as_json(self) -> str:
        """The content of CODE_FILE."""
        return json.dumps(asdict(self))

    def in_words(self) -> str:
        """Process number and version, for messages."""
        return f"process {self.pid}, Isoflop {self.version or 'of an older version'}"


def own_supervisor() -> RunningSupervisor:
    """This process as a supervisor, for CODE_FILE."""
    return RunningSupervisor(*own_identity(), version=engine.__version__, digest=LOADED)


def running_supervisor(root: Path) -> RunningSupervisor | None:
    """The supervisor of the store at `root`; None if none runs, or if it has not yet written its pid."""
    try:
        pid_text, started_text = (root / PID_FILE).read_text(encoding="utf-8").split()
        pid, started = int(pid_text), float(started_text)
    except (OSError, ValueError):
        return None
    if not is_same_process(pid, started):
        return None
    try:
        written = json.loads((root / CODE_FILE).read_text(encoding="utf-8"))
        if (written["pid"], written["started"]) == (pid, started):  # otherwise an earlier supervisor wrote the file
            return RunningSupervisor(pid, started, str(written["version"]), str(written["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return RunningSupervisor(pid, started)


def supervisor_of_other_code(root: Path, digest: str) -> RunningSupervisor | None:
    """The store's supervisor if its code differs from `digest`, as that of an older version always does; else None."""
    found = running_supervisor(root)
    return found if found and found.digest != digest else None


def is_newer(version: str) -> bool:
    """Whether a version is newer than this Isoflop. "" and other text without numbers are not."""
    return _numbers(version) > _numbers(engine.__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)]
