"""The page Inference and its route, on real measurements of models that the tests train."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from dashboard import state
from dashboard.api import inference as inference_api
from dashboard.api import readers
from dashboard.server import auth_middleware
from dashboard.views.inference import address as inference_address
from dashboard.views.inference import cells, form, result
from dashboard.widgets import run_parts
from engine.access.policy import Actor
from engine.charts import inference as charts_inference
from engine.charts.inference import curve_chart, heat_map, ladder_chart
from engine.common import units
from engine.common.errors import ConfigError
from engine.config.inference import infer_config, infer_matrix
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.tasks import Cell
from engine.events.inference import Latency, Quality
from engine.events.lifecycle import Cancelled, Failed, Interrupted
from engine.runtime.client import Client
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from engine.studies.inference import in_words, matrix_of, sweet_spot
from tests.fakes import make_run

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 16, 64)
QUICK = {"seconds": 0.1, "rounds": 2, "warm_up": 3}


# --- what is measured once for all of them ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(supervised):
    return supervised.until(supervised.submit("budget.epochs=3"), "finished")


def measured(supervised, config, **more):
    return supervised.until(supervised.client.submit(config, **more), "finished")


@pytest.fixture(scope="module")
def matrix_run(supervised, trained):
    return measured(supervised, infer_matrix(infer_config(trained.config, trained.run_id, **QUICK), SIZES))


@pytest.fixture(scope="module")
def ladder_run(supervised, trained):
    base = infer_config(trained.config, trained.run_id, **QUICK)
    forms = ("eager", "inference_mode", "channels_last", "int8")
    return measured(supervised, infer_matrix(base, (1, 16), runtimes=forms))


@pytest.fixture(scope="module")
def arrival_runs(supervised, trained):
    """One rate that is answered with ease, and one beyond what batches of 64 can be."""
    runs = []
    for rate in (50.0, 200_000.0):
        cells = [Cell(batch_size=64).model_dump()]
        load = {**QUICK, "load": "open", "rate": rate, "requests": 2_000, "cells": cells}
        config = infer_config(trained.config, trained.run_id, **load)
        runs.append(measured(supervised, config, group="arrivals"))
    return runs


@pytest.fixture
def folder(store, monkeypatch):
    """A store of the test's own, with copies of what it asks for, and nobody who runs what is submitted."""
    monkeypatch.setenv("ISOFLOP_HOME", str(store.root))
    monkeypatch.setattr(Client, "wake", lambda _: None)
    _forget()
    yield store
    _forget()


def _forget():
    for cached in (state.store, state.machine, readers._readers, form.known_latencies_of):
        getattr(cached, "clear", None) or cached.cache_clear
        (cached.clear if hasattr(cached, "clear") else cached.cache_clear)()


def copied(store: Store, *runs: Run) -> None:
    for run in runs:
        shutil.copytree(run.folder, store.runs / run.run_id)


def half(store: Store, run: Run, share: float = 0.5) -> tuple[Run, list[bytes]]:
    """The same run as it was when only some of its log was written, and what came then."""
    target = store.runs / run.run_id
    target.mkdir()
    shutil.copy(run.folder / "config.json", target)
    lines = (run.folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if b'"kind":"latency"' in line]
    cut = at[int(share * len(at))]
    (target / "events.jsonl").write_bytes(b"".join(lines[:cut]))
    return store.run(run.run_id), lines[cut:]


# --- the route ----------------------------------------------------------------------------------------------------


def figures(*runs, **asked):
    answer = inference_api.figures(runs, **asked)
    json.dumps(answer, allow_nan=False)
    return answer


def accuracy_of(run):
    return units.accuracy(run.summary().test_accuracy)


def test_whoever_has_nothing_gets_every_cell_and_then_only_those_that_moved(store, matrix_run):
    run, rest = half(store, matrix_run)
    first = figures(run)
    assert first["reset"] and len(first["cells"]) == len(SIZES)
    assert "cells" not in figures(run, after=first["cursor"])
    with (run.folder / "events.jsonl").open("ab") as log:
        log.writelines(rest)
    before = {cell: m.round for cell, m in run.by_key(Latency).items()}
    run.refresh()
    moved = [c for c in run.config.cells if run.by_key(Latency)[c].round > before.get(c, 0)]
    answer = figures(run, after=first["cursor"])
    assert not answer["reset"]
    assert [c["batch_size"] for c in answer["cells"]] == [c.batch_size for c in moved] != []


