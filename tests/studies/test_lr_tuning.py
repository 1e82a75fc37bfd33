"""The search for learning rates and the interval of B_crit, on simulated trials with the noise of real ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.config.tasks import Law
from engine.events.studies import Trial
from engine.studies import batch_law
from engine.studies.lr_tuning import fit_curves, responses, search

LAW, S_MIN, B_CRIT = Law(), 22.0, 41.0
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1438)
# Seeds of a trial on 8x8 digits differ by 10 % at a low rate and by 25 % at a high one; rates 1.5 times from the best need 10 %
# more steps, and rates three times above it never reach the target.
NOISE, CURVATURE, DIVERGES = 0.15, 0.6, 3.0


def best_lr(size):
    return 1.0 / (1 + 30 / size)


def simulated(rng, ask, noise=NOISE):
    """A trial that follows the law at its best rate."""
    off = math.log(ask.lr / best_lr(ask.batch_size))
    mean = math.log(S_MIN * (1 + B_CRIT / ask.batch_size)) + CURVATURE * off**2
    steps = math.exp(mean + rng.normal(0, noise * max(0.5, 1 + off)))
    reached = steps <= ask.max_steps and off < math.log(DIVERGES)
    return Trial(
        batch_size=ask.batch_size, lr=ask.lr, seed=ask.seed, tuning=ask.tuning, reached=reached, max_steps=ask.max_steps,
        steps=steps if reached else None, last_loss=0.2,
    )  # fmt: skip


def study(rng, lr=0.06, measuring_noise=NOISE):
    """All trials of a simulated study."""
    asks, trials = search(LAW, SIZES, lr, seed=0), []
    ask = next(asks)
    while ask:
        trials.append(simulated(rng, ask, NOISE if ask.tuning else measuring_noise))
        try:
            ask = asks.send(trials[-1])
        except StopIteration:
            ask = None
    return trials


def curves_of(trials):
    seen = responses(trials, SIZES)
    return fit_curves(seen.place, seen.log_lr[None], seen.log_steps[None])


@pytest.mark.slow
def test_the_interval_holds_the_true_critical_batch_in_19_of_20_studies():
    rng, held, errors, residuals = np.random.default_rng(0), 0, [], []
    for _ in range(60):
        trials = study(rng)
        interval = batch_law.bootstrap_batch_law(responses(trials, SIZES), resamples=150)
        law = batch_law.fit_batch_law(SIZES, np.exp(curves_of(trials).log_steps[0]))
        held += interval.low <= B_CRIT <= interval.high
        errors.append(math.log(law.b_crit / B_CRIT))
        residuals.append(law.rms_log_residual)
    assert held >= 53  # of 60; fewer happen to a 95 % interval once in 100
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.07 and max(residuals) < 0.12


def test_the_interval_includes_the_choice_of_the_learning_rate():
    """Where the measuring seeds agree exactly, all that is uncertain comes from the trials that chose the rates."""
    trials = study(np.random.default_rng(1), measuring_noise=0.0)
    interval = batch_law.bootstrap_batch_law(responses(trials, SIZES))
    assert math.log(interval.high / interval.low) > 0.08
    chosen = [trial.model_copy(update={"tuning": False}) for trial in trials if not trial.tuning]
    ignored = batch_law.bootstrap_batch_law(responses(chosen, SIZES))
    assert math.log(interval.high / interval.low) > 1.5 * math.log(ignored.high / ignored.low)


def test_a_search_ends_when_the_rates_on_both_sides_are_clearly_worse_and_measures_at_the_minimum():
    trials = study(np.random.default_rng(2))
    for size in SIZES:
        tuning = [t for t in trials if t.batch_size == size and t.tuning]
        (chosen,) = {t.lr for t in trials if t.batch_size == size and not t.tuning}
        assert min(t.lr for t in tuning) < chosen < max(t.lr for t in tuning)
        assert abs(math.log(chosen / best_lr(size))) < math.log(1.6)
    assert len(trials) < 200  # 18 per batch size


def test_parabolas_without_noise_are_recovered_at_any_grid():
    place = np.repeat([0, 1], 4)
    log_lr = np.array([-1.0, -0.6, -0.2, 0.2, 0.1, 0.5, 0.9, 1.3])
    best, lowest = np.array([-0.3, 0.8])[place], np.array([5.0, 3.0])[place]
    found = fit_curves(place, log_lr[None], (lowest + 0.7 * (log_lr - best) ** 2)[None])
    assert found.log_lr[0] == pytest.approx([-0.3, 0.8]) and found.log_steps[0] == pytest.approx([5.0, 3.0])
    assert found.curvature[0] == pytest.approx(0.7)


def test_a_rate_that_one_seed_did_not_survive_is_no_part_of_the_parabola():
    trials = study(np.random.default_rng(3))
    more = [
        t.model_copy(update={"lr": 9.0, "reached": i < 2, "steps": 1.0 if i < 2 else None})
        for i, t in enumerate(trials[:3])
    ]
    assert curves_of([*trials, *more]).log_steps[0] == pytest.approx(curves_of(trials).log_steps[0])
