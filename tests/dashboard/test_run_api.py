"""The routes of the live charts."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dashboard.api import readers as api_readers
from dashboard.api import run as run_api
from dashboard.server import assets
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed, Finished, Preparing, Started
from engine.events.machine import HardwareSample
from engine.events.training import Compiled, Evaluation, Steps, TargetReached
from engine.reports.sharing import import_files
from engine.store.event_log import EventLog
from engine.store.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    api_readers._readers.cache_clear()
    return Store(tmp_path.resolve())


@pytest.fixture
def client():
    return TestClient(Starlette(routes=run_api.ROUTES))


class Worker:
    """Writes a run's log as a worker does, a second at a time."""

    def __init__(self, store: Store, *assignments: str) -> None:
        self.run_id = store.create(with_overrides(RunConfig(), assignments))
        self.log = EventLog(store.folder(self.run_id) / "events.jsonl")
        self.step, self.elapsed = 0, 0.0

    def start(self) -> Worker:
        self.log.append(
            Started(
                at=1e9,
                parameters=1,
                train_flops_per_example=1,
                train_examples=1_000,
                test_examples=1,
                total_steps=10_000,
                setup_s=0.0,
            )
        )
        return self

    def steps(self, loss, *, lr: float | np.ndarray = 0.1, norms: dict[int, float] | None = None) -> None:
        """`norms`: gradient norm by step."""
        clock = (self.elapsed, self.elapsed + 1)
        self.log.append(
            Steps(
                first=self.step + 1,
                loss=loss,
                samples=np.full(len(loss), 10),
                lr=lr,
                train_s=clock,
                elapsed_s=clock,
                norm_steps=list(norms or {}),
                grad_norm=list((norms or {}).values()),
            )
        )
        self.step, self.elapsed = self.step + len(loss), self.elapsed + 1
        self.log._write()

    def evaluation(self, loss: float = 0.5) -> None:
        self.log.append(
            Evaluation(
                step=self.step,
                train_s=self.elapsed,
                elapsed_s=self.elapsed,
                test_loss=loss,
                test_accuracy=0.9,
                seconds=0.01,
            )
        )

    def hardware(self, missing: dict[str, str] | None = None, **readings: float) -> None:
        self.log.append(HardwareSample(elapsed_s=self.elapsed, readings=readings, missing=missing or {}))
        self.log._write()

    def end(self) -> None:
        self.log.close(Finished(at=1e9 + self.elapsed))


@pytest.fixture
def worker(store):
    return Worker(store).start()


@pytest.fixture
def poll(client, worker, monkeypatch):
    monkeypatch.setattr(api_readers, "_REFRESH_S", 0.0)

    def get(after: str = "", *, of: Worker = worker):
        response = client.get(f"/api/runs/{of.run_id}/points", params={"after": after})
        assert response.status_code == 200
        return response.json()

    return get


def test_a_first_poll_brings_everything_and_the_next_only_what_is_new(worker, poll):
    worker.steps([3.0, 2.0])
    worker.evaluation()
    first = poll()
    worker.steps([1.0])
    second = poll(first["cursor"])
    assert first["reset"]
    assert first["traces"]["loss"] == {"x": [0.5, 1.0], "y": [3.0, 2.0], "step": [1, 2]}
    assert first["traces"]["accuracy"]["y"] == [0.9]
    assert not second["reset"]
    assert second["traces"]["loss"] == {"x": [2.0], "y": [1.0], "step": [3]}
    assert "accuracy" not in second["traces"]


def test_a_poll_with_nothing_new_is_small(worker, client, poll):
    worker.steps(np.ones(500))
    worker.hardware(missing={"gpu_utilization_percent": "no driver"}, process_memory_bytes=5e8)
    cursor = poll()["cursor"]
    answer = client.get(f"/api/runs/{worker.run_id}/points", params={"after": cursor})
    assert len(answer.content) < 1_000
    assert answer.json()["traces"] == {}


def test_a_poll_with_nothing_new_is_small_also_after_every_kind_of_event(store, client, poll):
    worker = Worker(store, "schedule=cosine", "target.value=0.9", "max_grad_norm=1").start()
    worker.log.append(Compiled(seconds=12.4))
    worker.steps(np.ones(50), lr=np.linspace(1, 0, 50), norms=dict.fromkeys(range(1, 51), 1.0))
    worker.evaluation()
    worker.log.append(TargetReached(metric="test_accuracy", value=0.9, step=50, train_s=1, elapsed_s=1))
    worker.end()
    cursor = poll(of=worker)["cursor"]
    assert len(client.get(f"/api/runs/{worker.run_id}/points", params={"after": cursor}).content) < 1_000


