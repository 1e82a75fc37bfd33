"""Somebody else's curve: a CSV with a loss or an accuracy per step, epoch or second, as a run to lay beside others.

What its columns are goes by their names, and what they are measured in by name or size; both are said, and both can be
chosen. Nothing else is known of it: its configuration is what whoever imports it says.
"""

from __future__ import annotations

import csv
import io
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import numpy as np
from pydantic import BaseModel, ConfigDict

from engine.config import RunConfig
from engine.datasets import DATASETS
from engine.energy import Account
from engine.errors import ConfigError
from engine.records import Finished, Summary, is_number
from engine.report import SCHEMA_VERSION, Points, Report, ReportRun
from engine.text import clean_name, visible

MAX_COLUMNS, MAX_ROWS = 2_000, 2_000_000
ROLES = ("step", "epoch", "seconds", "samples", "loss", "test_loss", "test_accuracy", "lr")
UNITS = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3_600.0}
_CLOCK_FROM = 1e9  # seconds: a Unix time, not a duration


class CurveChoices(BaseModel):
    """What whoever imports a table says of it; the rest is guessed, and said."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    columns: dict[str, str] = {}  # role: header
    seconds_in: str = ""  # s, ms, min, h
    percent: bool | None = None  # whether accuracy is
    config: RunConfig = RunConfig()  # the data set decides what it can be compared with


_TRAINING = r"(?:train(?:ing)?|batch)"
_HELD_OUT = r"(?:val(?:id(?:ation)?)?|test|evaluation|eval|dev|held_?out)"
_ACCURACY = r"(?:acc(?:uracy)?|top_?1(?:_acc(?:uracy)?)?)"
_PATTERNS: tuple[tuple[str, str], ...] = (
    ("step", r"(?:global_|trainer_global_|optimizer_)?(?:steps?|iter(?:ation)?s?|updates?)"),
    ("epoch", r"epochs?"),
    ("samples", r"(?:examples?|samples?)(?:_seen)?"),
    (
        "seconds",
        r"(?:(?:train(?:ing)?_|wall_?|elapsed_|relative_)?time|elapsed|seconds|secs?|runtime|minutes|hours|wall)",
    ),
    ("test_loss", rf"{_HELD_OUT}_loss|loss_{_HELD_OUT}"),
    ("test_accuracy", rf"{_HELD_OUT}_{_ACCURACY}|{_ACCURACY}_{_HELD_OUT}"),
    ("train_accuracy", rf"{_TRAINING}_{_ACCURACY}|{_ACCURACY}_{_TRAINING}"),
    ("loss", rf"(?:{_TRAINING}_)?loss|loss_{_TRAINING}"),
    ("accuracy", _ACCURACY),
    ("lr", r"lr|learning_rate"),
)
_UNIT_IN = re.compile(
    r"[(\[]\s*(ms|milliseconds|s|sec|seconds|min|minutes|h|hours|%|percent)\s*[)\]]|_(ms|s|sec|min|h|pct|percent)$"
)
_UNIT_NAMES = {
    "milliseconds": "ms",
    "sec": "s",
    "seconds": "s",
    "minutes": "min",
    "hours": "h",
    "pct": "%",
    "percent": "%",
}


@dataclass
class _Read:
    """The table, and what was found out about it."""

    rows: list[list[str]]
    place: dict[str, int]  # role: column
    unit: dict[str, str]  # role: unit, where the header says one
    headers: list[str]
    notes: list[str] = field(default_factory=list)

    def numbers(self, role: str) -> np.ndarray:
        """(rows,) float64; NaN where the cell is empty, and `holds` says that. Raises ConfigError naming the row."""
        column = np.full(len(self.rows), math.nan)
        place = self.place[role]
        for number, row in enumerate(self.rows):
            if cell := row[place].strip() if place < len(row) else "":
                try:
                    column[number] = float(cell)
                except ValueError:
                    raise ConfigError(
                        f"Row {number + 2}, column {self._name(role)}: {visible(cell, 30)!r} is not a number.",
                        fix="Mend the row, or name another column.",
                    ) from None
        return column

    def holds(self, role: str) -> np.ndarray:
        """(rows,) whether the cell says something, NaN included."""
        place = self.place[role]
        return np.array([place < len(row) and bool(row[place].strip()) for row in self.rows], dtype=bool)

    def _name(self, role: str) -> str:
        return repr(visible(self.headers[self.place[role]], 40))


def read_curve(text: str, file_name: str, choices: CurveChoices, *, now: float) -> tuple[Report, list[str]]:
    """The table as a report of one run, and what was guessed. Raises ConfigError in one sentence."""
    table = _table(text, choices)
    told = {role for role in ("loss", "test_loss", "test_accuracy") if role in table.place}
    if not told:
        found = ", ".join(repr(visible(header, 30)) for header in table.headers[:8])
        raise ConfigError(
            f"No column is a loss or an accuracy: there are {found}.",
            fix="Name one: --column loss=HEADER or test_accuracy=HEADER.",
        )
    step, seconds, samples = _axes(table, choices)
    name = clean_name(visible(choices.name or PurePath(file_name).stem, 100))
    points = {
        "steps": _series(table, ["loss"], step, seconds, samples, lr="lr" in table.place),
        "evaluations": _series(table, [r for r in ("test_loss", "test_accuracy") if r in told], step, seconds, None),
    }
    if "test_accuracy" in points["evaluations"]:
        points["evaluations"]["test_accuracy"] *= 0.01 if _is_percent(table, choices) else 1
    run = _run(points, name, choices.config, now)
    report = Report(schema_version=SCHEMA_VERSION, title=name, created=now, isoflop="", runs=[run])
    return report, table.notes


def _table(text: str, choices: CurveChoices) -> _Read:
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise ConfigError(f"The table cannot be read: {error}.", fix="Save it as CSV in UTF-8.") from None
    if len(rows) < 2:
        raise ConfigError("The table has no rows under its header.", fix="The first row names the columns.")
    headers, rows = rows[0], rows[1:]
    if len(headers) > MAX_COLUMNS or len(rows) > MAX_ROWS:
        raise ConfigError(
            f"The table has {len(headers):,} columns and {len(rows):,} rows.",
            fix=f"At most {MAX_COLUMNS:,} columns and {MAX_ROWS:,} rows are read.",
        )
    place, unit, notes = _roles(headers, choices.columns)
    return _Read(rows, place, unit, headers, notes)


def _roles(headers: Sequence[str], chosen: Mapping[str, str]) -> tuple[dict[str, int], dict[str, str], list[str]]:
    place, unit, notes = dict[str, int](), dict[str, str](), list[str]()
    stripped = [header.strip().lstrip("\ufeff") for header in headers]
    for role, header in chosen.items():
        if role not in ROLES:
            raise ConfigError(f"{role!r} is no column of a curve.", fix=f"Choose from {', '.join(ROLES)}.")
        if header not in stripped:
            raise ConfigError(
                f"There is no column {visible(header, 40)!r}.",
                fix=f"There are {', '.join(visible(h, 30) for h in stripped[:12])}.",
            )
        place[role] = stripped.index(header)
    for number, header in enumerate(stripped):
        if number in place.values():
            continue
        for role, pattern in _PATTERNS:
            if role not in place and re.fullmatch(pattern, _plain(header)):
                place[role] = number
                break
    if "accuracy" in place:  # Keras calls the one on training examples so, beside val_accuracy
        number = place.pop("accuracy")
        if "test_accuracy" in place:
            notes.append(
                f"{visible(stripped[number], 30)!r} was left out: beside a held-out accuracy it is that of training."
            )
        else:
            place["test_accuracy"] = number
            notes.append(f"{visible(stripped[number], 30)!r} was taken as accuracy on held-out examples.")
    if "train_accuracy" in place:
        notes.append(
            f"{visible(stripped[place.pop('train_accuracy')], 30)!r} was left out: accuracy in training is not recorded here."
        )
    for role, number in place.items():
        if found := _UNIT_IN.search(stripped[number].lower()):
            said = found[1] or found[2]
            unit[role] = _UNIT_NAMES.get(said, said)
        elif role == "seconds" and (word := _plain(stripped[number])) in {"minutes", "hours", "seconds", "sec", "secs"}:
            unit[role] = {"minutes": "min", "hours": "h"}.get(word, "s")
    used = {stripped[number]: role for role, number in place.items()}
    notes.insert(
        0, "Columns: " + ", ".join(f"{visible(header, 30)!r} as {role}" for header, role in used.items()) + "."
    )
    return place, unit, notes


def _plain(header: str) -> str:
    name = _UNIT_IN.sub("", header.lower())
    return re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _axes(table: _Read, choices: CurveChoices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows,) step, seconds and samples; what is not known is NaN."""
    unknown = np.full(len(table.rows), math.nan)
    seconds = _seconds(table, choices) if "seconds" in table.place else unknown
    samples = table.numbers("samples") if "samples" in table.place else unknown
    if "epoch" in table.place and "samples" not in table.place:
        data = DATASETS.get(choices.config.data)
        if data:
            samples = np.rint(table.numbers("epoch") * data.train_examples)
            table.notes.append(
                f"An epoch was taken as the {data.train_examples:,} training examples of {choices.config.data}."
            )
    if "step" not in table.place:
        table.notes.append("There is no column of steps: rows are counted instead.")
        return np.arange(1.0, len(table.rows) + 1), seconds, samples
    step = table.numbers("step")
    known = step[np.isfinite(step)]
    if (known != np.rint(known)).any() or (known < 0).any() or (known >= 2**53 - 1).any():
        raise ConfigError("A step is not a whole number from 0.", fix="Name the column of steps: --column step=HEADER.")
    if len(known) and known.min() == 0:
        table.notes.append("Steps are counted from 0 there, and from 1 here.")
        step = step + 1
    return step, seconds, samples


