"""`python -m engine.userdata`: the process in which `inspection.py` has a file parsed, under limits."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.config.data import Source
from engine.data.user_files.files import system_error
from engine.data.user_files.reading import facts_of
from engine.system import sandbox


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    """The facts of a file."""
    path = Path(asked["path"])
    source = Source(path=asked["path"], label=asked["label"], seq_len=asked["seq_len"] or 2)
    try:
        return asdict(facts_of(asked["data"], path, source))
    except OSError as error:
        raise system_error(error, path) from None


if __name__ == "__main__":
    sandbox.serve(_answer)
