"""Chart of the loss surface: the loss in greys that suit light and dark pages, and the runs' paths in their colours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from engine.charts.style import TEMPLATE, literal
from engine.common.sanitize import visible
from engine.studies.loss_surface import PathOnSurface, SurfaceData

_LOW, _HIGH = "rgba(115,122,135,0.03)", "rgba(115,122,135,0.48)"
_LINE = "rgba(115,122,135,0.45)"
_LEVELS = 14
_LONGEST_LABEL = 40


def descent_path_chart(surface: SurfaceData, labels: Sequence[str], colors: Sequence[str]) -> go.Figure:
    """Loss on the plane (log scale) with the paths of the runs; labels and colours in the order of `surface.paths`.

    A circle is where a run began, a full dot where it ended. The tooltip shows the loss, at a checkpoint both its own loss
    and that of its projection on the plane.
    """
    figure = go.Figure(layout={"template": TEMPLATE, "height": 460, "hovermode": "closest"})
    _add_height(figure, surface)
    for (path, label), color in zip(zip(surface.paths.values(), labels, strict=True), colors, strict=True):
        _add_path(figure, path, visible(label, _LONGEST_LABEL), color)
    x_title, y_title = (_axis_title(surface, axis) for axis in (0, 1))
    figure.update_xaxes(title_text=x_title, range=[surface.x[0], surface.x[-1]], constrain="domain")
    figure.update_yaxes(title_text=y_title, range=[surface.y[0], surface.y[-1]], showgrid=False)
    return figure


def _axis_title(surface: SurfaceData, axis: int) -> str:
    kind = "PC" if surface.event.plane == "pca" else "Random direction"
    return f"{kind} {axis + 1} ({percent(surface.explained[axis])} of the variance)"


def percent(share: float) -> str:
    """A share as text: `56 %`, `3.4 %`, `under 0.1 %`."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 9.95 else f"{value:.1f} %" if value >= 0.05 else "under 0.1 %"


def _add_height(figure: go.Figure, surface: SurfaceData) -> None:
    height = _log10(surface.loss)
    low, high = (float(f(height)) for f in (np.nanmin, np.nanmax)) if np.isfinite(height).any() else (0.0, 1.0)
    high = max(high, low + 1e-6)
    figure.add_heatmap(
        x=surface.x,
        y=surface.y,
        z=height.astype(np.float32),
        zmin=low,
        zmax=high,
        zsmooth="best",
        colorscale=[[0, _LOW], [1, _HIGH]],
        customdata=surface.loss.astype(np.float32),
        hovertemplate="loss %{customdata:.4g}<extra></extra>",
        colorbar=_colorbar(low, high),
    )
    figure.add_contour(
        x=surface.x,
        y=surface.y,
        z=height.astype(np.float32),
        showscale=False,
        showlegend=False,
        hoverinfo="skip",
        contours={"coloring": "none", "start": low, "end": high, "size": (high - low) / _LEVELS},
        line={"color": _LINE, "width": 0.8},
    )


def _log10(loss: np.ndarray) -> np.ndarray:
    """The logarithms, with NaN where the loss is not finite, so that the plane stays blank there."""
    finite = np.where(np.isfinite(loss), loss, math.nan)
    return np.log10(np.maximum(finite, 1e-12))


def _colorbar(low: float, high: float) -> dict[str, object]:
    """Ticks at round losses, on the axis of their logarithms."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low <= math.log10(m * 10.0**d) <= high]
    if len(ticks) > 8:
        ticks = [t for t in ticks if math.log10(t).is_integer()]
    if len(ticks) < 2:
        ticks = [10**low, 10**high]
    return {
        "title": {"text": "Loss", "side": "right"},
        "tickvals": [math.log10(t) for t in ticks],
        "ticktext": [f"{t:.3g}" for t in ticks],
        "thickness": 10,
        "outlinewidth": 0,
        "len": 0.9,
    }


def _add_path(figure: go.Figure, path: PathOnSurface, label: str, color: str) -> None:
    words = literal(label)
    count = len(path.step)
    sizes = np.full(count, 4.0)
    symbols = ["circle"] * count
    sizes[0], symbols[0] = 11, "circle-open"
    sizes[-1] = 11
    figure.add_scatter(
        x=path.xy[:, 0],
        y=path.xy[:, 1],
        mode="lines+markers",
        name=words,
        line={"color": color, "width": 2},
        marker={
            "color": color,
            "size": sizes,
            "symbol": symbols,
            "opacity": 1,
            "line": {"width": np.where(np.arange(count) == 0, 2, 0)},
        },
        customdata=np.column_stack([path.step, path.loss, path.plane_loss]),
        hovertemplate="step %{customdata[0]:,.0f}<br>loss %{customdata[1]:.4g}, on the plane %{customdata[2]:.4g}",
    )
