"""Each page as its first visitor sees it, under Streamlit's own test driver."""

import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.widgets import form_fields, run_parts, uploads
from engine.access.policy import Actor
from engine.common.errors import DeviceError
from engine.config.data import DATA
from engine.config.models import MODELS
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.tasks import Landscape
from engine.config.training import OPTIMIZERS
from engine.events.lifecycle import Cancelled, Finished
from engine.events.machine import Busy
from engine.events.training import StepSplit
from engine.planning import planner
from engine.system.files import write_atomically
from tests.fakes import make_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def app(store, monkeypatch, tmp_path):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "data"))
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=30)
    state.store.clear()


def open_page(app, name, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / f"{name}.py"))
    for key, value in params.items():
        app.query_params[key] = value
    return app.run()


def widget(app, path):
    """The widget of a field, whatever its kind."""
    key = f"experiment.{path}"
    return next(w for w in (*app.main, *app.sidebar) if getattr(w, "key", None) == key)


def labels(app):
    return {getattr(w, "label", "") for w in app.main}


def figure(app, label):
    return next(m.value for m in app.metric if m.label == label)


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
    assert app.text_input(key="experiment.optimizer.lr").value == "0.05"


def test_what_the_form_shows_stands_in_the_link(app):
    open_page(app, "train")
    app.text_input(key="experiment.mlp.hidden").set_value("512, 256").run()
    expected = with_overrides(preset_config("mnist-mlp"), ["model.hidden=512,256"])
    assert shown_config(app) == expected


def test_gradient_descent_in_the_form_takes_the_whole_set(app):
    open_page(app, "train")
    app.selectbox(key="experiment.optimizer.name").set_value("gd").run()
    assert app.select_slider(key="experiment.batch_size").disabled
    assert "full" in app.query_params["batch_size"]


@pytest.mark.parametrize("lr", ["nan", "inf", "0", "-1", "fast"])
def test_a_learning_rate_that_is_not_allowed_is_refused_in_the_engines_own_sentence(app, lr):
    open_page(app, "train")
    app.text_input(key="experiment.optimizer.lr").set_value(lr).run()
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
        "engine.runtime.client.Client.submit",
        lambda _, config, **rest: submitted.append(config) or make_run(store).run_id,
    )
    open_page(app, "train")
    app.text_input(key="experiment.optimizer.lr").set_value("0.5")
    app.button(key="run").click().run()
    assert [config.optimizer.lr for config in submitted] == [0.5]


def test_a_double_click_starts_one_run(app, store, monkeypatch):
    monkeypatch.setattr("engine.runtime.client.Client.wake", lambda _: None)
    open_page(app, "train", preset="digits-mlp")
    app.button(key="run").click().run()
    app.button(key="run").click().run()
    assert len(store.ids()) == 1


def test_a_second_click_later_starts_a_second_run(app, store, monkeypatch):
    monkeypatch.setattr("engine.runtime.client.Client.wake", lambda _: None)
    monkeypatch.setattr("dashboard.state._DOUBLE_CLICK_S", 0.0)
    open_page(app, "train", preset="digits-mlp")
    app.button(key="run").click().run()
    app.button(key="run").click().run()
    assert len(store.ids()) == 2


def in_a_team(store, monkeypatch, name, text=""):
    """The page as somebody of a team sees it, who came in through a proxy."""
    lines = "[sign_in]\nmethod = 'proxy'\nproxy_header = 'X-User'\nproxy_addresses = ['10.0.0.5']\n" + text
    write_atomically(store.root / "settings.toml", lines)
    monkeypatch.setattr("dashboard.state.actor", lambda: Actor("proxy", name))


def test_a_viewer_sees_a_run_and_cannot_change_it(app, store, monkeypatch):
    in_a_team(store, monkeypatch, "eve")
    run = make_run(store)
    open_page(app, "train", run=run.run_id)
    assert not app.exception
    assert app.button(key="run").disabled
    assert [b.key for b in app.button if b.key and b.key.startswith(("again-", "delete-"))] == []


def test_somebody_whose_access_was_taken_away_gets_no_further(app, store, monkeypatch):
    in_a_team(store, monkeypatch, "eve", "allowed = ['alice']")
    app.run()
    assert [e.value for e in app.error] == ["eve may not use this dashboard. Ask its admin for access."]
    assert not app.button


