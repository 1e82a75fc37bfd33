"""The task that measures what a device reaches: matrix products, memory, overheads, thread counts, idle power.

Each quantity is timed as many calls of about a millisecond, in rounds that go through all quantities in turn: other
programs disturb some calls and some rounds, and the 5th percentile of the times hardly moves (under 10 times the load of
one program it read 94 GFLOP/s where the mean read 65 and one long product 9.8). Warm-up calls are never counted.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pynvml
import torch

from engine.common import units
from engine.common.errors import OutOfMemory
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Progress, Started
from engine.events.machine import Calibration, Measurement
from engine.events.training import Steps
from engine.hardware import energy_counters, probe, sampler
from engine.hardware.nvml import NVML, open_nvml
from engine.hardware.probe import Machine
from engine.hardware.rates import Unavailable
from engine.pytorch.setup import set_up_arithmetic, synchronize, torch_device
from engine.pytorch.tasks.train import Clock, environment
from engine.pytorch.training import kernels
from engine.store.event_log import EventLog

BUDGET_S = 24.0  # of timed calls, on any machine; with warm-up and buffers about 30 s
_SLICE_S = (0.02, 0.15)  # of one quantity in one round, at least and at most
_ROUNDS = 3
_CALL_S = 1e-3  # shorter ones are timed several at once
_LONGEST_CALL_S = 0.06  # a size that takes longer is left out: so few calls have no 5th percentile
_IDLE_S = 2.0  # more than ten periods of NVML's energy counter, which moves about every 0.1 s
_TELL_EVERY_S = 0.2

_CPU_SIZES = (128, 256, 512, 1_024, 2_048)
_GPU_SIZES = (512, 1_024, 2_048, 4_096, 8_192)
THIN = ((64, 784, 128), (64, 128, 10), (1, 784, 128), (64, 512, 256))  # (m, k, n): of a small MLP, and of one example
_CPU_COPIES = (2**18, 2**20, 2**22, 2**24)  # bytes touched; then one beyond every cache
_GPU_COPIES = (2**20, 2**22, 2**24, 2**26, 2**28, 2**30, 2**32)
_BEYOND_CACHE = 4  # times the last cache
_LARGEST_COPY = 2**30
_MEMORY_SHARE = 8  # a buffer takes at most so small a part of what is free
_LEAST_FREE = 2**28
_TRANSFER = 2**26  # bytes between host and device
_RECORD_STEPS = 100  # steps of one record: a run of 1,000 steps/s reads its losses back after so many

_FP16 = {"avx512_fp16", "amx_fp16"}
_TURING, _AMPERE = (7, 5), (8, 0)  # the first with int8 products in tensor cores; with tf32 and bf16

Call = Callable[[], object]
Unit = Literal["flops_per_s", "bytes_per_s", "s"]
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class _Job:
    """A quantity to be measured: `make` gives the call, whose work is `amount` of what its unit counts per second."""

    name: str
    unit: Unit
    amount: float
    make: Callable[[], Call]
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    threads: int = 1
    per_call: int = 1  # operations of one call of `make`'s
    synchronizes: bool = False  # the call waits for the device by itself
    rounds: list[list[float]] = field(default_factory=list)  # seconds of one call, round by round
    too_long: bool = False


def calibrate(
    config: RunConfig,
    folder: Path,
    *,
    clock: Clock = time.perf_counter,
    budget_s: float = BUDGET_S,
    rounds: int = _ROUNDS,
    nvml: Any = NVML,
) -> Generator[AnyEvent, None, None]:
    """Measure `config.device` with 1 to `config.threads` threads; yields Started, Progress events, and a Calibration.

    `budget_s` is the wall time in seconds of all timed calls, in `rounds` rounds; `clock` gives seconds. Nothing is left
    in `folder`. Raises DeviceError where PyTorch does not see the device, and OutOfMemory where too little is free for
    buffers that no cache holds.
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
    machine, said = probe.probe(), environment(device)
    yield Started(
        at=time.time(), parameters=0, train_flops_per_example=0, train_examples=1, test_examples=0, total_steps=None,
        setup_s=clock() - begun, environment=said,
    )  # fmt: skip
    origin = clock()
    bench = _Bench(config, device, clock, rounds)
    missing: dict[str, str] = {"all_reduce": "The run has one rank: there is nobody to exchange gradients with."}
    idle = yield from bench.idle_power(min(_IDLE_S, budget_s), nvml, missing)
    jobs = _jobs(device, machine, config.threads, free, folder, missing)
    try:
        yield from bench.measure(jobs, budget_s)
    finally:
        set_up_arithmetic(config)
        (folder / _SCRATCH).unlink(missing_ok=True)
    others, others_reason = _others_on(config.device, nvml)  # now the driver knows this process
    for job in jobs:
        if job.too_long and not any(j.name == job.name and j.dtype == job.dtype and j.rounds for j in jobs):
            missing[f"{job.name} {job.dtype}"] = f"One product took longer than {units.duration(_LONGEST_CALL_S)}."
    yield Calibration(
        at=time.time(),
        device=config.device,
        device_name=str(said["device"]),
        threads=tuple(thread_counts(config.threads)),
        versions={
            "torch": torch.__version__, "python": platform.python_version(), "cuda": torch.version.cuda,
            "driver": None if device.type == "cpu" else str(said.get("gpu_driver") or "unknown"),
        },
        measurements=(*(m for job in jobs if (m := measurement_of(job))), *idle),
        missing=missing,
        rounds=rounds,
        seconds=clock() - origin,
        wall_per_cpu=bench.wall_per_cpu() if device.type == "cpu" else None,
        others_on_gpu=others,
        others_reason=others_reason,
    )  # fmt: skip


