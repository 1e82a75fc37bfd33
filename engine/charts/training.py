"""The charts of runs, for reports: made from the same rows as the page's charts (`facts`).

A figure has no title, legend box or background of its own: the card around it names the quantity, and it suits light
and dark pages. A run's colour depends on its place in the sequence, so pass the same runs in the same order to each chart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import plotly.graph_objects as go

from engine.charts import facts as charts_facts
from engine.charts.facts import RUN_CHARTS
from engine.charts.style import GREY, MARK, colour, dash, literal, new_figure
from engine.common.downsample import minmax
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.training import Target
from engine.events.target import when_reached
from engine.events.training import TargetReached
from engine.store.columns import samples_at
from engine.store.csv_tables import NAN_IS_MEASURED, Columns, Tables

Axis = Literal["step", "seconds", "samples"]
MAX_POINTS = 2_000
MAX_MARKS = 20
_LONGEST_LABEL = 40


class Curves(Tables, Protocol):
    """The parts of a run that a chart needs; `store.run.Run` and a run in a report have them."""

    @property
    def run_id(self) -> str:
        """The id of the run."""

    @property
    def name(self) -> str:
        """The user's name of the run; can be empty."""

    @property
    def config(self) -> RunConfig:
        """The configuration."""

    @property
    def target_reached(self) -> TargetReached | None:
        """The evaluation that reached the target; None where none did."""


Runs = Sequence[Curves]


# --- the charts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chart:
    """A row of `facts.RUN_CHARTS` as a figure of some runs."""

    facts: charts_facts.Chart

    @property
    def key(self) -> str:
        """The key of the row."""
        return self.facts.key

    @property
    def title(self) -> str:
        """The title of the row."""
        return self.facts.title

    def has_data(self, run: Curves) -> bool:
        """Whether the run has points for this chart; an empty chart is not drawn."""
        return any(self._has_points(run, line) for line in self.facts.lines if line.in_report)

    def _has_points(self, run: Curves, line: charts_facts.Line) -> bool:
        table = getattr(run, line.table)
        if not (len(table) and _knows(table, line.column)):  # an imported table may lack it
            return False
        values = table[line.column]
        if self.facts.shown == "lr_moves":
            return bool(values.min() < values.max())
        return line.column in NAN_IS_MEASURED or not bool(np.isnan(values).all())

    def title_of(self, runs: Runs) -> str:
        """The title; for runs on text data, the row's title for text where it has one."""
        is_text = bool(runs) and all(run.config.is_text for run in runs)
        return self.facts.text_title if is_text and self.facts.text_title else self.title

    def draw(self, runs: Runs, *, axis: Axis = "step", max_points: int = MAX_POINTS) -> go.Figure:
        """One line for each run and each line of the row; NaN and infinity as red marks, targets as dashed lines.

        `axis` applies to charts of steps and evaluations; readings and throughput are drawn over the time since the start.
        A line has at most about `max_points` points.
        """
        facts = self.facts
        lines = [line for line in facts.lines if line.in_report]
        columns = [(run, getattr(run, line.table), line.column) for run in runs for line in lines]
        known = [table[column] for _, table, column in columns if len(table) and _knows(table, column)]
        seconds, x_title = (
            _clock([t["elapsed"] for _, t, _ in columns]) if facts.is_over_time else (1.0, _axis_title(axis))
        )
        factor, unit = _display_unit(facts, known)
        log = facts.log_from is not None and _spans_decades(known, facts.log_from)
        figure = new_figure(
            x_title, _y_title(facts.axis_title or self.title_of(runs), f"{unit} {facts.of}".strip(), log=log)
        )
        reach = _reach(runs, axis)
        for run, label, style in _styled(runs):
            for line in lines:
                table = getattr(run, line.table)
                if not (len(table) and _knows(table, line.column)):  # an imported table may lack it
                    continue
                x = table["elapsed"] / seconds if facts.is_over_time else _along(table, run, axis)
                y = table[line.column] * factor
                is_first = line is lines[0]
                name = label + (self.title_of(runs) if is_first else line.name.capitalize())
                look = style if is_first else style | {"dash": "dash" if style["dash"] == "solid" else "dashdot"}
                if facts.is_over_time and np.isnan(y).all():
                    continue
                if line.is_noisy or facts.is_over_time:
                    _raw_and_smooth(figure, x, y, name, look, max_points, facts.digits, f" {unit}" if unit else "")
                else:
                    _line(
                        figure,
                        x,
                        y,
                        name,
                        look,
                        max_points,
                        facts.digits,
                        f" {unit}" if unit else "",
                        dots=line.is_sparse,
                    )
                if line.column in NAN_IS_MEASURED:
                    _marks(figure, x, y, table["step"], name, reach)
        if log:
            figure.update_yaxes(type="log", dtick=1)
        else:
            figure.update_yaxes(tickformat=facts.tick or None, rangemode="tozero" if facts.from_zero else None)
        if len(lines) == 1:
            figure.update_layout(showlegend=len(runs) > 1)
        if facts.target:
            _targets(figure, runs, facts.target, axis, scale=facts.factor, log=log)
        return figure