@pytest.mark.parametrize("cursor", ["", "x", "9-9-9", "0-0", "-1", "0-0-0-0-0", "0.0.0"])
def test_a_cursor_that_cannot_be_of_these_runs_starts_anew(matrix_run, cursor):
    assert figures(matrix_run, after=cursor)["reset"]


def test_a_cell_is_told_as_it_was_measured(matrix_run):
    answer = figures(matrix_run)
    told = {c["batch_size"]: c for c in answer["cells"]}
    for cell, m in matrix_run.by_key(Latency).items():
        row = told[cell.batch_size]
        assert row["p99"] == pytest.approx(m.p99_s, rel=1e-5)
        assert row["samples_per_s"] == pytest.approx(m.samples_per_s, rel=1e-5)
        assert row["at"] == (0, SIZES.index(cell.batch_size), 0)
    assert [row["label"] for row in answer["about"]["rows"]] == ["1", "16", "64"]
    assert [column["label"] for column in answer["about"]["columns"]] == ["1 thread"]
    assert answer["over"] and answer["status"] == "finished"


def test_the_sentence_is_the_engines_and_accuracy_stands_beside_it(matrix_run):
    answer = figures(matrix_run, limit_s=10.0)
    best = max(matrix_run.by_key(Latency).values(), key=lambda m: m.samples_per_s).cell
    assert answer["verdict"]["sweet"] == f"{best.batch_size}x1-fp32-inference_mode"
    whole = in_words(matrix_of(matrix_run), 10.0)
    assert whole.startswith(answer["verdict"]["sentence"] + " ")
    assert any(accuracy_of(matrix_run) in text for text in answer["verdict"]["besides"])


def test_before_the_accuracy_is_known_the_sentence_says_that_it_comes(store, matrix_run):
    run, _ = half(store, matrix_run, share=0.4)
    run.by_key(Quality).clear()
    assert run.latencies
    besides = figures(run, limit_s=100.0)["verdict"]["besides"]
    assert "The accuracy is measured after the first round." in besides


def test_a_limit_nothing_meets_names_the_nearest_and_still_tells_the_accuracy(matrix_run):
    verdict = figures(matrix_run, limit_s=1e-9)["verdict"]
    assert verdict["sweet"] is None and verdict["sentence"].startswith("No combination stays under")
    assert any(accuracy_of(matrix_run) in text for text in verdict["besides"])


def test_an_open_cell_brings_its_whole_distribution_and_its_time_beside_the_hardware(matrix_run):
    key = "16x1-fp32-inference_mode"
    detail = figures(matrix_run, cell=key)["detail"]
    m = matrix_run.by_key(Latency)[Cell(batch_size=16)]
    assert sum(detail["histogram"]["n"]) == m.requests
    assert detail["histogram"]["low"][1:] == detail["histogram"]["high"][:-1]
    assert detail["histogram"]["low"][0] <= min(m.latency_s) <= max(m.latency_s) <= detail["histogram"]["high"][-1]
    assert len(detail["timeline"]["x"]) == len(m.start_s)
    assert detail["hardware"]["x"] and len(detail["hardware"]["process_cpu"]) == len(detail["hardware"]["x"])
    titles = [title for title, _, _ in detail["facts"]]
    assert {"Throughput", "p99", "Test accuracy", "First answer", "Peak memory", "Energy"} <= set(titles)
    assert "detail" not in figures(matrix_run, cell=key, held=detail["version"])
    assert "detail" not in figures(matrix_run, cell="no such cell")