def thread_counts(most: int) -> list[int]:
    """The thread counts to measure: 1 to 4, then doubling, and `most` (at least 1) itself, ascending."""
    counts = [n for n in range(1, most + 1) if n <= 4]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == most else [*counts, most]


class _Bench:
    """Times jobs in turn, and says how far it is: between two events the run can be stopped."""

    def __init__(self, config: RunConfig, device: torch.device, clock: Clock, rounds: int) -> None:
        self._config, self._device, self._clock, self._rounds = config, device, clock, rounds
        self._wall_s = self._cpu_s = 0.0  # of slices with one thread
        self._told = -math.inf
        self._speed: dict[tuple[str, str | None, int], float] = {}  # of products: work per second at the last size

    def measure(self, jobs: Sequence[_Job], budget_s: float) -> Iterator[Progress]:
        """Time all jobs in turn, round by round, for about `budget_s` seconds; their times go to `job.rounds`."""
        low, high = _SLICE_S
        slice_s = min(high, max(min(low, budget_s / 100), budget_s / (len(jobs) * self._rounds)))
        total = len(jobs) * self._rounds
        for number in range(self._rounds):
            for place, job in enumerate(jobs):
                yield from self._tell(_in_words(job), number * len(jobs) + place, total)
                if number == 0:  # a size is in all rounds or in none
                    job.too_long = self._would_take(job) > _LONGEST_CALL_S
                if not job.too_long:
                    self._time(job, slice_s)
        yield Progress(text="Done", done=total, total=total)

    def _would_take(self, job: _Job) -> float:
        """Seconds of one call of a larger product, by the speed of the last: some kernels are a hundred times slower."""
        speed = self._speed.get((job.name, job.dtype, job.threads))
        return job.amount / speed if speed and job.name == "gemm" else 0.0

    def _tell(self, text: str, done: int, total: int) -> Iterator[Progress]:
        if self._clock() - self._told >= _TELL_EVERY_S:
            self._told = self._clock()
            yield Progress(text=text, done=done, total=total)

    def _time(self, job: _Job, slice_s: float) -> None:
        """One round of a quantity: seconds of a call, from batches of about `_CALL_S`, for `slice_s`."""
        torch.set_num_threads(job.threads)
        torch.set_float32_matmul_precision("high" if job.dtype == "tf32" else "highest")
        call, wait = job.make(), (lambda: None) if job.synchronizes else (lambda: synchronize(self._device))
        took = self._seconds(call, wait, 2)  # the first allocates and picks a kernel
        self._speed[job.name, job.dtype, job.threads] = job.amount / max(took, 1e-9)
        times = max(1, math.ceil(_CALL_S / max(took, 1e-9)))
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
        job.rounds.append(found)

    def _seconds(self, call: Call, wait: Call, calls: int) -> float:
        """The shortest of some calls, one by one."""
        shortest = math.inf
        for _ in range(calls):
            wait()
            begun = self._clock()
            call()
            wait()
            shortest = min(shortest, self._clock() - begun)
        return shortest

    def wall_per_cpu(self) -> float | None:
        """Wall time over CPU time of the calls with one thread: about 1 on a quiet machine. None where none was timed."""
        return self._wall_s / self._cpu_s if self._cpu_s else None

    def idle_power(
        self, seconds: float, nvml: Any, missing: dict[str, str]
    ) -> Generator[Progress, None, list[Measurement]]:
        """Mean power in watts over `seconds` in which this program does nothing, from the energy counter.

        Without a counter the list is empty and `missing` gets the reason.
        """
        is_there, method = _energy_counter(self._config.device, nvml)
        if not is_there:
            missing["idle_power"] = method
            return []
        meter = energy_counters.EnergyMeter(self._config.device, nvml=nvml)
        synchronize(self._device)
        meter.start()
        begun = self._clock()
        while (spent := self._clock() - begun) < seconds:
            yield from self._tell("Idle power", 0, 1)
            time.sleep(min(0.1, seconds - spent))
        joules, method = meter.stop()
        spent = self._clock() - begun
        if joules is None or not spent:
            missing["idle_power"] = method
            return []
        watts = joules / spent
        return [Measurement(name="idle_power", unit="w", p05=watts, best=watts, median=watts, calls=1)]


