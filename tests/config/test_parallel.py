"""The configuration of data-parallel runs: devices of ranks, what is refused, and the plan of their memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.common.errors import ConfigError, DeviceError
from engine.config.parsing import overrides_from, with_overrides
from engine.config.run import RunConfig
from engine.hardware import probe
from engine.planning import planner
from tests.pytorch.test_data_parallel import ranks


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
        (["parallel.num_ranks=65"], "parallel.num_ranks=65 is not allowed. parallel.num_ranks must be a whole number from 1 to 64."),
        (["parallel.num_ranks=2", "parallel.devices=cpu"], "devices has 1 entries for num_ranks=2"),
        (["parallel.num_ranks=2", "parallel.devices=cpu,cuda:0"], "mixes CPU and GPUs"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:0", "device=cuda:0"], "has a GPU twice"),
        (["parallel.num_ranks=2", "parallel.devices=cuda:0,cuda:1"], "set device=cuda:0"),
        (["parallel.num_ranks=2", "execution=dataloader"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=compiled"], "set execution=eager"),
        (["parallel.num_ranks=2", "execution=cuda-graph", "device=cuda:0"], "set execution=eager"),
        (["parallel.num_ranks=2", "task=batch-law"], "set num_ranks=1"),
        (["parallel.num_ranks=2", "task=calibrate"], "set num_ranks=1"),
        (["parallel.num_ranks=8", "batch_size=4"], "each rank needs a sample"),
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


GPU = probe.GpuDevice(
    index=0, name="NVIDIA H200", memory_bytes=2**37, compute_capability="9.0", driver="570", power_limit_w=700.0
)


def test_more_ranks_than_cores_are_refused_unless_each_is_named():
    cores = probe.probe().cpu.usable_cores
    with pytest.raises(DeviceError) as refused:
        planner.check(with_overrides(RunConfig(), [f"parallel.num_ranks={cores + 1}"]))
    assert f"asks for {cores + 1} cores, but this machine has {cores} usable cores." in str(refused.value)
    plan = planner.check(with_overrides(RunConfig(), ranks(cores + 1)))
    assert any(f"share {cores} usable cores" in warning for warning in plan.warnings)


def test_more_gpus_than_there_are_are_refused_with_those_there_are(monkeypatch):
    machine = replace(probe.probe(), gpus=tuple(GPU for _ in range(1)), gpu_reason=None)
    monkeypatch.setattr(probe, "probe", lambda: machine)
    with pytest.raises(DeviceError) as refused:
        planner.check(with_overrides(RunConfig(), ["device=cuda:0", "parallel.num_ranks=3"]))
    assert "parallel.num_ranks=3 asks for cuda:1, cuda:2, but this machine has cuda:0." in str(refused.value)
    assert "from 1 to 1 on GPUs" in refused.value.fix


def test_the_planned_memory_is_that_of_all_ranks_on_a_device():
    alone, two, sharded = (planner.plan(with_overrides(RunConfig(), more)) for more in ([], ranks(2), ranks(2, "fsdp")))
    assert two.weight_bytes == 2 * alone.weight_bytes
    assert sharded.weight_bytes == alone.weight_bytes
    assert (two.batch_size, two.micro_batch, two.of_one_rank().batch_size) == (64, 32, 32)
    assert two.of_one_rank().weight_bytes == alone.weight_bytes
    on_gpus = planner.plan(with_overrides(RunConfig(), ["device=cuda:0", "parallel.num_ranks=2"]), free_bytes=10**10)
    assert on_gpus.weight_bytes == alone.weight_bytes  # on each
