"""A look at the user's own data before training: classes, first rows or images, and how they are read."""

from __future__ import annotations

import base64

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.widgets.run_parts import literal
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.data import loading
from engine.data.datasets import Preview

_ROW = 35  # height of a row of a table, pixels
_MOST_ROWS = 8  # of the classes that are in sight; the others are reached by scrolling
_IMAGE_WIDTH = 72


def draw_preview(config: RunConfig, *, notes: tuple[str, ...], is_open: bool) -> None:
    """Draw the preview of a configuration's data, if it is the user's own; `notes` say how it is read."""
    if not config.source.path or not state.may_read(config.source.path):
        return
    try:
        found = loading.preview(config.data, config.source)
    except ConfigError:  # the plan shows it
        return
    with st.expander("Your data", expanded=is_open, icon=":material/table_view:"), st.container(key="preview"):
        st.markdown("\n".join(f"- {literal(sentence)}" for sentence in (*notes, found.standardised)))
        if found.columns:
            _draw_rows(found)
        if found.text:
            st.code("\n".join(map(visible, found.text.splitlines())), language=None, wrap_lines=True)
        if found.images:
            _draw_images(found)
        if found.classes:
            _draw_classes(found, loading.facts(config.data, config.source).num_classes)


def _draw_rows(found: Preview) -> None:
    """The first rows as written, below how each column is read."""
    rows = pd.DataFrame([found.uses, *found.rows], columns=[visible(name, 60) for name in found.columns])
    rows.index = pd.Index(["read as", *(str(i + 1) for i in range(len(found.rows)))])
    st.caption("The first rows of the file")
    index = {"_index": st.column_config.TextColumn(width=75)}
    st.dataframe(rows.map(lambda cell: visible(cell, 100)), column_config=index, key="preview-rows")


def _draw_images(found: Preview) -> None:
    st.caption("The first image of each class, as the model sees it before it is standardised")
    with st.container(horizontal=True, key="preview-images"):
        for name, png in found.images:
            st.image(base64.b64decode(png), caption=literal(name, 30), width=_IMAGE_WIDTH)


def _draw_classes(found: Preview, num_classes: int) -> None:
    """The samples of each class in both splits, of the first of `num_classes` classes."""
    table = pd.DataFrame(found.classes, columns=["Class", "Training samples", "Test samples"])
    table["Class"] = table["Class"].map(lambda name: visible(name, 60))
    st.caption(f"Samples of each class{'' if len(found.classes) == num_classes else f' (the first {len(table):,})'}")
    height = _ROW * (min(len(table), _MOST_ROWS) + 1) + 3
    st.dataframe(table, hide_index=True, height=height, width="stretch", key="preview-classes")
