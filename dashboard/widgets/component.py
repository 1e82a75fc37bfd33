"""The scripts of Streamlit components: each is a stub that imports one of our files."""

from __future__ import annotations

import streamlit as st

from dashboard.server import assets

# An inline script has no address to import from, so the stub builds one from the page's address.
_STUB = """
export default async function (component) {
  const { version } = component.data;
  const url = new URL(`assets/FILE?v=${version}`, document.baseURI);
  const { FUNCTION } = await import(url.href);
  return FUNCTION(component);
}
"""


def stub(file: str, function: str = "mount") -> str:
    """The inline script that calls `function` of one of our files."""
    return _STUB.replace("FILE", file).replace("FUNCTION", function)


def preload() -> None:
    """Let the browser load Plotly and the styles while the user still fills in the form."""
    mount = st.components.v2.component("isoflop_preload", js=stub("live.js", "preload"), isolate_styles=False)
    mount(key="preload", data=addresses(), height=1)


def addresses() -> dict[str, str]:
    """The versions of our files and of Plotly, which are part of their addresses."""
    return {"version": assets.assets_version(), "plotly_version": assets.PLOTLY_VERSION}


def nothing() -> None:
    """A callback without effect: Streamlit declares a trigger only if it has a callback."""
