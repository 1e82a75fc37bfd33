"""Isoflop's training task against other ways to train the same model: `python -m benchmarks.peers`.

The peers have their own environment (`requirements-peers.txt`); a peer that is not installed is left out, with a
message. All do the same number of steps of the same model at the same batch size, from the initial weights in each
round. The time runs from the first batch to the last loss on the host. Building, compiling and warm-up are not
included; the first round, which has them, is listed separately. Peers are used as their documentation shows, without
progress bars, loggers and checkpoints unless their name says so.

Every contestant, Isoflop included, has its own process that runs a round on request, so that the rounds of all
alternate in random order. Keras allows one backend per process, JAX has its own thread pool and Lightning its own
hooks, and none can disturb another. All run on the same core. Isoflop is measured twice: its training loop in such a
process, and a run as users start it, through supervisor and worker with everything recorded.

`--clock cpu` counts the CPU time of each one's process, for machines that are not quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import math
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import measure
from benchmarks.limits import Limits, roofline_s
from benchmarks.measure import Spread
from benchmarks.workers import Peer, Worker, first_answers, installed, names_of, one_core, serve, started, versions
from engine.config.parsing import parse_config, with_overrides
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.data import loading
from engine.data.datasets import Dataset
from engine.events.training import Evaluation, Steps
from engine.planning import planner
from engine.pytorch import data as datasets
from engine.pytorch import models
from engine.pytorch.setup import Clock
from engine.pytorch.tasks.train import train
from engine.pytorch.training import optimizers
from engine.runtime.client import Client
from engine.store.store import Store

ROUNDS = 7
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_MLP = {"family": "mlp", "hidden": [128]}
_DECODER = {"family": "transformer", "num_layers": 4, "d_model": 144, "num_heads": 4}
_ADAM = {"name": "adam", "lr": 1e-3}
_ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}
_MOMENTUM = {"name": "momentum", "lr": 0.02, "momentum": 0.9}


@dataclass(frozen=True, slots=True)
class Workload:
    """The training of a round: whole epochs, or less than one."""

    title: str
    steps: int
    model: dict[str, object]
    optimizer: dict[str, object]
    batch_size: int | str
    data: str = "mnist5k"

    @property
    def config(self) -> RunConfig:
        """The configuration of Isoflop's task for this workload."""
        return parse_config(
            {
                "model": self.model,
                "data": self.data,
                "optimizer": self.optimizer,
                "batch_size": self.batch_size,
                "budget": {"steps": self.steps},
                "evaluate_every": self.steps,
                "execution": "eager",
            }
        )


WORKLOADS = {
    "mlp-64": Workload("784-128-10, Adam, B=64", 315, _MLP, _ADAM, 64),
    "mlp-1": Workload("784-128-10, Adam, B=1", 4_000, _MLP, _ADAM, 1),
    "mlp-full": Workload("784-128-10, Adam, full batch", 16, _MLP, _ADAM, FULL),
    "lenet-64": Workload("LeNet, momentum, B=64", 63, {"family": "cnn"}, _MOMENTUM, 64),
    "decoder-32": Workload("char decoder, AdamW, B=32", 6, _DECODER, _ADAMW, 32, "text"),
}


# --- contestants --------------------------------------------------------------------------------------------------


class Contestant(ABC):
    """One way to train a workload, round by round."""

    def __init__(self, workload: Workload, clock: Clock) -> None:
        self.config, self.steps, self.clock = workload.config, workload.steps, clock
        plan = planner.plan(self.config)
        self.batch_size = plan.batch_size
        self.epochs, rest = divmod(self.steps, plan.steps_per_epoch)
        assert not (self.epochs and rest), "whole epochs or less than one"
        self.samples = self.epochs * plan.train_examples + rest * self.batch_size

    @abstractmethod
    def round_s(self) -> float:
        """Seconds of one training from the initial weights."""

    @abstractmethod
    def held_out_loss(self) -> float:
        """The test loss after the last round, which shows that the contestant really trained."""


