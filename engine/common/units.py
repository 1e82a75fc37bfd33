"""How a quantity is written, in one place for page, command line and report: scaling happens here and nowhere else.

Inputs are in the units the engine keeps (seconds, bytes, joules, watts, ratios 0..1). None is a dash: unknown is not
zero. NaN and infinity are written as what they are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Concatenate, ParamSpec

UNKNOWN = "–"

_Options = ParamSpec("_Options")
_SI = ("", "k", "M", "G", "T", "P", "E", "Z")
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def _formatter(
    write: Callable[Concatenate[float, _Options], str],
) -> Callable[Concatenate[float | None, _Options], str]:
    """`write` sees finite numbers only; the rest is said in words here."""

    @functools.wraps(write)
    def formatted(value: float | None, /, *args: _Options.args, **options: _Options.kwargs) -> str:
        if value is None:
            return UNKNOWN
        if math.isfinite(value):
            return write(value, *args, **options)
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"

    return formatted


@_formatter
def count(value: float) -> str:
    """1,234 exactly below ten thousand; 25.4 k, 1.2 M above."""
    if abs(value) < 10_000:
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    return _scaled(value, _SI, 1_000)


@_formatter
def about(value: float) -> str:
    """Three digits, written out: 0.0123, 38.2, 1,230."""
    return f"{float(f'{value:.3g}'):,.12g}"


@_formatter
def nbytes(value: float) -> str:
    return f"{value:.0f} B" if abs(value) < 1_024 else _scaled(value, _BINARY, 1_024)


@_formatter
def duration(seconds: float) -> str:
    """From 12.5 µs over 3.20 s and 2:05 min to 1 h 04 min."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        scaled, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 or seconds == 0 else (seconds * 1e6, "µs")
        return f"{_three_digits(scaled)} {unit}"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60}:{whole % 60:02d} min"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86_400:.1f} days"


def date(unix_time: float) -> str:
    """21 November 2026, 20:06 UTC."""
    return datetime.fromtimestamp(unix_time, UTC).strftime("%-d %B %Y, %H:%M UTC")


@_formatter
def age(seconds: float) -> str:
    """How long ago, as one says it."""
    for limit, size, word in ((60, 1, "s"), (3_600, 60, "min"), (48 * 3_600, 3_600, "h")):
        if seconds < limit:
            return "just now" if seconds < 5 else f"{int(seconds // size)} {word} ago"
    return f"{int(seconds // 86_400)} days ago"


@_formatter
def flops(value: float) -> str:
    return _si(value, "FLOP")


@_formatter
def flops_per_s(value: float) -> str:
    return _si(value, "FLOP/s")


@_formatter
def bytes_per_s(value: float) -> str:
    """In powers of ten, as memory bandwidth is quoted."""
    return _si(value, "B/s")


@_formatter
def samples_per_s(value: float) -> str:
    return f"{count(value if value < 100 else round(value))} samples/s"


@_formatter
def percent(ratio: float, *, digits: int = 0) -> str:
    return f"{ratio * 100:.{digits}f} %"


@_formatter
def accuracy(ratio: float) -> str:
    """Two digits; never rounded up to 100 %: one mistake is a mistake."""
    if 0.99995 <= ratio < 1:
        ratio = 0.9999
    return percent(ratio, digits=2)


@_formatter
def loss(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.2e}"


@_formatter
def lr(value: float) -> str:
    """A learning rate as it was typed: 0.001, 3e-05."""
    return f"{value:g}"


@_formatter
def power(watts: float) -> str:
    return f"{watts:.1f} W" if 1 <= abs(watts) < 1_000 else _si(watts, "W")


@_formatter
def energy(joules: float) -> str:
    return _si(joules, "J")


@_formatter
def temperature(celsius: float) -> str:
    return f"{celsius:.0f} °C"


@_formatter
def reading(value: float, unit: str) -> str:
    """A measured quantity of the hardware, by the unit the engine keeps it in."""
    match unit:
        case "%":
            return f"{value:.0f} %"
        case "bytes":
            return nbytes(value)
        case "bytes/s":
            return f"{nbytes(value)}/s"
        case "W":
            return power(value)
        case "J":
            return energy(value)
        case "°C":
            return temperature(value)
        case "Hz":
            return _si(value, "Hz")
        case _:
            return about(value)


def _si(value: float, unit: str) -> str:
    if 0 < abs(value) < 1:
        return f"{_three_digits(value * 1e3)} m{unit}"
    return _scaled(value, [prefix + unit for prefix in _SI], 1_000)


def _scaled(value: float, units: tuple[str, ...] | list[str], step: int) -> str:
    """Three digits and the largest unit that keeps the number at 1 or above: 999,950 is 1.00 M, not 1000 k."""
    power = 0
    while power < len(units) - 1 and float(_three_digits(value)) >= step * (1 if step == 1_000 else 0.999):
        value, power = value / step, power + 1
    return f"{_three_digits(value)} {units[power]}".rstrip()


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 or value == 0 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
