"""Runs that take turns in one process: each has the results of a run alone, and none ends another."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from engine.common.errors import ConfigError, EngineError, LimitReached
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.lifecycle import Cancelled, SeedBlock
from engine.events.training import WarmUp
from engine.runtime import worker
from engine.runtime.client import Client
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.store.store import Submission

pytestmark = pytest.mark.slow  # it trains

BASE = PRESETS["digits-mlp"].config


def block_of(store, *lanes: str, common: str = "budget.epochs=3") -> list:
    """The runs of a seed block, created without a supervisor to start them."""
    configs = [with_overrides(BASE, [*common.split(), *lane.split()]) for lane in lanes]
    block = SeedBlock(id="block", lanes=len(lanes))
    return [store.run(store.create(config, group="race", heat=block)) for config in configs]


def run_block(runs) -> None:
    worker.run(*(run.folder for run in runs))
    for run in runs:
        run.refresh()


def test_a_run_in_a_seed_block_has_the_losses_of_the_run_alone(store):
    together = block_of(store, "batch_size=16", "batch_size=16 threads=2", "batch_size=full optimizer.lr=0.1")
    run_block(together)
    for run in together:
        alone = store.run(store.create(run.config))
        run_block([alone])
        assert np.array_equal(run.steps["loss"], alone.steps["loss"])
        assert run.evaluations["test_loss"][-1] == alone.evaluations["test_loss"][-1]


def test_runs_take_turns_by_training_time(store):
    first, second = block_of(store, "batch_size=1", "batch_size=full", common="budget.epochs=none budget.seconds=1.5")
    run_block([first, second])
    both = sorted(
        (at + run.started.at, number)
        for number, run in enumerate((first, second))
        for at in run.steps["elapsed"][np.flatnonzero(np.diff(run.steps["elapsed"], prepend=0) > 1e-3)]
    )
    turns = [number for _, number in both]
    assert sum(a != b for a, b in pairwise(turns)) > 8
    assert first.steps.last("seconds") == pytest.approx(second.steps.last("seconds"), abs=0.5)


def test_a_diverged_run_does_not_end_the_others(store):
    wild, calm = block_of(store, "optimizer.name=sgd optimizer.lr=1e6", "optimizer.name=sgd optimizer.lr=0.1")
    run_block([wild, calm])
    assert (wild.status, wild.last_word.cause, calm.status) == ("failed", "Diverged", "finished")


def test_a_stopped_run_does_not_end_the_others(store, monkeypatch):
    asked, other = block_of(store, "batch_size=8", "batch_size=16")
    ask_to_stop(asked.folder, StopRequest(reason="enough"))
    run_block([asked, other])
    assert (asked.status, other.status) == ("cancelled", "finished")


def test_runs_that_share_a_process_have_no_energy_of_their_own(store):
    runs = block_of(store, "batch_size=8", "batch_size=16")
    run_block(runs)
    assert [run.last_word.energy_j for run in runs] == [None, None]
    assert "other runs of its race" in runs[0].last_word.energy_method


def test_each_run_has_hardware_samples_on_its_own_time_axis(store):
    runs = block_of(store, "batch_size=1", "batch_size=2", common="budget.epochs=none budget.seconds=0.6")
    run_block(runs)
    for run in runs:
        assert len(run.hardware) > 2
        assert run.hardware["elapsed"][0] < run.steps["elapsed"][-1]
        assert run.missing_readings


@pytest.mark.slow
def test_a_hanging_run_is_killed_with_the_others_and_they_are_interrupted(store, monkeypatch):
    monkeypatch.setattr(worker, "_ANSWER_S", 0.3)
    stuck, other = block_of(store, "batch_size=8", "batch_size=16")

    def task(config, folder):
        yield WarmUp(seconds=0.0, steps=0)
        while config.batch_size == 8 and not ended:
            time.sleep(0.01)
        yield WarmUp(seconds=0.0, steps=0)

    ended = []
    monkeypatch.setitem(worker.GENERATORS, "train", task)
    running = threading.Thread(
        target=worker.run,
        args=(stuck.folder, other.folder),
        kwargs={"end_process": lambda: ended.append(1)},
        daemon=True,
    )
    running.start()
    time.sleep(0.3)
    ask_to_stop(stuck.folder, StopRequest(reason="enough"))
    while not ended:
        time.sleep(0.01)
    for run in (stuck, other):
        run.refresh()
    assert (stuck.status, other.status) == ("cancelled", "interrupted")
    assert "Another run of its race" in other.why()


# --- the supervisor -----------------------------------------------------------------------------------------------


class Starts:
    """An executor that records which runs were started together."""

    def __init__(self) -> None:
        self.given: list[set[str]] = []

    def start(self, *folders):
        self.given.append({folder.name for folder in folders})
        return InlineExecutor().start(*folders)


@pytest.fixture
def supervised(store, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    supervising = Supervisor(store, Starts())
    yield supervising
    supervising.index.close()


def lanes(*assignments: str) -> list[Submission]:
    return [Submission(with_overrides(BASE, ["budget.steps=5", "budget.epochs=none", a]), a) for a in assignments]


def test_the_runs_of_a_seed_block_start_together(store, supervised):
    heat = Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="race")
    alone = Client(store).submit(BASE)
    supervised.recover()
    for _ in range(3):
        supervised.tick()
    assert supervised.executor.given == [set(heat), {alone}]
    assert [store.run(run_id).name for run_id in heat] == ["batch_size=8", "batch_size=16"]


def test_the_seed_blocks_of_a_race_run_one_after_another(store, supervised):
    wanted = [lanes(f"seed={seed}", f"seed={seed + 10}") for seed in range(2)]
    run_ids = Client(store).submit_seed_blocks(wanted, group="race")
    seed_blocks = [run_ids[:2], run_ids[2:]]
    supervised.recover()
    supervised._start_queued_runs()
    assert supervised.executor.given == [set(seed_blocks[0])]
    supervised.tick()
    supervised.tick()
    assert supervised.executor.given == [set(seed_blocks[0]), set(seed_blocks[1])]


def test_a_seed_block_waits_only_some_seconds_for_missing_runs(store, supervised, monkeypatch):
    heat = SeedBlock(id="h", lanes=2)
    first = store.create(lanes("batch_size=8")[0].config, heat=heat)
    supervised.recover()
    supervised.tick()
    assert supervised.executor.given == []
    monkeypatch.setattr("engine.runtime.supervisor._SEED_BLOCK_COMPLETE_S", 0.0)
    supervised.tick()
    assert supervised.executor.given == [{first}]


def test_a_seed_block_submitted_twice_is_created_once(store, supervised):
    wanted = [w._replace(key=f"key {i}") for i, w in enumerate(lanes("batch_size=8", "batch_size=16"))]
    assert Client(store).submit_seed_blocks([wanted], group="g") == Client(store).submit_seed_blocks(
        [wanted], group="g"
    )
    assert len(store.ids()) == 2


def test_a_seed_block_with_an_invalid_run_leaves_no_run(store, supervised):
    bad = with_overrides(BASE, ["batch_size=5000"])
    with pytest.raises(ConfigError):
        Client(store).submit_seed_blocks([[*lanes("batch_size=8"), Submission(bad)]], group="g")
    assert store.ids() == []


def test_a_seed_block_needs_queue_places_for_all_of_its_runs(store, supervised):
    rules = store.root / "settings.toml"
    rules.write_text("[limits]\nqueued = 1\n")
    rules.chmod(0o600)
    with pytest.raises(LimitReached, match=r"limits\.queued"):
        Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="g")
    assert store.ids() == []


class Shared:
    """A process of several runs that ends only by a signal."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def is_alive(self) -> bool:
        return not self.signals

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def cause_of_death(self) -> str:
        return "its process was killed by SIGKILL (often: out of memory)"

    def sentinel(self) -> None:
        return None


