"""Importing reports and training curves from files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import streamlit as st

from dashboard import state
from dashboard.views.library.actions import run_count
from dashboard.widgets import run_parts
from engine.common.errors import EngineError, StoreError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.data.datasets import DATASETS
from engine.reports.sharing import CurveChoices


def import_box() -> None:
    """The box for files to import."""
    if not state.client().may("submit"):
        return
    number = st.session_state.setdefault("import.number", 0)  # a new number closes the box and empties it
    with st.popover("Import", icon=":material/upload_file:", key=f"import-box-{number}"):
        st.markdown("Import reports of Isoflop (HTML, JSON or zip), or a CSV with a training curve.")
        st.selectbox(
            "Data set of a curve", list(DATASETS), key="import.data",
            help="A CSV does not contain its data set, and only runs on the same data can be compared. Reports ignore this field.",
        )  # fmt: skip
        st.file_uploader(
            "Files", type=["html", "json", "zip", "csv", "tsv"], accept_multiple_files=True, key=f"import-{number}",
            max_upload_size=50, on_change=_import, args=(f"import-{number}",),
            help="Files are read in a separate process with limits. Either all runs of the files are imported or none. Imported "
            "runs are marked as unverified.",
        )  # fmt: skip


def _import(key: str) -> None:
    files = st.session_state[key]
    if not files:
        return
    st.session_state["import.number"] += 1
    config = with_overrides(RunConfig(), [f"data={st.session_state['import.data']}"])
    try:
        with tempfile.TemporaryDirectory(prefix="isoflop-import-") as folder:
            paths = []
            for number, file in enumerate(files):  # not under the user's file name, which can be anything
                path = Path(folder) / f"{number}"
                path.write_bytes(file.getvalue())
                paths.append(path)
            result = state.client().import_files(
                paths, names=[file.name for file in files], curve=CurveChoices(config=config)
            )
    except EngineError as error:
        st.session_state["import.result"] = error
    except OSError as error:
        st.session_state["import.result"] = StoreError(
            f"The upload could not be stored: {error.strerror}.", fix="Free some disk space."
        )
    else:
        st.session_state["import.result"] = result


def import_result() -> None:
    """The result of the last import, until the user dismisses it."""
    result = st.session_state.get("import.result")
    if result is None:
        return
    with st.container(border=True, key="imported"):
        if isinstance(result, EngineError):
            run_parts.error_box(result)
        else:
            ids = ", ".join(result.run_ids[:8]) + (" …" if len(result.run_ids) > 8 else "")
            st.success(
                f"Imported {run_count(len(result.run_ids))} (unverified): {ids}", icon=":material/download_done:"
            )
            for warning in result.warnings[:20]:
                run_parts.warn(warning)
            if len(result.warnings) > 20:
                st.caption(f"{len(result.warnings) - 20:,} more warnings.")
        if st.button("Dismiss", key="put-away", type="tertiary"):
            st.session_state.pop("import.result", None)
            st.rerun()
