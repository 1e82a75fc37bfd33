"""Filters of the list of runs, such as `optimizer.name = adam, batch_size > 64`, and the fields of a run.

Fields can be shown, sorted and grouped by. Filters become SQL for the index; a user's text is only ever a bound parameter.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.events.summary import Summary

FIGURES: dict[str, str] = {  # fields of a run's summary and their labels
    "test_accuracy": "Test accuracy", "final_train_loss": "Training loss", "test_loss": "Test loss",
    "samples_per_s": "Samples/s", "train_seconds": "Training time", "steps": "Steps", "samples": "Samples",
    "epochs": "Epochs", "flops": "FLOPs", "peak_memory_bytes": "Training memory",
    "step_memory_bytes": "Step memory", "evaluation_memory_bytes": "Evaluation memory", "data_memory_bytes": "Data memory",
    "process_memory_bytes": "Process memory", "energy_j": "Energy", "target_step": "Steps to target",
    "target_seconds": "Time to target",
}  # fmt: skip
EXPERIMENT = "experiment"  # a configuration without its seed, in words
_PLAIN = {"status": "status", "name": "name", "group": "grouped", "owner": "owner", EXPERIMENT: "words"}
_KEPT = {"test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps"}  # columns of the index
MOST_CONDITIONS = 20
_LONGEST = 500
_OPERATOR = re.compile(r"\s*([\w.]+)\s*(<=|>=|!=|==|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)

assert set(FIGURES) <= set(Summary.model_fields), "every figure is a field of a summary"


def _paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted paths of the fields of a configuration; a field with several types has the paths of all of them."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        for part in inner:
            yield from _paths(part, f"{before}{name}.")
        if not inner:
            yield f"{before}{name}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not tuple:
        for argument in typing.get_args(annotation):
            yield from _models(argument)


CONFIG_FIELDS = tuple(dict.fromkeys(_paths(RunConfig)))
FIELDS = (*CONFIG_FIELDS, *FIGURES, *_PLAIN, "tag", "pinned", "imported")


def check_field(field: str) -> str:
    """Return the field if it exists.

    Raises:
        ConfigError: there is no such field; the fix names similar ones.
    """
    if field in FIELDS:
        return field
    ends = [name for name in FIELDS if name.rpartition(".")[2] == field]
    alike = ends or difflib.get_close_matches(field, FIELDS, n=3, cutoff=0.4)
    raise ConfigError(
        f"A run has no field {visible(field, 40)!r}.",
        fix=f"Did you mean {' or '.join(alike)}?" if alike else "Write it as in `--set`: optimizer.lr, batch_size.",
    )


def value_of(field: str) -> tuple[str, tuple[str, ...]]:
    """The SQL expression for a field of a row of the index, and its parameters."""
    check_field(field)
    match field:
        case "tag":
            return "nullif(tags, '')", ()
        case "pinned":
            return "pinned", ()
        case "imported":
            return "json_extract(summary, '$.imported')", ()
        case _ if field in _PLAIN:
            return _PLAIN[field], ()
        case _ if field in _KEPT:
            return field, ()
        case _ if field in FIGURES:  # NaN and infinity are stored as texts, and have no place in an order
            return (
                f"case when json_type(summary, '$.{field}') in ('integer', 'real') then json_extract(summary, '$.{field}') end",
                (),
            )
        case _:
            return "json_extract(config, ?)", (f"$.{field}",)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition that a run must fulfil."""

    field: str
    operator: str
    value: str

    def sql(self) -> tuple[str, tuple[Any, ...]]:
        """The SQL condition for a `where` clause, never null, and its parameters."""
        value, known = value_of(self.field)
        if self.field == "tag":
            found = (
                "(instr(char(10) || lower(tags) || char(10), char(10) || ? || char(10)) > 0)",
                (self.value.casefold(),),
            )
            if self.operator in {"=", "!="}:
                return (found[0] if self.operator == "=" else f"(not {found[0]})"), found[1]
        match self.operator:
            case "=":
                return self._equals(value, known)
            case "!=":
                text, parameters = self._equals(value, known)
                return f"(not {text})", parameters
            case "~":
                return f"(coalesce(instr(lower(cast({value} as text)), ?), 0) > 0)", (*known, self.value.casefold())
            case _:  # to SQLite the text 'full' is larger than every number
                text = f"(coalesce(typeof({value}) in ('integer', 'real') and {value} {self.operator} ?, 0))"
                return text, (*known, *known, _number(self.value))

    def _equals(self, value: str, known: tuple[str, ...]) -> tuple[str, tuple[Any, ...]]:
        if self.value.casefold() in {"none", "null", ""}:
            return f"({value} is null or {value} = '')", (*known, *known)
        if (number := _number(self.value)) is not None:
            text = f"(coalesce({value} = ? or {value} = ?, 0))"
            return text, (*known, number, *known, f"[{self.value.replace(' ', '')}]")
        if "," in self.value or self.value.startswith("["):
            return f"(coalesce({value} = ?, 0))", (*known, f"[{re.sub(r'[][ ]', '', self.value)}]")
        return f"(coalesce(lower(cast({value} as text)) = ?, 0))", (*known, self.value.casefold())


def _number(text: str) -> float | int | None:
    if text.casefold() in {"true", "yes", "false", "no"}:
        return int(text.casefold() in {"true", "yes"})
    if not _NUMBER.fullmatch(text):
        return None
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def parse(text: str) -> tuple[Condition, ...]:
    """Parse conditions that are separated by commas or `and`. A value with a comma needs brackets or quotes.

    Raises:
        ConfigError: a condition is not valid, or the filter is too long.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"The filter has {len(text):,} characters.", fix=f"It can have {_LONGEST}.")
    pieces = [piece for piece in _pieces(text) if piece.strip()]
    if len(pieces) > MOST_CONDITIONS:
        raise ConfigError(f"The filter has {len(pieces)} conditions.", fix=f"It can have {MOST_CONDITIONS}.")
    return tuple(map(_condition, pieces))


def _pieces(text: str) -> list[str]:
    return re.findall(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|(?!\s+and\s)[^,;])+""", text, re.IGNORECASE)


def _condition(piece: str) -> Condition:
    piece = re.sub(r"^\s*and\s+", "", piece, flags=re.IGNORECASE)
    found = _OPERATOR.fullmatch(piece)
    if not found:
        raise ConfigError(
            f"{visible(piece.strip(), 40)!r} is not a condition.",
            fix="Write field = value, as in optimizer.name = adam, batch_size > 64. Operators: = != < <= > >= ~ (contains).",
        )
    field, operator, value = found[1], found[2].replace("==", "="), found[3]
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    check_field(field)
    if operator in {"<", "<=", ">", ">="} and (_number(value) is None):
        raise ConfigError(
            f"{field} {operator} {visible(value, 20)!r}: the value is not a number.",
            fix="Compare with a number, or use = or ~.",
        )
    return Condition(field, operator, value)
