"""A store and the real processes around it, for tests that start and kill them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime.client import ring_doorbell
from engine.store.run import Run
from engine.store.store import Store
from engine.system import locks
from tests.conftest import PATIENCE_S, ROOT

LONG = ("budget.epochs=none", "budget.seconds=600")
RESTART_S = 40.0  # after a restart every status is true within this; within 10 s on an idle machine


def processes_of(root: Path) -> list[psutil.Process]:
    """All processes whose command line or environment names a store, except our own."""
    ours, found = _ours(), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.pid not in ours:
                names = [*process.cmdline(), *process.environ().values()]
                found += [process] if str(root) in names else []
    return found


def _ours() -> set[int]:
    """This process and its own fork server. multiprocessing could not replace one that a test kills."""
    found = {os.getpid()}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # a zombie has no command line
            found |= {child.pid} if "multiprocessing" in " ".join(child.cmdline()) else set()
    return found


class Scene:
    """A store, and the processes that a test starts and kills. The test itself is no client of the store."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root)

    def start(self, *command: object) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal does."""
        with (self.root / "test.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *map(str, command)],
                cwd=ROOT,
                text=True,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

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
        """Submit a run without following it."""
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


def events(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "events.jsonl").read_bytes().splitlines()]


def starts(run: Run) -> int:
    return sum(event["kind"] == "starting" for event in events(run))


def is_true(run: Run) -> bool:
    """Whether the status of a run is true: queued, running, or over with a reason."""
    run.refresh()
    if run.is_over:
        return run.status == "finished" or bool(run.why())
    return run.status == "queued" or locks.is_claimed(run.folder)


def assert_whole(run: Run) -> None:
    """Assert that the log has all steps once, in order and without gaps."""
    assert run.steps["step"].tolist() == list(range(1, len(run.steps) + 1))
    assert run.problems == []
    if run.last_word:
        assert run.last_word.steps == len(run.steps)


def supervisor_pid(scene: Scene) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((scene.root / "supervisor.pid").read_text().split()[0])
    return None
