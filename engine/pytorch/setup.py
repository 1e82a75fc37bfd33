"""A run's device and arithmetic in this process, and the conditions of its figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from engine import __version__
from engine.common.errors import DeviceError
from engine.config.run import RunConfig
from engine.hardware import probe

Clock = Callable[[], float]  # seconds, from any moment on


def torch_device(config: RunConfig) -> torch.device:
    """The device of a run; a GPU becomes the current device of this process.

    Raises:
        DeviceError: PyTorch sees no CUDA device, or none with this number.
    """
    if config.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise DeviceError(
                f"device={config.device} cannot be used: this PyTorch ({torch.__version__}) sees no CUDA device.",
                fix="Install the CUDA build of the same version (README, With a GPU), or choose device=cpu.",
            )
        if int(config.device.partition(":")[2]) >= torch.cuda.device_count():
            raise DeviceError(
                f"device={config.device} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices.",
                fix="Choose a smaller number.",
            )
        torch.cuda.set_device(config.device)
    return torch.device(config.device)


def set_up_arithmetic(config: RunConfig, *, flush_denormal: bool = True) -> None:
    """Set this process's number of threads, the precision of its float32 matrix products, and flushing of denormals.

    A CPU computes with values below 1.2e-38 up to a hundred times slower, and Adam's averages of pixels that are rarely
    not black are full of them: at batch size 1 they double the time of a step. Training treats them as 0, inference does
    not, because it measures what a program takes that does not set this.

    Must be called at every turn of a run, because another run of the race may have changed these globals. cuDNN would
    use TF32 for float32 convolutions by default, so that is set as well.
    """
    torch.set_num_threads(config.threads)
    tf32 = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_flush_denormal(flush_denormal)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU: its kernels run asynchronously, so without this a clock would time only their launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def environment(device: torch.device) -> dict[str, str | int | float | None]:
    """The conditions of a run's figures: the machine, the device, library versions and torch's number of threads."""
    return probe.environment(probe.probe(), str(device)) | {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": _dotted(torch.backends.cudnn.version()) if device.type == "cuda" else None,
        "numpy": np.__version__,
        "isoflop": __version__,
        "threads": torch.get_num_threads(),
    }


def _dotted(version: int | None) -> str | None:
    """cuDNN's version number as text: 91002 is 9.10.2 and 8907 is 8.9.7. Since version 9 there are two more digits."""
    if version is None:
        return None
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1_000)
    return f"{major}.{rest // 100}.{rest % 100}"
