"""The batch-size law: its fit against known parameters and the pilot's table, and the fastest batch size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.common.errors import EngineError
from engine.studies import batch_law
from engine.studies.batch_law import BatchLaw, StepTime

SIZES = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1797])
PILOT = np.array([963, 551, 268, 143, 90, 61, 57, 48, 41, 35, 41, 40])  # digits, MLP 64-64-10, medians of 4 seeds


@pytest.mark.parametrize("b_crit", [0.3, 24.0, 3_000.0])
def test_a_law_without_noise_is_recovered(b_crit):
    law = batch_law.fit_batch_law(SIZES, 40 * (1 + b_crit / SIZES))
    assert (law.s_min, law.b_crit, law.e_min) == pytest.approx((40, b_crit, 40 * b_crit), rel=1e-3)
    assert law.rms_log_residual < 1e-4


def test_the_pilots_table_gives_the_pilots_law():
    law = batch_law.fit_batch_law(SIZES, PILOT)
    assert (law.s_min, law.e_min, law.b_crit) == pytest.approx((38.2, 920, 24), rel=0.02)
    assert law.rms_log_residual == pytest.approx(0.071, abs=0.002)


def test_steps_and_examples_double_at_the_critical_batch():
    law = BatchLaw(s_min=40, e_min=800, b_crit=20, rms_log_residual=0)
    assert (law.steps(20), law.samples(20)) == (80, 1600)


def test_every_batch_size_counts_by_its_relative_error():
    """Least squares of the steps themselves would follow the slip of batch 1 and give up the rest."""
    steps = 40 * (1 + 24 / SIZES)
    steps[0] *= 2
    assert batch_law.fit_batch_law(SIZES, steps).s_min == pytest.approx(40, rel=0.1)


def test_one_batch_size_far_off_the_law_does_not_move_it():
    steps = 40 * (1 + 24 / SIZES)
    steps[-1] *= 3
    law = batch_law.fit_batch_law(SIZES, steps)
    assert (law.s_min, law.b_crit) == pytest.approx((40, 24), rel=0.05)
    assert law.rms_log_residual > 0.3  # it is not hidden


def test_the_time_of_a_step_is_overhead_and_examples():
    found = batch_law.fit_step_time(SIZES, 626e-6 + 1.06e-6 * SIZES)
    assert (found.t0_s, found.t1_s) == pytest.approx((626e-6, 1.06e-6))


def test_an_outlier_at_the_full_batch_does_not_determine_the_overhead():
    times = 626e-6 + 1.06e-6 * SIZES
    times[-1] *= 1.5
    assert batch_law.fit_step_time(SIZES, times).t0_s == pytest.approx(626e-6, rel=0.1)


@pytest.mark.parametrize(("times", "law"), [([3.0, 2.0, 1.0], (None, 0.0)), ([1.0, 4.0, 9.0], (0.0, None))])
def test_neither_part_of_a_step_time_is_below_zero(times, law):
    found = batch_law.fit_step_time([1, 2, 3], times)
    assert all(value is None or got == value for got, value in zip((found.t0_s, found.t1_s), law, strict=True))


def test_the_fastest_batch_is_the_pilots():
    best = batch_law.best_batch(BatchLaw(38.2, 920, 920 / 38.2, 0), StepTime(626e-6, 1.06e-6))
    assert best.b_star == pytest.approx(119, abs=1) and best.time_s == pytest.approx(34.5e-3, rel=0.01)


def test_the_fastest_batch_is_the_minimum_of_steps_times_their_time():
    law, step = BatchLaw(38.2, 920, 920 / 38.2, 0), StepTime(626e-6, 1.06e-6)
    grid = np.geomspace(1, 1e4, 20_001)
    times = [law.steps(b) * step.seconds(b) for b in grid]
    assert batch_law.best_batch(law, step).b_star == pytest.approx(grid[np.argmin(times)], rel=1e-2)
    assert batch_law.best_batch(law, step).time_s == pytest.approx(min(times))


@pytest.mark.parametrize(
    ("b_star", "said"), [(59.1, 60), (104.0, 100), (119.0, 120), (2.3, 2), (0.2, 1), (2_345.6, 2_400)]
)
def test_a_fastest_batch_size_is_named_as_precisely_as_it_is_known(b_star, said):
    assert batch_law.rounded_batch(b_star) == said


def test_where_a_sample_takes_no_time_the_largest_batch_is_best():
    best = batch_law.best_batch(BatchLaw(40, 800, 20, 0), StepTime(1e-3, 0.0))
    assert best == (math.inf, 0.04)


def test_two_batch_sizes_are_no_law():
    with pytest.raises(EngineError, match=r"2 different batch sizes reached the target, fewer than 3.*Add batch sizes"):
        batch_law.fit_batch_law([1, 8, 8], [100, 50, 52])


def test_a_batch_size_that_did_not_reach_the_target_is_to_be_named():
    with pytest.raises(EngineError, match="Leave out batch sizes that did not reach the target, and name them"):
        batch_law.fit_batch_law([1, 2, 4], [100, 50, math.nan])
