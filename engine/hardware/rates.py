"""What all hardware readers share: the type of a reading, a counter as a rate, a slow reading that is cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NoReturn, TypeVar

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Reading:
    """A measured quantity: its title in a chart, its unit, and how it is measured."""

    title: str
    unit: str
    how: str


class Unavailable(Exception):
    """A reading that is not available here. The text is a sentence for the user with the reason."""


# The errors that a reader can raise because of the machine. Any other error is a bug in our code.
FAILURES = (Unavailable, OSError, psutil.Error, pynvml.NVMLError)

Values = Mapping[str, "float | Unavailable"]
Read = Callable[[], Values]
Sources = dict[tuple[str, ...], Read]  # names of readings -> the function that reads them together
T = TypeVar("T")

FIRST = "A rate needs two readings, and this is the first one."


def unavailable(reason: str) -> Callable[[], NoReturn]:
    """A reader of a quantity that is not available here: it raises Unavailable with the reason."""

    def read() -> NoReturn:
        raise Unavailable(reason)

    return read


class Cached(Generic[T]):
    """Caches a slow reading for `every_s` seconds. Until then, calls return the same value or raise the same error."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], float], every_s: float) -> None:
        self._read, self._clock, self._every_s = read, clock, every_s
        self._until: float | None = None
        self._value: T
        self._error: Exception | None = None

    def __call__(self) -> T:
        """The value. Raises what the reading raised."""
        now = self._clock()
        if self._until is None or now >= self._until:
            try:
                self._value, self._error = self._read(), None
            except FAILURES as error:
                self._error = error
            self._until = now + self._every_s
        if self._error is not None:
            raise self._error
        return self._value


class Rates:
    """Counters as rates: their increase per second since the last call, under the names given."""

    def __init__(
        self, names: tuple[str, ...], read: Callable[[], tuple[float, ...]], clock: Callable[[], float]
    ) -> None:
        self._names, self._read, self._clock = names, read, clock
        self._last: tuple[float, tuple[float, ...]] | None = None

    def __call__(self) -> Values:
        """The rates since the last call.

        Raises:
            Unavailable: this is the first call, or a counter was reset.
        """
        before, now = self._last, (self._clock(), self._read())
        self._last = now
        if before is None or now[0] <= before[0]:
            raise Unavailable(FIRST)
        grown = [after - earlier for after, earlier in zip(now[1], before[1], strict=True)]
        if min(grown) < 0:  # a disk or an interface was removed, or a driver was loaded again
            raise Unavailable("The counters were reset.")
        return {name: increase / (now[0] - before[0]) for name, increase in zip(self._names, grown, strict=True)}
