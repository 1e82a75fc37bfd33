"""The user's own files: what is read from them, and the sentence that says what is wrong with one."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data import loading, user_files
from engine.data.user_files import files, inspection
from engine.system import sandbox

ROOT = Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT.parent / "shared/data/tinyshakespeare.txt"
IRIS = "length,width,kind\n" + "".join(f"{i}.5,{i % 3},{'ab'[i % 2]}\n" for i in range(20))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "cache"))
    inspection._inspected.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def csv(tmp_path):
    """Write a table, and get where it is."""

    def write(text: str | bytes, *, label: str = "") -> Source:
        path = tmp_path / "iris.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Source(path=str(path), label=label)

    return write


@pytest.fixture
def npz(tmp_path):
    def write(**arrays: np.ndarray) -> Source:
        np.savez(tmp_path / "data.npz", **arrays)
        return Source(path=str(tmp_path / "data.npz"))

    return write


@pytest.fixture
def folder(tmp_path):
    """A folder with a red and a blue class of ten 8x6 images each."""
    root = tmp_path / "pictures"
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (root / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 6), colour).save(root / name / f"{i}.png")
    return root


def refused(data: str, source: Source) -> str:
    """The sentence `read` refuses a file with."""
    with pytest.raises(ConfigError) as refusal:
        user_files.read(data, source)
    return str(refusal.value)


def labels(n: int = 20, classes: int = 2) -> np.ndarray:
    return np.arange(n) % classes


# --- tables ---------------------------------------------------------------------------------------------------------


def test_a_table_becomes_features_and_labels_a_fifth_of_each_class_held_out(csv):
    arrays = user_files.read("csv", csv(IRIS))
    assert (arrays.facts.kind, arrays.facts.shape, arrays.classes) == ("vector", (2,), ("a", "b"))
    assert (len(arrays.train_x), len(arrays.test_x)) == (16, 4)
    assert arrays.train_x.dtype == np.float32 and arrays.train_y.dtype == np.int64
    rows = {(float(x[0]), float(x[1]), int(y)) for x, y in zip(arrays.train_x, arrays.train_y, strict=True)}
    assert rows < {(i + 0.5, i % 3, i % 2) for i in range(20)}


def test_a_table_is_standardised_by_its_training_split(csv):
    arrays = user_files.read("csv", csv(IRIS))
    x = (arrays.train_x - arrays.mean) / arrays.std
    assert np.allclose(x.mean(axis=0), 0, atol=1e-6) and np.allclose(x.std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("damage", [
    lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), lambda t: t.replace(",", ";"), lambda t: t.replace(",", "\t"),
    lambda t: t.replace(",", ", "), lambda t: t + "\n\n", lambda t: t.replace("kind", '"kind"'),
])  # fmt: skip
def test_tables_of_other_programs_are_read_the_same(csv, damage):
    expected, found = user_files.read("csv", csv(IRIS)), user_files.read("csv", csv(damage(IRIS)))
    assert np.array_equal(found.train_x, expected.train_x) and found.classes == expected.classes


def test_any_column_may_be_the_label(csv):
    text = "digit,a\n" + "".join(f"{i % 2 * 10 + 2},{i}\n" for i in range(20))
    arrays = user_files.read("csv", csv(text, label="digit"))
    assert arrays.classes == ("2", "12") and arrays.facts.shape == (1,)


@pytest.mark.parametrize(("change", "sentence"), [
    (("16.5,1,a", "16.5,a"), "row 18 has 2 columns, the header has 3."),
    (("16.5,1,a", "16.5,1,a,a"), "row 18 has 4 columns, the header has 3."),
    (("16.5,1,a", "16.5,tall,a"), "row 18, column 'width' holds 'tall', features are numbers."),
    (("16.5,1,a", "16.5,,a"), "row 18, column 'width' is empty or NaN."),
    (("16.5,1,a", "nan,1,a"), "row 18, column 'length' is empty or NaN."),
    (("16.5,1,a", "1e39,1,a"), "row 18, column 'length' is not finite in 32 bits."),
    (("16.5,1,a", "16.5,1,"), "row 18, label column 'kind' is empty."),
    (("16.5,1,a", "16.5,1,c"), "class 'c' has a single example, at least 2 are needed."),
    (("length", "width"), "columns 1 and 2 have the same name, 'width'."),
    (("length,width,kind", "5.1,3.5,a"), "its first row holds numbers, not names."),
    (("length,width,kind", "5,5,a"), "its first row holds numbers, not names."),
])  # fmt: skip
def test_a_wrong_table_is_refused_with_row_and_column(csv, change, sentence):
    source = csv(IRIS.replace(*change, 1))
    assert refused("csv", source).startswith(f"source.path={source.path}: {sentence}")


@pytest.mark.parametrize(("text", "sentence"), [
    ("a,b\n", "has no rows below its header."),
    ("a,b\n1,x\n2,y\n", "has 2 examples, at least 10 are needed."),
    ("a,b\n" + "1,x\n" * 20, "all labels are 'x': there is nothing to tell apart."),
    ("a,b\n" + "".join(f"1,{c}\n{c},{c}\n" for c in range(10)), "no class has the 3 examples of which one can be held out."),
    ("ab\n" + "1\n" * 20, "has 1 column, at least a feature and a label are needed."),
    (b"a,b\n1,\0\n", "is not a CSV: it holds zero bytes."),
    (b"a,\xff\n1,1\n", "is not a CSV in UTF-8."),
    (b"a,b\n1,\xff,\n", "row 2 has 3 columns, the header has 2."),
    (b"a,b\n" + b"1,\xff\n" * 20, "cannot be read as a CSV in UTF-8."),
    ('a,"b\n1,2\n', "is not a CSV: its first row is not a row of names."),
    ("a,b\n" + "".join(f"1,{i / 7}\n" for i in range(20)), "label column 'b' holds 0.142857, labels are whole numbers or text."),
    ("a,b\n" + "".join(f"1,{i}\n" for i in range(50)), "label column 'b' holds 50 different numbers in 50 examples."),
    (",".join(map(str, range(100_001))) + "\n", "has 100,001 columns, more than 100,000."),
    ("a,b\n" + "".join(f"1,c{i}\n" for i in range(10_001)), "has 10,001 classes, more than 10,000."),
])  # fmt: skip
def test_what_is_no_table_to_learn_from_is_refused(csv, text, sentence):
    assert sentence in refused("csv", csv(text))


def test_an_unknown_label_column_names_the_nearest_and_the_columns(csv):
    sentence = refused("csv", csv(IRIS, label="kinds"))
    assert (
        "source.label=kinds is not one of its columns (did you mean 'kind'?). Columns: length, width, kind" in sentence
    )


@pytest.mark.parametrize(("change", "label"), [
    ((".5,", ".5" + "x" * 500 + ","), ""), (("width", "x" * 500), "none"), (("width", "x" * 500), "x" * 250),
    (("3.5,0,b", "3.5,0," + "x" * 500), ""), (("length,width,kind", "x" * 500 + "\0"), ""), (("3.5,0", "x" * 500), ""),
])  # fmt: skip
def test_no_sentence_quotes_more_than_60_characters_of_a_file(csv, change, label):
    assert "x" * 61 not in refused("csv", csv(IRIS.replace(*change, 1), label=label))


@pytest.mark.parametrize("wrong", ["1,oops,x", "1,,x", "1,1e39,x", "1,2,", "1,2"])
def test_a_row_number_counts_blank_lines(csv, wrong):
    assert "row 5" in refused("csv", csv(f"a,b,c\n1,2,x\n\n\r\n{wrong}\n" + "1,2,x\n" * 20))


def test_a_row_number_counts_across_blocks(csv):
    text = "a,b,c\n" + "1.25,2.5,x\n3.5,4.5,y\n" * 900_000 + "1,oops,x\n"
    assert "row 1800002, column 'b' holds 'oops'" in refused("csv", csv(text))


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.parametrize("path", ["nowhere.csv", "no/where", "~no_such_user/x", "a\0b", "x" * 3_000])
def test_a_path_that_leads_nowhere_is_refused_in_a_sentence(data, path):
    assert "source.path=" in (sentence := refused(data, Source(path=path)))
    assert "there is no such file" in sentence or "File name too long" in sentence


@pytest.mark.parametrize("data", ["csv", "numpy", "images"])
def test_a_set_of_ones_own_needs_a_path(data):
    with pytest.raises(ConfigError, match=rf"source\.path is empty: data={data} needs a"):
        loading.facts(data, Source())


def test_folders_devices_and_empty_files_are_refused(tmp_path, csv):
    assert "is a folder, data=csv needs a file" in refused("csv", Source(path=str(tmp_path)))
    assert "is not an ordinary file" in refused("csv", Source(path="/dev/zero"))
    assert "is empty" in refused("csv", csv(""))
    assert "is a file. Images are read from a folder" in refused("images", csv(IRIS))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(csv):
    source = csv(IRIS)
    Path(source.path).chmod(0)
    assert "may not be read by this user" in refused("csv", source)


@pytest.mark.parametrize(("data", "limit"), [("csv", 1 << 30), ("numpy", 2 << 30), ("text", 100_000_000)])
def test_a_file_that_is_too_large_is_refused_unread(tmp_path, data, limit):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(limit + 1)
    assert f"more than the {limit:,} that are read" in refused(data, Source(path=str(tmp_path / "large")))


# --- arrays ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dtype", "kept"), [
    ((5,), np.float64, ((5,), np.float32)), ((5,), np.uint8, ((5,), np.float32)),
    ((8, 6), np.uint8, ((1, 8, 6), np.uint8)), ((8, 6, 3), np.uint8, ((3, 8, 6), np.uint8)),
    ((8, 6, 4), ">f4", ((4, 8, 6), np.float32)), ((3, 8, 8), np.float16, ((3, 8, 8), np.float32)),
    ((16, 8, 6), np.int32, ((16, 8, 6), np.float32)), ((8, 6), bool, ((1, 8, 6), np.uint8)),
])  # fmt: skip
def test_arrays_of_every_layout_become_features_or_planes(npz, shape, dtype, kept):
    arrays = user_files.read("numpy", npz(x=np.ones((20, *shape), dtype), y=labels()))
    assert (arrays.train_x.shape[1:], arrays.train_x.dtype) == kept and arrays.facts.shape == kept[0]
    assert arrays.train_x.flags.c_contiguous


def test_channels_last_become_planes_in_their_order(npz):
    x = np.random.default_rng(0).integers(256, size=(20, 8, 6, 3), dtype=np.uint8)
    arrays = user_files.read("numpy", npz(X=x, Y=labels()))
    assert {row.tobytes() for row in arrays.train_x} < {row.transpose(2, 0, 1).tobytes() for row in x}


def test_a_split_that_the_file_brings_is_kept(npz):
    parts = {"x_train": np.arange(40.0).reshape(20, 2), "y_train": labels() + 5, "x_test": np.ones((3, 2)),
             "y_test": np.array([[5], [6], [6]])}  # fmt: skip
    arrays = user_files.read("numpy", npz(**parts))
    assert np.array_equal(arrays.train_x, parts["x_train"]) and arrays.test_y.tolist() == [0, 1, 1]
    assert arrays.classes == ("5", "6")


def test_an_npy_has_its_label_in_the_last_column(tmp_path):
    table = np.asfortranarray(np.column_stack([np.arange(60.0).reshape(20, 3), labels()]))
    np.save(tmp_path / "table.npy", table)
    arrays = user_files.read("numpy", Source(path=str(tmp_path / "table.npy")))
    assert arrays.facts.shape == (3,) and {*arrays.train_x[:, 0]} < {*table[:, 0].astype(np.float32)}


X = np.ones((20, 2))


@pytest.mark.parametrize(("arrays", "sentence"), [
    ({"x": X, "y": labels(19)}, "y has shape (19,), for 20 examples."),
    ({"x": X, "y": np.eye(2)[labels()]}, "y has shape (20, 2), one label per example is needed. One-hot labels: y.argmax(1)."),
    ({"x": X, "y": labels() + 0.5}, "y holds 0.5, labels are whole numbers or text."),
    ({"x": X, "y": np.full(20, np.nan)}, "y holds nan, labels are whole numbers or text."),
    ({"x": X, "y": np.zeros(20)}, "all labels are '0'"),
    ({"x": X, "y": np.arange(20) // 19}, "class '1' has a single example"),
    ({"x": X[:9], "y": labels(9)}, "has 9 examples, at least 10 are needed."),
    ({"x": X[:, 0], "y": labels()}, "x has shape (20,)."),
    ({"x": np.ones((20, 0)), "y": labels()}, "x has shape (20, 0)."),
    ({"x": np.ones((20, 1, 2, 3, 4)), "y": labels()}, "x has shape (20, 1, 2, 3, 4)."),
    ({"x": X.astype(complex), "y": labels()}, "x is of complex128, not of numbers."),
    ({"x": X.astype(str), "y": labels()}, "x is of <U32, not of numbers."),
    ({"x": X.astype(object), "y": labels()}, "x holds Python objects, which are never unpickled."),
    ({"x": X, "y": labels().astype(object)}, "y holds Python objects, which are never unpickled."),
    ({"x": np.where(np.arange(20)[:, None] == 17, np.inf, X), "y": labels()}, "x[17] holds a number that is not finite"),
    ({"x": X * 1e39, "y": labels()}, "x[0] holds a number that is not finite in 32 bits."),
    ({"x": X, "y": labels().astype("M8[s]")}, "y is of datetime64[s], labels are whole numbers or text."),
    ({"x_train": X, "y_train": labels(), "x_test": X, "y_test": labels().astype("M8[s]")}, "y_test is of datetime64[s]"),
    ({"images": X}, "has no arrays x and y, nor x_train, y_train, x_test, y_test."),
    ({"x_train": X, "y_train": labels(), "x_test": X[:, :1], "y_test": labels()}, "examples of shape (2,), x_test of (1,)"),
    ({"x_train": X, "y_train": labels(), "x_test": X, "y_test": labels(20, 3)}, "y_test has class '2', which y_train has not."),
])  # fmt: skip
def test_wrong_arrays_are_refused_in_a_sentence(npz, arrays, sentence):
    assert sentence in refused("numpy", npz(**arrays))


def test_text_labels_are_classes_in_order(npz):
    assert user_files.read("numpy", npz(x=X, y=np.array(["b", "a"])[labels()])).classes == ("a", "b")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:300], lambda b: b[:-30], lambda _: pickle.dumps([1]), lambda b: b"text"]
)
def test_a_broken_file_of_arrays_is_refused(tmp_path, npz, damage):
    source = npz(x=X, y=labels())
    Path(source.path).write_bytes(damage(Path(source.path).read_bytes()))
    assert "is not a whole NPZ or NPY file" in refused("numpy", source)


def test_a_flipped_bit_is_found_by_the_checksum_of_the_archive(npz):
    source = npz(x=X, y=labels())
    content = bytearray(Path(source.path).read_bytes())
    content[300] ^= 1
    Path(source.path).write_bytes(content)
    assert "x is not a whole array" in refused("numpy", source)


def test_an_npz_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", 1_000_000)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100, 10_001), np.uint8), y=labels(100))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    sentence = "unpacks to 1,001,156 bytes, more than the 1,000,000 that are read."
    assert sentence in refused("numpy", Source(path=str(tmp_path / "bomb.npz")))


def test_an_archive_packed_in_a_way_numpy_never_does_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", bytes(1_000))
    assert "is not a whole NPZ or NPY file" in refused("numpy", Source(path=str(tmp_path / "data.npz")))


@pytest.mark.parametrize(("shape", "sentence"), [
    ((10**9, 10), "unpacks to 80,000,000,000"), ((100, 100), "is not a whole array"), ((True, 5), "is not a whole array"),
    ((0, 10**30), "is not a whole array"),
])  # fmt: skip
def test_a_header_that_announces_more_than_there_is_is_not_believed(tmp_path, shape, sentence):
    with (tmp_path / "lie.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(bytes(800))
    assert sentence in refused("numpy", Source(path=str(tmp_path / "lie.npy")))


# --- images ---------------------------------------------------------------------------------------------------------


def test_a_folder_per_class_becomes_labelled_colour_images(folder):
    arrays = user_files.read("images", Source(path=str(folder)))
    assert arrays.classes == ("blue", "red") and arrays.facts.shape == (3, 6, 8)
    red = arrays.train_x[arrays.train_y == 1]
    assert red.dtype == np.uint8 and (red[:, 0] == 255).all() and not red[:, 1:].any()


def test_images_are_grey_when_all_are(folder):
    for path in folder.rglob("*.png"):
        Image.new("L", (8, 6), 77).save(path)
    arrays = user_files.read("images", Source(path=str(folder)))
    assert arrays.facts.shape == (1, 6, 8) and (arrays.train_x == 77).all()


def test_all_images_are_brought_to_the_most_common_size_without_stretching(folder):
    wide = Image.new("RGB", (80, 20), (0, 255, 0))
    wide.paste((255, 0, 0), (30, 0, 50, 20))  # what a crop about the centre keeps most of
    wide.save(folder / "red" / "0.png")
    arrays = user_files.read("images", Source(path=str(folder)))
    images = np.concatenate([arrays.train_x, arrays.test_x])
    assert images.shape[1:] == (3, 6, 8)
    (cropped,) = [image for image in images if image[1].any()]
    assert (cropped[0, :, 2:6] == 255).all() and cropped[0].mean() > 150


def test_large_images_are_scaled_down_to_64_pixels(folder):
    for path in folder.rglob("*.png"):
        Image.new("RGB", (300, 150), (9, 9, 9)).save(path.with_suffix(".jpg"))
        path.unlink()
    assert user_files.read("images", Source(path=str(folder))).facts.shape == (3, 32, 64)


def test_sixteen_bit_and_palette_and_transparent_images_are_read(folder):
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save(folder / "red" / "0.png")
    Image.new("P", (8, 6)).save(folder / "red" / "1.gif")
    Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(folder / "red" / "2.webp")
    Image.new("CMYK", (8, 6)).save(folder / "red" / "3.jpg")
    arrays = user_files.read("images", Source(path=str(folder)))
    assert (np.concatenate([arrays.train_x, arrays.test_x]) == 40_000 // 256).all(axis=(1, 2, 3)).sum() == 1


def test_a_photo_is_turned_as_its_camera_said(folder):
    for path in folder.rglob("*.png"):
        image = Image.new("RGB", (8, 6), (0, 0, 0))
        image.paste((255, 255, 255), (0, 0, 8, 3))
        exif = image.getexif()
        exif[0x0112] = 3  # upside down
        image.save(path, exif=exif)
    image = user_files.read("images", Source(path=str(folder))).train_x[0]
    assert not image[:, :3].any() and (image[:, 3:] == 255).all()


def test_photos_held_upright_are_upright_images(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    for path in folder.rglob("*.png"):
        Image.new("RGB", (80, 40)).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    assert user_files.read("images", Source(path=str(folder))).facts.shape == (3, 64, 32)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_a_file_that_is_no_image_is_named(folder, content):
    (folder / "red" / "bad.png").write_bytes(content)
    assert "'bad.png' is not a whole image. Repair or remove it." in refused("images", Source(path=str(folder)))


def test_an_image_that_breaks_off_is_named(folder):
    Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 60), dtype=np.uint8)).save(
        folder / "red" / "bad.png"
    )
    content = (folder / "red" / "bad.png").read_bytes()
    (folder / "red" / "bad.png").write_bytes(content[: len(content) // 2])
    assert "'bad.png' is not a whole image" in refused("images", Source(path=str(folder)))


@pytest.mark.parametrize("side", [10_000, 30_000])
def test_a_picture_that_unpacks_to_too_many_pixels_is_refused(folder, side):
    content = bytearray((folder / "red" / "0.png").read_bytes())
    content[16:24] = struct.pack(">II", side, side)  # width and height in a PNG's header, then their checksum
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    (folder / "red" / "bomb.png").write_bytes(content)
    assert "'bomb.png' has too many pixels" in refused("images", Source(path=str(folder)))


def test_links_that_lead_out_of_the_folder_are_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "elsewhere" / "secret.png")
    (folder / "red" / "link.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (folder / "green").symlink_to(tmp_path / "elsewhere")
    (folder / "red" / "again.png").symlink_to(folder / "red" / "0.png")
    facts = user_files.read("images", Source(path=str(folder))).facts
    assert facts.num_classes == 2 and facts.train_examples + facts.test_examples == 21


def test_a_link_to_itself_is_named(folder):
    (folder / "red" / "loop.png").symlink_to(folder / "red" / "loop.png")
    assert "its 'loop.png' cannot be read: Too many levels of symbolic links." in refused(
        "images", Source(path=str(folder))
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_named(folder):
    source = Source(path=str(folder))
    (folder / "red" / "3.png").chmod(0)
    assert "its '3.png' may not be read by this user. Change its permissions." in refused("images", source)


def test_a_folder_without_classes_or_with_an_empty_one_is_refused(folder, tmp_path):
    (tmp_path / "flat").mkdir()
    assert "has no subfolders. Put the images of each class" in refused("images", Source(path=str(tmp_path / "flat")))
    (folder / "empty").mkdir()
    assert "its subfolder 'empty' has no image (bmp, gif," in refused("images", Source(path=str(folder)))


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="tinyshakespeare is not on this machine")
def test_tinyshakespeare_is_cut_as_nanogpt_cuts_it():
    arrays = user_files.read("text", Source(path=str(SHAKESPEARE), seq_len=256))
    assert (len(arrays.train_x), len(arrays.test_x), len(arrays.classes)) == (1_003_854, 111_540, 65)
    assert (arrays.facts.train_examples, arrays.facts.test_examples) == (3_921, 435)
    assert "".join(arrays.classes[i] for i in arrays.train_x[:14]) == "First Citizen:"


def test_a_text_of_many_characters_has_two_bytes_per_token(tmp_path):
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 1_000))) * 3
    (tmp_path / "han.txt").write_text("\ufeff" + text, encoding="utf-8")
    arrays = user_files.read("text", Source(path=str(tmp_path / "han.txt")))
    assert arrays.train_x.dtype == np.uint16 and arrays.facts.num_classes == 1_000
    assert "".join(arrays.classes[i] for i in arrays.train_x) == text[:2_700]


@pytest.mark.parametrize(("content", "sentence"), [
    (b"abc" * 1_000 + b"\xff", "is not text in UTF-8: byte 3,000 is wrong."),
    (b"abc\0" * 1_000, "is not text: it holds zero bytes."),
    (b"too short", "has 9 characters, too few for source.seq_len=64: the tenth that is held out must have 129."),
    ("".join(map(chr, range(1, 12_001))).encode(), "has 12,000 different characters, more than 10,000."),
])  # fmt: skip
def test_what_is_no_text_to_learn_from_is_refused(tmp_path, content, sentence):
    (tmp_path / "text.txt").write_bytes(content)
    assert sentence in refused("text", Source(path=str(tmp_path / "text.txt")))


# --- inspection in a process of its own -----------------------------------------------------------------------------


@pytest.fixture
def one_of_each(csv, npz, folder, tmp_path):
    (tmp_path / "a text.txt").write_text("All the world's a stage. " * 200)
    return {"csv": csv(IRIS, label="kind"), "numpy": npz(x=np.ones((20, 8, 6)), y=labels()),
            "images": Source(path=str(folder)), "text": Source(path=str(tmp_path / "a text.txt"), seq_len=16)}  # fmt: skip


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.process
def test_inspection_finds_what_reading_finds(one_of_each, data):
    assert loading.facts(data, one_of_each[data]) == loading.load(data, one_of_each[data]).facts
    assert len(loading.load(data, one_of_each[data]).sha256) == 64


@pytest.mark.parametrize("data", ["csv", "numpy", "images", "text"])
@pytest.mark.process
def test_inspection_refuses_in_the_words_of_reading(one_of_each, data):
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
        inspection._inspected.cache_clear()  # as a new process
        assert user_files.inspect("csv", source) == facts
    csv(IRIS + "1,2,a\n" * 10)
    assert user_files.inspect("csv", source).train_examples == facts.train_examples + 8


@pytest.mark.process
def test_a_broken_memory_of_an_inspection_is_ignored(csv, cache):
    source = csv(IRIS)
    facts = user_files.inspect("csv", source)
    (remembered,) = (cache / "inspected").iterdir()
    remembered.write_text('{"title": 3')
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
def test_a_file_that_takes_too_long_is_refused_and_asked_again(csv, monkeypatch):
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
def test_a_process_that_breaks_down_is_one_sentence(csv, monkeypatch):
    monkeypatch.setattr(inspection, "INSPECT_MEMORY_BYTES", 1 << 25)  # less than Python itself has
    with pytest.raises(ConfigError, match=r"iris\.csv: .*(crashed|needs more than)"):
        user_files.inspect("csv", csv(IRIS))


@pytest.mark.process
def test_nothing_is_imported_from_the_folder_one_stands_in(csv, tmp_path, monkeypatch):
    csv(IRIS)
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert user_files.inspect("csv", Source(path="iris.csv")).num_classes == 2
