"""Globals of torch that a run sets for its arithmetic."""

from __future__ import annotations

import pytest
import torch

from engine.config.run import RunConfig
from engine.pytorch.setup import set_up_arithmetic

SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


@pytest.fixture(autouse=True)
def as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(threads)


def test_training_counts_denormals_as_zero_and_inference_does_not():
    """Denormals make a step at batch size 1 twice as slow; a deployed model computes with them unless told otherwise."""
    tiny = torch.full((8,), SMALLEST_NORMAL)
    set_up_arithmetic(RunConfig())
    assert (tiny / 2 == 0).all()
    set_up_arithmetic(RunConfig(), flush_denormal=False)
    assert (tiny / 2 > 0).all()
