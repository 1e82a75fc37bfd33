"""The store: event logs that survive damage, run folders, summaries and the derived index."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import sqlite3
import stat

import numpy as np
import pytest

from engine.common.errors import StoreError, StoreFull
from engine.common.jsontext import json_text
from engine.config.run import RunConfig
from engine.events.lifecycle import (
    Artifact,
    Cancelled,
    Failed,
    Finished,
    Interrupted,
    Queued,
    Started,
    Starting,
    Stopping,
)
from engine.events.machine import HardwareSample
from engine.events.training import Evaluation, Steps, WarmUp
from engine.runtime.supervisor import Supervisor
from engine.store.columns import Table
from engine.store.event_log import EventLog, decode, encode
from engine.store.index import Index
from engine.store.integrity_check import check
from engine.store.listing import row_of
from engine.store.run import Run
from engine.store.store import Store
from tests.fakes import make_run

EVENTS = [
    Queued(at=1.0, name='ä "quoted"\n{}', group="g"),
    Starting(at=2.0, pid=3, pid_started=1.5),
    Started(at=3.0, parameters=9, train_flops_per_example=7, train_examples=5, test_examples=2,
                    total_steps=None, setup_s=0.1, environment={"torch": "2", "cuda": None}),
    WarmUp(seconds=0.1, steps=3),
    Steps(first=1, loss=[1.5, math.nan, math.inf, -math.inf], samples=[4, 4, 4, 2], lr=0.1,
                  train_s=(0.0, 0.5), elapsed_s=(0.1, 0.7)),
    Evaluation(step=4, train_s=0.5, elapsed_s=0.8, test_loss=math.nan, test_accuracy=0.5, seconds=0.1),
    HardwareSample(elapsed_s=0.5, readings={"gpu_power_w": None, "x": math.inf}, missing={"gpu_power_w": "-"}),
    Artifact(name="model.safetensors", size_bytes=3, sha256="00"),
    Stopping(at=4.0),
    Finished(at=5.0),
    Cancelled(at=5.0, reason="r"),
    Failed(at=5.0, cause="Diverged", message="m", fix="f", step=3, detail="Traceback"),
    Interrupted(at=5.0, reason="r"),
]  # fmt: skip


def log_of(run):
    return run.folder / "events.jsonl"


def edit(run, change):
    """Rewrite a run's log with `change(lines) -> lines` and read it again."""
    lines = log_of(run).read_bytes().splitlines(keepends=True)
    log_of(run).write_bytes(b"".join(change(lines)))
    return Run(run.folder)


def tables(run):
    return {name: np.stack([t[c] for c in t.names]) for name, t in vars(run).items() if isinstance(t, Table)}


def number_of_first_steps(lines):
    return next(i for i, line in enumerate(lines) if b'"kind":"steps"' in line)


# --- the event log -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_an_event_survives_its_line(event):
    line = encode(event)
    assert repr(decode(line)) == repr(event)  # repr: NaN is not equal to itself
    assert line.count(b"\n") == 1


def test_losses_keep_nan_and_both_infinities():
    loss = decode(encode(EVENTS[4])).loss
    np.testing.assert_array_equal(loss, np.array([1.5, np.nan, np.inf, -np.inf], np.float32))


def test_a_line_is_valid_json():
    line = json.loads(encode(EVENTS[5]))
    assert (line["kind"], line["test_accuracy"], line["test_loss"]) == ("evaluation", 0.5, "NaN")


def test_an_incomplete_last_line_waits_for_the_rest(store):
    run = make_run(store, num_steps=100)
    whole = log_of(run).read_bytes()
    log_of(run).write_bytes(whole[:-20])
    torn = Run(run.folder)
    assert (torn.status, torn.problems) == ("running", [])
    log_of(run).write_bytes(whole)
    torn.refresh()
    assert (torn.status, torn.problems) == ("finished", [])


def test_following_a_log_in_pieces_reads_the_same_as_reading_it_at_once(store):
    whole, rng = make_run(store, num_steps=400, diverges_at=333), random.Random(0)
    data, at = log_of(whole).read_bytes(), 0
    copy = store.create(RunConfig())
    path = store.folder(copy) / "events.jsonl"
    path.write_bytes(b"")
    follower = store.run(copy)
    while at < len(data):
        size = rng.choice([1, 7, 100, 3_000])
        with path.open("ab") as file:
            file.write(data[at : at + size])
        at += size
        follower.refresh()
    np.testing.assert_equal(tables(follower), tables(whole))
    assert (follower.status, follower.problems, follower.why()) == ("failed", [], whole.why())


