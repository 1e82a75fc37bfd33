"""The page Scale, and the route of its live charts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.api import readers
from dashboard.api import scaling as scaling_api
from dashboard.server import auth_middleware
from engine.charts.scaling import speedup_chart, step_chart
from engine.charts.style import PALETTE
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Cancelled, Failed
from engine.events.training import Steps
from engine.hardware import probe
from engine.hardware.probe import CpuDevice, Machine
from engine.runtime.client import Client
from engine.store.event_log import EventLog
from engine.studies import scaling, scaling_results
from tests.conftest import ROOT
from tests.fakes import make_run, make_scaled, scaled_study

GROUP = "0123456789abcdef"
BASE = with_overrides(RunConfig(), ["budget.epochs=none", "budget.steps=100", "batch_size=64"])
STEP_S = {("strong", 1): 0.01, ("strong", 2): 0.00625, ("weak", 2): 0.0125}


def machine(cores: int) -> Machine:
    return Machine(CpuDevice("CPU", cores, cores, cores, ()), (), "no NVIDIA driver", 2**36, 2**35, "Linux", "3")


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores the machine seems to have."""

    def have(number: int) -> None:
        monkeypatch.setattr(probe, "probe", lambda: machine(number))
        monkeypatch.setattr(state, "machine", lambda: machine(number))

    have(4)
    return have


@pytest.fixture
def app(store, monkeypatch, cores):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda _: None)
    monkeypatch.setattr(scaling_api, "_KEPT_S", 0.0)
    monkeypatch.setattr(readers, "_REFRESH_S", 0.0)
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=60)
    state.store.clear()


def open_page(app, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / "scale.py"))
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def said(app) -> str:
    """All texts of the page, without the escapes of markdown."""
    words = "\n".join(
        str(e.value) for kind in (app.markdown, app.caption, app.info, app.warning, app.error) for e in kind
    )
    return words.replace("\\", "").replace(":color[", "").replace("]", "")


# --- before a study ---------------------------------------------------------------------------------------------------


def test_before_the_start_the_page_says_what_will_run_and_how_long_it_takes(app):
    open_page(app)
    assert "5 configurations x 3 repeats = 15 runs, one after another, about" in said(app)
    assert "(estimated)" in said(app)
    assert "Strong scaling: global batch 64 = 4 ranks x 16. Weak scaling: 4 ranks x 64 = 256." in said(app)
    assert not app.button(key="run").disabled


def test_start_submits_all_runs_each_in_its_own_seed_block(app, store):
    open_page(app)
    app.number_input(key="scale.seeds").set_value(2).run()
    app.toggle(key="scale.weak").set_value(False).run()
    app.button(key="run").click().run()
    assert not app.exception
    runs = sorted(map(store.run, store.ids()), key=lambda run: run.order)
    assert [(run.config.parallel.num_ranks, run.config.seed) for run in runs] == [
        (1, 0),
        (2, 0),
        (4, 0),
        (4, 1),
        (2, 1),
        (1, 1),
    ]
    assert {run.config.batch_size for run in runs} == {64}
    assert {run.heat.lanes for run in runs} == {1}
    assert len({run.heat.id for run in runs}) == 6
    assert runs[0].group in app.query_params["study"]
    assert "Measuring. The first result appears" in said(app)


def test_a_double_click_starts_one_study(app, store, monkeypatch):
    monkeypatch.setattr(state, "_DOUBLE_CLICK_S", 60.0)  # the driver's clicks are slower than a hand's
    open_page(app)
    app.number_input(key="scale.seeds").set_value(1).run()
    for _ in range(2):
        app.button(key="run").click().run()
    assert len(store.ids()) == 5


def test_on_one_core_the_page_says_so_and_ranks_can_share_it(app, cores):
    cores(1)
    open_page(app)
    assert "1 usable core, so there is no second rank" in said(app)
    assert app.button(key="run").disabled
    app.toggle(key="scale.beyond").set_value(True).run()
    assert not app.button(key="run").disabled
    assert "taking turns on fewer cores" in said(app)


