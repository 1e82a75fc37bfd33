"""The calibration task: it measures the peaks of a device for matrix products and memory, overheads, and idle power.

Each quantity is timed as many calls of about a millisecond, in rounds that go through all quantities in turn. Other
programs disturb some calls and some rounds, but they hardly change the 5th percentile of the times: beside ten busy
programs it gave 94 GFLOP/s, where the mean gave 65 and one long product 9.8. Warm-up calls are never counted.

That holds for one thread. A call of several threads is disturbed whenever one of them is, so beside busy programs hardly
any call is undisturbed. The scheduler's own record says how long the threads waited for a core: rounds in which they
waited are repeated and, if no quiet moment comes, the figure is not known.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pynvml
import torch

from engine.common import units
from engine.common.errors import OutOfMemory
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Progress, Started
from engine.events.machine import Calibration, Measurement
from engine.hardware import contention, energy_counters, probe, sampler
from engine.hardware.nvml import NVML, open_nvml
from engine.hardware.rates import Unavailable
from engine.measurement.calibration import BUSY, NOT_QUIET
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, synchronize, torch_device
from engine.pytorch.tasks.calibration_jobs import SCRATCH_FILE, Call, Job, jobs_for, thread_counts

BUDGET_S = 24.0  # of timed calls, on any machine; with warm-up and buffers about 30 s
_SLICE_S = (0.02, 0.15)  # of one quantity in one round, at least and at most
_ROUNDS = 3
_REPEAT_S = 12.0  # at most this long, disturbed rounds of several threads are repeated
_CALL_S = 1e-3  # calls that are shorter are timed several at once
_LONGEST_CALL_S = 0.06  # a size that takes longer is left out, because so few calls have no 5th percentile
_IDLE_S = 2.0  # twenty periods of NVML's energy counter, which moves about every 0.1 s
_PROGRESS_EVERY_S = 0.2
Scheduled = Callable[[], tuple[float, float] | None]  # seconds on a core, and waiting for one
_LEAST_FREE = 2**28  # bytes of memory below which a calibration does not start


def calibrate(
    config: RunConfig,
    folder: Path,
    *,
    clock: Clock = time.perf_counter,
    budget_s: float = BUDGET_S,
    rounds: int = _ROUNDS,
    nvml: Any = NVML,
    scheduled: Scheduled = contention.scheduled_s,
) -> Generator[AnyEvent, None, None]:
    """Measure `config.device` with 1 to `config.threads` threads; yields Started, Progress and Calibration events.

    `budget_s` is the wall time in seconds of all timed calls, in `rounds` rounds; on a busy machine it takes up to half
    as long again. `clock` gives seconds. `scheduled` gives the seconds that the threads of this process were on a core and
    waited for one, or None. Nothing is left in `folder`.

    Raises:
        DeviceError: PyTorch does not see the device.
        OutOfMemory: Too little memory is free for buffers that are larger than every cache.
    """
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config)
    free = probe.free_memory_bytes(config.device)
    if free is not None and free < _LEAST_FREE:
        raise OutOfMemory(
            f"Only {units.nbytes(free)} are free on {config.device}: too little to measure its memory.",
            fix="Close other programs, then calibrate again.",
        )
    machine, conditions = probe.probe(), environment(device)
    yield Started(
        at=time.time(),
        parameters=0,
        train_flops_per_example=0,
        train_examples=1,
        test_examples=0,
        total_steps=None,
        setup_s=clock() - begun,
        environment=conditions,
    )
    origin = clock()
    bench = Bench(config, device, clock, rounds, scheduled)
    missing: dict[str, str] = {"all_reduce": "The run has one rank, so no gradients are exchanged."}
    idle = yield from bench.idle_power(min(_IDLE_S, budget_s), nvml, missing)
    jobs = jobs_for(device, machine, config.threads, free, folder, missing)
    try:
        yield from bench.measure(jobs, budget_s)
    finally:
        set_up_arithmetic(config)
        (folder / SCRATCH_FILE).unlink(missing_ok=True)
    others, others_reason = other_programs(config.device, nvml)  # after the jobs: now NVML lists this process
    missing |= left_out(jobs)
    yield Calibration(
        at=time.time(),
        device=config.device,
        device_name=str(conditions["device"]),
        threads=tuple(thread_counts(config.threads)),
        versions={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "driver": None if device.type == "cpu" else str(conditions.get("gpu_driver") or "unknown"),
        },
        measurements=(*(m for job in jobs if (m := measurement_of(job))), *idle),
        missing=missing,
        rounds=rounds,
        seconds=clock() - origin,
        wall_per_cpu=bench.wall_per_cpu() if device.type == "cpu" else None,
        others_on_gpu=others,
        others_reason=others_reason,
    )


class Bench:
    """Times jobs in turn and yields Progress events, between which the run can be stopped."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        clock: Clock,
        rounds: int,
        scheduled: Scheduled = contention.scheduled_s,
    ) -> None:
        self._config, self._device, self._clock, self._rounds = config, device, clock, rounds
        self._scheduled = scheduled
        self._wall_s = self._cpu_s = 0.0  # of slices with one thread
        self._reported = -math.inf
        self._speed: dict[str, float] = {}  # by group: the most work per second so far

    def measure(self, jobs: Sequence[Job], budget_s: float) -> Iterator[Progress]:
        """Time all jobs in turn, round by round, for about `budget_s` seconds; the times are added to `job.rounds`.

        Jobs that had no quiet round are then repeated, for at most half as long, until each has one.
        """
        low, high = _SLICE_S
        slice_s = min(high, max(min(low, budget_s / 100), budget_s / (len(jobs) * self._rounds)))
        total = len(jobs) * self._rounds
        for number in range(self._rounds):
            for place, job in enumerate(jobs):
                yield from self._progress(_in_words(job), number * len(jobs) + place, total)
                self._time_if_short(job, slice_s)
        until = self._clock() + min(_REPEAT_S, budget_s / 2)
        while (again := [job for job in jobs if not job.rounds and job.num_disturbed]) and self._clock() < until:
            for job in again:
                yield from self._progress("Waiting for a quiet moment", total - 1, total)
                self._time_if_short(job, slice_s)
        yield Progress(text="Done", done=total, total=total)

    def _time_if_short(self, job: Job, slice_s: float) -> None:
        """One round of a job, unless its call takes too long.

        A product that was never timed is judged by the highest speed of the other sizes so far, and in every round again:
        one slow call beside other programs must not leave out a size. The kernels of some dtypes are a hundred times
        slower than others.
        """
        speed = self._speed.get(job.group)
        expected_s = job.amount / speed if speed and job.name == "gemm" else 0.0
        job.is_too_long = expected_s > _LONGEST_CALL_S and not job.rounds
        if not job.is_too_long:
            self._time(job, slice_s)

    def _progress(self, text: str, done: int, total: int) -> Iterator[Progress]:
        if self._clock() - self._reported >= _PROGRESS_EVERY_S:
            self._reported = self._clock()
            yield Progress(text=text, done=done, total=total)

    def _time(self, job: Job, slice_s: float) -> None:
        """One round of a job: time batches of calls, each about `_CALL_S` long, for `slice_s` seconds."""
        torch.set_num_threads(job.threads)
        torch.set_float32_matmul_precision("high" if job.dtype == "tf32" else "highest")
        call, wait = job.make(), (lambda: None) if job.synchronizes else (lambda: synchronize(self._device))
        took = self._shortest_s(call, wait, 2)  # the first call allocates and chooses a kernel
        times = max(1, math.ceil(_CALL_S / max(took, 1e-9)))
        before = self._scheduled() if job.threads > 1 else None
        wall, cpu, until = self._clock(), time.thread_time(), self._clock() + slice_s
        found: list[float] = []
        while not found or self._clock() < until:
            wait()
            begun = self._clock()
            for _ in range(times):
                call()
            wait()
            found.append((self._clock() - begun) / times / job.per_call)
        if job.threads == 1:
            self._wall_s += self._clock() - wall
            self._cpu_s += time.thread_time() - cpu
        fastest = job.amount / max(min(took, min(found) * job.per_call), 1e-9)
        self._speed[job.group] = max(self._speed.get(job.group, 0.0), fastest)
        self._keep(job, found, before, self._scheduled() if before else None)

    def _keep(
        self, job: Job, found: list[float], before: tuple[float, float] | None, after: tuple[float, float] | None
    ) -> None:
        """Keep the times of a round, unless its threads had to wait for a core."""
        if before and after:
            on_core_s, waited_s = after[0] - before[0], after[1] - before[1]
            if on_core_s + waited_s > BUSY * on_core_s:
                job.num_disturbed += 1
                return
            job.cores_s.append((on_core_s, waited_s))
        job.rounds.append(found)

    def _shortest_s(self, call: Call, wait: Call, calls: int) -> float:
        """Seconds of the shortest of some calls."""
        shortest = math.inf
        for _ in range(calls):
            wait()
            begun = self._clock()
            call()
            wait()
            shortest = min(shortest, self._clock() - begun)
        return shortest

    def wall_per_cpu(self) -> float | None:
        """Wall time over CPU time of the calls with one thread, about 1 on a quiet machine; None if none was timed."""
        return self._wall_s / self._cpu_s if self._cpu_s else None

    def idle_power(
        self, seconds: float, nvml: Any, missing: dict[str, str]
    ) -> Generator[Progress, None, list[Measurement]]:
        """Measure the mean power in watts over `seconds` in which this program sleeps, from the energy counter.

        Without a counter the list is empty and the reason is written to `missing`.
        """
        exists, method = _energy_counter(self._config.device, nvml)
        if not exists:
            missing["idle_power"] = method
            return []
        meter = energy_counters.EnergyMeter(self._config.device, nvml=nvml)
        synchronize(self._device)
        meter.start()
        begun = self._clock()
        while (spent := self._clock() - begun) < seconds:
            yield from self._progress("Idle power", 0, 1)
            time.sleep(min(0.1, seconds - spent))
        joules, method = meter.stop()
        spent = self._clock() - begun
        if joules is None or not spent:
            missing["idle_power"] = method
            return []
        watts = joules / spent
        return [Measurement(name="idle_power", unit="w", p05=watts, best=watts, median=watts, calls=1)]