CHARTS = tuple(map(Chart, RUN_CHARTS))
BY_KEY = {chart.key: chart for chart in CHARTS}


def shown(runs: Runs) -> list[Chart]:
    """The charts that have points for at least one of the runs."""
    return [chart for chart in CHARTS if any(chart.has_data(run) for run in runs)]


def labels(runs: Runs) -> list[str]:
    """A short, unique name for each run: its name or its configuration, with its id where two are equal."""
    names = [run.name or describe(run.config) for run in runs]
    names = [visible(name, _LONGEST_LABEL) for name in names]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [f"{name} · {run.run_id[:6]}" if name in twice else name for name, run in zip(names, runs, strict=True)]


def ema(y: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average of `y` (n,) over about `span` rows, with bias correction as in Adam (Kingma & Ba 2015).

    Both the values and their weights are averaged from zero, and divided, so the first value has no extra weight. A NaN or
    infinity has weight 0 and becomes NaN, so that the line has a gap there.
    """
    finite = np.isfinite(y)
    keep = 1 - 2 / (max(span, 1.0) + 1)
    if keep == 0:
        return np.where(finite, y, math.nan)
    total, weight = _decaying_sum(np.where(finite, y, 0.0), keep), _decaying_sum(finite.astype(float), keep)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, total / weight, math.nan)


def _decaying_sum(x: np.ndarray, keep: float) -> np.ndarray:
    """s[t] = keep * s[t-1] + x[t] for x (n,), in blocks so short that keep**-t does not overflow."""
    block = max(1, min(len(x), int(-50 / math.log(keep))))
    powers = keep ** np.arange(1, block + 1)
    out, carried = np.empty(len(x)), 0.0
    for first in range(0, len(x), block):
        part = x[first : first + block]
        decay = powers[: len(part)]
        out[first : first + block] = decay * (carried + np.cumsum(part / decay))
        carried = float(out[first + len(part) - 1])
    return out


Style = dict[str, Any]  # colour, dash, legendgroup


def _styled(runs: Runs) -> list[tuple[Curves, str, Style]]:
    """Each run with the prefix of its traces' names, which is empty for a single run, and its style."""
    words = [f"{literal(label)} · " for label in labels(runs)] if len(runs) > 1 else [""] * len(runs)
    places = [getattr(run, "place", i) for i, run in enumerate(runs)]  # seeds of a configuration share its place
    return [
        (run, word, {"colour": colour(i), "dash": dash(i), "legendgroup": str(i) if len(runs) > 1 else None})
        for i, run, word in zip(places, runs, words, strict=True)
    ]


def _raw_and_smooth(
    figure: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    style: Style,
    max_points: int,
    number: str,
    unit: str = "",
) -> None:
    span = min(200.0, len(y) / 60)  # a longer average would visibly lag behind the steep start
    if span < 2:
        return _line(figure, x, y, name, style, max_points, number, unit)
    kept = minmax(y, max_points)
    finite = np.where(np.isfinite(y), y, math.nan)
    figure.add_scatter(
        x=_compact(x[kept]),
        y=_compact(finite[kept]),
        mode="lines",
        name=name,
        hoverinfo="skip",
        showlegend=False,
        legendgroup=style["legendgroup"],
        line={"color": style["colour"], "width": 1},
        opacity=0.25,
    )
    _line(figure, x, ema(y, span), name, style, max_points, number, unit)


def _line(
    figure: go.Figure,
    x: np.ndarray,
    y: np.ndarray,
    name: str,
    style: Style,
    max_points: int,
    number: str,
    unit: str = "",
    *,
    dots: bool = False,
) -> None:
    if not len(y):
        return
    kept = minmax(y, max_points)
    show_dots = len(kept) == 1 or (dots and len(kept) <= 40)  # a line needs two points
    figure.add_scatter(
        x=_compact(x[kept]),
        y=_compact(np.where(np.isfinite(y), y, math.nan)[kept]),
        name=name,
        mode="lines+markers" if show_dots else "lines",
        marker={"size": 5, "color": style["colour"]},
        line={"color": style["colour"], "width": 1.8, "dash": style["dash"]},
        legendgroup=style["legendgroup"],
        hovertemplate=f"%{{y:{number}}}{unit}",
    )


def _marks(figure: go.Figure, x: np.ndarray, y: np.ndarray, step: np.ndarray, name: str, reach: float) -> None:
    """A red cross where a value became NaN or infinite, at the height of the last finite value before it.

    Its text is on the side with more room, on an axis that ends at `reach`.
    """
    not_finite = ~np.isfinite(y)
    begins = np.flatnonzero(not_finite & ~np.concatenate([[False], not_finite[:-1]]))[:MAX_MARKS]
    if not len(begins):
        return
    before = np.array([_last_finite(y[:row]) for row in begins])
    words = [f"{_word(y[row])} at step {int(step[row]):,}" for row in begins]
    sides = ["middle right" if at < reach / 2 else "middle left" for at in x[begins]]
    words = [f" {word} " for word in words]  # off the cross
    figure.add_scatter(
        x=_compact(x[begins]),
        y=_compact(before),
        mode="markers+text",
        text=words,
        textposition=sides,
        marker={"symbol": "x", "size": 10, "color": MARK},
        textfont={"color": MARK},
        showlegend=False,
        name=name,
        hovertemplate="%{text}",
        cliponaxis=False,
    )


def _targets(figure: go.Figure, runs: Runs, metric: str, axis: Axis, *, scale: float = 1, log: bool = False) -> None:
    """A dashed line at each target for `metric`, and a mark where a run reached its target."""
    aims = [run.config.target for run in runs if run.config.target.metric == metric]
    for value, aim in {aim.value: aim for aim in aims if aim.value}.items():
        assert value is not None
        y = value * scale
        figure.add_shape(
            type="line", xref="paper", x0=0, x1=1, y0=y, y1=y, line={"color": GREY, "width": 1, "dash": "dash"}
        )
        figure.add_annotation(
            xref="paper",
            x=0,
            xanchor="left",
            y=math.log10(y) if log else y,
            yanchor="bottom",
            showarrow=False,
            text=f"target {target_in_words(aim)}",
        )
    for run, label, style in _styled(runs):
        reached, aim = run.target_reached, run.config.target
        if reached is None or reached.metric != metric or aim.value is None:  # a report can have one without the other
            continue
        words = f"{target_in_words(aim)} {when_reached(aim, reached, run.evaluations)}"
        figure.add_scatter(
            x=_where(run, reached, axis),
            y=[reached.value * scale],
            mode="markers",
            showlegend=False,
            marker={"symbol": "diamond", "size": 10, "color": style["colour"]},
            legendgroup=style["legendgroup"],
            name=f"{label}target",
            hovertemplate=words,
        )


def target_in_words(target: Target) -> str:
    """A target as text: `95 %` or `test loss 0.3`."""
    assert target.value is not None
    return f"{100 * target.value:g} %" if target.metric == "test_accuracy" else f"test loss {target.value:g}"


def _where(run: Curves, reached: TargetReached, axis: Axis) -> np.ndarray:
    """The x of a reached target, (1,)."""
    if axis == "samples" and len(run.steps):
        return np.interp([reached.step], run.steps["step"], run.steps["samples"])
    return np.array([reached.train_s if axis == "seconds" else reached.step])


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "+∞" if value > 0 else "-∞"


def _last_finite(y: np.ndarray) -> float:
    rows = np.flatnonzero(np.isfinite(y))
    return float(y[rows[-1]]) if len(rows) else 1.0


def _clock(elapsed: Iterable[np.ndarray]) -> tuple[float, str]:
    """Seconds in the unit of a time axis that holds the longest of some runs, and the axis's title."""
    longest = max((float(x[-1]) for x in elapsed if len(x)), default=0.0)
    seconds, word = (1, "s") if longest < 300 else (60, "min") if longest < 18_000 else (3_600, "h")
    return seconds, f"Elapsed time ({word})"


def _display_unit(facts: charts_facts.Chart, columns: Sequence[np.ndarray]) -> tuple[float, str]:
    """The factor from a column's unit to the one shown, and that unit; bytes by the largest value."""
    if facts.unit != "bytes":
        return facts.factor, facts.unit
    largest = max((float(np.nanmax(y)) for y in columns if not np.isnan(y).all()), default=0.0)
    return (2**-30, "GiB") if largest >= 2**30 else (2**-20, "MiB")


def _y_title(title: str, unit: str, *, log: bool) -> str:
    words = ", ".join(filter(None, (unit, "log scale" if log else "")))
    return f"{title} ({words})" if words else title


def _knows(table: Columns, column: str) -> bool:
    knows: Callable[[str], bool] | None = getattr(table, "knows", None)
    return knows is None or knows(column)


def _along(table: Columns, run: Curves, axis: Axis) -> np.ndarray:
    """The x of a table's rows; an evaluation has the x of its step."""
    if axis != "samples":
        return table[axis]
    return samples_at(run.steps, table["step"])


def _reach(runs: Runs, axis: Axis) -> float:
    """The x at which the longest run ends."""
    ends = [float(_along(run.steps, run, axis)[-1]) for run in runs if len(run.steps)]
    return max((end for end in ends if math.isfinite(end)), default=0.0)


def _spans_decades(columns: Iterable[np.ndarray], ratio: float) -> bool:
    """Whether the largest positive value is more than `ratio` times the smallest."""
    values = np.concatenate([np.empty(0), *columns])
    values = values[np.isfinite(values) & (values > 0)]
    return len(values) > 0 and bool(values.max() > ratio * values.min())


def _axis_title(axis: Axis) -> str:
    return {"step": "Step", "seconds": "Training time (s)", "samples": "Samples seen"}[axis]


def _compact(values: np.ndarray) -> np.ndarray:
    """The values with half the bytes for the browser: whole numbers as int32, others as float32."""
    if len(values) and np.isfinite(values).all() and (values == np.rint(values)).all() and np.abs(values).max() < 2**31:
        return values.astype(np.int32)
    return values.astype(np.float32)
