"""Chart of the roofline: FLOP/s against FLOPs per byte, both logarithmic, under the measured ceilings of the device.

Full lines are measured, dashed lines are from a data sheet. A full dot is a run. An open symbol is a kind of layer of that
run, at the FLOP/s that it could attain there, because layers are not timed one by one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from engine.charts.style import GREY, PALETTE, TEMPLATE, colour, literal
from engine.common import units
from engine.common.sanitize import visible
from engine.events.machine import Calibration
from engine.hardware.datasheets import VendorPeak
from engine.measurement import calibration, roofline
from engine.measurement.roofline import Roofline

_LONGEST_LABEL = 40
_KIND_SYMBOLS: Mapping[str, str] = {
    "linear": "square-open",
    "conv": "diamond-open",
    "recurrent": "triangle-up-open",
    "attention": "star-open",
}
_ROOM = 4.0  # factor left free beside the outermost point
_APART = 1.5  # ratio of two ceilings whose labels do not overlap
_DTYPES = ("fp32", "tf32", "bf16", "fp16")


def roofline_chart(
    made: Calibration, threads: int, points: Sequence[tuple[str, Roofline]], *, sheet: VendorPeak | None = None
) -> go.Figure:
    """The ceilings at one thread count, and the runs as points: names and rooflines, in the order of the colours."""
    figure = go.Figure(layout={"template": TEMPLATE, "height": 440, "hovermode": "closest"})
    memory = calibration.bandwidth(made, threads)
    peaks = {dtype: best.p05 for dtype in _DTYPES if (best := calibration.peak(made, dtype, threads))}
    if not peaks or memory is None:
        return figure
    low, high = _reach(peaks, memory.memory.p05, memory.cache.p05, points)
    top = max(peaks.values())
    rates = {"cache": memory.cache.p05, "memory": memory.memory.p05}
    for number, (name, rate) in enumerate(rates.items()):
        title = f"{name} {units.bytes_per_s(rate)}"
        _line(figure, [low, top / rate], [low * rate, top], title, PALETTE[4] if number == 0 else GREY)
    for dtype, rate in peaks.items():
        begin = min(max(low, rate / memory.cache.p05), high)
        _line(figure, [begin, high], [rate, rate], f"{dtype} {units.flops_per_s(rate)}", GREY)
    for rate, text in _ceiling_names(peaks):
        _name(figure, high, rate, text, "right")
    for name, rate in rates.items():
        above = name == "cache"  # there is no room between the two lines
        height = 0.75 if above else 0.25  # as a share of the line: clear of the axis, and of the peaks' names
        at = low ** (1 - height) * (top / rate) ** height
        _name(figure, at, at * rate, f"{name} {units.bytes_per_s(rate)}", "right" if above else "left", above=above)
    if sheet:
        _add_sheet(figure, sheet, low, high, list(peaks))
    for place, (label, point) in enumerate(points):
        _add_point(figure, visible(label, _LONGEST_LABEL), point, colour(place))
    rates_shown = [*peaks.values(), *(p.attained_flops_per_s for _, p in points), low * memory.memory.p05]
    figure.update_xaxes(
        type="log", title_text="FLOPs per byte (log scale)", range=[math.log10(low), math.log10(high)], dtick=1
    )
    figure.update_yaxes(
        type="log",
        title_text="FLOP/s (log scale)",
        dtick=1,
        exponentformat="SI",
        range=[math.log10(min(rates_shown)) - 0.2, math.log10(max(rates_shown)) + 0.35],
    )
    return figure


def _reach(
    peaks: Mapping[str, float], slow: float, fast: float, points: Sequence[tuple[str, Roofline]]
) -> tuple[float, float]:
    """The range of the horizontal axis: the ridges and all points, with room on both sides."""
    at = [rate / bandwidth for rate in peaks.values() for bandwidth in (slow, fast)]
    at += [part.intensity for _, p in points for part in p.parts if part.flops]
    at += [p.intensity for _, p in points]
    return min(at) / _ROOM, max(at) * _ROOM


def _ceiling_names(peaks: Mapping[str, float]) -> list[tuple[float, str]]:
    """Where to write the names of the ceilings, and the names: ceilings that are close together share one label."""
    found: list[tuple[float, str]] = []
    for dtype, rate in sorted(peaks.items(), key=lambda peak: -peak[1]):
        text = f"{dtype} {units.flops_per_s(rate)}"
        if found and found[-1][0] < rate * _APART:
            found[-1] = (found[-1][0], f"{found[-1][1]} · {text}")
        else:
            found.append((rate, text))
    return found


def _line(
    figure: go.Figure, x: Sequence[float], y: Sequence[float], name: str, color: str, dash: str = "solid"
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        mode="lines",
        name=name,
        line={"color": color, "width": 1.6, "dash": dash},
        showlegend=False,
        hovertemplate=f"{literal(name)}<extra></extra>",
    )


def _name(figure: go.Figure, x: float, y: float, text: str, side: str, *, above: bool = True) -> None:
    """A line's name beside one of its points. Plotly's annotations take the logarithm on a logarithmic axis."""
    figure.add_annotation(
        x=math.log10(x),
        y=math.log10(y),
        text=text,
        showarrow=False,
        xanchor=side,
        yanchor="bottom" if above else "top",
        font={"size": 11},
        yshift=6 if above else -2,
    )


def _add_sheet(figure: go.Figure, sheet: VendorPeak, low: float, high: float, dtypes: Sequence[str]) -> None:
    rates = {dtype: sheet.flops_per_s[dtype] for dtype in dtypes if dtype in sheet.flops_per_s}
    for dtype, rate in rates.items():
        begin = max(low, rate / sheet.memory_bytes_per_s) if sheet.memory_bytes_per_s else low
        _line(
            figure,
            [min(begin, high), high],
            [rate, rate],
            f"data sheet: {dtype} {units.flops_per_s(rate)}",
            GREY,
            "dash",
        )
    if sheet.memory_bytes_per_s and rates:
        end, rate = max(rates.values()) / sheet.memory_bytes_per_s, sheet.memory_bytes_per_s
        _line(
            figure, [low, end], [low * rate, end * rate], f"data sheet: memory {units.bytes_per_s(rate)}", GREY, "dash"
        )


def _add_point(figure: go.Figure, label: str, point: Roofline, color: str) -> None:
    name = literal(label)
    figure.add_scatter(
        x=[point.intensity],
        y=[point.attained_flops_per_s],
        mode="markers",
        name=name,
        legendgroup=name,
        marker={"color": color, "size": 11},
        hovertemplate=f"{name}<br>{units.flops_per_s(point.attained_flops_per_s)} attained (measured), "
        f"{units.percent(point.attained_fraction)} of what is attainable<br>%{{x:.3~g}} FLOPs per byte (derived)<extra></extra>",
    )
    for part in point.parts:
        if not part.flops:
            continue
        most = roofline.attainable(part.intensity, point.peak_flops_per_s, point.bandwidth_bytes_per_s)
        figure.add_scatter(
            x=[part.intensity],
            y=[most],
            mode="markers",
            showlegend=False,
            legendgroup=name,
            name=f"{name} · {part.kind}",
            marker={
                "color": color,
                "size": 10,
                "symbol": _KIND_SYMBOLS.get(part.kind, "circle-open"),
                "line": {"width": 2},
            },
            hovertemplate=f"{name}<br>{part.kind} layers: at most {units.flops_per_s(most)} (derived)<br>"
            "%{x:.3~g} FLOPs per byte (derived)<extra></extra>",
        )
