"""The hardware's energy counters: NVML's of GPU boards and RAPL's of CPU packages. Nothing here is estimated."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from engine.hardware import gpus, probe
from engine.hardware.nvml import NVML
from engine.hardware.rates import FAILURES, Unavailable

Devices = str | Sequence[str]  # of a run: one device, or the device of each rank

COUNTER_PERIOD_S = {
    "nvml": 0.1,  # measured by the ML.ENERGY project for NVML's energy counter; newer boards update it more often
    "rapl": 1e-3,  # Intel SDM, volume 3, "RAPL interfaces": the energy status registers update about every millisecond
}


@dataclass(frozen=True, slots=True)
class Counter:
    """An energy counter: `read_j` returns its joules."""

    read_j: Callable[[], float]
    wraps_at_j: float | None = None  # the value at which it starts again at zero


class Joules:
    """Joules that counters have counted together since the first call, when each wraps at most once between calls."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = counters
        self._last: list[float] | None = None
        self._joules = 0.0

    def __call__(self) -> float:
        """Joules since the first call. Raises Unavailable when a counter was reset, and what a failed reading raises."""
        now = [counter.read_j() for counter in self._counters]
        if self._last is not None:
            self._joules += sum(map(_energy_between, self._counters, self._last, now))
        self._last = now
        return self._joules


def _energy_between(counter: Counter, before_j: float, after_j: float) -> float:
    if after_j >= before_j:
        return after_j - before_j
    if counter.wraps_at_j is None:
        raise Unavailable("The energy counter was reset during the run.")
    return after_j + counter.wraps_at_j - before_j


def rapl_counters(powercap: Path = Path("/sys/class/powercap")) -> list[Counter]:
    """One counter per CPU package.

    Subdomains such as intel-rapl:0:1 are parts of intel-rapl:0, and the domain named psys contains the packages too.
    Adding them would count energy twice. Since 2020 only root can read these files (CVE-2020-8694).

    Raises:
        Unavailable: there is no counter, or one of them cannot be read.
    """
    try:
        domains = {path: (path / "name").read_text() for path in sorted(powercap.glob("intel-rapl:*"))}
        counters = [_rapl_counter(path) for path, name in domains.items() if name.startswith("package")]
    except OSError as error:
        raise Unavailable(f"RAPL is not readable here: {error.strerror}.") from None
    if not counters:
        raise Unavailable("RAPL is not readable here: the machine shows no CPU energy counter.")
    return counters


def _rapl_counter(domain: Path) -> Counter:
    energy = domain / "energy_uj"
    energy.read_text()  # raises OSError now, before the run, when we lack the permission
    return Counter(lambda: int(energy.read_text()) / 1e6, int((domain / "max_energy_range_uj").read_text()) / 1e6)


class EnergyMeter:
    """Measures joules between start() and stop() with the hardware's own counters; None with a reason without one.

    A run on GPUs is measured on the boards of its GPUs, a run on the CPU on the CPU packages. Both include what other
    programs used there. RAPL's counters wrap after minutes at full power: call update() more often than that (the
    Sampler does, at every beat).
    """

    def __init__(
        self,
        devices: Devices,
        *,
        nvml: Any = NVML,
        powercap: Path = Path("/sys/class/powercap"),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._devices = (devices,) if isinstance(devices, str) else tuple(dict.fromkeys(devices))
        self._nvml, self._powercap, self._clock = nvml, powercap, clock
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()  # the sampler's thread calls update(), the worker's thread stop()
        self._count: Joules | None = None  # while the counters are read
        self._is_measured = False  # counters were read from the start on, without a gap
        self._joules = 0.0
        self._began = self._read_at = 0.0  # clock
        self._method = "The energy meter was not started."

    def start(self) -> None:
        """Begin to measure. A failure becomes the reason that stop() returns."""
        with self._lock:
            try:
                counters, self._method = self._open()
                self._count = Joules(counters)
                self._joules = self._count()
                self._is_measured = True
                self._began = self._read_at = self._clock()
            except FAILURES as error:
                self._give_up(error)

    @property
    def source(self) -> Literal["nvml", "rapl", "none"]:
        """The kind of counter that is read; "none" before start() and where there is none."""
        if not self._is_measured:
            return "none"
        return "rapl" if probe.gpu_index(self._devices[0]) is None else "nvml"

    @property
    def window_s(self) -> float | None:
        """Seconds between the first and the last reading of the counter."""
        return self._read_at - self._began if self._is_measured else None

    @property
    def period_s(self) -> float | None:
        """Seconds between two updates of the counter: the ends of the window are known no better."""
        return COUNTER_PERIOD_S.get(self.source)

    def joules(self) -> float:
        """Joules from start() to the last update().

        Raises:
            Unavailable: there are none; the text is the reason.
        """
        if self._count is None:
            raise Unavailable("The energy counter is no longer read." if self._is_measured else self._method)
        return self._joules

    def update(self) -> None:
        """Read the counters and add what was used since the last call."""
        with self._lock:
            if self._count is None:
                return
            try:
                self._joules, self._read_at = self._count(), self._clock()
            except FAILURES as error:
                self._give_up(error)

    def stop(self) -> tuple[float | None, str]:
        """Joules since start() and how they were measured, or None and the reason."""
        self.update()
        with self._lock:
            measured, self._count = self._count is not None, None
            self._stack.close()
            return (self._joules if measured else None), self._method

    def _open(self) -> tuple[list[Counter], str]:
        if probe.gpu_index(self._devices[0]) is None:
            return rapl_counters(self._powercap), "RAPL: the CPU packages, other programs included, memory not"
        names, boards = (
            ", ".join(self._devices),
            "the whole board" if len(self._devices) == 1 else "whole boards, added up",
        )
        method = f"NVML energy counter of {names}, {boards}; moves about every 0.1 s"
        handles = [gpus.handle_of(device, self._stack, self._nvml) for device in self._devices]
        return [Counter(gpus.quantities(self._nvml, handle)["energy_j"]) for handle in handles], method

    def _give_up(self, error: Exception) -> None:
        """Forget the joules: after a gap they would be too few."""
        self._count, self._is_measured = None, False
        self._method = str(error) if isinstance(error, Unavailable) else f"The energy counter failed: {error}."
