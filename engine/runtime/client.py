"""The client: submits, stops and changes runs for the dashboard and the command line, and starts a supervisor."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import math
import os
import secrets
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from engine.access import policy, settings
from engine.access.policy import AccessError, Action, Actor
from engine.common.errors import ConfigError, EngineError, LimitReached, StoreError
from engine.common.sanitize import clean_name
from engine.config.run import RunConfig
from engine.data import loading
from engine.events.lifecycle import SeedBlock
from engine.hardware import history
from engine.planning import limits, planner
from engine.reports import sharing
from engine.store.index_writer import KeptIndex
from engine.store.labels import clean_notes, clean_tags
from engine.store.store import Store, Submission
from engine.system import code_version, disk_space, locks
from engine.system.code_version import RunningSupervisor
from engine.system.locks import claim
from engine.system.processes import without_secrets

ROOT = Path(__file__).resolve().parents[2]
_STARTING_S = 5.0  # a supervisor opens its doorbell within this, or another is started
_HAND_OVER_S = 30.0  # a supervisor of other code hands over within this, or never; 2 s is usual, with imports
LONGEST_COMMAND = 65_536  # bytes
UNDO_S = 10.0  # a run that was deleted with `undo` can be restored this long
_SUBMITTING = threading.Lock()  # guards the count of queued runs: all pages of a dashboard are threads of one process
client_logger = logging.getLogger("isoflop.client")


class Client:
    """Changes runs in the name of `actor`; `Store` reads them.

    An action that the actor is not allowed raises AccessError here. The supervisor checks it again.
    """

    def __init__(self, store: Store, actor: Actor = policy.TERMINAL) -> None:
        self.store, self.actor = store, actor

    def submit(self, config: RunConfig, *, name: str = "", group: str | None = None, key: str = "") -> str:
        """Queue a run; returns its id. A refused configuration leaves nothing behind.

        The same `key` starts one run, however often it is submitted.

        Raises:
            EngineError: the actor, a limit, the configuration or the store does not allow the run.
        """
        return self._submit([Submission(config, name=name, key=key)], group)[0]

    def submit_seed_blocks(
        self, seed_blocks: Sequence[Sequence[Submission]], *, group: str, round: int = 1
    ) -> list[str]:
        """Queue the seed blocks of a race, all of them or none; returns the ids of the runs, block after block.

        The runs of a seed block take turns in one process per device.

        Raises:
            ConfigError: a run has rank processes, which cannot take turns.
            EngineError: as for `submit`.
        """
        wanted: list[Submission] = []
        for block in seed_blocks:
            if len(block) > 1 and (
                parallel := next((run.config for run in block if run.config.has_rank_processes), None)
            ):
                raise ConfigError(
                    f"parallel.num_ranks={parallel.parallel.num_ranks} cannot be used in a race, whose runs take turns in "
                    "one process.",
                    fix="Run it by itself, or set parallel.num_ranks=1.",
                )
            runs = [run if run.key else run._replace(key=secrets.token_hex(16)) for run in block]
            seed_block_id = hashlib.sha256(" ".join([group, *(run.key for run in runs)]).encode()).hexdigest()[:16]
            variants = Counter(run.config.device for run in runs)
            for run in runs:
                device = run.config.device
                wanted.append(
                    run._replace(heat=SeedBlock(id=f"{seed_block_id} {device}", lanes=variants[device], round=round))
                )
        return self._submit(wanted, group)

    def _submit(self, wanted: Sequence[Submission], group: str | None) -> list[str]:
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        data_versions: dict[RunConfig, str | None] = {}
        for config in dict.fromkeys(w.config for w in wanted):
            policy.require_data(self.actor, config, rules)
            limits.check_before(config, planner.check(config), rules.limits)
            data_versions[config] = loading.facts(config.data, config.source).version or None
            planner.check_runs(config, lambda run_id: self.store.run(run_id, keep_points=1))
        self._replace_other_code()
        wanted = [w if w.key else w._replace(key=secrets.token_hex(16)) for w in wanted]
        made: list[str] = []
        with _SUBMITTING:  # two threads must not both take the last free place of the queue
            new = {run_id for w in wanted if not (self.store.runs / (run_id := self.store.id_of(w.key))).exists()}
            # Adding seeds changes the verdict of a race, so it needs the right to cancel its runs.
            for row in self.store.rows(group=group) if group else ():
                if row.owner != self.actor.id:
                    self._require("cancel", rules, row.run_id, row.owner)
                if row.summary.imported:
                    raise ConfigError(
                        "This race was imported, so no runs can be added to it.",
                        fix="Start a new race of its configurations.",
                    )
            self._require_room_in_queue(rules, len(new))
            self._announce()  # before the runs exist: a supervisor without clients interrupts each run that it finds
            try:
                for config, name, key, heat in wanted:
                    made.append(
                        self.store.create(
                            config,
                            name=name,
                            group=group,
                            heat=heat,
                            owner=self.actor.id,
                            key=key,
                            data_version=data_versions[config],
                        )
                    )
            except EngineError:
                for run_id in new.intersection(made):
                    self._withdraw(run_id)
                raise
        for run_id in made:
            policy.audit(self.store.root, self.actor, "submit", run_id=run_id)
        self.wake()
        return made

    def import_files(self, paths: Sequence[Path], **choices: Any) -> sharing.Imports:
        """Import runs from files in the actor's name (`sharing.import_files`)."""
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        found = sharing.import_files(self.store, paths, owner=self.actor.id, **choices)
        for run_id in found.run_ids:
            policy.audit(self.store.root, self.actor, "import", run_id=run_id)
        with contextlib.suppress(OSError):  # a running supervisor indexes them now, else the next one when it starts
            ring_doorbell(self.store)
        return found

    def _withdraw(self, run_id: str) -> None:
        """Delete a run that was just submitted; cancel it if it has started meanwhile."""
        with claim(self.store.folder(run_id)) as mine:
            if mine:
                self.store.delete(run_id)
                return
        self.cancel(run_id)

    def _require(self, action: Action, rules: settings.Settings, run_id: str = "", owner: str = "") -> None:
        try:
            policy.require(self.actor, action, rules, owner=owner)
        except AccessError:
            policy.audit(self.store.root, self.actor, action, run_id=run_id, outcome="refused")
            raise

    def _require_room_in_queue(self, rules: settings.Settings, new: int) -> None:
        waiting = [row.run_id for row in self.store.rows(status=("queued",))]
        if new and len(waiting) + new > rules.limits.queued:
            raise LimitReached(
                f"{len(waiting)} runs are waiting and {new} would be added: limits.queued allows {rules.limits.queued}.",
                fix="Wait, cancel some, or submit fewer.",
            )
        if policy.role_of(self.actor, rules) == "admin" or len(waiting) + new <= rules.limits.queued_per_user:
            return
        own = sum(self.store.owner(run_id) == self.actor.id for run_id in waiting)
        if new and own + new > rules.limits.queued_per_user:
            raise LimitReached(
                f"{own} runs of {self.actor.in_words} are waiting and {new} would be added: limits.queued_per_user allows "
                f"{rules.limits.queued_per_user}.",
                fix="Wait, cancel some, or submit fewer.",
            )

    def cancel(self, run_id: str, *, reason: str = "cancelled by the user") -> None:
        """Ask a run to stop. This does nothing to a run that is over."""
        self._command("cancel", run_id, reason=reason)

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self._command("rename", run_id, name=clean_name(name))

    def label(
        self, run_id: str, *, tags: Iterable[str] | None = None, notes: str | None = None, pinned: bool | None = None
    ) -> None:
        """Change the tags, notes or pin of a run; None leaves a label unchanged."""
        changes: dict[str, Any] = {}
        if tags is not None:
            changes["tags"] = clean_tags(tags)
        if notes is not None:
            changes["notes"] = clean_notes(notes)
        if pinned is not None:
            changes["pinned"] = pinned
        self._command("label", run_id, labels=json.dumps(changes))

    def restore(self, run_id: str) -> None:
        """Restore a run that was deleted with `undo` less than UNDO_S ago."""
        owner = self.store.owner(run_id)
        self._require("restore", settings.load(self.store.root), run_id, owner)
        self._send({"command": "restore", "actor": self.actor.id, "run_id": run_id})

    def delete(self, run_id: str, *, undo: bool = False) -> None:
        """Delete a run that is over or cannot be read. With `undo` it can be restored for UNDO_S.

        Raises:
            StoreError: there is no such run, or it is not over.
        """
        self.store.folder(run_id)
        try:
            over = self.store.run(run_id).is_over
        except StoreError:
            over = True
        if not over:
            raise StoreError(f"Run {run_id} has not ended.", fix="Stop it first.")
        self._command("delete", run_id, **({"undo": "yes"} if undo else {}))

    def rebuild_index(self) -> None:
        """Ask the supervisor to rebuild the index."""
        self._command("rebuild")

    def set_monitor_interval(self, interval_s: float) -> None:
        """Set how often the supervisor reads the hardware, in seconds, for all users of the store."""
        self._command("monitor", interval_s=str(history.parse_interval(interval_s)))

    def may(self, action: Action, run_id: str = "") -> bool:
        """Whether the actor is allowed this action, so that a page can hide the others."""
        owner = self.store.owner(run_id) if run_id else ""
        return policy.may(self.actor, action, settings.load(self.store.root), owner=owner)

    def _command(self, action: Action, run_id: str = "", **details: str) -> None:
        owner = ""
        if run_id:
            self.store.folder(run_id)
            owner = self.store.owner(run_id)
        self._require(action, settings.load(self.store.root), run_id, owner)
        self._send({"command": action, "actor": self.actor.id, "run_id": run_id} | details)

    def wake(self) -> None:
        """Make sure that a supervisor runs and looks for work now, and keep the runs going while this process lives.

        A supervisor of other code is asked once to hand over. Otherwise two versions that use one store at the same time
        would replace each other's supervisor forever. `submit` asks each time.

        Raises:
            StoreError: the store cannot be written.
        """
        self._announce()
        try:
            other, digest = self._other_code()
            if other and _may_request_hand_over(self.store, other, digest):
                _request_hand_over(self.store, other, digest)
            elif not ring_doorbell(self.store):
                _start_supervisor(self.store)
        except OSError as error:
            raise self.store.trouble() or disk_space.unwritable(error) from None

    def _announce(self) -> None:
        """Keep the supervisor and the runs of the store going while this process lives.

        Raises:
            StoreError: the store cannot be written.
        """
        try:
            locks.announce(self.store.root)
        except OSError as error:
            raise self.store.trouble() or disk_space.unwritable(error) from None

    def _other_code(self) -> tuple[RunningSupervisor | None, str]:
        digest = code_version.on_disk()
        return code_version.supervisor_of_other_code(self.store.root, digest), digest

    def _replace_other_code(self) -> None:
        """Wait until a supervisor of other code has handed over, because it would start new runs with its code.

        Raises:
            StoreError: it still runs after `_HAND_OVER_S`.
        """
        until = time.monotonic() + _HAND_OVER_S
        try:
            while True:
                other, digest = self._other_code()
                if other is None:
                    return
                if time.monotonic() > until:
                    raise StoreError(
                        f"The supervisor of this store ({other.in_words()}) runs another version of the code than "
                        "this Isoflop and does not hand over.",
                        fix=f"End process {other.pid}, then try again. supervisor.log in the store's folder can show why.",
                    )
                locks.announce(self.store.root)
                _request_hand_over(self.store, other, digest)
                time.sleep(0.05)
        except OSError as error:
            raise self.store.trouble() or disk_space.unwritable(error) from None

    def _send(self, command: dict[str, str]) -> None:
        self.store.post(json.dumps(command))
        self.wake()


