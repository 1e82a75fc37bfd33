"""A curve from a CSV: the role and unit of each column, and the notes on guesses."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from engine.charts import training
from engine.cli.main import main
from engine.common.errors import EngineError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.reports import sharing
from engine.reports.exporters import write_parquet
from engine.reports.html import page
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
    assert run.steps["samples"].tolist() == [4_000, 8_000, 12_000] and "counts epochs from 0" in notes
    assert run.summary.epochs == 3.0 and run.summary.train_seconds is None and run.summary.samples_per_s is None
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


CASES = Path(__file__).parents[1] / "recordings" / "curves"


@pytest.mark.parametrize(
    ("file", "samples", "figures", "says"),
    [
        ("keras_epoch0", [4_000, 8_000, 12_000], {"epochs": 3.0, "test_accuracy": 0.9}, "counts epochs from 0"),
        ("keras_categorical", [4_000, 8_000, 12_000], {"test_accuracy": 0.9}, "'sparse_categorical_accuracy' was left"),
        ("keras_NA", [4_000, 8_000, 12_000], {"test_accuracy": 0.88, "test_loss": 0.41}, ""),
        ("keras_append_headers", [4_000, 8_000, 12_000, 16_000], {"steps": 4}, "repeat the header were left out: 1."),
        ("percent_low", [4_000, 8_000, 12_000], {"test_accuracy": 0.014}, "percent, because its largest value is 1.4"),
        ("epoch_time_rising", [4_000, 8_000, 12_000], {"train_seconds": 52, "samples_per_s": 12_000 / 52}, "added up"),
        ("fastai", [4_000, 8_000, 12_000], {"train_seconds": 52, "test_loss": 0.050347}, "Not used: 'error_rate'."),
        ("decimal_comma", [4_000, 8_000], {"test_accuracy": 0.88, "final_train_loss": 0.52}, "1,10 is 1.10."),
        ("wandb_nan", None, {"steps": 101, "samples": None, "final_train_loss": math.inf}, ""),
        (
            "wandb_export",
            None,
            {"final_train_loss": 0.61},
            "loss' as loss. Not used: 'fluent-lake-3 - train/loss__MIN'",
        ),
    ],
)
def test_a_log_of_another_tool(file, samples, figures, says):
    run, notes = run_of((CASES / f"{file}.csv").read_text())
    assert samples is None or run.steps["samples"].tolist() == samples
    for name, value in figures.items():
        assert getattr(run.summary, name) == (value if value is None else pytest.approx(value)), name
    assert says in notes


def test_the_evaluations_of_a_log_with_NA_are_those_with_a_value():
    run, _ = run_of((CASES / "keras_NA.csv").read_text())
    assert run.evaluations["test_accuracy"].tolist() == [0.82, 0.88]
    assert math.isnan(run.steps["loss"][-1])


def test_a_column_can_be_left_out_and_a_unit_chosen():
    fastai = (CASES / "fastai.csv").read_text()
    run, notes = run_of(fastai, columns={"seconds": ""})
    assert run.summary.train_seconds is None and "Not used: 'error_rate', 'time'." in notes
    run, _ = run_of("epoch,time,loss\n1,10,2\n2,12,1\n", seconds_are="total")
    assert run.summary.train_seconds == 12
    run, _ = run_of("step,time,loss\n1,10,2\n2,50,1\n", seconds_are="each")
    assert run.summary.train_seconds == 60


def test_a_step_within_an_epoch_has_no_samples_from_the_number_of_its_epoch():
    run, notes = run_of(LIGHTNING)
    assert run.summary.samples is None and "several rows have the same epoch" in notes
    run, _ = run_of("step,epoch,loss\n10,0.5,2\n20,1.0,1\n")
    assert run.steps["samples"].tolist() == [2_000, 4_000]


def test_an_export_of_two_wandb_runs_is_read_one_run_at_a_time():
    text = "Step,a - val/acc,b - val/acc,b - loss\n1,0.5,0.6,2\n2,0.7,0.8,1\n"
    run, notes = run_of(text)
    assert run.evaluations["test_accuracy"].tolist() == [0.5, 0.7] and not len(run.steps)
    assert "The table has the runs 'a', 'b'; the columns of 'a' were read." in notes
    run, _ = run_of(text, columns={"loss": "b - loss"})
    assert run.evaluations["test_accuracy"].tolist() == [0.6, 0.8] and run.steps["loss"].tolist() == [2, 1]


def test_tabs_and_semicolons_and_blank_lines():
    for delimiter in "\t;":
        run, _ = run_of(f"\n step {delimiter} training loss \n1{delimiter}2.5\n\n3{delimiter}inf\n")
        assert run.steps["loss"].tolist() == [2.5, math.inf]


def test_a_number_is_read_to_the_last_bit_and_cells_beyond_the_header_are_left_out():
    run, notes = run_of("step,loss\n1,0.30000000000000004,9,9\n2, 1e-3 \n3\n4,-NaN\n")
    assert "Rows with more cells than the header: 1." in notes
    np.testing.assert_array_equal(run.steps["loss"], [0.1 + 0.2, 1e-3, math.nan])
    assert run.steps["step"].tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "a,b\n1,2\n",
            r"No column is a loss or an accuracy. The columns are 'a', 'b'\. Choose the column of the training loss",
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
        ("samples,loss\n1.5,2\n", "A number of samples is not a whole number"),
        ("epoch,loss\n-1,2\n", "An epoch is not a number from 0"),
        ("step,time,loss\n1,-5,2\n", "A time is negative: -5"),
        ("step,acc\n1,140\n", r"An accuracy is 140 %, which is outside 0 to 100 %"),
        ("step,acc\n1,-0.5\n", r"An accuracy is -0.5, which is outside 0 to 100 %"),
        ("step;loss\n1,000;2\n", r"'1,000' is not a number.*without thousands separators"),
        ("step;loss;val_loss\n1;0.5;1,234\n", r"'1,234' is not a number"),
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
def test_an_error_names_options_on_the_command_line_only(store, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EngineError) as caught:
        sharing.import_files(store, [tmp_path / "x.csv"])
    assert "--" not in str(caught.value)
    assert main(["import", str(tmp_path / "x.csv"), "--store", str(store.root)]) == 2
    assert "Options: --column ROLE=HEADER" in capsys.readouterr().err


@pytest.mark.process
def test_an_exported_parquet_table_is_not_a_report(store, tmp_path):
    write_parquet(tmp_path / "points.parquet", [make_run(store, num_steps=40)])
    with pytest.raises(EngineError, match=r"a Parquet table of points.* Export the runs as \.html, \.json or \.zip"):
        sharing.import_files(store, [tmp_path / "points.parquet"])


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
    assert "test_accuracy" in result.lanes[1].verdicts
    assert "test_loss" not in result.lanes[1].verdicts  # the table has none, which is no divergence
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
def test_a_report_of_a_curve_says_only_what_the_table_and_the_import_said(store, tmp_path):
    (run_id,) = sharing.import_files(
        store, [CASES / "keras_epoch0.csv"], curve=CurveChoices(config=with_overrides(RunConfig(), ["data=digits"]))
    ).run_ids
    report = Report.freeze("t", [store.run(run_id)])
    shown = page.render(report).partition('<script type="application/json"')[0]
    words = " ".join(re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", shown, flags=re.DOTALL).split())
    assert "a curve on digits" in words and "Data digits" in words and "Test loss 0.3300 from the table" in words
    assert "only what was stated at its import is known" in words
    for untrue in (
        "synchronised",
        "0 ms",
        "Optimizer",
        "Batch size",
        "Adam",
        "MLP",
        "Seed",
        "did not start",
    ):
        assert untrue not in words, untrue
    (tmp_path / "again.json").write_text(report.to_json())
    again = store.run(sharing.import_files(store, [tmp_path / "again.json"]).run_ids[0])
    assert again.imported.origin.form == "curve" and again.summary() == store.run(run_id).summary()


@pytest.mark.process
def test_an_imported_table_cannot_contain_a_path(store, tmp_path):
    (tmp_path / "x.csv").write_text("step,loss\n1,1\n")
    (run_id,) = sharing.import_files(store, [tmp_path / "x.csv"], names=["../../<b>evil</b>.csv"]).run_ids
    assert store.run(run_id).name == "b>.csv" or "/" not in store.run(run_id).name
