"""Data-parallel training: each rank takes its share of every batch, and gradients are added up over the ranks.

All ranks draw the same global order and cut the same batches from it, so n ranks follow the trajectory of one with the
same batch size up to rounding, also where a batch does not divide evenly (tests/test_parallel.py). Rank 0 decides
everything that depends on time and tells the others (engine.pytorch.gang): they never disagree on the next collective.

Nothing listens beyond this machine: ranks find each other through a file, and gloo and NCCL are bound to loopback.
torchrun's own store would listen on every interface, whoever may reach it (pytorch/SECURITY.md: no authorization).
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from engine.access import settings
from engine.config.run import RunConfig
from engine.data import loading
from engine.data.datasets import Dataset
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Preparing
from engine.events.training import Memory, Ranks, Steps, StepSplit
from engine.hardware import probe, process_usage
from engine.planning import limits, planner
from engine.pytorch import models
from engine.pytorch.data import Batch, Examples, Order, tensors
from engine.pytorch.distributed.processes import Heartbeats, Link, RankProcesses
from engine.pytorch.setup import set_up_arithmetic, synchronize, torch_device
from engine.pytorch.training import optimizers
from engine.pytorch.training.memory import measure_memory, with_cuda_peaks
from engine.pytorch.training.step_breakdown import split_step
from engine.pytorch.training.steppers import Chunk, Net, read_back, totals

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
_RANKS_EVERY_S = 1.0
_METHOD = {
    "ddp": "each rank's own clock; communication from a step's first all-reduce to the end of its last, waiting for slower "
    "ranks included; waiting is the part after the last gradient was ready (DDP's communication hook)",
    "fsdp": "each rank's own clock; communication is all gathering of weights and scattering of gradients, waiting for "
    "slower ranks included",
}
_MEMORY = "; memory is what each rank holds, pages it shares with the others included"
_MEMORY_GPU = "; memory is what each rank's tensors take of its GPU"


# --- the group ------------------------------------------------------------------------------------------------------


class RankGroup:
    """The process group of a run, as one of its ranks sees it. `config.device` is that rank's own."""

    def __init__(
        self, config: RunConfig, rank: int, rendezvous: Path, board: Heartbeats, gang: RankProcesses | None = None
    ) -> None:
        self.rank, self.num_ranks, self.board, self.gang = rank, config.parallel.num_ranks, board, gang
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
        """What this rank does in the block the others do, too: rank 0 tells them, they were told."""
        return self.gang.order(do, **details) if self.gang else contextlib.nullcontext([])

    def add_up(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; every rank must ask."""
        dist.all_reduce(values)
        return values


def facts(config: RunConfig) -> dict[str, str | int | float | None]:
    """What a data-parallel run's figures depend on beside its machine."""
    if not config.is_parallel:
        return {}
    backend = "gloo" if config.device == "cpu" else "nccl"
    return {
        "num_ranks": config.parallel.num_ranks,
        "strategy": config.parallel.strategy,
        "backend": f"{backend} on {_LOOPBACK}" if config.has_rank_processes else "threads of one process",
    }


# --- a rank's share of the data ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank takes of a batch of `rows` examples: `count` of them. Where it gets none, x and y hold one without
    weight: who waits in a collective must be met there."""

    x: Tensor
    y: Tensor
    count: int
    rows: int

    def parts(self, number: int) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Cut in so many, as every rank cuts its own, and the weight of each in the mean over the batch."""
        if number == 1:
            yield self.x, self.y, self.count / self.rows
            return
        for x, y in zip(self.x.tensor_split(number), self.y.tensor_split(number), strict=True):
            if len(y) and self.count:
                yield x, y, len(y) / self.rows
            else:
                yield self.x[:1], self.y[:1], 0.0


class Shares:
    """Endless shares of the batches that one process alone would see (engine.pytorch.data.Batches)."""

    def __init__(self, examples: Examples, batch_size: int, seed: int, rank: int, num_ranks: int) -> None:
        self.examples, self.batch_size, self.rank, self.num_ranks = examples, batch_size, rank, num_ranks
        self._order = Order(examples, seed)
        self._whole = batch_size == len(examples) and examples.y is not None
        size = examples.x.numel() * examples.x.element_size()
        self._gathers = examples.y is not None and size <= planner.GATHER_LIMIT_BYTES * num_ranks

    def __iter__(self) -> Iterator[Share]:
        while True:
            yield from self._epoch()

    def _epoch(self) -> Iterator[Share]:
        examples, y = self.examples, self.examples.y
        if self._whole:
            assert y is not None
            mine = _bounds(len(y), self.rank, self.num_ranks)
            yield Share(
                examples.x[mine], y[mine], mine.stop - mine.start, len(y)
            )  # a batch holds an example for each rank
            return
        batches = self._order.epoch().to(examples.x.device).split(self.batch_size)
        mine_of = [batch[_bounds(len(batch), self.rank, self.num_ranks)] for batch in batches]
        own: Iterator[Batch]
        if self._gathers:  # one gather an epoch, of this rank's share alone; its batches are views
            x, labels = examples.take(torch.cat(mine_of))
            sizes = [len(mine) for mine in mine_of]
            own = zip(x.split(sizes), labels.split(sizes), strict=True)
        else:
            own = map(examples.take, mine_of)
        for batch, (x, labels) in zip(batches, own, strict=True):
            yield self._share(x, labels, batch)

    def first(self) -> Share:
        """A share to warm up with, without moving the order."""
        index = torch.arange(self.batch_size, device=self.examples.x.device)
        index = index if self.examples.y is not None else index * self.examples.seq_len
        mine = index[_bounds(self.batch_size, self.rank, self.num_ranks)]
        return self._share(*self.examples.take(mine), index)

    def _share(self, x: Tensor, y: Tensor, batch: Tensor) -> Share:
        return Share(x, y, len(y), len(batch)) if len(y) else Share(*self.examples.take(batch[:1]), 0, len(batch))


def _bounds(count: int, rank: int, num_ranks: int) -> slice:
    """Which of `count` in a row are a rank's: shares differ by one at most, the first ranks take the more."""
    size, more = divmod(count, num_ranks)
    begin = rank * size + min(rank, more)
    return slice(begin, begin + size + (rank < more))


# --- the exchange of gradients, and its time --------------------------------------------------------------------------


class Exchange:
    """Adds up gradients over the ranks and keeps the time that takes. Losses carry each share's weight already, so the
    sum is the gradient of the batch's mean; DDP's own average would be wrong where shares are uneven."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._works: list[dist.Work] = []
        self._began: Any = None
        self._moments: list[tuple[Any, Any, Any]] = []  # began, last gradient ready, ended

    def attach(self, model: DistributedDataParallel) -> None:
        model.register_comm_hook(None, self._hook)

    def _hook(self, state, bucket):  # type: ignore[no-untyped-def]  # DDP compares annotations, and strings are not types
        """All-reduce one bucket; the last one of a step waits for all, when this rank has nothing else to do."""
        buffer = bucket.buffer()
        if not self._works:
            self._began = self._now()
        work = dist.all_reduce(buffer, async_op=True)
        assert work is not None
        self._works.append(work)
        if bucket.is_last():
            ready = self._now()
            for work in self._works:
                work.wait()  # of NCCL the stream waits, not this thread
            self._works = []
            self._moments.append((self._began, ready, self._now()))
        done: torch.futures.Future[Tensor] = torch.futures.Future(devices=[self._device] if self._cuda else None)
        done.set_result(buffer)
        return done

    def timed(self, collective: Callable[[], dist.Work | None]) -> dist.Work | None:
        """Do it here and now, and count it as waiting: FSDP's way on a CPU."""
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
        """What evaluations and rehearsals exchanged is no part of a step."""
        self._moments = []

    def take(self) -> tuple[float, float]:
        """Seconds of communication, and of waiting for it, since the last call. The device is synchronised."""
        moments, self._moments = self._moments, []
        if self._cuda:
            pairs = [(a.elapsed_time(c) / 1e3, b.elapsed_time(c) / 1e3) for a, b, c in moments]  # CUDA: ms
        else:
            pairs = [(c - a, c - b) for a, b, c in moments]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


class _TimedGather:
    """FSDP's gathering of weights, with a clock (torch.distributed.fsdp's interface AllGather)."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        return self._exchange.timed(
            lambda: dist.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)
        )


class _TimedScatter(_TimedGather):
    """FSDP's scattering of gradients, likewise (ReduceScatter)."""

    def __call__(  # type: ignore[override]
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, op: Any, async_op: bool = False
    ) -> dist.Work | None:
        return self._exchange.timed(
            lambda: dist.reduce_scatter_single(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
        )


# --- the net of a rank ------------------------------------------------------------------------------------------------


class RankNet(Net):
    """One rank's net: its gradients are those of the mean loss over the whole batch, on every rank alike."""

    def __init__(self, config: RunConfig, facts: Dataset, plan: planner.Plan, crew: RankGroup) -> None:
        self.crew, self.exchange = crew, Exchange(crew.device)
        self._alone = False
        model = models.build(
            config.model, facts, seed=config.seed, device=crew.device, checkpointing=config.activation_checkpointing
        )
        self.is_sharded = config.parallel.strategy == "fsdp"
        super().__init__(config, model, self._optimizer(config, model), plan.micro_batch)
        if not self.is_sharded:
            self.called = DistributedDataParallel(
                model, device_ids=[crew.device] if crew.device.type == "cuda" else None, gradient_as_bucket_view=True,
                forward_sync_buffers=False,
            )  # fmt: skip
            self.exchange.attach(self.called)

    def _optimizer(self, config: RunConfig, model: nn.Sequential) -> optimizers.Optimizer:
        if not self.is_sharded:
            return optimizers.build(config.optimizer, model)
        _shard(model, self.crew, self.exchange)
        # The fused kernels take plain tensors: views of what this rank holds of each weight.
        with torch.no_grad():
            own = [nn.Parameter(_local(p)) for p in model.parameters()]
        return optimizers.build(config.optimizer, nn.ParameterList(own))

    def backward(self, x: Tensor, y: Tensor) -> Tensor:
        """Of examples that are as good as this rank's share of a batch."""
        return self.backward_share(Share(x, y, len(y), len(y) * (1 if self._alone else self.crew.num_ranks)))

    def backward_share(self, share: Share) -> Tensor:
        """Gradients of the mean loss over the batch; returns what this share adds to that loss."""
        self._zero_grad()
        number = ceil(share.rows / (self.micro_batch * (1 if self._alone else self.crew.num_ranks)))
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
        """Of several parts the last one exchanges what all of them came to."""
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
        self._zero_grad()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For steps of this rank that the others do not make, with DDP: nothing is exchanged."""
        assert isinstance(self.called, DistributedDataParallel)
        self._alone = True
        try:
            with self.called.no_sync():
                yield
        finally:
            self._alone = False

    def grad_norm(self) -> Tensor:
        if not self.is_sharded:
            return super().grad_norm()
        squares = [p.grad.square().sum() for p in self.optimizer.params if p.grad is not None]
        return self.crew.add_up(torch.stack(squares).sum()).sqrt()

    def evaluated(self, held_out: Examples, batch_size: int) -> tuple[float, float, int]:
        """Each rank takes its share of the split; the sums are those of all."""
        with self.crew.order("evaluate"), torch.no_grad(), self.averaged(), self.autocast():
            loss, correct, count = totals(self.model, self._own(held_out, batch_size), self.crew.device)
            if not _size(len(held_out), self.crew):
                loss, correct, count = loss * 0, correct * 0, 0
            sums = self.crew.add_up(torch.stack([loss.double(), correct.double(), loss.new_tensor(count).double()]))
        return sums[0].item(), sums[1].item(), round(sums[2].item())

    def _own(self, held_out: Examples, batch_size: int) -> Iterator[Batch]:
        """In as many batches on every rank: gathering weights takes all of them."""
        crew, count = self.crew, len(held_out)
        number = ceil(ceil(count / crew.num_ranks) / batch_size)
        mine = torch.arange(count, device=crew.device)[_bounds(count, crew.rank, crew.num_ranks)]
        for part in mine.tensor_split(number) if len(mine) else [torch.zeros(1, dtype=torch.int64, device=crew.device)]:
            yield held_out.take(part if held_out.y is not None else part * held_out.seq_len)

    def weights(self) -> dict[str, Tensor]:
        """Whole, also where no rank holds them: they are gathered, on every rank."""
        if not self.is_sharded:
            return super().weights()
        with self.crew.order("weights"):
            return {
                name: (t.full_tensor() if isinstance(t, DTensor) else t).contiguous().cpu()
                for name, t in self.model.state_dict().items()
            }


def _shard(model: nn.Sequential, crew: RankGroup, exchange: Exchange) -> None:
    """A Transformer's blocks are gathered one at a time, everything else at once, and let go of after each pass."""
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # it shards nothing else
    mesh = init_device_mesh(crew.device.type, (crew.num_ranks,))
    for part in [*(part for part in model if isinstance(part, models.Block)), model]:
        sharded = fully_shard(part, mesh=mesh, reshard_after_forward=True)
        sharded.set_force_sum_reduction_for_comms(True)
        sharded.set_gradient_divide_factor(1.0)
        if crew.num_ranks > 1:
            sharded.set_custom_all_gather(_TimedGather(exchange))  # type: ignore[arg-type]
            sharded.set_custom_reduce_scatter(_TimedScatter(exchange))  # type: ignore[arg-type]


def _local(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t


def _size(count: int, crew: RankGroup) -> int:
    mine = _bounds(count, crew.rank, crew.num_ranks)
    return int(mine.stop - mine.start)


class RankStepper:
    """Steps of one rank, together with the others."""

    def __init__(self, net: RankNet, examples: Examples, batch_size: int, seed: int) -> None:
        self.net, self.crew = net, net.crew
        self.shares = Shares(examples, batch_size, seed, net.crew.rank, net.crew.num_ranks)
        self._source = iter(self.shares)
        self.account = Account(net.config, net.crew.num_ranks)

    def prepare(self) -> None:
        """What must be done once before the first step and is no part of it."""

    def warm_up(self, steps: int) -> None:
        """First calls connect the ranks, choose kernels and allocate. The weights stay as they were drawn."""
        with self.crew.order("warm_up", steps=steps):
            share = self.shares.first()
            for _ in range(steps):
                self.net.backward_share(share)
            self.net.forget_gradients()

    def steps(self, lrs: Sequence[float]) -> Chunk:
        with self.crew.order("steps", lrs=list(lrs)) as answers:
            chunk = self._steps(lrs)
        self.account.add([self.report, *answers])
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
            self.crew.board.steps[self.crew.rank] += 1
            del share
        synchronize(self.crew.device)
        communication_s, waited_s = net.exchange.take()
        self.report = {
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
            "communication_s": communication_s,
            "waited_s": None if net.is_sharded and self.crew.device.type == "cuda" else waited_s,
            "memory_bytes": _held_bytes(self.crew.device),
        }
        values = self.crew.add_up(torch.stack(losses))
        return read_back([values], sizes, norms or [net.grad_norm()])


def _held_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return process_usage.resident_bytes()


class Account:
    """What the ranks reported since the last event."""

    def __init__(self, config: RunConfig, num_ranks: int) -> None:
        self._devices = config.devices if len(config.devices) == num_ranks else (config.device,) * num_ranks
        gpu = config.device != "cpu"
        self._method = _METHOD[config.parallel.strategy] + (_MEMORY_GPU if gpu else _MEMORY)
        self._reports: list[list[dict[str, Any]]] = []

    def add(self, reports: list[dict[str, Any]]) -> None:
        if len(reports) == len(self._devices):  # on rank 0, which hears of all
            self._reports.append(reports)

    def event(self, elapsed_s: float, first: int, last: int) -> Ranks:
        """Of the steps `first` to `last`, and begin anew."""
        reports, self._reports, number = self._reports, [], last - first + 1
        of_rank = list(zip(*reports, strict=True))

        def mean(name: str) -> tuple[float | None, ...]:
            return tuple(
                None if any(r[name] is None for r in said) else sum(r[name] for r in said) / number for said in of_rank
            )

        wall = [sum(r["wall_s"] for r in said) for said in of_rank]
        return Ranks(
            elapsed_s=elapsed_s,
            steps=(first, last),
            device=self._devices,
            step_s=tuple(s / number for s in wall),
            communication_s=mean("communication_s"),
            waited_s=mean("waited_s"),
            cpu_per_wall=tuple(
                sum(r["cpu_s"] for r in said) / s if s else None for said, s in zip(of_rank, wall, strict=True)
            ),
            memory_bytes=tuple(said[-1]["memory_bytes"] for said in of_rank),
            method=self._method,
        )


# --- rank 0 -----------------------------------------------------------------------------------------------------------


def assembled(gang: RankProcesses, clock: Callable[[], float]) -> Iterator[AnyEvent]:
    """Have the other ranks read the data, which is where it can be read fast by now, and wait for them."""
    gang.tell("load")
    told = clock()
    while not gang.have_answered():
        gang.raise_if_lost()
        time.sleep(0.005)
        if clock() - told >= _RANKS_EVERY_S / 4:
            told = clock()
            yield Preparing(
                text=f"{gang.num_ranks - 1} more ranks are reading the data", done_bytes=0, total_bytes=None
            )
    gang.answers()
    gang.tell("join")


class RankEvents:
    """About one `Ranks` event a second, and one at the end."""

    def __init__(self, stepper: RankStepper) -> None:
        self._account = stepper.account
        self._first, self._at = 1, 0.0

    def after(self, steps: Steps, *, is_last: bool = False) -> Iterator[Ranks]:
        last, at = steps.first + len(steps.loss) - 1, steps.elapsed_s[1]
        if last >= self._first and (is_last or at - self._at >= _RANKS_EVERY_S):
            yield self._account.event(at, self._first, last)
            self._first, self._at = last + 1, at


def memory_of_all(net: RankNet, training: Examples, held_out: Examples, plan: planner.Plan) -> Memory:
    """Measured in rank 0 and, as all ranks do the same, taken for each."""
    number, one = net.crew.num_ranks, plan.of_one_rank()
    if net.is_sharded:
        with net.crew.order("memory"):
            found = measure_memory(net, training, held_out, one)
    else:
        with net.alone():
            found = measure_memory(net, training, held_out, one)
    sizes = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "data_bytes", "step_peak_bytes")
    times = {name: None if (size := getattr(found, name)) is None else size * number for name in sizes}
    return found.model_copy(update={**times, "method": f"{found.method}, in rank 0, times {number} ranks"})


def split_of_one(net: RankNet, stepper: Any, training: Examples, plan: planner.Plan, step_s: float) -> StepSplit:
    """The parts of rank 0's own steps; what the exchange takes is in the ranks' own figures."""
    if net.is_sharded:
        return StepSplit(reason="With FSDP a step's parts wait for weights of other ranks: see what each rank did.")
    with net.alone():
        found = split_step(net, stepper, training, plan.of_one_rank(), step_s=step_s)
    return (
        found.model_copy(update={"method": f"{found.method}; of rank 0, nothing exchanged"}) if found.method else found
    )


def peaks_of_all(memory: Memory, net: RankNet) -> Memory:
    """With what CUDA's allocator held at most in rank 0, likewise taken for each."""
    found, number = with_cuda_peaks(memory, net.crew.device), net.crew.num_ranks
    times = {name: (getattr(found, name) or 0) * number for name in ("allocated_bytes", "reserved_bytes")}
    return found.model_copy(update=times)


# --- the other ranks --------------------------------------------------------------------------------------------------


def follow(config: RunConfig, folder: Path, link: Link) -> None:
    """A rank's life after the fork: what rank 0 does it does, with its own share."""
    config = config.model_copy(update={"device": config.devices[link.rank]})
    allowed, available = settings.load(folder.parent.parent).limits, probe.probe().memory_available_bytes
    limits.limit_memory(config.device, allowed, available, config.parallel.num_ranks)
    device = torch_device(config)
    set_up_arithmetic(config)
    assert link.next_order()["do"] == "load"
    arrays = loading.load(config.data, config.source)
    plan = planner.plan(config, data=arrays.facts)
    training, held_out = (split.to(device) for split in tensors(arrays, config.model))
    facts = arrays.facts
    del arrays
    link.answer()
    assert link.next_order()["do"] == "join"
    crew = RankGroup(config, link.rank, link.rendezvous, link.board)
    net = RankNet(config, facts, plan, crew)
    stepper = RankStepper(net, training, plan.batch_size, config.seed)
    while (order := link.next_order())["do"] != "end":
        match order["do"]:
            case "warm_up":
                stepper.warm_up(order["steps"])
            case "steps":
                stepper.steps(order["lrs"])
                link.answer(**stepper.report)
                continue
            case "evaluate":
                net.evaluated(held_out, plan.evaluation_batch)
            case "memory":
                measure_memory(net, training, held_out, plan.of_one_rank())
            case "weights":
                with net.averaged():
                    net.weights()
            case _:
                raise AssertionError(f"rank 0 ordered {order['do']!r}")
        link.answer()
    dist.destroy_process_group()


# --- the historical baseline --------------------------------------------------------------------------------------------


def threaded(net: Net) -> Net:
    """`net` through nn.DataParallel: one process whose threads copy the model to every GPU in each step, as PyTorch did
    it before DDP. On a CPU torch's own wrapper passes each call through, and so it is here."""
    if net.device_type == "cpu":
        net.called = net.model if torch.cuda.is_available() else DataParallel(net.model)
    else:
        net.called = DataParallel(
            net.model, device_ids=[int(device.partition(":")[2]) for device in net.config.devices]
        )
    return net
