"""What a second rank gains here: the same training on one process and on two, in turns.

Each run is a fresh process that does what a supervisor has a run do (`worker.run`): on one rank alone, on two with the
same global batch (strong scaling), and on two with that batch for each (weak scaling). The three alternate, forwards and
backwards, and each round gives a ratio of samples per second on the training clock, which leaves out loading, warming up
and evaluation. Ranks are processes on this machine's cores that exchange gradients over the loopback by gloo, one thread
each.

`python -m benchmarks.scaling`. Two ranks want two cores: while other programs want them too nothing is decided, and the
table says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.measure import Spread
from engine import hardware, scaling
from engine.config import RunConfig
from engine.presets import preset_config
from engine.races import Lane
from engine.scaling import rank_times
from engine.store import Store

ROUNDS = 7
STEPS = {"mnist-mlp": 1_500, "lenet": 200, "char-decoder": 60}  # some seconds each
BATCH = {"char-decoder": 32}  # as in the comparison with peers; the others have their preset's 64
TITLES = {
    "mnist-mlp": "784-128-10, Adam, B=64",
    "lenet": "LeNet, B=64",
    "char-decoder": "decoder, 0.8 M parameters, B=32",
}
_PROCESS = "import sys; from pathlib import Path; from engine import worker; worker.run(Path(sys.argv[1]))"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: samples per second, and of several ranks the share of a step in which the mean rank stands still."""

    samples_per_s: float
    waits: float | None
    under_way: float | None  # share of a step in which an all-reduce is under way, waiting or not


def lanes(preset: str) -> list[Lane]:
    """One rank, two ranks with its batch, two ranks with twice its batch."""
    config = preset_config(preset)
    config = config.model_copy(update={"batch_size": BATCH.get(preset, config.batch_size)})
    return scaling.lanes_of(scaling.as_base(config, STEPS[preset]), [1, 2], weak=True, most=2)


def run_once(config: RunConfig) -> Measured:
    """In a fresh process. Raises RuntimeError where it did not make its steps."""
    with tempfile.TemporaryDirectory() as home:
        store = Store(Path(home))
        folder = store.folder(store.create(config))
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run([sys.executable, "-c", _PROCESS, str(folder)], env=environment, check=True)
        run = store.run(folder.name)
        rate = run.summary().samples_per_s
        if run.status != "finished" or rate is None:
            raise RuntimeError(f"{config.in_words()}: {run.status} after {len(run.steps)} steps. {run.why()}")
        times = rank_times(run.ranks)
        if times is None or times.waited_s is None or times.communication_s is None:
            return Measured(rate, None, None)
        step = float(np.mean(times.step_s))
        return Measured(rate, float(np.mean(times.waited_s)) / step, float(np.mean(times.communication_s)) / step)


def measured(preset: str) -> tuple[dict[str, list[Measured]], list[float]]:
    """All rounds of a preset by lane, and the load after each round."""
    found: dict[str, list[Measured]] = {name: [] for name in ("one", "strong", "weak")}
    loads = []
    named = list(zip(found, lanes(preset), strict=True))
    for number in range(ROUNDS):
        for name, lane in named if number % 2 == 0 else named[::-1]:
            found[name].append(run_once(lane.config))
        loads.append(measure.load())
        print(f"{preset}: round {number + 1} of {ROUNDS}", flush=True)
    return found, loads


def ratio(several: Sequence[Measured], one: Sequence[Measured]) -> Spread:
    return Spread.of([a.samples_per_s / b.samples_per_s for a, b in zip(several, one, strict=True)])


def share(several: Sequence[Measured], name: str) -> Spread | None:
    known = [value for m in several if (value := getattr(m, name)) is not None]
    return Spread.of(known) if known else None


def main() -> None:
    load_before, cores = measure.load(), hardware.probe().cpu.usable_cores
    run_once(lanes("lenet")[1].config)  # fills the file cache
    rows, figures, loads = [], {}, [load_before]
    for preset in STEPS:
        found, seen = measured(preset)
        loads += seen
        one, strong, weak = found.values()
        figures[preset] = {
            "title": TITLES[preset], "steps": STEPS[preset], "samples_per_s_one": Spread.of([m.samples_per_s for m in one]),
            "strong": ratio(strong, one), "weak": ratio(weak, one),
            "strong_waits": share(strong, "waits"), "strong_all_reduce": share(strong, "under_way"),
            "weak_waits": share(weak, "waits"), "highest_load": max(seen),
        }  # fmt: skip
        waits = share(strong, "waits")
        rows.append(
            [
                TITLES[preset], figures[preset]["samples_per_s_one"].text(0), ratio(strong, one).text(),
                ratio(weak, one).text(), waits.text(0, scale=100) if waits else "–",
            ]
        )  # fmt: skip
    measure.table(["", "1 rank, samples/s", "2 ranks, same batch", "2 ranks, twice the batch", "waits, %"], rows)
    is_decided = cores >= 2 and max(loads) <= cores + 0.5  # two ranks are two programs, and the clock of a load is slow
    if not is_decided:
        print(f"\nInconclusive: up to {max(loads):.1f} programs wanted {cores} cores.")
    measure.save(
        "scaling", {"rounds": ROUNDS, "decided": is_decided, "highest_load": max(loads), "lanes": figures},
        load_before=load_before,
    )  # fmt: skip


if __name__ == "__main__":
    main()
