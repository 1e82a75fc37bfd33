"""Statistics of races: time to a target, significance tests, Student's t, and runs that miss the target."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from engine.common.errors import EngineError
from engine.studies import paired_tests
from engine.studies.paired_tests import verdict, verdict_to_target

NAN = math.nan


# --- verdicts

SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "heavy-tailed": lambda rng, size: rng.standard_t(2, size),
    "log-normal": lambda rng, size: rng.lognormal(0, 1, size),
}


def false_verdicts(shape, n, races):
    """Races of A against A that come out decided."""
    rng = np.random.default_rng(n)
    a, b = SHAPES[shape](rng, (races, n)), SHAPES[shape](rng, (races, n))
    return sum(verdict(*race, lower_is_better=True).winner is not None for race in zip(a, b, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [6, 8, 10, 16])
@pytest.mark.slow
def test_a_against_a_is_significant_in_at_most_five_percent_of_races(shape, n):
    """A true rate of 5 % gives more than the bound once in 10,000."""
    races = 150 if n == 16 else 400
    assert false_verdicts(shape, n, races) <= stats.binom.ppf(0.9999, races, 0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "sds", "power"), [(10, 0.997, 0.72), (16, 0.749, 0.75)])
def test_an_effect_that_a_t_test_finds_in_four_of_five_races_is_found_with_the_power_the_docstring_names(n, sds, power):
    theirs = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, sds * math.sqrt(n))
    assert theirs == pytest.approx(0.8, abs=1e-3)
    rng = np.random.default_rng(3)
    a = rng.normal(100, 30, (200, n))
    b = a + rng.normal(-5.0 * sds, 5.0, a.shape)
    found = sum(verdict(*race, lower_is_better=True).winner == "b" for race in zip(a, b, strict=True))
    assert found >= stats.binom.ppf(0.001, 200, power)


def test_ten_percent_less_time_is_found_from_eight_seeds_that_vary_by_six():
    rng = np.random.default_rng(4)
    a = rng.lognormal(0, 0.3, (100, 8))
    b = a * 0.9 * rng.lognormal(0, 0.06, (100, 8))
    assert (
        sum(verdict(*race, lower_is_better=True, relative=True).winner == "b" for race in zip(a, b, strict=True)) > 90
    )


def test_a_ratio_is_that_of_b_to_a_and_inside_its_interval():
    a = np.arange(1.0, 9.0)
    found = verdict(a, a * 0.9 * np.array([1.01, 0.99] * 4), lower_is_better=True, relative=True)
    assert (found.winner, found.state, found.n) == ("b", "decided", 8)
    assert found.low < found.effect == pytest.approx(-0.1, abs=1e-3) and found.effect < found.high < 0


@pytest.mark.parametrize(("lower", "winner"), [(True, "a"), (False, "b")])
def test_the_winner_depends_on_which_way_is_better(lower, winner):
    a = np.arange(6.0)
    assert verdict(a, a + np.array([1, 2] * 3), lower_is_better=lower).winner == winner


@pytest.mark.parametrize("n", [1, 2, 5])
def test_fewer_than_six_pairs_are_preliminary_however_clear(n):
    found = verdict(np.zeros(n), np.arange(n) + 9.0, lower_is_better=True)
    assert (found.winner, found.state, found.low, found.high) == (None, "preliminary", None, None)


def test_equal_pairs_are_identical_and_not_significant():
    found = verdict(np.ones(8), np.ones(8), lower_is_better=True)
    assert (found.state, found.is_identical, found.p) == ("inconclusive", True, 1.0)
    assert not verdict(np.ones(8), np.array([0.0, 2.0] * 4), lower_is_better=True).is_identical  # mean difference 0


def test_a_stricter_level_needs_more_pairs():
    a = np.arange(7.0)
    clear = a + np.arange(1, 8)
    assert verdict(a, clear, lower_is_better=True, level=0.99).state == "preliminary"
    assert verdict(a, clear, lower_is_better=True, level=0.975).winner == "a"


@pytest.mark.parametrize("shape", SHAPES)
def test_p_is_the_smallest_level_at_which_a_difference_is_significant(shape):
    rng = np.random.default_rng(8)
    for _ in range(20):
        a, b = SHAPES[shape](rng, (2, 10))
        p = verdict(a, b, lower_is_better=True).p
        for alpha in {min(0.9, p * 1.001), p * 0.999} - {0.0}:
            if paired_tests.pairs_needed(alpha) <= 10:
                found = verdict(a, b, lower_is_better=True, level=1 - alpha)
                assert (found.state == "decided") == (alpha >= p)
                assert found.winner is None or found.low > 0 or found.high < 0


def test_a_sign_flip_p_counts_all_ways_to_swap_labels():
    d = np.array([1.0, -2.0, 4.0, 3.0, 5.0, -0.5])
    ways = [abs(np.dot(signs, d)) for signs in product((1, -1), repeat=6)]
    assert paired_tests.sign_flip_p(d) == np.mean(np.array(ways) >= d.sum() - 1e-9)


def test_a_sign_flip_p_of_many_pairs_is_that_of_the_t_test_for_normal_differences():
    d = np.random.default_rng(5).normal(0.3, 1, 60)
    assert paired_tests.sign_flip_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)


def test_a_value_that_is_missing_is_not_dropped():
    with pytest.raises(EngineError, match=r"1 of 12 values.*verdict_to_target"):
        verdict([1.0] * 5 + [NAN], [2.0] * 6, lower_is_better=True)


def test_a_ratio_of_a_negative_value_is_refused():
    with pytest.raises(EngineError, match="above 0, not -1"):
        verdict([-1.0] * 6, [2.0] * 6, lower_is_better=True, relative=True)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(EngineError, match="There are 6 values of a but 5 values of b"):
        verdict(np.ones(6), np.ones(5), lower_is_better=True)


# --- verdicts where some do not arrive


def test_a_run_that_misses_the_target_ranks_after_all_that_reach_it():
    found = verdict_to_target([9.0] * 6, [True] * 6, [1.0] * 6, [False] * 6)
    assert (found.winner, found.state, found.effect) == ("a", "decided", None)
    assert (found.reached_a, found.reached_b, found.wins_a, found.wins_b) == (6, 0, 6, 0)


def test_seeds_where_neither_reaches_the_target_do_not_count():
    found = verdict_to_target([1.0] * 8, [False] * 8, [2.0] * 8, [False] * 8)
    assert (found.winner, found.state) == (None, "inconclusive")


def test_the_effect_on_time_is_the_ratio_of_medians():
    a, b = np.array([1.0, 2, 3, 4, 5, 6, 7]), np.array([2.0, 4, 6, 8, 10, 12, 14])
    found = verdict_to_target(a, a > 0, b, b < 13)
    assert (found.winner, found.effect) == ("a", pytest.approx(1.0))


def test_races_to_a_target_of_a_against_a_are_significant_in_at_most_five_percent():
    rng = np.random.default_rng(6)
    times = rng.lognormal(0, 1, (400, 2, 8))
    reached = times < 2.5  # two in ten do not arrive
    wrong = sum(
        verdict_to_target(t[0], r[0], t[1], r[1]).winner is not None for t, r in zip(times, reached, strict=True)
    )
    assert 0 < wrong <= stats.binom.ppf(0.9999, 400, 0.05)


def test_signed_ranks_give_the_p_of_wilcoxon():
    rng = np.random.default_rng(7)
    a, b = rng.lognormal(size=10), rng.lognormal(0.8, size=10)
    p = paired_tests.sign_flip_p(paired_tests._signed_ranks(a, b))
    assert p == pytest.approx(stats.wilcoxon(np.log(b / a), method="exact").pvalue)


# --- Student's t and the noise of a test set


@pytest.mark.parametrize("p", [0.9, 0.975, 0.995])
def test_t_with_one_and_two_degrees_of_freedom_has_a_closed_form(p):
    """One degree of freedom is Cauchy's distribution; Hill 1970 (ACM Algorithm 396) has the form for two."""
    assert paired_tests.t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-12)
    assert paired_tests.t_quantile(p, 2) == pytest.approx((2 * p - 1) * math.sqrt(1 / (2 * p * (1 - p))), rel=1e-12)


