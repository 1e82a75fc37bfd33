"""Schema versions of the index: ordered migrations, after a backup."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from engine.common.errors import StoreError

# A row with its configuration fills a page of the file, so a list that scans the table reads 40 MB for 10,000 runs.
# This covering index holds all that a list shows, searches and sorts by: 5 MB.
LISTED_COLUMNS = (
    "name", "status", "created", "grouped", "why", "words", "seed",
    "test_accuracy", "final_train_loss", "samples_per_s", "train_seconds", "steps", "busy", "tags", "notes", "pinned",
)  # fmt: skip
_LISTED_IN_5 = LISTED_COLUMNS[:-3]
_LISTED_IN_3 = _LISTED_IN_5[:-1]
# Item n migrates schema n to n + 1. Never change a released item: add a new one.
MIGRATIONS: list[Iterable[str]] = [
    (
        """
        create table runs (
          run_id text primary key, name text not null, status text not null, created real not null, grouped text,
          config text not null, summary text not null, why text not null,
          test_accuracy real, final_train_loss real, samples_per_s real, train_seconds real, steps integer
        ) without rowid
        """,
        "create index runs_created on runs(created)",
        "create index runs_test_accuracy on runs(test_accuracy)",
        "create index runs_final_train_loss on runs(final_train_loss)",
        "create index runs_samples_per_s on runs(samples_per_s)",
    ),
    (
        "alter table runs add column owner text not null default ''",
        "alter table runs add column updated real",  # Unix time of the row, s
    ),
    (
        "alter table runs add column words text",
        "alter table runs add column seed integer",
        "alter table runs add column searched text",
        "create index runs_train_seconds on runs(train_seconds)",
        "create index runs_steps on runs(steps)",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in _LISTED_IN_3 if c != 'created')})",
    ),
    ("create index runs_grouped on runs(grouped) where grouped is not null",),
    (
        "alter table runs add column busy integer",
        "update runs set busy = json_extract(summary, '$.busy') where json_valid(summary)",
        "drop index runs_listed",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in _LISTED_IN_5 if c != 'created')})",
    ),
    (
        "alter table runs add column tags text not null default ''",  # one tag per line
        "alter table runs add column notes text not null default ''",
        "alter table runs add column pinned integer not null default 0",
        "drop index runs_listed",
        f"create index runs_listed on runs(created, searched, {', '.join(c for c in LISTED_COLUMNS if c != 'created')})",
    ),
    # Rows of studies said 0 steps and 0 samples. The supervisor reads these runs again from their folders.
    ("delete from runs where json_valid(config) and json_extract(config, '$.task') is not 'train'",),
    # Targets were reached at an evaluation, and a diverged run had the accuracy of its last evaluation before. The
    # supervisor reads these runs again from their folders.
    (
        "delete from runs where json_valid(summary) and (json_extract(summary, '$.target_step') is not null "
        "or (status = 'failed' and json_extract(summary, '$.test_accuracy') is not null))",
    ),
    # Until then `peak_memory_bytes` was the memory of a step, without evaluation and data.
    (
        "update runs set summary = json_set(summary, '$.step_memory_bytes', json_extract(summary, '$.peak_memory_bytes'), "
        "'$.peak_memory_bytes', null) where json_valid(summary) and json_type(summary, '$.step_memory_bytes') is null",
    ),
]


def schema_version(db: sqlite3.Connection) -> int:
    """The schema version of an index; 0 for an empty file.

    Raises:
        StoreError: a newer Isoflop wrote the index.
    """
    version: int = db.execute("pragma user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StoreError(
            f"The index of this store was written by a newer Isoflop (schema {version}).",
            fix="Update Isoflop, or rebuild the index: `python -m engine check --rebuild`.",
        )
    return version


def migrate(db: sqlite3.Connection, path: Path | None, version: int) -> None:
    """Migrate from schema `version` to the present one, each step in one transaction.

    A backup of the old file at `path` is kept as `<name>.v<version>`.

    Raises:
        sqlite3.DatabaseError: the version is negative.
        sqlite3.Error: a step failed; it is rolled back, the earlier steps stay.
    """
    if version < 0:
        raise sqlite3.DatabaseError(f"there is no schema {version}")
    if path and 0 < version < len(MIGRATIONS):
        _back_up(db, path.with_name(f"{path.name}.v{version}"))
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        db.execute("begin immediate")
        try:
            for statement in statements:
                db.execute(statement)
            db.execute(f"pragma user_version={number}")
            db.execute("commit")
        except sqlite3.Error:
            db.execute("rollback")
            raise


def _back_up(db: sqlite3.Connection, path: Path) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with contextlib.closing(sqlite3.connect(draft)) as copy:
            db.backup(copy)
        draft.replace(path)
    except (sqlite3.Error, OSError):
        draft.unlink(missing_ok=True)
        raise
