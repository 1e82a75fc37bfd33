"""The calibration task: a short real calibration, energy counters, other programs, and the jobs for GPUs."""

from __future__ import annotations

import itertools
import os
import time

import pynvml
import pytest
import torch

from engine.common.errors import OutOfMemory
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.events.machine import Calibration
from engine.hardware import probe
from engine.measurement import calibration
from engine.planning import planner
from engine.pytorch.tasks import calibrate as task
from engine.pytorch.tasks.calibrate import calibrate, measurement_of
from engine.pytorch.tasks.calibration_jobs import last_cache_bytes, thread_counts
from engine.pytorch.tasks.train import train
from engine.runtime import worker
from engine.store.event_log import decode, encode
from engine.store.stop_requests import StopRequest, ask_to_stop
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.measurement.fake_calibration import fake, kept

pytestmark = pytest.mark.slow  # it trains

CONFIG = preset_config("calibrate")


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """The events of a real calibration with one thread, shortened to a few seconds."""
    return list(calibrate(CONFIG, tmp_path_factory.mktemp("calibrate"), budget_s=2.0, rounds=2))


@pytest.fixture(scope="module")
def made(events):
    return events[-1]


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
    assert made.missing["all_reduce"] == "The run has one rank, so no gradients are exchanged."
    assert {"gemm tf32", "to_device", "to_host"} <= set(made.missing)
    assert ("idle_power" in made.missing) != any(m.name == "idle_power" for m in made.measurements)


def test_progress_grows_and_the_last_event_is_the_calibration(events):
    progress = [event for event in events if event.kind == "progress"]
    assert [event.kind for event in events].count("calibration") == 1
    assert progress[-1].done == progress[-1].total
    assert [e.done for e in progress] == sorted(e.done for e in progress)


def test_a_calibration_survives_the_log_to_the_last_digit(made):
    assert decode(encode(made)) == made


def test_cache_is_measured_and_not_slower_than_memory(made):
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


def waiting(share):
    """A scheduler in which the threads wait for a core for `share` of each second on a core."""
    seconds = itertools.count()
    return lambda: (on_core := float(next(seconds)), on_core * share)


def with_two_threads(tmp_path, scheduled):
    config = with_overrides(CONFIG, ["threads=2"])
    return list(calibrate(config, tmp_path, budget_s=0.3, rounds=1, scheduled=scheduled))[-1]


def test_two_threads_are_measured_and_not_assumed(tmp_path):
    made = with_two_threads(tmp_path, waiting(0.0))
    assert calibration.peak(made, "fp32", 2).slowdown == 1.0 and calibration.bandwidth(made, 2)
    assert None not in calibration.best_threads(made)


def test_two_threads_that_wait_for_a_core_have_no_figures(tmp_path):
    made = with_two_threads(tmp_path, waiting(1.5))
    assert {m.threads for m in made.measurements} == {1} and calibration.peak(made, "fp32", 1)
    assert made.missing["gemm fp32 at 2 threads"] == made.missing["memory at 2 threads"] == calibration.NOT_QUIET
    assert calibration.best_threads(made) == (None, None)
    assert ("fp32 products at 2 threads", "not known") in [fact[:2] for fact in calibration.facts(made)]


def test_without_the_schedulers_record_figures_of_two_threads_are_doubted(tmp_path):
    made = with_two_threads(tmp_path, lambda: None).model_copy(update={"wall_per_cpu": 1.0})
    assert calibration.peak(made, "fp32", 2).slowdown is None
    assert any("not known whether other programs disturbed" in d for d in calibration.doubts(made, now=made.at))


class FakeCore:
    """A core whose clock moves only while it computes a product: by `seconds(size)`."""

    def __init__(self, seconds):
        self.seconds, self.now, self.sizes = seconds, 0.0, []

    def product(self, size, threads=1):
        def call():
            self.sizes.append(size)
            self.now += self.seconds(size)

        return task.Job("gemm", "flops_per_s", 2.0 * size**3, lambda: call, "bf16", (size,) * 3, threads)

    def measure(self, *jobs, rounds=1, scheduled=lambda: None):
        before = torch.get_num_threads()
        list(task.Bench(CONFIG, torch.device("cpu"), lambda: self.now, rounds, scheduled).measure(jobs, 1.0))
        torch.set_num_threads(before)


def test_a_disturbed_job_is_repeated_until_a_moment_is_quiet():
    readings = iter([(0.0, 0.0), (1.0, 3.0), (1.0, 3.0), (2.0, 6.0), (2.0, 6.0), (3.0, 6.1)])
    core = FakeCore(lambda size: 1e-3)
    job = core.product(512, threads=2)
    core.measure(job, scheduled=lambda: next(readings))
    assert (job.num_disturbed, len(job.rounds), measurement_of(job).slowdown) == (2, 1, pytest.approx(1.1))


def test_repeating_ends_on_a_machine_that_is_never_quiet():
    core = FakeCore(lambda size: 1e-3)
    job = core.product(512, threads=2)
    core.measure(job, scheduled=waiting(2.0))
    assert job.num_disturbed > 1 and not job.rounds and core.now < 2.0


