"""When a run with evaluate_every=auto is evaluated: after fixed numbers of samples, never by a clock.

Runs that are compared must be evaluated equally often. A clock evaluates the faster of two runs less often, and a target
needs two evaluations in a row, so the faster run would seem to need more steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

# A run trains on at least so many samples between two evaluations, as a multiple of the test split. A training sample
# costs about as much as three forward passes, so evaluations take at most 1 / (1 + 3 * GAP) = 18 % of the FLOPs.
GAP = 1.5
# It also trains on at least this share of the samples so far. Without it, a small model writes more evaluations than a
# chart has points. It counts after 75 test splits; from then on evaluations cost less and less.
GROWTH = 0.02


def evaluation_grid(test_examples: int) -> Iterator[int]:
    """Numbers of training samples, ascending without end. A run is evaluated after its first step at or after each.

    They depend only on the size of the test split. So all runs on a data set share them, whatever their seed, budget,
    number of ranks and speed. Runs of one batch size are evaluated after the same steps.
    """
    gap, point = ceil(GAP * test_examples), 0
    while True:
        point += max(1, gap, int(GROWTH * point))
        yield point
