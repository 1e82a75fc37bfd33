"""A store of many runs is listed, searched and sorted page by page, and always agrees with the folders."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time

import pytest

from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.lifecycle import Cancelled
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.index import SORTABLE, Index, Stamp
from engine.store.listing import line_of, row_of
from engine.store.store import Store
from tests.fakes import make_run
from tests.store.test_store import NoExecutor

CONFIGS = [PRESETS[name].config for name in ("lenet", "mnist-mlp", "digits-mlp")]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of 30 indexed runs. A test that changes the store must create its own."""
    store = Store(tmp_path_factory.mktemp("many"))
    for i in range(30):
        make_run(
            store,
            CONFIGS[i % 3],
            name=f"Nächtlich {i}" if i % 2 else "",
            num_steps=130 if i % 4 else 20,
            seed=i,
            diverges_at=15 if i % 5 == 0 else None,
        )
    with indexed(store):
        return store


@contextlib.contextmanager
def indexed(store):
    supervisor = Supervisor(store, NoExecutor())
    supervisor.recover()
    while supervisor.unindexed:
        supervisor.tick()
    yield supervisor
    supervisor.index.close()


def lines_of_folders(store):
    return [line_of(row_of(store.run(run_id))) for run_id in store.ids()]


def sorted_by(lines, order, *, descending):
    lines = sorted(lines, key=lambda line: -line.created)
    known = [line for line in lines if getattr(line, order) is not None]
    return sorted(known, key=lambda line: getattr(line, order), reverse=descending) + [
        line for line in lines if getattr(line, order) is None
    ]


def not_indexed(store, run_ids):
    with sqlite3.connect(store.root / "index.sqlite") as db:
        db.executemany("delete from runs where run_id = ?", [(run_id,) for run_id in run_ids])
    db.close()


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", SORTABLE)
def test_the_pages_of_a_listing_are_the_folders_in_order(many, order, descending):
    pages = [many.listing(order=order, descending=descending, limit=7, offset=at) for at in range(0, 30, 7)]
    assert [line for page in pages for line in page.lines] == sorted_by(
        lines_of_folders(many), order, descending=descending
    )
    assert {(page.total, page.unread) for page in pages} == {(30, 0)}


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("order", SORTABLE)
def test_unindexed_runs_are_in_order_on_each_page(store, order, descending):
    for i in range(8):
        make_run(store, CONFIGS[i % 3], num_steps=130 if i % 2 else 20, seed=i)
    with indexed(store):
        not_indexed(store, store.ids()[::2])
    pages = [store.listing(order=order, descending=descending, limit=3, offset=at) for at in (0, 3, 6)]
    assert [line for page in pages for line in page.lines] == sorted_by(
        lines_of_folders(store), order, descending=descending
    )
    assert {page.total for page in pages} == {8}


@pytest.mark.parametrize(
    "search", ["lenet", "LENET", "nächtlich", "NÄCHTLICH 7", "diverged", "failed lower", "rate the"]
)
def test_a_search_finds_the_runs_that_hold_all_of_its_words(many, search):
    expected = {
        line.run_id
        for line in lines_of_folders(many)
        if all(
            word in f"{line.name} {line.words} {line.status} {line.run_id} {line.why}".casefold()
            for word in search.casefold().split()
        )
    }
    found = many.listing(search=search)
    assert {line.run_id for line in found.lines} == expected
    assert found.total == len(expected)


def test_a_run_is_found_by_each_of_its_texts(many):
    line = next(line for line in lines_of_folders(many) if line.name and line.why)
    for search in (line.name, line.words, line.run_id, line.run_id[:8], line.why, f"{line.status} {line.run_id}"):
        assert line.run_id in {found.run_id for found in many.listing(search=search).lines}


@pytest.mark.parametrize("search", ["%", "_", "'; drop table runs; --", "\0", "\ud800", "x " * 5_000, '"', "\\"])
def test_a_search_is_never_sql(many, search):
    assert many.listing(search=search).total == 0
    assert many.listing().total == 30


def test_a_search_and_a_state_narrow_each_other(many):
    failed = many.listing(status=("failed",))
    assert {line.status for line in failed.lines} == {"failed"}
    both = many.listing(search="lenet", status=("failed", "cancelled"))
    assert {line.run_id for line in both.lines} < {line.run_id for line in failed.lines}
    assert 0 < both.total < failed.total == 6


def test_an_unknown_column_is_refused_with_the_known_ones(many):
    with pytest.raises(StoreError, match="Choose from created, test_accuracy"):
        many.listing(order="created; drop table runs")


