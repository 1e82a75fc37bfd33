"""The charts of the runs, and a card per study, such as a batch-size law or an inference run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from engine.config.tasks import TaskName
from engine.events.inference import Latency
from engine.events.machine import Calibration
from engine.events.studies import Surface
from engine.measurement import calibration, step_breakdown
from engine.reports.frozen_run import ReportRun
from engine.reports.html.parts import Chart, PlacedRun, curves, grouped
from engine.studies import batch_law
from engine.studies.inference import RUNTIME_WORDS, Matrix, cell_in_words
from engine.studies.inference_runtimes import form_in_words, slower_in_words
from engine.studies.loss_surface import SURFACE_FILE, SurfaceData, surface_of

_MIN_POINTS = 300  # of each curve, also if many runs share a chart
_HOW_LATENCY = {
    "closed": "Measured after warm-up, with the device synchronised, combinations in turns. Each request is sent when the one "
    "before it is answered (closed loop). First answer: from loading the weights to the first output.",
    "open": "Measured after warm-up, with the device synchronised, combinations in turns. Requests arrive at random at the given "
    "rate (open loop); latency includes the wait in the queue. First answer: from loading the weights to the first output.",
}


@dataclass(frozen=True, slots=True)
class Study:
    """A card. It shows the parts that are not empty, in this order."""

    title: str
    charts: Sequence[Chart] = ()
    about: str = ""
    facts: Sequence[tuple[str, str, str]] = ()  # title, value, how it was obtained
    heads: Sequence[str] = ()
    rows: Sequence[tuple[str, list[str]]] = ()  # title, and a cell for each head but the first
    words: Sequence[tuple[str, str, str]] = ()  # paragraphs: label of the run or "", text, aside
    notes: Sequence[Sequence[str]] = ()  # boxes, each with its lines
    how: str = ""


def run_charts(runs: Sequence[PlacedRun]) -> list[Chart]:
    """The training charts that have data. Many runs share the number of points that a single run would have."""
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
    if len(runs) > 1:  # one legend above the charts serves all of them
        for made in found:
            made.figure.update_layout(showlegend=False)
    return found


def studies(runs: Sequence[PlacedRun]) -> list[Study]:
    """The cards of the studies, in the order of the page."""
    known = [study for section in SECTIONS.values() for study in section(runs)]
    return [*known, *_others(runs)]


def _others(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card for each run of a task that has no section: the numbers and texts of its newest events."""
    for run in runs:
        if run.run.config.task in SECTIONS:
            continue
        newest = {event.kind: event for event in run.run.said}
        facts = [(title, text, kind) for kind, event in newest.items() for title, text in event.facts()]
        yield Study(_title(run.run.config.task_facts.title, run, runs), facts=facts)


def _title(title: str, run: PlacedRun, runs: Sequence[PlacedRun]) -> str:
    return f"{title}: {run.label}" if len(runs) > 1 else title