def test_gradient_norms_come_once_and_stand_where_they_were_measured(worker, poll):
    worker.steps([3.0, 2.0], norms={2: 0.5})
    first = poll()
    worker.steps([1.0, 1.0], norms={3: 0.25})
    second = poll(first["cursor"])
    assert first["traces"]["grad_norm"] == {"x": [1.0], "y": [0.5], "step": [2]}
    assert second["traces"]["grad_norm"] == {"x": [1.5], "y": [0.25], "step": [3]}
    assert "grad_norm" not in poll(second["cursor"])["traces"]


def test_an_infinite_gradient_norm_is_a_gap_with_a_mark(worker, poll):
    worker.steps(np.ones(3), norms={1: 1.0, 3: math.inf})
    trace = poll()["traces"]["grad_norm"]
    assert (trace["y"], trace["marks"]) == ([1.0, None], [[1.0, 3, "+inf"]])


def test_many_gradient_norms_are_thinned_with_their_extremes_and_true_means(worker, poll):
    norms = dict.fromkeys(range(1, 30_001), 1.0) | {12_345: 50.0}
    worker.steps(np.ones(30_000), norms=norms)
    traces = poll()["traces"]
    assert len(traces["grad_norm"]["y"]) <= run_api.FULL_POINTS
    assert 50.0 in traces["grad_norm"]["y"]
    assert np.average(traces["grad_norm_mean"]["y"], weights=traces["grad_norm_mean"]["n"]) == pytest.approx(
        1 + 49 / 3e4
    )


def test_a_constant_learning_rate_costs_nothing_and_a_schedule_is_a_line(store, worker, poll):
    worker.steps(np.ones(4))
    scheduled = Worker(store, "schedule=step").start()
    scheduled.steps(np.ones(4), lr=np.array([1.0, 1.0, 0.1, 0.1]))
    assert "lr" not in poll()["traces"]
    assert poll(of=scheduled)["traces"]["lr"]["y"] == [1.0, 1.0, 0.1, 0.1]


def test_the_peak_of_a_long_schedule_is_not_thinned_away(store, poll):
    worker = Worker(store, "schedule=one-cycle").start()
    worker.steps(np.ones(20_000), lr=1 - np.abs(np.linspace(-1, 2, 20_000)) / 2)
    lr = poll(of=worker)["traces"]["lr"]["y"]
    assert len(lr) <= 500
    assert max(lr) == pytest.approx(1, abs=1e-4)


def test_the_facts_about_the_configuration_are_sent_once(store, poll):
    worker = Worker(store, "model.family=rnn", "data=text", "schedule=cosine", "target.value=0.5").start()
    first = poll(of=worker)
    target = {"metric": "test_accuracy", "value": 0.5}
    assert first["about"] == {"text": True, "gpu": False, "lr_moves": True, "target": target}
    assert "about" not in poll(first["cursor"], of=worker)


def test_a_run_that_prepares_says_how_far_it_is_until_it_starts(store, poll):
    worker = Worker(store)
    worker.log.append(Preparing(text="Downloading mnist", done_bytes=5, total_bytes=None))
    assert poll(of=worker)["preparing"] == {"text": "Downloading mnist", "done": 5, "total": None}
    worker.start()
    assert "preparing" not in poll(of=worker)


def test_a_run_that_compiles_says_so_and_then_how_long_it_took(store, poll):
    worker = Worker(store, "execution=compiled").start()
    assert poll(of=worker)["preparing"]["text"] == "Compiling"
    worker.log.append(Compiled(seconds=12.4))
    answer = poll(of=worker)
    assert "preparing" not in answer
    assert answer["compiled_s"] == 12.4


def test_a_target_that_was_reached_is_in_the_answer(store, poll):
    worker = Worker(store, "target.value=0.9").start()
    assert "reached" not in poll(of=worker)
    worker.log.append(TargetReached(metric="test_accuracy", value=0.91, step=34, train_s=1.2, elapsed_s=1.5))
    assert poll(of=worker)["reached"] == {"value": 0.91, "step": 34, "train_s": 1.2, "elapsed_s": 1.5, "between": None}


