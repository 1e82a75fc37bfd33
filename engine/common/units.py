"""Formats quantities for pages, command line and reports. Scaling (ms, GiB, %) happens only here.

Inputs are in the engine's units: seconds, bytes, joules, watts, ratios 0..1. None is shown as a dash, because unknown
is not zero. NaN and infinity are shown as NaN and ∞.
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
    """Make `write`, which formats finite numbers, accept None, NaN and infinity too."""

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
    """Exact below ten thousand (1,234), three digits above (25.4 k, 1.20 M)."""
    if abs(value) < 10_000:
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    return _scaled(value, _SI, 1_000)


@_formatter
def exact(value: float) -> str:
    """A count with all of its digits: 12,345."""
    return f"{value:,.0f}"


@_formatter
def epochs(value: float) -> str:
    """Epochs in up to four significant digits: 0.25, 12.5."""
    return f"{value:.4g}"


@_formatter
def about(value: float) -> str:
    """Three significant digits without a unit prefix: 0.0123, 38.2, 1,230."""
    return f"{float(f'{value:.3g}'):,.12g}"


@_formatter
def nbytes(value: float) -> str:
    """Bytes in powers of 1,024: 512 B, 1.50 KiB, 3.00 GiB."""
    return f"{value:.0f} B" if abs(value) < 1_024 else _scaled(value, _BINARY, 1_024)


@_formatter
def duration(seconds: float) -> str:
    """Seconds as 12.5 µs, 3.20 s, 2 min 05 s, 1 h 04 min or 3.0 days."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        scaled, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 or seconds == 0 else (seconds * 1e6, "µs")
        return f"{_three_digits(scaled)} {unit}"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / 86_400:.1f} days"


def date(unix_time: float) -> str:
    """Unix time in seconds as 21 November 2026, 20:06 UTC."""
    return datetime.fromtimestamp(unix_time, UTC).strftime("%-d %B %Y, %H:%M UTC")


@_formatter
def age(seconds: float) -> str:
    """Seconds since a moment, as "3 min ago"."""
    for limit, size, word in ((60, 1, "s"), (3_600, 60, "min"), (48 * 3_600, 3_600, "h")):
        if seconds < limit:
            return "just now" if seconds < 5 else f"{int(seconds // size)} {word} ago"
    return f"{int(seconds // 86_400)} days ago"


@_formatter
def flops(value: float) -> str:
    """A count of FLOPs: 2.50 GFLOP."""
    return _si(value, "FLOP")


@_formatter
def flops_per_s(value: float) -> str:
    """A rate in FLOPs per second: 1.20 TFLOP/s."""
    return _si(value, "FLOP/s")


@_formatter
def bytes_per_s(value: float) -> str:
    """Bytes per second in powers of ten, as data sheets state memory bandwidth: 12.8 GB/s."""
    return _si(value, "B/s")


@_formatter
def samples_per_s(value: float) -> str:
    """Throughput: 950 samples/s, 123 k samples/s."""
    return f"{count(value if value < 100 else round(value))} samples/s"


@_formatter
def percent(ratio: float, *, digits: int = 0) -> str:
    """A ratio (0..1) with `digits` decimals: 50 %."""
    return f"{ratio * 100:.{digits}f} %"


@_formatter
def accuracy(ratio: float) -> str:
    """A ratio (0..1) with two decimals: 97.80 %. Never rounded up to 100 %, because one wrong answer must show."""
    if 0.99995 <= ratio < 1:
        ratio = 0.9999
    return percent(ratio, digits=2)


@_formatter
def loss(value: float) -> str:
    """Four decimals below 10, two below 10,000, else an exponent: 0.0679, 12.35, 1.00e-05."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
    return f"{value:.2e}"


@_formatter
def lr(value: float) -> str:
    """A learning rate in up to six significant digits: 0.001, 3e-05."""
    return f"{value:g}"


@_formatter
def power(watts: float) -> str:
    """Watts: 65.0 W, 1.20 kW."""
    return f"{watts:.1f} W" if 1 <= abs(watts) < 1_000 else _si(watts, "W")


@_formatter
def energy(joules: float) -> str:
    """Joules: 250 mJ, 1.23 kJ."""
    return _si(joules, "J")


@_formatter
def temperature(celsius: float) -> str:
    """Degrees Celsius: 61 °C."""
    return f"{celsius:.0f} °C"


@_formatter
def reading(value: float, unit: str) -> str:
    """A hardware reading in `unit`: %, bytes, bytes/s, W, J, °C or Hz. Another unit gets three digits and no suffix."""
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
    """Three digits and the largest unit that keeps the number at 1 or above. 999,950 becomes 1.00 M, not 1000 k."""
    power = 0
    while power < len(units) - 1 and float(_three_digits(value)) >= step * (1 if step == 1_000 else 0.999):
        value, power = value / step, power + 1
    return f"{_three_digits(value)} {units[power]}".rstrip()


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:.0f}" if size >= 99.95 or value == 0 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
