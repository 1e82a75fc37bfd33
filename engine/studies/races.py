"""Races: configurations side by side under equal conditions. Which lanes, which heats, and how they are found again.

A lane is a configuration with a name; a heat is all lanes with one seed, taking turns on their device. Lanes share
their first weights, the order of the data and the budget, so what differs is what their configurations differ in.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

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

MOST_LANES, MOST_SEEDS = 6, 12  # six colours can be told apart; 72 runs in one chart
Metric = Literal["test_accuracy", "test_loss"]


class Lane(Spec):
    """A configuration with a name."""

    label: str
    config: RunConfig


class RacePreset(Spec):
    """Lanes with a name together: what to see, and which mistake it shows where it shows one."""

    title: str
    teaches: str
    base: str = "mnist-mlp"  # the preset its lanes are told from
    lanes: tuple[Lane, ...]
    metric: Metric = "test_accuracy"
    target: float
    trap: str = ""
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
        teaches="One net and one rule, w ← w − lr · gradient, with the gradient taken over 4,000 images, 64, or one. The "
        "learning rate is tuned for each.",
        lanes=_lanes("mnist-mlp", _MNIST, {
            _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.4",
            _MINI.format(64): "optimizer.name=sgd batch_size=64 optimizer.lr=0.2",
            _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.01",
        }),
        target=0.9,
        then="switch the axis to samples, where Stochastic leads, and to steps, where Batch does. Then race 6 seeds, and measure "
        "the batch-size law: it says which batch is fastest in between.",
    ),
    "batch-vs-stochastic-digits": RacePreset(
        title="Batch, mini-batch, stochastic on 8x8 digits",
        teaches="So small a training set that all 1,438 images fit the cache: the whole batch costs little time here, and "
        "still many samples.",
        base="digits-mlp",
        lanes=_lanes("digits-mlp", _DIGITS, {
            _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.9",
            _MINI.format(32): "optimizer.name=sgd batch_size=32 optimizer.lr=0.4",
            _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.02",
        }),
        target=0.95,
        then="equal samples instead of equal seconds: the same lanes, and another one wins.",
    ),
    "batch-vs-stochastic-same-lr": RacePreset(
        title="Trap: one learning rate for all batch sizes",
        teaches="The same three lanes with lr = 0.01 everywhere.",
        lanes=_lanes("mnist-mlp", [*_MNIST, "optimizer.lr=0.01"], {
            _BATCH: "optimizer.name=gd batch_size=full optimizer.lr=0.01",
            _MINI.format(64): "optimizer.name=sgd batch_size=64 optimizer.lr=0.01",
            _ONE: "optimizer.name=sgd batch_size=1 optimizer.lr=0.01",
        }),
        target=0.9,
        trap="The classic mistake: a gradient averaged over more examples allows a longer step. What loses here is the "
        "untuned learning rate, not the batch size. Compare with the tuned race.",
        then="the tuned race, Batch, mini-batch, stochastic on MNIST: same lanes, a rate for each.",
    ),
    "optimizers": RacePreset(
        title="Optimizers on MNIST",
        teaches="Five rules for the step, same net, same batches; each with a usual learning rate, not a tuned one: who "
        "wins here is not yet the better optimizer.",
        lanes=_lanes("mnist-mlp", _MNIST, {
            "SGD": "optimizer.name=sgd optimizer.lr=0.2",
            "Momentum": "optimizer.name=momentum optimizer.lr=0.02",
            "RMSprop": "optimizer.name=rmsprop optimizer.lr=0.001",
            "Adam": "optimizer.name=adam optimizer.lr=0.001",
            "Muon": "optimizer.name=muon optimizer.lr=0.005",
        }),
        target=0.93,
        then="change a learning rate in Lanes by a factor of 3 either way: often that decides more than the optimizer.",
    ),
    "learning-rates": RacePreset(
        title="Learning rates",
        teaches="Too small crawls, too large jumps about or diverges; in between is a range, not a point.",
        lanes=_lanes("mnist-mlp", [*_MNIST, "optimizer.name=sgd", "batch_size=64"], {
            f"lr {lr}": f"optimizer.lr={lr}" for lr in ("0.01", "0.05", "0.2", "1", "30")
        }),
        target=0.9,
        then="the same rates with batch_size=8 in every lane: the best one moves down.",
    ),
    "lenet-vs-mlp": RacePreset(
        title="LeNet against an MLP",
        teaches="Fewer weights and more arithmetic per image: convolutions pay in accuracy, the MLP in time. Switch the "
        "axis between seconds and FLOPs.",
        lanes=(
            *_lanes("lenet", ["budget.seconds=10"], {"LeNet": ""}),
            *_lanes("mnist-mlp", ["budget.seconds=10"], {"MLP 128": ""}),
            *_lanes("mnist-mlp-large", ["budget.seconds=10"], {"MLP 512-256": ""}),
        ),
        target=0.95,
        then="equal FLOPs: arithmetic, not time, decides then.",
    ),
    "precisions": RacePreset(
        title="Precision: FP32 against BF16",
        teaches="Half the bits. Where the processor has BF16 units it may pay; for a small net the casts cost more than "
        "they save.",
        base="mnist-mlp-large",
        lanes=_lanes("mnist-mlp-large", _MNIST, {"FP32": "", "BF16": "precision=bf16"}),
        target=0.93,
        then="model.hidden=2048,1024 in both lanes: where products are large, half the bits count for more.",
    ),
    "execution": RacePreset(
        title="Fast loop against the tutorials' loop",
        teaches="The same arithmetic on the same examples in the same order: all that differs is what surrounds it.",
        lanes=_lanes("mnist-mlp", _MNIST, {"Fast loop": "", "Tutorial loop": "execution=dataloader"}),
        target=0.93,
        then="batch_size=1 in both lanes: the smaller the step, the more the loop around it costs.",
    ),
}  # fmt: skip
DEFAULT_RACE = "batch-vs-stochastic"


def race_preset(name: str) -> RacePreset:
    """The race of a name; a ConfigError names the ones there are."""
    if name not in RACES:
        raise ConfigError(
            f"preset={name!r} is not a race{nearest(name, RACES)}.", fix=f"Choose from {', '.join(RACES)}."
        )
    return RACES[name]


# --- what may race --------------------------------------------------------------------------------------------------

_SAME = {  # what lanes must share to be comparable, and the words for it
    "data": "data",
    "source": "the source of the data",
    "seed": "the seed",
}


def parse_variant(text: str, base: RunConfig) -> Lane:
    """A lane as one types it, `label: key=value key=value`; raises ConfigError."""
    label, colon, sets = text.partition(":")
    if not colon or not label.strip():
        raise ConfigError(f"{text!r} is not a lane.", fix="Write it as 'label: key=value key=value'.")
    return Lane(label=clean_name(label.strip()), config=with_overrides(base, sets.split()))


def with_budget(lanes: Iterable[Lane], budget: str) -> tuple[Lane, ...]:
    """The lanes with one budget for all, as one types it: `seconds=6`. Raises ConfigError."""
    name = budget.partition("=")[0].strip()
    if name not in BUDGETS:
        raise ConfigError(
            f"budget {budget!r} is not known{nearest(name, BUDGETS)}.", fix=f"Choose from {', '.join(BUDGETS)}."
        )
    sets = [f"budget.{budget}", *(f"budget.{other}=none" for other in BUDGETS if other != name)]
    return tuple(lane.model_copy(update={"config": with_overrides(lane.config, sets)}) for lane in lanes)


def check_variants(lanes: Sequence[Lane]) -> None:
    """Raises ConfigError, naming what differs, for lanes that cannot be compared."""
    if not 2 <= len(lanes) <= MOST_LANES:
        raise ConfigError(f"{len(lanes)} lanes are not a race.", fix=f"Choose 2 to {MOST_LANES}.")
    labels = [lane.label for lane in lanes]
    if double := next((label for label in labels if labels.count(label) > 1), None):
        raise ConfigError(f"Two lanes are called {double!r}.", fix="Give each lane a name of its own.")
    check_comparable([(lane.label, lane.config) for lane in lanes])
    first = lanes[0]
    for lane in lanes[1:]:
        if lane.config.budget != first.config.budget:
            raise ConfigError(
                f"{lane.label!r} and {first.label!r} have different budgets.", fix="Give all lanes one: seconds=6."
            )
        if lane.config == first.config:
            continue  # A against A is a fair question


def check_comparable(configs: Sequence[tuple[str, RunConfig]], *, seeds: bool = True) -> None:
    """Raises ConfigError where two configurations do not answer the same question: other data, other metrics."""
    (first_label, first), *others = configs
    for label, config in others:
        for name, words in _SAME.items():
            if (name != "seed" or seeds) and getattr(config, name) != getattr(first, name):
                a, b = getattr(first, name), getattr(config, name)
                shown = f" ({a} and {b})" if name != "source" else ""
                raise ConfigError(
                    f"{first_label!r} and {label!r} differ in {words}{shown}: what they reach cannot be compared.",
                    fix=f"Give all lanes the same {name}.",
                )
    for label, config in configs:
        if not config.task_facts.trains_one_model:
            raise ConfigError(f"{label!r} is no training run.", fix="Race trainings.")


def seed_blocks(lanes: Sequence[Lane], seeds: Sequence[int], group: str) -> list[list[Submission]]:
    """One heat per seed. A run asked for twice, by two pages or clicks, is one: its key is its place in the race.

    Checkpoints are kept of seed 0 alone: one path per lane is what can be drawn.
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
    """A lane and its runs by seed, as the store has them."""

    label: str
    config: RunConfig
    runs: dict[int, Run]


