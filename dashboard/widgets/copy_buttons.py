"""Buttons that copy a link to the page and the CLI command of the same action."""

from __future__ import annotations

import streamlit as st

from dashboard.widgets import component


def copy_buttons(command: str = "", *, link: str = "", key: str = "copy") -> None:
    """Draw the buttons Copy link and, if there is a `command`, Copy command.

    The link is the browser's address when the button is pressed, or `link`, another address of ours such as
    `train?run=ID`.
    """
    mount = st.components.v2.component("isoflop_copy", js=component.stub("copy.js"), isolate_styles=False)
    mount(key=key, data={"command": command, "link": link} | component.addresses(), width="content")
