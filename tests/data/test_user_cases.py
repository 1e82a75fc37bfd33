"""Real-world inputs, modelled on public bug reports: what is read, what is said about it, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data import loading, user_files
from engine.data.user_files import tables
from tests.data.user_data import labels, refused

CASES = Path(__file__).parent / "cases"


def case(name: str) -> Source:
    return Source(path=str(CASES / name))


# --- tables -------------------------------------------------------------------------------------------------------


def test_labels_are_numbers_only_if_they_print_back_to_themselves(csv):
    assert user_files.read("csv", case("label_hier.csv")).classes == ("11_0", "1_10", "2_1")
    for words in (("1_1", "2_2"), ("007", "8"), ("1.10", "1.1"), ("007", "7"), ("1e3", "1000"), ("١", "1")):
        text = "a,y\n" + "".join(f"{i},{words[i % 2]}\n" for i in range(20))
        assert sorted(user_files.read("csv", csv(text)).classes) == sorted(words)
    text = "a,y\n" + "".join(f"{i},{(10, 9)[i % 2]}\n" for i in range(20))
    assert user_files.read("csv", csv(text)).classes == ("9", "10")


def test_a_large_offset_keeps_the_digits_that_differ():
    arrays = user_files.read("csv", case("big_offset.csv"))
    time = (arrays.train_x[:, 0] - arrays.mean[0]) / arrays.std[0]
    assert arrays.train_x.dtype == np.float64
    assert time.std() == pytest.approx(1) and len(np.unique(time)) == 3


def test_numbers_that_float32_holds_take_half_the_memory(csv):
    text = "a,b,y\n" + "".join(f"{i},{i / 4},{i % 2}\n" for i in range(20))
    assert user_files.read("csv", csv(text)).train_x.dtype == np.float32


def test_rows_without_a_label_are_left_out_and_named():
    arrays = user_files.read("csv", case("missing_label_NA.csv"))
    assert arrays.classes == ("k0", "k1", "k2")
    assert arrays.facts.train_examples + arrays.facts.test_examples == 57
    assert arrays.facts.notes == ("3 rows have no label and are left out (rows 19, 39, 59).",)


def test_a_class_that_is_not_tested_and_one_that_dominates_are_said():
    arrays = user_files.read("csv", case("imbalance.csv"))
    untested, dominant = arrays.facts.warnings
    assert untested == "Class 'rare' is not tested: none of its 2 samples is in the test split."
    assert dominant.startswith("97 % of the samples have the class 'common'") and arrays.largest_class_accuracy == 1


def test_a_row_counter_that_predicts_the_class_is_said(csv):
    (warning,) = user_files.read("csv", case("id_leak.csv")).facts.warnings
    assert warning.startswith("Feature 'Id' is a counter of the rows, and the rows are sorted by class")
    mixed = "Id,y\n" + "".join(f"{i},{i * 7 % 3}\n" for i in range(60))
    assert not user_files.read("csv", csv(mixed)).facts.warnings


@pytest.mark.process
def test_a_header_with_a_line_break_is_read():
    table = user_files.preview("csv", case("header_newline.csv"))
    assert table.columns == ("a (cm)", "b", "c", "y") and len(table.rows) == 5


def test_many_classes_of_few_samples_are_no_regression(csv):
    assert user_files.read("csv", case("few_shot.csv")).facts.num_classes == 30
    ages = "a,y\n" + "".join(f"{i},{i % 80 + i // 150}\n" for i in range(160))
    assert "This looks like regression" in refused("csv", csv(ages))


def test_a_line_break_inside_a_value_is_part_of_the_value(csv):
    text = "a,note,y\n" + "".join(f'{i},"{("red", "dark" + chr(10) + "blue")[i % 2]}",{i % 2}\n' for i in range(20))
    assert user_files.read("csv", csv(text)).facts.shape == (3,)
    assert "row 22, column 'a' has the value 'oops'" in refused("csv", csv(text + "oops,red,1\n"))


MIXED = "day,colour,member,comment,size,always,kind\n" + "".join(
    f"2026-11-{i % 28 + 1:02d},{('red', 'green', '')[i % 3]},{('yes', 'no')[i // 2 % 2]},text {i},{i * 0.1:.1f},1,{'ab'[i % 2]}\n"
    for i in range(40)
)


def test_dates_categories_and_booleans_become_features_and_text_is_left_out(csv):
    arrays = user_files.read("csv", csv(MIXED))
    assert arrays.facts.shape == (7,)  # day, three colours, member, size, always
    assert arrays.facts.notes == (
        "Column 'day' is read as date, as days since 1970-01-01.",
        "Column 'colour' is read as 2 categories, one-hot, and one for missing values.",
        "Column 'member' is read as yes or no: 'yes' is 1.",
        "Column 'comment' is left out: text with 40 different values.",
        "Feature 'always' is the same in every training sample, so it tells nothing.",
    )
    x = np.concatenate([arrays.train_x, arrays.test_x])
    assert {*np.unique(x[:, 0])} <= {float(np.datetime64(f"2026-11-{d:02d}").astype(int)) for d in range(1, 29)}
    assert (x[:, 1:4].sum(axis=1) == 1).all() and {*np.unique(x[:, 4])} == {0, 1}


@pytest.mark.parametrize(
    ("dates", "is_date"),
    [
        (["2026-11-30 12:00", "2026-12-01 00:00"], True),
        (["2026-11-30T12:00:00.5Z", "2026-12-01T00:00:00+01:00"], True),
        (["30.11.2026", "01.12.2026"], True),
        (["11/30/2026", "12/13/2026"], True),
        (["11/12/2026", "12/11/2026"], False),  # of which month?
        (["12:30", "14:00"], False),
    ],
)
def test_dates_are_read_where_they_mean_one_day(csv, dates, is_date):
    text = "when;y\n" + "".join(f"{dates[i % 2]};{i % 2}\n" for i in range(20))
    assert ("date" in user_files.read("csv", csv(text)).facts.notes[0]) == is_date


def test_decimal_commas_are_read_where_the_comma_is_no_delimiter(csv):
    text = "a;b;y\n" + "".join(f"{i},5;{i};{i % 2}\n" for i in range(20))
    arrays = user_files.read("csv", csv(text))
    assert {*arrays.train_x[:, 0]} < {i + 0.5 for i in range(20)}
    assert arrays.facts.notes == ("Column 'a' is read as number with decimal commas.",)
    mixed = "a,y\n" + "".join(f"{i}.5,{i % 2}\n" for i in range(20)) + '"1,5",0\n'
    assert "has the value '1,5', but features must be numbers. Write numbers with a decimal point." in refused(
        "csv", csv(mixed)
    )


def test_a_table_without_a_feature_says_why(csv):
    text = "name,y\n" + "".join(f"person {i},{i % 2}\n" for i in range(20))
    assert "has no column that can be a feature (left out: text with 20 different values)" in refused("csv", csv(text))


def test_a_table_in_utf_16_is_named_so(csv):
    assert "is a text in UTF-16. Save it as UTF-8." in refused("csv", csv(MIXED.encode("utf-16")))


def test_inputs_that_are_all_equal_are_refused(csv, npz):
    sentence = "training inputs are equal, so a model can learn nothing from them."
    assert sentence in refused("csv", csv("a,y\n" + "".join(f"5,{i % 2}\n" for i in range(20))))
    assert sentence in refused("numpy", npz(x=np.ones((20, 8, 8)), y=labels()))


@pytest.mark.parametrize("columns", [1, 30])
def test_text_that_begins_after_many_rows_is_text(csv, columns):
    rows = [",".join([("", "red", "blue")[(i > 200) * (1 + i % 2)]] * columns) + f",{i},{i % 2}" for i in range(400)]
    names = ",".join(f"c{i}" for i in range(columns))
    arrays = user_files.read("csv", csv("\n".join([f"{names},a,y", *rows])))
    assert arrays.facts.shape == (3 * columns + 1,)  # red, blue, missing


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("columns", [785, 20_000])
def test_a_wide_table_fits_into_the_memory_of_the_process(csv, columns):
    row = ",".join(map(str, range(columns - 1)))
    text = ",".join(f"c{i}" for i in range(columns)) + "\n" + "".join(f"{i}{row[1:]},{i % 2}\n" for i in range(100))
    assert user_files.inspect("csv", csv(text)).shape == (columns - 1,)


# --- arrays -------------------------------------------------------------------------------------------------------


def test_two_channels_at_the_end_are_channels():
    facts = user_files.read("numpy", case("nhwc2.npz")).facts
    assert facts.shape == (2, 8, 8)
    assert facts.notes == ("Arrays of shape (8, 8, 2) are read as 2 channels of 8x8 pixels.",)


def test_a_test_split_of_another_scale_is_said():
    (warning,) = user_files.read("numpy", case("train_test_dtype.npz")).facts.warnings
    assert "training values go from 0 to 179, test values from 0 to 0.70" in warning


def test_test_features_outside_the_training_range_are_said(npz):
    x = np.random.default_rng(0).normal(size=(60, 3))
    parts = {"x_train": x[:40], "y_train": labels(40), "x_test": x[40:], "y_test": labels(20)}
    assert not user_files.read("numpy", npz(**parts)).facts.warnings
    parts["x_test"] = x[40:] + np.array([0, 50, 0])
    assert "in Feature 2" in user_files.read("numpy", npz(**parts)).facts.warnings[0]


def test_the_names_of_medmnist_are_read_and_what_is_not_used_is_said():
    arrays = user_files.read("numpy", case("medmnist_keys.npz"))
    assert (arrays.facts.train_examples, arrays.facts.test_examples) == (40, 10)
    assert arrays.facts.notes == ("Not used: 2 arrays of the file ('val_images', 'val_labels').",)


def test_a_validation_split_is_the_test_split_where_there_is_no_other(npz):
    x = np.arange(60.0).reshape(30, 2)
    found = user_files.read("numpy", npz(x_train=x[:20], y_train=labels(), x_val=x[20:], y_val=labels(10), ids=x))
    assert found.facts.test_examples == 10
    assert found.facts.notes == (
        "The validation split of the file is the test split.",
        "Not used: 1 array of the file ('ids').",
    )


# --- images -------------------------------------------------------------------------------------------------------


def drawn(mode: str, folder: Path, count: int = 12, suffix: str = "png", values: int = 256) -> Path:
    """A folder with the classes a and b, whose images differ; a pixel has a value below `values`."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(values, size=(8, 8)).astype(np.uint16 if mode == "I;16" else np.uint8)
            image = Image.fromarray(pixels)
            if mode == "RGBA":  # as a glyph: black, drawn by its opacity
                image = Image.merge("RGBA", [Image.new("L", (8, 8))] * 3 + [image])
            image.save(folder / name / f"{i}.{suffix}")
    return folder


