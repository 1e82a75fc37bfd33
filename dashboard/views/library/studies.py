"""The lists of races, scaling studies and load tests, and of imported reports."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.views.library.actions import MOST_TO_COMPARE, visible_lines
from dashboard.views.library.tables import table_height
from dashboard.widgets import export_dialog, run_parts
from engine.common import units
from engine.common.sanitize import LONGEST_NAME, visible
from engine.config.tasks import TASKS
from engine.reports import sharing
from engine.reports.sharing import SavedReport
from engine.store.listing import GroupLine
from engine.studies import race_verdicts

_MOST_REPORTS = 100


def kind_of(group: GroupLine) -> str:
    """What the runs of a group are together."""
    if group.most_ranks > 1:
        return "scaling study"
    if group.num_lanes == 1:
        return "repeats"
    return "race" if TASKS[group.task].trains_one_model else "load test"


def show_races() -> None:
    """The table of groups of runs, and links to the chosen one."""
    groups = state.store().groups()
    if not groups:
        st.info(
            "There are no races, scaling studies or load tests yet. Start one under Compare, Scale or Inference.",
            icon=":material/info:",
        )
        return
    table = pd.DataFrame({
        "Kind": [kind_of(group) + (" · imported, unverified" if group.is_imported else "") for group in groups],
        "Configurations": [visible(" · ".join(group.lanes), LONGEST_NAME) for group in groups],
        "Data": [visible(group.data, 40) for group in groups],
        "Runs": [group.num_runs for group in groups],
        "Running": [group.num_alive or None for group in groups],
        "Started": pd.to_datetime([group.created for group in groups], unit="s", utc=True),
    })  # fmt: skip
    st.caption("The newest 100 groups of runs that were started together. Select one to open it.")
    choice = st.dataframe(
        table, hide_index=True, placeholder="–", on_select="rerun", selection_mode="single-row", key="races",
        height=table_height(table),
        column_config={
            "Configurations": st.column_config.TextColumn(width="large"),
            "Started": st.column_config.DatetimeColumn(format="distance"),
        },
    )  # fmt: skip
    if rows := choice["selection"]["rows"]:
        _show_group(groups[rows[0]])


def _show_group(group: GroupLine) -> None:
    with st.container(border=True, horizontal=True, key="selected-race"):
        _link_to(group.group)
        st.page_link(
            "../pages/library.py", label="Runs", icon=":material/list:",
            query_params={"where": f"group = {group.group}"},
        )  # fmt: skip
        if st.button("Export", icon=":material/download:", key="export-race"):
            export_dialog.export_dialog([row.run_id for row in state.store().rows(group=group.group)])


def _link_to(group: str) -> None:
    """A link to the page that shows the runs of a group together."""
    rows = state.store().rows(group=group)
    if any(row.config.parallel.num_ranks > 1 for row in rows):
        st.page_link(
            "../pages/scale.py", label="Open under Scale", icon=":material/hub:", query_params={"study": group}
        )  # fmt: skip
    elif rows and not rows[0].config.task_facts.trains_one_model:
        st.page_link(
            run_parts.page_of(rows[0]), label="Open", icon=":material/bolt:",
            query_params=run_parts.address_of(rows[0]),
        )  # fmt: skip
    else:
        st.page_link(
            "../pages/compare.py", label="Open under Compare", icon=":material/compare_arrows:",
            query_params={"view": "Race", "race": group},
        )  # fmt: skip


def show_reports() -> None:
    """The imported reports, newest first."""
    reports = sharing.saved_reports(state.store())
    if not reports:
        st.info(
            "No report has been imported yet. Use Import: runs, notes and verdicts of a report are kept here.",
            icon=":material/info:",
        )
        return
    for report in reports[:_MOST_REPORTS]:
        _show_report(report)


def _show_report(report: SavedReport) -> None:
    store = state.store()
    stored = [run_id for run_id in report.run_ids if (store.runs / run_id).is_dir()]
    with st.container(border=True, key=f"report-{report.report_id}"):
        st.markdown(f"**{run_parts.literal(report.title or 'Untitled')}** :orange-badge[imported, unverified]")
        created, imported = units.date(report.created), units.date(report.origin.at)
        st.caption(
            run_parts.literal(
                f"Created {created} (not verified), imported {imported}. {len(stored)} of its {len(report.run_ids)} runs are in "
                "this store."
            )
        )
        if report.origin.hash_matches is False:
            st.warning(
                "The content hash does not match, so the report was changed after its export.",
                icon=":material/warning:",
            )
        for note in report.origin.notes:
            st.caption(run_parts.literal(note))
        if report.notes:
            st.text(visible_lines(report.notes))
        for conclusion in report.conclusions:
            st.code("\n".join(visible(line) for line in race_verdicts.table(conclusion.outcome)), language=None)
        with st.container(horizontal=True):
            _report_links(report, stored)
            if stored and st.button("Export again", icon=":material/download:", key=f"again-{report.report_id}"):
                export_dialog.export_dialog(stored)
            if _can_remove(report) and st.button(
                "Remove", icon=":material/delete:", key=f"forget-{report.report_id}", type="tertiary",
                help="Removes title, notes and verdicts of the report; its runs stay in the list.",
            ):  # fmt: skip
                sharing.delete_report(store, report.report_id)
                st.rerun()


def _report_links(report: SavedReport, stored: list[str]) -> None:
    if not stored:
        return
    if report.group_ids:
        _link_to(report.group_ids[0])
    elif len(stored) == 1:
        st.page_link(
            "../pages/train.py", label="Open the run", icon=":material/open_in_new:", query_params={"run": stored[0]}
        )  # fmt: skip
    else:
        st.page_link(
            "../pages/compare.py", label="Open the runs", icon=":material/open_in_new:",
            query_params={"view": "Runs", "runs": ",".join(stored[:MOST_TO_COMPARE])},
        )  # fmt: skip


def _can_remove(report: SavedReport) -> bool:
    return state.role() == "admin" or (state.role() == "runner" and report.owner == state.actor().id)
