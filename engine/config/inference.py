"""Makes the configuration of an inference run from that of a training run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from engine.config.base import PrecisionName
from engine.config.parsing import parse_config
from engine.config.run import RunConfig
from engine.config.tasks import Infer, RuntimeName


def infer_config(base: RunConfig, run_id: str = "", **choices: Any) -> RunConfig:
    """The configuration of a run that measures inference.

    The weights are those of the finished run `run_id`, whose configuration is `base`. Without an id they are untrained
    weights of the model of `base`. `choices` are fields of `Infer`, and batch_size, threads and precision. Raises
    ConfigError if a choice is not allowed.
    """
    own = {"batch_size": 1, "threads": 1, "precision": "fp32"}
    own |= {name: choices.pop(name) for name in list(choices) if name in own}
    kept = base.model_dump(include={"model", "data", "source", "device", "seed"})
    infer = Infer().model_dump() | choices | {"run": run_id}
    return parse_config({"task": "infer", **kept, "budget": {"steps": 1}, **own, "infer": infer})


def infer_matrix(
    config: RunConfig,
    batch_sizes: Sequence[int],
    threads: Sequence[int] = (1,),
    precisions: Sequence[PrecisionName] = ("fp32",),
    runtimes: Sequence[RuntimeName] = ("inference_mode",),
) -> RunConfig:
    """`config` with `infer.cells` set to every combination of the given values. Raises ConfigError."""
    cells = [
        {"batch_size": b, "threads": n, "precision": p, "runtime": r}
        for r, p, n, b in itertools.product(
            *(dict.fromkeys(axis) for axis in (runtimes, precisions, threads, batch_sizes))
        )
    ]
    infer = config.infer.model_dump() | {"cells": cells}
    most = max([config.threads, *threads])
    return parse_config(config.model_dump() | {"threads": most, "infer": infer})
