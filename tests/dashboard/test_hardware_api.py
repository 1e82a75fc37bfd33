"""The route of the page Hardware: first all readings, then the new ones, and the reason if there are none."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dashboard.api import hardware as hardware_api
from dashboard.server import auth_middleware
from engine.hardware import history
from engine.hardware.monitor import METRICS, metric_of
from engine.hardware.readings_log import CURRENT, Writer
from engine.store.store import Store
from engine.system import disk_space, locks

COLUMNS = ("cpu.busy_percent", "core0.busy_percent", "core1.busy_percent", "gpu0.power_w", "gpu0.temperature_c")


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    return Store(tmp_path.resolve())


@pytest.fixture
def writer(store):
    return make(store)


def make(store, columns=COLUMNS):
    return Writer(store.root, columns, ["NVIDIA H200"])


@pytest.fixture
def ask(store):
    client = TestClient(Starlette(routes=hardware_api.ROUTES))

    def get(after=""):
        answer = client.get("/api/hardware", params={"after": after} if after else {})
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        get.bytes = len(answer.content)
        return answer.json()

    return get


def fill(writer, number, *, every_s=0.25, until=None, power=lambda n: 200.0):
    until = until or time.time()
    for n in range(number):
        writer.append(until - every_s * (number - 1 - n), [n % 100, 1.0, 2.0, power(n), None])


def test_a_browser_gets_the_history_at_once_and_then_the_new_rows_with_one_time_for_all(writer, ask):
    fill(writer, 10)
    first = ask()
    fill(writer, 2, until=time.time() + 0.5)
    second = ask(first["cursor"])
    assert (first["reset"], second["reset"]) == (True, False)
    assert first["traces"]["cpu.busy_percent"]["y"] == list(range(10))
    assert second["rows"]["y"]["cpu.busy_percent"] == [0, 1]
    assert len(second["rows"]["x"]) == 2
    assert "about" not in second
    assert second["latest"]["cores"] == [1, 2]


def test_what_the_columns_are_comes_with_unit_and_method(writer, ask):
    fill(writer, 1)
    about = ask()["about"]
    assert (about["gpus"], about["cores"]) == (["NVIDIA H200"], 2)
    assert set(about["metrics"]) == {metric_of(column) for column in COLUMNS}
    assert about["metrics"]["gpu.power_w"]["how"] == METRICS["gpu.power_w"].how


def test_an_answer_with_nothing_new_is_small(writer, ask):
    fill(writer, 1_000)
    cursor = ask()["cursor"]
    assert ask(cursor).keys() == {"now", "interval_s", "cursor", "reset"}
    assert ask.bytes < 200


def test_a_column_that_was_never_read_is_no_trace(writer, ask):
    fill(writer, 3)
    assert "gpu0.temperature_c" not in ask()["traces"]


def test_a_quarter_of_an_hour_is_thinned_and_a_spike_stays(writer, ask):
    fill(writer, 3_600, power=lambda n: 900.0 if n == 1_234 else 200.0)
    traces = ask()["traces"]
    assert all(len(trace["x"]) <= 1_500 for trace in traces.values())
    assert max(traces["gpu0.power_w"]["y"]) == 900
    assert traces["cpu.busy_percent"]["x"] == sorted(traces["cpu.busy_percent"]["x"])


def test_many_columns_share_what_a_browser_can_take(store, ask):
    many = [f"gpu{n}.power_w" for n in range(200)]
    writer = make(store, many)
    for n in range(2_000):
        writer.append(time.time() - 500 + n / 4, [float(n)] * 200)
    assert all(200 < len(trace["x"]) <= 300 for trace in ask()["traces"].values())


def test_of_a_hundred_cores_the_mean_is_a_line_and_each_has_its_newest_value(store, ask):
    writer = make(store, ["cpu.busy_percent", *(f"core{n}.busy_percent" for n in range(100))])
    writer.append(time.time(), [50.0, *map(float, range(100))])
    answer = ask()
    assert list(answer["traces"]) == ["cpu.busy_percent"]
    assert answer["about"]["cores"] == 100
    assert answer["latest"]["cores"] == list(range(100))


def test_a_browser_that_slept_gets_the_whole_thinned(writer, ask):
    fill(writer, 10, until=time.time() - 200)
    cursor = ask()["cursor"]
    fill(writer, 500)
    answer = ask(cursor)
    assert (answer["reset"], len(answer["traces"]["cpu.busy_percent"]["x"])) == (
        True,
        511,
    )  # one of them breaks the line


@pytest.mark.parametrize("cursor", ["x", "0-0-0", "a" * 16 + "-5-5", "1" * 90, "é", "../../etc", "-1--1--1"])
def test_an_unknown_cursor_gets_everything_again(writer, ask, cursor):
    fill(writer, 3)
    assert ask(cursor)["reset"]


def test_a_new_file_gets_everything_again(store, writer, ask):
    fill(writer, 3)
    cursor = ask()["cursor"]
    (store.root / CURRENT).unlink()
    fill(make(store, ["cpu.busy_percent", "core0.busy_percent", "core1.busy_percent", "x", "y"]), 2)
    assert ask(cursor)["reset"]


def test_old_rows_and_those_of_a_clock_that_was_set_back_are_left_out(writer, ask):
    fill(writer, 3, until=time.time() - 2_000)
    fill(writer, 3, until=time.time() + 500)
    fill(writer, 4)
    assert len(ask()["traces"]["cpu.busy_percent"]["x"]) == 4


def test_no_line_leads_across_a_time_without_readings(writer, ask):
    fill(writer, 8, every_s=10, until=time.time() - 40)  # a long interval is no gap, and neither is its end
    fill(writer, 8, until=time.time() - 30)
    fill(writer, 8)
    trace = ask()["traces"]["cpu.busy_percent"]
    assert trace["y"] == [*range(8), *range(8), None, *range(8)]
    assert trace["x"] == sorted(trace["x"])


def test_reasons_runs_and_processes_come_when_they_change(writer, ask):
    fill(writer, 3)
    writer.note(
        {"missing": {"No.": ["gpu0.temperature_c", "cpu.power_w"]}, "processes": [], "spans": [{"run_id": "a"}]}
    )
    first = ask()
    assert first["missing"] == {"gpu0.temperature_c": "No.", "cpu.power_w": "No."}
    assert first["runs"] == [{"run_id": "a"}]
    assert "missing" not in ask(first["cursor"])
    writer.note({"missing": {}})
    assert ask(first["cursor"])["missing"] == {}


def test_without_readings_the_answer_has_the_reason(store, ask):
    assert "No supervisor is running" in ask()["why"]
    with (store.root / "supervisor.lock").open("w") as held:
        assert locks.lock(held.fileno())
        assert ask()["why"] == ""


def test_when_readings_stop_the_reason_is_in_every_answer(writer, ask):
    fill(writer, 3, until=time.time() - 60)
    answer = ask()
    assert "No supervisor is running" in answer["why"]
    assert "No supervisor is running" in ask(answer["cursor"])["why"]
    fill(writer, 1)
    assert "why" not in ask(answer["cursor"])


def test_a_full_disk_is_named(store, ask, monkeypatch):
    monkeypatch.setattr(disk_space, "is_short", lambda _: True)
    assert "disk is nearly full" in ask()["why"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 9_000])
def test_a_damaged_file_is_no_error(store, ask, content):
    (store.root / CURRENT).write_bytes(content)
    assert ask()["traces"] == {}


def test_nan_and_infinity_cannot_break_the_answer(writer, ask):
    writer.append(time.time(), [np.inf, np.nan, -np.inf, 1.0, None])
    answer = ask()
    assert json.dumps(answer, allow_nan=False)
    assert list(answer["traces"]) == ["gpu0.power_w"]


def test_viewers_may_read_and_nobody_may_post(store):
    assert auth_middleware.decide("/api/hardware", "GET") == "viewer"
    assert auth_middleware.decide("/api/hardware", "POST") == "nobody"


def test_a_poll_counts_as_a_look_and_says_why_gpus_were_not_read(writer, ask, store):
    fill(writer, 4)
    writer.note({"missing": {}, "rests": [[1.0, None]]})
    answer = ask()
    assert (store.root / history.LOOKED).exists()
    assert (answer["rests"], answer["about"]["resting"]) == ([[1.0, None]], history.RESTING)
