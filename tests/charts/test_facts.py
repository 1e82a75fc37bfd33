"""The list of charts: each row draws columns of a run, is explained, and reaches the poll and the report."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dashboard.api import run as run_api
from engine.charts import facts, training
from engine.store.columns import COLUMNS
from engine.store.query import FIGURES
from engine.store.store import Store
from tests.fakes import make_run

ROWS = (*facts.RUN_CHARTS, *facts.RACE_CHARTS, *facts.RANK_CHARTS)


@pytest.mark.parametrize("chart", ROWS, ids=lambda chart: chart.key)
def test_a_chart_draws_columns_of_a_runs_tables_and_says_how_they_were_obtained(chart):
    for line in chart.lines:
        assert line.table == "ranks" or line.column in COLUMNS[line.table]
    assert all(sentence.endswith(".") for sentence in chart.how)
    assert any("easured" in sentence or "erived" in sentence for sentence in chart.how)


@pytest.mark.parametrize("rows", [facts.RUN_CHARTS, facts.RACE_CHARTS], ids=["run", "race"])
def test_charts_of_one_page_have_different_keys_and_titles(rows):
    assert len({chart.key for chart in rows}) == len({chart.title for chart in rows}) == len(rows)


@pytest.mark.parametrize(
    ("chart", "figure"),
    [
        ("loss", "final_train_loss"),
        ("test_loss", "test_loss"),
        ("accuracy", "test_accuracy"),
        ("memory", "process_memory_bytes"),
    ],
)
def test_a_quantity_has_the_same_name_in_charts_and_in_the_list_of_runs(chart, figure):
    assert {row.title for row in ROWS if row.key == chart} == {FIGURES[figure]}


def test_the_rows_as_json_have_no_empty_fields():
    rows = json.loads(json.dumps(facts.as_json(facts.RUN_CHARTS)))
    loss = next(row for row in rows if row["key"] == "loss")
    assert [line["key"] for line in loss["lines"]] == ["loss", "test_loss"]
    assert (loss["lines"][0]["color"], "text_title" in loss) == (0, False)


def test_a_new_row_is_sent_to_the_page_and_drawn_in_the_report(tmp_path, monkeypatch):
    run = make_run(Store(tmp_path), gpu=True)
    line = facts.Line("system_memory", "System memory", "hardware", "system_memory_used_bytes")
    row = replace(facts.RUN_CHARTS[-1], key="system_memory", title="System memory", lines=(line,))
    monkeypatch.setattr(run_api, "RUN_CHARTS", (*facts.RUN_CHARTS, row))
    run.hardware["system_memory_used_bytes"][:] = 1e9
    assert run_api.points(run)["traces"]["system_memory"]["y"][0] == 1e9
    assert training.Chart(row).draw([run]).data[0].name == "System memory"
