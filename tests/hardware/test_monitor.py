"""What the whole machine does: each reading right or None with its reason, kept by the supervisor, never in the way."""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest

from engine.access import settings
from engine.access.policy import AccessError, Actor
from engine.cli.hardware import monitor_line, print_snapshot
from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.hardware import gpus, history
from engine.hardware.history import Recorder, Span, load_settings, parse_interval
from engine.hardware.monitor import METRICS, Monitor, metric_of
from engine.hardware.nvml import Watched
from engine.hardware.readings_log import CURRENT, Reader
from engine.runtime.client import Client
from engine.system import disk_space
from engine.system.processes import has_own_pids
from tests.fake_nvml import FakeGpu, FakeNvml
from tests.fakes import make_run
from tests.hardware.test_nvml import Stuck

STAT = "cpu  {a} 0 0 {i} 0 0 0 0 0 0\ncpu0 {a} 0 0 {i} 0 0 0 0 0 0\ncpu1 0 0 0 {t} 0 0 0 0 0 0\nintr 1 2 3\n"
GPM = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: 41.5,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 12.0,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 33.0,
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: 3.0,
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: 5.0,
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Machine:
    """A /proc and /sys of our own making below a folder."""

    def __init__(self, root):
        self.root, self.clock = root, Clock()
        self.write("proc/stat", STAT.format(a=0, i=100, t=100))
        self.write("proc/loadavg", "1.50 0.70 0.20 1/100 999\n")
        self.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 100 kB\nSwapFree: 90 kB\n")
        self.write("proc/cpuinfo", "cpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\n")
        for what in ("cpu", "memory", "io"):
            self.write(f"proc/pressure/{what}", "some avg10=7.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00\n")
        for name in ("sda", "loop0", "dm-0"):
            (root / "sys/block" / name).mkdir(parents=True)
        self.disk(0, 0)
        self.net(0, 0)
        (root / "sys/devices/virtual/net/lo").mkdir(parents=True)
        (root / "sys/devices/virtual/net/docker0").mkdir(parents=True)
        (root / "proc/self").mkdir()

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def disk(self, read, written):
        line = "8 {n} {name} 1 0 {r} 5 1 0 {w} 5 0 5 5\n"
        disks = [(0, "sda", read, written), (1, "sda1", read, written), (2, "dm-0", read, written), (3, "loop0", 9, 9)]
        self.write("proc/diskstats", "".join(line.format(n=n, name=name, r=r, w=w) for n, name, r, w in disks))

    def net(self, received, sent):
        line = "{name}: {r} 1 0 0 0 0 0 0 {s} 1 0 0 0 0 0 0\n"
        rows = [("lo", 10**9, 10**9), ("eth0", received, sent), ("docker0", 10**6, 10**6), ("veth1", 7, 7)]
        text = "".join(line.format(name=name, r=r, s=s) for name, r, s in rows)
        self.write("proc/net/dev", f"Inter-| Receive\n face |bytes\n{text}")

    def process(self, pid, *, ticks, pages=10):
        fields = ["S", *["0"] * 10, str(ticks), "0", *["0"] * 8, str(pages)]
        self.write(f"proc/{pid}/stat", f"{pid} (a name) with) {' '.join(fields)} 0 0\n")

    def monitor(self, *own_gpus, processes=None, **options):
        nvml = FakeNvml(*own_gpus) if own_gpus else FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        options = {"nvml": nvml, "root": self.root, "clock": self.clock, "wall": self.clock} | options
        return Monitor(lambda: {42: ""} if processes is None else processes, **options)

    def second(self, monitor):
        """The reading a second after the first."""
        monitor.read()
        self.clock.now += 1
        return monitor.read()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "root")


def test_cores_memory_load_frequency_and_pressure_are_as_the_kernel_says(machine):
    monitor = machine.monitor()
    monitor.read()
    machine.write("proc/stat", STAT.format(a=30, i=170, t=200))
    machine.clock.now += 1
    readings = monitor.read().readings
    assert readings["core0.busy_percent"] == pytest.approx(30)
    assert readings["core1.busy_percent"] == 0
    assert (readings["cpu.busy_percent"], readings["cpu.busiest_percent"]) == (pytest.approx(15), pytest.approx(30))
    assert (readings["memory.used_bytes"], readings["memory.available_bytes"]) == (600 * 1024, 400 * 1024)
    assert readings["memory.swap_used_bytes"] == 10 * 1024
    assert (readings["cpu.load_1min"], readings["cpu.frequency_hz"]) == (1.5, 2.5e9)
    assert {readings[f"pressure.{what}_percent"] for what in ("cpu", "memory", "io")} == {7.25}


