"""CPU, memory, disks and network of the machine, from the kernel's files in /proc and /sys; psutil where there are none."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from engine.hardware.energy_counters import Joules, rapl_counters
from engine.hardware.rates import Cached, Rates, Read, Sources, Unavailable, Values, unavailable

SLOW_S, _RARELY_S = 1.0, 10.0  # intervals of readings that take more than some microseconds
_SECTOR_BYTES = 512  # of /proc/diskstats, for every disk (kernel: Documentation/admin-guide/iostats.rst)
_READ_BYTES = 2**17
# In memory, or made of disks whose bytes would count twice.
_NOT_A_DISK = re.compile(r"loop|ram|zram|dm-|md|sr|fd")
_NOT_OUTSIDE = re.compile(r"lo$|ifb|dummy|veth|docker|br-|virbr|tun|tap")


def sources(root: Path, clock: Callable[[], float], stack: contextlib.ExitStack) -> Sources:
    """The sources of all readings except those of GPUs. `root` is the folder that holds /proc and /sys; `stack` closes
    the files."""

    def file(path: str, *, in_parts: bool = False) -> File:
        return File(root / path, stack, in_parts=in_parts)

    cores = Cores(file("proc/stat"))
    loadavg, diskstats = file("proc/loadavg"), file("proc/diskstats", in_parts=True)
    dev = file("proc/net/dev", in_parts=True)
    disks = Cached(lambda: _disks(root), clock, _RARELY_S)
    virtual = Cached(lambda: _virtual(root), clock, _RARELY_S)
    disk = ("disk.read_bytes_per_s", "disk.write_bytes_per_s")
    network = ("network.received_bytes_per_s", "network.sent_bytes_per_s")
    found: Sources = {
        cores.names: cores,
        ("cpu.frequency_hz",): Cached(lambda: {"cpu.frequency_hz": frequency_hz(root)}, clock, SLOW_S),
        ("cpu.load_1min",): lambda: {"cpu.load_1min": float(loadavg().split()[0])},
        ("cpu.power_w",): _cpu_power(root / "sys/class/powercap", clock),
        ("memory.used_bytes", "memory.available_bytes", "memory.swap_used_bytes"): Memory(file("proc/meminfo")),
        disk: Rates(disk, lambda: disk_bytes(diskstats(), disks()), clock),
        network: Rates(network, lambda: network_bytes(dev(), virtual()), clock),
    }
    for what in ("cpu", "memory", "io"):
        found[(f"pressure.{what}_percent",)] = Pressure(what, file(f"proc/pressure/{what}"))
    return found


class File:
    """Reads a file of /proc again and again through one descriptor, which is opened at the first call."""

    def __init__(self, path: Path, stack: contextlib.ExitStack, *, in_parts: bool = False) -> None:
        self._path, self._stack, self._in_parts = path, stack, in_parts
        self._fd: int | None = None

    def __call__(self) -> bytes:
        """The whole content. Raises OSError where the file cannot be opened or read."""
        if self._fd is None:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, self._fd)
        data = os.pread(self._fd, _READ_BYTES, 0)
        # The kernel returns a long list one page at a time. Other files come whole, and a second read would make the
        # kernel compute their text again.
        while self._in_parts and (part := os.pread(self._fd, _READ_BYTES, len(data))):
            data += part
        return data


class Cores:
    """Busy share of each core since the last reading, from /proc/stat or, where there is none, from psutil."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read
        try:
            self._last = core_ticks(read())
            self._ticks: Callable[[], dict[int, tuple[int, int]]] = lambda: core_ticks(self._read())
        except OSError:
            self._ticks = _psutil_ticks
            self._last = self._ticks()
        self.cores = tuple(self._last)
        self.names = ("cpu.busy_percent", "cpu.busiest_percent", *(f"core{n}.busy_percent" for n in self.cores))

    def __call__(self) -> Values:
        """Busy percent of each core, their mean and their maximum.

        Raises:
            Unavailable: the kernel counted no time since the last reading.
        """
        now, last = self._ticks(), self._last
        busy = {n: _share(last.get(n), now.get(n)) for n in self.cores}
        known = [value for value in busy.values() if not isinstance(value, Unavailable)]
        if not known:
            raise Unavailable("The kernel counted no CPU time since the last reading.")
        self._last = now
        readings: dict[str, float | Unavailable] = {f"core{n}.busy_percent": value for n, value in busy.items()}
        return readings | {"cpu.busy_percent": sum(known) / len(known), "cpu.busiest_percent": max(known)}


class SystemCpu:
    """Busy share of some cores together since the last call, in percent of all of them."""

    def __init__(self, read: Callable[[], bytes], cores: frozenset[int]) -> None:
        self._read, self._cores = read, cores
        self._last = self._ticks()

    def __call__(self) -> float:
        """Busy percent.

        Raises:
            Unavailable: the kernel counted no time since the last call.
        """
        before, self._last = self._last, self._ticks()
        share = _share(before, self._last)
        if isinstance(share, Unavailable):
            raise Unavailable("The kernel counted no CPU time since the last reading.")
        return share

    def _ticks(self) -> tuple[int, int]:
        ticks = [spent for core, spent in core_ticks(self._read()).items() if core in self._cores]
        return sum(busy for busy, _ in ticks), sum(total for _, total in ticks)


def core_ticks(stat: bytes) -> dict[int, tuple[int, int]]:
    """Busy and total clock ticks of each core since boot.

    The columns are user nice system idle iowait irq softirq steal guest guest_nice (proc_stat(5)). Guest time is part of
    user. A core that waits for a disk is not busy.
    """
    ticks = {}
    for line in stat.splitlines():
        if not line.startswith(b"cpu"):  # these lines come first, and the line of interrupts is long
            break
        name, *columns = line.split(None, 10)
        if name[3:].isdigit():
            spent = [int(column) for column in columns[:8]]
            ticks[int(name[3:])] = sum(spent) - spent[3] - spent[4], sum(spent)
    return ticks


