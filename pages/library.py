"""Library: all runs of the store; search, filter, sort, group, label, compare, export, delete.

All choices are in the address: `q` and `where` (search), `sort`, `cols`, `by` (grouping), `base` (the baseline run).
"""

from functools import partial
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.views.library import actions, columns, imports, studies, tables
from dashboard.widgets import component, copy_buttons, run_parts, run_results
from dashboard.widgets.run_actions import run_actions
from engine.config.summary import describe
from engine.events.base import Status
from engine.store import query
from engine.store.listing import RunLine

STATES: dict[str, tuple[Status, ...]] = {
    "all": (),
    "under way": ("queued", "starting", "running", "stopping"),
    "finished": ("finished",),
    "cancelled": ("cancelled",),
    "failed": ("failed",),
    "interrupted": ("interrupted",),
}
VIEWS = ("Runs", "Races and studies", "Reports")


def go_to_first_page() -> None:
    """A new search or order starts at its first page."""
    st.session_state["page"] = 1


def show_all() -> None:
    """Clear search, state and filter."""
    st.session_state.update(q="", state="all", where="", page=1)


def sort_by(table: str) -> None:
    """A click on a column title sorts all pages by it; a second click reverses the order."""
    for column in st.session_state[table]["selection"]["columns"]:
        words = list(columns.DIRECTIONS.get(columns.KEYS.get(column.rstrip(" ↓↑"), ""), {}))
        if words:
            st.session_state["sort"] = words[1] if st.session_state["sort"] == words[0] else words[0]
            go_to_first_page()
        st.session_state["runs.clicks"] = (
            st.session_state.get("runs.clicks", 0) + 1
        )  # a new table, in which no column is selected


@st.fragment(run_every=2)
def still_reading(unread: int) -> None:
    """Count down until the supervisor has read all runs into the index."""
    left = state.store().listing(limit=0).unread
    st.caption(f":material/hourglass_top: {left:,} more runs are being read into the index.")
    if left < unread:
        st.rerun()


def open_one(line: RunLine) -> None:
    """Figures and actions of the selected run."""
    run = state.open_run(line.run_id)
    if run is None:
        return
    with st.container(border=True, key="selected"):
        with st.container(horizontal=True, vertical_alignment="center"):
            run_parts.status_badge(run.status)
            st.markdown(f"**{run_parts.literal(describe(run.config))}**")
        run_parts.why_box(run)
        run_results.final_figures(run)
        actions.label_editor(line)
        run_actions(run, in_library=True)


def runs_view() -> None:
    """Search fields, the table of runs, and the selected ones."""
    with st.container(horizontal=True, key="find", vertical_alignment="bottom"):
        search = st.text_input(
            "Search", key="q", type="search", live="300ms", bind="query-params", max_chars=200, on_change=go_to_first_page,
            placeholder="Search name, experiment, tag, note or id", icon=":material/search:",
            label_visibility="collapsed",
        )  # fmt: skip
        shown = st.selectbox(
            "State", list(STATES), key="state", bind="query-params", on_change=go_to_first_page, width=130
        )
        sort = st.selectbox(
            "Sort by", list(columns.ORDERS), key="sort", bind="query-params", on_change=go_to_first_page, width=170
        )
    with st.container(horizontal=True, key="filter", vertical_alignment="bottom"):
        text = st.text_input(
            "Filter", key="where", bind="query-params", max_chars=500, on_change=go_to_first_page, icon=":material/filter_alt:",
            placeholder="optimizer.name = adam, batch_size > 64, tag = paper", label_visibility="collapsed",
        )  # fmt: skip
        by = st.selectbox(
            "Group by", [query.EXPERIMENT, *query.CONFIG_FIELDS, "name", "group"], index=None, key="by",
            bind="query-params", placeholder="nothing", width=170,
        )  # fmt: skip
        with st.popover("Columns", icon=":material/view_column:"):
            chosen_columns = st.multiselect(
                "Columns", columns.ALL_COLUMNS, key="cols", bind="query-params", format_func=columns.title_of,
                placeholder="default columns", help="Figures and any field of the configuration. Leave it empty for the default.",
            )  # fmt: skip
    where, wrong = tables.conditions(text or "")
    if wrong:
        run_parts.hint(wrong)
    filters: dict[str, Any] = {"search": search or "", "status": STATES[shown], "where": where}
    if by:
        tables.show_groups(by, **filters)
        return
    order, descending = columns.ORDERS[sort]
    find = partial(state.store().listing, **filters, order=order, descending=descending, pinned_first=True)
    total = find(limit=0).total
    # On the left, because the table's own toolbar covers the right.
    with st.container(horizontal=True, vertical_alignment="center", key="pages"):
        summary = st.container(width="content")
        page = st.pagination(max(1, -(-total // actions.PER_PAGE)), key="page", bind="query-params")
    if everything.unread:
        still_reading(everything.unread)
    first = (page - 1) * actions.PER_PAGE
    lines = find(limit=actions.PER_PAGE, offset=first).lines
    if not lines:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.info("No run matches this search.", icon=":material/search_off:")
            st.button("Show all runs", on_click=show_all)
        return
    summary.caption(
        f"{first + 1:,}–{first + len(lines):,} of {actions.run_count(total)}. Select one to open it, several to compare."
    )
    base = st.query_params.get("base", "")
    table, formats = tables.as_table(lines, chosen_columns, order, descending, base)
    # Another list gets another table, so that a selection never moves to another run.
    key = f"runs-{hash((st.session_state.get('runs.clicks'), *(line.run_id for line in lines)))}"
    choice = st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        on_select=lambda: sort_by(key),
        selection_mode=["multi-row", "single-column"],  # not the table's own sorting, which would sort only this page
        key=key,
        height=tables.table_height(table),
        column_config=formats,
    )
    component.preload()  # what opening a run will need
    chosen = [lines[row] for row in choice["selection"]["rows"] if row < len(lines)]
    if len(chosen) == 1:
        open_one(chosen[0])
    elif chosen:
        actions.chosen_many(chosen)


with st.container(horizontal=True, vertical_alignment="center", key="library-head"):
    st.title("Library", anchor=False)
    copy_buttons.copy_buttons(key="copy-library")
    imports.import_box()
imports.import_choices()
imports.import_result()
actions.undo_bar()
everything = state.store().listing(limit=0)
if not everything.total and not everything.unread:
    st.info("There are no runs yet. Start one under Train, or import a report.", icon=":material/info:")
    st.page_link("../pages/train.py", label="Train", icon=":material/play_circle:")
    st.stop()
view = st.segmented_control(
    "View", VIEWS, key="view", bind="query-params", default="Runs", required=True, label_visibility="collapsed"
)
if view == "Runs":
    runs_view()
elif view == "Reports":
    studies.show_reports()
else:
    studies.show_races()
