"""The view of the loss surface around runs, from the button to the chart."""

from __future__ import annotations

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.views.loss_surface import in_words
from engine.charts.loss_surface import descent_path_chart
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.studies import Surface
from engine.runtime import worker
from engine.studies.loss_surface import PathOnSurface, SurfaceData, config_for

pytestmark = pytest.mark.slow  # it trains

BASE = with_overrides(
    PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=30", "checkpoints=4", "model.hidden=[8]"]
)


def surface_page(lanes):
    from dashboard.views.loss_surface import descent_view

    descent_view(lanes)


@pytest.fixture
def own_store(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    state.store.clear()
    yield store
    state.store.clear()


def trained(store, *assignments):
    run_id = store.create(with_overrides(BASE, assignments))
    worker.run(store.folder(run_id))
    return run_id


def lane(run_id, label="Adam"):
    return {"label": label, "color": "#4f6bed", "run_id": run_id}


def opened(*lanes):
    return AppTest.from_function(surface_page, args=(list(lanes),), default_timeout=30).run()


def said(app):
    return " ".join(caption.value for caption in app.caption).replace("\\", "")


# --- the surface --------------------------------------------------------------------------------------------------


def test_runs_without_a_path_are_named_and_left_out(own_store):
    with_path, without = trained(own_store), trained(own_store, "checkpoints=0")
    waiting = own_store.create(BASE)
    app = opened(lane(with_path), lane(without, "SGD"), lane(waiting, "Muon"), lane("f" * 16, "Gone"))
    assert not app.exception
    for words in (
        "SGD: the run kept no checkpoints",
        "Muon: the run has not ended",
        "Gone: the run is not in this store",
    ):
        assert words in said(app)
    assert [button.label for button in app.button] == ["Draw the loss surface"]


def test_runs_of_different_models_are_refused_by_the_field(own_store):
    app = opened(lane(trained(own_store)), lane(trained(own_store, "model.hidden=[9]"), "Wide"))
    assert "differ in model.hidden" in app.error[0].value.replace("\\", "")


def test_a_click_computes_the_surface_and_a_page_opened_again_shows_it(own_store, monkeypatch):
    from engine.runtime.client import Client

    monkeypatch.setattr(Client, "wake", lambda client: None)  # the test executes the run in its own process
    lanes = (lane(trained(own_store)), lane(trained(own_store, "optimizer.name=sgd", "optimizer.lr=0.05"), "SGD"))
    app = opened(*lanes)
    app.button[0].click().run()
    (drawn,) = [run_id for run_id in own_store.ids() if own_store.run(run_id).config.task == "landscape"]
    assert own_store.run(drawn).name == "Loss surface"
    worker.run(own_store.folder(drawn))
    again = opened(*lanes)
    assert not again.exception
    assert not again.button
    assert "of the checkpoints' variance" in said(again)
    assert "41 x 41" not in said(again)


def test_a_cancelled_surface_can_be_computed_again(own_store):
    from engine.store.stop_requests import StopRequest, ask_to_stop

    lanes = (lane(trained(own_store)),)
    run_id = own_store.create(config_for([own_store.run(lanes[0]["run_id"])]))
    ask_to_stop(own_store.folder(run_id), StopRequest())
    worker.run(own_store.folder(run_id))
    assert [button.label for button in opened(*lanes).button] == ["Draw the loss surface"]


# --- the chart ----------------------------------------------------------------------------------------------------


@pytest.fixture
def surface():
    x, y = np.linspace(-2, 2, 11), np.linspace(-1, 1, 11)
    loss = np.add.outer(y**2, x**2) + 0.01
    path = PathOnSurface(
        np.array([[-1.0, 0.5], [0.0, 0.0]]), np.array([0, 40]), np.array([0.0, 1.0]), np.array([1.3, 0.02]),
        np.array([1.26, 0.01]), np.array([0.1, 0.2]),
    )  # fmt: skip
    event = Surface(
        plane="pca", explained=(0.72, 0.0341), x=(-2, 2), y=(-1, 1), resolution=11, loss_min=0.01, loss_max=5.01,
        num_not_finite=0, plane_gap=0.025, checkpoints=2, parameters=1234, split="train", examples=64, seconds=1.0,
    )  # fmt: skip
    return SurfaceData(x, y, loss, {"a" * 16: path}, event)


def test_the_chart_says_how_much_each_axis_explains_and_hovers_with_real_losses(surface):
    figure = descent_path_chart(surface, ["<b>Adam</b>"], ["#4f6bed"])
    assert figure.layout.xaxis.title.text == "PC 1 (72 % of the variance)"
    assert figure.layout.yaxis.title.text == "PC 2 (3.4 % of the variance)"
    height, path = figure.data[0], figure.data[-1]
    assert np.allclose(height.z, np.log10(surface.loss), atol=1e-5)
    assert np.allclose(height.customdata, surface.loss, atol=1e-5)
    assert path.customdata[-1].tolist() == [40, 0.02, 0.01]
    assert (path.name, path.line.color) == ("&lt;b&gt;Adam&lt;/b&gt;", "#4f6bed")
    assert [path.marker.symbol[0], path.marker.symbol[-1]] == ["circle-open", "circle"]


def test_points_without_a_finite_loss_are_blank(surface):
    surface.loss[0, 0], surface.loss[1, 1], surface.loss[2, 2] = np.inf, np.nan, 0.0
    height = descent_path_chart(surface, ["Adam"], ["#4f6bed"]).data[0]
    assert np.isnan(height.z[0, 0]) and np.isnan(height.z[1, 1]) and np.isfinite(height.z[2, 2])
    assert np.isfinite([height.zmin, height.zmax]).all()


def test_a_flat_surface_can_be_drawn(surface):
    surface.loss[:] = 2.3
    assert descent_path_chart(surface, ["Adam"], ["#4f6bed"]).data[0].zmax > np.log10(2.3)


def test_the_sentences_say_what_the_chart_does_not_show(surface):
    text = " ".join(in_words(surface))
    assert "1,234 weights" in text
    assert "the plane shows 75 % of the checkpoints' variance" in text
    assert "The plane misses about 0.0250 of the loss (median over checkpoints)" in text
