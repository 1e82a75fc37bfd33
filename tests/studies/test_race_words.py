"""Sentences on the verdicts of races: each says what its figures show, and no two contradict each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine.studies import race_results, race_text, race_verdicts
from engine.studies.paired_tests import Verdict, verdict, verdict_to_target
from engine.studies.race_results import Outcome, VariantOutcome


def lane(label: str, **figures: object) -> VariantOutcome:
    """A configuration whose six runs have finished."""
    known: dict = {
        "run_ids": [f"{label}{seed}" for seed in range(6)], "status": {"finished": 6}, "why": [], "over": 6, "judged": 6,
        "reached": 6, "cost": dict.fromkeys(race_results.AXES), "expected_s": None, "test_accuracy": 0.9, "test_loss": 0.3,
        "samples_per_s": None, "steps_per_s": None, "memory_bytes": None, "busy": 0, "has_energy": False,
        "energy_doubt": None, "loss_noise": None,
    }  # fmt: skip
    return VariantOutcome(label=label, **known | figures)


def said(found: Verdict, what: str = "target") -> str:
    return race_verdicts.verdict_in_words("c", "a", found, what)


def judged(found: Verdict) -> Verdict:
    """A verdict of a family of one."""
    return replace(found, p_adjusted=found.p)


def test_a_verdict_that_rests_on_how_many_reached_the_target_says_so():
    reached = np.array([True] * 3 + [False] * 3)
    found = judged(verdict_to_target(np.arange(2.0, 8), reached, np.arange(1.0, 7), [True] * 6))
    assert found.winner == "b"
    assert said(found) == (
        "c reaches the target in 6 of 6 seeds, a in 3 of 6. A run that misses it counts as later than one that reaches it: "
        "c is sooner in 6 of 6 seeds, a in 0. Significant (p = 0.031, 6 paired seeds)."
    )


def test_a_target_that_no_run_reached_is_not_compared():
    found = judged(verdict_to_target([1.0] * 7, [False] * 7, [2.0] * 7, [False] * 7))
    assert said(found) == "Neither c nor a reaches the target in any of 7 paired seeds."


def test_an_interval_without_zero_beside_not_significant_is_explained():
    """The bootstrap excludes zero, the exact test of 6 pairs of which one has the other sign does not."""
    found = judged(verdict(np.zeros(6), [-3.1, 0.1, -0.7, -0.6, -0.7, -0.7], lower_is_better=True))
    assert found.state == "inconclusive" and found.high < 0
    assert (
        "Not significant (p = 0.062, 6 paired seeds). The interval excludes no difference, but the exact test"
        in said(found, "test loss")
    )
    assert "excludes" not in said(
        judged(verdict(np.zeros(6), [-1.0, 1, -1, 1, -1, 2], lower_is_better=True)), "test loss"
    )


def test_equal_results_are_called_identical_and_not_chance():
    same = judged(verdict([0.9] * 6, [0.9] * 6, lower_is_better=False))
    b = lane("b", verdicts={"test_accuracy": same, "test_loss": same})
    result = Outcome("test_accuracy", None, "a", 6, [lane("a"), b], None)
    assert race_verdicts.verdicts_in_words(result) == [
        "b and a have identical results: the same test accuracy and test loss in each of 6 paired seeds."
    ]
    assert race_text.recommendation(result) == "All configurations have the same median test accuracy, 90.00 %."
    other = judged(verdict([0.3] * 6, [0.31, 0.29] * 3, lower_is_better=True))
    only = replace(result, lanes=[lane("a"), replace(b, verdicts={"test_accuracy": same, "test_loss": other})])
    assert race_verdicts.verdicts_in_words(only) == ["b and a have the same test accuracy in each of 6 paired seeds."]


@pytest.mark.parametrize(("reached", "words"), [(3, "reached by 3 of 6 runs"), (0, "reached by 0 of 6 runs")])
def test_a_target_without_a_median_says_how_many_runs_reached_it(reached, words):
    assert race_verdicts.cost_in_words(lane("a", reached=reached)) == words


def test_the_recommendation_does_not_say_that_no_run_reached_the_target_where_three_did():
    costs = dict.fromkeys(race_results.AXES, 2.0)
    result = Outcome("test_accuracy", 0.9, "a", 6, [lane("a", reached=3), lane("c", cost=costs)], None)
    assert "; a reached the target in only 3 of 6 runs." in (race_text.recommendation(result) or "")


def test_imported_runs_are_marked_in_the_terminal():
    result = Outcome("test_accuracy", None, "a", 6, [lane("a", imported=6), lane("b", imported=1), lane("c")], None)
    a, b, c = (line for line in race_verdicts.table(result) if "6 finished" in line)
    assert a == "a  (6 finished; imported, unverified, times of another machine)"
    assert b == "b  (6 finished; 1 of 6 imported, unverified, times of another machine)"
    assert c == "c  (6 finished)"
