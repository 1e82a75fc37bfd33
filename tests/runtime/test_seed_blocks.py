"""Runs that take turns in one process: each as if it were alone, and none ended by the end of another."""

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


def heat_of(store, *lanes: str, common: str = "budget.epochs=3") -> list:
    """The runs of a heat, asked for with nobody there to start them."""
    configs = [with_overrides(BASE, [*common.split(), *lane.split()]) for lane in lanes]
    heat = SeedBlock(id="heat", lanes=len(lanes))
    return [store.run(store.create(config, group="race", heat=heat)) for config in configs]


def run_heat(runs) -> None:
    worker.run(*(run.folder for run in runs))
    for run in runs:
        run.refresh()


def test_a_run_among_others_learns_as_it_does_alone(store):
    together = heat_of(store, "batch_size=16", "batch_size=16 threads=2", "batch_size=full optimizer.lr=0.1")
    run_heat(together)
    for run in together:
        alone = store.run(store.create(run.config))
        run_heat([alone])
        assert np.array_equal(run.steps["loss"], alone.steps["loss"])
        assert run.evaluations["test_loss"][-1] == alone.evaluations["test_loss"][-1]


def test_runs_take_turns_by_the_time_they_have_trained(store):
    first, second = heat_of(store, "batch_size=1", "batch_size=full", common="budget.epochs=none budget.seconds=1.5")
    run_heat([first, second])
    both = sorted(
        (at + run.started.at, number)
        for number, run in enumerate((first, second))
        for at in run.steps["elapsed"][np.flatnonzero(np.diff(run.steps["elapsed"], prepend=0) > 1e-3)]
    )
    turns = [number for _, number in both]
    assert sum(a != b for a, b in pairwise(turns)) > 8
    assert first.steps.last("seconds") == pytest.approx(second.steps.last("seconds"), abs=0.5)


def test_the_one_that_diverges_ends_alone(store):
    wild, calm = heat_of(store, "optimizer.name=sgd optimizer.lr=1e6", "optimizer.name=sgd optimizer.lr=0.1")
    run_heat([wild, calm])
    assert (wild.status, wild.last_word.cause, calm.status) == ("failed", "Diverged", "finished")


def test_the_one_that_is_asked_to_stop_ends_alone(store, monkeypatch):
    asked, other = heat_of(store, "batch_size=8", "batch_size=16")
    ask_to_stop(asked.folder, StopRequest(reason="enough"))
    run_heat([asked, other])
    assert (asked.status, other.status) == ("cancelled", "finished")


def test_no_joule_is_billed_to_one_of_several(store):
    runs = heat_of(store, "batch_size=8", "batch_size=16")
    run_heat(runs)
    assert [run.last_word.energy_j for run in runs] == [None, None]
    assert "other runs of its race" in runs[0].last_word.energy_method


def test_each_has_the_hardware_on_its_own_time_axis(store):
    runs = heat_of(store, "batch_size=1", "batch_size=2", common="budget.epochs=none budget.seconds=0.6")
    run_heat(runs)
    for run in runs:
        assert len(run.hardware) > 2
        assert run.hardware["elapsed"][0] < run.steps["elapsed"][-1]
        assert run.missing_readings


@pytest.mark.slow
def test_one_that_hangs_takes_the_others_with_it_and_says_so(store, monkeypatch):
    monkeypatch.setattr(worker, "_ANSWER_S", 0.3)
    stuck, other = heat_of(store, "batch_size=8", "batch_size=16")

    def task(config, folder):
        yield WarmUp(seconds=0.0, steps=0)
        while config.batch_size == 8 and not ended:
            time.sleep(0.01)
        yield WarmUp(seconds=0.0, steps=0)

    ended = []
    monkeypatch.setitem(worker.TASKS, "train", task)
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
    """An executor that says which runs were started together."""

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


def test_a_heat_starts_together(store, supervised):
    heat = Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="race")
    alone = Client(store).submit(BASE)
    supervised.recover()
    for _ in range(3):
        supervised.tick()
    assert supervised.executor.given == [set(heat), {alone}]
    assert [store.run(run_id).name for run_id in heat] == ["batch_size=8", "batch_size=16"]


