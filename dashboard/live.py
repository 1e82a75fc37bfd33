"""The live view of one run: header and charts in one component that polls `api.py` by itself.

The page is not rerun for new points, so a chart is never mounted twice and the reader's zoom stays. Streamlit sends the
inline script with each mount, so it is a stub; the component is assets/live.js.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dashboard import api
from engine import chart_facts

# An inline script has no address to import from, so the stub builds one from the page's address.
_STUB = """
export default async function (component) {
  const { version } = component.data;
  const url = new URL(`assets/FILE?v=${version}`, document.baseURI);
  const { FUNCTION } = await import(url.href);
  return FUNCTION(component);
}
"""


_CHARTS = chart_facts.as_json([*chart_facts.RUN_CHARTS, *chart_facts.RANK_CHARTS])


def stub(file: str, function: str = "mount") -> str:
    """The inline script that calls a function of one of our files."""
    return _STUB.replace("FILE", file).replace("FUNCTION", function)


def live_run(run_id: str, *, key: str, alive: bool, on_end: Callable[[], None] | None = None) -> None:
    """Charts of a run, updated while it goes on.

    `alive`: whether the run was going on when the page was drawn. When such a run ends, or has ended meanwhile, `on_end`
    is called and the page reruns once; a run that was over before is only drawn.
    """
    mount = st.components.v2.component("isoflop_live_run", js=stub("live.js"), isolate_styles=False)
    mount(
        key=key,
        data={"run_id": run_id, "alive": alive, "charts": _CHARTS} | addresses(),
        on_ended_change=on_end or nothing,
    )


def preload() -> None:
    """Let the browser load what the charts need while the user still chooses what to run."""
    mount = st.components.v2.component("isoflop_preload", js=stub("live.js", "preload"), isolate_styles=False)
    mount(key="preload", data=addresses(), height=1)


def addresses() -> dict[str, str]:
    return {"version": api.assets_version(), "plotly_version": api.PLOTLY_VERSION}


def nothing() -> None:
    """A trigger without a callback is not declared; the page reruns either way."""
