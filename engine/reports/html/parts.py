"""Shared parts of the HTML report: runs with label and colour, groups of seeds, column heads and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import plotly.graph_objects as go

from engine.charts import style, training
from engine.reports.frozen_run import ReportRun
from engine.reports.report import Report

MOST_NAMED = 6  # a sentence names so many runs; a table with more columns starts folded


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A run of the report with the position that decides its colour. Charts read its columns through `__getattr__`."""

    run: ReportRun
    place: int
    name: str
    lane: bool = False  # whether `place` belongs to a configuration of a race, which other runs share
    label: str = ""  # unique in the report

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    @property
    def lane_label(self) -> str:
        """The label of the run's configuration, without the seed."""
        return self.label.partition(" · seed ")[0] if self.lane else self.label


def curves(runs: Sequence[PlacedRun]) -> training.Runs:
    """The same runs, typed for the charts: a type checker does not see the columns behind `__getattr__`."""
    return cast(training.Runs, runs)


def placed(report: Report) -> list[PlacedRun]:
    """The runs in order. If the report is one race, the runs of a configuration share a place."""
    runs = [PlacedRun(run, place, run.name) for place, run in enumerate(report.runs)]
    lanes = [lane for conclusion in report.conclusions for lane in conclusion.outcome.lanes]
    lane_of = {run_id: (place, lane.label) for place, lane in enumerate(lanes) for run_id in lane.run_ids}
    if len(report.conclusions) == 1 and all(run.run_id in lane_of for run in report.runs):
        several = len(lanes) < len(runs)
        for i, run in enumerate(report.runs):
            place, label = lane_of[run.run_id]
            runs[i] = PlacedRun(run, place, f"{label} · seed {run.config.seed}" if several else label, lane=True)
    return [replace(run, label=label) for run, label in zip(runs, training.labels(curves(runs)), strict=True)]


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ only in their seed: the first of them, and the seeds."""

    first: PlacedRun
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """The label of the configuration, without the seed."""
        return self.first.lane_label


def grouped(runs: Sequence[PlacedRun]) -> list[Group]:
    """One group per set of runs that differ only in their seed; a run outside a race is a group of its own."""
    found: dict[tuple[int, str], Group] = {}
    for run in runs:
        alike = run.run.config.model_copy(update={"seed": 0, "checkpoints": 0}).fingerprint
        group = found.get((run.place, alike), Group(run, ()))
        found[run.place, alike] = replace(group, seeds=(*group.seeds, run.run.config.seed))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column or row: a label, and the colour and CSS border style of its curves."""

    label: str
    colour: str = ""  # "" draws no line
    line: str = ""

    @classmethod
    def of(cls, label: str, place: int) -> Head:
        """The head with the line style of the curves at `place`."""
        line = {"solid": "solid", "dash": "dashed", "dot": "dotted"}[style.dash(place)]
        return cls(label, style.colour(place), line)


def listed(labels: Sequence[str], num_runs: int) -> str:
    """The labels of some of `num_runs` runs as a list in a sentence; beyond `MOST_NAMED` it only counts them."""
    if len(labels) == num_runs > 1:
        return "All runs"
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return ", ".join(labels[:MOST_NAMED]) + more


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page: its key among the packed figures, the figure, and its description for screen readers."""

    key: str
    figure: go.Figure
    label: str
    title: str = ""  # the heading above it; "" for none
    height: str = ""  # "tall" or "mid" (see report.css), or "own" for the height of the figure