def test_the_heats_of_a_race_come_one_after_another(store, supervised):
    wanted = [lanes(f"seed={seed}", f"seed={seed + 10}") for seed in range(2)]
    run_ids = Client(store).submit_seed_blocks(wanted, group="race")
    seed_blocks = [run_ids[:2], run_ids[2:]]
    supervised.recover()
    supervised._start_queued_runs()
    assert supervised.executor.given == [set(seed_blocks[0])]
    supervised.tick()
    supervised.tick()
    assert supervised.executor.given == [set(seed_blocks[0]), set(seed_blocks[1])]


def test_a_heat_waits_for_the_last_of_its_runs_but_not_for_ever(store, supervised, monkeypatch):
    heat = SeedBlock(id="h", lanes=2)
    first = store.create(lanes("batch_size=8")[0].config, heat=heat)
    supervised.recover()
    supervised.tick()
    assert supervised.executor.given == []
    monkeypatch.setattr("engine.runtime.supervisor._SEED_BLOCK_COMPLETE_S", 0.0)
    supervised.tick()
    assert supervised.executor.given == [{first}]


def test_a_heat_asked_for_twice_is_one(store, supervised):
    wanted = [w._replace(key=f"key {i}") for i, w in enumerate(lanes("batch_size=8", "batch_size=16"))]
    assert Client(store).submit_seed_blocks([wanted], group="g") == Client(store).submit_seed_blocks(
        [wanted], group="g"
    )
    assert len(store.ids()) == 2


def test_of_a_heat_with_one_bad_run_nothing_is_left(store, supervised):
    bad = with_overrides(BASE, ["batch_size=5000"])
    with pytest.raises(ConfigError):
        Client(store).submit_seed_blocks([[*lanes("batch_size=8"), Submission(bad)]], group="g")
    assert store.ids() == []


def test_a_heat_needs_room_for_all_of_it(store, supervised):
    rules = store.root / "settings.toml"
    rules.write_text("[limits]\nqueued = 1\n")
    rules.chmod(0o600)
    with pytest.raises(LimitReached, match=r"limits\.queued"):
        Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="g")
    assert store.ids() == []


class Shared:
    """A process of several runs, which only a signal ends."""

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
    """A supervisor with two runs of one heat under way, and their process."""
    monkeypatch.setattr("engine.runtime.supervisor._SIGTERM_AFTER_S", 0.05)
    job = Shared()
    monkeypatch.setattr(supervised.executor, "start", lambda *_: job)
    run_ids = Client(store).submit_seed_blocks([lanes("batch_size=8", "batch_size=16")], group="race")
    supervised.recover()
    supervised.tick()
    return supervised, job, run_ids


def test_the_process_of_a_heat_outlives_the_one_that_was_stopped(store, sharing):
    supervising, job, (first, second) = sharing
    ask_to_stop(store.folder(first), StopRequest(reason="enough"))
    supervising.stopping[first] = time.monotonic(), StopRequest(reason="enough")
    EventLog(store.folder(first) / "events.jsonl").close(Cancelled(at=time.time()))
    time.sleep(0.1)
    for _ in range(3):
        supervising.tick()
    assert job.signals == []
    assert list(supervising.active) == [second]


def test_who_is_ended_with_another_is_told_so(store, sharing):
    supervising, job, (first, second) = sharing
    supervising.stopping[first] = time.monotonic(), StopRequest(reason="enough")
    time.sleep(0.1)
    for _ in range(3):
        supervising.tick()
    assert job.signals
    assert (store.run(first).status, store.run(second).status) == ("cancelled", "interrupted")
    assert "Another run of its race did not stop" in store.run(second).why()


def test_a_torn_config_of_one_is_not_the_others_end(store):
    broken, good = heat_of(store, "batch_size=8", "batch_size=16")
    (broken.folder / "config.json").write_text("{")
    with pytest.raises(EngineError):
        worker.run(broken.folder, good.folder)
    good.refresh()
    assert good.status == "finished"


@pytest.mark.slow
def test_the_turns_of_others_do_not_count_against_a_limit_of_time(store):
    rules = store.root / "settings.toml"
    rules.write_text("[limits]\nwall_time_s = 2.8\n")
    rules.chmod(0o600)
    sizes = [f"batch_size={size}" for size in (4, 8, 16, 32, 64, 128)]
    runs = heat_of(store, *sizes, common="budget.epochs=none budget.seconds=0.5")
    run_heat(runs)
    assert [run.status for run in runs] == ["finished"] * 6
