"""The readings during a run: the beat, each reading, and the energy of the run."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from engine.events.machine import HardwareSample
from engine.hardware import host, process_usage, sampler
from engine.hardware.energy_counters import EnergyMeter, rapl_counters
from engine.hardware.rates import Unavailable
from engine.hardware.sampler import READINGS, Sampler
from engine.store.columns import HARDWARE
from tests.fake_nvml import FakeGpu, FakeNvml


class FakeClock:
    """Time passes only when someone waits or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> bool:
        self.now += seconds
        return False


def readers(**given: Callable[[], float]) -> dict[str, Callable[[], float]]:
    return {name: lambda: 1.0 for name in READINGS} | given


def fails(error: Exception) -> Callable[[], float]:
    def read() -> float:
        raise error

    return read


@pytest.fixture(autouse=True)
def _every_gpu_is_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def opened() -> Iterator[Callable[..., dict[str, Callable[[], float]]]]:
    with contextlib.ExitStack() as stack:
        yield lambda device="cpu", **more: sampler.open_readers(device, time.perf_counter, stack, **more)


def test_the_store_keeps_exactly_the_readings_we_take():
    assert tuple(READINGS) == HARDWARE


# --- the beat ------------------------------------------------------------------------------------------------------


def test_beats_do_not_drift_when_a_reading_is_slow():
    clock, at = FakeClock(), []
    for beat in itertools.islice(sampler.beats(clock, clock.pass_, 0.25), 5):
        at.append(beat - 100)
        clock.pass_(0.1)
    assert at == [0.25, 0.5, 0.75, 1.0, 1.25]


def test_missed_beats_are_skipped_and_never_bunch():
    clock, at = FakeClock(), []
    for beat, work in zip(sampler.beats(clock, clock.pass_, 0.25), [0.0, 0.6, 0.0, 0.0], strict=False):
        at.append(beat - 100)
        clock.pass_(work)
    assert at == [0.25, 0.5, 1.25, 1.5]


def test_beats_end_when_the_wait_is_told_to():
    assert list(sampler.beats(FakeClock(), lambda seconds: True, 0.25)) == []


def test_samples_arrive_from_a_thread_until_stop():
    samples: list[HardwareSample] = []
    beating = Sampler("cpu", time.perf_counter, samples.append, 0.01)
    beating.start()
    deadline = time.monotonic() + 10
    while len(samples) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    beating.stop()
    counted = len(samples)
    time.sleep(0.05)
    assert len(samples) == counted >= 3


def test_a_run_shorter_than_one_beat_still_gets_a_sample():
    samples: list[HardwareSample] = []
    beating = Sampler("cpu", time.perf_counter, samples.append, 60, readers=readers())
    beating.start()
    beating.stop()
    assert len(samples) == 1


def test_a_reading_that_hangs_does_not_hold_up_the_end_of_a_run():
    entered, release, samples = threading.Event(), threading.Event(), []
    hangs = readers(gpu_power_w=lambda: float(entered.set() or release.wait()))
    beating = Sampler("cuda:0", time.perf_counter, samples.append, 0.01, readers=hangs)
    beating.start()
    assert entered.wait(10)
    beating.stop(timeout_s=0.05)
    release.set()
    beating._thread.join(10)
    assert samples == []  # the log may be closed by now


# --- failing readings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (psutil.AccessDenied(1), "(pid=1)"),
        (OSError(5, "Input/output error"), "[Errno 5] Input/output error"),
        (pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST), "GPU is lost"),
    ],
)
def test_a_failing_reading_fails_alone_and_says_why(error, reason):
    readings, missing = sampler.read_all(readers(gpu_power_w=fails(error)))
    assert missing == {"gpu_power_w": reason}
    assert [name for name, value in readings.items() if value is None] == ["gpu_power_w"]


def test_a_bug_is_not_taken_for_a_missing_reading():
    with pytest.raises(ZeroDivisionError):
        sampler.read_all(readers(gpu_power_w=fails(ZeroDivisionError())))