def test_a_ladder_tells_gains_and_prices_and_what_did_not_run_says_why(ladder_run):
    ladder = figures(ladder_run)["ladder"]
    rows = {row["name"]: row for row in ladder["rows"]}
    assert list(rows) == ["eager PyTorch", "PyTorch in inference mode", "PyTorch, channels last", "PyTorch int8"]
    assert "Not run: Channels last is a layout for convolutions of images" in rows["PyTorch, channels last"]["why"]
    eager, int8 = (ladder_run.by_key(Latency)[Cell(batch_size=1, runtime=r)].p50_s for r in ("eager", "int8"))
    assert f"{eager / int8:.2f} ×" in rows["PyTorch int8"]["values"]
    assert all(len(row["values"]) == len(ladder["columns"]) - 1 for row in ladder["rows"])
    assert [bar["name"] for bar in ladder["bars"]] == ["batch 1", "batch 16"]


def test_software_stands_at_the_side_where_it_is_what_was_varied(ladder_run, matrix_run):
    about = figures(ladder_run)["about"]
    assert (about["kind"], len(about["rows"]), len(about["columns"])) == ("ladder", 4, 2)
    assert figures(matrix_run)["about"]["kind"] == "matrix"


def keeping_up(run, reached):
    """The run as if it had answered this many a second, whatever else the machine did."""
    again = Run(run.folder)
    for cell, m in again.by_key(Latency).items():
        again.by_key(Latency)[cell] = m.model_copy(update={"reached_per_s": reached})
    return again


def test_several_rates_are_one_measurement(arrival_runs):
    slow, fast = keeping_up(arrival_runs[0], 1e6), keeping_up(arrival_runs[1], 10_000.0)
    answer = figures(slow, fast, limit_s=100.0)
    assert [c["offered"] for c in answer["cells"]] == [50.0, 200_000.0]
    assert [row["label"] for row in answer["about"]["rows"]] == ["50/s", "200 k/s"]
    assert "serves up to 50 requests/s that arrive at random" in answer["verdict"]["sentence"]
    assert answer["verdict"]["sweet"] == "50r-64x1-fp32-inference_mode"
    assert answer["verdict"]["besides"][0].startswith("At 200 k requests/s the p99 is")


def test_no_rate_in_time_and_none_kept_up_with_are_told_apart(arrival_runs):
    slow, fast = arrival_runs
    none = figures(slow, fast, limit_s=1e-9)["verdict"]
    assert none["sentence"].startswith("No rate stays under your 0.001 µs: at 50 requests/s") and none["sweet"] is None
    behind = figures(keeping_up(slow, 5.0), keeping_up(fast, 5.0), limit_s=100.0)["verdict"]
    assert behind["sentence"].startswith("Requests arrive faster than they are answered, even at 50 requests/s")


def test_on_a_gpu_precisions_stand_across(store):
    base = infer_config(preset_config("lenet").model_copy(update={"device": "cuda:0"}))
    run = store.run(store.create(infer_matrix(base, (1, 8), precisions=("fp32", "bf16"))))
    answer = figures(run)
    assert [c["label"] for c in answer["about"]["columns"]] == ["fp32", "bf16"]
    assert answer["verdict"]["waits"] and answer["doing"] == "waiting for other runs to end"


def test_cells_that_differ_in_more_than_two_ways_are_in_slices(store):
    base = infer_config(preset_config("lenet"))
    config = infer_matrix(base, (1, 8), threads=(1, 2), runtimes=("eager", "int8"))
    about = figures(store.run(store.create(config)))["about"]
    assert [s["label"] for s in about["slices"]] == ["eager PyTorch", "PyTorch int8"]


@pytest.fixture
def client(folder):
    return TestClient(Starlette(routes=inference_api.ROUTES))


def test_the_route_refuses_in_words_what_it_cannot_tell(client, folder, matrix_run):
    copied(folder, matrix_run)
    other = make_run(folder).run_id

    def ask(**params):
        answer = client.get("/api/inference", params=params)
        return answer.status_code, answer.json().get("error", "")

    assert ask(runs=matrix_run.run_id) == (200, "")
    assert ask(runs=matrix_run.run_id, limit_s="nan", quantile="p1", cell="<b>", held="x") == (200, "")
    assert ask() == (400, "Ask for 1 to 16 runs, not 0.")
    assert ask(runs=",".join(["a" * 16] * 17))[0] == 400
    assert ask(runs="f" * 16)[0] == 404
    assert ask(runs=other) == (404, f"Run {other} does not measure inference.")


