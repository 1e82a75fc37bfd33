"""The ring file: one writes, others read along, and whatever happens to either the other goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.ring import NotARing, Ring, Shape, Writer

ROOT = Path(__file__).resolve().parent.parent


def shape(*columns, capacity=16):
    return Shape(columns or ("a", "b"), capacity, 512, {"gpus": []})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "monitor.ring"


@pytest.fixture
def writer(path):
    return Writer.take_up(path, shape())


def fill(writer, first, last):
    for n in range(first, last + 1):
        writer.append(float(n), [n * 10.0, None])


def times(rows):
    return rows[:, 0].tolist()


def test_a_reader_gets_everything_and_then_only_what_is_new(path, writer):
    reader = Ring(path)
    fill(writer, 1, 3)
    newest, rows = reader.rows()
    assert (newest, times(rows), rows[:, 1].tolist()) == (3, [1, 2, 3], [10, 20, 30])
    assert np.isnan(rows[:, 2]).all()
    fill(writer, 4, 5)
    assert times(reader.rows(after=3)[1]) == [4, 5]
    assert reader.rows(after=5)[0] == 5
    assert len(reader.rows(after=5)[1]) == 0


def test_the_oldest_are_overwritten_and_the_order_stays(path, writer):
    fill(writer, 1, 37)
    newest, rows = Ring(path).rows()
    assert (newest, times(rows)) == (37, list(range(22, 38)))
    assert times(Ring(path).rows(after=30)[1]) == list(range(31, 38))


def test_a_reader_that_was_overtaken_gets_all_there_is(path, writer):
    fill(writer, 1, 40)
    assert times(Ring(path).rows(after=3)[1]) == list(range(25, 41))


def test_a_record_that_is_half_written_is_left_out_and_read_once_it_is_whole(path, writer):
    fill(writer, 1, 5)
    reader = Ring(path)
    place = reader._records_at + 5 * reader.shape.record_bytes + 20
    whole = os.pread(writer.fd, 8, place)
    os.pwrite(writer.fd, b"\xff" * 8, place)
    assert times(reader.rows()[1]) == [1, 2, 3, 4]
    assert times(reader.rows(after=3)[1]) == [4]
    os.pwrite(writer.fd, whole, place)
    assert times(reader.rows(after=4)[1]) == [5]


def test_a_number_out_of_place_does_not_hide_the_others(path, writer):
    fill(writer, 1, 5)
    reader = Ring(path)
    os.pwrite(writer.fd, b"\xff" * reader.shape.record_bytes, reader._records_at + 9 * reader.shape.record_bytes)
    assert times(reader.rows()[1]) == [1, 2, 3, 4, 5]


def test_the_next_writer_goes_on_where_the_last_one_ended(path, writer):
    fill(writer, 1, 5)
    writer.note({"spans": [1]})
    reader, again = Ring(path), Writer.take_up(path, shape())
    assert again.id == writer.id
    again.append(6.0, [1.0, 1.0])
    assert times(reader.rows(after=5)[1]) == [6]
    assert again.notes() == (1, {"spans": [1]})


def test_other_columns_make_another_file_with_the_history_of_those_that_stay(path, writer):
    fill(writer, 1, 5)
    other = Writer.take_up(path, shape("b", "c", "a"))
    assert other.id != writer.id
    newest, rows = Ring(path).rows()
    assert (newest, rows[:, 3].tolist()) == (5, [10, 20, 30, 40, 50])


@pytest.mark.parametrize("content", [b"", b"ISORING9" + b"\0" * 5000, b"ISORING1" + b"\xff" * 5000, b"\0" * 10_000])
def test_what_is_no_ring_of_ours_is_said_and_replaced(path, content):
    path.write_bytes(content)
    with pytest.raises(NotARing):
        Ring(path)
    fill(Writer.take_up(path, shape()), 1, 2)
    assert times(Ring(path).rows()[1]) == [1, 2]


def test_a_file_that_was_cut_short_is_read_as_far_as_it_goes_and_made_whole(path, writer):
    fill(writer, 1, 12)
    os.truncate(path, path.stat().st_size - 6 * writer.shape.record_bytes)
    assert times(Ring(path).rows()[1]) == list(range(1, 10))
    assert times(Writer.take_up(path, shape()).rows()[1]) == list(range(1, 10))
    assert path.stat().st_size == Ring(path)._records_at + 16 * writer.shape.record_bytes


def test_notes_are_replaced_as_a_whole_and_too_long_ones_refused(path, writer):
    reader = Ring(path)
    assert reader.notes() == (0, {})
    for n in range(3):
        assert writer.note({"n": n})
    assert reader.notes() == (3, {"n": 2})
    assert not writer.note({"long": "x" * 512})
    assert reader.notes() == (3, {"n": 2})
    os.pwrite(writer.fd, b"?", reader._notes_at + 3 % 2 * 512 + 20)  # torn: the one before stands
    assert reader.notes() == (2, {"n": 1})


def test_the_file_is_its_owners_and_takes_its_room_at_once(path, writer):
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert path.stat().st_blocks * 512 >= path.stat().st_size


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a full disk")
def test_where_there_is_no_room_nothing_is_left_behind(path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from engine.ring import Shape, Writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: Writer.take_up(Path(sys.argv[1]), Shape(('a',), 4096, 512, {}))\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "OSError", done.stderr
    assert list(path.parent.iterdir()) == []


def test_a_writer_killed_at_any_moment_leaves_a_file_that_can_be_read_and_gone_on_with(path):
    code = (
        "import sys; from pathlib import Path; from engine.ring import Shape, Writer\n"
        "w = Writer.take_up(Path(sys.argv[1]), Shape(('a', 'b'), 16, 512, {'gpus': []}))\n"
        "while True: w.append(float(w.newest + 1), [1.0, 2.0]); w.note({'n': w.newest})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
    until = time.monotonic() + 60
    while time.monotonic() < until and not (path.exists() and Ring(path).rows()[0] > 100):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest, rows = Ring(path).rows()
    assert newest > 100
    assert times(rows) == list(range(newest - len(rows) + 1, newest + 1))
    assert len(rows) >= 15
    again = Writer.take_up(path, shape())
    again.append(float(newest + 1), [1.0, 2.0])
    assert Ring(path).rows(after=newest)[0] == newest + 1