def test_a_new_run_is_listed_at_once(store):
    """Also when the mtime of the folder is old enough to be trusted, and after many listings."""
    for _ in range(3):
        make_run(store, num_steps=20)
    with indexed(store):
        for wait_s in (0.0, 0.0, 0.2, 0.2):
            time.sleep(wait_s)
            before = store.listing().total
            fresh = store.create(RunConfig())
            assert store.listing().lines[0].run_id == store.rows(limit=1)[0].run_id == fresh
            assert store.listing().total == before + 1


def test_a_stamp_is_none_while_a_later_change_could_leave_the_same(tmp_path):
    file = tmp_path / "file"
    file.write_text("a")
    assert Stamp.of(file) is None
    os.utime(file, (time.time() - 10,) * 2)
    before = Stamp.of(file, tmp_path / "missing")
    assert before is not None
    os.utime(file, (time.time() - 9,) * 2)
    assert Stamp.of(file, tmp_path / "missing") not in (None, before)


def test_a_run_taken_out_of_the_index_is_read_from_its_folder(store):
    runs = [make_run(store, num_steps=20) for _ in range(3)]
    with indexed(store) as supervisor:
        time.sleep(0.2)
        assert store.listing().total == store.listing().total == 3
        supervisor.index.remove(runs[1].run_id)
        assert store.listing().total == len(store.rows()) == 3


def test_a_run_that_ended_since_it_was_indexed_is_shown_as_it_ended(store):
    run_id = store.create(RunConfig())
    with indexed(store):
        assert store.listing(status=("queued",)).total == 1
        EventLog(store.folder(run_id) / "events.jsonl").close(Cancelled(at=1.0, reason="enough"))
        assert (store.listing().lines[0].status, store.listing().lines[0].why) == ("cancelled", "enough")
        assert store.listing(status=("queued",)).total == 0


def test_without_an_index_the_newest_runs_are_read_and_the_others_counted(store, monkeypatch):
    monkeypatch.setattr("engine.store.store._MAX_UNINDEXED_READ", 4)
    ids = [make_run(store, num_steps=20).run_id for _ in range(10)]
    listing = store.listing()
    assert [line.run_id for line in listing.lines] == ids[:-5:-1]
    assert (listing.total, listing.unread) == (4, 6)
    assert [row.run_id for row in store.rows(limit=2)] == ids[:-3:-1]
    assert len(store.rows()) == 10


def test_an_index_of_an_old_schema_gets_its_list_columns_filled(store):
    runs = {make_run(store, num_steps=130, name="old").run_id for _ in range(3)}
    with indexed(store):
        before = store.listing()
    with sqlite3.connect(store.root / "index.sqlite") as db:
        for name in ("runs_listed", "runs_train_seconds", "runs_steps"):
            db.execute(f"drop index {name}")
        for column in ("words", "seed", "searched"):
            db.execute(f"alter table runs drop column {column}")
        db.execute("pragma user_version = 1")
    db.close()
    assert {
        line.run_id for line in store.listing().lines
    } == runs  # the old index cannot be listed, so the folders are read
    Index(store.root).close()
    assert store.listing(search="old") == before


def test_a_command_does_not_wait_for_all_indexing(store, monkeypatch):
    """A supervisor that finds many runs indexes a part of them per tick, and queues a new run at its next tick."""
    monkeypatch.setattr("engine.runtime.supervisor._INDEX_AT_A_TIME_S", 0.0)
    monkeypatch.setattr("engine.runtime.supervisor._INDEX_AT_LEAST", 2)
    for _ in range(12):
        make_run(store, num_steps=20)
    supervisor = Supervisor(store, NoExecutor())
    supervisor.recover()
    assert 0 < len(supervisor.unindexed) < 12
    fresh = store.create(with_overrides(RunConfig(), ["threads=64"]))
    supervisor._find_new_runs()
    assert supervisor.unindexed
    assert fresh in supervisor.queue
    supervisor.queue.clear()  # nothing is to be started here
    for _ in range(12):
        supervisor.tick()
    assert supervisor.index.ids() == set(store.ids())
    supervisor.index.close()


def test_a_run_deleted_while_it_waits_to_be_indexed_stays_deleted(store, monkeypatch):
    monkeypatch.setattr("engine.runtime.supervisor._INDEX_AT_A_TIME_S", 0.0)
    monkeypatch.setattr("engine.runtime.supervisor._INDEX_AT_LEAST", 0)
    run = make_run(store, num_steps=20)
    with indexed_later(store) as supervisor:
        supervisor._execute({"command": "delete", "actor": "terminal", "run_id": run.run_id})
        monkeypatch.setattr("engine.runtime.supervisor._INDEX_AT_LEAST", 9)
        supervisor._index_some()
        assert supervisor.index.ids() == set() == set(store.ids())


@contextlib.contextmanager
def indexed_later(store):
    supervisor = Supervisor(store, NoExecutor())
    supervisor.recover()
    yield supervisor
    supervisor.index.close()
