"""What a run will need, before anything is allocated; refuses what cannot work or cannot fit."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from engine import families, hardware, units
from engine.config import FULL, RunConfig
from engine.datasets import DATASETS, Dataset
from engine.errors import ConfigError, OutOfMemory

MEMORY_SHARE = 0.8  # of what is free; the rest is left to everything else on the machine


@dataclass(frozen=True, slots=True)
class Plan:
    """The arithmetic of a run. Bytes are float32; activations are an estimate, the rest is exact."""

    parameters: int
    forward_flops_per_example: int
    train_flops_per_example: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    data_bytes: int
    batch_size: int  # with "full" resolved
    steps_per_epoch: int
    total_steps: int | None  # None when only a time limit ends the run
    free_bytes: int | None  # on the run's device, now; None where it cannot be read
    fits: bool | None  # None when it is not known how much is free

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes + self.data_bytes


def plan(config: RunConfig, *, free_bytes: int | None = None) -> Plan:
    """The plan of a run, against `free_bytes` or what is free on its device now.

    Raises ConfigError when the batch is larger than the training set.
    """
    data = DATASETS[config.data]
    batch = _batch_size(config, data)
    count = families.parameters(config.model, data)
    state = families.optimizer_bytes(config.optimizer, count)
    weights = families.FLOAT_BYTES * count
    activations = families.activation_bytes_per_example(config.model, data) * max(batch, min(data.test_examples, 1000))
    resident = families.FLOAT_BYTES * _pixels(config, data) * (2 * data.train_examples + data.test_examples)
    free = free_bytes if free_bytes is not None else hardware.free_memory_bytes(config.device)
    total = 2 * weights + state + activations + resident
    steps_per_epoch = ceil(data.train_examples / batch)
    return Plan(
        parameters=count,
        forward_flops_per_example=families.forward_flops_per_example(config.model, data),
        train_flops_per_example=families.train_flops_per_example(config.model, data),
        weight_bytes=weights,
        gradient_bytes=weights,
        optimizer_bytes=state,
        activation_bytes=activations,
        data_bytes=resident,
        batch_size=batch,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps(config, steps_per_epoch),
        free_bytes=free,
        fits=None if free is None else total <= MEMORY_SHARE * free,
    )


def check(config: RunConfig) -> Plan:
    """The plan of a run that may start; raises the sentence that says why it may not.

    Raises:
        ConfigError: the batch is larger than the training set, or there are not that many CPU threads.
        DeviceError: the device is not on this machine.
        OutOfMemory: it needs more than four fifths of the device's free memory.
    """
    machine = hardware.probe()
    hardware.check_device(config.device, machine)
    if config.threads > machine.cpu.usable_cores:
        raise ConfigError(
            f"threads={config.threads} is more than this machine's {machine.cpu.usable_cores} usable cores.",
            fix=f"threads may be a whole number from 1 to {machine.cpu.usable_cores}.",
        )
    result = plan(config)
    if result.fits is False:
        raise OutOfMemory(_does_not_fit(config, result), fix=_what_fits(config, result))
    return result


def total_steps(config: RunConfig, steps_per_epoch: int) -> int | None:
    """Steps until the first of the step and epoch limits; None when neither is set."""
    limits = [config.budget.steps] if config.budget.steps else []
    if config.budget.epochs is not None:
        limits.append(max(1, round(config.budget.epochs * steps_per_epoch)))
    return min(limits) if limits else None


def _batch_size(config: RunConfig, data: Dataset) -> int:
    if config.batch_size == FULL:
        return data.train_examples
    assert isinstance(config.batch_size, int)
    if config.batch_size > data.train_examples:
        raise ConfigError(
            f"batch_size={config.batch_size} is more than the {data.train_examples} training examples of {config.data}.",
            fix=f"batch_size may be a whole number from 1 to {data.train_examples}, or full.",
        )
    return config.batch_size


def _pixels(config: RunConfig, data: Dataset) -> int:
    return families.CNN_SIDE**2 if config.model.family == "cnn" else data.shape[0] * data.shape[1]


def _does_not_fit(config: RunConfig, p: Plan) -> str:
    parts = [("weights", p.weight_bytes), ("gradients", p.gradient_bytes), ("optimizer", p.optimizer_bytes),
             ("activations", p.activation_bytes), ("data", p.data_bytes)]  # fmt: skip
    spec = f"hidden={list(config.model.hidden)}" if config.model.family == "mlp" else f"width={config.model.width:g}"
    total = " + ".join(f"{units.nbytes(size)} {name}" for name, size in parts if size)
    return (
        f"model.{spec} with {units.count(p.parameters)} parameters needs {units.nbytes(p.total_bytes)} on {config.device} "
        f"({total}); {units.nbytes(p.free_bytes)} is free and a run may use {MEMORY_SHARE:.0%} of that."
    )


def _what_fits(config: RunConfig, p: Plan) -> str:
    assert p.free_bytes is not None
    fixed = p.total_bytes - p.activation_bytes
    per_example = p.activation_bytes // max(p.batch_size, 1)
    largest = int((MEMORY_SHARE * p.free_bytes - fixed) // max(per_example, 1))
    return f"Largest batch that fits: {largest}." if largest >= 1 else "Choose a smaller model."