@pytest.fixture
def sharing(store, supervised, monkeypatch):
    """A supervisor with two active runs of one seed block, and their process."""
    monkeypatch.setattr("engine.runtime.supervisor._SIGTERM_AFTER_S", 0.05)
    job = Shared()
    monkeypatch.setattr(supervised.executor, "start", lambda *_: job)
    run_ids = Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="race")
    supervised.recover()
    supervised.tick()
    return supervised, job, run_ids


def test_a_shared_process_is_not_killed_for_a_run_that_ended_in_time(store, sharing):
    supervising, job, (first, second) = sharing
    ask_to_stop(store.folder(first), StopRequest(reason="enough"))
    supervising.stopping[first] = time.monotonic(), StopRequest(reason="enough")
    EventLog(store.folder(first) / "events.jsonl").close(Cancelled(at=time.time()))
    time.sleep(0.1)
    for _ in range(3):
        supervising.tick()
    assert job.signals == []
    assert list(supervising.active) == [second]


def test_a_run_killed_with_another_names_the_reason(store, sharing):
    supervising, job, (first, second) = sharing
    supervising.stopping[first] = time.monotonic(), StopRequest(reason="enough")
    time.sleep(0.1)
    for _ in range(3):
        supervising.tick()
    assert job.signals
    assert (store.run(first).status, store.run(second).status) == ("cancelled", "interrupted")
    assert "Another run of its race did not stop" in store.run(second).why()


def test_a_damaged_config_of_one_run_does_not_end_the_others(store):
    broken, good = block_of(store, "batch_size=8", "batch_size=16")
    (broken.folder / "config.json").write_text("{")
    with pytest.raises(EngineError):
        worker.run(broken.folder, good.folder)
    good.refresh()
    assert good.status == "finished"


@pytest.mark.slow
def test_the_turns_of_other_runs_do_not_count_for_the_wall_time_limit(store):
    rules = store.root / "settings.toml"
    rules.write_text("[limits]\nwall_time_s = 4.2\n")  # 14 times what a run takes, and less than all of them take
    rules.chmod(0o600)
    sizes = [f"batch_size={size}" for size in range(4, 68, 4)]
    runs = block_of(store, *sizes, common="budget.epochs=none budget.seconds=0.3")
    run_block(runs)
    assert [run.status for run in runs] == ["finished"] * 16
