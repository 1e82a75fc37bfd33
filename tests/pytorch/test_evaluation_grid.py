"""When runs are evaluated: the same for all runs on a data set, whatever their speed, and within a fifth of the cost."""

from __future__ import annotations

import itertools

import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.training import Evaluation
from engine.pytorch.tasks.train import train
from engine.pytorch.training.evaluation_grid import evaluation_grid

BASE = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=200"])
NUM_TEST = 359  # digits


class Clock:
    """A clock that moves on by `tick_s` at each reading."""

    def __init__(self, tick_s):
        self.now, self.tick_s = 0.0, tick_s

    def __call__(self):
        self.now += self.tick_s
        return self.now


def evaluated_steps(folder, *changes, tick_s=1e-6):
    events = train(with_overrides(BASE, changes), folder, clock=Clock(tick_s))
    return [event.step for event in events if isinstance(event, Evaluation)]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["execution=dataloader"], ["seed=3"], ["optimizer.lr=0.002"]])
def test_a_slow_run_is_evaluated_at_the_steps_of_a_fast_one(tmp_path, changes):
    fast = evaluated_steps(tmp_path)
    assert len(fast) > 8
    assert evaluated_steps(tmp_path, *changes, tick_s=30.0) == fast


@pytest.mark.slow
def test_a_run_with_a_time_budget_ends_earlier_on_the_same_grid(tmp_path):
    whole = evaluated_steps(tmp_path)
    *shorter, last = evaluated_steps(tmp_path, "budget.steps=none", "budget.seconds=20", tick_s=1.0)
    assert 0 < last < 200
    assert shorter == [step for step in whole if step < last]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 7, 32, 500, "full"])
def test_a_run_is_evaluated_at_its_first_step_at_or_after_each_point(tmp_path, batch_size):
    _, *steps, last = evaluated_steps(tmp_path, f"batch_size={batch_size}", "budget.steps=none", "budget.epochs=2")
    size = 1_438 if batch_size == "full" else batch_size
    seen = list(
        itertools.accumulate(min(size, 1_438 - done) for done in [*range(0, 1_438, size)] * 2)
    )  # after each step
    points = itertools.takewhile(lambda point: point <= seen[-1], evaluation_grid(NUM_TEST))
    due = sorted({next(i for i, samples in enumerate(seen, 1) if samples >= point) for point in points})
    assert sorted({*steps, last}) == sorted({*due, len(seen)})


@pytest.mark.parametrize("num_test", [1, 359, 1_000, 10_000])
def test_evaluations_cost_at_most_a_fifth_of_the_flops_at_any_moment(num_test):
    """In forward passes of one sample: a training sample costs three. The evaluation before training is not counted."""
    for number, samples in enumerate(itertools.islice(evaluation_grid(num_test), 400), start=1):
        assert number * num_test <= 0.2 * (number * num_test + 3 * samples)


def test_a_long_run_has_hundreds_of_evaluations_and_not_thousands():
    points = list(
        itertools.takewhile(lambda point: point <= 6_400_000, evaluation_grid(NUM_TEST))
    )  # 200,000 steps of 32
    assert 100 < len(points) < 500
    assert all(b - a <= max(1.5 * NUM_TEST + 1, 0.02 * a) for a, b in itertools.pairwise(points))