class Isoflop(Contestant):
    """The training task with its own clock: steps and reading back losses, as in `training_loop`."""

    def round_s(self) -> float:
        """Seconds of the task's training clock."""
        with tempfile.TemporaryDirectory() as folder:
            events = list(train(self.config, Path(folder), clock=self.clock))
        self.evaluation = [event for event in events if isinstance(event, Evaluation)][-1]
        return [event for event in events if isinstance(event, Steps)][-1].train_s[1]

    def held_out_loss(self) -> float:
        """The test loss of the last evaluation."""
        return self.evaluation.test_loss


class Product(Contestant):
    """A run as users start it: submitted to a supervisor, trained by a worker, everything recorded.

    Its time is the training clock in the run's summary, as `samples_per_s` in `show --json`. It is wall time also with
    `--clock cpu`, so it is left out there.
    """

    def __init__(self, workload: Workload, clock: Clock) -> None:
        super().__init__(workload, clock)
        if clock is not CLOCKS["wall"]:
            raise NotImplementedError("a worker's training clock is wall time")
        self.config = with_overrides(self.config, ["evaluate_every=auto", "threads=1"])
        self.store = Store(Path.home() / "store")  # the workers have a temporary HOME
        self.client = Client(self.store)

    def round_s(self) -> float:
        """Training seconds of one run."""
        self.run = self.store.run(self.client.submit(self.config))
        while not self.run.is_over:
            time.sleep(0.02)
            self.run.refresh()
        if self.run.status != "finished":
            raise RuntimeError(self.run.why())
        return self.run.summary().train_seconds or math.nan

    def held_out_loss(self) -> float:
        """The test loss of the last evaluation."""
        return self.run.evaluations.last("test_loss") or math.nan


class Tutorial(Contestant):
    """pytorch.org's beginner loop: DataLoader, default optimizer, loss.item() in every step."""

    def __init__(self, workload: Workload, clock: Clock) -> None:
        super().__init__(workload, clock)
        self.split = Split.of(self.config)
        self.criterion = mean_loss if self.config.data == "text" else nn.CrossEntropyLoss()

    def fresh(self) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader]:
        """The task's model and initial weights in PyTorch's default memory layout, warmed up as in the task."""
        self.model = models.build(self.config.model, facts_of(self.config), seed=self.config.seed)
        self.model.to(memory_format=torch.contiguous_format)
        optimizer = plain_optimizer(self.config, self.model)
        for _ in range(3):
            x, y = self.split.train_x[: self.batch_size], self.split.train_y[: self.batch_size]
            self.criterion(self.model(x), y).backward()
            optimizer.zero_grad()
        torch.manual_seed(self.config.seed)  # fixes the order of the data
        examples = TensorDataset(self.split.train_x, self.split.train_y)
        return self.model, optimizer, DataLoader(examples, batch_size=self.batch_size, shuffle=True)

    def round_s(self) -> float:
        """Seconds of the loop."""
        return self.loop_s(*self.fresh(), torch.Tensor.backward)

    def loop_s(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: DataLoader,
        backward: Callable[[torch.Tensor], None],
    ) -> float:
        """Seconds from the first batch to the last loss."""
        start, step, running_loss = self.clock(), 0, 0.0
        while step < self.steps:
            for x, y in loader:
                optimizer.zero_grad()
                outputs = model(x)
                loss = self.criterion(outputs, y)
                backward(loss)
                optimizer.step()
                running_loss += loss.item()
                step += 1
                if step == self.steps:
                    break
        return self.clock() - start

    def held_out_loss(self) -> float:
        """The test loss of the trained model."""
        with torch.inference_mode():
            return self.criterion(self.model(self.split.test_x), self.split.test_y).item()


class Accelerate(Tutorial):
    """The tutorial's loop with the lines that Accelerate's quick tour adds."""

    def __init__(self, workload: Workload, clock: Clock) -> None:
        from accelerate import Accelerator

        super().__init__(workload, clock)
        self.accelerator = Accelerator(cpu=True)

    def round_s(self) -> float:
        """Seconds of the loop with prepared objects."""
        prepared = self.accelerator.prepare(*self.fresh())
        took = self.loop_s(*prepared, self.accelerator.backward)
        self.accelerator.free_memory()  # otherwise it keeps the prepared objects
        return took


