"""Pieces of the page Library: its columns, groups, labels, imports, races and reports, and what one does with runs.

All that is looked at is in the address: `q` and `where` what is searched for, `sort`, `cols`, `by` what is grouped by,
`base` the run the others are measured by.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.widgets import export_dialog, run_parts
from engine.common import units
from engine.common.errors import ConfigError, EngineError, StoreError
from engine.common.sanitize import LONGEST_NAME, visible
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.data.datasets import DATASETS
from engine.reports import sharing
from engine.reports.sharing import CurveChoices, SavedReport
from engine.runtime.client import UNDO_S
from engine.store import query
from engine.store.labels import LONGEST_NOTES
from engine.store.listing import GroupLine, RunLine
from engine.studies import race_verdicts

PER_PAGE = 100
MOST_TO_COMPARE = 24
MEASURED = "Measured on held-out examples, at the last evaluation."


@dataclass(frozen=True, slots=True)
class Column:
    """One that can be shown: its head, its value in a line (or, where there is none, among the fields asked for)."""

    head: str
    value: Callable[[RunLine], Any] | None
    config: Any = None
    factor: float = 1.0  # to what is shown


def _number(help: str, format: str, **more: Any) -> Any:
    return st.column_config.NumberColumn(format=format, help=help, **more)


COLUMNS: dict[str, Column] = {
    "name": Column("Name", lambda line: visible(line.name, LONGEST_NAME), st.column_config.TextColumn(width=100)),
    "test_accuracy": Column("Test accuracy", lambda line: line.test_accuracy, _number(MEASURED, "%.1f %%"), 100),
    "final_train_loss": Column(
        "Training loss", lambda line: line.final_train_loss,
        _number("Measured: mean over the batches of the last epoch, at most 100.", "%.4f"),
    ),
    "samples_per_s": Column(
        "Samples/s", lambda line: line.samples_per_s, _number("Derived: examples by training time.", "compact")
    ),
    "train_seconds": Column(
        "Training time", lambda line: (line.train_seconds or None) if line.steps else None,
        _number("Measured, the device synchronised; without loading, warm-up, compiling and evaluation.", "%.1f s"),
    ),
    "busy": Column(
        "Machine", lambda line: "was busy" if line.busy else "",
        st.column_config.TextColumn(
            width=90, help="Busy: something else used it meanwhile, so samples/s and training time are worse than its own."
        ),
    ),
    "steps": Column("Steps", lambda line: line.steps, _number("Counted.", "localized")),
    "seed": Column("Seed", lambda line: line.seed),
    "created": Column("Started", lambda line: line.created, st.column_config.DatetimeColumn(format="distance")),
    "tags": Column("Tags", lambda line: [visible(tag) for tag in line.tags], st.column_config.ListColumn(width=110)),
    "notes": Column("Notes", lambda line: visible(line.notes, LONGEST_NAME)),
    "why": Column("Ended because", lambda line: visible(line.why, LONGEST_NAME)),
    "test_loss": Column("Test loss", None, _number(MEASURED, "%.4f")),
    "samples": Column("Samples", None, _number("Counted.", "compact")),
    "epochs": Column("Epochs", None, _number("Counted.", "%.2f")),
    "flops": Column("Arithmetic", None, _number("Derived: closed form per layer, FLOPs.", "compact")),
    "peak_memory_bytes": Column("Training memory", None, _number("Measured: weights, optimizer and a step's peak.", "bytes")),
    "process_memory_bytes": Column("Process memory", None, _number("Measured, PyTorch itself included.", "bytes")),
    "energy_j": Column("Energy", None, _number("Measured by a counter; empty where there is none.", "%.1f J")),
    "target_step": Column("Steps to target", None, _number("Measured; empty where it was not reached.", "localized")),
    "target_seconds": Column("Time to target", None, _number("Measured; empty where it was not reached.", "%.2f s")),
    "group": Column("Asked for together", None),
}  # fmt: skip
USUAL = (
    "name", "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "busy", "steps", "seed", "created", "tags",
    "why",
)  # fmt: skip
_WHERE_SAID = {"name", "busy", "tags", "notes", "why"}  # of the usual ones: left out where no run has one
ALL_COLUMNS = (*COLUMNS, *(field for field in query.CONFIG_FIELDS if field not in COLUMNS))
_FIRST_UP = {"test_accuracy", "samples_per_s", "epochs", "samples", "steps", "flops"}
_SORTED = {  # in words of their own, which old links hold
    "created": ("newest", "oldest"), "test_accuracy": ("best accuracy", "worst accuracy"),
    "final_train_loss": ("lowest loss", "highest loss"), "samples_per_s": ("fastest", "slowest"),
    "train_seconds": ("longest", "shortest"), "steps": ("most steps", "fewest steps"),
}  # fmt: skip
DIRECTIONS: dict[str, dict[str, bool]] = (
    {  # column: its two directions in words, the one wanted first ahead
        "created": {"newest": True, "oldest": False},
        "test_accuracy": {"best accuracy": True, "worst accuracy": False},
        "final_train_loss": {"lowest loss": False, "highest loss": True},
        "samples_per_s": {"fastest": True, "slowest": False},
        "train_seconds": {"longest": True, "shortest": False},
        "steps": {"most steps": True, "fewest steps": False},
    }
    | {
        figure: {
            f"{'most' if down else 'least'} {title[0].lower()}{title[1:]}": down
            for down in ((True, False) if figure in _FIRST_UP else (False, True))
        }
        for figure, title in query.FIGURES.items()
        if figure not in _SORTED
    }
)
ORDERS = {word: (column, down) for column, words in DIRECTIONS.items() for word, down in words.items()}
HEADS = {column.head: key for key, column in COLUMNS.items()}


def title_of(column: str) -> str:
    return COLUMNS[column].head if column in COLUMNS else column


# --- the table ----------------------------------------------------------------------------------------------------------


def as_table(
    lines: Sequence[RunLine], columns: Sequence[str], order: str, descending: bool, base: str = ""
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The page of runs, and how its columns are written."""
    chosen = list(columns) or list(USUAL)
    figures = [column for column in chosen if column in query.FIGURES]
    asked = [column for column in chosen if column not in COLUMNS or COLUMNS[column].value is None]
    ids = [line.run_id for line in lines]
    found = state.store().values(asked, run_ids=ids) if asked else {}
    based = _figures_of(base, figures) if base else {}
    table: dict[str, Any] = {
        "State": [line.status for line in lines],
        "Experiment": [visible(line.words) for line in lines],
    }
    formats: dict[str, Any] = {"Experiment": st.column_config.TextColumn(width="large")}
    marks = [_marks(line, base) for line in lines]
    if any(marks):
        table = {"": marks} | table
        formats[""] = st.column_config.TextColumn(width=90)
    for column in chosen:
        values = _values(column, lines, found, asked)
        if not columns and column in _WHERE_SAID and not any(map(bool, values)):
            continue
        head = title_of(column) + ({True: " ↓", False: " ↑"}[descending] if column == order else "")
        table[head] = _written(column, values)
        formats[head] = COLUMNS[column].config if column in COLUMNS else None
        if based and column in figures:
            beside = f"Δ {title_of(column)}"
            table[beside] = [_difference(value, based.get(column)) for value in values]
            formats[beside] = _number(
                "Derived: by how much it differs from the baseline, in percent of it.", "%+.1f %%", width=130
            )
    return pd.DataFrame(table), {head: config for head, config in formats.items() if config is not None}


