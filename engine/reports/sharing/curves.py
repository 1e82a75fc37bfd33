"""Reads a curve from a CSV (a loss or an accuracy per step, epoch or second) as a run, to compare it with others.

The names of the columns decide their roles, and their names or values decide their units. The notes name each guess,
and the user can choose otherwise. Nothing else is known of the run; the user states its configuration.
"""

from __future__ import annotations

import io
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from engine.common.errors import ConfigError
from engine.common.sanitize import clean_name, visible
from engine.config.run import RunConfig
from engine.data.datasets import DATASETS
from engine.events.base import is_number
from engine.events.lifecycle import Finished
from engine.events.summary import Summary
from engine.measurement.energy import Account
from engine.reports.frozen_run import ReportRun
from engine.reports.points import Points
from engine.reports.report import SCHEMA_VERSION, Report

if TYPE_CHECKING:
    import pandas as pd

MAX_COLUMNS, MAX_ROWS, MAX_CELL = 2_000, 2_000_000, 131_072  # MAX_CELL: characters, the csv module's own limit
ROLES = ("step", "epoch", "seconds", "samples", "loss", "test_loss", "test_accuracy", "lr")
UNITS = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3_600.0}
_CLOCK_FROM = 1e9  # seconds; a larger value is a Unix time, not a duration


