"""Readings of NVIDIA GPUs from NVML, and the processes that hold their memory.

Each quantity is read by itself, because models and drivers differ in what they offer. GPM, NVML's profiling counters,
needs a Hopper or later GPU. It reports how much of the chip works, which utilization does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pynvml

from engine.common.sanitize import visible
from engine.hardware import probe
from engine.hardware.nvml import NVML, open_nvml
from engine.hardware.rates import Cached, Rates, Read, Sources, Unavailable, Values

HOW_PCIE = "NVML GPM since the last reading; before Hopper NVML's own window of 20 ms, once a second"
HOW_NVLINK = "all links, data without protocol: NVML GPM since the last reading; before Hopper from the links' counters"
OWNERS_NOT_KNOWN = (
    "This container has process ids of its own, but the driver reports the host's, so the owners are not known."
)
MOST_PROCESSES = 20  # of each GPU, at most
_LONGEST_NAME = 100
_MIB, _KIB = 2**20, 2**10
_ALL_LINKS = 0xFFFFFFFF  # the scopeId that means all links together
_GPM = {  # name -> (number of the metric in NVML, factor to our unit)
    "sm_active_percent": (pynvml.NVML_GPM_METRIC_SM_UTIL, 1),
    "tensor_active_percent": (pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL, 1),
    "memory_bandwidth_percent": (pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL, 1),
    "pcie_sent_bytes_per_s": (pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC, _MIB),
    "pcie_received_bytes_per_s": (pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC, _MIB),
    "nvlink_sent_bytes_per_s": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, _MIB),
    "nvlink_received_bytes_per_s": (pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, _MIB),
}
_ACTIVITY = tuple(_GPM)[:3]
# Why a clock is limited: bit of nvmlDeviceGetCurrentClocksEventReasons -> words (nvml.h, "nvmlClocksEventReasons").
THROTTLE = {
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
NOT_THROTTLED = 0x001 | 0x002 | 0x100  # there is no work, or a user set the clock
# Bits that mean a fault: heat, or too little power. Reaching the board's power limit at full load is normal.
THROTTLED_BY_FAULT = (0x008, 0x020, 0x040, 0x080)


def throttle_words(bits: int) -> str:
    """The reasons in `bits` why a clock is limited, in words; empty for none."""
    return ", ".join(words for bit, words in THROTTLE.items() if bits & bit)


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory of a GPU. Nothing else is kept about other users' processes."""

    gpu: int
    memory_bytes: int | None
    run_id: str | None  # "" for a process of Isoflop that is no run, None for another user's
    is_known: bool = True  # False where our processes cannot be told from others


def in_words(error: pynvml.NVMLError) -> str:
    """The error as a sentence."""
    text = str(error).rstrip(".").lower().replace("gpu", "GPU")
    return f"NVML: {text or type(error).__name__}."


def name_of(nvml: Any, handle: Any) -> str:
    """The model's name; empty where the driver does not report it."""
    if isinstance(handle, pynvml.NVMLError):
        return ""
    try:
        return visible(str(nvml.nvmlDeviceGetName(handle)), _LONGEST_NAME)
    except pynvml.NVMLError:
        return ""


def handle_of(device: str, stack: contextlib.ExitStack, nvml: Any = NVML) -> Any:
    """The NVML handle of "cuda:i", valid until `stack` closes.

    Raises:
        Unavailable: there is no such GPU, or the device is "cpu"; the text is the reason.
    """
    index = probe.gpu_index(device)
    if index is None:
        with open_nvml(nvml) as (_, reason):  # closed at once, so that an unused GPU can sleep
            raise Unavailable(f"This run uses the CPU. {reason or ''}".strip())
    handles, reason = stack.enter_context(open_nvml(nvml))
    if index >= len(handles):
        raise Unavailable(reason or f"{device} is not on this machine.")
    return handles[index]


def quantities(nvml: Any, handle: Any) -> dict[str, Callable[[], float]]:
    """What NVML reports of one GPU, one call each, in the units of the names. Each reader raises NVMLError."""
    return {
        "utilization_percent": lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,  # NVML: mW
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        "energy_j": lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,  # NVML: mJ
        "temperature_c": lambda: float(nvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        "sm_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM) * 1e6,  # NVML: MHz
        "memory_clock_hz": lambda: nvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) * 1e6,
        "throttle_bits": lambda: float(_throttle_bits(nvml, handle)),
    }


def memory(nvml: Any, handle: Any) -> dict[str, float]:
    """Used and total memory of one GPU, bytes, by one call. Raises NVMLError."""
    found = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_bytes": float(found.used), "memory_total_bytes": float(found.total)}


