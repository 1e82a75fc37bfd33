"""Which runs share a process, and which devices they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from engine.store.run import Run


def slots_needed(runs: Sequence[Run]) -> Counter[str]:
    """Device -> slots that the runs of one process need: a GPU is one slot, the CPU has one per thread of each rank."""
    configs = [run.config for run in runs]
    if configs[0].device == "cpu":
        return Counter({"cpu": max(config.threads * config.num_processes for config in configs)})
    return Counter(dict.fromkeys((device for config in configs for device in config.devices), 1))


def by_seed_block(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Seed block -> runs that start together, in order. A run without a seed block is alone under its run id."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(run.heat.id if run.heat else run.run_id, []).append(run)
    return together
