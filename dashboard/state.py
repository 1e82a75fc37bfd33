"""What pages share: the store, the supervisor's client, and the experiment in the address bar.

A link is a preset and the assignments that lead from it to the experiment, the same words as on the command line:
`/train?preset=lenet&optimizer.lr=0.05&batch_size=128`. `run=ID` is the run that is looked at.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import streamlit as st

from dashboard import api
from engine import hardware
from engine.config import RunConfig, overrides_from, with_overrides
from engine.errors import StoreError
from engine.presets import DEFAULT_PRESET, PRESETS, preset_config
from engine.store import Run, Store
from engine.supervisor import Client
from engine.text import shell_words


@st.cache_resource
def store() -> Store:
    return Store()


def client() -> Client:
    return Client(store())


@st.cache_resource(ttl=60)
def machine() -> hardware.Machine:
    """What this computer offers; asked again after a minute, as free memory and GPUs change."""
    return hardware.probe()


def open_run(run_id: str | None) -> Run | None:
    """The run of an id from a link, or None when it is not (or no longer) there."""
    try:
        return api.shared_run(run_id) if run_id else None
    except StoreError:
        return None


def config_from_link(params: Mapping[str, str]) -> tuple[str, RunConfig]:
    """Preset name and configuration of a link's parameters; raises ConfigError like the command line does."""
    preset = params.get("preset", DEFAULT_PRESET)
    base = preset_config(preset)
    assignments = [f"{key}={value}" for key, value in params.items() if key not in {"preset", "run"}]
    return preset, with_overrides(base, assignments)


def link_params(preset: str, config: RunConfig, run_id: str | None = None) -> dict[str, str]:
    """The parameters `config_from_link` turns back into the same preset and configuration."""
    assignments = overrides_from(PRESETS[preset].config, config)
    params = {"preset": preset} | dict(a.split("=", 1) for a in assignments)
    return params | ({"run": run_id} if run_id else {})


def closest_preset(config: RunConfig) -> str:
    """The preset with the fewest changes to a configuration."""
    return min(PRESETS, key=lambda name: len(overrides_from(PRESETS[name].config, config)))


def command_line(config: RunConfig) -> str:
    """What to type in a terminal for the same experiment."""
    preset = closest_preset(config)
    sets = [word for a in overrides_from(PRESETS[preset].config, config) for word in ("--set", a)]
    return shell_words(["python", "-m", "engine", "run", "--preset", preset, *sets])


def wait_until_deleted(run_id: str, *, seconds: float = 3.0) -> None:
    """The supervisor deletes; a list drawn right after should not show the run any more."""
    until = time.monotonic() + seconds
    while (store().runs / run_id).exists() and time.monotonic() < until:
        time.sleep(0.05)
