"""The views Calibrate and Roofline: estimated time, progress, figures with their spread, and sentences."""

from __future__ import annotations

import re
import time

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.views import calibration as views
from dashboard.views import roofline
from dashboard.widgets import run_results
from engine.cli import cards
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.events.lifecycle import Finished, Progress, Started, Starting
from engine.events.machine import Busy
from engine.measurement.calibration import NOT_QUIET
from engine.runtime.client import Client
from engine.store.event_log import EventLog
from tests.fakes import make_run
from tests.measurement.fake_calibration import copied, fake, gemm, kept, tiny


def calibrate_page():
    from dashboard.views import calibration

    calibration.calibrate_view()


def roofline_page():
    from dashboard.views import roofline

    roofline.roofline_view()


@pytest.fixture
def own_store(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda client: None)  # what is submitted stays in the queue
    for module in (views, roofline):
        monkeypatch.setattr(module, "device_name", lambda device: "AMD EPYC 9575F")
    monkeypatch.setattr(views, "versions_now", lambda: {"torch": "2.13.0", "python": "3.11.9"})
    state.store.clear()
    yield store
    state.store.clear()


def shown(page):
    app = AppTest.from_function(page, default_timeout=30).run()
    assert not app.exception
    return app


def words(app):
    return "\n".join(e.value for kind in ("markdown", "caption", "info", "warning") for e in app.get(kind)).replace(
        "\\", ""
    )


def test_the_estimated_time_is_above_the_button_and_without_a_calibration_there_are_no_figures(own_store):
    app = shown(calibrate_page)
    assert "Takes about" in words(app) and "(estimated)" in words(app)
    assert "is not calibrated in this store yet" in words(app) and not app.warning


def test_a_link_shows_its_own_calibration_and_says_when_it_is_not_the_newest(own_store):
    old, new = [kept(own_store, fake(at=time.time() - days * 86_400)) for days in (3, 0)]
    app = AppTest.from_function(calibrate_page, default_timeout=30)
    app.query_params["run"] = old
    assert "This is an older calibration" in words(app.run()) and not app.exception
    app.query_params["run"] = new
    assert "This is an older calibration" not in words(app.run())


def test_a_link_to_a_running_calibration_shows_its_progress(own_store):
    run_id = own_store.create(preset_config("calibrate"))
    app = AppTest.from_function(calibrate_page, default_timeout=30)
    app.query_params["run"] = run_id
    app.run()
    assert not app.exception and app.button(key=f"stop-{run_id}")


def test_the_button_starts_a_calibration_of_all_usable_cores(own_store):
    shown(calibrate_page).button(key="calibrate.start").click().run()
    (row,) = own_store.rows()
    assert (row.config.task, row.config.threads) == ("calibrate", state.machine().cpu.usable_cores)


def test_a_running_calibration_shows_progress_and_no_button_for_a_second_one(own_store):
    config = views.config_of("cpu")
    run_id = own_store.create(config)
    log = EventLog(own_store.folder(run_id) / "events.jsonl")
    log.append(Starting(at=time.time(), pid=1, pid_started=0.0))
    log.append(
        Started(
            at=time.time(), parameters=0, train_flops_per_example=0, train_examples=1, test_examples=0, total_steps=None,
            setup_s=0.1,
        )
    )  # fmt: skip
    log.append(Progress(text="Matrix products in fp32", done=30, total=120))
    app = shown(calibrate_page)
    keys = [button.key for button in app.button]
    assert f"stop-{run_id}" in keys and "calibrate.start" not in keys


def test_each_figure_has_its_provenance_and_its_spread(own_store):
    kept(own_store, fake(missing={"idle_power": "No counter here."}))
    app = shown(calibrate_page)
    (table,) = app.table
    assert table.value["1 thread"].tolist()[0] == "90.0 GFLOP/s (± 1 %)"
    assert table.value["2 threads"].tolist()[0] == "170 GFLOP/s (± 1 %)"
    said = words(app)
    assert "idle power: No counter here." in said and "torch 2.13.0" in said and "3.00 µs" in said
    assert not app.warning


def test_an_old_calibration_of_a_busy_machine_has_warnings(own_store):
    kept(own_store, fake(at=time.time() - 40 * 86_400, wall_per_cpu=2.0))
    assert [w.value.replace("\\", "").split(":")[0] for w in shown(calibrate_page).warning] == [
        "It was made 40 days ago", "The machine was busy",
    ]  # fmt: skip


