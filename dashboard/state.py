"""State that pages share: the store, the supervisor's client, and the experiment in the address bar.

A link is a preset and the assignments that lead from it to the experiment, as on the command line:
`/train?preset=lenet&optimizer.lr=0.05&batch_size=128`. `run=ID` is the run that the page shows.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

import streamlit as st

from dashboard.api import readers
from dashboard.server.auth_middleware import ACTOR_HEADER
from engine.access import policy, settings
from engine.access.policy import LOCAL, Actor
from engine.access.settings import Role
from engine.common.errors import StoreError
from engine.common.sanitize import shell_words
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import DEFAULT_PRESET, PRESETS, preset_config
from engine.config.run import RunConfig
from engine.hardware import probe
from engine.measurement import calibration, cost
from engine.planning import limits, planner
from engine.planning.planner import Plan
from engine.reports.commands import has_own_command, reproduce
from engine.runtime.client import Client
from engine.store.run import Run
from engine.store.store import Store

_DOUBLE_CLICK_S = 1.0


@st.cache_resource
def store() -> Store:
    """The store of this dashboard, opened once."""
    return Store()


def actor() -> Actor:
    """The user of this page, as the auth middleware set it when the browser connected."""
    if header := st.context.headers.get(ACTOR_HEADER):
        return Actor.parse(unquote(header))
    return LOCAL  # without the middleware, as in a test; in a team `local` has no rights


def role() -> Role | None:
    """The user's role. It is read each time, so that a role that was taken away is gone at the next click."""
    return policy.role_of(actor(), settings.load(store().root))


def client() -> Client:
    """The supervisor's client, with the rights of this page's user."""
    return Client(store(), actor())


def may_read(path: str) -> bool:
    """Whether the user may read a file of this machine."""
    return policy.may_read(actor(), path, settings.load(store().root))


def check(config: RunConfig) -> Plan:
    """The plan of a run that may start. No data are read before the user's right to them is checked.

    Raises:
        EngineError: if the run may not start, with the reason.
    """
    rules = settings.load(store().root)
    policy.require_data(actor(), config, rules)
    plan = planner.check(config)
    limits.check_before(config, plan, rules.limits)
    return plan


def submit(config: RunConfig, *, name: str = "") -> str:
    """Start a run. Returns its id; a second click of a double click gets the id of the first run."""
    return client().submit(config, name=name, key=key_of(f"{config.model_dump_json()} {name}"))


def key_of(request: str) -> str:
    """A random key for a request; the same key if the request is repeated within a double click."""
    before, at, key = st.session_state.get("submitted", ("", -math.inf, ""))
    now = time.monotonic()
    if request != before or now - at > _DOUBLE_CLICK_S:
        key = secrets.token_hex(16)
    st.session_state["submitted"] = (request, now, key)
    return key


@st.cache_resource(ttl=60)
def machine() -> probe.Machine:
    """The hardware of this machine. It is read again after a minute, because free memory and GPUs change."""
    return probe.probe()


def calibration_of(device: str, name: str | None) -> calibration.LatestCalibration | None:
    """The newest calibration of a device. It is cached for ten seconds, because the search reads the whole list of runs."""
    return _calibration_of(str(store().root), device, name)


@st.cache_resource(ttl=10, max_entries=64)
def _calibration_of(root: str, device: str, name: str | None) -> calibration.LatestCalibration | None:
    return calibration.latest(Store(Path(root)), device, name)


def judged_by(run: Run) -> calibration.LatestCalibration | None:
    """The calibration that a run is compared with. It is cached for ten seconds, as `calibration_of`."""
    return _judged_by(str(store().root), run.run_id, run.status, run)


@st.cache_resource(ttl=10, max_entries=64)
def _judged_by(root: str, run_id: str, status: str, _run: Run) -> calibration.LatestCalibration | None:
    return cost.judged_by(Store(Path(root)), _run)


def open_run(run_id: str | None) -> Run | None:
    """The run with an id from a link, or None if it does not exist."""
    try:
        return readers.shared_run(run_id) if run_id else None
    except StoreError:
        return None


def config_from_link(params: Mapping[str, str]) -> tuple[str, RunConfig]:
    """Preset name and configuration of a link's parameters.

    Raises:
        ConfigError: as on the command line.
    """
    preset = params.get("preset", DEFAULT_PRESET)
    base = preset_config(preset)
    assignments = [f"{key}={value}" for key, value in params.items() if key not in {"preset", "run"}]
    return preset, with_overrides(base, assignments)


def link_params(preset: str, config: RunConfig, run_id: str | None = None) -> dict[str, str]:
    """The parameters that `config_from_link` turns back into the same preset and configuration."""
    assignments = overrides_from(PRESETS[preset].config, config)
    params = {"preset": preset} | dict(a.split("=", 1) for a in assignments)
    return params | ({"run": run_id} if run_id else {})


def closest_preset(config: RunConfig) -> str:
    """The preset with the fewest changes to a configuration."""
    return min(PRESETS, key=lambda name: len(overrides_from(PRESETS[name].config, config)))


def command_line(config: RunConfig) -> str:
    """The CLI command of the same experiment."""
    if has_own_command(config):
        return reproduce(config)
    preset = closest_preset(config)
    sets = [word for a in overrides_from(PRESETS[preset].config, config) for word in ("--set", a)]
    return shell_words(["python", "-m", "engine", "run", "--preset", preset, *sets])


def wait_until_deleted(run_id: str, *, seconds: float = 3.0) -> None:
    """Wait until the supervisor has deleted a run, at most `seconds` s, so that the next list does not show it."""
    until = time.monotonic() + seconds
    while (store().runs / run_id).exists() and time.monotonic() < until:
        time.sleep(0.05)
