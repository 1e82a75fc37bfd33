"""`python -m engine race` and `compare`: compare configurations, with a statistical verdict."""

from __future__ import annotations

import argparse
import functools
import secrets

from engine.cli import common
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.config.parsing import with_overrides
from engine.config.presets import DEFAULT_PRESET, preset_config
from engine.runtime.client import Client
from engine.studies import race_results, race_verdicts, races

_SEEDS_PER_ROUND = 2


def register(add: common.Adder) -> None:
    """Add the commands."""
    race = add("race", race_command, "compare 2 to 6 configurations under equal conditions, with a statistical verdict")
    race.add_argument("--preset", help=f"one of {', '.join(races.RACES)} (default {races.DEFAULT_RACE})")
    race.add_argument(
        "--lane",
        action="append",
        default=[],
        metavar="'LABEL: KEY=VALUE ...'",
        help="a configuration; give this option 2 to 6 times",
    )
    race.add_argument("--base", default=DEFAULT_PRESET, help="preset that --lane changes (default %(default)s)")
    race.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set a field of every configuration"
    )
    race.add_argument(
        "--seeds",
        type=int,
        default=1,
        help=f"number of seeds (default %(default)s); a verdict needs {race_results.SEEDS_NEEDED_IN_WORDS}",
    )
    race.add_argument(
        "--until-decided",
        type=int,
        metavar="SEEDS",
        help="add seeds until the result is significant, up to this number",
    )
    race.add_argument(
        "--budget",
        help="the same budget for all configurations: seconds=6, samples=50000, steps=1000, epochs=2 or flops=1e11",
    )
    race.add_argument("--target", help="the target to reach: test_accuracy=0.95, test_loss=0.3 or none")
    race.add_argument("--baseline", default="", metavar="LABEL", help="the baseline (default: the first configuration)")
    comparing = add(
        "compare", compare_command, "compare runs of the store; runs that differ only in the seed are one configuration"
    )
    comparing.add_argument("runs", nargs="+", metavar="RUN", help="two or more ids, beginnings of ids, or last")
    comparing.add_argument("--target", help="the target to reach: test_accuracy=0.95, test_loss=0.3 or none")
    comparing.add_argument(
        "--baseline", default="", metavar="LABEL", help="the baseline (default: the first configuration)"
    )


def race_command(a: argparse.Namespace) -> int:
    """Run the race, one seed block per seed, and print the results with the verdict.

    Raises:
        ConfigError: An argument is not valid.
    """
    store = common.store_of(a)
    client = Client(store)
    lanes, metric, target = _lanes(a)
    if not 1 <= a.seeds <= races.MOST_SEEDS:
        raise ConfigError(
            f"--seeds {a.seeds} is not allowed.", fix=f"Choose a whole number from 1 to {races.MOST_SEEDS}."
        )
    if a.until_decided is not None and not a.seeds <= a.until_decided <= races.MOST_SEEDS:
        raise ConfigError(
            f"--until-decided {a.until_decided} is not allowed.",
            fix=f"It is the maximum number of seeds. Choose {a.seeds} (--seeds) to {races.MOST_SEEDS}.",
        )
    race_results.check_target(metric, target)
    group, seeds, number = secrets.token_hex(8), list(range(a.seeds)), 1
    submitted = functools.partial(common.run_ids_of, store, group)
    with common.cancelled_by_ctrl_c(
        client, submitted, kept="Finished runs are kept.", json_key="run_ids" if a.json else ""
    ):
        while True:
            with common.ctrl_c_delayed():
                client.submit_seed_blocks(races.seed_blocks(lanes, seeds, group), group=group, round=number)
            common.follow_all(store, client, submitted(), quiet=a.json)
            race = races.find(store, group)
            assert race, "its runs were submitted a moment ago"
            result = race_results.outcome(race, metric=metric, target=target, baseline=a.baseline)
            stopped = any(run.status in {"cancelled", "interrupted"} for run in race.runs)
            if a.until_decided is None or result.is_decided or stopped or len(race.seeds) >= a.until_decided:
                break
            done = len(race.seeds)
            seeds, number = list(range(done, min(done + _SEEDS_PER_ROUND, a.until_decided))), number + 1
    if a.json:
        print(json_text(race_results.as_json(race, result)))
    else:
        print("\n".join(race_verdicts.table(result)))
    return common.OK if all(run.status == "finished" for run in race.runs) else common.FAILED


def _lanes(a: argparse.Namespace) -> tuple[list[races.Lane], races.Metric, float | None]:
    """The configurations, metric and target of the arguments, checked.

    Raises:
        ConfigError: The arguments contradict each other, or a value is not valid.
    """
    if a.preset and a.lane:
        raise ConfigError(
            "--preset and --lane cannot be used together.",
            fix="Give one of them; --base names the preset that --lane changes.",
        )
    if a.lane:
        base = preset_config(a.base)
        lanes = [races.parse_variant(text, base) for text in a.lane]
        metric: races.Metric = "test_accuracy"
        target: float | None = None
    else:
        preset = races.race_preset(a.preset or races.DEFAULT_RACE)
        lanes, metric, target = list(preset.lanes), preset.metric, preset.target
    lanes = [lane.model_copy(update={"config": with_overrides(lane.config, a.set)}) for lane in lanes]
    lanes = list(races.with_budget(lanes, a.budget)) if a.budget else lanes
    if a.target:
        metric, target = race_results.parse_target(a.target)
    races.check_variants(lanes)
    if a.baseline and a.baseline not in (labels := [lane.label for lane in lanes]):
        raise ConfigError(
            f"--baseline {a.baseline!r} is not the label of a configuration.", fix=f"Choose from {', '.join(labels)}."
        )
    return lanes, metric, target


def compare_command(a: argparse.Namespace) -> int:
    """Compare existing runs; those that differ only in the seed are one configuration.

    Raises:
        ConfigError: The runs cannot be compared, or have one configuration.
    """
    store = common.store_of(a)
    run_ids = list(dict.fromkeys(map(store.find, a.runs)))
    if len(run_ids) < 2:
        raise ConfigError("A comparison needs at least two different runs, not 1.", fix="Add another run.")
    race = races.of_runs([store.run(run_id) for run_id in run_ids])
    assert race, "there are at least two runs"
    races.check_comparable([(lane.label, lane.config) for lane in race.lanes])
    if len(race.lanes) < 2:
        raise ConfigError(
            "These runs have the same configuration with different seeds.", fix="Add a run with another configuration."
        )
    metric, target = race_results.parse_target(a.target) if a.target else ("test_accuracy", None)
    result = race_results.outcome(race, metric=metric, target=target, baseline=a.baseline)
    print(json_text(race_results.as_json(race, result)) if a.json else "\n".join(race_verdicts.table(result)))
    return common.OK
