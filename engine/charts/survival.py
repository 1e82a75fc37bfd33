"""Chart of the runs that have not reached the target, over training time."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from engine.charts.style import colour, literal, new_figure
from engine.studies.paired_tests import Survival


def survival_chart(lanes: Sequence[tuple[str, Survival, float]]) -> go.Figure:
    """Share of runs that have not reached the target, over training time.

    `lanes` are name, survival function and longest training time, s, of each configuration, in the order of the colours.
    """
    figure = new_figure("Training time (s)", "Runs that have not reached the target (%)")
    for number, (label, survival, end) in enumerate(lanes):
        x = [0.0, *survival.times, max(end, *survival.times)] if len(survival.times) else [0.0, end]
        y = [1.0, *survival.share, survival.share[-1]] if len(survival.share) else [1.0, 1.0]
        figure.add_scatter(
            x=x,
            y=[100 * v for v in y],
            mode="lines",
            name=literal(label),
            line={"shape": "hv", "width": 2, "color": colour(number)},
            hovertemplate="%{y:.0f} % after %{x:.2f} s<extra></extra>",
        )
    figure.update_yaxes(range=[-3, 103])
    figure.update_layout(showlegend=True)
    return figure
