"""The exchange of gradients between ranks, and the time that it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class Exchange:
    """Adds up gradients over the ranks and keeps the time that it takes.

    Each rank's loss carries the weight of its share already, so the sum over the ranks is the gradient of the batch's
    mean loss. DDP's own average over the ranks would be wrong where shares are uneven.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._works: list[dist.Work] = []
        self._began: Any = None
        self._moments: list[tuple[Any, Any, Any]] = []  # began, last gradient ready, ended

    def attach(self, model: DistributedDataParallel) -> None:
        """Register the communication hook of DDP (Li et al. 2020, arXiv:2006.15704, has the buckets)."""
        model.register_comm_hook(None, self._hook)

    # DDP compares the annotations of a hook with types, and here they would be strings.
    def _hook(self, state, bucket):  # type: ignore[no-untyped-def]
        """All-reduce one bucket of gradients; the last bucket of a step waits for all of them."""
        buffer = bucket.buffer()
        if not self._works:
            self._began = self._now()
        work = dist.all_reduce(buffer, async_op=True)
        assert work is not None
        self._works.append(work)
        if bucket.is_last():
            ready = self._now()
            for work in self._works:
                work.wait()  # with NCCL the CUDA stream waits, not this thread
            self._works = []
            self._moments.append((self._began, ready, self._now()))
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[self._device] if self._cuda else None)
        done.set_result(buffer)
        return done

    def timed(self, collective: Callable[[], dist.Work | None]) -> dist.Work | None:
        """Run a collective of FSDP, and count all of its time as waiting too: on a CPU it returns when it is done."""
        began = self._now()
        work = collective()
        self._moments.append((began, began, self._now()))
        return work

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def forget(self) -> None:
        """Drop the times of what evaluations and rehearsed steps exchanged: they are no part of a training step."""
        self._moments = []

    def take(self) -> tuple[float, float]:
        """Seconds of communication, and of waiting for it, since the last call; synchronise the device before."""
        moments, self._moments = self._moments, []
        if self._cuda:
            pairs = [(a.elapsed_time(c) / 1e3, b.elapsed_time(c) / 1e3) for a, b, c in moments]  # CUDA: ms
        else:
            pairs = [(c - a, c - b) for a, b, c in moments]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


class TimedAllGather:
    """FSDP's all-gather of weights, timed (it implements torch.distributed.fsdp's interface AllGather)."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor for the collective's result."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        """Gather `input_tensor` of all ranks into `output_tensor`."""
        return self._exchange.timed(
            lambda: dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        )


class TimedReduceScatter(TimedAllGather):
    """FSDP's reduce-scatter of gradients, timed (it implements the interface ReduceScatter)."""

    def __call__(  # type: ignore[override]
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        """Reduce `input_tensor` over all ranks by `op`; `output_tensor` gets this rank's part."""
        return self._exchange.timed(
            lambda: dist.reduce_scatter_single(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        )