def test_a_file_of_this_machine_is_not_even_looked_at_for_a_runner(app, store, monkeypatch, tmp_path):
    in_a_team(store, monkeypatch, "rob", "[roles]\nrunner = ['rob']")
    monkeypatch.setattr("engine.data.loading.facts", lambda *_: pytest.fail("the file was read"))
    open_page(app, "train", **{"data": "csv", "source.path": "/etc/passwd"})
    assert any("outside the allowed folders" in e.value for e in app.error)


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
    before = figure(app, "Parameters")
    app.text_input(key="experiment.mlp.hidden").set_value("256").run()
    assert (before, figure(app, "Parameters")) == ("101,770", "203,530")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_survives_the_link(preset):
    params = state.link_params(preset, PRESETS[preset].config)
    assert state.config_from_link(params) == (preset, PRESETS[preset].config)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_from_the_form_as_it_is(app, preset):
    open_page(app, "train", preset=preset)
    assert not app.exception and not app.error
    assert shown_config(app) == PRESETS[preset].config


# Between them every field of every model, optimizer, schedule and data set holds something else than usual.
EVERYTHING = {
    "mlp": [
        "model.hidden=[]", "optimizer.name=momentum", "optimizer.lr=0.00123456789", "optimizer.momentum=0.75",
        "optimizer.weight_decay=0.01", "schedule=step", "warmup_steps=7", "lr_gamma=0.3", "lr_milestones=[0.25,0.6,0.9]",
        "batch_size=100", "budget.samples=12345", "budget.seconds=1.5", "budget.flops=1e15", "seed=4294967295",
        "target.metric=test_loss", "target.value=0.5", "evaluate_every=7", "checkpoints=12",
    ],
    "cnn": [
        "model.family=cnn", "model.width=1.7", "data=synthetic", "source.shape=[3,24,32]", "source.num_classes=7",
        "source.num_examples=999", "optimizer.name=rmsprop", "optimizer.alpha=0.9", "schedule=one-cycle",
        "batch_size=full", "grad_accumulation=4", "precision=bf16", "execution=dataloader", "budget.epochs=none",
        "budget.steps=1000000",
    ],
    "rnn": [
        "model.family=rnn", "model.cell=tanh", "model.hidden_size=5", "model.num_layers=3", "model.bidirectional=true",
        "model.readout=all", "optimizer.name=muon", "optimizer.momentum=0.8", "optimizer.beta1=0.7", "optimizer.beta2=0.9",
        "label_smoothing=0.1", "max_grad_norm=2.5", "ema_decay=0.999", "activation_checkpointing=true",
        "target.value=0.97",
    ],
    "transformer": [
        "model.family=transformer", "model.num_layers=3", "model.d_model=96", "model.num_heads=6", "model.patch_size=7",
        "optimizer.name=gd", "batch_size=full", "schedule=cosine", "lr_end=0.2", "data=mnist1d",
    ],
    "text": ["model.family=rnn", "data=text", "source.seq_len=33", "optimizer.name=nesterov", "schedule=warm-up"],
    "ranks": ["parallel.num_ranks=2", "parallel.strategy=fsdp", "parallel.devices=[cpu,cpu]", "parallel.timeout_s=9"],
    "hidden": ["optimizer.momentum=0.5", "source.seq_len=10", "lr_end=0.5"],  # what nothing uses is kept all the same
}  # fmt: skip


@pytest.mark.parametrize("assignments", EVERYTHING.values(), ids=EVERYTHING)
def test_every_field_travels_from_the_link_through_the_form_into_the_link(app, assignments):
    config = with_overrides(preset_config("mnist-mlp"), assignments)
    open_page(app, "train", **state.link_params("mnist-mlp", config))
    assert not app.exception and not app.error
    assert shown_config(app) == config


def test_that_means_every_field_there_is():
    said = {line.partition("=")[0] for lines in EVERYTHING.values() for line in lines}
    of_files = {"source.path", "source.label"}  # below
    here = {"device", "threads"}  # depend on the machine
    assert {form_fields.assigned_path(path) for path in form_fields.PATHS} - said == of_files | here


@pytest.mark.parametrize(
    ("ranks", "batch_size", "says"), [("2", "64", "64 = 2 ranks x 32"), ("2", "full", "whole training set")]
)
def test_what_a_rank_gets_of_the_batch_is_said_beside_the_ranks(app, ranks, batch_size, says):
    open_page(app, "train", batch_size=batch_size, **{"parallel.num_ranks": ranks, "parallel.devices": "[cpu,cpu]"})
    assert any(says in caption.value for caption in app.caption)