def test_a_reason_is_reported_once_and_again_when_it_changes():
    samples: list[HardwareSample] = []
    beating = Sampler("cpu", FakeClock(), samples.append)
    first, second = readers(gpu_power_w=fails(OSError("a"))), readers(gpu_power_w=fails(OSError("b")))
    for given in (first, first, second, readers(), second):
        beating.beat(given)
    assert [sample.missing.get("gpu_power_w") for sample in samples] == ["a", None, "b", None, "b"]


def test_a_gpu_lost_during_a_run_is_a_gap(opened):
    gpu = FakeGpu()
    given = opened("cuda:0", nvml=FakeNvml(gpu))
    before, _ = sampler.read_all(given)
    gpu.errors = dict.fromkeys(["nvmlDeviceGetPowerUsage"], pynvml.NVML_ERROR_GPU_IS_LOST)
    after, missing = sampler.read_all(given)
    assert (before["gpu_power_w"], after["gpu_power_w"], missing["gpu_power_w"]) == (250.0, None, "GPU is lost")
    assert after["process_memory_bytes"]


# --- readers -------------------------------------------------------------------------------------------------------


def test_a_cpu_run_reads_no_gpu_and_says_so(opened):
    readings, missing = sampler.read_all(opened("cpu", nvml=FakeNvml(FakeGpu())))
    assert missing["gpu_utilization_percent"] == "This run uses the CPU."
    assert readings["gpu_utilization_percent"] is None


def test_a_gpu_run_without_a_driver_says_so(opened):
    _, missing = sampler.read_all(opened("cuda:0", nvml=FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)))
    assert missing["gpu_power_w"].startswith("No NVIDIA driver on this machine")


def test_a_gpu_is_read_in_our_units(opened):
    gpu = FakeGpu(throttle=0x44, pids=(os.getpid(), 7, 8))
    readings, _ = sampler.read_all(opened("cuda:0", nvml=FakeNvml(gpu)))
    found = {name: value for name, value in readings.items() if name.startswith("gpu_")}
    assert list(found.values()) == [87.0, 1 << 30, 250.0, 51.0, 1.98e9, 0x44, 2.0]


def test_a_run_on_two_gpus_is_read_on_both(opened):
    two = FakeNvml(
        FakeGpu(throttle=0x04, pids=(7, 9)), FakeGpu(throttle=0x40, utilization=43, power_mw=150_000, pids=(8,))
    )
    readings, _ = sampler.read_all(opened(("cuda:0", "cuda:1"), nvml=two, pids=(7, 8)))
    found = {name: value for name, value in readings.items() if name.startswith("gpu_")}
    assert list(found.values()) == [65.0, 2 << 30, 400.0, 51.0, 1.98e9, 0x44, 1.0]


def test_the_memory_and_cpu_time_of_all_ranks_are_added_up(opened):
    own, other = os.getpid(), subprocess.Popen(["sleep", "60"])
    once, twice = (sampler.read_all(opened("cpu", pids=pids))[0] for pids in ((own,), (own, other.pid)))
    other.kill()
    other.wait()
    assert twice["process_memory_bytes"] > once["process_memory_bytes"] > 0
    ended = process_usage.CpuOfRanks((own, 2**22 + 1))  # beyond every pid
    assert ended() > 0


def test_other_gpu_processes_are_read_at_every_fourth_beat():
    asked = []
    read = sampler.OtherGpuProcesses(lambda: asked.append(1) or [SimpleNamespace(pid=1), SimpleNamespace(pid=2)], [1])
    assert [read() for _ in range(6)] == [1.0] * 6
    assert len(asked) == 2


def test_other_gpu_processes_are_unknown_where_the_driver_does_not_list_this_process(opened):
    readings, missing = sampler.read_all(opened("cuda:0", nvml=FakeNvml(FakeGpu(pids=(7,)))))
    assert readings["gpu_other_processes"] is None
    assert "does not list this process" in missing["gpu_other_processes"]