def test_only_who_may_look_may_ask():
    assert auth_middleware.decide("/api/inference", "GET") == "viewer"
    assert auth_middleware.decide("/api/inference", "POST") == "nobody"


# --- the charts of a report ---------------------------------------------------------------------------------------


def test_a_reports_charts_show_what_was_measured(matrix_run, ladder_run):
    found = matrix_of(matrix_run)
    heat = heat_map(found, "p99").data[0]
    assert list(heat.y) == ["1", "16", "64"] and list(heat.x) == ["1 thread"]
    curve = curve_chart(found, 10.0)
    assert len(curve.data[0].x) == len(SIZES)
    best = sweet_spot(found, 10.0).best
    assert best and curve.data[1].y == (best.samples_per_s,)
    edges, counts = charts_inference.bars(matrix_run.by_key(Latency)[Cell(batch_size=1)], most=10)
    assert (
        sum(counts) == matrix_run.by_key(Latency)[Cell(batch_size=1)].requests and len(edges) == len(counts) + 1 <= 11
    )
    bars = ladder_chart(matrix_of(ladder_run)).data
    assert [bar.name for bar in bars] == ["batch 1", "batch 16"] and len(bars[0].x) == 3


# --- the page -----------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """What the live view was given at the last drawing."""
    told: dict[str, object] = {}

    def live(runs, limit_s, by, *, alive):
        told.update(runs=[run.run_id for run in runs], limit_s=limit_s, by=by, alive=alive)

    monkeypatch.setattr(result, "live_view", live)
    return told


@pytest.fixture
def app(folder, seen):
    return AppTest.from_file(str(ROOT / "dashboard" / "main.py"), default_timeout=60)


def opened(app, **params):
    app.run()
    app.switch_page(str(ROOT / "pages" / "inference.py"))
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    assert not app.exception
    return app


def said(app):
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error)
    return " ".join(e.value for kind in kinds for e in kind).replace("\\", "")


def wrong(app):
    return " ".join(e.value for e in app.error).replace("\\", "")


def address(app):
    return {k: v[0] if isinstance(v, list) else v for k, v in app.query_params.items()}


def submitted(store):
    runs = [store.run(run_id) for run_id in store.ids()]
    return sorted((r for r in runs if r.status == "queued"), key=lambda r: r.order)


def run_button(app):
    return next(b for b in app.button if b.key == "run")


def test_an_empty_store_says_what_to_do_first_and_how_long_it_takes(app):
    opened(app)
    assert "Press Run" in said(app) and "There is no finished training run" in said(app)
    assert "estimated from" in said(app)
    assert not run_button(app).disabled


def test_a_link_of_a_trained_run_chooses_its_weights(app, folder, trained):
    copied(folder, trained)
    make_run(folder)  # has no weights, so it is not offered
    opened(app, of=trained.run_id)
    box = app.selectbox(key="infer.of")
    assert box.value == trained.run_id
    assert describe(trained.config) in said(app)
    assert len([option for option in box.options if "Fresh" not in option and "safetensors" not in option]) == 1
    assert address(app) == {"view": "Matrix", "of": trained.run_id}


def test_a_run_without_weights_says_why(app, folder):
    run = make_run(folder)
    opened(app, run=run.run_id)  # as from a bare link
    assert "has no weights" in said(app)


@pytest.mark.parametrize("params", [{"run": "f" * 16}, {"run": "../../etc"}, {"of": "f" * 16}])
def test_a_link_to_a_missing_run_says_so(app, params):
    assert "is not in this store" in said(opened(app, **params))


