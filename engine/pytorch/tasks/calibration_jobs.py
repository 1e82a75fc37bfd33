"""The quantities that a calibration measures on a device, each as a call to be timed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from engine.events.training import Steps
from engine.hardware import probe
from engine.hardware.probe import Machine
from engine.measurement.calibration import of_group
from engine.pytorch.setup import synchronize
from engine.pytorch.training import kernels
from engine.store.event_log import EventLog

_CPU_SIZES = (128, 256, 512, 1_024, 2_048)
_GPU_SIZES = (512, 1_024, 2_048, 4_096, 8_192)
THIN = ((64, 784, 128), (64, 128, 10), (1, 784, 128), (64, 512, 256))  # (m, k, n) in small MLPs, at batch size 64 and 1
_CPU_COPIES = (2**18, 2**20, 2**22, 2**24)  # bytes read and written; one more size is larger than every cache
_GPU_COPIES = (2**20, 2**22, 2**24, 2**26, 2**28, 2**30, 2**32)
_BEYOND_CACHE = 4  # times the size of the last-level cache
_LARGEST_COPY = 2**30
_MEMORY_SHARE = 8  # a buffer takes at most one eighth of the free memory
_TRANSFER = 2**26  # bytes between host and device
_RECORD_STEPS = 100  # steps of one event: a run at 1,000 steps/s reads its losses back after so many
# Compute capabilities (CUDA C++ Programming Guide): the first with int8 in tensor cores, the first with TF32 and bf16.
_TURING, _AMPERE = (7, 5), (8, 0)
Call = Callable[[], object]
Unit = Literal["flops_per_s", "bytes_per_s", "s"]
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCRATCH_FILE = ".recording"


@dataclass
class Job:
    """A quantity to be measured. `make` allocates the operands and returns the call to be timed.

    `amount` is the work of one operation: FLOPs or bytes. For unit "s" it scales the seconds.
    """

    name: str
    unit: Unit
    amount: float
    make: Callable[[], Call]
    dtype: str | None = None
    shape: tuple[int, ...] = ()
    threads: int = 1
    per_call: int = 1  # operations of one call
    synchronizes: bool = False  # the call itself waits for the device
    rounds: list[list[float]] = field(default_factory=list)  # seconds of each operation, by round
    cores_s: list[tuple[float, float]] = field(default_factory=list)  # of each round: on a core, and waiting for one
    num_disturbed: int = 0  # rounds that are left out, because other programs used the cores
    is_too_long: bool = False  # it is left out

    @property
    def group(self) -> str:
        """The jobs of a group differ only in their size, and their figures are compared with each other."""
        return of_group(self.name, self.dtype, self.threads)


def thread_counts(most: int) -> list[int]:
    """The thread counts to measure, ascending: 1 to 4, then doubled, and `most` (at least 1) itself."""
    counts = [n for n in range(1, most + 1) if n <= 4]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == most else [*counts, most]


def jobs_for(
    device: torch.device, machine: Machine, threads: int, free: int | None, folder: Path, missing: dict[str, str]
) -> list[Job]:
    """The jobs for a device, on a CPU with 1 to `threads` threads; `free` is its free memory in bytes.

    The log of the recording job is written to `folder`. What cannot be measured is added to `missing` with the reason.
    """
    counts = thread_counts(threads) if device.type == "cpu" else [1]
    jobs: list[Job] = []
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
    jobs += _memory_jobs(device, counts, free, missing)
    jobs += _transfers(device, missing)
    jobs += _overheads(device)
    return [*jobs, _recording(folder)]


def _dtypes(device: torch.device, machine: Machine, missing: dict[str, str]) -> list[str]:
    """The dtypes that the device computes in; on a CPU always bf16 too, because runs can use it on every CPU."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _AMPERE:
            return ["fp32", "tf32", "bf16", "fp16"]
        reason = f"It needs compute capability 8.0, and the GPU has {capability[0]}.{capability[1]}."
        missing |= {"gemm tf32": reason, "gemm bf16": reason}
        return ["fp32", "fp16"]
    missing |= {
        "gemm tf32": "TF32 is a mode of NVIDIA's tensor cores.",
        "gemm int8": "On a CPU quantised layers use other kernels than a plain int8 product.",
    }
    if machine.cpu.can("fp16") is False:
        missing["gemm fp16"] = f"This CPU has no float16 arithmetic ({', '.join(probe.ABILITIES['fp16'])})."
        return ["fp32", "bf16"]
    return ["fp32", "bf16", "fp16"]


