"""The path of a run through weight space: copies of all weights, kept during training.

`trajectory.safetensors` in the run's folder holds `step` (k,), `train_s` (k,) and `weights` (k, P) in float32, with the
parameters in the order of `model.parameters()`. This module does not need torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from engine.common import units
from engine.common.errors import ConfigError, StoreError
from engine.events.lifecycle import Artifact

TRAJECTORY_FILE = "trajectory.safetensors"
MAX_BYTES = 512 * 2**20  # of all copies of one run: they stay in memory until it ends
_FLOAT_BYTES = 4
_RUN_ID = re.compile(r"[0-9a-f]{16}")  # the form of the store's ids


@dataclass(frozen=True, slots=True)
class WeightPath:
    """All weights of a run at k of its steps, in order."""

    step: np.ndarray  # (k,) int64: optimizer steps done
    train_s: np.ndarray  # (k,) float64: training time then, s
    weights: np.ndarray  # (k, P) float32


def check_size(checkpoints: int, parameters: int) -> int:
    """Bytes of `checkpoints` copies of `parameters` weights.

    Raises:
        ConfigError: they are more than MAX_BYTES.
    """
    size = checkpoints * parameters * _FLOAT_BYTES
    if size > MAX_BYTES:
        most = MAX_BYTES // (parameters * _FLOAT_BYTES)
        raise ConfigError(
            f"checkpoints={checkpoints} of {units.count(parameters)} parameters take {units.nbytes(size)}; a run can keep "
            f"{units.nbytes(MAX_BYTES)} of them in memory.",
            fix=f"Keep at most {most}." if most else "Choose a smaller model, or checkpoints=0.",
        )
    return size


def save_tensors(folder: Path, name: str, tensors: Mapping[str, np.ndarray]) -> Artifact:
    """Write arrays to `folder`/`name`, all or nothing, readable by the owner only.

    Raises:
        OSError: the file cannot be written.
    """
    path, draft = folder / name, folder / f".{name}"
    try:
        save_file({key: np.ascontiguousarray(array) for key, array in tensors.items()}, draft)
        draft.chmod(0o600)
        draft.replace(path)
    except SafetensorError as error:
        draft.unlink(missing_ok=True)
        raise OSError(str(error)) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Artifact(name=name, size_bytes=path.stat().st_size, sha256=digest)


def load_tensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file of `save_tensors`.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except FileNotFoundError:
        raise StoreError(f"Run {path.parent.name} has no {path.name}.") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"{path.name} of run {path.parent.name} cannot be read: {error}.", fix="Run it again."
        ) from None


def save(folder: Path, path: WeightPath) -> Artifact:
    """Write the weight path of a run into its folder."""
    tensors = {"step": path.step, "train_s": path.train_s, "weights": path.weights}
    return save_tensors(folder, TRAJECTORY_FILE, tensors)


def read(runs: Path, run_id: str) -> WeightPath:
    """The weight path of a run in the store's folder `runs`.

    Raises:
        StoreError: there is no such run, it kept no checkpoints, or the file is damaged.
    """
    if not _RUN_ID.fullmatch(run_id) or not (runs / run_id).is_dir():
        raise StoreError(f"There is no run {run_id!r} in this store.")
    if not (runs / run_id / TRAJECTORY_FILE).exists():
        raise StoreError(
            f"Run {run_id} kept no checkpoints of its weights.", fix="Run it again with checkpoints=50, for example."
        )
    tensors = load_tensors(runs / run_id / TRAJECTORY_FILE)
    try:
        path = WeightPath(tensors["step"], tensors["train_s"], tensors["weights"])
        whole = path.weights.ndim == 2 and path.step.shape == path.train_s.shape == path.weights.shape[:1]
    except KeyError:
        whole = False
    if not whole or not len(path.step) or path.weights.dtype != np.float32:
        raise StoreError(f"{TRAJECTORY_FILE} of run {run_id} does not hold a weight path.", fix="Run it again.")
    return path
