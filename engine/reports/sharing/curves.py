"""Reads a curve from a CSV (a loss or an accuracy per step, epoch or second) as a run, to compare it with others.

The names or values of the columns decide their units. The notes name each guess, and the user can choose otherwise.
Nothing else is known of the run; the user states its configuration.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Literal

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
from engine.reports.sharing.curve_tables import Table, read_table

UNITS = {"s": 1.0, "ms": 1e-3, "min": 60.0, "h": 3_600.0}
_CLOCK_FROM = 1e9  # seconds; a larger value is a Unix time, not a duration
_LARGEST = 2.0**53
_HARDLY_GROWS = 1.5  # ratio of the largest to the smallest time; that of a total is at least the number of rows, or 2
_TOTAL = r"elapsed|wall|relative|runtime|total"
_OF_EACH = r"(?:^|_)epoch(?:$|_)"


class CurveChoices(BaseModel):
    """What the user says about a table. The rest is guessed, and the notes name each guess."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    columns: dict[str, str] = {}  # role: header, or "" if the table has none
    seconds_in: str = ""  # s, ms, min, h
    seconds_are: Literal["", "total", "each"] = ""  # since the start, or of each row
    percent: bool | None = None  # whether accuracy is in percent
    config: RunConfig = RunConfig()  # its data set decides which runs it can be compared with


def read_curve(text: str, file_name: str, choices: CurveChoices, *, now: float) -> tuple[Report, list[str]]:
    """The table as a report of one run, and notes on what was guessed.

    Raises:
        ConfigError: The text is not a table with a curve, or a chosen column or unit does not exist.
    """
    table = read_table(text, choices.columns)
    axes = _axes(table, choices)
    name = clean_name(visible(choices.name or PurePath(file_name).stem, 100))
    steps = _series(table, ["loss"], axes, ["lr"])
    evaluations = _series(table, ["test_loss", "test_accuracy"], {k: v for k, v in axes.items() if k != "samples"})
    if "test_accuracy" in evaluations:
        evaluations["test_accuracy"] = _shares(evaluations["test_accuracy"], table, choices)
    run = _run({"steps": steps, "evaluations": evaluations}, name, choices.config, now)
    report = Report(schema_version=SCHEMA_VERSION, title=name, created=now, isoflop="", runs=[run])
    return report, table.notes


def _axes(table: Table, choices: CurveChoices) -> dict[str, np.ndarray]:
    """The axes step, seconds, elapsed and samples, each (rows,); NaN if unknown.

    Raises:
        ConfigError: A cell is not a number, or a step or a number of samples is not a whole number.
    """
    unknown = np.full(len(table.cells), math.nan)
    if "step" in table.headers:
        step = _whole(table, "step")
        if (step == 0).any():
            table.notes.append("The file counts steps from 0; Isoflop counts them from 1.")
            step = step + 1
    else:
        table.notes.append("There is no step column, so rows are counted instead.")
        step = np.arange(1.0, len(unknown) + 1)
    seconds = _seconds(table, choices) if "seconds" in table.headers else unknown
    if "samples" in table.headers:
        samples = _whole(table, "samples")
    else:
        samples = _samples(table, choices, step) if "epoch" in table.headers else unknown
    return {"step": step, "seconds": seconds, "elapsed": seconds, "samples": samples}


def _whole(table: Table, role: str) -> np.ndarray:
    """A column of counts.

    Raises:
        ConfigError: A value is not a whole number from 0.
    """
    values = table.numbers(role)
    known = values[np.isfinite(values)]
    if (known != np.rint(known)).any() or (known < 0).any() or (known >= _LARGEST - 1).any():
        what = {"step": "A step", "samples": "A number of samples"}[role]
        raise ConfigError(f"{what} is not a whole number from 0.", fix="Choose another column or none.")
    return values


def _samples(table: Table, choices: CurveChoices, step: np.ndarray) -> np.ndarray:
    """The samples seen after each row, from its epoch; NaN if the epoch or the size of the data set does not say it.

    Raises:
        ConfigError: An epoch is negative or too large.
    """
    data, epoch = DATASETS.get(choices.config.data), table.numbers("epoch")
    known = np.isfinite(epoch)
    if (epoch[known] < 0).any() or (epoch[known] > 1e9).any():
        raise ConfigError("An epoch is not a number from 0 to 1e9.", fix="Choose another column or none.")
    if data is None or not known.any():
        return np.full(len(epoch), math.nan)
    if (epoch[known] == np.rint(epoch[known])).all():  # the number of an epoch, not a share of epochs
        pairs = np.unique(np.column_stack([epoch, step])[known & np.isfinite(step)], axis=0)
        if len(pairs) > len(np.unique(pairs[:, 0])):
            table.notes.append("Samples are not known, because several rows have the same epoch.")
            return np.full(len(epoch), math.nan)
        if epoch[known].min() == 0:
            table.notes.append("The file counts epochs from 0; a row was read as the end of its epoch.")
            epoch = epoch + 1
    examples = f"{data.train_examples:,} training samples of {choices.config.data}"
    table.notes.append(f"One epoch was read as the {examples}.")
    return np.asarray(np.rint(epoch * data.train_examples))


