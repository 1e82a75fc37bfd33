"""The cost of the machine monitor, which reads the whole machine four times a second for the page Hardware.

Directly: CPU time of one reading and writing, over the quarter of a second between readings. Side by side: the same
training alone, and with a recorder in its own process on the same core, which is the worst case.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.measure import Spread
from dashboard.api import hardware as hardware_api
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.events.training import Steps
from engine.hardware import probe
from engine.hardware.history import INTERVALS_S, Recorder
from engine.hardware.monitor import Monitor
from engine.hardware.readings_log import CURRENT
from engine.pytorch.tasks.train import train

PAIRS = 15
BEATS, POLLS = 200, 100
GOAL_SHARE = 0.01
CONFIG: RunConfig = with_overrides(preset_config("mnist-mlp"), ["budget.epochs=60"])  # 784-128-10, Adam, B=64
RECORDER = (
    "import sys, time; from pathlib import Path; from engine.hardware.history import Recorder\n"
    "Recorder(Path(sys.argv[1])).start()\n"
    "while True: time.sleep(60)\n"
)


def beat_s(root: Path) -> list[float]:
    """CPU seconds of single readings; the process sleeps in between, so that the caches are cold."""
    monitor, costs = Monitor(), []
    recorder = Recorder(root)
    for _ in range(BEATS):
        time.sleep(0.02)
        before = time.thread_time()
        recorder.beat(monitor)
        costs.append(time.thread_time() - before)
    monitor.close()
    return costs


def poll_s(root: Path) -> dict[str, list[float]]:
    """CPU seconds of the data route: first answer, answer with new points, answer with nothing new."""
    monitor, recorder = Monitor(), Recorder(root)
    for _ in range(3_600):
        recorder.beat(monitor)
    cursor = hardware_api.readings(root)["cursor"]
    costs: dict[str, list[float]] = {"following": [], "nothing": []}
    for _ in range(POLLS):
        for _ in range(4):
            recorder.beat(monitor)
        for spent in costs.values():
            before = time.thread_time()
            cursor = hardware_api.readings(root, cursor)["cursor"]
            spent.append(time.thread_time() - before)
    costs["first"] = []
    for _ in range(POLLS // 5):
        before = time.thread_time()
        hardware_api.readings(root)
        costs["first"].append(time.thread_time() - before)
    monitor.close()
    return costs


def step_s(core: int, *, recorded: bool) -> tuple[float, float]:
    """Wall-clock and CPU seconds of the run's own training per step."""
    with tempfile.TemporaryDirectory() as name, _recorder(core) if recorded else contextlib.nullcontext():
        wall, cpu, steps, spent = time.perf_counter, time.process_time, 0, [0.0, 0.0]
        events = train(CONFIG, Path(name))
        while True:
            before = wall(), cpu()
            event = next(events, None)
            if event is None:
                return spent[0] / steps, spent[1] / steps
            if isinstance(event, Steps):
                spent = [spent[0] + wall() - before[0], spent[1] + cpu() - before[1]]
                steps += len(event.loss)


@contextlib.contextmanager
def _recorder(core: int) -> Iterator[None]:
    with tempfile.TemporaryDirectory() as root:
        process = subprocess.Popen([sys.executable, "-c", RECORDER, root])
        os.sched_setaffinity(process.pid, {core})
        try:
            while not (Path(root) / CURRENT).exists():
                time.sleep(0.05)
            time.sleep(0.5)
            yield
        finally:
            process.kill()
            process.wait()


def side_by_side(rng: random.Random, core: int) -> dict[str, Spread]:
    """Training alone and with a recorder on the same core, in random order."""
    step_s(core, recorded=True)  # not counted: imports, allocator, caches
    plain, slowdowns = [], {"wall": [], "cpu": []}  # type: ignore[var-annotated]
    for _ in range(PAIRS):
        took = {recorded: step_s(core, recorded=recorded) for recorded in rng.sample([False, True], 2)}
        plain.append(took[False][0])
        for place, name in enumerate(slowdowns):
            slowdowns[name].append(took[True][place] / took[False][place] - 1)
    return {"step_s_wall": Spread.of(plain)} | {f"slowdown_{n}": Spread.of(v) for n, v in slowdowns.items()}


def main() -> None:
    """Measure, print a table and save the result."""
    torch.set_num_threads(1)
    load_before = measure.load()
    with tempfile.TemporaryDirectory() as name:
        beats = Spread.of(beat_s(Path(name)))
    with tempfile.TemporaryDirectory() as name:
        polls = {kind: Spread.of(costs) for kind, costs in poll_s(Path(name)).items()}
    cores = probe.allowed_cores()
    core = min(cores)
    os.sched_setaffinity(0, {core})
    both = side_by_side(random.Random(0), core)
    os.sched_setaffinity(0, cores)
    share = beats.median / INTERVALS_S[0]
    print(f"median (p10-p90) of {BEATS} beats, {PAIRS} pairs of trainings (784-128-10, B=64) on one core\n")
    measure.table(
        ["figure", "", "", "goal", ""],
        [
            ["a beat: everything read and kept", beats.text(0, scale=1e6), "us CPU, measured", "", ""],
            ["share of a core at 4 Hz", f"{share:.2%}", "derived", "1 %", measure.verdict(share <= GOAL_SHARE)],
            [
                "training on the recorder's own core, wall",
                both["slowdown_wall"].text(2, scale=100) + " %",
                "measured",
                "",
                "",
            ],
            [
                "training on the recorder's own core, CPU",
                both["slowdown_cpu"].text(2, scale=100) + " %",
                "measured",
                "",
                "",
            ],
            ["route: 15 minutes for a browser that has nothing", polls["first"].text(1, scale=1e3), "ms CPU", "", ""],
            ["route: a second's new rows", polls["following"].text(2, scale=1e3), "ms CPU", "", ""],
            ["route: nothing new", polls["nothing"].text(2, scale=1e3), "ms CPU", "", ""],
        ],
    )
    figures = both | {
        "beat_s": beats,
        "share_of_a_core_derived": share,
        "share_goal": GOAL_SHARE,
        "route_first_s": polls["first"],
        "route_following_s": polls["following"],
        "route_nothing_new_s": polls["nothing"],
        "reached": {"share": share <= GOAL_SHARE},
        "how": "share = a beat's CPU time over 0.25 s; slowdowns are measured A/B with recorder and training on one core; "
        "no GPU: NVML's calls are not in it",
    }
    measure.save("monitor", figures, load_before=load_before)


if __name__ == "__main__":
    main()
