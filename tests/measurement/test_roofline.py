"""MFU and the roofline of a run, from a calibration."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from engine import models
from engine.charts.roofline import roofline_chart
from engine.cli import main as cli
from engine.config.parsing import parse_config, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.training import OPTIMIZERS
from engine.data import loading
from engine.events.training import StepSplit
from engine.hardware import datasheets
from engine.measurement import cost, roofline
from engine.measurement.calibration import LatestCalibration
from tests.fakes import make_run
from tests.measurement.fake_calibration import copied, fake, gemm, kept, tiny


def found_of(*more, **fields):
    return LatestCalibration("ab" * 8, fake(*more, **fields))


def test_mfu_is_flops_over_training_seconds_and_the_measured_peak(store):
    run = make_run(store)
    s = run.summary()
    attained = cost.flops_per_s(run)
    assert attained == s.samples * run.started.train_flops_per_example / s.train_seconds
    assert cost.mfu(run.config, attained, found_of()).value == attained / 90e9


@pytest.mark.parametrize(
    ("changes", "found", "reason"),
    [
        ((), None, "This device was not calibrated in this store: python -m engine calibrate."),
        (("threads=3",), found_of(), "The run had 3 threads, and the calibration measured only 1, 2."),
        (("precision=bf16",), found_of(), "The calibration has no peak in bf16."),
        ((), found_of(gemm(rate=0.0)), None),
    ],
)
def test_mfu_is_withheld_with_the_reason(changes, found, reason):
    config = with_overrides(RunConfig(), changes)
    result = cost.mfu(config, 45e9, found)
    assert (result.value, result.reason) == ((None, reason) if reason else (0.5, ""))


def test_mfu_of_quantised_weights_is_withheld():
    for result in (
        cost.mfu(RunConfig(), 45e9, found_of(), quantized=True),
        cost.data_sheet_mfu(RunConfig(device="cuda:0"), 45e9, "NVIDIA L4", quantized=True),
    ):
        assert result.value is None and result.reason.startswith("Quantised weights")


def test_an_mfu_that_cannot_be_says_that_the_calibration_is_wrong():
    result = cost.mfu(RunConfig(), 120e9, found_of())
    assert result.value is None and result.reason.startswith("The MFU would be 133 % of the measured peak")


def test_mfu_against_a_data_sheet_needs_the_very_device_and_a_dense_peak():
    config = RunConfig(device="cuda:0", precision="bf16")
    assert cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H100 80GB HBM3").value == pytest.approx(0.1)
    assert cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H200").reason == "Isoflop has no data sheet for NVIDIA H200."
    sparse = replace(datasheets.vendor_peak("NVIDIA H100 80GB HBM3"), dense=False)
    assert "structured sparsity" in cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H100 80GB HBM3", peak=sparse).reason
    assert (
        cost.data_sheet_mfu(config, 1e12, "Tesla T4").reason == "Isoflop has no data sheet figure for Tesla T4 in bf16."
    )
    assert "CPUs" in cost.data_sheet_mfu(RunConfig(), 1e9, "AMD EPYC").reason


def parts_of(config, batch_size=64, micro_batch=64):
    data = loading.facts(config.data, config.source)
    return cost.parts_of_step(config, data, batch_size=batch_size, micro_batch=micro_batch), data


@pytest.mark.parametrize("name", PRESETS)
def test_the_parts_of_a_step_make_its_flops(name):
    config = PRESETS[name].config
    parts, data = parts_of(config)
    assert sum(p.flops for p in parts) == 64 * models.train_flops_per_example(config.model, data)
    assert all(p.bytes_moved > 0 for p in parts) and parts[-1].kind == "optimizer"


def test_the_bytes_of_an_mlp_are_those_of_its_products_and_its_optimizer():
    (linear, optimizer), _ = parts_of(preset_config("mnist-mlp"), batch_size=64)
    first = 3 * 0 + 2 * 784 * 128 + 64 * (2 * 784 + 2 * 128)  # forward and the matrix's gradient: pixels have none
    second = 3 * 128 * 10 + 64 * 3 * (128 + 10)
    assert linear.bytes_moved == 4 * (first + second)
    assert optimizer.bytes_moved == 4 * (3 + 4) * 101_770  # adam: two states, read and written


def test_half_precision_halves_the_products_traffic_and_not_the_optimizers():
    full, _ = parts_of(preset_config("mnist-mlp"))
    half, _ = parts_of(with_overrides(preset_config("mnist-mlp"), ["precision=bf16"]))
    assert (2 * half[0].bytes_moved, half[1].bytes_moved) == (full[0].bytes_moved, full[1].bytes_moved)


def test_a_larger_batch_has_a_higher_intensity():
    small, large = (parts_of(preset_config("mnist-mlp"), n, n)[0][0].intensity for n in (1, 512))
    assert small < 1 < 20 < large


def test_a_transformer_counts_attention_apart():
    parts, _ = parts_of(preset_config("mnist-vit"))
    kinds = {p.kind: p for p in parts}
    positions, d, layers = 16, 64, 2
    assert set(kinds) == {"linear", "attention", "optimizer"}
    assert kinds["attention"].bytes_moved == 4 * 64 * layers * 12 * positions * d  # q, k, v, out; twice that backward


def test_the_roof_is_the_lower_of_peak_and_intensity_times_bandwidth():
    assert roofline.attainable(0.5, 90e9, 60e9) == 30e9
    assert roofline.attainable(100.0, 90e9, 60e9) == 90e9


@pytest.mark.parametrize(
    ("times", "step_s", "input_share", "bound"),
    [
        ({"arithmetic": 0.6, "memory": 0.1, "overhead": 0.1}, 1.0, None, "arithmetic"),
        ({"arithmetic": 0.1, "memory": 0.5, "overhead": 0.1}, 1.0, None, "memory"),
        ({"arithmetic": 0.1, "memory": 0.1, "overhead": 0.7}, 1.0, 0.1, "overhead"),
        ({"arithmetic": 0.6, "memory": 0.1, "overhead": 0.1}, 1.0, 0.5, "input"),
        ({"arithmetic": 0.2, "memory": 0.1, "overhead": 0.1}, 1.0, None, "mixed"),
    ],
)
def test_what_bounds_a_run_is_the_largest_share_that_explains_it(times, step_s, input_share, bound):
    assert roofline.what_bounds(times, step_s, input_share) == bound


def test_a_run_has_a_place_under_the_roof(store):
    run = make_run(store)
    point = roofline.roofline(run, found_of())
    assert point.flops == 64 * models.train_flops_per_example(
        run.config.model, loading.facts(run.config.data, run.config.source)
    )
    assert point.served_by == "cache" and point.attained_fraction == pytest.approx(
        point.attained_flops_per_s / min(90e9, point.intensity * 60e9)
    )
    assert point.in_words.endswith(".") and point.try_next.endswith(".")


def test_a_run_above_its_roof_says_that_the_roof_is_wrong(store):
    slow = fake().model_copy(update={"measurements": (gemm(), copied(2**20, 1e9), copied(2**27, 1e9), tiny())})
    run = make_run(store, step_s=0.0005)
    assert "above the roofline" in roofline.roofline(run, LatestCalibration("ab" * 8, slow)).in_words
    assert "above the roofline" not in roofline.roofline(run, found_of()).in_words


def test_bytes_of_a_file_of_ones_own_are_not_guessed(store, tmp_path):
    config = parse_config({"data": "csv", "source": {"path": str(tmp_path / "gone.csv")}})
    assert "your own files" in roofline.roofline(make_run(store, config), found_of())


def test_all_of_it_can_be_had_again_from_what_show_prints(store, capsys):
    run, calibrated = make_run(store), kept(store, fake())
    assert cli.main(["show", run.run_id, "--json", "--store", str(store.root)]) == 0
    shown = json.loads(capsys.readouterr().out)
    costs, steps = shown["cost"], shown["steps"]
    attained = sum(np.diff([0, *steps["flops"]])) / steps["seconds"][-1]
    assert costs["calibration"]["run_id"] == calibrated
    assert shown["summary"]["mfu"] == pytest.approx(attained / costs["measured_peak"]["peak_flops_per_s"])
    roof = costs["roofline"]
    assert roof["intensity"] == sum(p["flops"] for p in roof["parts"]) / sum(p["bytes_moved"] for p in roof["parts"])
    most = min(roof["peak_flops_per_s"], roof["intensity"] * roof["bandwidth_bytes_per_s"])
    assert roof["attained_fraction"] == pytest.approx(attained / most)


def test_a_run_that_waits_for_its_data_is_bound_by_its_input(store):
    taken = {"forward_s": 1e-4, "backward_s": 1e-4, "optimizer_s": 1e-4, "read_back_s": 0.0, "steps": 8, "method": "m"}
    waits = make_run(store, step_s=9e-4, said=[StepSplit(data_s=6e-4, **taken)])
    quick = make_run(store, step_s=3e-4, said=[StepSplit(data_s=1e-6, **taken)])
    in_doubt = make_run(store, step_s=8e-3, said=[StepSplit(data_s=6e-4, **taken)])
    assert roofline.roofline(waits, found_of()).bound == "input"
    assert "execution=eager" not in roofline.roofline(waits, found_of()).try_next  # it is eager already
    assert roofline.roofline(quick, found_of()).bound != "input"
    assert roofline.roofline(in_doubt, found_of()).input_share is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_run_is_advised_what_it_has_already(name):
    config = with_overrides(RunConfig(), [f"optimizer.name={name}", "batch_size=full"])
    assert name not in roofline._try_next("memory", config, fake()).split(" keep less state than ")[0]


def test_without_a_calibration_mfu_is_null_beside_its_reason(store, capsys):
    run = make_run(store)
    assert cli.main(["show", run.run_id, "--json", "--store", str(store.root)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["summary"]["mfu"] is None and "not calibrated" in shown["cost"]["measured_peak"]["reason"]
    assert shown["cost"]["roofline"] is None and "not calibrated" in shown["cost"]["roofline_reason"]


def test_the_chart_has_the_ceilings_the_runs_and_their_kinds_of_layers(store):
    point = roofline.roofline(make_run(store), found_of())
    figure = roofline_chart(fake(), 1, [("<b>mine</b>", point)])
    names = [trace.name for trace in figure.data]
    assert "fp32 90.0 GFLOP/s" in names and "cache 60.0 GB/s" in names and "memory 18.0 GB/s" in names
    assert "&lt;b&gt;mine&lt;/b&gt;" in names and "&lt;b&gt;mine&lt;/b&gt; · linear" in names
    assert not [trace for trace in figure.data if trace.line.dash == "dash"]


def test_a_data_sheet_is_dashed():
    made = fake(gemm("bf16", 700e12), device="cuda:0", device_name="NVIDIA H100 80GB HBM3", threads=(1,))
    figure = roofline_chart(made, 1, [], sheet=datasheets.vendor_peak(made.device_name))
    dashed = [trace.name for trace in figure.data if trace.line.dash == "dash"]
    assert dashed == [
        "data sheet: fp32 66.9 TFLOP/s", "data sheet: bf16 989 TFLOP/s", "data sheet: memory 3.35 TB/s",
    ]  # fmt: skip


def test_ceilings_that_are_close_together_share_one_label():
    made = fake(gemm("fp32", 166e9), gemm("fp16", 162e9), gemm("bf16", 85e9))
    labels = [annotation.text for annotation in roofline_chart(made, 1, []).layout.annotations]
    assert labels[:2] == ["fp32 166 GFLOP/s · fp16 162 GFLOP/s", "bf16 85.0 GFLOP/s"]
