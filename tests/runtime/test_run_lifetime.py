"""How long runs live: with their clients, with a supervisor that a user started, and after a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime import client as runtime_client
from engine.runtime.client import Client, ring_doorbell
from engine.runtime.daemon import _Clients
from engine.store.store import Store, Submission
from engine.system import locks
from tests.runtime.scene import LONG, assert_whole

pytestmark = pytest.mark.process
STEPS = ("budget.steps=5", "budget.steps=6")


@pytest.mark.slow
def test_runs_are_interrupted_when_all_clients_are_gone(scene):
    supervising = scene.supervise("--on-demand", "--grace-seconds", 1)
    follower, run = scene.follow("--set", "threads=1")
    waiting = scene.store.run(scene.ask_for(*LONG, "threads=2", "device=cpu"))
    follower.kill()
    follower.wait()
    assert scene.until_over(run).status == "interrupted"
    assert run.why().startswith("The dashboard or command that the run needs ended")
    assert "supervise" in run.why()
    assert scene.until_over(waiting).status == "interrupted"
    assert supervising.wait(20) == 0
    assert_whole(run)
    scene.until_nobody_is_left()


@pytest.mark.slow
def test_runs_survive_a_restart_of_their_client(scene):
    scene.supervise("--on-demand", "--grace-seconds", 600)
    follower, run = scene.follow()
    follower.kill()
    follower.wait()
    scene.wait(lambda: not locks.is_needed(scene.root), "nobody to need it")
    scene.start("engine", "watch", run.run_id)
    scene.wait(lambda: locks.is_needed(scene.root), "somebody who needs it")
    run.refresh()
    assert run.status == "running"


def test_the_grace_period_starts_when_the_last_client_ends(store, monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(runtime_client.time, "monotonic", lambda: now[0])
    clients, gone = _Clients(store.root, grace_s=30.0), []
    for is_there, waited_s in ((False, 29.0), (True, 40.0), (False, 29.0), (False, 2.0), (True, 0.0)):
        monkeypatch.setattr(locks, "is_needed", lambda _, is_there=is_there: is_there)
        now[0] += waited_s
        gone.append(clients.are_gone())
    assert gone == [False, False, False, True, False]


@pytest.mark.slow
def test_a_race_submitted_to_an_idle_supervisor_keeps_its_runs(scene, monkeypatch):
    """The supervisor finds each run at once, and its last client has left long ago."""
    create = Store.create

    def slowly(*args, **options):
        run_id = create(*args, **options)
        assert ring_doorbell(scene.store)
        time.sleep(0.3)
        return run_id

    supervising, log = scene.supervise("--on-demand", "--grace-seconds", 0.2), scene.root / "test.log"
    monkeypatch.setattr(Store, "create", slowly)
    for attempt in range(3):
        time.sleep(1.2)  # the grace, and the time between two looks of an idle supervisor
        block = [Submission(with_overrides(PRESETS["digits-mlp"].config, [steps])) for steps in STEPS]
        ids = Client(scene.store).submit_seed_blocks([block], group=f"{attempt:016x}")
        assert [scene.until_over(scene.store.run(run_id)).status for run_id in ids] == ["finished"] * len(STEPS)
        scene.wait(lambda ids=ids: all(f"{run_id} finished" in log.read_text() for run_id in ids), "an idle supervisor")
        locks.withdraw(scene.root)
    assert supervising.poll() is None


@pytest.mark.slow
def test_runs_of_a_supervisor_started_by_a_user_need_no_client(scene):
    by_hand = scene.supervise("--grace-seconds", 0.5)
    run = scene.running()
    time.sleep(1.5)  # three times the grace
    run.refresh()
    assert (run.status, by_hand.poll()) == ("running", None)
    by_hand.kill()  # now it has no supervisor
    by_hand.wait()
    assert scene.until_over(run).status == "interrupted"
    assert "supervisor of this store ended" in run.why()
    scene.until_nobody_is_left()


@pytest.mark.slow
def test_a_supervisor_on_standby_keeps_the_runs_going_and_takes_over(scene):
    on_demand = scene.supervise("--on-demand", "--grace-seconds", 1)
    by_hand = scene.start("engine", "supervise")
    scene.wait(lambda: locks.is_needed(scene.root), "one that stands by")
    run = scene.running()
    time.sleep(2)  # twice the grace
    on_demand.kill()
    on_demand.wait()
    scene.wait(lambda: f"{by_hand.pid} " in (scene.root / "supervisor.pid").read_text(), "the other")
    scene.wait(lambda: f"adopted {run.run_id}" in (scene.root / "test.log").read_text(), "its adoption")
    run.refresh()
    assert run.status == "running"
    assert not locks.is_needed(scene.root)


@pytest.mark.slow
def test_runs_live_as_long_as_one_of_two_dashboards(scene):
    scene.supervise("--on-demand", "--grace-seconds", 1)
    first, second = scene.dashboard(), scene.dashboard()
    run = scene.running()
    first.kill()
    first.wait()
    time.sleep(2)  # twice the grace
    run.refresh()
    assert run.status == "running"
    second.terminate()
    second.wait(20)
    assert scene.until_over(run).status == "interrupted"
    assert_whole(run)
    scene.until_nobody_is_left()


@pytest.mark.slow
def test_ctrl_c_twice_ends_a_dashboard_at_once_and_its_runs_after_the_grace(scene):
    scene.supervise("--on-demand", "--grace-seconds", 1)
    dashboard = scene.dashboard()
    run = scene.running()
    for _ in range(2):
        os.killpg(dashboard.pid, signal.SIGINT)
        time.sleep(0.05)
    dashboard.wait(20)
    assert scene.until_over(run).status == "interrupted"
    scene.until_nobody_is_left()


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_in_a_terminal_cancels_the_runs_submitted_there(scene, times):
    supervising = scene.supervise("--on-demand", "--grace-seconds", 60)
    follower, _ = scene.follow("--seeds", "3")
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(follower.pid, signal.SIGINT)
        time.sleep(0.02)
    assert follower.wait(20) == 130
    for each in scene.runs():
        assert scene.until_over(each).status == "cancelled"
    assert supervising.poll() is None
