"""The route of a comparison: many runs in one answer, each point with all that can stand on the x axis."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from dashboard.api import race as race_api
from dashboard.api import readers as api_readers
from dashboard.server import auth_middleware
from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed
from engine.reports.sharing import import_files
from engine.store.store import Store
from tests.dashboard.test_run_api import Worker
from tests.fakes import make_run


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path))
    monkeypatch.setattr(api_readers, "_REFRESH_S", 0.0)
    api_readers._readers.cache_clear()
    return Store(tmp_path.resolve())


@pytest.fixture
def client():
    return TestClient(Starlette(routes=race_api.ROUTES))


@pytest.fixture
def ask(store, client):
    """What the route says of some runs; a cursor for each of them."""

    def get(*run_ids: str, after: str = "", of: int = 0) -> dict:
        params = {"runs": ",".join(run_ids), "after": after} | ({"of": of} if of else {})
        response = client.get("/api/compare", params=params)
        assert response.status_code == 200
        return response.json()["runs"]

    return get


@pytest.fixture
def worker(store):
    return Worker(store).start()


def test_several_runs_come_in_one_answer_and_then_only_what_is_new(store, ask, worker):
    other = Worker(store).start()
    worker.steps([3.0, 2.0])
    other.steps([5.0])
    first = ask(worker.run_id, other.run_id)
    worker.steps([1.0])
    second = ask(worker.run_id, other.run_id, after=";".join(run["cursor"] for run in first.values()))
    assert [run["traces"]["loss"]["y"] for run in first.values()] == [[3.0, 2.0], [5.0]]
    assert [run["reset"] for run in first.values()] == [True, True]
    assert second[worker.run_id]["traces"]["loss"]["y"] == [1.0]
    assert second[other.run_id]["traces"] == {}
    assert [run["reset"] for run in second.values()] == [False, False]


def test_every_point_knows_its_step_its_samples_and_its_seconds_of_training(ask, worker):
    worker.evaluation()  # before the first step
    worker.steps([3.0, 2.0], norms={2: 0.5})
    worker.evaluation()
    traces = ask(worker.run_id)[worker.run_id]["traces"]
    assert traces["loss"] == {"step": [1, 2], "samples": [10, 20], "train_s": [0.5, 1.0], "y": [3.0, 2.0]}
    assert traces["grad_norm"] == {"step": [2], "samples": [20], "train_s": [1.0], "y": [0.5]}
    assert traces["accuracy"] == {"step": [0, 2], "samples": [0, 20], "train_s": [0.0, 1.0], "y": [0.9, 0.9]}
    assert traces["test_loss"]["y"] == [0.5, 0.5]


@pytest.mark.process
@pytest.mark.parametrize("header, axes", [("step", {"step"}), ("step,seconds", {"step", "train_s"})])
def test_an_imported_curve_has_only_the_axes_of_its_file(store, ask, tmp_path, header, axes):
    (tmp_path / "theirs.csv").write_text(
        f"{header},loss\n" + "".join(f"{s}{f',{s}' * header.count(',')},{1 / s}\n" for s in (1, 2))
    )
    (run_id,) = import_files(store, [tmp_path / "theirs.csv"]).run_ids
    trace = ask(run_id)[run_id]["traces"]["loss"]
    assert set(trace) == axes | {"y"}
    assert trace["y"] == [1.0, 0.5]


@pytest.mark.parametrize("broken", [ValueError("odd"), StoreError("The log cannot be read.")])
def test_a_run_that_cannot_be_drawn_says_why_and_the_others_are_drawn(store, ask, monkeypatch, broken):
    bad, good = make_run(store, num_steps=20), make_run(store, num_steps=20)
    points = race_api.points

    def points_of_all_but_one(run, *args, **more):
        if run.run_id == bad.run_id:
            raise broken
        return points(run, *args, **more)

    monkeypatch.setattr(race_api, "points", points_of_all_but_one)
    answer = ask(bad.run_id, good.run_id)
    assert str(broken) in answer[bad.run_id]["error"]
    assert len(answer[good.run_id]["traces"]["loss"]["y"]) == 20


def test_the_answer_equals_the_stored_series(store, ask):
    run = make_run(store, num_steps=400)
    traces = ask(run.run_id)[run.run_id]["traces"]
    for name, table, column in (
        ("loss", run.steps, "loss"),
        ("test_loss", run.evaluations, "test_loss"),
        ("accuracy", run.evaluations, "test_accuracy"),
        ("grad_norm", run.grad_norms, "grad_norm"),
    ):
        trace = traces[name]
        np.testing.assert_allclose(trace["y"], table[column], rtol=1e-5)
        np.testing.assert_array_equal(trace["step"], table["step"])
        np.testing.assert_allclose(trace["train_s"], table["seconds"], atol=5.1e-5)
        np.testing.assert_array_equal(trace["samples"], 64 * table["step"])


def test_updates_put_together_equal_the_whole(store, ask, worker):
    cursor, held = "", []
    for first in range(0, 300, 60):
        worker.steps(np.arange(first, first + 60, dtype=float))
        answer = ask(worker.run_id, after=cursor)[worker.run_id]
        cursor = answer["cursor"]
        held += answer["traces"]["loss"]["y"]
    assert held == ask(worker.run_id)[worker.run_id]["traces"]["loss"]["y"] == list(range(300))


def test_the_more_runs_the_fewer_points_of_each_and_no_extreme_is_lost(ask, worker):
    loss = np.ones(40_000)
    loss[12_345] = 9.0
    worker.steps(loss)
    alone, among_many = ask(worker.run_id), ask(worker.run_id, of=36)
    sizes = [len(answer[worker.run_id]["traces"]["loss"]["y"]) for answer in (alone, among_many)]
    assert sizes[0] <= 1_500
    assert sizes[1] <= 250
    assert 9.0 in among_many[worker.run_id]["traces"]["loss"]["y"]


def test_means_stand_for_all_steps(ask, worker):
    worker.steps(np.where(np.arange(30_000) % 100 == 0, 10.0, 1.0))
    means = ask(worker.run_id, of=36)[worker.run_id]["traces"]["loss_mean"]
    assert sum(means["n"]) == 30_000
    assert np.average(means["y"], weights=means["n"]) == pytest.approx(1.09, abs=1e-3)


def test_nan_is_a_gap_with_a_mark_in_every_trace(ask, worker):
    worker.steps([1.0, math.nan], norms={2: math.inf})
    worker.evaluation(loss=math.nan)
    traces = ask(worker.run_id)[worker.run_id]["traces"]
    assert (traces["loss"]["y"], traces["loss"]["marks"]) == ([1.0, None], [[2, 20, 1.0, "NaN"]])
    assert traces["grad_norm"]["marks"] == [[2, 20, 1.0, "+inf"]]
    assert traces["test_loss"]["marks"] == [[2, 20, 1.0, "NaN"]]
    assert "marks" not in traces["accuracy"]


def test_the_facts_of_a_run_are_sent_first_and_again_when_it_has_started(store, ask):
    worker = Worker(store, "target.value=0.5", "batch_size=32", "seed=3")
    first = ask(worker.run_id)[worker.run_id]
    again = ask(worker.run_id, after=first["cursor"])[worker.run_id]
    worker.start()
    started = ask(worker.run_id, after=first["cursor"])[worker.run_id]
    assert first["about"] == {
        "batch_size": 32,
        "seed": 3,
        "target": {"metric": "test_accuracy", "value": 0.5},
        "accuracy_is_of_text": False,
        "train_examples": None,
        "test_predictions": None,
        "flops_per_example": None,
        "total_steps": None,
    }
    assert "about" not in again
    assert (started["about"]["train_examples"], started["about"]["total_steps"]) == (1_000, 10_000)


def test_a_run_that_failed_says_why_in_plain_json(ask, worker):
    worker.steps([1.0, math.nan])
    worker.log.close(Failed(at=1e9, cause="Diverged", message="The loss became NaN.", fix="Lower lr."))
    answer = ask(worker.run_id)[worker.run_id]
    assert (answer["status"], answer["over"], answer["why"]) == ("failed", True, "The loss became NaN. Lower lr.")
    assert answer["current"]["loss"] is None
    json.dumps(answer, allow_nan=False)


def test_current_values_are_those_of_the_newest_points(ask, worker):
    worker.steps([1.0] * 10)
    worker.evaluation()
    current = ask(worker.run_id)[worker.run_id]["current"]
    assert current == {
        "steps": 10,
        "samples": 100,
        "train_s": 1.0,
        "loss": 1.0,
        "test_loss": 0.5,
        "accuracy": 0.9,
        "samples_per_s": 100.0,
    }


def test_an_unknown_run_is_an_error_of_its_own_and_the_others_are_answered(ask, worker):
    worker.steps([1.0])
    answer = ask("0123456789abcdef", worker.run_id, "../secret", "<b>")
    assert answer["0123456789abcdef"]["error"].startswith("There is no run")
    assert answer["../secret"].keys() == answer["<b>"].keys() == {"error"}
    assert answer[worker.run_id]["traces"]["loss"]["y"] == [1.0]


@pytest.mark.parametrize("runs", ["", ",", ",".join(["0123456789abcdef"] * 73)])
def test_no_run_or_too_many_are_refused_in_a_sentence(store, client, runs):
    response = client.get("/api/compare", params={"runs": runs})
    assert response.status_code == 400
    assert response.json()["error"].startswith("Ask for 1 to 72 runs")


@pytest.mark.parametrize("cursor", ["nonsense", "1-0-0", "9-9-9-9", "-1-0-0-0", "1" * 500, ";;;;", "1-0-0-1-0-0-0"])
def test_an_invalid_cursor_gets_that_run_again(ask, worker, cursor):
    worker.steps([1.0])
    answer = ask(worker.run_id, after=cursor)[worker.run_id]
    assert answer["reset"]
    assert answer["traces"]["loss"]["y"] == [1.0]


@pytest.mark.parametrize("of", ["-1", "x", "99999999999", "٣", ""])
def test_an_invalid_number_of_runs_does_no_harm(client, worker, of):
    worker.steps([1.0])
    assert client.get("/api/compare", params={"runs": worker.run_id, "of": of}).status_code == 200


def test_an_empty_update_of_seventy_two_runs_is_small_and_quick(store, client):
    workers = [Worker(store).start() for _ in range(72)]
    for worker in workers:
        worker.steps(np.ones(3_000))
        worker.evaluation()
    runs = ",".join(worker.run_id for worker in workers)
    full = client.get("/api/compare", params={"runs": runs})
    after = ";".join(run["cursor"] for run in full.json()["runs"].values())
    begun = time.process_time()
    idle = client.get("/api/compare", params={"runs": runs, "after": after})
    assert time.process_time() - begun < 2  # CPU time: 30 ms on an idle machine
    assert all(run["traces"] == {} for run in idle.json()["runs"].values())
    assert len(idle.content) < 72 * 330
    assert len(full.content) < 72 * 20_000


def test_runs_that_only_wait_cost_next_to_nothing(store, client):
    ids = [store.create(with_overrides(RunConfig(), [f"seed={seed}"])) for seed in range(36)]
    after = ";".join(["0-0-0-0"] * 36)
    assert len(client.get("/api/compare", params={"runs": ",".join(ids), "after": after}).content) < 36 * 150


def test_the_readers_of_a_large_comparison_stay_and_go_when_nobody_asks(store):
    now = [0.0]
    readers = api_readers.Readers(store, clock=lambda: now[0])
    ids = [Worker(store).start().run_id for _ in range(30)]
    held = [readers.run(run_id) for run_id in ids]
    assert [readers.run(run_id) for run_id in ids] == held
    now[0] = 10.0
    readers.run(ids[0])
    assert len(readers) == api_readers._MOST_READERS


def test_viewers_may_compare_and_nobody_may_post():
    assert auth_middleware.decide("/api/compare", "GET") == "viewer"
    assert auth_middleware.decide("/api/compare", "POST") == auth_middleware.decide("/api/compare/x", "GET") == "nobody"
