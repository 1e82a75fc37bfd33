"""The training task: a generator of events.

It is faster than the loop of the tutorials for four reasons. The data stays on the device. Each epoch is gathered once
in its random order, and batches are views of it. The optimizer is fused. Losses are read back once per chunk of steps
instead of once per step.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Artifact, Started
from engine.events.training import Compiled, Memory, Steps, StepSplit, WarmUp
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Examples, tensors
from engine.pytorch.distributed import data_parallel
from engine.pytorch.distributed.group import RankGroup, group_facts
from engine.pytorch.distributed.processes import RankProcesses
from engine.pytorch.distributed.rank_net import RankNet
from engine.pytorch.distributed.rank_stepper import RankEvents, RankStepper
from engine.pytorch.loading import data_facts, load_dataset
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, synchronize, torch_device
from engine.pytorch.training import optimizers
from engine.pytorch.training.loop import TrainingLoop
from engine.pytorch.training.memory import measure_memory, with_cuda_peaks
from engine.pytorch.training.net import Net
from engine.pytorch.training.step_breakdown import split_step
from engine.pytorch.training.steppers import STEPPERS, Stepper

_WARM_UP_STEPS = 3


def train(
    config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter, rank_processes: RankProcesses | None = None
) -> Generator[AnyEvent, None, None]:
    """Train as `config` says and yield the run's events, from Started to the Artifact with the weights.

    The weights go to `folder`/model.safetensors, checkpoints beside it. `clock` gives seconds. With `rank_processes`
    this process is rank 0 and leads them; they are closed when the generator ends.

    Raises:
        ConfigError: The data set cannot be downloaded or read.
        DeviceError: PyTorch does not see the device.
        Diverged: The training loss became NaN or infinite; the steps that led there were yielded before.
        RankLost: Another rank ended, stopped answering, or did not follow the others.
    """
    if rank_processes is None:
        yield from _train(config, folder, clock, None)
        return
    try:
        yield from _train(config, folder, clock, rank_processes)
        rank_processes.close(orderly=True)
    except Exception as error:
        if (cause := rank_processes.root_cause(error)) is error:
            raise
        raise cause from cause.__cause__ or error
    finally:
        rank_processes.close()


def _train(
    config: RunConfig, folder: Path, clock: Clock, rank_processes: RankProcesses | None
) -> Generator[AnyEvent, None, None]:
    begun = clock()
    device = torch_device(config)
    set_up_arithmetic(config)
    arrays = yield from load_dataset(config, clock)
    plan = planner.plan(config, data=arrays.facts)
    training, held_out = tensors(arrays, config.model)
    facts, about_data = arrays.facts, data_facts(arrays)
    del arrays  # the raw arrays are as large again
    has_loader = config.execution == "dataloader"  # its batches are moved to the device one by one
    training, held_out = training if has_loader else training.to(device), held_out.to(device)
    net: Net
    stepper: Stepper
    if rank_processes:
        yield from data_parallel.wait_for_ranks(rank_processes, clock)
        group = RankGroup(config, 0, rank_processes.rendezvous, rank_processes.heartbeats, rank_processes)
        net = RankNet(config, facts, plan, group)
        stepper = RankStepper(net, training, plan.batch_size, config.seed)
    else:
        model = models.build(
            config.model, facts, seed=config.seed, device=device, checkpointing=config.activation_checkpointing
        )
        optimizer = (optimizers.Reference if has_loader else optimizers.build)(config.optimizer, model)
        net = Net(config, model, optimizer, plan.micro_batch)
        if config.is_parallel:
            net = data_parallel.with_threads(net)
        stepper = STEPPERS[config.execution](net, training, plan.batch_size, config.seed)
    synchronize(device)
    origin = clock()  # where elapsed_s is 0, also for the hardware samples
    yield Started(
        at=time.time(),
        parameters=plan.parameters,
        train_flops_per_example=plan.train_flops_per_example,
        train_examples=len(training),
        test_examples=len(held_out),
        total_steps=plan.total_steps,
        setup_s=origin - begun,
        **about_data,
        environment=environment(device) | group_facts(config),
    )
    yield from _prepared(stepper, net, device, clock)
    loop = TrainingLoop(net, stepper, held_out, plan, clock, origin)
    events = _training_events(loop, training, plan)
    yield from _with_checkpoints(events, loop, folder) if loop.checkpoints else events
    yield _save(net, folder)


def _training_events(loop: TrainingLoop, training: Examples, plan: planner.Plan) -> Iterator[AnyEvent]:
    """The loop's events, and between them the training memory, the step breakdown and the figures of each rank."""
    memory, last = None, None
    ranks = RankEvents(loop.stepper) if isinstance(loop.stepper, RankStepper) else None
    for event in loop.run():
        yield event
        if not isinstance(event, Steps):
            continue
        if memory is None:  # not before the first steps, because the user waits for their first point
            memory = _memory(loop, training, plan)
            yield memory
            yield _split(loop, training, plan, event.train_s[1] / len(event.loss))
        if ranks:
            yield from ranks.after(event)
            last = event
    if ranks and last:
        yield from ranks.after(last, is_last=True)
    if memory and loop.device.type == "cuda":
        if isinstance(loop.net, RankNet):
            yield data_parallel.peaks_of_all(memory, loop.net)
        else:
            yield with_cuda_peaks(memory, loop.device)


