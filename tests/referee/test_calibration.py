"""The figures of a calibration: its statistics, the peaks taken from them, and the ridge of the roofline.

The times of single calls are not exported, so the percentiles of one size are checked for their order only.
"""

from __future__ import annotations

import math

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]


@pytest.fixture
def made(exported):
    return exported.said["calibration"]["calibration"]


def measured(made, name, dtype="fp32", threads=1):
    return [m for m in made["measurements"] if (m["name"], m["dtype"], m["threads"]) == (name, dtype, threads)]


def test_the_report_and_the_command_have_the_same_measurements(exported, made):
    said = [event for event in exported.run("calibration")["said"] if event["kind"] == "calibration"]
    assert said[-1]["measurements"] == made["measurements"]


def test_best_5th_percentile_and_median_are_in_order(made):
    for m in made["measurements"]:
        ordered = [m["best"], m["p05"], m["median"]]
        assert ordered == sorted(ordered, reverse=m["unit"] != "s"), m
        assert m["spread"] is None or m["spread"] >= 0
        assert m["calls"] >= (made["rounds"] if m["unit"] != "w" else 1)


def test_every_dtype_is_measured_or_has_a_reason(made):
    for dtype in ("fp32", "tf32", "bf16", "fp16", "int8"):
        assert measured(made, "gemm", dtype) or made["missing"].get(f"gemm {dtype}"), dtype


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_size_that_a_good_speed_allows_is_measured_or_the_dtype_has_a_reason(made, dtype):
    """A size must not vanish without a word because one probe was slow: a product of 30 ms is half of the limit."""
    for threads in made["threads"]:
        found = measured(made, "gemm", dtype, threads)
        named = any(name.startswith(f"gemm {dtype}") for name in made["missing"])
        best = max((m["best"] for m in found), default=0.0)
        allowed = {n for n in (128, 256, 512, 1024, 2048) if 2 * n**3 < 0.03 * best}
        assert named or {m["shape"][0] for m in found} >= allowed, f"{dtype}, {threads} threads"


def test_the_ridge_is_where_the_bandwidth_meets_the_peak(exported, made):
    peak = max(m["p05"] for m in measured(made, "gemm"))
    moved = [m for m in made["measurements"] if m["name"] in {"copy", "triad"} and m["threads"] == 1]
    largest = max(m["shape"][0] for m in moved)
    memory = max(m["p05"] for m in moved if m["shape"][0] == largest)
    cache = max(m["p05"] for m in moved)
    fits = max(
        (m["shape"][0] for m in moved if m["p05"] >= math.sqrt(cache * memory) and m["shape"][0] < largest), default=0
    )
    for name in ("training", "lenet", "text"):
        point = exported.said[name]["cost"]["roofline"]
        is_cached = point["working_set_bytes"] <= fits
        assert point["served_by"] == ("cache" if is_cached else "memory")
        assert point["bandwidth_bytes_per_s"] == (cache if is_cached else memory)
        assert point["peak_flops_per_s"] == peak
        ridge = peak / point["bandwidth_bytes_per_s"]
        is_left = point["intensity"] < ridge
        assert (point["attainable_flops_per_s"] < peak) == is_left


def test_no_run_is_faster_than_the_peak(exported):
    for name in ("training", "lenet", "text"):
        assert 0 < exported.said[name]["cost"]["measured_peak"]["value"] < 1.05
