"""Users' CSV tables: the arrays that are read, and the error for each kind of wrong table."""

from __future__ import annotations

import numpy as np
import pytest

from engine.data import user_files
from tests.data.user_data import IRIS, refused


def test_a_table_becomes_features_and_labels_with_a_test_split(csv):
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda t: "\ufeff" + t,
        lambda t: t.replace("\n", "\r\n"),
        lambda t: t.replace(",", ";"),
        lambda t: t.replace(",", "\t"),
        lambda t: t.replace(",", ", "),
        lambda t: t + "\n\n",
        lambda t: t.replace("kind", '"kind"'),
    ],
)
def test_the_csv_formats_of_other_programs_give_the_same_arrays(csv, damage):
    expected, found = user_files.read("csv", csv(IRIS)), user_files.read("csv", csv(damage(IRIS)))
    assert np.array_equal(found.train_x, expected.train_x) and found.classes == expected.classes


def test_any_column_can_be_the_label(csv):
    text = "digit,a\n" + "".join(f"{i % 2 * 10 + 2},{i}\n" for i in range(20))
    arrays = user_files.read("csv", csv(text, label="digit"))
    assert arrays.classes == ("2", "12") and arrays.facts.shape == (1,)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("16.5,1,a", "16.5,a"), "row 18 has 2 columns, but the header has 3."),
        (("16.5,1,a", "16.5,1,a,a"), "row 18 has 4 columns, but the header has 3."),
        (("16.5,1,a", "16.5,tall,a"), "row 18, column 'width' has the value 'tall', but features must be numbers."),
        (("16.5,1,a", "16.5,,a"), "row 18, column 'width' is empty or NaN."),
        (("16.5,1,a", "nan,1,a"), "row 18, column 'length' is empty or NaN."),
        (("16.5,1,a", "1e39,1,a"), "row 18, column 'length' is not finite in float32."),
        (("16.5,1,a", "16.5,1,c"), "class 'c' has a single sample; at least 2 are needed."),
        (("length", "width"), "columns 1 and 2 have the same name, 'width'."),
        (("length,width,kind", "5.1,3.5,a"), "its first row has numbers instead of column names."),
        (("length,width,kind", "5,5,a"), "its first row has numbers instead of column names."),
    ],
)
def test_a_wrong_table_is_refused_with_row_and_column(csv, change, sentence):
    source = csv(IRIS.replace(*change, 1))
    assert refused("csv", source).startswith(f"source.path={source.path}: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n", "has no rows below its header."),
        ("a,b\n1,x\n2,y\n", "has 2 samples; at least 10 are needed."),
        ("a,b\n" + "1,x\n" * 20, "all labels are 'x'; at least 2 classes are needed."),
        (
            "a,b\n" + "".join(f"1,{c}\n{c},{c}\n" for c in range(10)),
            "no class has 3 samples, of which one could be used for testing.",
        ),
        ("ab\n" + "1\n" * 20, "has 1 column; a feature and a label are needed."),
        (b"a,b\n1,\0\n", "is not a CSV: it contains zero bytes."),
        (b"a,\xff\n1,1\n", "is not a CSV in UTF-8."),
        (b"a,b\n1,\xff,\n", "row 2 has 3 columns, but the header has 2."),
        (b"a,b\n" + b"1,\xff\n" * 20, "cannot be read as a CSV in UTF-8."),
        ('a,"b\n1,2\n', "is not a CSV: its first row is not a header."),
        (
            "a,b\n" + "".join(f"1,{i / 7}\n" for i in range(20)),
            "label column 'b' has the value 0.142857; labels must be whole numbers or text.",
        ),
        ("a,b\n" + "".join(f"1,{i}\n" for i in range(50)), "label column 'b' has 50 different numbers in 50 samples."),
        (",".join(map(str, range(100_001))) + "\n", "has 100,001 columns, more than the limit of 100,000."),
        ("a,b\n" + "".join(f"1,c{i}\n" for i in range(10_001)), "has 10,001 classes, more than the limit of 10,000."),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(csv, text, sentence):
    assert sentence in refused("csv", csv(text))


def test_an_unknown_label_column_names_the_nearest_and_the_columns(csv):
    sentence = refused("csv", csv(IRIS, label="kinds"))
    assert (
        "source.label=kinds is not one of its columns (did you mean 'kind'?). Columns: length, width, kind" in sentence
    )


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ((".5,", ".5" + "x" * 500 + ","), ""),
        (("width", "x" * 500), "none"),
        (("width", "x" * 500), "x" * 250),
        (("3.5,0,b", "3.5,0," + "x" * 500), ""),
        (("length,width,kind", "x" * 500 + "\0"), ""),
        (("3.5,0", "x" * 500), ""),
    ],
)
def test_no_error_quotes_more_than_60_characters_of_a_file(csv, change, label):
    assert "x" * 61 not in refused("csv", csv(IRIS.replace(*change, 1), label=label))


@pytest.mark.parametrize("wrong", ["1,oops,x", "1,,x", "1,1e39,x", "1,2"])
def test_a_row_number_counts_blank_lines(csv, wrong):
    assert "row 5" in refused("csv", csv(f"a,b,c\n1,2,x\n\n\r\n{wrong}\n" + "1,2,x\n" * 20))


def test_a_row_number_counts_across_blocks(csv):
    text = "a,b,c\n" + "1.25,2.5,x\n3.5,4.5,y\n" * 900_000 + "1,oops,x\n"
    assert "row 1800002, column 'b' has the value 'oops'" in refused("csv", csv(text))
