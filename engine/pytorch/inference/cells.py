"""The measurements of one combination of batch size, threads, precision and runtime, and its Latency event."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.common.downsample import minmax
from engine.config.tasks import Cell, Infer
from engine.events.inference import Histogram, Latency, Quantiles
from engine.hardware import contention, energy_counters
from engine.hardware.rates import Unavailable
from engine.pytorch.inference.runtimes import Answering, Form
from engine.studies.inference import RUNTIME_WORDS

_POINTS, _POINTS_MEANWHILE = 2_000, 200  # of a timeline: in the last event of a combination, and in the others
ENERGY_ERROR = 0.1  # the share of the energy that the resolution of the counter can be wrong by


@dataclass(slots=True)
class MeasuredCell:
    """One combination and all its requests so far."""

    cell: Cell
    form: Form
    answering: Answering | None = None  # None before the first round, and after it ran out of memory
    inputs: list[Any] = field(default_factory=list)
    begun: list[np.ndarray] = field(default_factory=list)  # ns; in the open loop the arrivals of the requests
    latency: list[np.ndarray] = field(default_factory=list)  # ns
    queue: list[np.ndarray] = field(default_factory=list)  # ns, open loop only
    first: list[np.ndarray] = field(default_factory=list)  # ns to the first character, text only
    requests: int = 0
    seconds: float = 0.0  # of the timed slices
    took_s: float = 0.0  # wall time of the timed slices in which interference could be measured ...
    undisturbed_s: float = 0.0  # ... and what they would have taken alone on the machine
    offered: int = 0  # open loop: arrivals ...
    reached: int = 0  # ... and those answered within the window
    unanswered: int = 0
    prepare_s: float = 0.0
    first_request_s: float | None = None
    warm_up_s: float = 0.0
    warm_up_requests: int = 0
    peak_bytes: int | None = None
    memory_method: str = ""
    joules: float | None = 0.0

    @property
    def form_key(self) -> tuple[str, str]:
        """Precision and runtime: combinations that share them share the form."""
        return self.form.precision, self.form.runtime

    def in_words(self) -> str:
        """The combination as progress events show it."""
        cell = self.cell
        at = f"batch {cell.batch_size} x {cell.threads} thread{'' if cell.threads == 1 else 's'}"
        return f"{at}, {RUNTIME_WORDS[cell.runtime]}{'' if cell.precision == 'fp32' else f' in {cell.precision}'}"

    def add(self, begun: np.ndarray, latency: np.ndarray, seconds: float) -> None:
        """Add timed requests: start (n,) and latency (n,) in ns, and the seconds of the slice they were made in."""
        self.requests += len(begun)
        self.seconds += seconds
        self.begun.append(begun)
        self.latency.append(latency)

    def latency_event(
        self, infer: Infer, number: int, rounds: int, origin_ns: int, meter: energy_counters.EnergyMeter
    ) -> Latency:
        """The Latency event of all requests up to round `number` of `rounds`; `origin_ns` is the run's time 0."""
        begun, latency = np.concatenate(self.begun), np.concatenate(self.latency) / 1e9
        kept = minmax(latency, _POINTS if number == rounds else _POINTS_MEANWHILE)
        is_text, is_open = bool(self.first), infer.load == "open"
        ttft, tpot = self._token_times(latency, infer.new_tokens) if is_text else (None, None)
        samples = (self.reached if is_open else self.requests) * self.cell.batch_size
        joules, method = self._energy(rounds, meter)
        return Latency(
            cell=self.cell,
            load=infer.load,
            round=number,
            rounds=rounds,
            requests=self.requests,
            seconds=self.seconds,
            **Quantiles.of(latency).model_dump(),
            samples_per_s=samples / self.seconds,
            histogram=Histogram.of(latency),
            start_s=((begun - origin_ns) / 1e9)[kept],
            latency_s=latency[kept],
            prepare_s=self.prepare_s,
            first_request_s=self.first_request_s,
            first_method=self.form.cold_method,
            warm_up_s=self.warm_up_s,
            warm_up_requests=self.warm_up_requests,
            wall_per_cpu=self.took_s / self.undisturbed_s if self.undisturbed_s else None,
            peak_memory_bytes=self.peak_bytes,
            memory_method=self.memory_method,
            energy_j=joules,
            energy_method=method,
            offered_per_s=self.offered / self.seconds if is_open else None,
            reached_per_s=self.reached / self.seconds if is_open else None,
            queue=Quantiles.of(np.concatenate(self.queue) / 1e9) if self.queue else None,
            unanswered=self.unanswered,
            ttft=ttft,
            tpot=tpot,
            tokens_per_s=samples * infer.new_tokens / self.seconds if is_text else None,
            cache=infer.cache if is_text else None,
        )

    def _token_times(self, latency: np.ndarray, new_tokens: int) -> tuple[Quantiles | None, Quantiles | None]:
        """Time to the first character, and time per character after it; of `latency` (n,) in seconds."""
        first = np.concatenate(self.first) / 1e9
        answered = first > 0
        if not answered.any():
            return None, None
        ttft = Quantiles.of(first[answered])
        # Both times count from the arrival, so the time in the queue cancels out.
        tpot = Quantiles.of((latency - first)[answered] / (new_tokens - 1)) if new_tokens > 1 else None
        return ttft, tpot

    def _energy(self, rounds: int, meter: energy_counters.EnergyMeter) -> tuple[float | None, str]:
        """Joules of the timed slices and how they were measured; None with the reason if the counter is too slow."""
        period = meter.period_s
        if self.joules is None or period is None:
            return None, meter.stop()[1] if meter.source == "none" else "The energy counter failed."
        if (slices := len(self.latency)) * period > 1.05 * ENERGY_ERROR * self.seconds:
            return None, (
                f"The counter moves every {period:g} s, and {slices} slices of {self.seconds / slices:.2g} s are too "
                f"short for it: set infer.seconds={math.ceil(rounds * period / ENERGY_ERROR):g}."
            )
        return self.joules, f"{meter.source}, over the timed slices"


