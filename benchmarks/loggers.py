"""The cost of recording every step, with Isoflop's event log and with other trackers: `python -m benchmarks.loggers`.

Five scalars a step: loss, lr, samples, grad_norm, train_s. Two figures for each logger:

- per scalar, in a tight loop: CPU time of the thread that logs, and of the whole process until the logger is closed
  (its own threads finish their work). W&B's service is another process, whose time is not included.
- slowdown of training 784-128-10 (fused Adam, data in memory, `loss.item()`) that logs in each step, against the same
  loop without, the two in random order inside one process: wall time of the loop, and process CPU until closed.

Isoflop receives the five values step by step, collects 100 steps and appends a Steps event, as the training task does
every 0.1 s. It keeps four of the values of every step and only the first and last train_s, so its cost is divided by
four. The other loggers write to a local folder and send nothing. Each logger has its own process, and rounds
alternate in random order, as in `peers`. The loggers can use both cores, because their threads expect another core.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from benchmarks import measure
from benchmarks.measure import Spread
from benchmarks.workers import Peer, Worker, first_answers, installed, names_of, serve, started, versions
from engine.events.lifecycle import Finished
from engine.events.training import Steps
from engine.store.event_log import EventLog

ROUNDS = 5
GOAL_S_PER_SCALAR = 0.3e-6
BATCH_SIZES = (64, 1)
SCALARS = ("loss", "lr", "samples", "grad_norm", "train_s")
_LOOP_S = 0.3
_CHUNK_STEPS = 100  # the training task does more steps of 784-128-10 than this between two readings of the losses
HOW = (
    "one process per logger, rounds of all in random order; s_per_scalar: CPU time in a tight loop, of the logging thread "
    "and of the process until closed; slowdown: extra per step of a loop that logs each step over one that does not"
)


# --- loggers ------------------------------------------------------------------------------------------------------


class Logger(ABC):
    """One run's log in a folder."""

    kept = len(SCALARS)  # values kept per step

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""

    @abstractmethod
    def close(self) -> None:
        """Finish writing and release everything."""


class Isoflop(Logger):
    """Isoflop's event log."""

    kept = 4

    def __init__(self, folder: Path) -> None:
        self.events = EventLog(folder / "events.jsonl")
        self.first, self.begun_s = 1, 0.0
        self._clear()

    def _clear(self) -> None:
        self.loss, self.lr, self.samples, self.grad_norm = [], [], [], []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Collect the values; append a Steps event per chunk."""
        self.loss.append(values["loss"])
        self.lr.append(values["lr"])
        self.samples.append(values["samples"])
        self.grad_norm.append(values["grad_norm"])
        if len(self.loss) == _CHUNK_STEPS:
            self._append(step, values["train_s"])

    def _append(self, step: int, now_s: float) -> None:
        clock = (self.begun_s, now_s)
        event = Steps(
            first=self.first,
            loss=self.loss,
            samples=self.samples,
            lr=self.lr,
            train_s=clock,
            elapsed_s=clock,
            norm_steps=range(self.first, step + 1),
            grad_norm=self.grad_norm,
        )
        self.events.append(event)
        self.first, self.begun_s = step + 1, now_s
        self._clear()

    def close(self) -> None:
        """Append the rest and close the log."""
        if self.loss:
            self._append(self.first + len(self.loss) - 1, self.begun_s)
        self.events.close(Finished(at=time.time()))


class TensorBoard(Logger):
    """A SummaryWriter of torch.utils.tensorboard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One add_scalar call per value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the writer."""
        self.writer.close()


class MLflow(Logger):
    """MLflow with SQLite, its default; its file store needs an opt-in."""

    synchronous = True

    def __init__(self, folder: Path) -> None:
        import mlflow

        self.mlflow = mlflow
        mlflow.set_tracking_uri(f"sqlite:///{folder.parent}/mlflow.db")
        mlflow.start_run()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One log_metrics call per step."""
        self.mlflow.log_metrics(values, step=step, synchronous=self.synchronous)

    def close(self) -> None:
        """End the run."""
        self.mlflow.flush_async_logging()
        self.mlflow.end_run()


class MLflowAsync(MLflow):
    """MLflow with its asynchronous logging."""

    synchronous = False


