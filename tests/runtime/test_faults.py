"""What happens to files happens to the store: full disks, lost rights, folders taken away, power cuts, rotten bytes."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import psutil
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from engine.common.errors import StoreError, StoreFull, StoreGone
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Failed, Finished, Interrupted, Started, Starting, Stopping
from engine.events.training import Evaluation, Steps
from engine.runtime import client as runtime_client
from engine.runtime import daemon, supervisor, worker
from engine.runtime.client import Client
from engine.runtime.executor import AdoptedJob, InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store import event_log, integrity_check, migrations
from engine.store import store as store_module
from engine.store.event_log import EventLog
from engine.store.index import Index
from engine.store.index_writer import KeptIndex
from engine.store.integrity_check import check, has_wal_reset_bug
from engine.store.listing import row_of
from engine.store.run import Run
from engine.store.store import Store
from engine.system import disk_space
from engine.system.locks import claim
from engine.system.processes import process_started
from tests.conftest import ROOT, Supervised
from tests.fakes import make_run

LONG = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=600"])
MIB = 2**20


def delete(root: Path) -> None:
    """All of it, though a supervisor that notices takes its own files away at the same moment."""
    while root.exists():
        shutil.rmtree(root, ignore_errors=True)


def log_of(run):
    return run.folder / "events.jsonl"


def steps_of(count, first=1):
    """A record of some steps, as a task yields it."""
    return Steps(
        first=first, loss=np.ones(count), samples=np.full(count, 4), lr=0.1, train_s=(first, first + 1),
        elapsed_s=(first, first + 1),
    )  # fmt: skip


@contextlib.contextmanager
def mounted(folder: Path, size: str):
    """A file system of its own, where we may mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "600m") as folder:
        yield folder


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Take all the room on a disk but `leave` bytes, while others write there, too."""
    path = folder / "filler"
    with path.open("ab") as file:
        while (room := disk_space.free_bytes(folder) - leave) > 0:
            piece = room - 8 * MIB if room > 16 * MIB else min(room, 4_096)  # all at once would be too much by then
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), path.stat().st_size, piece)
    return path


@pytest.fixture
def no_limits(monkeypatch):
    """Small disks count as roomy ones."""
    monkeypatch.setattr(disk_space, "NEW_RUNS_NEED_BYTES", 0)
    monkeypatch.setattr(disk_space, "RECORDING_NEEDS_BYTES", 0)


class FullDisk:
    """`os.write` on a disk with so many bytes of room."""

    def __init__(self, monkeypatch, room: int) -> None:
        self.room, self._write = room, os.write
        monkeypatch.setattr(store_module.os, "write", self)

    def __call__(self, fd, data):
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return self._write(fd, bytes(data[:taken]))


# --- a full disk ---------------------------------------------------------------------------------------------------


def test_a_line_the_disk_took_half_of_is_finished_when_there_is_room_again(store, monkeypatch):
    log = EventLog(store.folder(store.create(RunConfig())) / "events.jsonl")
    full = FullDisk(monkeypatch, 1_000)
    for first in range(1, 201, 20):
        log.append(steps_of(20, first))
        log.append(Evaluation(step=first, train_s=1, elapsed_s=1, test_loss=1, test_accuracy=1, seconds=0))
    torn = Run(log.path.parent)
    assert 0 < len(torn.steps) < 200
    assert torn.problems == []
    full.room = 10**6
    log.close(Finished(at=1.0))
    whole = Run(log.path.parent)
    assert (whole.status, len(whole.steps), len(whole.evaluations), whole.problems) == ("finished", 200, 10, [])


def test_a_run_on_a_full_disk_goes_on_for_a_while_then_says_that_the_disk_is_full(store, monkeypatch):
    log = EventLog(store.folder(store.create(RunConfig())) / "events.jsonl", patience_s=0.2)
    FullDisk(monkeypatch, 0)
    log.append(steps_of(1))
    time.sleep(0.3)
    log.flush_if_due()  # from the thread that watches: it goes on
    with pytest.raises(StoreFull, match=r"The store's disk is full: .* free\. Recording stops below 64.* Delete runs"):
        log.append(steps_of(1, 2))


def test_recording_stops_before_the_disk_is_full(store, monkeypatch):
    log = EventLog(store.folder(store.create(RunConfig())) / "events.jsonl", patience_s=0)
    log.append(steps_of(1))
    monkeypatch.setattr(disk_space, "RECORDING_NEEDS_BYTES", disk_space.free_bytes(store.root) + 2**40)
    with pytest.raises(StoreFull):
        log.append(Stopping(at=1.0))
    assert len(Run(log.path.parent).steps) == 1


@pytest.mark.process
def test_a_file_that_may_not_grow_is_said_with_the_reason(store, monkeypatch):
    """As root sees no rights, a limit on the size of files stands for all that makes writing fail."""
    script = f"""
import resource, sys
from pathlib import Path
from engine.common.errors import StoreError
from engine.events.lifecycle import Stopping
from engine.store.event_log import EventLog
log = EventLog(Path({str(store.folder(store.create(RunConfig())) / "events.jsonl")!r}), patience_s=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 100,) * 2)
try:
    for at in range(100):
        log.append(Stopping(at=at))
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("The run's log cannot be written: File too large. Check")


