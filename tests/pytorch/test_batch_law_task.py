"""The batch-size law as a run: trials, what they come to, and what is said when a target is not reached."""

from __future__ import annotations

import itertools
import json
import math
import threading
import time

import pytest

from engine.charts.batch_law import batch_law_chart
from engine.cli import main as cli
from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.presets import STUDIES, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.events.lifecycle import Finished, Progress, Started
from engine.events.studies import Trial
from engine.planning import planner
from engine.pytorch.tasks.batch_law import batch_law as task
from engine.reports.commands import reproduce
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.runtime import worker
from engine.store.event_log import EventLog
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.studies import batch_law

pytestmark = pytest.mark.slow  # it trains

CONFIG = preset_config("digits-law")
QUICK = ("law.batch_sizes=4,32,256", "law.full_batch=false", "law.target_loss=0.5", "law.seeds=2", "law.tuning_seeds=1")


def trials_of(events):
    return [event for event in events if isinstance(event, Trial)]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Of a real run on digits: five seconds on a busy machine."""
    return trials_of(task(with_overrides(CONFIG, QUICK), tmp_path_factory.mktemp("law")))


def trial(batch_size=8, seed=1, steps=100.0, *, tuning=False, lr=0.1, step_s=1e-3):
    return Trial(
        batch_size=batch_size, lr=lr, seed=seed, tuning=tuning, reached=steps is not None, max_steps=1_000, steps=steps,
        samples=None if steps is None else round(steps * batch_size), train_s=None if steps is None else steps * step_s,
        step_s=step_s, last_loss=0.2,
    )  # fmt: skip


def lawful(s_min=40.0, b_crit=24.0, sizes=(1, 8, 64, 512), seeds=(1, 2)):
    return [trial(b, seed, s_min * (1 + b_crit / b), step_s=1e-3 + 1e-6 * b) for b in sizes for seed in seeds]


# --- a real run


def test_larger_batches_take_fewer_steps_and_more_examples(trials):
    at = {size.batch_size: size for size in batch_law.outcome(trials).sizes}
    assert 3 * at[32].steps < 2 * at[4].steps and at[256].steps < at[32].steps
    assert at[256].steps * 256 > 2 * at[4].steps * 4


def test_every_batch_size_measures_with_other_seeds_than_those_that_tuned(trials):
    for size in (4, 32, 256):
        tuning, measuring = ({t.seed for t in trials if t.batch_size == size and t.tuning == kind} for kind in (1, 0))
        assert (tuning, measuring) == ({0}, {1, 2})


def test_the_best_learning_rate_lies_between_two_worse_ones(trials):
    for size, of_size in itertools.groupby(trials, lambda t: t.batch_size):
        of_size = list(of_size)
        best = next(t.lr for t in of_size if not t.tuning)
        tried = sorted(t.lr for t in of_size if t.tuning)
        assert tried[0] < best < tried[-1], size


def test_a_learning_rate_a_hundred_times_smaller_does_not_arrive(trials, tmp_path):
    config = with_overrides(CONFIG, [*QUICK, f"law.max_steps={round(2 * trials[0].steps)}"])
    slow = next(t for t in task(with_overrides(config, ["optimizer.lr=0.0006"]), tmp_path) if isinstance(t, Trial))
    assert trials[0].reached and not slow.reached and slow.steps is None


def test_a_trial_needs_the_same_steps_again(trials, tmp_path):
    again = next(t for t in task(with_overrides(CONFIG, QUICK), tmp_path) if isinstance(t, Trial))
    assert (again.steps, again.samples, again.last_loss) == (trials[0].steps, trials[0].samples, trials[0].last_loss)


def test_the_run_comes_to_a_law(trials):
    found = batch_law.outcome(trials)
    assert found.law and 2 < found.law.b_crit < 200 and found.law.rms_log_residual < 0.3
    assert found.step_time and 0 < found.step_time.t0_s < 0.1 and found.best and found.best.time_s > 0
    assert found.b_crit and found.b_crit.low < found.law.b_crit < found.b_crit.high


def test_a_worker_records_every_trial_and_the_command_line_shows_the_law(store, capsys):
    run_id = store.create(with_overrides(CONFIG, QUICK))
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert (run.status, run.progress(), run.problems) == ("finished", 1.0, [])
    assert cli.main(["show", run_id, "--json", "--store", str(store.root)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["trials"]) == len(run.trials) > 9
    assert shown["batch_law"]["law"]["b_crit"] == pytest.approx(batch_law.outcome(run.trials).law.b_crit)
    cli.main(["show", run_id, "--store", str(store.root)])
    card = capsys.readouterr().out
    assert all(word in card for word in ("S_min", "E_min", "B_crit", "95 % interval", "per sample", "Fastest batch"))


def test_a_law_that_is_stopped_keeps_its_trials(store):
    run = store.run(store.create(with_overrides(CONFIG, ["law.target_loss=0.01"])))
    working = threading.Thread(target=worker.run, args=(run.folder,))
    working.start()
    while not run.trials and working.is_alive():
        time.sleep(0.02)
        run.refresh()
    ask_to_stop(run.folder, StopRequest(status="cancelled", reason="enough"))
    working.join(timeout=10)
    run.refresh()
    assert (run.status, run.why(), run.problems) == ("cancelled", "enough", [])
    assert run.trials and run.progress() < 1


def test_a_trial_counts_all_its_steps_and_samples(trials):
    for t in trials:
        assert t.steps_made >= (t.steps or t.max_steps) and t.steps_made <= t.max_steps
        epochs, rest = divmod(t.steps_made, math.ceil(1_438 / t.batch_size))  # the last batch of an epoch is smaller
        assert t.samples_made == epochs * 1_438 + min(rest * t.batch_size, 1_438)
        assert t.trained_s == pytest.approx(t.steps_made * t.step_s) and t.trained_s >= (t.train_s or 0)


def test_a_time_budget_ends_the_law_and_says_so(trials, tmp_path):
    config = with_overrides(CONFIG, [*QUICK, f"budget.seconds={trials[0].trained_s / 100:g}"])
    short = trials_of(task(config, tmp_path))
    assert len(short) == 1
    notes = batch_law.outcome(short, budget_s=config.budget.seconds).notes
    assert f"budget.seconds={config.budget.seconds:g} ended the study at batch size 4." in notes
    assert "Batch size 4: its learning rate was not chosen yet; not in the fit." in notes


def test_a_run_can_be_stopped_between_any_two_trials(tmp_path):
    events = task(with_overrides(CONFIG, QUICK), tmp_path)
    assert isinstance(next(events), Started)
    kinds = [type(event) for event in itertools.islice(events, 6)]
    events.close()
    assert set(kinds) == {Progress, Trial}


def test_a_target_that_is_out_of_reach_is_said_of_every_batch_size(tmp_path):
    config = with_overrides(CONFIG, [*QUICK, "law.target_loss=0.0001", "law.max_steps=2"])
    trials = trials_of(task(config, tmp_path))
    found = batch_law.outcome(trials)
    assert (found.law, {t.reached for t in trials}, {t.steps for t in trials}) == (None, {False}, {None})
    assert [note.split(":")[0] for note in found.notes[:3]] == ["Batch size 4", "Batch size 32", "Batch size 256"]
    assert "choose an easier target" in found.notes[-1]


# --- what trials come to


def test_trials_that_follow_a_law_give_it_back():
    found = batch_law.outcome(lawful())
    assert (found.law.s_min, found.law.b_crit) == pytest.approx((40, 24), rel=1e-3)
    assert (found.step_time.t0_s, found.step_time.t1_s) == pytest.approx((1e-3, 1e-6))
    assert (found.best.b_star, found.notes) == (pytest.approx((24 * 1e3) ** 0.5, rel=1e-3), ())


def test_a_batch_size_with_a_seed_that_did_not_arrive_is_left_out_and_named():
    found = batch_law.outcome([*lawful(), trial(2, 1, 520.0), trial(2, 2, None)])
    assert found.notes == ("Batch size 2: 1 of 2 seeds did not reach the target; not in the fit.",)
    assert found.law.b_crit == pytest.approx(24, rel=1e-3)


def test_a_law_far_outside_the_batch_sizes_measured_says_so():
    notes = batch_law.outcome(lawful(b_crit=5_000.0, sizes=(1, 2, 4))).notes
    assert "outside the measured batch sizes (1 to 4)" in notes[-1]


def test_the_law_is_fitted_to_the_minimum_over_the_learning_rates():
    """The measuring seeds are at rates 1.5 times too large; the tuning trials show it."""
    sizes, worse = (1, 8, 64, 512), 0.6 * math.log(1.5) ** 2
    tuning = [
        trial(b, 0, 40 * (1 + 24 / b) * math.exp(0.6 * math.log(lr / 0.1) ** 2), tuning=True, lr=lr)
        for b in sizes for lr in (0.05, 0.1, 0.15, 0.2)
    ]  # fmt: skip
    measuring = [trial(b, seed, 40 * (1 + 24 / b) * math.exp(worse), lr=0.15) for b in sizes for seed in (1, 2)]
    found = batch_law.outcome([*tuning, *measuring])
    assert (found.law.s_min, found.law.b_crit) == pytest.approx((40, 24), rel=1e-3)
    at = found.sizes[1]
    assert (at.lrs_tried, at.steps, at.best_steps) == (4, pytest.approx(160 * math.exp(worse)), pytest.approx(160))


def test_one_seed_gives_no_interval():
    assert batch_law.outcome(lawful(seeds=(1,))).b_crit is None


def test_trials_of_an_older_version_give_a_law_and_no_sums():
    old = Trial.model_validate(lawful()[0].model_dump(exclude={"steps_made", "samples_made"}))
    assert (old.steps_made, old.samples_made, old.trained_s) == (None, None, None)


def test_before_the_first_trial_there_is_nothing_yet():
    found = batch_law.outcome([])
    assert (found.sizes, found.law, found.step_time, found.best) == ((), None, None, None)


def test_the_chart_has_a_panel_each_for_steps_examples_and_time_with_their_law():
    found = batch_law.outcome(lawful())
    figure = batch_law_chart([*lawful(), trial(2, 1, None)], found.law, found.step_time)
    assert [axis.title.text for axis in figure.select_yaxes()] == [
        "Steps to the target, log scale", "Samples used, log scale", "Training time (s), log scale"
    ]  # fmt: skip
    assert [trace.mode for trace in figure.data] == ["markers", "lines"] * 3
    at = {
        note.text.split()[0]: 10**note.x for note in figure.layout.annotations
    }  # of a logarithmic axis: the logarithm
    assert at == pytest.approx({"×": 2, "B_crit": 24, "fastest:": found.best.b_star}, rel=1e-3)


def test_a_chart_without_a_law_shows_the_trials():
    assert [trace.mode for trace in batch_law_chart([trial()], None, None).data] == ["markers"] * 3
    assert batch_law_chart([], None, None).data


def test_a_report_holds_the_trials_draws_the_law_and_says_how_to_run_it_again(store):
    run_id = store.create(CONFIG)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    for event in [*lawful(), trial(2, 1, None)]:
        log.append(event)
    log.close(Finished(at=0))
    report = Report.freeze("law", [store.run(run_id)])
    again = Report.from_json(report.to_json())
    assert again.runs[0].trials == report.runs[0].trials != []
    page = render(again)
    assert all(
        words in page for words in ('id="chart-law-0"', "B_crit", "E_min/S_min; 95 % interval", "Batch size 2: ")
    )
    assert reproduce(CONFIG) == "python -m engine run --preset digits-law"


# --- what is refused, and what is said before


@pytest.mark.parametrize(
    ("assignments", "says"),
    [
        (["law.batch_sizes=4,8,8", "law.full_batch=false"], "the law needs at least 3 different batch sizes"),
        (["law.target_loss=0"], "law.target_loss=0 is not allowed"),
        (["schedule=cosine"], "set schedule=constant"),
        (["optimizer.name=gd"], "set optimizer.name=sgd"),
    ],
)
def test_a_law_that_cannot_be_is_refused(assignments, says):
    with pytest.raises(ConfigError, match=says):
        with_overrides(CONFIG, assignments)


def test_batch_sizes_beyond_the_training_set_do_not_count():
    assert CONFIG.law.sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]
    config = with_overrides(CONFIG, ["law.batch_sizes=4,2000,3000"])
    with pytest.raises(ConfigError, match="2 of them fit in the 1438 training samples of digits"):
        planner.plan(config)


def test_a_plan_holds_the_largest_batch_and_no_number_of_steps():
    plan = planner.plan(CONFIG)
    assert (plan.batch_size, plan.total_steps) == (1438, None)


def test_the_time_it_takes_is_estimated_before_it_runs(capsys):
    assert cli.main(["plan", "--preset", "digits-law", "--json"]) == 0
    assert 2 < json.loads(capsys.readouterr().out)["estimated_seconds"] < 60


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_preset_of_the_command_line_alone(name):
    words = {"digits-law": "batch-size law, batch 1 to full", "calibrate": "calibration of this machine · cpu"}
    assert preset_config(name).task != RunConfig().task
    assert words[name] in describe(preset_config(name))


def test_the_task_moves_no_fingerprint_of_before():
    assert RunConfig().fingerprint == RunConfig.model_validate({"task": "train"}).fingerprint != CONFIG.fingerprint
