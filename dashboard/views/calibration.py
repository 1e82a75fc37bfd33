"""Calibrate this machine, and the roofline of its runs: two views of the page Hardware.

`calibrate_view()` starts a calibrate run and shows what the newest one came to. `roofline_view()` puts runs of this store
under it, and says what bounds each.
"""

from __future__ import annotations

import platform
import time
from importlib import metadata

import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.charts import training
from engine.charts.roofline import roofline_chart
from engine.common import units
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.config import task_texts
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.events.base import TERMINAL
from engine.events.machine import Calibration, Measurement
from engine.hardware import probe
from engine.hardware.datasheets import vendor_peak
from engine.measurement import calibration, cost, roofline
from engine.measurement.calibration import LatestCalibration
from engine.measurement.roofline import Roofline
from engine.store.run import Run

_NEWEST = 6  # runs drawn at first, and at most: as many as there are colours
_OFFERED = 40  # runs to choose from
_DASH = units.UNKNOWN

# --- calibrate ----------------------------------------------------------------------------------------------------


def calibrate_view() -> None:
    """The button with its price, the run while it measures, and the cards of the newest calibration."""
    linked = _linked()
    device = linked.config.device if linked else _device("calibrate")
    config = _config(device)
    with st.container(border=True, key="calibrate"):
        st.markdown("**Calibrate this machine**")
        st.caption(task_texts.ABOUT["calibrate"])
        run = linked if linked and not linked.is_over else _at_work(config)
        _offer(config, busy=run is not None)
    if run is not None:
        _follow(run.run_id)
        return
    if ended := linked or state.open_run(st.session_state.get("calibrate.run")):
        ended.refresh()
        run_parts.why_box(ended)
    found = newest = calibration.latest(state.store(), device, device_name(device))
    if linked and linked.calibration:
        found = LatestCalibration(linked.run_id, linked.calibration)
        _say_if_not_the_newest(found, newest)
    if found is None:
        st.info(
            "This device was not calibrated yet in this store: no MFU and no roofline until then.",
            icon=":material/info:",
        )
        return
    _cards(found)


def _linked() -> Run | None:
    """The calibration of the address."""
    run = state.open_run(st.query_params.get("run"))
    if run is None or run.config.task != "calibrate":
        return None
    run.refresh()
    return run


def _say_if_not_the_newest(shown: LatestCalibration, newest: LatestCalibration | None) -> None:
    if newest is not None and newest.run_id == shown.run_id:
        return
    made, name = shown.calibration, device_name(shown.calibration.device)
    if made.device_name != name:
        st.info(run_parts.literal(f"A calibration of another device: {made.device_name}."), icon=":material/info:")
    elif newest is not None:
        st.info("An older calibration: MFU and the roofline use the newest.", icon=":material/info:")
        st.button("Show the newest", icon=":material/arrow_forward:", on_click=_forget_the_link)


def _forget_the_link() -> None:
    st.query_params.pop("run", None)


def _device(key: str) -> str:
    """The device the view is about; asked only where there is more than one."""
    choices = probe.device_choices(state.machine())
    if len(choices) == 1:
        return choices[0]
    chosen = st.segmented_control("Device", choices, default=choices[-1], key=f"{key}.device", required=True)
    return str(chosen or choices[-1])


def device_name(device: str) -> str:
    """As a run's environment says it."""
    machine = state.machine()
    return next((gpu.name for gpu in machine.gpus if f"cuda:{gpu.index}" == device), machine.cpu.name)


def _config(device: str) -> RunConfig:
    threads = state.machine().cpu.usable_cores if device == "cpu" else 1
    return with_overrides(preset_config("calibrate"), [f"device={device}", f"threads={threads}"])


def _at_work(config: RunConfig) -> Run | None:
    """The calibration that is waiting or measuring now, of this page or another."""
    runs = [state.open_run(st.session_state.get("calibrate.run"))]
    lines = state.store().listing(search="calibration of this machine", limit=5).lines
    runs += [state.open_run(line.run_id) for line in lines]
    for run in runs:
        if run is not None:
            run.refresh()
            if not run.is_over and run.config == config:
                return run
    return None


def _offer(config: RunConfig, *, busy: bool) -> None:
    seconds = calibration.predicted_seconds(config.threads)
    cores = f"all {config.threads} usable cores" if config.device == "cpu" and config.threads > 1 else config.device
    st.caption(
        run_parts.literal(
            f"Takes about {units.duration(seconds)} (estimated). It takes {cores} for itself, so it waits until other runs are over."
        )
    )
    if busy:
        return
    may = state.client().may("submit")
    clicked = st.button("Calibrate", icon=":material/speed:", key="calibrate.start", type="primary", disabled=not may)
    if not may:
        st.caption("As viewer you may look at calibrations; an admin can let you make one.")
    if not clicked:
        return
    try:
        st.session_state["calibrate.run"] = state.submit(config, name="Calibration")
    except EngineError as error:
        run_parts.error_box(error)
        return
    st.rerun()