def _energy_counter(device: str, nvml: Any) -> tuple[bool, str]:
    """Whether there is an energy counter, and how it is read or why there is none."""
    meter = energy_counters.EnergyMeter(device, nvml=nvml)
    meter.start()
    joules, method = meter.stop()
    return joules is not None, method


def _in_words(job: Job) -> str:
    what = {
        "gemm": "Matrix products",
        "thin_gemm": "Thin matrix products",
        "copy": "Memory, copying",
        "triad": "Memory, adding",
        "to_device": "Copies to the device",
        "to_host": "Copies to the host",
        "op": "Cost of an operation",
        "launch": "Cost of a kernel launch",
        "round_trip": "Cost of waiting for a kernel",
        "recording": "Cost of recording",
    }[job.name]
    threads = f", {job.threads} threads" if job.threads > 1 else ""
    return f"{what}{f' in {job.dtype}' if job.dtype else ''}{threads}"


def left_out(jobs: Sequence[Job]) -> dict[str, str]:
    """Why sizes, and whole groups, were not measured: by what a calibration calls them, the reason.

    A group is left out as a whole if one of its sizes never had a quiet round, because its peak could be at this size.
    """
    reasons = {}
    for job in jobs:
        if job.is_too_long:
            reasons[f"{job.group} of size {job.shape[0]}"] = (
                f"A product of this size takes longer than {units.duration(_LONGEST_CALL_S)}."
            )
    disturbed = {job.group for job in jobs if job.num_disturbed and not job.rounds}
    for job in jobs:
        if job.group in disturbed:
            job.rounds.clear()
            reasons[job.group] = NOT_QUIET
    return reasons


