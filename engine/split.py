"""The parts of a step in words: how long each takes, which one is the bottleneck, and what would make it shorter."""

from __future__ import annotations

from dataclasses import dataclass

from engine import units
from engine.config import RunConfig
from engine.records import StepSplit

TITLES = {
    "data": "Data", "forward": "Forward", "backward": "Backward", "optimizer": "Optimizer", "read_back": "Read-back",
    "evaluation": "Evaluation",
}  # fmt: skip
_AGREES = 0.25  # the profiled steps and those of the run; beyond, it is said


@dataclass(frozen=True, slots=True)
class Part:
    key: str
    title: str
    seconds: float  # per optimizer step
    share: float  # of all parts, 0..1


def parts(split: StepSplit | None, *, evaluation_s: float, steps: int) -> list[Part]:
    """The parts of a step that were measured, and its part of the run's evaluations; none without a split."""
    if split is None or split.forward_s is None:
        return []
    seconds = {
        "data": split.data_s, "forward": split.forward_s, "backward": split.backward_s, "optimizer": split.optimizer_s,
        "read_back": split.read_back_s, "evaluation": evaluation_s / steps if steps else None,
    }  # fmt: skip
    known = {key: value for key, value in seconds.items() if value is not None}
    whole = sum(known.values())
    return [Part(key, TITLES[key], value, value / whole if whole else 0.0) for key, value in known.items()]


def sentence(found: list[Part], config: RunConfig) -> str:
    """What takes most of the time, and the knob to turn; empty where nothing is known."""
    if not found:
        return ""
    share = {part.key: part.share for part in found}
    arithmetic = share.get("forward", 0.0) + share.get("backward", 0.0)
    rest = {key: value for key, value in share.items() if key not in {"forward", "backward"}}
    worst = max(rest, key=lambda key: rest[key])
    if arithmetic >= rest[worst]:
        return f"{_much(arithmetic)} is the model itself, forward and backward: {_arithmetic_knob(config)}."
    return f"{_much(rest[worst])} is {_WHAT[worst]}: {_knob(worst, config)}."


_WHAT = {
    "data": "fetching the batch", "optimizer": "the optimizer", "read_back": "reading losses back",
    "evaluation": "evaluation on held-out examples",
}  # fmt: skip


def _much(share: float) -> str:
    for least, words in ((0.9, "Nearly all"), (0.72, "Three quarters"), (0.6, "Two thirds"), (0.45, "Half")):
        if share >= least:
            return f"{words} of a step ({units.percent(share)})"
    return f"The largest part of a step ({units.percent(share)})"


def _arithmetic_knob(config: RunConfig) -> str:
    if config.batch_size in range(1, 32):
        return "with so small a batch most of it is the overhead of single calls; a larger batch shares it among more examples"
    if config.device == "cpu":
        return "a narrower model or smaller inputs are what makes it faster; more threads only where layers are wide"
    return "a lower precision (bf16) or execution=cuda-graph is what makes it faster"


def _knob(key: str, config: RunConfig) -> str:
    if key == "data":
        if config.execution == "dataloader":
            return "execution=eager keeps the data on the device and takes batches as views"
        return "a smaller input, or a data set that fits into memory at once, makes it shorter"
    if key == "optimizer":
        return "a larger batch makes one update serve more examples; sgd and momentum do less than adam or muon"
    if key == "read_back":
        return "execution=eager reads many losses at once instead of one in each step"
    return "a larger evaluate_every evaluates less often; it is no part of the training time"


def agrees(found: list[Part], measured_s: float | None) -> str:
    """What to know of the sum of the parts against the run's own mean step; empty where they agree."""
    sum_s = sum(part.seconds for part in found if part.key != "evaluation")
    if not found or not measured_s or abs(sum_s - measured_s) <= _AGREES * measured_s:
        return ""
    return (
        f"The profiled steps took {units.duration(sum_s)}, those of the run {units.duration(measured_s)} on average: "
        "the shares hold for the former."
    )


def row_in_words(found: list[Part]) -> str:
    return ", ".join(
        f"{part.title.lower()} {units.duration(part.seconds)} ({units.percent(part.share)})" for part in found
    )
