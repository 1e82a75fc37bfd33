"""The page Compare: the form of a race, a finished race, and runs of the library beside each other."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime import worker
from engine.runtime.client import Client
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.store.store import Store
from engine.studies import races

pytestmark = pytest.mark.slow  # each test draws the whole page

ROOT = Path(__file__).resolve().parents[2]
GROUP = "0123456789abcdef"


@pytest.fixture
def app(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda _: None)
    state.store.clear()
    yield AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=60)
    state.store.clear()


def open_page(app, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / "compare.py"))
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def said(app) -> str:
    return "\n".join(
        str(e.value) for kind in (app.markdown, app.caption, app.info, app.warning, app.error) for e in kind
    )


def race_of(store: Store, *, seeds=(0,), **options) -> None:
    base = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=60", "evaluate_every=10"])
    lanes = [
        races.Lane(label=label, config=with_overrides(base, [sets]))
        for label, sets in (("Small", "batch_size=4"), ("Large", "batch_size=256"))
    ]
    for heat in races.seed_blocks(lanes, seeds, GROUP):
        worker.run(*(store.folder(store.create(w.config, name=w.name, group=GROUP, key=w.key)) for w in heat))


def test_before_the_start_the_page_says_what_will_race_and_how_long_it_takes(app):
    open_page(app)
    assert "3 configurations with 1 seed" in said(app)
    assert "About 18.0 s of training" in said(app)
    assert len(app.latex) == 3
    assert not app.button(key="run").disabled


def test_start_submits_one_seed_block_per_seed(app, store):
    open_page(app)
    app.number_input(key="race.seeds").set_value(2).run()
    app.button(key="run").click().run()
    runs = [store.run(run_id) for run_id in store.ids()]
    assert len(runs) == 6
    assert {run.heat.lanes for run in runs} == {3}
    assert len({run.heat.id for run in runs}) == 2
    assert {(run.config.checkpoints > 0) for run in runs if run.config.seed == 1} == {False}
    assert runs[0].group in app.query_params["race"]


def test_a_double_click_starts_one_race(app, store, monkeypatch):
    monkeypatch.setattr(state, "_DOUBLE_CLICK_S", 60.0)  # the driver's clicks are slower than a hand's
    open_page(app)
    for _ in range(2):
        app.button(key="run").click().run()
    assert len(store.ids()) == 3


def test_a_finished_race_has_its_verdict_and_its_table(app, store):
    race_of(store)
    open_page(app, race=GROUP)
    words = said(app)
    assert "Small · Large" in words
    assert "1 of 9 seeds" in words  # of a figure that is not the question: no run reached the target
    table = app.dataframe[0].value
    assert list(table.columns) == ["", "Small", "Large", "How"]
    rows = dict(zip(table[""], table["Small"], strict=True))
    assert rows["Energy to target"] == "not available here"
    assert "0 of 1" in rows["Runs that reached it"] or "1 of 1" in rows["Runs that reached it"]


@pytest.mark.parametrize(
    ("lanes", "says"),
    [
        ("One: batch_size=16", "A race needs 2 to 6 configurations, not 1."),
        ("A: batch_size=16\nB: data=digits", "differ in data"),
        ("A: batch_size=16\nB: bach_size=3", "did you mean batch_size"),
        ("A: batch_size=16\nno colon", "is not a configuration"),
        ("A: batch_size=16\nB: batch_size=999999", "batch_size"),
    ],
)
def test_configurations_that_cannot_race_are_refused(app, store, lanes, says):
    open_page(app)
    app.text_area(key="race.lanes").set_value(lanes).run()
    assert not app.exception
    assert says in said(app).replace("\\", "").replace(":color[", "").replace("]", "")
    assert app.button(key="run").disabled
    assert store.ids() == []


def test_another_race_has_its_own_configurations_and_its_warning(app):
    open_page(app)
    app.selectbox(key="race.preset").set_value("batch-vs-stochastic-same-lr").run()
    assert "common mistake" in said(app)
    assert app.text_area(key="race.lanes").value.count("optimizer.lr=0.01") == 3
    assert "batch-vs-stochastic-same-lr" in app.query_params["preset"]


@pytest.mark.parametrize("link", [{"race": "f" * 16}, {"race": "../.."}, {"preset": "nope"}, {"view": "nope"}])
def test_a_link_that_leads_nowhere_opens_the_page(app, link):
    open_page(app, **link)
    assert app.button(key="run")


def test_more_seeds_are_one_more_round(app, store):
    race_of(store)
    open_page(app, race=GROUP)
    app.button(key="race.more").click().run()
    added = [run for run in map(store.run, store.ids()) if run.config.seed > 0]
    assert sorted({run.config.seed for run in added}) == [1, 2, 3, 4, 5]
    assert {run.heat.round for run in added} == {2}


def test_the_switch_until_significant_adds_seeds_by_itself(app, store):
    race_of(store)
    open_page(app)
    app.toggle(key="race.until").set_value(True).run()
    app.session_state["race.until_of"] = GROUP  # as Start leaves it
    app.query_params["race"] = GROUP
    app.run()
    assert len(store.ids()) == 12
    app.run()
    assert len(store.ids()) == 12  # no more seeds before these runs end


def test_a_stopped_race_gets_no_more_seeds_by_itself(app, store):
    race_of(store)
    stopped = store.create(
        with_overrides(PRESETS["digits-mlp"].config, ["seed=7"]), name="Small", group=GROUP, key=f"{GROUP} 0 7"
    )
    ask_to_stop(store.folder(stopped), StopRequest(reason="enough"))
    worker.run(store.folder(stopped))
    open_page(app)
    app.toggle(key="race.until").set_value(True).run()
    app.session_state["race.until_of"] = GROUP
    app.query_params["race"] = GROUP
    app.run()
    assert len(store.ids()) == 3


def test_an_old_race_gets_no_more_seeds_when_it_is_opened(app, store):
    race_of(store)
    open_page(app)
    app.toggle(key="race.until").set_value(True).run()
    app.query_params["race"] = GROUP
    app.run()
    assert len(store.ids()) == 2


def test_runs_of_the_library_are_compared(app, store):
    first, second = _two(store)
    open_page(app, view="Runs", runs=f"{first},{second}")
    assert app.multiselect(key="library.runs").value == [first, second]
    assert len(app.dataframe) == 1


def _two(store) -> tuple[str, str]:
    race_of(store)
    return tuple(run.run_id for run in sorted(map(store.run, store.ids()), key=lambda r: r.order))


def test_runs_on_different_data_are_not_compared(app, store):
    first, _ = _two(store)
    other = store.create(with_overrides(PRESETS["mnist-mlp"].config, ["budget.epochs=none", "budget.steps=5"]))
    worker.run(store.folder(other))
    open_page(app, view="Runs", runs=f"{first},{other}")
    assert "differ in data" in said(app)
    assert len(app.dataframe) == 0


@pytest.mark.parametrize("view", ["Batch-size law", "Descent path", "Two weights"])
def test_every_view_opens(app, view):
    open_page(app, view=view)
