"""The loss-surface task: it computes the mean loss of a model on a plane of weights, and along the paths of runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.common.errors import StoreError
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Progress, Started
from engine.events.studies import Surface
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Batch, Examples, tensors
from engine.pytorch.loading import load_dataset
from engine.pytorch.setup import Clock, environment, set_up_arithmetic, torch_device
from engine.pytorch.training.net import cross_entropy
from engine.store import weight_path
from engine.store.run import read_config
from engine.studies.loss_surface import (
    SURFACE_FILE,
    PathOnSurface,
    Plane,
    as_tensors,
    check_alike,
    explained,
    grid,
    pca_plane,
    project,
    random_plane,
    read_paths,
)

_PROGRESS_EVERY_S = 0.2  # a run can be stopped at each event
_EXAMPLES_SEED = 0


def landscape(config: RunConfig, folder: Path, *, clock: Clock = time.perf_counter) -> Generator[AnyEvent, None, None]:
    """Compute the loss in float32 around the checkpoints of `config.landscape.runs` (Li et al. 2018, arXiv:1712.09913).

    The result is written to `folder`/landscape.safetensors. The folders of the runs must be beside `folder`. `clock`
    gives seconds.

    Raises:
        ConfigError: A run has another model or data set than this configuration.
        DeviceError: PyTorch does not see the device.
        StoreError: A run has no checkpoints, or they have another number of weights.
    """
    begun, choices = clock(), config.landscape
    device = torch_device(config)
    set_up_arithmetic(config)
    trajectories = read_paths(folder.parent, choices.runs)
    check_alike({folder.name: config} | {i: read_config(folder.parent / i) for i in choices.runs})
    arrays = yield from load_dataset(config, clock)
    plan = planner.plan(config, data=arrays.facts)
    splits = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=config.seed, device=device)
    loss = _Loss(model, _chosen(splits[choices.split == "test"], choices.examples, plan.evaluation_batch, device))
    if any(path.weights.shape[1] != len(loss.weights) for path in trajectories.values()):
        raise StoreError(
            f"The checkpoints are not of a model with {len(loss.weights):,} weights.", fix="Run them again."
        )
    origin = clock()
    yield Started(
        at=time.time(),
        parameters=plan.parameters,
        train_flops_per_example=plan.train_flops_per_example,
        train_examples=len(splits[0]),
        test_examples=len(splits[1]),
        total_steps=None,
        setup_s=origin - begun,
        environment=environment(device),
    )
    weights = [path.weights for path in trajectories.values()]
    if choices.plane == "pca":
        plane = pca_plane(weights)
    else:
        plane = random_plane(weights[0][-1], [tuple(p.shape) for p in model.parameters()])
    projections = {run_id: project(plane, path.weights) for run_id, path in trajectories.items()}
    x, y = grid([xy for xy, _ in projections.values()], choices)
    progress = _Progress(len(x) * len(y) + 2 * sum(map(len, weights)), clock)

    on_plane = _OnPlane(plane, loss)
    values = np.empty((len(y), len(x)))
    for at in np.ndindex(values.shape):
        values[at] = on_plane(float(x[at[1]]), float(y[at[0]]))
        yield from progress("Loss surface")
    paths = {}
    for run_id, path in trajectories.items():
        xy, distance = projections[run_id]
        own, flat = np.empty(len(xy)), np.empty(len(xy))
        for i, (at_x, at_y) in enumerate(xy.tolist()):
            own[i] = loss(torch.from_numpy(path.weights[i]))
            flat[i] = on_plane(at_x, at_y)
            yield from progress("Loss along the paths", 2)
        paths[run_id] = PathOnSurface(xy, path.step, path.train_s, own, flat, distance)
    yield weight_path.save_tensors(folder, SURFACE_FILE, as_tensors(x, y, values, paths))
    finite = values[np.isfinite(values)]
    gaps = np.concatenate([np.abs(path.loss - path.plane_loss) for path in paths.values()])
    yield Surface(
        plane=choices.plane,
        explained=explained(weights, plane),
        x=(x[0], x[-1]),
        y=(y[0], y[-1]),
        resolution=choices.resolution,
        loss_min=float(finite.min()) if len(finite) else math.nan,
        loss_max=float(finite.max()) if len(finite) else math.nan,
        num_not_finite=values.size - len(finite),
        plane_gap=float(np.median(gaps)) if np.isfinite(gaps).all() else None,
        checkpoints=len(gaps),
        parameters=len(loss.weights),
        split=choices.split,
        examples=loss.num_examples,
        seconds=clock() - origin,
    )


def _chosen(split: Examples, count: int, batch: int, device: torch.device) -> list[Batch]:
    """Batches of at most `count` examples, chosen at random; they are the same for all points and all runs."""
    order = np.random.default_rng(_EXAMPLES_SEED).permutation(len(split))[:count]
    index = torch.from_numpy(np.sort(order)) * (split.seq_len if split.y is None else 1)
    taken = [split.take(part) for part in index.split(batch)]
    return [(x.to(device), y.to(device)) for x, y in taken]


class _Loss:
    """The model's mean loss over some examples, as a function of all its weights (P,)."""

    def __init__(self, model: nn.Module, examples: list[Batch]) -> None:
        self._model, self._examples = model, examples
        self.num_examples = sum(len(y) for _, y in examples)
        self._targets = sum(y.numel() for _, y in examples)
        params = list(model.parameters())
        self.weights = torch.cat([p.detach().reshape(-1) for p in params])
        begin = 0
        for p in params:  # each parameter becomes a view of one vector, so that setting all weights is one copy
            p.data = self.weights[begin : begin + p.numel()].view(p.shape)
            begin += p.numel()

    @torch.inference_mode()
    def __call__(self, weights: Tensor) -> float:
        self.weights.copy_(weights)
        total = torch.zeros((), device=self.weights.device, dtype=torch.float64)
        for x, y in self._examples:
            total += cross_entropy(self._model(x), y, reduction="sum")
        return total.item() / self._targets


class _OnPlane:
    """The mean loss as a function of two coordinates on the plane."""

    def __init__(self, plane: Plane, loss: _Loss) -> None:
        device = loss.weights.device
        self._loss = loss
        self._center, self._x, self._y = (
            torch.from_numpy(v.astype(np.float32)).to(device) for v in (plane.center, *plane.axes)
        )

    def __call__(self, x: float, y: float) -> float:
        return self._loss(self._center + x * self._x + y * self._y)


class _Progress:
    """Yields a Progress event from time to time, and at the end."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._total, self._clock = total, clock
        self._done, self._reported = 0, clock()

    def __call__(self, text: str, count: int = 1) -> Iterator[Progress]:
        self._done += count
        now = self._clock()
        if now - self._reported >= _PROGRESS_EVERY_S or self._done == self._total:
            self._reported = now
            yield Progress(text=text, done=self._done, total=self._total)
