"""Export and import: runs of every task are equal in another store, except for ids and the import mark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engine.common.errors import ConfigError, EngineError, StoreError
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS, preset_config
from engine.config.run import RunConfig
from engine.events.imported import Rows
from engine.events.inference import Latency
from engine.events.lifecycle import Finished
from engine.events.machine import Calibration, Measurement
from engine.events.training import Ranks
from engine.measurement import calibration, energy
from engine.reports import sharing
from engine.reports.html.page import render
from engine.reports.report import Report, concluded
from engine.reports.sharing import rebuilding
from engine.reports.sharing.__main__ import import_file
from engine.runtime import worker
from engine.runtime.client import Client
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.integrity_check import check
from engine.store.run import Run
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.store.store import Store
from engine.studies import races
from engine.studies.inference_time import known_latencies
from engine.studies.loss_surface import config_for, read_surface
from engine.studies.race_results import outcome
from engine.system import sandbox
from tests.conftest import ROOT
from tests.fakes import make_run, make_scaled

RECORDINGS = Path(__file__).parents[1] / "recordings"
GROUP = "0123456789abcdef"
QUICK = {"requests": 20, "seconds": 0.2, "warm_up": 2, "rounds": 2}


@pytest.fixture
def here(monkeypatch):
    """Read files in this process, which is a second faster; other tests cover the limited process."""

    def ask(module, question, **limits):
        try:
            return json.loads(json.dumps(import_file(json.loads(json.dumps(question)))))
        except EngineError as error:
            raise ConfigError(error.message, fix=error.fix) from None

    monkeypatch.setattr(sandbox, "ask", ask)


@pytest.fixture
def other(tmp_path):
    return Store(tmp_path / "other")


def frozen(runs, **choices) -> Report:
    return Report.freeze("A report", runs, clock=lambda: 5.0, **choices)


def told(report: Report) -> list[dict]:
    """The runs of a report without ids and the import mark, which an import changes."""
    data = json.loads(report.to_json())
    ids = {run["run_id"]: str(number) for number, run in enumerate(data["runs"])}
    for run in data["runs"]:
        del run["imported"]
        run["run_id"] = ids[run["run_id"]]
        run["group"] = run["group"] and "group"
        run["heat"] = run["heat"] and {key: value for key, value in run["heat"].items() if key != "id"}
        if origin := run["config"]["infer"]["run"]:
            run["config"]["infer"]["run"] = ids.get(origin, origin)
            run.pop("fingerprint")
        if paths := run["config"]["landscape"]["runs"]:
            run["config"]["landscape"]["runs"] = [ids.get(run_id, run_id) for run_id in paths]
            run.pop("fingerprint")  # it is made of those ids
            run.pop("files")
    return data["runs"]


def written(report: Report, path: Path, runs=()) -> Path:
    match path.suffix:
        case ".json":
            path.write_text(report.to_json(), encoding="utf-8")
        case ".html":
            path.write_text(render(report), encoding="utf-8")
        case _:
            sharing.write_zip(path, report, {run.run_id: run for run in runs})
    return path


def brought(other: Store, path: Path) -> list[Run]:
    return [other.run(run_id) for run_id in sharing.import_files(other, [path], owner="terminal").run_ids]


# --- real runs of every task ------------------------------------------------------------------------------------------


def worked(store: Store, config: RunConfig, *, stop_after: str = "", name: str = "") -> Run:
    """A run that really ran in this process; it is stopped once its log has an event of this kind."""
    run_id = store.create(config, name=name)
    folder = store.folder(run_id)
    if stop_after:
        threading.Thread(target=_stopper, args=(folder, f'"kind":"{stop_after}"'), daemon=True).start()
    worker.run(folder)
    return store.run(run_id)


def _stopper(folder: Path, word: str) -> None:
    until = time.monotonic() + 60
    while word not in (folder / "events.jsonl").read_text() and time.monotonic() < until:
        time.sleep(0.01)
    ask_to_stop(folder, StopRequest())


DIGITS = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=80", "evaluate_every=20"])


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> tuple[Store, dict[str, Run]]:
    """One run of each kind, as workers write them."""
    store = Store(tmp_path_factory.mktemp("real"))
    paths = [worked(store, with_overrides(DIGITS, ["checkpoints=5", f"seed={seed}"])) for seed in (0, 1)]
    law = [
        "law.batch_sizes=4,32,256",
        "law.full_batch=false",
        "law.target_loss=0.5",
        "law.seeds=2",
        "law.tuning_seeds=1",
    ]
    table = store.root / "alice.csv"
    table.write_text("a,b,kind\n" + "".join(f"{i % 7},{i % 5},{'xy'[i % 2]}\n" for i in range(60)), encoding="utf-8")
    runs = {
        "trained": worked(store, with_overrides(DIGITS, ["target.value=0.3", "max_grad_norm=1"]), name="a name"),
        "diverged": worked(store, with_overrides(DIGITS, ["optimizer.name=sgd", "optimizer.lr=1000000"])),
        "cancelled": worked(store, with_overrides(DIGITS, ["budget.steps=5000000"]), stop_after="evaluation"),
        "failed": worked(store, with_overrides(DIGITS, ["data=csv", f"source.path={store.root / 'none.csv'}"])),
        "own file": worked(store, with_overrides(DIGITS, ["data=csv", f"source.path={table}", "model.hidden=[4]"])),
        "text": worked(store, with_overrides(DIGITS, [
            "data=text", "source.seq_len=16", "model.family=rnn", "model.hidden_size=8", "budget.steps=20", "batch_size=8",
        ])),
        "law": worked(store, with_overrides(preset_config("digits-law"), law)),
        "path": paths[0],
        "surface": worked(store, config_for(paths, resolution=11, examples=100)),
        "calibration": worked(store, preset_config("calibrate"), stop_after="progress"),
        "queued": store.run(store.create(DIGITS, name="never ran")),
    }  # fmt: skip
    cells = infer_matrix(infer_config(DIGITS, runs["trained"].run_id, **QUICK), (1, 4), precisions=("fp32", "fp16"))
    runs["inference"] = worked(store, cells)
    return store, runs


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("ending", [".json", ".html", ".zip"])
def test_real_runs_of_every_task_are_equal_after_export_and_import(real, other, tmp_path, ending):
    store, runs = real
    sent = [run for name, run in runs.items() if name != "queued"]
    assert {run.status for run in sent} == {"finished", "failed", "cancelled"}
    first = frozen(sent, account_of=lambda run: energy.in_store(store, run))
    back = brought(other, written(first, tmp_path / f"all{ending}", sent))
    again = frozen(back, account_of=lambda run: energy.in_store(other, run))
    for one, two in zip(told(first), told(again), strict=True):
        assert one == two, one["config"]["task"]
    assert check(other).problems == []
    assert not {run.run_id for run in back} & {run.run_id for run in sent}


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_an_imported_surface_has_the_paths_of_the_imported_runs(real, other, tmp_path):
    _, runs = real
    surface = runs["surface"]
    both = brought(other, written(frozen([runs["path"], surface]), tmp_path / "r.json"))
    found, was = read_surface(both[1]), read_surface(surface)
    np.testing.assert_array_equal(found.loss, was.loss)
    known, unknown = surface.config.landscape.runs
    assert list(found.paths) == [both[0].run_id, unknown]
    np.testing.assert_array_equal(found.paths[both[0].run_id].xy, was.paths[known].xy)


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_imported_inference_has_its_latencies_refusals_and_training_run(real, other, tmp_path):
    _, runs = real
    was = runs["inference"]
    report = frozen([runs["trained"], was])
    trained, back = brought(other, written(report, tmp_path / "r.json"))
    assert back.config.infer.run == trained.run_id
    assert {c: found.model_dump() for c, found in back.by_key(Latency).items()} == {
        c: found.model_dump() for c, found in was.by_key(Latency).items()
    }
    assert was.latencies and back.qualities == was.qualities and back.not_run == was.not_run
    assert len(report.runs[1].latencies) == len(was.latencies)  # the last event of each combination, not one per round
    assert known_latencies(other, was.config) == {}, "another machine says nothing of this one"


@pytest.mark.usefixtures("here")
def test_events_of_ranks_are_imported(store, other, tmp_path):
    config = with_overrides(PRESETS["digits-mlp"].config, ["parallel.num_ranks=2"])
    was = make_scaled(store, config, group=GROUP, label="two", step_s=0.01, waited_s=(0.001, 0.004))
    (back,) = brought(other, written(frozen([was]), tmp_path / "r.json"))
    assert was.all(Ranks) and back.all(Ranks) == was.all(Ranks)
    assert told(frozen([back])) == told(frozen([was]))


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_zip_contains_weights_on_request(real, other, tmp_path):
    _, runs = real
    files = ("model.safetensors", "trajectory.safetensors")
    sent = [runs["path"]]
    (back,) = brought(other, written(frozen(sent, files=files), tmp_path / "r.zip", sent))
    for name in files:
        assert (back.folder / name).read_bytes() == (sent[0].folder / name).read_bytes()
    assert told(frozen([back], files=files)) == told(frozen(sent, files=files))
    (bare,) = brought(other, written(frozen(sent), tmp_path / "bare.zip", sent))
    assert not list(bare.folder.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_run_exported_while_running_is_imported_as_interrupted_and_never_runs(real, other, tmp_path):
    _, runs = real
    (back,) = brought(other, written(frozen([runs["queued"]]), tmp_path / "r.json"))
    assert (back.status, back.why()) == ("interrupted", "It was queued when the report was made.")


# --- how it lives here --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_an_imported_run_is_marked_wherever_it_is_shown(store, other, tmp_path):
    report = frozen([make_run(store, name="theirs")])
    (back,) = brought(other, written(report, tmp_path / "r.json"))
    assert back.owner == "terminal"
    assert back.imported and back.imported.origin.from_run_id == report.runs[0].run_id
    assert back.imported.origin.content_hash == report.content_hash
    (line,) = other.listing(search="imported").lines
    assert line.is_imported and line.words.endswith("imported, unverified")
    assert other.rows()[0].summary.imported == "report"
    assert frozen([back]).runs[0].imported == back.imported.origin


@pytest.mark.usefixtures("here")
def test_a_supervisor_lists_imported_runs_and_adopts_none(store, other, tmp_path):
    brought(other, written(frozen([make_run(store), make_run(store, diverges_at=140)]), tmp_path / "r.json"))
    supervisor = Supervisor(other, None)  # type: ignore[arg-type]
    supervisor.recover()
    supervisor.tick()
    assert supervisor.is_idle
    assert {row.status for row in supervisor.index.rows()} == {"finished", "failed"}
    assert all(row.summary.imported for row in supervisor.index.rows())
    supervisor.index.close()


CALIBRATION = Calibration(
    at=1e9, device="cpu", device_name="AMD EPYC 9575F", threads=(1,), versions={}, rounds=2, seconds=1.0,
    measurements=(
        Measurement(name="idle_power", unit="w", p05=50, best=50, median=50, spread=None, calls=9),
        Measurement(name="gemm", unit="flops_per_s", dtype="fp32", shape=(512,) * 3, p05=9e10, best=9e10, median=9e10, calls=9),
    ),
)  # fmt: skip


@pytest.mark.usefixtures("here")
def test_an_imported_calibration_is_not_used_for_this_machine(store, other, tmp_path):
    named = "calibration of this machine"  # as the listing calls one that is
    theirs = make_run(store, preset_config("calibrate"), name=named, num_steps=1, said=[CALIBRATION])
    assert calibration.latest(store, "cpu", "AMD EPYC 9575F")
    (back,) = brought(other, written(frozen([theirs]), tmp_path / "r.json"))
    assert back.latest(Calibration) == CALIBRATION
    assert calibration.latest(other, "cpu", "AMD EPYC 9575F") is None
    assert "another machine" in other.listing().lines[0].words


@pytest.mark.usefixtures("here")
def test_an_imported_run_does_not_use_this_machines_calibration_and_prices(store, other, tmp_path):
    make_run(other, preset_config("calibrate"), num_steps=1, said=[CALIBRATION])
    last = Finished(at=1e9, energy_j=500.0, energy_source="rapl", energy_window_s=20, energy_period_s=0.1)
    theirs = make_run(store, last=last)
    (other.root / "settings.toml").write_text("[energy]\nprice_per_kwh = 0.3\ncurrency = 'EUR'\n")
    (other.root / "settings.toml").chmod(0o600)
    (back,) = brought(other, written(frozen([theirs]), tmp_path / "r.json"))
    account = energy.in_store(other, back)
    assert (account.joules, account.idle_w, account.money) == (500.0, None, None)
    assert calibration.of_run(back) == ("cpu", None)


def race_of(store: Store) -> races.Race:
    lanes = [
        races.Lane(label="slow", config=RunConfig()),
        races.Lane(label="fast", config=with_overrides(RunConfig(), ["optimizer.lr=0.01"])),
    ]
    for heat in races.seed_blocks(lanes, (0, 1), GROUP):
        for number, wanted in enumerate(heat):
            run = make_run(
                store, wanted.config, name=wanted.name, group=GROUP, seed=7 * number + wanted.config.seed, num_steps=500
            )
            store.rename(run.run_id, f"{wanted.name} renamed") if number else None
    race = races.find(store, GROUP)
    assert race
    return race


@pytest.mark.process
def test_a_report_that_is_imported_twice_is_one_report(store, other, tmp_path):
    report = frozen([make_run(store, num_steps=40)])
    page, document = written(report, tmp_path / "r.html"), written(report, tmp_path / "r.json")
    first = sharing.import_files(other, [page, document])
    assert len(first.run_ids) == len(first.report_ids) == 1 and "r.json: the same report as r.html." in first.warnings
    again = sharing.import_files(other, [document])
    assert (again.run_ids, again.report_ids) == (first.run_ids, first.report_ids)
    assert "was imported before" in again.warnings[0] and len(other.rows()) == 1
    other.delete(first.run_ids[0])
    assert sharing.import_files(other, [document]).run_ids != first.run_ids and len(other.rows()) == 1
    assert len(sharing.saved_reports(other)) == 1


@pytest.mark.usefixtures("here")
def test_an_imported_race_opens_as_a_race_with_the_same_table(store, other, tmp_path):
    race = race_of(store)
    result = outcome(race, target=0.8)
    report = frozen(race.runs, conclusions=concluded(race.runs, target=0.8), notes="# What *we* saw")
    imports = sharing.import_files(other, [written(report, tmp_path / "race.html")])
    (group,) = imports.group_ids
    assert group != GROUP
    back = races.find(other, group)
    assert back and [lane.label for lane in back.lanes] == ["slow", "fast"] and back.seeds == [0, 1]
    again = outcome(back, target=0.8)
    for lane, was in zip(again.lanes, result.lanes, strict=True):
        assert lane.cost == pytest.approx(was.cost)
        assert lane.test_accuracy == was.test_accuracy
        assert lane.verdicts.keys() == was.verdicts.keys()
    assert {run.name for run in back.lanes[1].runs.values()} == {"fast renamed"}
    (saved,) = sharing.saved_reports(other)
    assert saved.notes == "# What *we* saw" and saved.conclusions[0].group == group
    assert {i for lane in saved.conclusions[0].outcome.lanes for i in lane.run_ids} == set(imports.run_ids)


@pytest.mark.usefixtures("here")
def test_an_imported_race_does_not_accept_new_seeds(store, other, tmp_path):
    imports = sharing.import_files(
        other, [written(frozen(race_of(store).runs), tmp_path / "race.json")], owner="terminal"
    )
    with pytest.raises(ConfigError, match="was imported, so no runs can be added"):
        Client(other).submit(RunConfig(seed=5), group=imports.group_ids[0])


@pytest.mark.usefixtures("here")
def test_the_import_of_a_page_with_fewer_points_warns(store, other, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.reports.html.page.MAX_HTML_BYTES", 2_200_000)
    run = make_run(store, num_steps=40_000, step_s=1e-4)
    imports = sharing.import_files(other, [written(frozen([run]), tmp_path / "r.html")])
    back = other.run(imports.run_ids[0])
    assert len(back.steps) < 40_000 == back.imported.recorded_steps
    assert f"The file contains {len(back.steps):,} of 40,000 steps; " in imports.warnings[0]
    assert back.steps["loss"].max() == run.steps["loss"].max()
    assert back.summary().model_copy(update={"imported": None}) == run.summary()
    assert other.rows()[0].summary.steps == 40_000


@pytest.mark.usefixtures("here")
def test_a_report_of_schema_1_is_imported(other):
    runs = brought(other, RECORDINGS / "report-schema-1.json")
    assert [run.status for run in runs] == ["finished", "failed"]
    assert runs[1].why().startswith("The loss became infinite at step 33")
    assert runs[0].target_reached and runs[0].summary().test_accuracy == runs[0].evaluations["test_accuracy"][-1]
    assert check(other).problems == []
    assert render(Report.freeze("again", runs))


@pytest.mark.usefixtures("here")
def test_a_long_table_is_split_into_events_that_a_reader_accepts(store, other, tmp_path, monkeypatch):
    monkeypatch.setattr(rebuilding, "_ROWS_BYTES", 50_000)  # of 5 million
    run = make_run(store, num_steps=5_000)
    (back,) = brought(other, written(frozen([run]), tmp_path / "r.json"))
    np.testing.assert_array_equal(back.steps["loss"], run.steps["loss"])
    assert back.problems == []
    assert len(other.run(back.run_id, keep_points=100).steps) == 5_000
    assert sum(b'"table":"steps"' in line for line in (back.folder / "events.jsonl").open("rb")) == 7


# --- whole, or not at all -----------------------------------------------------------------------------------------------


def traces(store: Store) -> list[str]:
    return sorted(
        str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.name not in {"order", "reports"}
    )


@pytest.mark.usefixtures("here")
def test_all_files_are_imported_or_none(store, other, tmp_path):
    good = written(frozen([make_run(store)]), tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    bad.write_text(good.read_text()[:-200])
    empty = traces(other)
    with pytest.raises(StoreError, match=r"bad\.json: This is not a report, or it is incomplete"):
        sharing.import_files(other, [good, bad])
    assert traces(other) == empty


@pytest.mark.usefixtures("here")
def test_an_import_that_cannot_be_put_in_place_is_undone(store, other, tmp_path, monkeypatch):
    file = written(frozen([make_run(store), make_run(store)]), tmp_path / "r.json")
    empty = traces(other)
    rename, count = Path.rename, iter(range(100))

    def full(self, target):
        if self.parent.name == "runs" and next(count) == 1:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StoreError, match="disk is full"):
        sharing.import_files(other, [file])
    assert traces(other) == empty


@pytest.mark.process
def test_a_crash_during_an_import_leaves_nothing(store, other, tmp_path):
    file = written(frozen([make_run(store), make_run(store)]), tmp_path / "r.json")
    empty = traces(other)
    code = (
        "import os, pathlib, sys\n"
        "from engine.reports import sharing\nfrom engine.store.store import Store\n"
        "rename, seen = pathlib.Path.rename, []\n"
        "def dying(self, target):\n"
        "    if self.parent.name == 'runs':\n"
        "        seen.append(self)\n"
        "        if len(seen) == 2: os._exit(9)\n"
        "    return rename(self, target)\n"
        "pathlib.Path.rename = dying\n"
        "sharing.import_files(Store(pathlib.Path(sys.argv[1])), [pathlib.Path(sys.argv[2])])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, other.root, file], cwd=ROOT, env=os.environ)
    assert done.returncode == 9
    assert len(other.ids()) == 1  # it died between the two
    Store(other.root).sweep()
    assert traces(other) == empty
    assert sharing.import_files(other, [file]).run_ids


def test_a_running_import_is_not_swept(other):
    with other.staging() as staging:
        (staging / "runs" / "0123456789abcdef").mkdir()
        other.sweep()
        assert staging.exists()
    assert not staging.exists()


@pytest.mark.process
def test_the_process_that_reads_a_file_has_limits(store, other, tmp_path, monkeypatch):
    from engine.reports.sharing import importing

    file = written(frozen([make_run(store)]), tmp_path / "r.json")
    empty = traces(other)
    monkeypatch.setattr(importing, "IMPORT_MEMORY_BYTES", 1 << 26)
    with pytest.raises(StoreError, match=r"r\.json: .*(crashed|memory)"):
        sharing.import_files(other, [file])
    monkeypatch.setattr(importing, "IMPORT_MEMORY_BYTES", 4 << 30)
    monkeypatch.setattr(importing, "IMPORT_S", 0.05)
    with pytest.raises(StoreError, match=r"r\.json: could not be read within 0\.05 s"):
        sharing.import_files(other, [file])
    assert traces(other) == empty


# --- the command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_exports_and_imports(store, tmp_path, engine):
    race = race_of(store)
    out = tmp_path / "race.zip"
    ids = [run.run_id for run in race.runs]
    done = engine(
        "export",
        *ids,
        "-o",
        out,
        "--title",
        "A race",
        "--notes",
        "seen",
        "--target",
        "test_accuracy=0.8",
        "--json",
        "--store",
        store.root,
    )
    said, error = done.communicate()
    assert done.returncode == 0, error
    assert json.loads(said.splitlines()[-1])["size_bytes"] == out.stat().st_size
    done = engine("import", out, "--json", "--store", tmp_path / "there")
    said, error = done.communicate()
    assert done.returncode == 0, error
    answer = json.loads(said.splitlines()[-1])
    assert len(answer["run_ids"]) == 4 and len(answer["group_ids"]) == 1 and answer["warnings"] == []
    there = Store(tmp_path / "there")
    assert told(frozen(list(map(there.run, answer["run_ids"])))) == told(frozen(list(map(store.run, ids))))
    line = json.loads((there.root / "audit.jsonl").read_text().splitlines()[0])
    assert (line["action"], line["actor"], line["run_id"]) == ("import", "terminal", answer["run_ids"][0])
    said, _ = engine("reports", "--store", there.root).communicate()
    assert "A race" in said and "seen" in said and "fast" in said
    shutil.rmtree(there.root)


def test_a_missing_file_is_one_sentence_and_exit_code_2(tmp_path, engine):
    done = engine("import", tmp_path / "none.json", "--store", tmp_path / "s")
    said, error = done.communicate()
    assert (done.returncode, said) == (2, "")
    assert error.strip() == "none.json: the file does not exist. Name an existing file."


def test_the_preview_lists_the_content_and_writes_nothing(store, tmp_path, engine):
    config = with_overrides(RunConfig(), ["data=csv", "source.path=/home/alice/secret.csv"])
    run = make_run(store, config, num_steps=40, name="mine")
    done = engine("export", run.run_id, "-o", tmp_path / "r.html", "--preview", "--json", "--store", store.root)
    said, error = done.communicate()
    assert done.returncode == 0, error
    rows = {row["what"]: row["text"] for row in json.loads(said.splitlines()[-1])["leaves"] if row["run_id"]}
    assert rows["Name"] == "mine" and rows["Name of your file"] == "table.csv"
    assert rows["Points"].startswith("40 steps") and "AMD EPYC" in rows["Machine"]
    assert "secret" not in said and "alice" not in said
    assert not (tmp_path / "r.html").exists()


def test_an_event_that_no_import_writes_is_damaged(store, other):
    run_id = other.create(RunConfig())
    log = EventLog(other.folder(run_id) / "events.jsonl")
    with pytest.raises(ValueError, match="falls from row to row"):
        Rows(table="hardware", columns={"elapsed": np.array([2.0, 1.0])})
    for first in (5.0, 1.0):
        log.append(Rows(table="hardware", columns={"elapsed": np.array([first])}))
    log.close(Finished(at=0))
    run = other.run(run_id)
    assert len(run.hardware) == 1 and "not in order" in run.problems[0]
