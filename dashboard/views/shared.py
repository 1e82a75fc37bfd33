"""What several views need: kept form values, the button that submits a study, and the newest run of a study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.widgets import run_parts
from engine.common.errors import EngineError
from engine.config.run import RunConfig
from engine.store.run import Run

ENDED_EARLY = {"failed", "cancelled", "interrupted"}
VIEWER_NOTE = "Viewers can look at runs but cannot start them. Ask an admin for the role “runner”."
_SEARCHED_RUNS = 200  # newest runs among which a study measured before is looked for


def keep_choices(
    store_key: str,
    keys: Iterable[str],
    *,
    prefixes: tuple[str, ...] = (),
    linked: Iterable[str] = (),
    always_set: bool = False,
) -> None:
    """Restore form values that Streamlit forgets while another view or page is shown.

    Args:
        store_key: Session-state key of the copies.
        keys: Widget keys to keep.
        prefixes: Widget keys that start with one of these are kept as well.
        linked: Keys whose value comes from the address and must not be restored.
        always_set: Set the value in every script run, also where Streamlit still has it. A browser forgets the value
            of a widget that one script run did not draw. Not for widgets that have a default value of their own.
    """
    kept: dict[str, Any] = st.session_state.setdefault(store_key, {})
    found = {str(key) for key in [*st.session_state, *kept] if str(key).startswith(prefixes)} if prefixes else set()
    for key in [*keys, *found]:
        if key in st.session_state:
            kept[key] = st.session_state[key]
            if always_set:
                st.session_state[key] = kept[key]
        elif key in kept and key not in linked:
            st.session_state[key] = kept[key]


def forget_choices(store_key: str, keys: Iterable[str]) -> None:
    """Drop form values, so that the form starts from its defaults again."""
    for key in keys:
        st.session_state.pop(key, None)
        st.session_state.get(store_key, {}).pop(key, None)


def submit_button(label: str, config: RunConfig, *, name: str, key: str, icon: str, primary: bool = True) -> str | None:
    """Draw the button that submits a study; return the id of its run after a click. Viewers see why it is disabled."""
    allowed = state.client().may("submit")
    clicked = st.button(label, icon=icon, key=key, type="primary" if primary else "secondary", disabled=not allowed)
    if not allowed:
        st.caption(VIEWER_NOTE)
    if not clicked:
        return None
    try:
        return state.submit(config, name=name)
    except EngineError as error:
        run_parts.error_box(error)
        return None


def newest_like(config: RunConfig) -> str | None:
    """The newest run with exactly this configuration that finished or has not ended yet."""
    rows = state.store().rows(limit=_SEARCHED_RUNS)
    return next((row.run_id for row in rows if row.config == config and row.status not in ENDED_EARLY), None)


def can_stop(runs: Sequence[Run]) -> bool:
    """Whether the user may cancel all of these runs, and one of them has not ended."""
    return not all(run.is_over for run in runs) and all(state.client().may("cancel", run.run_id) for run in runs)


def stop(runs: Sequence[Run]) -> None:
    """Cancel those runs that have not ended."""
    for run in runs:
        if not run.is_over:
            state.client().cancel(run.run_id)


def can_extend(runs: Sequence[Run]) -> bool:
    """Whether the user may add seeds to these runs. This changes their verdict, so it needs the right to cancel them."""
    client = state.client()
    return client.may("submit") and all(client.may("cancel", run.run_id) for run in runs)
