"""Whether a run had the machine to itself, and that it is said beside every figure of speed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dashboard.api import race as race_api
from dashboard.api import run as run_api
from dashboard.views.compare import as_table
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed, Finished
from engine.events.machine import Busy, HardwareSample
from engine.hardware import probe
from engine.hardware.contention import Contention
from engine.reports.html.page import render
from engine.reports.html.results import QUANTITIES
from engine.reports.report import Report, ReportRun
from engine.runtime import worker
from engine.store import migrations
from engine.store.event_log import EventLog
from engine.store.index import Index
from engine.store.listing import line_of, row_of
from engine.studies import race_results, races
from tests.fakes import make_run

BUSY = Busy(slowdown=2.5, slowdown_method="wall by CPU time", gpu_processes=None)
QUIET = Busy(slowdown=1.02, slowdown_method="wall by CPU time", gpu_processes=0)


def last(busy: Busy | None) -> Finished:
    return Finished(at=time.time(), busy=busy)


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
    assert Contention("cpu", 1).found() == Busy(slowdown_method="it trained for too short a time to measure this")
    silent = Contention("cpu", 2, tasks=tmp_path)
    silent.start()
    assert "does not report" in silent.found().slowdown_method


@pytest.mark.process
def test_a_run_beside_a_busy_neighbour_on_its_core_is_marked(store):
    """The neighbour is a process of its own on the only core the run may use."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to a core")
    cores, mine = os.sched_getaffinity(0), {min(probe.allowed_cores())}
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


def test_what_was_found_is_told_again_only_when_it_changes():
    watched = Contention("cpu", 1)
    assert watched.news().is_busy is None
    watched.trained(1.0, 1.0)
    assert (watched.news().is_busy, watched.news()) == (False, None)
    watched.trained(1.0, 0.1)
    assert watched.news().slowdown == pytest.approx(2 / 1.1)
    watched.trained(0.05, 0.02)
    assert watched.news() is None, "slower by less than a tenth"


def test_any_thread_may_ask_how_long_the_one_that_trains_waited(tmp_path):
    watched = Contention("cuda:0", 1, tasks=tmp_path)
    thread(tmp_path, threading.get_native_id(), 1, 0)
    watched.start()
    found = []
    other = threading.Thread(target=lambda: found.append(watched.found()))
    other.start(), other.join()
    assert found[0].slowdown == pytest.approx(1.0)


# --- beside every figure it touches -----------------------------------------------------------------------------------


def test_a_summary_says_busy_quiet_or_unknown(store):
    found = [make_run(store, num_steps=20, last=last(busy)).summary().busy for busy in (BUSY, QUIET, None)]
    assert found == [True, False, None]


def test_a_run_that_goes_on_says_it_with_its_samples(store):
    run_id = store.create(RunConfig())
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(HardwareSample(elapsed_s=0.1, readings={}, busy=QUIET))
    log.append(HardwareSample(elapsed_s=0.2, readings={}, busy=BUSY))
    log.append(HardwareSample(elapsed_s=0.3, readings={}))
    log._write()
    run = store.run(run_id)
    assert (run.is_over, run.summary().busy) == (False, True)
    assert "2.50 times" in run_api.points(run)["busy"]
    assert "2.50 times" in race_api.points(run)["busy"]


def test_a_run_whose_process_was_lost_keeps_what_it_had_said(store):
    sample = HardwareSample(elapsed_s=0.1, readings={}, busy=BUSY)
    lost = Failed(at=time.time(), cause="WorkerLost", message="gone")
    assert make_run(store, num_steps=20, last=lost, said=[sample]).summary().busy is True
    assert make_run(store, num_steps=20, last=last(QUIET), said=[sample]).summary().busy is False


def test_a_list_of_runs_marks_those_that_were_disturbed(store):
    rows = [row_of(make_run(store, num_steps=20, last=last(busy))) for busy in (BUSY, QUIET, None)]
    index = Index(None)
    for row in rows:
        index.put(row)
    lines, _ = index.lines("", (), "created", descending=False, limit=9, offset=0)
    assert [line.busy for line in lines] == [line_of(row).busy for row in rows] == [True, False, None]


def test_an_index_of_schema_4_learns_which_runs_were_disturbed(store):
    run = make_run(store, num_steps=20, last=last(BUSY))
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite", isolation_level=None)) as db:
        for step in migrations.MIGRATIONS[:4]:
            for statement in step:
                db.execute(statement)
        db.execute("pragma user_version=4")
        row = row_of(run)
        values = {
            "run_id": row.run_id, "name": "", "status": row.status, "created": row.created, "why": "", "searched": "",
            "config": row.config.model_dump_json(), "summary": row.summary.model_dump_json(), "words": "", "seed": 0, "steps": 20,
        }  # fmt: skip
        into = f"insert into runs ({', '.join(values)}) values ({', '.join('?' * len(values))})"
        db.execute(into, tuple(values.values()))
        db.execute(into, tuple((values | {"run_id": "rotten", "summary": "{"}).values()))
    Index(store.root).close()
    with Index.reading(store.root) as index:
        lines, _ = index.lines("", (), "created", descending=True, limit=9, offset=0)
    assert {line.run_id: line.busy for line in lines} == {run.run_id: True, "rotten": None}


def test_a_report_marks_figures_of_speed_and_no_others(store):
    frozen = ReportRun.freeze(make_run(store, num_steps=20, last=last(BUSY)))
    marked = {q.title for q in QUANTITIES if "machine was busy" in q.text(frozen)}
    assert marked == {"Throughput", "Training time", "Time per step", "Arithmetic rate"}
    assert "2.50 times as long" in next(q for q in QUANTITIES if q.title == "Throughput").how(frozen)


def test_the_mark_travels_with_an_exported_report(store):
    report = Report.freeze("a", [make_run(store, num_steps=20, last=last(BUSY))])
    again = Report.from_json(report.to_json())
    assert again.runs[0].summary.busy is True
    assert "machine was busy" in render(again)


def test_a_lane_counts_its_runs_that_were_disturbed(store):
    runs = [make_run(store, seed=seed, num_steps=60, last=last(busy)) for seed, busy in enumerate((BUSY, QUIET))]
    lane = race_results.outcome(races.of_runs(runs)).lanes[0]
    assert (lane.busy, race_results.busy_in_words(lane)) == (1, " (machine was busy in 1 of 2 runs)")
    assert race_results.busy_in_words(race_results.outcome(races.of_runs([runs[1]])).lanes[0]) == ""


def test_the_table_of_a_race_marks_speeds_and_nothing_else(store):
    runs = [make_run(store, seed=seed, num_steps=60, last=last(busy)) for seed, busy in enumerate((BUSY, QUIET))]
    table = as_table(race_results.outcome(races.of_runs(runs)))
    marked = table[table.iloc[:, 1].str.contains("machine was busy")][""].tolist()
    assert marked == ["Steps per second", "Samples per second"]
    runs = [make_run(store, seed=seed, num_steps=600, last=last(busy)) for seed, busy in enumerate((BUSY, QUIET))]
    aimed = as_table(race_results.outcome(races.of_runs(runs), target=0.5))
    marked = aimed[aimed.iloc[:, 1].str.contains("machine was busy")][""].tolist()
    assert marked == ["Seconds to target", "Expected time", "Steps per second", "Samples per second"]