def test_loss_and_hardware_share_one_time_axis(worker, poll):
    worker.steps([1.0, 1.0])
    worker.hardware(process_memory_bytes=5e8, process_cpu_percent=99.0)
    traces = poll()["traces"]
    assert traces["loss"]["x"][-1] == traces["process_memory"]["x"][-1] == traces["process_cpu"]["x"][-1]


def test_a_long_run_is_thinned_and_keeps_its_spikes(worker, poll):
    loss = np.ones(40_000)
    loss[12_345], loss[23_456] = 9.0, 0.125
    worker.steps(loss)
    trace = poll()["traces"]["loss"]
    assert len(trace["y"]) <= run_api.FULL_POINTS
    at = dict(zip(trace["step"], trace["y"], strict=True))
    assert (at[12_346], at[23_457]) == (9.0, 0.125)


def test_an_update_of_a_fast_run_is_bounded_and_keeps_its_spikes(worker, poll):
    worker.steps(np.ones(20_000))
    cursor = poll()["cursor"]
    loss = np.ones(1_000)
    loss[321] = 7.0
    worker.steps(loss)
    trace = poll(cursor)["traces"]["loss"]
    assert len(trace["y"]) <= run_api.FULL_POINTS * 1_000 / 21_000
    assert 7.0 in trace["y"]


def test_an_update_that_brings_most_of_a_run_is_as_fine_as_the_whole_run(worker, poll):
    worker.steps(np.ones(50))
    cursor = poll()["cursor"]
    worker.steps(np.ones(1_200))
    assert len(poll(cursor)["traces"]["loss"]["y"]) == 1_200


def test_the_smooth_line_goes_through_means_of_all_steps_not_of_the_extremes(worker, poll):
    loss = np.where(np.arange(30_000) % 100 == 0, 10.0, 1.0)  # the extremes' middle is 5.5, the mean 1.09
    worker.steps(loss)
    means = poll()["traces"]["loss_mean"]
    assert sum(means["n"]) == 30_000
    assert np.average(means["y"], weights=means["n"]) == pytest.approx(1.09, abs=1e-3)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "+inf"), (-math.inf, "-inf")])
def test_a_loss_of_nan_or_infinity_is_a_gap_with_a_mark(worker, poll, value, word):
    worker.steps([1.0, value])
    trace = poll()["traces"]["loss"]
    assert trace["y"] == [1.0, None]
    assert trace["marks"] == [[1.0, 2, word]]


def test_a_mark_is_made_where_the_numbers_stop_and_not_again_in_the_next_update(worker, poll):
    worker.steps([1.0, math.nan])
    cursor = poll()["cursor"]
    worker.steps([math.nan, math.nan])
    assert "marks" not in poll(cursor)["traces"]["loss"]


def test_one_nan_among_many_steps_is_not_thinned_away(worker, poll):
    loss = np.ones(50_000)
    loss[33_333] = math.nan
    worker.steps(loss)
    assert [mark[1:] for mark in poll()["traces"]["loss"]["marks"]] == [[33_334, "NaN"]]


def test_a_diverged_run_has_an_answer_in_plain_json(worker, poll):
    worker.steps([1.0, math.nan])
    worker.log.close(Failed(at=1e9, cause="Diverged", message="The loss became NaN.", fix="Lower lr."))
    answer = poll()
    assert (answer["status"], answer["over"], answer["why"]) == ("failed", True, "The loss became NaN. Lower lr.")
    json.dumps(answer, allow_nan=False)


def test_the_state_says_how_far_and_how_long(worker, store):
    worker.steps(np.ones(2_500))
    run = store.run(worker.run_id)
    answer = run_api.points(run, now=1e9 + 4)
    assert (answer["progress"], answer["elapsed_s"], answer["left_s"]) == (0.25, 4.0, 12.0)
    assert (answer["steps"], answer["epochs"], answer["age_s"]) == (2_500, 25.0, 3.0)


def test_the_last_answer_carries_the_summary_and_the_last_points(worker, poll):
    worker.steps([1.0])
    cursor = poll()["cursor"]
    worker.steps([0.5])
    worker.end()
    answer = poll(cursor)
    assert answer["over"]
    assert answer["traces"]["loss"]["y"] == [0.5]
    assert answer["summary"]["steps"] == 2


def test_a_reading_that_is_missing_has_its_reason_and_no_trace(worker, poll):
    worker.hardware(missing={"gpu_utilization_percent": "no NVIDIA driver"}, process_memory_bytes=5e8)
    answer = poll()
    assert answer["missing"] == {"gpu_utilization_percent": "no NVIDIA driver"}
    assert "gpu_utilization" not in answer["traces"]


