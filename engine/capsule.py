"""The HTML capsule: a report as one page that needs nothing but itself. No request, no server, charts, printable.

The data it was drawn from is inside it, with its hash, and comes back as runs where it is imported.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import plotly.offline
from safetensors import SafetensorError
from safetensors.numpy import load

from engine import (
    batch_law,
    calibration,
    charts,
    charts_descent,
    charts_infer,
    energy,
    landscape,
    outcome,
    serving,
    split,
    units,
)
from engine.charts_split import split_chart
from engine.config import Cell, RunConfig, Spec, describe
from engine.errors import StoreError
from engine.landscape import SURFACE_FILE, SurfaceData
from engine.outcome import LaneOutcome, Outcome
from engine.records import Calibration, Latency, Origin, Surface
from engine.report import ENVIRONMENT, Report, ReportRun, reproduce
from engine.text import visible

MAX_HTML_BYTES = 3_000_000  # goes through a mail server


def page(report: Report) -> str:
    """It stays under 3 MB. Where the points of all steps would not fit, it holds fewer of them and says so."""
    room = MAX_HTML_BYTES - len(_plotly_js()) - len(_figures(report)) - 60_000 - 12_000 * len(report.runs)
    held, max_rows = report, 64_000
    while len(held.to_json()) > room and max_rows >= 500:
        held, max_rows = report.thinned(max_rows), max_rows // 2
    return _page(held)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A line of the results: what it is called, its value in a run, and how the value was had."""

    title: str
    text: Callable[[ReportRun], str]
    how: Callable[[ReportRun], str]
    always: bool = True  # False: left out where no run has it
    figure: str = ""  # its name among the run's figures, which say window and uncertainty
    is_pale: Callable[[ReportRun], bool] = lambda run: False  # greyed: mostly uncertainty


def _measured(words: str) -> Callable[[ReportRun], str]:
    return lambda run: words


def _held_out(run: ReportRun) -> str:
    what = "every next character of {} passages" if run.config.is_text else "{} examples"
    return f"measured on {what.format(units.count(run.test_examples))} not trained on, at the last evaluation"


def _energy(run: ReportRun) -> str:
    return energy.in_words(run.energy) if run.energy else units.energy(run.summary.energy_j)


def _energy_how(run: ReportRun) -> str:
    if run.energy:
        return energy.how_in_words(run.energy)
    reason = run.energy_method or run.missing_readings.get("gpu_power_w", "")
    if run.summary.energy_j is None:
        return f"not available here{': ' + reason if reason else ''}"
    return f"measured{': ' + reason if reason else ''}"


def _detail(title: str, figure: str = "") -> Quantity:
    """Something made of the run's energy, where it was measured."""

    def found(run: ReportRun) -> energy.Detail:
        rows = energy.details(run.energy) if run.energy else []
        return next((row for row in rows if row.title == title), energy.Detail(title, units.UNKNOWN, ""))

    return Quantity(
        title,
        lambda run: found(run).text,
        lambda run: found(run).how,
        always=False,
        figure=figure,
        is_pale=lambda run: found(run).is_short,
    )


def _busy(text: str, run: ReportRun) -> str:
    """A figure of speed, with a mark where something else used the machine."""
    return f"{text} (machine was busy)" if run.summary.busy else text


def _busy_how(how: str) -> Callable[[ReportRun], str]:
    return lambda run: f"{how}; {run.summary.busy_why}" if run.summary.busy else how


def _target(run: ReportRun) -> str:
    target, reached = run.config.target, run.target_reached
    if target.value is None:
        return units.UNKNOWN
    aim = charts.target_in_words(target)
    if reached is None:
        return f"{aim} not reached"
    return f"{aim} reached at step {reached.step:,}, after {units.duration(reached.train_s)}"


def _training_memory_how(run: ReportRun) -> str:
    m = run.memory
    if m is None or m.training_bytes is None:
        return "not recorded"
    parts = {"weights": m.weight_bytes, "optimizer state": m.optimizer_bytes, "one step at its peak": m.step_peak_bytes}
    named = ", ".join(f"{name} {units.nbytes(size)}" for name, size in parts.items())
    return f"measured: {named}; {m.method}. The data set is apart: {units.nbytes(m.data_bytes)}"


def _process_memory(run: ReportRun) -> int | None:
    """Before there was a record of training memory alone, a report's peak was that of the process."""
    summary = run.summary
    return summary.process_memory_bytes if run.memory else summary.process_memory_bytes or summary.peak_memory_bytes


def _per_second(run: ReportRun) -> float | None:
    s = run.summary
    return s.flops / s.train_seconds if s.flops and s.train_seconds else None


def _per_step(run: ReportRun) -> float | None:
    return run.summary.train_seconds / run.summary.steps if run.summary.steps else None