def test_cpu_power_is_the_energy_of_a_beat_by_its_length(tmp_path):
    energy, clock = rapl(tmp_path, "intel-rapl:0", "package-0", 0), FakeClock()
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    with contextlib.ExitStack() as stack:
        read = sampler.open_readers("cpu", clock, stack, energy=meter)["cpu_power_w"]
    with pytest.raises(Unavailable):
        read()  # no window yet
    energy.write_text("5000000")
    meter.update()
    clock.pass_(0.25)
    assert read() == 20.0


def test_the_energy_so_far_is_a_reading_with_the_meters_own_reason(opened, tmp_path):
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    readings, missing = sampler.read_all(opened("cpu", energy=meter))
    assert readings["energy_j"] is None
    assert missing["energy_j"].startswith("RAPL is not readable here")


def test_process_cpu_counts_100_for_one_full_core():
    clock, cpu = FakeClock(), FakeClock()
    read = process_usage.ProcessCpu(clock, cpu)
    clock.pass_(0.25)
    cpu.pass_(0.5)
    assert read() == pytest.approx(200)


def test_system_cpu_is_the_busy_share_of_the_cores_a_run_may_use():
    first = b"cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 7 0 0\n"
    then = b"cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 9 0 0 0 0 0 0 0 0 0\ncpu1 10 0 5 60 20 0 0 5 9 0\nintr 7 0 0\n"
    read = host.SystemCpu(iter([first, then]).__next__, frozenset({1}))
    assert read() == 20.0  # user, system and stolen 20 of 100; waiting for a disk is idle, guest time is in user


def test_a_kernel_that_counts_no_cpu_time_says_so():
    read = host.SystemCpu(lambda: b"cpu0 0 0 0 0 0 0 0 0 0 0\n", frozenset({0}))
    with pytest.raises(Unavailable, match="counted no CPU time"):
        read()


def test_the_page_cache_is_not_memory_used():
    read = host.Memory(lambda: b"MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:  60 kB\n")
    assert read()["memory.used_bytes"] == 40 * 1024


@pytest.mark.parametrize("name", ["process_memory_bytes", "system_memory_used_bytes"])
def test_memory_readings_agree_with_psutil(opened, name):
    memory = psutil.virtual_memory()
    reference = {"process_memory_bytes": psutil.Process().memory_info().rss}
    reference["system_memory_used_bytes"] = memory.total - memory.available
    assert opened()[name]() == pytest.approx(reference[name], rel=0.2)


def test_readers_close_what_they_opened():
    nvml = FakeNvml(FakeGpu())
    before = psutil.Process().num_fds()
    with contextlib.ExitStack() as stack:
        sampler.open_readers("cuda:0", time.perf_counter, stack, nvml=nvml)
    assert (nvml.open, psutil.Process().num_fds()) == (0, before)


# --- once per run --------------------------------------------------------------------------------------------------


def test_peak_memory_is_the_kernels_high_water_mark(tmp_path):
    status = tmp_path / "status"
    status.write_text("VmPeak:\t 9000 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1000 kB\n")
    assert process_usage.peak_memory_bytes(status) == (
        2048 * 1024,
        "peak resident memory of the whole process, includes PyTorch itself",
    )


def test_peak_memory_without_proc_comes_from_getrusage(tmp_path):
    peak, _ = process_usage.peak_memory_bytes(tmp_path / "missing")
    assert peak == pytest.approx(process_usage.peak_memory_bytes()[0], rel=0.2)


