"""Library: everything that ever ran here or was imported; search, filter, sort, group, label, compare, export, delete."""

from functools import partial
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.views import library
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


def first_page() -> None:
    """Another search or order begins at its first page."""
    st.session_state["page"] = 1


def show_all() -> None:
    st.session_state.update(q="", state="all", where="", page=1)


def sort_by(table: str) -> None:
    """A click on a column's head sorts all pages by it, a second one the other way round."""
    for column in st.session_state[table]["selection"]["columns"]:
        words = list(library.DIRECTIONS.get(library.HEADS.get(column.rstrip(" ↓↑"), ""), {}))
        if words:
            st.session_state["sort"] = words[1] if st.session_state["sort"] == words[0] else words[0]
            first_page()
        st.session_state["runs.clicks"] = st.session_state.get("runs.clicks", 0) + 1  # lets go of the column


@st.fragment(run_every=2)
def still_reading(unread: int) -> None:
    """Until the supervisor has read them all; drawn once, it is there only to look again."""
    left = state.store().listing(limit=0).unread
    st.caption(f":material/hourglass_top: {left:,} more runs are being read into the index.")
    if left < unread:
        st.rerun()


def open_one(line: RunLine) -> None:
    """The run's figures, and what one does with it."""
    run = state.open_run(line.run_id)
    if run is None:
        return
    with st.container(border=True, key="selected"):
        with st.container(horizontal=True, vertical_alignment="center"):
            run_parts.status_badge(run.status)
            st.markdown(f"**{run_parts.literal(describe(run.config))}**")
        run_parts.why_box(run)
        run_results.final_figures(run)
        library.label_editor(line)
        run_actions(run, in_library=True)


def runs_view() -> None:
    with st.container(horizontal=True, key="find", vertical_alignment="bottom"):
        search = st.text_input(
            "Search", key="q", type="search", live="300ms", bind="query-params", max_chars=200, on_change=first_page,
            placeholder="Words of a name, an experiment, a tag, a note; an id", icon=":material/search:",
            label_visibility="collapsed",
        )  # fmt: skip
        shown = st.selectbox("State", list(STATES), key="state", bind="query-params", on_change=first_page, width=130)
        sort = st.selectbox(
            "Sort by", list(library.ORDERS), key="sort", bind="query-params", on_change=first_page, width=170
        )
    with st.container(horizontal=True, key="filter", vertical_alignment="bottom"):
        text = st.text_input(
            "Filter", key="where", bind="query-params", max_chars=500, on_change=first_page, icon=":material/filter_alt:",
            placeholder="optimizer.name = adam, batch_size > 64, tag = paper", label_visibility="collapsed",
        )  # fmt: skip
        by = st.selectbox(
            "Group by", [query.EXPERIMENT, *query.CONFIG_FIELDS, "name", "group"], index=None, key="by",
            bind="query-params", placeholder="nothing", width=170,
        )  # fmt: skip
        with st.popover("Columns", icon=":material/view_column:"):
            columns = st.multiselect(
                "Columns", library.ALL_COLUMNS, key="cols", bind="query-params", format_func=library.title_of,
                placeholder="the usual ones", help="Figures, and any field of the configuration. None chosen: the usual ones.",
            )  # fmt: skip
    where, wrong = library.conditions(text or "")
    if wrong:
        run_parts.hint(wrong)
    asked: dict[str, Any] = {"search": search or "", "status": STATES[shown], "where": where}
    if by:
        library.show_groups(by, **asked)
        return
    order, descending = library.ORDERS[sort]
    find = partial(state.store().listing, **asked, order=order, descending=descending, pinned_first=True)
    total = find(limit=0).total
    with st.container(
        horizontal=True, vertical_alignment="center", key="pages"
    ):  # left: a table's own tools cover the right
        says = st.container(width="content")
        page = st.pagination(max(1, -(-total // library.PER_PAGE)), key="page", bind="query-params")
    if everything.unread:
        still_reading(everything.unread)
    first = (page - 1) * library.PER_PAGE
    lines = find(limit=library.PER_PAGE, offset=first).lines
    if not lines:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.info("No run fits this search.", icon=":material/search_off:")
            st.button("Show all runs", on_click=show_all)
        return
    says.caption(
        f"{first + 1:,}–{first + len(lines):,} of {total:,} run{'s' if total != 1 else ''}. Select one to open it, several to compare."
    )
    base = st.query_params.get("base", "")
    table, formats = library.as_table(lines, columns, order, descending, base)
    # Another list is another table: a selection never moves to another run.
    key = f"runs-{hash((st.session_state.get('runs.clicks'), *(line.run_id for line in lines)))}"
    choice = st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        on_select=lambda: sort_by(key),
        selection_mode=["multi-row", "single-column"],  # the table's own sorting would sort this page alone
        key=key,
        height=min(38 + 35 * len(lines), 560),
        column_config=formats,
    )
    component.preload()  # of what opening a run will need
    chosen = [lines[row] for row in choice["selection"]["rows"] if row < len(lines)]
    if len(chosen) == 1:
        open_one(chosen[0])
    elif chosen:
        library.chosen_many(chosen)


with st.container(horizontal=True, vertical_alignment="center", key="library-head"):
    st.title("Library", anchor=False)
    copy_buttons.copy_buttons(key="copy-library")
    library.import_box()
library.import_result()
library.undo_bar()
everything = state.store().listing(limit=0)
if not everything.total and not everything.unread:
    st.info("Nothing has run yet. Start an experiment under Train, or import a report.", icon=":material/info:")
    st.page_link("../pages/train.py", label="Train", icon=":material/play_circle:")
    st.stop()
view = st.segmented_control(
    "View", VIEWS, key="view", bind="query-params", default="Runs", required=True, label_visibility="collapsed"
)
if view == "Runs":
    runs_view()
elif view == "Reports":
    library.show_reports()
else:
    library.show_races()
