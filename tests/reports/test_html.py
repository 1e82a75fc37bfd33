"""The HTML page of a race and of studies: verdicts, costs, colours, notes."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from collections import defaultdict
from html.parser import HTMLParser

import pytest

from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.events.studies import Trial
from engine.events.training import StepSplit
from engine.reports import sharing
from engine.reports.html.page import render
from engine.reports.html.parts import placed
from engine.reports.report import Report, concluded, json_in
from engine.store.store import Store
from engine.studies.loss_surface import read_surface
from tests.fakes import make_run
from tests.pytorch.test_batch_law_task import lawful
from tests.reports.test_sharing import CALIBRATION, here, race_of, written  # noqa: F401 - a fixture
from tests.studies.test_inference_runs import inferred
from tests.studies.test_loss_surface import drawn, trained


def text_of(page: str) -> str:
    """The visible text on one line, with spaces normalised."""
    shown = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shown))).replace("\u00a0", " ")


@pytest.fixture
def race(store):
    runs = race_of(store).runs
    return Report.freeze("A race", runs, conclusions=concluded(runs, target=0.8))


def test_a_race_shows_its_verdict_and_the_cost_to_target_of_each_configuration(race):
    said = text_of(render(race))
    assert re.search(r"fast takes [\d.]+ times as long as slow to reach the target\. Preliminary: 2 of 6 seeds\.", said)
    assert re.search(r"To the target 80 % Training time Steps Samples FLOPs Test accuracy", said)
    assert re.search(
        r"slow reached by 2 of 2 runs; derived: interpolated between evaluations at most 120 steps apart [\d.]+ s \d+ [\d,.]+ k? ?[\d.]+ GFLOP",
        said,
    )
    assert re.search(r"fast reached by 2 of 2 runs; [^;]* apart [\d.]+ s \(\d+ %\)", said)


def test_a_configuration_that_missed_the_target_is_marked(store):
    runs = race_of(store).runs
    said = text_of(render(Report.freeze("A race", runs, conclusions=concluded(runs, target=0.999))))
    assert "To the target 99.9 %" in said and "slow reached by 0 of 2 runs" in said


def test_the_seeds_of_a_configuration_share_a_colour_a_column_and_a_command(race):
    page = render(race)
    said = text_of(page)
    assert [run.place for run in placed(race)] == [0, 0, 1, 1]
    assert re.search(r"slow 2 finished fast 2 finished", said)
    assert page.count("python -m engine run") == 2
    assert "(seed 0; the others: seed=1)" in said
    assert re.search(r"Seed 0, 1 0, 1", said)


def test_the_table_of_many_runs_is_folded(store):
    runs = [make_run(store, num_steps=20, seed=seed) for seed in range(7)]
    assert "<summary>Results of each of 7 runs</summary>" in render(Report.freeze("t", runs))


def test_a_text_that_several_runs_share_appears_once(store):
    runs = [make_run(store, diverges_at=40, seed=seed) for seed in range(3)]
    page = render(Report.freeze("t", runs))
    assert page.split("</main>")[0].count("The loss became nan") == 1 and "All runs" in page


def test_notes_are_shown_verbatim(store):
    page = render(Report.freeze("t", [make_run(store, num_steps=20)], notes="# Head\n<script>alert(1)</script> [a](b)"))
    assert "# Head&#10;&lt;script&gt;alert(1)&lt;/script&gt; [a](b)" in page


@pytest.mark.slow
def test_each_study_has_its_own_charts(store, tmp_path):
    trials = [
        Trial(batch_size=b, lr=0.1, seed=s, tuning=False, reached=True, max_steps=999, steps=30 + 900 / b, samples=900, train_s=1, step_s=0.01, last_loss=0.1)
        for b in (4, 16, 64) for s in (0, 1)
    ]  # fmt: skip
    law = make_run(store, preset_config("digits-law"), num_steps=1, said=trials)
    measured = make_run(store, preset_config("calibrate"), num_steps=1, said=[CALIBRATION])
    paths = [trained(store)]
    surface = drawn(store, paths)
    report = Report.freeze("t", [law, measured, surface])
    page = render(report)
    assert 'id="chart-law-0"' in page and 'id="chart-surface-2"' in page
    said = text_of(page)
    assert re.search(r"B_crit 30 E_min/S_min", said)
    assert "Measured peaks of the machine AMD EPYC 9575F" in said and "fp32 products at 1 thread 90.0 GFLOP/s" in said
    assert f"The plane explains {100 * sum(read_surface(surface).explained):.0f} % of the variance of the paths" in said
    assert "Results" not in said


@pytest.mark.usefixtures("here")
def test_an_imported_run_says_so_on_its_page_and_a_curve_has_no_command(store, tmp_path):
    report = Report.freeze("theirs", [make_run(store, num_steps=40)])
    other = Store(tmp_path / "other")
    (tmp_path / "c.csv").write_text("step,loss\n1,2\n2,1\n")
    ids = sharing.import_files(other, [written(report, tmp_path / "r.json"), tmp_path / "c.csv"]).run_ids
    page = render(Report.freeze("both", [other.run(run_id) for run_id in ids]))
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
    page = render(Report.freeze("t", runs, conclusions=concluded(runs, target=0.9)))
    assert len(page.encode()) < 3_000_000
    assert all(len(run.steps) > 200 for run in Report.from_json(json_in(page)).runs)


def test_a_step_breakdown_in_doubt_says_so_and_gives_no_advice(store):
    split = StepSplit(data_s=1e-4, forward_s=1e-4, backward_s=1e-4, optimizer_s=7e-4, read_back_s=0.0, method="timed")
    agreeing, doubtful = (render(Report.freeze("t", [make_run(store, step_s=s, said=[split])])) for s in (1e-3, 3e-3))
    assert "70 % of a step is the optimizer" in agreeing and "add up to" not in agreeing
    assert "add up to 1.00 ms" in doubtful and "of a step is the optimizer" not in doubtful


# --- texts that somebody else wrote -----------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>{{ 7*7 }}{% for %}\"'\u2028<img src=x onerror=alert(2)>"


@pytest.fixture
def every_kind(store):
    """A report with everything that a page can show: a race, a law, a calibration, inference, a failed run, a step breakdown."""
    taken_apart = StepSplit(
        forward_s=0.002, backward_s=0.003, optimizer_s=0.001, data_s=0.001, steps=20, method="timed"
    )
    runs = [
        *race_of(store).runs,
        make_run(store, preset_config("digits-law"), num_steps=1, said=lawful()),
        make_run(store, preset_config("calibrate"), num_steps=1, said=[CALIBRATION]),
        make_run(store, diverges_at=40, gpu=True, said=[taken_apart]),
        inferred(store),
    ]
    runs[-2].problems.append("a record was cut off")
    return Report.freeze("t", runs, conclusions=concluded(runs[:4], target=0.8), notes="notes")


def texts(value, where=()):
    """The texts of a JSON value: a path with * for a list index, the container and the key."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        path = (*where, key if isinstance(value, dict) else "*")
        if isinstance(inner, str):
            yield ".".join(path), value, key
        elif isinstance(inner, dict | list):
            yield from texts(inner, path)


