"""Paths of users' files, and the inspection of files in a separate process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data import loading, user_files
from engine.data.user_files import inspection
from engine.system import sandbox
from tests.data.user_data import IRIS, labels, refused


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.parametrize("path", ["nowhere.csv", "no/where", "~no_such_user/x", "a\0b", "x" * 3_000])
def test_a_path_that_does_not_exist_is_refused(data, path):
    assert "source.path=" in (sentence := refused(data, Source(path=path)))
    assert "there is no such file" in sentence or "File name too long" in sentence


@pytest.mark.parametrize("data", ["csv", "numpy", "images"])
def test_a_data_set_of_the_user_needs_a_path(data):
    with pytest.raises(ConfigError, match=rf"source\.path is empty: data={data} needs a"):
        loading.facts(data, Source())


def test_folders_devices_and_empty_files_are_refused(tmp_path, csv):
    assert "is a folder, but data=csv needs a file" in refused("csv", Source(path=str(tmp_path)))
    assert "is not a regular file" in refused("csv", Source(path="/dev/zero"))
    assert "is empty" in refused("csv", csv(""))
    assert "is a file. Give a folder of images" in refused("images", csv(IRIS))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(csv):
    source = csv(IRIS)
    Path(source.path).chmod(0)
    assert "is not readable for this user" in refused("csv", source)


@pytest.mark.parametrize(("data", "limit"), [("csv", 1 << 30), ("numpy", 2 << 30), ("text", 100_000_000)])
def test_a_file_that_is_too_large_is_refused_unread(tmp_path, data, limit):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(limit + 1)
    assert f"more than the limit of {limit:,}" in refused(data, Source(path=str(tmp_path / "large")))


@pytest.fixture
def one_of_each(csv, npz, folder, tmp_path):
    (tmp_path / "a text.txt").write_text("All the world's a stage. " * 200)
    return {
        "csv": csv(IRIS, label="kind"),
        "numpy": npz(x=np.arange(960.0).reshape(20, 8, 6), y=labels()),
        "images": Source(path=str(folder)),
        "text": Source(path=str(tmp_path / "a text.txt"), seq_len=16),
    }


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.process
def test_inspection_finds_what_reading_finds(one_of_each, data):
    assert loading.facts(data, one_of_each[data]) == loading.load(data, one_of_each[data]).facts
    assert len(loading.load(data, one_of_each[data]).sha256) == 64


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.process
def test_inspection_and_reading_raise_the_same_error(one_of_each, data):
    source = one_of_each[data]
    (Path(source.path) / "red/0.png" if data == "images" else Path(source.path)).write_bytes(b"\xff\0")
    with pytest.raises(ConfigError) as refusal:
        loading.facts(data, source)
    assert str(refusal.value) == refused(data, source)


@pytest.mark.process
def test_a_file_is_parsed_once_until_it_changes(csv, monkeypatch):
    source = csv(IRIS)
    facts = user_files.inspect("csv", source)
    with monkeypatch.context() as patch:
        patch.setattr(sandbox.sys, "executable", "/no/such/python")
        assert user_files.inspect("csv", source) == facts
        inspection._inspected.cache_clear()  # as in a new process
        assert user_files.inspect("csv", source) == facts
    csv(IRIS + "1,2,a\n" * 10)
    assert user_files.inspect("csv", source).train_examples == facts.train_examples + 8


@pytest.mark.process
def test_a_damaged_cache_of_an_inspection_is_ignored(csv, cache):
    source = csv(IRIS)
    facts = user_files.inspect("csv", source)
    (cached,) = (cache / "inspected").iterdir()
    cached.write_text('{"title": 3')
    inspection._inspected.cache_clear()
    assert user_files.inspect("csv", source) == facts


@pytest.mark.process
def test_a_new_image_in_a_folder_is_noticed(folder):
    source = Source(path=str(folder))
    before = user_files.inspect("images", source)
    for i in range(5):
        Image.new("RGB", (8, 6)).save(folder / "red" / f"new{i}.png")
    assert user_files.inspect("images", source).train_examples == before.train_examples + 4


@pytest.mark.process
def test_images_replaced_by_older_ones_are_noticed(folder):
    source = Source(path=str(folder))
    user_files.inspect("images", source)
    newest = max(folder.rglob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    for path in set(folder.rglob("*.png")) - {newest}:
        Image.new("RGB", (4, 4)).save(path)
        os.utime(path, (0, 0))  # as `cp -p` does
    assert user_files.inspect("images", source).shape == (3, 4, 4)


@pytest.mark.process
def test_a_file_that_takes_too_long_is_refused_and_can_be_tried_again(csv, monkeypatch):
    source = csv(IRIS)
    monkeypatch.setattr(inspection, "INSPECT_S", 0.01)
    with pytest.raises(ConfigError, match=r"iris\.csv: could not be read within 0\.01 s\. Try a smaller part"):
        user_files.inspect("csv", source)
    monkeypatch.setattr(inspection, "INSPECT_S", 60)
    assert user_files.inspect("csv", source).num_classes == 2


@pytest.mark.process
def test_a_file_that_takes_too_much_memory_is_refused(npz, monkeypatch):
    monkeypatch.setattr(inspection, "INSPECT_MEMORY_BYTES", 1 << 30)
    source = npz(x=np.zeros((1_000, 200_000), np.uint8), y=labels(1_000))
    with pytest.raises(ConfigError, match=r"data\.npz: needs more than 1 GiB of memory to be read\."):
        user_files.inspect("numpy", source)


@pytest.mark.process
def test_a_crash_of_the_process_is_reported_in_one_sentence(csv, monkeypatch):
    monkeypatch.setattr(inspection, "INSPECT_MEMORY_BYTES", 1 << 25)  # less than Python itself needs
    with pytest.raises(ConfigError, match=r"iris\.csv: .*(crashed|needs more than)"):
        user_files.inspect("csv", csv(IRIS))


@pytest.mark.process
def test_nothing_is_imported_from_the_current_folder(csv, tmp_path, monkeypatch):
    csv(IRIS)
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert user_files.inspect("csv", Source(path="iris.csv")).num_classes == 2