class Lightning(Tutorial):
    """A LightningModule as in its quick start, in a Trainer without logger, checkpoints and progress bar."""

    options: Mapping[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    def round_s(self) -> float:
        """Seconds of Trainer.fit."""
        import lightning

        clock = self.clock

        class Module(lightning.LightningModule):
            def __init__(self, model, optimizer, criterion) -> None:
                super().__init__()
                self.model, self.optimizer, self.criterion = model, optimizer, criterion

            def training_step(self, batch, batch_idx):
                x, y = batch
                loss = self.criterion(self.model(x), y)
                self.log("train_loss", loss)
                return loss

            def configure_optimizers(self):
                return self.optimizer

        class Stopwatch(lightning.Callback):
            def on_train_start(self, *_) -> None:
                self.start = clock()

            def on_train_end(self, trainer, _) -> None:
                self.last_loss = trainer.callback_metrics["train_loss"].item()
                self.took = clock() - self.start

        model, optimizer, loader = self.fresh()
        stopwatch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder:
            trainer = lightning.Trainer(
                accelerator="cpu",
                max_epochs=-1,
                max_steps=self.steps,
                default_root_dir=folder,
                callbacks=[stopwatch],
                **self.options,
            )
            trainer.fit(Module(model, optimizer, self.criterion), loader)
        return stopwatch.took


class LightningDefault(Lightning):
    """With the defaults of Trainer(): TensorBoard every 50 steps, a checkpoint each epoch, a progress bar."""

    options: Mapping[str, Any] = {}


class Keras(Contestant):
    """compile() and fit() on NumPy arrays; KERAS_BACKEND names the backend. Compiled once; rounds reset the state."""

    steps_at_once = 1

    def __init__(self, workload: Workload, clock: Clock) -> None:
        import keras

        super().__init__(workload, clock)
        keras.utils.set_random_seed(self.config.seed)
        examples = Split.of(self.config)
        self.train_x, self.test_x = (channels_last(x.numpy()) for x in (examples.train_x, examples.test_x))
        self.train_y, self.test_y = examples.train_y.numpy(), examples.test_y.numpy()
        self.model = keras_model(self.config)
        assert self.model.count_params() == planner.plan(self.config).parameters, "the same net"
        self.model.compile(
            optimizer=keras_optimizer(self.config),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=min(
                self.steps_at_once, self.steps
            ),  # with more, Keras would run more steps than requested
        )
        self.model.optimizer.build(self.model.trainable_variables)
        self.state = [*self.model.variables, *self.model.optimizer.variables]
        self.first_state = [keras.ops.convert_to_numpy(variable).copy() for variable in self.state]

    def round_s(self) -> float:
        """Seconds of fit()."""
        import keras

        clock = self.clock

        class Stopwatch(keras.callbacks.Callback):
            def on_train_begin(self, logs=None) -> None:
                self.start = clock()

            def on_train_end(self, logs=None) -> None:
                self.last_loss = float(logs["loss"])
                self.took = clock() - self.start

        for variable, value in zip(self.state, self.first_state, strict=True):
            variable.assign(value)
        stopwatch = Stopwatch()
        self.model.fit(
            self.train_x,
            self.train_y,
            batch_size=self.batch_size,
            epochs=max(1, self.epochs),
            steps_per_epoch=None if self.epochs else self.steps,
            verbose=0,
            callbacks=[stopwatch],
        )
        return stopwatch.took

    def held_out_loss(self) -> float:
        """The test loss of the trained model."""
        return float(self.model.evaluate(self.test_x, self.test_y, verbose=0))


class KerasStepsAtOnce(Keras):
    """Keras's documented option against per-step overhead; only the JAX backend has it."""

    steps_at_once = 20


_TORCH, _JAX = {"KERAS_BACKEND": "torch"}, {"KERAS_BACKEND": "jax"}
PEERS = {
    "isoflop": Peer("Isoflop, the training loop", Isoflop, ("torch",)),
    "product": Peer("Isoflop, a recorded run", Product, ("torch",)),
    "tutorial": Peer("tutorial loop", Tutorial, ("torch",)),
    "accelerate": Peer("Accelerate", Accelerate, ("accelerate",)),
    "lightning": Peer("Lightning, logger, checkpoints, bar off", Lightning, ("lightning",)),
    "lightning-default": Peer("Lightning, Trainer() as it comes", LightningDefault, ("lightning", "tensorboard")),
    "keras-torch": Peer("Keras on torch", Keras, ("keras",), _TORCH),
    "keras-jax": Peer("Keras on jax", Keras, ("keras", "jax", "jaxlib"), _JAX),
    "keras-jax-20": Peer("Keras on jax, steps_per_execution=20", KerasStepsAtOnce, ("keras", "jax", "jaxlib"), _JAX),
}
COMPILED = {"keras-jax", "keras-jax-20"}  # the others are PyTorch, eager
ENV = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}


