"""Runs for other tools: all points as Parquet or CSV, TensorBoard's event files, MLflow's folder.

Parquet needs pyarrow, which is always there; the other two need the tool's own library, for its format is its own.
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
from engine.store.columns import COLUMNS
from engine.store.csv_tables import csv_cell
from engine.store.run import Run

SCALARS = {  # what is told as a curve: table, column, name
    "train/loss": ("steps", "loss"),
    "train/lr": ("steps", "lr"),
    "train/grad_norm": ("grad_norms", "grad_norm"),
    "test/loss": ("evaluations", "test_loss"),
    "test/accuracy": ("evaluations", "test_accuracy"),
}


def write_parquet(path: Path, runs: Sequence[Run]) -> None:
    """One table of all points: run_id, name, table, and every column of every table; null where a table has none.

    NaN and infinity stay what they are: null is unknown, NaN was measured.
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
            for run, table, columns, rows in _tables(runs):
                data = {
                    "run_id": pa.array([run.run_id] * rows), "name": pa.array([visible(run.name)] * rows), "table": pa.array([table] * rows)
                } | {name: _column(columns.get(name), rows, table) for name in names}  # fmt: skip
                writer.write_table(pa.table(data, schema=schema))
        draft.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror or error}.", fix="Choose another place with -o."
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def _tables(runs: Sequence[Run]) -> Iterator[tuple[Run, str, dict[str, np.ndarray], int]]:
    for run in runs:
        for table, columns in COLUMNS.items():
            if rows := len(getattr(run, table)):
                yield run, table, {name: getattr(run, table)[name] for name in columns}, rows


def _column(values: np.ndarray | None, rows: int, table: str) -> Any:
    import pyarrow as pa

    if values is None:
        return pa.nulls(rows, pa.float64())
    is_measured = table != "hardware" and not np.isnan(values).all()
    return pa.array(values, from_pandas=not is_measured)


def steps_of_all(runs: Sequence[Run]) -> str:
    """The steps of several runs under one header, a row each, with the run's id."""
    columns = COLUMNS["steps"]
    lines = [",".join(("run_id", *columns))]
    for run in runs:
        rows = zip(*(run.steps[name].tolist() for name in columns), strict=True)
        lines += [",".join((run.run_id, *(csv_cell(n, v) for n, v in zip(columns, row, strict=True)))) for row in rows]
    return "\n".join(lines) + "\n"


# --- other trackers -----------------------------------------------------------------------------------------------------


def _library(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ConfigError(
            f"This needs {package}, which is not installed.", fix=f"Install it beside Isoflop: pip install {package}."
        ) from None


def _scalars(run: Run) -> Iterator[tuple[str, int, float, float]]:
    """Name, step, value and Unix time of each point, NaN included."""
    began = run.started.at if run.started else run.created
    for name, (table, column) in SCALARS.items():
        rows = getattr(run, table)
        for step, elapsed, value in zip(
            rows["step"].tolist(), rows["elapsed"].tolist(), rows[column].tolist(), strict=True
        ):
            if not (column == "lr" and math.isnan(value)):
                yield name, int(step), value, began + (elapsed if math.isfinite(elapsed) else 0.0)


def _parameters(run: Run) -> dict[str, str]:
    """The configuration, field by field, as text; without where a file lies."""
    from engine.reports.redaction import Redaction

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
    """Event files in a folder per run, by the package `tensorboard`. Raises ConfigError where it is not installed."""
    writer_module = _library("tensorboard.summary.writer.event_file_writer", "tensorboard")
    event_pb2 = _library("tensorboard.compat.proto.event_pb2", "tensorboard")
    summary_pb2 = _library("tensorboard.compat.proto.summary_pb2", "tensorboard")
    written = []
    for run in runs:
        place = _made(folder / run.run_id)
        writer = writer_module.EventFileWriter(str(place))
        for name, step, value, at in _scalars(run):
            told = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, simple_value=value)])
            writer.add_event(event_pb2.Event(wall_time=at, step=step, summary=told))
        writer.close()
        for number, file in enumerate(sorted(place.glob(f"events.out.tfevents.*.{socket.gethostname()}.*"))):
            written.append(
                file.rename(place / f"events.out.tfevents.{int(run.created):010d}.{run.run_id}.{number}")
            )  # not the host
    return written


def write_mlflow(folder: Path, runs: Sequence[Run]) -> list[Path]:
    """A folder that `mlflow ui --backend-store-uri` reads, by the package `mlflow`. Raises ConfigError where it is not there."""
    for variable in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(variable, "true")  # 3.17 asks for the first, and would report its use
    mlflow = _library("mlflow", "mlflow-skinny")
    entities = _library("mlflow.entities", "mlflow-skinny")
    place = _made(folder)
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


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}.", fix="Choose another folder.") from None
    return folder