def with_texts(report: Report, text: str) -> tuple[Report, set[str]]:
    """The report with `text` in every field that accepts it, and the paths of these fields."""
    data = json.loads(report.to_json())
    places = defaultdict(list)
    for path, container, key in texts(data):
        places[path].append((container, key, container[key]))
    changed = set()
    for path, found in places.items():
        for container, key, _ in found:
            container[key] = text
        try:
            Report.from_json(json.dumps(data))
            changed.add(path)
        except StoreError:
            for container, key, was in found:
                container[key] = was
    return Report.from_json(json.dumps(data)), changed


class Elements(HTMLParser):
    """The elements of a page in order, each with the names of its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, *(name for name, _ in attrs)))


def test_no_text_of_a_report_becomes_html_in_its_page(every_kind):
    hostile, changed = with_texts(every_kind, HOSTILE)
    assert changed >= {
        "title", "notes", "isoflop", "conclusions.*.outcome.baseline", "conclusions.*.outcome.lanes.*.label", "runs.*.name",
        "runs.*.why", "runs.*.problems.*", "runs.*.environment.device", "runs.*.missing_readings.gpu_power_w",
        "runs.*.fingerprint", "runs.*.figures.flops.method", "runs.*.step_split.method", "runs.*.said.*.device_name",
        "runs.*.said.*.reason", "runs.*.peak_memory_method", "runs.*.config.source.path",
    }  # fmt: skip
    page = render(hostile)
    shown = page[: page.index('<script type="application/json"')]
    assert "<script>" not in shown and "<img" not in shown and "\u2028" not in shown
    assert "{{ 7*7 }}{% for %}\"'" in html.unescape(shown) and "</script>49" not in html.unescape(shown)
    assert Elements(page).found == Elements(render(with_texts(every_kind, "plain words")[0])).found
    assert json_in(page) == hostile.to_json()


def test_no_text_of_a_report_is_markup_in_its_charts(every_kind):
    packed = re.search(r'id="figures">(.*?)</script>', render(with_texts(every_kind, HOSTILE)[0]))
    figures = gzip.decompress(base64.b64decode(packed[1])).decode()
    assert "<script" not in figures and "<img" not in figures


def test_a_text_in_place_of_a_number_in_the_environment_is_shown(every_kind):
    data = json.loads(every_kind.to_json())
    for run in data["runs"]:
        run["environment"]["memory_bytes"] = "<b>plenty</b>"
    assert "<dd>&lt;b&gt;plenty&lt;/b&gt;</dd>" in render(Report.from_json(json.dumps(data)))


@pytest.mark.parametrize("metric", ["test_accuracy", "test_loss"])
def test_a_reached_target_without_a_configured_target_is_left_out(store, metric):
    data = json.loads(Report.freeze("t", [make_run(store), make_run(store, seed=1)]).to_json())
    for run in data["runs"]:
        run["target_reached"] = {"metric": metric, "value": 0.9, "step": 120, "train_s": 1.0, "elapsed_s": 1.0}
    assert "Target" not in text_of(render(Report.from_json(json.dumps(data))))
