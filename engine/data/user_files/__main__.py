"""`python -m engine.data.user_files`: the process with limits in which `inspection.py` lets a file be parsed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config.data import Source
from engine.data.user_files.files import system_error
from engine.data.user_files.reading import inspect_here
from engine.data.user_files.tables import column_names
from engine.system import sandbox


def _answer(request: dict[str, Any]) -> dict[str, Any] | list[str]:
    """The facts and the preview of a file, or the columns of a table. Raises ConfigError if it cannot be read."""
    if "columns_of" in request:
        return column_names(Path(request["columns_of"]))
    path = Path(request["path"])
    source = Source(path=request["path"], label=request["label"], seq_len=request["seq_len"] or 2)
    try:
        facts, preview = inspect_here(request["data"], path, source)
    except OSError as error:
        failure = system_error(error, path)
        raise failure from None
    return {"facts": asdict(facts), "preview": asdict(preview)}


if __name__ == "__main__":
    sandbox.serve(_answer)
