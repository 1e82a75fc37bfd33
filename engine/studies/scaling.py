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
RUN_S = 3.0  # target duration of a run on one rank; times of shorter runs on a shared machine are mostly noise
FEWEST_STEPS, MOST_STEPS = 20, 5_000  # several ranks can take ten times as long for a step of a tiny network


# --- the plan ---------------------------------------------------------------------------------------------------------


def room(config: RunConfig, machine: Machine) -> int:
    """The number of ranks that can have a device each: the GPUs, or the usable cores divided by the threads of a rank."""
    if gpu_index(config.device) is not None:
        return len(machine.gpus)
    return machine.cpu.usable_cores // config.threads


def ranks_here(config: RunConfig, machine: Machine, *, beyond: bool = False) -> list[int]:
    """1, 2, 4 ... up to `room`; with `beyond`, on a CPU, one number more, whose ranks share cores."""
    most = max(1, room(config, machine))
    powers = [2**i for i in range(MOST_RANKS.bit_length()) if 2**i <= min(most, MOST_RANKS)]
    if beyond and gpu_index(config.device) is None and powers[-1] < MOST_RANKS:
        powers.append(2 * powers[-1])
    return powers


def parse_ranks(text: str) -> list[int]:
    """`1,2,4` as rising numbers. 1 is added where it is missing, because the others are compared with it.

    Raises:
        ConfigError: the text is no list of numbers, a number is not allowed, or there is only 1.
    """
    try:
        numbers = sorted({int(part) for part in text.replace(" ", "").strip(",").split(",")} | {1})
    except ValueError:
        raise ConfigError(f"ranks={text!r} is not a list of numbers.", fix="Write numbers, as in 1,2,4.") from None
    if not numbers[0] >= 1 or numbers[-1] > MOST_RANKS:
        raise ConfigError(f"ranks={text!r} is not allowed.", fix=f"Write whole numbers from 1 to {MOST_RANKS}.")
    if len(numbers) < 2:
        raise ConfigError("A scaling study needs at least two rank counts.", fix="Add one: ranks 1,2.")
    return numbers


def with_ranks(config: RunConfig, ranks: int, *, mode: Mode = "strong", shared: bool = False) -> RunConfig:
    """The same training on this number of ranks; `shared` where there are more ranks than cores.

    Raises:
        ConfigError: the configuration cannot run on so many ranks.
    """
    batch: int | str = config.batch_size
    if mode == "weak" and batch == FULL:
        raise ConfigError(
            "Weak scaling gives every rank a batch of its own, and batch_size=full has no samples left for a second one.",
            fix="Choose a smaller batch size, or strong scaling only.",
        )
    if mode == "weak" and isinstance(batch, int):
        batch *= ranks
    devices = ",".join(["cpu"] * ranks) if shared else ""
    return with_overrides(
        config, [f"batch_size={batch}", f"parallel.num_ranks={ranks}", f"parallel.devices=[{devices}]"]
    )


def as_base(config: RunConfig, steps: int) -> RunConfig:
    """The training of a study on one rank, with `steps` as its only budget, so that all its runs do the same work.

    Raises ConfigError for a number of steps that is not allowed.
    """
    others = [f"budget.{name}=none" for name in BUDGETS if name != "steps"]
    plain = ["task=train", "target.value=none", "checkpoints=0", "parallel.num_ranks=1", "parallel.devices=[]"]
    return with_overrides(config, [f"budget.steps={steps}", *others, *plain])


_ASSUMED_FLOPS_PER_S, _ASSUMED_STEP_S = {"cpu": 2e10, "cuda": 5e12}, 150e-6


def default_steps(config: RunConfig, plan: Plan) -> int:
    """Steps, 1, 2 or 5 x 10^k, that take about RUN_S on one rank. The assumed speed can be wrong by several times."""
    wanted = RUN_S / _assumed_step_s(config, plan)
    power = 10 ** math.floor(math.log10(max(1.0, wanted)))
    return max(FEWEST_STEPS, min(MOST_STEPS, power * max(k for k in (1, 2, 5) if k * power <= max(1.0, wanted))))


