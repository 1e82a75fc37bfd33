"""The model, loss and optimizer of one rank, with DDP or FSDP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from engine.config.run import RunConfig
from engine.data.datasets import Dataset
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Batch, Examples
from engine.pytorch.distributed.exchange import Exchange, TimedAllGather, TimedReduceScatter
from engine.pytorch.distributed.group import RankGroup
from engine.pytorch.distributed.shares import Share, bounds
from engine.pytorch.training import optimizers
from engine.pytorch.training.net import Net, Score


class RankNet(Net):
    """One rank's model, loss and optimizer. On every rank the gradients are those of the whole batch's mean loss.

    Strategy ddp keeps a copy of the model on each rank (Li et al. 2020, arXiv:2006.15704). Strategy fsdp gives each
    rank a part of every weight, gradient and optimizer state (Zhao et al. 2023, arXiv:2304.11277; ZeRO stage 3,
    Rajbhandari et al. 2020, arXiv:1910.02054).
    """

    without_autograd = torch.no_grad  # FSDP gathers weights outside of inference mode

    def __init__(self, config: RunConfig, facts: Dataset, plan: planner.Plan, group: RankGroup) -> None:
        self.group, self.exchange = group, Exchange(group.device)
        self._alone = False
        model = models.build(
            config.model, facts, seed=config.seed, device=group.device, checkpointing=config.activation_checkpointing
        )
        self.is_sharded = config.parallel.strategy == "fsdp"
        super().__init__(config, model, self._optimizer(config, model), plan.micro_batch)
        if not self.is_sharded:
            self.called = DistributedDataParallel(
                model,
                device_ids=[group.device] if group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                forward_sync_buffers=False,
            )
            self.exchange.attach(self.called)

    def _optimizer(self, config: RunConfig, model: nn.Sequential) -> optimizers.Optimizer:
        if not self.is_sharded:
            return optimizers.build(config.optimizer, model)
        _shard(model, self.group, self.exchange)
        # The fused kernels take plain tensors: views of the part of each weight that this rank holds.
        with torch.no_grad():
            own = [nn.Parameter(_local(p)) for p in model.parameters()]
        return optimizers.build(config.optimizer, nn.ParameterList(own))

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """As `Net.backward`, with (x, y) in the place of this rank's share of a batch."""
        return self.backward_share(Share(x, y, len(y), len(y) * (1 if self._alone else self.group.num_ranks)))

    def backward_share(self, share: Share) -> Tensor:
        """Write the gradients of the whole batch's mean loss; returns what this share adds to that loss, a scalar."""
        self._zero_grad()
        number = ceil(share.rows / (self.micro_batch * (1 if self._alone else self.group.num_ranks)))
        total = torch.zeros((), device=share.y.device)
        for i, (x, y, weight) in enumerate(share.parts(number), start=1):
            with self._exchanging(i == number):
                loss = self.forward(x, y) * weight
                (self.scaler.scale(loss) if self.scaler else loss).backward()
            total += loss.detach()
        if self.is_sharded:
            with torch.no_grad():
                for own, p in zip(self.optimizer.params, self.model.parameters(), strict=True):
                    own.grad = None if p.grad is None else _local(p.grad)
        return total

    def _exchanging(self, now: bool) -> contextlib.AbstractContextManager[object]:
        """Context manager for a part's backward pass: only the last part exchanges the gradients, added up by then."""
        if isinstance(self.called, DistributedDataParallel):
            return contextlib.nullcontext() if now or self._alone else self.called.no_sync()
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(now)
        return contextlib.nullcontext()

    def _zero_grad(self) -> None:
        self.optimizer.zero_grad()
        if self.is_sharded:
            for p in self.model.parameters():
                p.grad = None

    def forget_gradients(self) -> None:
        """Free the gradients; the next backward pass reallocates them."""
        self._zero_grad()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Context manager (DDP only): this rank makes steps that the others do not make, and exchanges nothing."""
        assert isinstance(self.called, DistributedDataParallel)
        self._alone = True
        try:
            with self.called.no_sync():
                yield
        finally:
            self._alone = False

    def grad_norm(self) -> Tensor:
        """Euclidean norm of the batch's gradient, a scalar; with FSDP every rank must call this."""
        if not self.is_sharded:
            return super().grad_norm()
        squares = [p.grad.square().sum() for p in self.optimizer.params if p.grad is not None]
        return self.group.add_up(torch.stack(squares).sum()).sqrt()

    def evaluated(self, held_out: Examples, batch_size: int) -> Score:
        """As `Net.evaluated`; each rank evaluates its share of the split, and the score is that of all ranks."""
        with self.group.order("evaluate"), torch.no_grad():
            sums = self.sums(self._own_batches(held_out, batch_size), self.group.device)
            if len(held_out) <= self.group.rank:  # no share: the batch is only there for the collectives
                sums = torch.zeros_like(sums)
            return Score.of(self.group.add_up(sums))

    def _own_batches(self, held_out: Examples, batch_size: int) -> Iterator[Batch]:
        """This rank's batches of the test split, as many as on every rank, because with FSDP all gather weights."""
        group, count = self.group, len(held_out)
        number = ceil(ceil(count / group.num_ranks) / batch_size)
        mine = bounds(count, group.rank, group.num_ranks)
        if mine.start == mine.stop:
            yield held_out.between(0, 1)
            return
        for part in (bounds(mine.stop - mine.start, i, number) for i in range(number)):
            yield held_out.between(mine.start + part.start, mine.start + part.stop)

    def weights(self) -> dict[str, Tensor]:
        """The whole weights by name, on the CPU; with FSDP every rank must call this, because they are gathered."""
        if not self.is_sharded:
            return super().weights()
        with self.group.order("weights"):
            return {
                name: (t.full_tensor() if isinstance(t, DTensor) else t).contiguous().cpu()
                for name, t in self.model.state_dict().items()
            }


def _shard(model: nn.Sequential, group: RankGroup, exchange: Exchange) -> None:
    """Apply FSDP2: each block of a Transformer is one unit, and everything else is another one.

    A unit's weights are gathered for its forward and backward pass, and freed after each.
    """
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP shards no other format
    mesh = init_device_mesh(group.device.type, (group.num_ranks,))
    for part in [*(part for part in model if isinstance(part, models.Block)), model]:
        sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)
        if group.num_ranks > 1:
            sharded.set_custom_all_gather(TimedAllGather(exchange))  # type: ignore[arg-type]
            sharded.set_custom_reduce_scatter(TimedReduceScatter(exchange))  # type: ignore[arg-type]


def _local(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t
