"""The way a run took through the space of its weights: copies of all of them, kept as it trained.

`trajectory.safetensors` in the run's folder holds `step` (k,), `train_s` (k,) and `weights` (k, P) in float32, the
parameters in the model's own order. Nothing here knows torch.
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
MAX_BYTES = 512 * 2**20  # of one run's copies: they stay in memory until it ends
_FLOAT_BYTES = 4
_RUN_ID = re.compile(r"[0-9a-f]{16}")  # as the store makes them


@dataclass(frozen=True, slots=True)
class WeightPath:
    """All weights of a run at some of its steps, in order."""

    step: np.ndarray  # (k,) int64: after that many steps
    train_s: np.ndarray  # (k,) float64: the training clock then
    weights: np.ndarray  # (k, P) float32


def check_size(checkpoints: int, parameters: int) -> int:
    """Bytes of that many copies; raises ConfigError where they are more than a run may keep."""
    size = checkpoints * parameters * _FLOAT_BYTES
    if size > MAX_BYTES:
        most = MAX_BYTES // (parameters * _FLOAT_BYTES)
        raise ConfigError(
            f"checkpoints={checkpoints} of {units.count(parameters)} parameters take {units.nbytes(size)}; a run may keep "
            f"{units.nbytes(MAX_BYTES)} of them in memory.",
            fix=f"Keep at most {most}." if most else "Choose a smaller model, or checkpoints=0.",
        )
    return size


def save_tensors(folder: Path, name: str, tensors: Mapping[str, np.ndarray]) -> Artifact:
    """Arrays under a name that is there whole or not at all, readable by the owner only; raises OSError."""
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
    """What `save_tensors` wrote; raises StoreError in one sentence where it is not there or not whole."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise StoreError(f"Run {path.parent.name} has no {path.name}.") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(
            f"{path.name} of run {path.parent.name} cannot be read: {error}.", fix="Run it again."
        ) from None


def save(folder: Path, path: WeightPath) -> Artifact:
    tensors = {"step": path.step, "train_s": path.train_s, "weights": path.weights}
    return save_tensors(folder, TRAJECTORY_FILE, tensors)


def read(runs: Path, run_id: str) -> WeightPath:
    """The path of a run in the store's folder `runs`; raises StoreError where it kept none, or it is damaged."""
    if not _RUN_ID.fullmatch(run_id) or not (runs / run_id).is_dir():
        raise StoreError(f"There is no run {run_id!r} in this store.")
    if not (runs / run_id / TRAJECTORY_FILE).exists():
        raise StoreError(
            f"Run {run_id} kept no checkpoints of its weights.", fix="Run it again with checkpoints=50, or so."
        )
    tensors = load_tensors(runs / run_id / TRAJECTORY_FILE)
    try:
        path = WeightPath(tensors["step"], tensors["train_s"], tensors["weights"])
        whole = path.weights.ndim == 2 and path.step.shape == path.train_s.shape == path.weights.shape[:1]
    except KeyError:
        whole = False
    if not whole or not len(path.step) or path.weights.dtype != np.float32:
        raise StoreError(f"{TRAJECTORY_FILE} of run {run_id} does not hold a path.", fix="Run it again.")
    return path
