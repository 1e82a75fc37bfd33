"""The load of the inference task: the clock around a request, and requests that arrive at random."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from engine.pytorch.inference import load
from engine.pytorch.inference.load import OpenLoop, Stopwatch, arrivals_s, closed_loop


def test_between_the_two_readings_of_the_clock_there_is_the_call_alone(monkeypatch):
    """The clock counts its readings. A request that reads it once lasts two ticks, and nothing else reads it."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    watch = Stopwatch(size=10)
    count = closed_loop(lambda x: next(ticks), itertools.cycle([None]), watch, 5, 10**9)
    assert count == 5
    assert [e - b for b, e in zip(watch.begun[:5], watch.ended[:5], strict=True)] == [2] * 5
    assert next(ticks) == 15  # three a request


def test_on_a_device_the_clock_is_read_after_it_is_done():
    calls = []
    watch = Stopwatch(size=4)
    closed_loop(calls.append, iter("ab"), watch, 4, 10**30, wait=lambda: calls.append("wait"))
    assert calls == ["wait", "a", "wait", "b", "wait"]


def test_latencies_are_those_of_a_stopwatch_around_the_call(tmp_path):
    """Requests of 2 ms, each timed by another clock too."""
    own = []

    def call(x):
        begun = time.monotonic()
        time.sleep(0.002)
        own.append(time.monotonic() - begun)

    watch = Stopwatch(size=64)
    count = closed_loop(call, itertools.cycle([0]), watch, 20, 10**30)
    ours = (np.array(watch.ended[:count]) - np.array(watch.begun[:count])) / 1e9
    assert len(own) == count == 20
    assert np.all(ours >= own) and np.median(ours - own) < 5e-4


def test_arrivals_are_a_poisson_process_of_the_rate():
    times = arrivals_s(np.random.default_rng(0), 200.0, 50.0, 10**9)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # equal in an exponential distribution
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.05)
    assert np.array_equal(times, arrivals_s(np.random.default_rng(0), 200.0, 50.0, 10**9))


class FakeTime:
    """Replaces the module `time`: sleeping takes the time asked for, and a reading of the clock takes 10 µs."""

    now_ns = 10**9

    def perf_counter_ns(self):
        self.now_ns += 10_000
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def served(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(load, "time", clock)

    def serve(due_ms, takes_ms, window_ms):
        loop = OpenLoop(np.array(due_ms) * 1_000_000, window_ms * 1_000_000)
        while not loop.is_over:
            loop.resume(lambda x: clock.sleep(takes_ms / 1e3), [None], 10**9, lambda: None)
        return loop

    return serve


def test_latency_counts_from_the_arrival_so_that_queueing_shows(served):
    loop = served([1, 2, 3], 20, 100)
    assert loop.queue / 1e6 == pytest.approx([0, 19, 38], abs=0.3)  # after none, one and two requests of 20 ms
    assert loop.latency / 1e6 == pytest.approx([20, 39, 58], abs=0.3)


def test_requests_left_waiting_count_with_what_they_waited(served):
    loop = served([0, 1, 2, 3, 4, 5], 20, 30)  # room for three within twice its time
    assert (loop.unanswered, loop.in_time) == (3, 1)
    assert loop.latency[-1] / 1e6 == pytest.approx(55, abs=0.3)
