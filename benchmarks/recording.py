"""The cost of recording: loss, samples and clocks of every step, and the hardware at 4 Hz.

Directly: the CPU time per step of appending the events of a real run to its log, and of one hardware reading. From
these the share of a step is derived. Side by side: the same training with and without the recording of worker.run.
Its noise is larger than the expected effect, so it can only rule out a large cost.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Finished
from engine.events.training import Steps
from engine.hardware import sampler
from engine.pytorch.setup import Clock
from engine.pytorch.tasks.train import train
from engine.store.event_log import EventLog

ROUNDS = 15
BEATS = 200
BEATS_PER_S = 4
SCALARS_PER_STEP = 2  # loss and samples are stored for every step; its number and clocks follow from the event
GOAL_SHARE, GOAL_S_PER_SCALAR = 0.01, 0.3e-6
CONFIG: RunConfig = preset_config("mnist-mlp")  # 784-128-10, Adam, B=64, 20 epochs


# --- directly -----------------------------------------------------------------------------------------------------


def append_s_per_step() -> tuple[float, float]:
    """CPU seconds per step of the log: (its Steps events alone, all events of the task).

    Appended while the run runs, so with caches as training leaves them and with the writes to the file that come due.
    """
    spent = dict.fromkeys(("steps", "other"), 0.0)
    with tempfile.TemporaryDirectory() as name:
        log = EventLog(Path(name) / "events.jsonl")
        for event in train(CONFIG, Path(name)):
            before = time.thread_time()
            log.append(event)
            spent["steps" if isinstance(event, Steps) else "other"] += time.thread_time() - before
    return spent["steps"] / log.steps, (spent["steps"] + spent["other"]) / log.steps


def append_in_a_row_s_per_step() -> float:
    """CPU seconds per step of a loop that only appends, for half a second.

    The figures of other trackers were had in this way: caches are warm, and a write is shared by more steps.
    """
    with tempfile.TemporaryDirectory() as name:
        log = EventLog(Path(name) / "events.jsonl")
        told = [event for event in train(CONFIG, Path(name)) if isinstance(event, Steps)]
        before, until = time.thread_time(), time.monotonic() + 0.5
        while time.monotonic() < until:
            for event in told:
                log.append(event)
        return (time.thread_time() - before) / log.steps


def beat_s(folder: Path) -> list[float]:
    """CPU seconds of single hardware readings with their append; the process sleeps in between."""
    log = EventLog(folder / "events.jsonl")
    costs = []
    with contextlib.ExitStack() as stack:
        readers = sampler.open_readers(CONFIG.device, time.perf_counter, stack)
        sampling = sampler.Sampler(CONFIG.device, time.perf_counter, log.append)
        for _ in range(BEATS):
            time.sleep(0.02)  # so that the caches are cold, as in a run
            before = time.thread_time()
            sampling.beat(readers)
            costs.append(time.thread_time() - before)
    return costs


# --- side by side -------------------------------------------------------------------------------------------------


def step_s(clock: Clock, *, recorded: bool) -> float:
    """Seconds per step of training and recording."""
    with tempfile.TemporaryDirectory() as name:
        events = train(CONFIG, Path(name))
        with _recording(Path(name)) if recorded else contextlib.nullcontext(lambda event: None) as record:
            return _time_between_steps(events, record, clock)


def _time_between_steps(events: Iterator[AnyEvent], record: Callable[[AnyEvent], None], clock: Clock) -> float:
    """Time to produce and record Steps events; other events are recorded outside this time."""
    spent, steps = 0.0, 0
    while True:
        before = clock()
        event = next(events, None)
        if event is None:
            return spent / steps
        record(event)
        if isinstance(event, Steps):
            spent, steps = spent + clock() - before, steps + len(event.loss)


@contextlib.contextmanager
def _recording(folder: Path) -> Iterator[Callable[[AnyEvent], None]]:
    """Recording as in worker.run: a log, and a sampler thread at 4 Hz that writes into it."""
    log = EventLog(folder / "events.jsonl")
    sampling = sampler.Sampler(CONFIG.device, time.perf_counter, log.append)
    sampling.start()
    try:
        yield log.append
    finally:
        sampling.stop()
        log.close(Finished(at=time.time()))


def side_by_side(rng: random.Random) -> dict[str, Spread]:
    """Seconds of a step without recording, and the extra time with it, by wall clock and by CPU time."""
    step_s(time.perf_counter, recorded=True)  # not counted: imports, allocator, caches
    found: dict[str, Spread] = {}
    for name, clock in (("wall", time.perf_counter), ("cpu", time.process_time)):
        plain, extra = [], []
        for _ in range(ROUNDS):
            took = {recorded: step_s(clock, recorded=recorded) for recorded in rng.sample([False, True], 2)}
            plain.append(took[False])
            extra.append(took[True] / took[False] - 1)
        found |= {f"step_s_{name}": Spread.of(plain), f"slowdown_{name}": Spread.of(extra)}
    return found


def main() -> None:
    """Measure, print a table and save the result."""
    torch.set_num_threads(1)
    load_before = measure.load()
    both = side_by_side(random.Random(0))
    appends = [append_s_per_step() for _ in range(ROUNDS)]
    in_a_row = Spread.of([append_in_a_row_s_per_step() for _ in range(ROUNDS)])
    with tempfile.TemporaryDirectory() as name:
        beats = Spread.of(beat_s(Path(name)))
    per_step, everything = (Spread.of(column) for column in zip(*appends, strict=True))
    step = both["step_s_cpu"].median
    share = everything.median / step + beats.median * BEATS_PER_S
    per_scalar, per_scalar_in_a_row = (s.median / SCALARS_PER_STEP for s in (per_step, in_a_row))
    print(f"784-128-10, Adam, B=64, one thread; median (p10-p90) of {ROUNDS} rounds, {BEATS} beats\n")
    measure.table(
        ["figure", "", "", "goal", ""],
        [
            ["a step without recording", both["step_s_cpu"].text(0, scale=1e6), "us CPU, measured", "", ""],
            ["its Steps events, appended while training", per_step.text(2, scale=1e6), "us CPU, measured", "", ""],
            ["its Steps events, appended in a row", in_a_row.text(2, scale=1e6), "us CPU, measured", "", ""],
            ["all events of the task, while training", everything.text(2, scale=1e6), "us CPU, measured", "", ""],
            ["a beat of the sampler", beats.text(0, scale=1e6), "us CPU, measured", "", ""],
            ["recording, share of a step", f"{share:.2%}", "derived", "1 %", measure.verdict(share <= GOAL_SHARE)],
            [
                "a scalar, appending in a row",
                f"{per_scalar_in_a_row * 1e6:.2f} us",
                "derived",
                "0.3 us",
                measure.verdict(per_scalar_in_a_row <= GOAL_S_PER_SCALAR),
            ],
            [
                "a scalar, while training",
                f"{per_scalar * 1e6:.2f} us",
                "derived",
                "0.3 us",
                measure.verdict(per_scalar <= GOAL_S_PER_SCALAR),
            ],
            ["slower with recording, CPU time", both["slowdown_cpu"].text(1, scale=100) + " %", "measured", "", ""],
            ["slower with recording, wall time", both["slowdown_wall"].text(1, scale=100) + " %", "measured", "", ""],
        ],
    )
    figures = both | {
        "append_steps_s_per_step": per_step,
        "append_everything_s_per_step": everything,
        "sampler_beat_s": beats,
        "share_of_a_step_derived": share,
        "share_goal": GOAL_SHARE,
        "append_steps_in_a_row_s_per_step": in_a_row,
        "scalars_per_step": SCALARS_PER_STEP,
        "s_per_scalar_goal": GOAL_S_PER_SCALAR,
        "s_per_scalar_in_a_row_derived": per_scalar_in_a_row,
        "s_per_scalar_while_training_derived": per_scalar,
        "reached": {
            "share": share <= GOAL_SHARE,
            "scalar_in_a_row": per_scalar_in_a_row <= GOAL_S_PER_SCALAR,
            "scalar_while_training": per_scalar <= GOAL_S_PER_SCALAR,
        },
        "how": "share = appended events' CPU time over a step's CPU time + 4 beats per second; slowdowns are measured A/B",
    }
    measure.save("recording", figures, load_before=load_before)


if __name__ == "__main__":
    main()