QUANTITIES = (
    Quantity("Held-out accuracy", lambda r: units.accuracy(r.summary.test_accuracy), _held_out, figure="test_accuracy"),
    Quantity("Target", _target, _measured("the first of two evaluations in a row that reach it"), always=False),
    Quantity("Held-out loss", lambda r: units.loss(r.summary.test_loss), _held_out, figure="test_loss"),
    Quantity(
        "Training loss",
        lambda r: units.loss(r.summary.final_train_loss),
        _measured("measured: mean over the batches of the last epoch, at most 100"),
        figure="final_train_loss",
    ),
    Quantity(
        "Throughput",
        lambda r: _busy(units.samples_per_s(r.summary.samples_per_s), r),
        _busy_how("derived: examples by training time"),
        figure="samples_per_s",
    ),
    Quantity(
        "Training time",
        lambda r: _busy(units.duration(r.summary.train_seconds), r),
        _measured("measured, the device synchronised; without loading, warm-up and evaluation"),
        figure="train_seconds",
    ),
    Quantity(
        "Time per step",
        lambda r: _busy(units.duration(_per_step(r)), r),
        _busy_how("derived: training time by steps"),
        figure="step_seconds",
    ),
    Quantity(
        "Set-up and warm-up",
        lambda r: units.duration((r.setup_s or 0) + (r.warm_up_s or 0) if r.setup_s is not None else None),
        _measured("measured, apart from training time"),
    ),
    Quantity(
        "Compiling",
        lambda r: units.duration(r.compiled_s),
        _measured("measured, apart from training time: once, before the first step"),
        always=False,
    ),
    Quantity("Steps", lambda r: f"{r.summary.steps:,}", _measured("counted")),
    Quantity("Examples seen", lambda r: units.count(r.summary.samples), _measured("counted")),
    Quantity("Epochs", lambda r: f"{r.summary.epochs:.4g}", _measured("derived: examples seen by training examples")),
    Quantity("Parameters", lambda r: units.count(r.parameters), _measured("counted")),
    Quantity(
        "Arithmetic",
        lambda r: units.flops(r.summary.flops),
        _measured("derived: closed form per layer, forward and backward, a multiply-add is 2"),
        figure="flops",
    ),
    Quantity(
        "Arithmetic rate",
        lambda r: _busy(units.flops_per_s(_per_second(r)), r),
        _busy_how("derived: arithmetic by training time"),
        figure="flops_per_s",
    ),
    Quantity(
        "Training memory",
        lambda r: units.nbytes(r.memory.training_bytes if r.memory else None),
        _training_memory_how,
        figure="peak_memory_bytes",
    ),
    Quantity(
        "Process memory",
        lambda r: units.nbytes(_process_memory(r)),
        lambda r: f"measured: {r.peak_memory_method}" if r.peak_memory_method else "not recorded",
        figure="process_memory_bytes",
    ),
    Quantity("Energy", _energy, _energy_how, figure="energy_j", is_pale=lambda r: bool(r.energy and r.energy.is_short)),
    _detail("Energy above idle", "energy_above_idle_j"),
    _detail("Energy per 1,000 samples", "energy_per_1000_samples_j"),
    _detail("Energy to target", "energy_to_target_j"),
    _detail("Price of the energy"),
    _detail("CO2 of the energy"),
)
_STUDIES = {
    "batch-law",
    "landscape",
    "calibrate",
    "infer",
}  # they train no one net: their own cards tell what they came to
_HEADLINES = ("Held-out accuracy", "Training loss", "Throughput", "Training time")


def e(text: str) -> str:
    """Text inside the page, in an element or an attribute: shown as it is, and nothing hidden in it."""
    return html.escape(visible(text))


