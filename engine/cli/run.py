"""`python -m engine run` and `plan`: run a configuration, or predict its memory and FLOPs."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import textwrap

from engine.cli import cards, common, infer, results
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.config import task_texts
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.hardware import probe
from engine.measurement import calibration
from engine.planning import planner
from engine.runtime.client import Client
from engine.studies import batch_law


def register(add: common.Adder, config: argparse.ArgumentParser) -> None:
    """Add the commands; `config` has the arguments that name a configuration."""
    run = add("run", run_command, "run a configuration and follow it to its end", config)
    run.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="number of seeds, starting at the seed of the configuration (default %(default)s)",
    )
    run.add_argument("--name", default="", help="name of the run in lists")
    add("plan", plan_command, "parameters, FLOPs and memory of a run, without running it", config)


def run_command(a: argparse.Namespace) -> int:
    """Submit one run, or one per seed, and follow it to its end.

    Raises:
        ConfigError: The number of seeds or the configuration is not valid.
    """
    store = common.store_of(a)
    client = Client(store)
    base = common.config_of(a)
    if not 1 <= a.seeds <= 1000:
        raise ConfigError(f"--seeds {a.seeds} is not allowed.", fix="Choose a whole number from 1 to 1000.")
    common.warn(planner.check(base))
    configs = [with_overrides(base, [f"seed={base.seed + i}"]) for i in range(a.seeds)]
    group = secrets.token_hex(8) if a.seeds > 1 else None
    run_ids: list[str] = []
    with common.cancelled_by_ctrl_c(client, lambda: run_ids, json_key="run_ids" if a.json else ""):
        for config in configs:
            with common.ctrl_c_delayed():
                run_ids.append(client.submit(config, name=a.name, group=group))
        runs = [common.follow(store, client, run_id, quiet=a.json) for run_id in run_ids]
    if a.json:
        documents = [results.of_run(run) for run in runs]
        for run in runs:
            common.print_why(run)
        print(json_text({"group_id": group, "runs": documents} if group else documents[0]))
    else:
        for run in runs:
            print(cards.card(run))
    return common.OK if all(run.status == "finished" for run in runs) else common.FAILED


def plan_command(a: argparse.Namespace) -> int:
    """Print what a run would need, without starting it."""
    config, machine = common.config_of(a), probe.probe()
    probe.check_device(config.device, machine)
    planner.check_abilities(config, machine)
    if config.task in {"calibrate", "landscape"}:
        return _plan_of_a_study(config, as_json=a.json)
    plan = planner.plan(config, machine=machine)
    if a.json:
        law = {"estimated_seconds": _law_seconds(config, plan)} if config.task == "batch-law" else {}
        if config.task == "infer":
            law = {"estimated_seconds": infer.predicted_of(common.store_of(a), config, plan).total_s}
        print(
            json_text(
                dataclasses.asdict(plan) | law | {"total_bytes": plan.total_bytes, "fingerprint": config.fingerprint}
            )
        )
        return common.OK
    print(describe(config))
    print(f"  parameters        {plan.parameters:,}")
    print(f"  forward           {units.flops(plan.forward_flops_per_example)} per sample (derived)")
    if config.task == "infer":
        print("\n".join(infer.plan_lines(common.store_of(a), config, plan)))
    else:
        _print_steps(config, plan)
    for name, size in plan.parts():
        print(f"  {name:<17} {units.nbytes(size)} ({'estimated' if name == 'workspace' else 'derived'})")
    print(f"  total memory      {units.nbytes(plan.total_bytes)}, {units.nbytes(plan.free_bytes)} free (measured)")
    print(f"  fits              {'unknown' if plan.fits is None else 'yes' if plan.fits else 'no'}")
    common.warn(plan)
    return common.OK


def _print_steps(config: RunConfig, plan: planner.Plan) -> None:
    print(f"  training step     {units.flops(plan.train_flops_per_example * plan.batch_size)} (derived)")
    if config.task == "batch-law":
        print(f"  batch sizes       {', '.join(map(str, config.law.sizes(plan.train_examples)))}")
        print(f"  takes about       {units.duration(_law_seconds(config, plan))} (rough estimate)")
    steps = (
        "depends on the trials"
        if config.task == "batch-law"
        else "as many as fit into the time budget"
        if plan.total_steps is None
        else f"{plan.total_steps:,}"
    )
    print(f"  steps             {steps}, {plan.steps_per_epoch:,} per epoch of {plan.train_examples:,} samples")


def _law_seconds(config: RunConfig, plan: planner.Plan) -> float:
    return batch_law.estimate_seconds(
        config.law,
        train_examples=plan.train_examples,
        forward_flops_per_example=plan.forward_flops_per_example,
        train_flops_per_example=plan.train_flops_per_example,
    )


def _plan_of_a_study(config: RunConfig, *, as_json: bool) -> int:
    """Print the description and the time of a run that trains nothing, so it has no parameters, steps or FLOPs."""
    takes = calibration.predicted_seconds(config.threads) if config.task == "calibrate" else None
    if as_json:
        unknown = {field.name: None for field in dataclasses.fields(planner.Plan)} | {"total_bytes": None}
        known = {"task": config.task, "about": task_texts.ABOUT[config.task], "estimated_seconds": takes}
        print(json_text(unknown | known | {"fingerprint": config.fingerprint}))
        return common.OK
    print(describe(config))
    print(textwrap.fill(task_texts.ABOUT[config.task], 100, initial_indent="  ", subsequent_indent="  "))
    if takes is not None:
        print(f"  takes about       {units.duration(takes)} (estimated), after all other runs have ended")
    return common.OK
