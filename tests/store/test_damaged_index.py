"""A damaged, deleted or newer index never stops a run, and is rebuilt."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3

import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.runtime import client as runtime_client
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.index import Index
from engine.store.index_writer import KeptIndex
from engine.store.integrity_check import check
from engine.store.listing import row_of
from tests.fakes import make_run
from tests.runtime.faults import indexed


def cut(path, rng):
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path, rng):
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 20, 400])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def zero(path, rng):
    data, at = bytearray(path.read_bytes()), rng.randrange(path.stat().st_size)
    data[at : at + 4_096] = bytes(len(data[at : at + 4_096]))
    path.write_bytes(data)


def turn_into_text(path, rng):
    path.write_text("This is not an index.\n" * 100)


def turn_into_folder(path, rng):
    path.unlink()
    path.mkdir(mode=0o700)
    (path / "something").touch(0o600)


def lose_wal(path, rng):
    path.with_name("index.sqlite-wal").unlink()


def rot_wal(path, rng):
    flip(path.with_name("index.sqlite-wal"), rng)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "seed"),
    [(by_chance, seed) for by_chance in (cut, flip, zero, rot_wal) for seed in range(3)]
    + [(always, 0) for always in (turn_into_text, turn_into_folder, lose_wal)],
)
def test_a_damaged_index_stops_no_run_and_is_rebuilt(with_index, damage, seed):
    store = with_index
    if damage not in {lose_wal, rot_wal}:  # of a file that has it all: what is in the log would mend it
        Index(store.root).close()
    damage(store.root / "index.sqlite", random.Random(seed))
    assert len(store.rows()) == 30
    found = check(store)  # says something, or there is nothing to say
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    for number in range(3):
        store.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1", f"seed={number}"]))
    supervising.tick()
    while not supervising.is_idle:
        supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert [row.status for row in store.rows(limit=3)] == ["finished"] * 3
    assert len(store.rows()) == 33
    assert runtime_client.rebuild_index(store) == "here"
    assert check(store).problems == []
    assert damage not in {turn_into_text, turn_into_folder} or found.problems


def test_damage_that_no_query_meets_is_found_at_opening(with_index):
    Index(with_index.root).close()
    path = with_index.root / "index.sqlite"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        page_of = db.execute("select rootpage from sqlite_master where name = 'runs_samples_per_s'").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[(page_of - 1) * 4_096 : page_of * 4_096] = bytes(4_096)
    path.write_bytes(data)
    assert "The index is damaged: " in check(with_index).problems[0]
    Index(with_index.root).close()
    assert (with_index.root / "index.sqlite.damaged").read_bytes() == data


def test_an_index_damaged_while_open_is_rebuilt(with_index):
    supervising = Supervisor(with_index, InlineExecutor())
    supervising.recover()
    supervising.index._db.execute("pragma writable_schema=on")
    supervising.index._db.execute("update sqlite_master set rootpage = 2 where name = 'runs_created'")
    supervising.index._db.execute("pragma wal_checkpoint(truncate)")
    reopened = Index.__new__(Index)  # a connection that believes the rotten schema
    reopened.path, reopened.version = supervising.index._index.path, 2
    reopened._file = reopened.path.stat()
    reopened._db = sqlite3.connect(reopened.path, isolation_level=None, check_same_thread=False)
    supervising.index._index._db.close()
    supervising.index._index = reopened
    fresh = with_index.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1"]))
    supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert with_index.run(fresh).status == "finished"
    assert check(with_index).problems == []


def test_rows_refused_by_a_full_disk_are_written_later(store, monkeypatch):
    kept = KeptIndex(store)
    run = make_run(store, num_steps=20)
    kept._index._db.execute("pragma max_page_count = 1")
    big = row_of(run).model_copy(update={"why": "x" * 10**6})
    kept.put(big)
    assert kept.ids() == set()
    kept._index._db.execute("pragma max_page_count = 100000")
    kept.catch_up()
    assert kept.ids() == {run.run_id}
    kept.close()


def make_newer(store):
    with contextlib.closing(sqlite3.connect(store.root / "index.sqlite")) as db:
        db.execute("pragma user_version = 99")
        db.commit()
        db.execute("pragma wal_checkpoint(truncate)")
    return (store.root / "index.sqlite").read_bytes()


def test_with_an_index_of_a_newer_isoflop_runs_are_listed_and_started(with_index, caplog):
    before = make_newer(with_index)
    supervising = Supervisor(with_index, InlineExecutor())
    supervising.recover()
    with_index.create(with_overrides(PRESETS["digits-mlp"].config, ["budget.steps=1"]))
    supervising.tick()
    supervising.index.catch_up()
    supervising.index.close()
    assert (len(with_index.rows()), with_index.rows(limit=1)[0].status) == (31, "finished")
    assert (with_index.root / "index.sqlite").read_bytes() == before
    assert "written by a newer Isoflop (schema 99). Update Isoflop" in caplog.text
    assert "newer Isoflop" in check(with_index).problems[0]


def test_a_newer_index_is_moved_aside_by_a_rebuild(with_index):
    before = make_newer(with_index)
    assert runtime_client.rebuild_index(with_index) == "here"
    assert (with_index.root / "index.sqlite.newer").read_bytes() == before
    assert (check(with_index).problems, len(indexed(with_index))) == ([], 30)
