"""Runs of the library beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dashboard import state
from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import visible
from engine.config.summary import describe
from engine.store.listing import RunRow
from engine.studies import races
from engine.studies.races import Race

_OFFERED_RUNS = 100
_MOST_RUNS = 24


def choose_runs() -> list[str]:
    """Draw the choice of runs, at first those of the link; returns their ids."""
    rows = [row for row in state.store().rows(limit=_OFFERED_RUNS) if row.config.task_facts.trains_one_model]
    names = {row.run_id: _name_of(row) for row in rows}
    linked = st.query_params.get("runs", "").split(",")
    for run_id in dict.fromkeys([*linked, *st.session_state.get("library.runs", [])]):
        if run_id not in names and (row := _row(run_id)):  # a link or the library can name an older run
            names[run_id] = _name_of(row)
    if "library.runs" not in st.session_state:
        st.session_state["library.runs"] = [run_id for run_id in linked if run_id in names]
    chosen = st.multiselect(
        "Runs", list(names), key="library.runs", format_func=names.__getitem__, max_selections=_MOST_RUNS,
        placeholder="Choose two or more runs", help="Runs that differ only in their seed count as one configuration.",
    )  # fmt: skip
    return list(chosen)


def _name_of(row: RunRow) -> str:
    imported = " · imported, unverified" if row.summary.imported else ""
    return f"{visible(row.name, 40) or describe(row.config)} · seed {row.config.seed} · {row.run_id[:6]}{imported}"


def _row(run_id: str) -> RunRow | None:
    try:
        return state.store().row(run_id) if run_id else None
    except StoreError:
        return None


def race_of(run_ids: Sequence[str]) -> Race | None:
    """The chosen runs as a race; None if there is none of them left.

    Raises:
        ConfigError: The runs cannot be compared; the message names the fields in which they differ.
    """
    race = races.of_runs([run for run in map(state.open_run, run_ids) if run])
    if race:
        races.check_comparable([(lane.label, lane.config) for lane in race.lanes])
        if len(race.lanes) > races.MOST_LANES:
            raise ConfigError(
                f"{len(race.lanes)} different configurations are too many.", fix=f"Choose at most {races.MOST_LANES}."
            )
    return race
