"""Buttons that copy: a link to what the page shows, and the command that does the same in a terminal."""

from __future__ import annotations

import streamlit as st

from dashboard.widgets import component


def copy_buttons(command: str = "", *, link: str = "", key: str = "copy") -> None:
    """The browser's address is read when its button is pressed, so that it is that of the page as it is then; `link` is
    another one of ours, as in `train?run=ID`."""
    mount = st.components.v2.component("isoflop_copy", js=component.stub("copy.js"), isolate_styles=False)
    mount(key=key, data={"command": command, "link": link} | component.addresses(), width="content")