def test_a_machine_with_one_gpu_and_cores_can_still_scale_on_its_cores(app):
    config = with_overrides(RunConfig(), ["device=cuda:0"])
    assert scaling.ranks_here(config, machine(4)) == [1]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("scale.target", "ninety", "is not a number"),
        ("scale.target", "101", "is not allowed"),
        ("scale.target", "-1", "is not allowed"),
    ],
)
def test_an_impossible_target_is_refused(app, key, value, says):
    open_page(app)
    app.text_input(key=key).set_value(value).run()
    assert not app.exception
    assert says in said(app)
    assert app.button(key="run").disabled


def test_a_full_batch_has_only_strong_scaling(app):
    open_page(app, preset="mnist-gd")
    assert app.toggle(key="scale.weak").disabled
    assert "3 configurations x 3 repeats" in said(app)


@pytest.mark.parametrize("link", [{"study": "f" * 16}, {"study": "../.."}, {"preset": "nope"}, {"preset": "train"}])
def test_a_link_that_leads_nowhere_opens_the_page(app, link):
    open_page(app, **link)
    assert app.button(key="run")


# --- a study ----------------------------------------------------------------------------------------------------------


def test_a_finished_study_has_its_verdict_its_reasons_and_its_figures(app, store):
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S, seeds=3, waited_s={("strong", 2): (0.001, 0.001)})
    open_page(app, study=GROUP)
    words = said(app)
    assert "Worth it here: 2 ranks train 1.60 times as fast as one" in words
    assert "Preliminary: 3 of 6 repeats." in words
    assert "Amdahl's law, fitted: serial share 25 %" in words
    assert "all 100 losses agree" in words
    table = app.dataframe[0].value
    assert list(table.columns) == ["", "1 rank", "2 ranks", "2 ranks, batch 128", "How"]
    rows = dict(zip(table[""], table["2 ranks"], strict=True))
    assert rows["Speed-up"].startswith("1.60 (1.60 to 1.60)")
    assert rows["Batch size per rank"] == "32"
    assert rows["Energy of a run"] == "–"
    assert dict(zip(table[""], table["How"], strict=True))["Energy of a run"] == "not available here"
    assert rows["Waits in all-reduce"] == "16 %, 1.00 ms"


def test_a_running_study_can_be_stopped(app, store, monkeypatch):
    cancelled = []
    monkeypatch.setattr(Client, "cancel", lambda _, run_id, **__: cancelled.append(run_id))
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S)
    waiting = store.create(with_overrides(BASE, ["parallel.num_ranks=2", "seed=1"]), name="2 ranks", group=GROUP)
    open_page(app, study=GROUP)
    app.button(key="scale.stop").click().run()
    assert cancelled == [waiting]


def test_a_failed_rank_is_reported_and_the_other_runs_count(app, store):
    lost = Failed(at=0, cause="RankLost", message="Rank 1 (pid 7) was killed by SIGKILL.", fix="Run it again.")
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S, seeds=2, last={("strong", 2, 1): lost})
    open_page(app, study=GROUP)
    assert "Rank 1 (pid 7) was killed by SIGKILL." in app.error[0].value.replace("\\", "")
    assert "1.60 times as fast" in said(app)


def test_a_study_that_was_cancelled_says_how_far_it_came(app, store):
    stopped = Cancelled(at=0, reason="cancelled by the user")
    scaled_study(
        store, group=GROUP, base=BASE, step_s=STEP_S, last={("strong", 2, 0): stopped, ("weak", 2, 0): stopped}
    )
    open_page(app, study=GROUP)
    assert "No result: 1 of 3 runs finished" in said(app)
    assert not app.error


