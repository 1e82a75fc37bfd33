"""The figures of a scaling study, from the points of its runs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.referee.statistics import t_interval

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]
LABELS = ["1 rank", "2 ranks", "2 ranks, batch 64"]


def rates(exported, label):
    """Samples/s of each seed."""
    found = []
    for run_id in exported.lane("scaling", label)["run_ids"]:
        steps = exported.points(run_id, "steps")
        found.append(steps["samples"][-1] / steps["seconds"][-1])
    return np.array(found)


@pytest.mark.parametrize("label", LABELS)
def test_speed_up_is_the_mean_ratio_of_pairs_with_students_interval(exported, label):
    logs = np.log(rates(exported, label) / rates(exported, "1 rank"))
    lane = exported.lane("scaling", label)
    expected = [math.exp(v) for v in t_interval(logs)] if lane["ranks"] > 1 else [1.0] * 3
    found = lane["speedup"]
    assert found["n"] == 3
    assert [found["value"], found["low"], found["high"]] == pytest.approx(expected, rel=1e-6)
    efficiency = lane["efficiency"]
    each = [v / lane["ranks"] for v in expected]
    assert [efficiency["value"], efficiency["low"], efficiency["high"]] == pytest.approx(each, rel=1e-6)


@pytest.mark.parametrize("label", LABELS[1:])
def test_the_speed_up_is_the_ratio_of_the_rates_beside_it(exported, label):
    """One kind of average for both, so that a reader can divide the figures of the table."""
    lane, base = exported.lane("scaling", label), exported.lane("scaling", "1 rank")
    assert lane["speedup"]["value"] == pytest.approx(lane["samples_per_s"] / base["samples_per_s"], rel=1e-6)
    # Not the ratio of the batch sizes: the last batch of an epoch is smaller.
    samples, before = (exported.points(one["run_ids"][0], "steps")["samples"][-1] for one in (lane, base))
    assert lane["speedup"]["value"] == pytest.approx(samples / before * base["step_s"] / lane["step_s"], rel=1e-6)


def test_serial_shares_are_shares(exported):
    """Amdahl: 1/speed-up = s + (1 - s)/n. Gustafson: speed-up = n - (n - 1) s. Outside 0..1 neither law holds."""
    strong, weak = (rates(exported, label) / rates(exported, "1 rank") for label in LABELS[1:])
    amdahl, gustafson = (1 / strong - 1 / 2) / (1 - 1 / 2), 2 - weak
    for key, values in (("serial_share", amdahl), ("scaled_serial_share", gustafson)):
        found = exported.said["scaling"][key]
        if 0 <= values.mean() <= 1:
            assert [found["value"], found["low"], found["high"]] == pytest.approx(t_interval(values), rel=1e-6)
        else:
            assert found is None or found["value"] is None, f"{key} {found}, fitted {values.mean():.2f}"


@pytest.mark.parametrize("label", LABELS)
def test_equal_seeds_take_equal_steps_on_any_number_of_ranks(exported, label):
    lane, base = exported.lane("scaling", label), exported.lane("scaling", "1 rank")
    if lane["mode"] != "strong" or lane["ranks"] == 1:
        assert lane["same_for"] is None
        return
    least = []
    for a, b in zip(base["run_ids"], lane["run_ids"], strict=True):
        one, many = (exported.points(run_id, "steps")["loss"] for run_id in (a, b))
        close = np.abs(one - many) <= 1e-4
        least.append(int(np.argmin(close)) if not close.all() else len(close))
    assert (lane["same_for"], lane["compared"]) == (min(least), 40)


@pytest.mark.parametrize("label", LABELS[1:])
def test_the_parts_of_a_step_are_mean_shares_of_the_ranks_over_all_steps(exported, label):
    lane, shares = exported.lane("scaling", label), []
    for run_id in lane["run_ids"]:
        windows = [event for event in exported.report[run_id]["said"] if event["kind"] == "ranks"]
        weights = [w["steps"][1] - w["steps"][0] + 1 for w in windows]
        assert sum(weights) == 40
        step, wait, exchange = (
            np.average([w[key] for w in windows], axis=0, weights=weights)
            for key in ("step_s", "waited_s", "communication_s")
        )
        own = np.maximum(step - wait, 0)
        shares.append(np.array([wait.mean(), exchange.mean(), own.mean()]) / step.mean())
    found = [lane["waited_s"], lane["communication_s"], lane["own_s"]]
    assert found == pytest.approx(lane["step_s"] * np.mean(shares, axis=0), rel=1e-9)
    assert lane["waited_share"] == pytest.approx(min(1, lane["waited_s"] / lane["step_s"]), rel=1e-9)
    assert lane["per_rank_batch"] == lane["batch_size"] / lane["ranks"]
