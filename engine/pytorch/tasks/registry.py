"""The generator of every task. A worker calls it with the configuration and the folder of a run, and logs its events."""

from __future__ import annotations

from collections.abc import Callable, Generator

from engine.config.tasks import TaskName
from engine.events.catalog import AnyEvent
from engine.pytorch.tasks.batch_law import batch_law
from engine.pytorch.tasks.calibrate import calibrate
from engine.pytorch.tasks.infer import infer
from engine.pytorch.tasks.loss_surface import landscape
from engine.pytorch.tasks.train import train

GENERATORS: dict[TaskName, Callable[..., Generator[AnyEvent, None, None]]] = {
    "train": train,
    "batch-law": batch_law,
    "landscape": landscape,
    "calibrate": calibrate,
    "infer": infer,
}
