"""Charts of inference: throughput and latency of all combinations, the runtimes, and the requests of one combination.

A figure suits light and dark pages and has no title. The page draws the same charts from its own route, also while a run
is running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from engine.charts.style import ACCENT, GREY, MARK, colour, dash, new_figure
from engine.common import units
from engine.config.tasks import Cell
from engine.events.inference import Latency, Quantiles
from engine.studies.inference import (
    RUNTIME_WORDS,
    CellResult,
    Matrix,
    Quantile,
    cell_in_words,
    limit_in_words,
    quantile_in_words,
    sweet_spot,
)
from engine.studies.inference_runtimes import ladder

_SHADES = [[0.0, "rgba(79,107,237,0.06)"], [1.0, "rgba(79,107,237,0.75)"]]  # the accent colour, from faint to strong
_DECADES = range(-6, 4)  # of seconds: 1 µs to 1,000 s
_MOST_BARS = 70


# --- all combinations ---------------------------------------------------------------------------------------------


def heat_map(found: Matrix, quantile: Quantile | None = None) -> go.Figure:
    """Throughput of every combination, or its latency at a quantile: a row per batch size, a column per other choice."""
    columns, sizes = lines_of(found), found.batch_sizes
    figure = new_figure("", "Batch size")
    values = np.full((len(sizes), len(columns)), np.nan)
    words = [["" for _ in columns] for _ in sizes]
    for column, (_, cells) in enumerate(columns):
        for c in cells:
            row = sizes.index(c.cell.batch_size)
            value = c.samples_per_s if quantile is None else c.quantile_s(quantile)
            if value:
                values[row, column] = math.log10(value)
                words[row][column] = units.count(_rounded(value)) if quantile is None else units.duration(value)
            elif c.not_run:
                words[row][column] = "not run"
    figure.add_heatmap(
        z=values,
        x=[name for name, _ in columns],
        y=[f"{size:,}" for size in sizes],
        text=words,
        texttemplate="%{text}",
        colorscale=_SHADES,
        showscale=False,
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate="batch %{y}, %{x}: %{text}<extra></extra>",
    )
    figure.update_xaxes(side="top", type="category")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, nticks=len(sizes) + 1)
    figure.update_layout(height=90 + 26 * max(3, len(sizes)), hovermode="closest", margin={"t": 40})
    return figure


def curve_chart(found: Matrix, limit_s: float | None = None, *, quantile: Quantile = "p99") -> go.Figure:
    """Throughput against latency, both logarithmic: a line through the batch sizes per thread count, precision or runtime.

    With a limit, the combination to deploy is circled and a dashed line shows the limit.
    """
    figure = new_figure(
        f"Latency, {quantile_in_words(quantile)} (log scale)", f"Throughput ({_unit(found)}, log scale)"
    )
    shown = [(name, [c for c in cells if c.latency]) for name, cells in lines_of(found)]
    for place, (name, cells) in enumerate(shown):
        ordered = sorted(cells, key=lambda c: c.cell.batch_size)
        figure.add_scatter(
            x=[c.quantile_s(quantile) for c in ordered],
            y=[c.samples_per_s for c in ordered],
            name=name,
            mode="lines+markers",
            line={"color": colour(place), "width": 1.8, "dash": dash(place)},
            marker={"size": 7, "color": colour(place)},
            text=[_in_words(found, c, quantile) for c in ordered],
            hovertemplate="%{text}<extra></extra>",
        )
    latencies = [value for _, cells in shown for c in cells if (value := c.quantile_s(quantile))]
    _latency_axis(figure.update_xaxes, [*latencies, *([limit_s] if limit_s else [])])
    figure.update_yaxes(type="log", dtick=1, exponentformat="SI")
    figure.update_layout(height=360, hovermode="closest", showlegend=len(shown) > 1)
    if limit_s:
        figure.add_vline(x=limit_s, line={"color": MARK, "width": 1.2, "dash": "dash"})
        best = sweet_spot(found, limit_s, quantile=quantile).best
        if best:
            figure.add_scatter(
                x=[best.quantile_s(quantile)],
                y=[best.samples_per_s],
                mode="markers",
                hoverinfo="skip",
                showlegend=False,
                marker={"symbol": "circle-open", "size": 18, "color": GREY, "line": {"width": 2}},
            )
    return figure


def lines_of(found: Matrix) -> list[tuple[str, list[CellResult]]]:
    """The combinations grouped by everything but the batch size, with a name for each group."""
    groups: dict[Cell, list[CellResult]] = {}
    for c in found.cells:
        groups.setdefault(c.cell.model_copy(update={"batch_size": 1}), []).append(c)
    return [(_name(found, cell), cells) for cell, cells in groups.items()]


def _name(found: Matrix, cell: Cell) -> str:
    parts = []
    if found.config.device == "cpu" and (len(found.threads) > 1 or len(found.runtimes) == 1):
        parts.append(f"{cell.threads} thread{'' if cell.threads == 1 else 's'}")
    if found.config.device != "cpu" or len(found.precisions) > 1:
        parts.append(cell.precision)
    if len(found.runtimes) > 1:
        parts.append(RUNTIME_WORDS[cell.runtime])
    return ", ".join(parts)


def _in_words(found: Matrix, c: CellResult, quantile: Quantile) -> str:
    rate, latency = units.count(_rounded(c.samples_per_s or 0)), units.duration(c.quantile_s(quantile))
    return f"{cell_in_words(found, c.cell)}<br>{rate} {_unit(found)}, {quantile} {latency}"


def _unit(found: Matrix) -> str:
    return "answers/s" if found.config.is_text else "samples/s"


def _rounded(value: float) -> float:
    return value if value < 100 else round(value)


# --- runtimes -----------------------------------------------------------------------------------------------------


def ladder_chart(found: Matrix) -> go.Figure:
    """Speed-up over plain PyTorch by p50: a bar for each runtime and precision at every batch size."""
    figure = new_figure("Speed-up over plain PyTorch (p50)", "")
    threads = found.threads[-1]
    rows = 1
    for place, size in enumerate(found.batch_sizes):
        rungs = [r for r in ladder(found, batch_size=size, threads=threads) if r.speedup]
        rows = max(rows, len(rungs))
        figure.add_bar(
            orientation="h",
            x=[r.speedup for r in rungs],
            y=[_form(r.result.cell) for r in rungs],
            name=f"batch {size:,}",
            marker={"color": colour(place)},
            text=[f"{r.speedup:.2f} ×" for r in rungs],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        barmode="group", bargap=0.3, hovermode="closest", height=100 + rows * (14 + 16 * len(found.batch_sizes))
    )
    return figure


def _form(cell: Cell) -> str:
    name = RUNTIME_WORDS[cell.runtime]
    return name if cell.precision == "fp32" else f"{name}, {cell.precision}"


# --- text ---------------------------------------------------------------------------------------------------------


def token_chart(found: Matrix, which: str) -> go.Figure:
    """A text model's time to the first token (`ttft`) or per later token (`tpot`): p50, and p99 dotted."""
    title = {"ttft": "Time to first token", "tpot": "Time per output token"}[which]
    figure = new_figure("Batch size (log scale)", f"{title} (log scale)")
    seen: list[float] = []
    for place, (name, cells) in enumerate(lines_of(found)):
        known = [(c.cell.batch_size, times) for c in cells if c.latency and (times := getattr(c.latency, which))]
        seen += _quantiles(figure, sorted(known, key=lambda row: row[0]), name, place)
    figure.update_xaxes(type="log", tickvals=found.batch_sizes, tickformat=",d")
    _latency_axis(figure.update_yaxes, seen)
    figure.update_layout(hovermode="closest")
    return figure