# --- the same workload for each library ---------------------------------------------------------------------------


def facts_of(config: RunConfig) -> Dataset:
    """The data set of a configuration."""
    return loading.facts(config.data, config.source)


@dataclass(frozen=True, slots=True)
class Split:
    """The samples of a split as the task's model reads them; for text, adjacent windows."""

    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor

    @classmethod
    def of(cls, config: RunConfig) -> Split:
        """Load the data of a configuration."""
        splits = datasets.tensors(loading.load(config.data, config.source), config.model)
        return cls(*(part.contiguous() for examples in splits for part in next(examples.in_order(len(examples)))))


def mean_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy; for text, logits are (batch, seq_len, characters) and every position counts."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())


def plain_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """torch.optim with its defaults."""
    (optimizer,) = optimizers.torch_optimizers(config.optimizer, model)
    return optimizer


def keras_optimizer(config: RunConfig) -> Any:
    """The same optimizer in Keras."""
    import keras

    spec = config.optimizer
    match spec.name:
        case "adam":
            return keras.optimizers.Adam(spec.lr)
        case "adamw":
            return keras.optimizers.AdamW(spec.lr, weight_decay=spec.weight_decay)
        case "momentum":
            return keras.optimizers.SGD(spec.lr, momentum=spec.momentum)
        case _:
            raise NotImplementedError(spec.name)


def channels_last(x: np.ndarray) -> np.ndarray:
    """Images in the channels-last layout of Keras."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x


def keras_model(config: RunConfig) -> Any:
    """The same layers and parameters in Keras, with Keras's own initial weights."""
    from keras import Input, Sequential, layers

    facts = facts_of(config)
    match config.model.family:
        case "mlp":
            hidden = [layers.Dense(units, activation="relu") for units in config.model.hidden]
            return Sequential([Input((784,)), *hidden, layers.Dense(facts.num_classes)])
        case "cnn":
            stages = [[layers.Conv2D(c, 5, activation="relu"), layers.MaxPooling2D()] for c in (6, 16)]
            dense = [layers.Dense(units, activation="relu") for units in (120, 84)]
            return Sequential(
                [Input((32, 32, 1)), *stages[0], *stages[1], layers.Flatten(), *dense, layers.Dense(facts.num_classes)]
            )
        case _:
            return keras_decoder(config)


