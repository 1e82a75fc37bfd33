"""Calibrate this box: a real short one, what is read from it, and what a run is told of its MFU and its roof."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import numpy as np
import pynvml
import pytest
import torch

from engine import models
from engine.charts.roofline import roofline_chart
from engine.cli import main as cli
from engine.common.errors import OutOfMemory
from engine.config.parsing import parse_config, with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.data import loading
from engine.events.lifecycle import Cancelled, Finished, Started
from engine.events.machine import Calibration, Measurement
from engine.events.training import StepSplit
from engine.hardware import datasheets
from engine.measurement import calibration, cost, roofline
from engine.measurement.calibration import LatestCalibration
from engine.planning import planner
from engine.pytorch.tasks import calibrate as task
from engine.pytorch.tasks.calibrate import calibrate, last_cache_bytes, measurement_of, thread_counts
from engine.pytorch.tasks.train import train
from engine.runtime import worker
from engine.store.event_log import EventLog, decode, encode
from engine.store.stop_requests import StopRequest, ask_to_stop
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.fakes import make_run

pytestmark = pytest.mark.slow  # it trains

CONFIG = preset_config("calibrate")


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Of a real calibration with one thread, shortened to some seconds."""
    return list(calibrate(CONFIG, tmp_path_factory.mktemp("calibrate"), budget_s=2.0, rounds=2))


@pytest.fixture(scope="module")
def made(events):
    return events[-1]


def gemm(dtype="fp32", rate=90e9, threads=1, size=512):
    return Measurement(
        name="gemm", unit="flops_per_s", dtype=dtype, shape=(size,) * 3, threads=threads, p05=rate, best=rate, median=rate,
        spread=0.02, calls=100,
    )  # fmt: skip


def copied(size, rate, threads=1, name="copy"):
    return Measurement(
        name=name, unit="bytes_per_s", dtype="fp32", shape=(size,), threads=threads, p05=rate, best=rate, median=rate,
        spread=0.02, calls=100,
    )  # fmt: skip


def tiny(name="op", seconds=3e-6):
    return Measurement(name=name, unit="s", p05=seconds, best=seconds, median=seconds, calls=100)


def fake(*more, device="cpu", device_name="AMD EPYC 9575F", threads=(1, 2), **fields):
    """A calibration with round numbers: ridge at 1.5 FLOPs per byte in cache and 5 in memory."""
    measured = (
        gemm(),
        gemm(threads=2, rate=170e9),
        copied(2**20, 60e9),
        copied(2**24, 55e9),
        copied(2**27, 18e9),
        tiny(),
    )
    return Calibration(
        at=fields.pop("at", time.time()), device=device, device_name=device_name, threads=threads,
        versions={"torch": "2.13.0", "python": "3.11.9"}, measurements=(*measured, *more), rounds=3, seconds=20.0,
        wall_per_cpu=fields.pop("wall_per_cpu", 1.01), **fields,
    )  # fmt: skip


def kept(store, made, *, status="finished", config=CONFIG):
    """A calibrate run in the store as a worker leaves it."""
    run_id = store.create(config)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(
        Started(
            at=time.time(),
            parameters=0,
            train_flops_per_example=0,
            train_examples=1,
            test_examples=0,
            total_steps=None,
            setup_s=0.1,
            environment={"device": made.device_name},
        )
    )
    log.append(made)
    log.close(Finished(at=time.time()) if status == "finished" else Cancelled(at=time.time()))
    return run_id


# --- a real calibration


def test_a_calibration_measures_products_memory_overheads_and_recording(made):
    assert {m.name for m in made.measurements} == {"gemm", "thin_gemm", "copy", "triad", "op", "recording"}
    assert {m.dtype for m in made.measurements if m.name == "gemm"} >= {"fp32", "bf16"}
    assert all(m.calls and m.p05 > 0 and m.spread is not None for m in made.measurements)


def test_the_fifth_percentile_lies_between_the_best_and_the_median(made):
    for m in made.measurements:
        faster, slower = (m.median, m.best) if m.unit == "s" else (m.best, m.median)
        low, high = sorted((faster, slower))
        assert low <= m.p05 <= high


def test_what_cannot_be_measured_here_says_why(made):
    assert made.missing["all_reduce"] == "The run has one rank: there is nobody to exchange gradients with."
    assert {"gemm tf32", "to_device", "to_host"} <= set(made.missing)
    assert ("idle_power" in made.missing) != any(m.name == "idle_power" for m in made.measurements)


