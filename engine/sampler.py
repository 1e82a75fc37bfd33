"""What the hardware does while a run trains: one HardwareSample per beat, from a thread of the worker.

Every reading fails alone: it becomes None with its reason, and neither the others nor the run suffer. A thread costs
less than a process of its own here: on two cores a separate psutil process took 8-40 % of a small model's speed, a
thread at 4 Hz nothing measurable (at 100 Hz up to 11 %).
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import re
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml

from engine import hardware
from engine.nvml import NVML
from engine.records import HardwareSample


@dataclass(frozen=True, slots=True)
class Reading:
    """One measured quantity: what a chart calls it, its unit, and how it is had."""

    title: str
    unit: str
    how: str


READINGS: dict[str, Reading] = {
    "process_cpu_percent": Reading(
        "Training process CPU",
        "%",
        "CPU time of the run's process, all threads, of several ranks all of them, over the beat; 100 is one full core",
    ),
    "system_cpu_percent": Reading(
        "System CPU",
        "%",
        "busy time of the cores this run may use, all programs, over the beat; in clock ticks of 10 ms",
    ),
    "process_memory_bytes": Reading(
        "Training process memory",
        "bytes",
        "resident memory of the run's process, of several ranks added up; includes PyTorch itself",
    ),
    "system_memory_used_bytes": Reading(
        "System memory used", "bytes", "the machine's memory less what is available to programs"
    ),
    "gpu_utilization_percent": Reading(
        "GPU utilization", "%", "NVML: share of its last 1/6 to 1 s in which any kernel ran, however small"
    ),
    "gpu_memory_used_bytes": Reading("GPU memory used", "bytes", "NVML: the whole device, all programs"),
    "gpu_power_w": Reading("GPU power", "W", "NVML: the whole board; some models report an average over 1 s"),
    "gpu_temperature_c": Reading("GPU temperature", "°C", "NVML: sensor on the chip"),
    "gpu_sm_clock_hz": Reading("GPU clock", "Hz", "NVML: of the multiprocessors, at this moment"),
    "gpu_throttle_reasons": Reading("GPU clock limited", "bits", "NVML: what holds the clock down, one bit per reason"),
    "gpu_other_processes": Reading(
        "Other processes on the GPU", "processes", "NVML: that compute on it, once a second"
    ),
    "energy_j": Reading("Energy so far", "J", "since the run's start, from the counter its total is taken from"),
    "cpu_power_w": Reading("CPU power", "W", "RAPL: the CPU packages, all programs, mean over the beat"),
}

# Bits of gpu_throttle_reasons that mean slower than this board can: heat, or power that is not there (nvml.h,
# nvmlClocksThrottleReasons). Idle, set clocks and the board's own power limit at full load are ordinary.
THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "software thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake of the machine",
}

Readers = Mapping[str, Callable[[], float]]


class Unavailable(Exception):
    """A reading that cannot be had; the text is the reason a person reads."""


# What a reader may raise when the machine, not our code, is at fault.
_FAILURES = (Unavailable, OSError, psutil.Error, pynvml.NVMLError)


def read_all(readers: Readers) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every reading, None where it failed, and why those failed."""
    readings: dict[str, float | None] = dict.fromkeys(READINGS)
    missing: dict[str, str] = {}
    for name in READINGS:
        try:
            readings[name] = readers[name]()
        except _FAILURES as error:
            missing[name] = str(error) or type(error).__name__
    return readings, missing


def beats(clock: Callable[[], float], wait: Callable[[float], bool], interval_s: float) -> Iterator[float]:
    """Clock readings at start + n * interval_s until `wait(seconds)` says True.

    A beat that was missed is left out: the next falls on its own time, so beats neither drift nor bunch.
    """
    start, n = clock(), 0
    while True:
        n = max(n, math.floor((clock() - start) / interval_s)) + 1
        if wait(max(0.0, start + n * interval_s - clock())):
            return
        yield clock()


