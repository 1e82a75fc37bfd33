"""Exports to other tools: all points as Parquet or CSV, event files for TensorBoard, a folder for MLflow.

pyarrow is always installed. TensorBoard and MLflow exports need their own packages, because only these write their
formats.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import visible
from engine.reports.redaction import Redaction
from engine.store.columns import COLUMNS, Table
from engine.store.csv_tables import NAN_IS_MEASURED, WHOLE
from engine.store.run import Run

_ROWS = 16_384  # rows that are written at one time
SCALARS = {  # name in the other tool: table and column
    "train/loss": ("steps", "loss"),
    "train/lr": ("steps", "lr"),
    "train/grad_norm": ("grad_norms", "grad_norm"),
    "test/loss": ("evaluations", "test_loss"),
    "test/accuracy": ("evaluations", "test_accuracy"),
}


def write_parquet(path: Path, runs: Sequence[Run]) -> None:
    """Write one table of all points: run_id, name, table, and every column of every table.

    NaN and infinity are kept, because they were measured; null is unknown.

    Raises:
        StoreError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(column for columns in COLUMNS.values() for column in columns))
    fields = [
        ("run_id", pa.string()),
        ("name", pa.string()),
        ("table", pa.string()),
        *((name, pa.float64()) for name in names),
    ]
    schema = pa.schema(fields)
    draft = path.with_name(f".{path.name}.part")
    try:
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for run, table, columns, rows in _pieces(runs):
                data = {
                    "run_id": pa.array([run.run_id] * rows),
                    "name": pa.array([visible(run.name)] * rows),
                    "table": pa.array([table] * rows),
                } | {name: _column(columns.get(name), rows, name) for name in names}
                writer.write_table(pa.table(data, schema=schema))
        draft.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}.", fix="Choose another file with -o."
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def _pieces(runs: Sequence[Run]) -> Iterator[tuple[Run, str, dict[str, np.ndarray], int]]:
    """The tables in pieces of at most `_ROWS` rows: the run, the table's name, its columns and the number of rows."""
    for run in runs:
        for name, columns in COLUMNS.items():
            table = getattr(run, name)
            for first in range(0, len(table), _ROWS):
                last = min(first + _ROWS, len(table))
                known = {column: table[column][first:last] for column in columns if table.knows(column)}
                yield run, name, known, last - first


def _column(values: np.ndarray | None, rows: int, name: str) -> Any:
    import pyarrow as pa

    if values is None:
        return pa.nulls(rows, pa.float64())
    return pa.array(values, from_pandas=name not in NAN_IS_MEASURED)


_CSV = (
    "step",
    "loss",
    "seconds",
    "samples",
    "lr",
    "epoch",
    "grad_norm",
    "elapsed",
    "test_loss",
    "test_accuracy",
    "run_id",
)


def points_csv(runs: Sequence[Run]) -> Iterator[str]:
    """The steps and evaluations of runs as one CSV, in pieces: a row per step, with the run's id in the last column.

    Other cells are numbers, so that no spreadsheet reads a formula. A cell is empty where nothing was measured. The
    header is the same for all runs.
    """
    yield ",".join(_CSV) + "\n"
    for run in runs:
        step = run.steps["step"]
        if not _rows_at(run.steps, run.evaluations["step"])[1].all():  # before the first step, or of an imported table
            step = np.union1d(step, run.evaluations["step"])
        for first in range(0, len(step), _ROWS):
            yield _csv_rows(run, step[first : first + _ROWS])


def _csv_rows(run: Run, step: np.ndarray) -> str:
    import pyarrow as pa
    import pyarrow.compute as pc

    examples = run.started.train_examples if run.started else None
    trained = {name: _at(run.steps, name, step) for name in ("loss", "seconds", "samples", "lr", "elapsed")}
    tested = {name: _at(run.evaluations, name, step) for name in ("seconds", "elapsed", "test_loss", "test_accuracy")}
    columns = tested | trained | {"step": pa.array(step), "grad_norm": _at(run.grad_norms, "grad_norm", step)}
    for name in ("seconds", "elapsed"):
        columns[name] = pc.coalesce(trained[name], tested[name])
    columns["epoch"] = pc.divide(trained["samples"], float(examples)) if examples else pa.nulls(len(step))
    for name in WHOLE:
        columns[name] = pc.cast(columns[name], pa.int64())
    columns["run_id"] = pa.array([run.run_id] * len(step))
    cells = (pc.fill_null(pc.cast(columns[name], pa.string()), "") for name in _CSV)
    rows = pc.binary_join_element_wise(*cells, ",")
    return str(pc.binary_join(pa.ListArray.from_arrays([0, len(rows)], rows), "\n")[0].as_py()) + "\n"


