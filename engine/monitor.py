"""What the whole machine does at this moment: CPU, memory, disk, network, GPUs, and our own share of it.

A source reads a few quantities at once. Each fails alone: its readings become None with their reason, and the others stand.
Nothing here tells who else uses the machine: of other people's processes only the GPU memory they hold is read.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil
import pynvml

from engine import gpus, hardware
from engine.gpus import GpuProcess
from engine.nvml import NVML
from engine.processes import has_own_pids
from engine.readers import FIRST, Held, Rates, Read, Sources, Values
from engine.sampler import Reading, Unavailable, energy_between, rapl_counters
from engine.text import visible

LONGEST_REASON = 200
SLOW_S, _RARELY_S = 1.0, 10.0  # what costs more than some microseconds to read is read as often as this
_SECTOR_BYTES = 512  # of /proc/diskstats, whatever the disk's own are (kernel: Documentation/admin-guide/iostats.rst)
_READ_BYTES = 2**17
_NOT_A_DISK = re.compile(r"loop|ram|zram|dm-|md|sr|fd")  # in memory, or made of others, which would count twice
_NOT_OUTSIDE = re.compile(r"lo$|ifb|dummy|veth|docker|br-|virbr|tun|tap")

METRICS: dict[str, Reading] = {
    "cpu.busy_percent": Reading(
        "CPU, all cores", "%", "busy time of all cores over the beat, all programs; /proc/stat"
    ),
    "cpu.busiest_percent": Reading("Busiest core", "%", "the largest of the cores' readings of the beat"),
    "core.busy_percent": Reading(
        "Core", "%", "busy time of one core over the beat; in clock ticks of 10 ms, 4 % of a quarter second"
    ),
    "cpu.frequency_hz": Reading(
        "CPU frequency",
        "Hz",
        "mean of the cores, from cpufreq or /proc/cpuinfo, once a second; a virtual machine often shows its nominal one",
    ),
    "cpu.load_1min": Reading(
        "Load average", "", "kernel: programs that run or wait for a core or a disk, averaged over 1 min"
    ),
    "cpu.power_w": Reading(
        "CPU power", "W", "RAPL energy counters of the CPU packages over the beat; memory not included"
    ),
    "memory.used_bytes": Reading(
        "Memory used", "bytes", "MemTotal less MemAvailable: the page cache is not used memory"
    ),
    "memory.available_bytes": Reading(
        "Memory available", "bytes", "kernel: what programs can still have without swapping"
    ),
    "memory.swap_used_bytes": Reading("Swap used", "bytes", "SwapTotal less SwapFree"),
    "pressure.cpu_percent": Reading(
        "Waiting for a core", "%", "kernel (PSI): share of the last 10 s in which some program waited for a core"
    ),
    "pressure.memory_percent": Reading(
        "Waiting for memory", "%", "kernel (PSI): share of the last 10 s in which some program waited for memory"
    ),
    "pressure.io_percent": Reading(
        "Waiting for a disk", "%", "kernel (PSI): share of the last 10 s in which some program waited for a disk"
    ),
    "disk.read_bytes_per_s": Reading("Disk reads", "bytes/s", "all physical disks over the beat; /proc/diskstats"),
    "disk.write_bytes_per_s": Reading("Disk writes", "bytes/s", "all physical disks over the beat; /proc/diskstats"),
    "network.received_bytes_per_s": Reading(
        "Received", "bytes/s", "all interfaces but those within the machine, over the beat"
    ),
    "network.sent_bytes_per_s": Reading(
        "Sent", "bytes/s", "all interfaces but those within the machine, over the beat"
    ),
    "own.cpu_percent": Reading(
        "Isoflop's CPU",
        "%",
        "CPU time of the supervisor and the runs' processes over the beat, without helpers they start; 100 is one core",
    ),
    "own.memory_bytes": Reading(
        "Isoflop's memory",
        "bytes",
        "resident memory of the supervisor and the runs' processes; what they share counts in each",
    ),
    "gpu.utilization_percent": Reading(
        "Utilization", "%", "NVML: share of its last 1/6 to 1 s in which any kernel ran, however small"
    ),
    "gpu.sm_active_percent": Reading(
        "SMs active", "%", "NVML GPM: mean share of the multiprocessors that had work, over the beat"
    ),
    "gpu.tensor_active_percent": Reading(
        "Tensor cores active", "%", "NVML GPM: share of the time in which the SMs did tensor operations, over the beat"
    ),
    "gpu.memory_bandwidth_percent": Reading(
        "Memory bandwidth", "%", "NVML GPM: of what the device memory can do at most, over the beat"
    ),
    "gpu.memory_used_bytes": Reading("GPU memory used", "bytes", "NVML: the whole device, all programs"),
    "gpu.memory_total_bytes": Reading("GPU memory", "bytes", "NVML: the whole device"),
    "gpu.power_w": Reading("Power", "W", "NVML: the whole board; some models report an average over 1 s"),
    "gpu.power_limit_w": Reading("Power limit", "W", "NVML: the limit that is enforced now"),
    "gpu.energy_j": Reading(
        "Energy", "J", "NVML: the board's counter since the driver was loaded; moves about every 0.1 s"
    ),
    "gpu.temperature_c": Reading("Temperature", "°C", "NVML: sensor on the chip"),
    "gpu.sm_clock_hz": Reading("SM clock", "Hz", "NVML: the clock of the multiprocessors now"),
    "gpu.memory_clock_hz": Reading("Memory clock", "Hz", "NVML: the clock of the device memory now"),
    "gpu.throttle_bits": Reading("Held back by", "", "NVML: why the clocks are not higher at this moment"),
    "gpu.pcie_sent_bytes_per_s": Reading("PCIe sent", "bytes/s", gpus.HOW_PCIE),
    "gpu.pcie_received_bytes_per_s": Reading("PCIe received", "bytes/s", gpus.HOW_PCIE),
    "gpu.nvlink_sent_bytes_per_s": Reading("NVLink sent", "bytes/s", gpus.HOW_NVLINK),
    "gpu.nvlink_received_bytes_per_s": Reading("NVLink received", "bytes/s", gpus.HOW_NVLINK),
}


def metric_of(column: str) -> str:
    """The key in METRICS of a column: core3.busy_percent is a core.busy_percent."""
    return re.sub(r"^(core|gpu)\d+\.", r"\1.", column)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All readings of one moment, None where there is none, then with its reason."""

    at: float  # Unix time
    readings: dict[str, float | None]
    missing: dict[str, str]
    processes: tuple[GpuProcess, ...] = ()