def _marks(line: RunLine, base: str) -> str:
    said = {"baseline": line.run_id == base, "pinned": line.pinned, "imported": line.is_imported}
    return ", ".join(word for word, holds in said.items() if holds)


def _values(
    column: str, lines: Sequence[RunLine], found: Mapping[str, tuple[Any, ...]], asked: Sequence[str]
) -> list[Any]:
    known = COLUMNS.get(column)
    if known and known.value:
        return [known.value(line) for line in lines]
    place = asked.index(column)
    return [found[line.run_id][place] if line.run_id in found else None for line in lines]


def _written(column: str, values: list[Any]) -> Any:
    if column == "created":
        return pd.to_datetime(values, unit="s", utc=True)
    if column in query.FIGURES or column == "seed":
        factor = COLUMNS[column].factor
        return [None if value is None else factor * value for value in values]
    if column in COLUMNS:
        return values
    return [_in_words(value) for value in values]


def _in_words(value: Any) -> str:
    """A field of a configuration: texts, for `full` and 64 stand in one column."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else visible(str(value), 80)


def _figures_of(run_id: str, figures: Sequence[str]) -> dict[str, Any]:
    found = state.store().values(figures, run_ids=[run_id]).get(run_id, ())
    return dict(zip(figures, found, strict=False))


def _difference(value: Any, base: Any) -> float | None:
    return None if value is None or not base else 100 * (value - base) / abs(base)


# --- groups -------------------------------------------------------------------------------------------------------------

GROUP_FIGURES = ("test_accuracy", "final_train_loss", "samples_per_s", "train_seconds")


def grouped(found: Mapping[str, tuple[Any, ...]]) -> pd.DataFrame:
    """A row per value: how many runs and seeds, and each figure's mean and spread; `found` holds value, seed, figures."""
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for value, *rest in found.values():
        groups.setdefault(_in_words(value) or "none", []).append(tuple(rest))
    rows = []
    for value, members in groups.items():
        row: dict[str, Any] = {"Value": value, "Runs": len(members), "Seeds": len({seed for seed, *_ in members})}
        for place, figure in enumerate(GROUP_FIGURES, start=1):
            known = [float(m[place]) for m in members if m[place] is not None and math.isfinite(m[place])]
            factor = COLUMNS[figure].factor
            row[title_of(figure)] = factor * statistics.fmean(known) if known else None
            row[f"± {title_of(figure)}"] = factor * statistics.stdev(known) if len(known) > 1 else None
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["Test accuracy", "Runs"], ascending=False, na_position="last")


