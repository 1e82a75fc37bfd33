"""Fixtures of the runtime's tests."""

from __future__ import annotations

import pytest

from engine.system import disk_space
from tests.runtime.scene import Scene


@pytest.fixture
def no_limits(monkeypatch):
    """No free space is required, so that small disks can be used."""
    monkeypatch.setattr(disk_space, "NEW_RUNS_NEED_BYTES", 0)
    monkeypatch.setattr(disk_space, "RECORDING_NEEDS_BYTES", 0)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("ISOFLOP_HOME", str(tmp_path / "store"))
    made = Scene(tmp_path / "store")
    yield made
    made.end()
