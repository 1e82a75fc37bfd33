"""Each page as its first visitor sees it, under Streamlit's own test driver."""

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from engine.config import PRESETS, preset_config, with_overrides
from tests.fakes import make_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def app(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=30)
    state.store.clear()


def open_page(app, name, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / f"{name}.py"))
    for key, value in params.items():
        app.query_params[key] = value
    return app.run()


def shown_config(app):
    link = {key: value[0] if isinstance(value, list) else value for key, value in app.query_params.items()}
    return state.config_from_link(link)[1]


@pytest.mark.parametrize("page", sorted(p.stem for p in (ROOT / "pages").glob("*.py")))
@pytest.mark.parametrize("with_runs", [False, True])
def test_each_page_opens_without_an_error_and_without_torch(app, store, page, with_runs):
    if with_runs:
        make_run(store, name="<b>mine</b>")
    open_page(app, page)
    assert not app.exception
    assert not app.error


def test_the_form_opens_as_the_link_says(app):
    open_page(app, "train", preset="lenet", batch_size="128", **{"optimizer.lr": "0.05"})
    assert app.select_slider(key="experiment.batch_size").value == 128
    assert app.text_input(key="experiment.lr").value == "0.05"


def test_what_the_form_shows_stands_in_the_link(app):
    open_page(app, "train")
    app.text_input(key="experiment.hidden").set_value("512, 256").run()
    expected = with_overrides(preset_config("mnist-mlp"), ["model.hidden=512,256"])
    assert shown_config(app) == expected


def test_gradient_descent_in_the_form_takes_the_whole_set(app):
    open_page(app, "train")
    app.selectbox(key="experiment.optimizer").set_value("gd").run()
    assert app.select_slider(key="experiment.batch_size").disabled
    assert "full" in app.query_params["batch_size"]


@pytest.mark.parametrize("lr", ["nan", "inf", "0", "-1", "fast"])
def test_a_learning_rate_that_is_not_allowed_is_refused_in_the_engines_own_sentence(app, lr):
    open_page(app, "train")
    app.text_input(key="experiment.lr").set_value(lr).run()
    assert "optimizer.lr" in app.error[0].value
    assert app.button(key="run").disabled


@pytest.mark.parametrize("link", [{"batch_size": "0"}, {"preset": "nope"}, {"bach_size": "3"}, {"device": "tpu"}])
def test_a_link_that_is_not_allowed_says_so_and_shows_a_form_all_the_same(app, link):
    open_page(app, "train", **link)
    assert next(iter(link)) in app.error[0].value.replace("\\", "")
    assert app.selectbox(key="experiment.preset").value == "mnist-mlp"


def test_a_bare_link_to_a_run_fills_the_form_with_its_experiment(app, store):
    run_id = make_run(store).run_id
    open_page(app, "train", run=run_id)
    assert shown_config(app) == store.run(run_id).config
    assert [m.label for m in app.metric if m.label == "Test accuracy"]


def test_a_click_submits_what_the_form_shows_even_when_it_was_just_typed(app, store, monkeypatch):
    submitted = []
    monkeypatch.setattr(
        "engine.supervisor.Client.submit", lambda _, config: submitted.append(config) or make_run(store).run_id
    )
    open_page(app, "train")
    app.text_input(key="experiment.lr").set_value("0.5")
    app.button(key="run").click().run()
    assert [config.optimizer.lr for config in submitted] == [0.5]


def test_values_of_fields_that_are_hidden_for_a_while_are_kept(app):
    open_page(app, "train", preset="mnist-mlp-large")
    for family in ("cnn", "mlp"):
        app.segmented_control(key="experiment.family").set_value(family).run()
    assert not app.exception
    assert shown_config(app) == PRESETS["mnist-mlp-large"].config


@pytest.mark.parametrize(
    "assignments",
    [
        ["budget.seconds=5"],
        ["budget.epochs=none", "budget.steps=1000000"],
        ["optimizer.lr=0.00123456789"],
        ["optimizer.name=momentum", "optimizer.momentum=0.999"],
        ["batch_size=100", "evaluate_every=7"],
        ["model.hidden=[]"],
        ["model.family=cnn", "model.width=1.7"],
    ],
)
def test_a_link_comes_through_the_form_unchanged(app, assignments):
    config = with_overrides(preset_config("mnist-mlp"), assignments)
    open_page(app, "train", **state.link_params("mnist-mlp", config))
    assert not app.exception
    assert shown_config(app) == config


def test_a_link_to_a_run_that_is_gone_says_so(app):
    open_page(app, "train", run="0" * 16)
    assert "not in this store" in app.warning[0].value


def test_the_figures_of_the_plan_move_with_the_form(app):
    open_page(app, "train")
    before = next(m.value for m in app.metric if m.label == "Parameters")
    app.text_input(key="experiment.hidden").set_value("256").run()
    after = next(m.value for m in app.metric if m.label == "Parameters")
    assert (before, after) == ("101,770", "203,530")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_the_link(preset):
    params = state.link_params(preset, PRESETS[preset].config)
    assert state.config_from_link(params) == (preset, PRESETS[preset].config)


def test_torch_stays_out_of_the_pages_process():
    import subprocess

    code = (
        "import sys; from streamlit.testing.v1 import AppTest;"
        "at = AppTest.from_file('dashboard/main.py', default_timeout=30).run();"
        "[at.switch_page(f'{p}').run() for p in sys.argv[1:]];"
        "assert not at.exception; assert 'torch' not in sys.modules"
    )
    pages = [str(p) for p in (ROOT / "pages").glob("*.py")]
    subprocess.run([sys.executable, "-c", code, *pages], cwd=ROOT, check=True, timeout=120)