class Monitor:
    """Opens every source once and reads them all on request; use it from one thread.

    `processes` says which of our own processes are at work: pid -> run id, "" for one that is no run's.
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
        self._sources: Sources = system_sources(root, clock, self._stack) | {
            ("own.cpu_percent", "own.memory_bytes"): Own(root, clock, processes)
        }
        self._gpu_stack = contextlib.ExitStack()
        self._gpu_sources: Sources = {}
        self.gpu_names: tuple[str, ...] = ()
        self.gpu_reason: str | None = None
        self._handles: tuple[Any, ...] = ()
        own_pids = has_own_pids(root / "proc")
        self._held = Held(lambda: gpus.processes(self._handles, nvml, processes(), own_pids=own_pids), clock, SLOW_S)
        self.open_gpus()

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for names in [*self._sources, *self._gpu_sources] for name in names)

    def open_gpus(self) -> None:
        """Ask the driver for its GPUs, again where it was asked before: one may have come back.

        A GPU that was there and does not answer keeps its columns, each with the reason.
        """
        self._gpu_stack.close()
        self._handles, self.gpu_reason = self._gpu_stack.enter_context(hardware.open_every_gpu(self._nvml))
        before, self._gpu_sources = self._gpu_sources, {}
        if not self._handles:
            self._gpu_sources = {names: _says(self.gpu_reason or "") for names in before}
            return
        names = tuple(gpus.name_of(self._nvml, handle) for handle in self._handles)
        self.gpu_names = tuple(
            name or old or "NVIDIA GPU" for name, old in zip_longest(names, self.gpu_names[: len(names)])
        )
        for index, handle in enumerate(self._handles):
            if isinstance(handle, pynvml.NVMLError):
                own = [columns for columns in before if columns[0].startswith(f"gpu{index}.")]
                self._gpu_sources |= dict.fromkeys(own or [gpu_columns(index)], _says(gpus.in_words(handle)))
                continue
            self._gpu_sources |= gpus.sources(
                index, handle, self._nvml, self._clock, self._gpu_stack, len(self._handles)
            )

    def rest_gpus(self, reason: str) -> None:
        """Let go of the driver, so that a GPU that nobody uses may sleep; `open_gpus` wakes it."""
        self._gpu_stack.close()
        self._handles = ()
        self._gpu_sources = {names: _says(reason) for names in self._gpu_sources}

    def read(self) -> Snapshot:
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
        """Whether there is no driver, or a GPU of which nothing can be read any more."""
        lost = [
            all(value is None for name, value in snapshot.readings.items() if name.startswith(f"gpu{index}."))
            for index in range(len(self._handles))
        ]
        return not lost or any(lost)

    def close(self) -> None:
        self._gpu_stack.close()
        self._stack.close()


def gpu_columns(index: int) -> tuple[str, ...]:
    """All that a GPU may tell."""
    return tuple(name.replace("gpu.", f"gpu{index}.") for name in METRICS if name.startswith("gpu."))


def _says(reason: str) -> Read:
    def read() -> Values:
        raise Unavailable(reason)

    return read


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
    except (ValueError, IndexError, KeyError) as error:  # a kernel that writes it in another way than we know
        reason = Unavailable(f"The kernel's figure was not understood: {type(error).__name__}.")
    return dict.fromkeys(names, reason)


# --- the machine but its GPUs -------------------------------------------------------------------------------------------


def system_sources(root: Path, clock: Callable[[], float], stack: contextlib.ExitStack) -> Sources:
    """The sources below `root`, which a test replaces; `stack` closes what they hold open."""

    def file(path: str, *, in_parts: bool = False) -> Callable[[], bytes]:
        return _File(root / path, stack, in_parts=in_parts)

    cores = Cores(file("proc/stat"))
    loadavg, diskstats = file("proc/loadavg"), file("proc/diskstats", in_parts=True)
    dev = file("proc/net/dev", in_parts=True)
    disks = Held(lambda: _disks(root), clock, _RARELY_S)
    virtual = Held(lambda: _virtual(root), clock, _RARELY_S)
    disk = ("disk.read_bytes_per_s", "disk.write_bytes_per_s")
    network = ("network.received_bytes_per_s", "network.sent_bytes_per_s")
    sources: Sources = {
        cores.names: cores,
        ("cpu.frequency_hz",): Held(lambda: {"cpu.frequency_hz": frequency_hz(root)}, clock, SLOW_S),
        ("cpu.load_1min",): lambda: {"cpu.load_1min": float(loadavg().split()[0])},
        ("cpu.power_w",): CpuPower(root / "sys/class/powercap", clock),
        ("memory.used_bytes", "memory.available_bytes", "memory.swap_used_bytes"): Memory(file("proc/meminfo")),
        disk: Rates(disk, lambda: disk_bytes(diskstats(), disks()), clock),
        network: Rates(network, lambda: network_bytes(dev(), virtual()), clock),
    }
    for what in ("cpu", "memory", "io"):
        sources[(f"pressure.{what}_percent",)] = Pressure(what, file(f"proc/pressure/{what}"))
    return sources


class _File:
    """A file of /proc, read again and again through one descriptor; where it cannot be opened, each reading says so."""

    def __init__(self, path: Path, stack: contextlib.ExitStack, *, in_parts: bool) -> None:
        self._path, self._stack, self._in_parts = path, stack, in_parts
        self._fd: int | None = None

    def __call__(self) -> bytes:
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, self._fd)
        data = os.pread(self._fd, _READ_BYTES, 0)
        # A list of the kernel's comes a page at a time; what is one text comes as a whole, and a second look makes it anew.
        while self._in_parts and (part := os.pread(self._fd, _READ_BYTES, len(data))):
            data += part
        return data


class Cores:
    """Busy share of each core since the last reading, from /proc/stat; where there is none, from psutil.

    Columns are user nice system idle iowait irq softirq steal guest guest_nice (proc_stat(5)); guest time is already in
    user. Waiting for a disk is not busy.
    """

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        try:
            self._last = core_ticks(read())
            self._ticks: Callable[[], dict[int, tuple[int, int]]] = lambda: core_ticks(self._read())
        except OSError:
            self._ticks = _psutil_ticks
            self._last = self._ticks()
        self.cores = tuple(self._last)
        self.names = ("cpu.busy_percent", "cpu.busiest_percent", *(f"core{n}.busy_percent" for n in self.cores))

    def __call__(self) -> Values:
        now, last = self._ticks(), self._last
        busy = {n: _share(last.get(n), now.get(n)) for n in self.cores}
        had = [value for value in busy.values() if not isinstance(value, Unavailable)]
        if not had:
            raise Unavailable("The kernel counted no CPU time since the last reading.")
        self._last = now
        readings: dict[str, float | Unavailable] = {f"core{n}.busy_percent": value for n, value in busy.items()}
        return readings | {"cpu.busy_percent": sum(had) / len(had), "cpu.busiest_percent": max(had)}


def core_ticks(stat: bytes) -> dict[int, tuple[int, int]]:
    """Busy and all clock ticks of each core since boot."""
    ticks = {}
    for line in stat.splitlines():
        if not line.startswith(b"cpu"):  # they come first; the line of interrupts is long
            break
        name, *columns = line.split(None, 10)
        if name[3:].isdigit():
            spent = [int(column) for column in columns[:8]]
            ticks[int(name[3:])] = sum(spent) - spent[3] - spent[4], sum(spent)
    return ticks


def _psutil_ticks() -> dict[int, tuple[int, int]]:
    hundredths = [[round(100 * spent) for spent in core] for core in psutil.cpu_times(percpu=True)]
    idle = [round(100 * core.idle) for core in psutil.cpu_times(percpu=True)]
    return {n: (sum(spent) - idle[n], sum(spent)) for n, spent in enumerate(hundredths)}


def _share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | Unavailable:
    if before is None or after is None:
        return Unavailable("The core is switched off, or just came back.")
    if after[1] <= before[1]:
        return Unavailable("The kernel counted no time of this core since the last reading.")
    return min(100.0, max(0.0, 100 * (after[0] - before[0]) / (after[1] - before[1])))


def frequency_hz(root: Path) -> float:
    """Mean of the cores, by cpufreq (in kHz) or, without it, /proc/cpuinfo (in MHz)."""
    said = [_text(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    hz = [int(text) * 1e3 for text in said if text.strip().isdigit()]
    if not hz:
        hz = [
            float(mhz) * 1e6
            for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)
        ]
    if not hz:
        raise Unavailable("The kernel does not say how fast the cores run.")
    return sum(hz) / len(hz)


class Memory:
    """From /proc/meminfo, which counts in KiB; where there is none, from psutil."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read

    def __call__(self) -> Values:
        try:
            text = self._read()
        except FileNotFoundError:
            memory = psutil.virtual_memory()
            return _memory(memory.total, memory.available, psutil.swap_memory().used)
        found = {name: int(kib) * 1024 for name, kib in re.findall(rb"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
        if not {b"MemTotal", b"MemAvailable"} <= found.keys():
            raise Unavailable("The kernel does not say how much memory is available.")
        swap = found[b"SwapTotal"] - found[b"SwapFree"] if b"SwapFree" in found else None
        return _memory(found[b"MemTotal"], found[b"MemAvailable"], swap)


def _memory(total: int, available: int, swap: int | None) -> Values:
    return {
        "memory.used_bytes": float(total - available),
        "memory.available_bytes": float(available),
        "memory.swap_used_bytes": Unavailable("The kernel does not tell of swap.") if swap is None else float(swap),
    }


class Pressure:
    """`some avg10` of a file of /proc/pressure (kernel: Documentation/accounting/psi.rst)."""

    def __init__(self, what: str, read: Callable[[], bytes]) -> None:
        self._name, self._read = f"pressure.{what}_percent", read

    def __call__(self) -> Values:
        try:
            found = re.search(rb"^some avg10=([\d.]+)", self._read(), re.MULTILINE)
        except OSError:
            found = None
        if found is None:
            raise Unavailable("The kernel offers no pressure figures (PSI).")
        return {self._name: float(found[1])}


def disk_bytes(diskstats: bytes, disks: frozenset[str]) -> tuple[int, int]:
    """Bytes read and written by the disks since boot. Fields 3, 6 and 10 are name, sectors read and written."""
    fields = [line.split() for line in diskstats.decode(errors="replace").splitlines()]
    ours = [line for line in fields if len(line) >= 10 and line[2] in disks]
    if not ours:
        raise Unavailable("No physical disk is seen from here.")
    return sum(int(line[5]) for line in ours) * _SECTOR_BYTES, sum(int(line[9]) for line in ours) * _SECTOR_BYTES


def _disks(root: Path) -> frozenset[str]:
    return frozenset(name for name in _names(root / "sys/block") if not _NOT_A_DISK.match(name))


def network_bytes(dev: bytes, virtual: frozenset[str]) -> tuple[int, int]:
    """Bytes received and sent. Real interfaces where there are any; in a container the one it has is a virtual one."""
    lines = [line.partition(":") for line in dev.decode(errors="replace").splitlines()[2:]]
    outside = {name.strip(): columns for name, _, columns in lines if not _NOT_OUTSIDE.match(name.strip())}
    real = [columns for name, columns in outside.items() if name not in virtual] or list(outside.values())
    if not real:
        raise Unavailable("No network interface is seen from here.")
    counted = [columns.split() for columns in real]
    return sum(int(columns[0]) for columns in counted), sum(int(columns[8]) for columns in counted)


def _virtual(root: Path) -> frozenset[str]:
    return frozenset(_names(root / "sys/devices/virtual/net"))


class CpuPower:
    """Watts of the CPU packages since the last reading, from RAPL."""

    def __init__(self, powercap: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        try:
            self._counters = rapl_counters(powercap)
            self._reason = ""
        except Unavailable as error:
            self._counters, self._reason = [], str(error)
        self._last: tuple[float, list[float]] | None = None

    def __call__(self) -> Values:
        if self._reason:
            raise Unavailable(self._reason)
        before, now = self._last, (self._clock(), [counter.read_j() for counter in self._counters])
        self._last = now
        if before is None or now[0] <= before[0]:
            raise Unavailable(FIRST)
        return {"cpu.power_w": sum(map(energy_between, self._counters, before[1], now[1])) / (now[0] - before[0])}


class Own:
    """CPU time and memory of our own processes; one that ended since the last reading counts no more."""

    def __init__(self, root: Path, clock: Callable[[], float], processes: Callable[[], Mapping[int, str]]) -> None:
        self._proc, self._clock, self._processes = root / "proc", clock, processes
        self._last: tuple[float, dict[int, float]] | None = None

    def __call__(self) -> Values:
        if not (ours := self._processes()):
            raise Unavailable("Only the supervisor knows which processes are Isoflop's; the page Hardware shows them.")
        found = {pid: use for pid in ours if (use := _use_of(self._proc, pid)) is not None}
        if not found:
            raise Unavailable("None of Isoflop's processes is seen from here.")
        before, now = self._last, (self._clock(), {pid: cpu_s for pid, (cpu_s, _) in found.items()})
        self._last = now
        memory = float(sum(resident for _, resident in found.values()))
        if before is None or now[0] <= before[0]:
            return {"own.cpu_percent": Unavailable(FIRST), "own.memory_bytes": memory}
        # What a process used before it was first seen is not of this beat.
        used = sum(max(0.0, cpu_s - before[1].get(pid, cpu_s)) for pid, cpu_s in now[1].items())
        return {"own.cpu_percent": 100 * used / (now[0] - before[0]), "own.memory_bytes": memory}


def _use_of(proc: Path, pid: int) -> tuple[float, int] | None:
    """Seconds of CPU and resident bytes of a process; None when it is gone."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123 - at every beat
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if (proc / "self").exists() or not psutil.pid_exists(pid):
            return None
        process = psutil.Process(pid)
        times = process.cpu_times()
        return times.user + times.system, process.memory_info().rss
    # Counted from the name on, proc_pid_stat(5): utime and stime are fields 14 and 15, rss is 24, in pages.
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def _names(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(folder)  # noqa: PTH208 - read at every beat


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
