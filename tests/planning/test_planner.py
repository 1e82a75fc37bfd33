"""The memory and the steps that a run needs, and the runs that are refused before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.common.errors import ConfigError, DeviceError, OutOfMemory
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.hardware import probe
from engine.hardware.probe import GpuDevice
from engine.planning import planner

BASE = RunConfig()


def plan(*assignments, free_bytes=2**40):
    return planner.plan(with_overrides(BASE, assignments), free_bytes=free_bytes)


def machine(*, isa=("avx2",), capability=None):
    """This machine with another CPU, or with a GPU of a compute capability."""
    here = probe.probe()
    gpu = GpuDevice(0, "GPU", 2**34, "1", capability, None)
    return replace(here, cpu=replace(here.cpu, isa=isa), gpus=(gpu,) if capability else ())


# --- how long ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (["budget.steps=7"], 7),
        (["budget.epochs=2"], 126),
        (["budget.samples=1"], 1),
        (["budget.samples=4000"], 63),
        (["budget.samples=4001"], 64),
        (["budget.samples=8000"], 126),
        (["budget.flops=1e9"], 39),  # 408,576 FLOPs per sample: 2,448 samples
        (["budget.flops=1"], 1),
        (["budget.seconds=5"], None),
        (["budget.steps=100", "budget.samples=640"], 10),
    ],
)
def test_a_run_has_the_steps_of_its_nearest_limit(budget, steps):
    assert plan("budget.epochs=none", *budget).total_steps == steps


def test_accumulation_makes_larger_and_fewer_steps():
    p = plan("batch_size=32", "grad_accumulation=4")
    assert (p.micro_batch, p.batch_size, p.steps_per_epoch) == (32, 128, 32)


def test_accumulation_cuts_the_full_batch():
    p = plan("batch_size=full", "grad_accumulation=3")
    assert (p.micro_batch, p.batch_size, p.steps_per_epoch) == (1_334, 4_000, 1)


def test_more_accumulation_than_examples_is_refused():
    with pytest.raises(
        ConfigError, match=r"batch_size=64 x grad_accumulation=100 is more than the 4000 .* from 1 to 40"
    ):
        plan("grad_accumulation=100")


# --- how large -----------------------------------------------------------------------------------------------------


def test_the_parts_add_up_to_the_total():
    p = plan()
    assert sum(size for _, size in p.parts()) == p.total_bytes


def test_accumulation_needs_the_memory_of_its_micro_batch():
    assert plan("batch_size=64", "grad_accumulation=8").activation_bytes == plan("batch_size=64").activation_bytes


def test_only_gathered_data_is_counted_twice():
    once = plan("batch_size=full").data_bytes
    copy = 4_000 * (784 * 4 + 8 + 8)  # values, labels, and the order of the samples
    assert plan("execution=dataloader").data_bytes == once == plan().data_bytes - copy


def test_an_evaluation_needs_memory_too():
    tiny, large = (plan("data=text", "model.family=transformer", f"batch_size={b}") for b in (1, 256))
    assert tiny.evaluation_memory_bytes > tiny.step_memory_bytes
    assert tiny.total_bytes == tiny.evaluation_memory_bytes + tiny.data_bytes
    assert large.total_bytes == large.step_memory_bytes + large.data_bytes


def test_averaged_weights_count_as_weights():
    assert plan("ema_decay=0.99").weight_bytes == 2 * plan().weight_bytes


def test_a_plan_for_every_preset_fits_a_small_machine():
    assert all(planner.plan(preset.config, free_bytes=2**30).fits for preset in PRESETS.values())


def test_whether_a_run_fits_is_unknown_if_free_memory_is(monkeypatch):
    monkeypatch.setattr(probe, "free_memory_bytes", lambda device: None)
    assert planner.plan(BASE).fits is None


@pytest.mark.parametrize(
    ("assignments", "fix"),
    [
        (
            ["model.hidden=4096", "batch_size=4000"],
            r"Largest batch that fits: \d+\. More data per step: raise grad_acc",
        ),
        (
            ["model.hidden=4096", "batch_size=full"],
            r"Largest batch that fits: \d+; full fits with grad_accumulation=\d+",
        ),
        (["model.hidden=100000"], "Choose a smaller model"),
        (["data=synthetic", "source.num_examples=1000000"], "Choose a smaller data set"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_the_sum_and_a_fix(monkeypatch, assignments, fix):
    monkeypatch.setattr(probe, "free_memory_bytes", lambda device: 200_000_000)
    with pytest.raises(OutOfMemory, match=rf"needs .* \(.* weights \+ .* data\); 191 MiB is free.* {fix}"):
        planner.check(with_overrides(BASE, assignments))


def test_the_largest_batch_that_fits_fits_and_the_next_larger_ones_do_not(monkeypatch):
    monkeypatch.setattr(probe, "free_memory_bytes", lambda device: 200_000_000)
    config = with_overrides(BASE, ["model.hidden=4096", "batch_size=4000"])
    with pytest.raises(OutOfMemory) as refused:
        planner.check(config)
    largest = int(refused.value.fix.split(":")[1].split(".")[0])
    assert planner.check(with_overrides(config, [f"batch_size={largest}"])).fits
    with pytest.raises(OutOfMemory):
        planner.check(with_overrides(config, [f"batch_size={largest + 1}"]))


# --- what a device can do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignments", "there", "reason"),
    [
        (["precision=tf32"], machine(), "TF32 is a mode of NVIDIA"),
        (["precision=bf16", "model.family=rnn", "model.cell=lstm"], machine(), "has an LSTM in float32 only"),
        (["precision=fp16"], machine(), r"no float16 arithmetic \(avx512_fp16"),
        (["precision=tf32", "device=cuda:0"], machine(capability="7.5"), "compute capability 7.5, and tf32 needs 8"),
        (["precision=bf16", "device=cuda:0"], machine(capability="6.1"), "compute capability 6.1, and bf16 needs 8"),
    ],
)
def test_a_precision_the_device_lacks_is_refused_with_the_reason(assignments, there, reason):
    with pytest.raises(DeviceError, match=reason):
        planner.check_abilities(with_overrides(BASE, assignments), there)


@pytest.mark.parametrize(
    ("assignments", "there"),
    [
        (["precision=fp16"], machine(isa=("avx512_fp16",))),
        (["precision=fp16"], machine(isa=None)),  # not known to lack it
        (["precision=bf16"], machine()),
        (["precision=tf32", "device=cuda:0"], machine(capability="8.0")),
        (["precision=fp16", "device=cuda:0"], machine(capability="7.0")),
        (["precision=bf16", "device=cuda:0"], machine(capability="9.0")),
    ],
)
def test_a_precision_the_device_has_is_allowed(assignments, there):
    planner.check_abilities(with_overrides(BASE, assignments), there)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(planner.shutil, "which", lambda name: None)
    with pytest.raises(DeviceError, match=r"needs a C\+\+ compiler.*Install g\+\+"):
        planner.check_abilities(with_overrides(BASE, ["execution=compiled"]), machine())


@pytest.mark.parametrize(
    ("assignments", "isa", "said"),
    [
        (["precision=bf16"], ("avx2",), "no bfloat16 arithmetic: bf16 ran 2 to 9 times slower"),
        (["precision=bf16"], None, "not known whether this CPU has bfloat16 arithmetic"),
        (["precision=fp16"], None, "not known whether this CPU has float16 arithmetic"),
        (["execution=compiled"], ("avx2",), "Compiling takes 10 to 80 s"),
        (["model.family=rnn", "execution=compiled"], ("avx2",), "does not change recurrent layers"),
        (["warmup_steps=2000"], ("avx2",), "the run never reaches its learning rate"),
        (["ema_decay=0.9999"], ("avx2",), "88% of the averaged weights are still the first weights"),
        (["data=synthetic"], ("avx2",), "measures speed, and its loss and accuracy mean nothing"),
    ],
)
def test_disappointing_settings_cause_warnings(assignments, isa, said):
    config = with_overrides(BASE, assignments)
    assert said in " ".join(planner.plan(config, machine=machine(isa=isa)).warnings)


def test_usual_settings_cause_no_warnings():
    for assignments in ([], ["precision=bf16"]):
        config = with_overrides(BASE, assignments)
        assert planner.plan(config, machine=machine(isa=("amx_bf16",))).warnings == ()


@pytest.mark.parametrize("given", ["budget.seconds=5", "budget.epochs=3"])
def test_a_calibration_refuses_a_budget_that_it_would_ignore(given):
    with pytest.raises(ConfigError, match=rf"{given} cannot be combined with task='calibrate'.*Remove budget\."):
        planner.check(with_overrides(preset_config("calibrate"), [given]))
    planner.check(preset_config("calibrate"))
