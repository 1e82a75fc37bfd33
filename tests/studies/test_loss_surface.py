"""The loss surface: its plane, the loss on it, the weight paths, and what is refused."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.common.errors import ConfigError, StoreError
from engine.config.parsing import parse_config_json, with_overrides
from engine.config.presets import PRESETS
from engine.config.summary import describe
from engine.config.tasks import Landscape
from engine.data import loading
from engine.events.catalog import EVENT
from engine.events.lifecycle import Progress
from engine.events.studies import Surface
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.runtime import worker
from engine.store import weight_path
from engine.store.run import Run
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.studies import loss_surface

BASE = with_overrides(
    PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=60", "checkpoints=7", "model.hidden=[16]"]
)


def trained(store, *assignments) -> Run:
    run_id = store.create(with_overrides(BASE, assignments))
    worker.run(store.folder(run_id))
    return store.run(run_id)


def drawn(store, runs, **choices) -> Run:
    run_id = store.create(loss_surface.config_for(runs, **({"resolution": 11, "examples": 200} | choices)))
    worker.run(store.folder(run_id))
    return store.run(run_id)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Two paths and their surface: a store, the runs, and the run that drew it."""
    from engine.store.store import Store

    store = Store(tmp_path_factory.mktemp("surfaces"))
    runs = [trained(store), trained(store, "optimizer.name=sgd", "optimizer.lr=0.05", "checkpoints=5")]
    return store, runs, drawn(store, runs)


def net_loss(config, weights, split="train", examples=200):
    """Mean loss of a net with these weights, computed the plain way."""
    arrays = loading.load(config.data, config.source)
    data = tensors(arrays, config.model)[split == "test"]
    model = models.build(config.model, arrays.facts, seed=0)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(weights)), model.parameters())
    index = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(data))[:examples]))
    with torch.no_grad():
        return F.cross_entropy(model(data.x[index]), data.y[index]).item()


def random_paths(*counts, size=500):
    random = np.random.default_rng(1)
    return [random.standard_normal((k, size)).astype(np.float32).cumsum(0) for k in counts]


# --- the plane -----------------------------------------------------------------------------------------------------


def test_the_axes_are_the_principal_components_of_all_checkpoints():
    weights = random_paths(9, 5)
    plane = loss_surface.pca_plane(weights)
    together = np.concatenate(weights).astype(np.float64)
    _, values, directions = np.linalg.svd(together - together.mean(0), full_matrices=False)
    assert np.allclose(np.abs(plane.axes @ directions[:2].T), np.eye(2), atol=1e-9)
    assert np.allclose(loss_surface.explained(weights, plane), values[:2] ** 2 / (values**2).sum())


def test_blocks_of_weights_add_up(monkeypatch):
    weights = random_paths(6, 4)
    whole = loss_surface.pca_plane(weights)
    monkeypatch.setattr(loss_surface, "_BLOCK", 7)
    assert np.allclose(loss_surface.pca_plane(weights).axes, whole.axes, atol=1e-9)


@pytest.mark.parametrize("weights", [random_paths(1), random_paths(2), [np.ones((3, 500), np.float32)]])
def test_missing_directions_are_replaced_by_random_ones(weights):
    plane = loss_surface.pca_plane(weights)
    assert np.allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-9)
    assert loss_surface.explained(weights, plane)[1] < 1e-9


def test_a_projection_is_the_nearest_point_of_the_plane():
    (weights,) = random_paths(8)
    plane = loss_surface.random_plane(weights[-1], [(20, 20), (100,)])
    xy, distance = loss_surface.project(plane, weights)
    best, *_ = np.linalg.lstsq(plane.axes.T, (weights - plane.center).T, rcond=None)
    assert np.allclose(xy, best.T)
    assert np.allclose(distance, np.linalg.norm(weights - plane.center - xy @ plane.axes, axis=1), atol=1e-5)


def test_random_directions_have_the_norm_of_each_row_and_zeros_for_biases():
    point = np.random.default_rng(0).standard_normal(3 * 8 + 3).astype(np.float32)
    plane = loss_surface.random_plane(point, [(3, 4, 2), (3,)])
    own = np.linalg.norm(point[:24].reshape(3, 8), axis=1)
    for axis in plane.axes:
        assert np.allclose(np.linalg.norm(axis[:24].reshape(3, 8), axis=1), own)
        assert not axis[24:].any()


