"""Documentation matches the code: commands, options, links, paths, settings, and the schema of a report."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from docs import report_schema
from engine.access.settings import Settings
from engine.cli.main import build_parser, main
from engine.config.parsing import parse_config_json, with_overrides
from engine.config.presets import DEFAULT_PRESET, preset_config
from engine.config.run import RunConfig
from engine.reports.report import Report
from engine.studies.races import parse_variant, race_preset
from tests.fakes import make_run

ROOT = Path(__file__).resolve().parent.parent
PAGES = (*(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md")))
MOST_LINES_OF_README = 200


COMMON = {"--help", "--store", "--json"}  # options that the reference describes once, for all commands
CONFIGURED = {"run", "plan", "infer", "scale"}
CONFIGURING = {"--preset", "--config", "--set"}  # and once for those


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def shell_lines(page: Path) -> list[str]:
    """Commands of a page: lines of its blocks for a terminal, and commands inside its sentences."""
    lines = [
        line for language in ("bash", "console") for block in blocks(page, language) for line in block.splitlines()
    ]
    return [*lines, *re.findall(r"`((?:make|python -m) [^`\n]+)`", prose(page))]


def engine_commands() -> Iterator[list[str]]:
    """Arguments of every documented `python -m engine ...`. `RUN` stands for any run, so it becomes `last`."""
    for page in PAGES:
        for line in shell_lines(page):
            words = ["last" if word == "RUN" else word for word in shlex.split(line, comments=True)]
            if words[:3] == ["python", "-m", "engine"] and words[3:] and "COMMAND" not in words:
                yield words[3:]


COMMANDS = [list(words) for words in dict.fromkeys(map(tuple, engine_commands()))]


def subcommands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    return next(a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))


def documented_arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options and positional arguments of a command that its help shows, as the documentation writes them."""
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from action.option_strings or [str(action.metavar or action.dest)]


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_documented_command_is_parsed(words):
    if words == ["--version"]:
        return
    arguments = build_parser().parse_args(words)
    if words[0] in CONFIGURED:
        config = with_overrides(preset_config(arguments.preset or DEFAULT_PRESET), arguments.set)
        assert isinstance(config, RunConfig)
    if words[0] == "race":
        race_preset(arguments.preset or "batch-vs-stochastic")
        for lane in arguments.lane:
            parse_variant(lane, preset_config(arguments.base))


def test_quick_documented_commands_run(store, tmp_path, monkeypatch, capsys):
    make_run(store)
    monkeypatch.chdir(tmp_path)
    quick = {"plan", "list", "show", "export", "check", "hardware", "reports"}
    slow_or_needs_more = {"--watch", "--weights", "--tensorboard", "--mlflow"}
    chosen = [words for words in COMMANDS if words[0] in quick and not slow_or_needs_more & set(words)]
    assert {words[0] for words in chosen} == quick
    for words in chosen:
        assert main([*words, "--store", str(store.root)]) == 0, words
    assert (tmp_path / "report.html").stat().st_size > 0


def test_every_make_target_in_the_documentation_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        named = {line.split()[1] for line in shell_lines(page) if line.startswith("make ")}
        assert named <= targets, relative(page)


def test_every_benchmark_in_the_documentation_exists():
    named = {module for page in PAGES for module in re.findall(r"python -m benchmarks\.(\w+)", page.read_text())}
    assert "reference" in named
    assert all((ROOT / "benchmarks" / f"{module}.py").exists() for module in named)


@pytest.mark.parametrize("name", subcommands())
def test_every_command_and_option_is_in_the_reference(name):
    head, *sections = re.split(r"^### ", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    [section] = [section for section in sections if section.startswith(f"`{name}`\n")]
    shared = COMMON | (CONFIGURING if name in CONFIGURED else set())
    arguments = [argument for argument in documented_arguments(subcommands()[name]) if argument != "-h"]
    assert [a for a in arguments if f"`{a}`" not in (head if a in shared else section)] == []


def test_the_reference_names_no_option_that_is_gone():
    known = {a for parser in subcommands().values() for a in documented_arguments(parser)} | {"--version"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")))
    assert named <= known


# --- links, paths and files -----------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES_OF_README


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_relative_link_has_a_target(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_every_named_path_exists(page):
    folders = "engine|dashboard|pages|tests|benchmarks|docs"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", prose(page)))
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_page_of_the_documentation_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[\w.-]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= linked


# --- configuration and settings ---------------------------------------------------------------------------------------


def test_every_field_of_a_configuration_is_documented():
    text = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert [field for field in RunConfig.model_fields if not re.search(rf"`{field}[`.]", text)] == []


def test_the_documented_configuration_is_valid():
    [example] = blocks(ROOT / "docs" / "config.md", "json")
    assert parse_config_json(example).batch_size == 64


def test_every_documented_setting_is_valid():
    examples = [block for page in PAGES for block in blocks(page, "toml")]
    assert len(examples) >= 4
    for example in examples:
        Settings.model_validate(tomllib.loads(example))


# --- the schema of a report -------------------------------------------------------------------------------------------


def test_the_documented_schema_of_a_report_is_up_to_date():
    written = report_schema.FILE.read_text(encoding="utf-8")
    assert written == report_schema.document(), "out of date: run `make docs`"


def test_every_field_of_a_report_is_documented():
    text = report_schema.FILE.read_text(encoding="utf-8")
    for field in (*Report.model_fields, "schema_version", "recorded_steps", "heat", "test_accuracy", "optimizer"):
        assert f"| `{field}` |" in text


@pytest.mark.process
def test_the_documented_python_reads_a_report(store, tmp_path):
    run = make_run(store, diverges_at=140)
    (tmp_path / "report.json").write_text(Report.freeze("t", [run]).to_json(), encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", report_schema.FILE.read_text(encoding="utf-8"), re.DOTALL)
    assert code
    done = subprocess.run(
        [sys.executable, "-c", code[1] + "\nprint(json.dumps([float(x).hex() for x in loss]))"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    read = [float.fromhex(x) for x in json.loads(done.stdout)]
    np.testing.assert_array_equal(read, run.steps["loss"])