@pytest.mark.parametrize(
    "cursor", ["nonsense", "1-2", "1-0-0-0-0-0-0", "9-9-9-9-9-9-9-9", "-1-0-0-0-0-0-0-0", "1" * 500]
)
def test_an_invalid_cursor_gets_everything_again(worker, poll, cursor):
    worker.steps([1.0])
    answer = poll(cursor)
    assert answer["reset"]
    assert answer["traces"]["loss"]["y"] == [1.0]


@pytest.mark.parametrize("run_id", ["0123456789abcdef", "x", "..", "..%2f..", "%2e%2e%2fconfig.json"])
def test_a_run_that_is_not_there_is_404_in_a_sentence(store, client, run_id):
    response = client.get(f"/api/runs/{run_id}/points")
    assert response.status_code == 404
    assert run_id.startswith(("..", "%")) or response.json()["error"].startswith("There is no run")


def test_a_deleted_run_is_gone_from_the_next_poll_on(worker, store, client, poll):
    poll()
    store.delete(worker.run_id)
    assert client.get(f"/api/runs/{worker.run_id}/points").status_code == 404
    assert len(api_readers._readers(store.root)) == 0


def test_all_browsers_share_a_reader_and_idle_ones_are_dropped(store):
    now = [0.0]
    readers = api_readers.Readers(store, clock=lambda: now[0])
    first, second = Worker(store).start().run_id, Worker(store).start().run_id
    assert readers.run(first) is readers.run(first)
    now[0] = 1_000.0
    readers.run(second)
    assert len(readers) == 1


def test_a_reader_looks_at_the_log_at_most_every_tenth_of_a_second(store, worker):
    now = [0.0]
    readers = api_readers.Readers(store, clock=lambda: now[0])
    readers.run(worker.run_id)
    worker.steps([1.0])
    assert len(readers.run(worker.run_id).steps) == 0
    now[0] = 0.11
    assert len(readers.run(worker.run_id).steps) == 1


@pytest.mark.parametrize(
    "name", ["card.js", "inference_picker.js", "lanes.js", "live.css", "inter.woff2", "icon.svg", "plotly.min.js"]
)
def test_our_own_files_are_served(client, name):
    response = client.get(f"/assets/{name}", params={"v": "1"})
    assert response.status_code == 200
    assert "immutable" in response.headers["cache-control"]


def test_every_script_that_another_one_loads_is_served(client):
    scripts = "\n".join(
        path.read_text(encoding="utf-8") for path in Path(assets.__file__).parents[1].glob("assets/*.js")
    )
    loaded = set(re.findall(r'load\("(\w+\.js)"\)', scripts))
    assert len(loaded) > 5
    assert [name for name in sorted(loaded) if client.get(f"/assets/{name}").status_code != 200] == []


@pytest.mark.parametrize(
    "name",
    ["../api.py", "..%2fapi.py", "%2e%2e/app.py", "live.js/../page.css", "page.css", "", "/etc/passwd", "live.js%00"],
)
def test_no_other_file_is_served(client, name):
    assert client.get(f"/assets/{name}").status_code == 404


def test_plotly_is_the_python_packages_own_and_compressed_where_that_is_understood(client):
    plain = client.get("/assets/plotly.min.js", headers={"Accept-Encoding": "identity"})
    packed = client.get("/assets/plotly.min.js", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert plain.content == packed.content
    assert b"plotly.js" in plain.content[:400]


def test_alerts_come_with_every_answer_as_one_line_each(store):
    worker = Worker(store).start()
    worker.steps([0.5] * 20)
    run = store.run(worker.run_id)
    assert "alerts" not in run_api.points(run, now=1e9 + 4)
    (alert,) = run_api.points(run, now=1e9 + 60)["alerts"]
    assert alert.startswith("No step for 59.0 s; the longest gap before was")


@pytest.mark.process
def test_an_imported_curve_without_times_is_drawn_over_its_steps(store, tmp_path):
    (tmp_path / "theirs.csv").write_text("step,loss,test_accuracy\n10,2.0,0.5\n20,1.0,0.8\n")
    answer = run_api.points(store.run(import_files(store, [tmp_path / "theirs.csv"]).run_ids[0]))
    json.dumps(answer, allow_nan=False)
    assert answer["about"]["over_steps"] is True
    assert answer["traces"]["loss"]["x"] == answer["traces"]["accuracy"]["x"] == [10, 20]
