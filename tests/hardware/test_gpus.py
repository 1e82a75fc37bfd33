"""The readings of all GPUs of the machine, and the processes that hold their memory."""

from __future__ import annotations

import pynvml
import pytest

from engine.hardware import gpus
from engine.hardware.nvml import Watched
from engine.system.processes import has_own_pids
from tests.fake_nvml import FakeGpu
from tests.hardware.fake_machine import FUNCTIONS, GPM
from tests.hardware.test_nvml import Stuck


def test_without_a_driver_there_are_no_gpu_columns_and_one_reason(machine):
    monitor = machine.monitor()
    assert not any(column.startswith("gpu") for column in monitor.columns)
    assert "No NVIDIA driver on this machine" in monitor.read().missing["gpu"]


def test_a_gpu_with_profiling_counters_has_all_readings(machine):
    gpu = FakeGpu(
        gpm=GPM
        | {pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC: 2.0, pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC: 1.0},
        energy_mj=5_000,
    )
    readings = machine.second(machine.monitor(gpu)).readings
    assert {name.split(".")[1]: value for name, value in readings.items() if name.startswith("gpu0")} == {
        "utilization_percent": 87, "sm_active_percent": 41.5, "tensor_active_percent": 12, "memory_bandwidth_percent": 33,
        "memory_used_bytes": 1 << 30, "memory_total_bytes": 143_771 << 20, "power_w": 250, "power_limit_w": 650,
        "energy_j": 5, "temperature_c": 51, "sm_clock_hz": 1.98e9, "memory_clock_hz": 3.201e9, "throttle_bits": 0,
        "pcie_sent_bytes_per_s": 3 * 2**20, "pcie_received_bytes_per_s": 5 * 2**20,
        "nvlink_sent_bytes_per_s": 2 * 2**20, "nvlink_received_bytes_per_s": 2**20,
    }  # fmt: skip


def test_an_older_gpu_has_no_profiling_counters_and_reads_its_traffic_otherwise(machine):
    gpu = FakeGpu(name="NVIDIA A100", nvlink_kib=(100, 200))
    monitor = machine.monitor(gpu)
    monitor.read()
    gpu.nvlink_kib = (110, 240)
    machine.clock.now += 2
    snapshot = monitor.read()
    assert "GPM needs a Hopper" in snapshot.missing["gpu0.sm_active_percent"]
    assert snapshot.readings["gpu0.pcie_sent_bytes_per_s"] == 2_048 * 1024
    assert snapshot.readings["gpu0.nvlink_sent_bytes_per_s"] == 10 * 1024 / 2
    assert snapshot.readings["gpu0.nvlink_received_bytes_per_s"] == 40 * 1024 / 2


def test_a_gpu_without_links_says_so(machine):
    assert "no NVLink" in machine.second(machine.monitor(FakeGpu())).missing["gpu0.nvlink_sent_bytes_per_s"]
    assert (
        machine.second(machine.monitor(FakeGpu(gpm=GPM))).missing["gpu0.nvlink_sent_bytes_per_s"]
        == "NVML: not supported."
    )


@pytest.mark.parametrize(("function", "names"), FUNCTIONS.items())
def test_one_field_that_fails_after_a_while_hides_neither_the_rest_nor_the_other_gpu(machine, function, names):
    broken = FakeGpu(gpm=GPM, errors_after={function: (2, pynvml.NVML_ERROR_NOT_SUPPORTED)})
    monitor = machine.monitor(broken, FakeGpu(uuid="GPU-b", gpm=GPM))
    for _ in range(4):
        machine.clock.now += 1
        snapshot = monitor.read()
    links = {"nvlink_sent_bytes_per_s", "nvlink_received_bytes_per_s"}
    missing = {name.split(".")[1] for name in snapshot.missing if name.startswith("gpu0")}
    assert missing - links == names - links
    assert {name.split(".")[1] for name in snapshot.missing if name.startswith("gpu1")} == links


def test_the_older_nvml_function_for_throttle_reasons_works_too(machine):
    gpu = FakeGpu(throttle=0x4, errors={"nvmlDeviceGetCurrentClocksEventReasons": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND})
    assert machine.monitor(gpu).read().readings["gpu0.throttle_bits"] == 4


def test_throttle_reasons_are_words():
    assert gpus.throttle_words(0x4 | 0x20) == "the power limit, heat"
    assert all(bit == 1 << n for n, bit in enumerate(gpus.THROTTLE))


@pytest.mark.parametrize(
    "function", ["nvmlDeviceGetPowerUsage", "nvmlGpmSampleGet", "nvmlDeviceGetComputeRunningProcesses"]
)
def test_a_driver_that_hangs_costs_its_readings_and_the_others_go_on(machine, function):
    nvml = Stuck()
    monitor = machine.monitor(nvml=Watched(nvml, init_s=0.2, call_s=0.2))
    assert monitor.read().readings["gpu0.power_w"] == 250.0
    nvml.functions.add(function)
    machine.clock.now += 2
    snapshot = monitor.read()
    nvml.let_go.set()
    if function == "nvmlDeviceGetPowerUsage":
        assert snapshot.missing["gpu0.power_w"] == "NVML: timeout."
    assert snapshot.readings["memory.used_bytes"] == 600 * 1024


