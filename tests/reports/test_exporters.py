"""Exports: pandas, Parquet readers, TensorBoard and MLflow read the recorded points."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import math
import zlib

import numpy as np
import pandas as pd
import pytest

from engine.cli import main as cli
from engine.common.errors import ConfigError
from engine.reports import exporters
from engine.reports.report import Report
from engine.reports.sharing import write_zip
from engine.store.csv_tables import csv_of
from tests.fakes import make_run


def test_parquet_has_every_point_and_distinguishes_nan_and_null(store, tmp_path):
    runs = [make_run(store, name="a", num_steps=100), make_run(store, diverges_at=40)]
    assert (
        cli.main(["export", *(r.run_id for r in runs), "-o", str(tmp_path / "p.parquet"), "--store", str(store.root)])
        == 0
    )
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "p.parquet")
    frame = table.to_pandas()
    steps = frame[(frame.run_id == runs[0].run_id) & (frame.table == "steps")]
    np.testing.assert_array_equal(steps.loss, runs[0].steps["loss"])
    np.testing.assert_array_equal(steps.seconds, runs[0].steps["seconds"])
    mine = table.filter((table["run_id"].to_numpy() == runs[1].run_id) & (table["table"].to_numpy() == "steps"))
    assert math.isnan(mine["loss"][-1].as_py())
    assert mine["test_loss"][0].as_py() is None and mine["gpu_power_w"][0].as_py() is None
    hardware = frame[(frame.run_id == runs[0].run_id) & (frame.table == "hardware")]
    np.testing.assert_array_equal(hardware.process_cpu_percent, runs[0].hardware["process_cpu_percent"])


def test_csv_of_several_runs_has_their_ids(store, tmp_path):
    runs = [make_run(store, num_steps=240, seed=seed) for seed in (0, 1)]
    assert (
        cli.main(["export", *(r.run_id for r in runs), "-o", str(tmp_path / "p.csv"), "--store", str(store.root)]) == 0
    )
    frame = pd.read_csv(tmp_path / "p.csv")
    for run in runs:
        mine = frame[frame.run_id == run.run_id].reset_index()
        np.testing.assert_array_equal(mine.loss, run.steps["loss"])
        tested = mine[mine.test_accuracy.notna()]
        np.testing.assert_array_equal(tested.step, run.evaluations["step"])
        np.testing.assert_array_equal(tested.test_accuracy, run.evaluations["test_accuracy"])
        np.testing.assert_array_equal(tested.test_loss, run.evaluations["test_loss"])


def test_the_tables_of_a_zip_are_exact(store, tmp_path):
    run = make_run(store, num_steps=60)
    write_zip(tmp_path / "r.zip", Report.freeze("t", [run]), {run.run_id: run})
    (tmp_path / "out").mkdir()
    import zipfile

    zipfile.ZipFile(tmp_path / "r.zip").extractall(tmp_path / "out")
    for name in csv_of(run):
        frame = pd.read_csv(tmp_path / "out" / "csv" / f"{run.run_id}-{name}.csv")
        for column in frame:
            np.testing.assert_allclose(frame[column], getattr(run, name)[column], rtol=1e-15)
    sums = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    for line in sums:
        digest, _, name = line.partition("  ")
        assert digest == hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest()


def steps_of(path) -> pd.DataFrame:
    """As in docs/reports.md: the steps of a run from its event log."""
    log = pd.read_json(path, lines=True, dtype=False)
    frames = []
    for event in log[log.kind == "steps"].to_dict("records"):
        loss = np.frombuffer(base64.b64decode(event["loss"]), "<f4")
        frames.append(pd.DataFrame({"step": int(event["first"]) + np.arange(len(loss)), "loss": loss}))
    return pd.concat(frames, ignore_index=True)


def test_pandas_reads_the_files_of_the_store(store):
    run = make_run(store, diverges_at=140)
    frame = steps_of(run.folder / "events.jsonl")
    np.testing.assert_array_equal(frame.loss, run.steps["loss"].astype("f4"))
    line = (run.folder / "events.jsonl").read_bytes().splitlines()[1]
    body, crc = line[:-18], json.loads(line)["crc"]
    assert crc == f"{zlib.crc32(body + b'}'):08x}"


@pytest.mark.parametrize(
    ("write", "package"), [(exporters.write_tensorboard, "tensorboard"), (exporters.write_mlflow, "mlflow-skinny")]
)
def test_an_error_names_the_package_that_an_export_needs(store, tmp_path, write, package, monkeypatch):
    monkeypatch.setattr(exporters, "import_module", missing)
    with pytest.raises(
        ConfigError,
        match=f"This needs {package}, which is not installed. Install it: pip install {package}",
    ):
        write(tmp_path / "out", [make_run(store, num_steps=20)])
    assert not (tmp_path / "out").exists()


def missing(name):
    raise ImportError(name)


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_reads_what_was_recorded(store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(store, diverges_at=140)
    exporters.write_tensorboard(tmp_path, [run])
    found = EventAccumulator(str(tmp_path / run.run_id), size_guidance={"scalars": 0}).Reload().Scalars("train/loss")
    np.testing.assert_array_equal(np.float32([point.value for point in found]), run.steps["loss"].astype("f4"))
    assert [point.step for point in found] == run.steps["step"].tolist()


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="mlflow is not installed")
def test_mlflow_reads_what_was_recorded(store, tmp_path):
    import mlflow

    run = make_run(store, num_steps=60, name="a run")
    exporters.write_mlflow(tmp_path / "ml", [run])
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "ml").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("Isoflop").experiment_id])
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [point.value for point in sorted(history, key=lambda p: p.step)] == pytest.approx(run.steps["loss"].tolist())
    assert found.data.params["optimizer.name"] == "adam" and found.data.tags["isoflop.run_id"] == run.run_id
