"""The training task: its events and their order, that it trains as a plain loop does, and how it ends."""

from __future__ import annotations

import hashlib
import itertools
import time
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from engine.common.errors import ConfigError, Diverged
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.training import OptimizerName
from engine.data import loading
from engine.data.downloads import Progress
from engine.events.lifecycle import Preparing, Started
from engine.events.training import Evaluation, Steps, TargetReached
from engine.planning import memory
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.pytorch.tasks.train import train
from engine.pytorch.training import optimizers

pytestmark = pytest.mark.slow  # it trains

MLP_CONFIG, CNN_CONFIG = PRESETS["digits-mlp"].config, PRESETS["lenet"].config
NO_EPOCHS = "budget.epochs=none"
NO_LIMIT = ("budget.epochs=none", "budget.seconds=none")
ONLY_STEPS = (*NO_LIMIT, "budget.steps=3")


@pytest.fixture
def run(tmp_path):
    """The events of a run: `run("budget.steps=3", base=...)`."""

    def events(*assignments, base=MLP_CONFIG, clock=time.perf_counter):
        return list(train(with_overrides(base, assignments), tmp_path, clock=clock))

    return events


def losses(events):
    return np.concatenate([event.loss for event in of(Steps, events)])


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


class TickingClock:
    """A clock that moves on by a second at each reading."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


# --- events ------------------------------------------------------------------------------------------------------


def test_events_come_in_the_order_of_a_run(run):
    kinds = [event.kind for event in run("budget.epochs=1")]
    assert kinds[:5] == ["started", "warm_up", "evaluation", "steps", "memory"]
    assert kinds[-2:] == ["evaluation", "artifact"]


def test_the_first_evaluation_is_before_training_and_the_last_after_it(run):
    steps = [event.step for event in of(Evaluation, run("budget.steps=50", NO_EPOCHS))]
    assert (steps[0], steps[-1]) == (0, 50)
    assert steps == sorted(set(steps))


def test_every_step_is_in_one_event_and_in_order(run):
    events = of(Steps, run("budget.epochs=3"))
    told = [step for event in events for step in range(event.first, event.first + len(event.loss))]
    assert told == list(range(1, 3 * 45 + 1))
    assert all(len(event.loss) == len(event.samples) for event in events)


def test_evaluations_fall_on_the_steps_that_were_asked_for(run):
    events = run("budget.steps=47", NO_EPOCHS, "evaluate_every=10")
    assert [event.step for event in of(Evaluation, events)] == [0, 10, 20, 30, 40, 47]


def test_started_says_what_will_be_run(run):
    started = run("budget.epochs=2")[0]
    assert (started.parameters, started.train_examples, started.total_steps) == (64 * 64 + 64 + 650, 1_438, 90)
    assert {"torch", "cpu", "threads"} <= started.environment.keys()


# --- the same training as a plain loop ------------------------------------------------------------------------------


def plain_losses(config, num_steps):
    """The loop of the tutorials: shuffled batches, autograd, one tensor at a time, nothing fused."""
    arrays = loading.load(config.data, config.source)
    training, _ = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=config.seed)
    optimizer = optimizers.Reference(config.optimizer, model)
    seen = []
    for index in itertools.islice(orders(config, len(training)), num_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(training.x[index]), training.y[index])
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def orders(config, num_examples):
    generator = torch.Generator().manual_seed(config.seed)
    size = num_examples if config.batch_size == "full" else config.batch_size
    while True:
        yield from torch.randperm(num_examples, generator=generator).split(size)


RATES = {"sgd": 0.02, "momentum": 0.02, "nesterov": 0.02}


@pytest.mark.parametrize("base", [MLP_CONFIG, CNN_CONFIG], ids=["mlp", "cnn"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"])
def test_losses_equal_those_of_a_plain_loop(run, base, name):
    changes = [f"optimizer.name={name}", f"optimizer.lr={RATES.get(name, 0.001)}"]
    config = with_overrides(base, ["data=digits", "seed=3", *changes])
    told = losses(run("budget.steps=30", NO_EPOCHS, base=config))
    np.testing.assert_allclose(told, plain_losses(config, 30), rtol=2e-4)


def test_gradient_descent_equals_a_plain_loop_over_the_whole_set(run):
    config = with_overrides(MLP_CONFIG, ["optimizer.name=gd", "optimizer.lr=0.5"])
    told = losses(run("budget.steps=10", NO_EPOCHS, base=config))
    np.testing.assert_allclose(told, plain_losses(config, 10), rtol=2e-4)


def test_a_seed_is_the_same_run_to_the_last_bit(run):
    first, second = run("budget.epochs=2", "seed=5"), run("budget.epochs=2", "seed=5")
    assert np.array_equal(losses(first), losses(second))
    assert first[-1].sha256 == second[-1].sha256


def test_another_seed_is_another_run(run):
    first, second = (of(Evaluation, run("budget.epochs=1", f"seed={seed}"))[0] for seed in (0, 1))
    assert first.test_loss != second.test_loss


def test_weights_and_data_order_are_the_same_whatever_the_optimizer(run):
    """With steps too small to move a weight, the loss of each step depends on first weights and order alone."""
    still = ("budget.steps=60", NO_EPOCHS, "optimizer.lr=1e-12")
    sgd, momentum, adam = (losses(run(*still, f"optimizer.name={name}")) for name in ("sgd", "momentum", "adam"))
    np.testing.assert_allclose(momentum, sgd, rtol=1e-6)
    np.testing.assert_allclose(adam, sgd, rtol=1e-6)


def test_other_random_numbers_do_not_change_a_run(run):
    torch.manual_seed(1)
    first = losses(run("budget.steps=5", NO_EPOCHS))
    torch.manual_seed(2)
    assert np.array_equal(losses(run("budget.steps=5", NO_EPOCHS)), first)


# --- when it ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "num_steps"),
    [
        (("budget.steps=7", NO_EPOCHS), 7),
        (("budget.epochs=2",), 90),
        (("budget.epochs=0.5",), 22),
        (("budget.epochs=1e-9",), 1),
        (("budget.epochs=2", "budget.steps=10"), 10),
        (("budget.epochs=2", "budget.steps=1000"), 90),
        (("budget.epochs=1", "budget.seconds=80000"), 45),
        (("budget.epochs=3", "optimizer.name=gd"), 3),
    ],
)
def test_a_run_ends_at_the_first_limit_it_reaches(run, budget, num_steps):
    assert len(losses(run(*budget))) == num_steps


def test_a_run_limited_by_time_ends_at_the_first_reading_past_it(run):
    events = run("budget.seconds=9", NO_EPOCHS, clock=TickingClock())
    *before, last = [event.train_s[1] for event in of(Steps, events)]
    assert all(seconds < 9 for seconds in before)
    assert last >= 9


def test_evaluation_time_is_not_training_time(run):
    events = run("budget.steps=40", NO_EPOCHS, "evaluate_every=10", clock=TickingClock())
    for before, evaluation, after in zip(events, events[1:], events[2:], strict=False):
        if isinstance(evaluation, Evaluation) and isinstance(before, Steps) and after.kind == "steps":
            assert after.train_s[0] == evaluation.train_s == before.train_s[1]
            assert after.elapsed_s[0] - before.elapsed_s[1] >= evaluation.seconds > 0


def test_the_training_clock_runs_without_gaps_and_starts_at_zero(run):
    events = of(Steps, run("budget.epochs=3", clock=TickingClock()))
    assert events[0].train_s[0] == 0
    assert all(a.train_s[1] == b.train_s[0] for a, b in itertools.pairwise(events))


def test_a_diverging_run_yields_its_steps_and_then_raises_the_reason(tmp_path):
    config = with_overrides(CNN_CONFIG, ["optimizer.name=sgd", "optimizer.lr=1e6", "budget.steps=50"])
    told = []
    with pytest.raises(Diverged, match=r"became (NaN|infinite) at step \d+ with optimizer\.lr=1e\+06\. Lower") as ended:
        told.extend(train(config, tmp_path))  # extend keeps what came before the error
    bad = np.flatnonzero(~np.isfinite(losses(told)))[0] + 1
    assert f"at step {bad} " in ended.value.message


# --- every family, every kind of data ------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_begins_to_learn(run, preset):
    small = (
        ["source.seq_len=8"] if PRESETS[preset].config.data == "text" else []
    )  # evaluations read a tenth of the text
    events = run(*ONLY_STEPS, *small, base=PRESETS[preset].config)
    assert np.isfinite(losses(events)).all()
    assert events[-1].kind == "artifact"


@pytest.mark.parametrize("name", get_args(OptimizerName))
def test_every_optimizer_lowers_the_loss(run, name):
    rate = {"gd": 0.5, "sgd": 0.1, "momentum": 0.05, "nesterov": 0.05, "adagrad": 0.02, "muon": 0.01}.get(name, 2e-3)
    told = losses(run(*NO_LIMIT, "budget.steps=80", f"optimizer.name={name}", f"optimizer.lr={rate}"))
    assert told[-10:].mean() < 0.6 * told[0]


def test_synthetic_data_of_any_shape_trains(run):
    for shape in ("[3,16,12]", "[7]", "[9,9]"):
        base = with_overrides(
            PRESETS["mnist-mlp"].config, ["data=synthetic", f"source.shape={shape}", "source.num_examples=100"]
        )
        assert len(losses(run(*ONLY_STEPS, base=base))) == 3


def test_a_users_csv_trains_and_its_hash_is_kept(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{'in' if x * x + y * y < 1 else 'out'}" for x, y in rng.normal(size=(300, 2))]
    (tmp_path / "points.csv").write_text("x,y,where\n" + "\n".join(rows))
    base = with_overrides(MLP_CONFIG, ["data=csv", f"source.path={tmp_path / 'points.csv'}", "optimizer.lr=0.01"])
    events = run(base=base)
    assert of(Started, events)[0].data_sha256 == hashlib.sha256((tmp_path / "points.csv").read_bytes()).hexdigest()
    assert of(Evaluation, events)[-1].test_accuracy > 0.9


def slow_load(monkeypatch, *, ends_with):
    """A download with two progress messages that then ends with the data set or with an error."""

    def load(data, source, *, progress):
        for done in (1_000, 2_000):
            progress(Progress("mnist", done, 2_000))
        if isinstance(ends_with, Exception):
            raise ends_with
        return ends_with

    monkeypatch.setattr(loading, "load", load)


def test_a_download_yields_its_progress(run, monkeypatch):
    slow_load(monkeypatch, ends_with=loading.load("synthetic", MLP_CONFIG.source))
    base = with_overrides(MLP_CONFIG, ["data=synthetic"])
    told = of(Preparing, run(*ONLY_STEPS, base=base, clock=TickingClock()))
    assert {(p.text, p.done_bytes, p.total_bytes) for p in told} >= {("mnist", 1_000, 2_000), ("mnist", 2_000, 2_000)}


def test_a_failed_download_is_the_runs_error(run, monkeypatch):
    slow_load(monkeypatch, ends_with=ConfigError("no network"))
    with pytest.raises(ConfigError, match="no network"):
        run(*ONLY_STEPS, base=with_overrides(MLP_CONFIG, ["data=mnist"]))


def test_an_evaluation_does_not_depend_on_how_it_is_cut(run, monkeypatch):
    whole = of(Evaluation, run(*ONLY_STEPS))[-1]
    monkeypatch.setattr(memory, "_CPU_EVALUATION_BYTES", 64 * 4 * 7)  # seven examples at a time
    cut = of(Evaluation, run(*ONLY_STEPS))[-1]
    assert (cut.test_accuracy, cut.test_loss) == (whole.test_accuracy, pytest.approx(whole.test_loss, rel=1e-5))


# --- schedules -----------------------------------------------------------------------------------------------------


def rates(events):
    return np.concatenate([np.broadcast_to(e.lr, e.loss.shape) for e in of(Steps, events)])


def test_a_schedule_by_steps_gives_every_step_its_learning_rate(run):
    told = rates(run(*NO_LIMIT, "budget.steps=40", "schedule=cosine", "warmup_steps=5", "optimizer.lr=0.01"))
    by_hand = [0.01 * (i + 1) / 5 if i < 5 else 0.005 * (1 + np.cos(np.pi * (i - 5) / 35)) for i in range(40)]
    np.testing.assert_allclose(told, by_hand, rtol=1e-6)


def test_a_schedule_by_time_goes_by_the_training_clock(run):
    events = run(*NO_LIMIT, "budget.seconds=20", "schedule=cosine", clock=TickingClock())
    for event in of(Steps, events):
        share = event.train_s[0] / 20
        assert np.ravel(event.lr)[0] == pytest.approx(
            MLP_CONFIG.optimizer.lr * (1 + np.cos(np.pi * share)) / 2, rel=1e-6
        )


def test_a_constant_learning_rate_is_one_number_per_event(run):
    assert all(event.lr == MLP_CONFIG.optimizer.lr for event in of(Steps, run(*ONLY_STEPS)))


# --- a target ------------------------------------------------------------------------------------------------------


def test_a_run_ends_at_the_second_evaluation_in_a_row_that_reaches_its_target(run):
    events = run("evaluate_every=5", "target.value=0.8")
    evaluations, (reached,) = of(Evaluation, events), of(TargetReached, events)
    assert [e.test_accuracy >= 0.8 for e in evaluations[-2:]] == [True, True]
    assert not any(a.test_accuracy >= 0.8 <= b.test_accuracy for a, b in itertools.pairwise(evaluations[:-1]))
    assert reached.between == (evaluations[-3].step, evaluations[-2].step)
    assert evaluations[-3].train_s < reached.train_s <= evaluations[-2].train_s


def test_a_loss_reaches_its_target_from_above(run):
    events = run("evaluate_every=5", "target.metric=test_loss", "target.value=1.0")
    assert of(TargetReached, events)[0].value <= 1.0


def test_a_target_that_is_not_reached_has_no_event(run):
    events = run(*ONLY_STEPS, "target.value=1.0")
    assert not of(TargetReached, events)
    assert len(losses(events)) == 3


def test_one_evaluation_alone_reaches_no_target(run):
    """Only the last evaluation reaches the target, so there is no second one."""
    events = run(*NO_LIMIT, "budget.steps=200", "evaluate_every=200", "target.value=0.5")
    assert not of(TargetReached, events)


# --- averaged weights ----------------------------------------------------------------------------------------------


def test_averaged_weights_are_what_is_evaluated_and_saved(run, tmp_path):
    *_, last, artifact = run("budget.epochs=2", "ema_decay=0.95")
    arrays = loading.load("digits", MLP_CONFIG.source)
    model = models.build(MLP_CONFIG.model, arrays.facts, seed=99)
    model.load_state_dict(load_file(tmp_path / artifact.name))
    _, held_out = tensors(arrays, MLP_CONFIG.model)
    assert F.cross_entropy(model(held_out.x), held_out.y).item() == pytest.approx(last.test_loss, rel=1e-4)
    plain = run("budget.epochs=2")[-2]
    assert plain.test_loss != last.test_loss


# --- the weights file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [MLP_CONFIG, with_overrides(CNN_CONFIG, ["data=digits"])], ids=["mlp", "cnn"])
def test_saved_weights_give_the_last_evaluation_again(run, tmp_path, base):
    *_, last, artifact = run("budget.epochs=1", base=base)
    arrays = loading.load(base.data, base.source)
    model = models.build(base.model, arrays.facts, seed=99)
    model.load_state_dict(load_file(tmp_path / artifact.name))
    _, held_out = tensors(arrays, base.model)
    right = (model(held_out.x).argmax(1) == held_out.y).float().mean().item()
    assert right == pytest.approx(last.test_accuracy)


def test_the_small_mlp_passes_90_percent_on_mnist_within_five_epochs(run):
    events = run("budget.epochs=5", base=PRESETS["mnist-mlp"].config)
    assert of(Evaluation, events)[-1].test_accuracy >= 0.90


def test_the_smallest_preset_passes_95_percent(run):
    assert of(Evaluation, run())[-1].test_accuracy >= 0.95
