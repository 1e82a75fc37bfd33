"""Reads the hardware while a run trains: one HardwareSample per beat, from a thread of the worker.

Each reading fails alone: it becomes None with a reason and affects neither the other readings nor the run. The sampler is
a thread, because a process costs more: on two cores a separate psutil process took 8-40 % of a small model's speed, a
thread at 4 Hz nothing measurable (at 100 Hz up to 11 %).
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import statistics
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from engine.events.machine import HardwareSample
from engine.hardware import gpus, probe
from engine.hardware.energy_counters import Devices, EnergyMeter
from engine.hardware.host import File, Memory, SystemCpu
from engine.hardware.nvml import NVML
from engine.hardware.process_usage import CpuOfRanks, ProcessCpu, memory_of
from engine.hardware.rates import FAILURES, Rates, Read, Reading, Unavailable, unavailable

READINGS: dict[str, Reading] = {
    "process_cpu_percent": Reading(
        "Training process CPU",
        "%",
        "CPU time of the run's process since the last reading, all threads; the sum of all ranks; 100 is one full core",
    ),
    "system_cpu_percent": Reading(
        "System CPU",
        "%",
        "busy time of the cores that this run may use, all programs, since the last reading; in clock ticks of 10 ms",
    ),
    "process_memory_bytes": Reading(
        "Training process memory",
        "bytes",
        "resident memory of the run's process, the sum of all ranks; includes PyTorch itself",
    ),
    "system_memory_used_bytes": Reading(
        "System memory used", "bytes", "the machine's memory minus what is available to programs"
    ),
    "gpu_utilization_percent": Reading(
        "GPU utilization", "%", "NVML: share of its last 1/6 to 1 s in which any kernel ran, however small"
    ),
    "gpu_memory_used_bytes": Reading("GPU memory used", "bytes", "NVML: the whole device, all programs"),
    "gpu_power_w": Reading("GPU power", "W", "NVML: the whole board; some models report an average over 1 s"),
    "gpu_temperature_c": Reading("GPU temperature", "°C", "NVML: sensor on the chip"),
    "gpu_sm_clock_hz": Reading("GPU clock", "Hz", "NVML: the present clock of the multiprocessors"),
    "gpu_throttle_reasons": Reading(
        "GPU clock limited", "bits", "NVML: why the clock is not higher, one bit per reason"
    ),
    "gpu_other_processes": Reading(
        "Other processes on the GPU", "processes", "NVML: processes that compute on it, read once a second"
    ),
    "energy_j": Reading(
        "Energy so far", "J", "since the run's start, from the counter that also gives the run's total"
    ),
    "cpu_power_w": Reading(
        "CPU power", "W", "RAPL: mean power of the CPU packages since the last reading, all programs"
    ),
}

Readers = Mapping[str, Callable[[], float]]


def read_all(readers: Readers) -> tuple[dict[str, float | None], dict[str, str]]:
    """Every reading of READINGS, None where it failed; and the reasons of those that failed."""
    readings: dict[str, float | None] = dict.fromkeys(READINGS)
    missing: dict[str, str] = {}
    for name in READINGS:
        try:
            readings[name] = readers[name]()
        except FAILURES as error:
            missing[name] = str(error) or type(error).__name__
    return readings, missing


def beats(clock: Callable[[], float], wait: Callable[[float], bool], interval_s: float) -> Iterator[float]:
    """Yield clock readings at start + n * interval_s until `wait(seconds)` returns True.

    A missed beat is skipped, and the next one comes at its own time, so beats neither drift nor bunch.
    """
    start, n = clock(), 0
    while True:
        n = max(n, math.floor((clock() - start) / interval_s)) + 1
        if wait(max(0.0, start + n * interval_s - clock())):
            return
        yield clock()


class Sampler:
    """Emits one HardwareSample per interval, with the time of `clock` (wall seconds), from its own daemon thread.

    `devices` are all that the run uses. `pids` are the processes of its ranks, when there are several. `emit` is called
    from the sampler's thread. A run shorter than one interval gets one sample, at its end. The reason of a missing reading
    is emitted once, and again only when it changes.
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
        self._reported: dict[str, str] = {}
        self._beats = 0
        self._abandoned = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stop the thread: no sample is emitted after this. A reading that hangs is abandoned after `timeout_s`."""
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
        news = {name: reason for name, reason in missing.items() if self._reported.get(name) != reason}
        self._reported = missing
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
    """A reader for each of READINGS, which raises one of FAILURES when it fails. `stack` closes their files.

    Call it in the process that is to be read, or with the `pids` of several, whose CPU time and memory are added up.
    """
    meter = energy or EnergyMeter(devices)  # one that was never started gives that as the reason
    return {
        "process_cpu_percent": ProcessCpu(clock, CpuOfRanks(pids)) if pids else ProcessCpu(clock),
        "system_cpu_percent": _open_system_cpu(stack),
        "process_memory_bytes": (lambda: memory_of(pids)) if pids else _open_process_memory(stack),
        "system_memory_used_bytes": _one("memory.used_bytes", Memory(File(Path("/proc/meminfo"), stack))),
        "energy_j": meter.joules,
        "cpu_power_w": _cpu_power(meter, clock),
        **_open_gpus(devices, stack, nvml, pids or (os.getpid(),)),
    }


def _open_system_cpu(stack: contextlib.ExitStack) -> Callable[[], float]:
    try:
        return SystemCpu(File(Path("/proc/stat"), stack), probe.allowed_cores())
    except OSError:
        psutil.cpu_percent()  # its first value has no window and is 0
        return psutil.cpu_percent


def _open_process_memory(stack: contextlib.ExitStack) -> Callable[[], float]:
    """An open /proc/self/statm takes 2 us to read, psutil 24 us."""
    try:
        read, page_bytes = File(Path("/proc/self/statm"), stack), os.sysconf("SC_PAGE_SIZE")
        read()
    except OSError:
        process = psutil.Process()
        return lambda: float(process.memory_info().rss)
    return lambda: float(int(read().split()[1]) * page_bytes)  # size resident shared ...


def _one(name: str, read: Read) -> Callable[[], float]:
    """One reading of a source of several. Raises Unavailable where it is missing."""

    def one() -> float:
        value = read()[name]
        if isinstance(value, Unavailable):
            raise value
        return value

    return one


def _cpu_power(meter: EnergyMeter, clock: Callable[[], float]) -> Callable[[], float]:
    """Watts of the CPU packages since the last call, from the counter that the run's energy is read from."""
    power = _one("cpu_power_w", Rates(("cpu_power_w",), lambda: (meter.joules(),), clock))

    def read() -> float:
        if meter.source == "nvml":
            raise Unavailable("A run on a GPU measures the energy of the board, not that of the CPU.")
        return power()

    return read


