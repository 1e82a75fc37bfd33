"""Users' texts: the tokens that are read, and the error for each kind of wrong text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.config.data import Source
from engine.data import user_files
from tests.data.user_data import refused

ROOT = Path(__file__).resolve().parents[2]
SHAKESPEARE = ROOT.parent / "shared/data/tinyshakespeare.txt"


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="tinyshakespeare is not on this machine")
def test_tinyshakespeare_is_split_as_in_nanogpt():
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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"abc" * 1_000 + b"\xff", "is not text in UTF-8: byte 3,000 is invalid."),
        (b"abc\0" * 1_000, "is not text: it contains zero bytes."),
        (b"too short", "has 9 characters, too few for source.seq_len=64: the test split, a tenth of it, needs 129."),
        (
            "".join(map(chr, range(1, 12_001))).encode(),
            "has 12,000 different characters, more than the limit of 10,000.",
        ),
    ],
)
def test_a_text_that_cannot_be_trained_on_is_refused(tmp_path, content, sentence):
    (tmp_path / "text.txt").write_bytes(content)
    assert sentence in refused("text", Source(path=str(tmp_path / "text.txt")))
