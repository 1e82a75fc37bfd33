"""Every optimizer, model family and data set has its facts, and the plan, the form and the report read them from there."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

import pytest

from dashboard.widgets import form_fields, run_parts, run_results
from engine import models
from engine.cli import cards, results
from engine.cli import run as cli_run
from engine.config import summary
from engine.config.data import DATA, DatasetName, Source
from engine.config.models import MODELS, ModelSpec
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.tasks import TASKS, TaskName
from engine.config.training import OPTIMIZERS, Optimizer, OptimizerName
from engine.data import loading
from engine.data.datasets import DATASETS, KNOWN, Release
from engine.data.user_files import reading
from engine.planning import planner
from engine.pytorch import models as modules
from engine.pytorch.tasks.registry import GENERATORS
from engine.pytorch.training import optimizers
from engine.reports import commands
from engine.reports.html import configuration, studies

ROOT = Path(__file__).resolve().parents[2]
BASE = RunConfig()
every_optimizer = pytest.mark.parametrize("name", get_args(OptimizerName))
every_family = pytest.mark.parametrize("family", MODELS)
every_data_set = pytest.mark.parametrize("data", get_args(DatasetName))


def shown_in_report(config: RunConfig) -> set[str]:
    """Titles of the settings that the report of a run shows."""
    return {title for _, title, _, is_shown in configuration._settings(config) if is_shown}


# --- optimizers ---------------------------------------------------------------------------------------------------


def test_no_optimizer_is_forgotten():
    assert list(OPTIMIZERS) == list(optimizers.IMPLEMENTATIONS) == list(get_args(OptimizerName))


@every_optimizer
def test_an_optimizer_has_a_plan_with_its_state_and_scratch(name):
    facts = OPTIMIZERS[name]
    batch = "full" if facts.full_batch else "1"
    config = with_overrides(BASE, [f"optimizer.name={name}", f"batch_size={batch}"])
    plan = planner.plan(config, free_bytes=2**34)
    assert (plan.optimizer_bytes > 0) == facts.keeps_state
    assert plan.optimizer_bytes <= plan.weight_bytes * (facts.states_per_parameter + facts.states_with_momentum)
    assert (plan.batch_size == plan.train_examples) == facts.full_batch
    if facts.scratch:
        copied = (
            4 * 784 * 128 if facts.for_matrices else plan.weight_bytes
        )  # one matrix after the other, or all at once
        assert plan.step_peak_bytes >= plan.gradient_bytes + facts.scratch * copied
    elif not facts.full_batch:
        assert plan.step_peak_bytes < 1.1 * plan.gradient_bytes


@every_optimizer
def test_the_form_has_the_label_and_every_knob_of_an_optimizer(name):
    facts = OPTIMIZERS[name]
    assert form_fields.WORDS["optimizer.name"][name] == facts.label
    assert {f"optimizer.{knob}" for knob in facts.knobs} <= set(form_fields.PATHS)
    assert Optimizer(name=name, lr=facts.usual_lr).facts is facts


@every_optimizer
def test_a_report_shows_the_knobs_of_the_optimizer_also_at_their_defaults(name):
    knobs = {knob for facts in OPTIMIZERS.values() for knob in facts.knobs}
    titles = {Optimizer.model_fields[knob].title: knob for knob in knobs}
    shown = shown_in_report(with_overrides(BASE, [f"optimizer.name={name}"]))
    assert {titles[title] for title in shown & titles.keys()} == set(OPTIMIZERS[name].knobs)


def test_the_help_of_a_knob_names_the_optimizers_that_use_it():
    assert Optimizer.model_fields["alpha"].description.endswith("Used by rmsprop.")
    assert Optimizer.model_fields["momentum"].description.endswith("Used by momentum, nesterov and muon.")


# --- families -----------------------------------------------------------------------------------------------------


def test_no_family_is_forgotten():
    assert list(MODELS.values()) == list(get_args(ModelSpec))
    assert list(MODELS) == list(models.FAMILIES) == list(modules.FAMILIES)


@every_family
def test_a_family_has_a_plan_a_label_in_the_form_and_a_name_in_lists(family):
    config = with_overrides(BASE, [f"model.family={family}", "data=digits"])
    assert planner.plan(config, free_bytes=2**34).train_flops_per_example > 0
    assert form_fields.WORDS["family"][family] == MODELS[family].label
    assert describe(config).startswith(config.model.in_words(DATA["digits"]) + " · ")


@every_family
def test_a_report_shows_every_dimension_of_a_family(family):
    config = with_overrides(BASE, [f"model.family={family}"])
    titles = {field.title for name, field in MODELS[family].model_fields.items() if name != "family"}
    assert titles <= shown_in_report(config)


@every_family
def test_fields_without_a_meaning_for_text_are_fields_of_a_family_that_reads_text(family):
    model = MODELS[family]
    assert set(model.not_for_text) <= set(model.model_fields)
    assert model.reads_text or not model.not_for_text
    assert bool(model().why_not_text()) != model.reads_text


# --- data sets ----------------------------------------------------------------------------------------------------


def test_no_data_set_is_forgotten():
    assert list(DATA) == list(get_args(DatasetName))
    with_a_loader = {name for name, known in KNOWN.items() if known.origin} | set(loading.GENERATED)
    assert with_a_loader | set(reading._READERS) == set(DATA)
    assert {known.origin.format for known in KNOWN.values() if isinstance(known.origin, Release)} == set(
        loading._READERS
    )


@every_data_set
def test_the_form_has_the_title_and_the_fields_of_a_data_set(data):
    facts = DATA[data]
    assert form_fields.WORDS["data"][data] == facts.title
    assert set(form_fields.source_fields(data)) <= set(form_fields.PATHS)
    assert set(facts.fields) <= set(Source.model_fields)
    assert facts.is_yours <= ("path" in facts.fields)


@every_data_set
def test_a_data_set_without_a_file_of_the_user_has_a_plan(data):
    if DATA[data].is_yours:
        pytest.skip("needs a file; tests/data reads one of each kind")
    family = next(name for name, model in MODELS.items() if model.reads_text) if DATA[data].kind == "text" else "mlp"
    config = with_overrides(BASE, [f"model.family={family}", f"data={data}"])
    facts = loading.facts(data, config.source)
    plan = planner.plan(config, free_bytes=2**34)
    assert (plan.train_examples, plan.test_examples) == (facts.train_examples, facts.test_examples)
    assert DATA[data].kind in {None, facts.kind}
    assert facts.measures_speed_only == DATA[data].measures_speed_only
    assert DATASETS.get(data, facts) == facts


def test_a_report_calls_each_kind_of_own_file_by_another_name():
    names = [facts.file_name for facts in DATA.values() if "path" in facts.fields]
    assert all(names) and len(set(names)) == len(names)


# --- tasks --------------------------------------------------------------------------------------------------------


def test_no_task_is_forgotten():
    assert list(TASKS) == list(get_args(TaskName)) == list(GENERATORS)


def test_what_a_room_registers_for_a_task_belongs_to_a_task():
    rooms = {
        "words": summary._WORDS, "planning": planner.PLANNING, "cards": cards._CARDS,
        "results": results._RESULTS, "records": results._RECORDS, "estimates": cli_run._ESTIMATES,
        "lines": cli_run._LINES, "sections": studies.SECTIONS, "commands": commands._ARGUMENTS,
        "views": run_parts._TASK_VIEWS, "figures": run_results._RESULTS,
    }  # fmt: skip
    assert {name: strange for name, registry in rooms.items() if (strange := registry.keys() - TASKS.keys())} == {}


@pytest.mark.parametrize("task", TASKS)
def test_the_fields_a_task_does_not_use_are_fields_of_a_configuration(task):
    assert TASKS[task].unused <= set(RunConfig.model_fields)


# --- nothing else asks for a name -----------------------------------------------------------------------------------

NAMES = {
    "name": {*get_args(OptimizerName)},
    "family": {*MODELS},
    "data": {*get_args(DatasetName)},
    "task": {*get_args(TaskName)},
}
EXCEPTIONS: set[str] = set()
# A configuration validates itself, and what belongs to one task alone looks for the runs of this task.
OF_ONE_TASK = {
    "engine/config/run.py", "engine/measurement/calibration.py", "engine/cli/infer.py", "dashboard/api/inference.py",
    "dashboard/views/batch_law.py", "dashboard/views/calibration.py", "dashboard/views/inference/address.py",
    "dashboard/views/inference/result.py",
}  # fmt: skip


def questions(tree: ast.AST) -> list[int]:
    """Lines that compare `optimizer.name`, `family` or `data` with a name, or match on it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            asked, said = node.left, node.comparators
        elif isinstance(node, ast.Match):
            asked, said = node.subject, [case.pattern for case in node.cases]
        else:
            continue
        field = asked.attr if isinstance(asked, ast.Attribute) else asked.id if isinstance(asked, ast.Name) else ""
        constants = {c.value for part in said for c in ast.walk(part) if isinstance(c, ast.Constant)}
        if constants & NAMES.get(field, set()):
            found.append(node.lineno)
    return found


def test_no_module_asks_for_the_name_of_an_optimizer_family_data_set_or_task():
    paths = [path for folder in ("engine", "dashboard", "pages") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): questions(ast.parse(path.read_text(encoding="utf-8"))) for path in paths}
    assert {path: lines for path, lines in found.items() if lines and path not in EXCEPTIONS | OF_ONE_TASK} == {}


def test_the_search_for_questions_finds_one():
    assert questions(ast.parse("if config.optimizer.name in {'gd', 'sgd'} or name == 'muon': pass")) == [1, 1]
    assert questions(ast.parse("match self.model.family:\n    case 'mlp': pass")) == [1]
