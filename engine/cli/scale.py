"""`python -m engine scale`: one training on 1, 2, 4 ... ranks, and whether more of them are worth it here."""

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
    """The command and its arguments, beside those that name a configuration."""
    command = add(
        "scale", scale_command, "run a training on 1, 2, 4 ... ranks, and say whether more are worth it", config
    )
    command.add_argument(
        "--ranks", help="numbers of ranks, as in 1,2,4 (default: up to the cores or GPUs of this machine)"
    )
    command.add_argument(
        "--weak", action="store_true", help="weak scaling too: a batch for each rank, not one shared out"
    )
    command.add_argument(
        "--seeds", type=int, default=scaling.DEFAULT_SEEDS, help="repeats, one per seed (default %(default)s)"
    )
    command.add_argument("--steps", type=int, help="steps of each run (default: about 3 s on one rank, estimated)")
    command.add_argument(
        "--target", help="test_accuracy=0.95 or test_loss=0.3: time, energy and money until it is reached"
    )


def scale_command(a: argparse.Namespace) -> int:
    """Run a study and say what it came to; Ctrl-C cancels what is left of it."""
    store = common.store_of(a)
    client = Client(store)
    lanes, seeds, target = _asked(a)
    group = secrets.token_hex(8)
    with common.cancelled_by_ctrl_c(
        client,
        functools.partial(common.run_ids_of, store, group),
        kept="What is finished stays.",
        json_key="run_ids" if a.json else "",
    ):
        with common.undisturbed():
            run_ids = client.submit_seed_blocks(scaling.seed_blocks(lanes, seeds, group), group=group)
        common.follow_all(store, client, run_ids, quiet=a.json)
    study = scaling.find(store, group)
    assert study, "its runs were submitted a moment ago"
    found = scaling_results.outcome_of(study, target=target, prices=settings.load(store.root).energy)
    print(json_text(scaling_table.as_json(found)) if a.json else "\n".join(scaling_table.table(found)))
    return common.OK if all(run.status == "finished" for run in study.runs) else common.FAILED


def _asked(a: argparse.Namespace) -> tuple[list[Any], range, tuple[Any, float] | None]:
    """Lanes, seeds and target of the arguments, checked before anything is asked for."""
    if not 1 <= a.seeds <= scaling.MOST_SEEDS:
        raise ConfigError(
            f"seeds={a.seeds} is not allowed.", fix=f"seeds may be a whole number from 1 to {scaling.MOST_SEEDS}."
        )
    if not a.preset and not a.config:
        a.preset = _DEFAULT_PRESET
    config, machine = common.config_of(a), probe.probe()
    if config.is_parallel:
        raise ConfigError(
            "parallel.num_ranks and parallel.devices are what a study varies.", fix="Name them by --ranks."
        )
    ranks = scaling.parse_ranks(a.ranks) if a.ranks else scaling.ranks_here(config, machine)
    if len(ranks) < 2:
        raise ConfigError(
            "This machine has one device for a rank: there is nothing to share a batch with.",
            fix="--ranks 1,2 lets two ranks share it, to see what that costs.",
        )
    if a.weak and config.batch_size == FULL:
        raise ConfigError(
            "--weak does not go with batch_size=full, which cannot grow.", fix="Leave it out, or choose a batch."
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
