"""Submits, stops and lists runs: what the dashboard and the command line call."""

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
_STARTING_S = 5.0  # one that was started rings its bell within this, or another is started
_HAND_OVER_S = 30.0  # a supervisor of other code has left within this, or it will not; usually 2 s, imports included
LONGEST_COMMAND = 65_536
UNDO_S = 10.0
_COUNTING = threading.Lock()  # of runs that wait: all pages of a dashboard are threads of one process
client_logger = logging.getLogger("isoflop.client")


# --- the client's side ---------------------------------------------------------------------------------------------


class Client:
    """What the page and the command line do with runs, in the name of `actor`. Reading is `Store`'s; this asks for changes.

    What an actor may not do raises AccessError here, and is refused again by the supervisor, which decides.
    """

    def __init__(self, store: Store, actor: Actor = policy.TERMINAL) -> None:
        self.store, self.actor = store, actor

    def submit(self, config: RunConfig, *, name: str = "", group: str | None = None, key: str = "") -> str:
        """Queue a run and return its id; refused configurations raise and leave nothing behind.

        One `key` starts one run, however often it is asked for.
        """
        return self._submit([Submission(config, name=name, key=key)], group)[0]

    def submit_seed_blocks(
        self, seed_blocks: Sequence[Sequence[Submission]], *, group: str, round: int = 1
    ) -> list[str]:
        """Queue the heats of a race, all of them or none and an error; returns the runs' ids, heat after heat.

        The runs of a heat take turns in one process; those on another device have a process of their own.
        """
        wanted: list[Submission] = []
        for heat in seed_blocks:
            if len(heat) > 1 and (gang := next((run.config for run in heat if run.config.has_rank_processes), None)):
                raise ConfigError(
                    f"parallel.num_ranks={gang.parallel.num_ranks} does not go with a race, whose runs take turns in one "
                    "process.",
                    fix="Run it by itself, or set parallel.num_ranks=1.",
                )
            runs = [run if run.key else run._replace(key=secrets.token_hex(16)) for run in heat]
            seed_block_id = hashlib.sha256(" ".join([group, *(run.key for run in runs)]).encode()).hexdigest()[:16]
            lanes = Counter(run.config.device for run in runs)
            for run in runs:
                device = run.config.device
                wanted.append(
                    run._replace(heat=SeedBlock(id=f"{seed_block_id} {device}", lanes=lanes[device], round=round))
                )
        return self._submit(wanted, group)

    def _submit(self, wanted: Sequence[Submission], group: str | None) -> list[str]:
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        for config in dict.fromkeys(w.config for w in wanted):
            policy.require_data(self.actor, config, rules)
            limits.check_before(config, planner.check(config), rules.limits)
            planner.check_runs(config, lambda run_id: self.store.run(run_id, keep_points=1))
        self._replace_other_code()
        wanted = [w if w.key else w._replace(key=secrets.token_hex(16)) for w in wanted]
        made: list[str] = []
        with _COUNTING:  # or two who come at once would both find the last free place
            new = {run_id for w in wanted if not (self.store.runs / (run_id := self.store.id_of(w.key))).exists()}
            for row in self.store.rows(group=group) if group else ():  # who adds to a race changes its verdict
                if row.owner != self.actor.id:
                    self._require("cancel", rules, row.run_id, row.owner)
                if row.summary.imported:
                    raise ConfigError("This race was run elsewhere: here it cannot go on.", fix="Race its lanes anew.")
            self._require_room_in_queue(rules, len(new))
            try:
                for config, name, key, heat in wanted:
                    made.append(
                        self.store.create(config, name=name, group=group, heat=heat, owner=self.actor.id, key=key)
                    )
            except EngineError:
                for run_id in new.intersection(made):
                    self._take_back(run_id)
                raise
        for run_id in made:
            policy.audit(self.store.root, self.actor, "submit", run_id=run_id)
        self.wake()
        return made

    def import_files(self, paths: Sequence[Path], **choices: Any) -> sharing.Imports:
        """Runs out of files from elsewhere, in the actor's name (`sharing.import_files`)."""
        rules = settings.load(self.store.root)
        self._require("submit", rules)
        found = sharing.import_files(self.store, paths, owner=self.actor.id, **choices)
        for run_id in found.run_ids:
            policy.audit(self.store.root, self.actor, "import", run_id=run_id)
        with contextlib.suppress(OSError):  # a supervisor that is there indexes them now, another one when it starts
            ring_doorbell(self.store)
        return found

    def _take_back(self, run_id: str) -> None:
        """Delete a run that was only just asked for; one that has begun meanwhile is cancelled."""
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
                f"{len(waiting)} runs are waiting and {new} would come: limits.queued allows {rules.limits.queued}.",
                fix="Wait, stop some, or ask for fewer.",
            )
        if policy.role_of(self.actor, rules) == "admin" or len(waiting) + new <= rules.limits.queued_per_user:
            return
        own = sum(self.store.owner(run_id) == self.actor.id for run_id in waiting)
        if new and own + new > rules.limits.queued_per_user:
            raise LimitReached(
                f"{own} runs of {self.actor.in_words} are waiting and {new} would come: limits.queued_per_user allows "
                f"{rules.limits.queued_per_user}.",
                fix="Wait, stop some, or ask for fewer.",
            )

    def cancel(self, run_id: str, *, reason: str = "cancelled by the user") -> None:
        """Ask a run to stop. Harmless for one that is over."""
        self._ask("cancel", run_id, reason=reason)

    def rename(self, run_id: str, name: str) -> None:
        """Call a run something else."""
        self._ask("rename", run_id, name=clean_name(name))

    def label(
        self, run_id: str, *, tags: Iterable[str] | None = None, notes: str | None = None, pinned: bool | None = None
    ) -> None:
        """Say something of a run, or pin it; what is None stays as it is."""
        changes: dict[str, Any] = {}
        if tags is not None:
            changes["tags"] = clean_tags(tags)
        if notes is not None:
            changes["notes"] = clean_notes(notes)
        if pinned is not None:
            changes["pinned"] = pinned
        self._ask("label", run_id, labels=json.dumps(changes))

    def restore(self, run_id: str) -> None:
        """Have a run back that was deleted with `undo` a moment ago."""
        owner = self.store.owner(run_id)
        self._require("restore", settings.load(self.store.root), run_id, owner)
        self._send({"command": "restore", "actor": self.actor.id, "run_id": run_id})

    def delete(self, run_id: str, *, undo: bool = False) -> None:
        """Delete a run that is over, or one that cannot even be read; with `undo` it can be had back for UNDO_S."""
        self.store.folder(run_id)
        try:
            over = self.store.run(run_id).is_over
        except StoreError:
            over = True
        if not over:
            raise StoreError(f"Run {run_id} is still at work.", fix="Stop it first.")
        self._ask("delete", run_id, **({"undo": "yes"} if undo else {}))

    def rebuild_index(self) -> None:
        self._ask("rebuild")

    def set_monitor_interval(self, interval_s: float) -> None:
        """How often the supervisor reads the machine's hardware; for everybody who looks."""
        self._ask("monitor", interval_s=str(history.parse_interval(interval_s)))

    def may(self, action: Action, run_id: str = "") -> bool:
        """Whether the actor may do this; for a page that offers only what it can do."""
        owner = self.store.owner(run_id) if run_id else ""
        return policy.may(self.actor, action, settings.load(self.store.root), owner=owner)

    def _ask(self, action: Action, run_id: str = "", **details: str) -> None:
        owner = ""
        if run_id:
            self.store.folder(run_id)
            owner = self.store.owner(run_id)
        self._require(action, settings.load(self.store.root), run_id, owner)
        self._send({"command": action, "actor": self.actor.id, "run_id": run_id} | details)

    def wake(self) -> None:
        """Make sure that a supervisor is there and looks now, and let runs go on for as long as this process lives.

        A supervisor of other code is asked to hand over, once: where two versions use one store at the same time, they
        would otherwise replace each other's supervisor for ever. `submit` asks each time.
        """
        try:
            locks.announce(self.store.root)
            other, digest = self._other_code()
            if other and _may_ask(self.store, other, digest):
                _ask_for_hand_over(self.store, other, digest)
            elif not ring_doorbell(self.store):
                _start_supervisor(self.store)
        except OSError as error:
            raise self.store.trouble() or disk_space.unwritable(error) from None

    def _other_code(self) -> tuple[RunningSupervisor | None, str]:
        digest = code_version.on_disk()
        return code_version.supervisor_of_other_code(self.store.root, digest), digest

    def _replace_other_code(self) -> None:
        """Wait until a supervisor of other code has handed over: it would start with that code what is submitted now.

        Raises StoreError when it is still there after `_HAND_OVER_S`.
        """
        until = time.monotonic() + _HAND_OVER_S
        try:
            while True:
                other, digest = self._other_code()
                if other is None:
                    return
                if time.monotonic() > until:
                    raise StoreError(
                        f"The supervisor of this store ({other.in_words()}) runs other code than this Isoflop and does not "
                        "hand over.",
                        fix=f"End process {other.pid}, then try again. supervisor.log in the store's folder may say why.",
                    )
                locks.announce(self.store.root)
                _ask_for_hand_over(self.store, other, digest)
                time.sleep(0.05)
        except OSError as error:
            raise self.store.trouble() or disk_space.unwritable(error) from None

    def _send(self, command: dict[str, str]) -> None:
        self.store.post(json.dumps(command))
        self.wake()


