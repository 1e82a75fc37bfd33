"""The view “Calibrate” of the page Hardware: measure the peaks of a device, and show the newest calibration."""

from __future__ import annotations

import platform
import time
from importlib import metadata

import streamlit as st

from dashboard import state
from dashboard.views.shared import submit_button
from dashboard.widgets import run_parts
from engine.common import units
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.tasks import TASKS
from engine.events.lifecycle import Progress
from engine.events.machine import Calibration, Measurement
from engine.hardware import probe
from engine.measurement import calibration
from engine.measurement.calibration import LatestCalibration
from engine.store import query
from engine.store.run import Run


def calibrate_view() -> None:
    """The button with its estimated time, then the progress of the run or the newest calibration."""
    linked = _linked()
    device = linked.config.device if linked else choose_device("calibrate")
    config = config_of(device)
    with st.container(border=True, key="calibrate"):
        st.markdown("**Calibrate this machine**")
        st.caption(TASKS["calibrate"].about)
        run = linked if linked and not linked.is_over else _running(config)
        _submit(config, is_running=run is not None)
    if run is not None:
        _progress(run.run_id)
        return
    if ended := linked or state.open_run(st.session_state.get("calibrate.run")):
        ended.refresh()
        run_parts.why_box(ended)
    found = newest = calibration.latest(state.store(), device, device_name(device))
    if linked and (own := linked.latest(Calibration)):
        found = LatestCalibration(linked.run_id, own)
        _note_if_not_newest(found, newest)
    if found is None:
        st.info(
            "This device is not calibrated in this store yet. MFU and the roofline need a calibration.",
            icon=":material/info:",
        )
        return
    _result(found)


def _linked() -> Run | None:
    """The calibration run that the address names."""
    run = state.open_run(st.query_params.get("run"))
    if run is None or run.config.task != "calibrate":
        return None
    run.refresh()
    return run


def _note_if_not_newest(shown: LatestCalibration, newest: LatestCalibration | None) -> None:
    if newest is not None and newest.run_id == shown.run_id:
        return
    made, name = shown.calibration, device_name(shown.calibration.device)
    if made.device_name != name:
        st.info(
            run_parts.literal(f"This calibration is of another device: {made.device_name}."), icon=":material/info:"
        )
    elif newest is not None:
        st.info("This is an older calibration. MFU and the roofline use the newest one.", icon=":material/info:")
        st.button("Show the newest", icon=":material/arrow_forward:", on_click=_remove_link)


def _remove_link() -> None:
    st.query_params.pop("run", None)


def choose_device(key: str) -> str:
    """The device of the view; drawn as a choice only where there is more than one."""
    choices = probe.device_choices(state.machine())
    if len(choices) == 1:
        return choices[0]
    chosen = st.segmented_control("Device", choices, default=choices[-1], key=f"{key}.device", required=True)
    return str(chosen or choices[-1])


def device_name(device: str) -> str:
    """The product name of a device, as stored in a run's environment."""
    machine = state.machine()
    return next((gpu.name for gpu in machine.gpus if f"cuda:{gpu.index}" == device), machine.cpu.name)


def config_of(device: str) -> RunConfig:
    """The calibration of a device; the CPU is calibrated with all usable cores."""
    threads = state.machine().cpu.usable_cores if device == "cpu" else 1
    return with_overrides(preset_config("calibrate"), [f"device={device}", f"threads={threads}"])


def _running(config: RunConfig) -> Run | None:
    """The calibration that is queued or running now, whichever page started it."""
    runs = [state.open_run(st.session_state.get("calibrate.run"))]
    lines = state.store().listing(where=query.parse("task = calibrate"), limit=5).lines
    runs += [state.open_run(line.run_id) for line in lines]
    for run in runs:
        if run is not None:
            run.refresh()
            if not run.is_over and run.config == config:
                return run
    return None


def _submit(config: RunConfig, *, is_running: bool) -> None:
    seconds = calibration.predicted_seconds(config.threads)
    cores = f"all {config.threads} usable cores" if config.device == "cpu" and config.threads > 1 else config.device
    st.caption(
        run_parts.literal(
            f"Takes about {units.duration(seconds)} (estimated), longer on a busy machine. Uses {cores}, so it starts when other runs have finished."
        )
    )
    if is_running:
        return
    run_id = submit_button("Calibrate", config, name="Calibration", key="calibrate.start", icon=":material/speed:")
    if run_id:
        st.session_state["calibrate.run"] = run_id
        st.rerun()