def test_the_last_word_is_written_with_the_reserve(store, monkeypatch):
    disk_space.keep_reserve(store.root)
    assert (store.root / "reserve").stat().st_size == MIB
    log = EventLog(store.folder(store.create(RunConfig())) / "events.jsonl")
    full = FullDisk(monkeypatch, 0)
    released = disk_space.release_reserve

    def release(root):
        full.room += MIB * (root / "reserve").exists()
        return released(root)

    monkeypatch.setattr(disk_space, "release_reserve", release)
    log.close(Failed(at=1.0, cause="StoreFull", message="The store's disk is full."))
    assert Run(log.path.parent).status == "failed"
    assert not (store.root / "reserve").exists()


def test_the_reserve_is_laid_by_again_only_where_there_is_room(store, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: disk_space.RECORDING_NEEDS_BYTES)
    disk_space.keep_reserve(store.root)
    assert not (store.root / "reserve").exists()
    monkeypatch.undo()
    disk_space.keep_reserve(store.root)
    assert (store.root / "reserve").exists()


def test_no_run_begins_on_a_disk_it_would_fill(store, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 100 * MIB)
    with pytest.raises(StoreFull, match=r"disk has 100 MiB free; a new run needs 500 MiB\. Delete runs"):
        store.create(RunConfig())
    assert list(store.runs.iterdir()) == []


@pytest.mark.parametrize("room", range(0, 60_000, 4_096))
def test_creating_a_run_on_a_nearly_full_disk_is_all_or_nothing(tmp_path, no_limits, room):
    with mounted(tmp_path / "disk", "1m") as folder:
        store = Store(folder / "store")
        fill(folder, leave=room)
        try:
            store.create(RunConfig())
        except StoreFull:
            assert list(store.runs.iterdir()) == []
        else:
            assert [row.status for row in store.rows()] == ["queued"]


def test_a_run_can_be_deleted_on_a_full_disk(tmp_path, no_limits):
    with mounted(tmp_path / "disk", "8m") as folder:
        store = Store(folder / "store")
        run = make_run(store, num_steps=20)
        disk_space.keep_reserve(store.root)
        fill(folder)
        store.post(json.dumps({"command": "delete", "actor": "terminal", "run_id": run.run_id}))
        supervising = Supervisor(store, InlineExecutor())
        supervising.tick()
        supervising.index.close()
        assert store.ids() == []


@pytest.mark.slow
@pytest.mark.process
def test_a_run_ends_for_want_of_room_and_the_supervisor_goes_on(small_disk):
    own = Supervised(small_disk / "store")
    try:
        fine = own.until(own.submit("budget.epochs=1"), "finished")
        before = log_of(fine).read_bytes()
        run = own.running()
        own.wait(lambda: (own.store.root / "reserve").exists(), "the reserve")
        process, filler = own.process, fill(small_disk)
        own.until(run.run_id, *TERMINAL)
        run.refresh()
        assert (run.status, run.last_word.cause) == ("failed", "StoreFull")
        assert run.why().startswith("The store's disk is full: ")
        assert str(small_disk) not in run.why()
        assert run.problems == []
        assert run.steps["step"].tolist() == list(range(1, run.last_word.steps + 1))
        assert log_of(fine).read_bytes() == before
        with pytest.raises(StoreFull):
            own.submit("budget.epochs=1")
        filler.unlink()
        assert own.until(own.submit("budget.epochs=1"), *TERMINAL).status == "finished"
        assert own.process == process
        own.wait(lambda: (own.store.root / "reserve").exists(), "the reserve to come back")
        own.wait(lambda: [r.status for r in indexed(own.store)] == ["finished", "failed", "finished"], "the index")
    finally:
        own.end()


def indexed(store):
    with contextlib.suppress(sqlite3.Error, FileNotFoundError), Index.reading(store.root) as index:
        return index.rows()
    return []


def test_weights_that_do_not_fit_leave_nothing_and_say_why(tmp_path, no_limits):
    with mounted(tmp_path / "disk", "6m") as folder:
        store = Store(folder / "store")
        config = with_overrides(PRESETS["digits-mlp"].config, ["model.hidden=4096,256", "budget.steps=2"])
        run_id = store.create(config)
        fill(folder, leave=2 * MIB)
        worker.run(store.folder(run_id))
        run = store.run(run_id)
        assert (run.status, run.last_word.cause, len(run.steps)) == ("failed", "StoreFull", 2)
        assert sorted(p.name for p in run.folder.iterdir()) == ["config.json", "events.jsonl"]


