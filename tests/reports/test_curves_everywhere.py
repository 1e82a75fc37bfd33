"""Property: whatever columns an imported table has, no view of it shows an unknown value as a number, or fails."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from dashboard.api import race as race_api
from dashboard.api import run as run_api
from dashboard.api import wire
from engine.charts import survival, training
from engine.cli import results
from engine.common.errors import EngineError
from engine.common.jsontext import json_text
from engine.reports import exporters
from engine.reports.html import page
from engine.reports.report import Report, concluded
from engine.reports.sharing import CurveChoices, write_zip
from engine.reports.sharing.__main__ import import_file
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import race_results, races
from engine.studies.race_results import outcome
from tests.fakes import make_run

OTHERS = {  # header: the values of its rows
    "step": lambda n: [10 * (row + 1) for row in range(n)],
    "epoch": lambda n: list(range(n)),
    "elapsed": lambda n: [1.5 * (row + 1) for row in range(n)],
    "samples": lambda n: [64 * (row + 1) for row in range(n)],
    "lr": lambda n: [0.1] * n,
}
CURVES = {"loss": "train", "val_loss": "test", "val_accuracy": "test"}
ODD = ["", "nan", "NA", "inf"]


@st.composite
def tables(draw: st.DrawFn) -> str:
    """A CSV with any columns that can be imported, with empty cells, and NaN and infinity where a value can be them."""
    rows = draw(st.integers(1, 4))
    curves = draw(st.lists(st.sampled_from(sorted(CURVES)), min_size=1, unique=True))
    columns = {name: OTHERS[name](rows) for name in draw(st.lists(st.sampled_from(sorted(OTHERS)), unique=True))}
    for name in curves:
        odd = ODD[:3] if name == "val_accuracy" else ODD
        columns[name] = [draw(st.sampled_from([*odd, 0.5, 0.9])) for _ in range(rows)]
    for name in set(columns) - {*CURVES, "step"}:
        if draw(st.booleans()):
            columns[name][draw(st.integers(0, rows - 1))] = draw(st.sampled_from(["", "NA", "nan"]))
    lines = zip(*columns.values(), strict=True)
    return "\n".join([",".join(columns), *(",".join(map(str, line)) for line in lines)]) + "\n"


def imported(store: Store, path: Path) -> Run:
    """The run of a file, imported without the process with limits, which takes a second to start."""
    question = {
        "path": str(path),
        "name": path.name,
        "root": str(store.root),
        "owner": "",
        "now": time.time(),
        "read": [],
    }
    with store.staging() as staging:
        made = import_file(question | {"staging": str(staging), "choices": CurveChoices().model_dump_json()})
        store.put_in_place(staging)
    return store.run(made["run_ids"][0])


def imported_table(store: Store, folder: Path, text: str) -> Run:
    (folder / "theirs.csv").write_text(text)
    try:
        return imported(store, folder / "theirs.csv")
    except EngineError as error:  # for example, all cells of the curve are empty
        assert error.message and error.fix
        reject()


def numbers(value):
    """Every number in a JSON document."""
    if isinstance(value, dict | list):
        yield from itertools.chain(*map(numbers, value.values() if isinstance(value, dict) else value))
    elif isinstance(value, int | float):
        yield value


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def ours(store):
    return make_run(store, name="ours", num_steps=240)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(text=tables())
def test_unknown_is_null_in_every_view(store, ours, folder, text):
    theirs = imported_table(store, folder, text)
    shown = json.loads(json_text(results.everything(store, theirs)))
    given_ = set(text.splitlines()[0].split(","))
    assert (shown["summary"]["train_seconds"] is not None) <= ("elapsed" in given_)
    assert (shown["summary"]["samples"] is not None) <= bool({"samples", "epoch"} & given_)
    assert all(s is None for s in shown["steps"]["samples"]) or {"samples", "epoch"} & given_
    assert all(s is None for s in shown["steps"]["seconds"]) or "elapsed" in given_
    assert all(number > -1 for name in ("steps", "evaluations", "summary") for number in numbers(shown[name]))
    assert {figure["how"] for figure in shown["figures"].values() if figure["value"] is not None} <= {"table"}

    for answer in (run_api.points(theirs), race_api.points(theirs)):
        assert all(number > -1 for number in numbers(json.loads(wire.answer(answer).body)["traces"]))
    trace = race_api.points(theirs)["traces"].get("accuracy")
    assert trace is None or 0 not in trace.get("samples", [])

    race = races.of_runs([ours, theirs])
    assert race is not None
    for metric in ("test_accuracy", "test_loss"):
        result = outcome(race, metric=metric, target=0.6, price_per_hour=1.0)
        assert result.lanes[1].cost["money"] is None or "elapsed" in given_
        assert result.lanes[1].cost["samples"] is None or {"samples", "epoch"} & given_
        json.loads(json_text(race_results.as_json(race, result)))
        survival.survival_chart(race_results.survivals(race, result)).to_json()


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(text=tables())
def test_unknown_is_no_number_in_any_export(store, ours, folder, text):
    theirs = imported_table(store, folder, text)
    report = Report.freeze("t", [ours, theirs], conclusions=concluded([ours, theirs]))
    for axis in ("step", "seconds", "samples"):
        for chart in training.shown(report.runs):
            chart.draw(report.runs, axis=axis).to_json()
    alone = page.render(Report.freeze("t", [theirs]))
    assert "synchronised" not in alone and ">0 ms<" not in alone
    page.render(report)
    exporters.write_parquet(folder / "p.parquet", [ours, theirs])
    assert "-9223372036854775808" not in "".join(exporters.points_csv([ours, theirs]))
    write_zip(folder / "r.zip", report, {run.run_id: run for run in (ours, theirs)})
    (folder / "r.json").write_text(Report.freeze("t", [theirs]).to_json())
    again = imported(store, folder / "r.json")
    np.testing.assert_equal(again.summary().model_dump(), theirs.summary().model_dump())
