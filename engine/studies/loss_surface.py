"""The loss surface around the weight paths of runs: its plane, and the losses computed on it.

The loss of a network with P weights is a function in P dimensions. The surface is a plane in it: the plane in which the
checkpoints vary most (principal components, as in Lorch 2016 and Li et al. 2018, arXiv:1712.09913), or one of two random,
filter-normalised directions (Li et al., section 4). Structure outside the plane is not shown; `Surface.explained` and the
losses of `PathOnSurface` show how much that is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import models
from engine.common import units
from engine.common.errors import ConfigError, LimitReached, StoreError
from engine.config.parsing import overrides_from
from engine.config.run import RunConfig
from engine.config.tasks import Landscape
from engine.config.training import Budget
from engine.data import loading
from engine.events.studies import Surface
from engine.store import weight_path
from engine.store.run import Run
from engine.store.weight_path import WeightPath

SURFACE_FILE = "landscape.safetensors"
MOST_BYTES = 2**30  # of all paths together
_USUAL_FLOPS = 4e11  # by default, at most; a core reached 10 (LeNet) to 40 GFLOP/s (MLP)
_BLOCK = 2**16  # weights per block: paths stay float32, sums are float64
_FLATTEST = 0.1  # smallest ratio of the plane's sides; a thinner plane would show a wrong shape
_SAME = 1e-12  # share of the largest variance below which there is no further direction


# --- the plan -----------------------------------------------------------------------------------------------------


def config_for(runs: Sequence[Run], **choices: Any) -> RunConfig:
    """The configuration that computes the surface of some runs; `choices` are fields of config.Landscape.

    By default, the grid is as fine as about ten seconds on one CPU core allow.

    Raises:
        ConfigError: there is no run, the runs differ in model or data set, or one kept no checkpoints.
    """
    if not runs:
        raise ConfigError("A loss surface needs at least one run.", fix="Choose one that kept checkpoints.")
    check_alike({run.run_id: run.config for run in runs})
    for run in runs:
        if not (run.folder / weight_path.TRAJECTORY_FILE).exists():
            raise ConfigError(f"Run {run.run_id} kept no checkpoints.", fix="Run it again with checkpoints=50, or so.")
    first = runs[0].config
    choices = _affordable(first) | choices
    return RunConfig(
        task="landscape",
        model=first.model,
        data=first.data,
        source=first.source,
        batch_size=first.batch_size,
        grad_accumulation=first.grad_accumulation,
        device=first.device,
        threads=first.threads,
        budget=Budget(steps=1),
        landscape=Landscape(runs=tuple(run.run_id for run in runs), **choices),
    )


def _affordable(config: RunConfig) -> dict[str, int]:
    """The finest grid and the most samples within `_USUAL_FLOPS`."""
    data = loading.facts(config.data, config.source)
    per_example = models.forward_flops_per_example(config.model, data)
    defaults = Landscape()
    for resolution, examples in ((defaults.resolution, defaults.examples), (41, 512), (31, 512), (31, 256), (21, 256)):
        if resolution**2 * examples * per_example <= _USUAL_FLOPS:
            break
    return {"resolution": resolution, "examples": examples}


def check_alike(configs: Mapping[str, RunConfig]) -> None:
    """Check that runs have the same model and data, so that they share a loss surface. `configs` is by run id.

    Raises:
        ConfigError: one differs from the first one; it names the first field.
    """
    (first_id, first), *others = configs.items()
    for run_id, config in others:
        same = first.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
        if differing := overrides_from(first, same):
            field = differing[0].partition("=")[0]
            raise ConfigError(
                f"Runs {first_id} and {run_id} differ in {field}, so they have no common loss surface.",
                fix="Choose runs of the same model on the same data.",
            )


def read_paths(runs: Path, ids: Sequence[str]) -> dict[str, WeightPath]:
    """The weight paths of runs of one store, by run id.

    Raises:
        StoreError: one is missing, or they differ in the number of weights.
        LimitReached: together they are too large.
    """
    paths = {run_id: weight_path.read(runs, run_id) for run_id in ids}
    if len({path.weights.shape[1] for path in paths.values()}) > 1:
        raise StoreError("The runs' checkpoints differ in the number of weights.", fix="Run them again.")
    size = sum(path.weights.nbytes for path in paths.values())
    if size > MOST_BYTES:
        raise LimitReached(
            f"The checkpoints of {len(paths)} runs have {units.nbytes(size)}, more than the limit of {units.nbytes(MOST_BYTES)}.",
            fix="Choose fewer runs, or run them with fewer checkpoints.",
        )
    return paths


# --- the plane ----------------------------------------------------------------------------------------------------

Weights = Sequence[np.ndarray]  # of each run (k, P) float32


@dataclass(frozen=True, slots=True)
class Plane:
    """center + x * axes[0] + y * axes[1], in the space of all weights."""

    center: np.ndarray  # (P,) float64
    axes: np.ndarray  # (2, P) float64


def pca_plane(weights: Weights, *, seed: int = 0) -> Plane:
    """The plane through the mean of all checkpoints, along the two orthonormal directions of their largest variance.

    It uses the eigenvectors of the (K, K) matrix of inner products, because K checkpoints are few and P weights are many.
    Where the checkpoints lie on a line or in a point, random directions replace the missing ones. The signs are such that
    the first run moves to the right and up.
    """
    count, size = sum(map(len, weights)), weights[0].shape[1]
    center = sum((w.sum(0, dtype=np.float64) for w in weights), np.zeros(size)) / count
    gram = np.zeros((count, count))
    for part in _parts(size):
        a = _centred(weights, center, part)
        gram += a @ a.T
    values, vectors = np.linalg.eigh(gram)
    axes = np.zeros((2, size))
    for row, (value, u) in enumerate(zip(values[::-1][:2], vectors.T[::-1][:2], strict=False)):
        if value > _SAME * max(values[-1], np.finfo(float).tiny):
            for part in _parts(size):
                axes[row, part] = u @ _centred(weights, center, part)
    random = np.random.default_rng(seed)
    for row in range(2):
        while not (norm := np.linalg.norm(axes[row])):
            axes[row] = random.standard_normal(size)
            axes[row] -= axes[:row].T @ (axes[:row] @ axes[row])
        axes[row] /= norm
        moved = (weights[0][-1].astype(np.float64) - weights[0][0]) @ axes[row]
        axes[row] *= -1 if moved < 0 else 1
    return Plane(center, axes)


def random_plane(point: np.ndarray, shapes: Sequence[tuple[int, ...]], *, seed: int = 0) -> Plane:
    """The plane through a point (P,) of weights of these shapes, along two random, filter-normalised directions.

    Each row of a matrix and each filter of a convolution has the norm of the point's own; the directions
    have zeros for biases and scales (Li et al.).
    """
    random = np.random.default_rng(seed)
    center, axes, begin = point.astype(np.float64), np.zeros((2, len(point))), 0
    for shape in shapes:
        end = begin + int(np.prod(shape))
        if len(shape) > 1:
            own = center[begin:end].reshape(shape[0], -1)
            for axis in axes:
                d = random.standard_normal(own.shape)
                d *= np.linalg.norm(own, axis=1, keepdims=True) / np.linalg.norm(d, axis=1, keepdims=True)
                axis[begin:end] = d.ravel()
        begin = end
    return Plane(center, axes)


def project(plane: Plane, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates (k, 2) of the points on the plane that are nearest to weights (k, P), and the distances (k,)."""
    along, squares = np.zeros((len(weights), 2)), np.zeros(len(weights))
    for part in _parts(weights.shape[1]):
        a = weights[:, part] - plane.center[part]
        along += a @ plane.axes[:, part].T
        squares += (a * a).sum(1)
    xy = np.linalg.solve(plane.axes @ plane.axes.T, along.T).T
    return xy, np.sqrt(np.maximum(squares - (along * xy).sum(1), 0.0))


