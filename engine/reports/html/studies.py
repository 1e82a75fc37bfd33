"""The charts of the runs, and a card for each study: batch-size laws, loss surfaces, calibrations, steps, inference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from safetensors import SafetensorError
from safetensors.numpy import load

from engine.charts import style, training
from engine.charts.batch_law import batch_law_chart
from engine.charts.inference import curve_chart, heat_map, histogram_chart, ladder_chart, timeline_chart, token_chart
from engine.charts.loss_surface import descent_path_chart, percent
from engine.charts.step_breakdown import split_chart
from engine.common import units
from engine.common.errors import StoreError
from engine.events.inference import Latency
from engine.events.machine import Calibration
from engine.events.studies import Surface
from engine.measurement import calibration, step_breakdown
from engine.reports.html.parts import Chart, PlacedRun, curves, grouped
from engine.reports.report import ReportRun
from engine.studies import batch_law
from engine.studies.inference import RUNTIME_WORDS, Matrix, cell_in_words
from engine.studies.inference_runtimes import form_in_words, slower_in_words
from engine.studies.loss_surface import SURFACE_FILE, SurfaceData, surface_of

_MIN_POINTS = 300  # of a curve, however many runs share a chart
_HOW_LATENCY = {
    "closed": "Measured: one request at a time, sent when the last one was answered; after warm-up, the device synchronised, cells "
    "in turns. First answer: from the weights on disk.",
    "open": "Measured: requests arrived by chance at the rate; latency counts from the arrival, waiting included; after warm-up, "
    "the device synchronised, cells in turns. First answer: from the weights on disk.",
}


@dataclass(frozen=True, slots=True)
class Study:
    """A card. It shows what is there of these, in this order."""

    title: str
    charts: Sequence[Chart] = ()
    about: str = ""
    facts: Sequence[tuple[str, str, str]] = ()  # title, value, how it was had
    heads: Sequence[str] = ()
    rows: Sequence[tuple[str, list[str]]] = ()  # title, and a cell for each head but the first
    words: Sequence[tuple[str, str, str]] = ()  # a paragraph: label of its run or nothing, text, aside
    notes: Sequence[Sequence[str]] = ()  # boxes, each with its lines
    how: str = ""


def run_charts(runs: Sequence[PlacedRun]) -> list[Chart]:
    """The charts of training that have something to show. Many runs share the points that one could have."""
    max_points = max(_MIN_POINTS, training.MAX_POINTS // max(1, len(runs) // 2))
    found = []
    for chart in training.shown(curves(runs)):
        title = chart.title_of(curves(runs))
        label = title if " over " in title else f"{title} over the run"
        found.append(Chart(chart.key, chart.draw(curves(runs), max_points=max_points), label, title))
        is_timed = any(np.isfinite(run.run.evaluations["seconds"]).any() for run in runs)
        if chart.key == "accuracy" and len(runs) > 1 and is_timed:
            over_time = f"{title} over training time"
            figure = chart.draw(curves(runs), axis="seconds", max_points=max_points)
            found.append(Chart("accuracy-time", figure, over_time, over_time))
    if len(runs) > 1:  # the legend stands once, above the charts
        for made in found:
            made.figure.update_layout(showlegend=False)
    return found


def studies(runs: Sequence[PlacedRun]) -> list[Study]:
    """The cards of what is no curve over a training, in the order of the page."""
    return [*_laws(runs), *_surfaces(runs), *_calibrations(runs), *_splits(runs), *_inferences(runs)]


def _title(title: str, run: PlacedRun, runs: Sequence[PlacedRun]) -> str:
    return f"{title}: {run.label}" if len(runs) > 1 else title


def _laws(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card for each batch-size law: its chart, what it comes to, and what is not in it."""
    for i, run in enumerate(runs):
        trials = run.run.trials
        if not trials:
            continue
        found = batch_law.outcome(trials)
        figure = batch_law_chart(trials, found.law, found.step_time)
        chart = Chart(
            f"law-{i}", figure, "Steps, examples and time to the target against the batch size", height="tall"
        )
        title = _title("Batch-size law", run, runs)
        yield Study(title, [chart], facts=batch_law.facts(found), notes=[[note] for note in found.notes])


