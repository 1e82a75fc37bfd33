"""Each quantity has one format."""

from __future__ import annotations

import math

import pytest

from engine.common import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.count(0), "0"),
        (units.count(1234), "1,234"),
        (units.count(25_408), "25.4 k"),
        (units.count(999_999), "1.00 M"),
        (units.count(20.5), "20.5"),
        (units.nbytes(512), "512 B"),
        (units.nbytes(1536), "1.50 KiB"),
        (units.nbytes(1024**2 - 1), "1.00 MiB"),
        (units.nbytes(3 * 1024**3), "3.00 GiB"),
        (units.duration(0), "0 ms"),
        (units.duration(12.5e-6), "12.5 µs"),
        (units.duration(0.0532), "53.2 ms"),
        (units.duration(3.2), "3.20 s"),
        (units.duration(59.99), "1 min 00 s"),
        (units.duration(125), "2 min 05 s"),
        (units.duration(3840), "1 h 04 min"),
        (units.age(1), "just now"),
        (units.age(200), "3 min ago"),
        (units.age(3 * 86_400), "3 days ago"),
        (units.flops(2.5e9), "2.50 GFLOP"),
        (units.flops_per_s(1.2e12), "1.20 TFLOP/s"),
        (units.samples_per_s(123_456), "123 k samples/s"),
        (units.samples_per_s(950.4), "950 samples/s"),
        (units.samples_per_s(0.4), "0.4 samples/s"),
        (units.percent(0.5), "50 %"),
        (units.accuracy(0.978), "97.80 %"),
        (units.accuracy(0.99999), "99.99 %"),
        (units.accuracy(1.0), "100.00 %"),
        (units.loss(0.06789), "0.0679"),
        (units.loss(1e-5), "1.00e-05"),
        (units.lr(3e-5), "3e-05"),
        (units.power(65.04), "65.0 W"),
        (units.energy(1234), "1.23 kJ"),
        (units.energy(0.25), "250 mJ"),
        (units.temperature(61.4), "61 °C"),
    ],
)
def test_a_quantity_is_shown_with_its_unit(text, expected):
    assert text == expected


FORMATTERS = [
    units.count,
    units.nbytes,
    units.duration,
    units.flops,
    units.flops_per_s,
    units.samples_per_s,
    units.percent,
    units.accuracy,
    units.loss,
    units.lr,
    units.power,
    units.energy,
    units.temperature,
]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_none_is_a_dash_and_nan_and_infinity_are_named(formatter):
    assert formatter(None) == units.UNKNOWN
    assert formatter(math.nan).startswith("NaN")
    assert formatter(math.inf).startswith("∞")
    assert formatter(-math.inf).startswith("-∞")
