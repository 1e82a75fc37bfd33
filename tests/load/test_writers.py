"""Thirty-two processes write at once while a supervisor and readers follow: every row arrives once and in order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from engine.config.run import RunConfig
from engine.events.lifecycle import Finished, Started, Starting
from engine.events.machine import HardwareSample
from engine.events.training import Steps
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from engine.system.locks import claim
from engine.system.processes import own_identity

WORKERS, POINTS, PER_READ_BACK = 32, 1_000, 10
PATIENCE_S = 120.0


def loss_of(worker: int) -> np.ndarray:
    """The losses of one worker. They differ from all others, so that a row in a wrong run is noticed."""
    return (worker + np.arange(POINTS) / POINTS).astype(np.float32)


def record(root, run_id: str, worker: int, everybody) -> None:
    """A worker whose run the supervisor adopts, and which writes as fast as it can."""
    store = Store(root)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    pid, started = own_identity()
    log.append(Starting(at=time.time(), pid=pid, pid_started=started))
    everybody.wait(PATIENCE_S)
    log.append(
        Started(
            at=time.time(),
            parameters=1,
            train_flops_per_example=1,
            train_examples=POINTS,
            test_examples=1,
            total_steps=POINTS,
            setup_s=0.0,
        )
    )
    loss = loss_of(worker)
    for first in range(0, POINTS, PER_READ_BACK):
        clock = (first / 1e3, (first + PER_READ_BACK) / 1e3)
        log.append(
            Steps(
                first=first + 1,
                loss=loss[first : first + PER_READ_BACK],
                samples=np.ones(PER_READ_BACK),
                lr=0.1,
                train_s=clock,
                elapsed_s=clock,
            )
        )
        log.append(HardwareSample(elapsed_s=clock[1], readings={"process_cpu_percent": float(worker)}))
        time.sleep(0.002)  # simulated training, so that all processes write at the same time
    log.close(Finished(at=time.time()))


class Follower(threading.Thread):
    """Refreshes a run repeatedly, as a page does, and records its numbers of steps."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True)
        self.run_, self.lengths = run, [0]
        self.start()

    def run(self) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self.run_.is_over and time.monotonic() < until:
            self.run_.refresh()
            self.lengths.append(len(self.run_.steps))
            time.sleep(0.05)


@pytest.mark.slow
def test_32_workers_write_at_once_and_every_row_arrives_in_order_and_once(own_supervised):
    store, context = own_supervised.store, multiprocessing.get_context("fork")
    everybody = context.Barrier(WORKERS)
    # The supervisor must not start these runs: it adopts runs that have a process.
    claims = contextlib.ExitStack()  # the forked workers share them
    ids = [drafted(store, f"worker {i}", claims) for i in range(WORKERS)]
    workers = [
        context.Process(target=record, args=(store.root, run_id, i, everybody), daemon=True)
        for i, run_id in enumerate(ids)
    ]
    for worker in workers:
        worker.start()
    followers = [Follower(store.run(run_id)) for run_id in ids]
    for worker in workers:
        worker.join(PATIENCE_S)
    claims.close()
    assert [worker.exitcode for worker in workers] == [0] * WORKERS
    for i, (run_id, follower) in enumerate(zip(ids, followers, strict=True)):
        follower.join(PATIENCE_S)
        for run in (store.run(run_id), follower.run_):
            assert (run.status, run.problems) == ("finished", [])
            np.testing.assert_array_equal(run.steps["step"], np.arange(1, POINTS + 1))
            np.testing.assert_array_equal(run.steps["loss"], loss_of(i))
            np.testing.assert_array_equal(run.hardware["process_cpu_percent"], [i] * (POINTS // PER_READ_BACK))
        assert follower.lengths == sorted(follower.lengths)
    # Followed while they wrote, not only read at the end.
    assert sum(0 < length < POINTS for follower in followers for length in follower.lengths) >= WORKERS // 4
    own_supervised.client.wake()
    own_supervised.wait(lambda: store.listing(status=("finished",)).total == WORKERS, "all of them to be listed")
    listing = store.listing(order="steps")
    assert {(line.steps, line.name) for line in listing.lines} == {(POINTS, f"worker {i}") for i in range(WORKERS)}


def drafted(store: Store, name: str, claims: contextlib.ExitStack) -> str:
    """A run that records this process as its own from the beginning, until the worker records itself."""
    run_id = f"{int.from_bytes(os.urandom(8)):016x}"
    made = Store(store.root.with_name("drafts"))
    draft = made.folder(made.create(RunConfig(), name=name))
    assert claims.enter_context(claim(draft))
    pid, started = own_identity()
    EventLog(draft / "events.jsonl").append(Starting(at=time.time(), pid=pid, pid_started=started))
    draft.rename(store.runs / run_id)
    return run_id
