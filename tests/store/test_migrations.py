"""Migrations of the index: all or nothing, with a backup."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys

import pytest

from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.store import migrations
from engine.store.index import Index
from engine.store.integrity_check import check
from engine.store.listing import row_of
from tests.conftest import ROOT
from tests.fakes import make_run


@pytest.fixture
def of_schema_1(store):
    """A store with an index of schema 1, created with the SQL of the version that released it."""
    runs = [make_run(store, num_steps=20, seed=seed) for seed in range(3)]
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite", isolation_level=None)) as db:
        db.execute("pragma journal_mode=wal")
        db.executescript(
            """
            create table runs (
              run_id text primary key, name text not null, status text not null, created real not null, grouped text,
              config text not null, summary text not null, why text not null,
              test_accuracy real, final_train_loss real, samples_per_s real, train_seconds real, steps integer
            ) without rowid;
            create index runs_created on runs(created);
            create index runs_test_accuracy on runs(test_accuracy);
            create index runs_final_train_loss on runs(final_train_loss);
            create index runs_samples_per_s on runs(samples_per_s);
            pragma user_version=1;
            """
        )
        for run in runs:
            row, s = row_of(run), run.summary()
            values = (
                row.run_id, row.name, row.status, row.created, row.group, row.config.model_dump_json(),
                s.model_dump_json(), row.why, s.test_accuracy, s.final_train_loss, s.samples_per_s, s.train_seconds,
                s.steps,
            )  # fmt: skip
            db.execute(f"insert into runs values ({','.join('?' * len(values))})", values)
    for path in store.root.glob("index.sqlite*"):
        path.chmod(0o600)
    return store


def version_of(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("pragma user_version").fetchone()[0], db.execute("select count(*) from runs").fetchone()[0]


def test_an_index_of_an_earlier_version_can_be_read(of_schema_1):
    with Index.reading(of_schema_1.root) as index:
        assert len(index.rows()) == 3
    assert check(of_schema_1).problems == []
    assert version_of(of_schema_1.root / "index.sqlite") == (1, 3)


def test_an_index_of_an_earlier_version_is_migrated_after_a_backup(of_schema_1):
    before = [row.model_dump_json() for row in of_schema_1.rows()]
    index = Index(of_schema_1.root)
    assert [row.model_dump_json() for row in index.rows()] == before
    index.put(index.rows()[0].model_copy(update={"owner": "ada"}))
    assert index.rows()[0].owner == "ada"
    index.close()
    path = of_schema_1.root / "index.sqlite"
    assert version_of(path) == (len(migrations.MIGRATIONS), 3)
    assert version_of(path.with_name("index.sqlite.v1")) == (1, 3)
    assert path.with_name("index.sqlite.v1").stat().st_mode & 0o777 == 0o600


@pytest.mark.process
def test_a_killed_migration_leaves_the_old_version_and_is_repeated(of_schema_1):
    script = f"""
import os, signal
from pathlib import Path
from engine.store import index, migrations
def until_killed(statements=migrations.MIGRATIONS[1]):
    yield statements[0]
    os.kill(os.getpid(), signal.SIGKILL)
migrations.MIGRATIONS[1] = until_killed()
index.Index(Path({str(of_schema_1.root)!r}))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == -signal.SIGKILL
    path = of_schema_1.root / "index.sqlite"
    assert version_of(path) == version_of(path.with_name("index.sqlite.v1")) == (1, 3)
    Index(of_schema_1.root).close()
    assert version_of(path) == (len(migrations.MIGRATIONS), 3)
    assert not path.with_name("index.sqlite.damaged").exists()


def test_a_migration_that_fails_changes_nothing(of_schema_1, monkeypatch):
    steps = [*migrations.MIGRATIONS[:1], (*migrations.MIGRATIONS[1], "insert into nowhere values (1)")]
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    db = sqlite3.connect(of_schema_1.root / "index.sqlite", isolation_level=None)
    with contextlib.closing(db), pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrations.migrate(db, of_schema_1.root / "index.sqlite", 1)
    assert version_of(of_schema_1.root / "index.sqlite") == (1, 3)


def test_runs_with_a_target_of_an_earlier_version_are_read_again(store):
    aimed, plain = make_run(store, with_overrides(RunConfig(), ["target.value=0.9"])), make_run(store, num_steps=40)
    with contextlib.closing(Index(store.root)) as index:
        for run in (aimed, plain):
            index.put(row_of(run))
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite")) as db:
        db.execute("pragma user_version=6")
    with contextlib.closing(Index(store.root)) as index:
        assert index.ids() == {plain.run_id}
    assert {row.run_id for row in store.rows()} == {plain.run_id, aimed.run_id}
