"""The live view of one run: header and charts in one component that polls `api.py` by itself.

The page is not rerun for new points, so a chart is never mounted twice and a reader's zoom stays. Streamlit sends the
inline script with each mount, so it is a stub; the component is assets/live.js.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard import api

# An inline script has no address of its own to import from: the page's address leads to ours.
_STUB = """
export default async function (component) {
  const { version } = component.data;
  const url = new URL(`assets/FILE?v=${version}`, document.baseURI);
  const { FUNCTION } = await import(url.href);
  return FUNCTION(component);
}
"""


def stub(file: str, function: str = "mount") -> str:
    """The inline script that calls a function of one of our files."""
    return _STUB.replace("FILE", file).replace("FUNCTION", function)


def live_run(run_id: str, *, key: str, alive: bool, on_end: Callable[[], None] | None = None) -> None:
    """Charts of a run, alive while the run is.

    `alive` is what the page knew when it was drawn. When such a run ends, or has ended meanwhile, the page reruns once,
    after `on_end`; a run that was over before is drawn and left alone.
    """
    mount = st.components.v2.component("isoflop_live_run", js=stub("live.js"), isolate_styles=False)
    mount(
        key=key,
        data={"run_id": run_id, "alive": alive} | addresses(),
        on_ended_change=on_end or nothing,
    )


def preload() -> None:
    """Let the browser fetch what the charts need while the reader still decides what to run."""
    mount = st.components.v2.component("isoflop_preload", js=stub("live.js", "preload"), isolate_styles=False)
    mount(key="preload", data=addresses(), height=1)


def addresses() -> dict[str, str]:
    return {"version": api.assets_version(), "plotly_version": api.PLOTLY_VERSION}


def nothing() -> None:
    """A trigger without a callback is not declared; the page reruns either way."""
