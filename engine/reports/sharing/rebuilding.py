"""Writes the runs of a report as run folders (a configuration and an event log) under new ids."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from engine.common.errors import StoreError
from engine.common.sanitize import LONGEST_NAME, visible
from engine.events.catalog import AnyEvent
from engine.events.imported import KEY_OF, Imported, Origin, Rows
from engine.events.lifecycle import (
    Artifact,
    Cancelled,
    Failed,
    Finished,
    Interrupted,
    Queued,
    SeedBlock,
    Started,
    Terminal,
)
from engine.events.training import Compiled, WarmUp
from engine.reports.frozen_run import ENVIRONMENT, TABLES, Attachment, ReportRun
from engine.reports.points import Points
from engine.reports.redaction import Redaction
from engine.reports.report import Report
from engine.store.columns import COLUMNS
from engine.store.event_log import LINE_BYTES, encode
from engine.store.labels import LABELS_FILE
from engine.store.weight_path import save_tensors
from engine.studies.loss_surface import SURFACE_FILE
from engine.system.files import write_atomically

_ROWS_BYTES = 5_000_000  # of one event; well below the longest line that a reader accepts
_PATHS = "path."


@dataclass(frozen=True, slots=True)
class Names:
    """The new ids of the runs and groups of a report."""

    runs: Mapping[str, str]
    groups: Mapping[str, str]

    @classmethod
    def of(cls, report: Report) -> Names:
        """Draw a new id for every run and group."""
        groups = dict.fromkeys(run.group for run in report.runs if run.group)
        return cls({run.run_id: secrets.token_hex(8) for run in report.runs}, {g: secrets.token_hex(8) for g in groups})

    def heat(self, run: ReportRun) -> SeedBlock | None:
        """The run's seed block with a new id; None if it has none."""
        if run.heat is None or run.group is None:
            return None
        digest = hashlib.sha256(f"{self.groups[run.group]} {run.heat.id}".encode()).hexdigest()[:16]
        return run.heat.model_copy(update={"id": f"{digest} {run.config.device}"})


def rebuild(
    run: ReportRun,
    folder: Path,
    origin: Origin,
    names: Names,
    *,
    owner: str,
    order: int,
    read: Callable[[str], bytes | None],
) -> list[str]:
    """Write the folder of a run and return a sentence for each file that is missing.

    Args:
        run: The run of the report.
        folder: The folder to create.
        origin: Where the report is from.
        names: The new ids.
        owner: The user who imports.
        order: The position of the run in the store's queue.
        read: Returns the bytes of a file beside the JSON, or None.

    Raises:
        StoreError: The run contains a value that an event log cannot hold, or its figures contradict its points.
    """
    is_table = origin.form == "curve"  # just read: its figures were derived from its points
    try:
        folder.mkdir(mode=0o700)
        files, missing = _files(run, folder, names, read)
        origin = origin.model_copy(update={"from_run_id": run.run_id, "notes": (*origin.notes, *missing)})
        if run.imported and run.is_curve:  # a report of an imported table; the table's own notes still apply
            origin = origin.model_copy(update={"form": "curve", "notes": (*run.imported.notes, *origin.notes)})
        queued = Queued(
            at=run.created,
            order=order,
            name=_name(run.name if run.asked_name is None else run.asked_name),
            group=names.groups[run.group] if run.group else None,
            heat=names.heat(run),
            owner=owner,
        )
        config = Redaction(run.config, file_names=True).configuration()  # only a file name, which is never opened
        if new_ids := tuple(names.runs.get(run_id, run_id) for run_id in config.landscape.runs):
            config = config.model_copy(update={"landscape": config.landscape.model_copy(update={"runs": new_ids})})
        # The run whose weights were used; if the report does not contain it, its old id stays.
        if weights_run := names.runs.get(config.infer.run):
            config = config.model_copy(update={"infer": config.infer.model_copy(update={"run": weights_run})})
        write_atomically(folder / "config.json", config.model_dump_json(indent=1))
        if run.asked_name is not None:
            write_atomically(folder / LABELS_FILE, json.dumps({"name": _name(run.name)}))
        _write_log(folder / "events.jsonl", [queued, *_events(run, origin), *files], _final_event(run))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise StoreError(f"The report is damaged: run {run.run_id}: {what}.", fix="Export it again.") from None
    if not is_table and (what := run.contradiction()):
        raise StoreError(f"The report contradicts itself: run {run.run_id}: {what}.", fix="Export it again.")
    return missing


def _name(text: str) -> str:
    return visible(text, LONGEST_NAME).strip()


