"""Colours, template and parts that all charts share."""

from __future__ import annotations

import html
from typing import Any

import plotly.graph_objects as go

# At least 3:1 on white and on near-black (WCAG 1.4.11), and at least 0.11 apart in OKLab for normal, protanope and
# deuteranope sight (Machado et al. 2009): found by search, starting from the accent. Dashes tell further runs apart.
PALETTE = ("#4f6bed", "#f4620c", "#23a774", "#af3262", "#419dc3", "#775ca2")
ACCENT = PALETTE[0]
DASHES = ("solid", "dash", "dot")
MARK = "#d92d20"  # NaN and infinity


def colour(place: int) -> str:
    """The colour of the line at a place; it repeats after the palette's last one."""
    return PALETTE[place % len(PALETTE)]


def dash(place: int) -> str:
    """The dash of the line at a place, which tells lines of the same colour apart."""
    return DASHES[place // len(PALETTE) % len(DASHES)]


GREY = "#737a87"  # 4.3:1 on white and on near-black
_GRID = "rgba(128,128,128,0.16)"
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Inter, system-ui, sans-serif", "size": 12, "color": GREY},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        "height": 280,
        "hovermode": "x unified",
        "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"},
        "xaxis": {"showgrid": False, "zeroline": False, "automargin": True, "title": {"standoff": 8}, "nticks": 7},
        "yaxis": {"gridcolor": _GRID, "zeroline": False, "automargin": True, "title": {"standoff": 8}, "nticks": 6},
    }
)


def new_figure(x_title: str, y_title: str, **layout: Any) -> go.Figure:
    """An empty figure with the titles of its axes; `layout` are further fields of Plotly's layout."""
    figure = go.Figure(layout={"template": TEMPLATE} | layout)
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def literal(text: str) -> str:
    """A user's text as the name of a trace. Plotly reads names as a kind of HTML with links, so it is escaped."""
    return html.escape(text, quote=False)