def test_it_says_how_far_it_is_and_ends_with_the_one_record(events):
    told = [event for event in events if event.kind == "progress"]
    assert [event.kind for event in events].count("calibration") == 1
    assert told[-1].done == told[-1].total and [e.done for e in told] == sorted(e.done for e in told)


def test_a_calibration_survives_the_log_to_the_last_digit(made):
    assert decode(encode(made)) == made


def test_cache_is_not_slower_than_memory_and_neither_is_a_guess(made):
    found = calibration.bandwidth(made, 1)
    assert found.cache.p05 >= found.memory.p05 > 1e8
    assert found.memory.shape[0] >= 4 * (last_cache_bytes() or 0) or found.memory.shape[0] == 2**30


def test_the_scratch_log_is_gone(tmp_path):
    list(calibrate(CONFIG, tmp_path, budget_s=0.2, rounds=1))
    assert list(tmp_path.iterdir()) == []


def test_every_thread_count_up_to_four_then_doubling_and_the_most():
    assert [thread_counts(n) for n in (1, 2, 6, 16, 24)] == [
        [1], [1, 2], [1, 2, 3, 4, 6], [1, 2, 3, 4, 8, 16], [1, 2, 3, 4, 8, 16, 24],
    ]  # fmt: skip


def test_two_threads_are_measured_and_not_assumed(tmp_path):
    made = list(calibrate(with_overrides(CONFIG, ["threads=2"]), tmp_path, budget_s=0.3, rounds=1))[-1]
    assert calibration.peak(made, "fp32", 2) and calibration.bandwidth(made, 2)
    assert None not in calibration.best_threads(made)


def test_a_busy_machine_moves_the_mean_and_not_the_fifth_percentile():
    job = task._Job("gemm", "flops_per_s", 1e9, lambda: print)
    job.rounds = [[0.01] * 20 + [0.1] * 80, [0.0101] * 20 + [0.3] * 80]
    found = measurement_of(job)
    assert found.p05 == pytest.approx(1e11) and found.median < 2e10 and found.spread < 0.02


def test_a_kernel_that_is_a_hundred_times_slower_ends_at_the_sizes_it_can_do(tmp_path, monkeypatch):
    slow, now = {128: 1e-3, 256: 8e-3, 512: 64e-3}, [0.0]
    made = []

    def gemm(device, dtype, shape, threads, name="gemm"):
        def call():
            made.append(shape[0])
            now[0] += slow.get(shape[0], 100.0)

        return task._Job(name, "flops_per_s", 2.0 * math.prod(shape), lambda: call, dtype, shape, threads)

    bench = task._Bench(CONFIG, torch.device("cpu"), lambda: now[0], 1)
    jobs = [gemm(None, "bf16", (n, n, n), 1) for n in (128, 256, 512, 1024, 2048)]
    list(bench.measure(jobs, 1.0))
    assert set(made) == {128, 256} and [job.too_long for job in jobs] == [False, False, True, True, True]


def test_too_little_memory_is_said_before_anything_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(task.hardware, "free_memory_bytes", lambda device: 2**27)
    with pytest.raises(OutOfMemory, match=r"128 MiB are free on cpu.*Close other programs"):
        next(calibrate(CONFIG, tmp_path))


def test_a_calibration_stops_when_it_is_asked(store):
    run_id = store.create(CONFIG)
    ask_to_stop(store.folder(run_id), StopRequest())
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert (run.status, run.calibration) == ("cancelled", None)


# --- energy counters and other programs, with an NVML of our own


class Counting(FakeNvml):
    """A board that draws 100 W by its counter, beside the programs on it."""

    def __init__(self, *gpus, pids=()):
        super().__init__(*gpus)
        self.pids, self.began = pids, time.perf_counter()

    def nvmlDeviceGetComputeRunningProcesses(self, gpu):
        if "processes" in gpu.errors:
            raise pynvml.NVMLError(gpu.errors["processes"])
        return [type("P", (), {"pid": pid})() for pid in self.pids]

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        return (time.perf_counter() - self.began) * 100e3


def test_idle_power_is_the_counters_energy_over_the_window():
    bench = task._Bench(RunConfig.model_construct(device="cuda:0"), torch.device("cpu"), time.perf_counter, 1)
    missing = {}
    power = bench.idle_power(0.3, Counting(FakeGpu()), missing)
    with pytest.raises(StopIteration) as ended:
        while True:
            next(power)
    (found,) = ended.value.value
    assert found.unit == "w" and found.p05 == pytest.approx(100, rel=0.05) and missing == {}


