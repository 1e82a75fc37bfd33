"""The live view of the page Hardware: the machine's card, and a component that polls `/api/hardware`."""

from __future__ import annotations

from importlib import metadata

import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from dashboard.widgets.component import addresses, nothing, stub
from engine.common import units
from engine.common.errors import EngineError
from engine.common.sanitize import visible
from engine.hardware.history import INTERVALS_S
from engine.hardware.probe import Machine

_LIBRARIES = ("torch", "numpy", "streamlit", "plotly", "nvidia-ml-py")


def monitor_view() -> None:
    """Show this machine's hardware and its present load."""
    device_card(state.machine())
    interval_s = _live()
    if interval_s is not None:
        try:
            state.client().set_monitor_interval(interval_s)
        except EngineError as error:
            run_parts.error_box(error)


def _live() -> float | None:
    """Show the live charts. Returns the interval in s that the user has just chosen, or None."""
    mount = st.components.v2.component("isoflop_monitor", js=stub("monitor.js"), isolate_styles=False)
    result = mount(
        key="monitor",
        data={"intervals_s": list(INTERVALS_S), "may_set_interval": state.client().may("monitor")} | addresses(),
        on_interval_change=nothing,
    )
    chosen = result.get("interval")
    return float(chosen) if isinstance(chosen, int | float) and not isinstance(chosen, bool) else None


def device_card(machine: Machine) -> None:
    """Show model, cores, memory, driver and versions, but nothing that identifies the machine."""
    with st.container(border=True, key="machine", gap="xxsmall"):
        cores = f"{machine.cpu.usable_cores} usable of {machine.cpu.logical_cores or '?'} cores"
        st.markdown(f"**{run_parts.literal(machine.cpu.name)}**")
        st.caption(
            run_parts.literal(
                " · ".join([cores, f"{units.nbytes(machine.memory_bytes)} memory", machine.cpu.isa_in_words])
            )
        )
        for gpus in machine.alike:
            gpu, times = gpus[0], f"{len(gpus)} × " if len(gpus) > 1 else ""
            known = (
                f"cuda:{gpu.index}" + (f" to cuda:{gpus[-1].index}" if len(gpus) > 1 else ""),
                units.nbytes(gpu.memory_bytes) if gpu.memory_bytes else "",
                f"driver {gpu.driver}" if gpu.driver else "",
                f"compute capability {gpu.compute_capability}" if gpu.compute_capability else "",
                f"power limit {units.power(gpu.power_limit_w)}" if gpu.power_limit_w else "",
            )
            st.markdown(f"**{run_parts.literal(times + gpu.name)}**")
            st.caption(run_parts.literal(" · ".join(filter(None, known)) + (" each" if times else "")))
        st.caption(run_parts.literal(" · ".join([machine.os, f"Python {machine.python}", *_versions()])))


@st.cache_data
def _versions() -> list[str]:
    """Versions from the packages' metadata, because importing torch would take seconds."""
    found = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {visible(metadata.version(name))}")
        except metadata.PackageNotFoundError:
            continue
    return found
