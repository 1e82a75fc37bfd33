"""Actions on a run that is over: open, run again, export, rename, delete."""

from __future__ import annotations

from urllib.parse import urlencode

import streamlit as st

from dashboard import state
from dashboard.widgets import copy_buttons, export_dialog, run_parts
from engine.common.errors import EngineError
from engine.common.sanitize import LONGEST_NAME, visible
from engine.config.summary import describe
from engine.store.run import Run


def run_actions(run: Run, *, in_library: bool = False) -> None:
    """Draw the buttons for a run that is over, and its CLI command."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"actions-{run.run_id}"):
        if in_library:
            st.page_link(
                run_parts.page_of(run),
                label="Open",
                icon=":material/open_in_new:",
                query_params=run_parts.address_of(run),
            )
        if run_parts.has_weights(run):
            st.page_link(
                "../pages/inference.py",
                label="Measure inference",
                icon=":material/bolt:",
                query_params={"of": run.run_id},
            )
        is_known = (
            run.imported is None or run.imported.origin.form == "report"
        )  # the configuration of an imported curve is unknown
        if (
            is_known
            and state.client().may("submit")
            and st.button("Run again", icon=":material/replay:", key=f"again-{run.run_id}")
        ):
            _run_again(run)
        if st.button(
            "Export",
            icon=":material/download:",
            key=f"export-{run.run_id}",
            help="An HTML file that opens offline, or JSON, zip, CSV, Parquet. Shows the contents first.",
        ):
            export_dialog.export_dialog([run.run_id])
        link = f"{run_parts.page_of(run).rpartition('/')[2].removesuffix('.py')}?{urlencode(run_parts.address_of(run))}"
        copy_buttons.copy_buttons(
            state.command_line(run.config) if is_known else "", link=link, key=f"copy-{run.run_id}"
        )
        if state.client().may("rename", run.run_id):
            with st.popover("Rename", icon=":material/edit:", type="tertiary"):
                st.text_input(
                    "Name",
                    run.name,
                    key=f"name-{run.run_id}",
                    max_chars=LONGEST_NAME,
                    on_change=_rename,
                    args=(run.run_id,),
                )
        if (
            not in_library
            and state.client().may("delete", run.run_id)
            and st.button("Delete", icon=":material/delete:", key=f"delete-{run.run_id}", type="tertiary")
        ):
            _confirm_delete(run.run_id, describe(run.config))
    if not is_known:
        return
    with st.expander("CLI command"):
        st.code(state.command_line(run.config), language="shell", wrap_lines=True)


def _rename(run_id: str) -> None:
    try:
        state.client().rename(run_id, st.session_state[f"name-{run_id}"])
    except EngineError as error:
        st.toast(run_parts.literal(str(error)))


def _run_again(run: Run) -> None:
    try:
        run_id = state.submit(run.config, name=visible(run.name, LONGEST_NAME))
    except EngineError as error:
        run_parts.error_box(error)
        return
    st.switch_page(run_parts.TRAIN, query_params={"run": run_id})  # Train redirects to the page of a study


@st.dialog("Delete this run?")
def _confirm_delete(run_id: str, words: str) -> None:
    st.write(run_parts.literal(words))
    st.caption("Its configuration, all recorded data and its weights are removed from this machine.")
    with st.container(horizontal=True):
        if st.button("Delete", type="primary", icon=":material/delete:", key="delete-for-good"):
            try:
                state.client().delete(run_id)
            except EngineError as error:
                run_parts.error_box(error)
                return
            state.wait_until_deleted(run_id)
            st.switch_page("../pages/library.py")
        if st.button("Keep", key="keep"):
            st.rerun()
