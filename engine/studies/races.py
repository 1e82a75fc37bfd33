"""Races: configurations trained under equal conditions. What can race, the runs to submit, and how they are found again.

A lane is a configuration with a name. A seed block has one run per lane, all with one seed, which take turns on their
device. The runs of a block share initial weights, order of the data and budget, so only their configurations differ.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from engine.common.errors import ConfigError, StoreError
from engine.common.sanitize import clean_name
from engine.config.base import Spec
from engine.config.messages import nearest
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.summary import describe
from engine.config.training import BUDGETS
from engine.store.run import Run
from engine.store.store import Store, Submission

MOST_LANES, MOST_SEEDS = 6, 12  # a reader can tell six colours apart; 72 runs in one chart
Metric = Literal["test_accuracy", "test_loss"]
METRICS: tuple[Metric, ...] = get_args(Metric)


class Lane(Spec):
    """A configuration with a name."""

    label: str
    config: RunConfig


class RacePreset(Spec):
    """A race that is offered by name, with its configurations and what it shows."""

    title: str
    teaches: str
    base: str = "mnist-mlp"  # the preset that its lanes are described as changes of
    lanes: tuple[Lane, ...]
    metric: Metric = "test_accuracy"
    target: float
    trap: str = ""  # the mistake that it shows, if it shows one
    then: str = ""  # what to try next


# --- the races with a name ------------------------------------------------------------------------------------------


def _lanes(preset: str, common: Sequence[str], lanes: Mapping[str, str]) -> tuple[Lane, ...]:
    base = with_overrides(preset_config(preset), ["budget.epochs=none", *common])
    return tuple(Lane(label=label, config=with_overrides(base, sets.split())) for label, sets in lanes.items())


_MNIST, _DIGITS = ["budget.seconds=6"], ["budget.seconds=3"]
_BATCH, _MINI, _ONE = "Batch", "Mini-batch {}", "Stochastic"
RACES: Mapping[str, RacePreset] = {
    "batch-vs-stochastic": RacePreset(
        title="Batch, mini-batch, stochastic on MNIST",
        teaches="The same network with the same rule, w ← w − lr · gradient. The gradient is the mean over all 4,000 "
        "images, over 64, or that of one. Each learning rate is tuned.",
        lanes=_lanes(
            "mnist-mlp",
            _MNIST,
            {
                _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.4",
                _MINI.format(64): "optimizer.name=sgd batch_size=64 optimizer.lr=0.2",
                _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.01",
            },
        ),
        target=0.9,
        then="switch the axis to samples, where Stochastic leads, and to steps, where Batch leads. Then race 8 seeds, and "
        "measure the batch-size law, which shows the fastest batch size in between.",
    ),
    "batch-vs-stochastic-digits": RacePreset(
        title="Batch, mini-batch, stochastic on 8x8 digits",
        teaches="All 1,438 training images fit into the cache, so a full-batch step takes little time, although it "
        "uses many samples.",
        base="digits-mlp",
        lanes=_lanes(
            "digits-mlp",
            _DIGITS,
            {
                _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.9",
                _MINI.format(32): "optimizer.name=sgd batch_size=32 optimizer.lr=0.4",
                _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.02",
            },
        ),
        target=0.95,
        then="the same number of samples for all instead of the same time. Another configuration then wins.",
    ),
    "batch-vs-stochastic-same-lr": RacePreset(
        title="Common mistake: one learning rate for all batch sizes",
        teaches="The same three batch sizes, all with lr = 0.01.",
        lanes=_lanes(
            "mnist-mlp",
            [*_MNIST, "optimizer.lr=0.01"],
            {
                _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.01",
                _MINI.format(64): "optimizer.name=sgd batch_size=64 optimizer.lr=0.01",
                _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.01",
            },
        ),
        target=0.9,
        trap="A common mistake: a gradient averaged over more samples allows a larger step. The large batches lose here "
        "because their learning rate is not tuned, not because of the batch size. Compare with the tuned race.",
        then="the tuned race, Batch, mini-batch, stochastic on MNIST, with a learning rate for each batch size.",
    ),
    "optimizers": RacePreset(
        title="Optimizers on MNIST",
        teaches="Five optimizers with the same network and batches. Each has a usual learning rate, not a tuned one, so the "
        "winner here is not necessarily the better optimizer.",
        lanes=_lanes(
            "mnist-mlp",
            _MNIST,
            {
                "SGD": "optimizer.name=sgd optimizer.lr=0.2",
                "Momentum": "optimizer.name=momentum optimizer.lr=0.02",
                "RMSprop": "optimizer.name=rmsprop optimizer.lr=0.001",
                "Adam": "optimizer.name=adam optimizer.lr=0.001",
                "Muon": "optimizer.name=muon optimizer.lr=0.005",
            },
        ),
        target=0.93,
        then="a learning rate three times as large or as small. This often changes the result more than the "
        "optimizer does.",
    ),
    "learning-rates": RacePreset(
        title="Learning rates",
        teaches="A rate that is too low is slow. A rate that is too high is unstable or diverges. Many rates in "
        "between work.",
        lanes=_lanes(
            "mnist-mlp",
            [*_MNIST, "optimizer.name=sgd", "batch_size=64"],
            {f"lr {lr}": f"optimizer.lr={lr}" for lr in ("0.01", "0.05", "0.2", "1", "30")},
        ),
        target=0.9,
        then="the same rates with batch_size=8 for all. The best rate is then lower.",
    ),
    "lenet-vs-mlp": RacePreset(
        title="LeNet against an MLP",
        teaches="LeNet has fewer weights but more FLOPs per image. It is more accurate, the MLP is faster. Switch the axis "
        "between seconds and FLOPs.",
        lanes=(
            *_lanes("lenet", ["budget.seconds=10"], {"LeNet": ""}),
            *_lanes("mnist-mlp", ["budget.seconds=10"], {"MLP 128": ""}),
            *_lanes("mnist-mlp-large", ["budget.seconds=10"], {"MLP 512-256": ""}),
        ),
        target=0.95,
        then="the same FLOPs for all instead of the same time.",
    ),
    "precisions": RacePreset(
        title="Precision: FP32 against BF16",
        teaches="BF16 has half the bits. It can be faster on a processor with BF16 units, but in a small network the casts "
        "cost more time than they save.",
        base="mnist-mlp-large",
        lanes=_lanes("mnist-mlp-large", _MNIST, {"FP32": "", "BF16": "precision=bf16"}),
        target=0.93,
        then="model.hidden=2048,1024 for both: larger matrix products gain more from BF16.",
    ),
    "execution": RacePreset(
        title="Fast loop against the tutorials' loop",
        teaches="The same computation on the same samples in the same order. Only the code around it differs.",
        lanes=_lanes("mnist-mlp", _MNIST, {"Fast loop": "", "Tutorial loop": "execution=dataloader"}),
        target=0.93,
        then="batch_size=1 for both: the smaller the step, the larger the share of the loop's overhead.",
    ),
}
DEFAULT_RACE = "batch-vs-stochastic"


def race_preset(name: str) -> RacePreset:
    """The race of a name.

    Raises:
        ConfigError: there is none; the error lists those that exist.
    """
    if name not in RACES:
        raise ConfigError(
            f"preset={name!r} is not a race{nearest(name, RACES)}.", fix=f"Choose from {', '.join(RACES)}."
        )
    return RACES[name]


# --- what can race --------------------------------------------------------------------------------------------------

_SAME = {  # fields that lanes must share to be comparable -> words for it
    "data": "data",
    "source": "the source of the data",
    "seed": "the seed",
}


def parse_variant(text: str, base: RunConfig) -> Lane:
    """A lane as text: `label: key=value key=value`, as changes of `base`.

    Raises:
        ConfigError: there is no label, or an unknown or impossible setting.
    """
    label, colon, sets = text.partition(":")
    if not colon or not label.strip():
        raise ConfigError(f"{text!r} is not a configuration.", fix="Write it as 'label: key=value key=value'.")
    return Lane(label=clean_name(label.strip()), config=with_overrides(base, sets.split()))


def with_budget(lanes: Iterable[Lane], budget: str) -> tuple[Lane, ...]:
    """The lanes with one budget for all, as text: `seconds=6`.

    Raises:
        ConfigError: the budget is not known, or its value is not allowed.
    """
    name = budget.partition("=")[0].strip()
    if name not in BUDGETS:
        raise ConfigError(
            f"budget {budget!r} is not known{nearest(name, BUDGETS)}.", fix=f"Choose from {', '.join(BUDGETS)}."
        )
    sets = [f"budget.{budget}", *(f"budget.{other}=none" for other in BUDGETS if other != name)]
    return tuple(lane.model_copy(update={"config": with_overrides(lane.config, sets)}) for lane in lanes)


def check_variants(lanes: Sequence[Lane]) -> None:
    """Check that lanes can race. Equal configurations are allowed: A against A shows the noise.

    Raises:
        ConfigError: there are too few or too many, two have one name, or they cannot be compared; it names what differs.
    """
    if not 2 <= len(lanes) <= MOST_LANES:
        raise ConfigError(
            f"A race needs 2 to {MOST_LANES} configurations, not {len(lanes)}.", fix="Add or remove configurations."
        )
    labels = [lane.label for lane in lanes]
    if double := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"Two configurations are named {double!r}.", fix="Give each a name of its own.")
    check_comparable([(lane.label, lane.config) for lane in lanes])
    first = lanes[0]
    for lane in lanes[1:]:
        if lane.config.budget != first.config.budget:
            raise ConfigError(
                f"{lane.label!r} and {first.label!r} have different budgets.", fix="Give all the same: seconds=6."
            )


def check_comparable(configs: Sequence[tuple[str, RunConfig]], *, seeds: bool = True) -> None:
    """Check that the results of named configurations can be compared; `seeds` tells whether the seeds must be equal too.

    Raises:
        ConfigError: two of them differ in their data, or one is not a training run.
    """
    (first_label, first), *others = configs
    for label, config in others:
        for name, words in _SAME.items():
            if (name != "seed" or seeds) and getattr(config, name) != getattr(first, name):
                a, b = getattr(first, name), getattr(config, name)
                shown = f" ({a} and {b})" if name != "source" else ""
                raise ConfigError(
                    f"{first_label!r} and {label!r} differ in {words}{shown}, so their results cannot be compared.",
                    fix=f"Give all the same {name}.",
                )
    for label, config in configs:
        if not config.task_facts.trains_one_model:
            raise ConfigError(f"{label!r} is not a training run.", fix="Choose training runs.")


def seed_blocks(lanes: Sequence[Lane], seeds: Sequence[int], group: str) -> list[list[Submission]]:
    """The runs to submit, one block per seed.

    The key of a run is its place in the race, so a run that two pages or clicks submit is created once. Only seed 0 keeps
    checkpoints, because the page draws one path per lane.
    """
    return [
        [
            Submission(
                lane.config.model_copy(update={"seed": seed} | ({"checkpoints": 0} if seed else {})),
                lane.label,
                f"{group} {number} {seed}",
            )
            for number, lane in enumerate(lanes)
        ]
        for seed in seeds
    ]


# --- a race that was run --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RacedVariant:
    """A lane with its runs of a store, by seed."""

    label: str
    config: RunConfig
    runs: dict[int, Run]


class RunsOfLanes:
    """Base of a race and of a scaling study."""

    __slots__ = ()
    lanes: tuple[RacedVariant, ...]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all lanes, rising."""
        return sorted({seed for lane in self.lanes for seed in lane.runs})

    @property
    def runs(self) -> list[Run]:
        """The runs of all lanes, lane by lane."""
        return [run for lane in self.lanes for run in lane.runs.values()]

    @property
    def is_over(self) -> bool:
        """Whether every run has ended."""
        return all(run.is_over for run in self.runs)