class Sampler:
    """Emits one HardwareSample per interval, stamped with `clock` (wall seconds), from a daemon thread of its own.

    `devices` are all that the run uses, `pids` the processes of its ranks where it is more than this one.

    `emit` is called from that thread. A run shorter than one interval gets one sample, at its end. A reason for a
    missing reading is said once, and again only when it changes.
    """

    def __init__(
        self,
        devices: Devices,
        clock: Callable[[], float],
        emit: Callable[[HardwareSample], None],
        interval_s: float = 0.25,
        *,
        energy: EnergyMeter | None = None,
        readers: Readers | None = None,
        pids: Sequence[int] | None = None,
    ) -> None:
        self._devices, self._clock, self._emit, self._interval_s = devices, clock, emit, interval_s
        self._energy, self._readers, self._pids = energy, readers, pids
        self._said: dict[str, str] = {}
        self._beats = 0
        self._abandoned = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """No sample after this. A reading that hangs (a GPU off the bus) is left behind after `timeout_s`."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
            self._abandoned = self._thread.is_alive()

    def beat(self, readers: Readers) -> None:
        """Read everything once and emit it."""
        at = self._clock()
        if self._energy:
            self._energy.update()
        readings, missing = read_all(readers)
        news = {name: reason for name, reason in missing.items() if self._said.get(name) != reason}
        self._said = missing
        self._beats += 1
        if not self._abandoned:
            self._emit(HardwareSample(elapsed_s=at, readings=readings, missing=news))

    def _run(self) -> None:
        with contextlib.ExitStack() as stack:
            readers = self._readers or open_readers(
                self._devices, self._clock, stack, energy=self._energy, pids=self._pids
            )
            for _ in beats(self._clock, self._stopped.wait, self._interval_s):
                self.beat(readers)
            if not self._beats:
                self.beat(readers)


# --- readers --------------------------------------------------------------------------------------------------------


def open_readers(
    devices: Devices,
    clock: Callable[[], float],
    stack: contextlib.ExitStack,
    *,
    energy: EnergyMeter | None = None,
    nvml: Any = NVML,
    pids: Sequence[int] | None = None,
) -> dict[str, Callable[[], float]]:
    """A reader for each of READINGS; `stack` closes what they hold open. Call it in the process they shall read, or with
    the `pids` of several: their CPU time and memory are added up."""
    meter = energy or EnergyMeter(devices)  # one that was never started says so
    return {
        "process_cpu_percent": ProcessCpu(clock, CpuOfRanks(pids)) if pids else ProcessCpu(clock),
        "system_cpu_percent": _open_system_cpu(stack),
        "process_memory_bytes": (lambda: memory_of(pids)) if pids else _open_process_memory(stack),
        "system_memory_used_bytes": _open_system_memory(stack),
        "energy_j": meter.joules,
        "cpu_power_w": CpuPower(meter, clock),
        **_open_gpus(devices, stack, nvml, pids or (os.getpid(),)),
    }


class ProcessCpu:
    """CPU time of this process over wall time since the last call, in percent of one core.

    The process clock counts nanoseconds; /proc/self/stat and psutil count ticks of 10 ms, 4 % of a quarter second.
    """

    def __init__(self, clock: Callable[[], float], cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._clock, self._cpu_clock = clock, cpu_clock
        self._last = (clock(), cpu_clock())

    def __call__(self) -> float:
        at, cpu = self._clock(), self._cpu_clock()
        window, used = at - self._last[0], cpu - self._last[1]
        self._last = (at, cpu)
        if window <= 0:
            raise Unavailable("No time has passed since the last reading.")
        return 100 * used / window


class CpuPower:
    """Watts of the CPU packages since the last call, where their energy is counted."""

    def __init__(self, meter: EnergyMeter, clock: Callable[[], float]) -> None:
        self._meter, self._clock = meter, clock
        self._last: tuple[float, float] | None = None

    def __call__(self) -> float:
        if self._meter.source == "nvml":
            raise Unavailable("Of a run on a GPU the energy of the board is counted, not that of the CPU.")
        before, self._last = self._last, (self._clock(), self._meter.joules())
        if before is None or self._last[0] <= before[0]:
            raise Unavailable("No time has passed since the last reading.")
        return (self._last[1] - before[1]) / (self._last[0] - before[0])


class SystemCpu:
    """Busy share of some cores since the last call, from /proc/stat, in percent of all of them."""

    def __init__(self, read: Callable[[], bytes], cores: frozenset[int]) -> None:
        self._read, self._cores = read, cores
        self._last = core_ticks(read(), cores)

    def __call__(self) -> float:
        busy, total = core_ticks(self._read(), self._cores)
        window, used = total - self._last[1], busy - self._last[0]
        self._last = (busy, total)
        if window <= 0:
            raise Unavailable("The kernel counted no CPU time since the last reading.")
        return min(100.0, max(0.0, 100 * used / window))  # idle counters may run backwards by a tick (proc_stat(5))


def core_ticks(stat: bytes, cores: frozenset[int]) -> tuple[int, int]:
    """Busy and total clock ticks of the cores since boot.

    Columns are user nice system idle iowait irq softirq steal guest guest_nice (proc_stat(5)); guest time is already
    in user. Waiting for a disk is not busy.
    """
    busy = total = 0
    for line in stat.splitlines():
        name, *columns = line.split(None, 10) if line.startswith(b"cpu") else (b"",)
        if name[3:].isdigit() and int(name[3:]) in cores:
            ticks = [int(column) for column in columns[:8]]
            total += sum(ticks)
            busy += sum(ticks) - ticks[3] - ticks[4]
    return busy, total


def _open_system_cpu(stack: contextlib.ExitStack) -> Callable[[], float]:
    try:
        return SystemCpu(_open_proc("/proc/stat", stack), hardware.allowed_cores())
    except OSError:
        psutil.cpu_percent()  # its first value has no window and is 0
        return psutil.cpu_percent


def _open_process_memory(stack: contextlib.ExitStack) -> Callable[[], float]:
    """2 us from an open /proc/self/statm, 24 us through psutil."""
    try:
        read, page_bytes = _open_proc("/proc/self/statm", stack), os.sysconf("SC_PAGE_SIZE")
        return lambda: float(int(read().split()[1]) * page_bytes)  # size resident shared ...
    except OSError:
        process = psutil.Process()
        return lambda: float(process.memory_info().rss)


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process; None where it is gone, or the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(None if pid == "self" else int(pid)).memory_info().rss)
    return None


def memory_of(pids: Sequence[int]) -> float:
    """Resident memory of several processes; pages they share, PyTorch's own above all, count in each."""
    return float(sum(resident_bytes(pid) or 0 for pid in pids))