def _all_bits(values: list[float]) -> float:
    return float(functools.reduce(operator.or_, map(int, values)))


# How the readings of a run's GPUs are combined: the mean of shares, the sum of amounts, the worst of states.
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
    """The readings of all GPUs of the run together."""
    of_each = [
        _open_gpu(device, stack, nvml, pids)
        for device in ((devices,) if isinstance(devices, str) else dict.fromkeys(devices))
    ]
    if len(of_each) == 1:
        return of_each[0]

    def together(name: str) -> Callable[[], float]:
        return lambda: _TOGETHER[name]([readers[name]() for readers in of_each])

    return {name: together(name) for name in of_each[0]}


def _open_gpu(
    device: str, stack: contextlib.ExitStack, nvml: Any, pids: Sequence[int]
) -> dict[str, Callable[[], float]]:
    """The readings of one GPU. A run on the CPU has none, because it uses no GPU."""
    try:
        handle = gpus.handle_of(device, stack, nvml)
    except Unavailable as error:
        return dict.fromkeys((name for name in READINGS if name.startswith("gpu_")), unavailable(str(error)))
    read = gpus.quantities(nvml, handle)
    return {
        "gpu_utilization_percent": read["utilization_percent"],
        "gpu_memory_used_bytes": lambda: gpus.memory(nvml, handle)["memory_used_bytes"],
        "gpu_power_w": read["power_w"],
        "gpu_temperature_c": read["temperature_c"],
        "gpu_sm_clock_hz": read["sm_clock_hz"],
        "gpu_throttle_reasons": read["throttle_bits"],
        "gpu_other_processes": OtherGpuProcesses(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle), pids),
    }


class OtherGpuProcesses:
    """Number of processes other than the run's own that compute on a GPU. Read at every fourth beat: the call is slow.

    In a container NVML can list a process under another id than its own. Then the run's process cannot be told from
    others, and the number is unknown.
    """

    EVERY = 4

    def __init__(self, processes: Callable[[], Iterable[Any]], own: Sequence[int]) -> None:
        self._processes, self._own = processes, frozenset(own)
        self._calls, self._others = 0, 0.0

    def __call__(self) -> float:
        """The number of other processes.

        Raises:
            Unavailable: the driver does not list the run's own process.
        """
        if self._calls % self.EVERY == 0:
            pids = {int(process.pid) for process in self._processes()}
            if not self._own & pids:
                raise Unavailable("The driver does not list this process, so other processes cannot be told from it.")
            self._others = float(len(pids - self._own))
        self._calls += 1
        return self._others
