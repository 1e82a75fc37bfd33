"""Which code a process runs: the version of Isoflop, and a digest of the engine's files.

A supervisor and its fork server keep the code they once loaded. So a supervisor writes down what it loaded, and everyone
who wants a run compares that with the files as they are now. Standard library and `engine.processes` only.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import engine
from engine.system.processes import is_same_process, own_identity

CODE_FILE = "supervisor.json"  # beside supervisor.pid, which stays as it was: runs of older versions read it
PID_FILE = "supervisor.pid"


def digest_of(folder: Path) -> str:
    """SHA-256 over names and contents of all Python files below a folder, 16 hexadecimal digits.

    Contents, not times of modification: two copies of one release are the same code, and a checkout that only changes
    times restarts nothing. For 111 files it takes 2.7 ms, listing included, against 1.0 ms for sizes and times.
    """
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        try:
            content = path.read_bytes()
        except OSError:  # an upgrade removes it at this moment
            continue
        found.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def on_disk() -> str:
    """Digest of the engine's files now: of the code that a process started now would load."""
    return digest_of(Path(engine.__path__[0]))


LOADED = (
    on_disk()
)  # `engine.__main__` imports this module first: a file edited later makes this one differ, never match


@dataclass(frozen=True, slots=True)
class RunningSupervisor:
    """A store's supervisor that is alive. One made before there was a CODE_FILE has neither version nor digest."""

    pid: int
    started: float  # as engine.processes says it
    version: str = ""
    digest: str = ""

    def as_json(self) -> str:
        return json.dumps(asdict(self))

    def in_words(self) -> str:
        return f"process {self.pid}, Isoflop {self.version or 'of an older version'}"


def own_supervisor() -> RunningSupervisor:
    """What this process writes into CODE_FILE when it becomes a supervisor."""
    return RunningSupervisor(*own_identity(), version=engine.__version__, digest=LOADED)


def running_supervisor(root: Path) -> RunningSupervisor | None:
    """The supervisor of the store at `root`; None where none is alive, or one has just begun."""
    try:
        pid_text, started_text = (root / PID_FILE).read_text(encoding="utf-8").split()
        pid, started = int(pid_text), float(started_text)
    except (OSError, ValueError):
        return None
    if not is_same_process(pid, started):
        return None
    try:
        written = json.loads((root / CODE_FILE).read_text(encoding="utf-8"))
        if (written["pid"], written["started"]) == (pid, started):  # else an earlier supervisor wrote it
            return RunningSupervisor(pid, started, str(written["version"]), str(written["digest"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return RunningSupervisor(pid, started)


def supervisor_of_other_code(root: Path, digest: str) -> RunningSupervisor | None:
    """The store's supervisor where it runs other code than that of `digest`; an older version's always does."""
    found = running_supervisor(root)
    return found if found and found.digest != digest else None


def is_newer(version: str) -> bool:
    """Whether a version is newer than this Isoflop's; "" and whatever is no version are not."""
    return _numbers(version) > _numbers(engine.__version__)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,9}", version)]