class CpuOfRanks:
    """CPU time of several processes, s, in clock ticks of 10 ms; of one that has ended what it had."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._told = dict.fromkeys(pids, 0.0)

    def __call__(self) -> float:
        for pid in self._told:
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                self._told[pid] = times.user + times.system
        return sum(self._told.values())


def _open_system_memory(stack: contextlib.ExitStack) -> Callable[[], float]:
    try:
        read = _open_proc("/proc/meminfo", stack)
        memory_used(read())
        return lambda: memory_used(read())
    except (OSError, Unavailable):
        return _psutil_memory_used


def memory_used(meminfo: bytes) -> float:
    """MemTotal - MemAvailable of /proc/meminfo, which counts in KiB; the page cache does not count as used."""
    total = re.search(rb"^MemTotal:\s+(\d+)", meminfo, re.MULTILINE)
    available = re.search(rb"^MemAvailable:\s+(\d+)", meminfo, re.MULTILINE)
    if total is None or available is None:
        raise Unavailable("The kernel does not say how much memory is available.")
    return float((int(total[1]) - int(available[1])) * 1024)


def _psutil_memory_used() -> float:
    memory = psutil.virtual_memory()
    return float(memory.total - memory.available)


def _open_proc(path: str, stack: contextlib.ExitStack) -> Callable[[], bytes]:
    """Reads a file of /proc again and again through one descriptor. Raises OSError where there is no such file."""
    if sys.platform == "win32":
        raise OSError("no /proc on Windows")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return lambda: os.pread(fd, 1 << 16, 0)


Devices = str | Sequence[str]  # of a run: one, or that of each rank


def _each(devices: Devices) -> tuple[str, ...]:
    return (devices,) if isinstance(devices, str) else tuple(dict.fromkeys(devices))


def _all_bits(values: list[float]) -> float:
    return float(functools.reduce(operator.or_, map(int, values)))


# What several GPUs of one run come to: the mean of shares, the sum of amounts, the worst of states.
_TOGETHER: dict[str, Callable[[list[float]], float]] = {
    "gpu_utilization_percent": statistics.fmean,
    "gpu_memory_used_bytes": sum,
    "gpu_power_w": sum,
    "gpu_temperature_c": max,
    "gpu_sm_clock_hz": min,
    "gpu_throttle_reasons": _all_bits,
    "gpu_other_processes": max,
}


def _open_gpus(
    devices: Devices, stack: contextlib.ExitStack, nvml: Any, pids: Sequence[int]
) -> dict[str, Callable[[], float]]:
    """The readings of all the run's own GPUs together."""
    of_each = [_open_gpu(device, stack, nvml, pids) for device in _each(devices)]
    if len(of_each) == 1:
        return of_each[0]

    def together(name: str) -> Callable[[], float]:
        return lambda: _TOGETHER[name]([readers[name]() for readers in of_each])

    return {name: together(name) for name in of_each[0]}