def test_the_chosen_combinations_are_measured(app, folder, trained, monkeypatch):
    copied(folder, trained)
    monkeypatch.setattr(cells, "pick", lambda *_, **__: ["64x1", "1x1"])
    opened(app, of=trained.run_id)
    app.number_input(key="infer.knob.seconds.Matrix").set_value(0.5).run()
    run_button(app).click().run()
    [run] = submitted(folder)
    assert [(c.batch_size, c.threads) for c in run.config.cells] == [(1, 1), (64, 1)]
    assert (run.config.infer.run, run.config.infer.seconds) == (trained.run_id, 0.5)
    assert run.config.threads == cells.usable_cores()  # nothing else beside it
    assert address(app)["run"] == run.run_id


def test_without_a_combination_nothing_can_be_started(app, monkeypatch):
    monkeypatch.setattr(cells, "pick", lambda *_, **__: [])
    opened(app)
    assert "No combination is chosen" in wrong(app)
    assert run_button(app).disabled


def test_an_input_shape_of_another_model_is_refused(app):
    opened(app)
    app.selectbox(key="infer.of").select("preset:lenet").run()
    app.text_input(key="infer.knob.shape").set_value("1x1x224x224").run()
    assert "infer.shape=1x1x224x224 is not what this LeNet takes" in wrong(app)
    assert run_button(app).disabled


def test_a_pickle_is_refused(app, tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"PK\x03\x04whatever")
    opened(app)
    app.selectbox(key="infer.of").select("file").run()
    assert "No weights file is chosen yet" in wrong(app)
    app.text_input(key="infer.file.path").set_value(str(file)).run()
    assert "reading a pickle runs the code inside it" in wrong(app)


def test_a_measurement_is_found_again_by_its_link_with_limit_and_quantile(app, folder, trained, matrix_run, seen):
    copied(folder, trained, matrix_run)
    link = {"view": "Matrix", "run": matrix_run.run_id, "limit": "20", "by": "p90"}
    opened(app, **link)
    assert seen == {"runs": [matrix_run.run_id], "limit_s": 0.02, "by": "p90", "alive": False}
    assert app.selectbox(key="infer.of").value == trained.run_id
    assert address(app) == link
    app.number_input(key="infer.limit").set_value(3.0).run()
    assert seen["limit_s"] == pytest.approx(3e-3) and address(app)["limit"] == "3"


def test_choosing_weights_shows_their_newest_measurement(app, folder, trained, matrix_run, ladder_run, seen):
    copied(folder, trained, matrix_run, ladder_run)
    opened(app, of=trained.run_id)
    assert seen["runs"] == [matrix_run.run_id]
    app.session_state["infer.view"] = "Software"
    app.run()
    assert seen["runs"] == [ladder_run.run_id] and address(app)["run"] == ladder_run.run_id
    seen.clear()
    app.selectbox(key="infer.of").select("preset:lenet").run()
    assert not seen and address(app) == {"view": "Software"}


def test_a_measurement_of_runtimes_opens_in_its_own_view(app, folder, ladder_run, seen):
    copied(folder, ladder_run)  # its training run is missing: the measurement is still shown
    opened(app, **run_parts.address_of(ladder_run))
    assert address(app)["view"] == "Software" and seen["runs"] == [ladder_run.run_id]


def test_only_runtimes_that_the_model_can_use_are_chosen_at_first(app, folder, trained):
    copied(folder, trained)
    opened(app, of=trained.run_id, view="Software")
    run_button(app).click().run()
    runtimes = {c.runtime for c in submitted(folder)[0].config.cells}
    assert {"eager", "inference_mode", "int8"} <= runtimes and not {"compiled", "channels_last"} & runtimes


def test_each_rate_is_a_run_and_the_group_is_one_measurement(app, folder, trained, seen):
    copied(folder, trained)
    opened(app, of=trained.run_id, view="Arrivals")
    rates = next(t for t in app.text_input if t.label.startswith("Rates"))
    rates.set_value("100, 50").run()
    run_button(app).click().run()
    runs = submitted(folder)
    assert [(r.config.infer.load, r.config.infer.rate) for r in runs] == [("open", 50.0), ("open", 100.0)]
    assert len({run.group for run in runs}) == 1 and runs[0].group
    assert seen["runs"] == [run.run_id for run in runs] and seen["alive"]
    assert address(app)["run"] == runs[0].run_id