@pytest.mark.parametrize("damage", [b"\0", b"\xff", b"\n", b"\r"])
def test_a_damaged_line_is_skipped_and_reported(store, damage):
    run = make_run(store, num_steps=100)  # five read-backs of 20 steps

    def rot(lines):
        i = number_of_first_steps(lines)
        return [*lines[:i], lines[i][:40] + damage + lines[i][41:], *lines[i + 1 :]]

    rotten = edit(run, rot)
    assert (rotten.status, rotten.steps["step"].tolist()) == ("finished", list(range(21, 101)))
    assert "The checksum of an event does not match" in rotten.problems[0]
    assert rotten.problems[-1].endswith("80 of 100 steps and 0 of 0 evaluations can be read")


def test_a_damaged_line_is_reported_with_its_byte(store):
    run = make_run(store, num_steps=100)
    lines = log_of(run).read_bytes().splitlines(keepends=True)
    rotten = edit(run, lambda lines: [*lines[:-2], b"x" + lines[-2][1:], lines[-1]])
    assert rotten.problems[0].startswith(f"at byte {len(b''.join(lines[:-2]))}: ")


@pytest.mark.parametrize("changed", ["removed", "repeated", "swapped"])
def test_the_final_event_reveals_changed_lines(store, changed):
    def change(lines):
        i = number_of_first_steps(lines)
        middle = {"removed": [], "repeated": [lines[i]] * 2, "swapped": [lines[i + 1], lines[i], lines[i + 1]]}[changed]
        return [*lines[:i], *middle, *lines[i + 1 :]]

    assert "the log was changed after it was written" in edit(make_run(store, num_steps=100), change).problems[-1]


def test_an_event_of_a_newer_version_is_skipped_and_reported(store):
    run = make_run(store, num_steps=100)
    newer = Stopping(at=1.0).model_copy(update={"kind": "telepathy"})
    after = edit(run, lambda lines: [lines[0], encode(newer), *lines[1:]])
    assert "An event cannot be read" in after.problems[0]
    assert after.status == "finished"


def test_a_terminal_status_never_changes(store):
    run = make_run(store, num_steps=100)
    EventLog(log_of(run)).close(Failed(at=9.0, cause="WorkerLost", message="late"))
    run.refresh()
    assert (run.status, run.why()) == ("finished", "")


def test_a_log_can_be_continued_after_a_half_written_line(store, config):
    folder = store.folder(store.create(config))
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"kind":"ste')
    EventLog(folder / "events.jsonl").close(Interrupted(at=1.0, reason="power"))
    run = Run(folder)
    assert (run.status, len(run.problems)) == ("interrupted", 1)


def test_check_names_every_damaged_run(store):
    fine, rotten, lost = (make_run(store, num_steps=40) for _ in range(3))
    edit(rotten, lambda lines: [*lines[:2], *lines[3:]])
    (lost.folder / "config.json").write_bytes(b"\xff\0")
    said = "\n".join(check(store).problems)
    assert rotten.run_id in said
    assert lost.run_id in said
    assert fine.run_id not in said


# --- run folders ---------------------------------------------------------------------------------------------------


def test_a_created_run_is_read_back(store, config):
    run = store.run(store.create(config, name="mine", group="g"))
    assert (run.config, run.name, run.queued.group, run.status) == (config, "mine", "g", "queued")


