"""Events about the machine: hardware readings, interference of other programs, calibration."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from engine.events.base import Count, EncodableStr, Event, Kept, Moment, Seconds


class Measurement(BaseModel):
    """One quantity of a calibration, from many calls.

    `p05` is the figure to quote: it is computed from the 5th percentile of the call times. The mean would include the
    interference of other programs, and the best of many calls can be an outlier.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str  # gemm, thin_gemm, copy, triad, to_device, to_host, op, launch, round_trip, recording, idle_power
    unit: Literal["flops_per_s", "bytes_per_s", "s", "w"]
    dtype: str | None = None
    shape: tuple[Count, ...] = ()  # (m, k, n) of a matrix product; (bytes,) read or written by a copy
    threads: Annotated[Count, Field(ge=1)] = 1
    p05: Annotated[float, Field(ge=0)]  # from the 5th percentile of the call times of all rounds
    best: Annotated[float, Field(ge=0)]  # from the shortest call time
    median: Annotated[float, Field(ge=0)]
    # (max - min) / median of the p05 of each round; None with one round
    spread: Annotated[float, Field(ge=0)] | None = None
    calls: Count
    # (time on a core + time waiting for one) / time on a core, of all threads; None with one thread, or if unknown
    slowdown: Annotated[float, Field(ge=0)] | None = None


class Calibration(Event):
    """Measured peaks and overheads of this machine. `missing` has a reason for each quantity that was not measured."""

    kind: Literal["calibration"] = "calibration"
    at: Moment
    device: str
    device_name: EncodableStr
    threads: tuple[Annotated[Count, Field(ge=1)], ...]  # the thread counts that were measured
    versions: dict[str, EncodableStr | None]
    measurements: tuple[Measurement, ...]
    missing: dict[str, EncodableStr] = Field(default_factory=dict)
    rounds: Count
    seconds: Seconds
    wall_per_cpu: float | None = None  # wall / CPU time with one busy thread; 1 if no other program used the core
    others_on_gpu: Count | None = None  # other programs on the GPU; None on a CPU, or if NVML does not report them
    others_reason: EncodableStr = ""


class Busy(BaseModel):
    """Use of the machine by other programs during the run. None means unknown."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    slowdown: Annotated[float, Field(ge=0)] | None = None  # duration of the work / its duration without other programs
    slowdown_method: EncodableStr = ""  # how it was measured, or why it is unknown
    gpu_processes: Count | None = None  # most processes of other programs seen at once on the run's GPU

    @property
    def is_busy(self) -> bool | None:
        """Whether other programs slowed the run or used its GPU; None if unknown."""
        if (self.slowdown or 0) > BUSY_FROM or self.gpu_processes:
            return True
        return None if self.slowdown is None and self.gpu_processes is None else False

    @property
    def in_words(self) -> str:
        """How other programs affected throughput and training time; "" if they did not."""
        words = []
        if self.slowdown is not None and self.slowdown > BUSY_FROM:
            words.append(
                f"training took {self.slowdown:.2f} times as long as without other programs ({self.slowdown_method})"
            )
        if self.gpu_processes:
            words.append(
                f"{self.gpu_processes} other process{'es' if self.gpu_processes > 1 else ''} used the same GPU"
            )
        return "; ".join(words)


BUSY_FROM = 1.2  # smaller slowdowns come from the sampler, the operating system and the resolution of the clock


class HardwareSample(Event):
    """One sample of the hardware readings. A failed reading is None; its first sample has the reason in `missing`."""

    kind: Literal["hardware"] = "hardware"
    kept: ClassVar[Kept] = "columns"
    elapsed_s: Seconds
    readings: dict[str, float | None]  # keys of engine.hardware.sampler.READINGS, with the unit in the name
    missing: dict[str, EncodableStr] = Field(default_factory=dict)
    busy: Busy | None = None  # since the start of the run; only in samples where it changed
