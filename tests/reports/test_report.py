"""A report contains everything that was measured and nothing about the person who measured it."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.events.lifecycle import Failed
from engine.reports import redaction
from engine.reports.commands import reproduce
from engine.reports.exporters import points_csv
from engine.reports.html.page import render
from engine.reports.points import Points, UnpackBudget
from engine.reports.report import Report, json_in
from engine.store.store import Store
from tests.fakes import make_run

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def report(store):
    return Report.freeze(HOSTILE, [make_run(store, name=HOSTILE, gpu=True), make_run(store, diverges_at=140)])


def test_json_and_back_is_the_same_report(report):
    again = Report.from_json(report.to_json())
    assert again.to_json() == report.to_json()
    assert again.content_hash == report.content_hash == hashlib.sha256(report.to_json().encode()).hexdigest()


def test_every_point_is_kept_nan_included(store, report):
    run, frozen = store.run(report.runs[1].run_id), Report.from_json(report.to_json()).runs[1]
    assert math.isnan(frozen.steps["loss"][-1])
    for table in ("steps", "evaluations", "hardware", "throughput", "grad_norms"):
        for name in getattr(run, table).names:
            np.testing.assert_allclose(getattr(frozen, table)[name], getattr(run, table)[name], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(frozen.steps["loss"], run.steps["loss"])


@pytest.mark.parametrize(
    "values",
    [[], [1, 2, 5], [0.5, 1.25e-9], [1e300, -0.1], [math.nan, math.inf, -math.inf], [2.0**60, 3.0]],
)
def test_a_column_is_packed_without_loss(values):
    column = np.array(values, np.float64)
    packed = json.loads(json.dumps(Points({"x": column}).model_dump()))
    np.testing.assert_array_equal(Points.model_validate(packed)["x"], column)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: data.update(schema_version=3), "schema 3; this version of Isoflop reads 1 to 2"),
        (lambda data: data.update(schema_version=0), "schema 0; .* No version of Isoflop wrote this file"),
        (lambda data: data.update(runs=[]), "damaged"),
        (lambda data: data["runs"][0]["config"].update(batch_size=-1), "damaged"),
        (lambda data: data["runs"][0]["steps"].update(loss={"float32": "AAAA"}), "damaged"),
        (lambda data: data["runs"][0]["steps"].update(loss={"deltas": "eJwDAAAAAAE=", "per": 1}), "differ in length"),
        (lambda data: data["runs"][0].update(run_id="../../etc"), "damaged"),
    ],
)
def test_a_changed_file_is_refused_in_a_sentence(report, change, says):
    data = json.loads(report.to_json())
    change(data)
    with pytest.raises(StoreError, match=says):
        Report.from_json(json.dumps(data))


def test_a_report_made_before_gradient_norms_and_targets_opens(report):
    data = json.loads(report.to_json())
    for run in data["runs"]:
        for name in ("compiled_s", "data_sha256", "memory", "target_reached", "grad_norms"):
            del run[name]
        run["summary"] = {"steps": 140, "peak_memory_bytes": 431_000_000}  # then that of the process
        run["config"] = {"model": run["config"]["model"], "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9}}
    page = render(Report.from_json(json.dumps(data)))
    assert re.search(r"Process memory</th><td[^>]*>411 MiB", page)
    assert re.search(r"Training memory</th><td[^>]*>–", page)


def test_a_report_made_before_evaluations_were_measured_has_the_memory_of_a_step(report):
    data = json.loads(report.to_json())
    for run in data["runs"]:
        run["summary"]["peak_memory_bytes"] = run["summary"].pop("step_memory_bytes")  # as it was named
        for name in ("evaluation_memory_bytes", "data_memory_bytes"):
            del run["summary"][name]
    found = [run.summary for run in Report.from_json(json.dumps(data)).runs]
    then = [run.summary.step_memory_bytes for run in report.runs]
    assert [(s.step_memory_bytes, s.peak_memory_bytes, s.evaluation_memory_bytes) for s in found] == [
        (size, None, None) for size in then
    ]
    assert any(then)


@pytest.mark.parametrize("text", ["", "[]", "null", '"x"', "[" * 100_000])
def test_a_text_that_is_not_a_report_is_refused(text):
    with pytest.raises(StoreError, match="not a report"):
        Report.from_json(text)


def test_a_report_that_unpacks_to_too_much_is_refused(report):
    with pytest.raises(ValueError, match="more than 10,000 bytes"):
        Report.model_validate_json(report.to_json(), context=UnpackBudget(10_000))


def test_the_page_contains_the_report(report):
    assert Report.from_json(json_in(render(report))).content_hash == report.content_hash


def test_a_text_of_the_user_is_never_markup_in_the_page(report):
    page = render(report)
    assert "<img" not in page
    assert "<script>alert" not in page
    assert html.escape(HOSTILE) in page
    assert page.count("</script>") == 4  # ours


def test_the_page_makes_no_request(report):
    page = render(report)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    assert "default-src 'none'" in html.unescape(page)


def test_the_page_is_small_enough_for_an_email(report):
    assert len(render(report).encode()) < 3_000_000


def test_a_long_run_is_thinned_to_fit_the_page_and_the_page_says_so(store, monkeypatch):
    full = Report.freeze("long", [make_run(store, num_steps=40_000, step_s=1e-4)])
    monkeypatch.setattr("engine.reports.html.page.MAX_HTML_BYTES", 2_200_000)
    page = render(full)
    inside = Report.from_json(json_in(page)).runs[0]
    assert len(page) < 2_200_000
    assert len(inside.steps) < inside.recorded_steps == 40_000
    assert "of 40,000 steps" in page
    assert inside.steps["loss"].max() == full.runs[0].steps["loss"].max()
    assert inside.summary == full.runs[0].summary


def test_a_report_names_no_user_host_or_path(store, monkeypatch):
    redaction._identity.cache_clear()
    monkeypatch.setattr(redaction.getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(redaction.socket, "gethostname", lambda: "workhorse7")
    run = make_run(store)
    run.problems.append("alice on workhorse7 could not read /home/alice/secret/data.npz or ~/x/y.txt")
    text = Report.freeze("t", [run], file_names=True).to_json()
    redaction._identity.cache_clear()
    assert not re.search(rf"alice|workhorse7|secret|{re.escape(str(Path.home()))}/", text)
    assert "…/data.npz" in text


@pytest.mark.parametrize(
    "path", ["/home/alice/my secret/iris.csv", "secret/iris.csv", "~/secret/iris.csv", "C:\\secret\\iris.csv"]
)
def test_a_report_names_the_users_file_without_its_folder(store, path):
    config = with_overrides(RunConfig(), ["data=csv", f"source.path={path}"])
    last = Failed(at=0.0, cause="ConfigError", message=f"source.path={path}: row 7 has 3 cells.")
    frozen = Report.freeze("t", [make_run(store, config, num_steps=40, last=last)], file_names=True)
    page = render(frozen)
    assert not re.search(
        r"secret|alice|[/\\~ ]iris", frozen.to_json() + html.unescape(re.sub(r"<script.*?</script>", "", page))
    )
    assert Report.from_json(json_in(page)).runs[0].config.source.path == "iris.csv"
    assert "source.path=iris.csv" in reproduce(frozen.runs[0].config)
    assert "source.path=iris.csv: row 7 has 3 cells." in frozen.runs[0].why


@pytest.mark.parametrize("path", ["/", "~", "..", "data/.."])
def test_a_path_without_a_name_of_its_own_still_makes_a_report_that_opens(store, path):
    config = with_overrides(RunConfig(), ["data=images", f"source.path={path}"])
    frozen = Report.freeze("t", [make_run(store, config, num_steps=20)])
    assert Report.from_json(frozen.to_json()).runs[0].config.source.path == "images"


def test_the_hash_of_a_users_file_is_in_the_report(store):
    config = with_overrides(RunConfig(), ["data=csv", "source.path=/tmp/iris.csv"])
    page = render(Report.freeze("t", [make_run(store, config, num_steps=20)]))
    assert settings_of(page)["SHA-256 of the data file"] == f"<code>{'5a' * 32}</code>"


@pytest.mark.parametrize("config", [RunConfig(), *(preset.config for preset in PRESETS.values())])
def test_the_command_gives_the_same_configuration(config):
    changed = with_overrides(config, ["seed=7", "optimizer.lr=0.003"])
    words = shlex.split(reproduce(changed))
    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert with_overrides(preset_config(words[words.index("--preset") + 1]), sets) == changed


def test_the_command_of_a_preset_is_the_preset():
    assert reproduce(preset_config("lenet-source")) == "python -m engine run --preset lenet-source"


def test_the_page_marks_the_fields_in_which_runs_differ(store):
    runs = [make_run(store), make_run(store, with_overrides(RunConfig(), ["optimizer.lr=0.1"]))]
    (row,) = re.findall(r'<tr class="differs"><th scope="row">(.*?)</th>', render(Report.freeze("t", runs)))
    assert row == "Learning rate"


def settings_of(page: str) -> dict[str, str]:
    """The rows of the configuration table or the results table, by title."""
    return dict(
        re.findall(
            r'<tr(?: class="differs"| title="[^"]*")?><th scope="row">(.*?)</th><td>(.*?)</td>(?:<td class="how">|</tr>)',
            page,
        )
    )


def test_the_page_shows_changed_fields_and_leaves_defaults_out(store):
    set_ = [
        "schedule=step",
        "lr_milestones=[0.5,0.9]",
        "max_grad_norm=1",
        "activation_checkpointing=true",
        "target.value=0.9",
    ]
    rows = settings_of(render(Report.freeze("t", [make_run(store, with_overrides(RunConfig(), set_))])))
    assert (rows["Schedule"], rows["Milestones"], rows["Gradient clipping"]) == ("step", "0.5, 0.9", "1")
    assert (rows["Activation checkpointing"], rows["Target value"]) == ("yes", "0.9")
    assert not {"Label smoothing", "Shape", "Weight averaging", "Alpha"} & rows.keys()


def test_a_field_that_one_run_changed_is_shown_beside_the_default_of_the_other(store):
    runs = [make_run(store), make_run(store, with_overrides(RunConfig(), ["max_grad_norm=1"]))]
    assert settings_of(render(Report.freeze("t", runs)))["Gradient clipping"] == "none</td><td>1"


def test_fields_have_one_order_whichever_run_changed_them(store):
    runs = [make_run(store), make_run(store, with_overrides(RunConfig(), ["model.family=cnn", "warmup_steps=9"]))]
    rows = list(settings_of(render(Report.freeze("t", runs))))
    begin = rows.index("Model")
    assert rows[begin : begin + 3] == ["Model", "Hidden layers", "Width"]
    assert rows.index("Warm-up steps") < rows.index("Batch size")


def test_the_page_lists_training_memory_and_compiling_separately(store):
    config = with_overrides(RunConfig(), ["execution=compiled"])
    page = render(Report.freeze("t", [make_run(store, config)]))
    rows = settings_of(page)
    assert (rows["Step memory"], rows["Process memory"], rows["Compiling"]) == ("2.14 MiB", "411 MiB", "12.4 s")
    assert (rows["Evaluation memory"], rows["Data memory"], rows["Training memory"]) == (
        "2.60 MiB",
        "27.0 MiB",
        "29.6 MiB",
    )
    assert "weights 398 KiB, optimizer state 795 KiB, peak of one step 996 KiB" in page


def test_the_page_shows_when_a_target_was_reached_or_that_it_was_not(store):
    near, far = (with_overrides(RunConfig(), [f"target.value={value}"]) for value in (0.9, 0.99))
    reached, missed = (settings_of(render(Report.freeze("t", [make_run(store, c)])))["Target"] for c in (near, far))
    assert re.fullmatch(
        r"90 % reached at step 4\d\d, after 3\.\d+ s of training \(derived: interpolated between .* 360 and 480\)",
        reached,
    )
    assert missed == "99 % not reached"


def test_the_page_shows_why_a_run_failed(report):
    assert "The loss became nan at step 140 with lr=3. Lower the learning rate." in render(report)


def test_a_run_that_never_started_has_a_page(store):
    run = store.run(store.create(RunConfig(), name="waiting"))
    assert "There are no charts yet" in render(Report.freeze("t", [run]))


def test_the_csv_has_a_row_of_numbers_per_step(store):
    run = make_run(store, diverges_at=140)
    rows = list(csv.DictReader(io.StringIO("".join(points_csv([run])))))
    header = ["step", "loss", "seconds", "samples", "lr", "epoch", "grad_norm", "elapsed", "test_loss", "test_accuracy"]
    assert list(rows[0]) == [*header, "run_id"]
    assert [float(row["step"]) for row in rows] == run.steps["step"].tolist()
    np.testing.assert_array_equal(np.float32([row["loss"] for row in rows]), np.float32(run.steps["loss"]))
    norms = dict(zip(run.grad_norms["step"], run.grad_norms["grad_norm"], strict=True))
    measured = {float(row["step"]): float(row["grad_norm"]) for row in rows if row["grad_norm"]}
    assert measured == pytest.approx(norms, nan_ok=True)


def test_the_csv_has_the_learning_rate_of_each_step(store):
    run = make_run(store, with_overrides(RunConfig(), ["schedule=cosine"]), num_steps=60)
    rows = csv.DictReader(io.StringIO("".join(points_csv([run]))))
    assert [float(row["lr"]) for row in rows] == pytest.approx(run.steps["lr"].tolist())
