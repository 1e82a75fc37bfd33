"""The figures of a race: costs to the target, medians, ratios, tests, intervals, expected time, survival."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.referee.conftest import LANES, SEEDS, TARGET
from tests.referee.statistics import (
    bootstrap_interval,
    bootstrap_p,
    median_or_none,
    sign_flip_p,
    signed_ranks,
    survival,
    to_target,
)

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]
RIVALS = [label for label in LANES if label != "fast"]
METRICS = ("test_accuracy", "test_loss", "to_target")
NS = 1e-6  # relative: times in a CSV are whole nanoseconds


def near(value):
    return None if value is None else pytest.approx(value, rel=NS)


def costs(exported, run_id):
    """What a run spent to the target by axis, and the seconds it trained in all."""
    evaluations, steps = (exported.points(run_id, table) for table in ("evaluations", "steps"))
    samples = np.interp(evaluations["step"], [0, *steps["step"]], [0, *steps["samples"]])
    axes = {"steps": evaluations["step"], "seconds": evaluations["seconds"], "samples": samples}
    axes["flops"] = samples * exported.report[run_id]["train_flops_per_example"]
    found = {name: to_target(axis, evaluations["test_accuracy"], TARGET) for name, axis in axes.items()}
    return found, steps["seconds"][-1]


def times(exported, label):
    """Seconds to the target of each seed, or the seconds it trained; and whether it reached the target."""
    every = [costs(exported, run_id) for run_id in exported.lane("race", label)["run_ids"]]
    reached = np.array([found["seconds"] is not None for found, _ in every])
    return np.array([found["seconds"] if found["seconds"] is not None else spent for found, spent in every]), reached


def last(exported, label, metric):
    runs = exported.lane("race", label)["run_ids"]
    return np.array([exported.points(run_id, "evaluations")[metric][-1] for run_id in runs])


def differences(exported, label, metric):
    """Paired differences from `fast`: of values, of log times, or of signed ranks where a run missed the target."""
    if metric != "to_target":
        return last(exported, label, metric) - last(exported, "fast", metric), "difference"
    (a, hit_a), (b, hit_b) = times(exported, "fast"), times(exported, label)
    if hit_a.all() and hit_b.all():
        return np.log(b) - np.log(a), "log ratio"
    return signed_ranks(np.where(hit_a, a, np.inf), np.where(hit_b, b, np.inf)), "ranks"


@pytest.mark.parametrize("label", LANES)
def test_costs_to_the_target_are_medians_of_interpolated_crossings(exported, label):
    lane = exported.lane("race", label)
    every = [costs(exported, run_id)[0] for run_id in lane["run_ids"]]
    assert lane["reached"] == sum(found["steps"] is not None for found in every)
    assert lane["judged"] == len(every) == SEEDS
    for axis in ("steps", "samples", "seconds", "flops"):
        assert lane["cost"][axis] == near(median_or_none([found[axis] for found in every])), axis


@pytest.mark.parametrize("label", LANES)
def test_expected_time_is_all_time_spent_over_successes(exported, label):
    spent, reached = times(exported, label)
    expected = spent.sum() / reached.sum() if reached.any() else None
    assert exported.lane("race", label)["expected_s"] == near(expected)


@pytest.mark.parametrize("label", LANES)
def test_survival_is_the_share_of_runs_without_the_target(exported, label):
    expected = survival(*times(exported, label))
    found = exported.said["race"]["survival"][label]
    assert found["seconds"] == pytest.approx(list(expected), rel=NS)
    assert found["share"] == pytest.approx(list(expected.values()), rel=1e-9)


@pytest.mark.parametrize("label", LANES)
def test_medians_are_those_of_the_runs(exported, label):
    lane = exported.lane("race", label)
    runs = [exported.report[run_id]["summary"] for run_id in lane["run_ids"]]
    for metric in ("test_accuracy", "test_loss"):
        assert lane[metric] == pytest.approx(np.median(last(exported, label, metric)), rel=1e-12)
    assert lane["samples_per_s"] == pytest.approx(
        np.median([r["samples"] / r["train_seconds"] for r in runs]), rel=1e-12
    )
    assert lane["steps_per_s"] == pytest.approx(np.median([r["steps"] / r["train_seconds"] for r in runs]), rel=1e-12)


def test_the_noise_floor_is_that_of_the_best_accuracy(exported):
    best = max(last(exported, label, "test_accuracy").max() for label in LANES)
    assert exported.said["race"]["noise_floor"] == pytest.approx(math.sqrt((1 - best) / (2 * 359)), rel=1e-9)


def test_the_loss_noise_is_the_spread_around_a_moving_average(exported):
    for label in LANES:
        spreads = []
        for run_id in exported.lane("race", label)["run_ids"]:
            loss = exported.points(run_id, "steps")["loss"][-50:]
            smooth = np.array([loss[i : i + 25].mean() for i in range(len(loss) - 24)])
            spreads.append(np.std(loss[12 : 12 + len(smooth)] - smooth))
        assert exported.lane("race", label)["loss_noise"] == pytest.approx(np.median(spreads), rel=1e-9)


@pytest.mark.parametrize("label", RIVALS)
def test_ratios_are_those_to_the_baseline(exported, label):
    lane, base = exported.lane("race", label), exported.lane("race", "fast")
    for name in ("test_accuracy", "test_loss", "samples_per_s", "steps_per_s", "memory_bytes"):
        assert lane["share"][name] == pytest.approx(lane[name] / base[name], rel=1e-12)
    for axis in ("steps", "samples", "seconds", "flops"):
        known = None not in (lane["cost"][axis], base["cost"][axis])
        assert lane["share"][axis] == (
            pytest.approx(lane["cost"][axis] / base["cost"][axis], rel=1e-12) if known else None
        )


def test_the_same_training_has_the_same_costs_at_any_speed(exported):
    """`tutorial` is slower, but its steps, evaluations and accuracies are those of `fast`."""
    fast, tutorial = (exported.lane("race", label) for label in ("fast", "tutorial"))
    for a, b in zip(fast["run_ids"], tutorial["run_ids"], strict=True):
        grids = [exported.points(run_id, "evaluations")["step"].tolist() for run_id in (a, b)]
        assert grids[0] == grids[1]
        losses = [exported.points(run_id, "steps")["loss"] for run_id in (a, b)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert fast["reached"] == tutorial["reached"] == SEEDS
    for axis in ("steps", "samples", "flops"):
        assert tutorial["cost"][axis] == pytest.approx(fast["cost"][axis], rel=0.02), axis  # one prediction can differ


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", RIVALS)
def test_effects_and_intervals_are_those_of_the_pairs(exported, label, metric):
    verdict = exported.lane("race", label)["verdicts"][metric]
    difference, kind = differences(exported, label, metric)
    assert verdict["n"] == SEEDS
    if kind == "ranks":
        medians = [
            median_or_none([t if r else None for t, r in zip(*times(exported, lane), strict=True)])
            for lane in ("fast", label)
        ]
        expected = None if None in medians else medians[1] / medians[0] - 1
        assert verdict["effect"] == near(expected)
        assert verdict["low"] is verdict["high"] is None
        return
    scale = math.expm1 if kind == "log ratio" else float
    assert verdict["effect"] == pytest.approx(scale(difference.mean()), rel=1e-5, abs=1e-9)
    if difference.std() > 0:
        low, high = map(scale, bootstrap_interval(difference, verdict["level"]))
        assert (verdict["low"], verdict["high"]) == pytest.approx((low, high), rel=1e-4, abs=1e-9)


def p_alone(exported, label, metric):
    """p of one comparison: of the sign-flip test, and of the bootstrap interval where there is one."""
    difference, kind = differences(exported, label, metric)
    if kind == "ranks" or not difference.std():
        return sign_flip_p(difference)
    return max(sign_flip_p(difference), bootstrap_p(difference))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("label", RIVALS)
def test_a_verdict_is_never_significant_where_its_own_test_is_not(exported, label, metric):
    verdict = exported.lane("race", label)["verdicts"][metric]
    if p_alone(exported, label, metric) > 0.05:
        assert (verdict["state"], verdict["winner"]) == ("inconclusive", None)
    if verdict["state"] == "decided":
        difference, _ = differences(exported, label, metric)
        is_lower, better = difference.mean() < 0, metric != "test_accuracy"
        assert verdict["winner"] == ("b" if is_lower == better else "a")


def test_verdicts_are_corrected_for_all_rivals_and_metrics(exported):
    """Holm (1979): all comparisons that are not significant are tested at levels that add up to at most 5 %.

    How the 5 % are divided between the comparisons is the engine's choice, which the levels state.
    """
    left = 0.0
    for label in RIVALS:
        for metric in METRICS:
            verdict, p = exported.lane("race", label)["verdicts"][metric], p_alone(exported, label, metric)
            alpha = 1 - verdict["level"]
            assert verdict["p"] == pytest.approx(p, abs=1e-9), f"{label} {metric}"
            assert p - 1e-9 <= verdict["p_adjusted"] <= 1
            assert (verdict["state"] == "decided") == (p <= alpha + 1e-9) == (verdict["p_adjusted"] <= 0.05 + 1e-9)
            left += 0 if verdict["state"] == "decided" else alpha
    assert left <= 0.05 + 1e-9