def test_disks_and_interfaces_count_once_and_only_what_leaves_the_machine(machine):
    monitor = machine.monitor()
    monitor.read()
    machine.disk(8, 16)
    machine.net(3_000, 500)
    machine.clock.now += 2
    readings = monitor.read().readings
    assert (readings["disk.read_bytes_per_s"], readings["disk.write_bytes_per_s"]) == (8 * 512 / 2, 16 * 512 / 2)
    assert (readings["network.received_bytes_per_s"], readings["network.sent_bytes_per_s"]) == (1_500, 250)


def test_a_container_whose_only_interface_is_virtual_has_its_traffic_counted(machine):
    (machine.root / "sys/devices/virtual/net/eth0").mkdir()
    monitor = machine.monitor()
    monitor.read()
    machine.net(2_000, 0)
    machine.clock.now += 1
    assert monitor.read().readings["network.received_bytes_per_s"] == 2_000


def test_counters_that_begin_anew_are_no_negative_traffic(machine):
    machine.disk(100, 100)
    monitor = machine.monitor()
    monitor.read()
    machine.disk(0, 0)
    machine.clock.now += 1
    snapshot = monitor.read()
    assert snapshot.readings["disk.read_bytes_per_s"] is None
    assert snapshot.missing["disk.read_bytes_per_s"] == "The counters were reset."


def test_our_own_share_is_of_our_processes_and_of_this_beat_only(machine):
    processes = {42: ""}
    machine.process(42, ticks=500, pages=100)
    machine.process(43, ticks=90_000, pages=200)
    monitor = machine.monitor(processes=processes)
    monitor.read()
    processes[43] = "run"  # it worked before it was first seen
    machine.process(42, ticks=550, pages=100)
    machine.clock.now += 1
    assert machine.monitor(processes={99: ""}).read().missing["own.memory_bytes"].startswith("None of Isoflop's")
    readings = monitor.read().readings
    hertz, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert readings["own.cpu_percent"] == pytest.approx(100 * 50 / hertz)
    assert readings["own.memory_bytes"] == 300 * page


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("proc/loadavg", ["cpu.load_1min"]),
        ("proc/diskstats", ["disk.read_bytes_per_s", "disk.write_bytes_per_s"]),
        ("proc/net/dev", ["network.received_bytes_per_s", "network.sent_bytes_per_s"]),
        ("proc/pressure/io", ["pressure.io_percent"]),
        ("proc/cpuinfo", ["cpu.frequency_hz"]),
    ],
)
@pytest.mark.parametrize("how", ["gone", "garbage"])
def test_one_reading_that_fails_takes_no_other_along(machine, path, names, how):
    if how == "gone":
        (machine.root / path).unlink()
    else:
        machine.write(path, "\x00what\nis : this\n\xff")
    snapshot = machine.second(machine.monitor(FakeGpu()))
    always = {"cpu.power_w"} | {name for name in snapshot.missing if name.startswith(("core", "cpu.bus", "own", "gpu"))}
    assert set(snapshot.missing) - always == set(names)
    assert all(snapshot.missing[name].endswith(".") and len(snapshot.missing[name]) < 120 for name in names)
    assert snapshot.readings["memory.used_bytes"] == 600 * 1024
    assert snapshot.readings["gpu0.power_w"] == 250.0


def test_rapl_is_read_where_it_may_be_and_else_says_why(machine):
    assert "RAPL is not readable" in machine.monitor().read().missing["cpu.power_w"]
    package = machine.root / "sys/class/powercap/intel-rapl:0"
    machine.write("sys/class/powercap/intel-rapl:0/name", "package-0\n")
    machine.write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "1000000000\n")
    machine.write("sys/class/powercap/intel-rapl:0/energy_uj", "0\n")
    monitor = machine.monitor()
    monitor.read()
    (package / "energy_uj").write_text("30000000\n")
    machine.clock.now += 2
    assert monitor.read().readings["cpu.power_w"] == pytest.approx(15)


