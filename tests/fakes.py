"""Stand-ins with the real thing's face: runs with plausible numbers, written as a worker writes them."""

from __future__ import annotations

import math
import time

import numpy as np

from engine import records
from engine.config import RunConfig
from engine.store import EventLog, Run, Store

PER_READ_BACK = 20  # steps read from the device at once


def make_run(
    store: Store,
    config: RunConfig | None = None,
    *,
    name: str = "",
    num_steps: int = 1_260,
    step_s: float = 0.008,
    seed: int = 0,
    diverges_at: int | None = None,
    last: records.Terminal | None = None,
    gpu: bool = False,
    group: str | None = None,
) -> Run:
    """A run in the store as a worker would have left it: finished, or failed at `diverges_at` with a NaN as last loss.

    `last` is another last word, for example `records.Cancelled(at=0)`.
    """
    config = config or RunConfig(seed=seed)
    run_id = store.create(config, name=name, group=group)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(_started(num_steps, gpu))
    rng = np.random.default_rng(seed)
    batch_size, num_steps = 64, diverges_at or num_steps
    for first in range(1, num_steps + 1, PER_READ_BACK):
        step = np.arange(first, min(first + PER_READ_BACK, num_steps + 1))
        loss = 0.05 + 2.25 * np.exp(-step / 90) + rng.gamma(2.0, 0.02, len(step))
        if diverges_at:
            loss = np.where(step == diverges_at, np.nan, loss * np.exp(step / 60))
        begin, end = (first - 1) * step_s, step[-1] * step_s
        log.append(
            records.Steps(
                first=first, loss=loss, samples=np.full(len(step), batch_size), lr=config.optimizer.lr,
                train_s=(begin, end), elapsed_s=(begin * 1.1 + 0.1, end * 1.1 + 0.1),
            )
        )  # fmt: skip
        log.append(_hardware(end * 1.1 + 0.1, rng, gpu))
        if (first // PER_READ_BACK) % 6 == 5:
            log.append(_evaluation(int(step[-1]), end, rng))
    log.close(last or _last_word(diverges_at, gpu))
    return store.run(run_id)


def _started(num_steps: int, gpu: bool) -> records.Started:
    return records.Started(
        at=time.time(), parameters=101_770, train_flops_per_example=408_576, train_examples=4_000, test_examples=1_000,
        total_steps=num_steps, setup_s=0.31,
        environment={
            "device": "NVIDIA H200" if gpu else "AMD EPYC 9575F", "cpu": "AMD EPYC 9575F", "cpu_isa": "avx2 avx512f",
            "physical_cores": 64, "usable_cores": 4, "threads": 1, "memory_bytes": 137_438_953_472, "os": "Linux 6.1",
            "python": "3.11.9", "torch": "2.13.0", "cuda": "13.0" if gpu else None,
            "user": "alice", "home": "/home/alice",  # a report must leave out what it does not know
        },
    )  # fmt: skip


def _evaluation(step: int, train_s: float, rng: np.random.Generator) -> records.Evaluation:
    rest = math.exp(-step / 140)
    return records.Evaluation(
        step=step, train_s=train_s, elapsed_s=train_s * 1.1 + 0.1, test_loss=0.21 + 2.0 * rest,
        test_accuracy=round(0.948 - 0.85 * rest + float(rng.normal(0, 0.002)), 3), seconds=0.004,
    )  # fmt: skip


def _hardware(elapsed_s: float, rng: np.random.Generator, gpu: bool) -> records.HardwareSample:
    readings: dict[str, float | None] = {
        "process_cpu_percent": 97 + float(rng.normal(0, 1.5)),
        "system_cpu_percent": 31 + float(rng.normal(0, 4)),
        "process_memory_bytes": 4.1e8 + 1e6 * elapsed_s,
        "system_memory_used_bytes": 5.2e9,
    }
    if not gpu:
        return records.HardwareSample(
            elapsed_s=elapsed_s, readings=readings, missing={"gpu_power_w": "no NVIDIA GPU on this machine"}
        )
    readings |= {
        "gpu_utilization_percent": 62 + float(rng.normal(0, 5)),
        "gpu_memory_used_bytes": 1.2e9,
        "gpu_power_w": 180 + float(rng.normal(0, 9)),
        "gpu_temperature_c": 41 + elapsed_s / 4,
    }
    return records.HardwareSample(elapsed_s=elapsed_s, readings=readings)


def _last_word(diverges_at: int | None, gpu: bool) -> records.Terminal:
    if diverges_at:
        return records.Failed(
            at=time.time(), cause="Diverged", message=f"The loss became nan at step {diverges_at} with lr=3.",
            fix="Lower the learning rate.", step=diverges_at, detail="Traceback: /home/alice/train.py",
        )  # fmt: skip
    return records.Finished(
        at=time.time(), peak_memory_bytes=431_000_000, peak_memory_method="highest resident memory of the process",
        energy_j=1_830.0 if gpu else None,
    )  # fmt: skip
