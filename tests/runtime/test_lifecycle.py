"""Life and death of processes, all of them real: who is killed, when, together with whom, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from engine.common import units
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.lifecycle import Cancelled, Starting
from engine.hardware import probe
from engine.runtime import client as runtime_client
from engine.runtime import worker
from engine.runtime.client import Client, ring_doorbell
from engine.runtime.daemon import _Clients
from engine.runtime.executor import InlineExecutor, LocalExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from engine.system import locks
from engine.system.processes import own_identity, without_secrets
from tests.conftest import PATIENCE_S, ROOT

pytestmark = pytest.mark.process
LONG = ("budget.epochs=none", "budget.seconds=600")
RESTART_S = 40.0  # after a restart every state is true within this; on a machine with nothing else to do, within ten


def processes_of(root: Path) -> list[psutil.Process]:
    """Every process whose command line or environment names a store, but ours."""
    ours, found = _ours(), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.pid not in ours:
                names = [*process.cmdline(), *process.environ().values()]
                found += [process] if str(root) in names else []
    return found


def _ours() -> set[int]:
    """This process, and a fork server it uses itself: killed behind multiprocessing's back it could not be replaced."""
    found = {os.getpid()}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # a zombie has no command line
            found |= {child.pid} if "multiprocessing" in " ".join(child.cmdline()) else set()
    return found


def test_a_zombie_beside_hides_no_process_that_was_left(tmp_path):
    left = subprocess.Popen(["sleep", "60"], env={"HOME": str(tmp_path)})
    zombie = subprocess.Popen(["true"])
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody asked yet how
    try:
        assert [process.pid for process in processes_of(tmp_path)] == [left.pid]
    finally:
        left.kill()
        left.wait()
        zombie.wait()


class Scene:
    """A store, and the processes a test starts and kills around it. The test itself needs the store only if it says."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root)

    def start(self, *command: object) -> subprocess.Popen[str]:
        """In a group of its own, as a terminal starts a program."""
        with (self.root / "test.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *map(str, command)], cwd=ROOT, text=True, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def supervise(self, *flags: object) -> subprocess.Popen[str]:
        process = self.start("engine", "supervise", *flags)
        self.wait(lambda: ring_doorbell(self.store), "a supervisor")
        return process

    def dashboard(self) -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port = free.getsockname()[1]
        process = self.start("streamlit", "run", ROOT / "dashboard" / "app.py", "--server.port", port)
        self.wait(lambda: self._answers(port) and locks.is_needed(self.root), "a dashboard")
        return process

    def _answers(self, port: int) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1):
            return True
        return False

    def ask_for(self, *assignments: str) -> str:
        """A run of somebody who does not wait for it."""
        run_id = self.store.create(with_overrides(PRESETS["digits-mlp"].config, assignments))
        ring_doorbell(self.store)
        return run_id

    def running(self, *assignments: str) -> Run:
        run = self.store.run(self.ask_for(*LONG, *assignments))
        self.wait(lambda: bool(run.refresh() and len(run.steps)), "points")
        return run

    def follow(self, *arguments: object) -> tuple[subprocess.Popen[str], Run]:
        """`python -m engine run` in a terminal, and the first of its runs that has points."""
        known = set(self.store.ids())
        sets = [part for assignment in LONG for part in ("--set", assignment)]
        process = self.start("engine", "run", "--preset", "digits-mlp", *sets, *arguments)
        at_work: list[Run] = []

        def has_points() -> bool:
            runs = [self.store.run(run_id) for run_id in set(self.store.ids()) - known]
            at_work[:] = [run for run in runs if len(run.steps)]
            return bool(at_work)

        self.wait(has_points, "points")
        return process, at_work[0]

    def runs(self) -> list[Run]:
        return [self.store.run(run_id) for run_id in self.store.ids()]

    def until_over(self, run: Run) -> Run:
        self.wait(lambda: run.refresh() is not None and run.is_over, f"the end of {run.run_id}")
        return run

    def wait(self, is_so: Callable[[], bool], what: str, *, seconds: float = PATIENCE_S) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > until:
                logs = [path.read_text() for path in self.root.glob("*.log") if path.is_file()]
                pytest.fail(f"waited {seconds:g} s for {what}\n" + "\n".join(logs))
            time.sleep(0.02)

    def until_nobody_is_left(self) -> None:
        self.wait(lambda: not processes_of(self.root), f"the end of {processes_of(self.root)}")

    def end(self) -> None:
        locks.withdraw(self.root)
        while left := processes_of(self.root):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=10)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "store"))
    made = Scene(tmp_path / "store")
    yield made
    made.end()


def events(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "events.jsonl").read_bytes().splitlines()]


def starts(run: Run) -> int:
    return sum(event["kind"] == "starting" for event in events(run))


def is_true(run: Run) -> bool:
    """Whether a run is what it says: waiting, at work, or over with its cause."""
    run.refresh()
    if run.is_over:
        return run.status == "finished" or bool(run.why())
    return run.status == "queued" or locks.is_claimed(run.folder)


def assert_whole(run: Run) -> None:
    """The steps that can be read are the first ones, each once, and the log's own count of them."""
    assert run.steps["step"].tolist() == list(range(1, len(run.steps) + 1))
    assert run.problems == []
    if run.last_word:
        assert run.last_word.steps == len(run.steps)


