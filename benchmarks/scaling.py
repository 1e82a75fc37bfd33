"""The gain of a second rank: the same training on one process and on two, in turns.

Each run is a process that the fork server starts, as for a supervisor: on one rank alone, on two with the same global
batch (strong scaling), and on two with that batch for each (weak scaling). The three alternate, forwards and
backwards, and each round gives a ratio of samples per second on the training clock, which leaves out loading, warming
up and evaluation. Ranks are processes on this machine's cores that exchange gradients over the loopback by gloo, one
thread each.

`python -m benchmarks.scaling [ROUNDS]`. Two ranks need two cores: while other programs use them, the result is not
conclusive, and the table says so. The table also has the CPU time of a step, on which other programs have little
effect. It is the time of a rank's step on a core of its own, without waiting.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.events.training import Ranks
from engine.hardware import probe
from engine.runtime.executor import LocalExecutor
from engine.store.store import Store
from engine.studies import scaling
from engine.studies.races import Lane
from engine.studies.scaling_results import rank_times

ROUNDS = 7
STEPS = {"mnist-mlp": 1_500, "lenet": 200, "char-decoder": 60}  # a few seconds each
BATCH = {"char-decoder": 32}  # as in `peers`; the other presets have 64
TITLES = {
    "mnist-mlp": "784-128-10, Adam, B=64",
    "lenet": "LeNet, B=64",
    "char-decoder": "decoder, 0.8 M parameters, B=32",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: samples per second, and with several ranks the share of a step that the mean rank waits."""

    samples_per_s: float
    waits: float | None
    under_way: float | None  # share of a step in which an all-reduce is running, whether the rank waits or not
    cpu_s: float | None  # CPU seconds of a step, mean over ranks


def lanes(preset: str) -> list[Lane]:
    """One rank, two ranks with its batch, two ranks with twice its batch."""
    config = preset_config(preset)
    config = config.model_copy(update={"batch_size": BATCH.get(preset, config.batch_size)})
    return scaling.lanes_of(scaling.as_base(config, STEPS[preset]), [1, 2], weak=True, most=2)


def run_once(executor: LocalExecutor, store: Store, config: RunConfig) -> Measured:
    """Run a configuration to its end.

    Raises:
        RuntimeError: The run did not make all its steps.
    """
    run_id = store.create(config)
    job = executor.start(store.folder(run_id))
    while job.is_alive():
        time.sleep(0.05)
    run = store.run(run_id)
    summary = run.summary()
    if run.status != "finished" or summary.samples_per_s is None:
        raise RuntimeError(f"{describe(config)}: {run.status} after {len(run.steps)} steps. {run.why()}")
    times = rank_times(run.all(Ranks))
    if times is None:
        busy = run.last_word.busy if run.last_word else None
        cpu_s = summary.train_seconds / summary.steps / busy.slowdown if busy and busy.slowdown else None
        return Measured(summary.samples_per_s, None, None, cpu_s)
    if times.waited_s is None or times.communication_s is None:
        return Measured(summary.samples_per_s, None, None, None)
    step = float(np.mean(times.step_s))
    shares = [c for window in run.all(Ranks) for c in window.cpu_per_wall if c is not None]
    waited, under_way = float(np.mean(times.waited_s)), float(np.mean(times.communication_s))
    return Measured(
        summary.samples_per_s, waited / step, under_way / step, float(np.mean(shares)) * step if shares else None
    )


def measured(
    executor: LocalExecutor, store: Store, preset: str, rounds: int
) -> tuple[dict[str, list[Measured]], list[float]]:
    """The runs of a preset by configuration, and the load after each round."""
    found: dict[str, list[Measured]] = {name: [] for name in ("one", "strong", "weak")}
    loads = []
    named = list(zip(found, lanes(preset), strict=True))
    for number in range(rounds):
        for name, lane in named if number % 2 == 0 else named[::-1]:
            found[name].append(run_once(executor, store, lane.config))
        loads.append(measure.load())
        print(f"{preset}: round {number + 1} of {rounds}", flush=True)
    return found, loads


def ratio(several: Sequence[Measured], one: Sequence[Measured]) -> Spread:
    """Throughput on several ranks / on one, per round."""
    return Spread.of([a.samples_per_s / b.samples_per_s for a, b in zip(several, one, strict=True)])


def cpu_ratio(several: Sequence[Measured], one: Sequence[Measured]) -> Spread | None:
    """CPU time of a rank's step / that of one rank alone. Ideal is 0.5 for half of a batch and 1 for a whole one."""
    known = [a.cpu_s / b.cpu_s for a, b in zip(several, one, strict=True) if a.cpu_s and b.cpu_s]
    return Spread.of(known) if known else None


def share(several: Sequence[Measured], name: str) -> Spread | None:
    """The spread of a field over the runs that have it; None if none has."""
    known = [value for m in several if (value := getattr(m, name)) is not None]
    return Spread.of(known) if known else None


def main(rounds: int = ROUNDS) -> None:
    """Measure, print a table and save the result."""
    load_before, cores = measure.load(), probe.probe().cpu.usable_cores
    executor = LocalExecutor()
    executor.warm()
    figures, loads = {}, [load_before]
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home))
        run_once(executor, store, lanes("lenet")[1].config)  # the fork server has imported PyTorch, files are cached
        for preset in STEPS:
            found, seen = measured(executor, store, preset, rounds)
            loads += seen
            figures[preset] = _figures(preset, found) | {"highest_load": max(seen)}
    columns = {
        "1 rank, samples/s": lambda f: f["samples_per_s_one"].text(0),
        "2 ranks, same batch": lambda f: f["strong"].text(),
        "twice the batch": lambda f: f["weak"].text(),
        "waits, %": lambda f: f["strong_waits"].text(0, scale=100),
        "CPU of a step": lambda f: f["strong_cpu"].text(),
    }
    measure.table(
        ["", *columns], [[TITLES[preset], *(write(f) for write in columns.values())] for preset, f in figures.items()]
    )
    is_decided = max(loads) <= cores + 0.5  # two ranks are two programs, and the load average is slow
    if not is_decided:
        print(f"\nInconclusive: up to {max(loads):.1f} programs wanted {cores} cores.")
    measure.save(
        "scaling",
        {"rounds": rounds, "decided": is_decided, "highest_load": max(loads), "lanes": figures},
        load_before=load_before,
    )


def _figures(preset: str, found: dict[str, list[Measured]]) -> dict[str, Any]:
    one, strong, weak = found.values()
    return {
        "title": TITLES[preset],
        "steps": STEPS[preset],
        "samples_per_s_one": Spread.of([m.samples_per_s for m in one]),
        "strong": ratio(strong, one),
        "weak": ratio(weak, one),
        "strong_waits": share(strong, "waits"),
        "strong_all_reduce": share(strong, "under_way"),
        "weak_waits": share(weak, "waits"),
        "strong_cpu": cpu_ratio(strong, one),
        "weak_cpu": cpu_ratio(weak, one),
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