def test_two_threads_on_a_busy_machine_are_not_known(own_store):
    disturbed = {"gemm fp32 at 2 threads": NOT_QUIET, "memory at 2 threads": NOT_QUIET}
    made = fake(wall_per_cpu=5.6, missing=disturbed)
    one = tuple(m for m in made.measurements if m.threads == 1)
    kept(own_store, made.model_copy(update={"measurements": one}))
    app = shown(calibrate_page)
    assert "Recommended threads: not known." in words(app) and "Not known: other programs used the cores" in words(app)
    make_run(own_store, with_overrides(preset_config("mnist-mlp"), ["threads=2"]))
    said = words(shown(roofline_page))
    assert "There are no ceilings at this thread count. Not known, because other programs used the cores" in said
    assert "Not on the chart: The calibration has no peak in fp32 at 2 threads. Not known" in said


def test_the_roofline_names_the_calibration_of_each_run(own_store):
    own = kept(own_store, fake())
    make_run(own_store)
    assert "The lines are those of the newest calibration" not in words(shown(roofline_page))
    kept(own_store, fake(gemm(rate=900e9)))
    state._judged_by.clear()
    said = words(shown(roofline_page))
    assert "The lines are those of the newest calibration" in said and f"(calibration {own} of " in said


def test_a_viewer_cannot_calibrate(own_store, monkeypatch):
    monkeypatch.setattr(Client, "may", lambda client, what, run_id=None: False)
    assert shown(calibrate_page).button(key="calibrate.start").disabled


def test_text_of_a_calibration_is_shown_as_text(own_store, monkeypatch):
    evil = "**AMD** :red[x] [y](http://z)"
    monkeypatch.setattr(views, "device_name", lambda device: evil)
    kept(own_store, fake(device_name=evil, missing={"x": evil}))
    raw = "\n".join(c.value for c in shown(calibrate_page).caption)
    assert evil not in raw and "\\*\\*AMD" in raw


def test_the_roofline_asks_for_a_calibration_first(own_store):
    make_run(own_store)
    assert "Calibrate this device first" in words(shown(roofline_page))


def test_every_run_has_its_limit_and_what_to_try(own_store):
    kept(own_store, fake())
    make_run(own_store, name="mine")
    app = shown(roofline_page)
    assert len(app.get("plotly_chart")) == 1
    said = words(app)
    assert (
        "**mine**" in said
        and re.search(r"(L|l)imited by", said)
        and "Try: " in said
        and "MFU" in said
        and "derived" in said
    )


def test_what_a_busy_machine_attained_is_marked_on_the_roofline_and_in_its_mfu(own_store):
    kept(own_store, fake())
    busy = Finished(at=time.time(), busy=Busy(slowdown=2.5))
    run = make_run(own_store, last=busy)
    assert "The machine was busy, so the run reached less than it could" in words(shown(roofline_page))
    assert "the machine was busy" in cards._mfu_in_words(run)
    assert "machine was busy" in run_results.mfu_details(run)[0].text


def test_a_run_without_a_place_says_why(own_store):
    kept(own_store, fake())
    make_run(own_store, with_overrides(preset_config("mnist-mlp"), ["precision=bf16"]), name="half")
    assert "Not on the chart: The calibration has no peak in bf16." in words(shown(roofline_page))


def test_runs_of_another_thread_count_are_left_out(own_store):
    kept(own_store, fake(copied(2**20, 90e9, 2), copied(2**27, 30e9, 2), gemm(), tiny()))
    make_run(own_store, name="one")
    make_run(own_store, name="one more")
    make_run(own_store, with_overrides(preset_config("mnist-mlp"), ["threads=2"]), name="two")
    app = shown(roofline_page)
    assert "1 of the chosen runs uses another thread count" in words(app) and "**two**" not in words(app)
    app.segmented_control(key="roofline.threads").set_value(2).run()
    assert "**two**" in words(app) and "2 of the chosen runs" in words(app)


def test_without_runs_the_roofline_shows_the_ceilings_only(own_store):
    kept(own_store, fake())
    app = shown(roofline_page)
    assert "There is no training run on this device yet" in words(app) and len(app.get("plotly_chart")) == 1