@pytest.mark.parametrize(
    ("text", "says"),
    [("a", "are not numbers"), ("0", "are not allowed"), ("", "are not allowed"), ("1e9", "are not allowed")],
)
def test_text_that_is_not_a_rate_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        form.parse_rates(text)


def test_shapes_can_be_written_in_several_ways():
    assert form.parse_shape("1x28x28") == form.parse_shape("1, 28, 28") == (1, 28, 28)
    assert form.parse_shape("") == ()
    with pytest.raises(ConfigError, match="whole numbers"):
        form.parse_shape("28 by 28")


@pytest.mark.parametrize(
    ("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (64, [1, 2, 4, 8, 16, 32, 64])]
)
def test_threads_go_up_to_all_usable_cores(cores, counts):
    assert cells.thread_counts(cores) == counts


@pytest.mark.parametrize(
    ("last", "says"),
    [
        (Failed(at=0, cause="ConfigError", message="The weights of run x are not those it saved.", fix="Train it again."), "Train it again."),
        (Interrupted(at=0, reason="the machine was shut down"), "the machine was shut down"),
        (Cancelled(at=0, reason="cancelled by the user"), ""),
    ],
)  # fmt: skip
def test_one_that_ended_early_says_why_and_keeps_what_it_measured(app, folder, matrix_run, seen, last, says):
    run, _ = half(folder, matrix_run)
    EventLog(run.folder / "events.jsonl").close(last)
    opened(app, run=run.run_id)
    assert says in said(app) and seen["runs"] == [run.run_id] and not seen["alive"]
    assert figures(folder.run(run.run_id), limit_s=10.0)["verdict"]["sweet"]


def test_a_viewer_sees_a_measurement_and_cannot_start_one(app, folder, matrix_run, seen, monkeypatch):
    copied(folder, matrix_run)
    (folder.root / "settings.toml").write_text('[sign_in]\nmethod = "oidc"\nallowed = ["a@b.c"]\n')
    (folder.root / "settings.toml").chmod(0o600)
    monkeypatch.setattr(state, "actor", lambda: Actor("oidc", "a@b.c"))
    opened(app, run=matrix_run.run_id)
    assert seen["runs"] == [matrix_run.run_id] and run_button(app).disabled


def test_the_command_measures_the_same_combinations(app, folder, trained):
    copied(folder, trained)
    opened(app, of=trained.run_id)
    [command] = [c.value for c in app.code]
    assert command.startswith(f"python -m engine infer --run {trained.run_id}")
    assert "--batch-sizes 1,2,4,8,16,32,64,128,256,512,1024" in command


# --- other pages --------------------------------------------------------------------------------------------------


def links(app):
    return [(link.proto.page, link.proto.label) for link in app.get("page_link")]


def test_a_finished_training_run_links_to_its_inference(folder, trained, app):
    copied(folder, trained)
    app.run()
    app.switch_page(str(ROOT / "pages" / "train.py"))
    app.query_params["run"] = trained.run_id
    app.run()
    assert ("inference", "Measure inference") in links(app)
    app.query_params["run"] = make_run(folder).run_id
    app.run()
    assert "Measure inference" not in [label for _, label in links(app)]


def test_a_list_opens_a_measurement_where_it_is_shown(matrix_run):
    assert run_parts.page_of(matrix_run) == "../pages/inference.py"
    assert run_parts.address_of(matrix_run) == {"run": matrix_run.run_id}


def test_a_measurement_in_the_library_shows_its_own_figures(folder, matrix_run):
    def page():
        import os

        from dashboard import state
        from dashboard.widgets import run_results

        run_results.final_figures(state.open_run(os.environ["RUN_OF_A_TEST"]))

    copied(folder, matrix_run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUN_OF_A_TEST", matrix_run.run_id)
        told = {m.label: m.value for m in AppTest.from_function(page, default_timeout=30).run().metric}
    assert told["Cells measured"] == "3 of 3" and told["Test accuracy"].endswith("%")


def test_a_measurement_belongs_to_the_view_of_its_combinations(matrix_run):
    assert matrix_run.config != RunConfig()
    assert inference_address.view_of(matrix_run.config) == "Matrix"
