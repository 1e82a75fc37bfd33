"""The process group of a data-parallel run.

Nothing listens beyond this machine: ranks find each other through a file, and gloo and NCCL use the loopback interface.
torchrun's own store would listen on every interface, without authorization (SECURITY.md of pytorch/pytorch).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.config.run import RunConfig
from engine.pytorch.distributed.processes import Heartbeats, RankProcesses

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


class RankGroup:
    """The process group of a run, as one of its ranks sees it. `config.device` is that rank's own device.

    Making it waits until every rank has made its own. Only rank 0 has `rank_processes`.
    """

    def __init__(
        self,
        config: RunConfig,
        rank: int,
        rendezvous: Path,
        heartbeats: Heartbeats,
        rank_processes: RankProcesses | None = None,
    ) -> None:
        self.rank, self.num_ranks = rank, config.parallel.num_ranks
        self.heartbeats, self.rank_processes = heartbeats, rank_processes
        self.device = torch.device(config.device)
        self.backend = "gloo" if self.device.type == "cpu" else "nccl"
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = _LOOPBACK
        dist.init_process_group(
            self.backend,
            store=dist.FileStore(str(rendezvous), self.num_ranks),  # type: ignore[attr-defined]
            rank=rank,
            world_size=self.num_ranks,
            timeout=datetime.timedelta(seconds=config.parallel.timeout_s),
            device_id=self.device if self.device.type == "cuda" else None,
        )

    def order(self, do: str, **details: Any) -> contextlib.AbstractContextManager[list[dict[str, Any]]]:
        """Context manager: every rank does what this rank does in the block.

        On rank 0 it sends the order `do` to the others and fills the list with their answers when the block ends. On
        another rank, which is following an order already, it does nothing.
        """
        return self.rank_processes.order(do, **details) if self.rank_processes else contextlib.nullcontext([])

    def add_up(self, values: Tensor) -> Tensor:
        """Replace `values` by their sum over all ranks and return them; every rank must call this."""
        dist.all_reduce(values)
        return values


def group_facts(config: RunConfig) -> dict[str, str | int | float | None]:
    """Number of ranks, strategy and backend, as part of a run's environment; empty if the run is not data-parallel."""
    if not config.is_parallel:
        return {}
    backend = "gloo" if config.device == "cpu" else "nccl"
    return {
        "num_ranks": config.parallel.num_ranks,
        "strategy": config.parallel.strategy,
        "backend": f"{backend} on {_LOOPBACK}" if config.has_rank_processes else "threads of one process",
    }
