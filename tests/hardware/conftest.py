"""Fixtures for the tests of the hardware room."""

from __future__ import annotations

import pytest

from tests.hardware.fake_machine import Machine


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "root")
