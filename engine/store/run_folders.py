"""The folders and files of a store, without its index.

    $ISOFLOP_HOME/
      runs/<id>/config.json, events.jsonl, model.safetensors   the source of truth: one folder per run, nothing shared
      inbox/                                                   commands to the supervisor
      reserve                                                  disk space for final events on a full disk
      index.sqlite                                             derived: one row per run, can be rebuilt

A log line is the JSON of an event, with the CRC-32 of the rest as its last member. A reader follows the log by byte
offset. It leaves a line that is still being written for the next time, and skips and counts lines with a wrong checksum.

While the log of a run cannot be written (the disk is full or read-only), the run continues for ten seconds and buffers
its events. Then it fails. The log is always a prefix of the events.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine import __version__
from engine.common.errors import StoreError, StoreGone
from engine.common.sanitize import clean_name, visible
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Queued, SeedBlock
from engine.store.event_log import decode, encode
from engine.store.labels import LABELS_FILE, Labels
from engine.store.run import Run, queued_event
from engine.system import disk_space
from engine.system.files import private_folder, write_atomically
from engine.system.locks import lock
from engine.system.processes import is_same_process, own_identity

_RUN_ID = re.compile(r"[0-9a-f]{16}")
_DRAFT = re.compile(r"\.([0-9a-f]{16}|import-[0-9a-f]{16}|deleted-[0-9a-f]{16}|reserve|.+\.[0-9a-f]{8})")
_IMPORTER, _PLACED = "importer.json", "placed.json"  # in an import's folder: its process, and what it moves into place
_PLACE = re.compile(r"runs/[0-9a-f]{16}|reports/[0-9a-f]{16}\.json")
_ORDER = "order"  # file with the number of the newest submission
_STALE_S = 60.0  # an older draft was left by a crash


def _gone() -> StoreGone:
    """The error for a store whose folder vanished."""
    return StoreGone(
        "The store's folder is gone: it was moved or deleted while it was in use.",
        fix="Put it back, or start again with ISOFLOP_HOME set to a folder you own.",
    )


class RunFolders:
    """The run folders and the inbox of the store at `root`. Ids, not texts of users, name the folders.

    Raises:
        StoreError: the folder cannot be created or used.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = self.root / "runs"
        self.inbox = self.root / "inbox"
        try:
            for folder in (self.root, self.runs, self.inbox):
                private_folder(folder)
                os.scandir(folder).close()
        except OSError as error:
            raise StoreError(
                f"The store {self.root} cannot be used: {error.strerror}.", fix="Set ISOFLOP_HOME to a folder you own."
            ) from None

    def trouble(self) -> StoreError | None:
        """The reason why no run can be created now; None if one can."""
        if not self.runs.is_dir():
            return _gone()
        if not all(os.access(folder, os.W_OK | os.X_OK) for folder in (self.root, self.runs, self.inbox)):
            return StoreError(
                "The store can be read, but not written: no run can start or be changed.",
                fix="Check the owner and permissions of its folder, or set ISOFLOP_HOME to a folder you own.",
            )
        try:
            disk_space.require_room_for_a_run(self.root)
        except StoreError as error:
            return error
        return None

    def create(
        self,
        config: RunConfig,
        *,
        name: str = "",
        group: str | None = None,
        heat: SeedBlock | None = None,
        owner: str = "",
        key: str = "",
        data_version: str | None = None,
    ) -> str:
        """Create a queued run, completely or not at all; returns its id.

        `data_version` is that of the user's own data (`Dataset.version`). If the run of `key` exists, for example after a double click, its id is returned.

        Raises:
            ConfigError: the name is not valid.
            StoreError: the store cannot be written.
        """  # noqa: DOC501
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
                Queued(
                    at=time.time(),
                    order=self.next_order(),
                    name=name,
                    group=group,
                    heat=heat,
                    owner=owner,
                    data_version=data_version,
                    version=__version__,
                )
            )
            write_atomically(draft / "events.jsonl", queued.decode())
            draft.rename(self.runs / run_id)
        except OSError as error:
            disk_space.remove(draft)
            if not (self.runs / run_id).exists():  # else another process created it first
                raise disk_space.unwritable(error) from None
        return run_id

    @staticmethod
    def id_of(key: str) -> str:
        """The id of the run of a key; a new id if the key is empty."""
        return hashlib.sha256(key.encode()).hexdigest()[:16] if key else secrets.token_hex(8)

    def owner(self, run_id: str) -> str:
        """The id of the actor that submitted a run, also a hidden one; empty if unknown."""
        for folder in (self.runs / run_id, self.runs / f".deleted-{run_id}") if _RUN_ID.fullmatch(run_id) else ():
            if first := queued_event(folder):
                return first.owner
        return ""

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name.

        Raises:
            ConfigError: the name is not valid.
            StoreError: there is no such run.
        """
        self.label(run_id, {"name": clean_name(name)})

    def label(self, run_id: str, changes: Mapping[str, Any]) -> None:
        """Change some labels of a run.

        Raises:
            StoreError: there is no such run.
        """
        path = self.folder(run_id) / LABELS_FILE
        labels = Labels()
        with contextlib.suppress(OSError, ValueError):
            labels = Labels.model_validate_json(path.read_bytes())
        changed = Labels.model_validate(labels.model_dump() | dict(changes))
        write_atomically(path, changed.model_dump_json(exclude_none=True))

    def post(self, command: str) -> None:
        """Write a command for the supervisor into the inbox.

        On a full disk it uses the reserve, because deleting runs must remain possible.

        Raises:
            StoreError: the inbox cannot be written.
        """

        def write() -> None:
            write_atomically(self.inbox / f"{self.next_order():020d}-{secrets.token_hex(4)}.json", command)

        try:
            disk_space.with_reserve(self.root, write)
        except StoreError as error:
            raise (_gone() if not self.inbox.is_dir() else error) from None

    def sweep(self) -> list[Path]:
        """Remove what a crash left incomplete, when a supervisor starts; returns the removed paths."""
        # A young draft can belong to a live process. A `.deleted-` folder cannot: only the supervisor, which is just
        # starting, deletes runs.
        swept = [
            path
            for path in self.leftovers()
            if not path.name.startswith(".import-")
            if path.name.startswith(".deleted-") or time.time() - path.lstat().st_mtime > _STALE_S
        ]
        for path in swept:
            disk_space.remove(path)
        return swept + self._undo_dead_imports()

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A hidden folder for the `runs/<id>` and `reports/<id>.json` of an import; removed at the end of the block.

        Raises:
            StoreError: the store cannot be written.
        """  # noqa: DOC501
        self._undo_dead_imports()
        folder = self.runs / f".import-{secrets.token_hex(8)}"
        try:
            for made in (folder, folder / "runs", folder / "reports"):
                made.mkdir(mode=0o700)
            write_atomically(folder / _IMPORTER, json.dumps(own_identity()))
        except OSError as error:
            disk_space.remove(folder)
            raise disk_space.unwritable(error) from None
        try:
            yield folder
        finally:
            self._undo_import(folder)

    def put_in_place(self, folder: Path) -> None:
        """Move the contents of a `staging` folder into the store: all of them, or after an error none.

        If the process is killed in between, the next import or supervisor undoes it.

        Raises:
            StoreError: the store cannot be written.
        """  # noqa: DOC501
        made = sorted(
            f"{path.parent.name}/{path.name}" for kind in ("runs", "reports") for path in (folder / kind).iterdir()
        )
        assert all(map(_PLACE.fullmatch, made)), "an import contains only runs and reports"
        try:
            private_folder(self.root / "reports")
            write_atomically(folder / _PLACED, json.dumps(made))
            for place in made:
                (folder / place).rename(self.root / place)
            (folder / _PLACED).unlink()
        except OSError as error:
            raise disk_space.unwritable(error) from None

    def _undo_import(self, folder: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            for place in json.loads((folder / _PLACED).read_text(encoding="utf-8")):
                if _PLACE.fullmatch(place) and not (folder / place).exists():
                    disk_space.remove(self.root / place)
        disk_space.remove(folder)

    def _undo_dead_imports(self) -> list[Path]:
        """Undo imports whose process died."""
        left = [
            path for path in self.runs.glob(".import-*") if _DRAFT.fullmatch(path.name) and not _is_importer_alive(path)
        ]
        for path in left:
            self._undo_import(path)
        return left

    def leftovers(self) -> list[Path]:
        """Drafts of runs and commands, and runs that are being deleted: in progress, or left by a crash."""
        hidden = [*self.runs.glob(".*"), *self.inbox.glob(".*"), *self.root.glob(".*")]
        return sorted(path for path in hidden if _DRAFT.fullmatch(path.name))

    def next_order(self) -> int:
        """A number larger than every earlier one of this store, even if the clock was set back.

        It is the Unix time in microseconds whenever that is larger, so the order also survives the loss of the file.
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
        """The folder of a run. An id is 16 hex digits, so no user text becomes a path.

        Raises:
            StoreError: there is no such run. StoreGone if the store was deleted.
        """  # noqa: DOC501
        if not self.runs.is_dir():
            raise _gone()
        if not _RUN_ID.fullmatch(run_id) or not (self.runs / run_id).is_dir():
            raise StoreError(
                f"There is no run {run_id!r} in this store.", fix="`python -m engine list` shows all runs."
            )
        return self.runs / run_id

    def run(self, run_id: str, *, keep_points: int | None = None) -> Run:
        """A run with all its points, or with about the newest `keep_points` of each kind.

        SUMMARY_POINTS are enough for the status and the summary of any run.

        Raises:
            StoreError: there is no such run, or it cannot be read.
        """
        return Run(self.folder(run_id), keep_points=keep_points)

    def has(self, name: str) -> bool:
        """Whether a file name of the runs folder is a run id."""
        return _RUN_ID.fullmatch(name) is not None

    def ids(self) -> list[str]:
        """The ids of all runs, in no order.

        Raises:
            StoreError: the store cannot be read. StoreGone if it was deleted.
        """  # noqa: DOC501
        try:
            with os.scandir(self.runs) as entries:
                return [entry.name for entry in entries if _RUN_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            raise _gone() from None
        except OSError as error:
            raise StoreError(
                f"The store cannot be read: {error.strerror}.", fix="Check its owner, its permissions and its disk."
            ) from None

    def delete(self, run_id: str) -> None:
        """Delete a run: it is hidden first, so that no half-deleted run is ever listed.

        Raises:
            StoreError: there is no such run.
        """
        self.hide(run_id)
        self.forget(run_id)

    def hide(self, run_id: str) -> None:
        """Hide a run; `restore` brings it back.

        Raises:
            StoreError: there is no such run.
        """
        self.folder(run_id).rename(self.runs / f".deleted-{run_id}")

    def forget(self, run_id: str) -> None:
        """Delete a hidden run for good; no error if there is none."""
        if _RUN_ID.fullmatch(run_id):
            disk_space.remove(self.runs / f".deleted-{run_id}")

    def restore(self, run_id: str) -> None:
        """Bring a hidden run back.

        Raises:
            StoreError: the run was deleted for good.
        """
        hidden = self.runs / f".deleted-{run_id}"
        if not _RUN_ID.fullmatch(run_id) or not hidden.is_dir() or (self.runs / run_id).exists():
            raise StoreError(f"Run {visible(run_id, 20)} cannot be restored: it was deleted for good.")
        hidden.rename(self.runs / run_id)

    def has_ended(self, run_id: str) -> bool:
        """Whether the log ends with a final event; reads only the end of the log."""
        return self._last_kind(run_id) in TERMINAL

    def _last_kind(self, run_id: str) -> str:
        """The kind of the last event of the log; empty if it cannot be read."""
        with (
            contextlib.suppress(OSError, StoreError, IndexError),
            (self.runs / run_id / "events.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65_536))
            return decode(file.read().splitlines(keepends=True)[-1]).kind
        return ""


def _is_importer_alive(folder: Path) -> bool:
    """Whether the process of an import is alive. It may not have recorded itself yet in the first moments."""
    try:
        pid, started = json.loads((folder / _IMPORTER).read_text(encoding="utf-8"))
        return is_same_process(pid, started)
    except (OSError, ValueError, TypeError):
        with contextlib.suppress(OSError):
            return time.time() - folder.stat().st_mtime < _STALE_S
        return False