def _quantiles(figure: go.Figure, rows: Sequence[tuple[float, Quantiles]], name: str, place: int) -> list[float]:
    """Draws two lines and returns their values."""
    for field, line in (("p50_s", "solid"), ("p99_s", "dot")):
        y = [getattr(times, field) for _, times in rows]
        figure.add_scatter(
            x=[x for x, _ in rows],
            y=y,
            mode="lines+markers",
            name=name,
            showlegend=field == "p50_s",
            legendgroup=name,
            line={"color": colour(place), "width": 1.8, "dash": line},
            marker={"size": 6, "color": colour(place)},
            text=[units.duration(v) for v in y],
            hovertemplate=f"{name}, {field[:3]}: %{{text}}<extra></extra>",
        )
    return [value for _, times in rows for value in (times.p50_s, times.p99_s)]


# --- one combination ----------------------------------------------------------------------------------------------


def bars(latency: Latency, most: int = _MOST_BARS) -> tuple[np.ndarray, np.ndarray]:
    """Edges (n + 1,) and counts (n,) of a latency distribution: at most `most` bars of whole bins, so counts are exact."""
    counts, edges = np.asarray(latency.histogram.counts), latency.histogram.edges_s
    if not len(counts):
        return edges, counts
    first = np.arange(0, len(counts), max(1, math.ceil(len(counts) / most)))
    return np.append(edges[first], edges[-1]), np.add.reduceat(counts, first)


