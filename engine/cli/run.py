"""`python -m engine run` and `plan`: run a configuration, or predict its memory and FLOPs."""

from __future__ import annotations

import argparse
import dataclasses
import secrets
import textwrap
from collections.abc import Callable, Mapping

from engine.cli import cards, common, infer, results
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.jsontext import json_text
from engine.common.sanitize import visible
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.tasks import TaskName
from engine.hardware import probe
from engine.measurement import calibration
from engine.planning import planner
from engine.runtime.client import Client
from engine.store.store import Store
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
    if not config.task_facts.has_plan:
        return _plan_of_a_study(a, config)
    plan, estimate = planner.plan(config, machine=machine), _ESTIMATES.get(config.task)
    if a.json:
        takes = {"estimated_seconds": estimate(common.store_of(a), config, plan)} if estimate else {}
        print(json_text(dataclasses.asdict(plan) | takes | _sums(plan) | {"fingerprint": config.fingerprint}))
        return common.OK
    print(describe(config))
    print(f"  parameters        {plan.parameters:,}")
    print(f"  forward           {units.flops(plan.forward_flops_per_example)} per sample (derived)")
    print("\n".join(_LINES.get(config.task, _training_lines)(common.store_of(a), config, plan)))
    print("\n".join(_memory_lines(plan)))
    for note in plan.notes:
        print(f"  data              {visible(note)}")
    print(f"  fits              {'unknown' if plan.fits is None else 'yes' if plan.fits else 'no'}")
    common.warn(dataclasses.replace(plan, notes=()))
    return common.OK


_SUMS = ("step_memory_bytes", "evaluation_memory_bytes", "total_bytes")


def _sums(plan: planner.Plan) -> dict[str, int]:
    return {name: getattr(plan, name) for name in _SUMS}


def _memory_lines(plan: planner.Plan) -> list[str]:
    """The sizes that are derived, and the peaks under the names that a run's results have."""
    derived = {
        "weights": plan.weight_bytes,
        "optimizer": plan.optimizer_bytes,
        "gradients": plan.gradient_bytes,
        "activations": plan.activation_bytes,
        "data memory": plan.data_bytes,
        "checkpoints": plan.checkpoint_bytes,
    }
    estimated = {
        "step memory": (plan.step_memory_bytes, "weights, optimizer state and the peak of one step"),
        "evaluation memory": (plan.evaluation_memory_bytes, "the same with the peak of an evaluation"),
        "total memory": (plan.total_bytes, "step or evaluation, whichever takes more, with data"),
    }
    return [
        *(f"  {name:<17} {units.nbytes(size)} (derived)" for name, size in derived.items()),
        *(f"  {name:<17} {units.nbytes(size)} (estimated: {what})" for name, (size, what) in estimated.items()),
        f"  free memory       {units.nbytes(plan.free_bytes)} (measured)",
    ]


def _training_lines(store: Store, config: RunConfig, plan: planner.Plan) -> list[str]:
    steps = "as many as fit into the time budget" if plan.total_steps is None else f"{plan.total_steps:,}"
    return [_step_line(plan), _steps_line(steps, plan)]


def _law_lines(store: Store, config: RunConfig, plan: planner.Plan) -> list[str]:
    takes = units.duration(_law_seconds(store, config, plan))
    return [
        _step_line(plan),
        f"  batch sizes       {', '.join(map(str, config.law.sizes(plan.train_examples)))}",
        f"  takes about       {takes} (rough estimate)",
        _steps_line("depends on the trials", plan),
    ]


def _step_line(plan: planner.Plan) -> str:
    return f"  training step     {units.flops(plan.train_flops_per_example * plan.batch_size)} (derived)"


def _steps_line(steps: str, plan: planner.Plan) -> str:
    return f"  steps             {steps}, {plan.steps_per_epoch:,} per epoch of {plan.train_examples:,} samples"


def _law_seconds(store: Store, config: RunConfig, plan: planner.Plan) -> float:
    return batch_law.estimate_seconds(
        config.law,
        train_examples=plan.train_examples,
        forward_flops_per_example=plan.forward_flops_per_example,
        train_flops_per_example=plan.train_flops_per_example,
    )


def _plan_of_a_study(a: argparse.Namespace, config: RunConfig) -> int:
    """Print the description and the time of a run that trains nothing, so it has no parameters, steps or FLOPs."""
    estimate, about = _STUDY_ESTIMATES.get(config.task), config.task_facts.about
    takes = estimate(config) if estimate else None
    if a.json:
        unknown = {field.name: None for field in dataclasses.fields(planner.Plan)} | dict.fromkeys(_SUMS)
        known = {"task": config.task, "about": about, "estimated_seconds": takes}
        print(json_text(unknown | known | {"fingerprint": config.fingerprint}))
        return common.OK
    print(describe(config))
    print(textwrap.fill(about, 100, initial_indent="  ", subsequent_indent="  "))
    if takes is not None:
        print(f"  takes about       {units.duration(takes)} (estimated), after all other runs have ended")
    return common.OK


# How long a run takes, in seconds: of tasks that do not end with their budget.
_ESTIMATES: Mapping[TaskName, Callable[[Store, RunConfig, planner.Plan], float]] = {
    "batch-law": _law_seconds,
    "infer": lambda store, config, plan: infer.predicted_of(store, config, plan).total_s,
}
_STUDY_ESTIMATES: Mapping[TaskName, Callable[[RunConfig], float]] = {
    "calibrate": lambda config: calibration.predicted_seconds(config.threads),
}
# Lines of a plan between the model and the memory.
_LINES: Mapping[TaskName, Callable[[Store, RunConfig, planner.Plan], list[str]]] = {
    "batch-law": _law_lines,
    "infer": infer.plan_lines,
}