def _gemm(device: torch.device, dtype: str, shape: tuple[int, int, int], threads: int, name: str = "gemm") -> Job:
    m, k, n = shape

    def make() -> Call:
        kind = _DTYPES[dtype]
        a, b = torch.randn(m, k, device=device).to(kind), torch.randn(k, n, device=device).to(kind)
        out = torch.empty(m, n, device=device, dtype=kind)
        return lambda: torch.mm(a, b, out=out)

    return Job(name, "flops_per_s", 2.0 * m * k * n, make, dtype, shape, threads)


def _int8(device: torch.device, size: int, product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Job:
    def make() -> Call:
        a, b = (torch.randint(-8, 8, (size, size), device=device, dtype=torch.int8) for _ in range(2))
        b = b.t()  # cuBLASLt needs the second factor in column-major order
        return lambda: product(a, b)

    return Job("gemm", "flops_per_s", 2.0 * size**3, make, "int8", (size, size, size))


def _memory_jobs(device: torch.device, counts: Sequence[int], free: int | None, missing: dict[str, str]) -> list[Job]:
    """Copies (one array read, one written) and triads (two read, one written), from cache size to memory size.

    Both are those of the STREAM benchmark (McCalpin 1995).
    """
    sizes = list(_GPU_COPIES)
    if device.type == "cpu":
        cache = last_cache_bytes()
        if cache is None:
            missing["cache_size"] = "The system does not report it, so a part of the largest copy can still be cached."
        sizes = [*_CPU_COPIES, min(_LARGEST_COPY, max(2**27, _BEYOND_CACHE * (cache or 0)))]
    if free is not None:
        sizes = [size for size in sizes if size <= free // _MEMORY_SHARE] or [2**24]
    pool: list[torch.Tensor] = []  # shared by all jobs, because first touching a page costs more than the copies

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
        Job(name, "bytes_per_s", float(size // 4 // arrays // 16 * 16 * 4 * arrays), make(size), "fp32", (size,), n)
        for n in counts
        for size in sizes
        for name, arrays, make in (("copy", 2, copying), ("triad", 3, adding))
    ]


def _transfers(device: torch.device, missing: dict[str, str]) -> list[Job]:
    if device.type == "cpu":
        missing["to_device"] = missing["to_host"] = "The data is in the CPU's own memory, so nothing is copied."
        return []

    def make(to_device: bool) -> Callable[[], Call]:
        def copying() -> Call:
            there = torch.empty(_TRANSFER // 4, device=device)
            here = torch.empty(_TRANSFER // 4, pin_memory=True)
            return (lambda: there.copy_(here)) if to_device else (lambda: here.copy_(there))

        return copying

    return [
        Job(name, "bytes_per_s", float(_TRANSFER), make(name == "to_device"), "fp32", (_TRANSFER,))
        for name in ("to_device", "to_host")
    ]


def _overheads(device: torch.device) -> list[Job]:
    """The overhead of an operation: seconds per operation on a tensor of one element."""
    many = 200

    def repeated() -> Call:
        x = torch.zeros(1, device=device)

        def call() -> None:
            for _ in range(many):
                x.add_(1)

        return call

    def round_trip() -> Call:
        x = torch.zeros(1, device=device)

        def call() -> None:
            x.add_(1)
            synchronize(device)

        return call

    if device.type == "cpu":
        return [Job("op", "s", 1.0, repeated, "fp32", (1,), per_call=many)]
    return [
        Job("launch", "s", 1.0, repeated, "fp32", (1,), per_call=many),
        Job("round_trip", "s", 1.0, round_trip, "fp32", (1,), synchronizes=True),
    ]


def _recording(folder: Path) -> Job:
    """Seconds per step to write the event log, in events of `_RECORD_STEPS` steps."""
    path = folder / SCRATCH_FILE
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

    return Job("recording", "s", 1.0, make, None, (_RECORD_STEPS,), per_call=_RECORD_STEPS, synchronizes=True)


def last_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Bytes of all last-level caches of the cores that this process can use; None if Linux does not show them.

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
