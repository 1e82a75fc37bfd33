"""Scaling studies: which configurations are run on 1, 2, 4 ... ranks, and how their runs are found again.

Strong scaling keeps the global batch size, so that every number of ranks takes the same steps: at best n ranks take 1/n of
the time (Amdahl 1967). Weak scaling keeps the batch size of each rank: at best n ranks process n times the samples in the
same time (Gustafson 1988). The run on 1 rank is the first point of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.training import BUDGETS, FULL
from engine.hardware.probe import Machine, gpu_index
from engine.planning.planner import Plan
from engine.store.run import Run
from engine.store.store import Store, Submission
from engine.studies import races
from engine.studies.races import Race, RacedVariant, RunsOfLanes

Mode = Literal["strong", "weak"]
DEFAULT_SEEDS = 3
MOST_SEEDS = races.MOST_SEEDS
MOST_RANKS = 64
RUN_S = 3.0  # what a run on one rank should take: shorter, and the clock of a shared machine is mostly noise
FEWEST_STEPS, MOST_STEPS = 20, 5_000  # of a tiny net, whose step takes several ranks ten times as long


# --- what is asked for ------------------------------------------------------------------------------------------------


def room(config: RunConfig, machine: Machine) -> int:
    """How many ranks this machine has a device of their own for: GPUs, or usable cores by the threads of a rank."""
    if gpu_index(config.device) is not None:
        return len(machine.gpus)
    return machine.cpu.usable_cores // config.threads


def ranks_here(config: RunConfig, machine: Machine, *, beyond: bool = False) -> list[int]:
    """1, 2, 4 ... up to what this machine has; with `beyond` one more, which must share (never of GPUs)."""
    most = max(1, room(config, machine))
    powers = [2**i for i in range(MOST_RANKS.bit_length()) if 2**i <= min(most, MOST_RANKS)]
    if beyond and gpu_index(config.device) is None and powers[-1] < MOST_RANKS:
        powers.append(2 * powers[-1])
    return powers


def parse_ranks(text: str) -> list[int]:
    """`1,2,4` as numbers, rising, 1 among them: without it nothing is to be compared with. Raises ConfigError."""
    try:
        numbers = sorted({int(part) for part in text.replace(" ", "").strip(",").split(",")} | {1})
    except ValueError:
        raise ConfigError(f"ranks={text!r} is not understood.", fix="Write numbers, as in 1,2,4.") from None
    if not numbers[0] >= 1 or numbers[-1] > MOST_RANKS:
        raise ConfigError(f"ranks={text!r} is not allowed.", fix=f"Each may be a whole number from 1 to {MOST_RANKS}.")
    if len(numbers) < 2:
        raise ConfigError("One rank alone is no study.", fix="Name at least one more: ranks 1,2.")
    return numbers


def with_ranks(config: RunConfig, ranks: int, *, mode: Mode = "strong", shared: bool = False) -> RunConfig:
    """The same training on so many ranks; `shared` where more of them are wanted than there are cores.

    Raises ConfigError for what does not go with so many, in the sentence of a form.
    """
    batch: int | str = config.batch_size
    if mode == "weak" and batch == FULL:
        raise ConfigError(
            "Weak scaling gives every rank a batch of its own, and batch_size=full is all there is.",
            fix="Choose a smaller batch, or strong scaling alone.",
        )
    if mode == "weak" and isinstance(batch, int):
        batch *= ranks
    devices = ",".join(["cpu"] * ranks) if shared else ""
    return with_overrides(
        config, [f"batch_size={batch}", f"parallel.num_ranks={ranks}", f"parallel.devices=[{devices}]"]
    )


def as_base(config: RunConfig, steps: int) -> RunConfig:
    """The training of a study, on one rank: so many steps and no end before them, so that all its runs do the same work.

    Raises ConfigError for a number of steps that cannot be.
    """
    others = [f"budget.{name}=none" for name in BUDGETS if name != "steps"]
    plain = ["task=train", "target.value=none", "checkpoints=0", "parallel.num_ranks=1", "parallel.devices=[]"]
    return with_overrides(config, [f"budget.steps={steps}", *others, *plain])


_ASSUMED_FLOPS_PER_S, _ASSUMED_STEP_S = {"cpu": 2e10, "cuda": 5e12}, 150e-6


def default_steps(config: RunConfig, plan: Plan) -> int:
    """Steps that take about RUN_S on one rank, by a speed that is assumed: good to a factor of some; 1, 2 or 5 x 10^k."""
    wanted = RUN_S / _assumed_step_s(config, plan)
    power = 10 ** math.floor(math.log10(max(1.0, wanted)))
    return max(FEWEST_STEPS, min(MOST_STEPS, power * max(k for k in (1, 2, 5) if k * power <= max(1.0, wanted))))


def estimate_seconds(config: RunConfig, plan: Plan, num_runs: int, steps: int) -> float:
    """An estimate of the whole study, where no run is faster than on one rank: good to a factor of some."""
    return num_runs * (1.0 + steps * _assumed_step_s(config, plan))


def _assumed_step_s(config: RunConfig, plan: Plan) -> float:
    flops_per_s = _ASSUMED_FLOPS_PER_S["cpu" if gpu_index(config.device) is None else "cuda"]
    return _ASSUMED_STEP_S + plan.batch_size * plan.train_flops_per_example / flops_per_s


def lanes_of(base: RunConfig, ranks: Sequence[int], *, weak: bool, most: int) -> list[races.Lane]:
    """The configurations of a study, the one on 1 rank first; each named by what it has of ranks and batch.

    Beyond `most` ranks, those with a device of their own, they share. Raises ConfigError for what cannot be.
    """
    many = [n for n in ranks if n > 1]
    modes: list[tuple[Mode, int]] = [("strong", n) for n in (1, *many)] + ([("weak", n) for n in many] if weak else [])
    return [
        races.Lane(
            label=label_of(mode, n, base.batch_size),
            config=with_ranks(base, n, mode=mode, shared=n > max(1, most) and base.device == "cpu"),
        )
        for mode, n in modes
    ]


def label_of(mode: Mode, ranks: int, batch_size: int | str) -> str:
    """2 ranks; of weak scaling also the batch, which is what is different: 2 ranks, batch 128."""
    words = f"{ranks} rank{'' if ranks == 1 else 's'}"
    if mode == "weak" and ranks > 1 and not isinstance(batch_size, str):
        words += f", batch {batch_size * ranks:,}"
    return words


def seed_blocks(lanes: Sequence[races.Lane], seeds: Sequence[int], group: str) -> list[list[Submission]]:
    """A heat of its own for each run: heats of one group follow each other, so no two of them share the machine.

    Every second seed goes through the lanes backwards: a machine that grows warm or busy favours neither end.
    """
    ordered = [
        (number, lane, seed)
        for place, seed in enumerate(seeds)
        for number, lane in (list(enumerate(lanes)) if place % 2 == 0 else list(enumerate(lanes))[::-1])
    ]
    return [
        [Submission(lane.config.model_copy(update={"seed": seed}), lane.label, f"{group} scale {number} {seed}")]
        for number, lane, seed in ordered
    ]


# --- a study that was run ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane(RacedVariant):
    """One number of ranks in one mode, with its runs by seed."""

    mode: Mode
    ranks: int


@dataclass(frozen=True, slots=True)
class Study(RunsOfLanes):
    """All runs of one study; the lane on 1 rank first, then strong and weak with rising ranks."""

    race: Race
    lanes: tuple[Lane, ...]

    @property
    def base(self) -> Lane:
        return self.lanes[0]


def find(store: Store, group: str, open_run: Callable[[str], Run] | None = None) -> Study | None:
    """The study of a group, or None where the store has none of its runs (any more). Raises ConfigError for other runs."""
    race = races.find(store, group, open_run)
    return None if race is None else of_race(race)


def of_race(race: Race) -> Study:
    """Lanes as a study; raises ConfigError where they differ in more than ranks and batch, or none is on one rank."""
    first = next((lane for lane in race.lanes if lane.config.parallel.num_ranks == 1), None)
    if first is None:
        raise ConfigError(
            "None of these runs is on one rank: there is nothing to compare with.", fix="Start a new study."
        )
    lanes = [_placed(lane, first) for lane in race.lanes]
    order = {"strong": 0, "weak": 1}
    return Study(race, tuple(sorted(lanes, key=lambda lane: (lane.ranks > 1, order[lane.mode], lane.ranks))))


def _placed(lane: RacedVariant, first: RacedVariant) -> Lane:
    """Which mode a lane is of, by its batch against that of the lane on one rank."""
    ranks, batch, own = lane.config.parallel.num_ranks, lane.config.batch_size, first.config.batch_size
    apart = {"parallel": first.config.parallel, "batch_size": own, "seed": first.config.seed}
    mode: Mode | None = "strong" if batch == own else "weak" if own != FULL and batch == ranks * own else None
    if mode is None or lane.config.model_copy(update=apart) != first.config:
        raise ConfigError(
            f"{lane.label!r} differs from {first.label!r} in more than ranks and batch: that is a race, no scaling study.",
            fix="Open it under Compare.",
        )
    return Lane(lane.label, lane.config, lane.runs, mode, ranks)