def test_one_rank_has_nothing_to_share(app):
    open_page(app, "train")
    assert not any("Global batch" in caption.value for caption in app.caption)


def test_devices_that_do_not_go_with_the_ranks_are_refused_in_the_engines_own_sentence(app):
    open_page(app, "train")
    app.number_input(key="experiment.parallel.num_ranks").set_value(2).run()
    app.text_input(key="experiment.parallel.devices").set_value("cpu").run()
    assert "devices has 1 entries for num_ranks=2" in app.error[0].value.replace("\\", "")
    assert app.button(key="run").disabled


@pytest.mark.parametrize("family", MODELS)
def test_the_size_dial_sets_the_dimensions_and_the_plan_follows(app, family):
    open_page(app, "train")
    app.segmented_control(key="experiment.family").set_value(family).run()
    parameters = []
    for size, dimensions in MODELS[family].sizes.items():
        widget(app, "size").set_value(size).run()
        parameters.append(figure(app, "Parameters"))
        assert shown_config(app).model == MODELS[family](**dimensions)
    assert len(set(parameters)) == 4


def test_dimensions_of_ones_own_move_the_dial_to_custom_and_back(app):
    open_page(app, "train", preset="mnist-vit")
    widget(app, "transformer.num_layers").set_value(3).run()
    assert widget(app, "size").value == "custom"
    widget(app, "transformer.num_layers").set_value(2).run()
    assert widget(app, "size").value == "tiny"


def test_text_is_read_by_a_transformer_and_images_by_it_as_well(app):
    open_page(app, "train")
    widget(app, "data").set_value("text").run()
    assert "Transformer" in app.toast[0].value
    assert widget(app, "family").options == ["RNN", "Transformer"]
    assert shown_config(app).model.family == "transformer"
    widget(app, "data").set_value("mnist5k").run()
    assert not app.error
    assert shown_config(app).model.family == "transformer"


def test_what_text_cannot_use_is_neither_shown_nor_kept(app):
    open_page(app, "train", preset="mnist1d-gru")
    widget(app, "data").set_value("text").run()
    assert not app.error
    assert "Bidirectional" not in labels(app)
    assert shown_config(app).model.bidirectional is False