def ring_doorbell(store: Store) -> bool:
    """True when a supervisor heard it."""
    try:
        fd = os.open(store.root / "doorbell", os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO}:  # no pipe, or nobody reads it
            return False
        raise
    try:
        if not stat.S_ISFIFO(os.fstat(fd).st_mode):  # a store that was copied
            return False
        with contextlib.suppress(BlockingIOError):  # full: it will look anyway
            os.write(fd, b"!")
    except BrokenPipeError:  # it took the bell down this very moment
        return False
    finally:
        os.close(fd)
    return True


class _Asked(NamedTuple):
    """A supervisor that this process asked to hand over."""

    supervisor: RunningSupervisor
    digest: str  # of the code that should take its place
    at: float  # time.monotonic()


_asked: dict[Path, _Asked] = {}


def _may_ask(store: Store, other: RunningSupervisor, digest: str) -> bool:
    """Whether `other` is the first supervisor of other code since the files changed, and has not refused."""
    asked = _asked.get(store.root)
    if asked is None or asked.digest != digest:
        return True
    return asked.supervisor == other and time.monotonic() - asked.at < _HAND_OVER_S


def _ask_for_hand_over(store: Store, other: RunningSupervisor, digest: str) -> None:
    """Start a supervisor of the code on disk, which asks `other` to leave as soon as it has loaded that code.

    So code that cannot be loaded costs the running supervisor nothing. The first time it is logged as a warning, which
    a process without a log, as the command line, shows on stderr.
    """
    asked = _asked.get(store.root)
    if asked is None or (asked.supervisor, asked.digest) != (other, digest):
        _asked[store.root] = _Asked(other, digest, time.monotonic())
        client_logger.warning(
            "The supervisor of this store (%s) runs other code than this Isoflop: it hands over to a new one, and its runs go on.",
            other.in_words(),
        )
    _start_successor(store)


