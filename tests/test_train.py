"""The training task: what it says and when, that it is the training it claims to be, and how it ends."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from engine import records
from engine.config import PRESETS, with_overrides
from engine.datasets import DATASETS
from engine.errors import Diverged
from engine.pytorch import data, models
from engine.pytorch.train import _Batches, train

MLP_CONFIG, CNN_CONFIG = PRESETS["digits-mlp"].config, PRESETS["lenet"].config
NO_EPOCHS = "budget.epochs=none"


@pytest.fixture
def run(tmp_path):
    """The events of a run: `run("budget.steps=3", base=...)`."""

    def events(*assignments, base=MLP_CONFIG, clock=time.perf_counter):
        return list(train(with_overrides(base, assignments), tmp_path, clock=clock))

    return events


def losses(events):
    return np.concatenate([event.loss for event in of(records.Steps, events)])


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


class TickingClock:
    """Every look at it takes a second."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


# --- what it says --------------------------------------------------------------------------------------------------


def test_events_come_in_the_order_of_a_run(run):
    kinds = [event.kind for event in run("budget.epochs=1")]
    assert kinds[:4] == ["started", "warm_up", "evaluation", "steps"]
    assert kinds[-2:] == ["evaluation", "artifact"]


def test_the_first_evaluation_is_before_training_and_the_last_after_it(run):
    steps = [event.step for event in of(records.Evaluation, run("budget.steps=50", NO_EPOCHS))]
    assert (steps[0], steps[-1]) == (0, 50)
    assert steps == sorted(set(steps))


def test_every_step_is_told_once_and_in_order(run):
    events = of(records.Steps, run("budget.epochs=3"))
    told = [step for event in events for step in range(event.first, event.first + len(event.loss))]
    assert told == list(range(1, 3 * 45 + 1))
    assert all(len(event.loss) == len(event.samples) for event in events)


def test_evaluations_fall_on_the_steps_that_were_asked_for(run):
    events = run("budget.steps=47", NO_EPOCHS, "evaluate_every=10")
    assert [event.step for event in of(records.Evaluation, events)] == [0, 10, 20, 30, 40, 47]


def test_started_says_what_will_be_run(run):
    started = run("budget.epochs=2")[0]
    assert (started.parameters, started.train_examples, started.total_steps) == (64 * 64 + 64 + 650, 1_438, 90)
    assert {"torch", "cpu", "threads"} <= started.environment.keys()


# --- the same training as anyone's ---------------------------------------------------------------------------------


def plain_losses(config, num_steps):
    """The loop of the tutorials: shuffled batches, autograd, one tensor at a time, nothing fused."""
    split = data.load(config.data, side=models.input_side(config.model))
    model = models.build(config.model, DATASETS[config.data], seed=config.seed)
    spec, parameters = config.optimizer, list(model.parameters())
    if spec.name == "adam":
        optimizer = torch.optim.Adam(parameters, lr=spec.lr, foreach=False, fused=False)
    else:
        momentum = spec.momentum if spec.name == "momentum" else 0.0
        optimizer = torch.optim.SGD(parameters, lr=spec.lr, momentum=momentum, foreach=False, fused=False)
    seen = []
    for index in itertools.islice(orders(config, len(split.train_y)), num_steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(split.train_x[index]), split.train_y[index])
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


def orders(config, num_examples):
    generator = torch.Generator().manual_seed(config.seed)
    size = num_examples if config.batch_size == "full" else config.batch_size
    while True:
        yield from torch.randperm(num_examples, generator=generator).split(size)


@pytest.mark.parametrize("base", [MLP_CONFIG, CNN_CONFIG], ids=["mlp", "cnn"])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_losses_equal_those_of_a_plain_loop(run, base, name):
    changes = [f"optimizer.name={name}", f"optimizer.lr={0.001 if name == 'adam' else 0.02}"]
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
    first, second = (of(records.Evaluation, run("budget.epochs=1", f"seed={seed}"))[0] for seed in (0, 1))
    assert first.test_loss != second.test_loss


