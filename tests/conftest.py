"""Shared fixtures (one torch thread, a store, a store with a real supervisor, the browser), and the tiers of tests.

`make test-fast` runs what is marked neither `process` nor `slow` nor `browser`; `make test` runs everything. Both run
pytest in several processes (pytest-xdist); each of these has its own session fixtures.
"""

from __future__ import annotations

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # libgomp reads it when torch is imported

import contextlib
import importlib
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.runtime.client import Client
from engine.store.run import Run
from engine.store.store import Store
from engine.system import locks

torch.set_num_threads(1)  # on a busy two-core machine more threads made tiny models 40 times slower

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0  # the machine can be busy


def chromium() -> str | None:
    """The browser of the browser tests, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PROCESS_FIXTURES = {"supervised", "own_supervised", "engine"}  # fixtures of this file that start a process
TIERS = ("fast", "slow", "process", "browser")  # in the order in which they run


@pytest.hookimpl(tryfirst=True)  # before `-m` selects by the marks, and before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark, group and order the tests.

    A group stays together in one process of pytest-xdist (`--dist loadgroup`): the tests of a file that are fast, use
    the browser, or share a fixture of their module, which would otherwise be made once in each process. Slow tests and
    tests with processes of their own are handed out one by one, because they wait for different things at a time.
    """
    skip = pytest.mark.skip(reason="no Chromium here: `make browser` installs it") if chromium() is None else None
    groups: dict[pytest.Item, str] = {}
    sizes: Counter[str] = Counter()
    for item in items:
        if _starts_processes(item):
            item.add_marker(pytest.mark.process)
        if skip and item.get_closest_marker("browser"):
            item.add_marker(skip)
        groups[item] = _group(item)
        sizes[groups[item]] += 5 if item.get_closest_marker("slow") else 1
        if config.pluginmanager.hasplugin("xdist") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(groups[item]))
    first = {group: place for place, group in reversed(list(enumerate(groups.values())))}
    # Tests of the browser come last because its driver leaves an event loop running in this thread. In a tier the
    # group that probably takes longest comes first, so that no process is left alone with it at the end.
    items.sort(key=lambda item: (TIERS.index(_tier(item)), -sizes[groups[item]], first[groups[item]]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Stop if pytest-xdist does not group the tests, as with pytest 9.2: each process would start every server."""
    config = session.config
    if getattr(config.option, "loadgroup", False) and session.items and "@" not in session.items[0].nodeid:
        raise pytest.UsageError("pytest-xdist does not group the tests: install the versions of requirements-dev.txt.")


def _fixtures(item: pytest.Item) -> dict[str, Any]:
    """The fixtures a test uses, its own and theirs, by name: the definition that counts for this test."""
    found = getattr(item, "_fixtureinfo", None)
    return {name: made[-1] for name, made in found.name2fixturedefs.items()} if found else {}


def _starts_processes(item: pytest.Item) -> bool:
    used = _fixtures(item)
    return any(name in used and used[name].func.__module__ == __name__ for name in PROCESS_FIXTURES)


def _tier(item: pytest.Item) -> str:
    return next((tier for tier in reversed(TIERS) if item.get_closest_marker(tier)), "fast")


def _group(item: pytest.Item) -> str:
    tier, file = _tier(item), item.nodeid.split("::")[0]
    if mark := item.get_closest_marker("xdist_group"):
        return f"{mark.kwargs.get('name') or mark.args[0]}"
    shares = any(fixture.scope in {"module", "class"} for fixture in _fixtures(item).values())
    return f"{file}:{tier}" if shares or tier in {"fast", "browser"} else item.nodeid


_popen, _started_python = subprocess.Popen.__init__, []
_PYTHON = sys.executable


def _noted(self: subprocess.Popen, args: Any, *more: Any, **options: Any) -> None:
    if isinstance(args, list | tuple) and args and args[0] == _PYTHON:
        _started_python.append(args)
    _popen(self, args, *more, **options)


subprocess.Popen.__init__ = _noted  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def fast_means_without_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test of the fast tier that starts a Python process fails, so that the tier stays fast."""
    before = len(_started_python)
    yield
    if _tier(request.node) == "fast" and len(_started_python) > before:
        pytest.fail(f"mark this test `process`: it started {list(map(str, _started_python[before]))}", pytrace=False)


@pytest.fixture(autouse=True)
def main_module() -> Iterator[None]:
    """Streamlit's page tests put their page in place of the main module, which a process that is forked would run."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(params=["private", "public"])
def torch_names(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Runs a test twice: with torch's private kernels, and as with a torch that has none of them."""
    from engine.pytorch.training import kernels

    if request.param == "public":
        monkeypatch.setenv(kernels.HIDDEN_BY, "1")
        importlib.reload(kernels)
    yield request.param
    if request.param == "public":
        monkeypatch.undo()
        importlib.reload(kernels)


class Supervised:
    """A store whose supervisor is a real process, with helpers for tests."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.client = Client(self.store)
        self.client.wake()
        self.wait(lambda: (root / "doorbell").exists(), "a supervisor")

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(int((self.store.root / "supervisor.pid").read_text().split()[0]))

    def submit(self, *assignments: str, preset: str = "digits-mlp") -> str:
        return self.client.submit(with_overrides(PRESETS[preset].config, assignments))

    def until(self, run_id: str, *statuses: str) -> Run:
        """Wait until a run has one of these statuses; returns the run."""
        run = self.store.run(run_id)
        self.wait(lambda: run.refresh() is not None and run.status in statuses, f"{run_id} {statuses}")
        return run

    def running(self, *assignments: str) -> Run:
        """A run that has points and would take minutes."""
        run = self.until(self.submit("budget.epochs=none", "budget.seconds=600", *assignments), "running")
        self.wait(lambda: run.refresh() is not None and len(run.steps) > 0, "points")
        return run

    def wait(self, is_so: Callable[[], bool], what: str, *, seconds: float = PATIENCE_S) -> None:
        until = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > until:
                log = self.store.root / "supervisor.log"
                pytest.fail(f"waited {seconds:g} s for {what}\n{log.read_text() if log.exists() else 'no log'}")
            time.sleep(0.02)

    def end(self) -> None:
        """Kill the supervisor, its fork server and the processes of all runs."""
        locks.withdraw(self.store.root)
        left = [psutil.Process(pid) for pid in filter(psutil.pid_exists, self._running_pids())]
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            left += [*self.process.children(recursive=True), self.process]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def _running_pids(self) -> Iterator[int]:
        for run_id in self.store.ids():
            with contextlib.suppress(StoreError):
                run = self.store.run(run_id)
                if run.starting and not run.is_over:
                    yield run.starting.pid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def supervised(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    """One supervised store per process of pytest, because its first start imports torch. Tests must not break it."""
    shared = Supervised(tmp_path_factory.mktemp("supervised"))
    yield shared
    shared.end()


@pytest.fixture
def own_supervised(tmp_path: Path) -> Iterator[Supervised]:
    """A supervised store for a test that breaks it."""
    own = Supervised(tmp_path / "store")
    yield own
    own.end()


@pytest.fixture(scope="session")
def config() -> RunConfig:
    """The smallest real experiment: a second of training."""
    return with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=2"])


@pytest.fixture
def engine() -> Callable[..., subprocess.Popen[str]]:
    """Starts `python -m engine ...` as a process."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "engine", *map(str, arguments)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return start
