"""The data of each rank that the live view gets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dashboard.api import ranks, readers
from dashboard.api import run as run_api
from engine.events.training import Ranks
from engine.store.store import Store
from tests.dashboard.test_run_api import Worker


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    readers._readers.cache_clear()
    return Store(tmp_path.resolve())


@pytest.fixture
def worker(store):
    return Worker(store, "parallel.num_ranks=2").start()


def log_window(
    worker: Worker, first: int, last: int, *, waited=(0.001, 0.004), memory=(100, 200), step_s=0.005
) -> None:
    n = len(waited)
    worker.log.append(
        Ranks(
            elapsed_s=last / 100,
            steps=(first, last),
            device=("cpu",) * n,
            step_s=(step_s,) * n,
            communication_s=waited,
            waited_s=waited,
            cpu_per_wall=(0.9,) * n,
            memory_bytes=memory,
            method="timed",
        )
    )
    worker.log._write()


@pytest.fixture
def poll(store, worker):
    def ask(cursor: str = "") -> dict:
        run = store.run(worker.run_id)
        return json.loads(json.dumps(run_api.points(run, cursor), allow_nan=False))

    return ask


def test_each_rank_has_lines_of_its_own(worker, poll):
    log_window(worker, 1, 100)
    log_window(worker, 101, 200, waited=(0.0, 0.003))
    traces = poll()["traces"]
    assert traces["rank0_step"] == {"x": [1.0, 2.0], "y": [0.005, 0.005]}
    assert traces["rank0_own"]["y"] == pytest.approx([0.004, 0.005])
    assert traces["rank1_waits"]["y"] == pytest.approx([0.8, 0.6])
    assert traces["rank1_memory"]["y"] == [200, 200]
    assert traces["rank1_cpu"]["y"] == [0.9, 0.9]


def test_only_new_windows_come_and_with_them_how_the_ranks_are_now(worker, poll):
    log_window(worker, 1, 100)
    first = poll()
    idle = poll(first["cursor"])
    log_window(worker, 101, 200)
    second = poll(first["cursor"])
    assert "ranks" not in idle
    assert not [name for name in idle["traces"] if name.startswith("rank")]
    assert second["traces"]["rank0_own"]["x"] == [2.0]
    assert second["ranks"]["steps"] == [101, 200]


def test_the_rank_the_others_wait_for_is_told(worker, poll):
    log_window(worker, 1, 100, waited=(0.003, 0.0))
    said = poll()["ranks"]
    assert said["straggler"] == 1
    assert [row["own_s"] for row in said["rows"]] == pytest.approx([0.002, 0.005])
    assert [row["waits"] for row in said["rows"]] == pytest.approx([0.6, 0.0])


def test_what_was_not_measured_is_no_line_and_no_number(worker, poll):
    log_window(worker, 1, 100, waited=(None, None), memory=(None, 200))
    answer = poll()
    lines = {name for name in answer["traces"] if name.startswith("rank")}
    assert lines == {"rank0_step", "rank0_cpu", "rank1_cpu", "rank1_memory"}
    row = answer["ranks"]["rows"][0]
    assert (row["own_s"], row["waits"], row["memory"], answer["ranks"]["straggler"]) == (None, None, None, None)


def test_of_many_ranks_all_stand_in_the_table_and_as_many_as_there_are_colours_in_the_charts(worker, poll):
    log_window(worker, 1, 100, waited=(0.001,) * 64, memory=(1,) * 64)
    answer = poll()
    assert len(answer["ranks"]["rows"]) == 64
    assert len([name for name in answer["traces"] if name.endswith("_own")]) == ranks.MOST_LINES


def test_a_long_run_is_thinned(worker, poll):
    for window in range(1_500):
        log_window(worker, 100 * window + 1, 100 * (window + 1), step_s=0.005 if window != 700 else 0.9)
    line = poll()["traces"]["rank0_step"]
    assert len(line["x"]) <= 1_000
    assert max(line["y"]) == pytest.approx(0.9)


def test_a_run_on_one_rank_says_nothing_of_ranks(store):
    alone = Worker(store).start()
    alone.steps(np.ones(10))
    answer = run_api.points(store.run(alone.run_id))
    assert "ranks" not in answer
    assert not [name for name in answer["traces"] if name.startswith("rank")]