def test_each_column_has_a_title_a_unit_and_its_method(machine):
    columns = machine.monitor(FakeGpu(gpm=GPM), FakeGpu()).columns
    assert len(set(columns)) == len(columns)
    assert {metric_of(column) for column in columns} == set(METRICS)
    assert all(metric.title and metric.how for metric in METRICS.values())


def test_this_very_machine_can_be_read():
    monitor = Monitor()
    monitor.read()
    time.sleep(0.05)
    snapshot = monitor.read()
    assert set(snapshot.readings) == set(monitor.columns)
    assert all((snapshot.readings[name] is None) == (name in snapshot.missing) for name in monitor.columns)
    assert snapshot.readings["memory.used_bytes"] > 1e6
    assert snapshot.readings["own.memory_bytes"] > 1e6
    monitor.close()


# --- GPUs -----------------------------------------------------------------------------------------------------------


def test_without_a_driver_there_are_no_gpu_columns_and_one_reason(machine):
    monitor = machine.monitor()
    assert not any(column.startswith("gpu") for column in monitor.columns)
    assert "No NVIDIA driver on this machine" in monitor.read().missing["gpu"]


def test_a_gpu_with_profiling_counters_tells_all(machine):
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


def test_an_older_gpu_says_that_it_has_no_such_counters_and_tells_its_traffic_otherwise(machine):
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


FUNCTIONS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_percent"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_j"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetClockInfo": {"sm_clock_hz", "memory_clock_hz"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"throttle_bits"},
    "nvmlGpmSampleGet": {f"{name}" for name in gpus._GPM},
}


NOTHING_ANSWERS = (*FUNCTIONS, "nvmlDeviceGetPcieThroughput", "nvmlDeviceGetFieldValues")


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


def test_the_older_name_of_the_throttle_reasons_does_as_well(machine):
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


def test_a_driver_that_hangs_at_its_start_is_said(machine):
    nvml = Stuck("nvmlInit")
    monitor = machine.monitor(nvml=Watched(nvml, init_s=0.1, call_s=0.1))
    assert monitor.read().missing["gpu"] == "The NVIDIA driver does not answer: Timeout."
    nvml.let_go.set()


def test_sixteen_gpus_and_a_slice_of_one_are_told_by_their_names(machine):
    sixteen = [FakeGpu(uuid=f"GPU-{n}", gpm=GPM) for n in range(15)] + [FakeGpu(name="NVIDIA H200 MIG 1g.18gb\x1b[2J")]
    monitor = machine.monitor(*sixteen)
    assert len(monitor.gpu_names) == 16
    assert monitor.gpu_names[-1] == "NVIDIA H200 MIG 1g.18gb\\x1b[2J"
    assert machine.second(monitor).readings["gpu15.power_w"] == 250.0


