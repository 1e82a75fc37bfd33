"""A configuration in one line of text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from engine.config.base import as_text
from engine.config.data import DATA, DatasetName
from engine.config.models import ModelSpec
from engine.config.run import RunConfig
from engine.config.tasks import TaskName
from engine.config.training import FULL, Budget


def describe(config: RunConfig) -> str:
    """One line for lists: model, data, optimizer, batch size, unusual settings, budget and device."""
    return _WORDS.get(config.task, _task_in_words)(config)


def _task_in_words(config: RunConfig) -> str:
    """The words for a task that has none of its own."""
    title = config.task_facts.title.lower()
    return " · ".join([title, model_in_words(config.model, config.data), config.data, _devices_in_words(config)])


def _calibration_in_words(config: RunConfig) -> str:
    return f"calibration of this machine · {config.device} · up to {_counted(config.threads, 'thread')}"


def _surface_in_words(config: RunConfig) -> str:
    paths, side = _counted(len(config.landscape.runs), "run"), config.landscape.resolution
    model = model_in_words(config.model, config.data)
    return f"loss surface of {paths} · {model} · {config.data} · {side}x{side}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _training_in_words(config: RunConfig) -> str:
    return _joined(
        config,
        f"{config.optimizer.name} {config.optimizer.lr:g}",
        _batch_in_words(config),
        *_unusual_in_words(config),
        budget_in_words(config.budget),
    )


def _joined(config: RunConfig, *middle: str) -> str:
    model = model_in_words(config.model, config.data)
    return " · ".join([model, config.data, *middle, _devices_in_words(config)])


def _devices_in_words(config: RunConfig) -> str:
    if not config.is_parallel:
        return config.device
    many, kind = config.parallel.num_ranks, config.device.partition(":")[0]
    return f"{many} x {kind} ({config.parallel.strategy})"


def _law_in_words(config: RunConfig) -> str:
    law = config.law
    ends = [*map(str, sorted(law.batch_sizes)), *([FULL] if law.full_batch else [])]
    return _joined(
        config,
        config.optimizer.name,
        f"batch-size law, batch {ends[0]} to {ends[-1]}",
        *_unusual_in_words(config),
        f"training loss {law.target_loss:g}",
    )


def _inference_in_words(config: RunConfig) -> str:
    """For example: inference of LeNet: batch 1-1024 x 1-2 threads · mnist5k · cpu."""
    cells = config.cells
    sizes, threads = sorted({c.batch_size for c in cells}), sorted({c.threads for c in cells})
    on_cpu = config.device == "cpu"
    at = f" x {_ends(threads)} thread{'' if threads == [1] else 's'}" if on_cpu else ""
    precisions = list(dict.fromkeys(c.precision for c in cells))
    runtimes = list(dict.fromkeys(c.runtime for c in cells))
    words = [f"inference of {model_in_words(config.model, config.data)}: batch {_ends(sizes)}{at}"]
    words += [", ".join(precisions)] if precisions != ["fp32"] else []
    words += [", ".join(runtimes)] if runtimes != ["inference_mode"] else []
    if config.is_text:
        words.append(f"{config.infer.prompt_len} + {config.infer.new_tokens} characters")
        words += [] if config.infer.cache else ["no cache"]
    words += [f"open loop, {config.infer.rate:g} requests/s"] if config.infer.load == "open" else []
    return " · ".join([*words, config.data, config.device])


def _ends(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _batch_in_words(config: RunConfig) -> str:
    batch = "full batch" if config.batch_size == FULL else f"batch {config.batch_size}"
    return batch if config.grad_accumulation == 1 else f"{batch} x {config.grad_accumulation}"


def _unusual_in_words(config: RunConfig) -> list[str]:
    """Settings that differ from their defaults and change how the run trains."""
    words: list[str] = [config.schedule] if config.schedule != "constant" else []
    words += [config.precision] if config.precision != "fp32" else []
    words += [config.execution] if config.execution != "eager" else []
    words += ["checkpointing"] if config.activation_checkpointing else []
    return words


def model_in_words(model: ModelSpec, data: DatasetName = "mnist5k") -> str:
    """A short name of the model on this data set, for lists and messages."""
    return model.in_words(DATA[data])


_UNITS = {"steps": "step", "epochs": "epoch", "samples": "sample", "seconds": "second", "flops": "FLOP"}


def budget_in_words(budget: Budget) -> str:
    """The limits of a budget, for example "20 epochs or 10 seconds"."""
    limits = [(getattr(budget, name), unit) for name, unit in _UNITS.items()]
    return " or ".join(f"{as_text(v)} {unit}{'' if v == 1 else 's'}" for v, unit in limits if v is not None)


_WORDS: Mapping[TaskName, Callable[[RunConfig], str]] = {
    "train": _training_in_words,
    "batch-law": _law_in_words,
    "landscape": _surface_in_words,
    "calibrate": _calibration_in_words,
    "infer": _inference_in_words,
}
