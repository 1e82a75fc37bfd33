"""Every figure says how it was obtained, and can be computed again from the others."""

from __future__ import annotations

import math

import pytest

from engine.config.run import RunConfig
from engine.events.training import Evaluation
from engine.measurement import provenance
from engine.measurement.provenance import Figure
from engine.planning import planner
from engine.reports.html.page import render
from engine.reports.report import Report
from tests.fakes import make_run


def test_every_figure_of_a_run_says_how_it_was_obtained(store):
    known = provenance.of_run(make_run(store))
    assert all(figure.method and figure.how in provenance.BADGES for figure in known.values())
    assert {"test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "energy_j"} <= set(known)


def test_derived_figures_follow_from_the_others(store):
    known = {name: figure.value for name, figure in provenance.of_run(make_run(store)).items()}
    run = make_run(store)
    assert known["samples_per_s"] == pytest.approx(run.summary().samples / known["train_seconds"])
    assert known["flops_per_s"] == pytest.approx(known["flops"] / known["train_seconds"])


def test_the_uncertainty_of_accuracy_follows_from_the_number_of_samples(store):
    accuracy = provenance.of_run(make_run(store))["test_accuracy"]
    assert accuracy.uncertainty == pytest.approx(math.sqrt(accuracy.value * (1 - accuracy.value) / 1_000))


def evaluated_text(store, standard_error: float | None):
    config = RunConfig(data="text", source={"seq_len": 64}, model={"family": "transformer"})
    measured = Evaluation(
        step=5, train_s=0.1, elapsed_s=0.1, test_loss=2.0, test_accuracy=0.45, seconds=0.1,
        test_accuracy_standard_error=standard_error,
    )  # fmt: skip
    return provenance.of_run(make_run(store, config, num_steps=60, said=[measured]))["test_accuracy"]


def test_the_uncertainty_of_a_texts_accuracy_is_that_which_the_evaluation_measured(store):
    accuracy = evaluated_text(store, 0.0016)
    assert accuracy.uncertainty == 0.0016
    assert "64,000 predicted characters in 1,000 windows" in accuracy.window
    assert "Uncertainty ± 0.16 points" in accuracy.in_words()


def test_it_is_unknown_where_an_older_run_did_not_record_it(store):
    accuracy = evaluated_text(store, None)
    assert (accuracy.uncertainty, "uncertainty is unknown" in accuracy.note) == (None, True)


def test_the_text_has_badge_method_window_and_uncertainty():
    figure = Figure(
        value=200.0, unit="J", how="measured", method="a counter", window="2 s", uncertainty=10.0, note="Short"
    )
    assert figure.in_words() == "Measured: a counter. Over 2 s. Uncertainty ± 5.00 %. Short."


def test_an_unknown_figure_says_why():
    assert Figure(value=None, unit="J", how="measured", method="no counter").in_words() == "Not available: no counter."


def test_a_plan_marks_estimates_and_exact_figures():
    plan = provenance.of_plan(planner.plan(RunConfig()))
    assert {name: figure.how for name, figure in plan.items()} == {
        "parameters": "derived", "flops_per_step": "derived", "total_bytes": "estimated", "steps_per_epoch": "derived",
    }  # fmt: skip


def test_a_report_carries_them(store):
    report = Report.freeze("a", [make_run(store)])
    again = Report.from_json(report.to_json())
    assert again.runs[0].figures == report.runs[0].figures != {}


def test_a_reports_tooltip_has_window_and_uncertainty(store):
    page = render(Report.freeze("a", [make_run(store)]))
    assert 'title="Measured: share of correct predictions on the test samples. Over 1,000 samples at' in page
    assert "Uncertainty ±" in page


def test_nan_figures_survive_json():
    figure = Figure(value=math.nan, unit="", how="measured", method="m", uncertainty=math.inf)
    again = Figure.model_validate_json(figure.model_dump_json())
    assert math.isnan(again.value) and math.isinf(again.uncertainty)
