"""From the submission of a run to its first point: one epoch of `mnist-mlp`, with a real supervisor and a new store.

Warm: the supervisor's fork server has imported torch. From nothing: no supervisor is running. Two moments are
measured: the time of the first step according to the log, and the time when a reader that polls every few
milliseconds sees it, which includes the flush of the log.
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.runtime.client import Client
from engine.runtime.executor import is_same_process
from engine.store.run import Run
from engine.store.store import Store

SUBMITS, COLD_STARTS = 25, 3
GOAL_S = 0.3
CONFIG: RunConfig = with_overrides(preset_config("mnist-mlp"), ["budget.epochs=1"])
_LOOK_EVERY_S = 0.002
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class FirstPoint:
    """Seconds since the submission."""

    starting_s: float  # its process has started
    started_s: float  # model and data are ready
    in_log_s: float  # the first step is done and its loss read back
    seen_s: float  # a reader sees it


def submit(client: Client) -> FirstPoint:
    """Submit a run, wait for its first point and then for its end, so that the next run has the machine to itself."""
    asked = time.time()
    run = client.store.run(client.submit(CONFIG))
    _wait(lambda: _look(run) and len(run.steps))
    seen = time.time()
    _wait(lambda: _look(run) and run.is_over)
    assert run.status == "finished", run.why()
    assert run.starting and run.started
    first_step = run.started.at + float(run.steps["elapsed"][0])
    return FirstPoint(run.starting.at - asked, run.started.at - asked, first_step - asked, seen - asked)


def _look(run: Run) -> bool:
    time.sleep(_LOOK_EVERY_S)
    run.refresh()
    return True


def _wait(condition) -> None:
    until = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"Nothing after {_PATIENCE_S:g} s; see the supervisor's log.")


@contextlib.contextmanager
def fresh_client() -> Iterator[Client]:
    """A client of a new store; the supervisor that it starts ends with it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = Store(Path(folder))
        try:
            yield Client(store)
        finally:
            _end_supervisor(store)


def _end_supervisor(store: Store) -> None:
    with contextlib.suppress(OSError, ValueError, psutil.Error, psutil.TimeoutExpired):
        pid, started = (store.root / "supervisor.pid").read_text(encoding="utf-8").split()
        if is_same_process(int(pid), float(started)):
            process = psutil.Process(int(pid))
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=10)


def warm() -> list[FirstPoint]:
    """First points with a running supervisor."""
    with fresh_client() as client:
        submit(client)  # not counted: it starts the supervisor and waits for the fork server
        return [submit(client) for _ in range(SUBMITS)]


def cold() -> list[FirstPoint]:
    """First points without a supervisor."""
    points = []
    for _ in range(COLD_STARTS):
        with fresh_client() as client:
            points.append(submit(client))
    return points


def main() -> None:
    """Measure, print a table and save the result."""
    load_before = measure.load()
    figures, rows = {}, []
    for title, points in (("warm supervisor", warm()), ("from nothing", cold())):
        spreads = {name: Spread.of([getattr(p, name) for p in points]) for name in FirstPoint.__slots__}
        figures[title.replace(" ", "_")] = spreads
        rows.append([title, str(len(points)), *(spread.text(3) for spread in spreads.values())])
    in_log = figures["warm_supervisor"]["in_log_s"]
    print("Seconds since submit, median (p10-p90); mnist-mlp, one epoch\n")
    measure.table(["", "n", "process started", "model and data ready", "first point in log", "seen by a reader"], rows)
    reached = in_log.median <= GOAL_S
    print(f"\nFirst point in the log, warm: {in_log.median:.3f} s, goal {GOAL_S:g} s: {measure.verdict(reached)}")
    measure.save("latency", figures | {"goal_warm_in_log_s": GOAL_S, "reached": reached}, load_before=load_before)


if __name__ == "__main__":
    main()
