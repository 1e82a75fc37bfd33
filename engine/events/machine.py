"""What the machine reports: readings, interference and calibration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.events.base import Count, EncodableStr, Event, Kept, Moment, Seconds


class Measurement(BaseModel):
    """One quantity of a calibration, from many calls. `p05` is what the 5th percentile of their times comes to, and the
    figure to quote: on a busy machine the mean tells of the others, and the best of many of one lucky call."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str  # gemm, thin_gemm, copy, triad, to_device, to_host, op, launch, round_trip, recording, idle_power
    unit: Literal["flops_per_s", "bytes_per_s", "s", "w"]
    dtype: str | None = None
    shape: tuple[Count, ...] = ()  # (m, k, n) of a product; (bytes,) touched by a copy
    threads: Annotated[Count, Field(ge=1)] = 1
    p05: Annotated[float, Field(ge=0)]  # from the 5th percentile of the times of all rounds
    best: Annotated[float, Field(ge=0)]  # from the shortest
    median: Annotated[float, Field(ge=0)]
    spread: Annotated[float, Field(ge=0)] | None = (
        None  # of `p05` over the rounds, (max - min) / median; None of one round
    )
    calls: Count


class Calibration(Event):
    """What this machine reaches, measured. What could not be measured is in `missing`, with the reason."""

    kind: Literal["calibration"] = "calibration"
    at: Moment
    device: str
    device_name: EncodableStr
    threads: tuple[Annotated[Count, Field(ge=1)], ...]  # the counts that were tried
    versions: dict[str, EncodableStr | None]
    measurements: tuple[Measurement, ...]
    missing: dict[str, EncodableStr] = Field(default_factory=dict)
    rounds: Count
    seconds: Seconds
    wall_per_cpu: float | None = None  # of this process while one thread worked; 1 where nobody else wanted the core
    others_on_gpu: Count | None = None  # other programs on the device; None on a CPU, or where NVML does not say
    others_reason: EncodableStr = ""


class Busy(BaseModel):
    """What else used the machine while the run trained. None is not known, which is not the same as nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slowdown: Annotated[float, Field(ge=0)] | None = None  # what the work took by what it would have taken undisturbed
    slowdown_method: EncodableStr = ""  # how it was had, or why it is not known
    gpu_processes: Count | None = None  # of others on the run's GPU: the most that were seen at once

    @property
    def is_busy(self) -> bool | None:
        if (self.slowdown or 0) > BUSY_FROM or self.gpu_processes:
            return True
        return None if self.slowdown is None and self.gpu_processes is None else False

    @property
    def in_words(self) -> str:
        """Why throughput and training time are worse than this machine's own; empty where they are not."""
        words = []
        if self.slowdown is not None and self.slowdown > BUSY_FROM:
            words.append(f"the work took {self.slowdown:.2f} times as long as undisturbed ({self.slowdown_method})")
        if self.gpu_processes:
            words.append(
                f"{self.gpu_processes} other process{'es' if self.gpu_processes > 1 else ''} used the same GPU"
            )
        return "; ".join(words)


BUSY_FROM = 1.2  # up to here the sampler, the system and the clock's own grain explain it


class HardwareSample(Event):
    """One beat of the sampler. A reading that failed is None; its reason is said once, in `missing`."""

    kind: Literal["hardware"] = "hardware"
    kept: ClassVar[Kept] = "columns"
    elapsed_s: Seconds
    readings: dict[str, float | None]  # names of engine.sampler.READINGS: unit in the name
    missing: dict[str, EncodableStr] = Field(default_factory=dict)
    busy: Busy | None = None  # since the run's start; said when it changes
