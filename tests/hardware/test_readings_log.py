"""The log of the machine's readings: one process writes, others follow, and a crash costs at most one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine.hardware import readings_log
from engine.hardware.readings_log import CURRENT, PREVIOUS, Reader, Writer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _sixteen_readings_a_file(monkeypatch):
    monkeypatch.setattr(readings_log, "CAPACITY", 16)


def writer_of(root, *columns):
    return Writer(root, columns or ("a", "b"), ())


@pytest.fixture
def writer(tmp_path):
    return writer_of(tmp_path)


@pytest.fixture
def reader(tmp_path, writer):
    return Reader(tmp_path)


def fill(writer, first, last):
    for n in range(first, last + 1):
        writer.append(float(n), [n * 10.0, None])


def times(found):
    return found.rows[:, 0].tolist()


def test_a_reader_gets_everything_and_then_only_what_is_new(writer, reader):
    fill(writer, 1, 3)
    found = reader.read()
    assert (found.newest, found.newest_at, times(found), found.rows[:, 1].tolist()) == (3, 3.0, [1, 2, 3], [10, 20, 30])
    assert np.isnan(found.rows[:, 2]).all()
    fill(writer, 4, 5)
    assert times(reader.read(after=3)) == [4, 5]
    assert (reader.read(after=5).newest, times(reader.read(after=5))) == (5, [])


def test_the_newest_readings_stay_across_files_and_the_order_stays(tmp_path, writer, reader):
    for n in range(1, 38):
        fill(writer, n, n)
        assert times(reader.read())[-16:] == list(range(max(1, n - 15), n + 1))
    assert times(Reader(tmp_path).read()) == list(range(22, 38))
    assert times(reader.read(after=30)) == list(range(31, 38))


def test_a_reader_that_missed_whole_files_gets_all_there_is(tmp_path, writer, reader):
    fill(writer, 1, 3)
    reader.read()
    fill(writer, 4, 60)
    assert times(reader.read(after=3)) == list(range(45, 61))


def test_the_size_on_disk_is_bounded_also_with_many_notes(tmp_path, writer, monkeypatch):
    monkeypatch.setattr(readings_log, "_FILE_BYTES", 10_000)
    for n in range(1, 200):
        fill(writer, n, n)
        writer.note({"text": "x" * 500})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2 * 12_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [CURRENT, PREVIOUS]
    assert Reader(tmp_path).read().notes == {"text": "x" * 500}


def test_a_line_that_is_half_written_is_read_once_it_is_whole(tmp_path, writer, reader):
    fill(writer, 1, 5)
    whole = (tmp_path / CURRENT).read_bytes()
    os.truncate(tmp_path / CURRENT, len(whole) - 9)
    assert times(reader.read()) == [1, 2, 3, 4]
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(whole[-9:])
    assert times(reader.read(after=4)) == [5]


def test_a_damaged_line_costs_one_reading(tmp_path, writer, reader):
    fill(writer, 1, 5)
    lines = (tmp_path / CURRENT).read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"at":3.0', b'"at":9.0')
    (tmp_path / CURRENT).write_bytes(b"".join(lines))
    assert times(reader.read()) == [1, 2, 4, 5]
    assert times(reader.read(after=4)) == [5]


def test_the_next_writer_continues_the_log(tmp_path, writer, reader):
    fill(writer, 1, 5)
    writer.note({"spans": [1]})
    before, again = reader.read(), writer_of(tmp_path)
    again.append(6.0, [1.0, 1.0])
    after = reader.read(after=5)
    assert (times(after), after.id, after.notes_number, after.notes) == ([6], before.id, 1, {"spans": [1]})


def test_a_line_that_a_crash_cut_off_costs_one_reading(tmp_path, writer):
    fill(writer, 1, 5)
    os.truncate(tmp_path / CURRENT, (tmp_path / CURRENT).stat().st_size - 9)
    again = writer_of(tmp_path)
    fill(again, 6, 6)
    found = Reader(tmp_path).read()
    assert (times(found), found.newest) == ([1, 2, 3, 4, 6], 5)


def test_other_columns_get_another_id_and_those_that_stay_keep_their_values(tmp_path, writer, reader):
    fill(writer, 1, 5)
    before = reader.read()
    other = writer_of(tmp_path, "b", "c", "a")
    other.append(6.0, [1.0, 2.0, 3.0])
    for found in (reader.read(), Reader(tmp_path).read()):
        assert (found.id != before.id, found.newest, found.columns) == (True, 6, ("b", "c", "a"))
        assert found.rows[:, 3].tolist() == [10, 20, 30, 40, 50, 3]


@pytest.mark.parametrize("content", [b"", b"ISORING1" + b"\0" * 5000, b"\xff\n" * 5000, b'{"kind":"reading"}\n'])
def test_a_file_that_is_not_ours_is_replaced_without_an_error(tmp_path, content):
    for name in (CURRENT, PREVIOUS, "monitor.ring"):
        (tmp_path / name).write_bytes(content)
    assert Reader(tmp_path).read().id == ""
    fill(writer_of(tmp_path), 1, 2)
    assert times(Reader(tmp_path).read()) == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [CURRENT]


def test_a_log_that_was_deleted_begins_anew_for_a_reader_too(tmp_path, writer, reader):
    fill(writer, 1, 5)
    before = reader.read()
    (tmp_path / CURRENT).unlink()
    assert not writer.is_in_place
    with pytest.raises(FileNotFoundError):
        reader.read()
    fill(writer_of(tmp_path), 1, 2)
    assert (times(reader.read()), reader.read().id != before.id) == ([1, 2], True)


def test_notes_are_replaced_as_a_whole(tmp_path, writer, reader):
    assert (reader.read().notes_number, reader.read().notes) == (0, {})
    for n in range(3):
        writer.note({"n": n})
    assert (reader.read().notes_number, reader.read().notes) == (3, {"n": 2})
    fill(writer, 1, 20)  # into the next file, which repeats them
    assert Reader(tmp_path).read().notes == {"n": 2}


def test_the_files_are_their_owners_alone(tmp_path, writer):
    fill(writer, 1, 20)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as a full disk")
def test_on_a_full_disk_a_reading_is_an_error_and_the_earlier_ones_stay(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from engine.hardware.readings_log import Writer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "writer = Writer(Path(sys.argv[1]), ('a', 'b'), ())\n"
        "try:\n"
        "    while True: writer.append(1.0, [1.0, 2.0])\n"
        "except OSError as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "OSError", done.stderr
    before = Reader(tmp_path).read().newest
    writer_of(tmp_path).append(2.0, [1.0, 2.0])
    assert Reader(tmp_path).read().newest == before + 1 > 10


@pytest.mark.process
def test_a_writer_killed_at_any_moment_leaves_a_log_that_can_be_read_and_continued(tmp_path):
    code = (
        "import sys; from pathlib import Path; from engine.hardware import readings_log\n"
        "readings_log.CAPACITY = 16\n"
        "writer, n = readings_log.Writer(Path(sys.argv[1]), ('a', 'b'), ()), 0\n"
        "while True: n += 1; writer.append(float(n), [1.0, 2.0]); writer.note({'n': n})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    until = time.monotonic() + 60
    while time.monotonic() < until and not ((tmp_path / CURRENT).exists() and Reader(tmp_path).read().newest > 100):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = Reader(tmp_path).read()
    assert found.newest > 100
    assert times(found) == list(range(found.newest - 15, found.newest + 1))
    again = writer_of(tmp_path)
    again.append(float(found.newest + 1), [1.0, 2.0])
    assert times(Reader(tmp_path).read(after=found.newest)) == [found.newest + 1]


@pytest.mark.process
def test_a_reader_in_another_process_misses_nothing_while_a_writer_goes_from_file_to_file(tmp_path, monkeypatch):
    code = (
        "import sys, time; from pathlib import Path; from engine.hardware import readings_log\n"
        "readings_log.CAPACITY = 50\n"
        "writer = readings_log.Writer(Path(sys.argv[1]), ('a', 'b'), ())\n"
        "for n in range(1, 1_001): writer.append(float(n), [1.0, 2.0]); time.sleep(0.001)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    monkeypatch.setattr(readings_log, "CAPACITY", 50)
    reader, seen, until = Reader(tmp_path), [], time.monotonic() + 60
    while (not seen or seen[-1] < 1_000) and time.monotonic() < until:
        if (tmp_path / CURRENT).exists() or (tmp_path / PREVIOUS).exists():
            seen += times(reader.read(after=int(seen[-1]) if seen else 0))
        time.sleep(0.002)
    process.wait()
    assert seen == list(range(int(seen[0]), 1_001))