class RunsOfLanes:
    """Base of a race and of a scaling study: all runs and seeds of its lanes."""

    __slots__ = ()
    lanes: tuple[RacedVariant, ...]

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for lane in self.lanes for seed in lane.runs})

    @property
    def runs(self) -> list[Run]:
        return [run for lane in self.lanes for run in lane.runs.values()]

    @property
    def is_over(self) -> bool:
        return all(run.is_over for run in self.runs)


@dataclass(frozen=True, slots=True)
class Race(RunsOfLanes):
    """All runs of one group, lane by lane."""

    group: str
    lanes: tuple[RacedVariant, ...]
    rounds: int = 1

    def as_lanes(self) -> tuple[Lane, ...]:
        """What to ask for to race once more, or with more seeds."""
        return tuple(Lane(label=lane.label, config=lane.config) for lane in self.lanes)


_GROUP = re.compile(r"[0-9a-f]{16}")


def find(store: Store, group: str, open_run: Callable[[str], Run] | None = None) -> Race | None:
    """The race of a group, or None where the store has none of its runs (any more)."""
    if not _GROUP.fullmatch(group):
        return None
    opened = open_run or store.run
    runs = []
    for row in store.rows(group=group):
        with contextlib.suppress(StoreError):  # one that cannot be read hides no other
            runs.append(opened(row.run_id))
    return of_runs(sorted(runs, key=lambda run: run.order), group=group)


def of_runs(runs: Sequence[Run], *, group: str = "") -> Race | None:
    """Runs as a race: those that differ in nothing but the seed are one lane, named as they are; those that do not even
    differ in that are lanes of their own."""
    lanes: dict[tuple[str, str], list[RacedVariant]] = {}
    for run in runs:
        alike = run.config.model_copy(update={"seed": 0, "checkpoints": 0})
        label = (run.queued.name if run.queued and group else "") or run.name or describe(run.config)
        same = lanes.setdefault((label, alike.fingerprint), [])
        if all(run.config.seed in lane.runs for lane in same):
            same.append(RacedVariant(label, alike, {}))
        next(lane for lane in same if run.config.seed not in lane.runs).runs[run.config.seed] = run
    if not lanes:
        return None
    unique: list[RacedVariant] = []
    for lane in itertools.chain(*lanes.values()):  # runs of the library may be called alike and be different
        taken, label, number = {other.label for other in unique}, lane.label, 2
        while label in taken:
            label, number = f"{lane.label} ({number})", number + 1
        unique.append(replace(lane, label=label))
    rounds = max((run.heat.round for run in runs if run.heat), default=1)
    return Race(group, tuple(unique), rounds)
