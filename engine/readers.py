"""What readers of different hardware share: what a reader returns, a counter as a rate, a costly reading kept for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from engine.sampler import Unavailable

Values = Mapping[str, "float | Unavailable"]
Read = Callable[[], Values]
Sources = dict[tuple[str, ...], Read]  # the names of its readings: what reads them at once
T = TypeVar("T")

FIRST = "The first reading has no time to be spread over."


class Held(Generic[T]):
    """A reading that costs more: made at most every `every_s`, and in between the same, an error too."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float], every_s: float) -> None:
        self._read, self._clock, self._every_s = read, clock, every_s
        self._until: float | None = None
        self._held: T
        self._error: Exception | None = None

    def __call__(self) -> T:
        if self._until is None or self._clock() >= self._until:
            self._until = self._clock() + self._every_s
            try:
                self._held, self._error = self._read(), None
            except Exception as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._held


class Rates:
    """Counters as what they grew by per second since the last reading."""

    def __init__(self, names: tuple[str, ...], read: Callable[[], tuple[int, ...]], clock: Callable[[], float]) -> None:
        self._names, self._read, self._clock = names, read, clock
        self._last: tuple[float, tuple[int, ...]] | None = None

    def __call__(self) -> Values:
        before, now = self._last, (self._clock(), self._read())
        self._last = now
        if before is None or now[0] <= before[0]:
            raise Unavailable(FIRST)
        grown = [after - earlier for after, earlier in zip(now[1], before[1], strict=True)]
        if min(grown) < 0:  # a disk or an interface was taken away, a driver loaded anew
            raise Unavailable("The counters began anew.")
        return {name: bytes_ / (now[0] - before[0]) for name, bytes_ in zip(self._names, grown, strict=True)}
