"""The view “Roofline” of the page Hardware: runs under the measured ceilings of a device, and what limits each run."""

from __future__ import annotations

import time

import streamlit as st

from dashboard import state
from dashboard.views.calibration import choose_device, device_name
from dashboard.widgets import run_parts
from engine.charts import training
from engine.charts.roofline import roofline_chart
from engine.common import units
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.events.base import TERMINAL
from engine.events.machine import Calibration
from engine.hardware.datasheets import vendor_peak
from engine.measurement import calibration, cost, roofline
from engine.measurement.calibration import LatestCalibration
from engine.measurement.roofline import Roofline
from engine.store.run import Run

_MOST_RUNS = 6  # as many as there are colours
_OFFERED_RUNS = 40


def roofline_view() -> None:
    """The chosen runs of a device under its ceilings, at first the newest, and what limits each."""
    device = choose_device("roofline")
    found = calibration.latest(state.store(), device, device_name(device))
    if found is None:
        st.info(
            "Calibrate this device first: its measured peaks are the ceilings of the roofline.", icon=":material/info:"
        )
        st.button("Go to Calibrate", icon=":material/speed:", on_click=_open_calibrate)
        return
    made = found.calibration
    runs = _choose_runs(device)
    if not runs:
        st.info(
            "There is no training run on this device yet, so the chart shows the ceilings only.",
            icon=":material/info:",
        )
    threads = _choose_threads(made, runs)
    same_threads = [run for run in runs if calibration.threads_of(run.config) == threads]
    left_out = len(runs) - len(same_threads)
    judged = [state.judged_by(run) for run in same_threads]
    places = [(run, roofline.roofline(run, own)) for run, own in zip(same_threads, judged, strict=True)]
    points = [
        (label, point)
        for label, (_, point) in zip(training.labels(same_threads), places, strict=True)
        if isinstance(point, Roofline)
    ]
    sheet = vendor_peak(made.device_name)
    figure = roofline_chart(made, threads, points, sheet=sheet)
    if not calibration.peaks(made, threads) or calibration.bandwidth(made, threads) is None:
        why = calibration.why_missing(made, "copy", None, threads)
        st.info(run_parts.literal(f"There are no ceilings at this thread count. {why}"), icon=":material/info:")
    with st.container(border=True, key="roofline-card"):
        st.plotly_chart(figure, key="roofline.chart", theme=None, config={"displayModeBar": False})
        st.caption(run_parts.literal(_legend(made, threads, sheet is not None)))
    if any(own and own.run_id != found.run_id for own in judged):
        st.caption(
            "The lines are those of the newest calibration. A run is compared with the calibration from its start, which its "
            "card names."
        )
    if left_out:
        verb = "uses" if left_out == 1 else "use"
        st.caption(f"{left_out} of the chosen runs {verb} another thread count, which has other ceilings.")
    for run, point in places:
        _run_card(run, point, found)


def _open_calibrate() -> None:
    st.session_state["hardware.view"] = "Calibrate"


def _legend(made: Calibration, threads: int, has_sheet: bool) -> str:
    at = f" at {threads} thread{'' if threads == 1 else 's'}" if made.device == "cpu" else ""
    sheet = (
        " Dashed: data sheet."
        if has_sheet
        else ""
        if made.device == "cpu"
        else f" No data sheet is known for {made.device_name}."
    )
    return (
        f"Lines: ceilings measured{at}, {units.age(time.time() - made.at)}.{sheet} Dots: runs; FLOP/s are measured over the "
        "training time, the intensity is derived from a lower bound of the bytes, so the true dot can be further left. Open "
        "marks: kinds of layers (square linear, diamond convolution, triangle recurrent, star attention) at the FLOP/s they can "
        "attain, derived."
    )


def _choose_runs(device: str) -> list[Run]:
    rows = [
        row
        for row in state.store().rows(limit=_OFFERED_RUNS)
        if row.config.task_facts.trains_one_model
        and row.config.device == device
        and row.summary.steps
        and row.status in TERMINAL
        and row.summary.imported is None  # an imported run is from another machine, which has other ceilings
    ]
    if not rows:
        return []
    names = {
        row.run_id: f"{visible(row.name or describe(row.config), 60)} · {units.age(time.time() - row.created)}"
        for row in rows
    }
    chosen = st.multiselect(
        "Runs", list(names), default=list(names)[:_MOST_RUNS], key=f"roofline.runs.{device}", max_selections=_MOST_RUNS,
        format_func=names.__getitem__,
    )  # fmt: skip
    return [run for run_id in chosen if (run := state.open_run(run_id)) is not None]


def _choose_threads(made: Calibration, runs: list[Run]) -> int:
    """The thread count whose ceilings are drawn."""
    if made.device != "cpu" or len(made.threads) == 1:
        return made.threads[0] if made.device == "cpu" else 1
    wanted = [calibration.threads_of(run.config) for run in runs]
    default = max(set(wanted), key=wanted.count) if wanted else made.threads[0]
    chosen = st.segmented_control(
        "Threads", list(made.threads), default=default if default in made.threads else made.threads[0],
        key="roofline.threads", required=True, help="Each thread count has its own ceilings.",
    )  # fmt: skip
    return int(chosen or default)


def _run_card(run: Run, point: Roofline | str, drawn: LatestCalibration) -> None:
    """Where a run is on the chart. It is compared with its own calibration, which can be older than the `drawn` one."""
    with st.container(border=True, key=f"roofline-run-{run.run_id}"):
        st.markdown(f"**{run_parts.literal(run.name or describe(run.config))}**")
        if isinstance(point, str):
            st.caption(run_parts.literal(f"Not on the chart: {point}"))
            return
        of_measured, of_sheet = _mfu_texts(run, drawn.calibration.device_name)
        st.markdown(run_parts.literal(point.in_words))
        if run.summary().busy:
            st.caption(
                run_parts.literal(
                    f"The machine was busy, so the run reached less than it could: {run.summary().busy_why}."
                )
            )
        st.markdown(run_parts.literal(f"Try: {point.try_next}"))
        st.caption(
            run_parts.literal(
                f"{units.flops_per_s(point.attained_flops_per_s)} attained (measured), {units.percent(point.attained_fraction)} of the "
                f"{units.flops_per_s(point.attainable_flops_per_s)} attainable at {units.about(point.intensity)} FLOPs per byte "
                f"(derived; its working set of {units.nbytes(point.working_set_bytes)} is read from the {point.served_by}). MFU: "
                f"{of_measured}{of_sheet}."
            )
        )


def _mfu_texts(run: Run, device_name: str) -> tuple[str, str]:
    attained = cost.flops_per_s(run)
    measured = cost.mfu(run.config, attained, state.judged_by(run))
    sheet = cost.data_sheet_mfu(run.config, attained, device_name)
    of_sheet = "" if sheet.value is None else f", {units.percent(sheet.value, digits=1)} of the data sheet's"
    return f"{units.percent(measured.value, digits=1)} of the measured peak ({measured.peak_from})", of_sheet
