"""Fixtures of the store's tests."""

from __future__ import annotations

import shutil

import pytest

from engine.config.run import RunConfig
from engine.runtime.executor import InlineExecutor
from engine.runtime.supervisor import Supervisor
from tests.fakes import make_run


@pytest.fixture
def with_index(store):
    """A store of 30 runs and its index as after a crash, with a write-ahead log."""
    config = RunConfig().model_dump_json()
    for number in range(30):
        make_run(store, num_steps=20, seed=number, name=f"run {number} of {config[:50]}")
    supervising = Supervisor(store, InlineExecutor())
    supervising.recover()
    for suffix in ("", "-wal"):
        shutil.copy(store.root / f"index.sqlite{suffix}", store.root / f"kept{suffix}")
    supervising.index.close()
    for suffix in ("", "-wal"):
        (store.root / f"kept{suffix}").replace(store.root / f"index.sqlite{suffix}")
    return store
