"""A /proc and /sys in a folder, with fake GPUs: what tests of the monitor read."""

from __future__ import annotations

import pynvml

from engine.hardware import gpus
from engine.hardware.monitor import Monitor
from tests.fake_nvml import FakeNvml

STAT = "cpu  {a} 0 0 {i} 0 0 0 0 0 0\ncpu0 {a} 0 0 {i} 0 0 0 0 0 0\ncpu1 0 0 0 {t} 0 0 0 0 0 0\nintr 1 2 3\n"
GPM = {
    pynvml.NVML_GPM_METRIC_SM_UTIL: 41.5,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL: 12.0,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL: 33.0,
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC: 3.0,
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC: 5.0,
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Machine:
    """A /proc and /sys of our own making below a folder."""

    def __init__(self, root):
        self.root, self.clock = root, Clock()
        self.write("proc/stat", STAT.format(a=0, i=100, t=100))
        self.write("proc/loadavg", "1.50 0.70 0.20 1/100 999\n")
        self.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 100 kB\nSwapFree: 90 kB\n")
        self.write("proc/cpuinfo", "cpu MHz\t\t: 2000.0\ncpu MHz\t\t: 3000.0\n")
        for what in ("cpu", "memory", "io"):
            self.write(f"proc/pressure/{what}", "some avg10=7.25 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00\n")
        for name in ("sda", "loop0", "dm-0"):
            (root / "sys/block" / name).mkdir(parents=True)
        self.disk(0, 0)
        self.net(0, 0)
        (root / "sys/devices/virtual/net/lo").mkdir(parents=True)
        (root / "sys/devices/virtual/net/docker0").mkdir(parents=True)
        (root / "proc/self").mkdir()

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def disk(self, read, written):
        line = "8 {n} {name} 1 0 {r} 5 1 0 {w} 5 0 5 5\n"
        disks = [(0, "sda", read, written), (1, "sda1", read, written), (2, "dm-0", read, written), (3, "loop0", 9, 9)]
        self.write("proc/diskstats", "".join(line.format(n=n, name=name, r=r, w=w) for n, name, r, w in disks))

    def net(self, received, sent):
        line = "{name}: {r} 1 0 0 0 0 0 0 {s} 1 0 0 0 0 0 0\n"
        rows = [("lo", 10**9, 10**9), ("eth0", received, sent), ("docker0", 10**6, 10**6), ("veth1", 7, 7)]
        text = "".join(line.format(name=name, r=r, s=s) for name, r, s in rows)
        self.write("proc/net/dev", f"Inter-| Receive\n face |bytes\n{text}")

    def process(self, pid, *, ticks, pages=10):
        fields = ["S", *["0"] * 10, str(ticks), "0", *["0"] * 8, str(pages)]
        self.write(f"proc/{pid}/stat", f"{pid} (a name) with) {' '.join(fields)} 0 0\n")

    def monitor(self, *own_gpus, processes=None, **options):
        nvml = FakeNvml(*own_gpus) if own_gpus else FakeNvml(init_error=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
        options = {"nvml": nvml, "root": self.root, "clock": self.clock, "wall": self.clock} | options
        return Monitor(lambda: {42: ""} if processes is None else processes, **options)

    def second(self, monitor):
        """The reading a second after the first."""
        monitor.read()
        self.clock.now += 1
        return monitor.read()


# The readings that each NVML function gives.
FUNCTIONS = {
    "nvmlDeviceGetUtilizationRates": {"utilization_percent"},
    "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
    "nvmlDeviceGetPowerUsage": {"power_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetTotalEnergyConsumption": {"energy_j"},
    "nvmlDeviceGetTemperature": {"temperature_c"},
    "nvmlDeviceGetClockInfo": {"sm_clock_hz", "memory_clock_hz"},
    "nvmlDeviceGetCurrentClocksEventReasons": {"throttle_bits"},
    "nvmlGpmSampleGet": {f"{name}" for name in gpus._GPM},
}
NOTHING_ANSWERS = (*FUNCTIONS, "nvmlDeviceGetPcieThroughput", "nvmlDeviceGetFieldValues")