def test_more_repeats_are_the_seeds_that_are_missing(app, store):
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S, seeds=3)
    open_page(app, study=GROUP)
    app.button(key="scale.more").click().run()
    added = [run for run in map(store.run, store.ids()) if run.config.seed > 2]
    assert sorted({run.config.seed for run in added}) == [3, 4, 5]
    assert len(added) == 9
    assert {run.group for run in added} == {GROUP}
    study = scaling.find(store, GROUP)
    assert [len(lane.runs) for lane in study.lanes] == [6, 6, 6]


def test_runs_that_are_not_a_study_are_refused(app, store):
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2"]), group=GROUP, label="2 ranks", step_s=0.01)
    open_page(app, study=GROUP)
    assert "None of these runs is on one rank" in said(app)


def test_what_was_chosen_is_there_after_a_look_elsewhere(app):
    open_page(app)
    app.number_input(key="scale.seeds").set_value(5).run()
    app.select_slider(key="scale.batch").set_value("256").run()
    app.switch_page(str(ROOT / "pages" / "start.py"))
    app.run()
    app.switch_page(str(ROOT / "pages" / "scale.py"))
    app.run()
    assert (app.number_input(key="scale.seeds").value, app.select_slider(key="scale.batch").value) == (5, "256")


def test_what_train_shows_can_be_scaled(app):
    app.run()
    app.switch_page(str(ROOT / "pages" / "train.py"))
    app.query_params["optimizer.lr"] = "0.0123"
    app.run()
    app.switch_page(str(ROOT / "pages" / "scale.py"))
    app.query_params["preset"] = "train"  # as the link on Train says
    app.run()
    assert not app.exception
    assert app.selectbox(key="scale.preset").value == "train"
    assert "adam 0.0123" in said(app)


def test_nothing_is_set_twice(app):
    """Streamlit warns where a widget has a default and a kept value."""
    open_page(app)
    app.toggle(key="scale.weak").set_value(False).run()
    app.switch_page(str(ROOT / "pages" / "start.py"))
    app.run()
    app.switch_page(str(ROOT / "pages" / "scale.py"))
    app.run()
    assert not app.toggle(key="scale.weak").value
    assert not app.warning


# --- the route of its charts ------------------------------------------------------------------------------------------


@pytest.fixture
def ask(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(scaling_api, "_KEPT_S", 0.0)
    monkeypatch.setattr(readers, "_REFRESH_S", 0.0)
    readers._readers.cache_clear()
    scaling_api._kept.clear()
    client = TestClient(Starlette(routes=scaling_api.ROUTES))

    def get(study: str = GROUP, after: str = ""):
        return client.get("/api/scale", params={"study": study, "after": after})

    return get


def test_the_route_is_for_who_may_look():
    assert auth_middleware.decide("/api/scale", "GET") == "viewer"
    assert auth_middleware.decide("/api/scale", "POST") == "nobody"


def test_figures_come_once_and_again_when_they_say_something_new(store, ask):
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S)
    first = ask().json()
    again = ask(after=first["cursor"]).json()
    scaled_study(store, group=GROUP, base=with_overrides(BASE, ["seed=0"]), step_s={("strong", 4): 0.004})
    more = ask(after=first["cursor"]).json()
    assert set(first["figures"]) == {"speedup", "efficiency", "step"}
    assert "figures" not in again
    assert len(json.dumps(again)) < 300
    assert more["cursor"] != first["cursor"]
    assert 4 in [round(x) for trace in more["figures"]["speedup"]["data"] for x in trace["x"]]


def test_figures_that_would_look_the_same_are_not_made_again(store, ask, monkeypatch):
    made = []
    monkeypatch.setattr(scaling_api, "_figures", lambda found: made.append(found) or {"speedup": {}})
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S)
    for _ in range(3):
        ask()
    assert len(made) == 1


def test_a_study_of_which_nothing_ran_yet_has_no_figures(store, ask):
    store.create(BASE, name="1 rank", group=GROUP)
    said = ask().json()
    assert (said["figures"], said["status"], said["done"], said["of"]) == ({}, "queued", 0, 1)


