"""`python -m engine check`, and what a supervisor removes after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

import pytest

from engine.runtime import client as runtime_client
from engine.runtime import worker
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store import integrity_check
from engine.store.index import Index
from engine.store.integrity_check import check, has_wal_reset_bug
from engine.system import disk_space
from tests.fakes import make_run
from tests.runtime.faults import log_of


def test_check_compares_the_index_with_the_folders(with_index):
    assert runtime_client.rebuild_index(with_index) == "here"
    first, second = with_index.rows()[:2]
    with contextlib.closing(sqlite3.connect(with_index.root / "index.sqlite", isolation_level=None)) as db:
        db.execute("update runs set status = 'failed' where run_id = ?", (first.run_id,))
        db.execute("update runs set summary = '{' where run_id = ?", (second.run_id,))
    said = "\n".join(check(with_index).problems)
    assert (
        f"Run {first.run_id}: it is failed with 20 steps in the index, but finished with 20 steps in its folder" in said
    )
    assert "The index has 1 rows that cannot be read" in said
    assert {row.run_id for row in with_index.rows()} >= {second.run_id}
    runtime_client.rebuild_index(with_index)
    assert check(with_index).problems == []


def test_check_names_files_that_others_can_read(store):
    run = make_run(store, num_steps=20)
    assert check(store).problems == []
    log_of(run).chmod(0o644)
    store.inbox.chmod(0o750)
    (problem,) = check(store).problems
    assert "inbox (0750)" in problem
    assert f"runs/{run.run_id}/events.jsonl (0644). Remove their access: chmod -R go= " in problem


def test_check_notes_leftovers_and_foreign_files(store):
    (store.runs / ".0123456789abcdef").mkdir(mode=0o700)
    (store.runs / "my notes").mkdir(mode=0o700)
    (store.root / "holiday.jpg").touch(0o600)
    found = check(store)
    assert found.problems == []
    said = "\n".join(found.notes)
    for words in (
        ".0123456789abcdef was left incomplete",
        "holiday.jpg was not made by Isoflop",
        "runs/my notes was not",
    ):
        assert words in said


def test_check_reports_a_missing_artifact(store, config):
    run_id = store.create(config)
    worker.run(store.folder(run_id))
    assert check(store).problems == []
    (store.folder(run_id) / "model.safetensors").unlink()
    assert check(store).problems[0].startswith(f"Run {run_id}: model.safetensors has 0 of ")


def test_check_reports_bytes_after_the_final_event(store):
    run = make_run(store, num_steps=20)
    with log_of(run).open("ab") as file:
        file.write(b"\0" * 100)
    assert check(store).problems == [f"Run {run.run_id}: its log has 100 bytes after the final event."]


def test_check_on_the_command_line_fails_for_a_problem_and_rebuilds(with_index, engine):
    Index(with_index.root).close()
    (with_index.root / "index.sqlite").write_text("This is not an index.\n" * 100)

    def ask(*options):
        process = engine("check", "--store", with_index.root, "--json", *options)
        said = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
        return process.returncode, said

    code, said = ask()
    assert (code, said["ok"], said["runs"], said["indexed"]) == (1, False, 30, 0)
    assert said["problems"] == [
        "The index cannot be read: file is not a database. Rebuild it: `python -m engine check --rebuild`."
    ]
    code, said = ask("--rebuild")
    assert (code, said["ok"], said["problems"], said["indexed"], said["rebuilt"]) == (0, True, [], 30, "here")
    assert said["versions"]["sqlite"] == sqlite3.sqlite_version
    assert (with_index.root / "index.sqlite.damaged").read_text().startswith("This is not an index")
    assert not (with_index.root / "supervisor.pid").exists()  # nobody was needed for it


@pytest.mark.parametrize(
    ("version", "has_it"),
    [((3, 6, 23), False), ((3, 7, 0), True), ((3, 40, 1), True), ((3, 44, 5), True), ((3, 44, 6), False),
     ((3, 45, 0), True), ((3, 50, 6), True), ((3, 50, 7), False), ((3, 51, 2), True), ((3, 51, 3), False)],
)  # fmt: skip
def test_sqlite_versions_with_the_wal_reset_bug_are_known(version, has_it):
    assert has_wal_reset_bug(version) is has_it


def test_old_drafts_of_a_crash_are_removed(store):
    names = [".0123456789abcdef", ".deleted-0123456789abcdef"]
    for name in names:
        (store.runs / name).mkdir()
        (store.runs / name / "config.json").touch()
    (store.inbox / ".0001.json.0a1b2c3d").touch()
    mine = store.runs / ".git"
    mine.mkdir()
    kept = make_run(store, num_steps=20)
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    assert len(store.leftovers()) == 2  # somebody may be writing them just now; deleting is the supervisor's alone
    for path in store.leftovers():
        os.utime(path, (1, 1))
    os.utime(mine, (1, 1))
    supervising.recover()
    supervising.index.close()
    assert store.leftovers() == []
    assert mine.exists()
    assert store.ids() == [kept.run_id]


def test_a_network_file_system_is_recognized_by_its_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n/dev/sdb1 /home/local ext4 rw 0 0\n"
        "//nas/x /mnt/my\\040disk cifs rw 0 0\nbroken\n"
    )
    types = [
        disk_space.network_file_system(Path(p), mounts) for p in ("/srv", "/home/me", "/home/local/x", "/mnt/my disk/x")
    ]
    assert types == [None, "nfs4", None, "cifs"]
    assert disk_space.network_file_system(tmp_path, tmp_path / "none") is None


def test_check_notes_a_store_on_a_network_file_system(store, monkeypatch):
    monkeypatch.setattr(integrity_check.disk_space, "network_file_system", lambda _: "nfs4")
    assert "The store is on a network file system (nfs4): use it from one machine only." in check(store).notes