def ring_doorbell(store: Store) -> bool:
    """Wake the supervisor through its named pipe; True if one reads it.

    Raises:
        OSError: the pipe cannot be opened.
    """
    try:
        fd = os.open(store.root / "doorbell", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO}:  # no pipe, or no reader
            return False
        raise
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # a copy of a store
            return False
        with contextlib.suppress(BlockingIOError):  # full: the supervisor will look anyway
            os.write(fd, b"!")
    except BrokenPipeError:  # the supervisor has just closed it
        return False
    finally:
        os.close(fd)
    return True


class _HandOver(NamedTuple):
    """The last supervisor of a store that this process asked to hand over."""

    supervisor: RunningSupervisor
    digest: str  # of the code that must replace it
    at: float  # time.monotonic()


_hand_overs: dict[Path, _HandOver] = {}


def _may_request_hand_over(store: Store, other: RunningSupervisor, digest: str) -> bool:
    """Whether `other` is the first supervisor of other code since the files changed, and still has time to hand over."""
    last = _hand_overs.get(store.root)
    if last is None or last.digest != digest:
        return True
    return last.supervisor == other and time.monotonic() - last.at < _HAND_OVER_S


def _request_hand_over(store: Store, other: RunningSupervisor, digest: str) -> None:
    """Start a supervisor of the code on disk, which asks `other` to leave once it has loaded that code.

    So the running supervisor stays if the code cannot be loaded. The first request is logged as a warning, which the
    command line shows on stderr.
    """
    last = _hand_overs.get(store.root)
    if last is None or (last.supervisor, last.digest) != (other, digest):
        _hand_overs[store.root] = _HandOver(other, digest, time.monotonic())
        client_logger.warning(
            "The supervisor of this store (%s) runs another version of the code than this Isoflop: it hands over to "
            "a new one, and its runs continue.",
            other.in_words(),
        )
    start_successor(store)


