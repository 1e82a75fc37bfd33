"""The page Hardware's live view: the machine's card, and one component that polls `monitor_api.py` by itself."""

from __future__ import annotations

from importlib import metadata

import streamlit as st

from dashboard import parts, state
from dashboard.live import addresses, nothing, stub
from engine import units
from engine.errors import EngineError
from engine.hardware import Machine
from engine.recorder import INTERVALS_S
from engine.text import visible

_LIBRARIES = ("torch", "numpy", "streamlit", "plotly", "nvidia-ml-py")


def monitor_view() -> None:
    """The machine's card and its live charts."""
    device_card(state.machine())
    asked = _live()
    if asked is not None:
        try:
            state.client().set_monitor_interval(asked)
        except EngineError as error:
            parts.error_box(error)


def _live() -> float | None:
    """The live charts. Returns the interval in seconds that a user has just chosen for the readings, or None."""
    mount = st.components.v2.component("isoflop_monitor", js=stub("monitor.js"), isolate_styles=False)
    result = mount(
        key="monitor",
        data={"intervals_s": list(INTERVALS_S), "may_set_interval": state.client().may("monitor")} | addresses(),
        on_interval_change=nothing,
    )
    asked = result.get("interval")
    return float(asked) if isinstance(asked, int | float) and not isinstance(asked, bool) else None


def device_card(machine: Machine) -> None:
    """A card with model, cores, memory, driver and versions; nothing that identifies the machine."""
    with st.container(border=True, key="machine", gap="xxsmall"):
        cores = f"{machine.cpu.usable_cores} usable of {machine.cpu.logical_cores or '?'} cores"
        st.markdown(f"**{parts.literal(machine.cpu.name)}**")
        st.caption(parts.literal(" · ".join([cores, f"{units.nbytes(machine.memory_bytes)} memory", *machine.cpu.isa])))
        for gpus in machine.alike:
            gpu, times = gpus[0], f"{len(gpus)} × " if len(gpus) > 1 else ""
            known = (
                f"cuda:{gpu.index}" + (f" to cuda:{gpus[-1].index}" if len(gpus) > 1 else ""),
                units.nbytes(gpu.memory_bytes) if gpu.memory_bytes else "",
                f"driver {gpu.driver}" if gpu.driver else "",
                f"compute capability {gpu.compute_capability}" if gpu.compute_capability else "",
                f"power limit {units.power(gpu.power_limit_w)}" if gpu.power_limit_w else "",
            )
            st.markdown(f"**{parts.literal(times + gpu.name)}**")
            st.caption(parts.literal(" · ".join(filter(None, known)) + (" each" if times else "")))
        st.caption(parts.literal(" · ".join([machine.os, f"Python {machine.python}", *_versions()])))


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
