"""Damaged event logs and configurations: all other events and all other runs are still read."""

from __future__ import annotations

import base64
import json
import os
import random
import resource
import zlib

import numpy as np
import pytest

from engine.common.errors import StoreError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Finished, Interrupted, Started
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from engine.store.event_log import EventLog
from engine.store.integrity_check import check
from engine.store.listing import row_of
from engine.store.run import Run
from engine.store.store import Store
from tests.fakes import make_run
from tests.runtime.faults import MIB, log_of


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A store with two runs; tests damage the log of the first."""
    store = Store(tmp_path_factory.mktemp("recorded"))
    victim = make_run(store, with_overrides(RunConfig(), ["max_grad_norm=1"]), num_steps=160)
    return store, victim, log_of(victim).read_bytes(), make_run(store, num_steps=20, seed=1)


def steps_in(data: bytes) -> list[int]:
    """The steps of undamaged lines, read from their JSON."""
    events = [json.loads(line) for line in data.split(b"\n") if b'"kind":"steps"' in line]
    return [e["first"] + i for e in events for i in range(len(e["loss"]) * 3 // 4 // 4)]


def test_a_log_cut_anywhere_reads_as_a_prefix_and_can_be_completed(recorded):
    _, victim, data, other = recorded
    before, problems = log_of(other).read_bytes(), 0
    for at in range(0, len(data) + 1, 64):
        log_of(victim).write_bytes(data[:at])
        cut = Run(victim.folder)
        lines = data[:at].rpartition(b"\n")[0]
        assert cut.steps["step"].tolist() == steps_in(lines)
        assert cut.problems == []
        whole = data[at : at + 1] == b"\n"  # only its end of line is missing: ended, the record is there
        if not cut.is_over and at + 1 < len(data):
            EventLog(log_of(victim)).close(Interrupted(at=1.0, reason="power"))
            ended = Run(victim.folder)
            assert (ended.status, ended.steps["step"].tolist()) == (
                "interrupted",
                steps_in(data[:at] if whole else lines),
            )
            assert len(ended.problems) == (not whole and data[at - 1 : at] not in {b"\n", b""})
            problems += len(ended.problems)
    assert problems > 50
    assert log_of(other).read_bytes() == before


@pytest.mark.parametrize("rot", [b"\0" * 64, b"\xff", b"\n", b'"', b"{", b"\0" * 5_000])
def test_a_log_damaged_anywhere_keeps_its_other_events_and_reports_the_place(recorded, rot):
    store, victim, data, other = recorded
    for at in range(0, len(data), 64):
        rotten = data[:at] + rot + data[at + len(rot) :]
        if rotten == data:
            continue
        log_of(victim).write_bytes(rotten)
        run = Run(victim.folder)
        seen = run.steps["step"].tolist()
        assert seen == sorted(set(seen))
        start = data.rfind(b"\n", 0, at) + 1
        assert seen[: len(steps_in(data[:start]))] == steps_in(data[:start])
        after = data.find(b"\n", min(at + len(rot), len(data))) + 1
        assert not after or seen[len(seen) - len(steps_in(data[after:])) :] == steps_in(data[after:])
        assert after == 0 or run.problems[0].startswith(f"at byte {start}: ")
        assert run.status == ("finished" if after and after < len(data) else run.status)
        run.summary()
    assert [row.run_id for row in store.rows()].count(other.run_id) == 1


def test_random_damage_never_breaks_the_reader(recorded):
    _, victim, data, _ = recorded
    rng = random.Random(0)
    for _ in range(300):
        rotten = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            at = rng.randrange(len(rotten))
            rotten[at : at + rng.choice([0, 1, 8])] = rng.randbytes(rng.choice([0, 1, 8]))
        log_of(victim).write_bytes(rotten)
        run = Run(victim.folder)
        seen = run.steps["step"].tolist()
        assert seen == sorted(set(seen))
        assert bytes(rotten) == data or run.problems or not run.is_over
        row_of(run)


def line_of(event: dict) -> bytes:
    """A line with any content and a correct checksum."""
    body = json.dumps(event).encode()
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def packed(values, dtype):
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


STEPS = {
    "kind": "steps",
    "first": 1,
    "loss": packed([1, 2], "<f4"),
    "samples": packed([4, 4], "<i4"),
    "lr": 0.1,
    "train_s": [0, 1],
    "elapsed_s": [0, 1],
}
STARTED = json.loads(
    Started(
        at=1, parameters=1, train_flops_per_example=1, train_examples=1, test_examples=1, total_steps=1, setup_s=0
    ).model_dump_json()
)
NONSENSE = [
    STEPS | {"samples": packed([4], "<i4")}, STEPS | {"samples": packed([4] * 3, "<i4")},
    STEPS | {"samples": packed([4, -4], "<i4")}, STEPS | {"loss": ""}, STEPS | {"loss": "AAA"}, STEPS | {"loss": "AAAA"},
    STEPS | {"loss": {"a": 1}}, STEPS | {"loss": 7}, STEPS | {"loss": [[1], [2, 3]]}, STEPS | {"loss": [[1, 2]]},
    STEPS | {"loss": None}, STEPS | {"samples": [2**40, 1]}, STEPS | {"first": -1}, STEPS | {"first": 2**63},
    STEPS | {"first": 10**400}, STEPS | {"train_s": ["NaN", 1]}, STEPS | {"train_s": [1, 0]},
    STEPS | {"train_s": [0, 1e300]}, STEPS | {"elapsed_s": ["Infinity", 1]}, STEPS | {"lr": packed([0.1], "<f8")},
    STEPS | {"lr": {}}, STEPS | {"lr": 10**400}, STEPS | {"lr": [["a"]]},
    STEPS | {"norm_steps": packed([3], "<i4"), "grad_norm": packed([1], "<f4")},
    STEPS | {"norm_steps": packed([0], "<i4"), "grad_norm": packed([1], "<f4")},
    STEPS | {"norm_steps": packed([1, 2], "<i4"), "grad_norm": packed([1], "<f4")},
    {"kind": "queued", "at": "NaN"}, {"kind": "queued", "at": 1e300}, {"kind": "queued", "at": -1},
    STARTED | {"train_examples": 0}, STARTED | {"total_steps": -1}, STARTED | {"parameters": 10**400},
    {"kind": "evaluation", "step": -1, "train_s": 0, "elapsed_s": 0, "test_loss": 0, "test_accuracy": 0, "seconds": 0},
    {"kind": "hardware", "elapsed_s": "NaN", "readings": {}}, {"kind": []}, {}, {"kind": "finished", "at": None},
    json.loads("[" * 150 + "]" * 150) and {"kind": "queued", "at": 1, "name": json.loads("[" * 150 + "]" * 150)},
]  # fmt: skip


@pytest.mark.parametrize("event", NONSENSE, ids=lambda event: json.dumps(event)[:60])
def test_an_impossible_event_is_skipped_and_reported(store, event):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(event))
        file.write(line_of(STEPS))
    run.refresh()
    assert [problem.partition(": ")[2][:24] for problem in run.problems] == ["An event cannot be read:"]
    assert run.steps["step"].tolist() == [1, 2]
    assert run.summary().samples == 8
    json.loads(row_of(run).model_dump_json())


def test_the_events_without_nonsense_are_read(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(STARTED) + line_of(STEPS))
    run.refresh()
    assert (run.problems, len(run.steps)) == ([], 2)


def test_steps_written_twice_are_read_once(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(line_of(STEPS) * 2 + line_of(STEPS | {"first": 2}) + line_of(STEPS | {"first": 3}))
    run.refresh()
    assert run.steps["step"].tolist() == [1, 2, 3, 4]
    assert [problem.partition(": ")[2] for problem in run.problems] == [
        "Steps 1 to 2 are not in order.",
        "Steps 2 to 3 are not in order.",
    ]


def test_an_endless_line_is_skipped_in_little_memory(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.truncate(100 * MIB)  # power loss leaves zeros
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line_of(STEPS))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.refresh()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024  # KiB
    assert run.steps["step"].tolist() == [1, 2]
    assert len(run.problems) == 1
    assert run.problems[0].endswith("An event is longer than 8,388,608 bytes.")


def test_a_hundred_thousand_damaged_lines_are_counted_not_listed(store):
    run = store.run(store.create(RunConfig()))
    with log_of(run).open("ab") as file:
        file.write(b"x\n" * 100_000)
    EventLog(log_of(run)).close(Finished(at=1.0))
    run.refresh()
    assert (run.status, run.num_damaged) == ("finished", 100_000)
    assert run.problems[-1] == "99,950 more events cannot be read"
    assert len(run.problems) == 51


def bomb(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", bomb(100_000), '{"model":' + bomb(900) + "}", '{"seed":' + "9" * 5_000 + "}",
             '{"seed":1e999}', '{"data":"\\ud800"}', '{"' + "a" * 2**20 + '":1}', "\0" * 100, '{"model":{"family":[]}}'],
    ids=lambda text: text[:12] + str(len(text)),
)  # fmt: skip
def test_an_unreadable_configuration_is_reported_and_hides_no_other_run(store, text):
    fine, damaged = make_run(store, num_steps=20), make_run(store, num_steps=20)
    (damaged.folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=f"Run {damaged.run_id} cannot be read: "):
        store.run(damaged.run_id)
    assert [row.run_id for row in store.rows()] == [fine.run_id]


def test_a_folder_in_place_of_a_log_is_reported_and_hides_no_other_run(store):
    fine, damaged = make_run(store, num_steps=20), make_run(store, num_steps=20)
    log_of(damaged).unlink()
    log_of(damaged).mkdir(mode=0o700)
    assert [row.run_id for row in store.rows()] == [fine.run_id]
    assert check(store).problems == [f"The log of run {damaged.run_id} cannot be read: Is a directory."]


@pytest.mark.parametrize("content", [None, b"", b"\0" * 4_096])
def test_a_run_whose_log_was_lost_is_not_run_again(store, content):
    run = make_run(store, num_steps=20)
    log_of(run).unlink() if content is None else log_of(run).write_bytes(content)
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    supervising.tick()
    supervising.index.close()
    run = store.run(run.run_id)
    assert (run.status, run.why(), len(run.steps)) == ("interrupted", "Its log was lost or damaged.", 0)


def test_a_log_that_became_shorter_is_reported(store):
    run = make_run(store, num_steps=100)
    os.truncate(log_of(run), 500)
    with pytest.raises(StoreError, match="became shorter while it was read"):
        run.refresh()
