"""The columns and the orders of the run table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from engine.common.sanitize import LONGEST_NAME, visible
from engine.store import query
from engine.store.listing import RunLine

_TESTED = "Measured on the test samples, at the last evaluation."
_COUNTED = "Counted; in a study, over all of its trials."
_TO_TARGET = "Derived: interpolated between two evaluations; empty if the target was not reached."


@dataclass(frozen=True, slots=True)
class Column:
    """A table column: its title and how to get its value."""

    title: str
    value: Callable[[RunLine], Any] | None  # None: read from the index, by the field's name
    config: Any = None  # of Streamlit
    factor: float = 1.0  # from the stored value to the shown one


def number_column(help: str, format: str, **more: Any) -> Any:
    """Streamlit's settings of a column of numbers."""
    return st.column_config.NumberColumn(format=format, help=help, **more)


COLUMNS: dict[str, Column] = {
    "name": Column("Name", lambda line: visible(line.name, LONGEST_NAME), st.column_config.TextColumn(width=100)),
    "test_accuracy": Column(
        "Test accuracy", lambda line: line.test_accuracy, number_column(_TESTED, "%.1f %%"), factor=100
    ),
    "final_train_loss": Column(
        "Training loss", lambda line: line.final_train_loss,
        number_column("Measured: mean over the batches of the last epoch, at most the last 100.", "%.4f"),
    ),
    "samples_per_s": Column(
        "Samples/s", lambda line: line.samples_per_s, number_column(
            "Derived: samples / training time; of inference with one combination, samples answered / time of its requests.",
            "compact",
        )
    ),
    "train_seconds": Column(
        "Training time", lambda line: line.train_seconds or None,
        number_column("Measured with a synchronised device, without data loading, warm-up, compiling and evaluation.", "%.1f s"),
    ),
    "busy": Column(
        "Machine", lambda line: "was busy" if line.busy else "",
        st.column_config.TextColumn(
            width=90, help="Busy: other programs used the machine, so samples/s and training time are worse than when idle."
        ),
    ),
    "steps": Column("Steps", lambda line: line.steps, number_column(_COUNTED, "localized")),
    "seed": Column("Seed", lambda line: line.seed),
    "created": Column("Started", lambda line: line.created, st.column_config.DatetimeColumn(format="distance")),
    "tags": Column("Tags", lambda line: [visible(tag) for tag in line.tags], st.column_config.ListColumn(width=110)),
    "notes": Column("Notes", lambda line: visible(line.notes, LONGEST_NAME)),
    "why": Column("Ended because", lambda line: visible(line.why, LONGEST_NAME)),
    "test_loss": Column("Test loss", None, number_column(_TESTED, "%.4f")),
    "samples": Column("Samples", None, number_column(_COUNTED, "compact")),
    "epochs": Column("Epochs", None, number_column("Counted.", "%.2f")),
    "flops": Column("FLOPs", None, number_column("Derived from closed formulas per layer.", "compact")),
    "peak_memory_bytes": Column(
        "Training memory", None,
        number_column("Measured: a step or an evaluation, whichever takes more, with the data. Empty for older runs.", "bytes"),
    ),
    "step_memory_bytes": Column(
        "Step memory", None, number_column("Measured: weights, optimizer state and the peak of one step.", "bytes")
    ),
    "evaluation_memory_bytes": Column(
        "Evaluation memory", None,
        number_column("Measured: weights, optimizer state, gradients and the peak of an evaluation.", "bytes"),
    ),
    "data_memory_bytes": Column("Data memory", None, number_column("Counted: both splits and the shuffled copy.", "bytes")),
    "process_memory_bytes": Column("Process memory", None, number_column("Measured, including PyTorch itself.", "bytes")),
    "energy_j": Column("Energy", None, number_column("Measured by a counter; empty without a counter.", "%.1f J")),
    "target_step": Column("Steps to target", None, number_column(_TO_TARGET, "localized")),
    "target_seconds": Column("Time to target", None, number_column(_TO_TARGET, "%.2f s")),
    "group": Column("Group", None),
}  # fmt: skip
DEFAULT_COLUMNS = (
    "name", "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "busy", "steps", "seed", "created", "tags",
    "why",
)  # fmt: skip
HIDDEN_IF_EMPTY = {"name", "busy", "tags", "notes", "why"}  # default columns that are left out where no run has a value
ALL_COLUMNS = (*COLUMNS, *(field for field in query.CONFIG_FIELDS if field not in COLUMNS))
KEYS = {column.title: key for key, column in COLUMNS.items()}

# The words of an order stand in links. Each pair begins with the direction that is used first.
_ORDER_WORDS = {
    "created": ("newest", "oldest"), "test_accuracy": ("best accuracy", "worst accuracy"),
    "final_train_loss": ("lowest loss", "highest loss"), "samples_per_s": ("fastest", "slowest"),
    "train_seconds": ("longest", "shortest"), "steps": ("most steps", "fewest steps"),
}  # fmt: skip
_DESCENDING_FIRST = {
    "created", "test_accuracy", "samples_per_s", "train_seconds", "epochs", "samples", "steps", "flops"
}  # fmt: skip


def _directions(column: str) -> dict[str, bool]:
    """The two orders of a column: word -> whether it is descending."""
    first_is_descending = column in _DESCENDING_FIRST
    title = query.FIGURES.get(column, "")
    pair = ("most", "least") if first_is_descending else ("least", "most")
    words = _ORDER_WORDS.get(column) or [f"{word} {title[:1].lower()}{title[1:]}" for word in pair]
    return {words[0]: first_is_descending, words[1]: not first_is_descending}


DIRECTIONS: dict[str, dict[str, bool]] = {
    column: _directions(column) for column in dict.fromkeys([*_ORDER_WORDS, *query.FIGURES])
}
ORDERS = {word: (column, down) for column, words in DIRECTIONS.items() for word, down in words.items()}


def title_of(column: str) -> str:
    """The title of a column; a field of the configuration is its own title."""
    return COLUMNS[column].title if column in COLUMNS else column
