"""Where a stored run reached its target: one answer in every view, also for logs of an older Isoflop."""

from __future__ import annotations

import json

import pytest

from dashboard.api import race as race_api
from engine.cli import main as cli
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Finished
from engine.events.training import Evaluation, TargetReached
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.store.event_log import EventLog
from engine.studies import race_results
from tests.fakes import make_run

AIM = with_overrides(RunConfig(), ["target.value=0.9"])
ACCURACIES = {0: 0.1, 30: 0.7, 60: 0.95, 90: 0.96}  # by step; 0.9 is reached at step 54


def logged(store, *events):
    """A finished run with an evaluation every 30 steps, a second each, and some more events."""
    run_id = store.create(AIM)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    for step, accuracy in ACCURACIES.items():
        log.append(
            Evaluation(
                step=step, train_s=step / 30, elapsed_s=step / 15, test_loss=1, test_accuracy=accuracy, seconds=0
            )
        )
    for event in events:
        log.append(event)
    log.close(Finished(at=1.0))
    return store.run(run_id)


def test_an_event_of_an_older_version_is_interpolated_from_the_evaluations(store):
    old = TargetReached(metric="test_accuracy", value=0.95, step=60, train_s=2.0, elapsed_s=4.0)
    run = logged(store, old)
    found = run.target_reached
    assert (found.step, found.between, found.value) == (54, (30, 60), 0.9)
    assert (found.train_s, found.elapsed_s) == (pytest.approx(1.8), pytest.approx(3.6))
    assert (run.summary().target_step, run.summary().target_seconds) == (54, found.train_s)


def test_an_event_without_its_evaluations_stays_as_it_is(store):
    old = TargetReached(metric="test_accuracy", value=0.95, step=45, train_s=1.5, elapsed_s=3.0)
    assert logged(store, old).target_reached == old


def test_every_view_gives_the_same_steps_and_seconds_to_the_target(store, capsys):
    run, other = make_run(store, AIM), make_run(store, with_overrides(AIM, ["optimizer.lr=0.5"]))

    def told(*arguments):
        cli.main([*arguments, "--json", "--store", str(store.root)])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    shown = told("show", run.run_id)
    cost = told("compare", run.run_id, other.run_id, "--target", "test_accuracy=0.9")["lanes"][0]["cost"]
    reached = shown["target_reached"]
    assert (round(cost["steps"]), cost["seconds"]) == (reached["step"], reached["train_s"])
    assert (shown["summary"]["target_step"], shown["summary"]["target_seconds"]) == (
        reached["step"],
        reached["train_s"],
    )
    live = race_api.points(run, target=("test_accuracy", 0.9))["reached"]
    assert (live["step"], live["train_s"], list(live["between"])) == (
        cost["steps"],
        cost["seconds"],
        reached["between"],
    )
    assert f"reached at step {reached['step']:,}, after" in render(Report.freeze("t", [run]))
    assert race_results.to_target(run, "test_accuracy", 0.9).cost == cost


def test_where_a_target_is_reached_does_not_depend_on_the_points_that_a_chart_gets(store):
    run = make_run(store, num_steps=4_000)
    few, all_of_them = (race_api.points(run, most=most, target=("test_accuracy", 0.93)) for most in (10, 2_000))
    assert len(few["traces"]["accuracy"]["y"]) < len(all_of_them["traces"]["accuracy"]["y"])
    assert few["reached"] == all_of_them["reached"]


def test_a_diverged_run_has_no_test_accuracy_and_says_why(store, capsys):
    run = make_run(store, num_steps=400, diverges_at=333)
    assert len(run.evaluations)
    assert (run.summary().test_accuracy, run.summary().test_loss, run.diverged_at) == (None, None, 333)
    cli.main(["show", run.run_id, "--json", "--store", str(store.root)])
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "diverged at step 333" in shown["figures"]["test_accuracy"]["method"]
    assert shown["not_finite"]["steps.loss"] == {"first_step": 333, "value": "nan", "count": 1}
    assert shown["steps"]["loss"][332] is None
    assert "interpolated" in shown["columns"]["steps.seconds"]