def _open_gpu(
    device: str, stack: contextlib.ExitStack, nvml: Any, pids: Sequence[int]
) -> dict[str, Callable[[], float]]:
    """The readings of one GPU; a run on the CPU is not told about GPUs it does not use."""
    try:
        handle = _open_gpu_handle(device, stack, nvml)
    except Unavailable as error:
        return dict.fromkeys((name for name in READINGS if name.startswith("gpu_")), _says(str(error)))
    return {
        "gpu_utilization_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "gpu_memory_used_bytes": lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used),
        "gpu_power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,  # NVML: mW
        "gpu_temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "gpu_sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,  # NVML: MHz
        "gpu_throttle_reasons": lambda: float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        "gpu_other_processes": Neighbours(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), pids),
    }


class Neighbours:
    """How many processes other than the run's own compute on a GPU; asked at every fourth beat, as the driver takes its time.

    In a container NVML may not name a process by its own number: then nobody can be told from it, and it is unknown.
    """

    EVERY = 4

    def __init__(self, processes: Callable[[], Iterable[Any]], own: Sequence[int]) -> None:
        self._processes, self._own = processes, frozenset(own)
        self._calls, self._others = 0, 0.0

    def __call__(self) -> float:
        if self._calls % self.EVERY == 0:
            pids = {int(process.pid) for process in self._processes()}
            if not self._own & pids:
                raise Unavailable("The driver does not name this process: its neighbours cannot be told from it.")
            self._others = float(len(pids - self._own))
        self._calls += 1
        return self._others


def _open_gpu_handle(device: str, stack: contextlib.ExitStack, nvml: Any) -> Any:
    index = hardware.gpu_index(device)
    handles, reason = stack.enter_context(hardware.open_nvml(nvml))
    if index is None:
        raise Unavailable(f"This run uses the CPU. {reason or ''}".strip())
    if index >= len(handles):
        raise Unavailable(reason or f"{device} is not on this machine.")
    return handles[index]


def _says(reason: str) -> Callable[[], float]:
    def read() -> float:
        raise Unavailable(reason)

    return read


# --- once per run ---------------------------------------------------------------------------------------------------


def peak_memory_bytes(status: Path = Path("/proc/self/status")) -> tuple[int | None, str]:
    """The most this process has held at once, and how that is known."""
    method = "peak resident memory of the whole process, includes PyTorch itself"
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE):
            return int(found[1]) * 1024, method
    try:
        import resource
    except ImportError:
        return None, "This operating system does not say a process's peak memory."
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024), method  # bytes on macOS, KiB elsewhere (getrusage(2))


_NVML_PERIOD_S = 0.1  # the ML.ENERGY project's finding for the energy counter; newer boards move it more often
_RAPL_PERIOD_S = 1e-3  # Intel's manual, volume 3, on the energy status registers: updated about every millisecond


@dataclass(frozen=True, slots=True)
class _Counter:
    read_j: Callable[[], float]  # joules so far
    wraps_at_j: float | None = None  # where it begins again at zero