class CurveChoices(BaseModel):
    """What the user says about a table. The rest is guessed, and the notes name each guess."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    columns: dict[str, str] = {}  # role: header
    seconds_in: str = ""  # s, ms, min, h
    percent: bool | None = None  # whether accuracy is in percent
    config: RunConfig = RunConfig()  # its data set decides which runs it can be compared with


_TRAINING = r"(?:train(?:ing)?|batch)"
_HELD_OUT = r"(?:val(?:id(?:ation)?)?|test|evaluation|eval|dev|held_?out)"
_ACCURACY = r"(?:acc(?:uracy)?|top_?1(?:_acc(?:uracy)?)?)"
_PATTERNS = {
    "step": r"(?:global_|trainer_global_|optimizer_)?(?:steps?|iter(?:ation)?s?|updates?)",
    "epoch": r"epochs?",
    "samples": r"(?:examples?|samples?)(?:_seen)?",
    "seconds": r"(?:(?:train(?:ing)?_|wall_?|elapsed_|relative_)?time|elapsed|seconds|secs?|runtime|minutes|hours|wall)",
    "test_loss": rf"{_HELD_OUT}_loss|loss_{_HELD_OUT}",
    "test_accuracy": rf"{_HELD_OUT}_{_ACCURACY}|{_ACCURACY}_{_HELD_OUT}",
    "train_accuracy": rf"{_TRAINING}_{_ACCURACY}|{_ACCURACY}_{_TRAINING}",
    "loss": rf"(?:{_TRAINING}_)?loss|loss_{_TRAINING}",
    "accuracy": _ACCURACY,
    "lr": r"lr|learning_rate",
}
_UNIT_IN = re.compile(
    r"[(\[]\s*(ms|milliseconds|s|sec|seconds|min|minutes|h|hours|%|percent)\s*[)\]]|_(ms|s|sec|min|h|pct|percent)$"
)
_UNIT_NAMES = {"milliseconds": "ms", "minutes": "min", "hours": "h", "pct": "%", "percent": "%"}
_UNIT_NAMES |= dict.fromkeys(("sec", "secs", "seconds"), "s")
# As float(), but without "1_10" and digits of other scripts, which people do not read as numbers.
_NUMBER = (
    r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI][nN][fF](?:[iI][nN][iI][tT][yY])?|[nN][aA][nN])"
)


@dataclass
class _Table:
    """The columns that have a role, as text, with their units and the notes on guesses."""

    cells: pd.DataFrame  # (rows, roles), stripped; "" for an empty or missing cell
    headers: dict[str, str]  # role: header
    unit: dict[str, str]  # role: unit, if the header names one
    notes: list[str] = field(default_factory=list)

    def numbers(self, role: str) -> np.ndarray:
        """A column as (rows,) float64; NaN for an empty cell, which `has_value` distinguishes from a NaN in the file.

        Raises:
            ConfigError: A cell is not a number; the message names its row.
        """
        cells = self.cells[role]
        wrong = cells[(cells != "") & ~cells.str.fullmatch(_NUMBER)]
        if len(wrong):
            raise ConfigError(
                f"Row {wrong.index[0] + 2}, column {visible(self.headers[role], 40)!r}: "
                f"{visible(wrong.iloc[0], 30)!r} is not a number.",
                fix="Correct the row, or choose another column.",
            )
        return cells.where(cells != "", "nan").to_numpy(dtype=object).astype(np.float64)

    def has_value(self, roles: Sequence[str]) -> np.ndarray:
        """(rows,) bool, whether any of the cells is not empty."""
        return (self.cells[list(roles)] != "").any(axis=1).to_numpy()


def read_curve(text: str, file_name: str, choices: CurveChoices, *, now: float) -> tuple[Report, list[str]]:
    """The table as a report of one run, and notes on what was guessed.

    Raises:
        ConfigError: The text is not a table with a curve, or a chosen column or unit does not exist.
    """
    table = _table(text, choices)
    axes = _axes(table, choices)
    name = clean_name(visible(choices.name or PurePath(file_name).stem, 100))
    steps = _series(table, ["loss"], axes, ["lr"])
    evaluations = _series(table, ["test_loss", "test_accuracy"], {k: v for k, v in axes.items() if k != "samples"})
    if "test_accuracy" in evaluations and _is_percent(table, choices):
        evaluations["test_accuracy"] *= 0.01
    run = _run({"steps": steps, "evaluations": evaluations}, name, choices.config, now)
    report = Report(schema_version=SCHEMA_VERSION, title=name, created=now, isoflop="", runs=[run])
    return report, table.notes


def _table(text: str, choices: CurveChoices) -> _Table:
    """The columns of the text that have a role.

    Raises:
        ConfigError: The text is not a table, or no column is a curve.
    """
    cells = _cells(text)
    headers, cells = [str(header).lstrip("\ufeff") for header in cells.iloc[0]], cells.iloc[1:].reset_index(drop=True)
    place, notes = _roles(headers, choices.columns)
    if not place.keys() & {"loss", "test_loss", "test_accuracy"}:
        raise ConfigError(
            f"No column is a loss or an accuracy. The columns are {', '.join(repr(visible(h, 30)) for h in headers[:8])}.",
            fix="Choose one: --column loss=HEADER or test_accuracy=HEADER.",
        )
    named = {role: headers[number] for role, number in place.items()}
    unit = {role: unit for role, header in named.items() if (unit := _unit_in(header, role))}
    return _Table(cells[list(place.values())].set_axis(list(place), axis=1), named, unit, notes)


def _cells(text: str) -> pd.DataFrame:
    """Every cell as stripped text, the header first, without empty rows.

    Raises:
        ConfigError: The table is empty, damaged or too large.
    """  # noqa: DOC501
    cells = _parsed(text)
    if (longest := max((int(cells[name].str.len().max()) for name in cells), default=0)) > MAX_CELL:
        raise _unreadable(f"a cell has {longest:,} characters, the limit is {MAX_CELL:,}")
    cells = cells.apply(lambda column: column.str.strip())
    cells = cells[(cells != "").any(axis=1)]
    if len(cells) < 2:
        raise ConfigError("The table has no rows below its header.", fix="Add rows; the first row names the columns.")
    if cells.shape[1] > MAX_COLUMNS or len(cells) > MAX_ROWS + 1:
        raise ConfigError(
            f"The table has {cells.shape[1]:,} columns and {len(cells) - 1:,} rows.",
            fix=f"The limit is {MAX_COLUMNS:,} columns and {MAX_ROWS:,} rows.",
        )
    return cells


def _parsed(text: str) -> pd.DataFrame:
    """The cells as text, because pandas reads more texts as numbers or dates than people do.

    Raises:
        ConfigError: The text is not a table.
    """  # noqa: DOC501
    import pandas as pd  # imported here, because the command line must start without it

    if "\0" in text:  # the parser would end a cell there
        raise _unreadable("it contains a NUL character")
    delimiter = max(",;\t", key=text.lstrip("\r\n").partition("\n")[0].count)

    def read(**more: Any) -> pd.DataFrame:
        cells: pd.DataFrame = pd.read_csv(
            io.StringIO(text), sep=delimiter, header=None, dtype=str, na_filter=False, low_memory=False, **more
        )
        return cells

    try:
        # With numbered columns, pandas drops cells beyond the header instead of using the first column as an index.
        columns = range(read(nrows=1).shape[1])
        return read(names=columns, usecols=columns)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (pd.errors.ParserError, ValueError) as error:
        raise _unreadable(visible(str(error), 200).rstrip(".")) from None


def _unreadable(why: str) -> ConfigError:
    return ConfigError(f"The table cannot be read: {why}.", fix="Save it as CSV in UTF-8.")


def _roles(headers: Sequence[str], chosen: Mapping[str, str]) -> tuple[dict[str, int], list[str]]:
    """The number of each role's column, chosen ones first, and notes on what was guessed.

    Raises:
        ConfigError: A chosen role or column does not exist.
    """
    place = dict[str, int]()
    for role, header in chosen.items():
        if role not in ROLES:
            raise ConfigError(f"{role!r} is not a role of a column.", fix=f"Choose from {', '.join(ROLES)}.")
        if header not in headers:
            raise ConfigError(
                f"There is no column {visible(header, 40)!r}.",
                fix=f"Choose from {', '.join(visible(h, 30) for h in headers[:12])}.",
            )
        place[role] = headers.index(header)
    for number, header in enumerate(headers):
        fits = (role for role, names in _PATTERNS.items() if role not in place and re.fullmatch(names, _plain(header)))
        if number not in place.values() and (role := next(fits, "")):
            place[role] = number
    guessed = list[str]()
    if "accuracy" in place:  # in Keras, the training accuracy, beside val_accuracy
        number = place.pop("accuracy")
        header = repr(visible(headers[number], 30))
        if "test_accuracy" in place:
            guessed.append(f"{header} was left out, because beside a test accuracy it is the training accuracy.")
        else:
            place["test_accuracy"] = number
            guessed.append(f"{header} was read as test accuracy.")
    if "train_accuracy" in place:
        header = repr(visible(headers[place.pop("train_accuracy")], 30))
        guessed.append(f"{header} was left out, because Isoflop does not record training accuracy.")
    used = ", ".join(f"{visible(headers[number], 30)!r} as {role}" for role, number in place.items())
    return place, [f"Columns: {used}.", *guessed]


def _plain(header: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", _UNIT_IN.sub("", header.lower())).strip("_")


def _unit_in(header: str, role: str) -> str:
    """The unit that a header names, or ""."""
    if found := _UNIT_IN.search(header.lower()):
        return _UNIT_NAMES.get(found[1] or found[2], found[1] or found[2])
    return _UNIT_NAMES.get(_plain(header), "") if role == "seconds" else ""


def _axes(table: _Table, choices: CurveChoices) -> dict[str, np.ndarray]:
    """The axes step, seconds, elapsed and samples, each (rows,); NaN if unknown.

    Raises:
        ConfigError: A cell is not a number, or a step is not a whole number.
    """
    unknown = np.full(len(table.cells), math.nan)
    seconds = _seconds(table, choices) if "seconds" in table.headers else unknown
    samples = table.numbers("samples") if "samples" in table.headers else unknown
    data = DATASETS.get(choices.config.data)
    if "epoch" in table.headers and "samples" not in table.headers and data:
        samples = np.rint(table.numbers("epoch") * data.train_examples)
        examples = f"{data.train_examples:,} training samples of {choices.config.data}"
        table.notes.append(f"One epoch was read as the {examples}.")
    if "step" not in table.headers:
        table.notes.append("There is no step column, so rows are counted instead.")
        step = np.arange(1.0, len(unknown) + 1)
    else:
        step = table.numbers("step")
        known = step[np.isfinite(step)]
        if (known != np.rint(known)).any() or (known < 0).any() or (known >= 2**53 - 1).any():
            raise ConfigError(
                "A step is not a whole number from 0.", fix="Choose the step column: --column step=HEADER."
            )
        if len(known) and known.min() == 0:
            table.notes.append("The file counts steps from 0; Isoflop counts them from 1.")
            step = step + 1
    return {"step": step, "seconds": seconds, "elapsed": seconds, "samples": samples}


def _seconds(table: _Table, choices: CurveChoices) -> np.ndarray:
    unit = choices.seconds_in or table.unit.get("seconds", "")
    if unit and unit not in UNITS:
        raise ConfigError(f"The unit of time {unit!r} is not known.", fix=f"Choose from {', '.join(UNITS)}.")
    seconds = table.numbers("seconds")
    known = seconds[np.isfinite(seconds)]
    if not unit and len(known) and known.min() > _CLOCK_FROM:
        table.notes.append("Time was read as Unix time, and is counted from the first row.")
        return (seconds - known.min()) * (1e-3 if known.min() > 1e11 else 1.0)
    if not unit:
        table.notes.append("Time was read as seconds, because its column names no unit.")
    return seconds * UNITS[unit or "s"]


def _is_percent(table: _Table, choices: CurveChoices) -> bool:
    if choices.percent is not None:
        return choices.percent
    values = table.numbers("test_accuracy")
    most = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    percent = table.unit.get("test_accuracy") == "%" or most > 1.5
    if percent:
        table.notes.append(f"Accuracy was read as percent, because its largest value is {most:g}.")
    return percent


def _series(
    table: _Table, roles: Sequence[str], axes: Mapping[str, np.ndarray], more: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The rows that have a value of these roles, the last one of each step, with the columns of `more`.

    Raises:
        ConfigError: Steps or an axis decrease.
    """
    import pandas as pd

    roles = [role for role in roles if role in table.headers]
    if not roles:
        return {}
    beside = [role for role in more if role in table.headers]
    rows = pd.DataFrame({**axes, **{role: table.numbers(role) for role in [*roles, *beside]}})
    rows = rows[table.has_value(roles) & np.isfinite(axes["step"])]
    step = rows["step"].to_numpy()
    if len(falls := np.flatnonzero(np.diff(step) < 0)):
        a, b = step[falls[0] : falls[0] + 2]
        raise ConfigError(f"Steps decrease from {a:.0f} to {b:.0f}.", fix="Put each run into a file of its own.")
    once = rows.drop_duplicates("step", keep="last")
    if len(once) < len(rows):
        table.notes.append(f"{len(rows) - len(once):,} rows were left out, because the next row has the same step.")
    columns = {str(name): once[name].to_numpy(copy=True) for name in once}
    for name in (name for name in ("seconds", "elapsed", "samples") if name in columns):
        if not np.isfinite(columns[name]).all():  # a column is known completely or not at all
            columns[name].fill(math.nan)
        if (np.diff(columns[name]) < 0).any():
            raise ConfigError(f"{name} decreases from one row to the next.", fix="Put each run into a file of its own.")
    return columns


