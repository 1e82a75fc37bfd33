"""The HTML report: one self-contained page that makes no request, needs no server, and can be printed.

It contains the report's JSON and its hash, so that an import restores the runs.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.offline
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from engine.common import units
from engine.common.sanitize import visible
from engine.events.imported import Origin
from engine.reports.frozen_run import ReportRun
from engine.reports.html.configuration import commands, configuration, machines
from engine.reports.html.parts import MOST_NAMED, Chart, Head, PlacedRun, listed, placed
from engine.reports.html.race import verdicts
from engine.reports.html.results import headlines, results
from engine.reports.html.studies import run_charts, studies
from engine.reports.report import Report

MAX_HTML_BYTES = 3_000_000  # small enough for an e-mail
_TEMPLATES = Path(__file__).with_name("templates")


def render(report: Report) -> str:
    """Render the page. It stays under 3 MB: if all steps do not fit, it contains fewer and says so."""
    runs = placed(report)
    drawn, cards = run_charts(runs), studies(runs)
    figures = _packed([*drawn, *(chart for card in cards for chart in card.charts)])
    held, data = _fitting(report, MAX_HTML_BYTES - len(figures))
    trained = [run for run in runs if run.run.config.task_facts.trains_one_model]
    is_single = len(runs) == 1
    script = _asset("report.js")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            # Nothing can be fetched. The one inline script is allowed by its hash; it loads Plotly from a blob.
            policy=f"default-src 'none'; script-src 'sha256-{script_hash}' blob:; style-src 'unsafe-inline'; "
            "img-src data: blob:; base-uri 'none'; form-action 'none'",
            style=_asset("report.css"),
            script=script,
            plotly=_plotly_js(),
            figures=figures,
            data=data.replace("<", "\\u003c"),  # so that no text in it ends the script element
            content_hash=hashlib.sha256(data.encode()).hexdigest(),
            report=report,
            about=report.runs[0].about if is_single else f"{len(runs)} runs",
            created=units.date(report.created),
            note_lines=report.notes.strip().splitlines(),
            is_single=is_single,
            troubles=_troubles(runs),
            thinned=_thinned(held.runs),
            verdicts=verdicts(report, runs),
            headlines=headlines(runs[0].run) if is_single and trained else [],
            legend=[] if is_single else _legend(runs),
            charts=drawn,
            studies=cards,
            results=results([run.run for run in trained]) if trained else [],
            result_heads=[Head.of(run.label, run.place) for run in trained] if len(trained) > 1 else [],
            most_columns=MOST_NAMED,
            configuration=configuration(runs),
            machines=machines(runs),
            commands=commands(runs),
        )
    )


def _fitting(report: Report, max_bytes: int) -> tuple[Report, str]:
    """The report with as many points as fit into `max_bytes` beside the chart library, and its JSON."""
    room = max_bytes - len(_plotly_js()) - 60_000 - 12_000 * len(report.runs)
    held, data, max_rows = report, report.to_json(), 64_000
    while len(data) > room and max_rows >= 500:
        held, max_rows = report.thinned(max_rows), max_rows // 2
        data = held.to_json()
    return held, data


# --- notes above the results ----------------------------------------------------------------------------------------


def _troubles(runs: Sequence[PlacedRun]) -> list[tuple[str, str, str]]:
    """Why runs did not finish, and which events could not be read; a text that several runs share appears once.

    Each item has the CSS class of its box ("note" or "trouble"), the labels of the runs ("" in a report of one run) and
    the text.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for kind, text in _troubles_of(run.run):
            found.setdefault((kind, text), []).append(run.label)
    return [(kind, listed(labels, len(runs)) if len(runs) > 1 else "", text) for (kind, text), labels in found.items()]


def _troubles_of(run: ReportRun) -> Iterator[tuple[str, str]]:
    if run.imported:
        yield "note", _where_from(run.imported)
    if run.why:
        yield "note" if run.status == "cancelled" else "trouble", run.why
    for problem in run.problems:
        yield "trouble", f"{problem}."


def _where_from(origin: Origin) -> str:
    what = "a table of numbers" if origin.form == "curve" else f"the report {origin.title!r}"
    bad = (
        " Its content hash did not match, because the file was changed after the export."
        if origin.hash_matches is False
        else ""
    )
    notes = "".join(f" {note}" for note in origin.notes) if origin.form == "curve" else ""
    return f"Imported from {what} on {units.date(origin.at)}, unverified.{bad}{notes}"


def _thinned(runs: Sequence[ReportRun]) -> str:
    """A sentence that the page contains fewer points than were recorded; "" if it contains all."""
    thinned = [run for run in runs if run.is_thinned]
    if not thinned:
        return ""
    held, recorded = sum(len(run.steps) for run in thinned), sum(run.recorded_steps for run in thinned)
    whose = f" of {len(thinned)} runs" if len(runs) > 1 else ""
    return (
        f"This file contains {held:,} of {recorded:,} steps{whose}, with every extreme of the loss; the .json and "
        ".zip exports contain all. The numbers below are computed from all steps."
    )


# --- charts -------------------------------------------------------------------------------------------------------


def _legend(runs: Sequence[PlacedRun]) -> list[tuple[Head, list[tuple[str, str]]]]:
    """One entry per colour, which the seeds of a configuration share: its label, and text and status of each badge."""
    sharing: dict[int, list[PlacedRun]] = {}
    for run in runs:
        sharing.setdefault(run.place, []).append(run)
    entries = []
    for place, some in sharing.items():
        counted: Counter[str] = Counter(run.run.status for run in some)
        badges = [(f"{number} {status}" if len(some) > 1 else status, status) for status, number in counted.items()]
        entries.append((Head.of(some[0].lane_label, place), badges))
    return entries


def _packed(charts: Sequence[Chart]) -> str:
    return _zipped("{" + ",".join(f'"{chart.key}":{chart.figure.to_json()}' for chart in charts) + "}")


@functools.cache
def _plotly_js() -> str:
    """Plotly.js from the Python package. Inside the page it cannot be blocked, changed or missing."""
    return _zipped(plotly.offline.get_plotlyjs())


def _zipped(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


# --- templates ----------------------------------------------------------------------------------------------------


@functools.cache
def _asset(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    """Every printed value goes through `_shown` and is then escaped; an unknown name is an error."""
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """Remove invisible characters from a text. Markup from a macro or `safe` is HTML already and stays unchanged."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