def estimate_seconds(config: RunConfig, plan: Plan, num_runs: int, steps: int) -> float:
    """A rough estimate of the whole study, if no run is faster than on one rank. It can be wrong by several times."""
    return num_runs * (1.0 + steps * _assumed_step_s(config, plan))


def _assumed_step_s(config: RunConfig, plan: Plan) -> float:
    flops_per_s = _ASSUMED_FLOPS_PER_S["cpu" if gpu_index(config.device) is None else "cuda"]
    return _ASSUMED_STEP_S + plan.batch_size * plan.train_flops_per_example / flops_per_s


def lanes_of(base: RunConfig, ranks: Sequence[int], *, weak: bool, most: int) -> list[races.Lane]:
    """The configurations of a study, the one on 1 rank first, named by `label_of`.

    `most` is the number of ranks that can have a device each; more ranks share cores. Raises ConfigError where a
    configuration is not possible.
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
    """The name of a configuration: `2 ranks`; for weak scaling with its batch size: `2 ranks, batch 128`."""
    words = f"{ranks} rank{'' if ranks == 1 else 's'}"
    if mode == "weak" and ranks > 1 and not isinstance(batch_size, str):
        words += f", batch {batch_size * ranks:,}"
    return words


def seed_blocks(lanes: Sequence[races.Lane], seeds: Sequence[int], group: str) -> list[list[Submission]]:
    """The runs to submit, each in a block of its own: blocks of one group run one after another, so runs never overlap.

    Every second seed takes the lanes in reverse order, so that a machine that grows warm or busy favours neither end.
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


# --- a study in the store ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lane(RacedVariant):
    """One number of ranks in one mode, with its runs by seed."""

    mode: Mode
    ranks: int


@dataclass(frozen=True, slots=True)
class Study(RunsOfLanes):
    """All runs of one study: the lane on 1 rank first, then strong and weak scaling with rising rank counts."""

    race: Race
    lanes: tuple[Lane, ...]

    @property
    def base(self) -> Lane:
        """The lane on 1 rank."""
        return self.lanes[0]


def find(store: Store, group: str, open_run: Callable[[str], Run] | None = None) -> Study | None:
    """The study of a group; None where the store has no run of it (any more). Raises ConfigError for other runs."""
    race = races.find(store, group, open_run)
    return None if race is None else of_race(race)


def of_race(race: Race) -> Study:
    """The runs of a race as a scaling study.

    Raises:
        ConfigError: they differ in more than rank count and batch size, or none is on one rank.
    """
    first = next((lane for lane in race.lanes if lane.config.parallel.num_ranks == 1), None)
    if first is None:
        raise ConfigError("None of these runs is on one rank, so there is no baseline.", fix="Start a new study.")
    lanes = [_placed(lane, first) for lane in race.lanes]
    order = {"strong": 0, "weak": 1}
    return Study(race, tuple(sorted(lanes, key=lambda lane: (lane.ranks > 1, order[lane.mode], lane.ranks))))


def _placed(lane: RacedVariant, first: RacedVariant) -> Lane:
    """A lane with its mode, which its batch size shows.

    Raises:
        ConfigError: it differs from the lane on one rank in more than rank count and batch size.
    """
    ranks, batch, own = lane.config.parallel.num_ranks, lane.config.batch_size, first.config.batch_size
    allowed = {"parallel": first.config.parallel, "batch_size": own, "seed": first.config.seed}
    mode: Mode | None = "strong" if batch == own else "weak" if own != FULL and batch == ranks * own else None
    if mode is None or lane.config.model_copy(update=allowed) != first.config:
        raise ConfigError(
            f"{lane.label!r} differs from {first.label!r} in more than ranks and batch size. This is a race, not a scaling study.",
            fix="Open it under Compare.",
        )
    return Lane(lane.label, lane.config, lane.runs, mode, ranks)