def test_a_driver_that_hangs_at_its_start_is_a_reason(machine):
    nvml = Stuck("nvmlInit")
    monitor = machine.monitor(nvml=Watched(nvml, init_s=0.1, call_s=0.1))
    assert monitor.read().missing["gpu"] == "The NVIDIA driver does not answer: Timeout."
    nvml.let_go.set()


def test_sixteen_gpus_and_a_mig_slice_have_their_names(machine):
    sixteen = [FakeGpu(uuid=f"GPU-{n}", gpm=GPM) for n in range(15)] + [FakeGpu(name="NVIDIA H200 MIG 1g.18gb\x1b[2J")]
    monitor = machine.monitor(*sixteen)
    assert len(monitor.gpu_names) == 16
    assert monitor.gpu_names[-1] == "NVIDIA H200 MIG 1g.18gb\\x1b[2J"
    assert machine.second(monitor).readings["gpu15.power_w"] == 250.0


def test_all_gpus_are_watched_whatever_this_process_may_see(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(machine.monitor(FakeGpu(), FakeGpu(uuid="GPU-b")).gpu_names) == 2


def test_only_the_memory_of_other_users_processes_is_reported(machine):
    gpu = FakeGpu(processes=((1, 5 << 30), (77, 1 << 30), (78, None), (42, 1 << 20)))
    snapshot = machine.monitor(gpu, processes={42: "", 77: "abc"}).read()
    assert [(p.run_id, p.memory_bytes) for p in snapshot.processes] == [
        ("abc", 1 << 30), ("", 1 << 20), (None, 5 << 30), (None, None),
    ]  # fmt: skip


def test_in_a_container_owners_are_unknown_until_nvml_lists_one_of_our_processes(machine):
    (machine.root / "proc/self/ns").mkdir()
    (machine.root / "proc/self/ns/pid").symlink_to("pid:[4026532561]")
    strangers, ours = FakeGpu(processes=((31_337, 5 << 30),)), FakeGpu(uuid="GPU-b", processes=((77, 1 << 30),))
    unknown = machine.monitor(strangers, processes={77: "abc"}).read()
    assert [(p.run_id, p.is_known) for p in unknown.processes] == [(None, False)]
    assert "the owners are not known" in unknown.missing["gpu0.processes"]
    told = machine.monitor(strangers, ours, processes={77: "abc"}).read()
    assert [(p.run_id, p.is_known) for p in told.processes] == [(None, True), ("abc", True)]
    assert "gpu0.processes" not in told.missing


@pytest.mark.parametrize(("link", "own"), [("pid:[4026531836]", False), ("pid:[4026532561]", True), (None, False)])
def test_a_container_is_known_by_its_namespace_of_processes(tmp_path, link, own):
    (tmp_path / "self/ns").mkdir(parents=True)
    if link:
        (tmp_path / "self/ns/pid").symlink_to(link)
    assert has_own_pids(tmp_path) is own


def test_samples_of_the_driver_are_given_back(machine):
    monitor = machine.monitor(FakeGpu(gpm=GPM), FakeGpu(uuid="GPU-b", gpm=GPM))
    nvml = monitor._nvml
    assert (nvml.samples, nvml.open) == (4, 1)
    monitor.open_gpus()
    assert (nvml.samples, nvml.open) == (4, 1)
    monitor.close()
    assert (nvml.samples, nvml.open) == (0, 0)


def test_a_gpu_off_the_bus_keeps_its_columns_and_its_name_beside_the_one_that_answers(machine):
    lost = FakeGpu(name="NVIDIA A100")
    monitor = machine.monitor(lost, FakeGpu(uuid="GPU-b"))
    columns = monitor.columns
    lost.errors["nvmlDeviceGetHandleByIndex"] = pynvml.NVML_ERROR_GPU_IS_LOST
    monitor.open_gpus()
    snapshot = machine.second(monitor)
    assert (monitor.columns, monitor.gpu_names) == (columns, ("NVIDIA A100", "NVIDIA H200"))
    assert "lost" in snapshot.missing["gpu0.power_w"]
    assert snapshot.readings["gpu1.power_w"] == 250
    assert monitor.has_lost_a_gpu(snapshot)


def test_a_gpu_that_never_answered_is_there_with_its_reason(machine):
    lost = FakeGpu(errors={"nvmlDeviceGetHandleByIndex": pynvml.NVML_ERROR_GPU_IS_LOST})
    monitor = machine.monitor(lost, FakeGpu(uuid="GPU-b"))
    assert "lost" in monitor.read().missing["gpu0.power_w"]
    assert monitor.gpu_names == ("NVIDIA GPU", "NVIDIA H200")