def explained(weights: Weights, plane: Plane) -> tuple[float, float]:
    """Share of the checkpoints' variance along each axis; for the second, only that orthogonal to the first."""
    first = plane.axes[0] / np.linalg.norm(plane.axes[0])
    second = plane.axes[1] - first * (first @ plane.axes[1])
    basis = np.stack([first, second / np.linalg.norm(second)])
    count, size = sum(map(len, weights)), weights[0].shape[1]
    mean = sum((w.sum(0, dtype=np.float64) for w in weights), np.zeros(size)) / count
    along, total = np.zeros((count, 2)), 0.0
    for part in _parts(size):
        a = _centred(weights, mean, part)
        along += a @ basis[:, part].T
        total += float((a * a).sum())
    x, y = (along**2).sum(0) / total if total else (0.0, 0.0)
    return float(x), float(y)


def grid(paths: Sequence[np.ndarray], choices: Landscape) -> tuple[np.ndarray, np.ndarray]:
    """The x (n,) and y (n,) of the surface, around all paths (k, 2) with the margin.

    A random plane, whose directions are as long as the weights, has at least -1..1.
    """
    points = np.concatenate(paths)
    if choices.plane == "random":
        points = np.concatenate([points, [[-1.0, -1.0], [1.0, 1.0]]])
    low, high = points.min(0), points.max(0)
    span = high - low
    side = np.maximum(span, _FLATTEST * span.max() or 1.0) * (1 + 2 * choices.margin)
    middle = (low + high) / 2
    x, y = (np.linspace(m - s / 2, m + s / 2, choices.resolution) for m, s in zip(middle, side, strict=True))
    return x, y


