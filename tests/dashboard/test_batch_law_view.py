"""The view of the batch-size law: errors of the form, a run from the button to its figures, and the sentences."""

from __future__ import annotations

import time

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.views.batch_law import figure_of, in_words, known_trials
from engine.access.policy import Actor
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.events.lifecycle import Cancelled, Finished, Progress, Started
from engine.runtime import worker
from engine.runtime.client import Client
from engine.store.event_log import EventLog
from engine.studies import batch_law
from engine.system.files import write_atomically
from tests.pytorch.test_batch_law_task import QUICK, lawful, trial

CONFIG = preset_config("digits-law")
SIZES = (1, 8, 64, 1438)


def law_page():
    from dashboard.views.batch_law import law_view

    law_view()


@pytest.fixture
def own_store(store, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda client: None)  # what is submitted stays in the queue
    state.store.clear()
    yield store
    state.store.clear()


def measured(store, trials, config=CONFIG, *, last=None, said=()):
    """A run of the law as a worker leaves it; without `last` it is still running."""
    run_id = store.create(config)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    started = Started(
        at=time.time(), parameters=4_810, train_flops_per_example=20_224, train_examples=1_438, test_examples=359,
        total_steps=None, setup_s=0.1, data_sha256=None, environment={"cpu": "AMD EPYC", "device": "AMD EPYC"},
    )  # fmt: skip
    for event in [started, *trials, *said]:
        log.append(event)
    if last:
        log.close(last)
    return run_id


def finished(store, config=CONFIG):
    return measured(store, lawful(sizes=SIZES, seeds=(3, 4, 5)), config, last=Finished(at=time.time()))


def opened(**params):
    app = AppTest.from_function(law_page, default_timeout=30)
    for key, value in params.items():
        app.query_params[key] = value
    return app.run()


def said(app):
    return " ".join(e.value for e in (*app.caption, *app.markdown)).replace("\\", "")


def wrong(app):
    return [error.value.replace("\\", "") for error in app.error]


def charts_of(app):
    return app.get("plotly_chart")


# --- form


def test_the_duration_is_estimated_before_anything_is_measured(own_store):
    app = opened()
    assert not app.exception
    assert "Takes about 9.18 s (estimated" in said(app)
    assert [button.label for button in app.button] == ["Measure the law"]
    assert not charts_of(app)


@pytest.mark.parametrize(
    ("target", "says"),
    [(0.0, "target_loss=0 is not allowed"), (2.5, "A target loss of 2.5 is reached by guessing")],
)  # fmt: skip
def test_an_impossible_target_is_refused(own_store, target, says):
    app = opened()
    app.number_input(key="law.target").set_value(target).run()
    assert says in wrong(app)[0]
    assert not app.button


@pytest.mark.parametrize(
    ("sizes", "says"),
    [([], "No batch sizes are too few"), (["8"], "One batch size is too few"), (["8", "full"], "2 batch sizes are too few")],
)  # fmt: skip
def test_fewer_than_three_batch_sizes_are_refused(own_store, sizes, says):
    app = opened()
    app.button_group(key="law.sizes").set_value(sizes).run()
    assert says in wrong(app)[0]
    assert not app.button


def test_a_viewer_sees_the_law_and_who_can_measure(own_store, monkeypatch):
    finished(own_store)
    lines = "[sign_in]\nmethod = 'proxy'\nproxy_header = 'X-User'\nproxy_addresses = ['10.0.0.5']\n"
    write_atomically(own_store.root / "settings.toml", lines)
    monkeypatch.setattr("dashboard.state.actor", lambda: Actor("proxy", "eve"))
    app = opened()
    assert app.button(key="law.measure").disabled
    assert "Viewers can look at runs but cannot start them" in said(app)
    assert len(charts_of(app)) == 1


# --- from the button to the figures


def test_a_click_starts_the_run_of_the_form_and_shows_its_progress(own_store):
    app = opened()
    app.number_input(key="law.target").set_value(0.5).run()
    app.button_group(key="law.sizes").set_value(["4", "32", "256"]).run()
    app.slider(key="law.seeds").set_value(2).run()
    app.button(key="law.measure").click().run()
    (run_id,) = own_store.ids()
    expected = with_overrides(CONFIG, [a for a in QUICK if "tuning" not in a])
    assert (own_store.run(run_id).config, own_store.run(run_id).name) == (expected, "Batch-size law")
    assert [button.label for button in app.button] == ["Stop"]
    assert run_id in app.query_params["law"]


def test_a_real_run_is_shown_with_its_figures(own_store):
    run_id = own_store.create(with_overrides(CONFIG, QUICK))
    worker.run(own_store.folder(run_id))
    app = opened(law=run_id)
    assert not app.exception
    assert all(title in said(app) for title in ("S_min", "E_min", "B_crit", "One step", "Fastest batch", "Try next"))
    assert len(charts_of(app)) == 1