def _write_log(path: Path, events: Sequence[AnyEvent], last: Terminal) -> None:
    """Write the log as a worker does: the final event has the counts and the checksum of all lines before it.

    Raises:
        StoreError: An event is longer than a line of the log can be.
    """
    checksum, steps, evaluations = 0, 0, 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        for event in events:
            line = encode(event)
            if len(line) > LINE_BYTES:
                raise StoreError(
                    f"The report contains an event of {len(line):,} bytes.",
                    fix=f"The limit is {LINE_BYTES:,} bytes. Export fewer points.",
                )
            checksum = zlib.crc32(line, checksum)
            file.write(line)
            if isinstance(event, Rows):
                rows = len(next(iter(event.columns.values())))
                steps += rows if event.table == "steps" else 0
                evaluations += rows if event.table == "evaluations" else 0
        counted = {"steps": steps, "evaluations": evaluations, "checksum": f"{checksum:08x}"}
        file.write(encode(last.model_copy(update=counted)))
        file.flush()
        os.fsync(file.fileno())


def _events(run: ReportRun, origin: Origin) -> Iterator[AnyEvent]:
    yield Imported(
        origin=origin,
        recorded_steps=run.recorded_steps,
        evaluation_s=run.evaluation_s,
        problems=tuple(run.problems),
        missing_readings=run.missing_readings,
        frozen={
            "summary": run.summary.model_copy(update={"imported": origin.form}).model_dump(mode="json"),
            "energy": run.energy.model_dump(mode="json") if run.energy else None,
            "figures": {name: figure.model_dump(mode="json") for name, figure in run.figures.items()},
        },
    )
    if run.train_examples:
        yield Started(
            at=run.created if run.started_at is None else run.started_at,
            parameters=run.parameters or 0,
            train_flops_per_example=run.train_flops_per_example or 0,
            train_examples=run.train_examples,
            test_examples=run.test_examples or 0,
            total_steps=run.total_steps,
            setup_s=run.setup_s or 0.0,
            data_sha256=run.data_sha256,
            environment={k: v for k, v in run.environment.items() if k in ENVIRONMENT},
        )
    if run.compiled_s is not None:
        yield Compiled(seconds=run.compiled_s)
    if run.warm_up_s is not None:
        yield WarmUp(seconds=run.warm_up_s, steps=run.warm_up_steps)
    yield from filter(None, (run.memory, run.step_split))
    for table in TABLES:
        yield from _rows(table, getattr(run, table))
    yield from run.trials
    yield from run.said
    if run.target_reached:
        yield run.target_reached


def _rows(name: str, table: Points) -> Iterator[Rows]:
    """The table as events, each short enough for a line; unknown columns are left out."""
    key = KEY_OF[name]
    kept = {c: table[c] for c in COLUMNS[name] if c == key or table.knows(c)}
    piece = _ROWS_BYTES // (11 * len(kept))
    for first in range(0, len(table), piece):
        yield Rows(table=name, columns={c: column[first : first + piece] for c, column in kept.items()})


def _final_event(run: ReportRun) -> Terminal:
    if run.last_word:
        return run.last_word
    at = run.created
    match run.status:  # an older report, or a run that had no final event yet
        case "finished":
            return Finished(
                at=at,
                energy_j=run.summary.energy_j,
                energy_method=run.energy_method,
                peak_memory_bytes=run.summary.process_memory_bytes,
                peak_memory_method=run.peak_memory_method,
            )
        case "cancelled":
            return Cancelled(at=at, reason=run.why)
        case "failed":
            return Failed(at=at, cause="", message=run.why)
        case "interrupted":
            return Interrupted(at=at, reason=run.why)
        case _:
            return Interrupted(at=at, reason=f"It was {run.status} when the report was made.")


# --- files ------------------------------------------------------------------------------------------------------------


def _files(
    run: ReportRun, folder: Path, names: Names, read: Callable[[str], bytes | None]
) -> tuple[list[Artifact], list[str]]:
    """Check and write the attached files; return their events, and a sentence for each missing file.

    Raises:
        StoreError: A file does not have its hash, or is not a safetensors file.
    """
    made, missing = [], []
    for file in run.files:
        data = read(f"weights/{run.run_id}/{file.name}") if file.data is None else file.data
        if data is None:
            missing.append(f"{file.name} is missing in the imported file.")
            continue
        if len(data) != file.size_bytes or hashlib.sha256(data).hexdigest() != file.sha256:
            raise StoreError(
                f"{file.name} of run {run.run_id} was changed after the export.", fix="Export or send it again."
            )
        made.append(_write_file(file, data, run, folder, names))
    return made, missing


def _write_file(file: Attachment, data: bytes, run: ReportRun, folder: Path, names: Names) -> Artifact:
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError):
        raise StoreError(
            f"{file.name} of run {run.run_id} is not a safetensors file.", fix="Export it again."
        ) from None
    if file.name == SURFACE_FILE and any(f"{_PATHS}{old}." in key for key in tensors for old in names.runs):
        return save_tensors(folder, file.name, {_renamed(key, names): array for key, array in tensors.items()})
    path = folder / file.name
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return Artifact(name=file.name, size_bytes=len(data), sha256=file.sha256)


def _renamed(key: str, names: Names) -> str:
    """`path.<run id>.<column>` with the new id of the run."""
    parts = key.split(".")
    return ".".join(names.runs.get(part, part) for part in parts) if key.startswith(_PATHS) else key
