"""What several parts of the HTML report share: runs with their label and colour, the lanes of a race, and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import plotly.graph_objects as go

from engine.charts import style, training
from engine.reports.report import Report, ReportRun

MOST_NAMED = 6  # runs that a sentence names, or a table shows unfolded


@dataclass(frozen=True, slots=True)
class PlacedRun:
    """A run of the report with the place that decides its colour. The charts read it as they read the run itself."""

    run: ReportRun
    place: int
    name: str
    lane: bool = False  # whether the place is that of a lane, which other runs share
    label: str = ""  # different from the labels of all other runs of the report

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)

    @property
    def lane_label(self) -> str:
        return self.label.partition(" · seed ")[0] if self.lane else self.label


def curves(runs: Sequence[PlacedRun]) -> training.Runs:
    """The same runs for the charts: `__getattr__` gives them every column, which a type checker cannot see."""
    return cast(training.Runs, runs)


def placed(report: Report) -> list[PlacedRun]:
    """The runs in their order. Where the report is one race, the runs of a lane share a place."""
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
    """Runs of one lane that differ only in their seed: the first of them, their label, and the seeds."""

    first: PlacedRun
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        return self.first.lane_label


def grouped(runs: Sequence[PlacedRun]) -> list[Group]:
    """Each lane's runs that differ only in their seed as one group; a run outside a race is a group of its own."""
    found: dict[tuple[int, str], Group] = {}
    for run in runs:
        alike = run.run.config.model_copy(update={"seed": 0, "checkpoints": 0}).fingerprint
        group = found.get((run.place, alike), Group(run, ()))
        found[run.place, alike] = replace(group, seeds=(*group.seeds, run.run.config.seed))
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a column or row: a label after a short line with the colour and CSS border style of the curves."""

    label: str
    colour: str = ""  # no line where it is empty
    line: str = ""

    @classmethod
    def of(cls, label: str, place: int) -> Head:
        line = {"solid": "solid", "dash": "dashed", "dot": "dotted"}[style.dash(place)]
        return cls(label, style.colour(place), line)


def listed(labels: Sequence[str], num_runs: int) -> str:
    """The labels of some of `num_runs` runs in a sentence, with the number of those it leaves out."""
    if len(labels) == num_runs > 1:
        return "All runs"
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return ", ".join(labels[:MOST_NAMED]) + more


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page: its key among the packed figures, the figure, and what it shows in words."""

    key: str
    figure: go.Figure
    label: str
    title: str = ""  # the heading over it, where it has one
    height: str = ""  # "tall" or "mid", as report.css has them, or "own": as high as the figure says
