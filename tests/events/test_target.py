"""When a series of evaluations reaches a target, and in which words."""

from __future__ import annotations

import math

import pytest

from engine.config.training import Target
from engine.events.target import crossing, target_reached, to_target, when_reached

NAN = math.nan
AIM = Target(value=0.85)


def series(*accuracies: float) -> dict[str, list[float]]:
    """Evaluations after every tenth step, a second each."""
    n = range(len(accuracies))
    return {
        "step": [10 * i for i in n],
        "seconds": list(n),
        "elapsed": [2 * i for i in n],
        "test_accuracy": list(accuracies),
    }


def test_a_target_is_crossed_by_the_first_of_two_evaluations_in_a_row():
    assert crossing([0.5, 0.9, 0.8, 0.9, 0.95], 0.85, lower_is_better=False).first == 3


def test_a_last_evaluation_alone_is_no_crossing():
    assert crossing([0.5, 0.6, 0.9], 0.85, lower_is_better=False) is None


def test_a_value_equal_to_the_target_reaches_it_and_a_loss_from_above():
    assert crossing([1.0, 0.2, 0.2], 0.2, lower_is_better=True).first == 1


@pytest.mark.parametrize("lower", [True, False])
def test_a_nan_never_reaches(lower):
    assert crossing([NAN, NAN, NAN], 0.5, lower_is_better=lower) is None


def test_the_crossing_is_interpolated_linearly_between_evaluations():
    assert to_target([0, 10, 20, 30], [1.0, 0.6, 0.2, 0.1], 0.5, lower_is_better=True) == pytest.approx(12.5)


def test_a_target_reached_at_once_is_reached_at_the_first_evaluation():
    assert to_target([5, 10], [0.1, 0.1], 0.5, lower_is_better=True) == 5


def test_a_crossing_after_a_nan_is_not_interpolated():
    assert to_target([0, 10, 20], [NAN, 0.1, 0.1], 0.5, lower_is_better=True) == 10


def test_a_target_that_is_not_reached_has_no_time():
    assert to_target([0, 10], [1.0, 0.9], 0.5, lower_is_better=True) is None


def test_a_run_reaches_its_target_between_two_evaluations_and_says_so():
    evaluations = series(0.1, 0.8, 0.9, 0.95)
    reached = target_reached(AIM, evaluations)
    assert (reached.step, reached.value, reached.between) == (15, 0.85, (10, 20))
    assert (reached.train_s, reached.elapsed_s) == (pytest.approx(1.5), pytest.approx(3.0))
    assert when_reached(AIM, reached, evaluations) == (
        "reached at step 15, after 1.50 s of training (derived: interpolated between the evaluations after steps 10 and 20)"
    )


def test_a_target_that_the_first_evaluation_reaches_is_not_interpolated():
    evaluations = series(0.9, 0.9)
    assert when_reached(AIM, target_reached(AIM, evaluations), evaluations).endswith(
        "(measured by the first evaluation)"
    )


def test_a_target_that_only_the_last_evaluation_reaches_says_why_it_is_not_reached():
    evaluations = series(0.1, 0.8, 0.9)
    assert when_reached(AIM, target_reached(AIM, evaluations), evaluations) == (
        "not reached: only the last evaluation, after step 20, reaches it, and it takes two in a row"
    )
    assert when_reached(AIM, None, series(0.1)) == "not reached"