def rapl(folder: Path, domain: str, name: str, energy_uj: int, wraps_at_uj: int = 1_000_000_000) -> Path:
    path = folder / domain
    path.mkdir(exist_ok=True)
    (path / "name").write_text(name + "\n")
    (path / "max_energy_range_uj").write_text(f"{wraps_at_uj}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    return path / "energy_uj"


def test_cpu_energy_is_the_sum_of_the_packages(tmp_path):
    first, second = rapl(tmp_path, "intel-rapl:0", "package-0", 0), rapl(tmp_path, "intel-rapl:1", "package-1", 0)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    first.write_text("2000000")
    second.write_text("500000")
    assert meter.stop()[0] == 2.5


def test_parts_of_a_package_and_the_platform_are_not_counted_twice(tmp_path):
    for domain, name in {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "psys"}.items():
        rapl(tmp_path, domain, name, 0)
    assert len(rapl_counters(tmp_path)) == 1


def test_a_wrapped_rapl_counter_goes_on(tmp_path):
    energy = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    for energy_uj in (100_000_000, 950_000_000, 50_000_000):  # wraps twice
        energy.write_text(str(energy_uj))
        meter.update()
    assert meter.stop()[0] == pytest.approx(200 + 850 + 100)


def test_a_sampler_keeps_its_meter_from_missing_a_wrap(tmp_path):
    energy = rapl(tmp_path, "intel-rapl:0", "package-0", 900_000_000)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    energy.write_text("100000000")
    Sampler("cpu", FakeClock(), lambda sample: None, energy=meter).beat(readers())
    energy.write_text("950000000")
    assert meter.stop()[0] == pytest.approx(1050)


def test_no_rapl_is_no_energy_and_a_reason(tmp_path):
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    assert meter.stop() == (None, "RAPL is not readable here: the machine shows no CPU energy counter.")


def test_energy_counters_only_root_may_read_are_a_reason(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 0).unlink()
    (tmp_path / "intel-rapl:0" / "energy_uj").mkdir()  # unreadable for root too
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    assert meter.stop() == (None, "RAPL is not readable here: Is a directory.")


def test_gpu_energy_is_the_difference_of_its_counter():
    gpu = FakeGpu(energy_mj=5_000)
    meter = EnergyMeter("cuda:0", nvml=FakeNvml(gpu))
    meter.start()
    gpu.energy_mj = 12_500
    assert meter.stop()[0] == 7.5


def test_energy_with_a_gap_is_unknown_rather_than_too_little():
    gpu = FakeGpu(energy_mj=5_000)
    meter = EnergyMeter("cuda:0", nvml=FakeNvml(gpu))
    meter.start()
    gpu.energy_mj = 0
    assert meter.stop() == (None, "The energy counter was reset during the run.")


def test_the_meter_says_its_source_its_window_and_how_often_the_counter_moves():
    gpu, clock = FakeGpu(energy_mj=0), FakeClock()
    meter = EnergyMeter("cuda:0", nvml=FakeNvml(gpu), clock=clock)
    assert (meter.source, meter.window_s, meter.period_s) == ("none", None, None)
    meter.start()
    clock.pass_(3.0)
    meter.stop()
    assert (meter.source, meter.window_s, meter.period_s) == ("nvml", 3.0, 0.1)


def test_a_stopped_meter_has_no_power_instead_of_zero(tmp_path):
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    meter = EnergyMeter("cpu", powercap=tmp_path)
    meter.start()
    meter.stop()
    meter.update()
    with pytest.raises(Unavailable, match="no longer read"):
        meter.joules()
    assert meter.source == "rapl"


def test_the_energy_of_two_gpus_is_that_of_both():
    gpus = FakeGpu(energy_mj=1_000), FakeGpu(energy_mj=50_000)
    meter = EnergyMeter(("cuda:0", "cuda:1"), nvml=FakeNvml(*gpus))
    meter.start()
    gpus[0].energy_mj, gpus[1].energy_mj = 4_000, 57_000
    assert meter.stop()[0] == 10.0
    assert "cuda:0, cuda:1, whole boards, added up" in meter.stop()[1]


def test_the_meter_closes_nvml():
    nvml = FakeNvml(FakeGpu())
    meter = EnergyMeter("cuda:0", nvml=nvml)
    meter.start()
    meter.stop()
    assert nvml.open == 0
