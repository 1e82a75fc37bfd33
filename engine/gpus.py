"""What each NVIDIA GPU does, and who holds its memory, from NVML: every quantity by itself, so that one that a model or
driver does not offer takes none of the others along.

GPM, NVML's own profiling counters, needs a Hopper or later and says what utilization does not: how much of the chip works.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from engine.readers import Held, Rates, Sources, Values
from engine.sampler import Unavailable
from engine.text import visible

HOW_PCIE = "NVML GPM over the beat; before Hopper NVML's own window of 20 ms, once a second"
HOW_NVLINK = "all links, data without protocol: NVML GPM over the beat; before Hopper from the links' counters"
NOT_OURS_TO_TELL = (
    "This container has process numbers of its own and the driver tells the host's: whose these are is not known."
)
MOST_PROCESSES = 20  # of one GPU that are named one by one
_LONGEST_NAME = 100
_MIB, _KIB = 2**20, 2**10
_ALL_LINKS = 0xFFFFFFFF  # scopeId of a field value
_GPM = {  # metric: (its number in NVML, factor to our unit)
    "sm_active_percent": (pynvml.NVML_GPM_METRIC_SM_UTIL, 1),
    "tensor_active_percent": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 1),
    "memory_bandwidth_percent": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 1),
    "pcie_sent_bytes_per_s": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, _MIB),
    "pcie_received_bytes_per_s": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, _MIB),
    "nvlink_sent_bytes_per_s": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, _MIB),
    "nvlink_received_bytes_per_s": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, _MIB),
}
_ACTIVITY = tuple(_GPM)[:3]
THROTTLE = {  # bit of nvmlDeviceGetCurrentClocksEventReasons: words; nvml.h, "nvmlClocksEventReasons"
    0x001: "idle",
    0x002: "the application clock setting",
    0x004: "the power limit",
    0x008: "the hardware (heat or power)",
    0x010: "the slowest GPU of its sync boost group",
    0x020: "heat",
    0x040: "heat (hardware)",
    0x080: "the power supply (power brake)",
    0x100: "the display clock setting",
    0x200: "the board's limit",
    0x400: "the voltage that is reliable",
}
NOT_THROTTLED = 0x001 | 0x002 | 0x100  # nothing to do, or as somebody set it


def throttle_words(bits: int) -> str:
    """Why the clocks are not higher; empty where nothing holds them back."""
    return ", ".join(words for bit, words in THROTTLE.items() if bits & bit)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Who holds memory of a GPU. Of processes that are not ours nothing else is told."""

    gpu: int
    memory_bytes: int | None
    run_id: str | None  # "" for a process of ours that is no run's, None for somebody else's
    is_known: bool = True  # False where ours cannot be told from others'


def in_words(error: pynvml.NVMLError) -> str:
    said = str(error).rstrip(".").lower().replace("gpu", "GPU")
    return f"NVML: {said or type(error).__name__}."


def name_of(nvml: Any, handle: Any) -> str:
    """Empty where the driver does not say."""
    if isinstance(handle, pynvml.NVMLError):
        return ""
    try:
        return visible(str(nvml.nvmlDeviceGetName(handle)), _LONGEST_NAME)
    except pynvml.NVMLError:
        return ""


def sources(
    index: int, handle: Any, nvml: Any, clock: Callable[[], float], stack: contextlib.ExitStack, num_gpus: int
) -> Sources:
    """The sources of the GPU that NVML counts as `index`; `stack` frees what they hold."""
    single: dict[str, Callable[[], float]] = {
        "utilization_percent": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,  # NVML: mW
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,  # NVML: mJ
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,  # NVML: MHz
        "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
        "throttle_bits": lambda: _throttle_bits(nvml, handle),
    }
    found: Sources = {(f"gpu{index}.{name}",): _Single(f"gpu{index}.{name}", read) for name, read in single.items()}
    found[(f"gpu{index}.memory_used_bytes", f"gpu{index}.memory_total_bytes")] = _Memory(index, nvml, handle)
    gpm = Gpm(index, nvml, handle, stack)
    found[tuple(f"gpu{index}.{name}" for name in _ACTIVITY)] = lambda: gpm.only(_ACTIVITY)
    found |= _traffic(index, nvml, handle, gpm, clock, num_gpus)
    return found


@dataclass(frozen=True, slots=True)
class _Single:
    name: str
    read: Callable[[], float]

    def __call__(self) -> Values:
        return {self.name: float(self.read())}


@dataclass(frozen=True, slots=True)
class _Memory:
    index: int
    nvml: Any
    handle: Any

    def __call__(self) -> Values:
        memory = self.nvml.nvmlDeviceGetMemoryInfo(self.handle)
        return {
            f"gpu{self.index}.memory_used_bytes": float(memory.used),
            f"gpu{self.index}.memory_total_bytes": float(memory.total),
        }