def test_weights_written_by_half_are_taken_away(tmp_path, monkeypatch):
    from engine.pytorch.tasks import train

    def half(tensors, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    class Net:
        weights = train.torch.nn.Linear(1, 1).state_dict
        averaged = contextlib.nullcontext

    monkeypatch.setattr(train, "save_file", half)
    with pytest.raises(OSError, match="No space left"):
        train._save(Net(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_asked_in_writing_to_stop_is_told_by_a_signal(store, monkeypatch):
    process = subprocess.Popen(["sleep", "600"])
    run_id = store.create(RunConfig())
    starting = Starting(at=1.0, pid=process.pid, pid_started=process_started(process.pid))
    EventLog(store.folder(run_id) / "events.jsonl").append(starting)
    supervising = Supervisor(store, InlineExecutor())
    working = contextlib.ExitStack()
    working.enter_context(claim(store.folder(run_id)))
    supervising.recover()
    monkeypatch.setattr(supervisor, "_SIGTERM_AFTER_S", 0.0)
    store.post(json.dumps({"command": "cancel", "actor": "terminal", "run_id": run_id, "reason": "enough"}))
    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        supervising._take_commands()
    assert run_id in supervising.stopping
    supervising.tick()
    assert process.wait(60) == -signal.SIGTERM
    working.close()
    supervising.tick()
    supervising.index.close()
    assert store.run(run_id).status == "cancelled"


# --- a store that cannot be written, or read -----------------------------------------------------------------------


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def test_a_read_only_store_is_read_and_says_that_nothing_can_start(tmp_path, no_limits, engine):
    with mounted(tmp_path / "disk", "8m") as folder:
        run = make_run(Store(folder), num_steps=20)
        remount(folder, "ro")
        store = Store(folder)
        assert [row.run_id for row in store.rows()] == [run.run_id]
        for ask in (lambda: Client(store).submit(RunConfig()), Client(store).rebuild_index, Client(store).wake):
            with pytest.raises(StoreError, match=r"can be read, but not written|cannot be written"):
                ask()
        process = engine("supervise", "--store", folder)
        assert process.communicate(timeout=60)[1].startswith("The store can be read, but not written: no run can")
        assert process.returncode == 2


class Forgetful:
    """Starts a run in this process, and loses what it could not say."""

    def start(self, folder):
        with contextlib.suppress(StoreError):
            worker.run(folder)
        return AdoptedJob(os.getpid(), -1.0)


def test_a_run_whose_log_cannot_be_written_any_more_is_ended_as_soon_as_it_can(store, monkeypatch):
    monkeypatch.setattr(event_log, "_PATIENCE_S", 0.2)
    run_id, write = store.create(LONG), os.write

    def read_only_after_a_while(fd, data):
        if store.run(run_id, keep_points=1).steps.last("step"):
            raise OSError(errno.EROFS, "Read-only file system")
        return write(fd, data)

    supervising = Supervisor(store, Forgetful())
    with monkeypatch.context() as patched:
        patched.setattr(store_module.os, "write", read_only_after_a_while)
        supervising.tick()
        supervising.tick()
        assert (store.run(run_id).status, supervising.is_idle) == ("running", True)
    supervising.tick()
    supervising.index.close()
    run = store.run(run_id)
    assert (run.status, run.last_word.cause, run.problems) == ("failed", "WorkerLost", [])
    assert run.last_word.steps == len(run.steps) > 0


@pytest.mark.parametrize("closed", ["", "runs"])
@pytest.mark.process
def test_a_store_without_rights_is_refused_in_one_sentence(tmp_path, closed):
    """Root has all rights: asked as nobody."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root = Path(name)
        root.chmod(0o755)
        Store(root / "store")
        (root / "store").chmod(0o755)
        (root / "store" / closed).chmod(0o700)
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
        if not as_nobody or not shutil.which("setpriv"):
            pytest.skip("only root can become another user")
        done = subprocess.run(
            [*as_nobody, sys.executable, "-m", "engine", "list", "--store", root / "store"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "No module named" in done.stderr or "denied" not in done.stderr:
            pytest.skip(f"nobody cannot run Python here: {done.stderr[-200:]}")
        assert done.returncode == 2
        assert done.stderr.startswith(f"The store {root / 'store'} cannot be used: Permission denied. Set ISOFLOP_HOME")


# --- a store that is taken away ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("taken", ["deleted", "moved", "replaced"])
def test_a_supervisor_leaves_a_store_that_is_not_its_own_any_more(own_supervised, tmp_path, taken):
    store, run = own_supervised.store, own_supervised.running()
    leaving, training = own_supervised.process, psutil.Process(run.starting.pid)
    log = (store.root / "supervisor.log").open()
    if taken == "deleted":
        delete(store.root)
    else:
        store.root.rename(tmp_path / "elsewhere")
    if taken == "replaced":
        Store(store.root)
    psutil.wait_procs([leaving, training], timeout=60)
    assert not leaving.is_running()
    assert not training.is_running()
    assert "the store was moved, deleted or replaced, leaving it" in log.read()
    if taken != "replaced":
        assert not store.root.exists()  # nobody made it anew, with nothing in it
    fresh = Supervised(store.root)
    try:
        assert fresh.until(fresh.submit("budget.epochs=1"), *TERMINAL).status == "finished"
    finally:
        fresh.end()


def test_a_store_that_is_gone_is_said_in_words(tmp_path):
    store = Store(tmp_path / "store")
    run = make_run(store, num_steps=20)
    delete(store.root)
    client = Client(store)
    for ask in (store.rows, store.ids, lambda: store.run(run.run_id), lambda: client.submit(RunConfig()), client.wake,
                lambda: client.cancel(run.run_id), lambda: store.find("last"), client.rebuild_index):  # fmt: skip
        with pytest.raises(StoreGone, match=r"The store's folder is gone: .* Put it back, or start again"):
            ask()


@pytest.mark.parametrize("take", [shutil.rmtree, lambda folder: folder.rename(folder.with_name(".away"))])
def test_nothing_is_written_to_a_log_that_is_gone(store, take):
    folder = store.folder(store.create(RunConfig()))
    log = EventLog(folder / "events.jsonl")
    take(folder)
    with pytest.raises(StoreGone, match="The run's folder is gone"):
        log.append(Stopping(at=1.0))


def test_an_index_deleted_under_the_supervisor_is_made_anew(store):
    run = make_run(store, num_steps=20)
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    for file in store.root.glob("index.sqlite*"):
        file.unlink()
    supervising.tick()
    supervising.index.close()
    assert [row.run_id for row in indexed(store)] == [run.run_id]


@pytest.fixture
def page(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=30)
    state.store.clear()


def test_the_page_says_that_the_store_is_gone_and_shows_the_one_that_comes_in_its_place(page, store):
    page.run()
    assert not page.error
    delete(store.root)
    page.run()
    assert [e.value.replace("\\", "") for e in page.error] == [
        "The store's folder is gone: it was moved or deleted while it was in use. "
        "Put it back, or start again with ISOFLOP_HOME set to a folder you own."
    ]
    assert not page.exception
    Store(store.root)
    page.run()
    assert not page.error
    assert not page.exception


def test_the_page_says_that_the_disk_is_nearly_full_and_shows_the_runs_all_the_same(page, store, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 100 * MIB)
    page.run()
    assert page.error[0].value.startswith("The store's disk has 100 MiB free; a new run needs 500 MiB.")
    assert page.title
    assert not page.exception


def test_the_page_says_that_a_store_cannot_be_used(page, store, monkeypatch):
    store.root.rename(store.root.with_name("away"))
    store.root.touch()
    page.run()
    assert "cannot be used" in page.error[0].value
    assert not page.exception


def test_a_doorbell_that_another_hung_up_is_left_to_them(store):
    with daemon._doorbell(store):
        (store.root / "doorbell").unlink()
        os.mkfifo(store.root / "doorbell")
    assert (store.root / "doorbell").exists()
    with daemon._doorbell(store):
        pass
    assert not (store.root / "doorbell").exists()


# --- rotten logs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store with two runs; the log of the first is about to suffer."""
    store = Store(tmp_path_factory.mktemp("recorded"))
    victim = make_run(store, with_overrides(RunConfig(), ["max_grad_norm=1"]), num_steps=160)
    return store, victim, log_of(victim).read_bytes(), make_run(store, num_steps=20, seed=1)


def steps_in(data: bytes) -> list[int]:
    """The steps of the lines that are as they were written, by reading the JSON."""
    events = [json.loads(line) for line in data.split(b"\n") if b'"kind":"steps"' in line]
    return [e["first"] + i for e in events for i in range(len(e["loss"]) * 3 // 4 // 4)]


def test_a_log_cut_anywhere_is_a_prefix_and_is_ended_whole(recorded):
    _, victim, data, other = recorded
    before, problems = log_of(other).read_bytes(), 0
    for at in range(0, len(data) + 1, 64):
        log_of(victim).write_bytes(data[:at])
        cut = Run(victim.folder)
        lines = data[:at].rpartition(b"\n")[0]
        assert cut.steps["step"].tolist() == steps_in(lines)
        assert cut.problems == []
        whole = data[at : at + 1] == b"\n"  # only its end of line is missing: ended, the record is there
        if not cut.is_over and at + 1 < len(data):
            EventLog(log_of(victim)).close(Interrupted(at=1.0, reason="power"))
            ended = Run(victim.folder)
            assert (ended.status, ended.steps["step"].tolist()) == (
                "interrupted",
                steps_in(data[:at] if whole else lines),
            )
            assert len(ended.problems) == (not whole and data[at - 1 : at] not in {b"\n", b""})
            problems += len(ended.problems)
    assert problems > 50
    assert log_of(other).read_bytes() == before


@pytest.mark.parametrize("rot", [b"\0" * 64, b"\xff", b"\n", b'"', b"{", b"\0" * 5_000])
def test_a_log_rotten_anywhere_keeps_its_other_records_and_says_where(recorded, rot):
    store, victim, data, other = recorded
    for at in range(0, len(data), 64):
        rotten = data[:at] + rot + data[at + len(rot) :]
        if rotten == data:
            continue
        log_of(victim).write_bytes(rotten)
        run = Run(victim.folder)
        seen = run.steps["step"].tolist()
        assert seen == sorted(set(seen))
        start = data.rfind(b"\n", 0, at) + 1
        assert seen[: len(steps_in(data[:start]))] == steps_in(data[:start])
        after = data.find(b"\n", min(at + len(rot), len(data))) + 1
        assert not after or seen[len(seen) - len(steps_in(data[after:])) :] == steps_in(data[after:])
        assert after == 0 or run.problems[0].startswith(f"at byte {start}: ")
        assert run.status == ("finished" if after and after < len(data) else run.status)
        run.summary()
    assert [row.run_id for row in store.rows()].count(other.run_id) == 1


def test_random_damage_is_never_more_than_damage(recorded):
    _, victim, data, _ = recorded
    rng = random.Random(0)
    for _ in range(300):
        rotten = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.randrange(len(rotten))
            rotten[at : at + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([0, 1, 8]))
        log_of(victim).write_bytes(rotten)
        run = Run(victim.folder)
        seen = run.steps["step"].tolist()
        assert seen == sorted(set(seen))
        assert bytes(rotten) == data or run.problems or not run.is_over
        row_of(run)


def line_of(event: dict) -> bytes:
    """A line with a right checksum, whatever it says."""
    body = json.dumps(event).encode()
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def packed(values, dtype):
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


STEPS = {"kind": "steps", "first": 1, "loss": packed([1, 2], "<f4"), "samples": packed([4, 4], "<i4"), "lr": 0.1,
         "train_s": [0, 1], "elapsed_s": [0, 1]}  # fmt: skip
STARTED = json.loads(
    Started(at=1, parameters=1, train_flops_per_example=1, train_examples=1, test_examples=1, total_steps=1,
                    setup_s=0).model_dump_json()
)  # fmt: skip
NONSENSE = [
    STEPS | {"samples": packed([4], "<i4")}, STEPS | {"samples": packed([4] * 3, "<i4")},
    STEPS | {"samples": packed([4, -4], "<i4")}, STEPS | {"loss": ""}, STEPS | {"loss": "AAA"}, STEPS | {"loss": "AAAA"},
    STEPS | {"loss": {"a": 1}}, STEPS | {"loss": 7}, STEPS | {"loss": [[1], [2, 3]]}, STEPS | {"loss": [[1, 2]]},
    STEPS | {"loss": None}, STEPS | {"samples": [2**40, 1]}, STEPS | {"first": -1}, STEPS | {"first": 2**63},
    STEPS | {"first": 10**400}, STEPS | {"train_s": ["NaN", 1]}, STEPS | {"train_s": [1, 0]},
    STEPS | {"train_s": [0, 1e300]}, STEPS | {"elapsed_s": ["Infinity", 1]}, STEPS | {"lr": packed([0.1], "<f8")},
    STEPS | {"lr": {}}, STEPS | {"lr": 10**400}, STEPS | {"lr": [["a"]]},
    STEPS | {"norm_steps": packed([3], "<i4"), "grad_norm": packed([1], "<f4")},
    STEPS | {"norm_steps": packed([0], "<i4"), "grad_norm": packed([1], "<f4")},
    STEPS | {"norm_steps": packed([1, 2], "<i4"), "grad_norm": packed([1], "<f4")},
    {"kind": "queued", "at": "NaN"}, {"kind": "queued", "at": 1e300}, {"kind": "queued", "at": -1},
    STARTED | {"train_examples": 0}, STARTED | {"total_steps": -1}, STARTED | {"parameters": 10**400},
    {"kind": "evaluation", "step": -1, "train_s": 0, "elapsed_s": 0, "test_loss": 0, "test_accuracy": 0, "seconds": 0},
    {"kind": "hardware", "elapsed_s": "NaN", "readings": {}}, {"kind": []}, {}, {"kind": "finished", "at": None},
    json.loads("[" * 150 + "]" * 150) and {"kind": "queued", "at": 1, "name": json.loads("[" * 150 + "]" * 150)},
]  # fmt: skip


@pytest.mark.parametrize("event", NONSENSE, ids=lambda event: json.dumps(event)[:60])
def test_a_record_that_cannot_be_is_not_understood(store, event):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(event))
        file.write(line_of(STEPS))
    run.refresh()
    assert [problem.partition(": ")[2][:24] for problem in run.problems] == ["An event cannot be read:"]
    assert run.steps["step"].tolist() == [1, 2]
    assert run.summary().samples == 8
    json.loads(row_of(run).model_dump_json())


def test_the_nonsense_is_made_of_sense(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(STARTED) + line_of(STEPS))
    run.refresh()
    assert (run.problems, len(run.steps)) == ([], 2)


def test_steps_written_twice_are_read_once(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(STEPS) * 2 + line_of(STEPS | {"first": 2}) + line_of(STEPS | {"first": 3}))
    run.refresh()
    assert run.steps["step"].tolist() == [1, 2, 3, 4]
    assert [problem.partition(": ")[2] for problem in run.problems] == [
        "Steps 1 to 2 are not in order.", "Steps 2 to 3 are not in order.",
    ]  # fmt: skip


def test_a_line_without_end_is_skipped_in_little_memory(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.truncate(100 * MIB)  # power loss leaves zeros
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line_of(STEPS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.refresh()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # KiB
    assert run.steps["step"].tolist() == [1, 2]
    assert len(run.problems) == 1
    assert run.problems[0].endswith("An event is longer than 8,388,608 bytes.")


def test_a_hundred_thousand_rotten_lines_are_counted_not_listed(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(b"x\n" * 100_000)
    EventLog(log_of(run)).close(Finished(at=1.0))
    run.refresh()
    assert (run.status, run.num_damaged) == ("finished", 100_000)
    assert run.problems[-1] == "99,950 more events cannot be read"
    assert len(run.problems) == 51


def bomb(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", bomb(100_000), '{"model":' + bomb(900) + "}", '{"seed":' + "9" * 5_000 + "}",
             '{"seed":1e999}', '{"data":"\\ud800"}', '{"' + "a" * 2**20 + '":1}', "\0" * 100, '{"model":{"family":[]}}'],
    ids=lambda text: text[:12] + str(len(text)),
)  # fmt: skip
def test_a_configuration_that_cannot_be_read_is_said_and_hides_no_other(store, text):
    fine, damaged = make_run(store, num_steps=20), make_run(store, num_steps=20)
    (damaged.folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=f"Run {damaged.run_id} cannot be read: "):
        store.run(damaged.run_id)
    assert [row.run_id for row in store.rows()] == [fine.run_id]


def test_a_log_that_became_a_folder_is_said_and_hides_no_other(store):
    fine, damaged = make_run(store, num_steps=20), make_run(store, num_steps=20)
    log_of(damaged).unlink()
    log_of(damaged).mkdir(mode=0o700)
    assert [row.run_id for row in store.rows()] == [fine.run_id]
    assert check(store).problems == [f"The log of run {damaged.run_id} cannot be read: Is a directory."]


@pytest.mark.parametrize("content", [None, b"", b"\0" * 4_096])
def test_a_run_whose_log_was_lost_is_not_run_once_more(store, content):
    run = make_run(store, num_steps=20)
    log_of(run).unlink() if content is None else log_of(run).write_bytes(content)
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    supervising.tick()
    supervising.index.close()
    run = store.run(run.run_id)
    assert (run.status, run.why(), len(run.steps)) == ("interrupted", "Its log was lost or damaged.", 0)


def test_a_log_that_became_shorter_under_a_reader_is_said(store):
    run = make_run(store, num_steps=100)
    os.truncate(log_of(run), 500)
    with pytest.raises(StoreError, match="became shorter while it was read"):
        run.refresh()


# --- a damaged index -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_index(store):
    """A store of 30 runs and its index, closed as after a crash: with its write-ahead log beside it."""
    config = RunConfig().model_dump_json()
    for number in range(30):
        make_run(store, num_steps=20, seed=number, name=f"run {number} of {config[:50]}")
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    for suffix in ("", "-wal"):
        shutil.copy(store.root / f"index.sqlite{suffix}", store.root / f"kept{suffix}")
    supervising.index.close()
    for suffix in ("", "-wal"):
        (store.root / f"kept{suffix}").replace(store.root / f"index.sqlite{suffix}")
    return store


def cut(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 20, 400])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero(path, rng):
    data, at = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size)
    data[at : at + 4_096] = bytes(len(data[at : at + 4_096]))
    path.write_bytes(data)


def turn_into_text(path, rng):
    path.write_text("This is not an index.\n" * 100)


def turn_into_folder(path, rng):
    path.unlink()
    path.mkdir(mode=0o700)
    (path / "something").touch(0o600)


def lose_wal(path, rng):
    path.with_name("index.sqlite-wal").unlink()


def rot_wal(path, rng):
    flip(path.with_name("index.sqlite-wal"), rng)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "seed"),
    [(by_chance, seed) for by_chance in (cut, flip, zero, rot_wal) for seed in range(3)]
    + [(always, 0) for always in (turn_into_text, turn_into_folder, lose_wal)],
)
def test_a_damaged_index_stops_nothing_and_is_made_anew(with_index, damage, seed):
    store = with_index
    if damage not in {lose_wal, rot_wal}:  # of a file that has it all: what is in the log would mend it
        Index(store.root).close()
    damage(store.root / "index.sqlite", random.Random(seed))
    assert len(store.rows()) == 30
    found = check(store)  # says something, or there is nothing to say
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    for number in range(3):
        store.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1", f"seed={number}"]))
    supervising.tick()
    while not supervising.is_idle:
        supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert [row.status for row in store.rows(limit=3)] == ["finished"] * 3
    assert len(store.rows()) == 33
    assert runtime_client.rebuild_index(store) == "here"
    assert check(store).problems == []
    assert damage not in {turn_into_text, turn_into_folder} or found.problems


