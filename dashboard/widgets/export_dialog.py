"""The dialog that exports runs: a title, notes, everything that would leave, and then the file."""

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
from engine.reports.exporters import steps_csv
from engine.reports.html import page
from engine.reports.report import MAX_RUNS, Conclusion, Report, concluded
from engine.store.run import Run

FORMATS = {
    ".html": ("Page", "text/html", "One file with charts that opens offline in any browser, below 3 MB; comes back in as data."),
    ".json": ("JSON", "application/json", "All that was recorded; what an import reads."),
    ".zip": ("Zip", "application/zip", "The JSON, the page and every table as CSV."),
    ".csv": ("CSV", "text/csv", "One row per step: numbers, for a spreadsheet."),
    ".parquet": ("Parquet", "application/vnd.apache.parquet", "All points of all tables, for pandas, polars or DuckDB."),
}  # fmt: skip
_POINTS_ALONE = {".csv", ".parquet"}
_MOST_ROWS = 500


@st.dialog("Export", width="large")
def export_dialog(run_ids: Sequence[str]) -> None:
    """What leaves is shown before there is a file."""
    runs = [run for run in map(state.open_run, run_ids) if run]
    if not 1 <= len(runs) <= MAX_RUNS:
        st.warning(f"Choose 1 to {MAX_RUNS} runs.", icon=":material/warning:")
        return
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    named = visible(runs[0].name or describe(runs[0].config), 150) + more
    title = st.text_input("Title", named, max_chars=200, key="export.title") or named
    notes = st.text_area(
        "Notes",
        key="export.notes",
        max_chars=20_000,
        height=80,
        placeholder="What was found out. It stands in the report as typed.",
    )
    ending = st.segmented_control(
        "File", list(FORMATS), key="export.format", default=".html", required=True, format_func=lambda e: FORMATS[e][0]
    )
    assert ending
    st.caption(FORMATS[ending][2])
    names = st.toggle(
        "Names of your own files", key="export.names",
        help="Of data you uploaded or named. Where they lie, and who you are, never leaves.",
    )  # fmt: skip
    try:
        report = _frozen(tuple(run_ids), runs, names).model_copy(update={"title": title, "notes": notes or ""})
    except EngineError as error:
        run_parts.error_box(error)
        return
    _show_what_leaves(report, ending, runs)
    file = f"isoflop-{runs[0].run_id if len(runs) == 1 else f'{len(runs)}-runs'}{ending}"
    st.download_button(
        f"Download {file}", lambda: _content(report, ending, runs), file, FORMATS[ending][1], type="primary",
        icon=":material/download:", on_click="ignore", key="export.download",
    )  # fmt: skip


def _frozen(run_ids: tuple[str, ...], runs: Sequence[Run], names: bool) -> Report:
    """Frozen once for as long as the dialog shows the same runs, whatever is typed."""
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
    """Of a race as it stands; with the target its runs aimed at, where it is one."""
    if len(runs) < 2:
        return []
    aims = {(run.config.target.metric, run.config.target.value) for run in runs}
    metric, target = next(iter(aims)) if len(aims) == 1 else ("test_accuracy", None)
    return concluded(runs, metric=metric, target=target)


def _show_what_leaves(report: Report, ending: str, runs: Sequence[Run]) -> None:
    st.markdown("**Everything that leaves**")
    rows = sharing.preview(report)
    if ending in _POINTS_ALONE:
        rows = [row for row in rows if row.run and row.what in {"Name", "Points"}]
    labels = {run.run_id: visible(run.name or describe(run.config), 60) for run in runs}
    table = pd.DataFrame(
        {
            "Of": [labels.get(row.run, "the report") for row in rows[:_MOST_ROWS]],
            "What": [row.what for row in rows[:_MOST_ROWS]],
            "Text": [visible(row.text, 400) for row in rows[:_MOST_ROWS]],
        }
    )
    table = table if len(runs) > 1 else table.drop(columns="Of")
    st.dataframe(
        table, hide_index=True, height=min(38 + 35 * len(table), 300), key="export.leaves",
        column_config={"What": st.column_config.TextColumn(width=150), "Text": st.column_config.TextColumn(width="large")},
    )  # fmt: skip
    left = f" {len(rows) - _MOST_ROWS:,} more lines of the same kinds are not shown." if len(rows) > _MOST_ROWS else ""
    st.caption(
        f"Never in it: folders, user and host names, addresses, tokens, serial numbers, values of the environment.{left}"
    )


def _content(report: Report, ending: str, runs: Sequence[Run]) -> bytes:
    match ending:
        case ".html":
            return page.render(report).encode()
        case ".json":
            return report.to_json().encode()
        case ".csv":
            return (steps_csv(runs[0]) if len(runs) == 1 else exporters.steps_of_all(runs)).encode()
    with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
        path = Path(folder) / f"report{ending}"
        if ending == ".zip":
            sharing.write_zip(path, report, {run.run_id: run for run in runs})
        else:
            exporters.write_parquet(path, runs)
        return path.read_bytes()