def test_weights_and_data_order_are_the_same_whatever_the_optimizer(run):
    """With steps too small to move a weight, the loss of each step depends on first weights and order alone."""
    still = ("budget.steps=60", NO_EPOCHS, "optimizer.lr=1e-12")
    sgd, momentum, adam = (losses(run(*still, f"optimizer.name={name}")) for name in ("sgd", "momentum", "adam"))
    np.testing.assert_allclose(momentum, sgd, rtol=1e-6)
    np.testing.assert_allclose(adam, sgd, rtol=1e-6)


def test_the_dashboards_own_random_numbers_do_not_move_a_run(run):
    torch.manual_seed(1)
    first = losses(run("budget.steps=5", NO_EPOCHS))
    torch.manual_seed(2)
    assert np.array_equal(losses(run("budget.steps=5", NO_EPOCHS)), first)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 100])
@pytest.mark.parametrize("gathers", [True, False])
def test_each_epoch_sees_every_example_once_in_another_order(batch_size, gathers):
    x = torch.arange(100)
    batches = _Batches(x, x.clone(), batch_size, seed=0)
    batches.gathers = gathers
    seen = [torch.cat([y for _, y in itertools.islice(iterator, -(-100 // batch_size))])
            for iterator in [iter(batches)] for _ in range(2)]  # fmt: skip
    assert all(epoch.sort().values.equal(x) for epoch in seen)
    assert batch_size == 100 or not seen[0].equal(seen[1])


def test_images_and_labels_stay_together():
    x = torch.arange(100)
    assert all(bx.equal(by) for bx, by in itertools.islice(_Batches(x, x.clone(), 32, seed=0), 8))


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
    *before, last = [event.train_s[1] for event in of(records.Steps, events)]
    assert all(seconds < 9 for seconds in before)
    assert last >= 9


def test_evaluation_time_is_not_training_time(run):
    events = run("budget.steps=40", NO_EPOCHS, "evaluate_every=10", clock=TickingClock())
    for before, evaluation, after in zip(events, events[1:], events[2:], strict=False):
        if isinstance(evaluation, records.Evaluation) and isinstance(before, records.Steps) and after.kind == "steps":
            assert after.train_s[0] == evaluation.train_s == before.train_s[1]
            assert after.elapsed_s[0] - before.elapsed_s[1] >= evaluation.seconds > 0


def test_the_training_clock_runs_without_gaps_and_starts_at_zero(run):
    events = of(records.Steps, run("budget.epochs=3", clock=TickingClock()))
    assert events[0].train_s[0] == 0
    assert all(a.train_s[1] == b.train_s[0] for a, b in itertools.pairwise(events))


def test_a_diverging_run_tells_its_points_then_why_it_ended(tmp_path):
    config = with_overrides(CNN_CONFIG, ["optimizer.name=sgd", "optimizer.lr=1e6", "budget.steps=50"])
    told = []
    with pytest.raises(Diverged, match=r"became (NaN|infinite) at step \d+ with optimizer\.lr=1e\+06\. Lower") as ended:
        told.extend(train(config, tmp_path))  # extend keeps what came before the error
    bad = np.flatnonzero(~np.isfinite(losses(told)))[0] + 1
    assert f"at step {bad} " in ended.value.message


# --- what it leaves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [MLP_CONFIG, with_overrides(CNN_CONFIG, ["data=digits"])], ids=["mlp", "cnn"])
def test_saved_weights_give_the_last_evaluation_again(run, tmp_path, base):
    *_, last, artifact = run("budget.epochs=1", base=base)
    model = models.build(base.model, DATASETS["digits"], seed=99)
    model.load_state_dict(load_file(tmp_path / artifact.name))
    split = data.load("digits", side=models.input_side(base.model))
    right = (model(split.test_x).argmax(1) == split.test_y).float().mean().item()
    assert right == pytest.approx(last.test_accuracy)


def test_the_small_mlp_passes_90_percent_on_mnist_within_five_epochs(run):
    events = run("budget.epochs=5", base=PRESETS["mnist-mlp"].config)
    assert of(records.Evaluation, events)[-1].test_accuracy >= 0.90


def test_the_smallest_preset_passes_95_percent(run):
    assert of(records.Evaluation, run())[-1].test_accuracy >= 0.95