def test_damage_that_no_question_meets_is_found_when_an_index_is_opened(with_index):
    Index(with_index.root).close()
    path = with_index.root / "index.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        page_of = db.execute("select rootpage from sqlite_master where name = 'runs_samples_per_s'").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[(page_of - 1) * 4_096 : page_of * 4_096] = bytes(4_096)
    path.write_bytes(data)
    assert "The index is damaged: " in check(with_index).problems[0]
    Index(with_index.root).close()
    assert (with_index.root / "index.sqlite.damaged").read_bytes() == data


def test_an_index_that_rots_while_it_is_used_is_made_anew(with_index):
    supervising = Supervisor(with_index, InlineExecutor())
    supervising.recover()
    supervising.index._db.execute("pragma writable_schema=on")
    supervising.index._db.execute("update sqlite_master set rootpage = 2 where name = 'runs_created'")
    supervising.index._db.execute("pragma wal_checkpoint(truncate)")
    reopened = Index.__new__(Index)  # a connection that believes the rotten schema
    reopened.path, reopened.version = supervising.index._index.path, 2
    reopened._file = reopened.path.stat()
    reopened._db = sqlite3.connect(reopened.path, isolation_level=None, check_same_thread=False)
    supervising.index._index._db.close()
    supervising.index._index = reopened
    fresh = with_index.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1"]))
    supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert with_index.run(fresh).status == "finished"
    assert check(with_index).problems == []