def test_creating_a_run_is_all_or_nothing(store, config, monkeypatch):
    monkeypatch.setattr(
        "engine.store.run_folders.encode", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(StoreFull, match=r"The store cannot be written: its disk is full\. Delete runs"):
        store.create(config)
    assert list(store.runs.iterdir()) == store.rows() == []


@pytest.mark.parametrize(
    "text",
    ["../x", "/etc", "..", ".", "", "0" * 16 + "/..", "ABCDEF0123456789", "g" * 16, "0" * 15, "0" * 16 + "\n", "\0"],
)
def test_no_user_text_becomes_a_path(store, text):
    for use in (store.folder, store.run, store.delete, store.find):
        with pytest.raises(StoreError, match="There is no run"):
            use(text)


@pytest.mark.parametrize("rest", ["/", "/.", "/../..", "\n", "/config.json"])
def test_an_id_with_a_suffix_is_refused(store, rest):
    run = make_run(store, num_steps=20)
    with pytest.raises(StoreError, match="There is no run"):
        store.folder(run.run_id + rest)


def test_a_run_is_found_by_a_prefix_of_its_id_or_as_last(store):
    first, last = make_run(store, num_steps=20), make_run(store, num_steps=20)
    assert store.find(first.run_id[:12]) == first.run_id
    assert store.find("last") == last.run_id


def test_an_ambiguous_prefix_is_refused(store, monkeypatch):
    for run_id in ("ab" * 8, "abcd" * 4):
        monkeypatch.setattr("engine.store.run_folders.secrets.token_hex", lambda _, run_id=run_id: run_id)
        store.create(RunConfig())
    with pytest.raises(StoreError, match=r"'ab' matches 2 runs\. Type more"):
        store.find("ab")


def test_everything_is_readable_by_its_owner_only(tmp_path):
    before = os.umask(0)
    try:
        store = Store(tmp_path / "store")
        run = make_run(store, num_steps=20)
        index = Index(store.root)
        index.put(row_of(run))  # while it is open, the index has a WAL and a shared memory file
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [store.root, *store.root.rglob("*")]}
    index.close()
    assert len(modes) == 10
    assert {str(p): oct(m) for p, m in modes.items() if m != (0o700 if p.is_dir() else 0o600)} == {}


def test_one_damaged_run_hides_no_other(store):
    fine, damaged = make_run(store, num_steps=20), make_run(store, num_steps=20)
    (damaged.folder / "config.json").write_text("garbage")
    assert [row.run_id for row in store.rows()] == [fine.run_id]
    with pytest.raises(StoreError, match=f"Run {damaged.run_id} cannot be read: config.json is not JSON"):
        store.run(damaged.run_id)


def test_a_deleted_run_is_gone(store):
    run = make_run(store, num_steps=20)
    store.delete(run.run_id)
    assert list(store.runs.iterdir()) == []