@st.fragment(run_every=0.7)
def _follow(run_id: str) -> None:
    """How far it is; the page is drawn anew at its end."""
    run = run_parts.at_work(run_id)
    said = run.done_so_far
    text = (
        said.text if said and run.started else "Waiting for other runs to end" if run.status == "queued" else "Starting"
    )
    run_parts.progress_of(run, text)


def versions_now() -> dict[str, str | None]:
    """Of what a calibration's figures depend on and this process can tell without importing it."""
    return {"torch": metadata.version("torch"), "python": platform.python_version()}


def _cards(found: LatestCalibration) -> None:
    made = found.calibration
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
    st.caption(
        run_parts.literal(
            f"Measured {units.age(time.time() - made.at)} on {made.device_name}, {versions}, in {units.duration(made.seconds)}, "
            f"{made.rounds} rounds. Each figure is the 5th percentile of many timings of about 1 ms."
        )
    )
    now = versions_now() if made.device == "cpu" else {"python": platform.python_version()}
    for doubt in calibration.doubts(made, now=time.time(), versions=now):
        st.warning(run_parts.literal(doubt), icon=":material/warning:")
    counts = made.threads if made.device == "cpu" else (1,)
    with st.container(key="calibration-cards"):
        _rates_card(made, counts)
        left, right = st.columns(2, gap="medium")
        with left:
            _costs_card(made)
        with right:
            _missing_card(made)
    with st.expander("Every measurement"):
        st.dataframe(_table(made), hide_index=True, width="stretch", key="calibration.table")


def _rates_card(made: Calibration, counts: tuple[int, ...]) -> None:
    """Peaks and bandwidth, a row each, a column per thread count."""
    titles = [f"{n} thread{'' if n == 1 else 's'}" if made.device == "cpu" else made.device for n in counts]
    rows: dict[str, list[str]] = {}
    for n, title in zip(counts, titles, strict=True):
        for dtype, best in calibration.peaks(made, n).items():
            rows.setdefault(f"{dtype} matrix products", [_DASH] * len(counts))[titles.index(title)] = _figure_of(best)
        if memory := calibration.bandwidth(made, n):
            for what, m in (("Bandwidth in cache", memory.cache), ("Bandwidth in memory", memory.memory)):
                rows.setdefault(what, [_DASH] * len(counts))[titles.index(title)] = _figure_of(m)
    with st.container(border=True, key="calibration-rates"):
        st.markdown("**What it reaches**")
        st.table(
            [{"": what} | dict(zip(titles, values, strict=True)) for what, values in rows.items()], hide_index=True
        )
        small, large = calibration.best_threads(made)
        if len(counts) > 1 and small and large:
            what = f"{small} for small nets, {large} for large products"
            st.markdown(run_parts.literal(f"Threads that pay: {what}."))
            st.caption("Derived: the fewest within 5 % of the fastest of those measured.")
        st.caption("Measured. In brackets how far the rounds lay apart: above ± 5 % the machine was not quiet.")


def _figure_of(m: Measurement) -> str:
    spread = "" if m.spread is None else f" (± {_half(m.spread)})" if m.spread < 1 else " (rounds far apart)"
    return f"{calibration.value_in_words(m)}{spread}"


def _half(spread: float) -> str:
    return units.percent(spread / 2) if spread >= 0.01 else "under 1 %"


def _costs_card(made: Calibration) -> None:
    with st.container(border=True, key="calibration-costs"):
        st.markdown("**What things cost**")
        for m in made.measurements:
            if title := calibration.single_title(m):
                st.markdown(
                    f"{run_parts.literal(title.capitalize())}  \n**{run_parts.literal(calibration.value_in_words(m))}**"
                )
                st.caption(
                    run_parts.literal(
                        f"Measured: {calibration.spread_in_words(m)}." if m.unit != "w" else "Measured: energy counter."
                    )
                )


def _missing_card(made: Calibration) -> None:
    if not made.missing:
        return
    with st.container(border=True, key="calibration-missing"):
        st.markdown("**Not measured here**")
        for reason in calibration.missing_in_words(made):
            st.caption(run_parts.literal(reason))


def _table(made: Calibration) -> dict[str, list[str | int]]:
    columns: dict[str, list[str | int]] = {
        name: [] for name in ("What", "Precision", "Size", "Threads", "5th percentile", "Best", "Median", "Timings")
    }
    for m in made.measurements:
        size = (
            "x".join(map(str, m.shape))
            if m.unit == "flops_per_s"
            else units.nbytes(m.shape[0])
            if m.unit == "bytes_per_s"
            else ""
        )
        values: tuple[str | int, ...] = (
            m.name.replace("_", " "), m.dtype or "", size, m.threads, calibration.value_in_words(m),
            calibration.value_in_words(m, m.best), calibration.value_in_words(m, m.median), m.calls,
        )  # fmt: skip
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return columns


# --- roofline -----------------------------------------------------------------------------------------------------


