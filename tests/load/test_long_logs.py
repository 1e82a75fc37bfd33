"""A long log is read in pieces of a thousand events, with the same result as event by event."""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest

from engine.config.run import RunConfig
from engine.events.lifecycle import Finished
from engine.events.training import Steps
from engine.store.event_log import STEPS_LINE, EventLog, decode, decode_steps, encode

EVENTS = 2_500  # more than two pieces


@pytest.fixture
def folder(store):
    return store.folder(store.create(RunConfig()))


def read_backs(rng, *, most=3):
    """Steps of a slow model: one to three per event, some with gradient norms, with both forms of learning rates."""
    first, at = 1, 0.0
    for i in range(EVENTS):
        n = int(rng.integers(1, most + 1))
        normed = np.arange(first, first + n)[rng.random(n) < 0.5]
        loss = np.where(rng.random(n) < 0.01, np.nan, rng.random(n))
        yield Steps(
            first=first,
            loss=loss,
            samples=rng.integers(1, 65, n),
            lr=rng.random(n) if i % 3 else 0.125,
            train_s=(at, at + 0.07 * n),
            elapsed_s=(2 * at + 1, 2 * at + 1 + 0.08 * n),
            norm_steps=normed,
            grad_norm=rng.random(len(normed)),
        )
        first, at = first + n, at + 0.07 * n


def one_by_one(events):
    """The expected tables, computed event by event."""
    rows, norms, samples = [], [], 0
    for e in events:
        n = len(e.loss)
        for i, loss in enumerate(e.loss):
            share, samples = (i + 1) / n, samples + int(e.samples[i])
            seconds, elapsed = (a + (b - a) * share for a, b in (e.train_s, e.elapsed_s))
            lr = e.lr if isinstance(e.lr, float) else e.lr[i]
            rows.append((e.first + i, loss, seconds, elapsed, samples, lr))
            norms += [
                (step, seconds, elapsed, norm)
                for step, norm in zip(e.norm_steps, e.grad_norm, strict=True)
                if step == e.first + i
            ]
    return np.array(rows, dtype=float).T, np.array(norms, dtype=float).T


def columns(table):
    return np.stack([table[name] for name in table.names])


def test_a_long_log_reads_like_its_events_one_by_one(store, folder):
    events, log = list(read_backs(np.random.default_rng(0))), EventLog(folder / "events.jsonl")
    for event in events:
        log.append(event)
    log.close(Finished(at=1.0))
    run, (steps, norms) = store.run(folder.name), one_by_one(events)
    np.testing.assert_allclose(columns(run.steps), steps, rtol=1e-12)
    np.testing.assert_allclose(columns(run.grad_norms), norms, rtol=1e-12)
    assert (run.problems, run.status) == ([], "finished")


def test_packed_steps_hold_what_their_event_does():
    for event in list(read_backs(np.random.default_rng(1)))[:20]:
        line = encode(event)
        packed, event = decode_steps(line), decode(line)
        assert line.startswith(STEPS_LINE)
        assert (packed["first"], packed["train_s"], packed["elapsed_s"]) == (
            event.first,
            event.train_s,
            event.elapsed_s,
        )
        for name in ("loss", "samples", "norm_steps", "grad_norm"):
            assert packed[name] == getattr(event, name).tobytes()
        assert packed["lr"] == event.lr if isinstance(event.lr, float) else packed["lr"] == event.lr.tobytes()


def with_fields(event, **fields):
    """The line of an event with other fields and a correct checksum, as from a bug or a foreign program."""
    body = json.dumps(json.loads(encode(event)) | fields, separators=(",", ":"))
    body = body[: body.index(',"crc"')] + "}"
    return body[:-1].encode() + b',"crc":"%08x"}\n' % zlib.crc32(body.encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": ""},
        {"loss": "AAA="},
        {"loss": "", "samples": ""},
        {"lr": "AAAA"},
        {"norm_steps": ""},
        {"first": "x"},
        {"loss": "?"},
        {"train_s": [1]},
    ],
)
def test_contradictory_steps_are_skipped_and_reported(store, folder, fields):
    log = folder / "events.jsonl"
    good = [event for event in read_backs(np.random.default_rng(2)) if len(event.loss) == 2 and len(event.norm_steps)]
    log.write_bytes(encode(good[0]) + with_fields(good[1], **fields) + encode(good[2]))
    run = store.run(folder.name)
    assert run.steps["step"].tolist() == [good[0].first, good[0].first + 1, good[2].first, good[2].first + 1]
    assert "An event cannot be read" in run.problems[0]
    assert len(run.problems) == 1


def test_a_followed_log_has_every_row_after_each_refresh(store, folder):
    log, run, written = EventLog(folder / "events.jsonl"), store.run(folder.name), 0
    for event in list(read_backs(np.random.default_rng(4)))[:50]:
        log.append(event)
        log._flushed_at = 0.0  # due: the next one is written at once
        log.flush_if_due()
        written += len(event.loss)
        run.refresh()
        assert len(run.steps) == written


def test_a_repeated_event_counts_once_and_is_reported(store, folder):
    lines = [encode(event) for event in list(read_backs(np.random.default_rng(5)))[:4]]
    (folder / "events.jsonl").write_bytes(b"".join([*lines, lines[1], lines[3]]))
    run = store.run(folder.name)
    steps = run.steps["step"].tolist()
    assert steps == list(range(1, len(steps) + 1))
    assert ["not in order" in problem for problem in run.problems] == [True, True]
