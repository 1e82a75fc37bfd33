"""`python -m engine infer`: measure inference, and find the combination to deploy under a latency limit."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from engine.cli import cards, common, results
from engine.common import units
from engine.common.errors import ConfigError, EngineError
from engine.common.jsontext import json_text
from engine.config.base import PrecisionName
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.tasks import RUNTIMES, RuntimeName
from engine.events.base import TERMINAL
from engine.hardware import probe
from engine.measurement import calibration
from engine.planning import planner, request_checks
from engine.runtime.client import Client
from engine.store.store import Store
from engine.studies.inference import as_json, matrix_of
from engine.studies.inference_time import Prediction, known_latencies, predicted_seconds

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


def register(add: common.Adder, config: argparse.ArgumentParser) -> None:
    """Add the command; `config` has the arguments that name a configuration."""
    command = add(
        "infer",
        infer_command,
        "measure latency and throughput of a trained model, and which batch size to deploy",
        config,
    )
    command.add_argument(
        "--run", default="", metavar="RUN", help="training run that has the weights: id, beginning of one, or last"
    )
    command.add_argument(
        "--weights", default="", metavar="FILE", help="your own .safetensors file for the model of the configuration"
    )
    command.add_argument("--matrix", action="store_true", help="measure every combination of the four lists below")
    command.add_argument(
        "--batch-sizes", default="", metavar="1,2,4", help=f"default {BATCH_SIZES[0]} to {BATCH_SIZES[-1]}"
    )
    command.add_argument("--threads", default="", metavar="1,2", help="default 1 to the usable cores, up to 4")
    command.add_argument("--precisions", default="", metavar="fp32,bf16", help="default fp32")
    command.add_argument(
        "--runtimes",
        default="",
        metavar="eager,int8",
        help=f"default inference_mode; all, or some of {', '.join(RUNTIMES)}",
    )
    command.add_argument("--limit-ms", type=float, help="latency limit; prints which combination to deploy")
    command.add_argument(
        "--quantile",
        choices=("p50", "p90", "p99", "max"),
        default="p99",
        help="the percentile that must meet --limit-ms (default %(default)s)",
    )
    command.add_argument("--name", default="", help="name of the run in lists")


def infer_command(a: argparse.Namespace) -> int:
    """Run the measurement and print its results."""
    store = common.store_of(a)
    client = Client(store)
    config = config_of(a, store)
    limit_s = _limit_s(a.limit_ms)
    if config.infer.run:
        request_checks.check_run(config, store.run(config.infer.run, keep_points=1))
    plan = planner.check(config)
    if not a.json:
        predicted = predicted_of(store, config, plan)
        print(f"Takes about {units.duration(predicted.total_s)} ({predicted.how}).", file=sys.stderr)
        common.warn(plan)
    run = common.run_to_its_end(client, config, name=a.name, kept="Measured results are kept.", as_json=a.json)
    if a.json:
        common.print_why(run)
        measured = as_json(matrix_of(run), limit_s, quantile=a.quantile)
        print(json_text(results.of_run(run) | {"inference": measured}))
    else:
        print(cards.inference_card(run, limit_s, quantile=a.quantile))
    return common.OK if run.status == "finished" else common.FAILED


def config_of(a: argparse.Namespace, store: Store) -> RunConfig:
    """The configuration of the inference run.

    Raises:
        ConfigError: The arguments contradict each other, or a value is not valid.
    """
    if a.run and (a.preset or a.config or a.weights):
        raise ConfigError(
            "--run takes model and data from the run, so it cannot be used with --preset, --config or --weights.",
            fix="Leave them out; --set changes what is measured.",
        )
    if a.run:
        run_id = last_with_weights(store) if a.run == "last" else store.find(a.run)
        config = with_overrides(infer_config(store.run(run_id, keep_points=1).config, run_id), a.set)
    else:
        base = common.config_of(a)
        config = base if base.task == "infer" else infer_config(base, **_request_fields_set(a.set, base))
        if a.weights:
            path = Path(a.weights).expanduser().absolute()  # a worker has another working directory
            config = with_overrides(config, [f"infer.weights={path}"])
    lists = (a.batch_sizes, a.threads, a.precisions, a.runtimes)
    if not a.matrix and not any(lists):
        return config
    cores = probe.probe().cpu.usable_cores if config.device == "cpu" else 1
    sizes, threads, precisions, runtimes = lists
    runtimes = ",".join(RUNTIMES) if runtimes == "all" else runtimes
    return infer_matrix(
        config,
        _numbers("--batch-sizes", sizes) or (BATCH_SIZES if a.matrix else (_own_batch(config),)),
        _numbers("--threads", threads) or (tuple(range(1, min(cores, 4) + 1)) if a.matrix else (config.threads,)),
        cast("list[PrecisionName]", _words(precisions)) or (config.precision,),
        cast("list[RuntimeName]", _words(runtimes)) or (config.infer.runtime,),
    )


def _request_fields_set(assignments: Sequence[str], base: RunConfig) -> dict[str, Any]:
    """Fields of the request that `--set` names. The batch size of a training configuration is not inherited."""
    named = {text.partition("=")[0].strip() for text in assignments}
    own = {name: getattr(base, name) for name in ("batch_size", "threads", "precision") if name in named}
    return own | {key[6:]: getattr(base.infer, key[6:]) for key in named if key.startswith("infer.")}


def _own_batch(config: RunConfig) -> int:
    return config.cells[0].batch_size


def _numbers(option: str, text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers.", fix="Write it as 1,2,4.")
    return [int(word) for word in words]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,]+", text)


def _limit_s(limit_ms: float | None) -> float | None:
    if limit_ms is not None and not 0 < limit_ms < 1e9:
        raise ConfigError(f"--limit-ms {limit_ms:g} is not allowed.", fix="Choose a number of milliseconds above 0.")
    return None if limit_ms is None else limit_ms / 1e3


def last_with_weights(store: Store) -> str:
    """The id of the newest training run that has weights.

    Raises:
        ConfigError: No such run is in the store.
    """
    for row in store.rows(limit=200):
        if row.config.task_facts.trains_one_model and row.status in TERMINAL:
            try:
                if request_checks.weights_of(store.run(row.run_id, keep_points=1)):
                    return row.run_id
            except EngineError:
                continue
    raise ConfigError(
        "The store has no finished training run with weights.", fix="Train one: python -m engine run --preset lenet"
    )


def predicted_of(store: Store, config: RunConfig, plan: planner.Plan) -> Prediction:
    """The predicted time of an inference run, from calibrations and earlier results in the store."""
    device = str(probe.environment(probe.probe(), config.device).get("device") or "")
    found = calibration.latest(store, config.device, device)
    return predicted_seconds(
        config, plan, calibrated=found.calibration if found else None, known=known_latencies(store, config)
    )


def plan_lines(store: Store, config: RunConfig, plan: planner.Plan) -> list[str]:
    """The lines of `plan` that only inference has."""
    predicted = predicted_of(store, config, plan)
    return [
        f"  combinations      {len(config.cells)}",
        f"  takes about       {units.duration(predicted.total_s)} ({predicted.how})",
    ]