def test_what_a_full_disk_kept_out_of_the_index_is_written_later(store, monkeypatch):
    kept = KeptIndex(store)
    run = make_run(store, num_steps=20)
    kept._index._db.execute("pragma max_page_count = 1")
    big = row_of(run).model_copy(update={"why": "x" * 10**6})
    kept.put(big)
    assert kept.ids() == set()
    kept._index._db.execute("pragma max_page_count = 100000")
    kept.catch_up()
    assert kept.ids() == {run.run_id}
    kept.close()


def make_newer(store):
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite")) as db:
        db.execute("pragma user_version = 99")
        db.commit()
        db.execute("pragma wal_checkpoint(truncate)")
    return (store.root / "index.sqlite").read_bytes()


def test_beside_an_index_of_a_newer_isoflop_runs_are_listed_and_started(with_index, caplog):
    before = make_newer(with_index)
    supervising = Supervisor(with_index, InlineExecutor())
    supervising.recover()
    with_index.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1"]))
    supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert (len(with_index.rows()), with_index.rows(limit=1)[0].status) == (31, "finished")
    assert (with_index.root / "index.sqlite").read_bytes() == before
    assert "written by a newer Isoflop (schema 99). Update Isoflop" in caplog.text
    assert "newer Isoflop" in check(with_index).problems[0]