def _run(points: Mapping[str, dict[str, np.ndarray]], name: str, config: RunConfig, now: float) -> ReportRun:
    steps, evaluations = (Points(points[table]) for table in ("steps", "evaluations"))

    def last(table: Points, column: str) -> float | None:
        return float(table[column][-1]) if len(table) and column in table.root else None

    def known(table: Points, column: str) -> float:
        value = last(table, column)
        return value if value is not None and is_number(value) else 0.0

    data = DATASETS.get(config.data)
    step = max(known(steps, "step"), known(evaluations, "step"))
    samples = int(known(steps, "samples")) or None
    seconds = known(steps, "seconds") or known(evaluations, "seconds") or None
    summary = Summary(
        steps=int(step),
        samples=samples,
        epochs=samples / data.train_examples if samples and data else None,
        train_seconds=seconds,
        samples_per_s=samples / seconds if samples and seconds else None,
        final_train_loss=last(steps, "loss"),
        test_loss=last(evaluations, "test_loss"),
        test_accuracy=last(evaluations, "test_accuracy"),
    )
    return ReportRun(
        run_id=secrets.token_hex(8),
        name=name,
        created=now,
        config=config,
        fingerprint=config.fingerprint,
        status="finished",
        why="",
        summary=summary,
        parameters=None,
        train_flops_per_example=None,
        train_examples=None,
        test_examples=None,
        setup_s=None,
        warm_up_s=None,
        peak_memory_method="",
        energy_method="",
        energy=Account(source="none", method="A table of numbers contains no energy."),
        environment={},
        missing_readings={},
        problems=[],
        recorded_steps=len(steps),
        steps=steps,
        evaluations=evaluations,
        hardware=Points({}),
        throughput=Points({}),
        last_word=Finished(at=now),
    )
