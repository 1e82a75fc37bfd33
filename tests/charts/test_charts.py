"""Charts of runs have every value, escape users' texts, and stay small."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.charts import training as charts_training
from engine.charts.style import DASHES, PALETTE, colour, dash
from engine.charts.training import BY_KEY, CHARTS, ema, labels
from engine.common.downsample import minmax
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Cancelled
from engine.store.store import Store
from tests.fakes import make_run


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def test_downsampling_keeps_extremes_ends_and_non_finite_rows():
    y = np.sin(np.arange(100_000) / 50)
    y[[777, 54_321, 99_000]] = 9.0, -9.0, math.nan
    kept = minmax(y, 500)
    assert len(kept) <= 500
    assert {0, 777, 54_321, 99_000, 99_999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()


@pytest.mark.parametrize("n", [0, 1, 7, 500, 501, 1_003])
def test_downsampling_never_exceeds_its_limit(n):
    kept = minmax(np.full(n, math.nan), 500)
    assert len(kept) <= 500
    assert n == 0 or {0, n - 1} <= set(kept.tolist())


def test_the_moving_average_of_a_constant_is_the_constant_from_the_first_value_on():
    assert ema(np.full(5_000, 3.5), 40) == pytest.approx(3.5)


def test_the_moving_average_equals_its_recursion():
    y = np.random.default_rng(0).normal(size=3_000)
    y[10] = math.nan
    keep, total, weight, expected = 1 - 2 / 31, 0.0, 0.0, []
    for value in y:
        total, weight = keep * total, keep * weight
        if math.isfinite(value):
            total, weight = total + value, weight + 1
        expected.append(total / weight if math.isfinite(value) else math.nan)
    np.testing.assert_allclose(ema(y, 30), expected)


CLIPPED = with_overrides(RunConfig(), ["schedule=cosine", "max_grad_norm=1"])
AIMED = with_overrides(RunConfig(), ["target.value=0.9"])


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.key)
def test_every_chart_draws_several_runs_and_titles_its_axes(store, chart):
    figure = chart.draw([make_run(store, gpu=True), make_run(store, seed=1, gpu=True)])
    assert {trace.legendgroup for trace in figure.data} == {"0", "1"}
    assert figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text


@pytest.mark.parametrize("axis", ["step", "seconds", "samples"])
def test_training_and_test_loss_share_one_axis(store, axis):
    figure = BY_KEY["loss"].draw([make_run(store, num_steps=600)], axis=axis)
    training, held_out = (max(figure.data[i].x) for i in (1, 2))
    assert held_out == pytest.approx(training)


def test_a_run_that_has_not_started_draws_nothing(store):
    run = store.run(store.create(RunConfig()))
    assert charts_training.shown([run]) == []
    assert all(not chart.draw([run]).data for chart in CHARTS)


def test_a_loss_that_became_nan_is_a_mark_with_its_step(store):
    figure = BY_KEY["loss"].draw([make_run(store, diverges_at=140)])
    (mark,) = [trace for trace in figure.data if trace.mode == "markers+text"]
    assert [text.strip() for text in mark.text] == ["NaN at step 140"]
    assert np.isfinite(mark.y).all()


def test_the_charts_stand_in_one_order_for_page_and_report(store):
    shown = [chart.key for chart in charts_training.shown([make_run(store, CLIPPED)])]
    assert shown == ["loss", "accuracy", "throughput", "grad_norm", "lr", "memory", "cpu"]


def test_a_constant_learning_rate_has_no_chart(store):
    assert "lr" not in {chart.key for chart in charts_training.shown([make_run(store, num_steps=40)])}


def test_the_learning_rate_is_drawn_as_the_schedule_had_it(store):
    run = make_run(store, CLIPPED, num_steps=400)
    (line,) = BY_KEY["lr"].draw([run]).data
    np.testing.assert_allclose(line.y, 1e-3 * (1 + np.cos(np.pi * np.arange(400) / 400)) / 2, atol=1e-9)


def test_a_gradient_norm_stands_at_the_step_it_was_measured_at(store):
    (line,) = BY_KEY["grad_norm"].draw([make_run(store, num_steps=100)]).data
    assert list(line.x) == [20, 40, 60, 80, 100]


@pytest.mark.parametrize(
    ("norms", "axis"), [([1.0, 99.0], "linear"), ([0.01, 1.2], "log"), ([0.0, math.nan, 3.0], "linear")]
)
def test_gradient_norms_over_two_decades_have_a_log_axis(store, norms, axis):
    run = make_run(store, num_steps=20)
    run.grad_norms.extend(np.arange(21, 21 + len(norms)), 0.2, 0.3, norms)
    run.grad_norms["grad_norm"][0] = norms[-1]
    assert (BY_KEY["grad_norm"].draw([run]).layout.yaxis.type or "linear") == axis


def test_a_gradient_norm_that_became_infinite_is_a_mark(store):
    run = make_run(store, num_steps=60)
    run.grad_norms["grad_norm"][1] = math.inf
    (mark,) = [trace for trace in BY_KEY["grad_norm"].draw([run]).data if trace.mode == "markers+text"]
    assert mark.text[0].strip() == "+∞ at step 40"


def test_a_target_is_a_line_and_its_first_evaluation_a_mark(store):
    run = make_run(store, AIMED)
    figure = BY_KEY["accuracy"].draw([run])
    assert [shape.y0 for shape in figure.layout.shapes] == [90]
    assert (figure.data[-1].x[0], figure.data[-1].y[0]) == (run.target_reached.step, 100 * run.target_reached.value)


def test_runs_with_one_target_share_its_line_and_each_has_its_mark(store):
    figure = BY_KEY["accuracy"].draw([make_run(store, AIMED), make_run(store, AIMED, seed=1), make_run(store)])
    assert len(figure.layout.shapes) == 1
    assert [trace.mode for trace in figure.data].count("markers") == 2


def test_a_target_for_the_loss_is_only_on_the_loss_chart(store):
    run = make_run(store, with_overrides(RunConfig(), ["target.metric=test_loss", "target.value=0.5"]))
    assert len(BY_KEY["loss"].draw([run]).layout.shapes) == 1
    assert not BY_KEY["accuracy"].draw([run]).layout.shapes


def test_the_accuracy_of_a_text_is_that_of_the_next_character(store):
    text = make_run(store, with_overrides(RunConfig(), ["model.family=rnn", "data=text"]), num_steps=200)
    accuracy = BY_KEY["accuracy"]
    assert accuracy.title_of([text]) == "Next-character accuracy"
    assert accuracy.title_of([text, make_run(store, num_steps=20)]) == "Test accuracy"


def test_a_trace_never_has_more_points_than_asked_for(store):
    figure = BY_KEY["loss"].draw([make_run(store, num_steps=9_000, step_s=1e-4)], max_points=400)
    assert max(len(trace.x) for trace in figure.data) <= 400


def test_a_name_with_markup_stays_text(store):
    runs = [make_run(store, name='<a href="javascript:x">'), make_run(store)]
    assert all("<a" not in trace.name for trace in BY_KEY["loss"].draw(runs).data)


def test_runs_of_one_name_have_different_labels(store):
    runs = [make_run(store, name="same", num_steps=20), make_run(store, name="same", num_steps=20)]
    assert len(set(labels(runs))) == 2


def test_a_charts_colours_follow_the_place_of_a_run_and_do_not_repeat_before_the_dash_changes():
    looks = [(colour(i), dash(i)) for i in range(len(PALETTE) * len(DASHES))]
    assert len(set(looks)) == len(looks)


def test_a_cancelled_run_shows_what_it_has(store):
    run = make_run(store, num_steps=200, last=Cancelled(at=0.0))
    assert "loss" in {chart.key for chart in charts_training.shown([run])}


def test_a_single_point_is_a_dot_because_a_line_needs_two(store):
    (trace,) = BY_KEY["loss"].draw([make_run(store, num_steps=1)]).select_traces({"name": "Training loss"})
    assert trace.mode == "lines+markers"
