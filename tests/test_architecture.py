"""What may know what: the layers of the engine, and what no source file may contain."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (
    "config presets records query errors units peaks nvml text redaction downsample processes sandbox locks disk ring",
    "schedules models datasets downloads userdata loading hardware sampler contention readers gpus monitor recorder energy studies figures alerts split charts_split settings planner limits access store trajectory landscape toy checkup keys calibration charts charts_descent charts_roofline charts_infer charts_scale report capsule tables sharing interop cost sweep analysis batch_law races outcome lessons admission serving scaling scaling_words",
    "pytorch xla_backend",
    "worker",
    "preload executor ray_executor supervisor cli_share",
    "cli cli_infer cli_scale",
    "__main__",
)
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer.split()} | {"__init__": 0}
ENGINE = sorted((ROOT / "engine").rglob("*.py"))
FACES = sorted([*(ROOT / "dashboard").rglob("*.py"), *(ROOT / "pages").rglob("*.py")])
BRINGS_TORCH = {"engine.pytorch", "engine.worker", "engine.preload", "torch", "jax", "ray"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what a file imports; `from engine import units` is engine.units."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            yield from (f"{parent}.{a.name}" for a in node.names) if parent in {"engine", "pages"} else [parent]


def module_of(path: Path) -> str:
    return path.relative_to(ROOT / "engine").with_suffix("").parts[0]


@pytest.mark.parametrize("path", ENGINE, ids=relative)
def test_engine_modules_import_only_lower_layers(path):
    rank = RANK[module_of(path)]
    top_level = set(imports(path, top_level_only=True))
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in {"streamlit", "dashboard", "pages"}, f"{relative(path)} imports {name}"
        module = rest.partition(".")[0]
        if top == "engine" and module in RANK:
            assert RANK[module] <= rank, f"{relative(path)} imports {name} from a higher layer"
    if rank < RANK["pytorch"] or module_of(path) in {"executor", "supervisor", "cli", "cli_infer"}:
        assert not any(is_or_is_in(name, BRINGS_TORCH) for name in top_level), f"{relative(path)} brings torch"


def is_or_is_in(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", FACES, ids=relative)
def test_dashboard_and_pages_know_neither_torch_nor_the_pages(path):
    for name in imports(path):
        assert not is_or_is_in(name, BRINGS_TORCH), f"{relative(path)} imports {name}"
        assert not is_or_is_in(name, {"pages"}), f"{relative(path)} imports {name}"


def test_the_dashboard_process_never_imports_torch():
    modules = [f"dashboard.{p.stem}" for p in (ROOT / "dashboard").glob("*.py") if p.stem not in {"main", "app"}]
    modules += ["engine.cli", "engine.supervisor", "engine.report", "engine.charts", "engine.planner"]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("path", [*ENGINE, *FACES], ids=relative)
def test_no_source_unpickles_evaluates_or_writes_raw_html(path):
    text = path.read_text(encoding="utf-8")
    found = [name for name, pattern in FORBIDDEN.items() if re.search(pattern, text, re.MULTILINE)]
    assert not found, f"{relative(path)} contains {', '.join(found)}"
