"""Isoflop's training task against the loop of the tutorials: same model, weights, data, batch size, steps; one thread.

Each round trains both from the start, in random order, inside one process. The tutorial's loop is timed from its
first batch to its last loss. Isoflop's time is the training clock of its events: steps and reading back losses,
without warm-up and evaluation, which the tutorial's loop does not do either. Then plain autograd and torch.optim
train on the same batches. Different losses would mean that Isoflop is faster because it computes something else.

`--clock cpu` counts the process's CPU time instead of wall time: if other programs use the cores, the ratio then
does not include their share.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.parsing import parse_config
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.data import loading
from engine.events.training import Steps
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Batches, Examples, tensors
from engine.pytorch.setup import Clock
from engine.pytorch.tasks.train import train
from engine.pytorch.training import optimizers

_ADAM = {"name": "adam", "lr": 1e-3}
_MOMENTUM = {"name": "momentum", "lr": 0.02, "momentum": 0.9}
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True, slots=True)
class Workload:
    """A training, its number of steps, and the goal for the ratio of samples per second."""

    title: str
    goal: float
    steps: int
    model: dict[str, object]
    optimizer: dict[str, object]
    batch_size: int | str

    @property
    def config(self) -> RunConfig:
        """The configuration of the task for this workload."""
        return parse_config(
            {
                "model": self.model,
                "optimizer": self.optimizer,
                "batch_size": self.batch_size,
                "budget": {"steps": self.steps},
            }
        )


WORKLOADS = {
    "mlp-64": Workload("784-128-10, Adam, B=64", 1.6, 315, {"family": "mlp", "hidden": [128]}, _ADAM, 64),
    "mlp-1": Workload("784-128-10, Adam, B=1", 1.45, 1_500, {"family": "mlp", "hidden": [128]}, _ADAM, 1),
    "mlp-full": Workload("784-128-10, Adam, full batch", 2.8, 20, {"family": "mlp", "hidden": [128]}, _ADAM, FULL),
    "lenet-64": Workload("LeNet, momentum, B=64", 1.3, 126, {"family": "cnn"}, _MOMENTUM, 64),
}


# --- the two sides ------------------------------------------------------------------------------------------------


def isoflop(config: RunConfig, clock: Clock) -> tuple[float, np.ndarray]:
    """Samples per second of training, and the loss of every step, from the task's own events."""
    with tempfile.TemporaryDirectory() as folder:
        steps = [event for event in train(config, Path(folder), clock=clock) if isinstance(event, Steps)]
    samples = sum(int(event.samples.sum()) for event in steps)
    return samples / steps[-1].train_s[1], np.concatenate([event.loss for event in steps])


def tutorial(config: RunConfig, training: Examples, clock: Clock) -> float:
    """Samples per second of pytorch.org's beginner loop: DataLoader, default optimizer, loss.item() in every step."""
    batch_size, steps = _sizes(config)
    torch.set_flush_denormal(False)  # torch's default, which the task changes
    model = _plain_model(config)
    criterion = nn.CrossEntropyLoss()
    optimizer = optimizers.Reference(config.optimizer, model)  # torch.optim with its defaults, which are not fused
    loader = DataLoader(TensorDataset(training.x, training.y), batch_size=batch_size, shuffle=True)
    for _ in range(3):  # warm-up, as on the other side; the weights do not change
        criterion(model(training.x[:batch_size]), training.y[:batch_size]).backward()
        optimizer.zero_grad()
    start, step, samples, running_loss = clock(), 0, 0, 0.0
    while step < steps:
        for x, y in loader:
            optimizer.zero_grad()
            outputs = model(x)
            loss = criterion(outputs, y)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            step, samples = step + 1, samples + len(y)
            if step == steps:
                break
    took = clock() - start
    assert np.isfinite(running_loss)
    return samples / took