def _seconds(table: _Read, choices: CurveChoices) -> np.ndarray:
    unit = choices.seconds_in or table.unit.get("seconds", "")
    if unit and unit not in UNITS:
        raise ConfigError(f"Time in {unit!r} is not understood.", fix=f"Choose from {', '.join(UNITS)}.")
    seconds = table.numbers("seconds")
    known = seconds[np.isfinite(seconds)]
    if not unit and len(known) and known.min() > _CLOCK_FROM:
        scale = 1e-3 if known.min() > 1e11 else 1.0
        table.notes.append("Time was taken as that of a clock, and counted from the first row.")
        return (seconds - known.min()) * scale
    if not unit:
        table.notes.append("Time was taken as seconds: its column does not say.")
    return seconds * UNITS[unit or "s"]


def _is_percent(table: _Read, choices: CurveChoices) -> bool:
    if choices.percent is not None:
        return choices.percent
    values = table.numbers("test_accuracy")
    most = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    percent = table.unit.get("test_accuracy") == "%" or most > 1.5
    if percent:
        table.notes.append(f"Accuracy was taken as percent: its largest value is {most:g}.")
    return percent


def _series(
    table: _Read,
    roles: Sequence[str],
    step: np.ndarray,
    seconds: np.ndarray,
    samples: np.ndarray | None,
    *,
    lr: bool = False,
) -> dict[str, np.ndarray]:
    """The rows that say something of these columns, one per step."""
    roles = [role for role in roles if role in table.place]
    if not roles:
        return {}
    there = np.any([table.holds(role) for role in roles], axis=0) & np.isfinite(step)
    columns = {"step": step, "seconds": seconds, "elapsed": seconds} | {role: table.numbers(role) for role in roles}
    columns |= {"samples": samples} if samples is not None else {}
    columns |= {"lr": table.numbers("lr")} if lr else {}
    columns = {name: column[there] for name, column in columns.items()}
    falls = np.flatnonzero(np.diff(columns["step"]) < 0)
    if len(falls):
        a, b = columns["step"][falls[0] : falls[0] + 2]
        raise ConfigError(
            f"Steps fall from {a:.0f} to {b:.0f}.", fix="One file is one curve: give each run a file of its own."
        )
    last = np.append(np.diff(columns["step"]) > 0, True) if there.any() else np.empty(0, bool)
    if not last.all():
        table.notes.append(f"{int((~last).sum()):,} rows have the step of the next one, and were left out.")
    columns = {name: column[last] for name, column in columns.items()}
    for name in ("seconds", "elapsed", "samples"):  # unknown throughout, or known throughout
        if name in columns and not np.isfinite(columns[name]).all():
            columns[name] = np.full_like(columns[name], math.nan)
        if name in columns and len(columns[name]) and (np.diff(columns[name]) < 0).any():
            raise ConfigError(
                f"{name} falls from row to row.", fix="One file is one curve: give each run a file of its own."
            )
    return columns