def show_groups(by: str, **asked: Any) -> None:
    found = state.store().values([by, "seed", *GROUP_FIGURES], **asked)
    if not found:
        st.info("No run fits this search.", icon=":material/search_off:")
        return
    table = grouped(found)
    st.caption(
        f"{len(table):,} group{'s' if len(table) != 1 else ''} of {len(found):,} runs. ± is the standard deviation over a group's "
        "runs: over its seeds alone where nothing else differs in it. A run without a figure is left out of its mean."
    )
    formats = {"Value": st.column_config.TextColumn(by, width="large")}
    for figure in GROUP_FIGURES:
        config = COLUMNS[figure].config
        spread = config if figure != "samples_per_s" else _number("Derived: standard deviation.", "%.3g")
        formats |= {title_of(figure): config, f"± {title_of(figure)}": spread}
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        height=min(38 + 35 * len(table), 560),
        column_config=formats,
        key="groups",
    )


# --- what is done with chosen runs --------------------------------------------------------------------------------------


def chosen_many(lines: Sequence[RunLine]) -> None:
    """Several runs: compare, export, label, delete."""
    ids = [line.run_id for line in lines]
    with st.container(border=True, key="selected"):
        st.markdown(f"**{len(ids):,} runs chosen**")
        with st.container(horizontal=True, vertical_alignment="center", key="library-tools"):
            trained = [line.run_id for line in lines if line.steps]
            if st.button(
                "Compare", type="primary", icon=":material/compare_arrows:", key="compare-chosen",
                disabled=not 2 <= len(trained) <= MOST_TO_COMPARE,
                help=f"Two to {MOST_TO_COMPARE} runs with steps are drawn into the same charts, with a verdict.",
            ):  # fmt: skip
                _compare(trained)
            if st.button("Export", icon=":material/download:", key="export-chosen"):
                export_dialog.export_dialog(ids)
            _label_many(ids)
            _delete_button(ids)


def _compare(run_ids: Sequence[str]) -> None:
    for place in (st.session_state, st.session_state.setdefault("compare.kept", {})):
        place["library.runs"] = list(run_ids)
        place["compare.view"] = "Runs"
    st.switch_page("../pages/compare.py", query_params={"view": "Runs", "runs": ",".join(run_ids)})


def label_editor(line: RunLine) -> None:
    """Tags, notes, pin and baseline of one run."""
    is_base = st.query_params.get("base") == line.run_id
    with st.container(horizontal=True, vertical_alignment="center", key="library-labels"):
        st.button(
            "No baseline" if is_base else "Use as baseline", icon=":material/straighten:", key="set-base", type="tertiary",
            help="The other runs' figures are shown with their difference to this run's, in percent.",
            on_click=_set_base, args=("" if is_base else line.run_id,),
        )  # fmt: skip
        if not state.client().may("label", line.run_id):
            return
        st.button(
            "Unpin" if line.pinned else "Pin", icon=":material/keep:", key="pin", type="tertiary",
            help="Pinned runs stand first in the list.", on_click=_ask_for, args=([line.run_id],), kwargs={"pinned": not line.pinned},
        )  # fmt: skip
        with st.popover("Tags and notes", icon=":material/sell:", type="tertiary"):
            tags = st.text_input("Tags", ", ".join(line.tags), key=f"tags-{line.run_id}", help="Separated by commas.")
            notes = st.text_area("Notes", line.notes, key=f"notes-{line.run_id}", max_chars=LONGEST_NOTES)
            if st.button("Save", key="save-labels", type="primary"):
                _ask_for([line.run_id], tags=tags.split(","), notes=notes)
                _wait_for(lambda: state.store().run(line.run_id, keep_points=1).labels.notes == notes.strip())
                st.rerun()
        _delete_button([line.run_id])
    if line.tags:
        st.markdown(" ".join(f":gray-badge[{run_parts.literal(tag)}]" for tag in line.tags))
    if line.notes:
        st.text(visible_lines(line.notes))


