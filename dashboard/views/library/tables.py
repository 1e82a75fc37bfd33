"""The tables of runs and of groups of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import state
from dashboard.views.library.columns import COLUMNS, DEFAULT_COLUMNS, HIDDEN_IF_EMPTY, number_column, title_of
from engine.common.errors import ConfigError
from engine.common.sanitize import visible
from engine.store import query
from engine.store.listing import RunLine

_GROUP_FIGURES = ("test_accuracy", "final_train_loss", "samples_per_s", "train_seconds")


def as_table(
    lines: Sequence[RunLine], columns: Sequence[str], order: str, descending: bool, base: str = ""
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One page of runs and the settings of its columns; `base` is the id of the baseline run, if there is one."""
    chosen = list(columns) or list(DEFAULT_COLUMNS)
    figures = [column for column in chosen if column in query.FIGURES]
    from_index = [column for column in chosen if column not in COLUMNS or COLUMNS[column].value is None]
    ids = [line.run_id for line in lines]
    found = state.store().values(from_index, run_ids=ids) if from_index else {}
    baseline = _figures_of(base, figures) if base else {}
    table: dict[str, Any] = {
        "State": [line.status for line in lines],
        "Experiment": [visible(line.words) for line in lines],
    }
    formats: dict[str, Any] = {"Experiment": st.column_config.TextColumn(width="large")}
    marks = [_marks(line, base) for line in lines]
    if any(marks):
        table = {"": marks} | table
        formats[""] = st.column_config.TextColumn(width=90)
    for column in chosen:
        values = _values(column, lines, found, from_index)
        if not columns and column in HIDDEN_IF_EMPTY and not any(map(bool, values)):
            continue
        title = title_of(column) + ({True: " ↓", False: " ↑"}[descending] if column == order else "")
        table[title] = _shown(column, values)
        formats[title] = COLUMNS[column].config if column in COLUMNS else None
        if baseline and column in figures:
            difference = f"Δ {title_of(column)}"
            table[difference] = [_difference_percent(value, baseline.get(column)) for value in values]
            formats[difference] = number_column(
                "Derived: difference to the baseline in percent.", "%+.1f %%", width=130
            )
    return pd.DataFrame(table), {title: config for title, config in formats.items() if config is not None}


def _marks(line: RunLine, base: str) -> str:
    marks = {"baseline": line.run_id == base, "pinned": line.pinned, "imported": line.is_imported}
    return ", ".join(word for word, holds in marks.items() if holds)


def _values(
    column: str, lines: Sequence[RunLine], found: Mapping[str, tuple[Any, ...]], from_index: Sequence[str]
) -> list[Any]:
    known = COLUMNS.get(column)
    if known and known.value:
        return [known.value(line) for line in lines]
    place = from_index.index(column)
    return [found[line.run_id][place] if line.run_id in found else None for line in lines]


def _shown(column: str, values: list[Any]) -> Any:
    if column == "created":
        return pd.to_datetime(values, unit="s", utc=True)
    if column in query.FIGURES or column == "seed":
        factor = COLUMNS[column].factor
        return [None if value is None else factor * value for value in values]
    if column in COLUMNS:
        return values
    return [_in_words(value) for value in values]


def _in_words(value: Any) -> str:
    """A field of a configuration as text, because a column can hold both `full` and 64."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else visible(str(value), 80)


def _figures_of(run_id: str, figures: Sequence[str]) -> dict[str, Any]:
    found = state.store().values(figures, run_ids=[run_id]).get(run_id, ())
    return dict(zip(figures, found, strict=False))


def _difference_percent(value: Any, base: Any) -> float | None:
    return None if value is None or not base else 100 * (value - base) / abs(base)


def grouped(found: Mapping[str, tuple[Any, ...]]) -> pd.DataFrame:
    """A row per value with the number of runs and seeds, and mean and spread of each figure.

    Args:
        found: Run id -> value to group by, seed, and the figures.
    """
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for value, *rest in found.values():
        groups.setdefault(_in_words(value) or "none", []).append(tuple(rest))
    rows = []
    for value, members in groups.items():
        row: dict[str, Any] = {"Value": value, "Runs": len(members), "Seeds": len({seed for seed, *_ in members})}
        for place, figure in enumerate(_GROUP_FIGURES, start=1):
            known = [float(m[place]) for m in members if m[place] is not None and math.isfinite(m[place])]
            factor = COLUMNS[figure].factor
            row[title_of(figure)] = factor * statistics.fmean(known) if known else None
            row[f"± {title_of(figure)}"] = factor * statistics.stdev(known) if len(known) > 1 else None
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["Test accuracy", "Runs"], ascending=False, na_position="last")


def show_groups(by: str, **filters: Any) -> None:
    """The table of groups; `filters` are those of the store's listing."""
    found = state.store().values([by, "seed", *_GROUP_FIGURES], **filters)
    if not found:
        st.info("No run matches this search.", icon=":material/search_off:")
        return
    table = grouped(found)
    st.caption(
        f"{len(table):,} group{'s' if len(table) != 1 else ''} of {len(found):,} runs. ± is the standard deviation over the runs "
        "of a group. Runs without a figure are left out of its mean."
    )
    formats = {"Value": st.column_config.TextColumn(by, width="large")}
    for figure in _GROUP_FIGURES:
        config = COLUMNS[figure].config
        spread = config if figure != "samples_per_s" else number_column("Derived: standard deviation.", "%.3g")
        formats |= {title_of(figure): config, f"± {title_of(figure)}": spread}
    st.dataframe(
        table, hide_index=True, placeholder="–", height=table_height(table), column_config=formats, key="groups"
    )  # fmt: skip


def table_height(table: pd.DataFrame) -> int:
    """The height in px of a table with all its rows, at most 15 of them."""
    return min(38 + 35 * len(table), 560)


def conditions(text: str) -> tuple[tuple[query.Condition, ...], ConfigError | None]:
    """The conditions of a filter text; for a text that is not understood no conditions and the error."""
    try:
        return query.parse(text), None
    except ConfigError as error:
        return (), error