def test_a_run_that_goes_on_is_a_hollow_dot_that_moves(store, ask):
    make_scaled(store, BASE, group=GROUP, label="1 rank", step_s=0.01)
    run_id = store.create(with_overrides(BASE, ["parallel.num_ranks=2"]), name="2 ranks", group=GROUP)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(make_run(store).started)
    cursors = []
    for first in (1, 51):
        log.append(
            Steps(
                first=first, loss=np.ones(50), samples=np.full(50, 64), lr=0.1,
                train_s=((first - 1) * 0.005, (first + 49) * 0.005 * (1 + first / 100)), elapsed_s=(0.0, 1.0),
            )
        )  # fmt: skip
        log.flush_if_due()
        log._write()
        answer = ask().json()
        cursors.append(answer["cursor"])
        strong = next(t for t in answer["figures"]["speedup"]["data"] if t["name"].startswith("strong"))
        assert strong["marker"]["symbol"] == ["circle", "circle-open"]
    assert answer["now"] == "2 ranks"
    assert cursors[0] != cursors[1]


@pytest.mark.parametrize("study", ["", "f" * 16, "../..", "<b>", "%00"])
def test_what_is_not_there_is_an_answer_in_words(store, ask, study):
    response = ask(study)
    assert response.status_code == 404
    assert response.json()["error"] == "This study is not in this store."


def test_runs_that_are_no_study_are_answered_in_words(store, ask):
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2"]), group=GROUP, label="2 ranks", step_s=0.01)
    assert "None of these runs is on one rank" in ask().json()["error"]


# --- the charts themselves --------------------------------------------------------------------------------------------


def figure_of(store, chart, **how):
    scaled_study(store, group=GROUP, base=BASE, **({"step_s": STEP_S, "seeds": 3} | how))
    return {trace.name: trace for trace in chart(scaling_results.outcome_of(scaling.find(store, GROUP))).data}


def test_the_speed_up_chart_has_the_ideal_the_law_and_the_intervals(store):
    traces = figure_of(store, speedup_chart, noise=0.02)
    ideal, law, strong, weak = traces.values()
    assert (list(ideal.x), list(ideal.y)) == ([1, 2], [1.0, 2.0])
    assert law.y[-1] == pytest.approx(1.6, rel=0.05)
    assert strong.y[-1] == pytest.approx(1.6, rel=0.05)
    assert strong.error_y.array[-1] > 0 and strong.error_y.arrayminus[-1] > 0
    assert (strong.marker.color, weak.marker.color) == PALETTE[:2]


def test_ranks_that_only_slow_have_no_law_drawn(store):
    traces = figure_of(store, speedup_chart, step_s={("strong", 1): 0.01, ("strong", 2): 0.013})
    assert "Amdahl's law, fitted" not in traces


def test_a_wild_interval_does_not_press_the_dots_to_a_line(store):
    scaled_study(store, group=GROUP, base=BASE, step_s=STEP_S, seeds=2, noise=0.8)
    figure = speedup_chart(scaling_results.outcome_of(scaling.find(store, GROUP)))
    low, high = figure.layout.yaxis.range
    assert high - low < math.log10(30)


def test_the_parts_of_a_step_add_up_to_it(store):
    waits = {("strong", 2): (0.003, 0.001), ("weak", 2): (0.002, 0.002)}
    traces = figure_of(store, step_chart, waited_s=waits)
    parts = [traces[name] for name in ("own work", "waits: all-reduce", "waits: slower rank")]
    total = [sum(part.y[i] or 0 for part in parts) for i in range(3)]
    assert total == pytest.approx([10.0, 6.25, 12.5], rel=1e-3)
    assert list(traces["own work"].x) == ["1", "2", "2 weak"]
    assert list(traces["ideal"].y) == pytest.approx([10.0, 5.0, 10.0], rel=1e-3)


def test_a_step_that_was_not_taken_apart_is_drawn_whole(store):
    traces = figure_of(store, step_chart, waited_s={("strong", 2): (None, None)})
    assert traces["whole step, parts not measured"].y[1] == pytest.approx(6.25, rel=1e-3)
