"""The load that is put on a model: a closed loop or an open loop of requests, and the clock around each request.

A timed request is two readings of the clock around one call. Both go into lists that are allocated before. On a GPU the
device is synchronised before the second reading.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from engine.pytorch.inference.decoder import Decoder

_MOST_IN_A_SLICE = 65_536
_SPIN_NS = 300_000  # a sleep can end so much too late, so the rest of the time until an arrival is spent in a loop


class Stopwatch:
    """The times of requests in ns of time.perf_counter_ns, in lists of `size` that do not grow while requests run.

    They are lists, because at a request of 40 us two readings of the clock cost 0.3 % of it and storing them in a list
    0.4 %, in an array 2.5 %.
    """

    def __init__(self, size: int = _MOST_IN_A_SLICE) -> None:
        self.size = size
        self.begun, self.ended = [0] * size, [0] * size
        self.first = [0] * size  # text only: when the first character was there

    def spans(self, count: int, *, to_first: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Start and duration in ns, both (count,), of the first requests; `to_first` ends at the first character."""
        begun = np.array(self.begun[:count], np.int64)
        return begun, np.array((self.first if to_first else self.ended)[:count], np.int64) - begun


def closed_loop(
    call: Callable[[Any], object],
    inputs: Iterator[Any],
    watch: Stopwatch,
    most: int,
    until_ns: int,
    *,
    wait: Callable[[], object] | None = None,
) -> int:
    """Make at most `most` requests one after another until the clock reads `until_ns`; returns their number, 1 or more.

    Between the two readings of the clock is only the call and, on a GPU, `wait`, which waits for the device.
    """
    now, begun, ended = time.perf_counter_ns, watch.begun, watch.ended
    i = -1
    if wait is None:
        for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
            start = now()
            call(x)
            end = now()
            begun[i] = start
            ended[i] = end
            if end >= until_ns:
                break
        return i + 1
    wait()
    for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
        start = now()
        call(x)
        wait()
        end = now()
        begun[i] = start
        ended[i] = end
        if end >= until_ns:
            break
    return i + 1


def decoding_loop(decoder: Decoder, inputs: Iterator[Any], watch: Stopwatch, most: int, until_ns: int) -> int:
    """As `closed_loop` for a text model, which itself notes when its first character was there."""
    now, begun, ended, first, wait = time.perf_counter_ns, watch.begun, watch.ended, watch.first, decoder.wait
    i = -1
    for i, x in zip(range(min(most, watch.size)), inputs, strict=False):
        start = now()
        decoder(x)
        if wait:
            wait()
        end = now()
        begun[i], ended[i], first[i] = start, end, decoder.first_ns
        if end >= until_ns:
            break
    return i + 1


def arrivals_s(rng: np.random.Generator, rate: float, seconds: float, most: int) -> np.ndarray:
    """Arrival times (n,) in seconds within a window, at most `most`, at a mean of `rate` per second.

    They are a Poisson process: the times between two arrivals are exponentially distributed.
    """
    if most <= 0:
        return np.empty(0)
    expected = rate * seconds
    count = min(most, int(expected + 10 * math.sqrt(expected) + 10))
    times = np.cumsum(rng.exponential(1 / rate, count))
    return times[times < seconds]


class OpenLoop:
    """One queue and one server: requests arrive at `due_ns` (n,), and each starts when the one before it is answered.

    Its time stands still between two calls of `resume`. When twice the window is over, it ends: requests that still
    wait then count with the time that they have waited.
    """

    def __init__(self, due_ns: np.ndarray, window_ns: int) -> None:
        self._due, self._window = due_ns, window_ns
        self._next, self._passed = 0, 0  # the next request; ns of the loop's own time so far
        count = len(due_ns)
        self.arrived, self.latency, self.queue, self.to_first = (np.zeros(count, np.int64) for _ in range(4))  # ns
        self.in_time = 0  # answered before the window was over
        self.unanswered = 0

    @property
    def is_over(self) -> bool:
        """Whether every request was answered or given up."""
        return self._next >= len(self._due)

    def resume(
        self, call: Callable[[Any], object], inputs: Sequence[Any], slice_ns: int, wait: Callable[[], object]
    ) -> None:
        """Answer requests by `call` for about `slice_ns`; `wait` waits for the device."""
        now = time.perf_counter_ns
        begin = now() - self._passed  # the reading of the clock at which the loop's own time is 0
        until = now() + slice_ns
        while self._next < len(self._due):
            i, due = self._next, begin + int(self._due[self._next])
            if now() > begin + 2 * self._window:
                self._give_up(begin, now())
                return
            if min(due, now()) >= until:
                break
            self._wait_until(due)
            start = now()
            call(inputs[i % len(inputs)])
            wait()
            end = now()
            self.arrived[i], self.latency[i], self.queue[i] = due, end - due, start - due
            self.to_first[i] = getattr(call, "first_ns", due) - due
            self.in_time += end <= begin + self._window
            self._next += 1
        self._passed = now() - begin

    @staticmethod
    def _wait_until(due: int) -> None:
        """Sleep most of the time and loop for the rest, because the system can end a sleep too late."""
        while (left := due - time.perf_counter_ns()) > 0:
            if left > 2 * _SPIN_NS:
                time.sleep((left - _SPIN_NS) / 1e9)

    def _give_up(self, begin: int, at: int) -> None:
        rest = slice(self._next, None)
        self.arrived[rest] = begin + self._due[rest]
        self.latency[rest] = self.queue[rest] = at - self.arrived[rest]
        self.unanswered = len(self._due) - self._next
        self._next = len(self._due)