def _laws(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card per batch-size law: its chart, its results, and its notes."""
    for i, run in enumerate(runs):
        trials = run.run.trials
        if not trials:
            continue
        found = batch_law.outcome(trials, budget_s=run.run.config.budget.seconds)
        figure = batch_law_chart(trials, found.law, found.step_time)
        chart = Chart(f"law-{i}", figure, "Steps, samples and time to the target against the batch size", height="tall")
        title = _title("Batch-size law", run, runs)
        yield Study(title, [chart], facts=batch_law.facts(found), notes=[[note] for note in found.notes])


def _surfaces(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card per loss surface, with the share of the weights' path that its plane explains."""
    labels = {run.run.run_id: run.label for run in runs}
    for i, run in enumerate(runs):
        surface = _surface(run.run)
        if surface is None:
            continue
        paths = [labels.get(run_id, f"run {run_id[:6]}") for run_id in surface.paths]
        figure = descent_path_chart(surface, paths, [style.colour(place) for place in range(len(paths))])
        event, gap = surface.event, ""
        if event.plane_gap is not None:
            gap = f" At the checkpoints it differs from the loss by {event.plane_gap:.2g} (median)."
        yield Study(
            f"Loss surface: {run.label}",
            [Chart(f"surface-{i}", figure, "Loss surface with the paths of the runs", height="mid")],
            how=f"The loss on {event.examples:,} {event.split} samples, on the plane {event.plane} of {event.parameters:,} "
            f"dimensions. The plane explains {percent(sum(surface.explained))} of the variance of the paths.{gap} "
            "An open circle marks the start of a run, a filled one its end. Measured; shares derived.",
        )


def _surface(run: ReportRun) -> SurfaceData | None:
    """The surface that a landscape run computed; None if it is missing or incomplete."""
    event = next((event for event in run.said if isinstance(event, Surface)), None)
    data = next((file.data for file in run.files if file.name == SURFACE_FILE), None)
    if event is None or not data:
        return None
    try:
        return surface_of(load(data), event, run.config.landscape.runs, run.run_id)
    except (StoreError, SafetensorError, ValueError):
        return None


def _calibrations(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card per calibration, with the measured peaks of the machine."""
    for made in (event for run in runs for event in run.run.said if isinstance(event, Calibration)):
        versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
        notes = [*calibration.missing_in_words(made), *calibration.doubts(made, now=made.at)]
        yield Study(
            "Measured peaks of the machine",
            about=f"{made.device_name}; {versions}; {units.date(made.at)}. Measured.",
            facts=calibration.facts(made),
            notes=[notes] if notes else [],
        )


def _splits(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """One card with a bar and a sentence for each run that has a step breakdown."""
    groups = grouped(runs)
    known = [(group.label, group.first.run, found) for group in groups if (found := _breakdown(group.first.run)).parts]
    if not known:
        return
    methods = "; ".join(dict.fromkeys(run.step_split.method for _, run, _ in known if run.step_split))
    seeds = "" if len(groups) == len(runs) else " The first seed of each configuration."
    figure = split_chart([(label, found.parts) for label, _, found in known])
    yield Study(
        "Where a step's time goes",
        [Chart("split", figure, "Where the time of a step goes", height="own")],
        words=[_split_in_words(label if len(runs) > 1 else "", found) for label, _, found in known],
        how=f"Measured: {methods}.{seeds}",
    )


def _breakdown(run: ReportRun) -> step_breakdown.Breakdown:
    return step_breakdown.breakdown(run.step_split, run.config, run.summary, run.evaluation_s)


def _split_in_words(label: str, found: step_breakdown.Breakdown) -> tuple[str, str, str]:
    evaluation = f" Evaluation: {found.evaluation}." if found.evaluation else ""
    return label, found.doubt or found.advice, f"{found.in_words()}.{evaluation}"


def _inferences(runs: Sequence[PlacedRun]) -> Iterator[Study]:
    """A card per inference run: its combinations, the quality of each precision, and why some are slower."""
    for i, run in enumerate(runs):
        if SECTIONS.get(run.run.config.task) is not _inferences:
            continue
        found, is_text = run.run.matrix, run.run.config.is_text
        heads = ["", "Requests", "p50", "p90", "p99", "Max", "Samples/s", "First answer"]
        heads += ["First character", "Each character"] if is_text else []
        rows = [(cell_in_words(found, c.cell), _latency_cells(c.latency, is_text)) for c in found.measured if c.latency]
        yield Study(
            _title("Inference", run, runs),
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
    """The charts of an inference run that have data: key, title and figure."""
    if not found.measured:
        return
    if len(found.cells) > 1:
        yield "throughput", "Throughput of each combination (measured)", heat_map(found)
        yield "p99", "Latency of each combination, p99 (measured)", heat_map(found, "p99")
    if len(found.batch_sizes) > 1:
        yield "curve", "Throughput against latency", curve_chart(found)
    if len({(c.cell.runtime, c.cell.precision) for c in found.measured}) > 1:
        yield "ladder", "Speed-up over plain PyTorch (derived)", ladder_chart(found)
    if found.config.is_text and len(found.batch_sizes) > 1:
        yield "ttft", "Time to first token", token_chart(found, "ttft")
        yield "tpot", "Time per output token", token_chart(found, "tpot")
    if len(found.cells) == 1 and (latency := found.measured[0].latency):
        yield "histogram", "Histogram of latency (measured)", histogram_chart(latency)
        yield "timeline", "Latency over time (measured)", timeline_chart(latency)


def _latency_cells(latency: Latency, is_text: bool) -> list[str]:
    cells = [units.count(latency.requests)]
    cells += [units.duration(s) for s in (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)]
    cells += [units.count(round(latency.samples_per_s)), units.duration(latency.first_request_s)]
    if is_text:
        cells += [units.duration(q.p50_s if q else None) for q in (latency.ttft, latency.tpot)]
    return cells


SECTIONS: Mapping[TaskName, Callable[[Sequence[PlacedRun]], Iterator[Study]]] = {  # in the order of the page
    "batch-law": _laws,
    "landscape": _surfaces,
    "calibrate": _calibrations,
    "train": _splits,
    "infer": _inferences,
}