def _page(report: Report) -> str:
    runs = report.runs
    script = _asset("report.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing may be fetched; the one inline script is known by its hash, Plotly comes as a blob that it makes.
    policy = (
        f"default-src 'none'; script-src 'sha256-{script_hash}' blob:; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    runs = cast(list[ReportRun], _placed(report))
    trained = [run for run in runs if run.config.task not in _STUDIES]
    body = "\n".join([
        _header(report), _notes(report), _troubles(runs), _verdicts(report), _headlines(runs[0]) if len(runs) == 1 and trained else "",
        _chart_cards(report), _results(trained) if trained else "", '<div class="pair">' if len(runs) == 1 else "<div>",
        _configuration(runs), _machine(runs), "</div>", _commands(runs), _footer(report),
    ])  # fmt: skip
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{e(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{e(report.title)} · Isoflop</title>
<style>{_asset("report.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="report">{report.to_json().replace("<", chr(92) + "u003c")}</script>
<script type="text/plain" id="figures">{_figures(report)}</script>
<script type="text/plain" id="plotly">{_plotly_js()}</script>
<script>{script}</script>
</body>
</html>
"""


def _header(report: Report) -> str:
    many = len(report.runs) > 1
    about = f"{len(report.runs)} runs" if many else e(describe(report.runs[0].config))
    badge = "" if many else _badge(report.runs[0])
    return (
        f'<header><p class="brand">Isoflop report</p><h1>{e(report.title)} {badge}</h1>'
        f'<p class="muted">{about} · {units.date(report.created)}</p></header>'
    )


def _notes(report: Report) -> str:
    """The author's own text, as it was typed."""
    if not report.notes.strip():
        return ""
    return _card("Notes", f'<pre class="notes">{"&#10;".join(map(e, report.notes.strip().splitlines()))}</pre>')


def _badge(run: ReportRun) -> str:
    return f'<span class="badge {run.status}">{run.status}</span>'


def _troubles(runs: Sequence[ReportRun]) -> str:
    """Why a run did not finish, and what of it could not be read or is not in this file; the same of several, once."""
    said: dict[tuple[str, str], list[str]] = {}
    for run, label in zip(runs, charts.labels(runs), strict=True):
        for kind, text in _trouble(run):
            said.setdefault((kind, text), []).append(label)
    notes = [
        f'<p class="{kind}">{f"<strong>{e(_listed(names, len(runs)))}</strong>: " if len(runs) > 1 else ""}{e(text)}</p>'
        for (kind, text), names in said.items()
    ]
    if thinned := [run for run in runs if run.is_thinned]:
        held, recorded = sum(len(run.steps) for run in thinned), sum(run.recorded_steps for run in thinned)
        whose = f" of {len(thinned)} runs" if len(runs) > 1 else ""
        notes.append(
            f'<p class="note">This file holds {held:,} of {recorded:,} steps{whose}, with every extreme of the loss; the .json and '
            ".zip exports hold all. The numbers below come from all of them.</p>"
        )
    return "\n".join(notes)


def _trouble(run: ReportRun) -> Iterator[tuple[str, str]]:
    if run.imported:
        yield "note", _where_from(run.imported)
    if run.why:
        yield "note" if run.status == "cancelled" else "trouble", run.why
    for problem in run.problems:
        yield "trouble", f"{problem}."


def _listed(names: Sequence[str], of: int) -> str:
    """Some names; of many how many there are more."""
    if len(names) == of > 1:
        return "All runs"
    return ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )


_MOST_NAMED = 6


def _lanes(runs: Sequence[ReportRun]) -> list[tuple[ReportRun, str, list[int]]]:
    """Runs that differ in their seed alone, once: one of them, what they are called together, and the seeds."""
    found: dict[tuple[object, str], tuple[ReportRun, str, list[int]]] = {}
    for run, label in zip(runs, charts.labels(runs), strict=True):
        alike = run.config.model_copy(update={"seed": 0, "checkpoints": 0}).fingerprint
        key = (getattr(run, "place", run.run_id), alike)
        found.setdefault(key, (run, label.partition(" · seed ")[0] if isinstance(run, _InLane) else label, []))[
            2
        ].append(run.config.seed)
    return list(found.values())


def _headlines(run: ReportRun) -> str:
    titles = (*_HEADLINES, "Training memory" if run.memory else "Process memory")
    chosen = [quantity for quantity in QUANTITIES if quantity.title in titles]
    cards = "".join(f"<div{_hover(q, run)}><dt>{q.title}</dt><dd>{e(q.text(run))}</dd></div>" for q in chosen)
    return f'<dl class="headlines">{cards}</dl>'


def _where_from(origin: Origin) -> str:
    what = "a table of numbers" if origin.form == "curve" else f"the report {origin.title!r}"
    bad = (
        " Its content hash did not match: it was changed after it was exported." if origin.hash_matches is False else ""
    )
    said = "".join(f" {note}" for note in origin.notes) if origin.form == "curve" else ""
    return f"Imported from {what} on {units.date(origin.at)}, unverified.{bad}{said}"


# --- what a race came to ----------------------------------------------------------------------------------------------

_COSTS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("seconds", "Training time", units.duration),
    ("steps", "Steps", lambda value: units.count(value and round(value))),
    ("samples", "Examples", lambda value: units.count(value and round(value))),
    ("flops", "Arithmetic", units.flops),
    ("joules", "Energy", units.energy),
    ("money", "Price", lambda value: units.UNKNOWN if value is None else f"{value:.3g}"),
)


def _verdicts(report: Report) -> str:
    return "".join(_verdict_card(conclusion.outcome, report) for conclusion in report.conclusions)


def _verdict_card(result: Outcome, report: Report) -> str:
    """The verdicts in sentences, and what each lane spent to the target and reached in the end."""
    sentences = [
        f'<p class="words">{e(outcome.verdict_in_words(lane.label, result.baseline, lane.verdicts[key], what))}</p>'
        for lane in result.lanes
        for key, what in (("to_target", "target"), ("test_accuracy", "accuracy"))
        if key in lane.verdicts
    ]
    if not sentences:
        sentences = ['<p class="words">No verdict yet: no seed ended in two lanes.</p>']
    if result.noise_floor is not None:
        sentences.append(
            f'<p class="muted">Luck alone moves accuracy by about {100 * result.noise_floor:.2f} points (derived); a verdict takes '
            f"{outcome.CLAIM_SEEDS} seeds.</p>"
        )
    costs = [cost for cost in _COSTS if any(lane.cost.get(cost[0]) is not None for lane in result.lanes)]
    aim = "" if result.target is None else f" {_target_in_words(result)}"
    heads = [f"To the target{aim}", *(title for _, title, _ in costs)] if result.target is not None else []
    heads += ["Accuracy", "Held-out loss", "Throughput", "Training memory"]
    rows = "".join(_lane_row(lane, result, costs, report) for lane in result.lanes)
    seeds = f"{result.seeds} seed{'' if result.seeds == 1 else 's'}; medians over them"
    table = (
        f"<table><thead><tr><th>Lane</th>{''.join(f'<th>{e(head)}</th>' for head in heads)}</tr></thead><tbody>{rows}</tbody></table>"
        f'<p class="muted">{seeds}. In brackets: of the lane {e(result.baseline)}. Cost is measured at the first of two evaluations '
        f"in a row that reach the target; arithmetic and price are derived.{e(_busy_lanes(result))}</p>"
    )
    return _card("Verdict", "".join(sentences) + table, "scroll verdict")


def _busy_lanes(result: Outcome) -> str:
    busy = [f"{lane.busy} of {sum(lane.status.values())} of {lane.label}" for lane in result.lanes if lane.busy]
    if not busy:
        return ""
    return f" Something else used the machine during some runs ({', '.join(busy)}): their times and throughput are worse than its own."


def _target_in_words(result: Outcome) -> str:
    assert result.target is not None
    return f"{100 * result.target:g} %" if result.metric == "test_accuracy" else f"loss {result.target:g}"


def _lane_row(
    lane: LaneOutcome, result: Outcome, costs: Sequence[tuple[str, str, Callable[[float | None], str]]], report: Report
) -> str:
    places = [getattr(run, "place", i) for i, run in enumerate(_placed(report)) if run.run_id in lane.run_ids]
    mark = _swatch(places[0]) if places else ""
    cells = []
    if result.target is not None:
        cells.append(f"{lane.reached} of {lane.judged} runs")
        for axis, _, write in costs:
            value = lane.cost.get(axis)
            cells.append(
                "not reached" if value is None and not _reached(lane) else _beside(write(value), lane.share.get(axis))
            )
    cells += [
        units.accuracy(lane.test_accuracy), units.loss(lane.test_loss),
        _beside(units.samples_per_s(lane.samples_per_s), lane.share.get("samples_per_s")),
        units.nbytes(lane.memory_bytes),
    ]  # fmt: skip
    return f'<tr><th scope="row">{mark}{e(lane.label)}</th>{"".join(f"<td>{e(cell)}</td>" for cell in cells)}</tr>'


def _reached(lane: LaneOutcome) -> bool:
    return lane.cost.get("steps") is not None


def _beside(text: str, share: float | None) -> str:
    """A figure, and what share of the baseline's it is."""
    return text if share is None else f"{text} ({units.percent(share)})".replace(" %", "\u00a0%")


@dataclass(frozen=True, slots=True)
class _InLane:
    """A run of a race as a chart sees it: in the colour of its lane."""

    run: ReportRun
    place: int
    name: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.run, name)


def _placed(report: Report) -> list[charts.Curves]:
    """The runs as charts draw them: those of one lane in one colour."""
    lanes = {
        run_id: (place, lane)
        for c in report.conclusions[:1]
        for place, lane in enumerate(c.outcome.lanes)
        for run_id in lane.run_ids
    }
    if not set(lanes) >= {run.run_id for run in report.runs} or len(report.conclusions) != 1:
        return list(report.runs)
    several = len(report.conclusions[0].outcome.lanes) < len(report.runs)
    return [
        cast(
            charts.Curves,
            _InLane(
                run,
                lanes[run.run_id][0],
                lanes[run.run_id][1].label + (f" · seed {run.config.seed}" if several else ""),
            ),
        )
        for run in report.runs
    ]


# --- charts -----------------------------------------------------------------------------------------------------------


def _chart_cards(report: Report) -> str:
    runs = report.runs
    drawn = _drawn(report)
    cards = "".join(
        f'<figure><figcaption>{title}</figcaption><div class="chart" id="chart-{key}" role="img" '
        f'aria-label="{title}{"" if " over " in title else " over the run"}"></div></figure>'
        for key, title, _ in drawn
    )
    wide = _laws(runs) + _surfaces(report) + _calibrations(runs) + _splits(cast(list[ReportRun], _placed(report)))
    wide += _inferences(runs)
    if not (cards or wide):
        return '<p class="note">There is nothing to draw yet.</p>'
    shown = f'{_legend(report)}<section class="charts" aria-label="Charts">{cards}</section>' if cards else ""
    return f'{shown}{wide}<p id="no-charts" hidden></p>'


def _drawn(report: Report) -> list[tuple[str, str, Callable[[int], go.Figure]]]:
    """Key, title and how to draw of each chart that has something to show."""
    runs = _placed(report)
    found: list[tuple[str, str, Callable[[int], go.Figure]]] = []
    for chart in charts.shown(runs):
        found.append((chart.key, chart.title_of(runs), partial(_draw, chart.draw, runs)))
        if (
            chart.key == "accuracy"
            and len(runs) > 1
            and any(np.isfinite(run.evaluations["seconds"]).any() for run in runs)
        ):
            found.append(
                (
                    "accuracy-time",
                    f"{chart.title_of(runs)} over training time",
                    partial(_draw, partial(chart.draw, axis="seconds"), runs),
                )
            )
    return found


def _draw(draw: Callable[..., go.Figure], runs: charts.Runs, max_points: int) -> go.Figure:
    return draw(runs, max_points=max_points)


def _laws(runs: Sequence[ReportRun]) -> str:
    """A card for each batch-size law: its chart, what it comes to, and what is not in it."""
    cards = []
    for i, (run, label) in enumerate(zip(runs, charts.labels(runs), strict=True)):
        if not run.trials:
            continue
        found = batch_law.outcome(run.trials)
        notes = "".join(f'<p class="note">{e(note)}</p>' for note in found.notes)
        title = "Batch-size law" + (f": {e(label)}" if len(runs) > 1 else "")
        chart = (
            f'<div class="chart tall" id="chart-law-{i}" role="img" '
            'aria-label="Steps, examples and time to the target against the batch size"></div>'
        )
        cards.append(_card(title, f"{chart}{_facts(batch_law.facts(found))}{notes}"))
    return "".join(cards)


def _facts(rows: Sequence[tuple[str, str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{e(title)}</th><td>{e(text)}</td><td class="how">{e(how)}</td></tr>'
        for title, text, how in rows
    )
    return f"<table><tbody>{cells}</tbody></table>"


def _surface(run: ReportRun) -> SurfaceData | None:
    """What a landscape run computed; None where it is not here, or not whole."""
    said = next((event for event in run.said if isinstance(event, Surface)), None)
    file = next((file for file in run.files if file.name == SURFACE_FILE and file.data), None)
    if said is None or file is None or file.data is None:
        return None
    try:
        return landscape.surface_of(load(file.data), said, run.config.landscape.runs, run.run_id)
    except (StoreError, SafetensorError, ValueError):
        return None


def _surfaces(report: Report) -> str:
    """A card for each loss surface, with how much of the paths it shows."""
    cards = []
    for i, (run, label) in enumerate(zip(report.runs, charts.labels(report.runs), strict=True)):
        surface = _surface(run)
        if surface is None:
            continue
        gap = (
            ""
            if surface.said.plane_gap is None
            else f" At the checkpoints it is {surface.said.plane_gap:.2g} off the loss itself, in the median."
        )
        words = (
            f"The loss on {surface.said.examples:,} {surface.said.split} examples, on the plane {surface.said.plane} of "
            f"{surface.said.parameters:,} dimensions: it shows {charts_descent.percent(sum(surface.explained))} of the paths' variance.{gap} "
            "A ring is where a run began, a full dot where it ended."
        )
        chart = f'<div class="chart mid" id="chart-surface-{i}" role="img" aria-label="Loss surface with the paths of the runs"></div>'
        cards.append(
            _card(f"Loss surface: {e(label)}", f'{chart}<p class="muted">{e(words)} Measured; shares derived.</p>')
        )
    return "".join(cards)


def _calibrations(runs: Sequence[ReportRun]) -> str:
    """A card for each calibration: what the machine reached."""
    cards = []
    for run in runs:
        for made in (event for event in run.said if isinstance(event, Calibration)):
            said = [*calibration.missing_in_words(made), *calibration.doubts(made, now=made.at)]
            notes = f'<p class="note">{"<br>".join(map(e, said))}</p>' if said else ""
            versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
            about = f'<p class="muted">{e(f"{made.device_name}; {versions}; {units.date(made.at)}")}. Measured.</p>'
            cards.append(_card("What the machine reaches", f"{about}{_facts(calibration.facts(made))}{notes}"))
    return "".join(cards)


def _inferences(runs: Sequence[ReportRun]) -> str:
    """A card for each run of inference: its cells, its forms of the weights, and why some of them are slower."""
    cards = []
    for i, (run, label) in enumerate(zip(runs, charts.labels(runs), strict=True)):
        if run.config.task != "infer":
            continue
        found = run.matrix
        text = run.config.is_text
        heads = ["", "Requests", "p50", "p90", "p99", "Longest", "Examples/s", "First answer"]
        heads += ["First character", "Each character"] if text else []
        rows = "".join(
            f'<tr><th scope="row">{e(serving.cell_in_words(found, c.cell))}</th>'
            + "".join(f"<td>{e(cell)}</td>" for cell in _latency_cells(c.latency, text))
            + "</tr>"
            for c in found.measured
            if c.latency
        )
        table = f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr></thead><tbody>{rows}</tbody></table>"
        notes = [serving.form_in_words(found, quality) + "." for quality in run.qualities]
        if found.cells:
            batch_size, threads = min((c.cell.batch_size, c.cell.threads) for c in found.cells)
            notes += serving.slower_in_words(found, batch_size=batch_size, threads=threads)
        notes += list(
            dict.fromkeys(
                f"{serving.RUNTIME_WORDS[c.cell.runtime]} in {c.cell.precision}: {c.not_run}"
                for c in found.cells
                if c.not_run
            )
        )
        words = "".join(f'<p class="words">{e(note)}</p>' for note in notes)
        title = "How fast it answers" + (f": {e(label)}" if len(runs) > 1 else "")
        how = f'<p class="muted">{e(_HOW_LATENCY[run.config.infer.load])}</p>'
        drawn = "".join(
            f'<h3>{e(name)}</h3><div class="chart" id="chart-{key}-{i}" role="img" aria-label="{e(name)}"></div>'
            for key, name, _ in _inference_figures(found)
        )
        cards.append(_card(title, f"{drawn}{table if rows else ''}{words}{how}", "scroll"))
    return "".join(cards)


def _inference_figures(found: serving.Matrix) -> list[tuple[str, str, go.Figure]]:
    """The charts of a run of inference that have something to show: key, title and figure."""
    if not found.measured:
        return []
    figures = []
    if len(found.cells) > 1:
        figures += [
            ("throughput", "Throughput of each cell (measured)", charts_infer.heat_map(found)),
            ("p99", "Latency of each cell, p99 (measured)", charts_infer.heat_map(found, "p99")),
        ]
    if len(found.batch_sizes) > 1:
        figures.append(("curve", "Throughput against latency", charts_infer.curve_chart(found)))
    if len({(c.cell.runtime, c.cell.precision) for c in found.measured}) > 1:
        figures.append(("ladder", "Speed-up over plain PyTorch (derived)", charts_infer.ladder_chart(found)))
    if found.config.is_text and len(found.batch_sizes) > 1:
        figures += [
            ("ttft", "Time to first token", charts_infer.token_chart(found, "ttft")),
            ("tpot", "Time per output token", charts_infer.token_chart(found, "tpot")),
        ]
    if len(found.cells) == 1 and (latency := found.measured[0].latency):
        figures.append(("histogram", "How long requests took (measured)", charts_infer.histogram_chart(latency)))
        figures.append(("timeline", "When they took it (measured)", charts_infer.timeline_chart(latency)))
    return figures


def _latency_cells(latency: Latency, text: bool) -> list[str]:
    cells = [units.count(latency.requests)]
    cells += [units.duration(s) for s in (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)]
    cells += [units.count(round(latency.samples_per_s)), units.duration(latency.first_request_s)]
    if text:
        cells += [units.duration(q.p50_s if q else None) for q in (latency.ttft, latency.tpot)]
    return cells


_HOW_LATENCY = {
    "closed": "Measured: one request at a time, sent when the last one was answered; after warm-up, the device synchronised, cells "
    "in turns. First answer: from the weights on disk.",
    "open": "Measured: requests arrived by chance at the rate; latency counts from the arrival, waiting included; after warm-up, "
    "the device synchronised, cells in turns. First answer: from the weights on disk.",
}


def _parts(run: ReportRun) -> list[split.Part]:
    return split.parts(run.step_split, evaluation_s=run.evaluation_s, steps=run.summary.steps)


def _splits(runs: Sequence[ReportRun]) -> str:
    """A card with a bar per run whose step was taken apart, and what each says."""
    known = [(run, label) for run, label, _ in _lanes(runs) if _parts(run)]
    if not known:
        return ""
    words = "".join(
        f'<p class="words">{f"<strong>{e(label)}</strong>: " if len(runs) > 1 else ""}{e(split.sentence(_parts(run), run.config))} '
        f'<span class="muted">{e(split.row_in_words(_parts(run)))}. {e(split.agrees(_parts(run), _per_step(run)))}</span></p>'
        for run, label in known
    )
    methods = "; ".join(dict.fromkeys(run.step_split.method for run, _ in known if run.step_split))
    chart = '<div class="chart low" id="chart-split" role="img" aria-label="Where the time of a step goes"></div>'
    seeds = "" if len(_lanes(runs)) == len(runs) else " Of each lane the first seed."
    how = (
        f'<p class="muted">Measured: {e(methods)}; evaluation from the run\'s own evaluations, by its steps.{seeds}</p>'
    )
    return _card("Where a step's time goes", f"{chart}{words}{how}")


def _legend(report: Report) -> str:
    """One entry per colour: a lane's seeds share theirs."""
    if len(report.runs) == 1:
        return ""
    placed = _placed(report)
    entries: dict[int, tuple[str, list[ReportRun]]] = {}
    for i, (run, label) in enumerate(zip(report.runs, charts.labels(placed), strict=True)):
        shared = isinstance(placed[i], _InLane)
        place = getattr(placed[i], "place", i)
        entries.setdefault(place, (label.partition(" · seed ")[0] if shared else label, []))[1].append(run)
    names = "".join(f"<li>{_swatch(place)}{e(label)} {_states(runs)}</li>" for place, (label, runs) in entries.items())
    return f'<ul class="legend" aria-label="Runs">{names}</ul>'


def _states(runs: Sequence[ReportRun]) -> str:
    if len(runs) == 1:
        return _badge(runs[0])
    counted = Counter(run.status for run in runs)
    return " ".join(f'<span class="badge {status}">{number} {status}</span>' for status, number in counted.items())


def _swatch(place: int) -> str:
    line = {"solid": "solid", "dash": "dashed", "dot": "dotted"}[charts.dash(place)]
    return f'<i class="swatch" style="border-top:3px {line} {charts.colour(place)}"></i>'


def _results(runs: Sequence[ReportRun]) -> str:
    rows = "".join(
        f'<tr{_hover(q, runs[0]) if len(runs) == 1 else ""}><th scope="row">{q.title}</th>{_cells(q, runs)}'
        f'<td class="how">{e(_how(q, runs))}</td></tr>'
        for q in QUANTITIES
        if q.always or any(q.text(run) != units.UNKNOWN for run in runs)
    )
    table = f"<table>{_columns(runs, 'How it was had')}<tbody>{rows}</tbody></table>"
    if len(runs) <= _MOST_NAMED:
        return _card("Results", table, "scroll" if len(runs) > 1 else "single")
    return f'<details class="card scroll"><summary>Results of each of {len(runs)} runs</summary>{table}</details>'


def _cells(quantity: Quantity, runs: Sequence[ReportRun]) -> str:
    """A value per run; of one run alone its row says how it was had."""
    cells = []
    for run in runs:
        pale = ' class="pale"' if quantity.is_pale(run) else ""
        cells.append(f"<td{pale}{_hover(quantity, run) if len(runs) > 1 else ''}>{e(quantity.text(run))}</td>")
    return "".join(cells)


def _hover(quantity: Quantity, run: ReportRun) -> str:
    """Method, window and uncertainty of a figure, for who points at it."""
    figure = run.figures.get(quantity.figure)
    return f' title="{e(figure.in_words())}"' if figure else ""


def _how(quantity: Quantity, runs: Sequence[ReportRun]) -> str:
    known = [run for run in runs if quantity.text(run) != units.UNKNOWN]
    ways = list(dict.fromkeys(quantity.how(run) for run in known or runs))
    return "; ".join(ways[:3]) + ("; the others alike, in the data" if len(ways) > 3 else "")


def _columns(runs: Sequence[ReportRun], last: str = "") -> str:
    """The heads of a table with a column per run."""
    names = (
        [
            f"<th>{_swatch(getattr(run, 'place', i))}{e(label)}</th>"
            for i, (run, label) in enumerate(zip(runs, charts.labels(runs), strict=True))
        ]
        if len(runs) > 1
        else ["<th>Value</th>"]
    )
    if len(runs) == 1 and not last:
        return ""
    return f"<thead><tr><th></th>{''.join(names)}{f'<th>{last}</th>' if last else ''}</tr></thead>"


def _configuration(runs: Sequence[ReportRun]) -> str:
    """The fields of the configurations that say something about one of them; where they differ is marked."""
    lanes = _lanes(runs)
    seeds = [", ".join(map(str, sorted(seeds))) for *_, seeds in lanes]
    heads = _columns(runs)
    if len(lanes) < len(runs):
        runs = [run for run, *_ in lanes]
        names = "".join(
            f"<th>{_swatch(getattr(run, 'place', i))}{e(label)}</th>" for i, (run, label, _) in enumerate(lanes)
        )
        heads = f"<thead><tr><th></th>{names if len(lanes) > 1 else '<th>Value</th>'}</tr></thead>"
    values = [{setting.title: setting.text for setting in _settings(run.config)} for run in runs]
    settings = sorted((s for run in runs for s in _settings(run.config)), key=lambda s: s.place)
    titles = dict.fromkeys(s.title for s in settings if s.says_something)
    rows = []
    for title in titles:
        cells = seeds if title == _SEED else [known.get(title, units.UNKNOWN) for known in values]
        mark = ' class="differs"' if len(set(cells)) > 1 else ""
        rows.append(f'<tr{mark}><th scope="row">{e(title)}</th>{"".join(f"<td>{e(c)}</td>" for c in cells)}</tr>')
    first = " of the first seed" if any("," in some for some in seeds) else ""
    rows.append(_codes(f"Fingerprint{first}", [run.fingerprint for run in runs]))
    if any(run.data_sha256 for run in runs):
        rows.append(_codes("SHA-256 of the data", [run.data_sha256 or units.UNKNOWN for run in runs]))
    words = "" if len(runs) > 1 else f'<p class="words">{e(describe(runs[0].config))}</p>'
    hint = "Every other field is at its default."
    hint = f"Rows in which the runs differ are marked. {hint}" if len(runs) > 1 else hint
    table = f"<table>{heads}<tbody>{''.join(rows)}</tbody></table>"
    return _card("Configuration", f'{words}{table}<p class="muted">{hint}</p>', "scroll")


def _codes(title: str, codes: Sequence[str]) -> str:
    cells = "".join(f"<td><code>{e(code)}</code></td>" for code in codes)
    return f'<tr><th scope="row">{title}</th>{cells}</tr>'


_SEED = RunConfig.model_fields["seed"].title
_BASICS = {
    "model", "data", "optimizer", "name", "lr", "batch_size", "precision", "execution", "device", "threads", "seed",
    "evaluate_every",
}  # fmt: skip
_OF_TRAINING = {"execution", "evaluate_every"}


@dataclass(frozen=True, slots=True)
class _Setting:
    place: int  # of its field in a configuration
    title: str
    text: str
    says_something: bool


def _settings(config: RunConfig) -> Iterator[_Setting]:
    """Each field, with the titles the configuration itself gives."""
    for place, (name, field) in enumerate(RunConfig.model_fields.items()):
        value = getattr(config, name)
        if not isinstance(value, Spec):
            says = name in _BASICS or value != field.default
            says &= not (config.task == "infer" and name in _OF_TRAINING)
            yield _Setting(place, field.title or name, _in_words(value), says)
            continue
        for inner, part in type(value).model_fields.items():
            title = part.title or {"family": "Model"}.get(inner, inner.replace("_", " ").capitalize())
            title = f"Budget: {title.lower()}" if name == "budget" else title
            says = name == "model" or inner in _BASICS or getattr(value, inner) != part.default
            says |= name == "optimizer" and inner in config.optimizer.facts.knobs
            says &= name != "target" or config.target.value is not None
            says &= config.task != "infer" or name in {"model", "source", "infer"}
            yield _Setting(place, title, _in_words(getattr(value, inner)), says)


def _in_words(value: object) -> str:
    if isinstance(value, Cell):
        return f"{value.batch_size} x {value.threads} {value.precision} {value.runtime}"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(_in_words, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _machine(runs: Sequence[ReportRun]) -> str:
    """What the runs ran on, each different machine once."""
    machines: dict[str, list[str]] = {}
    for run, label in zip(runs, charts.labels(runs), strict=True):
        facts = "".join(
            f"<div><dt>{title}</dt><dd>{e(write(run.environment[key]))}</dd></div>"
            for key, (title, write) in ENVIRONMENT.items()
            if run.environment.get(key) is not None
            and not (key == "cpu" and run.environment.get("device") == run.environment["cpu"])  # said once
        )
        missing = sorted(set(run.missing_readings.values()))
        facts += f"<div><dt>Not available here</dt><dd>{e('; '.join(missing))}</dd></div>" if missing else ""
        machines.setdefault(facts or "<div><dt>Unknown</dt><dd>the run did not start</dd></div>", []).append(label)
    cards = [
        (f'<p class="muted">{e(_listed(names, len(runs)))}</p>' if len(machines) > 1 else "")
        + f'<dl class="facts">{facts}</dl>'
        for facts, names in machines.items()
    ]
    return _card("Device and environment", "".join(cards))


def _commands(runs: Sequence[ReportRun]) -> str:
    """Each different command once, under the names of the runs it repeats; of a lane's seeds the first."""
    commands: dict[str, list[str]] = {}
    lanes = [lane for lane in _lanes(runs) if lane[0].imported is None or lane[0].imported.form != "curve"]
    if not lanes:
        return ""
    for run, label, seeds in lanes:
        more = (
            f" (seed {run.config.seed}; the others: seed={', '.join(str(s) for s in seeds if s != run.config.seed)})"
            if len(seeds) > 1
            else ""
        )
        commands.setdefault(reproduce(run.config), []).append(label + more)
    blocks = "".join(
        (f'<p class="muted">{e(", ".join(names))}</p>' if len(commands) > 1 or len(lanes) < len(runs) else "")
        + f"<pre><code>{e(command)}</code></pre>"
        for command, names in commands.items()
    )
    hint = "The same configuration and seed start from the same weights and see the data in the same order."
    return _card("Run it again", f'{blocks}<p class="muted">{hint}</p>')


def _footer(report: Report) -> str:
    return (
        "<footer><p>Faint lines are single readings, strong lines their moving average. A red cross marks a value that "
        f"became NaN or infinite.</p><p>Made by Isoflop {e(report.isoflop)}. This page makes no network request; the "
        'data behind it is inside. <button id="save" hidden>Save the data (JSON)</button></p>'
        f'<p>Content hash (SHA-256 of the data): <code class="hash">{report.content_hash}</code></p></footer>'
    )


def _card(title: str, content: str, kind: str = "") -> str:
    return f'<section class="card {kind}"><h2>{title}</h2>{content}</section>'


def _figures(report: Report) -> str:
    """The charts, packed; many runs share the points one could have."""
    runs = report.runs
    max_points = max(300, charts.MAX_POINTS // max(1, len(runs) // 2))
    figures = {key: draw(max_points) for key, _, draw in _drawn(report)}
    if len(runs) > 1:  # the legend stands once, above the charts
        for figure in figures.values():
            figure.update_layout(showlegend=False)
    if known := [
        (label, _parts(run)) for run, label, _ in _lanes(cast(list[ReportRun], _placed(report))) if _parts(run)
    ]:
        figures["split"] = split_chart(known)
    names = dict(zip((run.run_id for run in runs), charts.labels(runs), strict=True))
    for i, run in enumerate(runs):
        if run.trials:
            found = batch_law.outcome(run.trials)
            figures[f"law-{i}"] = charts.batch_law_chart(run.trials, found.law, found.step_time)
        if run.config.task == "infer":
            figures |= {f"{key}-{i}": figure for key, _, figure in _inference_figures(run.matrix)}
        if surface := _surface(run):
            labels = [names.get(run_id, f"run {run_id[:6]}") for run_id in surface.paths]
            colours = [charts.colour(place) for place in range(len(labels))]
            figures[f"surface-{i}"] = charts_descent.descent_path_chart(surface, labels, colours)
    return _zipped("{" + ",".join(f'"{key}":{figure.to_json()}' for key, figure in figures.items()) + "}")


@functools.cache
def _plotly_js() -> str:
    """The library that comes with plotly's Python package: what is inside cannot be blocked, changed or missing."""
    return _zipped(plotly.offline.get_plotlyjs())


def _zipped(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


@functools.cache
def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
