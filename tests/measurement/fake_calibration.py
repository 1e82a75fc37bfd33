"""Calibrations with round numbers, for tests."""

from __future__ import annotations

import time

from engine.config.presets import preset_config
from engine.events.lifecycle import Cancelled, Finished, Started
from engine.events.machine import Calibration, Measurement
from engine.store.event_log import EventLog

CONFIG = preset_config("calibrate")


def gemm(dtype="fp32", rate=90e9, threads=1, size=512, slowdown=1.0):
    return Measurement(
        name="gemm", unit="flops_per_s", dtype=dtype, shape=(size,) * 3, threads=threads, p05=rate, best=rate, median=rate,
        spread=0.02, calls=100, slowdown=None if threads == 1 else slowdown,
    )  # fmt: skip


def copied(size, rate, threads=1, name="copy"):
    return Measurement(
        name=name, unit="bytes_per_s", dtype="fp32", shape=(size,), threads=threads, p05=rate, best=rate, median=rate,
        spread=0.02, calls=100, slowdown=None if threads == 1 else 1.0,
    )  # fmt: skip


def tiny(name="op", seconds=3e-6):
    return Measurement(name=name, unit="s", p05=seconds, best=seconds, median=seconds, calls=100)


def fake(*more, device="cpu", device_name="AMD EPYC 9575F", threads=(1, 2), **fields):
    """A calibration with round numbers: ridge at 1.5 FLOPs per byte in cache and 5 in memory."""
    measured = (
        gemm(),
        gemm(threads=2, rate=170e9),
        copied(2**20, 60e9),
        copied(2**24, 55e9),
        copied(2**27, 18e9),
        tiny(),
    )
    return Calibration(
        at=fields.pop("at", time.time()), device=device, device_name=device_name, threads=threads,
        versions={"torch": "2.13.0", "python": "3.11.9"}, measurements=(*measured, *more), rounds=3, seconds=20.0,
        wall_per_cpu=fields.pop("wall_per_cpu", 1.01), **fields,
    )  # fmt: skip


def kept(store, made, *, status="finished", config=CONFIG):
    """A calibrate run in the store as a worker leaves it."""
    run_id = store.create(config)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(
        Started(
            at=time.time(),
            parameters=0,
            train_flops_per_example=0,
            train_examples=1,
            test_examples=0,
            total_steps=None,
            setup_s=0.1,
            environment={"device": made.device_name},
        )
    )
    log.append(made)
    log.close(Finished(at=time.time()) if status == "finished" else Cancelled(at=time.time()))
    return run_id