def _energy_counter(device: str, nvml: Any) -> tuple[bool, str]:
    """Whether there is an energy counter, and why not."""
    meter = energy_counters.EnergyMeter(device, nvml=nvml)
    meter.start()
    joules, method = meter.stop()
    return joules is not None, method


def _in_words(job: _Job) -> str:
    what = {
        "gemm": "Matrix products", "thin_gemm": "Thin matrix products", "copy": "Memory, copying", "triad": "Memory, adding",
        "to_device": "Copies to the device", "to_host": "Copies to the host", "op": "Cost of an operation",
        "launch": "Cost of a kernel launch", "round_trip": "Cost of waiting for a kernel", "recording": "Cost of recording",
    }[job.name]  # fmt: skip
    threads = f", {job.threads} threads" if job.threads > 1 else ""
    return f"{what}{f' in {job.dtype}' if job.dtype else ''}{threads}"


def measurement_of(job: _Job) -> Measurement | None:
    """The statistics of a job's times, in FLOP/s, bytes/s or seconds as its unit says; None where it was not timed.

    `p05`, `best` and `median` are of all calls. `spread` is the range of the rounds' 5th percentiles over their median,
    None with one round.
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
    )


def _as_unit(job: _Job, seconds: float) -> float:
    return seconds * job.amount if job.unit == "s" else job.amount / max(seconds, 1e-12)


# --- what there is to measure -------------------------------------------------------------------------------------

_SCRATCH = ".recording"


def _jobs(
    device: torch.device, machine: Machine, threads: int, free: int | None, folder: Path, missing: dict[str, str]
) -> list[_Job]:
    counts = thread_counts(threads) if device.type == "cpu" else [1]
    jobs: list[_Job] = []
    for dtype in _dtypes(device, machine, missing):
        sizes = _CPU_SIZES if device.type == "cpu" else _GPU_SIZES
        for n in counts:
            jobs += [_gemm(device, dtype, (size, size, size), n) for size in sizes]
            if dtype == "fp32":
                jobs += [_gemm(device, dtype, shape, n, name="thin_gemm") for shape in THIN]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TURING:
        if product := kernels.int_mm():
            jobs += [_int8(device, size, product) for size in _GPU_SIZES]
        else:
            missing["gemm int8"] = f"PyTorch {torch.__version__} has no product of int8 matrices (torch._int_mm)."
    jobs += _memory_jobs(device, counts, free)
    jobs += _transfers(device, missing)
    jobs += _overheads(device)
    return [*jobs, _recording(folder)]


def _dtypes(device: torch.device, machine: Machine, missing: dict[str, str]) -> list[str]:
    """Those the device has arithmetic for; bf16 on every CPU, as runs may ask for it there."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _AMPERE:
            return ["fp32", "tf32", "bf16", "fp16"]
        reason = f"It needs compute capability 8.0, and the GPU has {capability[0]}.{capability[1]}."
        missing |= {"gemm tf32": reason, "gemm bf16": reason}
        return ["fp32", "fp16"]
    missing |= {
        "gemm tf32": "TF32 is a mode of NVIDIA's tensor cores.",
        "gemm int8": "On a CPU quantised layers take other kernels than a plain int8 product.",
    }
    if _FP16 & set(machine.cpu.isa):
        return ["fp32", "bf16", "fp16"]
    missing["gemm fp16"] = "This CPU has no float16 arithmetic (avx512_fp16, amx_fp16)."
    return ["fp32", "bf16"]


