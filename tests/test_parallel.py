"""Data-parallel training: what may be asked for, that it computes what one process would, and how it fails."""

from __future__ import annotations

import pytest

from engine.config import RunConfig, overrides_from, with_overrides
from engine.errors import ConfigError


def test_a_field_that_came_later_moves_no_fingerprint():
    assert RunConfig().fingerprint == with_overrides(RunConfig(), ["parallel.num_ranks=1"]).fingerprint
    assert RunConfig().fingerprint != with_overrides(RunConfig(), ["parallel.num_ranks=2"]).fingerprint


@pytest.mark.parametrize(
    ("assignments", "devices"),
    [
        ([], ("cpu",)),
        (["parallel.num_ranks=3"], ("cpu", "cpu", "cpu")),
        (["parallel.num_ranks=2", "device=cuda:2"], ("cuda:2", "cuda:3")),
        (
            ["parallel.num_ranks=2", "device=cuda:1", "parallel.devices=cuda:1,cuda:0"],
            ("cuda:1", "cuda:0"),
        ),
        (["parallel.devices=cpu"], ("cpu",)),
    ],
)
def test_each_rank_has_a_device(assignments, devices):
    config = with_overrides(RunConfig(), assignments)
    assert config.devices == devices
    assert config.is_parallel == any(a.startswith("parallel") for a in assignments)
    assert with_overrides(RunConfig(), overrides_from(RunConfig(), config)) == config


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["parallel.num_ranks=65"], "parallel.num_ranks=65 is not allowed. parallel.num_ranks may be a whole number from 1 to 64."),
        (["parallel.num_ranks=2", "parallel.devices=cpu"], "devices names 1 for num_ranks=2"),
        (["parallel.num_ranks=2", "parallel.devices=cpu,cuda:0"], "mixes CPU and GPUs"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:0", "device=cuda:0"], "names a GPU twice"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:1"], "set device=cuda:0"),
        (["parallel.num_ranks=2", "execution=dataloader"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=compiled"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=cuda-graph", "device=cuda:0"], "set execution=eager"),
        (["parallel.num_ranks=2", "task=batch-law"], "set num_ranks=1"),
        (["parallel.num_ranks=2", "task=calibrate"], "set num_ranks=1"),
        (["parallel.num_ranks=8", "batch_size=4"], "each rank needs an example"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "optimizer.name=muon"], "set parallel.strategy=ddp"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "checkpoints=5"], "set parallel.strategy=ddp"),
        (["parallel.num_ranks=2", "parallel.strategy=fsdp", "precision=fp16"], "set parallel.strategy=ddp"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_in_one_sentence(assignments, words):
    with pytest.raises(ConfigError) as refused:
        with_overrides(RunConfig(), assignments)
    assert words in str(refused.value)
    assert str(refused.value).count("\n") == 0
