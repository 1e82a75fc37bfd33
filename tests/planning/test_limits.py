"""Limits of one run: it is refused before its start if possible, else ended; the message names the limit."""

import subprocess
import sys

import pytest

from engine.access import settings
from engine.access.settings import Limits
from engine.common.errors import LimitReached
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.base import TERMINAL
from engine.planning import limits
from engine.planning.limits import Guard, check_before
from engine.planning.planner import plan
from engine.runtime import worker
from engine.runtime.client import Client
from engine.system.files import write_atomically
from tests.conftest import ROOT


def test_a_budget_beyond_the_wall_time_is_refused_by_name(config):
    long = with_overrides(config, ["budget.epochs=none", "budget.seconds=100"])
    with pytest.raises(LimitReached, match=r"budget\.seconds=100 is more than the 1 min 30 s .*limits\.wall_time_s"):
        check_before(long, plan(long), Limits(wall_time_s=90))
    check_before(long, plan(long), Limits(wall_time_s=None))


def test_more_steps_than_the_limit_are_refused_by_name(config):
    with pytest.raises(LimitReached, match=r"90 steps are more than the 50 .*limits\.points"):
        check_before(config, plan(config), Limits(points=50))


def test_a_refused_run_leaves_nothing_behind(store, config):
    write_atomically(store.root / settings.FILE, "[limits]\npoints = 50")
    with pytest.raises(LimitReached):
        Client(store).submit(config)
    assert list(store.runs.iterdir()) == []


def test_wall_time_is_measured_with_a_monotonic_clock(tmp_path):
    now = 5.0
    guard = Guard(Limits(wall_time_s=60), tmp_path, clock=lambda: now)
    now = 64.9
    guard.check(steps=1)
    now = 65.1
    with pytest.raises(LimitReached, match=r"1 min 00 s of wall time.*limits\.wall_time_s"):
        guard.check(steps=1)


def test_the_disk_usage_is_checked_once_a_second(tmp_path):
    now = 0.0
    guard = Guard(Limits(disk_bytes=1_000), tmp_path, clock=lambda: now)
    (tmp_path / "events.jsonl").write_bytes(b"x" * 1_001)
    guard.check(steps=1)
    now = 1.0
    with pytest.raises(LimitReached, match=r"on disk.*limits\.disk_bytes"):
        guard.check(steps=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("points = 200", "reached the limit of 200 recorded steps"),
        ("wall_time_s = 0.5", "reached the limit of 500 ms of wall time"),
        ("disk_bytes = 2000", "on disk"),
    ],
)
def test_a_run_that_reaches_a_limit_fails_with_its_name_and_keeps_its_points(store, text, words):
    write_atomically(store.root / settings.FILE, f"[limits]\n{text}")
    config = with_overrides(RunConfig(), ["data=digits", "budget.epochs=none", "budget.seconds=20"])
    run_id = store.create(config)
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert (run.status, run.last_word.cause, run.problems) == ("failed", "LimitReached", [])
    assert words in run.why()
    assert f"limits.{text.split()[0]}" in run.why()
    assert run.last_word.steps == len(run.steps) > 0


ALLOCATE = """
import sys
from engine.access.settings import Limits
from engine.planning import limits
import torch
print(limits.limit_memory("cpu", Limits(memory_bytes=200 << 20), 1 << 40))
kept = [torch.ones(25 << 20)]  # 100 MiB: within the limit
try:
    kept.append(torch.ones(75 << 20))  # 300 MiB more: beyond it
except RuntimeError as error:
    print(limits.in_words(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux only")
@pytest.mark.process
def test_an_allocation_beyond_the_limit_fails_with_the_requested_size():
    done = subprocess.run([sys.executable, "-c", ALLOCATE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [str(200 << 20), "The run ran out of memory when it asked for 300 MiB more."]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000 bytes. Error code 12",
            "asked for 3.73 GiB more",
        ),
        (
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.1 GiB",
            "asked for 20.0 GiB more",
        ),
        ("std::bad_alloc", "The run ran out of memory."),
    ],
)
def test_the_requested_size_is_read_from_pytorchs_message(text, words):
    assert words in limits.in_words(RuntimeError(text))


def test_the_memory_of_a_gpu_run_is_not_limited():
    assert limits.limit_memory("cuda:0", Limits(memory_bytes=1), 1 << 40) is None


def test_a_run_out_of_memory_fails_with_that_reason(supervised):
    """A real run whose process can allocate 150 MB more, and needs some hundreds."""
    path = supervised.store.root / settings.FILE
    write_atomically(path, "[limits]\nmemory_bytes = 150000000")
    try:
        run = supervised.until(supervised.submit("model.hidden=8000,8000", preset="mnist-mlp"), *TERMINAL)
    finally:
        path.unlink()
    assert (run.status, run.last_word.cause) == ("failed", "OutOfMemory")
    assert "ran out of memory when it asked for" in run.why()
