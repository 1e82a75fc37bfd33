"""Generates docs/report-schema.md from the models: `python docs/report_schema.py`. A test compares the two."""

from __future__ import annotations

import inspect
import io
import re
import sys
import tokenize
import typing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402
from pydantic_core import PydanticUndefined  # noqa: E402

from engine.reports.frozen_run import TABLES, ReportRun  # noqa: E402
from engine.reports.redaction import LONGEST_TEXT  # noqa: E402
from engine.reports.report import MAX_RUNS, SCHEMA_VERSION, Report  # noqa: E402
from engine.store.columns import COLUMNS  # noqa: E402
from engine.studies.race_results import Outcome, VariantOutcome  # noqa: E402

FILE = ROOT / "docs" / "report-schema.md"
_INTRO = f"""# Contents of a report

`python docs/report_schema.py` generates this page from the code. A test fails when it is out of date.

A report is one JSON document, schema **{SCHEMA_VERSION}**. The HTML page (`<script type="application/json" id="report">`) and the zip
(`report.json`) contain the same bytes. The HTML page of a long run has fewer points; `recorded_steps` is the number of recorded steps.
A report has up to {MAX_RUNS} runs. Isoflop reads schema 1 and {SCHEMA_VERSION}, and refuses a newer one.

- **Hash**: the content hash is the SHA-256 of the JSON file in UTF-8: `sha256sum report.json`. The page shows it; the zip
  has it in `SHA256SUMS`. In the page, `<` is written as `\\u003c`.
- **Units**: seconds, bytes, joules, watts, ratios 0 to 1. A `Moment` is a Unix time in seconds.
- **NaN and infinity** are the texts `"NaN"`, `"Infinity"`, `"-Infinity"`. `null` means unknown.
- **Columns** of a table are packed without loss: base64 of zlib of little-endian numbers, as `{{"float32": "..."}}`, `{{"float64": "..."}}`, or
  `{{"deltas": "...", "per": 1}}`: int64 differences whose running sum, divided by `per` (1 or 1,000,000,000), gives the values. In Python:

```python
import base64, json, zlib
import numpy as np


def column(packed):
    kind = next(k for k in ("deltas", "float32", "float64") if k in packed)
    data = zlib.decompress(base64.b64decode(packed[kind]))
    values = np.frombuffer(data, {{"deltas": "<i8", "float32": "<f4", "float64": "<f8"}}[kind])
    return np.cumsum(values) / packed["per"] if kind == "deltas" else values.astype(float)


report = json.load(open("report.json"))
loss = column(report["runs"][0]["steps"]["loss"])
```

A column that is missing from a table is unknown. Arrays in events are base64 of little-endian numbers, not compressed.

**A report never contains** paths, user, host, addresses, tokens, values of the environment, serial numbers. It contains the names of
your own files only with `--file-names`. `python -m engine export last -o report.html --preview` lists the content of a report.

Types below: `Text` is a text of up to {LONGEST_TEXT:,} characters, `EncodableStr` and `BoundedStr` are texts, `Id` 16 and `Sha256` 64 hexadecimal digits, `Count` a
whole number from 0 to 2^63, `Moment` a Unix time until the year 10,000, `Seconds` a duration, `Points` a table, `SharedEvent`
an event (its `kind` names it), `FinalEvent` one of Finished, Cancelled, Failed, Interrupted. Fields that are not listed are ignored. JSON Schema:
`python -c "import json; from engine.reports.report import Report; print(json.dumps(Report.model_json_schema(mode='serialization')))"`.

## Tables
"""


def document() -> str:
    """The text of docs/report-schema.md."""
    parts = [_INTRO]
    parts += [f"- `{name}`: {', '.join(f'`{column}`' for column in COLUMNS[name])}" for name in TABLES]
    queue: list[type] = [Report, ReportRun]
    done: list[type] = []
    while queue:
        model = queue.pop(0)
        if model in done:
            continue
        done.append(model)
        parts.append(_section(model))
        queue += [inner for inner in _models_in(model) if inner not in done]
    return "\n".join(parts).rstrip() + "\n"


def _section(model: type) -> str:
    about = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    rows = [f"| `{name}` | {kind} | {default} | {comment} |" for name, kind, default, comment in _fields(model)]
    head = [f"\n## {model.__name__}\n", about, ""]
    return (
        "\n".join([*head, "| field | type | default | |", "|---|---|---|---|", *rows])
        if rows
        else "\n".join(head).rstrip()
    )


def _fields(model: type) -> list[tuple[str, str, str, str]]:
    comments = _comments(model)
    if issubclass(model, BaseModel):
        found = []
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
            about = comments.get(name, "") or (field.description or field.title or "")
            found.append((name, _type(model, name), _default(default), _cell(about)))
        return found
    return [(name, _type(model, name), "", _cell(comments.get(name, ""))) for name in model.__dataclass_fields__]  # type: ignore[attr-defined]


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "null"
    if isinstance(value, BaseModel):
        return "all defaults"
    if hasattr(value, "shape"):
        return "empty"
    return _cell(f"`{value!r}`" if value not in ("", [], {}, ()) else "empty")


def _type(model: type, name: str) -> str:
    for owner in model.__mro__:
        annotation = inspect.get_annotations(owner).get(name)
        if annotation is not None:
            text = annotation if isinstance(annotation, str) else str(annotation)
            text = re.sub(r"\s+", " ", text.split("Field(")[0] if text.startswith("Annotated[") is False else text)
            return f"`{_cell(text)}`"
    return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def _comments(model: type) -> dict[str, str]:
    """The source comment behind each field, on its (last) line."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner.__module__.startswith("engine."):
            found |= _comments_of(inspect.getsource(owner))
    return found


def _comments_of(source: str) -> dict[str, str]:
    found, name, depth = dict[str, str](), "", 0
    tokens = list(tokenize.generate_tokens(io.StringIO(inspect.cleandoc("\n" + source)).readline))
    for token, after in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif (
            depth == 1
            and token.type == tokenize.NAME
            and after.string == ":"
            and token.line.strip().startswith(token.string)
        ):
            name = token.string
        elif depth == 1 and token.type == tokenize.COMMENT and name and not token.line.strip().startswith("#"):
            comment = token.string.lstrip("# ").strip()
            if not comment.startswith(("type:", "noqa", "fmt:")):
                found.setdefault(name, comment)
        elif token.type == tokenize.NEWLINE:
            name = name if after.type == tokenize.COMMENT else ""
    return found


def _models_in(model: type) -> list[type]:
    hints = (
        [field.annotation for field in model.model_fields.values()]
        if issubclass(model, BaseModel)
        else [
            typing.get_type_hints(model)[name]
            for name in model.__dataclass_fields__  # type: ignore[attr-defined]
        ]
    )
    found: list[type] = []
    for hint in hints:
        found += _in_hint(hint)
    if model is Report:
        found += [Outcome, VariantOutcome]
    return found


def _in_hint(hint: Any) -> list[type]:
    if arguments := typing.get_args(hint):
        return [model for argument in arguments for model in _in_hint(argument)]
    is_ours = isinstance(hint, type) and hint.__module__.startswith("engine.")
    return (
        [hint]
        if is_ours
        and (issubclass(hint, BaseModel) or hasattr(hint, "__dataclass_fields__"))
        and hint.__name__ != "Points"
        else []
    )


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
