"""Whether a run had the machine to itself, and that it is said beside every figure of speed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dashboard.compare import as_table
from engine import hardware, outcome, races, records, worker
from engine.capsule import QUANTITIES
from engine.config import with_overrides
from engine.contention import Contention
from engine.presets import PRESETS
from engine.records import Busy
from engine.report import Report, ReportRun
from tests.fakes import make_run

BUSY = Busy(slowdown=2.5, slowdown_method="wall by CPU time", gpu_processes=None)
QUIET = Busy(slowdown=1.02, slowdown_method="wall by CPU time", gpu_processes=0)


def last(busy: Busy | None) -> records.Finished:
    return records.Finished(at=time.time(), busy=busy)


def thread(tasks: Path, number: int, ran_s: float, waited_s: float) -> None:
    (tasks / str(number)).mkdir(exist_ok=True)
    (tasks / str(number) / "schedstat").write_text(f"{int(ran_s * 1e9)} {int(waited_s * 1e9)} 12\n")


@pytest.mark.parametrize(
    ("busy", "expected"),
    [
        (Busy(), None),
        (Busy(slowdown=1.2), False),
        (Busy(slowdown=1.21), True),
        (Busy(gpu_processes=0), False),
        (Busy(slowdown=1.0, gpu_processes=1), True),
    ],
)
def test_what_counts_as_busy(busy, expected):
    assert busy.is_busy is expected
    assert bool(busy.in_words) is bool(expected)


def test_one_thread_is_slowed_by_wall_over_cpu_time_of_training_alone():
    watched = Contention("cpu", 1)
    watched.start()
    watched.trained(0.6, 0.4)
    watched.trained(0.4, 0.1)
    assert watched.found().slowdown == pytest.approx(2.0)


def test_several_threads_are_slowed_by_their_waiting_for_a_core(tmp_path):
    thread(tmp_path, 1, 10, 1), thread(tmp_path, 2, 4, 0)
    watched = Contention("cpu", 2, tasks=tmp_path)
    watched.start()
    thread(tmp_path, 1, 12, 2), thread(tmp_path, 2, 6, 1)
    assert watched.found().slowdown == pytest.approx((4 + 2) / 4)


def test_a_gpu_run_is_slowed_where_its_feeding_thread_waits_for_a_core(tmp_path):
    now = [0.0]
    watched = Contention("cuda:0", 1, tasks=tmp_path, clock=lambda: now[0])
    thread(tmp_path, threading.get_native_id(), 1, 0)
    watched.start()
    now[0] = 10.0
    thread(tmp_path, threading.get_native_id(), 3, 5)
    assert watched.found().slowdown == pytest.approx(2.0)


def test_the_most_neighbours_on_the_gpu_are_kept_and_unknown_is_not_none_at_all():
    watched = Contention("cuda:0", 1)
    for others in (None, 0.0, 2.0, 1.0, None):
        watched.saw_gpu_processes(others)
    assert watched.found().gpu_processes == 2
    assert Contention("cuda:0", 1).found().gpu_processes is None


def test_too_short_a_training_and_a_silent_kernel_are_unknown_with_the_reason(tmp_path):
    assert Contention("cpu", 1).found() == Busy(slowdown_method="it trained too short a time to tell")
    silent = Contention("cpu", 2, tasks=tmp_path)
    silent.start()
    assert "does not say" in silent.found().slowdown_method


def test_a_run_beside_a_busy_neighbour_on_its_core_is_marked(store):
    """The neighbour is a process of its own on the only core the run may use."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to a core")
    cores, mine = os.sched_getaffinity(0), {min(hardware.allowed_cores())}
    busy = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {mine})\nwhile True: pass"])
    try:
        os.sched_setaffinity(0, mine)
        config = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=0.5"])
        run_id = store.create(config)
        worker.run(store.folder(run_id))
    finally:
        os.sched_setaffinity(0, cores)
        busy.kill(), busy.wait()
    summary = store.run(run_id).summary()
    assert (summary.busy, "times as long as undisturbed" in summary.busy_why) == (True, True)


# --- beside every figure it touches -----------------------------------------------------------------------------------


def test_a_summary_says_busy_quiet_or_unknown(store):
    found = [make_run(store, num_steps=20, last=last(busy)).summary().busy for busy in (BUSY, QUIET, None)]
    assert found == [True, False, None]


def test_a_report_marks_figures_of_speed_and_no_others(store):
    frozen = ReportRun.freeze(make_run(store, num_steps=20, last=last(BUSY)))
    marked = {q.title for q in QUANTITIES if "machine was busy" in q.text(frozen)}
    assert marked == {"Throughput", "Training time", "Time per step", "Arithmetic rate"}
    assert "2.50 times as long" in next(q for q in QUANTITIES if q.title == "Throughput").how(frozen)


def test_the_mark_travels_with_an_exported_report(store):
    report = Report.freeze("a", [make_run(store, num_steps=20, last=last(BUSY))])
    again = Report.from_json(report.to_json())
    assert again.runs[0].summary.busy is True
    assert "machine was busy" in again.to_html()


def test_a_lane_counts_its_runs_that_were_disturbed(store):
    runs = [make_run(store, seed=seed, num_steps=60, last=last(busy)) for seed, busy in enumerate((BUSY, QUIET))]
    lane = outcome.outcome(races.of_runs(runs)).lanes[0]
    assert (lane.busy, outcome.busy_in_words(lane)) == (1, " (machine was busy in 1 of 2 runs)")
    assert outcome.busy_in_words(outcome.outcome(races.of_runs([runs[1]])).lanes[0]) == ""


def test_the_table_of_a_race_marks_speeds_and_nothing_else(store):
    runs = [make_run(store, seed=seed, num_steps=60, last=last(busy)) for seed, busy in enumerate((BUSY, QUIET))]
    table = as_table(outcome.outcome(races.of_runs(runs)))
    marked = table[table.iloc[:, 1].str.contains("machine was busy")][""].tolist()
    assert marked == ["Steps per second", "Samples per second"]
