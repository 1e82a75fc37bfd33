"""Pages show what was imported like any run, and say that it was."""

from __future__ import annotations

import pytest

from engine.config.presets import preset_config
from engine.reports import sharing
from engine.store.store import Store
from engine.studies.race_results import outcome
from engine.studies.races import find
from tests.dashboard.test_pages import app, open_page  # noqa: F401 - a fixture
from tests.fakes import make_run
from tests.reports.test_sharing import CALIBRATION, frozen, here, race_of, written  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def theirs(store, tmp_path):
    """In the page's store: a race, a failed run, a calibration and a curve of somebody else."""
    other = Store(tmp_path / "other")
    runs = race_of(other).runs
    alone = [
        make_run(other, diverges_at=140),
        make_run(other, preset_config("calibrate"), num_steps=1, said=[CALIBRATION]),
    ]
    (tmp_path / "curve.csv").write_text("step,val_acc\n10,0.5\n20,0.9\n30,0.95\n")
    files = [
        written(frozen(runs), tmp_path / "race.json"),
        written(frozen(alone), tmp_path / "alone.json"),
        tmp_path / "curve.csv",
    ]
    return sharing.import_files(store, files, owner="terminal")


def said(app) -> str:  # noqa: F811
    return " ".join(
        str(getattr(e, "value", "")) for kind in ("markdown", "caption", "warning", "info") for e in getattr(app, kind)
    )


def test_each_imported_run_opens(app, store, theirs):  # noqa: F811
    tasks = {run_id: store.run(run_id).config.task for run_id in theirs.run_ids}
    for run_id in sorted(
        theirs.run_ids, key=lambda run_id: tasks[run_id] == "calibrate"
    ):  # its page leaves a view in the address
        page = "hardware" if tasks[run_id] == "calibrate" else "train"
        open_page(app, page, run=run_id)
        assert not app.exception and len(app.error) == (store.run(run_id).status == "failed"), (
            page,
            [e.value for e in app.error],
        )
        if page == "train":
            assert "unverified" in said(app)
            is_curve = store.run(run_id).imported.origin.form == "curve"
            assert ("**a curve on mnist5k**" in said(app)) is is_curve


def test_an_imported_race_opens_on_compare(app, store, theirs):  # noqa: F811
    (group,) = theirs.group_ids
    open_page(app, "compare", race=group)
    assert not app.exception and not app.error
    assert "4 of 4 runs were imported, unverified" in said(app) and "on this machine" not in said(app)
    race = find(store, group)
    assert race and outcome(race).lanes[0].label == "slow"


def test_a_curve_beside_runs_of_this_machine_opens_on_compare(app, store, theirs):  # noqa: F811
    ours = make_run(store, name="ours")
    open_page(app, "compare", runs=",".join([ours.run_id, theirs.run_ids[-1]]))
    assert not app.exception and not app.error


def test_lists_say_what_was_imported(app, store, theirs):  # noqa: F811
    open_page(app, "library")
    assert not app.exception and not app.error
    frame = app.dataframe[0].value
    assert frame.astype(str).apply(lambda column: column.str.contains("imported, unverified")).to_numpy().sum() == len(
        theirs.run_ids
    )


def test_the_roofline_offers_no_run_of_another_machine(app, store, theirs):  # noqa: F811
    assert all(row.summary.imported for row in store.rows())
    open_page(app, "hardware")
    assert not app.exception
    assert store.listing(search="calibration of this machine").total == 0
