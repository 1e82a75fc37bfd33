"""The readings that the supervisor keeps for the page Hardware, and their interval."""

from __future__ import annotations

import errno
import os
import threading
import time
from types import SimpleNamespace

import numpy as np
import pynvml
import pytest

from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.hardware import history
from engine.hardware.history import Recorder, Span, load_settings, parse_interval
from engine.hardware.readings_log import CURRENT, Reader
from engine.system import disk_space
from tests.fake_nvml import FakeGpu
from tests.fakes import make_run
from tests.hardware.fake_machine import NOTHING_ANSWERS


@pytest.fixture
def recording(store, machine):
    """A recorder whose beats a test makes, and a reader of what it keeps."""

    def make(monitor):
        recorder = Recorder(store.root, clock=machine.clock)

        def beats(number=1):
            for _ in range(number):
                machine.clock.now += 0.25
                recorder.beat(monitor)
            return Reader(store.root).read()

        return recorder, beats

    return make


def test_readings_are_kept_with_the_reasons_of_missing_ones(recording, machine):
    _, beats = recording(machine.monitor(FakeGpu()))
    found = beats(8)
    assert found.newest == 8
    assert found.rows[-1, 1 + found.columns.index("gpu0.power_w")] == 250
    assert found.gpus == ("NVIDIA H200",)
    missing = {name: why for why, names in found.notes["missing"].items() for name in names}
    assert "RAPL" in missing["cpu.power_w"]


def test_a_gpu_that_comes_back_gets_its_columns_and_the_history_stays(recording, machine):
    monitor = machine.monitor()
    _, beats = recording(monitor)
    before = beats(4)
    monitor._nvml.init_error, monitor._nvml.gpus = None, (FakeGpu(),)
    machine.clock.now += 61
    after = beats(4)
    assert after.id != before.id
    rows = after.rows
    power = rows[:, 1 + after.columns.index("gpu0.power_w")]
    memory = rows[:, 1 + after.columns.index("memory.used_bytes")]
    assert (power[-1], memory[0]) == (250, 600 * 1024)
    assert after.newest >= 7


def test_a_gpu_that_is_lost_is_a_gap_with_its_reason(recording, machine):
    gpu = FakeGpu()
    _, beats = recording(machine.monitor(gpu, FakeGpu(uuid="GPU-b")))
    beats(4)
    gpu.errors = dict.fromkeys(NOTHING_ANSWERS, pynvml.NVML_ERROR_GPU_IS_LOST)
    found = beats(8)
    columns, row = found.columns, found.rows[-1].tolist()
    assert row[1 + columns.index("gpu0.power_w")] != row[1 + columns.index("gpu0.power_w")]  # NaN
    assert row[1 + columns.index("gpu1.power_w")] == 250
    assert any("lost" in why.lower() for why in found.notes["missing"])


def test_a_driver_that_stops_answering_keeps_its_columns_with_the_reason(recording, machine):
    monitor = machine.monitor(FakeGpu())
    _, beats = recording(monitor)
    before = beats(4)
    monitor._nvml.init_error = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    monitor._nvml.gpus[0].errors = dict.fromkeys(NOTHING_ANSWERS, pynvml.NVML_ERROR_GPU_IS_LOST)
    machine.clock.now += 61
    after = beats(8)
    assert after.id == before.id
    said = {name: why for why, names in after.notes["missing"].items() for name in names}
    assert "The NVIDIA driver does not answer" in said["gpu0.power_w"]
    monitor._nvml.init_error = None
    monitor._nvml.gpus[0].errors = {}
    machine.clock.now += 61
    assert beats(4).rows[-1, 1 + after.columns.index("gpu0.power_w")] == 250


def test_unused_gpus_are_closed_and_opened_again_when_a_page_asks(recording, machine, store):
    monitor = machine.monitor(FakeGpu())
    _, beats = recording(monitor)
    beats(4)
    machine.clock.now += history.REST_AFTER_S
    found = beats(4)
    assert (monitor._nvml.open, monitor._nvml.gpus[0].calls["nvmlDeviceGetPowerUsage"]) == (0, 4)
    power = found.columns.index("gpu0.power_w")
    rows = found.rows
    assert np.isfinite(rows[:, 1 + power]).tolist() == [True] * 4 + [False] * 4
    assert np.isfinite(rows[-1, 1 + found.columns.index("memory.used_bytes")])
    machine.clock.now += 1
    notes = beats(1).notes
    assert "gpu0.power_w" in notes["missing"][history.RESTING]
    assert [end for _, end in notes["rests"]] == [None]
    history.look(store.root)
    machine.clock.now += 1
    after = beats(2)
    ((begin, end),) = after.notes["rests"]
    assert (after.id, np.isfinite(after.rows[-1, 1 + power]), end > begin) == (found.id, True, True)


def test_gpus_are_read_while_a_run_uses_one_but_not_for_a_cpu_run(recording, machine, store):
    runs = {
        device: make_run(store, with_overrides(RunConfig(), [f"device={device}"]), num_steps=20)
        for device in ("cpu", "cuda:0")
    }
    monitor = machine.monitor(FakeGpu())
    kept, beats = recording(monitor)
    kept.look_at([runs["cuda:0"]], time.time())
    for _ in range(3):
        machine.clock.now += history.REST_AFTER_S
        beats()
    assert monitor._nvml.open == 1
    kept.look_at([runs["cpu"]], time.time())
    machine.clock.now += history.REST_AFTER_S
    beats()
    assert monitor._nvml.open == 0