class WandB(Logger):
    """W&B in offline mode."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self.run = wandb.init(mode="offline", dir=str(folder), project="benchmark")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One log call per step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class Trackio(Logger):
    """Trackio with a local folder."""

    def __init__(self, folder: Path) -> None:
        import trackio

        self.run = trackio.init(project="benchmark", name=folder.name, embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One log call per step."""
        self.run.log(values, step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


PEERS = {
    "isoflop": Peer("Isoflop", Isoflop, ("torch",)),
    "tensorboard": Peer("TensorBoard SummaryWriter", TensorBoard, ("tensorboard",)),
    "trackio": Peer("Trackio", Trackio, ("trackio",)),
    "wandb": Peer("W&B offline", WandB, ("wandb",)),
    "mlflow": Peer("MLflow SQLite, log_metrics", MLflow, ("mlflow",)),
    "mlflow-async": Peer("MLflow SQLite, log_metrics(synchronous=False)", MLflowAsync, ("mlflow",)),
}
ENV = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


# --- in a worker --------------------------------------------------------------------------------------------------


class Training:
    """784-128-10 with fused Adam over data in memory; the same with and without a logger."""

    def __init__(self, batch_size: int) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.x, self.y = torch.randn(4_000, 784).split(batch_size), torch.randint(10, (4_000,)).split(batch_size)

    def step(self, step: int) -> float:
        """Train one step and return its loss."""
        i = step % len(self.x)
        loss = nn.functional.cross_entropy(self.model(self.x[i]), self.y[i])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def step_s(self, logger: Logger | None) -> tuple[float, float]:
        """Wall seconds of the loop and CPU seconds of the process until the logger is closed, per step."""
        begun_cpu, begun = time.process_time(), time.perf_counter()
        step, train_s = 0, 0.0
        values = dict.fromkeys(SCALARS, 1.0)
        while train_s < _LOOP_S:
            step += 1
            values["loss"] = self.step(step)
            train_s = values["train_s"] = time.perf_counter() - begun
            if logger:
                logger.log(step, values)
        wall = time.perf_counter() - begun
        if logger:
            logger.close()
        return wall / step, (time.process_time() - begun_cpu) / step


def tight_loop(logger: Logger) -> dict[str, float]:
    """CPU seconds per kept scalar: of the logging thread, and of the process until the logger is closed."""
    values = dict.fromkeys(SCALARS, 1.0)
    begun_process, begun_thread, begun = time.process_time(), time.thread_time(), time.perf_counter()
    step = 0
    while (now := time.perf_counter() - begun) < _LOOP_S:
        values["train_s"] = now
        step += 1
        logger.log(step, values)
    thread = time.thread_time() - begun_thread
    logger.close()
    process = time.process_time() - begun_process
    scalars = step * logger.kept
    return {"thread_s_per_scalar": thread / scalars, "process_s_per_scalar": process / scalars}


def slowdowns(make: type[Logger], folder: Path, rng: random.Random) -> dict[str, float]:
    """Extra time per step as a share of a step without a logger, for each batch size."""
    found = {}
    for batch_size in BATCH_SIZES:
        took = {}
        for logged in rng.sample([False, True], 2):
            training = Training(batch_size)
            training.step(0)  # allocates
            took[logged] = training.step_s(make(_subfolder(folder)) if logged else None)
        found[f"step_s_b{batch_size}"] = took[False][0]
        found[f"slowdown_wall_b{batch_size}"] = took[True][0] / took[False][0] - 1
        found[f"slowdown_cpu_b{batch_size}"] = took[True][1] / took[False][1] - 1
    return found


def _subfolder(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


def work(peer: Peer) -> None:
    """Answer requests in the process of one logger."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        serve(lambda: tight_loop(peer.kind(_subfolder(Path(name)))) | slowdowns(peer.kind, Path(name), rng))


# --- side by side -------------------------------------------------------------------------------------------------


def compare(
    workers: Mapping[str, Worker], *, rounds: int, rng: random.Random
) -> tuple[dict[str, dict[str, Spread]], dict[str, str]]:
    """The figures of each logger, and reasons for those without. The first round (imports, new databases) is left out."""
    first, left_out = first_answers(workers, PEERS)
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in first}
    for _ in range(rounds):
        for name in rng.sample(list(first), len(first)):
            answers[name].append(workers[name].ask())
    found = {name: {key: Spread.of([a[key] for a in said]) for key in said[0]} for name, said in answers.items()}
    return found, left_out


def show(figures: Mapping[str, Mapping[str, Spread]]) -> None:
    """Print the table of all loggers."""
    columns = [
        "us/scalar, thread",
        "us/scalar, process",
        *(f"B={b}, {c}, +%" for b in BATCH_SIZES for c in ("wall", "CPU")),
    ]
    rows = []
    for name, found in figures.items():
        costs = [found[f"{who}_s_per_scalar"].text(2, scale=1e6) for who in ("thread", "process")]
        extra = [found[f"slowdown_{c}_b{b}"].text(0, scale=100) for b in BATCH_SIZES for c in ("wall", "cpu")]
        rows.append([PEERS[name].title, *costs, *extra])
    measure.table(["", *columns], rows)


def main() -> None:
    """Measure all installed loggers, print a table and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--peers", type=names_of(PEERS), help=f"some of {','.join(PEERS)}; writes no file")
    parser.add_argument("--worker", choices=PEERS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work(PEERS[asked.worker])
        return
    torch.set_num_threads(1)
    load_before = measure.load()
    peers, left_out = installed(PEERS, asked.peers or PEERS)
    with started("benchmarks.loggers", peers, ENV) as workers:
        found, failed = compare(workers, rounds=asked.rounds, rng=random.Random(0))
    print(f"Five scalars a step, {asked.rounds} rounds in random order: median (p10-p90)\n")
    show(found)
    figures = {
        "how": HOW,
        "versions": versions(peers.values()),
        "left_out": left_out | failed,
        "loggers": {name: {"title": PEERS[name].title} | spreads for name, spreads in found.items()},
    }
    if "isoflop" in found:
        cost = found["isoflop"]["thread_s_per_scalar"].median
        reached = cost <= GOAL_S_PER_SCALAR
        print(f"\n{measure.verdict(reached)}: a scalar recorded in at most 0.3 us; {cost * 1e6:.2f} us")
        figures |= {"s_per_scalar_goal": GOAL_S_PER_SCALAR, "reached": reached}
    if not asked.peers:
        measure.save("loggers", figures, load_before=load_before)


if __name__ == "__main__":
    main()