def test_a_newer_index_is_put_aside_when_asked(with_index):
    before = make_newer(with_index)
    assert runtime_client.rebuild_index(with_index) == "here"
    assert (with_index.root / "index.sqlite.newer").read_bytes() == before
    assert (check(with_index).problems, len(indexed(with_index))) == ([], 30)


# --- migrations ----------------------------------------------------------------------------------------------------


@pytest.fixture
def of_schema_1(store):
    """A store whose index a released version wrote: the file is made by its SQL, as it stood there."""
    runs = [make_run(store, num_steps=20, seed=seed) for seed in range(3)]
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.executescript(
            """
            create table runs (
              run_id text primary key, name text not null, status text not null, created real not null, grouped text,
              config text not null, summary text not null, why text not null,
              test_accuracy real, final_train_loss real, samples_per_s real, train_seconds real, steps integer
            ) without rowid;
            create index runs_created on runs(created);
            create index runs_test_accuracy on runs(test_accuracy);
            create index runs_final_train_loss on runs(final_train_loss);
            create index runs_samples_per_s on runs(samples_per_s);
            pragma user_version=1;
            """
        )
        for run in runs:
            row, s = row_of(run), run.summary()
            values = (
                row.run_id, row.name, row.status, row.created, row.group, row.config.model_dump_json(),
                s.model_dump_json(), row.why, s.test_accuracy, s.final_train_loss, s.samples_per_s, s.train_seconds,
                s.steps,
            )  # fmt: skip
            db.execute(f"insert into runs values ({','.join('?' * len(values))})", values)
    for path in store.root.glob("index.sqlite*"):
        path.chmod(0o600)
    return store


