"""A full disk: runs end with the reason, nothing is torn, and the store can be used again after deleting runs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from engine.common.errors import StoreFull
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Failed, Finished, Starting, Stopping
from engine.events.training import Evaluation
from engine.runtime import supervisor, worker
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from engine.system import disk_space
from engine.system.locks import claim
from engine.system.processes import process_started
from tests.conftest import ROOT, Supervised
from tests.fakes import make_run
from tests.runtime.faults import MIB, fill, indexed, log_of, mounted, steps_of


@pytest.fixture
def small_disk(tmp_path):
    with mounted(tmp_path / "disk", "600m") as folder:
        yield folder


class FullDisk:
    """`os.write` on a disk with `room` free bytes."""

    def __init__(self, monkeypatch, room: int) -> None:
        self.room, self._write = room, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, fd, data):
        taken = min(self.room, len(data))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return self._write(fd, bytes(data[:taken]))


def test_a_half_written_line_is_completed_when_there_is_room_again(store, monkeypatch):
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


def test_a_run_on_a_full_disk_continues_for_a_while_then_reports_it(store, monkeypatch):
    log = EventLog(store.folder(store.create(RunConfig())) / "events.jsonl", patience_s=0.2)
    FullDisk(monkeypatch, 0)
    log.append(steps_of(1))
    time.sleep(0.3)
    log.flush_if_due()  # called by the watchdog, which must continue
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
def test_a_failed_write_is_reported_with_the_reason(store, monkeypatch):
    """Root ignores permissions, so a limit on file sizes makes the write fail."""
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


def test_the_final_event_is_written_with_the_reserve(store, monkeypatch):
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


def test_the_reserve_is_recreated_only_if_there_is_room(store, monkeypatch):
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: disk_space.RECORDING_NEEDS_BYTES)
    disk_space.keep_reserve(store.root)
    assert not (store.root / "reserve").exists()
    monkeypatch.undo()
    disk_space.keep_reserve(store.root)
    assert (store.root / "reserve").exists()


def test_no_run_is_created_on_a_nearly_full_disk(store, monkeypatch):
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
def test_a_run_fails_on_a_full_disk_and_the_supervisor_continues(small_disk):
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


def test_weights_that_do_not_fit_leave_no_file_and_a_reason(tmp_path, no_limits):
    with mounted(tmp_path / "disk", "6m") as folder:
        store = Store(folder / "store")
        config = with_overrides(PRESETS["digits-mlp"].config, ["model.hidden=4096,256", "budget.steps=2"])
        run_id = store.create(config)
        fill(folder, leave=2 * MIB)
        worker.run(store.folder(run_id))
        run = store.run(run_id)
        assert (run.status, run.last_word.cause, len(run.steps)) == ("failed", "StoreFull", 2)
        assert sorted(p.name for p in run.folder.iterdir()) == ["config.json", "events.jsonl"]


def test_half_written_weights_are_removed(tmp_path, monkeypatch):
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


def test_a_run_without_a_stop_file_is_stopped_by_a_signal(store, monkeypatch):
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
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        supervising._take_commands()
    assert run_id in supervising.stopping
    supervising.tick()
    assert process.wait(60) == -signal.SIGTERM
    working.close()
    supervising.tick()
    supervising.index.close()
    assert store.run(run_id).status == "cancelled"
