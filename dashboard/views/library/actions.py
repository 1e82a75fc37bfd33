"""What can be done with chosen runs: compare, export, label, delete and undo."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.widgets import export_dialog, run_parts
from engine.common.errors import EngineError, StoreError
from engine.common.sanitize import visible
from engine.config.tasks import TASKS
from engine.runtime.client import UNDO_S
from engine.store.labels import LONGEST_NOTES
from engine.store.listing import RunLine

PER_PAGE = 100
MOST_TO_COMPARE = 24


def chosen_many(lines: Sequence[RunLine]) -> None:
    """The card of several chosen runs."""
    ids = [line.run_id for line in lines]
    with st.container(border=True, key="selected"):
        st.markdown(f"**{run_count(len(ids))} selected**")
        with st.container(horizontal=True, vertical_alignment="center", key="library-tools"):
            tasks = state.store().values(["task"], run_ids=ids)
            trained = [run_id for run_id, (task,) in tasks.items() if TASKS[task].trains_one_model]
            if st.button(
                "Compare", type="primary", icon=":material/compare_arrows:", key="compare-chosen",
                disabled=not 2 <= len(trained) <= MOST_TO_COMPARE,
                help=f"Draws 2 to {MOST_TO_COMPARE} training runs into the same charts, with a verdict.",
            ):  # fmt: skip
                _compare(trained)
            if st.button("Export", icon=":material/download:", key="export-chosen"):
                export_dialog.export_dialog(ids)
            _label_many(lines)
            _delete_button(ids)


def run_count(number: int) -> str:
    """A number of runs in words."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def _compare(run_ids: Sequence[str]) -> None:
    for values in (st.session_state, st.session_state.setdefault("compare.kept", {})):
        values["library.runs"] = list(run_ids)
        values["compare.view"] = "Runs"
    st.switch_page("../pages/compare.py", query_params={"view": "Runs", "runs": ",".join(run_ids)})


def label_editor(line: RunLine) -> None:
    """Tags, notes, pin and baseline of one run."""
    is_base = st.query_params.get("base") == line.run_id
    with st.container(horizontal=True, vertical_alignment="center", key="library-labels"):
        st.button(
            "Remove baseline" if is_base else "Set as baseline", icon=":material/straighten:", key="set-base", type="tertiary",
            help="Shows the difference of every other run to this run, in percent.",
            on_click=_set_base, args=("" if is_base else line.run_id,),
        )  # fmt: skip
        if not state.client().may("label", line.run_id):
            return
        st.button(
            "Unpin" if line.pinned else "Pin", icon=":material/keep:", key="pin", type="tertiary",
            help="Pinned runs are at the top of the list.", on_click=_label, args=([line.run_id],),
            kwargs={"pinned": not line.pinned},
        )  # fmt: skip
        with st.popover("Tags and notes", icon=":material/sell:", type="tertiary"):
            tags = st.text_input("Tags", ", ".join(line.tags), key=f"tags-{line.run_id}", help="Separated by commas.")
            notes = st.text_area("Notes", line.notes, key=f"notes-{line.run_id}", max_chars=LONGEST_NOTES)
            if st.button("Save", key="save-labels", type="primary"):
                _label([line.run_id], tags=tags.split(","), notes=notes)
                _wait_for(lambda: state.store().run(line.run_id, keep_points=1).labels.notes == notes.strip())
                st.rerun()
        _delete_button([line.run_id])
    if line.tags:
        st.markdown(" ".join(f":gray-badge[{run_parts.literal(tag)}]" for tag in line.tags))
    if line.notes:
        st.text(visible_lines(line.notes))


def visible_lines(text: str, most: int = 40) -> str:
    """The first lines of a text as they were typed, without invisible characters."""
    return "\n".join(visible(line) for line in text.splitlines()[:most])


def _set_base(run_id: str) -> None:
    if run_id:
        st.query_params["base"] = run_id
    else:
        st.query_params.pop("base", None)


def _label_many(lines: Sequence[RunLine]) -> None:
    mine = [line for line in lines if state.client().may("label", line.run_id)] if len(lines) <= PER_PAGE else []
    if not mine:
        return
    ids = [line.run_id for line in mine]
    with st.popover("Label", icon=":material/sell:"):
        tag = st.text_input("Add a tag to all", key="tag-chosen")
        if st.button("Add", key="add-tag") and tag.strip():
            for line in mine:
                _label([line.run_id], tags=[*line.tags, *tag.split(",")])
            _wait_for(lambda: tag.split(",")[0].strip() in state.store().run(ids[-1], keep_points=1).labels.tags)
            st.rerun()
        st.button("Pin all", key="pin-chosen", on_click=_label, args=(ids,), kwargs={"pinned": True})
        st.button("Unpin all", key="unpin-chosen", on_click=_label, args=(ids,), kwargs={"pinned": False})


def _label(run_ids: Sequence[str], **labels: Any) -> None:
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
    """Wait until the supervisor has made a change, so that the list drawn next shows it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if done():
                break
        except StoreError:
            pass
        time.sleep(0.05)
    time.sleep(0.05)  # the index follows


def _delete_button(ids: Sequence[str]) -> None:
    if all(state.client().may("delete", run_id) for run_id in ids[:PER_PAGE]):
        st.button(
            "Delete", icon=":material/delete:", key="delete-chosen", type="tertiary", on_click=_delete, args=(list(ids),),
            help=f"Deletes configuration, measurements and weights. You can undo this for {UNDO_S:g} s.",
        )  # fmt: skip


def _delete(ids: list[str]) -> None:
    deleted, refused = [], ""
    for run_id in ids:
        try:
            state.client().delete(run_id, undo=True)
            deleted.append(run_id)
        except EngineError as error:
            refused = refused or str(error)
    for run_id in deleted:
        state.wait_until_deleted(run_id)
    st.session_state["library.deleted"] = {"ids": deleted, "until": time.time() + UNDO_S - 1, "refused": refused}


def undo_bar() -> None:
    """Says what was deleted and offers to restore it while that is possible."""
    deleted = st.session_state.get("library.deleted")
    if not deleted:
        return
    if deleted["refused"]:
        st.warning(run_parts.literal(deleted["refused"]), icon=":material/warning:")
    if deleted["ids"] and time.time() < deleted["until"]:
        _undo_button()
    else:
        st.session_state.pop("library.deleted", None)


@st.fragment(run_every=1)
def _undo_button() -> None:
    deleted = st.session_state.get("library.deleted")
    left_s = deleted["until"] - time.time() if deleted else 0
    if not deleted or left_s <= 0:
        st.session_state.pop("library.deleted", None)
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", key="undo"):
        st.markdown(f":material/delete: Deleted {run_count(len(deleted['ids']))}.")
        if st.button(f"Undo ({left_s:.0f} s)", icon=":material/undo:", key="undo-delete"):
            try:
                for run_id in deleted["ids"]:
                    state.client().restore(run_id)
                _wait_for(lambda: (state.store().runs / deleted["ids"][-1]).is_dir())
            except EngineError as error:
                st.toast(run_parts.literal(str(error)))
            st.session_state.pop("library.deleted", None)
            st.rerun()