def test_while_it_runs_the_chart_holds_the_batch_sizes_that_are_done(own_store):
    at_work = [trial(64, 0, tuning=True)]
    now = Progress(text="batch 64, learning rate 0.1, seed 1", done=2, total=11)
    run_id = measured(own_store, [*lawful(sizes=(1, 8), seeds=(3, 4, 5)), *at_work], said=[now])
    assert {t.batch_size for t in known_trials(own_store.run(run_id))} == {1, 8}
    app = opened()
    assert app.get("progress")[0].proto.text.replace("\\", "").startswith("2 of 11 batch sizes done; now batch 64")
    assert len(charts_of(app)) == 1
    assert "Measured" not in said(app)


def test_while_it_runs_no_line_goes_beyond_the_measured_batch_sizes(own_store):
    for sizes, lines in (((1, 2, 4), 0), ((1, 8, 64), 3)):
        run = own_store.run(measured(own_store, lawful(sizes=sizes, seeds=(3, 4, 5))))
        assert [trace.mode for trace in figure_of(run, run.trials).data].count("lines") == lines


def test_a_chart_is_the_same_until_a_batch_size_is_done(own_store):
    run_id = measured(own_store, lawful(sizes=(1, 8), seeds=(3, 4, 5)))
    app = opened()
    before = charts_of(app)[0].proto.spec
    log = EventLog(own_store.folder(run_id) / "events.jsonl")
    log.append(trial(64, 0, tuning=True))
    assert len(own_store.run(run_id).trials) == 7
    assert charts_of(app.run())[0].proto.spec == before
    log.close(Finished(at=time.time()))
    assert charts_of(app.run())[0].proto.spec != before


def test_a_law_measured_before_is_shown_at_once_with_its_age(own_store):
    run_id = finished(own_store)
    app = opened()
    assert "Measured just now on AMD EPYC, 12 trainings." in said(app)
    assert [button.label for button in app.button] == ["Measure it again"]
    assert run_id in app.query_params["law"]


def test_other_form_values_are_another_law(own_store):
    finished(own_store)
    app = opened()
    app.number_input(key="law.target").set_value(0.1).run()
    assert [button.label for button in app.button] == ["Measure the law"]
    assert not charts_of(app)


def test_the_form_of_a_link_shows_the_configuration_of_its_run(own_store):
    app = opened(law=finished(own_store, with_overrides(CONFIG, ["law.target_loss=0.4", "model.hidden=[8]"])))
    assert app.number_input(key="law.target").value == 0.4
    assert "MLP 8 · digits" in said(app)
    assert len(charts_of(app)) == 1


def test_a_link_to_a_run_that_is_gone_says_so(own_store):
    app = opened(law="f" * 16)
    assert "not in this store" in app.warning[0].value
    assert [button.label for button in app.button] == ["Measure the law"]


def test_a_stopped_law_says_how_far_it_came_and_is_not_found_again(own_store):
    run_id = measured(own_store, lawful(sizes=(1, 8), seeds=(3, 4, 5)), last=Cancelled(at=time.time()))
    app = opened(law=run_id)
    assert "It was stopped with 2 batch sizes done: too few for a law." in said(app)
    assert "Add batch sizes" not in said(app)
    assert [button.label for button in opened().button] == ["Measure the law"]


# --- sentences


def words(trials):
    return in_words(trials, batch_law.outcome(trials))


def test_the_words_say_what_the_law_means():
    meaning = words(lawful(sizes=SIZES))[0]
    assert "at least about 40 steps (S_min)" in meaning and "at least about 960 samples (E_min)" in meaning
    assert "a batch size of 24 (B_crit)" in meaning


def test_the_cost_of_the_full_batch_is_a_ratio_of_measured_examples():
    trials = lawful(sizes=SIZES)
    ratio = next(t.samples for t in trials if t.batch_size == 1438) / trials[0].samples
    assert f"{ratio:.3g}x as many as batch size 1" in words(trials)[1]


def test_the_fastest_batch_size_is_measured_and_similar_ones_are_named():
    trials = lawful(sizes=(1, 8, 64, 128, 256, 1438))
    assert "batch size 128 was fastest" in words(trials)[2]
    assert "Batch sizes 64 to 256 are at most 25 % slower: the optimum is flat" in words(trials)[2]
    assert "predict about 160." in words(trials)[2]  # 154.9, in steps of 20


def test_trials_without_a_law_give_no_sentences():
    assert words([]) == words([trial(1, steps=None), trial(8), trial(64)]) == []


def test_no_sentence_is_about_generalisation(own_store):
    finished(own_store)
    assert "generali" not in said(opened()).lower()
