"""What this machine has (CPU, memory, NVIDIA GPUs) and what of it a run can use.

Each field is read by itself and is None where it cannot be read. Nothing here identifies a machine: there are no serial
numbers, UUIDs, host names, user names or network addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import psutil

from engine.common.errors import DeviceError
from engine.hardware.nvml import NVML, open_nvml, or_none

# Arithmetic that PyTorch's CPU kernels have a fast path for: any of these flags means that the CPU has it. The names are
# those of /proc/cpuinfo (Linux: arch/x86/include/asm/cpufeatures.h, Documentation/arch/arm64/elf_hwcaps.rst).
ABILITIES: Mapping[str, tuple[str, ...]] = {
    "int8_dot": ("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}
ISA_FLAGS = ("avx2", "avx512f", "asimd", "sve", *chain.from_iterable(ABILITIES.values()))


@dataclass(frozen=True, slots=True)
class CpuDevice:
    """The processor. None where the system does not report a number."""

    name: str
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int  # whole cores that this process can keep busy under its affinity mask and cgroup quota
    isa: tuple[str, ...] | None  # those of ISA_FLAGS that it has; None where the system does not list its flags

    @property
    def isa_in_words(self) -> str:
        """The flags, or that they are not known."""
        if self.isa is None:
            return "vector instructions not known"
        return ", ".join(self.isa) or "none of the vector instructions that Isoflop looks for"

    def can(self, ability: str) -> bool | None:
        """Whether it has one of the flags of `ability` (a key of ABILITIES); None where that is not known."""
        return None if self.isa is None else not set(ABILITIES[ability]).isdisjoint(self.isa)


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A GPU. None where the driver does not report a value."""

    index: int  # i of cuda:i, among the GPUs that CUDA_VISIBLE_DEVICES leaves visible
    name: str
    memory_bytes: int | None
    driver: str | None
    compute_capability: str | None
    power_limit_w: float | None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine at one moment."""

    cpu: CpuDevice
    gpus: tuple[GpuDevice, ...]
    gpu_reason: str | None  # why no GPU can be used here; None when one can
    memory_bytes: int  # of the machine, or the cgroup's limit where that is lower
    memory_available_bytes: int
    os: str
    python: str

    @property
    def alike(self) -> list[tuple[GpuDevice, ...]]:
        """The GPUs in groups of neighbours that differ only in their index, so that a page shows sixteen equal ones once."""
        groups = groupby(self.gpus, key=lambda gpu: dataclasses.replace(gpu, index=0))
        return [tuple(gpus) for _, gpus in groups]


def probe(
    *, nvml: Any = NVML, root: Path = Path("/"), environ: Mapping[str, str] = os.environ, torch_version: str = ""
) -> Machine:
    """Read the machine. The arguments replace the sources, for tests."""
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
    """The values that `device` can have here: cpu, then cuda:0, cuda:1, ..."""
    gpus = machine.gpus if machine.gpu_reason is None else ()
    return ["cpu", *(f"cuda:{gpu.index}" for gpu in gpus)]


def check_device(device: str, machine: Machine) -> None:
    """Check that a run can use `device` here.

    Raises:
        DeviceError: it cannot; with the reason and the possible choices.
    """
    choices = device_choices(machine)
    if device in choices:
        return
    found = device in (f"cuda:{gpu.index}" for gpu in machine.gpus)
    what = f"device={device} {'cannot be used here' if found else 'is not on this machine'}."
    raise DeviceError(f"{what} {machine.gpu_reason or ''}".strip(), fix=f"Choose from {', '.join(choices)}.")


def free_memory_bytes(
    device: str, *, nvml: Any = NVML, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> int | None:
    """Free memory of a device at this moment; None where it cannot be read."""
    if device == "cpu":
        return min([psutil.virtual_memory().available] + [free for _, free in _memory_limit(root)])
    index = gpu_index(device)
    with open_nvml(nvml, environ) as (handles, _):
        if index is None or index >= len(handles):
            return None
        return or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handles[index]).free))


def environment(machine: Machine, device: str) -> dict[str, str | int | float | None]:
    """The facts that a run's figures depend on, for its Started event. The worker adds the version of PyTorch."""
    gpu = next((gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device), None)
    facts: dict[str, str | int | float | None] = {
        "device": gpu.name if gpu else machine.cpu.name,
        "cpu": machine.cpu.name,
        "cpu_isa": None if machine.cpu.isa is None else " ".join(machine.cpu.isa),
        **{f"cpu_{ability}": machine.cpu.can(ability) for ability in ABILITIES},
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
    """The machine as plain values for scripts; an unknown value is None."""
    return asdict(machine)


# --- NVIDIA GPUs ---------------------------------------------------------------------------------------------------


def gpu_index(device: str) -> int | None:
    """i of "cuda:i"; None for any other device."""
    kind, _, index = device.partition(":")
    return int(index) if kind == "cuda" and index.isdigit() else None


def _gpu(nvml: Any, index: int, handle: Any) -> GpuDevice:
    capability = or_none(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
    return GpuDevice(
        index=index,
        name=or_none(lambda: str(nvml.nvmlDeviceGetName(handle))) or "NVIDIA GPU",
        memory_bytes=or_none(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
        driver=or_none(lambda: str(nvml.nvmlSystemGetDriverVersion())),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        power_limit_w=or_none(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1e3),  # NVML: mW
    )


def _installed_torch() -> str:
    """PyTorch's version from the package's metadata, because importing torch takes seconds."""
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
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)  # on x86, and on Arm
    found = set(flags[1].split()) if flags else None
    return CpuDevice(
        name=name[1].strip() if name else platform.processor() or platform.machine(),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=os.cpu_count(),
        usable_cores=_usable_cores(root),
        isa=None if found is None else tuple(flag for flag in ISA_FLAGS if flag in found),
    )


def allowed_cores() -> frozenset[int]:
    """Numbers of the cores this process can run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _usable_cores(root: Path) -> int:
    """Whole cores only: with a quota of 1.5 cores, a second thread would be stopped half of the time."""
    quotas = [quota for folder in _cgroup_folders(root, "cpu") if (quota := _cpu_quota(folder)) is not None]
    return max(1, int(min([len(allowed_cores()), *quotas])))


def _cpu_quota(folder: Path) -> float | None:
    """Cores that a cgroup can use on average, from cpu.max (v2) or the two cpu.cfs files (v1); None without a limit."""
    words = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us").strip(),
        _text(folder / "cpu.cfs_period_us").strip(),
    ]
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        return int(words[0]) / int(words[1])
    return None  # without a limit, v2 has "max" and v1 has -1


def _memory_limit(root: Path) -> list[tuple[int, int]]:
    """Bytes allowed and bytes still free, for each memory limit on this process. v1 writes "no limit" as 2**63 - 4096."""
    found = [_folder_memory(folder) for folder in _cgroup_folders(root, "memory")]
    return [limit for limit in found if limit is not None]


def _folder_memory(folder: Path) -> tuple[int, int] | None:
    limit = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
    used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    # The cgroup counts inactive file pages as used, but the kernel frees them on demand.
    # v2 includes the cgroups below; v1 does so in the line that begins with total_.
    cache = re.findall(r"^(?:total_)?inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
    return limit, max(0, limit - used + max(map(int, cache), default=0))


def _cgroup_folders(root: Path, controller: str) -> list[Path]:
    """The folders whose limits apply to this process, innermost first: its cgroup and all above it, v2 and v1.

    In a container, the path in /proc can be the host's and not exist here; its parents, up to the mount, exist.
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
    """Distribution and kernel version, without the suffix that the kernel's builder appended."""
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