def measurement_of(job: Job) -> Measurement | None:
    """The statistics of a job's times, in FLOP/s, bytes/s or seconds as its unit says; None if it was not timed.

    `p05`, `best` and `median` are those of all calls. `spread` is the range of the rounds' 5th percentiles divided by
    their median, None with one round.
    """
    if not job.rounds:
        return None
    times = np.concatenate([np.asarray(r) for r in job.rounds])
    rounds = [_as_unit(job, float(np.percentile(r, 5))) for r in job.rounds]
    middle = statistics.median(rounds)
    return Measurement(
        name=job.name,
        unit=job.unit,
        dtype=job.dtype,
        shape=job.shape,
        threads=job.threads,
        p05=_as_unit(job, float(np.percentile(times, 5))),
        best=_as_unit(job, float(times.min())),
        median=_as_unit(job, float(np.median(times))),
        spread=(max(rounds) - min(rounds)) / middle if len(rounds) > 1 and middle else None,
        calls=len(times),
        slowdown=_slowdown(job),
    )


def _slowdown(job: Job) -> float | None:
    on_core_s, waited_s = (sum(seconds) for seconds in zip(*job.cores_s, strict=True)) if job.cores_s else (0.0, 0.0)
    return (on_core_s + waited_s) / on_core_s if on_core_s else None


def _as_unit(job: Job, seconds: float) -> float:
    return seconds * job.amount if job.unit == "s" else job.amount / max(seconds, 1e-12)


def other_programs(device: str, nvml: Any) -> tuple[int | None, str]:
    """The number of other programs that compute on a GPU; None with the reason, which is "" for the CPU."""
    index = probe.gpu_index(device)
    if index is None:
        return None, ""
    with open_nvml(nvml) as (handles, reason):
        if index >= len(handles):
            return None, reason or "NVML does not show this GPU."
        others = sampler.OtherGpuProcesses(
            lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handles[index]), (os.getpid(),)
        )
        try:
            return int(others()), ""
        except Unavailable as error:
            return None, str(error)
        except pynvml.NVMLError as error:
            return None, f"NVML does not list the GPU's programs: {str(error).rstrip('.')}."
