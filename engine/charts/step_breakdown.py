"""Chart of the step breakdown: one stacked bar per run, with the parts in the order of a step."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from engine.charts.style import PALETTE, TEMPLATE, literal
from engine.common import units
from engine.common.sanitize import visible
from engine.measurement.step_breakdown import TITLES, Part

_LONGEST_LABEL = 24
_BAR, _AROUND = 40, 176  # px: a run's bar, and axis with legend


def split_chart(rows: Sequence[tuple[str, Sequence[Part]]]) -> go.Figure:
    """A bar for each (label, parts). The legend names the parts; for a single run it also has their seconds and shares."""
    longest = max((sum(part.seconds for part in parts) for _, parts in rows), default=0.0)
    factor, unit = (1e6, "µs") if longest < 1e-3 else (1e3, "ms") if longest < 1 else (1.0, "s")
    figure = go.Figure(layout={"template": TEMPLATE, "barmode": "stack", "hovermode": "closest"})
    labels = [literal(visible(label, _LONGEST_LABEL)) for label, _ in rows]
    for color, (key, title) in zip(PALETTE, TITLES.items(), strict=False):
        found = [next((part for part in parts if part.key == key), None) for _, parts in rows]
        if not any(found):
            continue
        only = found[0] if len(rows) == 1 else None
        figure.add_bar(
            orientation="h",
            y=labels,
            x=[factor * part.seconds if part else None for part in found],
            name=f"{title} {units.duration(only.seconds)}, {units.percent(only.share)}" if only else title,
            marker={"color": color, "line": {"width": 0}},
            width=0.72,
            customdata=[
                (units.duration(part.seconds), units.percent(part.share)) if part else ("", "") for part in found
            ],
            hovertemplate=f"{title}: %{{customdata[0]}} per step, %{{customdata[1]}}<extra></extra>",
        )
    figure.update_layout(
        height=_BAR * max(1, len(rows)) + _AROUND,
        margin={"l": 8 if len(rows) == 1 else 56, "r": 12, "t": 8, "b": 44},
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1,
            "yanchor": "bottom",
            "traceorder": "normal",
            "maxheight": 0.9,
            "font": {"size": 11},
            "itemwidth": 30,
        },
    )
    figure.update_xaxes(title_text=f"Time per step ({unit})", rangemode="tozero")
    figure.update_yaxes(showgrid=False, autorange="reversed", showticklabels=len(rows) > 1)
    return figure
