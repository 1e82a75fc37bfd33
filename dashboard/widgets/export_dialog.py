"""The dialog that exports runs: title, summary, a preview of the contents, and the file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.reports import exporters, sharing
from engine.reports.html import page
from engine.reports.report import MAX_RUNS, Conclusion, Report, concluded
from engine.store.run import Run

FORMATS = {
    ".html": (
        "Page",
        "text/html",
        "One file with charts, below 3 MB. It opens offline in any browser and can be imported again.",
    ),
    ".json": ("JSON", "application/json", "All recorded data. It can be imported again."),
    ".zip": ("Zip", "application/zip", "The JSON, the page and every table as CSV."),
    ".csv": ("CSV", "text/csv", "One row per step, for a spreadsheet."),
    ".parquet": ("Parquet", "application/vnd.apache.parquet", "All rows of all tables, for pandas, Polars or DuckDB."),
}
_POINTS_ALONE = {".csv", ".parquet"}
_MOST_ROWS = 500


@st.dialog("Export", width="large")
def export_dialog(run_ids: Sequence[str]) -> None:
    """Draw the dialog. The contents of the file are shown before the file is made."""
    runs = [run for run in map(state.open_run, run_ids) if run]
    if not 1 <= len(runs) <= MAX_RUNS:
        st.warning(f"Choose 1 to {MAX_RUNS} runs.", icon=":material/warning:")
        return
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    named = visible(runs[0].name or describe(runs[0].config), 150) + more
    title = st.text_input("Title", named, max_chars=200, key="export.title") or named
    notes = st.text_area(
        "Summary",
        key="export.notes",
        max_chars=20_000,
        height=80,
        placeholder="What did you find? Shown in the report as you type it.",
    )
    ending = st.segmented_control(
        "File", list(FORMATS), key="export.format", default=".html", required=True, format_func=lambda e: FORMATS[e][0]
    )
    assert ending
    st.caption(FORMATS[ending][2])
    names = st.toggle(
        "Include the names of your own files",
        key="export.names",
        help="Names of uploaded or local data files. Folders and user names are never included.",
    )
    try:
        report = _frozen(tuple(run_ids), runs, names).model_copy(update={"title": title, "notes": notes or ""})
    except EngineError as error:
        run_parts.error_box(error)
        return
    _show_contents(report, ending, runs)
    file = f"isoflop-{runs[0].run_id if len(runs) == 1 else f'{len(runs)}-runs'}{ending}"
    st.download_button(
        f"Download {file}",
        lambda: _content(report, ending, runs),
        file,
        FORMATS[ending][1],
        type="primary",
        icon=":material/download:",
        on_click="ignore",
        key="export.download",
    )


def _frozen(run_ids: tuple[str, ...], runs: Sequence[Run], names: bool) -> Report:
    """The report without title and summary, made once while the dialog shows the same runs."""
    key = (run_ids, names, tuple(run.offset for run in runs))
    kept = st.session_state.get("export.frozen")
    if kept is None or kept[0] != key:
        report = Report.freeze(
            "", runs, account_of=run_parts.account_of, conclusions=_conclusions(runs), file_names=names
        )
        kept = st.session_state["export.frozen"] = (key, report)
    frozen: Report = kept[1]
    return frozen


def _conclusions(runs: Sequence[Run]) -> list[Conclusion]:
    """The conclusions of several runs as a race, with the runs' target if they all have the same one."""
    if len(runs) < 2:
        return []
    aims = {(run.config.target.metric, run.config.target.value) for run in runs}
    metric, target = next(iter(aims)) if len(aims) == 1 else ("test_accuracy", None)
    return concluded(runs, metric=metric, target=target)


def _show_contents(report: Report, ending: str, runs: Sequence[Run]) -> None:
    st.markdown("**Contents of this file**")
    rows = sharing.preview(report)
    if ending in _POINTS_ALONE:
        rows = [row for row in rows if row.run and row.what in {"Name", "Points"}]
    labels = {run.run_id: visible(run.name or describe(run.config), 60) for run in runs}
    table = pd.DataFrame(
        {
            "Run": [labels.get(row.run, "the report") for row in rows[:_MOST_ROWS]],
            "Kind": [row.what for row in rows[:_MOST_ROWS]],
            "Text": [visible(row.text, 400) for row in rows[:_MOST_ROWS]],
        }
    )
    table = table if len(runs) > 1 else table.drop(columns="Run")
    st.dataframe(
        table,
        hide_index=True,
        height=min(38 + 35 * len(table), 300),
        key="export.leaves",
        column_config={
            "Kind": st.column_config.TextColumn(width=150),
            "Text": st.column_config.TextColumn(width="large"),
        },
    )
    left = f" {len(rows) - _MOST_ROWS:,} more rows of the same kinds are not shown." if len(rows) > _MOST_ROWS else ""
    st.caption(
        f"Never included: folders, user and host names, addresses, tokens, serial numbers, environment variables.{left}"
    )


def _content(report: Report, ending: str, runs: Sequence[Run]) -> bytes:
    match ending:
        case ".html":
            return page.render(report).encode()
        case ".json":
            return report.to_json().encode()
        case ".csv":
            return "".join(exporters.points_csv(runs)).encode()
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        path = Path(folder) / f"report{ending}"
        if ending == ".zip":
            sharing.write_zip(path, report, {run.run_id: run for run in runs})
        else:
            exporters.write_parquet(path, runs)
        return path.read_bytes()