def _seconds(table: Table, choices: CurveChoices) -> np.ndarray:
    """The seconds since the start, after each row.

    Raises:
        ConfigError: A time is negative, or the unit is not known.
    """
    unit = choices.seconds_in or table.unit.get("seconds", "")
    if unit and unit not in UNITS:
        raise ConfigError(f"The unit of time {unit!r} is not known.", fix=f"Choose from {', '.join(UNITS)}.")
    seconds = table.numbers("seconds")
    known = seconds[np.isfinite(seconds)]
    if (known < 0).any():
        raise ConfigError(f"A time is negative: {known.min():g}.", fix="Choose another column or none.")
    if not unit and not choices.seconds_are and len(known) and known.min() > _CLOCK_FROM:
        table.notes.append("Time was read as Unix time, and is counted from the first row.")
        return (seconds - known.min()) * (1e-3 if known.min() > 1e11 else 1.0)
    if not unit:
        table.notes.append("Time was read as seconds, because its column names no unit.")
    seconds = seconds * UNITS[unit or "s"]
    return np.cumsum(seconds) if _are_of_each_row(table, choices, known) else seconds


def _are_of_each_row(table: Table, choices: CurveChoices, known: np.ndarray) -> bool:
    """Whether the times are those of each row, not since the start. Guessed where each row is an epoch."""
    header = re.sub(r"[^a-z]+", "_", table.headers["seconds"].lower())
    if choices.seconds_are or "epoch" not in table.headers or "step" in table.headers or re.search(_TOTAL, header):
        return choices.seconds_are == "each"
    name = repr(visible(table.headers["seconds"], 30))
    if re.search(_OF_EACH, header):
        table.notes.append(f"{name} was read as the time of each epoch, and added up.")
        return True
    if len(known) > 1 and ((np.diff(known) < 0).any() or known.max() < _HARDLY_GROWS * known.min()):
        table.notes.append(f"{name} was read as the time of each epoch, and added up, because it hardly grows.")
        return True
    return False


def _shares(values: np.ndarray, table: Table, choices: CurveChoices) -> np.ndarray:
    """Accuracies as shares.

    Raises:
        ConfigError: An accuracy is outside 0 to 100 %.
    """
    known = values[~np.isnan(values)]
    most = float(known.max()) if len(known) else 0.0
    percent = choices.percent
    if percent is None:
        percent = table.unit.get("test_accuracy") == "%"
        if not percent and most > 1:
            table.notes.append(f"Accuracy was read as percent, because its largest value is {most:g}.")
            percent = True
    limit = 100.0 if percent else 1.0
    if most > limit or (known < 0).any():
        wrong = most if most > limit else float(known.min())
        fix = "Choose that accuracy is in percent." if 1 < most <= 100 else "Choose another column or none."
        raise ConfigError(f"An accuracy is {wrong:g}{' %' if percent else ''}, which is outside 0 to 100 %.", fix=fix)
    return values * 0.01 if percent else values


def _series(
    table: Table, roles: Sequence[str], axes: Mapping[str, np.ndarray], more: Sequence[str] = ()
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
            raise ConfigError(
                f"{name} decreases from one row to the next.",
                fix="Put each run into a file of its own, or choose whether a time is that of each row.",
            )
    return columns


def _run(points: Mapping[str, dict[str, np.ndarray]], name: str, config: RunConfig, now: float) -> ReportRun:
    steps, evaluations = (Points(points[table]) for table in ("steps", "evaluations"))

    def last(table: Points, column: str) -> float | None:
        return float(table[column][-1]) if len(table) and column in table.root else None

    def known(column: str) -> float | None:
        values = [last(table, column) for table in (steps, evaluations)]
        return max((value for value in values if value is not None and is_number(value)), default=None)

    data = DATASETS.get(config.data)
    step, samples, seconds = known("step"), known("samples"), known("seconds")
    summary = Summary(
        steps=None if step is None else int(step),
        samples=None if samples is None else int(samples),
        epochs=samples / data.train_examples if samples is not None and data else None,
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