def test_the_grid_contains_all_paths_and_the_margin():
    xy = np.array([[0.0, 0.0], [10.0, 4.0]])
    x, y = loss_surface.grid([xy], Landscape(resolution=11, margin=0.5))
    assert (x[0], x[-1], y[0], y[-1]) == (-5, 15, -2, 6)


# --- the surface ---------------------------------------------------------------------------------------------------


def test_the_loss_along_a_path_is_that_of_its_checkpoints(shared):
    store, runs, drawn_run = shared
    data = loss_surface.read_surface(drawn_run)
    for run in runs:
        path = data.paths[run.run_id]
        kept = weight_path.read(store.runs, run.run_id)
        assert path.step.tolist() == kept.step.tolist()
        assert np.allclose(path.loss, [net_loss(run.config, w) for w in kept.weights], rtol=1e-5)


def test_the_grid_has_the_networks_loss_at_its_points(shared):
    store, runs, drawn_run = shared
    data = loss_surface.read_surface(drawn_run)
    plane = loss_surface.pca_plane([weight_path.read(store.runs, run.run_id).weights for run in runs])
    for row, column in ((0, 0), (3, 8), (10, 5)):
        weights = plane.center + data.x[column] * plane.axes[0] + data.y[row] * plane.axes[1]
        assert data.loss[row, column] == pytest.approx(net_loss(BASE, weights.astype(np.float32)), rel=1e-5)


def test_checkpoints_on_the_plane_have_the_planes_loss(store):
    run = trained(store, "checkpoints=3")  # three points lie on one plane
    path = loss_surface.read_surface(drawn(store, [run])).paths[run.run_id]
    assert np.allclose(path.distance, 0, atol=1e-4)
    assert np.allclose(path.plane_loss, path.loss, rtol=1e-5)


def test_the_run_records_its_surface(shared):
    _, _, drawn_run = shared
    said, data = drawn_run.latest(Surface), loss_surface.read_surface(drawn_run)
    assert (drawn_run.status, drawn_run.progress()) == ("finished", 1.0)
    assert 0.5 < sum(said.explained) <= 1
    assert (said.checkpoints, said.examples, said.resolution, said.num_not_finite) == (12, 200, 11, 0)
    assert (said.loss_min, said.loss_max) == (data.loss.min(), data.loss.max())
    gaps = np.concatenate([np.abs(path.loss - path.plane_loss) for path in data.paths.values()])
    assert said.plane_gap == pytest.approx(np.median(gaps))
    assert (drawn_run.folder / loss_surface.SURFACE_FILE).stat().st_mode & 0o777 == 0o600


def test_the_surface_can_use_the_test_samples(shared):
    store, runs, _ = shared
    path = loss_surface.read_surface(drawn(store, runs[:1], split="test")).paths[runs[0].run_id]
    kept = weight_path.read(store.runs, runs[0].run_id)
    assert path.loss[-1] == pytest.approx(net_loss(BASE, kept.weights[-1], "test"), rel=1e-5)


def test_a_random_plane_goes_through_the_last_weights_of_the_first_run(shared):
    store, runs, _ = shared
    drawn_run = drawn(store, runs, plane="random")
    data = loss_surface.read_surface(drawn_run)
    path = data.paths[runs[0].run_id]
    assert np.allclose(path.xy[-1], 0, atol=1e-6)
    assert path.plane_loss[-1] == pytest.approx(path.loss[-1], rel=1e-5)
    assert sum(drawn_run.latest(Surface).explained) < 0.2


def test_a_text_model_has_a_surface_too(store):
    run = trained(
        store, "data=text", "model.family=rnn", "model.hidden_size=8", "source.seq_len=16", "budget.steps=5", "checkpoints=3"
    )  # fmt: skip
    assert np.isfinite(loss_surface.read_surface(drawn(store, [run], examples=32)).loss).all()


# --- the run -------------------------------------------------------------------------------------------------------


