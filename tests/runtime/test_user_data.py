"""Runs of a user's own file: a change between submission and start is said, and so is the largest class, everywhere."""

from __future__ import annotations

import dataclasses

import pytest

from dashboard.views.compare.table import as_table
from engine.cli import cards, results
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.measurement import alerts
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.runtime import worker
from engine.runtime.client import Client
from engine.studies import race_results, race_verdicts, races

pytestmark = [pytest.mark.process, pytest.mark.slow]

TABLE = "a,b,y\n" + "".join(f"{i % 7},{i % 5},{('x', 'x', 'y')[i % 3]}\n" for i in range(60))
CHANGED = "The data was changed after the run was submitted"


@pytest.fixture
def submit(store, tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(Client, "wake", lambda _: None)
    monkeypatch.setattr(Client, "_announce", lambda _: None)
    path = tmp_path / "mine.csv"
    path.write_text(TABLE)
    config = with_overrides(
        RunConfig(), ["data=csv", f"source.path={path}", "batch_size=8", "model.hidden=4", "budget.epochs=1"]
    )
    return path, lambda: Client(store).submit(config)


def test_a_file_that_changes_after_its_submission_is_said(store, submit):
    path, submitted = submit
    same, changed = submitted(), submitted()
    worker.run(store.folder(same))
    path.write_text(TABLE.replace("3,", "4,"))
    worker.run(store.folder(changed))
    assert CHANGED not in cards.card(store.run(same))
    assert CHANGED in cards.card(store.run(changed))
    (alert,) = alerts.of_run(store.run(changed), 0)
    assert alert.kind == "data"


def test_the_largest_class_stands_beside_the_accuracy(store, submit):
    run_id = submit[1]()
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    share = run.summary().largest_class_accuracy
    assert share == pytest.approx(8 / 12)
    document = results.everything(store, run)
    assert document["summary"]["largest_class_accuracy"] == share
    assert document["figures"]["largest_class_accuracy"]["how"] == "derived"
    assert "largest class     66.67 %" in cards.card(run)
    outcome = race_results.outcome(races.of_runs([run, store.run(run_id)]))
    assert "(largest class 66.67 %)" in "\n".join(race_verdicts.table(outcome))
    assert as_table(outcome).set_index("").loc["Largest class"].tolist()[0] == "66.67 %"
    assert dataclasses.asdict(outcome.lanes[0])["largest_class_accuracy"] == share
    html = render(Report.freeze("A report", [run]))
    assert "Largest class" in html and "66.67" in html