@dataclass(frozen=True, slots=True)
class Race(RunsOfLanes):
    """All runs of one group, lane by lane."""

    group: str
    lanes: tuple[RacedVariant, ...]
    rounds: int = 1

    def as_lanes(self) -> tuple[Lane, ...]:
        """The lanes without their runs, to race again or with more seeds."""
        return tuple(Lane(label=lane.label, config=lane.config) for lane in self.lanes)


_GROUP = re.compile(r"[0-9a-f]{16}")


def find(store: Store, group: str, open_run: Callable[[str], Run] | None = None) -> Race | None:
    """The race of a group; None where the store has no run of it (any more)."""
    if not _GROUP.fullmatch(group):
        return None
    opened = open_run or store.run
    runs = []
    for row in store.rows(group=group):
        with contextlib.suppress(StoreError):  # a run that cannot be read must not hide the others
            runs.append(opened(row.run_id))
    return of_runs(sorted(runs, key=lambda run: run.order), group=group)


def of_runs(runs: Sequence[Run], *, group: str = "") -> Race | None:
    """Runs as a race; None without runs.

    Runs with the same name and configuration but different seeds are one lane. Runs that are equal in all of these are
    lanes of their own.
    """
    lanes: dict[tuple[str, str], list[RacedVariant]] = {}
    for run in runs:
        config = run.config.model_copy(update={"seed": 0, "checkpoints": 0})
        label = (run.queued.name if run.queued and group else "") or run.name or describe(run.config)
        same = lanes.setdefault((label, config.fingerprint), [])
        if all(run.config.seed in lane.runs for lane in same):
            same.append(RacedVariant(label, config, {}))
        next(lane for lane in same if run.config.seed not in lane.runs).runs[run.config.seed] = run
    if not lanes:
        return None
    unique: list[RacedVariant] = []
    for lane in itertools.chain(*lanes.values()):  # different runs of the library can have the same name
        taken, label, number = {other.label for other in unique}, lane.label, 2
        while label in taken:
            label, number = f"{lane.label} ({number})", number + 1
        unique.append(replace(lane, label=label))
    rounds = max((run.heat.round for run in runs if run.heat), default=1)
    return Race(group, tuple(unique), rounds)
