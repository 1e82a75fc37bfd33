"""A stand-in for the pynvml module: the calls we make, with answers a test chooses. Errors are pynvml's own."""

from __future__ import annotations

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
    throttle: int = 0  # bits of nvmlClocksThrottleReasons
    pids: tuple[int, ...] = ()  # of the processes that compute on it
    errors: dict[str, int] = field(default_factory=dict)  # function name -> NVML error code it raises


class FakeNvml:
    """`init_error` is what nvmlInit raises; a GPU's `errors` make single functions fail."""

    def __init__(self, *gpus: FakeGpu, init_error: int | None = None) -> None:
        self.gpus, self.init_error, self.open = gpus, init_error, 0

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.gpus[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def __getattr__(self, function: str) -> Any:
        answers = {
            "nvmlDeviceGetUUID": lambda gpu: gpu.uuid,
            "nvmlDeviceGetName": lambda gpu: gpu.name,
            "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(
                total=gpu.total, used=gpu.used, free=gpu.total - gpu.used
            ),
            "nvmlDeviceGetCudaComputeCapability": lambda gpu: (9, 0),
            "nvmlDeviceGetPowerManagementLimit": lambda gpu: 700_000,
            "nvmlDeviceGetUtilizationRates": lambda gpu: SimpleNamespace(gpu=87, memory=40),
            "nvmlDeviceGetPowerUsage": lambda gpu: gpu.power_mw,
            "nvmlDeviceGetTemperature": lambda gpu, sensor: 51,
            "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: gpu.energy_mj,
            "nvmlDeviceGetClockInfo": lambda gpu, clock: 1_980,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: gpu.throttle,
            "nvmlDeviceGetComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=pid) for pid in gpu.pids],
        }

        def call(gpu: FakeGpu, *arguments: Any) -> Any:
            if function in gpu.errors:
                raise pynvml.NVMLError(gpu.errors[function])
            return answers[function](gpu, *arguments)

        return call