def test_a_look_touches_the_file_every_few_seconds_and_ignores_a_missing_store(store, tmp_path):
    history.look(store.root)
    (store.root / history.LOOKED).unlink()
    history.look(store.root)
    assert not (store.root / history.LOOKED).exists()
    history.look(tmp_path / "nowhere")


def test_runs_are_spans_with_their_names_and_an_end(recording, machine, store):
    recorder, beats = recording(machine.monitor())
    run = make_run(store, name="<b>mine</b>")
    alive = SimpleNamespace(
        run_id=run.run_id,
        starting=SimpleNamespace(pid=77, at=1.0),
        started=None,
        name=run.name,
        config=run.config,
        last_word=None,
    )
    recorder.look_at([alive], now=10.0)
    assert recorder.processes == {77: run.run_id, os.getpid(): ""}
    assert recorder.spans == (Span(run.run_id, "<b>mine</b>", 1.0, None),)
    alive.last_word = SimpleNamespace(at=12.0)
    recorder.look_at([], now=13.0)
    assert recorder.spans == (Span(run.run_id, "<b>mine</b>", 1.0, 12.0),)
    assert beats(8).notes["spans"] == [{"run_id": run.run_id, "words": "<b>mine</b>", "begin": 1.0, "end": 12.0}]


def test_the_next_supervisor_keeps_readings_and_runs_of_the_last_one(recording, machine, store):
    recorder, beats = recording(machine.monitor())
    recorder.spans = (Span("a" * 16, "one", 90.0, None),)
    beats(8)
    _, again = recording(machine.monitor())
    found = again(8)
    assert found.newest == 16
    assert found.notes["spans"][0]["end"] == pytest.approx(102.0)  # it went on at least until the last reading


def test_a_full_disk_stops_the_readings_with_a_log_message_until_there_is_room(
    recording, machine, store, monkeypatch, caplog
):
    recorder, beats = recording(machine.monitor())
    monkeypatch.setattr(disk_space, "is_short", lambda _: True)
    machine.clock.now += 1
    recorder.beat(machine.monitor())
    recorder.beat(machine.monitor())
    assert not (store.root / CURRENT).exists()
    assert [record.message for record in caplog.records] == [
        f"readings are not kept for the page Hardware: [Errno {errno.ENOSPC}] the store's disk is nearly full"
    ]
    monkeypatch.undo()
    machine.clock.now += 31
    assert beats(2).newest == 2


def test_a_write_that_fails_is_tried_again_later_and_what_was_kept_stays(recording, machine, store, monkeypatch):
    _, beats = recording(machine.monitor())
    beats(3)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("engine.hardware.readings_log.os.write", full)
        beats(5)
    assert Reader(store.root).read().newest == 3
    machine.clock.now += 31
    assert beats(2).newest == 5


def test_a_log_that_was_deleted_is_made_again(recording, machine, store):
    _, beats = recording(machine.monitor())
    beats(3)
    (store.root / CURRENT).unlink()
    assert beats(3).newest == 3


@pytest.mark.parametrize("asked", [0.25, 1, "2", 10.0])
def test_an_interval_within_bounds_is_taken(asked):
    assert parse_interval(asked) == float(asked)


@pytest.mark.parametrize("asked", [0, 0.1, -1, 11, 1e9, "nan", "inf", "", None, "1s", [1], 1e-300])
def test_an_absurd_interval_is_refused_in_a_sentence(asked):
    with pytest.raises(ConfigError, match=r"is not between 0\.25 and 10"):
        parse_interval(asked)


@pytest.mark.parametrize("content", ["", "{}", '{"interval_s": 0.0001}', '{"interval_s": NaN}', "[" * 3000, '{"x": 1}'])
def test_an_invalid_settings_file_counts_as_missing(store, content):
    (store.root / "monitor.json").write_text(content)
    assert load_settings(store.root).interval_s == 0.25


def test_a_bug_ends_the_thread_with_a_traceback_and_nothing_else(store, monkeypatch):
    raised = []
    monkeypatch.setattr(threading, "excepthook", lambda args: raised.append(args.exc_type))

    def broken(_):
        raise ZeroDivisionError("a bug")

    recorder = Recorder(store.root, open_monitor=broken)
    recorder.start()
    recorder._thread.join(10)
    recorder.stop()
    assert raised == [ZeroDivisionError]


def test_another_interval_counts_from_now_on(store, machine):
    recorder = Recorder(store.root, open_monitor=lambda processes: machine.monitor(wall=time.time))
    recorder.start()
    until = time.monotonic() + 30
    while not (store.root / CURRENT).exists() and time.monotonic() < until:
        time.sleep(0.02)
    recorder.set_interval(10.0)
    assert load_settings(store.root).interval_s == 10.0
    assert Recorder(store.root).interval_s == 10.0
    time.sleep(0.3)
    before = Reader(store.root).read().newest
    time.sleep(0.6)
    assert Reader(store.root).read().newest == before
    recorder.stop()
    assert not recorder._thread.is_alive()
