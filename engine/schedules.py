"""Learning-rate schedules as pure functions of how far a run is.

A schedule is a factor of `optimizer.lr`. It depends on the share of the run that is done, not on a number of steps, so
that a run with a time limit alone has one too.
"""

from __future__ import annotations

import math

from engine.config import RunConfig

WARM_UP_SHARE = 0.1  # of the run, where the warm-up schedule is not told how many steps
_FIRST_SHARE = 1e-3  # the first step moves as well
ONE_CYCLE_RISE = 0.3  # share of the run in which one-cycle climbs: torch.optim.lr_scheduler.OneCycleLR's defaults
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25 / 1e4


def lr_factor(config: RunConfig, step: int, share: float) -> float:
    """Factor of the learning rate for step `step` (counting from 0), with `share` (0..1) of the run done before it."""
    if config.warmup_steps:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
    elif config.schedule == "warm-up":
        return min(1.0, max(share, _FIRST_SHARE) / WARM_UP_SHARE)
    match config.schedule:
        case "cosine":
            return config.lr_end + (1 - config.lr_end) * _half_cosine(_share_after_warm_up(config, step, share))
        case "step":
            return math.prod(config.lr_gamma for milestone in config.lr_milestones if share >= milestone)
        case "one-cycle":
            if share < ONE_CYCLE_RISE:
                return 1 + (ONE_CYCLE_START - 1) * _half_cosine(share / ONE_CYCLE_RISE)
            return ONE_CYCLE_END + (1 - ONE_CYCLE_END) * _half_cosine((share - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE))
        case _:
            return 1.0


def _share_after_warm_up(config: RunConfig, step: int, share: float) -> float:
    """Done of what comes after the warm-up, which took its steps' share of the run: the curve begins where that ends."""
    if not config.warmup_steps:
        return share
    warm_up = config.warmup_steps / step * share
    return (share - warm_up) / (1 - warm_up) if warm_up < 1 else 1.0


def _half_cosine(x: float) -> float:
    """1 at 0 down to 0 at 1, without a corner at either end."""
    return (1 + math.cos(math.pi * min(x, 1.0))) / 2
