"""No run starts with code that is no longer on disk: supervisors of other code hand over, and their runs continue."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dashboard.api.hardware import readings
from engine import __version__
from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.base import TERMINAL
from engine.events.lifecycle import Queued
from engine.runtime import client, daemon
from engine.runtime.client import Client
from engine.runtime.executor import InlineExecutor, Supervision
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import encode
from engine.store.run import Run
from engine.store.store import Store
from engine.system import code_version, locks
from engine.system.code_version import CODE_FILE, LOADED, PID_FILE, digest_of, running_supervisor
from engine.system.processes import own_identity, process_started
from tests.conftest import ROOT, Supervised

pytestmark = pytest.mark.process
SECONDS = ("budget.epochs=none", "budget.seconds=5")  # longer than a hand-over takes


class Copy(Supervised):
    """A store whose supervisor runs a copy of the engine that a test can edit."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "store")
        self.client = Client(self.store)
        self.started: list[subprocess.Popen[bytes]] = []
        shutil.copytree(ROOT / "engine", folder / "engine")

    def edit(self, name: str, more: str) -> None:
        with (self.folder / "engine" / name).open("a", encoding="utf-8") as file:
            file.write(more)

    @property
    def digest(self) -> str:
        return digest_of(self.folder / "engine")

    def supervise(self, *flags: str) -> subprocess.Popen[bytes]:
        with (self.store.root / "supervisor.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "engine", "supervise", *flags, "--store", str(self.store.root)],
                cwd=self.folder,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started.append(process)
        self.wait(lambda: self.found(self.digest) and client.ring_doorbell(self.store), "the copy's supervisor")
        return process

    def found(self, digest: str) -> bool:
        found = running_supervisor(self.store.root)
        return found is not None and found.digest == digest

    def ask_for(self, *assignments: str) -> str:
        """A run that the supervisor finds without a client, which would compare its code."""
        run_id = self.store.create(with_overrides(PRESETS["digits-mlp"].config, assignments))
        client.ring_doorbell(self.store)
        return run_id

    def running_for_seconds(self) -> Run:
        run = self.until(self.ask_for(*SECONDS), "running")
        self.wait(lambda: run.refresh() and len(run.steps) > 0, "points")
        return run


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    made = Copy(tmp_path)
    yield made
    for process in made.started:  # first: it is the parent of the supervisor that took its place
        process.kill()
        process.wait()
    made.end()


# --- real supervisors ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_supervisor_of_other_code_is_replaced_and_its_run_finishes(copy):
    copy.edit("common/units.py", "# other code\n")
    older = copy.supervise("--on-demand")
    run = copy.running_for_seconds()
    asked_for = copy.submit("budget.epochs=1")
    assert not copy.found(copy.digest), "the run was made while the other supervisor could still start it"
    assert older.wait(60) == 0
    assert copy.until(asked_for, *TERMINAL).status == "finished"
    assert copy.found(LOADED)
    assert copy.until(run.run_id, *TERMINAL).status == "finished"
    assert run.problems == []


@pytest.mark.slow
def test_an_edited_file_causes_a_new_fork_server_before_the_next_run(copy):
    by_hand = copy.supervise()
    run = copy.running_for_seconds()
    copy.edit(
        "runtime/worker.py",
        "\n\ndef _edited(*_):\n    yield from ()\n    raise ConfigError('the edited code ran')\n\n\nGENERATORS['train'] = _edited\n",
    )
    following = copy.until(copy.ask_for("budget.epochs=1"), *TERMINAL)
    assert following.why().startswith("the edited code ran")
    assert copy.found(copy.digest)
    assert by_hand.poll() is None, "it must stand by, because a user started it"
    assert copy.until(run.run_id, *TERMINAL).status == "finished"


@pytest.mark.slow
def test_the_command_line_replaces_an_unversioned_supervisor_and_warns_once(copy):
    older = copy.supervise("--on-demand")
    (copy.store.root / CODE_FILE).unlink()
    run = copy.running_for_seconds()
    said = subprocess.run(
        [sys.executable, "-m", "engine", "run", "--preset", "digits-mlp", "--set", "budget.epochs=1",
         "--store", str(copy.store.root)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stderr.splitlines() == [
        f"The supervisor of this store (process {older.pid}, Isoflop of an older version) runs another version of the "
        "code than this Isoflop: it hands over to a new one, and its runs continue."
    ]
    assert older.wait(60) == 0
    assert copy.found(LOADED)
    assert copy.until(run.run_id, *TERMINAL).status == "finished"


@pytest.mark.slow
def test_code_that_cannot_be_loaded_does_not_stop_the_supervisor_or_its_run(copy):
    copy.supervise("--on-demand")
    first, run = running_supervisor(copy.store.root), copy.running_for_seconds()
    before = (copy.folder / "engine" / "runtime" / "supervisor.py").read_text(encoding="utf-8")
    copy.edit("runtime/supervisor.py", "\nthis is no Python\n")
    waiting = copy.store.run(copy.ask_for("budget.epochs=1"))
    copy.wait(lambda: "SyntaxError" in (copy.store.root / "supervisor.log").read_text(), "a successor that failed")
    assert running_supervisor(copy.store.root) == first
    assert (waiting.refresh(), waiting.status) == (False, "queued")
    (copy.folder / "engine" / "runtime" / "supervisor.py").write_text(before, encoding="utf-8")
    assert copy.until(waiting.run_id, *TERMINAL).status == "finished"
    assert copy.until(run.run_id, *TERMINAL).status == "finished"


# --- which supervisors are asked, and how -----------------------------------------------------------------------------------------


@pytest.fixture
def stand_in(store) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """A process recorded as the store's supervisor; with a digest, as this version records it."""
    made: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, digest: str = "") -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", *arguments])
        made.append(process)
        identity = process.pid, process_started(process.pid)
        (store.root / PID_FILE).write_text("{} {}".format(*identity))
        if digest:
            own = code_version.RunningSupervisor(*identity, version="0.2", digest=digest)
            (store.root / CODE_FILE).write_text(own.as_json())
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("flags", "by_hand"), [((), True), (("--on-demand",), False)])
def test_a_supervisor_of_an_older_version_gets_sigterm(store, stand_in, flags, by_hand):
    older = stand_in(*flags)
    assert daemon._ask_other_code_to_leave(store) is by_hand
    assert older.wait(10) == -signal.SIGTERM


def test_a_supervisor_of_the_same_code_gets_no_signal(store, stand_in):
    same = stand_in(digest=LOADED)
    daemon._ask_other_code_to_leave(store)
    with pytest.raises(subprocess.TimeoutExpired):
        same.wait(0.3)


def test_a_code_file_of_an_earlier_supervisor_does_not_describe_a_later_older_version(store, stand_in):
    stand_in(digest=LOADED)
    older = stand_in()
    found = running_supervisor(store.root)
    assert (found.pid, found.version, found.digest) == (older.pid, "", "")


def test_a_supervisor_that_does_not_hand_over_refuses_the_run_and_names_its_process(
    store, config, stand_in, monkeypatch
):
    monkeypatch.setattr(client, "_HAND_OVER_S", 0.2)
    started = []
    monkeypatch.setattr(client, "_start_supervisor", started.append)
    deaf = stand_in()
    with pytest.raises(StoreError, match=rf"process {deaf.pid}.*does not hand over.*End process {deaf.pid}"):
        Client(store).submit(config)
    assert store.ids() == []
    assert started


def test_code_that_cannot_be_loaded_is_not_started_in_a_loop(store, monkeypatch):
    monkeypatch.setattr(client.sys, "executable", "/bin/false")
    monkeypatch.setattr(client, "_started", {})
    assert client.start_successor(store)
    client._started[store.root][0].wait(10)
    assert not client.start_successor(store)


def test_the_page_says_that_the_supervisor_runs_other_code(store, stand_in):
    older = stand_in()
    with (store.root / "supervisor.lock").open("w") as file:
        assert locks.lock(file.fileno())
        why = readings(store.root)["why"]
    assert (
        why == f"The supervisor (process {older.pid}, Isoflop of an older version) runs another version of the code "
        "than this Isoflop."
    )


def test_two_versions_on_one_store_do_not_replace_each_others_supervisor_forever(store, stand_in, monkeypatch):
    started = []
    monkeypatch.setattr(client, "_start_supervisor", started.append)
    monkeypatch.setattr(client, "ring_doorbell", lambda store: True)
    stand_in(digest="a")
    Client(store).wake()
    assert started == [store]
    stand_in(digest="b")  # somebody else's took over
    Client(store).wake()
    assert started == [store]
    monkeypatch.setattr(code_version, "on_disk", lambda: "edited since")
    Client(store).wake()
    assert started == [store, store]


def test_the_pid_file_is_readable_by_runs_of_every_version(store):
    """supervisor.pid has exactly two words: runs of versions before the hand-over unpack two, or they are interrupted."""
    daemon._write_identity(store.root)
    pid, started = (store.root / PID_FILE).read_text().split()
    assert (int(pid), float(started)) == own_identity()
    assert Supervision(store.root, pid=1, started=-1.0).is_alive()
    assert json.loads((store.root / CODE_FILE).read_text())["version"] == __version__


def test_the_digest_follows_contents_and_names_not_times(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    first = digest_of(tmp_path)
    (tmp_path / "a.py").touch()
    (tmp_path / "notes.txt").write_text("no code")
    assert digest_of(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2\n")
    second = digest_of(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, digest_of(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("version", "newer"),
    [("99.0", True), (f"{__version__}.1", True), (__version__, False), ("0.0.9", False), ("", False)],
)
def test_versions_are_compared_number_by_number(version, newer):
    assert code_version.is_newer(version) is newer


# --- a run that only a newer Isoflop can read ----------------------------------------------------------------------


def of_a_newer_isoflop(store: Store, config, version: str = "99.0") -> Path:
    folder = store.folder(store.create(config))
    queued = Queued(at=1.0, order=1, name="from the future", version=version)
    (folder / "events.jsonl").write_bytes(encode(queued))
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json") | {"field_to_come": 1}))
    return folder


def test_a_run_that_only_a_newer_isoflop_can_read_shows_as_failed_with_the_version(store, config):
    folder = of_a_newer_isoflop(store, config)
    [row], [line] = store.rows(), store.listing().lines
    assert (row.status, row.why, row.name) == ("failed", "needs Isoflop >= 99.0", "from the future")
    assert (line.status, line.words) == ("failed", "cannot be read here: needs Isoflop >= 99.0")
    with pytest.raises(StoreError, match=rf"Run {folder.name} needs Isoflop >= 99\.0\. Update Isoflop\."):
        store.run(folder.name)


def test_a_run_of_a_newer_isoflop_stays_unchanged(store, config):
    folder = of_a_newer_isoflop(store, config)
    before = (folder / "events.jsonl").read_bytes()
    here = Supervisor(store, InlineExecutor())
    here.recover()
    here.tick()
    assert (here.index.ids(), (folder / "events.jsonl").read_bytes()) == (set(), before)
    (folder / "config.json").write_text(config.model_dump_json())  # as a newer one understands it
    here.recover()
    here.tick()
    here.index.close()
    assert store.run(folder.name).status == "finished"


def test_a_damaged_config_of_this_version_is_not_reported_as_newer(store, config):
    folder = of_a_newer_isoflop(store, config, version=__version__)
    assert store.rows() == []
    with pytest.raises(StoreError, match="cannot be read"):
        store.run(folder.name)


def test_a_run_records_the_version_that_submitted_it(store, config):
    assert store.run(store.create(config)).queued.version == __version__
