"""The structure of the code: rooms in one order, no import cycle, nothing that may not stand in a source file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TREES = ("engine", "dashboard", "pages")
LONGEST_FILE = 700

# A room imports only from rooms to the left of it (docs/architecture.md has a paragraph on each).
ENGINE_ROOMS = [
    "common",
    "config",
    "events",
    "system",
    "data",
    "models",
    "store",
    "access",
    "hardware",
    "planning",
    "measurement",
    "studies",
    "charts",
    "reports",
    "pytorch",
    "runtime",
    "cli",
    "__main__",
]
DASHBOARD_ROOMS = ["server", "api", "state", "widgets", "live", "views", "main", "app"]

TORCH = {"torch", "jax", "ray"}
BRINGS_TORCH = {"engine.pytorch", "engine.runtime.worker", "engine.runtime.preload"} | TORCH

FORBIDDEN = {
    "pickle": r"^\s*(import|from) (c?[pP]ickle|dill|cloudpickle|joblib|shelve|marshal)\b|pickle\.load",
    "torch.load": r"torch\.load\(",
    "allow_pickle": r"allow_pickle\s*=\s*True",
    "yaml.load": r"yaml\.load\(",
    "eval": r"(?<![\w.])eval\(",
    "exec": r"(?<![\w.])exec\(",
    "shell": r"shell\s*=\s*True",
    "raw HTML": r"unsafe_allow_html|components\.html|components\.v1",
}


def sources(*trees: str) -> dict[str, Path]:
    """Modules of these trees by dotted name."""
    found = {}
    for path in (path for tree in trees for path in sorted((ROOT / tree).rglob("*.py"))):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources(*TREES)


@cache
def imports(module: str, *, top_level_only: bool = False) -> frozenset[str]:
    """What a module imports, also inside functions: `from engine.common import units` is engine.common.units."""
    return frozenset(_imports(MODULES[module], top_level_only))


def _imports(path: Path, top_level_only: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            yield from modules
            if names - modules or node.module not in MODULES:
                yield node.module


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def is_in(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def against_the_order(tree: str, rooms: list[str]) -> list[str]:
    rank = {room: place for place, room in enumerate(rooms)}
    return [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith(tree + ".")
        for name in imports(module)
        if name.startswith(tree + ".") and rank[room_of(name)] > rank[room_of(module)]
    ]


def test_each_room_of_the_engine_imports_only_rooms_before_it():
    assert against_the_order("engine", ENGINE_ROOMS) == []


def test_each_room_of_the_dashboard_imports_only_rooms_before_it():
    assert against_the_order("dashboard", DASHBOARD_ROOMS) == []


def test_the_rooms_are_those_that_exist():
    for tree, rooms in (("engine", ENGINE_ROOMS), ("dashboard", DASHBOARD_ROOMS)):
        assert {room_of(module) for module in MODULES if module.startswith(tree + ".")} == set(rooms)


def test_every_import_of_ours_exists():
    ghosts = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imports(module)
        if is_in(name, set(TREES)) and name not in MODULES
    ]
    assert ghosts == []


def test_no_import_cycle_not_even_through_imports_inside_functions():
    graph = {module: {name for name in imports(module) if name in MODULES} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("import cycle: " + " -> ".join(error.args[1])) from None


def test_the_engine_knows_no_page_and_only_its_own_rooms_import_torch():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if module.startswith("engine")
        for name in imports(module)
        if is_in(name, {"streamlit", "dashboard", "pages"}) or (is_in(name, TORCH) and not is_in(module, BRINGS_TORCH))
    ]
    assert wrong == []


def test_dashboard_and_pages_import_neither_torch_nor_a_page():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if is_in(module, {"dashboard", "pages"})
        for name in imports(module)
        if is_in(name, BRINGS_TORCH | {"pages"})
    ]
    assert wrong == []


@pytest.mark.process
def test_the_dashboard_process_and_the_command_line_start_without_torch():
    """`engine.runtime.executor` names the worker inside a function: the fork server imports it."""
    names = [m for m in MODULES if m.startswith("dashboard.") and room_of(m) not in {"main", "app"}]
    names += ["engine.cli.main", "engine.runtime.supervisor", "engine.reports.report", "engine.planning.planner"]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_source_unpickles_evaluates_or_writes_raw_html():
    wrong = [
        f"{module} contains {what}"
        for module, path in MODULES.items()
        for what, pattern in FORBIDDEN.items()
        if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert wrong == []


def test_no_file_is_too_long_to_find_something_in():
    files = [path for tree in (*TREES, "tests", "benchmarks") for path in (ROOT / tree).rglob("*.py")]
    files += (ROOT / "dashboard" / "assets").glob("*.js")
    lengths = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_every_module_and_file_named_in_a_comment_or_a_text_exists():
    files = [path for tree in (*TREES, "benchmarks") for path in (ROOT / tree).rglob("*.py")]
    files += (ROOT / "dashboard" / "assets").glob("*.js")
    ghosts = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        paths = re.findall(r"\b(?:engine|dashboard|pages|tests|benchmarks|docs)/[\w/-]+\.(?:py|js|css|html|md)\b", text)
        modules = re.findall(r"(?<![\w./-])(?:engine|dashboard)\.[a-z]\w+", text)
        missing = {path for path in paths if not (ROOT / path).exists()}
        missing |= {name for name in modules if name not in MODULES and name != "dashboard.url"}
        ghosts += [f"{file.relative_to(ROOT)} names {name}" for name in sorted(missing)]
    assert ghosts == []
