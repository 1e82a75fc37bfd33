"""A store that becomes read-only, loses its permissions, or is moved or deleted while it is used."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from engine.common.errors import StoreError, StoreGone
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Stopping
from engine.runtime import daemon, worker
from engine.runtime.client import Client
from engine.runtime.executor import AdoptedJob, InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store import event_log
from engine.store.event_log import EventLog
from engine.store.store import Store
from engine.system import disk_space
from tests.conftest import ROOT, Supervised
from tests.fakes import make_run
from tests.runtime.faults import MIB, delete, indexed, mounted

LONG = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=600"])


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def test_a_read_only_store_can_be_read_and_refuses_new_runs(tmp_path, no_limits, engine):
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
    """Runs a run in this process, and drops the error of an unwritable log."""

    def start(self, folder):
        with contextlib.suppress(StoreError):
            worker.run(folder)
        return AdoptedJob(os.getpid(), -1.0)


def test_a_run_with_an_unwritable_log_gets_its_final_event_later(store, monkeypatch):
    monkeypatch.setattr(event_log, "_PATIENCE_S", 0.2)
    run_id, write = store.create(LONG), os.write

    def read_only_after_a_while(fd, data):
        if store.run(run_id, keep_points=1).steps.last("step"):
            raise OSError(errno.EROFS, "Read-only file system")
        return write(fd, data)

    supervising = Supervisor(store, Forgetful())
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", read_only_after_a_while)
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
def test_a_store_without_permission_is_refused_in_one_sentence(tmp_path, closed):
    """Root has all permissions, so the command runs as the user nobody."""
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
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if "No module named" in done.stderr or "denied" not in done.stderr:
            pytest.skip(f"nobody cannot run Python here: {done.stderr[-200:]}")
        assert done.returncode == 2
        assert done.stderr.startswith(f"The store {root / 'store'} cannot be used: Permission denied. Set ISOFLOP_HOME")


# --- moved, deleted or replaced ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("taken", ["deleted", "moved", "replaced"])
def test_a_supervisor_leaves_a_store_that_was_moved_deleted_or_replaced(own_supervised, tmp_path, taken):
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
        assert not store.root.exists()  # no process created an empty one
    fresh = Supervised(store.root)
    try:
        assert fresh.until(fresh.submit("budget.epochs=1"), *TERMINAL).status == "finished"
    finally:
        fresh.end()


def test_a_deleted_store_is_reported_in_words(tmp_path):
    store = Store(tmp_path / "store")
    run = make_run(store, num_steps=20)
    delete(store.root)
    client = Client(store)
    for ask in (store.rows, store.ids, lambda: store.run(run.run_id), lambda: client.submit(RunConfig()), client.wake,
                lambda: client.cancel(run.run_id), lambda: store.find("last"), client.rebuild_index):  # fmt: skip
        with pytest.raises(StoreGone, match=r"The store's folder is gone: .* Put it back, or start again"):
            ask()


@pytest.mark.parametrize("take", [shutil.rmtree, lambda folder: folder.rename(folder.with_name(".away"))])
def test_nothing_is_written_to_a_deleted_log(store, take):
    folder = store.folder(store.create(RunConfig()))
    log = EventLog(folder / "events.jsonl")
    take(folder)
    with pytest.raises(StoreGone, match="The run's folder is gone"):
        log.append(Stopping(at=1.0))


def test_a_deleted_index_is_rebuilt_by_the_supervisor(store):
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


def test_the_page_reports_a_deleted_store_and_shows_a_new_one_in_its_place(page, store):
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


def test_the_page_reports_a_nearly_full_disk_and_still_shows_the_runs(page, store, monkeypatch):
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


def test_a_doorbell_of_another_supervisor_is_not_removed(store):
    with daemon._doorbell(store):
        (store.root / "doorbell").unlink()
        os.mkfifo(store.root / "doorbell")
    assert (store.root / "doorbell").exists()
    with daemon._doorbell(store):
        pass
    assert not (store.root / "doorbell").exists()
