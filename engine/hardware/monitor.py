"""The state of the whole machine at one moment: CPU, memory, disk, network, GPUs, and Isoflop's share of it.

A source reads a few quantities at once. Each source fails alone: its readings become None with a reason. Only the GPU
memory of other users' processes is read, nothing else about them.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
import pynvml

from engine.common.sanitize import visible
from engine.hardware import gpus, host
from engine.hardware.gpus import GpuProcess
from engine.hardware.nvml import NVML, open_every_gpu
from engine.hardware.process_usage import OwnUsage
from engine.hardware.rates import Cached, Read, Reading, Sources, Unavailable, Values, unavailable
from engine.system.processes import has_own_pids

LONGEST_REASON = 200

METRICS: dict[str, Reading] = {
    "cpu.busy_percent": Reading(
        "CPU, all cores", "%", "busy time of all cores since the last reading, all programs; /proc/stat"
    ),
    "cpu.busiest_percent": Reading("Busiest core", "%", "the largest reading of any core"),
    "core.busy_percent": Reading(
        "Core", "%", "busy time of one core since the last reading; in clock ticks of 10 ms, 4 % of a quarter second"
    ),
    "cpu.frequency_hz": Reading(
        "CPU frequency",
        "Hz",
        "mean of the cores, from cpufreq or /proc/cpuinfo, once a second; a virtual machine often shows its nominal one",
    ),
    "cpu.load_1min": Reading(
        "Load average", "", "kernel: number of programs that run or wait for a core or a disk, averaged over 1 min"
    ),
    "cpu.power_w": Reading(
        "CPU power", "W", "RAPL: mean power of the CPU packages since the last reading; memory is not included"
    ),
    "memory.used_bytes": Reading(
        "Memory used", "bytes", "MemTotal minus MemAvailable: the page cache does not count as used"
    ),
    "memory.available_bytes": Reading(
        "Memory available", "bytes", "kernel: memory that programs can still get without swapping"
    ),
    "memory.swap_used_bytes": Reading("Swap used", "bytes", "SwapTotal minus SwapFree"),
    "pressure.cpu_percent": Reading(
        "Waiting for a core", "%", "kernel (PSI): share of the last 10 s in which some program waited for a core"
    ),
    "pressure.memory_percent": Reading(
        "Waiting for memory", "%", "kernel (PSI): share of the last 10 s in which some program waited for memory"
    ),
    "pressure.io_percent": Reading(
        "Waiting for a disk", "%", "kernel (PSI): share of the last 10 s in which some program waited for a disk"
    ),
    "disk.read_bytes_per_s": Reading(
        "Disk reads", "bytes/s", "all physical disks since the last reading; /proc/diskstats"
    ),
    "disk.write_bytes_per_s": Reading(
        "Disk writes", "bytes/s", "all physical disks since the last reading; /proc/diskstats"
    ),
    "network.received_bytes_per_s": Reading(
        "Received", "bytes/s", "all interfaces except those within the machine, since the last reading"
    ),
    "network.sent_bytes_per_s": Reading(
        "Sent", "bytes/s", "all interfaces except those within the machine, since the last reading"
    ),
    "own.cpu_percent": Reading(
        "Isoflop's CPU",
        "%",
        "CPU time of the supervisor and the runs' processes since the last reading, without processes that they "
        "start; 100 is one core",
    ),
    "own.memory_bytes": Reading(
        "Isoflop's memory",
        "bytes",
        "resident memory of the supervisor and the runs' processes; shared memory counts in each",
    ),
    "gpu.utilization_percent": Reading(
        "Utilization", "%", "NVML: share of its last 1/6 to 1 s in which any kernel ran, however small"
    ),
    "gpu.sm_active_percent": Reading(
        "SMs active", "%", "NVML GPM: mean share of the multiprocessors that had work, since the last reading"
    ),
    "gpu.tensor_active_percent": Reading(
        "Tensor cores active",
        "%",
        "NVML GPM: share of the time in which the SMs did tensor operations, since the last reading",
    ),
    "gpu.memory_bandwidth_percent": Reading(
        "Memory bandwidth",
        "%",
        "NVML GPM: share of the device memory's peak bandwidth that was used, since the last reading",
    ),
    "gpu.memory_used_bytes": Reading("GPU memory used", "bytes", "NVML: the whole device, all programs"),
    "gpu.memory_total_bytes": Reading("GPU memory", "bytes", "NVML: the whole device"),
    "gpu.power_w": Reading("Power", "W", "NVML: the whole board; some models report an average over 1 s"),
    "gpu.power_limit_w": Reading("Power limit", "W", "NVML: the power limit that applies now"),
    "gpu.energy_j": Reading(
        "Energy", "J", "NVML: the board's counter since the driver was loaded; updated about every 0.1 s"
    ),
    "gpu.temperature_c": Reading("Temperature", "°C", "NVML: sensor on the chip"),
    "gpu.sm_clock_hz": Reading("SM clock", "Hz", "NVML: the present clock of the multiprocessors"),
    "gpu.memory_clock_hz": Reading("Memory clock", "Hz", "NVML: the present clock of the device memory"),
    "gpu.throttle_bits": Reading(
        "Clock limited by", "", "NVML: the reasons why the clocks are not higher at this moment"
    ),
    "gpu.pcie_sent_bytes_per_s": Reading("PCIe sent", "bytes/s", gpus.HOW_PCIE),
    "gpu.pcie_received_bytes_per_s": Reading("PCIe received", "bytes/s", gpus.HOW_PCIE),
    "gpu.nvlink_sent_bytes_per_s": Reading("NVLink sent", "bytes/s", gpus.HOW_NVLINK),
    "gpu.nvlink_received_bytes_per_s": Reading("NVLink received", "bytes/s", gpus.HOW_NVLINK),
}


def metric_of(column: str) -> str:
    """The key in METRICS of a column: that of core3.busy_percent is core.busy_percent."""
    return re.sub(r"^(core|gpu)\d+\.", r"\1.", column)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All readings of one moment. `missing` has the reason of each reading that is None."""

    at: float  # Unix time
    readings: dict[str, float | None]
    missing: dict[str, str]
    processes: tuple[GpuProcess, ...] = ()