def histogram_chart(latency: Latency, limit_s: float | None = None) -> go.Figure:
    """The number of requests by latency, over all requests; percentiles as dotted lines."""
    figure = new_figure("Latency (log scale)", "Requests")
    edges, counts = bars(latency)
    words = [
        f"{units.duration(a)} to {units.duration(b)}: {n:,}" for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]
    figure.add_scatter(  # a line in steps, because bars have no width of their own on a logarithmic axis
        x=[edges[0], *edges],
        y=[0, *counts, 0],
        mode="lines",
        line={"color": ACCENT, "width": 1, "shape": "hv"},
        fill="tozeroy",
        text=["", *words, ""],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    for name in ("p50", "p90", "p99"):
        x = getattr(latency, f"{name}_s")
        figure.add_vline(x=x, line={"color": GREY, "width": 1, "dash": "dot"})
        figure.add_annotation(x=math.log10(x), y=1, yref="paper", yanchor="bottom", text=name, showarrow=False)
    if limit_s:
        figure.add_vline(x=limit_s, line={"color": MARK, "width": 1, "dash": "dash"})
    _latency_axis(figure.update_xaxes, [float(edges[0]), float(edges[-1])])
    figure.update_layout(hovermode="closest")
    return figure


def timeline_chart(latency: Latency) -> go.Figure:
    """Start and latency of the requests that were kept, the longest ones among them."""
    figure = new_figure("Elapsed time (s)", "Latency (log scale)")
    figure.add_scatter(
        x=latency.start_s,
        y=latency.latency_s,
        mode="markers",
        marker={"size": 3.5, "color": ACCENT, "opacity": 0.55},
        text=[units.duration(float(v)) for v in latency.latency_s],
        hovertemplate="%{text} at %{x:.2f} s<extra></extra>",
    )
    if len(latency.latency_s):
        _latency_axis(figure.update_yaxes, [float(latency.latency_s.min()), float(latency.latency_s.max())])
    figure.update_layout(hovermode="closest")
    return figure


# --- parts --------------------------------------------------------------------------------------------------------


def _latency_axis(update: Callable[..., object], seen: Sequence[float]) -> None:
    """A logarithmic axis with ticks such as 500 µs and 1 ms."""
    positive = [value for value in seen if value > 0]
    update(type="log")
    if not positive:
        return
    low, high = min(positive), max(positive)
    steps = (1,) if high > 300 * low else (1, 3) if high > 20 * low else (1, 2, 5)
    ticks = [k * 10.0**power for power in _DECADES for k in steps if low / 3 <= k * 10.0**power <= high * 3]
    update(tickvals=ticks, ticktext=[limit_in_words(float(f"{tick:.3g}")) for tick in ticks])
