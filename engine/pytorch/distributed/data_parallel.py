"""Data-parallel training: each rank takes its share of every batch, and gradients are added up over the ranks.

All ranks draw the same global order and cut the same batches from it. So n ranks follow the trajectory of one process
with the same batch size up to rounding, also where a batch does not divide evenly
(tests/pytorch/test_data_parallel.py). Rank 0 decides everything that depends on time and sends orders to the others
(`processes.RankProcesses`), so the ranks never disagree on the next collective.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DataParallel

from engine.access import settings
from engine.config.run import RunConfig
from engine.data import loading
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Preparing
from engine.events.training import Memory, StepSplit
from engine.hardware import probe
from engine.planning import limits, planner
from engine.pytorch.data import Examples, tensors
from engine.pytorch.distributed.group import RankGroup
from engine.pytorch.distributed.processes import RankLink, RankProcesses
from engine.pytorch.distributed.rank_net import RankNet
from engine.pytorch.distributed.rank_stepper import RankStepper
from engine.pytorch.setup import Clock, set_up_arithmetic, torch_device
from engine.pytorch.training.memory import measure_memory, with_cuda_peaks
from engine.pytorch.training.net import Net
from engine.pytorch.training.step_breakdown import split_step
from engine.pytorch.training.steppers import Stepper

_PROGRESS_EVERY_S = 0.25


def wait_for_ranks(rank_processes: RankProcesses, clock: Clock) -> Iterator[AnyEvent]:
    """Order the other ranks to read the data, wait until they have, and order them to join the process group.

    Call this when rank 0 has loaded the data set, because by then it is on disk. Yields Preparing events meanwhile.
    """
    rank_processes.send("load")
    reported = clock()
    while not rank_processes.have_answered():
        rank_processes.raise_if_lost()
        time.sleep(0.005)
        if clock() - reported >= _PROGRESS_EVERY_S:
            reported = clock()
            text = f"{rank_processes.num_ranks - 1} more ranks are reading the data"
            yield Preparing(text=text, done_bytes=0, total_bytes=None)
    rank_processes.answers()
    rank_processes.send("join")


def memory_of_all(net: RankNet, training: Examples, held_out: Examples, plan: planner.Plan) -> Memory:
    """The training memory of all ranks: what rank 0 measures, times their number, because all ranks do the same."""
    number, one = net.group.num_ranks, plan.of_one_rank()
    if net.is_sharded:
        with net.group.order("memory"):
            found = measure_memory(net, training, held_out, one)
    else:
        with net.alone():
            found = measure_memory(net, training, held_out, one)
    sizes = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "data_bytes", "step_peak_bytes")
    products = {name: None if (size := getattr(found, name)) is None else size * number for name in sizes}
    return found.model_copy(update={**products, "method": f"{found.method}, in rank 0, times {number} ranks"})


def split_of_one(net: RankNet, stepper: Stepper, training: Examples, plan: planner.Plan, step_s: float) -> StepSplit:
    """The breakdown of rank 0's own steps without the exchange of gradients, whose time is in the `Ranks` events."""
    if net.is_sharded:
        return StepSplit(
            reason="With FSDP the parts of a step wait for weights of other ranks. The figures of each rank show more."
        )
    with net.alone():
        found = split_step(net, stepper, training, plan.of_one_rank(), step_s=step_s)
    if not found.method:
        return found
    return found.model_copy(update={"method": f"{found.method}; of rank 0, without the exchange of gradients"})


def peaks_of_all(memory: Memory, net: RankNet) -> Memory:
    """`memory` with the peaks of CUDA's allocator in rank 0, times the number of ranks."""
    found, number = with_cuda_peaks(memory, net.group.device), net.group.num_ranks
    products = {name: (getattr(found, name) or 0) * number for name in ("allocated_bytes", "reserved_bytes")}
    return found.model_copy(update=products)


def follow(config: RunConfig, folder: Path, link: RankLink) -> None:
    """Run a rank other than 0 from the fork to its end: follow the orders of rank 0, each with this rank's own share.

    Raises:
        AssertionError: Rank 0 sent an order that does not exist.
    """
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
    group = RankGroup(config, link.rank, link.rendezvous, link.heartbeats)
    net = RankNet(config, facts, plan, group)
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
            case unknown:
                raise AssertionError(f"rank 0 ordered {unknown!r}")
        link.answer()
    dist.destroy_process_group()


def with_threads(net: Net) -> Net:
    """Wrap the model of `net` in nn.DataParallel, the historical baseline, and return `net`.

    One process has a thread per GPU and copies the model to every GPU in each step, as PyTorch did before DDP. On a CPU
    the wrapper of torch passes each call through.
    """
    if net.device_type == "cpu":
        net.called = net.model if torch.cuda.is_available() else DataParallel(net.model)
    else:
        net.called = DataParallel(
            net.model, device_ids=[int(device.partition(":")[2]) for device in net.config.devices]
        )
    return net
