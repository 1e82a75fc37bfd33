"""Data-parallel training: the number of ranks, their devices and the strategy."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from engine.config.base import DeviceName, Spec, as_text, field, number, values

StrategyName = Literal["ddp", "fsdp", "data-parallel"]


class Parallel(Spec):
    """Data-parallel training. `batch_size` is the global batch size, the sum over all ranks."""

    num_ranks: int = field(1, "Ranks", ge=1, le=64)
    """Processes that share each batch, one per GPU or CPU core. Each one trains on batch size / ranks samples."""
    strategy: StrategyName = field("ddp", "Strategy")
    """ddp: each rank holds the whole model, and gradients are averaged (DistributedDataParallel). fsdp: weights,
    gradients and optimizer state are sharded over the ranks (fully_shard). data-parallel: one process with threads
    (nn.DataParallel), for comparison; on a CPU it adds nothing."""
    devices: tuple[DeviceName, ...] = values((), "Devices per rank", max_length=64)
    """One device per rank. The first one must equal `device`. Empty: the CPU for every rank, or consecutive GPUs
    from `device` on. With more CPU ranks than cores, ranks share cores."""
    timeout_s: float = number(30.0, "Timeout", ge=1, le=3_600)
    """Seconds after which the run fails if a rank does not respond or keeps the others waiting."""

    @model_validator(mode="after")
    def _a_device_for_each_rank(self) -> Self:
        if not self.devices:
            return self
        if len(self.devices) != self.num_ranks:
            raise ValueError(
                f"devices has {len(self.devices)} entries for num_ranks={self.num_ranks}; give one per rank, or none"
            )
        gpus = [device for device in self.devices if device != "cpu"]
        if gpus and len(gpus) < self.num_ranks:
            raise ValueError(
                f"devices={as_text(self.devices)} mixes CPU and GPUs; all ranks need the same kind of device"
            )
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"devices={as_text(self.devices)} has a GPU twice; each rank needs its own GPU")
        return self
