"""What a run will need, computed before anything is allocated. Runs that cannot work or cannot fit are refused."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, prod

from engine import models
from engine.common import units
from engine.common.errors import ConfigError, DeviceError, OutOfMemory
from engine.config.base import as_text
from engine.config.run import RunConfig
from engine.config.summary import model_in_words
from engine.config.tasks import MIN_BATCH_SIZES, TaskName
from engine.config.training import FULL
from engine.data import loading
from engine.data.datasets import Dataset
from engine.hardware import probe
from engine.hardware.probe import Machine
from engine.models.arithmetic import FLOAT_BYTES
from engine.planning import memory, request_checks
from engine.store import weight_path
from engine.store.run import Run

MEMORY_SHARE = 0.8  # of what is free; the rest is left to everything else on the machine


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic of a run.

    Bytes are for PyTorch's own kernels, activations for float32. They are exact except for the peaks of a step and of an
    evaluation, which are estimates (`engine.planning.memory`). The names are those of `events.training.Memory`, which
    measures the same. For a data-parallel run they are the bytes of one device: of all ranks on the CPU, of one rank on
    a GPU. For a measurement of inference a step is the largest request.
    """

    parameters: int
    forward_flops_per_example: int
    train_flops_per_example: int
    weight_bytes: int  # with their moving average, if the run keeps one
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int  # kept for the backward pass of one micro-batch
    workspace_bytes: int  # what the peak of a step has beyond gradients and activations
    data_bytes: int  # both splits, and an epoch's random order with the copy of the data in this order
    checkpoint_bytes: int  # copies of the weights in CPU memory; 0 for a run on another device
    micro_batch: int  # samples of one forward and backward pass, in each rank
    evaluation_batch: int  # samples of one pass of an evaluation
    batch_size: int  # samples of one optimizer step, with "full" and accumulation resolved
    train_examples: int
    test_examples: int
    steps_per_epoch: int
    total_steps: int | None  # None if only a time limit ends the run
    free_bytes: int | None  # now, on the device of the run; None if it cannot be read
    fits: bool | None  # None if the free memory is unknown
    warnings: tuple[str, ...]  # for settings that work but disappoint, and data that makes the accuracy doubtful
    step_peak_bytes: int  # most in a step above weights, optimizer state and data
    held_bytes: int  # what a step leaves until the next one: gradients and buffers
    evaluation_peak_bytes: int  # most that an evaluation adds to that
    epoch_bytes: int  # the part of data_bytes that is an epoch's order and copy
    reads_views: bool  # whether a step reads its batch where the data is
    notes: tuple[str, ...]  # how the user's data is read, and what of it is not used
    num_ranks: int = 1  # processes that share each batch
    ranks_per_device: int = 1

    def of_one_rank(self) -> Plan:
        """The plan of one rank: what it holds, and its share of a batch."""
        sizes = {name: getattr(self, name) // self.ranks_per_device for name in _OF_ALL_RANKS}
        return replace(self, **sizes, batch_size=ceil(self.batch_size / self.num_ranks), ranks_per_device=1)

    @property
    def step_memory_bytes(self) -> int:
        """Weights, optimizer state and the peak of a step."""
        return self.weight_bytes + self.optimizer_bytes + self.step_peak_bytes

    @property
    def evaluation_memory_bytes(self) -> int:
        """Weights, optimizer state, what a step leaves, and the peak of an evaluation."""
        return self.weight_bytes + self.optimizer_bytes + self.held_bytes + self.evaluation_peak_bytes

    @property
    def total_bytes(self) -> int:
        """The peak of the whole run on its device: a step or an evaluation, whichever takes more, with the data."""
        return sum(size for _, size in self.parts())

    def parts(self) -> list[tuple[str, int]]:
        """The parts of that peak: name and bytes of each."""
        evaluation = self.held_bytes + self.evaluation_peak_bytes
        largest = ("a step", self.step_peak_bytes) if self.step_peak_bytes >= evaluation else ("evaluation", evaluation)
        return [
            ("weights", self.weight_bytes),
            ("optimizer", self.optimizer_bytes),
            largest,
            ("data", self.data_bytes),
            ("checkpoints", self.checkpoint_bytes),
        ]


_OF_ALL_RANKS = (  # sizes that every rank on a device has; only rank 0 keeps checkpoints
    "weight_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    "activation_bytes",
    "workspace_bytes",
    "data_bytes",
    "step_peak_bytes",
    "held_bytes",
    "evaluation_peak_bytes",
    "epoch_bytes",
)


def plan(
    config: RunConfig, *, data: Dataset | None = None, free_bytes: int | None = None, machine: Machine | None = None
) -> Plan:
    """The plan of a run. `free_bytes` defaults to the free memory of its device now; `data` saves reading its facts.

    Raises:
        ConfigError: the batch is larger than the training set, the model cannot read the data, or the checkpoints take
            more memory than allowed.
    """
    data = data or loading.facts(config.data, config.source)
    return planning_of(config).plan(config, data, free_bytes, machine)


def _plan_of_training(config: RunConfig, data: Dataset, free_bytes: int | None, machine: Machine | None) -> Plan:
    model = config.model
    batch, micro = _batch_sizes(config, data)
    ranks = config.num_processes
    together = ranks if config.device == "cpu" and config.has_rank_processes else 1
    # Ranks over which weights, gradients and optimizer state are sharded.
    holders = ranks if config.parallel.strategy == "fsdp" else 1
    micro = ceil(micro / ranks)
    count, checkpointing = models.parameters(model, data), config.activation_checkpointing
    weights, checkpoint_bytes = FLOAT_BYTES * count, weight_path.check_size(config.checkpoints, count)
    own = ceil(weights / holders)
    steps_per_epoch, per_example = ceil(data.train_examples / batch), models.train_flops_per_example(model, data)
    evaluation, epoch = memory.evaluation_batch(config, data), memory.epoch_bytes(config, data, batch)
    peaks = memory.peaks(config, data, ceil(batch / ranks), micro, evaluation)
    # Buffers for communication between ranks hold about as much as the weights; a shard's gradients are a part of them.
    exchanged = weights if config.has_rank_processes else 0
    activations = models.activation_bytes(model, data, micro, checkpointing=checkpointing)
    step = peaks.step_peak_bytes + exchanged
    sizes = {
        "weight_bytes": own * (2 if config.ema_decay else 1),
        "gradient_bytes": own,
        "optimizer_bytes": ceil(models.optimizer_bytes(config.optimizer, model, data) / holders),
        "activation_bytes": activations,
        "workspace_bytes": max(0, step - own - activations),
        "data_bytes": memory.data_bytes(config, data) + epoch,
        "step_peak_bytes": step,
        "held_bytes": peaks.held_bytes + exchanged,
        "evaluation_peak_bytes": peaks.evaluation_peak_bytes,
        "epoch_bytes": epoch,
    }
    sizes = {name: size * together for name, size in sizes.items()}
    sizes["checkpoint_bytes"] = checkpoint_bytes if config.device == "cpu" else 0
    free = free_bytes if free_bytes is not None else _free_bytes(config)
    return _fitted(
        Plan(
            parameters=count,
            forward_flops_per_example=models.forward_flops_per_example(model, data),
            train_flops_per_example=per_example,
            **sizes,
            micro_batch=micro,
            evaluation_batch=evaluation,
            batch_size=batch,
            train_examples=data.train_examples,
            test_examples=data.test_examples,
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps(config, data.train_examples, batch, per_example),
            free_bytes=free,
            fits=None,
            warnings=(*data.warnings, *_warnings(config, data, machine)) if machine else (),
            notes=data.notes,
            reads_views=memory.reads_views(config, data, batch),
            num_ranks=ranks,
            ranks_per_device=together,
        )
    )


def _fitted(p: Plan) -> Plan:
    """The plan with whether it fits, where the free memory is known."""
    return p if p.free_bytes is None else replace(p, fits=p.total_bytes <= MEMORY_SHARE * p.free_bytes)


def _plan_of_inference(config: RunConfig, data: Dataset, free_bytes: int | None, machine: Machine | None) -> Plan:
    """The plan of a run with task infer.

    All copies of the weights (one for each precision and runtime) are in memory at once, because the combinations take turns.
    The largest request adds its samples, the outputs of layers, and the tensors that autograd keeps if it is on.
    """
    model, cells = config.model, config.cells
    batch = max(cell.batch_size for cell in cells)
    recorded = max((cell.batch_size for cell in cells if cell.runtime == "eager"), default=0)
    count, copies = models.parameters(model, data), len({(cell.precision, cell.runtime) for cell in cells})
    example = FLOAT_BYTES * prod(models.input_shape(model, data))
    activations = models.activation_bytes(model, data, recorded) if recorded else 0
    outputs = memory.evaluation_bytes(config, data, batch)
    free = free_bytes if free_bytes is not None else probe.free_memory_bytes(config.device)
    return _fitted(
        Plan(
            parameters=count,
            forward_flops_per_example=models.forward_flops_per_example(model, data),
            train_flops_per_example=models.train_flops_per_example(model, data),
            weight_bytes=FLOAT_BYTES * count * copies,
            gradient_bytes=0,
            optimizer_bytes=0,
            activation_bytes=activations,
            workspace_bytes=outputs,
            data_bytes=example * (data.test_examples + 2 * batch),
            checkpoint_bytes=0,
            micro_batch=batch,
            evaluation_batch=memory.evaluation_batch(config, data),
            batch_size=batch,
            train_examples=data.train_examples,
            test_examples=data.test_examples,
            steps_per_epoch=0,
            total_steps=None,
            free_bytes=free,
            fits=None,
            warnings=(*data.warnings, *_warnings_of_inference(config, data, machine)) if machine else (),
            notes=data.notes,
            step_peak_bytes=activations + outputs,
            held_bytes=0,
            evaluation_peak_bytes=outputs,
            epoch_bytes=0,
            reads_views=True,
        )
    )


def _warnings_of_inference(config: RunConfig, data: Dataset, machine: Machine) -> list[str]:
    found, cells = [], config.cells
    if config.device == "cpu" and any(c.precision == "bf16" for c in cells) and not machine.cpu.can("bf16"):
        found.append(f"{_no_bf16(machine)} bf16 was 2 to 9 times slower than fp32 on a CPU without it.")
    if config.device == "cpu" and any(c.runtime == "compiled" for c in cells):
        found.append(
            "Compiling takes 5 to 40 s on a CPU for each batch size and thread count. Its time is shown separately."
        )
    if not (config.infer.run or config.infer.weights):
        found.append("The weights are untrained: the speed is that of a trained model, but the answers are random.")
    if data.measures_speed_only:
        found.append("Synthetic data is random: it measures speed, and its loss and accuracy mean nothing.")
    return found


def _free_bytes(config: RunConfig) -> int | None:
    """Free bytes on the device of the run that has the least; None if one of them cannot be read."""
    free = [probe.free_memory_bytes(device) for device in dict.fromkeys(config.devices)]
    known = [size for size in free if size is not None]
    return min(known) if len(known) == len(free) else None


def check(config: RunConfig) -> Plan:
    """The plan of a run that can start.

    Raises:
        ConfigError: the batch is larger than the training set, there are not that many CPU threads, or the model
            cannot read the data.
        DeviceError: the device is not on this machine, or it cannot do what the run asks.
        OutOfMemory: it needs more than four fifths of the device's free memory.
    """
    machine = probe.probe()
    probe.check_device(config.device, machine)
    _check_ranks(config, machine)
    check_abilities(config, machine)
    if config.threads > machine.cpu.usable_cores:
        raise ConfigError(
            f"threads={config.threads} is more than this machine's {machine.cpu.usable_cores} usable cores.",
            fix=f"threads must be a whole number from 1 to {machine.cpu.usable_cores}.",
        )
    planning_of(config).check(config)
    result = plan(config, machine=machine)
    if result.fits is False:
        data = loading.facts(config.data, config.source)
        raise OutOfMemory(_does_not_fit(config, result), fix=_what_fits(config, result, data))
    return result


def _check_ranks(config: RunConfig, machine: Machine) -> None:
    """Check that every rank has a device.

    Raises:
        DeviceError: there are fewer devices than ranks; the message names the devices.
    """
    ranks, cores = config.parallel.num_ranks, machine.cpu.usable_cores
    gpus = [device for device in probe.device_choices(machine) if device != "cpu"]
    if missing := [device for device in config.devices if device not in {"cpu", *gpus}]:
        there = ", ".join(gpus) or f"no GPU ({machine.gpu_reason})"
        raise DeviceError(
            f"parallel.num_ranks={ranks} asks for {', '.join(missing)}, but this machine has {there}.",
            fix=f"parallel.num_ranks must be a whole number from 1 to {len(gpus)} on GPUs, or choose device=cpu.",
        )
    asked = config.num_processes * config.threads
    if config.has_rank_processes and config.device == "cpu" and not config.parallel.devices and asked > cores:
        raise DeviceError(
            f"parallel.num_ranks={ranks} with threads={config.threads} asks for {asked} cores, but this "
            f"machine has {cores} usable cores.",
            fix=f"parallel.num_ranks must be a whole number from 1 to {max(1, cores // config.threads)}; to let ranks "
            f"share cores, name the CPU for each: parallel.devices={','.join(['cpu'] * ranks)}.",
        )


# --- what a device can do -----------------------------------------------------------------------------------------

_AMPERE = 8.0  # compute capability: NVIDIA's first with tf32 and bf16


def check_abilities(config: RunConfig, machine: Machine) -> None:
    """Check the precision and the compiler of a run.

    Raises:
        DeviceError: the device cannot compute in this precision, or there is no compiler.
    """
    precision, on_cpu = config.precision, config.device == "cpu"
    reason = ""
    if on_cpu and precision == "tf32":
        reason = "TF32 is a mode of NVIDIA's tensor cores"
    elif on_cpu and precision == "fp16" and machine.cpu.can("fp16") is False:
        reason = f"this CPU has no float16 arithmetic ({', '.join(probe.ABILITIES['fp16'])})"
    elif not on_cpu and precision in {"tf32", "bf16"}:
        capability = _capability(config, machine)
        if capability is not None and capability < _AMPERE:
            reason = f"the GPU has compute capability {capability:g}, and {precision} needs {_AMPERE:g}"
    if on_cpu and precision == "bf16" and _is_fused_recurrence(config) and machine.cpu.can("bf16") is False:
        reason = f"this CPU has an LSTM in float32 only ({', '.join(probe.ABILITIES['bf16'])})"
    if reason:
        fix = "Choose precision=fp32." if on_cpu else "Choose precision=fp32 or fp16."
        raise DeviceError(f"precision='{precision}' cannot be used on {config.device}: {reason}.", fix=fix)
    if config.execution == "compiled" and on_cpu and not _compiler():
        raise DeviceError(
            "execution='compiled' needs a C++ compiler, and none was found.",
            fix="Install g++ (or set CXX), or choose execution=eager.",
        )


def _no_bf16(machine: Machine) -> str:
    if machine.cpu.can("bf16") is None:
        return "It is not known whether this CPU has bfloat16 arithmetic:"
    return "This CPU has no bfloat16 arithmetic:"


def _capability(config: RunConfig, machine: Machine) -> float | None:
    index = int(config.device.partition(":")[2])
    found = [gpu.compute_capability for gpu in machine.gpus if gpu.index == index]
    return float(found[0]) if found and found[0] else None


def _is_fused_recurrence(config: RunConfig) -> bool:
    return models.family_of(config.model).is_fused_recurrence(config.model)


def _compiler() -> str | None:
    """Path of the C++ compiler, searched as torch.compile does (torch/_inductor/config.py); None if there is none."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def _warnings(config: RunConfig, data: Dataset, machine: Machine) -> list[str]:
    """Warnings for a user before the run."""
    found = []
    if config.device == "cpu" and config.precision == "bf16" and not machine.cpu.can("bf16"):
        found.append(
            f"{_no_bf16(machine)} bf16 ran 2 to 9 times slower than fp32 on a CPU without it. "
            "The losses are still those of bf16."
        )
    if config.device == "cpu" and config.precision == "fp16" and machine.cpu.can("fp16") is None:
        found.append("It is not known whether this CPU has float16 arithmetic. Without it, fp16 is slow.")
    if config.execution == "compiled" and config.device == "cpu":
        found.append(
            "Compiling takes 10 to 80 s on a CPU and gave at most 1.1 times the speed of eager; convolutions became "
            "slower. Its time is shown separately."
        )
    if config.execution == "compiled" and models.family_of(config.model).is_recurrent:
        found.append("torch.compile does not change recurrent layers, so there is little to gain.")
    found += _warnings_of_ranks(config, machine)
    found += _warnings_of_length(config, data)
    if data.measures_speed_only:
        found.append("Synthetic data is random: it measures speed, and its loss and accuracy mean nothing.")
    return found


def _warnings_of_ranks(config: RunConfig, machine: Machine) -> list[str]:
    found = []
    asked, cores = config.num_processes * config.threads, machine.cpu.usable_cores
    if config.has_rank_processes and config.device == "cpu" and asked > cores:
        found.append(
            f"{config.num_processes} ranks of {config.threads} thread{'' if config.threads == 1 else 's'} share "
            f"{cores} usable cores: they wait for each other, and their speed says nothing about several devices."
        )
    if config.is_parallel and not config.has_rank_processes:
        found.append(
            "nn.DataParallel is the historical baseline, kept for comparison: PyTorch recommends ddp. "
            + (
                "On a CPU it only passes each call through, so one process does all the work."
                if config.device == "cpu"
                else "It copies the model to every GPU in each step."
            )
        )
    return found


def _warnings_of_length(config: RunConfig, data: Dataset) -> list[str]:
    """Warnings for settings that need more steps than the run has."""
    batch, _ = _batch_sizes(config, data)
    steps = total_steps(config, data.train_examples, batch, models.train_flops_per_example(config.model, data))
    if steps is None:
        return []
    found = []
    if config.warmup_steps >= steps:
        found.append(
            f"warmup_steps={config.warmup_steps} is as long as the run of {steps} steps, so the run never reaches "
            "its learning rate."
        )
    if config.ema_decay and (first := config.ema_decay**steps) > _TOO_OLD:
        found.append(
            f"With ema_decay={config.ema_decay:g} and {steps} steps, {first:.0%} of the averaged weights are still "
            "the first weights."
        )
    return found


_TOO_OLD = 0.05  # share of the first weights in the average above which a warning is given


# --- how long, how large ------------------------------------------------------------------------------------------


def total_steps(config: RunConfig, train_examples: int, batch_size: int, flops_per_example: int) -> int | None:
    """Steps until the first limit of the budget, without its time limit; None if there is no other limit."""
    if not planning_of(config).has_budget:
        return None
    budget, per_epoch = config.budget, ceil(train_examples / batch_size)
    limits = []
    if budget.steps is not None:
        limits.append(budget.steps)
    if budget.epochs is not None:
        limits.append(round(budget.epochs * per_epoch))
    samples = [budget.samples] if budget.samples is not None else []
    if budget.flops is not None:
        samples.append(ceil(budget.flops / flops_per_example))
    for count in samples:  # the last batch of an epoch can be smaller
        epochs, rest = divmod(count, train_examples)
        limits.append(epochs * per_epoch + ceil(rest / batch_size))
    return max(1, min(limits)) if limits else None


def _batch_sizes(config: RunConfig, data: Dataset) -> tuple[int, int]:
    """Samples of one optimizer step, and of one forward and backward pass.

    Raises:
        ConfigError: the batch is larger than the training set.
    """
    return planning_of(config).batch_sizes(config, data)


def _largest_of_law(config: RunConfig, data: Dataset) -> tuple[int, int]:
    """As `_batch_sizes`, for a batch-size law: its largest batch needs the most memory."""
    largest = _law_sizes(config, data)[-1]
    return largest, largest


def _batch_sizes_of_training(config: RunConfig, data: Dataset) -> tuple[int, int]:
    examples, parts = data.train_examples, config.grad_accumulation
    if config.batch_size == FULL:
        return examples, ceil(examples / parts)
    assert isinstance(config.batch_size, int)
    if config.batch_size * parts > examples:
        times = f" x grad_accumulation={parts}" if parts > 1 else ""
        field, largest = ("batch_size", examples // parts) if parts <= examples else ("grad_accumulation", examples)
        raise ConfigError(
            f"batch_size={config.batch_size}{times} is more than the {examples} training samples of {config.data}.",
            fix=f"{field} must be a whole number from 1 to {largest}{', or full' if field == 'batch_size' else ''}.",
        )
    return config.batch_size * parts, config.batch_size


def _law_sizes(config: RunConfig, data: Dataset) -> list[int]:
    sizes = config.law.sizes(data.train_examples)
    if len(sizes) < MIN_BATCH_SIZES:
        raise ConfigError(
            f"law.batch_sizes: {len(sizes)} of them fit in the {data.train_examples} training samples of "
            f"{config.data}, but the fit needs {MIN_BATCH_SIZES}.",
            fix="Add smaller batch sizes.",
        )
    return sizes


def _does_not_fit(config: RunConfig, p: Plan) -> str:
    total = " + ".join(f"{units.nbytes(size)} {name}" for name, size in p.parts() if size)
    batch_size = planning_of(config).shown_batch_size(config, p)
    each = f" for {p.ranks_per_device} ranks" if p.ranks_per_device > 1 else " for each rank" if p.num_ranks > 1 else ""
    return (
        f"{model_in_words(config.model, config.data)} with {units.count(p.parameters)} parameters at batch_size="
        f"{batch_size} needs {units.nbytes(p.total_bytes)} on {config.device}{each} ({total}); "
        f"{units.nbytes(p.free_bytes)} is free and a run can use {MEMORY_SHARE:.0%} of that."
    )


def _what_fits(config: RunConfig, p: Plan, data: Dataset) -> str:
    return planning_of(config).what_fits(config, p, data)


def _smaller_requests(config: RunConfig, p: Plan, data: Dataset) -> str:
    return f"Choose requests of fewer than {p.batch_size} samples, or fewer precisions and runtimes."


def _smaller_batch(config: RunConfig, p: Plan, data: Dataset) -> str:
    largest = _largest_batch(config, p, data)
    if not largest:
        too_much_data = p.data_bytes > p.total_bytes / 2
        return "Choose a smaller data set." if too_much_data else "Choose a smaller model."
    if config.batch_size == FULL:
        return f"Largest batch that fits: {largest}; full fits with grad_accumulation={ceil(p.batch_size / largest)}."
    return f"Largest batch that fits: {largest}. More data per step: raise grad_accumulation."


def _largest_batch(config: RunConfig, p: Plan, data: Dataset) -> int:
    """The largest batch size that fits, found by bisection; 0 if not even one sample fits."""
    fits, too_large = 0, p.micro_batch * p.num_ranks
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        smaller = config.model_copy(update={"batch_size": middle})
        if plan(smaller, data=data, free_bytes=p.free_bytes).fits:
            fits = middle
        else:
            too_large = middle
    return fits


# --- tasks --------------------------------------------------------------------------------------------------------


def _check_inference(config: RunConfig) -> None:
    request_checks.check_request(config, loading.facts(config.data, config.source))
    if config.infer.weights:
        request_checks.tensors_in(request_checks.own_weights(config))


def _check_answering_run(config: RunConfig, run_of: Callable[[str], Run]) -> None:
    if config.infer.run:
        request_checks.check_run(config, run_of(config.infer.run))


def _check_no_budget(config: RunConfig) -> None:
    """Check that no budget was given to a task that ignores it.

    Raises:
        ConfigError: one was given.
    """
    usual = RunConfig().budget
    given = {f"budget.{name}": value for name, value in config.budget if value != getattr(usual, name)}
    if given:
        raise ConfigError(
            f"{', '.join(f'{name}={as_text(value)}' for name, value in given.items())} cannot be combined with "
            f"task='{config.task}', which takes as long as its measurements need.",
            fix=f"Remove {' and '.join(given)}.",
        )


@dataclass(frozen=True, slots=True)
class TaskPlanning:
    """How the runs of a task are planned and checked. The defaults are those of training."""

    plan: Callable[[RunConfig, Dataset, int | None, Machine | None], Plan] = _plan_of_training
    batch_sizes: Callable[[RunConfig, Dataset], tuple[int, int]] = _batch_sizes_of_training
    has_budget: bool = True  # the budget says how many steps a run takes
    check: Callable[[RunConfig], None] = lambda config: None  # raises ConfigError for a run that may not start
    check_runs: Callable[[RunConfig, Callable[[str], Run]], None] = lambda config, run_of: None
    what_fits: Callable[[RunConfig, Plan, Dataset], str] = _smaller_batch  # advice where the memory is too small
    shown_batch_size: Callable[[RunConfig, Plan], object] = lambda config, p: config.batch_size


PLANNING: Mapping[TaskName, TaskPlanning] = {
    "batch-law": TaskPlanning(batch_sizes=_largest_of_law, has_budget=False),  # trials take the steps they need
    "calibrate": TaskPlanning(check=_check_no_budget),
    "infer": TaskPlanning(
        _plan_of_inference,
        check=_check_inference,
        check_runs=_check_answering_run,
        what_fits=_smaller_requests,
        shown_batch_size=lambda config, p: p.batch_size,
    ),
}


def planning_of(config: RunConfig) -> TaskPlanning:
    """How the task of a run is planned."""
    return PLANNING.get(config.task, _AS_TRAINING)


_AS_TRAINING = TaskPlanning()


def check_runs(config: RunConfig, run_of: Callable[[str], Run]) -> None:
    """Check the other runs that a run needs; `run_of` opens a run by its id. Raises ConfigError if one does not fit."""
    planning_of(config).check_runs(config, run_of)
