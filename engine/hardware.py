"""What this machine has: CPU, memory and NVIDIA GPUs, and what a run may use of them.

Every field is had apart from the others and is None where it cannot be read. Nothing here identifies a machine: no
serial numbers, UUIDs, host names, user names or network addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pynvml

from engine.errors import DeviceError
from engine.nvml import NVML

ISA_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_fp16",
)  # what oneDNN and MKL pick their float kernels by
_NO_GPU = "The NVIDIA driver finds no GPU on this machine."
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CpuDevice:
    name: str
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int  # whole cores this process can keep busy: affinity mask and cgroup quota
    isa: tuple[str, ...]  # those of ISA_FLAGS it has


@dataclass(frozen=True, slots=True)
class GpuDevice:
    index: int  # i of cuda:i, counting the devices CUDA_VISIBLE_DEVICES leaves visible
    name: str
    memory_bytes: int | None
    driver: str | None
    compute_capability: str | None
    power_limit_w: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: CpuDevice
    gpus: tuple[GpuDevice, ...]
    gpu_reason: str | None  # why no GPU can be used here; None when one can
    memory_bytes: int  # of the machine, or of the cgroup where that is less
    memory_available_bytes: int
    os: str
    python: str

    @property
    def alike(self) -> list[tuple[GpuDevice, ...]]:
        """The GPUs, neighbours that differ in nothing together: sixteen of a kind are said once."""
        groups = groupby(self.gpus, key=lambda gpu: dataclasses.replace(gpu, index=0))
        return [tuple(gpus) for _, gpus in groups]


def probe(
    *, nvml: Any = NVML, root: Path = Path("/"), environ: Mapping[str, str] = os.environ, torch_version: str = ""
) -> Machine:
    """The machine as it is now. The arguments replace where it is read from; a test gives others."""
    memory, limit = psutil.virtual_memory(), _memory_limit(root)
    with open_nvml(nvml, environ) as (handles, reason):
        gpus = tuple(_gpu(nvml, index, handle) for index, handle in enumerate(handles))
    return Machine(
        cpu=_cpu(root),
        gpus=gpus,
        gpu_reason=_torch_reason(torch_version or _installed_torch()) if gpus else reason,
        memory_bytes=min([memory.total] + [size for size, _ in limit]),
        memory_available_bytes=min([memory.available] + [free for _, free in limit]),
        os=_operating_system(),
        python=platform.python_version(),
    )


def device_choices(machine: Machine) -> list[str]:
    """The values `device` may take here: cpu, then cuda:0, cuda:1, ..."""
    gpus = machine.gpus if machine.gpu_reason is None else ()
    return ["cpu", *(f"cuda:{gpu.index}" for gpu in gpus)]


def check_device(device: str, machine: Machine) -> None:
    """Raises DeviceError, with what may be chosen and why no GPU may, when a run cannot use `device` here."""
    choices = device_choices(machine)
    if device in choices:
        return
    found = device in (f"cuda:{gpu.index}" for gpu in machine.gpus)
    what = f"device={device} {'cannot be used here' if found else 'is not on this machine'}."
    raise DeviceError(f"{what} {machine.gpu_reason or ''}".strip(), fix=f"Choose from {', '.join(choices)}.")


def free_memory_bytes(
    device: str, *, nvml: Any = NVML, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> int | None:
    """What is free on a device at this moment; None where it cannot be read."""
    if device == "cpu":
        return min([psutil.virtual_memory().available] + [free for _, free in _memory_limit(root)])
    index = gpu_index(device)
    with open_nvml(nvml, environ) as (handles, _):
        if index is None or index >= len(handles):
            return None
        return _or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handles[index]).free))


def environment(machine: Machine, device: str) -> dict[str, str | int | float | None]:
    """What a run's figures depend on, for its Started event; the worker adds the version of PyTorch."""
    gpu = next((gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device), None)
    facts: dict[str, str | int | float | None] = {
        "device": gpu.name if gpu else machine.cpu.name,
        "cpu": machine.cpu.name,
        "cpu_isa": " ".join(machine.cpu.isa),
        "physical_cores": machine.cpu.physical_cores,
        "usable_cores": machine.cpu.usable_cores,
        "memory_bytes": machine.memory_bytes,
        "os": machine.os,
        "python": machine.python,
    }
    if gpu:
        facts |= {"gpu_memory_bytes": gpu.memory_bytes, "gpu_driver": gpu.driver}
        facts |= {"gpu_compute_capability": gpu.compute_capability, "gpu_power_limit_w": gpu.power_limit_w}
    return facts


