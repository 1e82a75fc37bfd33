"""A curve from a CSV: the role and unit of each column, and the notes on guesses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.charts import training
from engine.common.errors import EngineError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.reports import sharing
from engine.reports.report import Report
from engine.reports.sharing import CurveChoices
from engine.reports.sharing.curves import read_curve
from engine.store.store import Store
from engine.studies import races
from engine.studies.race_results import outcome
from tests.fakes import make_run

KERAS = "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.81,0.71,0.85,0.5\n1,0.9,0.35,0.91,0.33\n2,0.93,0.25,0.92,nan\n"
LIGHTNING = (
    "step,train_loss,val_acc,val_loss,epoch\n49,0.9,,,0\n99,0.6,,,0\n99,,0.83,0.55,0\n149,0.4,,,1\n199,,0.91,0.31,1\n"
)
TENSORBOARD = "Wall time,Step,Value\n1700000000.5,0,2.3\n1700000001.5,10,1.1\n1700000004.0,20,0.7\n"


def run_of(text, name="curve.csv", **choices):
    report, notes = read_curve(text, name, CurveChoices(**choices), now=1e9)
    return report.runs[0], " ".join(notes)


def test_the_table_of_keras():
    run, notes = run_of(KERAS)
    np.testing.assert_array_equal(run.steps["loss"], [0.71, 0.35, 0.25])
    np.testing.assert_array_equal(run.evaluations["test_accuracy"], [0.85, 0.91, 0.92])
    assert math.isnan(run.evaluations["test_loss"][-1])
    assert "'accuracy' was left out, because beside a test accuracy it is the training accuracy." in notes
    assert "rows are counted" in notes and "One epoch was read as the 4,000 training samples of mnist5k." in notes
    assert run.steps["samples"].tolist() == [0, 4_000, 8_000]
    assert run.name == "curve" and math.isnan(run.steps["seconds"][0])


def test_the_table_of_lightning_where_rows_share_steps():
    run, _ = run_of(LIGHTNING)
    assert run.steps["step"].tolist() == [49, 99, 149] and run.steps["loss"].tolist() == [0.9, 0.6, 0.4]
    assert run.evaluations["step"].tolist() == [99, 199] and run.evaluations["test_accuracy"].tolist() == [0.83, 0.91]
    assert run.summary.steps == 199


def test_the_user_can_choose_a_column_with_an_unknown_name():
    run, notes = run_of(TENSORBOARD, columns={"loss": "Value"})
    assert (
        run.steps["step"].tolist() == [1, 11, 21]
        and "The file counts steps from 0; Isoflop counts them from 1." in notes
    )
    assert run.steps["seconds"].tolist() == [0, 1, 3.5] and "Time was read as Unix time" in notes
    assert run.steps["loss"].tolist() == [2.3, 1.1, 0.7]


@pytest.mark.parametrize(
    ("header", "choices", "seconds", "says"),
    [
        ("time (ms)", {}, 0.05, ""),
        ("time_min", {}, 3000.0, ""),
        ("hours", {}, 180_000.0, ""),
        ("elapsed", {}, 50.0, "Time was read as seconds, because its column names no unit."),
        ("elapsed", {"seconds_in": "min"}, 3000.0, ""),
    ],
)
def test_the_unit_of_time_is_read_chosen_or_noted_as_a_guess(header, choices, seconds, says):
    run, notes = run_of(f"step,{header},loss\n1,10,2\n2,50,1\n", **choices)
    assert run.steps["seconds"][-1] == pytest.approx(seconds)
    assert ("read as seconds" in notes) is bool(says) and says in notes


@pytest.mark.parametrize(
    ("cells", "choices", "last", "says"),
    [
        (("91.5", "97.3"), {}, 0.973, "Accuracy was read as percent, because its largest value is 97.3."),
        (("0.915", "0.973"), {}, 0.973, ""),
        (("0.5", "0.9"), {"percent": True}, 0.009, ""),
    ],
)
def test_percent_is_detected_or_chosen(cells, choices, last, says):
    run, notes = run_of("step,acc\n1,{}\n2,{}\n".format(*cells), **choices)
    assert run.evaluations["test_accuracy"][-1] == pytest.approx(last)
    assert says in notes and ("percent" in notes) is bool(says)


def test_tabs_and_semicolons_and_blank_lines():
    for delimiter in "\t;":
        run, _ = run_of(f"\n step {delimiter} training loss \n1{delimiter}2.5\n\n3{delimiter}inf\n")
        assert run.steps["loss"].tolist() == [2.5, math.inf]


def test_a_number_is_read_to_the_last_bit_and_cells_beyond_the_header_are_left_out():
    run, _ = run_of("step,loss\n1,0.30000000000000004,9,9\n2, 1e-3 \n3\n4,-NaN\n")
    np.testing.assert_array_equal(run.steps["loss"], [0.1 + 0.2, 1e-3, math.nan])
    assert run.steps["step"].tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "a,b\n1,2\n",
            r"No column is a loss or an accuracy. The columns are 'a', 'b'\. Choose one: --column loss=HEADER",
        ),
        ("step,loss\n", "no rows below its header"),
        ("step,loss\n1,two\n", r"Row 2, column 'loss': 'two' is not a number\."),
        ("step,loss\n1,2\n\n2,1_10\n", r"Row 3, column 'loss': '1_10' is not a number\."),
        ("step,loss\n1,0x10\n", r"'0x10' is not a number\."),
        ("step,loss\n1,\uff11\n", "is not a number"),
        ("step,loss\n1,1\x002\n", "cannot be read: it contains a NUL character"),
        ('step,loss\n1,"2\n', "cannot be read"),
        ("step,loss\n1,2\n3,1\n2,1\n", r"Steps decrease from 3 to 2\. Put each run into a file of its own"),
        ("step,loss\n1.5,2\n", "not a whole number"),
        ("step,loss\n1e30,2\n", "not a whole number"),
        ("step,time,loss\n1,5,1\n2,4,1\n", "seconds decreases from one row to the next"),
        ("loss," + ",".join(map(str, range(3_000))) + "\n1" + ",1" * 3_000 + "\n", "3,001 columns"),
        ('step,loss\n1,"' + "x" * 200_000 + '"\n', "cannot be read"),
    ],
)
def test_a_table_without_a_curve_is_refused_in_one_sentence(text, says):
    with pytest.raises(EngineError, match=says):
        run_of(text)


def test_an_error_names_a_missing_column():
    with pytest.raises(EngineError, match=r"There is no column 'val'\. Choose from step, loss"):
        run_of("step,loss\n1,1\n", columns={"test_loss": "val"})


@pytest.mark.process
def test_an_imported_curve_is_a_run_that_can_be_compared_with_local_runs(store, tmp_path):
    (tmp_path / "theirs.csv").write_text(
        "step,seconds,val_acc,loss\n" + "".join(f"{s},{s / 100},{0.95 - 1 / s},{2 / s}\n" for s in range(10, 600, 10))
    )
    found = sharing.import_files(
        store,
        [tmp_path / "theirs.csv"],
        curve=CurveChoices(name="A paper", config=with_overrides(RunConfig(), ["data=mnist5k"])),
    )
    assert (
        "theirs.csv: Columns: 'step' as step, 'seconds' as seconds, 'val_acc' as test_accuracy, 'loss' as loss."
        in found.warnings
    )
    assert found.report_ids == [] and found.group_ids == []
    theirs = store.run(found.run_ids[0])
    assert theirs.imported.origin.form == "curve" and theirs.started is None and theirs.problems == []
    (line,) = store.listing().lines
    assert line.words == "a curve on mnist5k · imported, unverified"
    ours = make_run(store, name="ours", num_steps=600)
    race = races.of_runs([ours, theirs])
    result = outcome(race, target=0.8)
    assert [lane.label for lane in result.lanes] == ["ours", "A paper"]
    assert result.lanes[1].cost["steps"] == pytest.approx(20 / 3, abs=4) and result.lanes[1].cost["seconds"]
    assert {chart.key for chart in training.shown([theirs])} == {"loss", "accuracy"}
    for chart in training.shown([ours, theirs]):
        assert chart.draw([ours, theirs]).to_json()


@pytest.mark.process
def test_a_curve_without_time_has_no_time_to_a_target_and_no_duration(store, tmp_path):
    (tmp_path / "t.csv").write_text("step,val_acc\n10,0.5\n20,0.9\n30,0.95\n")
    found = sharing.import_files(store, [tmp_path / "t.csv"])
    theirs = store.run(found.run_ids[0])
    result = outcome(races.of_runs([make_run(store, name="ours"), theirs]), target=0.8)
    assert result.lanes[1].cost["steps"] == pytest.approx(17.5)
    assert result.lanes[1].cost["seconds"] is None
    assert Store(store.root).rows(limit=5)


@pytest.mark.process
def test_a_missing_loss_in_a_table_is_not_a_loss_that_became_nan(store, tmp_path):
    from dashboard.api.run import points

    (tmp_path / "t.csv").write_text("step,val_acc,loss\n10,0.5,2\n20,0.9,1\n")
    theirs = store.run(sharing.import_files(store, [tmp_path / "t.csv"]).run_ids[0])
    assert not theirs.evaluations.knows("test_loss") and theirs.evaluations.knows("test_accuracy")
    assert "NaN" not in training.BY_KEY["loss"].draw([theirs]).to_json()
    assert "marks" not in str(points(theirs, ""))
    frozen = Report.from_json(Report.freeze("t", [theirs]).to_json()).runs[0]
    assert not frozen.evaluations.knows("test_loss") and "NaN" not in training.BY_KEY["loss"].draw([frozen]).to_json()


@pytest.mark.process
def test_an_imported_table_cannot_contain_a_path(store, tmp_path):
    (tmp_path / "x.csv").write_text("step,loss\n1,1\n")
    (run_id,) = sharing.import_files(store, [tmp_path / "x.csv"], names=["../../<b>evil</b>.csv"]).run_ids
    assert store.run(run_id).name == "b>.csv" or "/" not in store.run(run_id).name