def version_of(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("pragma user_version").fetchone()[0], db.execute("select count(*) from runs").fetchone()[0]


def test_an_index_of_an_earlier_version_is_read_as_it_is(of_schema_1):
    with Index.reading(of_schema_1.root) as index:
        assert len(index.rows()) == 3
    assert check(of_schema_1).problems == []
    assert version_of(of_schema_1.root / "index.sqlite") == (1, 3)


def test_an_index_of_an_earlier_version_is_migrated_and_kept_beside(of_schema_1):
    before = [row.model_dump_json() for row in of_schema_1.rows()]
    index = Index(of_schema_1.root)
    assert [row.model_dump_json() for row in index.rows()] == before
    index.put(index.rows()[0].model_copy(update={"owner": "ada"}))
    assert index.rows()[0].owner == "ada"
    index.close()
    path = of_schema_1.root / "index.sqlite"
    assert version_of(path) == (len(migrations.MIGRATIONS), 3)
    assert version_of(path.with_name("index.sqlite.v1")) == (1, 3)
    assert path.with_name("index.sqlite.v1").stat().st_mode & 0o777 == 0o600


@pytest.mark.process
def test_a_migration_killed_in_the_middle_leaves_the_old_version_and_is_done_again(of_schema_1):
    script = f"""
import os, signal
from pathlib import Path
from engine.store import index, migrations
def until_killed(statements=migrations.MIGRATIONS[1]):
    yield statements[0]
    os.kill(os.getpid(), signal.SIGKILL)
migrations.MIGRATIONS[1] = until_killed()
index.Index(Path({str(of_schema_1.root)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    path = of_schema_1.root / "index.sqlite"
    assert version_of(path) == version_of(path.with_name("index.sqlite.v1")) == (1, 3)
    Index(of_schema_1.root).close()
    assert version_of(path) == (len(migrations.MIGRATIONS), 3)
    assert not path.with_name("index.sqlite.damaged").exists()


def test_a_migration_that_fails_changes_nothing(of_schema_1, monkeypatch):
    steps = [*migrations.MIGRATIONS[:1], (*migrations.MIGRATIONS[1], "insert into nowhere values (1)")]
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    db = sqlite3.connect(of_schema_1.root / "index.sqlite", isolation_level=None)
    with contextlib.closing(db), pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrations.migrate(db, of_schema_1.root / "index.sqlite", 1)
    assert version_of(of_schema_1.root / "index.sqlite") == (1, 3)


# --- check, and what a crash leaves --------------------------------------------------------------------------------


def test_check_compares_the_index_with_the_folders(with_index):
    assert runtime_client.rebuild_index(with_index) == "here"
    first, second = with_index.rows()[:2]
    with contextlib.closing(sqlite3.connect(with_index.root / "index.sqlite", isolation_level=None)) as db:
        db.execute("update runs set status = 'failed' where run_id = ?", (first.run_id,))
        db.execute("update runs set summary = '{' where run_id = ?", (second.run_id,))
    said = "\n".join(check(with_index).problems)
    assert f"Run {first.run_id}: it is failed with 20 steps in the index, but finished with 20 steps in its folder" in said
    assert "The index has 1 rows that cannot be read" in said
    assert {row.run_id for row in with_index.rows()} >= {second.run_id}
    runtime_client.rebuild_index(with_index)
    assert check(with_index).problems == []


def test_check_says_what_others_may_read(store):
    run = make_run(store, num_steps=20)
    assert check(store).problems == []
    log_of(run).chmod(0o644)
    store.inbox.chmod(0o750)
    (problem,) = check(store).problems
    assert "inbox (0750)" in problem
    assert f"runs/{run.run_id}/events.jsonl (0644). Remove their access: chmod -R go= " in problem


def test_check_names_leftovers_and_strangers_and_they_are_no_problem(store):
    (store.runs / ".0123456789abcdef").mkdir(mode=0o700)
    (store.runs / "my notes").mkdir(mode=0o700)
    (store.root / "holiday.jpg").touch(0o600)
    found = check(store)
    assert found.problems == []
    said = "\n".join(found.notes)
    for words in (".0123456789abcdef was left incomplete", "holiday.jpg was not made by Isoflop", "runs/my notes was not"):
        assert words in said


def test_check_misses_an_artifact_that_is_gone(store, config):
    run_id = store.create(config)
    worker.run(store.folder(run_id))
    assert check(store).problems == []
    (store.folder(run_id) / "model.safetensors").unlink()
    assert check(store).problems[0].startswith(f"Run {run_id}: model.safetensors has 0 of ")


def test_check_says_what_lies_behind_the_last_word(store):
    run = make_run(store, num_steps=20)
    with log_of(run).open("ab") as file:
        file.write(b"\0" * 100)
    assert check(store).problems == [f"Run {run.run_id}: its log has 100 bytes after the final event."]


def test_check_on_the_command_line_fails_when_something_is_wrong_and_rebuilds(with_index, engine):
    Index(with_index.root).close()
    turn_into_text(with_index.root / "index.sqlite", None)

    def ask(*options):
        process = engine("check", "--store", with_index.root, "--json", *options)
        said = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
        return process.returncode, said

    code, said = ask()
    assert (code, said["ok"], said["runs"], said["indexed"]) == (1, False, 30, 0)
    assert said["problems"] == [
        "The index cannot be read: file is not a database. Rebuild it: `python -m engine check --rebuild`."
    ]
    code, said = ask("--rebuild")
    assert (code, said["ok"], said["problems"], said["indexed"], said["rebuilt"]) == (0, True, [], 30, "here")
    assert said["versions"]["sqlite"] == sqlite3.sqlite_version
    assert (with_index.root / "index.sqlite.damaged").read_text().startswith("This is not an index")
    assert not (with_index.root / "supervisor.pid").exists()  # nobody was needed for it


@pytest.mark.parametrize(
    ("version", "has_it"),
    [((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
     ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False)],
)  # fmt: skip
def test_the_versions_of_sqlite_that_lose_a_log_are_known(version, has_it):
    assert has_wal_reset_bug(version) is has_it


def test_what_a_crash_left_half_made_is_swept_once_it_is_old(store):
    names = [".0123456789abcdef", ".deleted-0123456789abcdef"]
    for name in names:
        (store.runs / name).mkdir()
        (store.runs / name / "config.json").touch()
    (store.inbox / ".0001.json.0a1b2c3d").touch()
    mine = store.runs / ".git"
    mine.mkdir()
    kept = make_run(store, num_steps=20)
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    assert len(store.leftovers()) == 2  # somebody may be writing them just now; deleting is the supervisor's alone
    for path in store.leftovers():
        os.utime(path, (1, 1))
    os.utime(mine, (1, 1))
    supervising.recover()
    supervising.index.close()
    assert store.leftovers() == []
    assert mine.exists()
    assert store.ids() == [kept.run_id]


def test_a_file_system_of_many_machines_is_known_by_its_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/local ext4 rw 0 0\n"
        "//nas/x /mnt/my\\040disk cifs rw 0 0\nbroken\n"
    )
    types = [
        disk_space.network_file_system(Path(p), mounts) for p in ("/srv", "/home/me", "/home/local/x", "/mnt/my disk/x")
    ]
    assert types == [None, "nfs4", None, "cifs"]
    assert disk_space.network_file_system(tmp_path, tmp_path / "none") is None


def test_a_store_on_a_network_is_said(store, monkeypatch):
    monkeypatch.setattr(integrity_check.disk_space, "network_file_system", lambda _: "nfs4")
    assert "The store is on a network file system (nfs4): use it from one machine only." in check(store).notes