class Monitor:
    """Opens every source once and reads them all on request. Use it from one thread.

    `processes` returns Isoflop's processes: pid -> run id, "" for a process that is not a run's.
    """

    def __init__(
        self,
        processes: Callable[[], Mapping[int, str]] = lambda: {os.getpid(): ""},
        *,
        nvml: Any = NVML,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._processes, self._nvml, self._clock, self._wall = processes, nvml, clock, wall
        self._stack = contextlib.ExitStack()
        self._sources: Sources = host.sources(root, clock, self._stack) | {
            ("own.cpu_percent", "own.memory_bytes"): OwnUsage(root, clock, processes)
        }
        self._gpu_stack = contextlib.ExitStack()
        self._gpu_sources: Sources = {}
        self.gpu_names: tuple[str, ...] = ()
        self.gpu_reason: str | None = None
        self._handles: tuple[Any, ...] = ()
        own_pids = has_own_pids(root / "proc")
        self._held = Cached(
            lambda: gpus.processes(self._handles, nvml, processes(), own_pids=own_pids), clock, host.SLOW_S
        )
        self.open_gpus()

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all readings, which stay the same until `open_gpus` finds other GPUs."""
        return tuple(name for names in [*self._sources, *self._gpu_sources] for name in names)

    def open_gpus(self) -> None:
        """Ask the driver for its GPUs. Call it again to find a GPU that came back.

        A GPU that no longer answers keeps its columns, each with the reason.
        """
        self._gpu_stack.close()
        self._handles, self.gpu_reason = self._gpu_stack.enter_context(open_every_gpu(self._nvml))
        before, self._gpu_sources = self._gpu_sources, {}
        if not self._handles:
            self._gpu_sources = {names: unavailable(self.gpu_reason or "") for names in before}
            return
        names = tuple(gpus.name_of(self._nvml, handle) for handle in self._handles)
        self.gpu_names = tuple(
            name or old or "NVIDIA GPU" for name, old in zip_longest(names, self.gpu_names[: len(names)])
        )
        for index, handle in enumerate(self._handles):
            if isinstance(handle, pynvml.NVMLError):
                own = [columns for columns in before if columns[0].startswith(f"gpu{index}.")]
                self._gpu_sources |= dict.fromkeys(own or [gpu_columns(index)], unavailable(gpus.in_words(handle)))
                continue
            self._gpu_sources |= gpus.sources(
                index, handle, self._nvml, self._clock, self._gpu_stack, len(self._handles)
            )

    def rest_gpus(self, reason: str) -> None:
        """Close the driver, so that an unused GPU can sleep. `open_gpus` opens it again."""
        self._gpu_stack.close()
        self._handles = ()
        self._gpu_sources = {names: unavailable(reason) for names in self._gpu_sources}

    def read(self) -> Snapshot:
        """Read everything once. Rates and shares count from the call before."""
        readings: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for names, read in [*self._sources.items(), *self._gpu_sources.items()]:
            found = _read(names, read)
            for name in names:
                value = found.get(name, Unavailable("Not reported."))
                readings[name] = None if isinstance(value, Unavailable) else value
                if isinstance(value, Unavailable):
                    missing[name] = visible(str(value), LONGEST_REASON)
        processes, unknown = self._held()
        if self.gpu_reason and not self._gpu_sources:
            unknown["gpu"] = visible(self.gpu_reason, LONGEST_REASON)
        return Snapshot(self._wall(), readings, missing | unknown, processes)

    def has_lost_a_gpu(self, snapshot: Snapshot) -> bool:
        """Whether there is no driver, or one of the GPUs has no reading left."""
        lost = [
            all(value is None for name, value in snapshot.readings.items() if name.startswith(f"gpu{index}."))
            for index in range(len(self._handles))
        ]
        return not lost or any(lost)

    def close(self) -> None:
        """Close the files and the driver."""
        self._gpu_stack.close()
        self._stack.close()


def gpu_columns(index: int) -> tuple[str, ...]:
    """The names of all readings that a GPU can have."""
    return tuple(name.replace("gpu.", f"gpu{index}.") for name in METRICS if name.startswith("gpu."))


def _read(names: tuple[str, ...], read: Read) -> Values:
    try:
        return read()
    except Unavailable as error:
        reason = error
    except OSError as error:
        reason = Unavailable(f"Not readable here: {(error.strerror or type(error).__name__).lower()}.")
    except pynvml.NVMLError as error:
        reason = Unavailable(gpus.in_words(error))
    except psutil.Error as error:
        reason = Unavailable(f"{str(error).rstrip('.') or type(error).__name__}.")
    except (ValueError, IndexError, KeyError) as error:  # a kernel that writes the file in another format
        reason = Unavailable(f"The kernel's figure has an unknown format: {type(error).__name__}.")
    return dict.fromkeys(names, reason)