# --- how long runs live --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_end_when_nobody_needs_them_any_more(scene):
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
def test_runs_outlive_a_restart_of_what_needed_them(scene):
    scene.supervise("--on-demand", "--grace-seconds", 600)
    follower, run = scene.follow()
    follower.kill()
    follower.wait()
    scene.wait(lambda: not locks.is_needed(scene.root), "nobody to need it")
    scene.start("engine", "watch", run.run_id)
    scene.wait(lambda: locks.is_needed(scene.root), "somebody who needs it")
    run.refresh()
    assert run.status == "running"


def test_the_grace_counts_from_the_last_moment_somebody_was_there(store, monkeypatch):
    now = [1_000.0]
    monkeypatch.setattr(runtime_client.time, "monotonic", lambda: now[0])
    clients, gone = _Clients(store.root, grace_s=30.0), []
    for is_there, waited_s in ((False, 29.0), (True, 40.0), (False, 29.0), (False, 2.0), (True, 0.0)):
        monkeypatch.setattr(locks, "is_needed", lambda _, is_there=is_there: is_there)
        now[0] += waited_s
        gone.append(clients.are_gone())
    assert gone == [False, False, False, True, False]


@pytest.mark.slow
def test_runs_of_a_supervisor_started_by_hand_need_nobody(scene):
    by_hand = scene.supervise("--grace-seconds", 0.5)
    run = scene.running()
    time.sleep(1.5)  # three times the grace
    run.refresh()
    assert (run.status, by_hand.poll()) == ("running", None)
    by_hand.kill()  # and now nobody looks after it
    by_hand.wait()
    assert scene.until_over(run).status == "interrupted"
    assert "supervisor of this store ended" in run.why()
    scene.until_nobody_is_left()


@pytest.mark.slow
def test_a_supervisor_started_by_hand_keeps_the_runs_of_another_and_takes_its_place(scene):
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
def test_ctrl_c_in_a_terminal_stops_the_runs_that_were_asked_for_there(scene, times):
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


# --- what is killed ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_says_by_what_and_how_much_memory_it_last_held(scene):
    scene.supervise()
    run = scene.running()
    scene.wait(lambda: run.refresh() is not None and len(run.hardware) > 1, "a sample of the hardware")
    os.kill(run.starting.pid, signal.SIGKILL)
    assert scene.until_over(run).status == "failed"
    held = units.nbytes(run.hardware["process_memory_bytes"][-1])
    assert f"killed by SIGKILL (often: out of memory); its last process memory was {held}." in run.why()


@pytest.mark.slow
def test_a_run_killed_together_with_its_fork_server_is_not_said_to_have_exited(scene):
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
    """As after a supervisor that was killed between asking for the process and reading its first word."""
    folder = scene.store.folder(scene.store.create(config))
    executor = LocalExecutor()
    jobs = [executor.start(folder) for _ in range(4)]
    scene.wait(lambda: not any(job.is_alive() for job in jobs), "the processes")
    run = scene.store.run(folder.name)
    assert (run.status, starts(run)) == ("finished", 1)
    assert_whole(run)


