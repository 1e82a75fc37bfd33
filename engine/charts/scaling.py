"""Charts of a scaling study: speed-up, efficiency, and the parts of a step for each number of ranks.

Dots are measured, with their intervals; dashed lines are ideals; the dotted line is a fit. Hollow dots are runs that are
not over, or share cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from engine.charts.style import GREY, PALETTE, new_figure
from engine.common import units
from engine.studies.scaling import Mode
from engine.studies.scaling_estimates import Estimate, amdahl
from engine.studies.scaling_results import LaneFigures, Outcome

_COLORS: dict[Mode, str] = {"strong": PALETTE[0], "weak": PALETTE[1]}
_NAMES: dict[Mode, str] = {"strong": "strong: ranks share one batch", "weak": "weak: one batch per rank"}
_APART = 0.035  # offset between the dots of the two modes, as a share of a doubling
_CURVE_POINTS = 60
_FAR = 2.5  # the axis shows an interval up to this multiple of its value, because some are very wide
_MS = 1e3


def speedup_chart(found: Outcome) -> go.Figure:
    """Samples/s divided by those of one rank, against the number of ranks; both axes are logarithmic."""
    figure, ranks = _figure("Speed-up"), _ranks(found)
    _line(figure, ranks, [float(n) for n in ranks], "ideal", "dash")
    if found.serial and len(ranks) > 1:
        n = np.geomspace(1, ranks[-1], _CURVE_POINTS)
        _line(figure, n.tolist(), amdahl(found.serial.value, n).tolist(), "Amdahl's law, fitted", "dot")
    shown = [1.0, float(ranks[-1])]
    for mode in ("strong", "weak"):
        shown += _dots(figure, found, mode, lambda at: at.speedup, "%{y:.2f} times")
    low, high = min(shown), max(shown)
    ticks = [t for t in (0.125, 0.25, 0.5, *(2.0**i for i in range(7))) if low / 1.5 <= t <= high * 1.5]
    figure.update_yaxes(
        type="log",
        range=[float(np.log10(low / 1.2)), float(np.log10(high * 1.2))],
        tickvals=ticks,
        ticktext=[f"{t:g}" for t in ticks],
    )
    return figure


def efficiency_chart(found: Outcome) -> go.Figure:
    """Speed-up divided by the number of ranks."""
    figure, ranks = _figure("Efficiency (%)"), _ranks(found)
    _line(figure, ranks, [100.0] * len(ranks), "ideal", "dash")
    shown = [100.0]
    for mode in ("strong", "weak"):
        shown += _dots(figure, found, mode, lambda at: at.efficiency and at.efficiency.scaled(100), "%{y:.0f} %")
    figure.update_yaxes(range=[0, 1.08 * max(shown)], rangemode="tozero")
    return figure


def step_chart(found: Outcome) -> go.Figure:
    """The parts of a step of each lane: own work, waiting for communication, and waiting for slower ranks."""
    figure = _figure("Time per step (ms)")
    lanes = [at for at in found.lanes if at.step_s]
    labels = [short_label(at) for at in lanes]
    parts = {
        "own work": ([at.own_s for at in lanes], PALETTE[0]),
        "waits: all-reduce": ([_exchange_s(at) for at in lanes], PALETTE[1]),
        "waits: slower rank": ([at.for_slowest_s if at.ranks > 1 else None for at in lanes], PALETTE[3]),
        "whole step, parts not measured": ([at.step_s if at.own_s is None else None for at in lanes], GREY),
    }
    for name, (seconds, color) in parts.items():
        if any(seconds):
            figure.add_bar(
                x=labels,
                y=[None if s is None else _MS * s for s in seconds],
                name=name,
                width=0.62,
                marker={"color": color, "line": {"width": 0}},
                customdata=[units.duration(s) for s in seconds],
                hovertemplate=f"{name}: %{{customdata}}<extra></extra>",
            )
    one = found.base.step_s
    ideal = [_MS * one / (at.ranks if at.mode == "strong" else 1) if one else None for at in lanes]
    if one and len(lanes) > 1:
        figure.add_scatter(
            x=labels,
            y=ideal,
            mode="markers",
            name="ideal",
            marker={"symbol": "line-ew-open", "size": 26, "color": GREY, "line": {"width": 2}},
            hovertemplate="ideal: %{y:.3g} ms<extra></extra>",
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(type="category", title_text="Ranks")
    figure.update_yaxes(rangemode="tozero")
    return figure


def short_label(at: LaneFigures) -> str:
    """The label of a lane on the axis: `2`, `2 weak`."""
    return f"{at.ranks}{' weak' if at.mode == 'weak' else ''}"


def _exchange_s(at: LaneFigures) -> float | None:
    if at.ranks == 1 or at.waited_s is None:
        return None
    return max(0.0, at.waited_s - (at.for_slowest_s or 0.0))


def _figure(y_title: str) -> go.Figure:
    figure = new_figure("Ranks (log scale)", y_title, hovermode="closest")
    figure.update_layout(legend={"x": 0, "xanchor": "left", "traceorder": "normal", "font": {"size": 11}})
    return figure


def _ranks(found: Outcome) -> list[int]:
    return sorted({at.ranks for at in found.lanes})


def _line(figure: go.Figure, x: Sequence[float], y: Sequence[float], name: str, dash: str) -> None:
    figure.add_scatter(
        x=x, y=y, mode="lines", name=name, line={"color": GREY, "width": 1.4, "dash": dash}, hoverinfo="skip"
    )
    ticks = sorted({int(n) for n in x if float(n).is_integer()})
    if dash == "dash":  # the ideal, at every number of ranks of the study
        room = 0.06 * max(1.0, float(np.log2(ticks[-1])))
        figure.update_xaxes(
            type="log",
            range=[-room * float(np.log10(2)), float(np.log10(ticks[-1])) + room * float(np.log10(2))],
            tickvals=ticks,
            ticktext=[str(n) for n in ticks],
        )


def _dots(
    figure: go.Figure, found: Outcome, mode: Mode, read: Callable[[LaneFigures], Estimate | None], hover: str
) -> list[float]:
    """Draws the lanes of a mode with their intervals; returns the values that the axis must contain."""
    known = [(at, e) for at in found.of(mode) if (e := read(at)) is not None]
    lanes, values = [at for at, _ in known], [e for _, e in known]
    if not any(at.ranks > 1 for at in lanes):
        return []
    side = -1 if mode == "strong" else 1
    x = [at.ranks * 2 ** (side * _APART * (at.ranks > 1)) for at in lanes]
    figure.add_scatter(
        x=x,
        y=[e.value for e in values],
        mode="lines+markers",
        name=_NAMES[mode],
        line={"color": _COLORS[mode], "width": 1.8},
        marker={
            "color": _COLORS[mode],
            "size": 9,
            "line": {"width": 2, "color": _COLORS[mode]},
            "symbol": ["circle-open" if at.is_provisional or at.shared else "circle" for at in lanes],
        },
        error_y={
            "type": "data",
            "symmetric": False,
            "color": _COLORS[mode],
            "thickness": 1.5,
            "width": 5,
            "array": [0.0 if e.high is None else e.high - e.value for e in values],
            "arrayminus": [0.0 if e.low is None else e.value - e.low for e in values],
        },
        customdata=[_tooltip(at, e) for at, e in zip(lanes, values, strict=True)],
        hovertemplate=f"%{{customdata[0]}}: {hover}%{{customdata[1]}}<extra></extra>",
    )
    return [
        min(max(end, e.value / _FAR), e.value * _FAR)
        for e in values
        for end in (e.low, e.value, e.high)
        if end is not None
    ]


def _tooltip(at: LaneFigures, e: Estimate) -> tuple[str, str]:
    name = f"{at.ranks} rank{'' if at.ranks == 1 else 's'}, {at.mode}" if at.ranks > 1 else "1 rank"
    more = [f"{e.n} repeats" if e.n != 1 else "1 repeat"]
    more += ["not finished"] if at.is_provisional else []
    more += ["cores shared"] if at.shared else []
    return name, f" ({', '.join(more)})"
