"""The part of the form about data: the data set, a user's own file or folder, and a line of facts."""

from __future__ import annotations

import streamlit as st
from pydantic import ValidationError

from dashboard import state
from dashboard.widgets import uploads
from dashboard.widgets.form_fields import (
    KEY,
    assignments,
    draw,
    draw_rows,
    field_of,
    group,
    is_text,
    set_value,
    source_fields,
    value_of,
)
from engine.common import units
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.config.data import DATA, USER_DATA, DatasetName, Source
from engine.config.models import MODELS
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.data import downloads, loading
from engine.data.datasets import KNOWN, Dataset, Release


def draw_data() -> Dataset | None:
    """Draw the data set and its fields. Returns its facts, or None while they are unknown."""
    data: DatasetName = value_of("data")
    facts = _facts(data)
    draw("data", on_change=_data_changed, help=facts.source if facts and facts.source else field_of("data").description)
    if facts:
        st.caption(_facts_in_words(data, facts))
    paths = source_fields(data)
    if "source.path" in paths:
        with st.container() if DATA[data].is_yours else group("Your own text", ["source.path"], key="your"):
            _draw_file(data)
    others = [path for path in paths if path != "source.path"]
    if "source.label" in others and (columns := _columns()):
        others.remove("source.label")
        _draw_label(columns)
    draw_rows(others)
    return facts


def _columns() -> tuple[str, ...]:
    """The columns of the user's table; empty while they are unknown."""
    path = value_of("source.path").strip()
    if not path or not state.may_read(path):
        return ()
    try:
        return loading.columns(Source(path=path))
    except (ConfigError, ValidationError):  # the plan shows it
        return ()


def _draw_label(columns: tuple[str, ...]) -> None:
    """A choice of the table's columns. A name that is none of them, as in a link, stays a choice, and its error is shown."""
    chosen = value_of("source.label")
    others = [name for name in ("", chosen) if name not in columns]
    st.selectbox(
        "Label column",
        list(dict.fromkeys([*others, *columns])),
        format_func=lambda name: visible(name, 60) or f"Last column: {visible(columns[-1], 60)}",
        key=f"{KEY}source.label",
        help=field_of("source.label").description,
    )


def _draw_file(data: DatasetName) -> None:
    facts = DATA[data]
    if facts.suffixes and state.client().may("submit"):
        st.file_uploader(
            "Your file",
            type=list(facts.suffixes),
            key=f"upload.{data}",
            on_change=_file_uploaded,
            args=(data,),
            help="Stored on this machine. Its name is a hash of its content.",
        )
    example = (
        "/home/me/pictures" if facts.is_folder else "/home/me/data" if facts.is_yours else "Python's documentation"
    )
    label = "Folder, one subfolder per class" if facts.is_folder else "Or its path on this machine"
    draw("source.path", label, placeholder=example, on_change=set_value, args=("new_data", True))


def _file_uploaded(data: DatasetName) -> None:
    if file := st.session_state[f"upload.{data}"]:
        try:
            set_value("source.path", str(uploads.keep(data, file.getvalue())))
            set_value("new_data", True)
        except ConfigError as error:
            st.session_state["train.refused"] = error


def _data_changed() -> None:
    """Show the file of the new data set, and replace a model that cannot read it."""
    data, before, files = value_of("data"), value_of("data_was"), value_of("files")
    files[before] = value_of("source.path"), value_of("source.label")
    for path, value in zip(("source.path", "source.label"), files.get(data, ("", "")), strict=True):
        set_value(path, value)
    set_value("data_was", data)
    set_value("new_data", True)
    chosen = MODELS[value_of("family")]
    if is_text() and not chosen.reads_text:
        reader = [name for name, model in MODELS.items() if model.reads_text][-1]
        label = MODELS[reader].label
        st.toast(f"Text needs a sequence model, so the model changed from {chosen.label} to {label}.")
        set_value("family", reader)


def _facts(data: DatasetName) -> Dataset | None:
    try:
        source = with_overrides(RunConfig(), assignments(source_fields(data))).source
        if not source.path:
            return None if data in USER_DATA else loading.facts(data, source)
        if not state.may_read(source.path):
            return None
        with st.spinner("Reading your file …", show_time=True):
            return loading.facts(data, source)
    except ConfigError:  # shown beside the form
        return None


def _facts_in_words(data: DatasetName, facts: Dataset) -> str:
    """A line about a data set: size, shape, licence and download."""
    examples = f"{facts.train_examples:,} training samples, {facts.test_examples:,} test samples"
    if facts.kind == "text":
        what = f"{examples}: sequences of {facts.shape[0]} characters, {facts.num_classes} different characters"
    elif facts.kind == "vector":
        what = f"{examples}, {facts.shape[0]} values each, {facts.num_classes} classes"
    else:
        channels, height, width = facts.shape
        colours = {1: "", 3: ", colour"}.get(channels, f", {channels} channels")
        what = f"{examples}, {height}x{width} pixels{colours}, {facts.num_classes} classes"
    rest = [facts.licence and f"Licence: {facts.licence}", _download(data)]
    return ". ".join([what, *filter(None, rest)]) + "."


def _download(data: DatasetName) -> str:
    """What the first run downloads; "" if nothing is missing."""
    release, folder = KNOWN[data].origin if data in KNOWN else None, downloads.cache_folder()
    if not isinstance(release, Release) or (folder / f"{release.name}.npz").exists():
        return ""
    places = [(folder / archive.name, folder / release.name / archive.name) for archive in release.archives]
    here = all(any(path.exists() for path in paths) for paths in places)
    return "" if here else f"Downloaded on first use, {units.nbytes(release.size_bytes)}"
