"""Optimizer steps of one rank, and what each rank reports about them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from engine.config.run import RunConfig
from engine.events.training import Ranks, Steps
from engine.hardware import process_usage
from engine.pytorch.data import Examples
from engine.pytorch.distributed.rank_net import RankNet
from engine.pytorch.distributed.shares import Shares
from engine.pytorch.setup import synchronize
from engine.pytorch.training.steppers import Chunk, read_back

_METHOD = {
    "ddp": "each rank's own clock; communication is from the start of a step's first all-reduce to the end of its last "
    "one, waiting for slower ranks included; waiting is the part after the last gradient was ready (DDP's "
    "communication hook)",
    "fsdp": "each rank's own clock; communication is all-gather of weights and reduce-scatter of gradients, waiting "
    "for slower ranks included",
}
_MEMORY = "; memory is each rank's resident memory, pages that it shares with other ranks included"
_MEMORY_GPU = "; memory is what each rank's tensors use on its GPU"
_RANKS_EVERY_S = 1.0


class RankStepper:
    """Makes the steps of one rank, together with the other ranks (a `Stepper` of engine.pytorch.training.steppers)."""

    def __init__(self, net: RankNet, examples: Examples, batch_size: int, seed: int) -> None:
        self.net, self.group = net, net.group
        self.shares = Shares(examples, batch_size, seed, net.group.rank, net.group.num_ranks)
        self._source = iter(self.shares)
        self.reports = RankReports(net.config, net.group.num_ranks)

    def prepare(self) -> None:
        """Do what is needed once before the first step: here, nothing."""

    def warm_up(self, steps: int) -> None:
        """Connect the ranks, choose kernels and allocate by `steps` forward and backward passes.

        The weights stay as they were drawn.
        """
        with self.group.order("warm_up", steps=steps):
            share = self.shares.first()
            for _ in range(steps):
                self.net.backward_share(share)
            self.net.forget_gradients()

    def steps(self, lrs: Sequence[float]) -> Chunk:
        """One optimizer step for each learning rate; returns when their losses, those of all ranks, are on the host."""
        with self.group.order("steps", lrs=list(lrs)) as answers:
            chunk = self._steps(lrs)
        self.reports.add([self.report, *answers])
        return chunk

    def _steps(self, lrs: Sequence[float]) -> Chunk:
        net, losses, sizes, norms = self.net, [], [], []
        net.exchange.forget()
        wall, cpu = time.perf_counter(), time.process_time()
        for lr in lrs:
            net.optimizer.lr = lr
            share = next(self._source)
            losses.append(net.backward_share(share))
            if (norm := net.update()) is not None:
                norms.append(norm)
            sizes.append(share.rows)
            self.group.heartbeats.steps[self.group.rank] += 1
            del share
        synchronize(self.group.device)
        communication_s, waited_s = net.exchange.take()
        self.report = {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "communication_s": communication_s,
            "waited_s": None if net.is_sharded and self.group.device.type == "cuda" else waited_s,
            "memory_bytes": _held_bytes(self.group.device),
        }
        values = self.group.add_up(torch.stack(losses))
        return read_back([values], sizes, norms or [net.grad_norm()])


def _held_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return process_usage.resident_bytes()


class RankReports:
    """The reports of all ranks since the last `Ranks` event; one report covers a chunk of steps."""

    def __init__(self, config: RunConfig, num_ranks: int) -> None:
        self._devices = config.devices if len(config.devices) == num_ranks else (config.device,) * num_ranks
        gpu = config.device != "cpu"
        self._method = _METHOD[config.parallel.strategy] + (_MEMORY_GPU if gpu else _MEMORY)
        self._chunks: list[list[dict[str, Any]]] = []

    def add(self, reports: list[dict[str, Any]]) -> None:
        """Keep the reports of one chunk, one per rank. Only rank 0 has all of them, so another rank keeps none."""
        if len(reports) == len(self._devices):
            self._chunks.append(reports)

    def event(self, elapsed_s: float, first: int, last: int) -> Ranks:
        """The event of the steps `first` to `last`, which the kept reports cover; they are dropped."""
        chunks, self._chunks, number = self._chunks, [], last - first + 1
        of_rank = list(zip(*chunks, strict=True))

        def mean(name: str) -> tuple[float | None, ...]:
            return tuple(
                None if any(r[name] is None for r in own) else sum(r[name] for r in own) / number for own in of_rank
            )

        wall = [sum(r["wall_s"] for r in own) for own in of_rank]
        return Ranks(
            elapsed_s=elapsed_s,
            steps=(first, last),
            device=self._devices,
            step_s=tuple(s / number for s in wall),
            communication_s=mean("communication_s"),
            waited_s=mean("waited_s"),
            cpu_per_wall=tuple(
                sum(r["cpu_s"] for r in own) / s if s else None for own, s in zip(of_rank, wall, strict=True)
            ),
            memory_bytes=tuple(own[-1]["memory_bytes"] for own in of_rank),
            method=self._method,
        )


class RankEvents:
    """Makes about one `Ranks` event per second, and one after the last step."""

    def __init__(self, stepper: RankStepper) -> None:
        self._reports = stepper.reports
        self._first, self._at = 1, 0.0

    def after(self, steps: Steps, *, is_last: bool = False) -> Iterator[Ranks]:
        """The event that is due after a Steps event, if one is."""
        last, at = steps.first + len(steps.loss) - 1, steps.elapsed_s[1]
        if last >= self._first and (is_last or at - self._at >= _RANKS_EVERY_S):
            yield self._reports.event(at, self._first, last)
            self._first, self._at = last + 1, at