@pytest.mark.slow
def test_a_run_that_another_process_began_is_taken_on_not_declared_dead(scene, config):
    """The supervisor's own process finds it begun and leaves; the run goes on and its end is the run's own."""
    run_id = scene.store.create(with_overrides(config, ["budget.epochs=none", "budget.seconds=2"]))
    executor = LocalExecutor()
    first = executor.start(scene.store.folder(run_id))
    supervising = Supervisor(scene.store, executor)
    supervising.queue[run_id] = scene.store.run(run_id)  # as its successor finds it
    while not supervising.is_idle:
        supervising.tick()
        time.sleep(0.01)
    supervising.index.close()
    run = scene.store.run(run_id)
    assert (run.status, starts(run)) == ("finished", 1)
    scene.wait(lambda: not first.is_alive(), "its process to end")


@pytest.mark.slow
def test_a_run_that_is_over_is_not_begun_by_a_process_that_comes_late(scene, config):
    run_id = scene.store.create(config)
    EventLog(scene.store.folder(run_id) / "events.jsonl").close(Cancelled(at=0.0, reason="not wanted"))
    before = (scene.store.folder(run_id) / "events.jsonl").read_bytes()
    worker.run(scene.store.folder(run_id))
    assert (scene.store.folder(run_id) / "events.jsonl").read_bytes() == before


@pytest.mark.slow
def test_queued_runs_start_once_and_in_order_though_the_supervisor_is_killed(scene):
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
    at_a_time = probe.probe().cpu.usable_cores  # of these any may be the first to say so
    assert np.abs(places - np.arange(len(runs))).max() < 2 * at_a_time
    for run in runs:
        assert_whole(run)


def supervisor_pid(scene: Scene) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((scene.root / "supervisor.pid").read_text().split()[0])
    return None


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
    """Whether something has been so for a second: what was just killed may not know it yet."""

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
def test_whatever_is_killed_nothing_seen_is_lost_and_every_state_is_true_after_a_restart(scene, seed):
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


# --- what a process leaves, and what it holds -----------------------------------------------------------------------


def test_what_a_killed_process_left_half_made_is_swept(store):
    runs = store.runs
    for name, age_s in ((".deleted-0123456789abcdef", 0), (".0123456789abcdef", 7_200), (".fedcba9876543210", 0)):
        (runs / name).mkdir()
        (runs / name / "config.json").write_text("{}")
        os.utime(runs / name, (time.time() - age_s,) * 2)
    swept = Supervisor(store, InlineExecutor())
    swept.recover()
    swept.index.close()
    assert [path.name for path in runs.iterdir()] == [".fedcba9876543210"]  # someone may be at it


@pytest.mark.slow
def test_a_runs_process_holds_no_secret_and_is_the_kernels_first_choice(scene, monkeypatch):
    secrets = {"HF_TOKEN": "hf_x", "STREAMLIT_AUTH_COOKIE": "x", "AWS_SECRET_ACCESS_KEY": "x", "MY_PASSWORD": "x",
               "WANDB_API_KEY": "x", "DATABASE_URL": "postgres://me:hunter2@db/x", "GITHUB_PAT": "x"}  # fmt: skip
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:pw@proxy:3128")
    scene.supervise()  # by hand, in a shell that has them all
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
def test_what_looks_like_a_secret_is_left_out(name, value, stays):
    assert (name in without_secrets({name: value})) == stays


def _is_being_read(fifo: Path) -> bool:
    """Whether a process waits for somebody who writes."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_file_is_not_looked_at_for_somebody_who_is_gone(tmp_path):
    """The process that inspects a user's file waits here for one that never comes, and is left alone."""
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


# --- the bell, the inbox, the locks --------------------------------------------------------------------------------


def test_a_doorbell_that_is_no_pipe_is_not_heard(store):
    (store.root / "doorbell").write_text("")  # as in a copy of a store
    assert not ring_doorbell(store)


