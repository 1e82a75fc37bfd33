"""Chart of the batch-size law: steps, samples and training time to the target against the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.charts.style import ACCENT, GREY, MARK, PALETTE, TEMPLATE
from engine.common import units
from engine.events.studies import Trial
from engine.studies import batch_law


def batch_law_chart(
    trials: Sequence[Trial], law: batch_law.BatchLaw | None, step_time: batch_law.StepTime | None
) -> go.Figure:
    """Steps, samples and training time to the target against the batch size, all logarithmic.

    Dots are measured, one per seed; lines are the law. A red cross at the top marks a batch size where a seed did not reach
    the target; the dotted lines are at B_crit and at the fastest batch size.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure.update_layout(template=TEMPLATE, height=720, hovermode="closest", showlegend=False)
    figure.update_xaxes(type="log", showgrid=False)
    figure.update_xaxes(title_text="Batch size (samples, log scale)", row=3)
    if sizes := sorted({t.batch_size for t in trials}):
        figure.update_xaxes(tickvals=sizes, tickformat=",d")
    measured = [t for t in trials if not t.tuning]
    seen = {t.batch_size for t in measured}
    grid = np.geomspace(min(seen), max(seen), 200) if law and seen else np.empty(0)
    panels: tuple[tuple[str, Callable[[Trial], float | None], Callable[[float], float] | None, str], ...] = (
        ("Steps to the target", lambda t: t.steps, law.steps if law else None, ",.0f"),
        ("Samples used", lambda t: t.samples, law.samples if law else None, ",.0f"),
        ("Training time (s)", lambda t: t.train_s, _time(law, step_time), ".3g"),
    )
    for row, (title, read, fit, number) in enumerate(panels, start=1):
        points = [(t, value) for t in measured if (value := read(t))]
        figure.add_scatter(
            x=[t.batch_size for t, _ in points],
            y=[value for _, value in points],
            mode="markers",
            name=title,
            marker={"size": 6, "color": ACCENT, "opacity": 0.6},
            customdata=[(t.lr, t.seed) for t, _ in points],
            hovertemplate=f"batch %{{x}}: %{{y:{number}}}<br>lr %{{customdata[0]:.3g}}, seed %{{customdata[1]}}<extra></extra>",
            row=row,
            col=1,
        )
        if fit and len(grid):
            figure.add_scatter(
                x=grid,
                y=[fit(size) for size in grid],
                mode="lines",
                name="law",
                hoverinfo="skip",
                line={"color": PALETTE[1], "width": 1.8},
                row=row,
                col=1,
            )
        figure.update_yaxes(type="log", dtick=1, title_text=f"{title}, log scale", row=row, col=1)
    reached = {t.batch_size for t in measured} - {t.batch_size for t in measured if not t.reached}
    missed = sorted({t.batch_size for t in trials} - reached)
    for size in missed:
        figure.add_annotation(
            x=math.log10(size),
            y=1,
            xref="x",
            yref="y domain",
            text="×",
            showarrow=False,
            font={"color": MARK, "size": 16},
            hovertext=f"batch {size}: not every seed reached the target",
        )
    middle = math.sqrt(sizes[0] * sizes[-1]) if sizes else 1.0
    if law:
        _vertical_line(figure, law.b_crit, f"B_crit {units.about(law.b_crit)}", row=1, middle=middle)
    if law and step_time and step_time.t1_s and step_time.t0_s:
        best = batch_law.best_batch(law, step_time)
        fastest = f"fastest: {batch_law.rounded_batch(best.b_star):,}, {units.duration(best.time_s)}"
        _vertical_line(figure, best.b_star, fastest, row=3, middle=middle)
    return figure


def _time(law: batch_law.BatchLaw | None, step_time: batch_law.StepTime | None) -> Callable[[float], float] | None:
    if law is None or step_time is None:
        return None
    return lambda size: law.steps(size) * step_time.seconds(size)


def _vertical_line(figure: go.Figure, x: float, text: str, *, row: int, middle: float) -> None:
    """A dotted line with its name on the side of the middle, where a narrow screen has room.

    On a logarithmic axis, Plotly takes the value for a line and the logarithm for an annotation.
    """
    side, shift = ("left", 4) if x < middle else ("right", -4)
    figure.add_vline(x=x, row=row, col=1, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=math.log10(x),
        y=1,
        yref="y domain",
        text=text,
        showarrow=False,
        xanchor=side,
        yanchor="top",
        xshift=shift,
        row=row,
        col=1,
    )
