"""How many ranks share one training run, and how."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from engine.config.base import DeviceName, Spec, as_text, field, number, values

StrategyName = Literal["ddp", "fsdp", "data-parallel"]


class Parallel(Spec):
    """How many devices share each batch. `batch_size` is the global batch size, of all devices together."""

    num_ranks: int = field(1, "Ranks", ge=1, le=64)
    """Processes that share each batch, one per GPU or CPU core; each takes batch size / ranks of its examples."""
    strategy: StrategyName = field("ddp", "Strategy")
    """ddp: each rank holds the whole model, and gradients are averaged (DistributedDataParallel). fsdp: weights,
    gradients and optimizer state are sharded over the ranks (fully_shard). data-parallel: one process with threads
    (nn.DataParallel), the historical baseline; on a CPU it only passes calls through."""
    devices: tuple[DeviceName, ...] = values((), "Devices of the ranks", max_length=64)
    """One device per rank; the first one must equal `device`. Empty: the CPU for every rank, or the GPUs from
    `device` on. If the CPU is named more often than it has cores, ranks share cores."""
    timeout_s: float = number(30.0, "Timeout", ge=1, le=3_600)
    """Seconds a rank may be silent, or keep the others waiting, before the run ends and names that rank."""

    @model_validator(mode="after")
    def _a_device_for_each_rank(self) -> Self:
        if not self.devices:
            return self
        if len(self.devices) != self.num_ranks:
            raise ValueError(
                f"devices names {len(self.devices)} for num_ranks={self.num_ranks}; name one for each rank, or none"
            )
        gpus = [device for device in self.devices if device != "cpu"]
        if gpus and len(gpus) < self.num_ranks:
            raise ValueError(f"devices={as_text(self.devices)} mixes CPU and GPUs; ranks share one kind of device")
        if len(set(gpus)) < len(gpus):
            raise ValueError(f"devices={as_text(self.devices)} names a GPU twice; each rank takes one of its own")
        return self