def as_json(machine: Machine) -> dict[str, Any]:
    """The machine as plain values, for scripts; unknown is None."""
    return asdict(machine)


# --- NVIDIA GPUs ---------------------------------------------------------------------------------------------------


def gpu_index(device: str) -> int | None:
    """i of "cuda:i"; None for any other device."""
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" and index.isdigit() else None


@contextlib.contextmanager
def open_nvml(
    nvml: Any = NVML, environ: Mapping[str, str] = os.environ
) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """NVML handles of cuda:0, cuda:1, ... while the block runs, or why there are none.

    NVML counts by PCI bus and knows no CUDA_VISIBLE_DEVICES. CUDA counts the fastest first unless CUDA_DEVICE_ORDER is
    PCI_BUS_ID: where a machine mixes models, only that setting makes both mean the same card.
    """
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield (), _no_driver(error)
        return
    try:
        yield _visible_gpus(nvml, environ.get("CUDA_VISIBLE_DEVICES"))
    finally:
        with contextlib.suppress(pynvml.NVMLError):  # a lost GPU may fail here too
            nvml.nvmlShutdown()


@contextlib.contextmanager
def open_every_gpu(nvml: Any = NVML) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """As open_nvml, but all GPUs of the machine, whatever this process may use: handles in NVML's order, and in place of
    one that does not answer its NVMLError."""
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield (), _no_driver(error)
        return
    try:
        yield _every_gpu(nvml)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            nvml.nvmlShutdown()


def _every_gpu(nvml: Any) -> tuple[tuple[Any, ...], str | None]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except pynvml.NVMLError as error:
        return (), _no_answer(error)
    return tuple(_handle_or_error(nvml, index) for index in range(count)), None if count else _NO_GPU


def _handle_or_error(nvml: Any, index: int) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError as error:
        return error


