"""Runs: everything that ever ran here; search, sort, open, run again, export, delete. What is shown is in the address."""

from functools import partial

import pandas as pd
import streamlit as st

from dashboard import live, parts, state
from engine.records import Status
from engine.store import RunLine
from engine.text import LONGEST_NAME, visible

PER_PAGE = 100
STATES: dict[str, tuple[Status, ...]] = {
    "all": (),
    "under way": ("queued", "starting", "running", "stopping"),
    "finished": ("finished",),
    "cancelled": ("cancelled",),
    "failed": ("failed",),
    "interrupted": ("interrupted",),
}
COLUMNS = {  # what can be sorted by, and the words for its two directions, the one wanted first ahead
    "Started": ("created", {"newest": True, "oldest": False}),
    "Test accuracy": ("test_accuracy", {"best accuracy": True, "worst accuracy": False}),
    "Training loss": ("final_train_loss", {"lowest loss": False, "highest loss": True}),
    "Samples/s": ("samples_per_s", {"fastest": True, "slowest": False}),
    "Training time": ("train_seconds", {"longest": True, "shortest": False}),
    "Steps": ("steps", {"most steps": True, "fewest steps": False}),
}
COLUMN_FORMATS = {
    "Experiment": st.column_config.TextColumn(width="large"),
    "Name": st.column_config.TextColumn(width=100),
    "Test accuracy": st.column_config.NumberColumn(
        format="%.1f %%", help="Measured on held-out examples, at the last evaluation."
    ),
    "Training loss": st.column_config.NumberColumn(
        format="%.4f", help="Measured: mean over the batches of the last epoch, at most 100."
    ),
    "Samples/s": st.column_config.NumberColumn(format="compact", help="Derived: examples by training time."),
    "Training time": st.column_config.NumberColumn(
        format="%.1f s", help="Measured, the device synchronised; without loading, warm-up, compiling and evaluation."
    ),
    "Machine": st.column_config.TextColumn(
        width=90, help="Busy: something else used it meanwhile, so samples/s and training time are worse than its own."
    ),
    "Steps": st.column_config.NumberColumn(format="localized", help="Counted."),
    "Started": st.column_config.DatetimeColumn(format="distance"),
}
FORMATS = {head + arrow: config for head, config in COLUMN_FORMATS.items() for arrow in ("", " ↓", " ↑")}
ORDERS = {word: (column, down) for column, words in COLUMNS.values() for word, down in words.items()}


def first_page() -> None:
    """Another search or order begins at its first page."""
    st.session_state["page"] = 1


def show_all() -> None:
    st.session_state.update(q="", state="all", page=1)


def sort_by(table: str) -> None:
    """A click on a column's head sorts all pages by it, a second one the other way round."""
    for column in st.session_state[table]["selection"]["columns"]:
        words = list(COLUMNS.get(column.rstrip(" ↓↑"), ("", {}))[1])
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


def as_table(lines: list[RunLine], order: str, descending: bool) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "State": [line.status for line in lines],
            "Experiment": [visible(line.words) for line in lines],
            "Name": [visible(line.name, LONGEST_NAME) for line in lines],
            "Test accuracy": [None if line.test_accuracy is None else 100 * line.test_accuracy for line in lines],
            "Training loss": [line.final_train_loss for line in lines],
            "Samples/s": [line.samples_per_s for line in lines],
            "Training time": [line.train_seconds if line.steps else None for line in lines],
            "Machine": ["was busy" if line.busy else "" for line in lines],
            "Steps": [line.steps for line in lines],
            "Seed": [line.seed for line in lines],
            "Started": pd.to_datetime([line.created for line in lines], unit="s", utc=True),
            "Ended because": [visible(line.why, LONGEST_NAME) for line in lines],
        }
    )
    table = table.drop(columns=[column for column in ("Name", "Machine", "Ended because") if not table[column].any()])
    arrow = "↓" if descending else "↑"
    return table.rename(columns={head: f"{head} {arrow}" for head, (column, _) in COLUMNS.items() if column == order})


st.title("Runs", anchor=False)
everything = state.store().listing(limit=0)
if not everything.total and not everything.unread:
    st.info("Nothing has run yet. Start an experiment under Train.", icon=":material/info:")
    st.page_link("../pages/train.py", label="Train", icon=":material/play_circle:")
    st.stop()

with st.container(horizontal=True, key="find", vertical_alignment="bottom"):
    search = st.text_input(
        "Search", key="q", type="search", live="300ms", bind="query-params", max_chars=200, on_change=first_page,
        placeholder="Words of a name, an experiment, a reason; an id", icon=":material/search:",
        label_visibility="collapsed",
    )  # fmt: skip
    shown = st.selectbox("State", list(STATES), key="state", bind="query-params", on_change=first_page, width=160)
    sort = st.selectbox("Sort by", list(ORDERS), key="sort", bind="query-params", on_change=first_page, width=180)
order, descending = ORDERS[sort]
find = partial(state.store().listing, search=search or "", status=STATES[shown], order=order, descending=descending)
total = find(limit=0).total
with st.container(
    horizontal=True, vertical_alignment="center", key="pages"
):  # left: a table's own tools cover the right
    says = st.container(width="content")
    page = st.pagination(max(1, -(-total // PER_PAGE)), key="page", bind="query-params")
if everything.unread:
    still_reading(everything.unread)
first = (page - 1) * PER_PAGE
lines = find(limit=PER_PAGE, offset=first).lines
if not lines:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.info("No run fits this search.", icon=":material/search_off:")
        st.button("Show all runs", on_click=show_all)
    st.stop()

says.caption(
    f"{first + 1:,}–{first + len(lines):,} of {total:,} run{'s' if total != 1 else ''}. Select one to open it."
)
# Another list is another table: a selection never moves to another run.
key = f"runs-{hash((st.session_state.get('runs.clicks'), *(line.run_id for line in lines)))}"
choice = st.dataframe(
    as_table(lines, order, descending),
    hide_index=True,
    placeholder="–",
    on_select=lambda: sort_by(key),
    selection_mode=["single-row", "single-column"],  # the table's own sorting would sort this page alone
    key=key,
    height=min(38 + 35 * len(lines), 560),
    column_config=FORMATS,
)
live.preload()  # of what opening a run will need
selected = choice["selection"]["rows"]
if selected and (run := state.open_run(lines[selected[0]].run_id)):
    with st.container(border=True, key="selected"):
        with st.container(horizontal=True, vertical_alignment="center"):
            parts.status_badge(run.status)
            st.markdown(f"**{parts.literal(run.config.in_words())}**")
        parts.why_box(run)
        parts.final_figures(run)
        parts.run_actions(run, open_link=True)