class InterferenceTimer:
    """Context manager of a timed slice: adds its wall time, and the time it would have taken undisturbed, to a cell."""

    def __init__(self, measured: MeasuredCell) -> None:
        self._measured = measured
        self.is_one_busy_thread = False  # one thread that never sleeps: undisturbed it takes its own CPU time

    def __enter__(self) -> InterferenceTimer:
        self._wall, self._cpu = time.perf_counter(), time.thread_time()
        self._scheduled = contention.scheduled_s()
        return self

    def __exit__(self, *error: object) -> None:
        wall, cpu = time.perf_counter() - self._wall, time.thread_time() - self._cpu
        now = contention.scheduled_s()
        if self.is_one_busy_thread:
            self._measured.took_s += wall
            self._measured.undisturbed_s += cpu
        elif now and self._scheduled:
            ran, waited = (after - before for after, before in zip(now, self._scheduled, strict=True))
            self._measured.took_s += ran + waited
            self._measured.undisturbed_s += ran


class EnergyTimer:
    """Context manager of a timed slice: adds its joules to a cell, whose joules become None when the counter fails."""

    def __init__(self, meter: energy_counters.EnergyMeter, measured: MeasuredCell) -> None:
        self._meter, self._measured = meter, measured

    def _read(self) -> float | None:
        self._meter.update()
        try:
            return self._meter.joules()
        except Unavailable:
            return None

    def __enter__(self) -> None:
        self._before = self._read()

    def __exit__(self, *error: object) -> None:
        now, before, joules = self._read(), self._before, self._measured.joules
        is_known = joules is not None and before is not None and now is not None
        self._measured.joules = joules + now - before if is_known else None  # type: ignore[operator]
