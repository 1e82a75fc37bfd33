"""Runs in, plotly figures out: the same functions draw the page and the report.

A figure has no title, legend box or background of its own: the card around it names the quantity, and it stands on
light and dark alike. Colour goes by a run's place in the sequence, so pass the same runs in the same order to each.
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine import batch_law, units
from engine.analysis import Survival
from engine.config import RunConfig, Target, describe
from engine.downsample import minmax
from engine.records import TargetReached, Trial
from engine.text import visible

Axis = Literal["step", "seconds", "samples"]

# At least 3:1 on white and on near-black (WCAG 1.4.11), and at least 0.11 apart in OKLab for normal, protanope and
# deuteranope sight (Machado et al. 2009): found by search, starting from the accent. Dashes tell further runs apart.
PALETTE = ("#4f6bed", "#f4620c", "#23a774", "#af3262", "#419dc3", "#775ca2")
ACCENT = PALETTE[0]
DASHES = ("solid", "dash", "dot")
MARK = "#d92d20"  # NaN and infinity
MAX_POINTS = 2_000
MAX_MARKS = 20
_LONGEST_LABEL = 40


class Columns(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, name: str, /) -> np.ndarray: ...


class Curves(Protocol):
    """What a chart needs of a run: `store.Run` has it, and so has a run in a report."""

    @property
    def run_id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> RunConfig: ...
    @property
    def steps(self) -> Columns: ...
    @property
    def evaluations(self) -> Columns: ...
    @property
    def hardware(self) -> Columns: ...
    @property
    def throughput(self) -> Columns: ...
    @property
    def grad_norms(self) -> Columns: ...
    @property
    def target_reached(self) -> TargetReached | None: ...


Runs = Sequence[Curves]
Reader = Callable[[Curves], tuple[np.ndarray, np.ndarray]]


# --- the charts ---------------------------------------------------------------------------------------------------


def loss_curve(runs: Runs, *, axis: Axis = "step", max_points: int = MAX_POINTS) -> go.Figure:
    """Training loss (faint: each batch, strong: smoothed) and held-out loss (dashed); NaN and infinity as red marks."""
    figure = _figure(_axis_title(axis), "Loss (log scale)" if _climbs(runs) else "Loss")
    reach = _reach(runs, axis)
    for run, label, style in _styled(runs):
        x = _along(run.steps, run, axis)
        _raw_and_smooth(figure, x, run.steps["loss"], f"{label}train", style, max_points, ".4f")
        _marks(figure, x, run.steps["loss"], run.steps["step"], f"{label}train", reach)
        if not _knows(run.evaluations, "test_loss"):  # somebody's table: NaN there is not what was measured
            continue
        held_out = run.evaluations["test_loss"]
        at = _along(run.evaluations, run, axis)
        dotted = style | {"dash": "dash" if style["dash"] == "solid" else "dashdot"}
        _line(figure, at, held_out, f"{label}held-out", dotted, max_points, ".4f", dots=True)
        _marks(figure, at, held_out, run.evaluations["step"], f"{label}held-out", reach)
    if _climbs(runs):
        figure.update_yaxes(type="log", dtick=1)
    _targets(figure, runs, "test_loss", axis, log=_climbs(runs))
    return figure


def accuracy_curve(runs: Runs, *, axis: Axis = "step", max_points: int = MAX_POINTS) -> go.Figure:
    """Share of held-out examples (of a text: characters) answered right."""
    figure = _figure(_axis_title(axis), f"{_accuracy_title(runs)} (%)")
    for run, label, style in _styled(runs):
        accuracy = 100 * run.evaluations["test_accuracy"]
        x = _along(run.evaluations, run, axis)
        _line(figure, x, accuracy, f"{label}accuracy", style, max_points, ".2f", " %", dots=True)
    _targets(figure, runs, "test_accuracy", axis, scale=100)
    return figure


def throughput_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Examples trained per second of training time, over windows of 0.2 s and more."""

    def read(run: Curves) -> tuple[np.ndarray, np.ndarray]:
        return run.throughput["elapsed"], run.throughput["samples_per_s"]

    return _over_time(runs, read, "Throughput (samples/s)", "throughput", max_points, ",.0f", " samples/s")


