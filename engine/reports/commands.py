"""The shell command that repeats an experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.common.sanitize import shell_words
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import overrides_from
from engine.config.presets import PRESETS, STUDIES
from engine.config.run import RunConfig
from engine.config.tasks import Cell, TaskName


def reproduce(config: RunConfig) -> str:
    """The command that runs the same experiment, starting from the preset that needs the fewest changes."""
    return shell_words(["python", "-m", "engine", *_ARGUMENTS.get(config.task, _run_arguments)(config)])


def _run_arguments(config: RunConfig) -> list[str]:
    changes = {name: overrides_from(preset.config, config) for name, preset in {**PRESETS, **STUDIES}.items()}
    name = min(changes, key=lambda n: len(changes[n]))
    return ["run", "--preset", name, *(w for c in changes[name] for w in ("--set", c))]


def _infer_arguments(config: RunConfig) -> list[str]:
    """The arguments of `infer`, as four lists if the combinations are the full product of these lists."""
    base = PRESETS[_nearest_preset(config)].config
    infer, cells = config.infer, config.infer.cells
    start = infer_config(base, infer.run)
    if infer.run:  # the run brings model and data
        start = start.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
    axes = [list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in Cell.model_fields]
    lists: list[str] = []
    if cells and infer_matrix(config, *axes).infer == infer:
        options = ("--batch-sizes", "--threads", "--precisions", "--runtimes")
        lists = [w for option, axis in zip(options, axes, strict=True) for w in (option, ",".join(map(str, axis)))]
        config = config.model_copy(update={"threads": start.threads, "infer": infer.model_copy(update={"cells": ()})})
    changes = overrides_from(start, config)
    origin = ["--run", infer.run] if infer.run else ["--preset", _nearest_preset(config)]
    return ["infer", *origin, *(w for c in changes for w in ("--set", c)), *lists]


def _nearest_preset(config: RunConfig) -> str:
    """The preset that needs the fewest changes to get this model and data."""

    def changes(preset: RunConfig) -> int:
        same = preset.model_copy(update={"model": config.model, "data": config.data, "source": config.source})
        return len(overrides_from(preset, same))

    return min(PRESETS, key=lambda name: changes(PRESETS[name].config))


# Tasks that another command than `run` runs.
_ARGUMENTS: Mapping[TaskName, Callable[[RunConfig], list[str]]] = {"infer": _infer_arguments}


def has_own_command(config: RunConfig) -> bool:
    """Whether another command than `run` runs the task."""
    return config.task in _ARGUMENTS
