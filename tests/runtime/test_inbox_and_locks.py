"""The doorbell, the inbox and the locks of a store."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.events.lifecycle import Starting
from engine.runtime import client as runtime_client
from engine.runtime.client import Client, ring_doorbell
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.system import locks
from engine.system.processes import own_identity
from tests.conftest import ROOT

pytestmark = pytest.mark.process


def test_a_doorbell_that_is_not_a_pipe_has_no_reader(store):
    (store.root / "doorbell").write_text("")  # as in a copied store
    assert not ring_doorbell(store)


def test_a_folder_in_the_inbox_does_not_stop_the_supervisor(store, config):
    (store.inbox / "0.json").mkdir()
    run_id = store.create(config)
    supervising = Supervisor(store, InlineExecutor())
    supervising.tick()
    supervising.index.close()
    assert store.run(run_id).status == "finished"


def test_many_submissions_start_one_supervisor(store, monkeypatch):
    popen, made = subprocess.Popen, []
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(runtime_client.subprocess, "Popen", lambda *_, **__: made.append(popen(sleeping)) or made[-1])
    for _ in range(50):
        Client(store).wake()
    locks.withdraw(store.root)
    for process in made:
        process.kill()
        process.wait()
    assert len(made) == 1


def test_a_client_is_seen_until_its_process_ends(store):
    say = f"from engine.system import locks; import pathlib; locks.announce(pathlib.Path({str(store.root)!r})); print(1); input()"
    needy = [
        subprocess.Popen([sys.executable, "-c", say], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in needy:
        process.stdout.readline()
    seen = []
    for process in needy:
        seen.append(locks.is_needed(store.root))
        process.kill()
        process.communicate()
    assert [*seen, locks.is_needed(store.root)] == [True, True, False]


def test_a_client_can_announce_itself_again_in_a_recreated_store(store):
    locks.announce(store.root)
    (store.root / "needed.lock").unlink()
    assert not locks.is_needed(store.root)
    locks.announce(store.root)
    assert locks.is_needed(store.root)
    locks.withdraw(store.root)


def test_a_process_without_the_claim_is_not_taken_for_the_run(store, config):
    """After a reboot another process can have the pid and the start time of a run, but it does not hold the claim."""
    run_id = store.create(config)
    pid, started = own_identity()
    EventLog(store.folder(run_id) / "events.jsonl").append(Starting(at=0.0, pid=pid, pid_started=started))
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    supervising.index.close()
    assert store.run(run_id).status == "interrupted"