def test_what_is_no_command_does_not_stop_the_supervisor(store, config):
    (store.inbox / "0.json").mkdir()
    run_id = store.create(config)
    supervising = Supervisor(store, InlineExecutor())
    supervising.tick()
    supervising.index.close()
    assert store.run(run_id).status == "finished"


def test_many_submissions_start_one_supervisor(store, monkeypatch):
    popen, made = subprocess.Popen, []
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(
        runtime_client.subprocess, "Popen", lambda *_, **__: made.append(popen(sleeping)) or made[-1]
    )
    for _ in range(50):
        Client(store).wake()
    locks.withdraw(store.root)
    for process in made:
        process.kill()
        process.wait()
    assert len(made) == 1


def test_a_need_is_seen_until_its_process_ends(store):
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


def test_a_need_is_announced_again_in_a_store_that_was_made_anew(store):
    locks.announce(store.root)
    (store.root / "needed.lock").unlink()
    assert not locks.is_needed(store.root)
    locks.announce(store.root)
    assert locks.is_needed(store.root)
    locks.withdraw(store.root)


def test_a_process_that_only_has_a_runs_pid_and_age_is_not_the_run(store, config):
    """After the machine was started again another process may have both: it does not hold the run's claim."""
    run_id = store.create(config)
    pid, started = own_identity()
    EventLog(store.folder(run_id) / "events.jsonl").append(Starting(at=0.0, pid=pid, pid_started=started))
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    supervising.index.close()
    assert store.run(run_id).status == "interrupted"


# --- clocks that jump ----------------------------------------------------------------------------------------------


@pytest.fixture
def jumping(monkeypatch):
    """A clock of the day that leaps by hours, back and forth, every time it is read."""
    rng, real = random.Random(0), time.time

    def leaps() -> float:
        return real() + rng.uniform(-36_000, 36_000)

    monkeypatch.setattr(time, "time", leaps)
    monkeypatch.setattr(time, "time_ns", lambda: int(leaps() * 1e9))


def test_no_duration_and_no_point_depends_on_the_clock_of_the_day(store, jumping):
    config = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=1"])
    begun = time.monotonic()
    run_id = store.create(config)
    worker.run(store.folder(run_id))
    took = time.monotonic() - begun
    run = store.run(run_id)
    assert run.status == "finished"
    assert_whole(run)
    for table in (run.steps, run.evaluations, run.hardware):
        elapsed = table["elapsed"]
        assert (np.diff(elapsed) >= 0).all()
        assert 0 <= elapsed[0] <= elapsed[-1] < took
    assert 1.0 <= run.summary().train_seconds < took
    assert 0 <= run.started.setup_s < took


def test_runs_keep_their_order_when_the_clock_jumps(store, config, jumping):
    supervising = Supervisor(store, InlineExecutor())
    one_step = [with_overrides(config, [f"seed={seed}", "budget.steps=1"]) for seed in range(8)]
    asked = [store.create(each) for each in one_step]
    began: list[str] = []
    supervising.executor = Recorder(began)
    supervising.recover()
    supervising.tick()
    supervising.index.close()
    assert began == asked[: len(began)]
    assert list(supervising.queue) == asked[len(began) :]


class Recorder:
    """An executor that only says which runs it was given."""

    def __init__(self, given: list[str]) -> None:
        self.given = given

    def start(self, *folders: Path):
        self.given += [folder.name for folder in folders]
        return InlineExecutor().start(*folders)


def test_a_lost_counter_is_made_up_for_by_the_clock(store):
    before = store.next_order()
    (store.root / "order").unlink()
    assert store.next_order() > before
    (store.root / "order").write_text("rubbish")
    assert store.next_order() > before


def test_orders_rise_across_processes(store):
    take = f"from engine.store.store import Store; import pathlib; s = Store(pathlib.Path({str(store.root)!r}))\n"
    take += "print(*[s.next_order() for _ in range(200)])"
    takers = [
        subprocess.Popen([sys.executable, "-c", take], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    taken = [[int(word) for word in process.communicate()[0].split()] for process in takers]
    assert all(numbers == sorted(numbers) for numbers in taken)
    assert len({n for numbers in taken for n in numbers}) == 600
