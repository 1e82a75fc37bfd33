"""Fake runs with plausible numbers, written as a worker writes them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np

from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.schedules import lr_factor
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Failed, Finished, Started, Terminal
from engine.events.machine import HardwareSample
from engine.events.target import columns_of, target_reached
from engine.events.training import Compiled, Evaluation, Memory, Ranks, Steps
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store

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
    last: Terminal | None = None,
    gpu: bool = False,
    group: str | None = None,
    said: Sequence[AnyEvent] = (),
) -> Run:
    """A run in the store that is finished, or failed at step `diverges_at` with a NaN as its last loss.

    The configuration has the same effects as in a worker: schedules change the learning rate, clipping records every
    gradient norm, and a target ends the run. `last` replaces the final event; `said` are additional events.
    """
    config = config or RunConfig(seed=seed)
    run_id = store.create(config, name=name, group=group)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(_started(config, num_steps, gpu))
    if config.execution in {"compiled", "cuda-graph"}:
        log.append(Compiled(seconds=12.4))
    log.append(MEMORY)
    for event in said:
        log.append(event)
    rng = np.random.default_rng(seed)
    batch_size, total_steps, num_steps = 64, num_steps, diverges_at or num_steps
    evaluations: list[Evaluation] = []
    for first in range(1, num_steps + 1, PER_READ_BACK):
        step = np.arange(first, min(first + PER_READ_BACK, num_steps + 1))
        loss = 0.05 + 2.25 * np.exp(-step / 90) + rng.gamma(2.0, 0.02, len(step))
        if diverges_at:
            loss = np.where(step == diverges_at, np.nan, loss * np.exp(step / 60))
        begin, end = (first - 1) * step_s, step[-1] * step_s
        normed = step if config.max_grad_norm else step[-1:]
        log.append(
            Steps(
                first=first,
                loss=loss,
                samples=np.full(len(step), batch_size),
                lr=_lr(config, step, total_steps),
                train_s=(begin, end),
                elapsed_s=(begin * 1.1 + 0.1, end * 1.1 + 0.1),
                norm_steps=normed,
                grad_norm=2 * loss[normed - first] * rng.gamma(4.0, 0.25, len(normed)),
            )
        )
        log.append(_hardware(end * 1.1 + 0.1, rng, gpu))
        if (first // PER_READ_BACK) % 6 == 5:
            evaluation = _evaluation(int(step[-1]), end, rng)
            log.append(evaluation)
            evaluations.append(evaluation)
            if reached := target_reached(config.target, columns_of(evaluations)):
                log.append(reached)
                break
    log.close(last or _final_event(diverges_at, gpu))
    return store.run(run_id)


MEMORY = Memory(
    weight_bytes=407_080,
    gradient_bytes=407_080,
    optimizer_bytes=814_160,
    data_bytes=15_680_000,
    step_peak_bytes=1_020_000,
    epoch_bytes=12_608_000,
    held_bytes=480_000,
    evaluation_peak_bytes=1_024_000,
    reserved_bytes=None,
    method="weights and optimizer state counted",
)


def _lr(config: RunConfig, step: np.ndarray, total_steps: int) -> float | np.ndarray:
    rates = np.array([config.optimizer.lr * lr_factor(config, s - 1, (s - 1) / total_steps) for s in step.tolist()])
    return float(rates[0]) if rates.min() == rates.max() else rates


def _started(config: RunConfig, num_steps: int, gpu: bool) -> Started:
    return Started(
        at=time.time(), parameters=101_770, train_flops_per_example=408_576, train_examples=4_000, test_examples=1_000,
        total_steps=num_steps, setup_s=0.31, data_sha256="5a" * 32 if config.source.path else None,
        environment={
            "device": "NVIDIA H200" if gpu else "AMD EPYC 9575F", "cpu": "AMD EPYC 9575F", "cpu_isa": "avx2 avx512f",
            "physical_cores": 64, "usable_cores": 4, "threads": 1, "memory_bytes": 137_438_953_472, "os": "Linux 6.1",
            "python": "3.11.9", "torch": "2.13.0", "cuda": "13.0" if gpu else None,
            "user": "alice", "home": "/home/alice",  # a report must leave out unknown keys
        },
    )  # fmt: skip


def _evaluation(step: int, train_s: float, rng: np.random.Generator) -> Evaluation:
    rest = math.exp(-step / 140)
    return Evaluation(
        step=step,
        train_s=train_s,
        elapsed_s=train_s * 1.1 + 0.1,
        test_loss=0.21 + 2.0 * rest,
        test_accuracy=round(0.948 - 0.85 * rest + float(rng.normal(0, 0.002)), 3),
        seconds=0.004,
    )


def _hardware(elapsed_s: float, rng: np.random.Generator, gpu: bool) -> HardwareSample:
    readings: dict[str, float | None] = {
        "process_cpu_percent": 97 + float(rng.normal(0, 1.5)),
        "system_cpu_percent": 31 + float(rng.normal(0, 4)),
        "process_memory_bytes": 4.1e8 + 1e6 * elapsed_s,
        "system_memory_used_bytes": 5.2e9,
    }
    if not gpu:
        return HardwareSample(
            elapsed_s=elapsed_s, readings=readings, missing={"gpu_power_w": "no NVIDIA GPU on this machine"}
        )
    readings |= {
        "gpu_utilization_percent": 62 + float(rng.normal(0, 5)),
        "gpu_memory_used_bytes": 1.2e9,
        "gpu_power_w": 180 + float(rng.normal(0, 9)),
        "gpu_temperature_c": 41 + elapsed_s / 4,
        "gpu_sm_clock_hz": 1.98e9,
        "gpu_throttle_reasons": 0.0,
        "gpu_other_processes": 0.0,
        "cpu_power_w": 95 + float(rng.normal(0, 2)),
    }
    return HardwareSample(elapsed_s=elapsed_s, readings=readings)


def _final_event(diverges_at: int | None, gpu: bool) -> Terminal:
    if diverges_at:
        return Failed(
            at=time.time(),
            cause="Diverged",
            message=f"The loss became nan at step {diverges_at} with lr=3.",
            fix="Lower the learning rate.",
            step=diverges_at,
            detail="Traceback: /home/alice/train.py",
        )
    return Finished(
        at=time.time(),
        peak_memory_bytes=431_000_000,
        peak_memory_method="highest resident memory of the process",
        energy_j=1_830.0 if gpu else None,
    )


# --- runs on several ranks --------------------------------------------------------------------------------------------

LaneKey = tuple[str, int]  # strong or weak, and the number of ranks


def scaled_study(
    store: Store,
    *,
    group: str,
    base: RunConfig,
    step_s: Mapping[LaneKey, float],
    seeds: int = 1,
    drift: float = 1.0,
    noise: float = 0.0,
    gap: float = 2e-7,
    shared: Sequence[int] = (),
    waited_s: Mapping[LaneKey, tuple[float | None, ...]] | None = None,
    communication_s: Mapping[LaneKey, tuple[float | None, ...]] | None = None,
    last: Mapping[tuple[str, int, int], Terminal] | None = None,
    watts: float | None = None,
) -> None:
    """A scaling study; each repeat is `drift` times slower than the last."""
    rng = np.random.default_rng(0)
    for seed in range(seeds):
        for (mode, ranks), seconds in step_s.items():
            batch = 64 * (ranks if mode == "weak" else 1)
            sets = [f"parallel.num_ranks={ranks}", f"batch_size={batch}", f"seed={seed}"]
            sets += [f"parallel.devices={','.join(['cpu'] * ranks)}"] if ranks in shared else []
            label = f"{ranks} rank{'' if ranks == 1 else 's'}{f', batch {batch}' if mode == 'weak' else ''}"
            make_scaled(
                store,
                with_overrides(base, sets),
                group=group,
                label=label,
                step_s=seconds * drift**seed * float(rng.lognormal(0, noise) if noise else rng.lognormal(0, 1e-4)),
                waited_s=(waited_s or {}).get((mode, ranks)),
                communication_s=(communication_s or {}).get((mode, ranks)),
                gap=gap if ranks > 1 else 0.0,
                last=(last or {}).get((mode, ranks, seed)),
                watts=watts,
            )


def make_scaled(
    store: Store,
    config: RunConfig,
    *,
    group: str,
    label: str,
    step_s: float,
    waited_s: tuple[float | None, ...] | None = None,
    communication_s: tuple[float | None, ...] | None = None,
    gap: float = 0.0,
    last: Terminal | None = None,
    watts: float | None = None,
) -> Run:
    """A run of 100 steps on one or several ranks.

    Runs of one seed have the same losses plus `gap`, which grows with the steps if it is larger than rounding errors.
    """
    ranks, batch = config.parallel.num_ranks, config.batch_size
    assert isinstance(batch, int)
    run_id = store.create(config, name=label, group=group)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(_started(config, 100, gpu=False))
    rng = np.random.default_rng(config.seed)
    waits = waited_s or (0.0,) * ranks
    for first in range(1, 101, PER_READ_BACK):
        step = np.arange(first, first + PER_READ_BACK)
        loss = 0.05 + 2.25 * np.exp(-step / 90) + rng.gamma(2.0, 0.02, len(step)) + gap * (step if gap > 1e-6 else 1)
        begin, end = (first - 1) * step_s, step[-1] * step_s
        log.append(
            Steps(
                first=first,
                loss=loss,
                samples=np.full(len(step), batch),
                lr=0.1,
                train_s=(begin, end),
                elapsed_s=(begin, end),
            )
        )
        energy = {} if watts is None else {"energy_j": watts * end}
        log.append(HardwareSample(elapsed_s=end, readings={"process_cpu_percent": 97.0} | energy))
        rest = math.exp(-step[-1] / 30)
        log.append(
            Evaluation(
                step=int(step[-1]),
                train_s=end,
                elapsed_s=end,
                test_loss=0.2 + rest,
                test_accuracy=0.95 - 0.85 * rest,
                seconds=0.01,
            )
        )
        if ranks > 1:
            log.append(
                Ranks(
                    elapsed_s=end,
                    steps=(first, int(step[-1])),
                    device=config.devices,
                    step_s=(step_s,) * ranks,
                    communication_s=communication_s or waits,
                    waited_s=waits,
                    cpu_per_wall=(0.95,) * ranks,
                    memory_bytes=(200_000_000,) * ranks,
                    method="timed",
                )
            )
    joules = None if watts is None else watts * 100 * step_s
    log.close(last or Finished(at=time.time(), peak_memory_bytes=431_000_000, energy_j=joules))
    return store.run(run_id)