def sources(
    index: int, handle: Any, nvml: Any, clock: Callable[[], float], stack: contextlib.ExitStack, num_gpus: int
) -> Sources:
    """The sources of the GPU with NVML's index `index`; `stack` frees the driver's samples."""

    def named(name: str, read: Callable[[], float]) -> Read:
        return lambda: {name: read()}

    own = f"gpu{index}."
    found: Sources = {(own + name,): named(own + name, read) for name, read in quantities(nvml, handle).items()}
    found[(f"{own}memory_used_bytes", f"{own}memory_total_bytes")] = lambda: {
        own + name: value for name, value in memory(nvml, handle).items()
    }
    gpm = Gpm(index, nvml, handle, stack)
    found[tuple(own + name for name in _ACTIVITY)] = lambda: gpm.only(_ACTIVITY)
    found |= _traffic(index, nvml, handle, gpm, clock, num_gpus)
    return found


def _throttle_bits(nvml: Any, handle: Any) -> int:
    """Bits of the reasons that limit the clock. Before driver 535 the function had another name."""
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


class Gpm:
    """NVML's profiling counters (GPM) of one GPU, as means between two readings."""

    def __init__(self, index: int, nvml: Any, handle: Any, stack: contextlib.ExitStack) -> None:
        self._index, self._nvml, self._handle = index, nvml, handle
        self.reason = ""
        self._fresh: Values = {}
        self._samples: list[Any] = []  # two, the newest first
        try:
            if not nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
                self.reason = "NVML can read no profiling counters of this GPU (GPM needs a Hopper or later)."
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
        """Values of the metrics in `names`. Asking for the activity reads all of them; other calls use that reading.

        Raises:
            Unavailable: this GPU has no such counters, or they could not be read.
            NVMLError: the driver refused.
        """
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
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(_GPM)
        request.sample1, request.sample2 = before, now
        for place, (number, _) in enumerate(_GPM.values()):
            request.metrics[place].metricId = number
        self._samples.reverse()
        answer = self._nvml.nvmlGpmMetricsGet(request)
        return {name: _gpm_value(answer.metrics[n], factor) for n, (name, (_, factor)) in enumerate(_GPM.items())}


def _gpm_value(metric: Any, factor: int) -> float | Unavailable:
    if metric.nvmlReturn != pynvml.NVML_SUCCESS:
        return Unavailable(in_words(pynvml.NVMLError(metric.nvmlReturn)))
    return float(metric.value) * factor


def _traffic(index: int, nvml: Any, handle: Any, gpm: Gpm, clock: Callable[[], float], num_gpus: int) -> Sources:
    """Sources of PCIe and NVLink traffic: GPM, or the separate functions that older GPUs have."""
    pcie, nvlink = tuple(_GPM)[3:5], tuple(_GPM)[5:7]
    named = {kind: tuple(f"gpu{index}.{name}" for name in kind) for kind in (pcie, nvlink)}
    if not gpm.reason:
        return {named[pcie]: lambda: gpm.only(pcie), named[nvlink]: lambda: gpm.only(nvlink)}
    counters = (pynvml.NVML_PCIE_UTIL_TX_BYTES, pynvml.NVML_PCIE_UTIL_RX_BYTES)

    def pcie_now() -> Values:  # NVML measures for 20 ms in each of the two calls
        rates = (nvml.nvmlDeviceGetPcieThroughput(handle, counter) * _KIB for counter in counters)
        return dict(zip(named[pcie], map(float, rates), strict=True))

    return {
        named[pcie]: Cached(pcie_now, clock, max(1.0, 0.2 * num_gpus)),
        named[nvlink]: Rates(named[nvlink], lambda: _nvlink_bytes(nvml, handle), clock),
    }


def _nvlink_bytes(nvml: Any, handle: Any) -> tuple[int, ...]:
    """Bytes that all links have sent and received since they came up; NVML counts in KiB.

    Raises:
        Unavailable: the GPU has no NVLink, or does not report its traffic.
    """
    fields = (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
    values = nvml.nvmlDeviceGetFieldValues(handle, [(field, _ALL_LINKS) for field in fields])
    for value in values:
        if value.nvmlReturn != pynvml.NVML_SUCCESS:
            raise Unavailable("This GPU reports no NVLink traffic.")
    return tuple(int(value.value.ullVal) * _KIB for value in values)


def processes(
    handles: tuple[Any, ...], nvml: Any, ours: Mapping[int, str], *, own_pids: bool = False
) -> tuple[tuple[GpuProcess, ...], dict[str, str]]:
    """The processes that hold memory of each GPU, ours first, then the largest; and the reasons where they are not known.

    `ours` maps pid -> run id. `own_pids` is True in a container that has process ids of its own. NVML can then report the
    host's ids, so a process counts as another user's only when NVML also lists one of ours.
    """
    found: list[GpuProcess] = []
    missing: dict[str, str] = {}
    holders: dict[int, dict[int, int | None]] = {}
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
        holders[index] = held
    is_known = not own_pids or any(held.keys() & ours.keys() for held in holders.values())
    for index, held in holders.items():
        of_this = [GpuProcess(index, memory, ours.get(pid), is_known) for pid, memory in held.items()]
        of_this.sort(key=lambda process: (process.run_id is None, -(process.memory_bytes or 0)))
        found += of_this[:MOST_PROCESSES]
        if of_this and not is_known:
            missing[f"gpu{index}.processes"] = OWNERS_NOT_KNOWN
    return tuple(found), missing
