"""Users' files of each kind, and an empty cache folder."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from engine.config.data import Source
from engine.data.user_files import inspection


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_DATA", str(tmp_path / "cache"))
    inspection._inspected.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def csv(tmp_path):
    """Writes a table and returns its Source."""

    def write(text: str | bytes, *, label: str = "") -> Source:
        path = tmp_path / "iris.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Source(path=str(path), label=label)

    return write


@pytest.fixture
def npz(tmp_path):
    """Writes arrays into an NPZ and returns its Source."""

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
