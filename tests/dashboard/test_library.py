"""The page Library: columns, groups, the baseline, races and reports; foreign text is shown as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from dashboard.views.library.columns import ALL_COLUMNS, title_of
from engine.config.inference import infer_config
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.reports import sharing
from engine.reports.report import Report
from engine.store.store import Store
from tests.dashboard.test_pages import app, open_page  # noqa: F401
from tests.fakes import make_run

RECORDINGS = Path(__file__).parents[1] / "recordings" / "curves"

BASE = PRESETS["digits-mlp"].config
HOSTILE = "<b>x</b> :smile: [a](http://evil) $y$"


@pytest.fixture
def many(store) -> Store:
    for seed in range(4):
        config = with_overrides(BASE, [f"optimizer.lr={0.1 if seed % 2 else 0.01}", f"seed={seed}"])
        make_run(store, config, name=f"{HOSTILE} {seed}", num_steps=400 + 100 * seed, group="0123456789abcdef")
    return store


def test_a_link_names_columns_including_fields_of_the_configuration(app, many):  # noqa: F811
    open_page(app, "library", cols=["Samples/s", "optimizer.lr", "Epochs"])
    assert list(app.dataframe[0].value.columns) == ["State", "Experiment", "Samples/s", "optimizer.lr", "Epochs"]
    assert app.dataframe[0].value["optimizer.lr"].tolist() == ["0.1", "0.01", "0.1", "0.01"]


def test_other_runs_show_their_difference_to_the_baseline(app, many):  # noqa: F811
    base = next(row.run_id for row in many.rows() if row.config.seed == 0)
    open_page(app, "library", base=base)
    table = app.dataframe[0].value
    assert table["Δ Steps"].round(6).tolist() == [75.0, 50.0, 25.0, 0.0]
    assert table[""].tolist() == ["", "", "", "baseline"]


def test_groups_show_mean_and_spread(app, many):  # noqa: F811
    open_page(app, "library", by="optimizer.lr")
    table = app.dataframe[0].value.set_index("Value")
    assert table.loc[["0.01", "0.1"], "Runs"].tolist() == [2, 2] and table["Seeds"].tolist() == [2, 2]
    by_hand = [row.summary.train_seconds for row in many.rows() if row.config.optimizer.lr == 0.1]
    assert table.loc["0.1", "Training time"] == pytest.approx(sum(by_hand) / 2)
    assert table.loc["0.1", "± Training time"] == pytest.approx(abs(by_hand[0] - by_hand[1]) / 2**0.5)


def test_a_filter_that_is_not_understood_gives_an_error_and_shows_all_runs(app, many):  # noqa: F811
    open_page(app, "library", where="optimizer.nmae = adam")
    assert "optimizer.name" in app.info[0].value.replace("\\", "")
    assert len(app.dataframe[0].value) == 4


def test_races_are_listed(app, many):  # noqa: F811
    open_page(app, "library", view="Races and studies")
    assert app.dataframe[0].value["Kind"].tolist() == ["race"] and not app.exception


def test_a_load_test_is_no_race(app, store):  # noqa: F811
    for rate in (50, 100):
        config = infer_config(BASE, load="open", rate=rate)
        make_run(store, config, num_steps=0, name=f"{rate} requests/s", group="0123456789abcdef")
    for seed in (0, 1):
        make_run(store, with_overrides(BASE, [f"seed={seed}"]), num_steps=20, group="fedcba9876543210")
    open_page(app, "library", view="Races and studies")
    assert sorted(app.dataframe[0].value["Kind"]) == ["load test", "repeats"] and not app.exception


def said(elements) -> str:
    return " ".join(element.value for element in elements).replace("\\", "")


@pytest.mark.process
def test_the_columns_of_a_dropped_table_are_chosen_on_the_page(app, many):  # noqa: F811
    text = (RECORDINGS / "fastai.csv").read_bytes()
    open_page(app, "library")
    app.file_uploader(key="import-0").set_value(("fastai.csv", text, "text/csv")).run()
    assert not app.exception and "Not used: error_rate" in said(app.caption)
    boxes = {box.label: box for box in app.selectbox}
    assert (boxes["Training loss"].value, boxes["Time"].value, boxes["Step"].value) == ("train_loss", "time", "")
    boxes["Time"].select("").run()
    assert "Unit of time" not in {box.label for box in app.selectbox}
    {box.label: box for box in app.selectbox}["Data set"].select("digits").run()
    app.button(key="import-tables").click().run()
    assert not app.exception and "Imported 1 run" in app.success[0].value
    theirs = max((many.run(row.run_id) for row in many.rows() if row.name == "fastai"), key=lambda run: run.order)
    assert theirs.config.data == "digits" and theirs.summary().train_seconds is None
    assert theirs.summary().test_loss == 0.050347 and "import-tables" not in {button.key for button in app.button}


@pytest.mark.process
def test_an_impossible_choice_for_a_dropped_table_can_be_corrected(app, many):  # noqa: F811
    open_page(app, "library")
    app.file_uploader(key="import-0").set_value(("a.csv", b"step,acc\n1,40\n2,50\n", "text/csv")).run()
    {box.label: box for box in app.selectbox}["Accuracy is"].select(False).run()
    app.button(key="import-tables").click().run()
    assert "An accuracy is 50, which is outside 0 to 100 %" in said(app.error) and "--" not in said(app.error)
    {box.label: box for box in app.selectbox}["Accuracy is"].select(True).run()
    app.button(key="import-tables").click().run()
    assert "Imported 1 run" in app.success[0].value


@pytest.mark.process
def test_an_imported_report_is_listed_and_its_texts_are_shown_literally(app, many, tmp_path):  # noqa: F811
    other = Store(tmp_path / "other")
    report = Report.freeze(HOSTILE, [make_run(other, BASE, name=HOSTILE)], notes=f"{HOSTILE}\nsecond line")
    (tmp_path / "r.json").write_text(report.to_json(), encoding="utf-8")
    sharing.import_files(many, [tmp_path / "r.json"])
    open_page(app, "library", view="Reports")
    assert not app.exception and app.text[0].value == f"{HOSTILE}\nsecond line"
    assert not any("<b>" in markdown.value.replace("\\<", "") for markdown in app.markdown)


def test_every_column_has_its_own_title():
    titles = [title_of(column) for column in ALL_COLUMNS]
    assert len(set(titles)) == len(titles)
