"""Start: what Isoflop is, three experiments at one click, the race, the newest runs, this machine."""

import time

import streamlit as st

from dashboard import state
from dashboard.widgets import component, run_parts
from engine.common.errors import EngineError
from engine.config.presets import PRESETS
from engine.events.base import TERMINAL

EXPERIMENTS = {  # preset: what to watch for
    "lenet": "Watch the accuracy climb past 95 % within seconds of real training.",
    "lr-too-high": "Watch the loss beside the first experiment's: same net, same data, same order.",
    "mnist-gd": "Watch a curve without noise, and how few steps ten seconds allow.",
}

st.title("Isoflop", anchor=False)
st.markdown(
    "Which model, batch size, learning rate and hardware should I use, and what does it cost? "
    "Isoflop runs short real training here, shows it live and measures it honestly."
)


def start(preset: str) -> None:
    try:
        run_id = state.submit(PRESETS[preset].config)
    except EngineError as error:
        run_parts.error_box(error)
        return
    st.switch_page("../pages/train.py", query_params={"run": run_id})


may_run = state.client().may("submit")
for column, (preset, watch) in zip(st.columns(3), EXPERIMENTS.items(), strict=True):
    with column.container(border=True, height="stretch", key=f"experiment-{preset}"):
        st.markdown(f"**{run_parts.literal(PRESETS[preset].title)}**")
        st.markdown(run_parts.literal(PRESETS[preset].teaches))
        st.caption(watch)
        st.space("stretch")
        if st.button("Run", key=f"start-{preset}", type="primary", icon=":material/play_arrow:", disabled=not may_run):
            start(preset)

with st.container(border=True, horizontal=True, vertical_alignment="center", key="experiment-race"):
    st.markdown(
        "**Batch, mini-batch or stochastic?** Race them against each other: one net, one rule, and a gradient over all "
        "examples, some, or one."
    )
    st.page_link("../pages/compare.py", label="Compare", icon=":material/compare_arrows:")

with st.container(border=True, horizontal=True, vertical_alignment="center", key="experiment-inference"):
    st.markdown(
        "**How fast does it answer?** Requests to a net you trained: which batch size, how many threads and which software to "
        "deploy for the latency you may take."
    )
    st.page_link("../pages/inference.py", label="Inference", icon=":material/bolt:")

newest = state.store().rows(limit=6)
alive = any(row.status not in TERMINAL for row in newest)


@st.fragment(run_every=2 if alive else None)
def newest_runs() -> None:
    """The list by itself, so that runs under way move on without the page being drawn anew."""
    rows = state.store().rows(limit=6)
    for row in rows:
        run_parts.run_line(row, time.time())
    if alive and all(row.status in TERMINAL for row in rows):
        st.rerun()


left, right = st.columns([2, 1])
with left:
    st.subheader("Newest runs", anchor=False)
    if newest:
        newest_runs()
        st.page_link("../pages/library.py", label="All runs", icon=":material/arrow_forward:")
    else:
        st.caption("Nothing has run yet. Start one of the experiments above, or set up your own under Train.")
with right:
    run_parts.machine_card(state.machine())

component.preload()