USES = {
    "gd": set(), "sgd": set(), "momentum": {"Momentum"}, "nesterov": {"Momentum"}, "adagrad": set(),
    "rmsprop": {"Alpha"}, "adam": {"Beta 1", "Beta 2"}, "adamw": {"Beta 1", "Beta 2"},
    "muon": {"Momentum", "Beta 1", "Beta 2"},
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_an_optimizer_shows_its_own_fields_and_starts_from_a_usual_learning_rate(app, name):
    open_page(app, "train", preset="lenet-source", **{"optimizer.momentum": "0.5"})
    widget(app, "optimizer.name").set_value("adagrad").run()
    widget(app, "optimizer.name").set_value(name).run()
    assert not app.error
    assert labels(app) & {"Momentum", "Alpha", "Beta 1", "Beta 2"} == USES[name]
    assert shown_config(app).optimizer.lr == OPTIMIZERS[name].usual_lr


def test_leaving_gradient_descent_returns_to_mini_batches(app):
    open_page(app, "train", preset="mnist-gd")
    widget(app, "optimizer.name").set_value("adam").run()
    assert shown_config(app).batch_size == 64


def test_a_schedule_leaves_nothing_behind_that_the_next_one_refuses(app):
    open_page(app, "train", preset="mnist-vit")
    assert "Final learning rate" in labels(app)
    widget(app, "schedule").set_value("one-cycle").run()
    assert not app.error
    assert shown_config(app).warmup_steps == 0


def test_another_unit_replaces_the_budget_and_further_limits_are_said(app):
    open_page(app, "train", preset="lenet")
    widget(app, "unit").set_value("steps").run()
    widget(app, "budget.seconds").set_value("30").run()
    budget = shown_config(app).budget
    assert (budget.epochs, budget.steps, budget.seconds) == (None, 1000, 30)
    assert "or 30 seconds, whichever comes first" in [c.value for c in app.caption]


@pytest.mark.parametrize("typed", ["97 %", "97%", "0.97"])
def test_a_target_is_a_share_or_a_percentage(app, typed):
    open_page(app, "train")
    widget(app, "target.value").set_value(typed).run()
    assert shown_config(app).target.value == 0.97


def test_a_target_that_is_neither_is_refused_in_the_engines_own_sentence(app):
    open_page(app, "train")
    widget(app, "target.value").set_value("97").run()
    assert "97 % is 0.97" in app.error[0].value.replace("\\", "")


@pytest.mark.process
def test_a_table_waits_for_its_file_and_then_trains(app):
    open_page(app, "train")
    widget(app, "data").set_value("csv").run()
    assert "nothing is chosen yet" in app.info[0].value
    assert app.button(key="run").disabled
    app.file_uploader(key="upload.csv").set_value(("../iris.csv", table(), "text/csv")).run()
    assert not app.error
    config = shown_config(app)
    assert planner.check(config).train_examples == 48
    assert not app.button(key="run").disabled
    assert widget(app, "source.label").options == ["Last column: kind", "width", "length", "kind"]
    widget(app, "source.label").set_value("width").run()
    assert "This looks like regression" in app.error[0].value
    open_page(app, "train", **app.query_params | {"source.label": ["species"]})
    assert widget(app, "source.label").value == "species"
    assert "Columns: width, length, kind" in app.error[0].value.replace("\\", "")


def test_each_data_set_keeps_its_own_file(app):
    open_page(app, "train")
    widget(app, "data").set_value("csv").run()
    widget(app, "source.path").set_value("/mine.csv").run()
    widget(app, "data").set_value("text").run()
    assert shown_config(app).source.path == ""
    widget(app, "data").set_value("csv").run()
    assert widget(app, "source.path").value == "/mine.csv"


def table():
    rng = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{'abc'[i % 3]}" for i, (a, b) in enumerate(rng.normal(size=(60, 2)))]
    return "\n".join(["width,length,kind", *rows]).encode()


def test_the_same_upload_is_the_same_file_whatever_it_was_called(monkeypatch, tmp_path):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path))
    path = uploads.keep("csv", table())
    before = path.stat().st_mtime_ns
    assert uploads.keep("csv", table()) == path
    assert path.stat().st_mtime_ns == before
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert uploads.keep("csv", table() + b"1,2,a\n") != path


def test_what_the_device_cannot_do_is_refused_before_the_run(app):
    open_page(app, "train")
    widget(app, "precision").set_value("tf32").run()
    assert "tensor cores" in app.error[0].value
    assert app.button(key="run").disabled
    with pytest.raises(DeviceError):
        planner.check(with_overrides(RunConfig(), ["precision=tf32"]))


def test_what_works_but_not_as_one_might_hope_is_said_before_the_run(app):
    open_page(app, "train", preset="lenet", data="synthetic")
    assert "measures speed" in app.warning[0].value
    assert not app.button(key="run").disabled


@pytest.mark.parametrize("data", DATA)
def test_each_data_set_says_what_it_is_or_what_it_waits_for(app, data):
    open_page(app, "train", preset="char-lstm")
    widget(app, "data").set_value(data).run()
    assert not app.exception and not app.error
    said = " ".join(e.value for e in (*app.caption, *app.info))
    assert "test samples" in said or "nothing is chosen yet" in said
    assert ("Downloaded on first use" in said) == (data in {"mnist", "fashion-mnist", "cifar10"})


def test_a_run_that_missed_its_target_says_so(app, store):
    config = with_overrides(preset_config("mnist-mlp"), ["target.value=0.999"])
    open_page(app, "train", run=make_run(store, config).run_id)
    assert any("Target of 99.90 % accuracy not reached" in c.value.replace("\\", "") for c in app.caption)


def test_the_memory_of_a_run_is_that_of_training_and_the_process_stands_beside(app, store):
    run = make_run(store, last=Finished(at=0, peak_memory_bytes=2**30))
    open_page(app, "train", run=run.run_id)
    assert figure(app, "Training memory") != "1.00 GiB"
    assert any("Whole process 1.00 GiB" in c.value for c in app.caption)


@pytest.mark.process
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


