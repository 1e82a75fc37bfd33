"""Reads a UTF-8 text as tokens, one per character."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from engine.common.errors import ConfigError
from engine.config.data import Source
from engine.data.datasets import Arrays, Dataset

MAX_CHARACTERS = 10_000
MIN_WINDOWS = 2  # in each split


def read_text(path: Path, source: Source) -> Arrays:
    """The tokens of a text.

    Raises:
        ConfigError: As `user_files.read` does.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not text in UTF-8: byte {error.start:,} is invalid.", fix="Save it as UTF-8.") from None
    if "\0" in text:
        raise ConfigError("is not text: it contains zero bytes.")
    return text_arrays(path.name, text, seq_len=source.seq_len, sha256=hashlib.sha256(content).hexdigest())


def text_arrays(title: str, text: str, *, seq_len: int, sha256: str | None = None) -> Arrays:
    """A text as tokens (n,), each the index of a character in the sorted alphabet; the last 10 % are the test split.

    Raises ConfigError if a split has fewer than two windows of `seq_len` characters, or the text has more than 10,000
    different characters.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    seen = np.zeros(sys.maxunicode + 1, bool)
    seen[codes] = True
    alphabet = np.flatnonzero(seen)
    facts = text_facts(title, len(codes), len(alphabet), seq_len=seq_len, version=sha256 or "")
    tokens = np.zeros(sys.maxunicode + 1, np.uint8 if len(alphabet) <= 256 else np.uint16)
    tokens[alphabet] = np.arange(len(alphabet))
    cut = _cut(len(codes))
    return Arrays(
        facts,
        tokens[codes[:cut]],
        None,
        tokens[codes[cut:]],
        None,
        np.zeros((), np.float32),
        np.ones((), np.float32),
        tuple(map(chr, alphabet)),
        sha256,
    )


def text_facts(title: str, length: int, alphabet: int, *, seq_len: int, version: str = "") -> Dataset:
    """The facts of a text with `length` characters, `alphabet` of them different.

    Raises:
        ConfigError: As `text_arrays` does.
    """
    if alphabet == 1:
        raise ConfigError(
            "has one character only, again and again; there is nothing to learn.", fix="Use another text."
        )
    if alphabet > MAX_CHARACTERS:
        raise ConfigError(
            f"has {alphabet:,} different characters, more than the limit of {MAX_CHARACTERS:,}.",
            fix="Use another text.",
        )
    train, test = ((part - 1) // seq_len for part in (_cut(length), length - _cut(length)))
    if test < MIN_WINDOWS or train < MIN_WINDOWS:
        raise ConfigError(
            f"has {length:,} characters, too few for source.seq_len={seq_len}: the test split, a tenth of it, needs "
            f"{MIN_WINDOWS * seq_len + 1:,}.",
            fix="Use a longer text or lower source.seq_len.",
        )
    return Dataset(title, "text", (seq_len,), alphabet, train, test, version=version)


def _cut(length: int) -> int:
    return int(0.9 * length)  # the split of nanoGPT, data/shakespeare_char/prepare.py