def grad_norm_curve(runs: Runs, *, axis: Axis = "step", max_points: int = MAX_POINTS) -> go.Figure:
    """Length of the whole gradient before clipping, as often as it was measured; NaN and infinity as red marks."""
    log = _spans_decades(run.grad_norms["grad_norm"] for run in runs)
    figure = _figure(_axis_title(axis), "Gradient norm (log scale)" if log else "Gradient norm")
    reach = _reach(runs, axis)
    for run, label, style in _styled(runs):
        x, norm = _along(run.grad_norms, run, axis), run.grad_norms["grad_norm"]
        _raw_and_smooth(figure, x, norm, f"{label}gradient norm", style, max_points, ".4g")
        _marks(figure, x, norm, run.grad_norms["step"], f"{label}gradient norm", reach)
    figure.update_yaxes(**({"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}))
    figure.update_layout(showlegend=len(runs) > 1)
    return figure


def lr_curve(runs: Runs, *, axis: Axis = "step", max_points: int = MAX_POINTS) -> go.Figure:
    """Learning rate of each step, where a schedule moved it."""
    figure = _figure(_axis_title(axis), "Learning rate")
    for run, label, style in _styled(runs):
        x = _along(run.steps, run, axis)
        _line(figure, x, run.steps["lr"], f"{label}learning rate", style, max_points, ".3~g")
    figure.update_yaxes(rangemode="tozero", tickformat="~g")
    return figure


def memory_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Resident memory of the run's process."""
    return _bytes_curve(runs, "process_memory_bytes", "Process memory", max_points)


def cpu_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Processor time of the run's process; 100 % is one core."""
    read = _hardware("process_cpu_percent")
    return _over_time(runs, read, "Process CPU (% of one core)", "CPU", max_points, ".0f", " %")


def gpu_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    """Share of time in which some kernel ran on the device: busy, not necessarily full."""
    read = _hardware("gpu_utilization_percent")
    return _over_time(runs, read, "GPU busy (% of time)", "GPU", max_points, ".0f", " %")


def gpu_memory_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    return _bytes_curve(runs, "gpu_memory_used_bytes", "GPU memory", max_points)


def power_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    return _over_time(runs, _hardware("gpu_power_w"), "GPU power (W)", "power", max_points, ".0f", " W")


def cpu_power_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    return _over_time(runs, _hardware("cpu_power_w"), "CPU power (W)", "power", max_points, ".0f", " W")


def clock_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    def read(run: Curves) -> tuple[np.ndarray, np.ndarray]:
        return run.hardware["elapsed"], run.hardware["gpu_sm_clock_hz"] / 1e6

    return _over_time(runs, read, "GPU clock (MHz)", "clock", max_points, ".0f", " MHz")


def temperature_curve(runs: Runs, *, max_points: int = MAX_POINTS) -> go.Figure:
    read = _hardware("gpu_temperature_c")
    return _over_time(runs, read, "GPU temperature (°C)", "temperature", max_points, ".0f", " °C")


def batch_law_chart(
    trials: Sequence[Trial], law: batch_law.BatchLaw | None, step_time: batch_law.StepTime | None
) -> go.Figure:
    """Steps, examples and training time to the target against the batch size, all logarithmic: dots are the seeds that
    measured, lines the law. A red cross at the top marks a batch size where some seed did not reach the target;
    the dotted lines stand at B_crit and at the fastest batch."""
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    figure.update_layout(template=TEMPLATE, height=720, hovermode="closest", showlegend=False)
    figure.update_xaxes(type="log", showgrid=False)
    figure.update_xaxes(title_text="Batch size (examples, log scale)", row=3)
    if sizes := sorted({t.batch_size for t in trials}):
        figure.update_xaxes(tickvals=sizes, tickformat=",d")
    measured = [t for t in trials if not t.tuning]
    seen = {t.batch_size for t in measured}
    grid = np.geomspace(min(seen), max(seen), 200) if law and seen else np.empty(0)
    panels: tuple[tuple[str, Callable[[Trial], float | None], Callable[[float], float] | None, str], ...] = (
        ("Steps to the target", lambda t: t.steps, law.steps if law else None, ",.0f"),
        ("Examples used", lambda t: t.samples, law.samples if law else None, ",.0f"),
        ("Training time (s)", lambda t: t.train_s, _time(law, step_time), ".3g"),
    )
    for row, (title, read, fit, number) in enumerate(panels, start=1):
        points = [(t, value) for t in measured if (value := read(t))]
        figure.add_scatter(
            x=[t.batch_size for t, _ in points], y=[value for _, value in points], mode="markers", name=title,
            marker={"size": 6, "color": ACCENT, "opacity": 0.6}, customdata=[(t.lr, t.seed) for t, _ in points],
            hovertemplate=f"batch %{{x}}: %{{y:{number}}}<br>lr %{{customdata[0]:.3g}}, seed %{{customdata[1]}}<extra></extra>",
            row=row, col=1,
        )  # fmt: skip
        if fit and len(grid):
            figure.add_scatter(
                x=grid, y=[fit(size) for size in grid], mode="lines", name="law", hoverinfo="skip",
                line={"color": PALETTE[1], "width": 1.8}, row=row, col=1,
            )  # fmt: skip
        figure.update_yaxes(type="log", dtick=1, title_text=f"{title}, log scale", row=row, col=1)
    there = {t.batch_size for t in measured} - {t.batch_size for t in measured if not t.reached}
    missed = sorted({t.batch_size for t in trials} - there)
    for size in missed:
        figure.add_annotation(
            x=math.log10(size), y=1, xref="x", yref="y domain", text="×", showarrow=False, font={"color": MARK, "size": 16},
            hovertext=f"batch {size}: not every seed reached the target",
        )  # fmt: skip
    middle = math.sqrt(sizes[0] * sizes[-1]) if sizes else 1.0
    if law:
        _standing(figure, law.b_crit, f"B_crit {units.about(law.b_crit)}", row=1, middle=middle)
    if law and step_time and step_time.t1_s and step_time.t0_s:
        best = batch_law.best_batch(law, step_time)
        fastest = f"fastest: {units.about(best.b_star)}, {units.duration(best.time_s)}"
        _standing(figure, best.b_star, fastest, row=3, middle=middle)
    return figure


def _time(law: batch_law.BatchLaw | None, step_time: batch_law.StepTime | None) -> Callable[[float], float] | None:
    if law is None or step_time is None:
        return None
    return lambda size: law.steps(size) * step_time.seconds(size)


def _standing(figure: go.Figure, x: float, text: str, *, row: int, middle: float) -> None:
    """A dotted line with its name towards the middle, where a narrow screen has room. Of a logarithmic axis lines know
    the value, and annotations the logarithm."""
    side, shift = ("left", 4) if x < middle else ("right", -4)
    figure.add_vline(x=x, row=row, col=1, line={"color": _GREY, "width": 1, "dash": "dot"})
    figure.add_annotation(
        x=math.log10(x), y=1, yref="y domain", text=text, showarrow=False, xanchor=side, yanchor="top", xshift=shift,
        row=row, col=1,
    )  # fmt: skip


def _there(values: np.ndarray) -> bool:
    return True


def _known(values: np.ndarray) -> bool:
    return not bool(np.isnan(values).all())


def _moves(values: np.ndarray) -> bool:
    return bool(values.min() < values.max())


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart as a card shows it: key and title, what it draws from, how, and whether its column is worth it."""

    key: str
    title: str
    draw: Callable[..., go.Figure]
    table: str
    column: str
    worth: Callable[[np.ndarray], bool] = _there

    def has_data(self, run: Curves) -> bool:
        """False until there is something to see: an empty axis says less than no chart."""
        table = getattr(run, self.table)
        return len(table) > 0 and self.worth(table[self.column])

    def title_of(self, runs: Runs) -> str:
        return _accuracy_title(runs) if self.key == "accuracy" else self.title


CHARTS = (
    Chart("loss", "Loss", loss_curve, "steps", "loss"),
    Chart("accuracy", "Held-out accuracy", accuracy_curve, "evaluations", "test_accuracy"),
    Chart("throughput", "Throughput", throughput_curve, "throughput", "samples_per_s"),
    Chart("grad_norm", "Gradient norm", grad_norm_curve, "grad_norms", "grad_norm"),
    Chart("lr", "Learning rate", lr_curve, "steps", "lr", _moves),
    Chart("memory", "Process memory", memory_curve, "hardware", "process_memory_bytes", _known),
    Chart("cpu", "Process CPU", cpu_curve, "hardware", "process_cpu_percent", _known),
    Chart("gpu", "GPU busy", gpu_curve, "hardware", "gpu_utilization_percent", _known),
    Chart("gpu_memory", "GPU memory", gpu_memory_curve, "hardware", "gpu_memory_used_bytes", _known),
    Chart("power", "GPU power", power_curve, "hardware", "gpu_power_w", _known),
    Chart("cpu_power", "CPU power", cpu_power_curve, "hardware", "cpu_power_w", _known),
    Chart("clock", "GPU clock", clock_curve, "hardware", "gpu_sm_clock_hz", _known),
    Chart("temperature", "GPU temperature", temperature_curve, "hardware", "gpu_temperature_c", _known),
)


def shown(runs: Runs) -> list[Chart]:
    """The charts that have something to show for at least one of the runs."""
    return [chart for chart in CHARTS if any(chart.has_data(run) for run in runs)]


def survival_chart(lanes: Sequence[tuple[str, Survival, float]]) -> go.Figure:
    """Share of runs that have not reached the target, over seconds of training; lanes in their own order of colours."""
    figure = _figure("Training time (s)", "Runs still on their way (%)")
    for number, (label, survival, end) in enumerate(lanes):
        x = [0.0, *survival.times, max(end, *survival.times)] if len(survival.times) else [0.0, end]
        y = [1.0, *survival.share, survival.share[-1]] if len(survival.share) else [1.0, 1.0]
        figure.add_scatter(
            x=x, y=[100 * v for v in y], mode="lines", name=_literal(label), line={"shape": "hv", "width": 2, "color": colour(number)},
            hovertemplate="%{y:.0f} % after %{x:.2f} s<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(range=[-3, 103])
    figure.update_layout(showlegend=True)
    return figure


# --- names and colours --------------------------------------------------------------------------------------------


def colour(place: int) -> str:
    return PALETTE[place % len(PALETTE)]


def dash(place: int) -> str:
    return DASHES[place // len(PALETTE) % len(DASHES)]


def labels(runs: Runs) -> list[str]:
    """A short name for each run, all different: its own, or its configuration in words; an id where two are equal."""
    names = [run.name or describe(run.config) for run in runs]
    names = [visible(name, _LONGEST_LABEL) for name in names]
    twice = {name for name, times in Counter(names).items() if times > 1}
    return [f"{name} · {run.run_id[:6]}" if name in twice else name for name, run in zip(names, runs, strict=True)]


def ema(y: np.ndarray, span: float) -> np.ndarray:
    """Exponential moving average of `y` (n,) over about `span` rows, without the usual pull towards the first value.

    Both the values and their weights are averaged from zero, and divided (the bias correction of Adam, Kingma & Ba
    2015). A NaN or infinity has weight 0 and stays NaN, so that the line has a gap there.
    """
    finite = np.isfinite(y)
    keep = 1 - 2 / (max(span, 1.0) + 1)
    if keep == 0:
        return np.where(finite, y, math.nan)
    total, weight = _decaying_sum(np.where(finite, y, 0.0), keep), _decaying_sum(finite.astype(float), keep)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, total / weight, math.nan)


def _decaying_sum(x: np.ndarray, keep: float) -> np.ndarray:
    """s[t] = keep * s[t-1] + x[t], in blocks: within one, keep**-t stays far from overflow."""
    block = max(1, min(len(x), int(-50 / math.log(keep))))
    powers = keep ** np.arange(1, block + 1)
    out, carried = np.empty(len(x)), 0.0
    for first in range(0, len(x), block):
        part = x[first : first + block]
        decay = powers[: len(part)]
        out[first : first + block] = decay * (carried + np.cumsum(part / decay))
        carried = float(out[first + len(part) - 1])
    return out


# --- the parts of a figure ----------------------------------------------------------------------------------------

_GREY = "#737a87"  # 4.3:1 on white and on near-black
_GRID = "rgba(128,128,128,0.16)"
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Inter, system-ui, sans-serif", "size": 12, "color": _GREY},
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
Style = dict[str, Any]  # colour, dash, legendgroup


def _figure(x_title: str, y_title: str) -> go.Figure:
    figure = go.Figure(layout={"template": TEMPLATE})
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def _styled(runs: Runs) -> list[tuple[Curves, str, Style]]:
    """Each run with the words before a trace's name (none where there is one run only) and its look."""
    words = [f"{_literal(label)} · " for label in labels(runs)] if len(runs) > 1 else [""] * len(runs)
    places = [getattr(run, "place", i) for i, run in enumerate(runs)]  # seeds of a lane share its place
    return [
        (run, word, {"colour": colour(i), "dash": dash(i), "legendgroup": str(i) if len(runs) > 1 else None})
        for i, run, word in zip(places, runs, words, strict=True)
    ]


def _literal(text: str) -> str:
    """Plotly reads a trace's name as a kind of HTML, with links: a user's text must stay text."""
    return html.escape(text, quote=False)


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
    span = min(200.0, len(y) / 60)  # longer ones lag visibly behind the steep start
    if span < 2:
        return _line(figure, x, y, name, style, max_points, number, unit)
    kept = minmax(y, max_points)
    finite = np.where(np.isfinite(y), y, math.nan)
    figure.add_scatter(
        x=_compact(x[kept]), y=_compact(finite[kept]), mode="lines", name=name, hoverinfo="skip", showlegend=False,
        legendgroup=style["legendgroup"], line={"color": style["colour"], "width": 1}, opacity=0.25,
    )  # fmt: skip
    _line(figure, x, ema(y, span), name, style, max_points, number, unit)


def _line(
    figure: go.Figure, x: np.ndarray, y: np.ndarray, name: str, style: Style, max_points: int, number: str,
    unit: str = "", *, dots: bool = False,
) -> None:  # fmt: skip
    if not len(y):
        return
    kept = minmax(y, max_points)
    few = dots and len(kept) <= 40
    figure.add_scatter(
        x=_compact(x[kept]), y=_compact(np.where(np.isfinite(y), y, math.nan)[kept]), name=name,
        mode="lines+markers" if few else "lines", marker={"size": 5, "color": style["colour"]},
        line={"color": style["colour"], "width": 1.8, "dash": style["dash"]}, legendgroup=style["legendgroup"],
        hovertemplate=f"%{{y:{number}}}{unit}",
    )  # fmt: skip


def _marks(figure: go.Figure, x: np.ndarray, y: np.ndarray, step: np.ndarray, name: str, reach: float) -> None:
    """A red cross where a value became NaN or infinite, at the height of the last finite one before it.

    Its words stand on the side with more room, on an axis that ends at `reach`.
    """
    odd = ~np.isfinite(y)
    begins = np.flatnonzero(odd & ~np.concatenate([[False], odd[:-1]]))[:MAX_MARKS]
    if not len(begins):
        return
    before = np.array([_last_finite(y[:row]) for row in begins])
    words = [f"{_word(y[row])} at step {int(step[row]):,}" for row in begins]
    sides = ["middle right" if at < reach / 2 else "middle left" for at in x[begins]]
    words = [f" {word} " for word in words]  # off the cross
    figure.add_scatter(
        x=_compact(x[begins]), y=_compact(before), mode="markers+text", text=words, textposition=sides,
        marker={"symbol": "x", "size": 10, "color": MARK}, textfont={"color": MARK}, showlegend=False,
        name=name, hovertemplate="%{text}", cliponaxis=False,
    )  # fmt: skip


def _targets(figure: go.Figure, runs: Runs, metric: str, axis: Axis, *, scale: float = 1, log: bool = False) -> None:
    """A dashed line at each different target for `metric`, and a mark where a run reached its own."""
    aims = [run.config.target for run in runs if run.config.target.metric == metric]
    for value, aim in {aim.value: aim for aim in aims if aim.value}.items():
        assert value is not None
        y = value * scale
        figure.add_shape(
            type="line", xref="paper", x0=0, x1=1, y0=y, y1=y, line={"color": _GREY, "width": 1, "dash": "dash"}
        )
        figure.add_annotation(
            xref="paper", x=0, xanchor="left", y=math.log10(y) if log else y, yanchor="bottom", showarrow=False,
            text=f"target {target_in_words(aim)}",
        )  # fmt: skip
    for run, label, style in _styled(runs):
        reached, aim = run.target_reached, run.config.target
        if (
            reached is None or reached.metric != metric or aim.value is None
        ):  # a report may say the one without the other
            continue
        words = f"{target_in_words(aim)} reached at step {reached.step:,}, after {units.duration(reached.train_s)}"
        figure.add_scatter(
            x=_where(run, reached, axis), y=[reached.value * scale], mode="markers", showlegend=False,
            marker={"symbol": "diamond", "size": 10, "color": style["colour"]}, legendgroup=style["legendgroup"],
            name=f"{label}target", hovertemplate=words,
        )  # fmt: skip


def target_in_words(target: Target) -> str:
    """95 %, or loss 0.3: what a run aims at."""
    assert target.value is not None
    return f"{100 * target.value:g} %" if target.metric == "test_accuracy" else f"loss {target.value:g}"


def _where(run: Curves, reached: TargetReached, axis: Axis) -> np.ndarray:
    """The x at which a target was reached, of the evaluation that did."""
    rows = run.evaluations["step"] == reached.step
    return _along(run.evaluations, run, axis)[rows][:1]


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "+∞" if value > 0 else "-∞"


def _last_finite(y: np.ndarray) -> float:
    rows = np.flatnonzero(np.isfinite(y))
    return float(y[rows[-1]]) if len(rows) else 1.0


def _over_time(
    runs: Runs, read: Reader, y_title: str, name: str, max_points: int, number: str, unit: str = "", *, scale: float = 1
) -> go.Figure:
    """One line per run over the wall time since it started. Zero is on the axis: a wiggle should look like one."""
    series = [read(run) for run in runs]
    longest = max((float(x[-1]) for x, _ in series if len(x)), default=0.0)
    per_unit, word = (1, "s") if longest < 300 else (60, "min") if longest < 18_000 else (3_600, "h")
    figure = _figure(f"Elapsed time ({word})", y_title)
    for (run_x, run_y), (_, label, style) in zip(series, _styled(runs), strict=True):
        if len(run_y) and not np.isnan(run_y).all():
            _raw_and_smooth(figure, run_x / per_unit, run_y / scale, f"{label}{name}", style, max_points, number, unit)
    figure.update_yaxes(rangemode="tozero")
    if len(runs) == 1:
        figure.update_layout(showlegend=False)
    return figure


def _knows(table: Columns, column: str) -> bool:
    knows: Callable[[str], bool] | None = getattr(table, "knows", None)
    return knows is None or knows(column)


def _hardware(column: str) -> Reader:
    return lambda run: (run.hardware["elapsed"], run.hardware[column])


def _bytes_curve(runs: Runs, column: str, title: str, max_points: int) -> go.Figure:
    read = _hardware(column)
    peaks = [float(np.nanmax(y)) for _, y in map(read, runs) if len(y) and not np.isnan(y).all()]
    scale, unit = (1024**3, "GiB") if max(peaks, default=0.0) >= 1024**3 else (1024**2, "MiB")
    number = ".2f" if unit == "GiB" else ".0f"
    return _over_time(runs, read, f"{title} ({unit})", title.lower(), max_points, number, f" {unit}", scale=scale)


def _along(table: Columns, run: Curves, axis: Axis) -> np.ndarray:
    """The x of a table's rows; an evaluation stands where its step stands."""
    if axis != "samples":
        return table[axis]
    if not len(run.steps):
        return np.zeros(len(table))
    return np.interp(table["step"], run.steps["step"], run.steps["samples"])


def _reach(runs: Runs, axis: Axis) -> float:
    """Where the longest run ends on the axis."""
    return max((float(_along(run.steps, run, axis)[-1]) for run in runs if len(run.steps)), default=0.0)


def _accuracy_title(runs: Runs) -> str:
    return "Next-character accuracy" if runs and all(r.config.is_text for r in runs) else "Held-out accuracy"


def _spans_decades(columns: Iterable[np.ndarray], ratio: float = 100.0) -> bool:
    values = np.concatenate([np.empty(0), *columns])
    values = values[np.isfinite(values) & (values > 0)]
    return len(values) > 0 and bool(values.max() > ratio * values.min())


def _axis_title(axis: Axis) -> str:
    return {"step": "Step", "seconds": "Training time (s)", "samples": "Examples seen"}[axis]


def _climbs(runs: Runs) -> bool:
    """True where a loss leaves the scale it began on: on a linear axis everything before would be a flat line."""
    for run in runs:
        finite = run.steps["loss"][np.isfinite(run.steps["loss"])]
        if len(finite) and finite.max() > 50 * np.median(finite[:10]) and finite.min() > 0:
            return True
    return False


def _compact(values: np.ndarray) -> np.ndarray:
    """Half the bytes on their way to the browser: whole numbers as int32, others as float32."""
    if len(values) and np.isfinite(values).all() and (values == np.rint(values)).all() and np.abs(values).max() < 2**31:
        return values.astype(np.int32)
    return values.astype(np.float32)
