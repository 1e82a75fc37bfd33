"""Learning-rate schedules as pure functions of the progress of a run.

A schedule gives a factor of `optimizer.lr`. It depends on the completed share of the run, not on a number of steps, so
that it also works for a run that has only a time limit.
"""

from __future__ import annotations

import math

from engine.config.run import RunConfig

WARM_UP_SHARE = 0.1  # of the run, if warmup_steps is 0
_FIRST_SHARE = 1e-3  # lower limit of the share, so that the first step has a learning rate above 0
ONE_CYCLE_RISE = 0.3  # share of the run in which one-cycle rises; this and the next two: defaults of torch's OneCycleLR
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = 1 / 25 / 1e4


def lr_factor(config: RunConfig, step: int, share: float) -> float:
    """Factor of the learning rate at step `step` (from 0), before which the share `share` (0..1) of the run is done."""
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
    """Completed share (0..1) of the part after the warm-up, because the curve begins at the end of the warm-up."""
    if not config.warmup_steps:
        return share
    warm_up = config.warmup_steps / step * share
    return (share - warm_up) / (1 - warm_up) if warm_up < 1 else 1.0


def _half_cosine(x: float) -> float:
    """Falls from 1 at x=0 to 0 at x=1, with a slope of 0 at both ends."""
    return (1 + math.cos(math.pi * min(x, 1.0))) / 2
