"""The readings of CPU, memory, disks and network: each is right, or None with its reason."""

from __future__ import annotations

import os
import time

import pytest

from engine.hardware.monitor import METRICS, Monitor, metric_of
from tests.fake_nvml import FakeGpu
from tests.hardware.fake_machine import GPM, STAT


def test_cores_memory_load_frequency_and_pressure_match_the_kernel_files(machine):
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


def test_reset_counters_give_no_negative_traffic(machine):
    machine.disk(100, 100)
    monitor = machine.monitor()
    monitor.read()
    machine.disk(0, 0)
    machine.clock.now += 1
    snapshot = monitor.read()
    assert snapshot.readings["disk.read_bytes_per_s"] is None
    assert snapshot.missing["disk.read_bytes_per_s"] == "The counters were reset."


def test_our_own_cpu_counts_our_processes_in_this_beat_only(machine):
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
def test_a_failing_reading_does_not_affect_the_others(machine, path, names, how):
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


def test_rapl_is_read_where_permitted_and_otherwise_has_a_reason(machine):
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
