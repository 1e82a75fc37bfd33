"""The supervisor and real processes of runs: commands are executed, and dead processes are reported."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time

import psutil
import pytest

from engine.common.errors import ConfigError, DeviceError, EngineError, OutOfMemory, StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.events.lifecycle import Artifact, Finished, Starting
from engine.hardware import probe
from engine.runtime import client, daemon, supervisor, worker
from engine.runtime.daemon import serve
from engine.runtime.executor import AdoptedJob, InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.system import locks
from engine.system.processes import process_started

ALL_CORES = f"threads={probe.probe().cpu.usable_cores}"  # such a run leaves no room for another


@pytest.fixture
def long_run(supervised):
    """A run on all cores that has points and would take minutes."""
    run = supervised.running(ALL_CORES)
    yield run
    supervised.client.cancel(run.run_id)
    supervised.until(run.run_id, *TERMINAL)


# --- commands ---------------------------------------------------------------------------------------------


def test_a_submitted_run_finishes(supervised):
    run = supervised.until(supervised.submit("budget.epochs=2"), *TERMINAL)
    assert (run.status, len(run.steps), run.problems) == ("finished", 90, [])
    summary = run.summary()
    assert 0 < summary.step_memory_bytes < 1e6 < 50e6 < summary.process_memory_bytes
    assert [artifact.name for artifact in run.all(Artifact)] == ["model.safetensors"]


def test_the_hardware_is_sampled_while_a_run_trains(long_run, supervised):
    supervised.wait(lambda: long_run.refresh() is not None and len(long_run.hardware) >= 2, "two samples")
    assert 0 < long_run.hardware["process_cpu_percent"][-1] <= 100 * os.cpu_count() * 1.1


def test_a_cancelled_run_ends_and_keeps_its_points(long_run, supervised):
    supervised.client.cancel(long_run.run_id, reason="seen enough")
    supervised.until(long_run.run_id, "cancelled")
    long_run.refresh()
    assert (long_run.why(), long_run.problems) == ("seen enough", [])
    assert long_run.last_word.steps == len(long_run.steps) > 0


def test_a_queued_run_waits_for_room_and_can_be_cancelled(long_run, supervised):
    waiting = supervised.submit("budget.epochs=1")
    time.sleep(0.5)
    assert supervised.store.run(waiting).status == "queued"
    supervised.client.cancel(waiting)
    run = supervised.until(waiting, "cancelled")
    assert (len(run.steps), run.starting) == (0, None)


def test_cancelling_a_run_that_is_over_changes_nothing(supervised):
    run = supervised.until(supervised.submit("budget.epochs=1"), "finished")
    before = (run.folder / "events.jsonl").read_bytes()
    supervised.client.cancel(run.run_id)
    supervised.wait(lambda: not any(supervised.store.inbox.iterdir()), "an empty inbox")
    assert (run.folder / "events.jsonl").read_bytes() == before


def test_a_deleted_run_leaves_folder_and_index(supervised):
    run_id = supervised.until(supervised.submit("budget.epochs=1"), "finished").run_id
    supervised.client.delete(run_id)
    supervised.wait(lambda: run_id not in supervised.store.ids(), "the folder to go")
    supervised.wait(lambda: all(row.run_id != run_id for row in supervised.store.rows()), "the row to go")


def test_a_running_run_cannot_be_deleted(long_run, supervised):
    with pytest.raises(StoreError, match=r"has not ended\. Stop it first"):
        supervised.client.delete(long_run.run_id)


@pytest.mark.parametrize(
    ("assignment", "error"),
    [
        ("batch_size=5000", ConfigError),
        ("threads=1024", ConfigError),
        ("device=cuda:99", DeviceError),
        ("model.hidden=1000000,1000000", OutOfMemory),
    ],
)
def test_a_refused_config_leaves_no_run_and_says_what_to_do(supervised, assignment, error):
    before = sorted(supervised.store.runs.iterdir())
    with pytest.raises(error) as refused:
        supervised.submit(assignment)
    assert refused.value.fix
    assert sorted(supervised.store.runs.iterdir()) == before


def test_an_invalid_command_is_ignored_and_the_next_is_executed(supervised):
    inbox = supervised.store.inbox
    for name, text in [
        ("0", "{garbage"),
        ("1", "[]"),
        ("2", "{}"),
        ("3", '{"command":"cancel","run_id":"../x"}'),
        ("4", "7"),
        ("5", '{"command":"fly"}'),
        ("6", '{"command":"delete","run_id":[]}'),
    ]:
        (inbox / f"{name}.json").write_text(text)
    (inbox / "7.json").write_bytes(b"\xff\xfe")
    before = supervised.process.pid
    supervised.client.wake()
    supervised.wait(lambda: not any(inbox.iterdir()), "an empty inbox")
    assert supervised.until(supervised.submit("budget.epochs=1"), *TERMINAL).status == "finished"
    assert supervised.process.pid == before


# --- failures ---------------------------------------------------------------------------------------------------


def test_a_killed_worker_fails_its_run_and_the_next_run_starts(supervised):
    killed = supervised.running(ALL_CORES)
    following = supervised.submit("budget.epochs=1")
    victim = psutil.Process(killed.starting.pid)
    victim.kill()
    failed = supervised.until(killed.run_id, *TERMINAL)
    assert (failed.status, failed.last_word.cause) == ("failed", "WorkerLost")
    assert "killed by SIGKILL" in failed.why()
    assert len(failed.steps) == failed.last_word.steps > 0
    assert supervised.until(following, *TERMINAL).status == "finished"


def test_a_run_continues_after_its_fork_server_is_killed(supervised):
    run = supervised.until(supervised.submit("budget.epochs=none", "budget.seconds=2"), "running")
    psutil.Process(run.starting.pid).parent().kill()
    supervised.until(run.run_id, *TERMINAL)
    run.refresh()
    assert (run.status, run.problems) == ("finished", [])
    assert supervised.until(supervised.submit("budget.epochs=1"), *TERMINAL).status == "finished"


def test_a_run_that_diverges_fails_with_its_cause(supervised):
    run_id = supervised.submit("optimizer.name=sgd", "optimizer.lr=1e6", preset="mnist-mlp")
    run = supervised.until(run_id, *TERMINAL)
    assert (run.status, run.last_word.cause) == ("failed", "Diverged")
    assert run.why().endswith("Lower the learning rate.")
    assert run.problems == []


def test_one_unreadable_run_does_not_stop_the_others(supervised):
    broken = supervised.store.create(RunConfig())
    (supervised.store.folder(broken) / "config.json").write_text("{")
    assert supervised.until(supervised.submit("budget.epochs=1"), *TERMINAL).status == "finished"
    supervised.store.delete(broken)


def test_a_store_has_one_supervisor(supervised, monkeypatch):
    monkeypatch.setattr(daemon, "_LEAVING_S", 0.0)  # it waits so long for one that is leaving
    before = supervised.process.pid
    assert serve(supervised.store) is False
    assert supervised.process.pid == before


def test_nobody_else_can_read_what_a_supervisor_and_its_runs_write(supervised):
    supervised.until(supervised.submit("budget.epochs=1"), "finished")
    for path in supervised.store.root.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_a_new_supervisor_adopts_a_running_run_and_can_cancel_it(own_supervised):
    run = own_supervised.running()
    run_id, first = run.run_id, own_supervised.process
    first.kill()
    psutil.wait_procs([first], timeout=10)
    own_supervised.client.wake()
    log = own_supervised.store.root / "supervisor.log"
    own_supervised.wait(lambda: f"adopted {run_id}" in log.read_text(), "its adoption")
    own_supervised.client.cancel(run_id)
    own_supervised.until(run_id, *TERMINAL)
    run.refresh()
    assert (run.status, run.problems) == ("cancelled", [])
    assert own_supervised.process.pid != first.pid


def test_a_supervisor_interrupts_runs_whose_process_is_gone_then_exits(store, config, engine):
    run_id = store.create(config)
    gone = subprocess.Popen(["sleep", "0.1"])
    started = process_started(gone.pid)
    gone.wait()
    EventLog(store.folder(run_id) / "events.jsonl").append(Starting(at=time.time(), pid=gone.pid, pid_started=started))
    process = engine("supervise", "--store", store.root, "--idle-seconds", 1)
    assert process.wait(60) == 0
    run = store.run(run_id)
    assert (run.status, run.why()) == ("interrupted", "The machine or the supervisor stopped while it ran.")
    assert [row.status for row in store.rows()] == ["interrupted"]
    assert not (store.root / "supervisor.pid").exists()


# --- without processes: the supervisor step by step ---------------------------------------------------------------------


@pytest.fixture
def in_process(store):
    made = Supervisor(store, InlineExecutor())
    yield made
    made.index.close()


def test_a_run_without_a_supervisor_is_interrupted(store, monkeypatch):
    monkeypatch.setattr(worker, "_ORPHAN_GRACE_S", 0.0)
    some_seconds = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=600"])
    run_id = store.create(some_seconds)
    worker.run(store.folder(run_id), supervisor_is_alive=lambda: not len(store.run(run_id).steps))
    run = store.run(run_id)
    assert (run.status, run.problems) == ("interrupted", [])
    assert len(run.steps) > 0


def test_a_reused_pid_is_not_taken_for_the_run(in_process, store, config):
    run_id = store.create(config)
    starting = Starting(at=time.time(), pid=os.getpid(), pid_started=process_started(os.getpid()) - 100)
    EventLog(store.folder(run_id) / "events.jsonl").append(starting)
    in_process.recover()
    assert store.run(run_id).status == "interrupted"


def test_a_run_that_ignores_signals_is_killed(in_process, store, config, monkeypatch):
    monkeypatch.setattr(supervisor, "_SIGTERM_AFTER_S", 0.05)
    monkeypatch.setattr(supervisor, "_SIGKILL_AFTER_S", 0.1)
    run_id = store.create(config)
    claim = os.open(store.folder(run_id), os.O_RDONLY)
    assert locks.lock(claim)
    deaf = subprocess.Popen(["sleep", "600"], pass_fds=[claim])
    os.close(claim)
    deaf.send_signal(signal.SIGSTOP)  # it ignores the stop file and SIGTERM
    starting = Starting(at=time.time(), pid=deaf.pid, pid_started=process_started(deaf.pid))
    EventLog(store.folder(run_id) / "events.jsonl").append(starting)
    in_process.recover()
    in_process._cancel(run_id, "enough")
    run_until_idle(in_process)
    assert deaf.wait() == -signal.SIGKILL
    assert store.run(run_id).why() == "It did not stop when asked and was ended."


def run_until_idle(supervising):
    until = time.monotonic() + 60
    while not supervising.is_idle:
        assert time.monotonic() < until
        supervising.tick()
        time.sleep(0.01)


def test_signals_reach_only_the_process_they_are_meant_for():
    AdoptedJob(os.getpid(), pid_started=1.0).signal(signal.SIGKILL)  # would end the tests


@pytest.mark.parametrize("after_a_restart", [False, True])
@pytest.mark.slow
def test_runs_start_in_the_order_of_their_submission(in_process, store, config, after_a_restart):
    in_process.tick()  # has looked: the next runs are new, or are found by its successor
    asked = [store.create(with_overrides(config, [f"seed={seed}", "budget.steps=1"])) for seed in range(4)]
    in_process.recover() if after_a_restart else in_process.tick()
    run_until_idle(in_process)
    assert sorted(asked, key=lambda run_id: store.run(run_id).started.at) == asked


def test_a_run_deleted_while_its_process_ends_is_deleted_afterwards(in_process, store, config):
    run_id = store.create(config)
    leaving = subprocess.Popen(["sleep", "0.5"])
    in_process.active[run_id] = store.run(run_id), AdoptedJob(leaving.pid, process_started(leaving.pid))
    EventLog(store.folder(run_id) / "events.jsonl").close(Finished(at=time.time()))
    in_process._execute({"command": "delete", "run_id": run_id, "actor": "terminal"})
    assert store.ids() == [run_id]
    run_until_idle(in_process)
    assert store.ids() == [] == in_process.index.rows()
    leaving.wait()


def test_an_exception_in_the_task_becomes_the_final_event(in_process, store, config, monkeypatch):
    def breaks(*_):
        yield from ()
        raise ZeroDivisionError("our own bug")

    monkeypatch.setitem(worker.GENERATORS, "train", breaks)
    run_id = store.create(config)
    in_process.tick()
    last = store.run(run_id).last_word
    assert (last.cause, last.fix) == ("ZeroDivisionError", "Please report it with the run's log.")
    assert "our own bug" in last.detail


def test_an_executor_that_cannot_start_a_run_fails_that_run_alone(store, config):
    class Full:
        def start(self, folder):
            raise OSError("Resource temporarily unavailable")

    run_id = store.create(config)
    broken = Supervisor(store, Full())
    broken.tick()
    broken.index.close()
    run = store.run(run_id)
    assert (run.status, run.last_word.cause) == ("failed", "WorkerLost")
    assert "Resource temporarily unavailable" in run.why()


def test_an_error_keeps_its_fix_across_processes():
    import pickle

    error = ConfigError("what", fix="do this")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - what multiprocessing does with an exception
    assert (type(again), str(again)) == (ConfigError, "what do this")
    assert isinstance(again, EngineError)


def test_a_client_starts_a_supervisor_only_if_none_reads_the_doorbell(store, monkeypatch):
    started = []
    monkeypatch.setattr(client, "_start_supervisor", started.append)
    with daemon._doorbell(store):
        client.Client(store).wake()
        assert started == []
    client.Client(store).wake()
    assert started == [store]