_started: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}


def _start_supervisor(store: Store) -> None:
    """In a session of its own: it outlives the page and the terminal that needed it first, and ends by itself.

    One that was just started is waited for: 50 runs submitted at once are not 50 supervisors.
    """
    process, when = _started.get(store.root, (None, 0.0))
    if process and process.poll() is None and time.monotonic() - when < _STARTING_S:
        return
    fd = os.open(store.root / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", "supervise", "--on-demand", "--store", str(store.root)],
            cwd=ROOT, env=without_secrets(os.environ) | {"PYTHONPATH": path}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=fd, stderr=fd,
        )  # fmt: skip
    finally:
        os.close(fd)
    _started[store.root] = process, time.monotonic()


def _start_successor(store: Store) -> bool:
    """Start a supervisor beside one of other code. False when one was started a moment ago, even if it has ended: code
    that cannot be loaded is not tried in a loop."""
    _, when = _started.get(store.root, (None, -math.inf))
    if time.monotonic() - when < _STARTING_S:
        return False
    _start_supervisor(store)
    return True


def rebuild_index(store: Store) -> str:
    """Make the index anew, here or by the supervisor that is at work; returns who did."""
    with open_lock_file(store) as lock:
        if locks.lock(lock.fileno()):
            index = KeptIndex(store)
            index.rebuild()
            index.close()
            if not index.is_on_disk:
                raise store.trouble() or StoreError("The index cannot be written.", fix="Check its owner and rights.")
            return "here"
    Client(store).rebuild_index()
    until = time.monotonic() + 60
    while any(store.inbox.glob("[0-9]*.json")) and time.monotonic() < until:
        time.sleep(0.1)
    return "by the supervisor"


def open_lock_file(store: Store) -> IO[str]:
    try:
        return os.fdopen(os.open(store.root / "supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise store.trouble() or disk_space.unwritable(error) from None