def test_a_store_that_cannot_be_created_names_a_fix(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot be used: .*\. Set ISOFLOP_HOME"):
        Store(tmp_path / "file")


# --- summaries -----------------------------------------------------------------------------------------------------


def test_a_summary_follows_from_the_log(store):
    summary = make_run(store, num_steps=200, step_s=0.01).summary()
    assert (summary.steps, summary.samples, summary.epochs) == (200, 12_800, 3.2)
    assert (summary.train_seconds, summary.samples_per_s) == (2.0, 6_400)
    assert summary.flops == 12_800 * 408_576


def test_a_diverged_loss_is_nan_and_null_in_json(store):
    run = make_run(store, num_steps=100, diverges_at=90)
    assert math.isnan(run.steps["loss"][-1])
    assert math.isnan(run.summary().final_train_loss)
    assert json.loads(json_text(run.summary().model_dump()))["final_train_loss"] is None


def test_a_table_keeps_all_rows_as_it_grows():
    table, rng = Table("a", "b"), random.Random(0)
    given = []
    for _ in range(200):
        values = [rng.random() for _ in range(rng.choice([1, 3, 500]))]
        given += values
        table.extend(values, 7)
    assert (table["a"].tolist(), set(table["b"])) == (given, {7.0})


def test_an_empty_table_has_no_last_value():
    assert Table("a").last("a") is None


# --- the index -----------------------------------------------------------------------------------------------------


class NoExecutor:
    def start(self, folder):
        raise AssertionError("nothing is to be started")


@pytest.fixture
def supervisor(store):
    """A supervisor in this process, in a store of five runs that are over."""
    for seed in range(3):
        make_run(store, num_steps=200 + 200 * seed, seed=seed, name=f"run {seed}", group="g")
    make_run(store, num_steps=60, diverges_at=55)
    make_run(store, num_steps=20)
    supervisor = Supervisor(store, NoExecutor())
    supervisor.recover()
    yield supervisor
    supervisor.index.close()


def everything(rows):
    return [row.model_dump_json() for row in rows]


def test_the_index_equals_the_folders(supervisor, store):
    indexed = supervisor.index.rows()
    assert everything(indexed) == everything(row_of(store.run(row.run_id)) for row in indexed)
    assert len(indexed) == 5


def test_a_rebuilt_index_equals_the_kept_one(supervisor, store):
    kept = everything(store.rows())
    supervisor._execute({"command": "rebuild", "actor": "terminal"})
    assert everything(store.rows()) == kept


def test_runs_are_listed_the_same_without_an_index(supervisor, store):
    kept = everything(store.rows())
    supervisor.index.close()
    for file in store.root.glob("index.sqlite*"):
        file.unlink()
    assert everything(store.rows()) == kept


@pytest.mark.parametrize("garbage", [b"", b"garbage" * 1_000])
def test_a_damaged_index_is_replaced(supervisor, store, garbage):
    kept = everything(store.rows())
    supervisor.index.close()
    for file in store.root.glob("index.sqlite*"):
        file.write_bytes(garbage)
    assert everything(store.rows()) == kept
    again = Supervisor(store, NoExecutor())
    again.recover()
    assert everything(again.index.rows()) == kept


def test_runs_without_accuracy_come_last_in_that_order(supervisor, store):
    accuracies = [row.summary.test_accuracy for row in store.rows(order="test_accuracy")]
    assert accuracies[:3] == sorted(accuracies[:3], reverse=True)
    assert accuracies[3:] == [None, None]


def test_an_unindexed_run_is_listed_in_order(supervisor, store):
    fresh = store.create(RunConfig())
    assert store.rows(limit=2)[0].run_id == fresh
    assert store.rows(order="test_accuracy")[0].run_id != fresh


def test_a_run_indexed_while_a_list_is_made_is_counted_once(store, monkeypatch):
    first, second = make_run(store), make_run(store)
    index, ids = Index(store.root), Index.ids
    index.put(row_of(first))

    def and_then_another(self, *arguments):
        known = ids(self, *arguments)
        index.put(row_of(second))
        return known

    monkeypatch.setattr(Index, "ids", and_then_another)
    assert store.listing().total == 2
    index.close()


def test_a_run_indexed_since_the_last_list_is_counted_once(store, monkeypatch):
    first, second = make_run(store), make_run(store)
    index = Index(store.root)
    index.put(row_of(first))
    monkeypatch.setattr("engine.store.index.MTIME_TICK_NS", -(10**18))  # a stamp of any age is trusted
    assert store.listing().total == 2
    index.put(row_of(second))
    stamp, _ = store._unindexed_as_of
    monkeypatch.setattr(
        "engine.store.index.Stamp.of", lambda *_: stamp
    )  # a row is added between the stamp and the list
    assert store.listing().total == 2
    index.close()


def test_runs_are_listed_by_status(supervisor, store):
    assert [row.status for row in store.rows(status=("failed",))] == ["failed"]


def test_an_unknown_order_is_refused_with_the_known_ones(supervisor, store):
    with pytest.raises(StoreError, match="Choose from created, test_accuracy"):
        store.rows(order="created; drop table runs")


def test_an_unreadable_row_hides_no_other(supervisor, store):
    supervisor.index._db.execute("update runs set config = '{}x' where name = 'run 1'")
    assert len(store.rows()) >= 4


def test_a_newer_index_is_refused_and_unchanged(store):
    path = store.root / "index.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("create table runs (everything text)")
        db.execute("pragma user_version = 99")
    db.close()
    before = path.read_bytes()
    for readonly in (True, False):
        with pytest.raises(StoreError, match=r"newer Isoflop \(schema 99\)\. Update"):
            Index(store.root, readonly=readonly)
    assert path.read_bytes() == before
    assert [p.name for p in store.root.glob("index*")] == ["index.sqlite"]


def test_a_run_read_for_its_summary_holds_few_points(store):
    whole = make_run(store, num_steps=20_000)
    short = store.run(whole.run_id, keep_points=100)
    assert short.summary() == whole.summary()
    assert len(short.steps["loss"]) <= 800 < len(short.steps) == 20_000
    assert short.problems == []
