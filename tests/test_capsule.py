"""The page of a race, and of studies: verdicts, what each lane cost, lanes in one colour, notes as they were typed."""

from __future__ import annotations

import html
import re

import pytest

from engine import capsule, landscape, sharing
from engine.config import RunConfig, with_overrides
from engine.presets import preset_config
from engine.records import Trial
from engine.report import Report, concluded
from engine.store import Store
from tests.fakes import make_run
from tests.test_landscape import drawn, trained
from tests.test_sharing import CALIBRATION, here, race_of, written  # noqa: F401 - a fixture


def text_of(page: str) -> str:
    """What a reader reads, blanks and all on one line."""
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))).replace("\u00a0", " ")


@pytest.fixture
def race(store):
    runs = race_of(store).runs
    return Report.freeze("A race", runs, conclusions=concluded(runs, target=0.8))


def test_a_race_tells_its_verdict_and_what_each_lane_spent_to_the_target(race):
    said = text_of(race.to_html())
    assert re.search(r"Preliminary, 2 of 6 seeds: fast takes [\d.]+ times as long to the target as slow", said)
    assert re.search(r"To the target 80 % Training time Steps Examples Arithmetic Accuracy", said)
    assert re.search(r"slow 2 of 2 runs [\d.]+ s \d+ [\d,.]+ k? ?[\d.]+ GFLOP", said)
    assert re.search(r"fast 2 of 2 runs [\d.]+ s \(\d+ %\)", said)


def test_a_lane_that_did_not_arrive_is_said_not_to_have(store):
    runs = race_of(store).runs
    said = text_of(Report.freeze("A race", runs, conclusions=concluded(runs, target=0.999)).to_html())
    assert "To the target 99.9 %" in said and "slow 0 of 2 runs" in said


def test_the_seeds_of_a_lane_share_a_colour_a_column_and_a_command(race):
    page = race.to_html()
    said = text_of(page)
    assert [getattr(run, "place", None) for run in capsule._placed(race)] == [0, 0, 1, 1]
    assert re.search(r"slow 2 finished fast 2 finished", said)
    assert page.count("python -m engine run") == 2
    assert "(seed 0; the others: seed=1)" in said
    assert re.search(r"Seed 0, 1 0, 1", said)


def test_the_table_of_many_runs_is_folded(store):
    runs = [make_run(store, num_steps=20, seed=seed) for seed in range(7)]
    assert "<summary>Results of each of 7 runs</summary>" in Report.freeze("t", runs).to_html()


def test_what_several_runs_have_in_common_is_said_once(store):
    runs = [make_run(store, diverges_at=40, seed=seed) for seed in range(3)]
    page = Report.freeze("t", runs).to_html()
    assert page.split("</main>")[0].count("The loss became nan") == 1 and "All runs" in page


def test_notes_are_shown_as_they_were_typed(store):
    page = Report.freeze(
        "t", [make_run(store, num_steps=20)], notes="# Head\n<script>alert(1)</script> [a](b)"
    ).to_html()
    assert "# Head&#10;&lt;script&gt;alert(1)&lt;/script&gt; [a](b)" in page


@pytest.mark.slow
def test_studies_are_drawn_by_their_own_charts(store, tmp_path):
    trials = [
        Trial(batch_size=b, lr=0.1, seed=s, tuning=False, reached=True, max_steps=999, steps=30 + 900 / b, samples=900, train_s=1, step_s=0.01, last_loss=0.1)
        for b in (4, 16, 64) for s in (0, 1)
    ]  # fmt: skip
    law = make_run(store, preset_config("digits-law"), num_steps=1, said=trials)
    measured = make_run(store, preset_config("calibrate"), num_steps=1, said=[CALIBRATION])
    paths = [trained(store)]
    surface = drawn(store, paths)
    report = Report.freeze("t", [law, measured, surface])
    page = report.to_html()
    assert 'id="chart-law-0"' in page and 'id="chart-surface-2"' in page
    said = text_of(page)
    assert re.search(r"B_crit 30 E_min/S_min", said)
    assert "What the machine reaches AMD EPYC 9575F" in said and "fp32 products at 1 thread 90.0 GFLOP/s" in said
    assert f"it shows {100 * sum(landscape.read_surface(surface).explained):.0f} % of the paths' variance" in said
    assert "Results" not in said


@pytest.mark.usefixtures("here")
def test_an_imported_run_says_so_on_its_page_and_a_curve_has_no_command(store, tmp_path):
    report = Report.freeze("theirs", [make_run(store, num_steps=40)])
    other = Store(tmp_path / "other")
    (tmp_path / "c.csv").write_text("step,loss\n1,2\n2,1\n")
    ids = sharing.import_files(other, [written(report, tmp_path / "r.json"), tmp_path / "c.csv"]).run_ids
    page = Report.freeze("both", [other.run(run_id) for run_id in ids]).to_html()
    said = text_of(page)
    assert "Imported from the report 'theirs' on" in said and "Imported from a table of numbers on" in said
    assert said.count("unverified") == 2
    assert page.count("python -m engine run") == 1


@pytest.mark.slow
def test_a_race_of_eighteen_long_runs_stays_under_three_megabytes(store):
    runs = [
        make_run(store, with_overrides(RunConfig(), [f"seed={seed}", f"optimizer.lr={lr}"]), num_steps=3_000, step_s=1e-4)
        for lr in (0.1, 0.01, 0.001) for seed in range(6)
    ]  # fmt: skip
    page = Report.freeze("t", runs, conclusions=concluded(runs, target=0.9)).to_html()
    assert len(page.encode()) < 3_000_000
    assert all(len(run.steps) > 200 for run in Report.from_html(page).runs)