def test_all_gpus_are_watched_whatever_this_process_may_see(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(machine.monitor(FakeGpu(), FakeGpu(uuid="GPU-b")).gpu_names) == 2


def test_of_other_peoples_processes_only_their_memory_is_told(machine):
    gpu = FakeGpu(processes=((1, 5 << 30), (77, 1 << 30), (78, None), (42, 1 << 20)))
    snapshot = machine.monitor(gpu, processes={42: "", 77: "abc"}).read()
    assert [(p.run_id, p.memory_bytes) for p in snapshot.processes] == [
        ("abc", 1 << 30), ("", 1 << 20), (None, 5 << 30), (None, None),
    ]  # fmt: skip


def test_in_a_container_nobody_is_called_another_until_one_of_ours_is_named(machine):
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


# --- kept by the supervisor -----------------------------------------------------------------------------------------


@pytest.fixture
def recording(store, machine):
    """A recorder whose beats a test makes, and a reader of what it keeps."""

    def make(monitor):
        recorder = Recorder(store.root, clock=machine.clock)

        def beats(number=1):
            for _ in range(number):
                machine.clock.now += 0.25
                recorder.beat(monitor)
            return Reader(store.root).read()

        return recorder, beats

    return make


def test_readings_are_kept_with_the_reasons_of_missing_ones(recording, machine):
    _, beats = recording(machine.monitor(FakeGpu()))
    found = beats(8)
    assert found.newest == 8
    assert found.rows[-1, 1 + found.columns.index("gpu0.power_w")] == 250
    assert found.gpus == ("NVIDIA H200",)
    missing = {name: why for why, names in found.notes["missing"].items() for name in names}
    assert "RAPL" in missing["cpu.power_w"]


def test_a_gpu_that_comes_back_gets_its_columns_and_the_history_stays(recording, machine):
    monitor = machine.monitor()
    _, beats = recording(monitor)
    before = beats(4)
    monitor._nvml.init_error, monitor._nvml.gpus = None, (FakeGpu(),)
    machine.clock.now += 61
    after = beats(4)
    assert after.id != before.id
    rows = after.rows
    power = rows[:, 1 + after.columns.index("gpu0.power_w")]
    memory = rows[:, 1 + after.columns.index("memory.used_bytes")]
    assert (power[-1], memory[0]) == (250, 600 * 1024)
    assert after.newest >= 7


def test_a_gpu_that_is_lost_is_a_gap_with_its_reason(recording, machine):
    gpu = FakeGpu()
    _, beats = recording(machine.monitor(gpu, FakeGpu(uuid="GPU-b")))
    beats(4)
    gpu.errors = dict.fromkeys(NOTHING_ANSWERS, pynvml.NVML_ERROR_GPU_IS_LOST)
    found = beats(8)
    columns, row = found.columns, found.rows[-1].tolist()
    assert row[1 + columns.index("gpu0.power_w")] != row[1 + columns.index("gpu0.power_w")]  # NaN
    assert row[1 + columns.index("gpu1.power_w")] == 250
    assert any("lost" in why.lower() for why in found.notes["missing"])


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


def test_a_driver_that_stops_to_answer_leaves_the_columns_with_its_reason(recording, machine):
    monitor = machine.monitor(FakeGpu())
    _, beats = recording(monitor)
    before = beats(4)
    monitor._nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    monitor._nvml.gpus[0].errors = dict.fromkeys(NOTHING_ANSWERS, pynvml.NVML_ERROR_GPU_IS_LOST)
    machine.clock.now += 61
    after = beats(8)
    assert after.id == before.id
    said = {name: why for why, names in after.notes["missing"].items() for name in names}
    assert "The NVIDIA driver does not answer" in said["gpu0.power_w"]
    monitor._nvml.init_error = None
    monitor._nvml.gpus[0].errors = {}
    machine.clock.now += 61
    assert beats(4).rows[-1, 1 + after.columns.index("gpu0.power_w")] == 250


def test_gpus_nobody_looks_at_are_let_go_of_and_read_again_at_the_next_look(recording, machine, store):
    monitor = machine.monitor(FakeGpu())
    _, beats = recording(monitor)
    beats(4)
    machine.clock.now += history.REST_AFTER_S
    found = beats(4)
    assert (monitor._nvml.open, monitor._nvml.gpus[0].calls["nvmlDeviceGetPowerUsage"]) == (0, 4)
    power = found.columns.index("gpu0.power_w")
    rows = found.rows
    assert np.isfinite(rows[:, 1 + power]).tolist() == [True] * 4 + [False] * 4
    assert np.isfinite(rows[-1, 1 + found.columns.index("memory.used_bytes")])
    machine.clock.now += 1
    notes = beats(1).notes
    assert "gpu0.power_w" in notes["missing"][history.RESTING]
    assert [end for _, end in notes["rests"]] == [None]
    history.look(store.root)
    machine.clock.now += 1
    after = beats(2)
    ((begin, end),) = after.notes["rests"]
    assert (after.id, np.isfinite(after.rows[-1, 1 + power]), end > begin) == (found.id, True, True)


def test_gpus_are_read_while_a_run_uses_one_and_by_a_run_on_a_cpu_they_may_sleep(recording, machine, store):
    runs = {
        device: make_run(store, with_overrides(RunConfig(), [f"device={device}"]), num_steps=20)
        for device in ("cpu", "cuda:0")
    }
    monitor = machine.monitor(FakeGpu())
    kept, beats = recording(monitor)
    kept.look_at([runs["cuda:0"]], time.time())
    for _ in range(3):
        machine.clock.now += history.REST_AFTER_S
        beats()
    assert monitor._nvml.open == 1
    kept.look_at([runs["cpu"]], time.time())
    machine.clock.now += history.REST_AFTER_S
    beats()
    assert monitor._nvml.open == 0


def test_a_look_costs_one_touch_in_some_seconds_and_nothing_where_the_store_is_gone(store, tmp_path):
    history.look(store.root)
    (store.root / history.LOOKED).unlink()
    history.look(store.root)
    assert not (store.root / history.LOOKED).exists()
    history.look(tmp_path / "nowhere")


def test_runs_are_spans_with_their_names_and_an_end(recording, machine, store):
    recorder, beats = recording(machine.monitor())
    run = make_run(store, name="<b>mine</b>")
    alive = SimpleNamespace(
        run_id=run.run_id,
        starting=SimpleNamespace(pid=77, at=1.0),
        started=None,
        name=run.name,
        config=run.config,
        last_word=None,
    )
    recorder.look_at([alive], now=10.0)
    assert recorder.processes == {77: run.run_id, os.getpid(): ""}
    assert recorder.spans == (Span(run.run_id, "<b>mine</b>", 1.0, None),)
    alive.last_word = SimpleNamespace(at=12.0)
    recorder.look_at([], now=13.0)
    assert recorder.spans == (Span(run.run_id, "<b>mine</b>", 1.0, 12.0),)
    assert beats(8).notes["spans"] == [{"run_id": run.run_id, "words": "<b>mine</b>", "begin": 1.0, "end": 12.0}]


def test_the_next_supervisor_keeps_readings_and_runs_of_the_last_one(recording, machine, store):
    recorder, beats = recording(machine.monitor())
    recorder.spans = (Span("a" * 16, "one", 90.0, None),)
    beats(8)
    _, again = recording(machine.monitor())
    found = again(8)
    assert found.newest == 16
    assert found.notes["spans"][0]["end"] == pytest.approx(102.0)  # it went on at least until the last reading


def test_a_full_disk_stops_the_readings_with_a_word_in_the_log_and_they_begin_again(
    recording, machine, store, monkeypatch, caplog
):
    recorder, beats = recording(machine.monitor())
    monkeypatch.setattr(disk_space, "is_short", lambda _: True)
    machine.clock.now += 1
    recorder.beat(machine.monitor())
    recorder.beat(machine.monitor())
    assert not (store.root / CURRENT).exists()
    assert [record.message for record in caplog.records] == [
        f"readings are not kept for the page Hardware: [Errno {errno.ENOSPC}] the store's disk is nearly full"
    ]
    monkeypatch.undo()
    machine.clock.now += 31
    assert beats(2).newest == 2


def test_a_write_that_fails_is_tried_again_later_and_what_was_kept_stays(recording, machine, store, monkeypatch):
    _, beats = recording(machine.monitor())
    beats(3)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("engine.hardware.readings_log.os.write", full)
        beats(5)
    assert Reader(store.root).read().newest == 3
    machine.clock.now += 31
    assert beats(2).newest == 5


def test_a_log_that_was_deleted_is_made_again(recording, machine, store):
    _, beats = recording(machine.monitor())
    beats(3)
    (store.root / CURRENT).unlink()
    assert beats(3).newest == 3


@pytest.mark.parametrize("asked", [0.25, 1, "2", 10.0])
def test_an_interval_within_bounds_is_taken(asked):
    assert parse_interval(asked) == float(asked)


@pytest.mark.parametrize("asked", [0, 0.1, -1, 11, 1e9, "nan", "inf", "", None, "1s", [1], 1e-300])
def test_an_absurd_interval_is_refused_in_a_sentence(asked):
    with pytest.raises(ConfigError, match=r"is not between 0\.25 and 10"):
        parse_interval(asked)


@pytest.mark.parametrize("content", ["", "{}", '{"interval_s": 0.0001}', '{"interval_s": NaN}', "[" * 3000, '{"x": 1}'])
def test_a_settings_file_that_is_not_in_order_is_the_same_as_none(store, content):
    (store.root / "monitor.json").write_text(content)
    assert load_settings(store.root).interval_s == 0.25


def test_a_bug_ends_the_thread_with_a_traceback_and_nothing_else(store, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    def broken(_):
        raise ZeroDivisionError("a bug")

    recorder = Recorder(store.root, open_monitor=broken)
    recorder.start()
    recorder._thread.join(10)
    recorder.stop()
    assert raised == [ZeroDivisionError]


def test_another_interval_counts_from_now_on(store, machine):
    recorder = Recorder(store.root, open_monitor=lambda processes: machine.monitor(wall=time.time))
    recorder.start()
    until = time.monotonic() + 30
    while not (store.root / CURRENT).exists() and time.monotonic() < until:
        time.sleep(0.02)
    recorder.set_interval(10.0)
    assert load_settings(store.root).interval_s == 10.0
    assert Recorder(store.root).interval_s == 10.0
    time.sleep(0.3)
    before = Reader(store.root).read().newest
    time.sleep(0.6)
    assert Reader(store.root).read().newest == before
    recorder.stop()
    assert not recorder._thread.is_alive()


# --- with a real supervisor -----------------------------------------------------------------------------------------


def readings_of(supervised):
    """Reads the log of a supervisor that has begun to write it."""
    reader = Reader(supervised.store.root)
    supervised.wait(lambda: (supervised.store.root / CURRENT).exists() and reader.read().newest > 2, "readings")
    return reader.read


def test_a_supervisor_keeps_the_readings_and_knows_its_runs(supervised):
    read = readings_of(supervised)
    run = supervised.running()
    supervised.wait(lambda: any(s["run_id"] == run.run_id for s in read().notes["spans"]), "its span")
    supervised.client.cancel(run.run_id)
    supervised.until(run.run_id, "cancelled")
    supervised.wait(lambda: all(s["end"] for s in read().notes["spans"] if s["run_id"] == run.run_id), "its end")
    found = read()
    assert found.rows[:, 1 + found.columns.index("own.cpu_percent")].max() > 20


def test_somebody_sets_the_interval_through_the_supervisor(supervised):
    readings_of(supervised)
    supervised.client.set_monitor_interval(1)
    supervised.wait(lambda: load_settings(supervised.store.root).interval_s == 1.0, "the interval")
    supervised.client.set_monitor_interval(0.25)
    supervised.wait(lambda: load_settings(supervised.store.root).interval_s == 0.25, "the interval")
    with pytest.raises(ConfigError):
        supervised.client.set_monitor_interval(0.001)


@pytest.mark.parametrize("default", ["viewer", "runner"])
def test_only_an_admin_chooses_the_interval(store, default):
    path = store.root / settings.FILE
    path.write_text(f'[sign_in]\nmethod = "oidc"\nallowed = ["a@b.c"]\n[roles]\ndefault = "{default}"\n')
    path.chmod(0o600)
    with pytest.raises(AccessError, match="for an admin to choose"):
        Client(store, Actor("oidc", "a@b.c")).set_monitor_interval(1)


# --- from a terminal ------------------------------------------------------------------------------------------------


def test_the_command_tells_one_snapshot(engine):
    out, _ = engine("hardware").communicate(timeout=120)
    assert "Memory used" in out
    assert "No NVIDIA driver" in out
    out, _ = engine("hardware", "--json").communicate(timeout=120)
    said = json.loads(out.splitlines()[-1])
    assert said["readings"]["memory.used_bytes"] > 1e6
    assert set(said["missing"]) >= {name for name, value in said["readings"].items() if value is None}
    assert {"cpu", "gpus", "memory_bytes"} <= said.keys()


def test_a_gpu_is_told_in_words_in_a_terminal(machine, capsys):
    snapshot = machine.second(machine.monitor(FakeGpu(gpm=GPM, throttle=0x4), FakeGpu(uuid="GPU-b")))
    print_snapshot(snapshot)
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert " GPU 0: Held back by the power limit\n" in text
    assert " GPU 0: SMs active 42 %\n" in text
    assert "GPU 1: SMs active, GPU 1: Tensor cores active, GPU 1: Memory bandwidth: NVML can read no" in text
    assert monitor_line(snapshot).endswith("GPU 0 87 %  250.0 W  1.00 GiB  51 °C  GPU 1 87 %  250.0 W  1.00 GiB  51 °C")


def test_watching_goes_on_until_ctrl_c(engine):
    process = engine("hardware", "--watch", "--interval", "0.25")
    lines = (line for line in process.stdout if re.match(r"\d\d:\d\d:\d\d  CPU \d+ %  memory ", line))
    assert next(lines) and next(lines)  # they may say the same
    process.send_signal(2)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_an_absurd_rate_is_refused_from_the_terminal_too(engine):
    process = engine("hardware", "--watch", "--interval", "0.0001")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "is not between" in err) == (2, True)