def visible_entries(value: str) -> list[int] | list[str]:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: indices, or UUIDs that may be cut short.

    What follows an invalid entry is invisible; a repeated entry hides everything. `1abc` is 1, as strtoul reads it
    (CUDA C++ programming guide, "CUDA environment variables"; torch.cuda reads it the same way).
    """
    named = next((prefix for prefix in ("GPU-", "MIG-") if value.startswith(prefix)), None)
    entries: list[Any] = []
    for text in (part.strip() for part in value.split(",")):
        number = re.match(r"\+?\d+", text)
        entry = text if named and text.startswith(named) else int(number[0]) if number and not named else None
        if entry is None:
            break
        if entry in entries:
            return []
        entries.append(entry)
    return entries


def _visible_gpus(nvml: Any, visible: str | None) -> tuple[tuple[Any, ...], str | None]:
    try:
        count = nvml.nvmlDeviceGetCount()
        if not count:
            return (), _NO_GPU
        handles = _handles(nvml, list(range(count)) if visible is None else visible_entries(visible), count)
    except pynvml.NVMLError as error:
        return (), _no_answer(error)
    return handles, None if handles else f"CUDA_VISIBLE_DEVICES hides every GPU of this machine (it has {count})."


def _handles(nvml: Any, entries: list[int] | list[str], count: int) -> tuple[Any, ...]:
    """Handles of the entries before the first that is no device."""
    handles = []
    for entry in entries:
        handle = _handle_by_index(nvml, entry, count) if isinstance(entry, int) else _handle_by_uuid(nvml, entry, count)
        if handle is None:
            break
        handles.append(handle)
    return tuple(handles)


def _handle_by_index(nvml: Any, index: int, count: int) -> Any | None:
    return nvml.nvmlDeviceGetHandleByIndex(index) if index < count else None


def _handle_by_uuid(nvml: Any, uuid: str, count: int) -> Any | None:
    """The one device whose UUID begins so; a slice of a GPU (MIG-...) is known by its whole UUID only."""
    if uuid.startswith("MIG-"):
        return _or_none(lambda: nvml.nvmlDeviceGetHandleByUUID(uuid.encode()))
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    fitting = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(uuid)]
    return fitting[0] if len(fitting) == 1 else None


def _gpu(nvml: Any, index: int, handle: Any) -> GpuDevice:
    capability = _or_none(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return GpuDevice(
        index=index,
        name=_or_none(lambda: str(nvml.nvmlDeviceGetName(handle))) or "NVIDIA GPU",
        memory_bytes=_or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        driver=_or_none(lambda: str(nvml.nvmlSystemGetDriverVersion())),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        power_limit_w=_or_none(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3),  # NVML: mW
    )


def _or_none(read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except pynvml.NVMLError:  # one unavailable field must not hide the others
        return None


def _no_driver(error: Exception) -> str:
    if isinstance(error, pynvml.NVMLError_LibraryNotFound):
        return "No NVIDIA driver on this machine (libnvidia-ml.so was not found)."
    return _no_answer(error)


def _no_answer(error: Exception) -> str:
    return f"The NVIDIA driver does not answer: {str(error).rstrip('.')}."  # some of NVML's own texts end in a stop


def _installed_torch() -> str:
    """PyTorch's version from its package: importing torch itself takes seconds."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("torch")
    return ""


def _torch_reason(version: str) -> str | None:
    if version.endswith("+cpu"):
        return f"A GPU is here, but the installed PyTorch {version} is built without CUDA."
    return None


# --- CPU, memory, operating system ---------------------------------------------------------------------------------


def _cpu(root: Path) -> CpuDevice:
    info = _text(root / "proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    return CpuDevice(
        name=name[1].strip() if name else platform.processor() or platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=os.cpu_count(),
        usable_cores=_usable_cores(root),
        isa=tuple(flag for flag in ISA_FLAGS if flag in found),
    )


def allowed_cores() -> frozenset[int]:
    """Numbers of the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _usable_cores(root: Path) -> int:
    """A quota of 1.5 cores keeps one thread busy: a second would be stopped half of the time."""
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([len(allowed_cores()), *quotas])))


def _cpu_quota(folder: Path) -> float | None:
    """Cores a cgroup may use on average: v2's "quota period" in cpu.max, v1's two cpu.cfs files; None is no limit."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us").strip(),
        _text(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return None  # v2 says "max", v1 says -1


def _memory_limit(root: Path) -> list[tuple[int, int]]:
    """Bytes allowed and still free under each memory limit on this process; v1 writes "no limit" as 2**63 - 4096."""
    found = [_folder_memory(folder) for folder in _cgroup_folders(root, "memory")]
    return [limit for limit in found if limit is not None]


def _folder_memory(folder: Path) -> tuple[int, int] | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    # File pages not in use count as used but are given up on demand.
    # v2 counts the groups below in; v1 does so in the line that begins with total_.
    cache = re.findall(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return limit, max(0, limit - used + max(map(int, cache), default=0))


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders that may limit this process, innermost first: its cgroup and all above it, v2 and v1.

    Inside a container the path in /proc may be the host's and not exist here; its parents, up to the mount, do.
    """
    folders: list[Path] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = mount / path.lstrip("/")
        folders += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(mount)]
    return folders


def _operating_system() -> str:
    """Distribution and kernel version, without what a kernel's builder appended to it."""
    version = re.match(r"[\d.]*\d", platform.release())
    kernel = f"{platform.system()} {version[0] if version else ''}".strip()
    with contextlib.suppress(OSError):
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    return kernel


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # another operating system, a container that hides it, no permission
        return ""
