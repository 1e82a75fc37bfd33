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


def supervisor_pid(scene: Scene) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int((scene.root / "supervisor.pid").read_text().split()[0])
    return None
