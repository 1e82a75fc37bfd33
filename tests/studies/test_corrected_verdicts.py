"""Verdicts of races with several configurations and figures: Holm's correction, tests of a growing race, simulated races."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import stats

from engine.studies import race_results
from engine.studies.paired_tests import corrected, holm, verdict


def equal_race(rng, num_lanes, num_seeds, shape="normal"):
    """Figures of equal configurations, (lanes, seeds, 3): accuracy, loss and log time, which depend on each other."""
    draw = {
        "normal": rng.normal,
        "heavy-tailed": partial(rng.standard_t, 2),
        "log-normal": partial(rng.lognormal, 0, 1),
    }[shape]
    of_seed, of_run = draw(size=(1, num_seeds, 1)), draw(size=(num_lanes, num_seeds, 1))
    return of_seed + of_run + 0.7 * draw(size=(num_lanes, num_seeds, 3))


def is_any_significant(figures, looks=1, correct=True):
    """Whether a race calls any figure of any configuration different from the first."""
    num_lanes, _, num_figures = figures.shape
    keys = ("to_target", "test_accuracy", "test_loss")[:num_figures]
    shares = race_results._shares([str(i) for i in range(1, num_lanes)], keys, keys[0])
    tests = {
        (str(i), key): lambda level, a=figures[0, :, k], b=figures[i, :, k]: verdict(
            a, b, lower_is_better=True, level=level
        )
        for i in range(1, num_lanes)
        for k, key in enumerate(keys)
    }
    if not correct:
        return any(test(0.95).winner for test in tests.values())
    return any(found.winner for found in corrected(tests, shares, looks=looks).values())


def is_any_significant_as_it_grows(figures, first, step=2):
    """The same, where the race is tested again after each `step` seeds, and stopped when something is significant."""
    looks = 0
    for n in range(first, figures.shape[1] + 1, step):
        if n >= race_results.seeds_needed(len(figures), looks + 1):
            looks += 1
            if is_any_significant(figures[:, :n], looks):
                return True
    return False


def share_wrong(num_lanes, num_seeds, races, *, shape="normal", first=None, correct=True, seed=0):
    rng = np.random.default_rng(seed)
    wrong = 0
    for _ in range(races):
        figures = equal_race(rng, num_lanes, num_seeds, shape)
        wrong += (
            is_any_significant_as_it_grows(figures, first) if first else is_any_significant(figures, correct=correct)
        )
    return wrong / races


def test_one_in_twenty_races_of_five_equal_configurations_is_significant_at_most():
    """Without the correction it is one in four: four rivals and three figures."""
    assert share_wrong(5, 8, 30, correct=False) > 0.15
    assert share_wrong(5, 8, 30) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("num_lanes", "shape"), [(2, "normal"), (3, "heavy-tailed"), (4, "log-normal"), (6, "normal")])
def test_adding_seeds_until_something_is_significant_finds_it_in_five_percent_of_equal_races_at_most(num_lanes, shape):
    """`docs/compare.md` has the shares of 4,000 races, by the same function."""
    wrong = share_wrong(num_lanes, 12, 60, shape=shape, first=6)
    assert wrong <= stats.binom.ppf(0.999, 60, 0.05) / 60


def test_holm_with_equal_shares_gives_the_adjusted_p_of_a_textbook():
    """0.01, 0.04, 0.03, 0.005 of Wright 1992 (Biometrics 48): R's p.adjust(..., "holm") is 0.03, 0.06, 0.06, 0.02."""
    p = dict(enumerate([0.01, 0.04, 0.03, 0.005]))
    found = holm(p, dict.fromkeys(p, 0.25), 0.05)
    assert [found[k][1] for k in p] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [found[k][0] for k in p] == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])  # Holm ends after two


def test_a_planned_comparison_without_a_result_keeps_its_share():
    assert holm({"a": 0.04}, {"a": 0.5, "b": 0.5}, 0.05)["a"] == (0.025, 0.08)


def test_most_of_the_level_is_for_the_question_of_the_race():
    """Six clear seeds decide a race of two; its other figures then have the rest of the level, which needs seven."""
    clear = partial(verdict, np.zeros(6), np.arange(1.0, 7), lower_is_better=True)
    shares = race_results._shares(["b"], ["test_accuracy", "test_loss"], "test_accuracy")
    tests = {key: lambda level: clear(level=level) for key in shares}
    found = corrected(tests, shares)
    assert found["b", "test_accuracy"].state == "decided"
    assert found["b", "test_accuracy"].p_adjusted == pytest.approx(2 / 64 / 0.8 / 0.8)
    assert found["b", "test_loss"].state == "decided"  # at the whole level, because the question is significant
    assert corrected(tests, shares, looks=2)["b", "test_accuracy"].state == "preliminary"


def test_the_seeds_that_a_race_needs_are_those_that_the_texts_name():
    needed = [race_results.seeds_needed(lanes) for lanes in (2, 3, 4, 5, 6)]
    assert needed == [6, 7, 8, 8, 9]
    two, three, four, six = (int(part.split()[0]) for part in race_results.SEEDS_NEEDED_IN_WORDS.split(", "))
    assert [two, three, four, four, six] == needed


def test_an_interval_has_the_level_at_which_its_comparison_was_tested():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 10))
    shares = {"x": 0.25, "y": 0.75}
    found = corrected({key: lambda level: verdict(a, b, lower_is_better=True, level=level) for key in shares}, shares)
    assert [found[key].level for key in shares] == pytest.approx([1 - 0.04 / 4, 1 - 0.04 * 3 / 4])
    assert found["x"].high - found["x"].low > found["y"].high - found["y"].low