def keras_decoder(config: RunConfig) -> Any:
    """The task's pre-norm decoder: no biases, learned positions, exact GELU, an untied output layer."""
    import keras
    from keras import layers

    class Positions(layers.Layer):
        def build(self, shape) -> None:
            self.weight = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(stddev=0.02))

        def call(self, x):
            return x + self.weight

    spec, facts = config.model, facts_of(config)
    d = spec.d_model
    tokens = keras.Input(facts.shape, dtype="int32")
    x = Positions()(layers.Embedding(facts.num_classes, d)(tokens))
    for _ in range(spec.num_layers):
        y = layers.LayerNormalization(center=False, epsilon=1e-5)(x)
        attention = layers.MultiHeadAttention(spec.num_heads, d // spec.num_heads, use_bias=False)
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(center=False, epsilon=1e-5)(x)
        y = layers.Activation("gelu")(layers.Dense(4 * d, use_bias=False)(y))
        x = x + layers.Dense(d, use_bias=False)(y)
    x = layers.LayerNormalization(center=False, epsilon=1e-5)(x)
    return keras.Model(tokens, layers.Dense(facts.num_classes, use_bias=False)(x))


# --- as a worker -----------------------------------------------------------------------------------------------------


def work(peer: Peer) -> None:
    """Answer requests in the process of one contestant."""
    importlib.import_module(peer.packages[0])  # the import is not part of a round
    torch.set_num_threads(1)
    current: dict[str, Contestant] = {}

    def handle(workload: str, clock: str, *, first: bool = False) -> dict[str, float]:
        begun = CLOCKS[clock]()
        if first:
            current.clear()
            current[workload] = peer.kind(WORKLOADS[workload], CLOCKS[clock])
        contestant = current[workload]
        speed = contestant.samples / contestant.round_s()
        if not first:
            return {"samples_per_s": speed}
        return {"first_round_s": CLOCKS[clock]() - begun, "held_out_loss": contestant.held_out_loss()}

    serve(handle)


# --- side by side -------------------------------------------------------------------------------------------------

OURS = ("isoflop", "product")
GOALS = {  # median ratio of a recorded run's samples per second to those of a peer, at least
    ("mlp-64", "lightning"): 4.0,
    ("mlp-1", "lightning"): 7.0,
    ("lenet-64", "lightning"): 1.5,
    ("mlp-full", "tutorial"): 2.8,
}
PARITY = "decoder-32"  # limited by matrix products, the same for all; the goal is not to be slower
_LEARNED_FACTOR = 2.0
HOW = (
    "one process per contestant, all on the same core; rounds of all in random order; seconds from the first batch to the "
    "last loss on the host; ratios are of one round; fraction_of_roofline = roofline_step_s over the median step"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """The result of a peer on a workload."""

    samples_per_s: Spread
    over_tutorial: Spread | None  # ratio within a round; None for the tutorial itself, or if one of the two did not run
    isoflop_over_it: Spread | None
    product_over_it: Spread | None
    first_round_s: float  # includes building, compiling and warm-up
    held_out_loss: float


def compare(
    name: str, workers: Mapping[str, Worker], *, clock: str, rounds: int, rng: random.Random
) -> tuple[dict[str, Standing], dict[str, str]]:
    """The standings, and reasons for peers without one."""
    first, left_out = first_answers(workers, PEERS, workload=name, clock=clock, first=True)
    speeds: dict[str, list[float]] = {peer: [] for peer in first}
    for _ in range(rounds):
        for peer in rng.sample(list(first), len(first)):
            speeds[peer].append(workers[peer].ask(workload=name, clock=clock)["samples_per_s"])

    def ratio(over: str, under: str) -> Spread | None:
        if over == under or not {over, under} <= speeds.keys():
            return None
        return Spread.of([a / b for a, b in zip(speeds[over], speeds[under], strict=True)])

    standings = {
        peer: Standing(
            Spread.of(speeds[peer]),
            ratio(peer, "tutorial"),
            ratio("isoflop", peer),
            ratio("product", peer),
            first[peer]["first_round_s"],
            first[peer]["held_out_loss"],
        )
        for peer in first
    }
    return standings, left_out


def verdicts(name: str, standings: Mapping[str, Standing]) -> dict[str, bool]:
    """The goals of a workload as text, and whether each was reached."""
    found = {}
    for peer, standing in standings.items():
        if peer in OURS:
            continue
        title = PEERS[peer].title
        if (goal := GOALS.get((name, peer))) and (ratio := standing.product_over_it):
            found[f"a recorded run at least {goal:g}x {title}"] = ratio.median >= goal
        if peer not in COMPILED and (ratio := standing.isoflop_over_it):
            if name == PARITY:
                found[f"not behind {title}, within the spread"] = ratio.p90 >= 1
            found[f"ahead of {title}"] = ratio.median > 1
    return found


def trained_alike(name: str, standings: Mapping[str, Standing]) -> bool:
    """Whether all reduced the loss by a similar amount; initial weights and order differ between libraries."""
    guess = math.log(facts_of(WORKLOADS[name].config).num_classes)
    learned = [guess - standing.held_out_loss for standing in standings.values()]
    return max(learned) <= _LEARNED_FACTOR * min(learned)


def show(name: str, standings: Mapping[str, Standing], fractions: Mapping[str, float]) -> None:
    """Print the table of one workload."""
    print(f"\n{WORKLOADS[name].title}; {WORKLOADS[name].steps} steps a round\n")
    header = [
        "",
        "samples/s",
        "over tutorial",
        "Isoflop over it",
        "recorded run over it",
        "first round, s",
        "held-out loss",
        "of limit",
    ]
    measure.table(
        header,
        [
            [
                PEERS[peer].title,
                s.samples_per_s.text(0),
                s.over_tutorial.text() if s.over_tutorial else "-",
                s.isoflop_over_it.text() if s.isoflop_over_it else "-",
                s.product_over_it.text() if s.product_over_it else "-",
                f"{s.first_round_s:.1f}",
                f"{s.held_out_loss:.3f}",
                f"{fractions[peer]:.0%}" if peer in fractions else "",
            ]
            for peer, s in standings.items()
        ],
    )
    for goal, reached in verdicts(name, standings).items():
        print(f"{measure.verdict(reached)}: {goal}")
    if not trained_alike(name, standings):
        print("Some learned much less than others: not the same training, the speeds do not compare.")


def main() -> None:
    """Measure the chosen workloads and peers, print tables and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=WORKLOADS, action="append", help="this workload; writes no file")
    parser.add_argument("--peers", type=names_of(PEERS), help=f"some of {','.join(PEERS)}; writes no file")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(PEERS[asked.worker])
        return
    torch.set_num_threads(1)
    load_before, rng = measure.load(), random.Random(0)
    print(
        f"Samples per second of {asked.clock} time on one core, {asked.rounds} rounds in random order: median (p10-p90)"
    )
    peers, left_out = installed(PEERS, asked.peers or PEERS)
    with one_core(), contextlib.ExitStack() as stack:
        limits = Limits.measured()  # before the workers start, because they use the same core
        workers = stack.enter_context(started("benchmarks.peers", peers, ENV))
        workloads = {
            name: figures_of(name, workers, limits, asked.clock, asked.rounds, rng) for name in asked.only or WORKLOADS
        }
    if not (asked.only or asked.peers):
        figures = {
            "how": HOW,
            "clock": asked.clock,
            "versions": versions(peers.values()),
            "left_out": left_out,
            "limits": asdict(limits),
            "workloads": workloads,
        }
        measure.save("peers" + ("" if asked.clock == "wall" else f"_{asked.clock}"), figures, load_before=load_before)


def figures_of(
    name: str, workers: Mapping[str, Worker], limits: Limits, clock: str, rounds: int, rng: random.Random
) -> dict[str, object]:
    """The figures of one workload for the result file."""
    config, plan = WORKLOADS[name].config, planner.plan(WORKLOADS[name].config)
    standings, left_out = compare(name, workers, clock=clock, rounds=rounds, rng=rng)
    least_s = roofline_s(config, limits)
    fractions = {
        peer: least_s * standings[peer].samples_per_s.median / plan.batch_size
        for peer in (*OURS, "tutorial")
        if peer in standings
    }
    show(name, standings, fractions)
    return {
        "title": WORKLOADS[name].title,
        "steps_per_round": WORKLOADS[name].steps,
        "parameters": plan.parameters,
        "contestants": {peer: {"title": PEERS[peer].title} | asdict(s) for peer, s in standings.items()},
        "left_out": left_out,
        "roofline_step_s": least_s,
        "fraction_of_roofline": fractions,
        "trained_alike": trained_alike(name, standings),
        "reached": verdicts(name, standings),
    }


if __name__ == "__main__":
    main()
