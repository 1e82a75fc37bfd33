"""Checkpoints of a run: their steps and weights, and that every way to end keeps them."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.common.errors import ConfigError, Diverged, StoreError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.data import loading
from engine.events.lifecycle import Artifact
from engine.events.training import Steps
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.tasks.train import train
from engine.runtime import worker
from engine.store import weight_path
from engine.store.stop_requests import StopRequest, ask_to_stop

pytestmark = pytest.mark.slow  # it trains

NO_STEPS = ("budget.steps=none",)
BASE = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=40"])
STEPS = "budget.steps=40"


def trained(folder, *assignments, clock=time.perf_counter):
    return list(train(with_overrides(BASE, assignments), folder, clock=clock))


def path_in(folder):
    return weight_path.read(folder.parent, folder.name)


@pytest.fixture
def folder(store):
    return store.folder(store.create(BASE))


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()


def artifacts(events):
    return [event.name for event in events if isinstance(event, Artifact)]


def losses(events):
    return np.concatenate([event.loss for event in events if isinstance(event, Steps)])


def test_checkpoints_are_evenly_spaced_and_include_both_ends(folder):
    events = trained(folder, STEPS, "checkpoints=5")
    assert path_in(folder).step.tolist() == [0, 10, 20, 30, 40]
    assert artifacts(events) == ["trajectory.safetensors", "model.safetensors"]


def test_a_run_limited_by_time_spaces_checkpoints_by_training_time(folder):
    trained(folder, *NO_STEPS, "budget.seconds=1", "checkpoints=6")
    path = path_in(folder)
    assert len(path.step) == 6
    assert np.allclose(path.train_s, np.linspace(0, 1, 6), atol=0.15)


def test_the_last_checkpoint_is_the_saved_weights_and_the_first_the_initial_ones(folder):
    trained(folder, STEPS, "checkpoints=3")
    saved = load_file(folder / "model.safetensors")  # in an order of its own
    first = models.build(BASE.model, loading.facts("digits", BASE.source), seed=BASE.seed)
    path = path_in(folder)
    assert np.array_equal(path.weights[-1], flat(saved[name] for name, _ in first.named_parameters()))
    assert np.array_equal(path.weights[0], flat(first.parameters()))


def test_checkpoints_do_not_change_the_losses(folder, tmp_path):
    with_them = trained(folder, STEPS, "checkpoints=7")
    assert np.allclose(losses(with_them), losses(trained(tmp_path, STEPS)), rtol=1e-6)


def test_no_checkpoints_are_kept_by_default(folder):
    assert artifacts(trained(folder, STEPS)) == ["model.safetensors"]
    with pytest.raises(StoreError, match="kept no checkpoints"):
        path_in(folder)


def test_more_checkpoints_than_steps_keep_every_step_once(folder):
    trained(folder, "budget.steps=3", "checkpoints=100")
    assert path_in(folder).step.tolist() == [0, 1, 2, 3]


def test_checkpoints_do_not_count_as_training_time(folder, monkeypatch):
    from engine.pytorch.training.checkpoints import Checkpoints

    keep = Checkpoints._keep
    monkeypatch.setattr(Checkpoints, "_keep", lambda *args: (time.sleep(0.3), keep(*args)))
    events = trained(folder, "budget.steps=4", "checkpoints=5")
    assert [e for e in events if isinstance(e, Steps)][-1].train_s[1] < 1.0  # five copies take 1.5 s


def test_a_diverged_run_keeps_its_checkpoints(folder):
    seen = []
    config = with_overrides(BASE, ["budget.steps=400", "checkpoints=50", "optimizer.name=sgd", "optimizer.lr=1e5"])
    with pytest.raises(Diverged):
        seen.extend(train(config, folder))
    path = path_in(folder)
    assert path.step[0] == 0
    assert np.isfinite(path.weights).all()


def test_a_cancelled_run_keeps_its_checkpoints(store):
    run_id = store.create(with_overrides(BASE, [*NO_STEPS, "budget.seconds=60", "checkpoints=200"]))
    threading.Timer(1.0, ask_to_stop, (store.folder(run_id), StopRequest())).start()
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert run.status == "cancelled"
    assert [artifact.name for artifact in run.all(Artifact)] == ["trajectory.safetensors"]
    assert weight_path.read(store.runs, run_id).step[-1] == len(run.steps)


def test_the_file_is_readable_by_its_owner_only(folder):
    trained(folder, STEPS, "checkpoints=2")
    assert (folder / weight_path.TRAJECTORY_FILE).stat().st_mode & 0o777 == 0o600


def test_too_many_checkpoints_are_refused_before_the_run():
    config = with_overrides(PRESETS["mnist-mlp-large"].config, ["model.hidden=[2048,1024]", "checkpoints=200"])
    with pytest.raises(ConfigError, match=r"checkpoints=200 of 3\.72 M parameters take 2\.77 GiB") as refused:
        planner.plan(config)
    most = int(refused.value.fix.split()[-1].rstrip("."))
    planner.plan(config.model_copy(update={"checkpoints": most}))


def test_a_damaged_weight_path_is_reported_in_a_sentence(folder):
    trained(folder, STEPS, "checkpoints=2")
    file = folder / weight_path.TRAJECTORY_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"trajectory.safetensors of run \w+ cannot be read"):
        path_in(folder)


@pytest.mark.parametrize("run_id", ["../secret", "0" * 16, ""])
def test_a_weight_path_is_found_only_by_a_run_id(store, run_id):
    with pytest.raises(StoreError, match="There is no run"):
        weight_path.read(store.runs, run_id)
