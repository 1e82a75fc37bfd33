"""Learning-rate schedules against torch.optim.lr_scheduler."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from engine.config.run import RunConfig
from engine.config.schedules import lr_factor

STEPS = 40


def factors(steps=STEPS, **fields):
    return [lr_factor(RunConfig(**fields), i, i / steps) for i in range(steps)]


def of_torch(build, steps=STEPS):
    """The learning rates that a scheduler of PyTorch sets for each step, from a learning rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = build(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_is_the_learning_rate():
    assert factors() == [1.0] * STEPS


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_matches_torch(end):
    reference = of_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=end))
    assert factors(schedule="cosine", lr_end=end) == pytest.approx(reference)


def test_step_matches_multi_step_of_torch():
    reference = of_torch(lambda o: lr_scheduler.MultiStepLR(o, milestones=[10, 30], gamma=0.2))
    assert factors(schedule="step", lr_gamma=0.2, lr_milestones=(0.25, 0.75)) == pytest.approx(reference)


def test_one_cycle_matches_torch():
    """PyTorch counts steps from both ends, so its curve is shifted by one step; in a long run this is negligible."""
    steps = 2_000
    reference = of_torch(
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=1.0, total_steps=steps, cycle_momentum=False), steps
    )
    assert factors(steps, schedule="one-cycle") == pytest.approx(reference, abs=3e-3)


def test_warm_up_matches_linear_of_torch():
    reference = of_torch(lambda o: lr_scheduler.LinearLR(o, start_factor=1 / 10, total_iters=9))
    assert factors(warmup_steps=10, schedule="warm-up") == pytest.approx(reference)


def test_warm_up_comes_before_cosine():
    def both(optimizer):
        warm_up = lr_scheduler.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS - 10)
        return lr_scheduler.SequentialLR(optimizer, [warm_up, cosine], milestones=[10])

    assert factors(warmup_steps=10, schedule="cosine") == pytest.approx(of_torch(both), abs=1e-6)


def test_warm_up_takes_a_tenth_of_the_run_by_default():
    rates = factors(100, schedule="warm-up")
    assert 0 < rates[0] < rates[5] < rates[9] < 1
    assert rates[10:] == [1.0] * 90


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step", "one-cycle", "warm-up"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_a_factor_stays_between_zero_and_one(schedule, share):
    assert 0 <= lr_factor(RunConfig(schedule=schedule), 7, share) <= 1