def _surfaces(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card for each loss surface, with how much of the paths it shows."""
    labels = {run.run.run_id: run.label for run in runs}
    for i, run in enumerate(runs):
        surface = _surface(run.run)
        if surface is None:
            continue
        paths = [labels.get(run_id, f"run {run_id[:6]}") for run_id in surface.paths]
        figure = descent_path_chart(surface, paths, [style.colour(place) for place in range(len(paths))])
        said, gap = surface.event, ""
        if said.plane_gap is not None:
            gap = f" At the checkpoints it is {said.plane_gap:.2g} off the loss itself, in the median."
        yield Study(
            f"Loss surface: {run.label}",
            [Chart(f"surface-{i}", figure, "Loss surface with the paths of the runs", height="mid")],
            how=f"The loss on {said.examples:,} {said.split} examples, on the plane {said.plane} of {said.parameters:,} "
            f"dimensions: it shows {percent(sum(surface.explained))} of the paths' variance.{gap} "
            "A ring is where a run began, a full dot where it ended. Measured; shares derived.",
        )


def _surface(run: ReportRun) -> SurfaceData | None:
    """What a landscape run computed; None where it is not here, or not whole."""
    said = next((event for event in run.said if isinstance(event, Surface)), None)
    data = next((file.data for file in run.files if file.name == SURFACE_FILE), None)
    if said is None or not data:
        return None
    try:
        return surface_of(load(data), said, run.config.landscape.runs, run.run_id)
    except (StoreError, SafetensorError, ValueError):
        return None


def _calibrations(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card for each calibration: what the machine reached."""
    for made in (event for run in runs for event in run.run.said if isinstance(event, Calibration)):
        versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
        said = [*calibration.missing_in_words(made), *calibration.doubts(made, now=made.at)]
        yield Study(
            "What the machine reaches",
            about=f"{made.device_name}; {versions}; {units.date(made.at)}. Measured.",
            facts=calibration.facts(made),
            notes=[said] if said else [],
        )


def _splits(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """One card with a bar for each run whose step was taken apart, and what each says."""
    groups = grouped(runs)
    known = [(group.label, group.first.run, parts) for group in groups if (parts := _parts(group.first.run))]
    if not known:
        return
    methods = "; ".join(dict.fromkeys(run.step_split.method for _, run, _ in known if run.step_split))
    seeds = "" if len(groups) == len(runs) else " Of each lane the first seed."
    figure = split_chart([(label, parts) for label, _, parts in known])
    yield Study(
        "Where a step's time goes",
        [Chart("split", figure, "Where the time of a step goes", height="own")],
        words=[_split_in_words(label if len(runs) > 1 else "", run, parts) for label, run, parts in known],
        how=f"Measured: {methods}; evaluation from the run's own evaluations, by its steps.{seeds}",
    )


def _parts(run: ReportRun) -> list[step_breakdown.Part]:
    return step_breakdown.parts(run.step_split, evaluation_s=run.evaluation_s, steps=run.summary.steps)


def _split_in_words(label: str, run: ReportRun, parts: list[step_breakdown.Part]) -> tuple[str, str, str]:
    step_s = run.summary.train_seconds / run.summary.steps if run.summary.steps else None
    aside = f"{step_breakdown.row_in_words(parts)}. {step_breakdown.agrees(parts, step_s)}"
    return label, step_breakdown.sentence(parts, run.config), aside


def _inferences(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card for each run of inference: its cells, its forms of the weights, and why some of them are slower."""
    for i, run in enumerate(runs):
        if run.run.config.task != "infer":
            continue
        found, is_text = run.run.matrix, run.run.config.is_text
        heads = ["", "Requests", "p50", "p90", "p99", "Longest", "Examples/s", "First answer"]
        heads += ["First character", "Each character"] if is_text else []
        rows = [(cell_in_words(found, c.cell), _latency_cells(c.latency, is_text)) for c in found.measured if c.latency]
        yield Study(
            _title("How fast it answers", run, runs),
            [Chart(f"{key}-{i}", figure, title, title, "own") for key, title, figure in _inference_figures(found)],
            heads=heads,
            rows=rows,
            words=[("", text, "") for text in _inference_in_words(run.run, found)],
            how=_HOW_LATENCY[run.run.config.infer.load],
        )


def _inference_in_words(run: ReportRun, found: Matrix) -> list[str]:
    words = [form_in_words(found, quality) + "." for quality in run.qualities]
    if found.cells:
        batch_size, threads = min((c.cell.batch_size, c.cell.threads) for c in found.cells)
        words += slower_in_words(found, batch_size=batch_size, threads=threads)
    not_run = (f"{RUNTIME_WORDS[c.cell.runtime]} in {c.cell.precision}: {c.not_run}" for c in found.cells if c.not_run)
    return [*words, *dict.fromkeys(not_run)]


def _inference_figures(found: Matrix) -> Iterator[tuple[str, str, go.Figure]]:
    """The charts of a run of inference that have something to show: key, title and figure."""
    if not found.measured:
        return
    if len(found.cells) > 1:
        yield "throughput", "Throughput of each cell (measured)", heat_map(found)
        yield "p99", "Latency of each cell, p99 (measured)", heat_map(found, "p99")
    if len(found.batch_sizes) > 1:
        yield "curve", "Throughput against latency", curve_chart(found)
    if len({(c.cell.runtime, c.cell.precision) for c in found.measured}) > 1:
        yield "ladder", "Speed-up over plain PyTorch (derived)", ladder_chart(found)
    if found.config.is_text and len(found.batch_sizes) > 1:
        yield "ttft", "Time to first token", token_chart(found, "ttft")
        yield "tpot", "Time per output token", token_chart(found, "tpot")
    if len(found.cells) == 1 and (latency := found.measured[0].latency):
        yield "histogram", "How long requests took (measured)", histogram_chart(latency)
        yield "timeline", "When they took it (measured)", timeline_chart(latency)


def _latency_cells(latency: Latency, is_text: bool) -> list[str]:
    cells = [units.count(latency.requests)]
    cells += [units.duration(s) for s in (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)]
    cells += [units.count(round(latency.samples_per_s)), units.duration(latency.first_request_s)]
    if is_text:
        cells += [units.duration(q.p50_s if q else None) for q in (latency.ttft, latency.tpot)]
    return cells
