"""The parts of a step: how long each takes, which one is the bottleneck, and what makes it shorter."""

from __future__ import annotations

from dataclasses import dataclass

from engine.common import units
from engine.config.run import RunConfig
from engine.events.summary import Summary
from engine.events.training import StepSplit
from engine.store.run import Run

TITLES = {
    "data": "Data",
    "forward": "Forward",
    "backward": "Backward",
    "optimizer": "Optimizer",
    "read_back": "Read-back",
}
_AGREES = 0.25  # largest relative difference between the parts' sum and the run's mean step without a warning
_FEW_PREDICTIONS = 32  # a step with fewer has little work for each call
_MUCH_EVALUATION = 0.2  # share of the time from which a setting is named


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step, with its share of all parts."""

    key: str
    title: str
    seconds: float  # per optimizer step
    share: float  # of all parts, 0..1


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Where a step's time goes. Without a profile there are no parts, and no sentence about them."""

    parts: list[Part]
    step_s: float | None  # of the run: training time / steps
    doubt: str  # why the parts do not show where the run's time went; "" where they do
    advice: str  # what takes most of the time, and the setting that reduces it; "" where that is unknown or in doubt
    evaluation: str  # how long the evaluations took, which are no part of a step

    @property
    def sum_s(self) -> float:
        """Seconds of all parts together."""
        return sum(part.seconds for part in self.parts)

    @property
    def shares(self) -> dict[str, float]:
        """The share of each part, by key."""
        return {part.key: part.share for part in self.parts}

    def in_words(self) -> str:
        """The parts in one line."""
        return ", ".join(
            f"{part.title.lower()} {units.duration(part.seconds)} ({units.percent(part.share)})" for part in self.parts
        )


def of_run(run: Run) -> Breakdown:
    """The breakdown of a run's steps."""
    return breakdown(run.step_split, run.config, run.summary(), run.evaluation_s)


def breakdown(split: StepSplit | None, config: RunConfig, summary: Summary, evaluation_s: float) -> Breakdown:
    """The breakdown from a run's profiled steps; `evaluation_s` are the seconds of all its evaluations."""
    parts = _parts(split)
    step_s = summary.step_seconds
    doubt = _doubt(sum(part.seconds for part in parts), step_s) if parts else ""
    advice = _advice(parts, config) if parts and not doubt else ""
    return Breakdown(parts, step_s, doubt, advice, _evaluation_in_words(evaluation_s, summary.train_seconds))


def _parts(split: StepSplit | None) -> list[Part]:
    if split is None or split.forward_s is None:
        return []
    seconds = {key: getattr(split, f"{key}_s") for key in TITLES}
    known = {key: value for key, value in seconds.items() if value is not None}
    whole = sum(known.values())
    return [Part(key, TITLES[key], value, value / whole if whole else 0.0) for key, value in known.items()]


def _doubt(sum_s: float, step_s: float | None) -> str:
    if step_s is None or abs(sum_s - step_s) <= _AGREES * step_s:
        return ""
    return (
        f"The parts add up to {units.duration(sum_s)}, but a step of the run took {units.duration(step_s)} on average, so "
        "they do not show where the run's time went."
    )


def _evaluation_in_words(evaluation_s: float, train_s: float | None) -> str:
    if not evaluation_s or not train_s:
        return ""
    share = evaluation_s / (evaluation_s + train_s)
    knob = "; a larger evaluate_every evaluates less often" if share >= _MUCH_EVALUATION else ""
    return (
        f"{units.duration(evaluation_s)} in all, {units.percent(share)} of training and evaluation together; not part of a "
        f"step or of the training time{knob}"
    )


_WHAT = {
    "data": "fetching the batch",
    "optimizer": "the optimizer",
    "read_back": "reading losses back",
}


def _advice(parts: list[Part], config: RunConfig) -> str:
    arithmetic = sum(part.share for part in parts if part.key in {"forward", "backward"})
    rest = {part.key: part.share for part in parts if part.key in _WHAT}
    worst = max(rest, key=lambda key: rest[key], default="")
    if arithmetic >= rest.get(worst, 0.0):
        return f"{units.percent(arithmetic)} of a step is the model's forward and backward pass: {_arithmetic_knob(config)}."
    return f"{units.percent(rest[worst])} of a step is {_WHAT[worst]}: {_knob(worst, config)}."


def _arithmetic_knob(config: RunConfig) -> str:
    size = config.batch_size
    if isinstance(size, int) and size * config.predictions_per_sample < _FEW_PREDICTIONS:
        return "a larger batch size shares the overhead of each call among more predictions"
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
    return "execution=eager reads many losses at once instead of one per step"