def _throttle_bits(nvml: Any, handle: Any) -> int:
    """By its name since driver 535, or the older one."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


class Gpm:
    """NVML's profiling counters of one GPU between the last reading and this one."""

    def __init__(self, index: int, nvml: Any, handle: Any, stack: contextlib.ExitStack) -> None:
        self._index, self._nvml, self._handle = index, nvml, handle
        self.reason = ""
        self._fresh: Values = {}
        self._samples: list[Any] = []  # the last one first
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                self.reason = "This GPU has no profiling counters that NVML can read (GPM needs a Hopper or later)."
                return
            for _ in range(2):
                self._samples.append(nvml.nvmlGpmSampleAlloc())
                stack.callback(self._free, self._samples[-1])
            nvml.nvmlGpmSampleGet(handle, self._samples[0])
        except pynvml.NVMLError as error:
            self.reason = f"NVML's profiling counters (GPM): {str(error).rstrip('.')}."

    def _free(self, sample: Any) -> None:
        with contextlib.suppress(pynvml.NVMLError):
            self._nvml.nvmlGpmSampleFree(sample)

    def only(self, names: tuple[str, ...]) -> Values:
        """Some of the metrics; read anew when the first ones, the activity, are asked for."""
        if self.reason:
            raise Unavailable(self.reason)
        if names == _ACTIVITY:
            self._fresh = {}
            self._fresh = self._read()
        if not self._fresh:
            raise Unavailable("NVML's profiling counters (GPM) could not be read.")
        return {f"gpu{self._index}.{name}": self._fresh[name] for name in names}

    def _read(self) -> Values:
        before, now = self._samples
        self._nvml.nvmlGpmSampleGet(self._handle, now)
        asked = pynvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(_GPM)
        asked.sample1, asked.sample2 = before, now
        for place, (number, _) in enumerate(_GPM.values()):
            asked.metrics[place].metricId = number
        self._samples.reverse()
        said = self._nvml.nvmlGpmMetricsGet(asked)
        return {name: _gpm_value(said.metrics[n], factor) for n, (name, (_, factor)) in enumerate(_GPM.items())}


def _gpm_value(metric: Any, factor: int) -> float | Unavailable:
    if metric.nvmlReturn != pynvml.NVML_SUCCESS:
        return Unavailable(in_words(pynvml.NVMLError(metric.nvmlReturn)))
    return float(metric.value) * factor


def _traffic(index: int, nvml: Any, handle: Any, gpm: Gpm, clock: Callable[[], float], num_gpus: int) -> Sources:
    """PCIe and NVLink by GPM, or as older GPUs tell them."""
    pcie, nvlink = tuple(_GPM)[3:5], tuple(_GPM)[5:7]
    named = {kind: tuple(f"gpu{index}.{name}" for name in kind) for kind in (pcie, nvlink)}
    if not gpm.reason:
        return {named[pcie]: lambda: gpm.only(pcie), named[nvlink]: lambda: gpm.only(nvlink)}
    counters = (pynvml.NVML_PCIE_UTIL_TX_BYTES, pynvml.NVML_PCIE_UTIL_RX_BYTES)

    def pcie_now() -> Values:  # each call takes its 20 ms
        said = (nvml.nvmlDeviceGetPcieThroughput(handle, counter) * _KIB for counter in counters)
        return dict(zip(named[pcie], map(float, said), strict=True))

    return {
        named[pcie]: Held(pcie_now, clock, max(1.0, 0.2 * num_gpus)),
        named[nvlink]: Rates(named[nvlink], lambda: _nvlink_bytes(nvml, handle), clock),
    }


def _nvlink_bytes(nvml: Any, handle: Any) -> tuple[int, ...]:
    """Bytes sent and received over all links since they came up; NVML counts in KiB."""
    fields = (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
    said = nvml.nvmlDeviceGetFieldValues(handle, [(field, _ALL_LINKS) for field in fields])
    for value in said:
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise Unavailable("This GPU tells of no NVLink traffic.")
    return tuple(int(value.value.ullVal) * _KIB for value in said)


def processes(
    handles: tuple[Any, ...], nvml: Any, ours: Mapping[int, str], *, own_pids: bool = False
) -> tuple[tuple[GpuProcess, ...], dict[str, str]]:
    """Who holds memory of which GPU, ours first, then the largest; and of which GPUs that is not known, with the reason.

    `own_pids`: in a container with process numbers of its own NVML's may be the host's. Then nobody is called another
    until one of ours has been among them.
    """
    found: list[GpuProcess] = []
    missing: dict[str, str] = {}
    everybody: dict[int, dict[int, int | None]] = {}
    for index, handle in enumerate(handles):
        if isinstance(handle, pynvml.NVMLError):
            missing[f"gpu{index}.processes"] = in_words(handle)
            continue
        held: dict[int, int | None] = {}
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
            try:
                held |= {process.pid: process.usedGpuMemory for process in ask(handle)}
            except pynvml.NVMLError as error:
                missing[f"gpu{index}.processes"] = in_words(error)
        everybody[index] = held
    is_known = not own_pids or any(held.keys() & ours.keys() for held in everybody.values())
    for index, held in everybody.items():
        of_this = [GpuProcess(index, memory, ours.get(pid), is_known) for pid, memory in held.items()]
        of_this.sort(key=lambda process: (process.run_id is None, -(process.memory_bytes or 0)))
        found += of_this[:MOST_PROCESSES]
        if of_this and not is_known:
            missing[f"gpu{index}.processes"] = NOT_OURS_TO_TELL
    return tuple(found), missing
