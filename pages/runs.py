"""Runs: everything that ever ran here; open, run again, export, delete."""

import pandas as pd
import streamlit as st

from dashboard import parts, state
from engine.text import LONGEST_NAME, visible

MOST = 1000

st.title("Runs", anchor=False)
rows = state.store().rows(limit=MOST)
if not rows:
    st.info("Nothing has run yet. Start an experiment under Train.", icon=":material/info:")
    st.page_link("../pages/train.py", label="Train", icon=":material/play_circle:")
    st.stop()

table = pd.DataFrame(
    {
        "State": [r.status for r in rows],
        "Experiment": [r.config.in_words() for r in rows],
        "Name": [visible(r.name, LONGEST_NAME) for r in rows],
        "Test accuracy": [None if r.summary.test_accuracy is None else 100 * r.summary.test_accuracy for r in rows],
        "Training loss": [r.summary.final_train_loss for r in rows],
        "Samples/s": [r.summary.samples_per_s for r in rows],
        "Training time": [r.summary.train_seconds for r in rows],
        "Seed": [r.config.seed for r in rows],
        "Ended because": [visible(r.why, LONGEST_NAME) for r in rows],
        "Started": pd.to_datetime([r.created for r in rows], unit="s", utc=True),
    }
)
table = table.drop(columns=[column for column in ("Name", "Ended because") if not table[column].any()])
st.caption(
    f"{'The newest ' if len(rows) == MOST else ''}{len(rows):,} run{'s' if len(rows) != 1 else ''}, newest first. Select one to open it. Every figure is measured."
)
choice = st.dataframe(
    table,
    hide_index=True,
    placeholder="–",
    on_select="rerun",
    selection_mode="single-row",
    key=f"runs-{hash(tuple(r.run_id for r in rows))}",  # another list is another table: a selection never moves to another run
    column_config={
        "Experiment": st.column_config.TextColumn(width="large"),
        "Name": st.column_config.TextColumn(width="medium"),
        "Test accuracy": st.column_config.NumberColumn(format="%.1f %%"),
        "Training loss": st.column_config.NumberColumn(format="%.4f"),
        "Samples/s": st.column_config.NumberColumn(format="compact"),
        "Training time": st.column_config.NumberColumn(format="%.1f s"),
        "Started": st.column_config.DatetimeColumn(format="distance"),
    },
)
selected = choice["selection"]["rows"]
if selected and (run := state.open_run(rows[selected[0]].run_id)):
    with st.container(border=True, key="selected"):
        with st.container(horizontal=True, vertical_alignment="center"):
            parts.status_badge(run.status)
            st.markdown(f"**{parts.literal(run.config.in_words())}**")
        parts.why_box(run)
        parts.final_figures(run)
        parts.run_actions(run, open_link=True)
