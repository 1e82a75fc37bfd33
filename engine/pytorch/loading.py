"""Loads the data set of a run in a thread, so that progress events and cancellation keep working."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import Empty, SimpleQueue
from typing import Any

from engine.config.run import RunConfig
from engine.data import loading
from engine.data.datasets import BUNDLED, Arrays
from engine.data.downloads import Progress
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Preparing
from engine.pytorch.setup import Clock

_PROGRESS_EVERY_S = 0.25


def data_facts(arrays: Arrays) -> dict[str, Any]:
    """The fields of Started about the data."""
    return {
        "data_sha256": arrays.sha256,
        "data_version": arrays.facts.version or None,
        "data_notes": arrays.facts.notes,
        "data_warnings": arrays.facts.warnings,
        "largest_class_accuracy": arrays.largest_class_accuracy,
    }


def load_dataset(config: RunConfig, clock: Clock) -> Generator[AnyEvent, None, Arrays]:
    """Load the run's data set and return it; yields Preparing events meanwhile.

    Raises:
        ConfigError: The data set cannot be downloaded or read.
    """
    if config.data in BUNDLED:  # in memory already: a thread would only cost time
        return loading.load(config.data, config.source)
    messages: SimpleQueue[Progress | Arrays | BaseException] = SimpleQueue()

    def load() -> None:
        try:
            messages.put(loading.load(config.data, config.source, progress=messages.put))
        except BaseException as error:  # noqa: BLE001 - the run's own thread raises it again
            messages.put(error)

    threading.Thread(target=load, name="load", daemon=True).start()
    reported, progress = clock(), Progress(f"Reading {config.data}", 0, None)
    message: Progress | Arrays | BaseException
    while True:
        try:
            message = messages.get(timeout=_PROGRESS_EVERY_S)
        except Empty:  # no news: repeat the last progress, because a run can be stopped at each event
            message = progress
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Arrays):
            return message
        progress = message
        if clock() - reported >= _PROGRESS_EVERY_S:
            reported = clock()
            yield Preparing(text=progress.text, done_bytes=progress.done, total_bytes=progress.total)