def _psutil_ticks() -> dict[int, tuple[int, int]]:
    hundredths = [[round(100 * spent) for spent in core] for core in psutil.cpu_times(percpu=True)]
    idle = [round(100 * core.idle) for core in psutil.cpu_times(percpu=True)]
    return {n: (sum(spent) - idle[n], sum(spent)) for n, spent in enumerate(hundredths)}


def _share(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | Unavailable:
    """Busy percent between two pairs of busy and total ticks."""
    if before is None or after is None:
        return Unavailable("The core is switched off, or was just switched on.")
    if after[1] <= before[1]:
        return Unavailable("The kernel counted no time of this core since the last reading.")
    # Idle counters can run backwards by a tick (proc_stat(5)).
    return min(100.0, max(0.0, 100 * (after[0] - before[0]) / (after[1] - before[1])))


def frequency_hz(root: Path) -> float:
    """Mean frequency of the cores, from cpufreq (in kHz) or, without it, /proc/cpuinfo (in MHz).

    Raises:
        Unavailable: neither reports it.
    """
    texts = [_text(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")]
    hz = [int(text) * 1e3 for text in texts if text.strip().isdigit()]
    if not hz:
        hz = [
            float(mhz) * 1e6
            for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _text(root / "proc/cpuinfo"), re.MULTILINE)
        ]
    if not hz:
        raise Unavailable("The kernel does not report the frequency of the cores.")
    return sum(hz) / len(hz)


class Memory:
    """Memory from /proc/meminfo, which counts in KiB, or, where there is none, from psutil."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read = read

    def __call__(self) -> Values:
        """Used and available memory and used swap, bytes.

        Raises:
            Unavailable: the kernel does not report how much memory is available.
        """
        try:
            text = self._read()
        except OSError:
            memory = psutil.virtual_memory()
            return _memory(memory.total, memory.available, psutil.swap_memory().used)
        fields = re.findall(rb"^(MemTotal|MemAvailable|SwapTotal|SwapFree):\s+(\d+) kB", text, re.MULTILINE)
        found = {name: int(kib) * 1024 for name, kib in fields}
        if not {b"MemTotal", b"MemAvailable"} <= found.keys():
            raise Unavailable("The kernel does not report how much memory is available.")
        swap = found[b"SwapTotal"] - found[b"SwapFree"] if {b"SwapTotal", b"SwapFree"} <= found.keys() else None
        return _memory(found[b"MemTotal"], found[b"MemAvailable"], swap)


def _memory(total: int, available: int, swap: int | None) -> Values:
    return {
        "memory.used_bytes": float(total - available),
        "memory.available_bytes": float(available),
        "memory.swap_used_bytes": Unavailable("The kernel does not report swap.") if swap is None else float(swap),
    }


class Pressure:
    """`some avg10` of a file of /proc/pressure (kernel: Documentation/accounting/psi.rst)."""

    def __init__(self, what: str, read: Callable[[], bytes]) -> None:
        self._name, self._read = f"pressure.{what}_percent", read

    def __call__(self) -> Values:
        """Percent of the last 10 s.

        Raises:
            Unavailable: the kernel has no such file.
        """
        try:
            found = re.search(rb"^some avg10=([\d.]+)", self._read(), re.MULTILINE)
        except OSError:
            found = None
        if found is None:
            raise Unavailable("The kernel offers no pressure figures (PSI).")
        return {self._name: float(found[1])}


def disk_bytes(diskstats: bytes, disks: frozenset[str]) -> tuple[int, int]:
    """Bytes that the disks have read and written since boot.

    Fields 3, 6 and 10 of a line of /proc/diskstats are the name, the sectors read and the sectors written.

    Raises:
        Unavailable: none of the disks is listed.
    """
    fields = [line.split() for line in diskstats.decode(errors="replace").splitlines()]
    ours = [line for line in fields if len(line) >= 10 and line[2] in disks]
    if not ours:
        raise Unavailable("No physical disk is visible from here.")
    return sum(int(line[5]) for line in ours) * _SECTOR_BYTES, sum(int(line[9]) for line in ours) * _SECTOR_BYTES


def _disks(root: Path) -> frozenset[str]:
    return frozenset(name for name in _names(root / "sys/block") if not _NOT_A_DISK.match(name))


def network_bytes(dev: bytes, virtual: frozenset[str]) -> tuple[int, int]:
    """Bytes received and sent by the physical interfaces, or, in a container that has none, by its virtual one.

    Raises:
        Unavailable: there is no interface.
    """
    lines = [line.partition(":") for line in dev.decode(errors="replace").splitlines()[2:]]
    outside = {name.strip(): columns for name, _, columns in lines if not _NOT_OUTSIDE.match(name.strip())}
    real = [columns for name, columns in outside.items() if name not in virtual] or list(outside.values())
    if not real:
        raise Unavailable("No network interface is visible from here.")
    counted = [columns.split() for columns in real]
    return sum(int(columns[0]) for columns in counted), sum(int(columns[8]) for columns in counted)


def _virtual(root: Path) -> frozenset[str]:
    return frozenset(_names(root / "sys/devices/virtual/net"))


def _cpu_power(powercap: Path, clock: Callable[[], float]) -> Read:
    """Watts of the CPU packages since the last reading."""
    try:
        joules = Joules(rapl_counters(powercap))
    except Unavailable as error:
        return unavailable(str(error))
    return Rates(("cpu.power_w",), lambda: (joules(),), clock)


def _names(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from os.listdir(folder)  # noqa: PTH208 - read at every beat


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