def test_it_can_be_cancelled_half_way(shared):
    store, runs, _ = shared
    config = loss_surface.config_for(runs, resolution=101, examples=1_400)
    run_id = store.create(config)
    folder = store.folder(run_id)
    working = threading.Thread(target=worker.run, args=(folder,))
    working.start()
    run = store.run(run_id)
    until = time.monotonic() + 30
    while run.latest(Progress) is None and time.monotonic() < until:
        time.sleep(0.05)
        run.refresh()
    assert 0 < run.progress() < 1
    ask_to_stop(folder, StopRequest())
    working.join(timeout=5)
    assert store.run(run_id).status == "cancelled"
    assert not (folder / loss_surface.SURFACE_FILE).exists()


def test_its_config_survives_json_and_the_command_line():
    ids = ["landscape.runs=[1234567890123456,12345678901234e5]", "task=landscape"]
    config = with_overrides(BASE, ids)
    assert config.landscape.runs == ("1234567890123456", "12345678901234e5")
    assert parse_config_json(config.model_dump_json()) == config
    assert describe(config) == "loss surface of 2 runs · MLP 16 · digits · 41x41"


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "field"),
    [("model.hidden=[17]", r"model\.hidden"), ("data=mnist1d", "data"), ("model.family=rnn", r"model\.family")],
)
def test_runs_of_other_models_or_data_are_refused_by_the_differing_field(assignment, field):
    other = with_overrides(BASE, [assignment])
    with pytest.raises(ConfigError, match=rf"differ in {field}, so they have no common loss surface"):
        loss_surface.check_alike({"a" * 16: BASE, "b" * 16: other})


def test_runs_can_differ_in_everything_but_model_and_data():
    loss_surface.check_alike(
        {"a" * 16: BASE, "b" * 16: with_overrides(BASE, ["optimizer.lr=0.5", "batch_size=8", "seed=3"])}
    )


def test_a_run_without_checkpoints_is_refused(store):
    run = trained(store, "checkpoints=0", "budget.steps=2")
    with pytest.raises(ConfigError, match="kept no checkpoints"):
        loss_surface.config_for([run])


def test_the_task_refuses_invalid_settings(shared):
    store, runs, _ = shared
    wrong = loss_surface.config_for(runs).model_copy(update={"model": with_overrides(BASE, ["model.hidden=[9]"]).model})
    run_id = store.create(wrong)
    worker.run(store.folder(run_id))
    assert "differ in model.hidden" in store.run(run_id).why()


@pytest.mark.parametrize("run_id", ["../../etc", "A" * 16, "0" * 15, "0" * 16 + "\n"])
def test_an_id_is_hex_and_nothing_else(run_id):
    with pytest.raises(ValueError, match="runs"):
        Landscape(runs=(run_id,))


def test_a_surface_without_runs_is_refused():
    with pytest.raises(ConfigError, match=r"landscape\.runs is missing"):
        with_overrides(BASE, ["task=landscape"])


def test_a_missing_run_is_named(shared):
    store, runs, _ = shared
    config = loss_surface.config_for(runs)
    gone = config.model_copy(update={"landscape": Landscape(runs=("f" * 16,))})
    run_id = store.create(gone)
    worker.run(store.folder(run_id))
    assert "There is no run 'ffffffffffffffff'" in store.run(run_id).why()


def test_a_damaged_surface_is_an_error_in_a_sentence(store):
    drawn_run = drawn(store, [trained(store, "budget.steps=3", "checkpoints=2")])
    file = drawn_run.folder / loss_surface.SURFACE_FILE
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(StoreError, match="cannot be read"):
        loss_surface.read_surface(drawn_run)


def test_events_of_a_surface_survive_json():
    surface = Surface(
        plane="pca", explained=(0.5, 0.2), x=(-1, 1), y=(-1, 1), resolution=11, loss_min=0.1, loss_max=float("inf"),
        num_not_finite=1, plane_gap=None, checkpoints=3, parameters=9, split="train", examples=16, seconds=1.0,
    )  # fmt: skip
    assert EVENT.validate_json(surface.model_dump_json()) == surface
