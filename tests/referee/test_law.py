"""The figures of a batch-size law, from its trials."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.referee.statistics import fit_law, parabolas

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]


@pytest.fixture
def trials(exported):
    return exported.run("law")["trials"]


@pytest.fixture
def law(exported):
    return exported.said["law"]["batch_law"]


def measuring(trials, size):
    return [t for t in trials if t["batch_size"] == size and not t["tuning"]]


def test_the_report_and_show_have_the_same_trials(exported, trials):
    shown = exported.shown["law"]["trials"]
    assert [(t["batch_size"], t["lr"], t["seed"], t["steps"]) for t in shown] == [
        (t["batch_size"], t["lr"], t["seed"], t["steps"]) for t in trials
    ]


def test_each_batch_size_has_the_mean_of_its_measuring_trials(trials, law):
    assert [at["batch_size"] for at in law["sizes"]] == sorted({t["batch_size"] for t in trials}) == [8, 32, 128, 512]
    for at in law["sizes"]:
        own = measuring(trials, at["batch_size"])
        steps = [t["steps"] for t in own if t["steps"] is not None]
        every = [t for t in trials if t["batch_size"] == at["batch_size"]]
        assert (at["reached"], at["measured"]) == (len(steps), len(own))
        assert at["steps"] == pytest.approx(math.exp(np.mean(np.log(steps))), rel=1e-9)
        assert at["step_s"] == pytest.approx(np.median([t["step_s"] for t in every]), rel=1e-9)
        assert at["lrs_tried"] == len({t["lr"] for t in every if t["tuning"]})
        assert {t["lr"] for t in own} == {at["lr"]}


def test_the_rate_of_each_batch_size_lies_between_worse_ones(trials, law):
    """The best rate is inside the search: the mean of ln S there is no worse than at the ends."""
    for at in law["sizes"]:
        tuned = [t for t in trials if t["batch_size"] == at["batch_size"] and t["tuning"]]
        rates = sorted({t["lr"] for t in tuned})
        assert rates[0] < at["lr"] < rates[-1]
        means = {}
        for rate in rates:
            steps = [t["steps"] for t in tuned if t["lr"] == rate]
            means[rate] = math.inf if None in steps else np.mean(np.log(steps))
        best = min(means, key=means.__getitem__)
        place = rates.index(best)
        assert rates[place - 1] <= at["lr"] <= rates[place + 1]


def near_the_best_rate(trials, size):
    """ln lr and ln S of the trials of a batch size at rates that every seed reached, no further than 0.35 from the best."""
    made = [t for t in trials if t["batch_size"] == size]
    rates = {}
    for trial in made:
        rates.setdefault((trial["lr"], trial["tuning"]), []).append(trial["steps"])
    means = {key: np.mean(np.log(steps)) for key, steps in rates.items() if None not in steps}
    best = min(mean for (_, tuning), mean in means.items() if tuning)
    kept = [key for key, mean in means.items() if not key[1] or mean <= best + 0.35]
    rows = [(math.log(t["lr"]), math.log(t["steps"])) for t in made if (t["lr"], t["tuning"]) in kept]
    return np.array(rows).T


def test_the_steps_of_each_batch_size_are_the_minimum_of_a_parabola(trials, law):
    fitted = [at for at in law["sizes"] if at["in_fit"]]
    minima, _ = parabolas([near_the_best_rate(trials, at["batch_size"]) for at in fitted])
    assert [at["best_steps"] for at in fitted] == pytest.approx(np.exp(minima), rel=1e-6)


def test_the_law_is_the_robust_least_squares_fit_of_these_steps(law):
    points = np.array([(at["batch_size"], at["best_steps"]) for at in law["sizes"] if at["in_fit"]])
    s_min, b_crit, rms = fit_law(*points.T, robust=True)
    found = law["law"]
    assert found["s_min"] == pytest.approx(s_min, rel=1e-3)  # the engine searches on a grid
    assert found["b_crit"] == pytest.approx(b_crit, rel=1e-3)
    assert found["e_min"] == pytest.approx(found["s_min"] * found["b_crit"], rel=1e-9)
    assert found["rms_log_residual"] == pytest.approx(rms, rel=1e-2)


def test_the_interval_has_the_point_and_is_not_narrower_than_the_noise_of_the_trials(trials, law):
    """A bootstrap of both fits with the rates as given; an interval that knows that they were chosen is wider.

    60 resamples know their spread to 9 %, so the test asks for 80 % of the width.
    """
    sizes = np.array([at["batch_size"] for at in law["sizes"] if at["in_fit"]], dtype=np.float64)
    groups = [near_the_best_rate(trials, size) for size in sizes]
    _, fitted = parabolas(groups)
    rng, drawn = np.random.default_rng(7), []
    for _ in range(60):
        noisy = [(x, f + (y - f) * rng.normal(size=len(x))) for (x, y), f in zip(groups, fitted, strict=True)]
        minima, _ = parabolas([np.array(group) for group in noisy])
        drawn.append(math.log(fit_law(sizes, np.exp(minima))[1]))
    interval, b_crit = law["b_crit"], law["law"]["b_crit"]
    assert interval["low"] < b_crit < interval["high"]
    assert math.log(interval["high"] / interval["low"]) > 0.8 * 2 * 1.96 * np.std(drawn)


def test_step_time_and_fastest_batch_follow_from_the_trials(law):
    timed = np.array([(at["batch_size"], at["step_s"]) for at in law["sizes"]])
    relative = np.stack([1 / timed[:, 1], timed[:, 0] / timed[:, 1]], axis=1)
    t0, t1 = np.linalg.lstsq(relative, np.ones(len(timed)), rcond=None)[0]
    found = law["step_time"]
    if min(t0, t1) > 0:
        assert (found["t0_s"], found["t1_s"]) == pytest.approx((t0, t1), rel=1e-6)
    if found["t0_s"] > 0 < found["t1_s"]:
        batches = np.geomspace(1e-2, 1e7, 200_001)
        times = law["law"]["s_min"] * (1 + law["law"]["b_crit"] / batches) * (found["t0_s"] + found["t1_s"] * batches)
        assert law["best"] == pytest.approx([batches[times.argmin()], times.min()], rel=1e-3)


def test_a_law_counts_all_its_trials_or_says_that_it_does_not_know(exported, trials):
    """Trials made more steps than they needed, because two evaluations confirm a target and some never reach it."""
    summary = exported.said["law"]["summary"]
    reached = [t for t in trials if t["reached"]]
    least = {
        "steps": sum(math.floor(t["steps"]) for t in reached),
        "samples": sum(t["samples"] for t in reached),
        "train_seconds": sum(t["train_s"] for t in reached),
        "flops": sum(t["samples"] for t in reached) * 20_224,
    }
    for name, some in least.items():
        assert summary[name] is None or summary[name] >= some > 0, name
    for name in ("steps", "samples"):
        if None not in (made := [t.get(f"{name}_made") for t in trials]):
            assert summary[name] == sum(made)