def test_glyphs_that_are_drawn_by_their_opacity_are_black_on_white(tmp_path):
    arrays = user_files.read("images", Source(path=str(drawn("RGBA", tmp_path / "glyphs"))))
    assert arrays.facts.notes == ("24 transparent images are drawn over white.",)
    assert arrays.train_x.min() < 10 and arrays.train_x.max() > 245


def test_images_of_16_bits_keep_the_low_bits(tmp_path):
    arrays = user_files.read("images", Source(path=str(drawn("I;16", tmp_path / "deep", values=200))))
    assert arrays.train_x.dtype == np.float32 and len(np.unique(arrays.train_x)) > 150
    assert arrays.train_x.max() == pytest.approx(199 / 257) and "keep all bits" in arrays.facts.notes[0]


@pytest.mark.process
def test_images_that_are_all_blank_are_refused(tmp_path):
    folder = drawn("L", tmp_path / "blank", values=1)
    assert "all 20 training inputs are equal" in refused("images", Source(path=str(folder)))
    with pytest.raises(ConfigError, match="training inputs are equal"):
        user_files.inspect("images", Source(path=str(folder)))


def test_every_file_is_read_or_counted(tmp_path):
    folder = drawn("L", tmp_path / "all")
    drawn("L", folder, count=3, suffix="tif")
    (folder / "a" / "notes.txt").touch()
    (folder / "a" / "raw.npy").touch()
    (folder / "b" / "more").mkdir()
    (folder / "README.md").touch()
    (folder / ".DS_Store").touch()
    os.mkfifo(folder / "b" / "pipe.png")  # would be read for ever
    facts = user_files.read("images", Source(path=str(folder))).facts
    assert facts.train_examples + facts.test_examples == 30  # 24 .png and 6 .tif
    (note,) = facts.notes
    for what in (".txt files", ".npy files", "folders inside the class folders", ".md files outside the class folders"):
        assert f"1 {what}" in note


