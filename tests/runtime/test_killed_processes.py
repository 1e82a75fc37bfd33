"""Workers, fork servers, supervisors and dashboards that are killed, all of them real, and what they leave."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.common import units
from engine.config.parsing import with_overrides
from engine.events.lifecycle import Cancelled
from engine.hardware import probe
from engine.runtime import worker
from engine.runtime.client import Client, ring_doorbell
from engine.runtime.executor import InlineExecutor, LocalExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.system.processes import without_secrets
from tests.conftest import PATIENCE_S, ROOT
from tests.runtime.scene import LONG, RESTART_S, Scene, assert_whole, is_true, processes_of, starts, supervisor_pid

pytestmark = pytest.mark.process


def test_a_zombie_does_not_hide_a_running_process(tmp_path):
    left = subprocess.Popen(["sleep", "60"], env={"HOME": str(tmp_path)})
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its exit code was not read
    try:
        assert [process.pid for process in processes_of(tmp_path)] == [left.pid]
    finally:
        left.kill()
        left.wait()
        zombie.wait()


@pytest.mark.slow
def test_a_killed_run_reports_the_signal_and_its_last_memory(scene):
    scene.supervise()
    run = scene.running()
    scene.wait(lambda: run.refresh() is not None and len(run.hardware) > 1, "a sample of the hardware")
    os.kill(run.starting.pid, signal.SIGKILL)
    assert scene.until_over(run).status == "failed"
    held = units.nbytes(run.hardware["process_memory_bytes"][-1])
    assert f"killed by SIGKILL (often: out of memory); its last process memory was {held}." in run.why()


@pytest.mark.slow
def test_a_run_killed_with_its_fork_server_reports_no_exit_code(scene):
    scene.supervise()
    run = scene.running()
    fork_server = psutil.Process(run.starting.pid).parent()
    fork_server.suspend()
    os.kill(run.starting.pid, signal.SIGKILL)
    fork_server.kill()
    assert scene.until_over(run).status == "failed"
    assert "its process ended without a final event" in run.why()


@pytest.mark.slow
def test_two_processes_for_one_run_start_it_once(scene, config):
    """As after a supervisor that was killed between requesting a process and reading its first event."""
    folder = scene.store.folder(scene.store.create(config))
    executor = LocalExecutor()
    jobs = [executor.start(folder) for _ in range(4)]
    scene.wait(lambda: not any(job.is_alive() for job in jobs), "the processes")
    run = scene.store.run(folder.name)
    assert (run.status, starts(run)) == ("finished", 1)
    assert_whole(run)


@pytest.mark.slow
def test_a_run_that_another_process_started_is_adopted(scene, config):
    """The process of the second supervisor finds the run started and exits; the run continues to its own end."""
    run_id = scene.store.create(with_overrides(config, ["budget.epochs=none", "budget.seconds=2"]))
    executor = LocalExecutor()
    first = executor.start(scene.store.folder(run_id))
    supervising = Supervisor(scene.store, executor)
    supervising.queue[run_id] = scene.store.run(run_id)  # as the next supervisor finds it
    while not supervising.is_idle:
        supervising.tick()
        time.sleep(0.01)
    supervising.index.close()
    run = scene.store.run(run_id)
    assert (run.status, starts(run)) == ("finished", 1)
    scene.wait(lambda: not first.is_alive(), "its process to end")


@pytest.mark.slow
def test_a_late_process_does_not_start_a_run_that_is_over(scene, config):
    run_id = scene.store.create(config)
    EventLog(scene.store.folder(run_id) / "events.jsonl").close(Cancelled(at=0.0, reason="not wanted"))
    before = (scene.store.folder(run_id) / "events.jsonl").read_bytes()
    worker.run(scene.store.folder(run_id))
    assert (scene.store.folder(run_id) / "events.jsonl").read_bytes() == before


@pytest.mark.slow
def test_queued_runs_start_once_and_in_order_after_the_supervisor_is_killed(scene):
    rng = random.Random(0)
    scene.supervise()
    asked = [scene.ask_for("budget.epochs=none", "budget.steps=60", f"seed={seed}") for seed in range(20)]
    client = Client(scene.store)
    for _ in range(3):
        time.sleep(rng.uniform(0.2, 1.0))
        pid = int((scene.root / "supervisor.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        client.wake()
        scene.wait(lambda: ring_doorbell(scene.store), "a supervisor")
        scene.wait(
            lambda: all(map(is_true, scene.runs())), "true states", seconds=RESTART_S - time.monotonic() + killed
        )

    def all_over() -> bool:
        client.wake()
        return all(run.is_over for run in scene.runs())

    scene.wait(all_over, "all runs", seconds=3 * PATIENCE_S)
    runs = [scene.store.run(run_id) for run_id in asked]
    assert [starts(run) for run in runs] == [1] * len(asked)
    assert {run.status for run in runs} == {"finished"}
    places = np.argsort(np.argsort([run.starting.at for run in runs]))
    at_a_time = probe.probe().cpu.usable_cores  # runs that start at the same time can be in any order
    assert np.abs(places - np.arange(len(runs))).max() < 2 * at_a_time
    for run in runs:
        assert_whole(run)


def victims(scene: Scene, dashboard: subprocess.Popen[str]) -> dict[str, list[int]]:
    pid = supervisor_pid(scene)
    children = psutil.Process(pid).children() if pid and psutil.pid_exists(pid) else []
    return {
        "dashboard": [dashboard.pid],
        "supervisor": [pid] if pid else [],
        "fork server": [child.pid for child in children],
        "worker": [run.starting.pid for run in scene.runs() if run.starting and not run.is_over],
    }


class Lasting:
    """Whether a condition has held for a second, because the effects of a kill take time."""

    def __init__(self, is_so: Callable[[], bool]) -> None:
        self.is_so = is_so
        self.since: float | None = None

    def __call__(self) -> bool:
        if not self.is_so():
            self.since = None
            return False
        self.since = self.since or time.monotonic()
        return time.monotonic() - self.since > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_after_random_kills_no_point_is_lost_and_every_status_is_true(scene, seed):
    rng = random.Random(seed)
    dashboard = scene.dashboard()
    for _ in range(3):
        for _ in range(2):
            scene.ask_for(*LONG)
        time.sleep(rng.uniform(0.0, 2.0))
        seen = {run.run_id: run.steps["loss"].copy() for run in scene.runs()}
        over = {run.run_id: run.status for run in scene.runs() if run.is_over}
        at_hand = victims(scene, dashboard)
        kinds = rng.sample(sorted(at_hand), k=rng.randint(1, 4))
        for kind in kinds:
            for pid in at_hand[kind]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if "dashboard" in kinds or rng.random() < 0.5:
            dashboard.kill()
            dashboard.wait()
            dashboard = scene.dashboard()
        scene.wait(lambda: ring_doorbell(scene.store), "a supervisor")
        scene.wait(Lasting(lambda: all(map(is_true, scene.runs()))), "true states", seconds=RESTART_S)
        for run in scene.runs():
            assert starts(run) <= 1
            assert_whole(run)
            before = seen[run.run_id]
            assert np.array_equal(run.steps["loss"][: len(before)], before)
            assert run.status == over.get(run.run_id, run.status)
    client = Client(scene.store)
    for run in scene.runs():
        client.cancel(run.run_id)
    for run in scene.runs():
        scene.until_over(run)
    at_work = {run.starting.pid for run in scene.runs() if run.starting}
    scene.wait(lambda: not at_work & set(psutil.pids()), "the end of the runs' processes")
    for process in processes_of(scene.root):
        process.terminate()
    scene.until_nobody_is_left()


# --- what a process leaves and holds ---------------------------------------------------------------------------------------


def test_drafts_of_a_killed_process_are_removed(store):
    runs = store.runs
    for name, age_s in ((".deleted-0123456789abcdef", 0), (".0123456789abcdef", 7_200), (".fedcba9876543210", 0)):
        (runs / name).mkdir()
        (runs / name / "config.json").write_text("{}")
        os.utime(runs / name, (time.time() - age_s,) * 2)
    swept = Supervisor(store, InlineExecutor())
    swept.recover()
    swept.index.close()
    assert [path.name for path in runs.iterdir()] == [".fedcba9876543210"]  # a live process can own it


@pytest.mark.slow
def test_a_worker_has_no_secrets_and_the_highest_oom_score(scene, monkeypatch):
    secrets = {
        "HF_TOKEN": "hf_x",
        "STREAMLIT_AUTH_COOKIE": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "MY_PASSWORD": "x",
        "WANDB_API_KEY": "x",
        "DATABASE_URL": "postgres://me:hunter2@db/x",
        "GITHUB_PAT": "x",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pw@proxy:3128")
    scene.supervise()  # started by a user in a shell with all of them
    run = scene.running()
    process = psutil.Process(run.starting.pid)
    environment = process.environ()
    assert not set(secrets) & set(environment)
    assert environment["HTTPS_PROXY"] == "http://me:pw@proxy:3128"
    if sys.platform == "linux":
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip() == "1000"
        assert Path(f"/proc/{supervisor_pid(scene)}/oom_score_adj").read_text().strip() != "1000"


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("PATH", "/bin", True), ("HOME", "/root", True), ("http_proxy", "http://u:p@h", True),
        ("ISOFLOP_MIRROR", "https://u:p@h", True), ("CUDA_VISIBLE_DEVICES", "0", True), ("TOKENIZERS_PARALLELISM", "0", False),
        ("STREAMLIT_SERVER_COOKIE_SECRET", "x", False), ("isoflop_token", "x", False), ("PGPASSWORD", "x", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", "/f", False), ("SSH_AUTH_SOCK", "/s", False), ("REDIS", "redis://:pw@h", False),
    ],
)  # fmt: skip
def test_environment_variables_that_look_like_secrets_are_removed(name, value, stays):
    assert (name in without_secrets({name: value})) == stays


def _is_being_read(fifo: Path) -> bool:
    """Whether a process has opened the pipe for reading."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_the_inspection_of_a_file_ends_with_its_client(tmp_path):
    """The process that inspects a user's file blocks here on an empty pipe, and its client is killed."""
    never = tmp_path / "never.csv"
    os.mkfifo(never)
    ask = (
        "from engine.data.user_files import inspection; from pathlib import Path\n"
        f"inspection._inspected(inspection._Version('csv', {str(never)!r}, 1, 1, '', 0))"
    )
    asking = subprocess.Popen([sys.executable, "-c", ask], cwd=ROOT)
    try:
        found: list[psutil.Process] = []
        until = time.monotonic() + PATIENCE_S
        while not found and time.monotonic() < until:
            found = [p for p in psutil.Process(asking.pid).children() if "engine.data.user_files" in p.cmdline()]
            time.sleep(0.05)
        while not _is_being_read(never) and time.monotonic() < until:
            time.sleep(0.05)
        assert found[0].is_running()
    finally:
        asking.kill()
        asking.wait()
    assert not psutil.wait_procs(found, timeout=20)[1]