def _run(points: Mapping[str, dict[str, np.ndarray]], name: str, config: RunConfig, now: float) -> ReportRun:
    steps, evaluations = (Points(points[table]) for table in ("steps", "evaluations"))

    def as_it_is(table: Points, column: str) -> float | None:
        return float(table[column][-1]) if len(table) and column in table.root else None

    def last(table: Points, column: str) -> float | None:
        value = as_it_is(table, column)
        return value if is_number(value) else None

    data = DATASETS.get(config.data)
    step = max(last(steps, "step") or 0, last(evaluations, "step") or 0)
    samples = int(last(steps, "samples") or 0)
    seconds = last(steps, "seconds") or last(evaluations, "seconds") or 0.0
    summary = Summary(
        steps=int(step), samples=samples, epochs=samples / data.train_examples if data else 0.0, train_seconds=seconds,
        samples_per_s=samples / seconds if samples and seconds else None,
        final_train_loss=as_it_is(steps, "loss"),
        test_loss=as_it_is(evaluations, "test_loss"),
        test_accuracy=as_it_is(evaluations, "test_accuracy"),
    )  # fmt: skip
    return ReportRun(
        run_id=secrets.token_hex(8), name=name, created=now, config=config, fingerprint=config.fingerprint, status="finished",
        why="", summary=summary, parameters=None, train_flops_per_example=None, train_examples=None, test_examples=None,
        setup_s=None, warm_up_s=None, peak_memory_method="", energy_method="",
        energy=Account(source="none", method="A table of numbers says nothing of energy."), environment={}, missing_readings={},
        problems=[], recorded_steps=len(steps), steps=steps, evaluations=evaluations, hardware=Points({}), throughput=Points({}),
        last_word=Finished(at=now),
    )  # fmt: skip
