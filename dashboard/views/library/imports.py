"""Importing reports and training curves from files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.views.library.actions import run_count
from dashboard.widgets import run_parts
from engine.common.errors import EngineError, StoreError
from engine.common.sanitize import visible
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.data.datasets import DATASETS
from engine.reports import sharing
from engine.reports.sharing import CurveChoices

_Files = list[tuple[str, bytes]]  # name and content
_NONE = "not in the table"
_UNITS = {"": "as the column says, or seconds", "s": "seconds", "ms": "milliseconds", "min": "minutes", "h": "hours"}
_TIMES = {"": "as the values suggest", "total": "since the start", "each": "of each row"}
_ACCURACIES = {None: "as the values suggest", False: "0 to 1", True: "percent"}


def import_box() -> None:
    """The box for files to import."""
    if not state.client().may("submit"):
        return
    number = st.session_state.setdefault("import.number", 0)  # a new number closes the box and empties it
    with st.popover("Import", icon=":material/upload_file:", key=f"import-box-{number}"):
        st.markdown("Import reports of Isoflop (HTML, JSON or zip), or a CSV with a training curve.")
        st.file_uploader(
            "Files", type=["html", "json", "zip", "csv", "tsv", "txt"], accept_multiple_files=True, key=f"import-{number}",
            max_upload_size=50, on_change=_receive, args=(f"import-{number}",),
            help="Files are read in a separate process with limits. Either all runs of the files are imported or none. Imported "
            "runs are marked as unverified.",
        )  # fmt: skip


def _receive(key: str) -> None:
    """Import reports at once; a table waits until its columns are chosen."""
    files: _Files = [(file.name, file.getvalue()) for file in st.session_state[key]]
    if not files:
        return
    st.session_state["import.number"] += 1
    for waiting in ("import.files", "import.columns", "import.result"):
        st.session_state.pop(waiting, None)
    if not any(sharing.is_table(name) for name, _ in files):
        _import(files, [CurveChoices()] * len(files))
        return
    with _shown_errors(), _on_disk(files) as paths:
        st.session_state["import.columns"] = {
            number: sharing.columns_in(path, name)
            for number, (path, (name, _)) in enumerate(zip(paths, files, strict=True))
            if sharing.is_table(name)
        }
        st.session_state["import.files"] = files


def _import(files: _Files, curves: Sequence[CurveChoices]) -> None:
    with _shown_errors(), _on_disk(files) as paths:
        st.session_state["import.result"] = state.client().import_files(
            paths, names=[name for name, _ in files], curve=curves
        )
        st.session_state.pop("import.files", None)


@contextmanager
def _on_disk(files: _Files) -> Iterator[list[Path]]:
    """The files in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="isoflop-import-") as folder:
        paths = [Path(folder) / str(number) for number in range(len(files))]  # a user's file name can be anything
        for path, (_, content) in zip(paths, files, strict=True):
            path.write_bytes(content)
        yield paths


@contextmanager
def _shown_errors() -> Iterator[None]:
    """Errors in the block are shown as the result."""
    try:
        yield
    except EngineError as error:
        st.session_state["import.result"] = error
    except OSError as error:
        st.session_state["import.result"] = StoreError(
            f"The upload could not be stored: {error.strerror}.", fix="Free some disk space."
        )


# --- the columns of a table -------------------------------------------------------------------------------------------


def import_choices() -> None:
    """The columns of dropped tables, to choose before they are imported."""
    files: _Files = st.session_state.get("import.files", [])
    if not files:
        return
    curves = [CurveChoices()] * len(files)
    with st.container(border=True, key="import-choices"):
        for number, columns in st.session_state["import.columns"].items():
            name = visible(files[number][0], 60)
            st.markdown(f"**{run_parts.literal(name)}**: which column is what?")
            curves[number] = _choices(f"import.{st.session_state['import.number']}.{number}", columns)
        with st.container(horizontal=True):
            st.button("Import", type="primary", key="import-tables", on_click=_import, args=(files, curves))
            st.button(
                "Cancel", type="tertiary", key="import-cancel", on_click=st.session_state.pop, args=("import.files",)
            )


def _choices(key: str, columns: sharing.Columns) -> CurveChoices:
    heads = [visible(header, 40) for header in columns.headers]
    rows = pd.DataFrame(columns.rows, columns=[f"{number + 1}: {head}" for number, head in enumerate(heads)])
    st.dataframe(rows, hide_index=True, key=f"{key}.rows")
    chosen: dict[str, Any] = {"columns": {}}
    options = ["", *dict.fromkeys(filter(None, columns.headers))]
    fields = [*st.columns(4), *st.columns(4)]  # two rows, so that a narrow page keeps their order
    for field, (role, title) in zip(fields, sharing.ROLES.items(), strict=True):
        chosen["columns"][role] = field.selectbox(
            title,
            options,
            key=f"{key}.{role}",
            index=options.index(columns.roles.get(role, "")),
            format_func=lambda header: visible(header, 40) if header else _NONE,
        )
    more = iter(st.columns(4))
    data = next(more).selectbox(
        "Data set", list(DATASETS), key=f"{key}.data",
        help="A CSV does not contain its data set. Only runs on the same data can be compared, and one epoch is read as its "
        "training samples.",
    )  # fmt: skip
    if chosen["columns"]["seconds"]:
        chosen["seconds_in"] = next(more).selectbox(
            "Unit of time", list(_UNITS), key=f"{key}.unit", format_func=_UNITS.__getitem__
        )
        chosen["seconds_are"] = next(more).selectbox(
            "Time is", list(_TIMES), key=f"{key}.times", format_func=_TIMES.__getitem__
        )
    if chosen["columns"]["test_accuracy"]:
        chosen["percent"] = next(more).selectbox(
            "Accuracy is", list(_ACCURACIES), key=f"{key}.percent", format_func=_ACCURACIES.__getitem__
        )
    if unused := [
        head for head, header in zip(heads, columns.headers, strict=True) if header not in chosen["columns"].values()
    ]:
        st.caption(run_parts.literal(f"Not used: {', '.join(unused[:12])}{' …' if len(unused) > 12 else ''}"))
    return CurveChoices(config=with_overrides(RunConfig(), [f"data={data}"]), **chosen)


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
