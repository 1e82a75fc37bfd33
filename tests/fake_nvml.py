"""A stand-in for the pynvml module: the calls we make, with answers a test chooses. Errors are pynvml's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml


@dataclass
class FakeGpu:
    uuid: str = "GPU-aaaa1111"
    name: str = "NVIDIA H200"
    total: int = 143_771 << 20
    used: int = 1 << 30
    power_mw: int = 250_000
    energy_mj: int = 0
    utilization: int = 87
    throttle: int = 0  # bits of nvmlDeviceGetCurrentClocksEventReasons
    gpm: dict[int, float] | None = None  # metric -> value; None where the GPU has no such counters
    nvlink_kib: tuple[int, int] | None = None  # sent and received so far; None where it has no links
    processes: tuple[tuple[int, int | None], ...] = ()  # pid, bytes
    pids: tuple[int, ...] = ()  # of more processes that compute on it, whose memory it does not tell
    errors: dict[str, int] = field(default_factory=dict)  # function name -> NVML error code it raises
    errors_after: dict[str, tuple[int, int]] = field(default_factory=dict)  # -> after so many calls, this code
    calls: Counter[str] = field(default_factory=Counter)


class FakeNvml:
    """`init_error` is what nvmlInit raises; a GPU's `errors` make single functions fail."""

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None) -> None:
        self.gpus, self.init_error, self.open, self.samples = gpus, init_error, 0, 0

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if code := self.gpus[index].errors.get("nvmlDeviceGetHandleByIndex"):
            raise pynvml.NVMLError(code)
        return self.gpus[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlGpmSampleAlloc(self) -> Any:
        self.samples += 1
        return pynvml.c_nvmlGpmSample_t()

    def nvmlGpmSampleFree(self, sample: Any) -> None:
        self.samples -= 1

    def nvmlGpmMetricsGet(self, asked: Any) -> Any:
        """What the GPU of the newest sample says; a metric it does not have fails by itself, as in NVML."""
        for metric in asked.metrics[: asked.numMetrics]:
            value = self._sampled.gpm.get(metric.metricId)
            metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED if value is None else pynvml.NVML_SUCCESS
            metric.value = value or 0.0
        return asked

    def _sample(self, gpu: FakeGpu) -> None:
        self._sampled = gpu

    def _throughput(self, gpu: FakeGpu, fields: Iterable[tuple[int, int]]) -> list[SimpleNamespace]:
        code = pynvml.NVML_SUCCESS if gpu.nvlink_kib else pynvml.NVML_ERROR_NOT_SUPPORTED
        said = gpu.nvlink_kib or (0, 0)
        return [
            SimpleNamespace(nvmlReturn=code, value=SimpleNamespace(ullVal=kib))
            for _, kib in zip(fields, said, strict=True)
        ]

    def __getattr__(self, function: str) -> Any:
        answers = {
            "nvmlDeviceGetUUID": lambda gpu: gpu.uuid,
            "nvmlDeviceGetName": lambda gpu: gpu.name,
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(
                total=gpu.total, used=gpu.used, free=gpu.total - gpu.used
            ),
            "nvmlDeviceGetCudaComputeCapability": lambda gpu: (9, 0),
            "nvmlDeviceGetPowerManagementLimit": lambda gpu: 700_000,
            "nvmlDeviceGetEnforcedPowerLimit": lambda gpu: 650_000,
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=gpu.utilization, memory=40),
            "nvmlDeviceGetPowerUsage": lambda gpu: gpu.power_mw,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 51,
            "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: gpu.energy_mj,
            "nvmlDeviceGetClockInfo": lambda gpu, kind: {1: 1_980, 2: 3_201}[kind],
            "nvmlDeviceGetCurrentClocksEventReasons": lambda gpu: gpu.throttle,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: gpu.throttle,
            "nvmlDeviceGetPcieThroughput": lambda gpu, counter: {0: 2_048, 1: 4_096}[counter],
            "nvmlDeviceGetFieldValues": self._throughput,
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [
                SimpleNamespace(pid=pid, usedGpuMemory=size)
                for pid, size in (*gpu.processes, *((pid, None) for pid in gpu.pids))
            ],
            "nvmlDeviceGetGraphicsRunningProcesses": lambda gpu: [],
            "nvmlGpmQueryDeviceSupport": lambda gpu: SimpleNamespace(isSupportedDevice=int(gpu.gpm is not None)),
            "nvmlGpmSampleGet": lambda gpu, sample: self._sample(gpu),
        }

        def call(gpu: FakeGpu, *arguments: Any) -> Any:
            gpu.calls[function] += 1
            if function in gpu.errors:
                raise pynvml.NVMLError(gpu.errors[function])
            after, code = gpu.errors_after.get(function, (0, 0))
            if code and gpu.calls[function] > after:
                raise pynvml.NVMLError(code)
            return answers[function](gpu, *arguments)

        return call