def test_without_a_counter_idle_power_is_a_reason_and_no_number():
    nvml = FakeNvml(FakeGpu(errors={"nvmlDeviceGetTotalEnergyConsumption": pynvml.NVML_ERROR_NOT_SUPPORTED}))
    bench = task._Bench(RunConfig.model_construct(device="cuda:0"), torch.device("cpu"), time.perf_counter, 1)
    missing = {}
    with pytest.raises(StopIteration) as ended:
        next(bench.idle_power(5.0, nvml, missing))
    assert ended.value.value == [] and "idle_power" in missing


def test_programs_of_others_on_the_gpu_are_counted_or_the_reason_is_said():
    import os

    assert task._others_on("cuda:0", Counting(FakeGpu(), pids=(os.getpid(), 4, 5))) == (2, "")
    refused = Counting(FakeGpu(errors={"processes": pynvml.NVML_ERROR_NO_PERMISSION}))
    count, reason = task._others_on("cuda:0", refused)
    assert count is None and reason.startswith("NVML does not name the GPU's programs")
    assert task._others_on("cpu", refused) == (None, "")
    count, reason = task._others_on("cuda:0", Counting(FakeGpu(), pids=(4, 5)))
    assert count is None and "does not list this process" in reason


# --- what would be measured on a GPU


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """The jobs of a GPU of some compute capability; none of them is run."""

    def jobs(capability, free=2**37):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        missing = {}
        machine = planner.hardware.probe()
        return task._jobs(torch.device("cuda:0"), machine, 8, free, tmp_path, missing), missing

    return jobs


def test_hopper_is_measured_in_every_precision_with_launches_and_transfers(on_gpu):
    jobs, missing = on_gpu((9, 0))
    assert {j.dtype for j in jobs if j.name == "gemm"} == {"fp32", "tf32", "bf16", "fp16", "int8"}
    assert {"launch", "round_trip", "to_device", "to_host", "recording"} <= {j.name for j in jobs}
    assert {j.threads for j in jobs} == {1} and missing == {}


def test_turing_has_neither_tf32_nor_bf16_and_says_so(on_gpu):
    jobs, missing = on_gpu((7, 5))
    assert {j.dtype for j in jobs if j.name == "gemm"} == {"fp32", "fp16", "int8"}
    assert missing["gemm bf16"] == "It needs compute capability 8.0, and the GPU has 7.5."


def test_buffers_take_an_eighth_of_what_is_free(on_gpu):
    jobs, _ = on_gpu((9, 0), free=2**31)
    assert max(j.shape[0] for j in jobs if j.name == "copy") == 2**28


# --- what is read from the store


def test_the_newest_finished_calibration_of_this_very_device_is_found(store):
    kept(store, fake(at=1.0))
    newest = kept(store, fake(at=2.0))
    kept(store, fake(at=3.0), status="cancelled")
    kept(store, fake(at=4.0, device_name="Another CPU"))
    found = calibration.latest(store, "cpu", "AMD EPYC 9575F")
    assert (found.run_id, found.calibration.at) == (newest, 2.0)
    assert calibration.latest(store, "cuda:0", "AMD EPYC 9575F") is None
    assert calibration.latest(store, "cpu", None) is None


def test_a_run_that_is_only_called_so_is_no_calibration(store):
    make_run(store, name="calibration of this machine")
    assert calibration.latest(store, "cpu", "AMD EPYC 9575F") is None


def test_a_calibration_is_doubted_when_old_busy_or_of_other_versions():
    now = time.time()
    assert calibration.doubts(fake(), now=now, versions={"torch": "2.13.0"}) == []
    doubts = calibration.doubts(fake(at=now - 31 * 86_400, wall_per_cpu=1.6), now=now, versions={"torch": "2.14.0"})
    assert [d.split(":")[0].split(";")[0] for d in doubts] == [
        "It was made 31 days ago", "It was made with torch 2.13.0", "The machine was busy",
    ]  # fmt: skip


def test_the_fewest_threads_that_are_about_as_fast_are_the_best():
    small = [
        Measurement(
            name="thin_gemm", unit="flops_per_s", dtype="fp32", shape=calibration.SMALL, threads=n, p05=rate, best=rate,
            median=rate, calls=9,
        )
        for n, rate in ((1, 80e9), (2, 82e9))
    ]  # fmt: skip
    assert calibration.best_threads(fake(*small)) == (1, 2)


def test_what_fits_in_the_cache_is_served_by_it():
    found = calibration.bandwidth(fake(), 1)
    assert (found.fits_bytes, found.of(2**20).p05, found.of(2**26).p05) == (2**24, 60e9, 18e9)


# --- data sheets


