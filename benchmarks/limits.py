"""The physical limit of a training step on this CPU, for comparison with measured steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.config.run import RunConfig
from engine.planning import planner

_GEMM_SIDE = 512
_TRIAD_VALUES = {"l3": 2**19, "dram": 2**24}  # 3 arrays of 2 MiB fit into an L3 cache, 3 of 64 MiB do not
_VALUES_MOVED = {"adam": 7, "adamw": 7, "momentum": 5}  # weight, gradient and state read, all but the gradient written


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks of one thread: the 5th percentile of many short calls, on which other programs have the least effect."""

    gemm_flops_per_s: float
    l3_bytes_per_s: float
    dram_bytes_per_s: float

    @classmethod
    def measured(cls) -> Limits:
        """Measure the peaks in this process."""
        a, b, c = torch.rand(3, _GEMM_SIDE, _GEMM_SIDE)
        gemm = 2 * _GEMM_SIDE**3 / _p05_s(lambda: torch.mm(a, b, out=c))
        return cls(gemm, *(_triad_bytes_per_s(values) for values in _TRIAD_VALUES.values()))


def _triad_bytes_per_s(values: int) -> float:
    """Bandwidth of a = b + 3c, without counting that the CPU reads a before it writes to it."""
    a, b, c = (torch.ones(values) for _ in range(3))
    return 3 * a.nbytes / _p05_s(lambda: torch.add(b, c, alpha=3.0, out=a))


def _p05_s(call: Callable[[], object], *, seconds: float = 0.5) -> float:
    times, until = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        call()
        times.append(time.perf_counter() - start)
    return float(np.percentile(times, 5))


def roofline_s(config: RunConfig, limits: Limits) -> float:
    """The least seconds a step can take: the FLOPs of matrix products and convolutions, forward and backward, at the
    GEMM peak, then the optimizer's reads and writes of weights, gradients and state at the bandwidth of the L3 cache.

    All else is left out: activations, losses, and that thin products have no chance of the peak (with B=1 they are
    bound by reading the weights).
    """
    plan = planner.plan(config)
    flops = plan.batch_size * plan.train_flops_per_example
    moved = 4 * _VALUES_MOVED[config.optimizer.name] * plan.parameters
    return flops / limits.gemm_flops_per_s + moved / limits.l3_bytes_per_s
