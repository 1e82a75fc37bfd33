"""Start: what Isoflop is, three experiments to run with one click, the race, recent runs, and this machine."""

import time

import streamlit as st

from dashboard import state
from dashboard.widgets import component, run_parts
from engine.common.errors import EngineError
from engine.config.presets import PRESETS
from engine.events.base import TERMINAL

EXPERIMENTS = {  # preset: what to watch for
    "lenet": "Test accuracy passes 95 % within seconds of real training.",
    "lr-too-high": "The network, the data and their order are those of LeNet on MNIST; only the learning rate differs.",
    "mnist-gd": "The curve has no noise, but ten seconds allow only a few steps.",
}

st.title("Isoflop", anchor=False)
st.markdown(
    "Which model, batch size, learning rate and hardware should I use, and what does it cost? "
    "Isoflop runs short real training here, shows it live, and shows how each number was measured."
)


def start(preset: str) -> None:
    """Submit a preset and open its run."""
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
        "**Batch, mini-batch or stochastic?** Train the same network three ways: with all samples per step, with 64, "
        "and with one."
    )
    st.page_link("../pages/compare.py", label="Compare", icon=":material/compare_arrows:")

with st.container(border=True, horizontal=True, vertical_alignment="center", key="experiment-inference"):
    st.markdown("**How fast is inference?** Find the batch size, threads and runtime that meet your latency limit.")
    st.page_link("../pages/inference.py", label="Inference", icon=":material/bolt:")

newest = state.store().rows(limit=6)
alive = any(row.status not in TERMINAL for row in newest)


@st.fragment(run_every=2 if alive else None)
def recent_runs() -> None:
    """The list, which refreshes by itself while one of its runs has not ended."""
    rows = state.store().rows(limit=6)
    for row in rows:
        run_parts.run_line(row, time.time())
    if alive and all(row.status in TERMINAL for row in rows):
        st.rerun()


left, right = st.columns([2, 1])
with left:
    st.subheader("Recent runs", anchor=False)
    if newest:
        recent_runs()
        st.page_link("../pages/library.py", label="All runs", icon=":material/arrow_forward:")
    else:
        st.caption("There are no runs yet. Start one of the experiments above, or set up your own under Train.")
with right:
    run_parts.machine_card(state.machine())

component.preload()
