"""`python -m engine scale`: train on 1, 2, 4 ... ranks, and report whether more ranks are worth it."""

from __future__ import annotations

import argparse
import functools
import secrets
import sys
from typing import Any

from engine.access import settings
from engine.cli import common
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.config.training import FULL
from engine.hardware import probe
from engine.planning import planner
from engine.runtime.client import Client
from engine.studies import race_results, scaling, scaling_results, scaling_table

_DEFAULT_PRESET = "lenet"


def register(add: common.Adder, config: argparse.ArgumentParser) -> None:
    """Add the command; `config` has the arguments that name a configuration."""
    command = add(
        "scale",
        scale_command,
        "train on 1, 2, 4 ... ranks, and report speed-up, efficiency and whether more ranks are worth it",
        config,
    )
    command.add_argument(
        "--ranks", help="numbers of ranks, e.g. 1,2,4 (default: up to the cores or GPUs of this machine)"
    )
    command.add_argument(
        "--weak", action="store_true", help="also measure weak scaling: the batch size grows with the ranks"
    )
    command.add_argument(
        "--seeds", type=int, default=scaling.DEFAULT_SEEDS, help="number of seeds (default %(default)s)"
    )
    command.add_argument("--steps", type=int, help="steps of each run (default: about 3 s on one rank, estimated)")
    command.add_argument(
        "--target", help="test_accuracy=0.95 or test_loss=0.3; adds time, energy and price to reach it"
    )


def scale_command(a: argparse.Namespace) -> int:
    """Run the study and print its results; Ctrl-C cancels the remaining runs."""
    store = common.store_of(a)
    client = Client(store)
    lanes, seeds, target = _study_of(a)
    group = secrets.token_hex(8)
    with common.cancelled_by_ctrl_c(
        client,
        functools.partial(common.run_ids_of, store, group),
        kept="Finished runs are kept.",
        json_key="run_ids" if a.json else "",
    ):
        with common.ctrl_c_delayed():
            run_ids = client.submit_seed_blocks(scaling.seed_blocks(lanes, seeds, group), group=group)
        common.follow_all(store, client, run_ids, quiet=a.json)
    study = scaling.find(store, group)
    assert study, "its runs were submitted a moment ago"
    found = scaling_results.outcome_of(study, target=target, prices=settings.load(store.root).energy)
    print(json_text(scaling_table.as_json(found)) if a.json else "\n".join(scaling_table.table(found)))
    return common.OK if all(run.status == "finished" for run in study.runs) else common.FAILED


def _study_of(a: argparse.Namespace) -> tuple[list[Any], range, tuple[Any, float] | None]:
    """Configurations, seeds and target of the arguments, checked before any run is submitted.

    Raises:
        ConfigError: An argument is not valid for this machine or study.
    """
    if not 1 <= a.seeds <= scaling.MOST_SEEDS:
        raise ConfigError(
            f"--seeds {a.seeds} is not allowed.", fix=f"Choose a whole number from 1 to {scaling.MOST_SEEDS}."
        )
    if not a.preset and not a.config:
        a.preset = _DEFAULT_PRESET
    config, machine = common.config_of(a), probe.probe()
    if config.is_parallel:
        raise ConfigError(
            "A scaling study sets parallel.num_ranks and parallel.devices itself.",
            fix="Leave them out; choose --ranks.",
        )
    ranks = scaling.parse_ranks(a.ranks) if a.ranks else scaling.ranks_here(config, machine)
    if len(ranks) < 2:
        raise ConfigError(
            "This machine has one device, so there is no second one to scale to.",
            fix="Give --ranks 1,2 to measure two ranks on one device.",
        )
    if a.weak and config.batch_size == FULL:
        raise ConfigError(
            "--weak cannot be used with batch_size=full, because a full batch cannot grow.",
            fix="Leave out --weak, or choose a batch size.",
        )
    steps = scaling.default_steps(config, planner.check(config)) if a.steps is None else a.steps
    base = scaling.as_base(config, steps)
    lanes = scaling.lanes_of(base, ranks, weak=a.weak, most=scaling.room(config, machine))
    plans = [planner.check(lane.config) for lane in lanes]
    target = race_results.parse_target(a.target) if a.target else ("test_accuracy", None)
    if not a.json:
        seconds = scaling.estimate_seconds(base, plans[0], len(lanes) * a.seeds, base.budget.steps or 1)
        print(
            f"{len(lanes) * a.seeds} runs, one after another, about {units.duration(seconds)} (estimated).",
            file=sys.stderr,
        )
    known = None if target[1] is None else (target[0], target[1])
    return lanes, range(config.seed, config.seed + a.seeds), known