_started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}


def _start_supervisor(store: Store) -> None:
    """Start a supervisor in a new session, so that it outlives the page or terminal; it ends by itself.

    Nothing happens while an earlier one is still starting, so 50 runs submitted at once start one supervisor.
    """
    process, when = _started.get(store.root, (None, 0.0))
    if process and process.poll() is None and time.monotonic() - when < _STARTING_S:
        return
    fd = os.open(store.root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "supervise", "--on-demand", "--store", str(store.root)],
            cwd=ROOT,
            env=without_secrets(os.environ) | {"PYTHONPATH": path},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
        )
    finally:
        os.close(fd)
    _started[store.root] = process, time.monotonic()


def start_successor(store: Store) -> bool:
    """Start a supervisor next to one of other code.

    False if one was started less than _STARTING_S ago, even if it has ended, so that code that cannot be loaded is not
    tried in a loop.
    """
    _, when = _started.get(store.root, (None, -math.inf))
    if time.monotonic() - when < _STARTING_S:
        return False
    _start_supervisor(store)
    return True


def rebuild_index(store: Store) -> str:
    """Rebuild the index, in this process or in the running supervisor; returns where, in words.

    Raises:
        StoreError: the index cannot be written.
    """
    with open_lock_file(store) as lock:
        if locks.lock(lock.fileno()):
            index = KeptIndex(store)
            index.rebuild()
            index.close()
            if not index.is_on_disk:
                raise store.trouble() or StoreError(
                    "The index cannot be written.", fix="Check its owner and permissions."
                )
            return "here"
    Client(store).rebuild_index()
    until = time.monotonic() + 60
    while any(store.inbox.glob("[0-9]*.json")) and time.monotonic() < until:
        time.sleep(0.1)
    return "by the supervisor"


def open_lock_file(store: Store) -> IO[str]:
    """Open the file whose lock the supervisor holds.

    Raises:
        StoreError: the store cannot be written.
    """
    try:
        return os.fdopen(os.open(store.root / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise store.trouble() or disk_space.unwritable(error) from None