def test_a_device_is_known_by_its_exact_name_or_not_at_all():
    assert datasheets.vendor_peak("NVIDIA H100 80GB HBM3").flops_per_s["bf16"] == 989.4e12
    assert datasheets.vendor_peak("NVIDIA H100 PCIe").flops_per_s["bf16"] == 756e12
    for unknown in ("NVIDIA H200", "NVIDIA H100", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100", "AMD EPYC", ""):
        assert datasheets.vendor_peak(unknown) is None


def test_every_data_sheet_figure_is_dense_and_has_a_source():
    assert len({p.device_name for p in datasheets.PEAKS}) == len(datasheets.PEAKS)
    for p in datasheets.PEAKS:
        assert p.dense and p.source.name and p.source.url.startswith("https://")
        assert set(p.flops_per_s) <= {"fp32", "tf32", "bf16", "fp16", "int8"}
        assert p.flops_per_s.get("bf16", p.flops_per_s["fp16"]) == p.flops_per_s["fp16"]


def test_turing_has_no_bf16():
    assert "bf16" not in datasheets.vendor_peak("Tesla T4").flops_per_s


# --- MFU


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
    assert result.value is None and result.reason.startswith("It would be 133 % of the measured peak")


def test_mfu_against_a_data_sheet_needs_the_very_device_and_a_dense_peak():
    config = RunConfig(device="cuda:0", precision="bf16")
    assert cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H100 80GB HBM3").value == pytest.approx(0.1)
    assert cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H200").reason == "There is no data sheet for NVIDIA H200."
    sparse = replace(datasheets.vendor_peak("NVIDIA H100 80GB HBM3"), dense=False)
    assert "structured sparsity" in cost.data_sheet_mfu(config, 98.94e12, "NVIDIA H100 80GB HBM3", peak=sparse).reason
    assert cost.data_sheet_mfu(config, 1e12, "Tesla T4").reason == "The data sheet of Tesla T4 has no peak in bf16."
    assert "CPUs" in cost.data_sheet_mfu(RunConfig(), 1e9, "AMD EPYC").reason


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_exceeds_its_measured_peak_by_more_than_five_percent(name, made, tmp_path):
    config = with_overrides(PRESETS[name].config, ["budget.epochs=none", "budget.steps=none", "budget.seconds=0.3"])
    started = steps = None
    for event in train(config, tmp_path):
        started = event if event.kind == "started" else started
        if event.kind == "steps":
            steps = [*(steps or []), event]
    samples, seconds = sum(int(e.samples.sum()) for e in steps), steps[-1].train_s[1]
    attained = samples * started.train_flops_per_example / seconds
    assert 0 < attained / calibration.peak(made, config.precision, config.threads).p05 <= 1.05


# --- bytes and the roof


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
    assert "above the roof" in roofline.roofline(run, LatestCalibration("ab" * 8, slow)).in_words
    assert "above the roof" not in roofline.roofline(run, found_of()).in_words


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
    waits = make_run(store, said=[StepSplit(data_s=6e-4, **taken)])
    quick = make_run(store, said=[StepSplit(data_s=1e-6, **taken)])
    assert roofline.roofline(waits, found_of()).bound == "input"
    assert roofline.roofline(quick, found_of()).bound != "input"


def test_without_a_calibration_mfu_is_null_beside_its_reason(store, capsys):
    run = make_run(store)
    assert cli.main(["show", run.run_id, "--json", "--store", str(store.root)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["summary"]["mfu"] is None and "not calibrated" in shown["cost"]["measured_peak"]["reason"]
    assert shown["cost"]["roofline"] is None and "not calibrated" in shown["cost"]["roofline_reason"]


# --- the chart and the card


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


def test_the_card_of_a_calibration_says_how_each_figure_was_had(store, capsys):
    run_id = kept(store, fake(missing={"idle_power": "No counter."}))
    assert cli.main(["show", run_id, "--store", str(store.root)]) == 0
    card = capsys.readouterr().out
    assert "fp32 products at 2 threads" in card and "170 GFLOP/s" in card and "idle power: No counter." in card


def test_calibrating_a_device_that_is_not_there_is_a_usage_error(store, capsys):
    assert cli.main(["calibrate", "--device", "cuda:7", "--store", str(store.root)]) == cli.USAGE
    assert "cuda:7 is not on this machine" in capsys.readouterr().err


def test_a_calibration_asks_for_every_core_so_that_nobody_disturbs_it():
    machine = planner.hardware.probe()
    config = with_overrides(CONFIG, [f"threads={machine.cpu.usable_cores}"])
    assert planner.check(config) and f"up to {machine.cpu.usable_cores} thread" in describe(config)
