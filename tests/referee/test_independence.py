"""The referee shares no code with the engine."""

from __future__ import annotations

import ast
from pathlib import Path


def test_the_referee_imports_nothing_of_the_engine():
    found = []
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.name} imports {name}" for name in names if name.split(".")[0] in {"engine", "dashboard"}]
    assert found == []