def test_a_group_with_a_size_that_was_never_quiet_is_not_known():
    core = FakeCore(lambda size: 1e-3)
    quiet, disturbed, other = core.product(256, 2), core.product(512, 2), core.product(512)
    quiet.rounds, disturbed.num_disturbed, other.rounds = [[0.1]], 3, [[0.1]]
    assert task.left_out([quiet, disturbed, other]) == {"gemm bf16 at 2 threads": calibration.NOT_QUIET}
    assert [measurement_of(job) is None for job in (quiet, disturbed, other)] == [True, True, False]


def test_a_slow_first_round_leaves_out_no_size():
    """Beside other programs the first calls took 5 s: at their speed, the next size would take 40 s."""
    slow = iter([5.0] * 3)
    core = FakeCore(lambda size: next(slow, 1e-5 * (size / 128) ** 3))
    jobs = [core.product(size) for size in (128, 256)]
    core.measure(*jobs, rounds=2)
    assert [(job.is_too_long, len(job.rounds)) for job in jobs] == [(False, 2), (False, 1)]


def test_a_busy_machine_moves_the_mean_and_not_the_fifth_percentile():
    job = task.Job("gemm", "flops_per_s", 1e9, lambda: print)
    job.rounds = [[0.01] * 20 + [0.1] * 80, [0.0101] * 20 + [0.3] * 80]
    found = measurement_of(job)
    assert found.p05 == pytest.approx(1e11) and found.median < 2e10 and found.spread < 0.02


def test_a_kernel_that_is_a_hundred_times_slower_ends_at_the_sizes_it_can_do():
    core = FakeCore(lambda size: 1e-3 * (size / 128) ** 3)
    jobs = [core.product(size) for size in (128, 256, 512, 1024, 2048)]
    core.measure(*jobs)
    assert set(core.sizes) == {128, 256} and [job.is_too_long for job in jobs] == [False, False, True, True, True]
    assert list(task.left_out(jobs)) == [f"gemm bf16 of size {n}" for n in (512, 1024, 2048)]


def test_too_little_memory_is_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(task.probe, "free_memory_bytes", lambda device: 2**27)
    with pytest.raises(OutOfMemory, match=r"128 MiB are free on cpu.*Close other programs"):
        next(calibrate(CONFIG, tmp_path))


def test_a_calibration_stops_when_it_is_asked(store):
    run_id = store.create(CONFIG)
    ask_to_stop(store.folder(run_id), StopRequest())
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert (run.status, run.latest(Calibration)) == ("cancelled", None)


def test_a_training_run_records_the_calibration_that_it_is_compared_with(store):
    made = kept(store, fake(device_name=probe.probe().cpu.name))
    run_id = store.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=3"]))
    worker.run(store.folder(run_id))
    assert store.run(run_id).started.environment[calibration.RECORDED_AS] == made


class CountingNvml(FakeNvml):
    """A GPU that draws 100 W by its energy counter, with programs `pids` on it."""

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
    bench = task.Bench(RunConfig.model_construct(device="cuda:0"), torch.device("cpu"), time.perf_counter, 1)
    missing = {}
    power = bench.idle_power(0.3, CountingNvml(FakeGpu()), missing)
    with pytest.raises(StopIteration) as ended:
        while True:
            next(power)
    (found,) = ended.value.value
    assert found.unit == "w" and found.p05 == pytest.approx(100, rel=0.05) and missing == {}


def test_without_a_counter_idle_power_is_a_reason_and_no_number():
    nvml = FakeNvml(FakeGpu(errors={"nvmlDeviceGetTotalEnergyConsumption": pynvml.NVML_ERROR_NOT_SUPPORTED}))
    bench = task.Bench(RunConfig.model_construct(device="cuda:0"), torch.device("cpu"), time.perf_counter, 1)
    missing = {}
    with pytest.raises(StopIteration) as ended:
        next(bench.idle_power(5.0, nvml, missing))
    assert ended.value.value == [] and "idle_power" in missing


def test_other_programs_on_the_gpu_are_counted_or_the_reason_is_given():
    assert task.other_programs("cuda:0", CountingNvml(FakeGpu(), pids=(os.getpid(), 4, 5))) == (2, "")
    refused = CountingNvml(FakeGpu(errors={"processes": pynvml.NVML_ERROR_NO_PERMISSION}))
    count, reason = task.other_programs("cuda:0", refused)
    assert count is None and reason.startswith("NVML does not list the GPU's programs")
    assert task.other_programs("cpu", refused) == (None, "")
    count, reason = task.other_programs("cuda:0", CountingNvml(FakeGpu(), pids=(4, 5)))
    assert count is None and "does not list this process" in reason


@pytest.fixture
def on_gpu(monkeypatch, tmp_path):
    """The jobs for a GPU of a given compute capability; they are not run."""

    def jobs(capability, free=2**37):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        missing = {}
        machine = probe.probe()
        return task.jobs_for(torch.device("cuda:0"), machine, 8, free, tmp_path, missing), missing

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


def test_a_calibration_uses_every_core_so_that_no_other_run_disturbs_it():
    machine = probe.probe()
    config = with_overrides(CONFIG, [f"threads={machine.cpu.usable_cores}"])
    assert planner.check(config) and f"up to {machine.cpu.usable_cores} thread" in describe(config)