def _parts(size: int) -> Iterator[slice]:
    return (slice(begin, min(size, begin + _BLOCK)) for begin in range(0, size, _BLOCK))


def _centred(weights: Weights, center: np.ndarray, part: slice) -> np.ndarray:
    return np.concatenate([w[:, part] for w in weights]) - center[part]


# --- the result ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PathOnSurface:
    """A run's checkpoints and their projections on the plane."""

    xy: np.ndarray  # (k, 2)
    step: np.ndarray  # (k,)
    train_s: np.ndarray  # (k,)
    loss: np.ndarray  # (k,) at the checkpoint itself, on the surface's samples
    plane_loss: np.ndarray  # (k,) at its projection
    distance: np.ndarray  # (k,) between the two, as L2 norm of the weights' difference


@dataclass(frozen=True, slots=True)
class SurfaceData:
    """The loss on a grid of the plane, and the paths of the runs. Losses can be NaN or infinite."""

    x: np.ndarray  # (nx,)
    y: np.ndarray  # (ny,)
    loss: np.ndarray  # (ny, nx)
    paths: dict[str, PathOnSurface]  # by run id, in the order of the configuration
    event: Surface

    @property
    def explained(self) -> tuple[float, float]:
        """Share of the checkpoints' variance along each axis."""
        return self.event.explained


_COLUMNS = ("xy", "step", "train_s", "loss", "plane_loss", "distance")


def as_tensors(
    x: np.ndarray, y: np.ndarray, loss: np.ndarray, paths: Mapping[str, PathOnSurface]
) -> dict[str, np.ndarray]:
    """The tensors of `landscape.safetensors`."""
    columns = {f"path.{run_id}.{c}": getattr(path, c) for run_id, path in paths.items() for c in _COLUMNS}
    return {"x": x, "y": y, "loss": loss} | columns


def read_surface(run: Run) -> SurfaceData:
    """The surface that a finished run has computed.

    Raises:
        StoreError: it is not there, or damaged.
    """
    if (surface := run.latest(Surface)) is None:
        raise StoreError(f"Run {run.run_id} has computed no loss surface (yet).")
    tensors = weight_path.load_tensors(run.folder / SURFACE_FILE)
    return surface_of(tensors, surface, run.config.landscape.runs, run.run_id)


def surface_of(tensors: Mapping[str, np.ndarray], event: Surface, run_ids: Sequence[str], run_id: str) -> SurfaceData:
    """The surface in the tensors of run `run_id`, with the paths of `run_ids`.

    Raises:
        StoreError: a tensor is missing or has a wrong shape.
    """
    try:
        x, y, loss = tensors["x"], tensors["y"], tensors["loss"]
        paths = {path: PathOnSurface(*(tensors[f"path.{path}.{column}"] for column in _COLUMNS)) for path in run_ids}
    except KeyError as error:
        raise StoreError(f"{SURFACE_FILE} of run {run_id} lacks {error}.", fix="Run it again.") from None
    if loss.shape != (len(y), len(x)) or any(path.xy.shape != (len(path.step), 2) for path in paths.values()):
        raise StoreError(f"{SURFACE_FILE} of run {run_id} does not hold a surface.", fix="Run it again.")
    return SurfaceData(x, y, loss, paths, event)