@st.fragment(run_every=0.7)
def _progress(run_id: str) -> None:
    """Progress; the whole page is drawn again when the run ends."""
    run = run_parts.refreshed(run_id)
    waiting = "Waiting for other runs to finish" if run.status == "queued" else "Starting"
    progress = run.latest(Progress)
    run_parts.progress_of(run, progress.text if progress and run.started else waiting)


def versions_now() -> dict[str, str | None]:
    """Versions a calibration depends on, as far as they can be read without importing torch."""
    return {"torch": metadata.version("torch"), "python": platform.python_version()}


def _result(found: LatestCalibration) -> None:
    made = found.calibration
    versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
    st.caption(
        run_parts.literal(
            f"Measured {units.age(time.time() - made.at)} on {made.device_name}, {versions}, in {units.duration(made.seconds)} and "
            f"{made.rounds} rounds. Each figure is the 5th percentile of many timings of about 1 ms."
        )
    )
    now = versions_now() if made.device == "cpu" else {"python": platform.python_version()}
    for doubt in calibration.doubts(made, now=time.time(), versions=now):
        st.warning(run_parts.literal(doubt), icon=":material/warning:")
    counts = made.threads if made.device == "cpu" else (1,)
    with st.container(key="calibration-cards"):
        _peaks_card(made, counts)
        left, right = st.columns(2, gap="medium")
        with left:
            _overheads_card(made)
        with right:
            _missing_card(made)
    with st.expander("All measurements"):
        st.dataframe(_table(made), hide_index=True, width="stretch", key="calibration.table")


def _peaks_card(made: Calibration, counts: tuple[int, ...]) -> None:
    """Compute peaks and memory bandwidth, one row each and one column per thread count."""
    titles = [f"{n} thread{'' if n == 1 else 's'}" if made.device == "cpu" else made.device for n in counts]
    rows: dict[str, dict[str, str]] = {}
    for n, title in zip(counts, titles, strict=True):
        figures = {f"{dtype} matrix multiplication": best for dtype, best in calibration.peaks(made, n).items()}
        if memory := calibration.bandwidth(made, n):
            figures |= {"Cache bandwidth": memory.cache, "Memory bandwidth": memory.memory}
        for name, figure in figures.items():
            rows.setdefault(name, dict.fromkeys(titles, calibration.NOT_KNOWN))[title] = _figure_of(figure)
    with st.container(border=True, key="calibration-rates"):
        st.markdown("**Measured peaks**")
        st.table([{"": name} | row for name, row in rows.items()], hide_index=True)
        small, large = calibration.best_threads(made)
        if len(counts) > 1:
            st.markdown(
                f"Recommended threads: {small or calibration.NOT_KNOWN} for small models, {large or calibration.NOT_KNOWN} "
                "for large matrix multiplications."
                if small or large
                else f"Recommended threads: {calibration.NOT_KNOWN}."
            )
            st.caption("Derived: the lowest thread count within 5 % of the fastest one measured.")
        st.caption("Measured. In brackets: spread between rounds. Above ± 5 % the machine was busy.")
        if calibration.NOT_QUIET in calibration.missing_of(made).values():
            st.caption("Not known: other programs used the cores in every round, so the threads waited for a core.")


def _figure_of(m: Measurement) -> str:
    spread = "" if m.spread is None else f" (± {_half_in_words(m.spread)})" if m.spread < 1 else " (unstable)"
    return f"{calibration.value_in_words(m)}{spread}"


def _half_in_words(spread: float) -> str:
    return units.percent(spread / 2) if spread >= 0.01 else "under 1 %"


def _overheads_card(made: Calibration) -> None:
    with st.container(border=True, key="calibration-costs"):
        st.markdown("**Overheads**")
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
        name: []
        for name in ("Measurement", "Precision", "Size", "Threads", "5th percentile", "Best", "Median", "Timings")
    }
    for m in calibration.known(made):
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