def _gemm(device: torch.device, dtype: str, shape: tuple[int, int, int], threads: int, name: str = "gemm") -> _Job:
    m, k, n = shape

    def make() -> Call:
        kind = _DTYPES[dtype]
        a, b = torch.randn(m, k, device=device).to(kind), torch.randn(k, n, device=device).to(kind)
        out = torch.empty(m, n, device=device, dtype=kind)
        return lambda: torch.mm(a, b, out=out)

    return _Job(name, "flops_per_s", 2.0 * m * k * n, make, dtype, shape, threads)


def _int8(device: torch.device, size: int, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> _Job:
    def make() -> Call:
        a, b = (torch.randint(-8, 8, (size, size), device=device, dtype=torch.int8) for _ in range(2))
        b = b.t()  # cuBLASLt takes the second factor column by column
        return lambda: product(a, b)

    return _Job("gemm", "flops_per_s", 2.0 * size**3, make, "int8", (size, size, size))


def _memory_jobs(device: torch.device, counts: Sequence[int], free: int | None) -> list[_Job]:
    """Copies (one array read, one written) and sums (two read, one written) over working sets from cache to memory."""
    sizes = list(_GPU_COPIES)
    if device.type == "cpu":
        cache = last_cache_bytes() or 2**25
        sizes = [*_CPU_COPIES, min(_LARGEST_COPY, max(2**27, _BEYOND_CACHE * cache))]
    if free is not None:
        sizes = [size for size in sizes if size <= free // _MEMORY_SHARE] or [2**24]
    pool: list[torch.Tensor] = []  # one for all of them: fresh pages cost more than the copies

    def parts(size: int, arrays: int) -> tuple[torch.Tensor, ...]:
        if not pool:
            pool.append(torch.ones(max(sizes) // 4, device=device))
        length = size // 4 // arrays // 16 * 16
        return tuple(pool[0][i * length : (i + 1) * length] for i in range(arrays))

    def copying(size: int) -> Callable[[], Call]:
        def make() -> Call:
            a, b = parts(size, 2)
            return lambda: b.copy_(a)

        return make

    def adding(size: int) -> Callable[[], Call]:
        def make() -> Call:
            a, b, c = parts(size, 3)
            return lambda: torch.add(a, b, alpha=0.5, out=c)

        return make

    return [
        _Job(name, "bytes_per_s", float(size // 4 // arrays // 16 * 16 * 4 * arrays), make(size), "fp32", (size,), n)
        for n in counts
        for size in sizes
        for name, arrays, make in (("copy", 2, copying), ("triad", 3, adding))
    ]


def _transfers(device: torch.device, missing: dict[str, str]) -> list[_Job]:
    if device.type == "cpu":
        missing["to_device"] = missing["to_host"] = "The run's data is in the CPU's own memory: nothing is copied."
        return []

    def make(to_device: bool) -> Callable[[], Call]:
        def copying() -> Call:
            there = torch.empty(_TRANSFER // 4, device=device)
            here = torch.empty(_TRANSFER // 4, pin_memory=True)
            return (lambda: there.copy_(here)) if to_device else (lambda: here.copy_(there))

        return copying

    return [
        _Job(name, "bytes_per_s", float(_TRANSFER), make(name == "to_device"), "fp32", (_TRANSFER,))
        for name in ("to_device", "to_host")
    ]


def _overheads(device: torch.device) -> list[_Job]:
    """What an operation costs when there is nothing to compute."""
    many = 200

    def in_a_row() -> Call:
        x = torch.zeros(1, device=device)

        def call() -> None:
            for _ in range(many):
                x.add_(1)

        return call

    def waited_for() -> Call:
        x = torch.zeros(1, device=device)
        return lambda: x.add_(1)

    if device.type == "cpu":
        return [_Job("op", "s", 1.0, in_a_row, "fp32", (1,), per_call=many)]
    return [
        _Job("launch", "s", 1.0, in_a_row, "fp32", (1,), per_call=many),
        _Job("round_trip", "s", 1.0, lambda: _and_wait(waited_for(), device), "fp32", (1,), synchronizes=True),
    ]


def _and_wait(call: Call, device: torch.device) -> Call:
    def both() -> None:
        call()
        synchronize(device)

    return both


def _recording(folder: Path) -> _Job:
    """Seconds our own log costs per step: records of `_RECORD_STEPS` steps, appended to a log in the run's folder."""
    path = folder / _SCRATCH
    losses, samples = np.linspace(2, 1, _RECORD_STEPS, dtype=np.float32), np.full(_RECORD_STEPS, 64, np.int32)

    def make() -> Call:
        log = EventLog(path)
        first = [1]

        def call() -> None:
            log.append(
                Steps(first=first[0], loss=losses, samples=samples, lr=1e-3, train_s=(0.0, 0.1), elapsed_s=(0.0, 0.1))
            )
            first[0] += _RECORD_STEPS

        return call

    return _Job("recording", "s", 1.0, make, None, (_RECORD_STEPS,), per_call=_RECORD_STEPS, synchronizes=True)


# --- the machine --------------------------------------------------------------------------------------------------


def last_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of all last-level caches of the cores this process may use; None where Linux does not say.

    `root` is the folder of the cores in sysfs (Documentation/ABI/testing/sysfs-devices-system-cpu).
    """
    found: dict[str, int] = {}
    for core in sorted(probe.allowed_cores()):
        levels = sorted((root / f"cpu{core}" / "cache").glob("index*"), key=lambda p: int(p.name[5:] or 0))
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = (levels[-1] / "size").read_text().strip()
            scale = {"K": 2**10, "M": 2**20}[text[-1]] if not text.isdigit() else 1
            found[(levels[-1] / "shared_cpu_list").read_text()] = int(text.rstrip("KM")) * scale
    return sum(found.values()) or None


def _others_on(device: str, nvml: Any) -> tuple[int | None, str]:
    """Programs of others that compute on a GPU."""
    index = probe.gpu_index(device)
    if index is None:
        return None, ""
    with open_nvml(nvml) as (handles, reason):
        if index >= len(handles):
            return None, reason or "NVML does not show this GPU."
        asked = sampler.OtherGpuProcesses(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handles[index]), (os.getpid(),))
        try:
            return int(asked()), ""
        except Unavailable as error:
            return None, str(error)
        except pynvml.NVMLError as error:
            return None, f"NVML does not name the GPU's programs: {str(error).rstrip('.')}."
