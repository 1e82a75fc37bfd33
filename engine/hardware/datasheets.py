"""Vendors' figures of GPUs: dense peaks per dtype, memory bandwidth and board power, each with its source.

A GPU is looked up by the exact name that NVML reports: an "NVIDIA H100 PCIe" has three quarters of the peak of an "NVIDIA
H100 80GB HBM3", and an H200 is neither. Tables that match parts of names have led to MFUs of 152 and 563 %. A figure on
which sources disagree is left out. There are no CPUs here, because a CPU's clock depends on the load and is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

T = 1e12
G = 1e9


@dataclass(frozen=True, slots=True)
class Source:
    """Where a figure comes from: the name of the page's author, and the page."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class VendorPeak:
    """The figures of a data sheet. None where there is no source; a dtype is left out where the GPU does not support it."""

    device_name: str  # as NVML reports it
    # By dtype: fp32, tf32, bf16, fp16 with fp32 accumulation; int8 in operations per second.
    flops_per_s: Mapping[str, float]
    memory_bytes_per_s: float | None
    power_w: float | None
    source: Source
    dense: bool = True  # False: the figure is for structured sparsity, twice the dense one
    retrieved: str = "2026-11"


_LIGHTNING = "Lightning's table, which cites NVIDIA's data sheet"
_LIGHTNING_URL = (
    "https://github.com/Lightning-AI/pytorch-lightning/blob/1526f84/src/lightning/fabric/utilities/throughput.py"
)
_L = Source(_LIGHTNING, _LIGHTNING_URL)
_KLOCKWOOD_H100 = Source("G. Lockwood's notes on the H100", "https://www.glennklockwood.com/garden/processors/h100")
_KLOCKWOOD_A100 = Source("G. Lockwood's notes on the A100", "https://www.glennklockwood.com/garden/processors/A100")
_THUNDER = Source(
    "Thunder Compute's guide to the A100", "https://www.thundercompute.com/blog/nvidia-a100-specs-full-guide"
)
_WAREDB = Source("waredb's entry on the RTX 4090", "https://waredb.com/processor/nvidia-geforce-rtx-4090")

_A100 = {"fp32": 19.5 * T, "tf32": 156 * T, "bf16": 312 * T, "fp16": 312 * T, "int8": 624 * T}
PEAKS: tuple[VendorPeak, ...] = (
    VendorPeak(
        "NVIDIA H100 80GB HBM3",
        {"fp32": 66.9 * T, "tf32": 494.7 * T, "bf16": 989.4 * T, "fp16": 989.4 * T, "int8": 1978.9 * T},
        3350 * G,
        700,
        _KLOCKWOOD_H100,
    ),
    VendorPeak(  # no bandwidth: the sources only say "more than 2 TB/s"
        "NVIDIA H100 PCIe",
        {"fp32": 51.2 * T, "tf32": 378 * T, "bf16": 756 * T, "fp16": 756 * T, "int8": 1513 * T},
        None,
        None,
        _L,
    ),
    VendorPeak("NVIDIA A100-SXM4-40GB", _A100, 1555 * G, 400, _KLOCKWOOD_A100),
    VendorPeak("NVIDIA A100-SXM4-80GB", _A100, 2039 * G, 400, _KLOCKWOOD_A100),
    VendorPeak("NVIDIA A100-PCIE-40GB", _A100, 1555 * G, 250, _THUNDER),
    VendorPeak("NVIDIA A100 80GB PCIe", _A100, 1935 * G, 300, _THUNDER),
    VendorPeak(
        "NVIDIA L4",
        {"fp32": 30.3 * T, "tf32": 60 * T, "bf16": 121 * T, "fp16": 121 * T, "int8": 242 * T},
        None,
        None,
        _L,
    ),
    VendorPeak(  # no bandwidth: the data sheet says 300 GB/s, other pages 320
        "Tesla T4",
        {"fp32": 8.1 * T, "fp16": 65 * T, "int8": 130 * T},
        None,
        None,
        _L,
    ),
    VendorPeak(  # with fp32 accumulation, as in PyTorch; 330 TFLOP/s is with fp16 accumulation
        "NVIDIA GeForce RTX 4090",
        {"fp32": 82.58 * T, "tf32": 82.58 * T, "bf16": 165.15 * T, "fp16": 165.15 * T, "int8": 660.6 * T},
        1008 * G,
        None,
        _WAREDB,
    ),
)


def vendor_peak(device_name: str) -> VendorPeak | None:
    """The data sheet of a GPU by its NVML name. Where we have none it is None, and the MFU is then unknown."""
    return next((peak for peak in PEAKS if peak.device_name == device_name), None)
