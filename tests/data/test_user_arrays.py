"""Users' NPZ and NPY files: the arrays that are read, and the error for each kind of wrong file."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine.config.data import Source
from engine.data import user_files
from engine.data.user_files import files
from tests.data.user_data import labels, refused

VALUES = np.random.default_rng(0).integers(100, size=(20, 1_024))


@pytest.mark.parametrize(
    ("shape", "dtype", "kept"),
    [
        ((5,), np.float64, ((5,), np.float32)),
        ((5,), np.uint8, ((5,), np.float32)),
        ((8, 6), np.uint8, ((1, 8, 6), np.uint8)),
        ((8, 6, 3), np.uint8, ((3, 8, 6), np.uint8)),
        ((8, 6, 4), ">f4", ((4, 8, 6), np.float32)),
        ((3, 8, 8), np.float16, ((3, 8, 8), np.float32)),
        ((16, 8, 6), np.int32, ((16, 8, 6), np.float32)),
        ((8, 8, 16), np.int32, ((16, 8, 8), np.float32)),
        ((2, 8, 8), np.uint8, ((2, 8, 8), np.uint8)),
        ((8, 6), bool, ((1, 8, 6), np.uint8)),
    ],
)
def test_arrays_of_every_layout_become_features_or_images(npz, shape, dtype, kept):
    arrays = user_files.read("numpy", npz(x=VALUES[:, : np.prod(shape)].reshape(20, *shape).astype(dtype), y=labels()))
    assert (arrays.train_x.shape[1:], arrays.train_x.dtype) == kept and arrays.facts.shape == kept[0]
    assert arrays.train_x.flags.c_contiguous


def test_channels_last_become_channels_first_in_the_same_order(npz):
    x = np.random.default_rng(0).integers(256, size=(20, 8, 6, 3), dtype=np.uint8)
    arrays = user_files.read("numpy", npz(X=x, Y=labels()))
    assert {row.tobytes() for row in arrays.train_x} < {row.transpose(2, 0, 1).tobytes() for row in x}


def test_a_split_in_the_file_is_kept(npz):
    parts = {
        "x_train": np.arange(40.0).reshape(20, 2),
        "y_train": labels() + 5,
        "x_test": np.ones((3, 2)),
        "y_test": np.array([[5], [6], [6]]),
    }
    arrays = user_files.read("numpy", npz(**parts))
    assert np.array_equal(arrays.train_x, parts["x_train"]) and arrays.test_y.tolist() == [0, 1, 1]
    assert arrays.classes == ("5", "6")


def test_an_npy_has_its_label_in_the_last_column(tmp_path):
    table = np.asfortranarray(np.column_stack([np.arange(60.0).reshape(20, 3), labels()]))
    np.save(tmp_path / "table.npy", table)
    arrays = user_files.read("numpy", Source(path=str(tmp_path / "table.npy")))
    assert arrays.facts.shape == (3,) and {*arrays.train_x[:, 0]} < {*table[:, 0].astype(np.float32)}


X = np.ones((20, 2))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X, "y": labels(19)}, "y has shape (19,) for 20 samples."),
        (
            {"x": X, "y": np.eye(2)[labels()]},
            "y has shape (20, 2), but one label per sample is needed. Convert one-hot labels with y.argmax(1).",
        ),
        ({"x": X, "y": labels() + 0.5}, "y has the value 0.5; labels must be whole numbers or text."),
        ({"x": X, "y": np.full(20, np.nan)}, "y has the value nan, which is no label. Remove these samples."),
        ({"x": X, "y": np.zeros(20)}, "all labels are '0'"),
        ({"x": X, "y": np.arange(20) // 19}, "class '1' has a single sample"),
        ({"x": X[:9], "y": labels(9)}, "has 9 samples; at least 10 are needed."),
        ({"x": X[:, 0], "y": labels()}, "x has shape (20,)."),
        ({"x": np.ones((20, 0)), "y": labels()}, "x has shape (20, 0)."),
        ({"x": np.ones((20, 1, 2, 3, 4)), "y": labels()}, "x has shape (20, 1, 2, 3, 4)."),
        ({"x": X.astype(complex), "y": labels()}, "x has dtype complex128, which is not a number."),
        ({"x": X.astype(str), "y": labels()}, "x has dtype <U32, which is not a number."),
        ({"x": X.astype(object), "y": labels()}, "x contains Python objects, which are never unpickled."),
        ({"x": X, "y": labels().astype(object)}, "y contains Python objects, which are never unpickled."),
        (
            {"x": np.where(np.arange(20)[:, None] == 17, np.inf, X), "y": labels()},
            "x[17] has a number that is not finite",
        ),
        ({"x": X * 1e39, "y": labels()}, "x[0] has a number that is not finite in float32."),
        ({"x": X, "y": labels().astype("M8[s]")}, "y has dtype datetime64[s]; labels must be whole numbers or text."),
        (
            {"x_train": X, "y_train": labels(), "x_test": X, "y_test": labels().astype("M8[s]")},
            "y_test has dtype datetime64[s]",
        ),
        ({"images": X}, "has no arrays x and y, nor x_train, y_train, x_test, y_test."),
        (
            {"x_train": X, "y_train": labels(), "x_test": X[:, :1], "y_test": labels()},
            "samples of shape (2,), x_test of (1,)",
        ),
        (
            {"x_train": X, "y_train": labels(), "x_test": X, "y_test": labels(20, 3)},
            "y_test has class '2', which y_train does not have.",
        ),
    ],
)
def test_wrong_arrays_are_refused(npz, arrays, sentence):
    assert sentence in refused("numpy", npz(**arrays))


def test_text_labels_are_classes_in_order(npz):
    assert user_files.read("numpy", npz(x=VALUES, y=np.array(["b", "a"])[labels()])).classes == ("a", "b")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:300], lambda b: b[:-30], lambda _: pickle.dumps([1]), lambda b: b"text"]
)
def test_a_broken_file_of_arrays_is_refused(tmp_path, npz, damage):
    source = npz(x=X, y=labels())
    Path(source.path).write_bytes(damage(Path(source.path).read_bytes()))
    assert "is not a complete NPZ or NPY file" in refused("numpy", source)


def test_a_flipped_bit_is_found_by_the_checksum_of_the_archive(npz):
    source = npz(x=X, y=labels())
    content = bytearray(Path(source.path).read_bytes())
    content[300] ^= 1
    Path(source.path).write_bytes(content)
    assert "x is not a complete array" in refused("numpy", source)


def test_an_npz_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 1_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100, 10_001), np.uint8), y=labels(100))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    sentence = "unpacks to 1,001,156 bytes, more than the limit of 1,000,000."
    assert sentence in refused("numpy", Source(path=str(tmp_path / "bomb.npz")))


def test_an_npz_with_a_compression_that_numpy_does_not_write_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", bytes(1_000))
    assert "is not a complete NPZ or NPY file" in refused("numpy", Source(path=str(tmp_path / "data.npz")))


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((10**9, 10), "unpacks to 80,000,000,000"),
        ((100, 100), "is not a complete array"),
        ((True, 5), "is not a complete array"),
        ((0, 10**30), "is not a complete array"),
    ],
)
def test_an_array_shorter_than_its_header_states_is_refused(tmp_path, shape, sentence):
    with (tmp_path / "lie.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(bytes(800))
    assert sentence in refused("numpy", Source(path=str(tmp_path / "lie.npy")))