def _at(table: Table, name: str, step: np.ndarray) -> Any:
    """A column of the table at some steps, as an Arrow array; null where the table has no such step or no value."""
    import pyarrow as pa

    if not len(table) or not table.knows(name):
        return pa.nulls(len(step), pa.float64())
    row, is_there = _rows_at(table, step)
    values = table[name][row]
    return pa.array(values, mask=~(is_there if name in NAN_IS_MEASURED else is_there & ~np.isnan(values)))


def _rows_at(table: Table, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the table at some steps (n,), and whether the table has each of these steps."""
    if not len(table):
        return np.zeros(len(step), int), np.zeros(len(step), bool)
    row = np.minimum(np.searchsorted(table["step"], step), len(table) - 1)
    return row, table["step"][row] == step


# --- other trackers -----------------------------------------------------------------------------------------------------


def _library(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"This needs {package}, which is not installed.", fix=f"Install it: pip install {package}."
        ) from None


def _scalars(run: Run) -> Iterator[tuple[str, int, float, float]]:
    """Name, step, value and Unix time in seconds of each point, NaN included."""
    began = run.started.at if run.started else run.created
    for name, (table, column) in SCALARS.items():
        rows = getattr(run, table)
        if not rows.knows(column):
            continue
        for step, elapsed, value in zip(
            rows["step"].tolist(), rows["elapsed"].tolist(), rows[column].tolist(), strict=True
        ):
            if not (column == "lr" and math.isnan(value)):
                yield name, int(step), value, began + (elapsed if math.isfinite(elapsed) else 0.0)


def _parameters(run: Run) -> dict[str, str]:
    """The fields of the configuration as text, without paths."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = str(value)

    add("", Redaction(run.config).configuration().model_dump(mode="json"))
    return flat


def write_tensorboard(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write event files with the package `tensorboard`, one folder per run, and return their paths.

    Raises:
        ConfigError: The package is not installed.
        StoreError: The folder cannot be written.
    """
    writer_module = _library("tensorboard.summary.writer.event_file_writer", "tensorboard")
    event_pb2 = _library("tensorboard.compat.proto.event_pb2", "tensorboard")
    summary_pb2 = _library("tensorboard.compat.proto.summary_pb2", "tensorboard")
    written = []
    for run in runs:
        place = _created(folder / run.run_id)
        writer = writer_module.EventFileWriter(str(place))
        for name, step, value, at in _scalars(run):
            summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, simple_value=value)])
            writer.add_event(event_pb2.Event(wall_time=at, step=step, summary=summary))
        writer.close()
        for number, file in enumerate(sorted(place.glob(f"events.out.tfevents.*.{socket.gethostname()}.*"))):
            # The package puts the host's name into the file name.
            written.append(file.rename(place / f"events.out.tfevents.{int(run.created):010d}.{run.run_id}.{number}"))
    return written


def write_mlflow(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """Write a folder that `mlflow ui --backend-store-uri` reads, with the package `mlflow`, and return its run files.

    Raises:
        ConfigError: The package is not installed.
        StoreError: The folder cannot be written.
    """
    for variable in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(
            variable, "true"
        )  # MLflow 3.17 requires the first and sends usage statistics without the others
    mlflow = _library("mlflow", "mlflow-skinny")
    entities = _library("mlflow.entities", "mlflow-skinny")
    place = _created(folder)
    client = mlflow.MlflowClient(tracking_uri=place.absolute().as_uri())
    found = client.get_experiment_by_name("Isoflop")
    experiment = found.experiment_id if found else client.create_experiment("Isoflop")
    for run in runs:
        made = client.create_run(
            experiment, start_time=int(run.created * 1000), run_name=visible(run.name) or run.run_id
        )
        metrics = [entities.Metric(name, value, int(at * 1000), step) for name, step, value, at in _scalars(run)]
        parameters = [entities.Param(key, value[:6_000]) for key, value in _parameters(run).items() if value]
        tags = [entities.RunTag("isoflop.run_id", run.run_id), entities.RunTag("isoflop.status", run.status)]
        for first in range(0, len(metrics), 1_000):
            client.log_batch(made.info.run_id, metrics=metrics[first : first + 1_000])
        for first in range(0, len(parameters), 100):
            client.log_batch(made.info.run_id, params=parameters[first : first + 100])
        client.log_batch(made.info.run_id, tags=tags)
        client.set_terminated(
            made.info.run_id,
            "FINISHED" if run.status == "finished" else "KILLED" if run.status == "cancelled" else "FAILED",
        )
    return sorted(path for path in place.rglob("meta.yaml"))


def _created(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}.", fix="Choose another folder.") from None
    return folder
