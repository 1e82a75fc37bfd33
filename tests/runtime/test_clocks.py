"""A system clock that jumps, and the order of submissions."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime import worker
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from tests.conftest import ROOT
from tests.runtime.scene import assert_whole

pytestmark = pytest.mark.process


@pytest.fixture
def jumping(monkeypatch):
    """A system clock that jumps by hours in both directions at each reading."""
    rng, real = random.Random(0), time.time

    def leaps() -> float:
        return real() + rng.uniform(-36_000, 36_000)

    monkeypatch.setattr(time, "time", leaps)
    monkeypatch.setattr(time, "time_ns", lambda: int(leaps() * 1e9))


def test_no_duration_depends_on_the_system_clock(store, jumping):
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
    """An executor that records which runs it starts."""

    def __init__(self, given: list[str]) -> None:
        self.given = given

    def start(self, *folders: Path):
        self.given += [folder.name for folder in folders]
        return InlineExecutor().start(*folders)


def test_a_lost_order_file_is_replaced_by_the_clock(store):
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