def reference_losses(config: RunConfig, training: Examples) -> np.ndarray:
    """Losses of plain autograd and torch.optim on the same batches as the task."""
    batch_size, steps = _sizes(config)
    model = _plain_model(config)
    optimizer = optimizers.Reference(config.optimizer, model)  # torch.optim with its defaults, which are not fused
    batches, losses = iter(Batches(training, batch_size, config.seed)), []
    for _ in range(steps):
        x, y = next(batches)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


def _sizes(config: RunConfig) -> tuple[int, int]:
    plan = planner.plan(config)
    assert plan.total_steps is not None
    return plan.batch_size, plan.total_steps


def _plain_model(config: RunConfig) -> nn.Module:
    """The task's model and initial weights in PyTorch's default memory layout."""
    facts = loading.facts(config.data, config.source)
    return models.build(config.model, facts, seed=config.seed).to(memory_format=torch.contiguous_format)


# --- side by side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one workload."""

    tutorial_samples_per_s: Spread
    isoflop_samples_per_s: Spread
    ratio: Spread  # of the two sides of one round
    loss_difference: float  # largest |loss - reference| / reference over the first steps


def compare(workload: Workload, *, rounds: int, rng: random.Random, clock: Clock) -> Result:
    """Measure both sides of a workload in random order, and compare their losses."""
    config = workload.config
    training, _ = tensors(loading.load(config.data, config.source), config.model)
    _, losses = isoflop(
        config, clock
    )  # the first run of each side is not counted, because of imports, allocator and caches
    tutorial(config, training, clock)
    pairs = []
    for _ in range(rounds):
        speed = {}
        for side in rng.sample(["isoflop", "tutorial"], 2):
            speed[side] = isoflop(config, clock)[0] if side == "isoflop" else tutorial(config, training, clock)
        pairs.append((speed["tutorial"], speed["isoflop"]))
    return Result(
        tutorial_samples_per_s=Spread.of([slow for slow, _ in pairs]),
        isoflop_samples_per_s=Spread.of([fast for _, fast in pairs]),
        ratio=Spread.of([fast / slow for slow, fast in pairs]),
        loss_difference=_difference(losses, reference_losses(config, training)),
    )


_COMPARED_STEPS = 20  # later steps differ by rounding, which max pooling and ReLU amplify


def _difference(losses: np.ndarray, reference: np.ndarray) -> float:
    a, b = losses[:_COMPARED_STEPS], reference[:_COMPARED_STEPS]
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-3)))


def main() -> None:
    """Measure all workloads, print a table and save the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", choices=WORKLOADS, action="append")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load_before, rng = measure.load(), random.Random(0)
    rows, figures = [], {}
    for name in arguments.only or WORKLOADS:
        workload = WORKLOADS[name]
        result = compare(workload, rounds=arguments.rounds, rng=rng, clock=CLOCKS[arguments.clock])
        reached = result.ratio.median >= workload.goal
        rows.append(
            [
                workload.title,
                result.tutorial_samples_per_s.text(0),
                result.isoflop_samples_per_s.text(0),
                result.ratio.text(),
                f"{workload.goal:g}",
                measure.verdict(reached),
                f"{result.loss_difference:.0e}",
            ]
        )
        figures[name] = {
            "title": workload.title,
            "steps_per_round": workload.steps,
            "goal_ratio": workload.goal,
            "reached": reached,
            "ratio": result.ratio,
            "tutorial_samples_per_s": result.tutorial_samples_per_s,
            "isoflop_samples_per_s": result.isoflop_samples_per_s,
            "largest_relative_loss_difference_over_20_steps": result.loss_difference,
        }
    print(
        f"Samples per second of {arguments.clock} time, one thread, {arguments.rounds} rounds in random order: median (p10-p90)\n"
    )
    measure.table(["workload", "tutorial loop", "Isoflop", "ratio", "goal", "", "loss differs by"], rows)
    if not arguments.only:
        name = "training_loop" + ("" if arguments.clock == "wall" else f"_{arguments.clock}")
        measure.save(name, {"clock": arguments.clock, "workloads": figures}, load_before=load_before)


if __name__ == "__main__":
    main()