def test_the_form_of_a_loss_surfaces_link_is_one_of_training(app, store):
    surface = with_overrides(RunConfig(), ["task=landscape", "landscape.runs=0123456789abcdef"])
    run_id = store.create(surface)
    open_page(app, "train", run=run_id)
    assert not app.exception
    assert (shown_config(app).task, shown_config(app).landscape.runs) == ("train", ())


def test_a_run_that_was_disturbed_says_so_beside_its_figures_of_speed(app, store):
    busy = Busy(slowdown=2.0, slowdown_method="wall by CPU time")
    run = make_run(store, num_steps=60, last=Finished(at=0, busy=busy))
    page = open_page(app, "train", run=run.run_id)
    marked = {m.label for m in page.metric if m.delta == "machine was busy"}
    assert marked == {"Samples per second", "Training time"}
    assert any("2.00 times as long as" in c.value for c in page.caption)


def test_a_run_shows_where_its_steps_time_went_and_what_it_ran_on(app, store):
    split = StepSplit(
        data_s=1e-4, forward_s=1e-4, backward_s=1e-4, optimizer_s=7e-4, read_back_s=0.0, steps=8, method="m"
    )
    run = make_run(
        store,
        num_steps=120,
        step_s=1e-3,
        said=[split],
        last=Finished(at=0, energy_method="RAPL is not readable here: no."),
    )
    page = open_page(app, "train", run=run.run_id)
    said = " ".join(m.value for m in page.markdown).replace("\\", "")
    assert "70 % of a step is the optimizer" in said and "Where a step" in said
    assert any("Evaluation: 4.00 ms in all" in c.value.replace("\\", "") for c in page.caption)
    assert "AMD EPYC 9575F" in said and "Not available here: RAPL is not readable here" in said
    assert "MFU of the measured peak: **unknown**" in said and "was not calibrated in this store" in said
    assert "alice" not in said


def test_a_step_breakdown_in_doubt_has_no_advice(app, store):
    split = StepSplit(data_s=1e-4, forward_s=1e-4, backward_s=1e-4, optimizer_s=7e-4, read_back_s=0.0, steps=8)
    run = make_run(store, num_steps=60, step_s=3e-3, said=[split])
    page = open_page(app, "train", run=run.run_id)
    said = " ".join(m.value for m in page.markdown).replace("\\", "")
    assert "The parts add up to 1.00 ms, but a step of the run took 3.00 ms" in said and "optimizer:" not in said


@pytest.mark.parametrize(
    ("preset", "address"),
    [
        ("digits-law", "compare?view=Batch-size+law&law="),
        ("calibrate", "hardware?view=Calibrate&run="),
        ("lenet", "train?run="),
    ],
)
def test_a_run_is_opened_where_runs_of_its_kind_are_shown(app, store, preset, address):
    run_id = store.create(preset_config(preset))
    run = store.run(run_id)
    page, _, query = address.partition("?")
    asked = urllib.parse.parse_qs(query, keep_blank_values=True)
    assert run_parts.page_of(run) == f"../pages/{page}.py"
    assert run_parts.address_of(run) == {key: value or run_id for key, (value,) in asked.items()}
    assert (ROOT / "pages" / f"{page}.py").exists()


def test_a_calibration_opened_on_the_page_train_leads_to_its_own_view(app, store):
    run_id = store.create(preset_config("calibrate"))
    page = open_page(app, "train", run=run_id)
    assert page.title[0].value == "Hardware"
    assert not [m for m in page.metric if m.label in {"Parameters", "Test accuracy"}]


def test_a_surface_is_shown_beside_its_race_and_without_one_says_what_it_is(app, store):
    raced, alone = store.create(RunConfig(), group="aa" * 8), store.create(RunConfig())
    surfaces = [
        store.run(store.create(RunConfig(task="landscape", landscape=Landscape(runs=(run_id,)))))
        for run_id in (raced, alone)
    ]
    assert (run_parts.page_of(surfaces[0]), run_parts.address_of(surfaces[0])) == (
        "../pages/compare.py",
        {"view": "Descent path", "race": "aa" * 8},
    )
    assert run_parts.page_of(surfaces[1]) == run_parts.TRAIN
    lost = make_run(store, surfaces[1].config, num_steps=0, last=Cancelled(at=0.0))
    page = open_page(app, "train", run=lost.run_id)
    assert "A loss surface does not train a model" in " ".join(c.value for c in page.caption)
    assert not [m for m in page.metric if m.label == "Test accuracy"]