class EnergyMeter:
    """Joules between start() and stop() from the hardware's own counters, or None and why. Nothing is estimated.

    A GPU run is billed the boards of its GPUs, a CPU run the CPU packages; both count whatever else ran on them. RAPL's
    counters wrap after minutes at full power: call update() more often than that (the Sampler does, once per beat).
    """

    def __init__(
        self,
        devices: Devices,
        *,
        nvml: Any = NVML,
        powercap: Path = Path("/sys/class/powercap"),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._devices, self._nvml, self._powercap, self._clock = _each(devices), nvml, powercap, clock
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()  # the sampler's thread updates, the worker's stops
        self._counters: list[_Counter] = []
        self._last: list[float] = []
        self._joules = 0.0
        self._began = self._read_at = 0.0  # clock
        self._method = "The energy meter was not started."

    def start(self) -> None:
        with self._lock:
            try:
                self._counters, self._method = self._open()
                self._last = [counter.read_j() for counter in self._counters]
                self._began = self._read_at = self._clock()
            except _FAILURES as error:
                self._give_up(error)

    @property
    def source(self) -> Literal["nvml", "rapl", "none"]:
        if not self._last:
            return "none"
        return "rapl" if hardware.gpu_index(self._devices[0]) is None else "nvml"

    @property
    def window_s(self) -> float | None:
        """Between the first and the last reading of the counter."""
        return self._read_at - self._began if self._last else None

    @property
    def period_s(self) -> float | None:
        """How often the counter moves: an end of the window is known no better."""
        return {"nvml": _NVML_PERIOD_S, "rapl": _RAPL_PERIOD_S, "none": None}[self.source]

    def joules(self) -> float:
        """Since start(), as of the last update(). Raises Unavailable."""
        if not self._counters:
            raise Unavailable("The energy counter is no longer read." if self._last else self._method)
        return self._joules

    def update(self) -> None:
        """Add what was used since the last call."""
        with self._lock:
            if not self._counters:
                return
            try:
                now = [counter.read_j() for counter in self._counters]
                self._joules += sum(map(energy_between, self._counters, self._last, now))
                self._last, self._read_at = now, self._clock()
            except _FAILURES as error:
                self._give_up(error)

    def stop(self) -> tuple[float | None, str]:
        """Joules since start() and how they were had, or None and why not."""
        self.update()
        with self._lock:
            measured, self._counters = bool(self._counters), []
            self._stack.close()
            return (self._joules if measured else None), self._method

    def _open(self) -> tuple[list[_Counter], str]:
        if hardware.gpu_index(self._devices[0]) is None:
            return rapl_counters(self._powercap), "RAPL: the CPU packages, other programs included, memory not"
        names, boards = (
            ", ".join(self._devices),
            "the whole board" if len(self._devices) == 1 else "whole boards, added up",
        )
        method = f"NVML energy counter of {names}, {boards}; moves about every 0.1 s"
        return [self._board(device) for device in self._devices], method

    def _board(self, device: str) -> _Counter:
        nvml, handle = self._nvml, _open_gpu_handle(device, self._stack, self._nvml)
        return _Counter(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)  # NVML: mJ

    def _give_up(self, error: Exception) -> None:
        """A part of the energy would read as all of it: better none."""
        self._counters, self._last = [], []
        self._method = str(error) if isinstance(error, Unavailable) else f"The energy counter failed: {error}."


def rapl_counters(powercap: Path) -> list[_Counter]:
    """One counter per CPU package. Raises Unavailable where there is none or one of them cannot be read.

    intel-rapl:0:1 and the like are parts of intel-rapl:0, and a domain named psys holds the packages again: adding
    them up would count twice. Since 2020 only root may read these files (CVE-2020-8694).
    """
    try:
        domains = {path: (path / "name").read_text() for path in sorted(powercap.glob("intel-rapl:*"))}
        counters = [_rapl_counter(path) for path, name in domains.items() if name.startswith("package")]
    except OSError as error:
        raise Unavailable(f"RAPL is not readable here: {error.strerror}.") from None
    if not counters:
        raise Unavailable("RAPL is not readable here: the machine shows no CPU energy counter.")
    return counters


def _rapl_counter(domain: Path) -> _Counter:
    energy = domain / "energy_uj"
    energy.read_text()  # no permission shows here, before the run
    return _Counter(lambda: int(energy.read_text()) / 1e6, int((domain / "max_energy_range_uj").read_text()) / 1e6)


def energy_between(counter: _Counter, before_j: float, after_j: float) -> float:
    """Joules between two readings of a counter that wrapped at most once. Raises Unavailable when it was reset."""
    if after_j >= before_j:
        return after_j - before_j
    if counter.wraps_at_j is None:
        raise Unavailable("The energy counter was reset during the run.")
    return after_j + counter.wraps_at_j - before_j
