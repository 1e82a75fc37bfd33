"""Data-parallel training: what may be asked for, that it computes what one process would, and how it fails."""

from __future__ import annotations

import functools

import numpy as np
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


# --- n ranks compute what one computes --------------------------------------------------------------------------------

FAMILIES = {
    "mlp": ["model.hidden=32"],
    "cnn": ["model.family=cnn", "model.width=0.5"],
    "rnn": ["model.family=rnn", "model.size=tiny"],
    "transformer": ["model.family=transformer", "model.size=tiny"],
    "decoder": ["model.family=transformer", "model.size=tiny", "data=text", "source.seq_len=16"],
}
STEPS = 50
# 61 of 1,438 examples: shares of 31 and 30, and a last batch of 35 within the 50 steps.
SAME = ["batch_size=61", f"budget.steps={STEPS}", "budget.epochs=none", "evaluate_every=25"]


def ranks(number: int, strategy: str = "ddp") -> list[str]:
    """Named one by one, so that a machine with one core runs them, too."""
    return [
        f"parallel.num_ranks={number}",
        f"parallel.strategy={strategy}",
        f"parallel.devices={','.join(['cpu'] * number)}",
    ]


def finished(supervised, *assignments):
    run = supervised.until(supervised.submit(*SAME, *assignments), "finished", "failed")
    assert run.status == "finished", run.why()
    return run


@pytest.fixture(scope="module")
def alone(supervised):
    """The run of one rank for each family, as everybody runs it."""
    return functools.cache(lambda *assignments: finished(supervised, *assignments))


def assert_same_trajectory(run, reference, tolerance=1e-5):
    ours, theirs = run.steps, reference.steps
    assert len(ours["loss"]) == STEPS
    np.testing.assert_array_equal(ours["samples"], theirs["samples"])
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=tolerance, rtol=0)
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(run.evaluations[name], reference.evaluations[name], atol=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_follow_the_trajectory_of_one(supervised, alone, family, strategy):
    run = finished(supervised, *FAMILIES[family], *ranks(2, strategy))
    assert_same_trajectory(run, alone(*FAMILIES[family]))