def visible_lines(text: str, most: int = 40) -> str:
    """Several lines as they were typed, each without what cannot be seen."""
    return "\n".join(visible(line) for line in text.splitlines()[:most])


def _set_base(run_id: str) -> None:
    if run_id:
        st.query_params["base"] = run_id
    else:
        st.query_params.pop("base", None)


def _label_many(ids: Sequence[str]) -> None:
    mine = [run_id for run_id in ids if state.client().may("label", run_id)] if len(ids) <= PER_PAGE else []
    if not mine:
        return
    with st.popover("Label", icon=":material/sell:"):
        tag = st.text_input("Add a tag to all", key="tag-chosen")
        if st.button("Add", key="add-tag") and tag.strip():
            lines = {line.run_id: line for line in _lines_of(mine)}
            for run_id in mine:
                _ask_for([run_id], tags=[*lines[run_id].tags, *tag.split(",")] if run_id in lines else tag.split(","))
            _wait_for(lambda: tag.split(",")[0].strip() in state.store().run(mine[-1], keep_points=1).labels.tags)
            st.rerun()
        st.button("Pin all", key="pin-chosen", on_click=_ask_for, args=(mine,), kwargs={"pinned": True})
        st.button("Unpin all", key="unpin-chosen", on_click=_ask_for, args=(mine,), kwargs={"pinned": False})


def _lines_of(ids: Sequence[str]) -> list[RunLine]:
    from engine.store.listing import line_of

    return [line_of(row) for row in map(state.store().row, ids) if row]


def _ask_for(run_ids: Sequence[str], **labels: Any) -> None:
    try:
        for run_id in run_ids:
            state.client().label(run_id, **labels)
    except EngineError as error:
        st.toast(run_parts.literal(str(error)))
        return
    if "pinned" in labels:
        last = run_ids[-1]
        _wait_for(lambda: state.store().run(last, keep_points=1).labels.pinned == labels["pinned"])


