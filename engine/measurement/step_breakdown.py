"""The parts of a step: how long each takes, which one is the bottleneck, and what makes it shorter."""

from __future__ import annotations

from dataclasses import dataclass

from engine.common import units
from engine.config.run import RunConfig
from engine.events.training import StepSplit

TITLES = {
    "data": "Data",
    "forward": "Forward",
    "backward": "Backward",
    "optimizer": "Optimizer",
    "read_back": "Read-back",
    "evaluation": "Evaluation",
}
_AGREES = 0.25  # largest relative difference between profiled steps and the run's steps without a warning


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step, with its share of all parts."""

    key: str
    title: str
    seconds: float  # per optimizer step
    share: float  # of all parts, 0..1


def parts(split: StepSplit | None, *, evaluation_s: float, steps: int) -> list[Part]:
    """The measured parts of a step, and evaluation spread over all `steps`; an empty list without a profile.

    `evaluation_s` are the seconds of all evaluations of the run.
    """
    if split is None or split.forward_s is None:
        return []
    seconds = {
        "data": split.data_s,
        "forward": split.forward_s,
        "backward": split.backward_s,
        "optimizer": split.optimizer_s,
        "read_back": split.read_back_s,
        "evaluation": evaluation_s / steps if steps else None,
    }
    known = {key: value for key, value in seconds.items() if value is not None}
    whole = sum(known.values())
    return [Part(key, TITLES[key], value, value / whole if whole else 0.0) for key, value in known.items()]


def sentence(found: list[Part], config: RunConfig) -> str:
    """What takes most of the time, and the setting that reduces it; empty where nothing is known."""
    if not found:
        return ""
    share = {part.key: part.share for part in found}
    arithmetic = share.get("forward", 0.0) + share.get("backward", 0.0)
    rest = {key: value for key, value in share.items() if key not in {"forward", "backward"}}
    worst = max(rest, key=lambda key: rest[key])
    if arithmetic >= rest[worst]:
        return f"{_much(arithmetic)} is the model's forward and backward pass: {_arithmetic_knob(config)}."
    return f"{_much(rest[worst])} is {_WHAT[worst]}: {_knob(worst, config)}."


_WHAT = {
    "data": "fetching the batch",
    "optimizer": "the optimizer",
    "read_back": "reading losses back",
    "evaluation": "evaluation on the test samples",
}


def _much(share: float) -> str:
    return f"{units.percent(share)} of a step"


def _arithmetic_knob(config: RunConfig) -> str:
    if config.batch_size in range(1, 32):
        return "with such a small batch, most of it is the overhead of each call; a larger batch size shares it among more samples"
    if config.device == "cpu":
        return "a narrower model or smaller inputs make it faster; more threads help only with wide layers"
    return "a lower precision (bf16) or execution=cuda-graph makes it faster"


def _knob(key: str, config: RunConfig) -> str:
    if key == "data":
        if config.execution == "dataloader":
            return "execution=eager keeps the data on the device and takes batches as views"
        return "a smaller input, or a data set that fits into memory, makes it shorter"
    if key == "optimizer":
        return "a larger batch size needs fewer steps per epoch; sgd and momentum do less work than adam or muon"
    if key == "read_back":
        return "execution=eager reads many losses at once instead of one per step"
    return "a larger evaluate_every evaluates less often; evaluation does not count as training time"


def agrees(found: list[Part], measured_s: float | None) -> str:
    """A warning when the parts' sum differs from `measured_s`, the run's mean step time; empty where they agree."""
    sum_s = sum(part.seconds for part in found if part.key != "evaluation")
    if not found or not measured_s or abs(sum_s - measured_s) <= _AGREES * measured_s:
        return ""
    return (
        f"Profiling changed the time of a step ({units.duration(sum_s)} instead of {units.duration(measured_s)}), so the shares "
        "are approximate."
    )


def row_in_words(found: list[Part]) -> str:
    """The parts in one line."""
    return ", ".join(
        f"{part.title.lower()} {units.duration(part.seconds)} ({units.percent(part.share)})" for part in found
    )