def roofline_view() -> None:
    """The newest runs of a device under its ceilings, or those that are chosen, and what bounds each."""
    device = _device("roofline")
    found = calibration.latest(state.store(), device, device_name(device))
    if found is None:
        st.info("Calibrate this device first: the roof is what it was measured to reach.", icon=":material/info:")
        return
    made = found.calibration
    runs = _chosen(device)
    if not runs:
        st.info(
            "No training run of this device has taken a step yet: the chart shows the roof alone.",
            icon=":material/info:",
        )
    threads = _threads(made, runs)
    under = [run for run in runs if calibration.threads_of(run.config) == threads]
    apart = len(runs) - len(under)
    places = [(run, roofline.roofline(run, found)) for run in under]
    points = [
        (label, point)
        for label, (_, point) in zip(training.labels(under), places, strict=True)
        if isinstance(point, Roofline)
    ]
    sheet = vendor_peak(made.device_name)
    figure = roofline_chart(made, threads, points, sheet=sheet)
    with st.container(border=True, key="roofline-card"):
        st.plotly_chart(figure, key="roofline.chart", theme=None, config={"displayModeBar": False})
        st.caption(run_parts.literal(_legend(made, threads, sheet is not None)))
    if apart:
        st.caption(f"{apart} of the chosen runs had another thread count, and another roof.")
    for run, point in places:
        _said(run, point, found)


def _legend(made: Calibration, threads: int, has_sheet: bool) -> str:
    at = f" at {threads} thread{'' if threads == 1 else 's'}" if made.device == "cpu" else ""
    sheet = (
        " Dashed: the data sheet."
        if has_sheet
        else ""
        if made.device == "cpu"
        else f" No data sheet is held for {made.device_name}."
    )
    return (
        f"Lines: measured{at}, {units.age(time.time() - made.at)}.{sheet} Dots: runs, FLOP/s measured on the training clock, intensity "
        "derived from a lower bound of the bytes, so a dot may lie further left. Open marks: a kind of layer (square linear, "
        "diamond convolution, triangle recurrent, star attention) at what it could attain there, derived."
    )


def _chosen(device: str) -> list[Run]:
    rows = [
        row
        for row in state.store().rows(limit=_OFFERED)
        if row.config.task == "train"
        and row.config.device == device
        and row.summary.steps
        and row.status in TERMINAL
        and row.summary.imported is None  # another machine's, under another roof
    ]
    if not rows:
        return []
    names = {row.run_id: f"{visible(row.name or describe(row.config), 60)} · {_age(row.created)}" for row in rows}
    chosen = st.multiselect(
        "Runs", list(names), default=list(names)[:_NEWEST], key=f"roofline.runs.{device}", max_selections=_NEWEST,
        format_func=names.__getitem__,
    )  # fmt: skip
    return [run for run_id in chosen if (run := state.open_run(run_id)) is not None]


def _age(created: float) -> str:
    return units.age(time.time() - created)


def _threads(made: Calibration, runs: list[Run]) -> int:
    """The roof that is drawn: one thread count at a time."""
    if made.device != "cpu" or len(made.threads) == 1:
        return made.threads[0] if made.device == "cpu" else 1
    wanted = [calibration.threads_of(run.config) for run in runs]
    default = max(set(wanted), key=wanted.count) if wanted else made.threads[0]
    chosen = st.segmented_control(
        "Threads", list(made.threads), default=default if default in made.threads else made.threads[0],
        key="roofline.threads", required=True, help="Each thread count has a roof of its own.",
    )  # fmt: skip
    return int(chosen or default)


def _said(run: Run, point: Roofline | str, found: LatestCalibration) -> None:
    with st.container(border=True, key=f"roofline-run-{run.run_id}"):
        st.markdown(f"**{run_parts.literal(run.name or describe(run.config))}**")
        if isinstance(point, str):
            st.caption(run_parts.literal(f"Not on the chart: {point}"))
            return
        ours, sheet = _mfus(run, found)
        st.markdown(run_parts.literal(point.in_words))
        if run.summary().busy:
            st.caption(
                run_parts.literal(f"Machine was busy, so it reached less than it could: {run.summary().busy_why}.")
            )
        st.markdown(run_parts.literal(f"Try: {point.try_next}"))
        st.caption(
            run_parts.literal(
                f"{units.flops_per_s(point.attained_flops_per_s)} attained (measured), {units.percent(point.attained_fraction)} of the "
                f"{units.flops_per_s(point.attainable_flops_per_s)} attainable at {units.about(point.intensity)} FLOPs per byte "
                f"(derived; its {units.nbytes(point.working_set_bytes)} are served by the {point.served_by}). MFU {ours} of the measured "
                f"peak{sheet}."
            )
        )


def _mfus(run: Run, found: LatestCalibration) -> tuple[str, str]:
    attained = cost.flops_per_s(run)
    measured = cost.mfu(run.config, attained, found)
    sheet = cost.data_sheet_mfu(run.config, attained, found.calibration.device_name)
    apart = "" if sheet.value is None else f", {units.percent(sheet.value, digits=1)} of the data sheet's"
    return units.percent(measured.value, digits=1), apart