def _memory(loop: TrainingLoop, training: Examples, plan: planner.Plan) -> Memory:
    if isinstance(loop.net, RankNet):
        return data_parallel.memory_of_all(loop.net, training, loop.held_out, plan)
    return measure_memory(loop.net, training, loop.held_out, plan)


def _split(loop: TrainingLoop, training: Examples, plan: planner.Plan, step_s: float) -> StepSplit:
    if isinstance(loop.net, RankNet):
        return data_parallel.split_of_one(loop.net, loop.stepper, training, plan, step_s)
    return split_step(loop.net, loop.stepper, training, plan, step_s=step_s)


def _with_checkpoints(events: Iterator[AnyEvent], loop: TrainingLoop, folder: Path) -> Iterator[AnyEvent]:
    """The events of a loop that keeps checkpoints, then the Artifact of the checkpoints, also when the loop fails.

    Raises:
        GeneratorExit: The consumer closed this generator.
    """
    try:
        yield from events
    except GeneratorExit:  # a closed generator must yield nothing more
        raise
    except BaseException:
        with contextlib.suppress(OSError):  # the error that ends the run is more important than this one
            yield loop.save_checkpoints(folder)
        raise
    yield loop.save_checkpoints(folder)


def _prepared(stepper: Stepper, net: Net, device: torch.device, clock: Clock) -> Iterator[AnyEvent]:
    """Compile where the run asks for it, then warm up; neither is part of training time."""
    set_up_arithmetic(net.config)
    begun = clock()
    stepper.prepare()
    synchronize(device)
    if net.config.execution in {"compiled", "cuda-graph"}:
        yield Compiled(seconds=clock() - begun)
    if net.config.execution == "cuda-graph":
        return  # capturing has run the kernels already
    set_up_arithmetic(net.config)
    begun = clock()
    stepper.warm_up(_WARM_UP_STEPS)
    synchronize(device)
    yield WarmUp(seconds=clock() - begun, steps=_WARM_UP_STEPS)


def _save(net: Net, folder: Path) -> Artifact:
    """Write the weights (the averaged ones where the run keeps an average) without pickle and return their Artifact.

    The file is written under another name and then renamed, so that it is complete or absent.
    """
    path, draft = folder / "model.safetensors", folder / ".model.safetensors"
    try:
        with net.averaged():
            save_file(net.weights(), draft)
        draft.chmod(0o600)
        draft.replace(path)
    except BaseException:  # a half-written file on a full disk only takes space
        draft.unlink(missing_ok=True)
        raise
    content = path.read_bytes()
    return Artifact(name=path.name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