@pytest.mark.process
def test_folders_for_training_and_testing_are_the_split(tmp_path):
    root = tmp_path / "nested"
    drawn("L", root / "train"), drawn("L", root / "test", count=5), drawn("L", root / "val", count=2)
    source = Source(path=str(root))
    arrays = user_files.read("images", source)
    assert arrays.classes == ("a", "b") and (len(arrays.train_x), len(arrays.test_x)) == (24, 10)
    assert arrays.facts.notes == ("The split is that of the folders train and test.", "The folder val is not used.")
    assert loading.facts("images", source) == arrays.facts
    (root / "train" / "a" / "0.png").unlink()
    assert loading.facts("images", source).train_examples == 23


def test_classes_named_train_and_test_are_classes(tmp_path):
    folder = drawn("L", tmp_path / "vehicles")
    (folder / "a").rename(folder / "train"), (folder / "b").rename(folder / "test")
    assert user_files.read("images", Source(path=str(folder))).classes == ("test", "train")


# --- text, pipes --------------------------------------------------------------------------------------------------


def test_a_text_of_one_character_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 4_000)
    assert "has one character only" in refused("text", Source(path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize("data", ["csv", "numpy", "text", "images"])
def test_a_pipe_never_hangs(tmp_path, data):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in (found := refused(data, Source(path=str(tmp_path / "pipe")))) or "is a file" in found


def test_a_pipe_in_the_cache_never_hangs(cache):
    cache.mkdir()
    os.mkfifo(cache / "mnist.npz")
    with pytest.raises(ConfigError, match="cannot be read"):
        loading.load("mnist", Source())


def test_rows_are_named_up_to_a_limit(csv):
    text = "a,y\n" + "".join(f"{i},{i % 2 if i % 4 else ''}\n" for i in range(80))
    (note,) = user_files.read("csv", csv(text)).facts.notes
    assert note.endswith("(rows 2, 6, 10, 14, 18, …).") and tables._MOST_NAMED == 5
