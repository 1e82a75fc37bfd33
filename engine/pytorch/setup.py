"""A run's device and arithmetic in this process."""

from __future__ import annotations

import torch

from engine.common.errors import DeviceError
from engine.config.run import RunConfig


def torch_device(config: RunConfig) -> torch.device:
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


def set_up_arithmetic(config: RunConfig) -> None:
    """The process's threads and its float32 products. Set anew at each turn: between two of them another run may train.

    cuDNN would take TF32 for float32 convolutions without being asked.
    """
    torch.set_num_threads(config.threads)
    tf32 = config.precision == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def synchronize(device: torch.device) -> None:
    """Kernels on a GPU run asynchronously: without this a clock would time their launch."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