def _wait_for(done: Callable[[], bool], *, seconds: float = 2.0) -> None:
    """The supervisor changes it; a list drawn right after should show that."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if done():
                break
        except StoreError:
            pass
        time.sleep(0.05)
    time.sleep(0.05)  # the index follows


# --- deleting, and having it back ---------------------------------------------------------------------------------------


def _delete_button(ids: Sequence[str]) -> None:
    if all(state.client().may("delete", run_id) for run_id in ids[:PER_PAGE]):
        st.button(
            "Delete", icon=":material/delete:", key="delete-chosen", type="tertiary", on_click=_delete, args=(list(ids),),
            help=f"Configuration, points and weights. It can be undone for {UNDO_S:g} s.",
        )  # fmt: skip


def _delete(ids: list[str]) -> None:
    gone, refused = [], ""
    for run_id in ids:
        try:
            state.client().delete(run_id, undo=True)
            gone.append(run_id)
        except EngineError as error:
            refused = refused or str(error)
    for run_id in gone:
        state.wait_until_deleted(run_id)
    st.session_state["library.deleted"] = {"ids": gone, "until": time.time() + UNDO_S - 1, "refused": refused}


def undo_bar() -> None:
    """Says what was deleted and has it back, for as long as that can be."""
    deleted = st.session_state.get("library.deleted")
    if not deleted:
        return
    if deleted["refused"]:
        st.warning(run_parts.literal(deleted["refused"]), icon=":material/warning:")
    if deleted["ids"] and time.time() < deleted["until"]:
        _undo_offer()
    else:
        st.session_state.pop("library.deleted", None)


@st.fragment(run_every=1)
def _undo_offer() -> None:
    deleted = st.session_state.get("library.deleted")
    left = deleted["until"] - time.time() if deleted else 0
    if not deleted or left <= 0:
        st.session_state.pop("library.deleted", None)
        st.rerun()
    count = len(deleted["ids"])
    with st.container(horizontal=True, vertical_alignment="center", key="undo"):
        st.markdown(f":material/delete: Deleted {count:,} run{'s' if count != 1 else ''}.")
        if st.button(f"Undo ({left:.0f} s)", icon=":material/undo:", key="undo-delete"):
            try:
                for run_id in deleted["ids"]:
                    state.client().restore(run_id)
                _wait_for(lambda: (state.store().runs / deleted["ids"][-1]).is_dir())
            except EngineError as error:
                st.toast(run_parts.literal(str(error)))
            st.session_state.pop("library.deleted", None)
            st.rerun()


# --- files from elsewhere -----------------------------------------------------------------------------------------------


def import_box() -> None:
    """A place to drop files, and what came in by the last ones."""
    if not state.client().may("submit"):
        return
    number = st.session_state.setdefault("import.number", 0)  # another one closes the box and empties it
    with st.popover("Import", icon=":material/upload_file:", key=f"import-box-{number}"):
        st.markdown(
            "Reports of Isoflop (page, JSON or zip) become runs here; a CSV with somebody's curve becomes a lane."
        )
        st.selectbox(
            "Data set of a curve", list(DATASETS), key="import.data",
            help="A CSV does not say what was trained on; only runs on the same data can be compared. Of a report it plays no part.",
        )  # fmt: skip
        st.file_uploader(
            "Files", type=["html", "json", "zip", "csv", "tsv"], accept_multiple_files=True, key=f"import-{number}",
            max_upload_size=50, on_change=_take_files, args=(f"import-{number}",),
            help="Read in a process of its own, under limits. They come in as a whole or not at all, and are marked as unverified.",
        )  # fmt: skip


def _take_files(key: str) -> None:
    files = st.session_state[key]
    if not files:
        return
    st.session_state["import.number"] += 1  # an empty box for the next ones
    config = with_overrides(RunConfig(), [f"data={st.session_state['import.data']}"])
    try:
        with tempfile.TemporaryDirectory(prefix="isoflop-import-") as folder:
            paths = []
            for number, file in enumerate(files):  # the user's file name plays no part
                path = Path(folder) / f"{number}"
                path.write_bytes(file.getvalue())
                paths.append(path)
            found = state.client().import_files(
                paths, names=[file.name for file in files], curve=CurveChoices(config=config)
            )
    except EngineError as error:
        st.session_state["import.said"] = error
    except OSError as error:
        st.session_state["import.said"] = StoreError(
            f"The upload could not be kept: {error.strerror}.", fix="Free some disk."
        )
    else:
        st.session_state["import.said"] = found


def import_result() -> None:
    """What came in with the last files; said until it is put away."""
    said = st.session_state.get("import.said")
    if said is None:
        return
    with st.container(border=True, key="imported"):
        if isinstance(said, EngineError):
            run_parts.error_box(said)
        else:
            ids = ", ".join(said.run_ids[:8]) + (" …" if len(said.run_ids) > 8 else "")
            st.success(
                f"{len(said.run_ids):,} run{'s' if len(said.run_ids) != 1 else ''} came in, marked imported, unverified: {ids}",
                icon=":material/download_done:",
            )
            for warning in said.warnings[:20]:
                run_parts.warn(warning)
            if len(said.warnings) > 20:
                st.caption(f"{len(said.warnings) - 20:,} more warnings of this kind.")
        if st.button("Put away", key="put-away", type="tertiary"):
            st.session_state.pop("import.said", None)
            st.rerun()


# --- races, studies, reports --------------------------------------------------------------------------------------------


def kind_of(group: GroupLine) -> str:
    if group.most_ranks > 1:
        return "scaling study"
    return "race" if group.num_lanes > 1 else "repeats"


def show_races() -> None:
    groups = state.store().groups()
    if not groups:
        st.info(
            "No races and no scaling studies yet. Race configurations under Compare, or ranks under Scale.",
            icon=":material/info:",
        )
        return
    table = pd.DataFrame({
        "Kind": [kind_of(group) + (" · imported, unverified" if group.is_imported else "") for group in groups],
        "Lanes": [visible(" · ".join(group.lanes), LONGEST_NAME) for group in groups],
        "Data": [visible(group.data, 40) for group in groups],
        "Runs": [group.num_runs for group in groups],
        "At work": [group.num_alive or None for group in groups],
        "Started": pd.to_datetime([group.created for group in groups], unit="s", utc=True),
    })  # fmt: skip
    st.caption("The newest hundred: runs that were asked for together. Select one to open it.")
    choice = st.dataframe(
        table, hide_index=True, placeholder="–", on_select="rerun", selection_mode="single-row", key="races",
        height=min(38 + 35 * len(table), 560),
        column_config={"Lanes": st.column_config.TextColumn(width="large"), "Started": st.column_config.DatetimeColumn(format="distance")},
    )  # fmt: skip
    if rows := choice["selection"]["rows"]:
        group = groups[rows[0]]
        with st.container(border=True, horizontal=True, key="selected-race"):
            kind = kind_of(group)
            if kind == "scaling study":
                st.page_link(
                    "../pages/scale.py",
                    label="Open under Scale",
                    icon=":material/hub:",
                    query_params={"study": group.group},
                )
            else:
                st.page_link(
                    "../pages/compare.py", label="Open under Compare", icon=":material/compare_arrows:",
                    query_params={"view": "Race", "race": group.group},
                )  # fmt: skip
            st.page_link(
                "../pages/library.py",
                label="Its runs",
                icon=":material/list:",
                query_params={"where": f"group = {group.group}"},
            )
            if st.button("Export", icon=":material/download:", key="export-race"):
                export_dialog.export_dialog([row.run_id for row in state.store().rows(group=group.group)])


def show_reports() -> None:
    reports = sharing.saved_reports(state.store())
    if not reports:
        st.info(
            "No reports were imported yet. Drop one on Import: its runs, notes and verdicts are kept here.",
            icon=":material/info:",
        )
        return
    for report in reports[:100]:
        _show_report(report)


def _show_report(report: SavedReport) -> None:
    store = state.store()
    there = [run_id for run_id in report.run_ids if (store.runs / run_id).is_dir()]
    with st.container(border=True, key=f"report-{report.report_id}"):
        st.markdown(f"**{run_parts.literal(report.title or 'Without a title')}** :orange-badge[imported, unverified]")
        made = units.date(report.created)
        st.caption(
            run_parts.literal(
                f"Made {made} by its own account, imported {units.date(report.origin.at)}. {len(there)} of {len(report.run_ids)} runs are here."
            )
        )
        if report.origin.hash_matches is False:
            st.warning(
                "Its content hash does not match: it was changed after it was exported.", icon=":material/warning:"
            )
        for note in report.origin.notes:
            st.caption(run_parts.literal(note))
        if report.notes:
            st.text(visible_lines(report.notes))
        for conclusion in report.conclusions:
            st.code("\n".join(visible(line) for line in race_verdicts.table(conclusion.outcome)), language=None)
        with st.container(horizontal=True):
            if report.group_ids and there:
                st.page_link(
                    "../pages/compare.py", label="Open its race", icon=":material/compare_arrows:",
                    query_params={"view": "Race", "race": report.group_ids[0]},
                )  # fmt: skip
            elif there:
                link = (
                    {"run": there[0]}
                    if len(there) == 1
                    else {"view": "Runs", "runs": ",".join(there[:MOST_TO_COMPARE])}
                )
                page = "train" if len(there) == 1 else "compare"
                st.page_link(
                    f"../pages/{page}.py", label="Open its runs", icon=":material/open_in_new:", query_params=link
                )
            if there and st.button("Export again", icon=":material/download:", key=f"again-{report.report_id}"):
                export_dialog.export_dialog(there)
            if _may_forget(report) and st.button(
                "Forget", icon=":material/delete:", key=f"forget-{report.report_id}", type="tertiary",
                help="Title, notes and verdicts go; its runs stay in the list.",
            ):  # fmt: skip
                sharing.delete_report(store, report.report_id)
                st.rerun()


def _may_forget(report: SavedReport) -> bool:
    return state.role() == "admin" or (state.role() == "runner" and report.owner == state.actor().id)


def conditions(text: str) -> tuple[tuple[query.Condition, ...], ConfigError | None]:
    """What the filter says; where it cannot be understood, none, and why."""
    try:
        return query.parse(text), None
    except ConfigError as error:
        return (), error