@pytest.mark.parametrize(("df", "printed"), [(1, "12.706"), (3, "3.182"), (5, "2.571"), (10, "2.228"), (30, "2.042")])
def test_t_quantiles_are_those_of_a_printed_table(df, printed):
    assert f"{paired_tests.t_quantile(0.975, df):.3f}" == printed


@pytest.mark.parametrize(
    ("error", "num_test", "points"), [(0.02, 10_000, 0.10), (0.35, 1_000, 1.32), (0.03, 360, 0.65)]
)
def test_the_noise_floor_is_that_of_the_table(error, num_test, points):
    assert 100 * paired_tests.noise_floor(error, num_test) == pytest.approx(points, abs=0.005)


# --- runs that may not arrive


def test_a_stopped_run_counts_as_censored():
    curve = paired_tests.kaplan_meier([1, 2, 3, 4], [True, False, True, True])
    assert curve.times.tolist() == [1, 3, 4]
    assert curve.share == pytest.approx([3 / 4, 3 / 8, 0])
    assert curve.median == 3


def test_survival_is_the_published_one_of_the_6_mp_trial():
    """Weeks of remission of Freireich et al. 1963, and the estimates printed by Cox & Oakes 1984, section 4.3."""
    relapsed, still_well = [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
    curve = paired_tests.kaplan_meier(relapsed + still_well, [True] * 9 + [False] * 12)
    assert curve.times.tolist() == [6, 7, 10, 13, 16, 22, 23]
    assert curve.share == pytest.approx([0.857, 0.807, 0.753, 0.690, 0.627, 0.538, 0.448], abs=5e-4)
    assert curve.median == 23


def test_there_is_no_median_where_most_miss_the_target():
    assert paired_tests.kaplan_meier([1, 2, 3], [True, False, False]).median is None
    assert paired_tests.kaplan_meier([1, 2], [False, False]).median is None


def test_the_time_of_failed_runs_is_part_of_the_expected_running_time():
    assert paired_tests.expected_running_time([10, 20, 30], [True, False, True]) == 30
    assert paired_tests.expected_running_time([10, 20], [False, False]) is None


@pytest.mark.parametrize(
    ("value", "baseline", "ratio"), [(9, 10, 0.9), (None, 1, None), (1, None, None), (1, 0, None), (NAN, 1, None)]
)
def test_a_share_of_a_baseline_is_unknown_where_either_is(value, baseline, ratio):
    assert paired_tests.percent_of_baseline(value, baseline) == ratio
