"""The result table of a race: one row per figure, one column per configuration."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from engine.common import units
from engine.common.sanitize import LONGEST_NAME, visible
from engine.measurement import energy
from engine.studies import race_verdicts
from engine.studies.race_results import Outcome, VariantOutcome

_ENERGY = "Energy to target"
_Read = Callable[[VariantOutcome], str]


def as_table(result: Outcome) -> pd.DataFrame:
    """The table; its last column says how each figure was obtained."""

    def row(title: str, how: str, read: _Read) -> list[str]:
        return [title, *map(read, result.lanes), how]

    rows = [
        row("Test accuracy", "measured on the test samples", lambda r: units.accuracy(r.test_accuracy)),
        row(
            "Largest class",
            "derived: accuracy of always answering the largest class",
            lambda r: units.accuracy(r.largest_class_accuracy),
        ),
        row("Test loss", "measured on the test samples", lambda r: units.loss(r.test_loss)),
    ]
    if result.target is not None:
        rows += [
            row(
                "Time to target",
                "derived, training time: interpolated between two evaluations",
                _time(_cost("seconds", units.duration)),
            ),
            row(
                "Steps to target",
                "derived: interpolated between two evaluations",
                _cost("steps", lambda v: f"{round(v):,}"),
            ),
            row("Evaluated after steps", "the two evaluations; of several runs, the two furthest apart", _evaluated),
            row(
                "Samples to target",
                "derived: interpolated between two evaluations",
                _cost("samples", lambda v: f"{round(v):,}"),
            ),
            row("FLOPs to target", "derived, closed formula per layer", _cost("flops", units.flops)),
            row(_ENERGY, _energy_how(result), _energy(_cost("joules", units.energy))),
            row("Runs that reached it", "counted", lambda r: f"{r.reached} of {sum(r.status.values())}"),
            row(
                "Expected time",
                "derived: time of all runs / number of runs that reached the target",
                _time(lambda r: units.duration(r.expected_s)),
            ),
        ]
        if any(lane.cost["money"] is not None for lane in result.lanes):
            money = row("Money to target", "derived: time x your price", _cost("money", lambda v: f"{v:.3g}"))
            rows.insert(7, money)
    rows += [
        row("Steps per second", "derived: steps / training time", _time(lambda r: _rate(r.steps_per_s))),
        row("Samples per second", "derived: samples / training time", _time(lambda r: _rate(r.samples_per_s))),
        row(
            "Step memory",
            "measured: weights, optimizer state, peak of one step",
            lambda r: units.nbytes(r.memory_bytes),
        ),
        row(
            "Noise of the training loss",
            "derived: spread around a moving mean",
            lambda r: units.UNKNOWN if r.loss_noise is None else f"± {r.loss_noise:.2g}",
        ),
    ]
    labels = [visible(lane.label, LONGEST_NAME) for lane in result.lanes]
    how = "How" if "How" not in labels else "How obtained"
    return pd.DataFrame(rows, columns=["", *labels, how])


def greyed(table: pd.DataFrame, result: Outcome) -> pd.DataFrame:
    """CSS per cell: energies over a window too short for their counter are grey."""
    css = pd.DataFrame("", index=table.index, columns=table.columns)
    short = [n for n, lane in enumerate(result.lanes, 1) if (lane.energy_doubt or 0) > 1 / energy.PERIODS]
    css.iloc[table.iloc[:, 0].to_numpy() == _ENERGY, short] = "color: #8a8f99"
    return css


def _cost(axis: str, write: Callable[[float], str]) -> _Read:
    """What a configuration needed to reach the target, and its ratio to the baseline."""

    def text(lane: VariantOutcome) -> str:
        value = lane.cost[axis]
        if value == 0:
            return "before training"
        if value is None:
            return race_verdicts.reached_in_words(lane) if lane.judged else units.UNKNOWN
        return write(value) + _ratio(lane, axis)

    return text


def _evaluated(lane: VariantOutcome) -> str:
    """The evaluations between which the costs are interpolated."""
    return units.UNKNOWN if lane.between is None else f"{lane.between[0]:,} and {lane.between[1]:,}"


def _time(read: _Read) -> _Read:
    """A figure of time, marked if the machine was busy."""

    def text(lane: VariantOutcome) -> str:
        value = read(lane)
        return value + race_verdicts.busy_in_words(lane) if value[:1].isdigit() else value

    return text


def _energy(read: _Read) -> _Read:
    """Only with one counter per configuration: runs that take turns on a device share its counter."""

    def text(lane: VariantOutcome) -> str:
        if not lane.has_energy:
            return "not available here"
        value = read(lane)
        return energy.with_doubt(value, lane.energy_doubt) if value[:1].isdigit() else value

    return text


def _energy_how(result: Outcome) -> str:
    return "derived from the energy counter" if any(lane.has_energy for lane in result.lanes) else ""


def _rate(value: float | None) -> str:
    return units.UNKNOWN if value is None else units.count(value if value < 100 else round(value))


def _ratio(lane: VariantOutcome, axis: str) -> str:
    share = lane.share.get(axis)
    return "" if share is None else f" ({share:.2g} ×)" if share < 100 else f" ({share:,.0f} ×)"
