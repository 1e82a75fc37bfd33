"""The cost of taking turns: the configurations of a race in one seed block, against the same ones one after another.

Each side is a new process that calls `worker.run`, as the supervisor does: once for all configurations, or once for
each. Every configuration makes a fixed number of steps, so both sides do the same work. The sides alternate, and each
pair of neighbours gives ratios: of the training seconds (the sum of the training clocks), of the samples per second
of each configuration, and of the wall time of `worker.run`, which includes loading, warm-up and evaluation, but not
the start of the process.

`python -m benchmarks.race`. While other programs use the cores, the result is not conclusive, and the table says so.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.hardware import probe
from engine.store.store import Store
from engine.studies.races import DEFAULT_RACE, RACES

PAIRS = 7
GOAL = 1.03
STEPS = {"Batch": 70, "Mini-batch 64": 2_800, "Stochastic": 9_000}  # about 1.5 s of training each
_PROCESS = """
import json, sys, time
from pathlib import Path
from engine.runtime import worker
began = time.perf_counter()
for folders in json.loads(sys.argv[1]):
    worker.run(*map(Path, folders))
print(json.dumps(time.perf_counter() - began))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: wall seconds, and training seconds and samples per second by configuration."""

    wall_s: float
    train_s: dict[str, float]
    samples_per_s: dict[str, float]

    @property
    def total_train_s(self) -> float:
        """Training seconds of all configurations."""
        return sum(self.train_s.values())


def lanes() -> dict[str, RunConfig]:
    """The configurations of the race, with a budget in steps instead of seconds."""
    return {
        lane.label: with_overrides(lane.config, ["budget.seconds=none", f"budget.steps={STEPS[lane.label]}"])
        for lane in RACES[DEFAULT_RACE].lanes
    }


def run_once(*, in_seed_block: bool) -> Measured:
    """Run all configurations in a new process.

    Raises:
        RuntimeError: A run did not make all its steps.
    """
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home))
        ids = {label: store.create(config) for label, config in lanes().items()}
        folders = [str(store.folder(run_id)) for run_id in ids.values()]
        calls = [folders] if in_seed_block else [[folder] for folder in folders]
        done = subprocess.run(
            [sys.executable, "-c", _PROCESS, json.dumps(calls)],
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        train_s, samples_per_s = {}, {}
        for label, run_id in ids.items():
            run = store.run(run_id)
            if run.status != "finished" or len(run.steps) != STEPS[label]:
                raise RuntimeError(f"{label}: {run.status} after {len(run.steps)} steps. {run.why()}")
            train_s[label] = run.summary().train_seconds
            samples_per_s[label] = float(run.steps.last("samples") or 0) / train_s[label]
        return Measured(json.loads(done.stdout), train_s, samples_per_s)


def ratios(heat: Sequence[Measured], alone: Sequence[Measured]) -> dict[str, Spread]:
    """Seed block / one after another, for each pair of neighbours; above 1, the seed block takes longer."""
    pairs = list(zip(heat, alone, strict=True))
    by_lane = {label: Spread.of([h.train_s[label] / a.train_s[label] for h, a in pairs]) for label in STEPS}
    return {
        "training": Spread.of([h.total_train_s / a.total_train_s for h, a in pairs]),
        **by_lane,
        "wall": Spread.of([h.wall_s / a.wall_s for h, a in pairs]),
    }


def main() -> None:
    """Measure, print a table and save the result."""
    load_before, cores = measure.load(), probe.probe().cpu.usable_cores
    run_once(in_seed_block=True)  # fills the file cache
    heat, alone, loads = [], [], [load_before]
    for pair in range(PAIRS):
        began = time.perf_counter()
        heat.append(run_once(in_seed_block=True))
        alone.append(run_once(in_seed_block=False))
        loads.append(measure.load())
        print(f"pair {pair + 1} of {PAIRS}: {time.perf_counter() - began:.1f} s", flush=True)
    found = ratios(heat, alone)
    is_decided = max(loads) <= cores
    reached = measure.verdict(found["training"].median <= GOAL) if is_decided else "inconclusive"
    rows = [["training, all lanes", found["training"].text(3), f"<= {GOAL}", reached]]
    rows += [[f"training, {label}", found[label].text(3), "", ""] for label in STEPS]
    rows += [["wall time without process start", found["wall"].text(3), "", ""]]
    measure.table(["heat / alone", "ratio (p10-p90)", "aim", ""], rows)
    sides = {"heat": heat, "alone": alone}
    samples = {
        side: {label: Spread.of([m.samples_per_s[label] for m in of_side]) for label in STEPS}
        for side, of_side in sides.items()
    }
    print()
    measure.table(
        ["samples/s", *sides],
        [[label, *(samples[side][label].text(0) for side in sides)] for label in STEPS],
    )
    if not is_decided:
        print(f"\nInconclusive: up to {max(loads):.1f} programs wanted {cores} cores.")
    measure.save(
        "race",
        {
            "race": DEFAULT_RACE,
            "steps": STEPS,
            "pairs": PAIRS,
            "aim": GOAL,
            "reached": reached,
            "highest_load": max(loads),
            "ratio": found,
            "samples_per_s": samples,
            "training_s": {side: Spread.of([m.total_train_s for m in of_side]) for side, of_side in sides.items()},
            "wall_s": {side: Spread.of([m.wall_s for m in of_side]) for side, of_side in sides.items()},
        },
        load_before=load_before,
    )


if __name__ == "__main__":
    main()
