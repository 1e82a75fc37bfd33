"""Scaling: one training on 1, 2, 4 ... ranks, what that gains, what it costs, and whether it is worth it here.

Strong scaling keeps the global batch, so that every number of ranks takes the same steps: at best n ranks take 1/n of
the time (Amdahl 1967). Weak scaling keeps the batch of each rank: at best n ranks see n times the examples in the same
time (Gustafson 1988). One run on 1 rank is the first point of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.access import settings
from engine.common.errors import ConfigError, EngineError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.config.training import BUDGETS, FULL
from engine.events.machine import BUSY_FROM
from engine.events.training import Ranks
from engine.hardware.probe import Machine, gpu_index
from engine.measurement import energy
from engine.planning.planner import Plan
from engine.store.run import Run
from engine.store.store import Store, Submission
from engine.studies import paired_tests, race_results, races
from engine.studies.races import Race, RacedVariant, RunsOfLanes

Floats = NDArray[np.float64]
Mode = Literal["strong", "weak"]

LEVEL = 0.95
DEFAULT_SEEDS = 3
MOST_SEEDS = races.MOST_SEEDS
MOST_RANKS = 64
RUN_S = 3.0  # what a run on one rank should take: shorter, and the clock of a shared machine is mostly noise
AGREES = (
    1e-4  # losses this close are those of the same steps; rounding grows from step to step, and passes it somewhere
)
_LEAST_FOR_INTERVAL = 3  # of two pairs Student's t is 12.7: an interval that says nothing
_FEWEST_STEPS, _MOST_STEPS = 20, 5_000  # of a tiny net, whose step takes several ranks ten times as long


# --- numbers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure from n paired repeats; no interval from fewer than three."""

    value: float
    low: float | None
    high: float | None
    n: int

    def scaled(self, factor: float) -> Estimate:
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return Estimate(self.value * factor, low, high, self.n)

    @property
    def interval(self) -> str:
        """In words; empty where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"


def paired_ratio(values: ArrayLike, baseline: ArrayLike) -> Estimate:
    """Geometric mean of values / baseline, one of each per repeat, with Student's t interval of the mean log ratio.

    What a repeat had in common, a machine that was warm or busy, is in both and cancels. Raises EngineError for values that
    are not positive numbers.
    """
    a, b = _row(values), _row(baseline)
    if a.shape != b.shape or not len(a):
        raise EngineError(f"{len(a)} values do not go with {len(b)}.", fix="Give one pair per repeat.")
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (a > 0).all() and (b > 0).all()):
        raise EngineError("A ratio needs numbers above 0.", fix="Leave out runs that took no steps, and name them.")
    logs = np.log(a) - np.log(b)
    mean, half = float(logs.mean()), _half_width(logs)
    if half is None:
        return Estimate(math.exp(mean), None, None, len(logs))
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs))


def mean_of(values: ArrayLike) -> Estimate:
    """Arithmetic mean with Student's t interval, of three values or more."""
    row = _row(values)
    mean, half = float(row.mean()), _half_width(row)
    return Estimate(mean, None if half is None else mean - half, None if half is None else mean + half, len(row))


def _half_width(values: Floats) -> float | None:
    n = len(values)
    if n < _LEAST_FOR_INTERVAL:
        return None
    return paired_tests.t_quantile((1 + LEVEL) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)


def serial_share(ranks: ArrayLike, speedups: ArrayLike) -> float:
    """Amdahl's serial share s by least squares of the times: T(n)/T(1) = s + (1 - s)/n.

    Not bounded: above 1 more ranks take longer than one, below 0 they gain more than their number; the law has no word for
    either. Raises EngineError where no point has more than one rank.
    """
    n, speedup = _points(ranks, speedups)
    x, y = 1 - 1 / n, 1 / speedup - 1 / n
    return float(x @ y / (x @ x))


def scaled_serial_share(ranks: ArrayLike, speedups: ArrayLike) -> float:
    """Gustafson's serial share s of the time of n ranks, by least squares: scaled speed-up = n - (n - 1) s."""
    n, speedup = _points(ranks, speedups)
    x, y = n - 1, n - speedup
    return float(x @ y / (x @ x))


def amdahl(serial: float, ranks: ArrayLike) -> Floats:
    n = np.asarray(ranks, dtype=np.float64)
    return np.asarray(1 / (serial + (1 - serial) / n), dtype=np.float64)


def _points(ranks: ArrayLike, speedups: ArrayLike) -> tuple[Floats, Floats]:
    n, speedup = _row(ranks), _row(speedups)
    if n.shape != speedup.shape:
        raise EngineError(
            f"{len(n)} numbers of ranks do not go with {len(speedup)} speed-ups.", fix="Give one for each."
        )
    if not (n > 1).any():
        raise EngineError("One rank alone has no serial share to be found.", fix="Measure two or more.")
    if not (np.isfinite(speedup).all() and (speedup > 0).all()):
        raise EngineError("A speed-up is a number above 0.", fix="Leave out runs that took no steps, and name them.")
    return n, speedup


def _row(values: ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


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
    return max(_FEWEST_STEPS, min(_MOST_STEPS, power * max(k for k in (1, 2, 5) if k * power <= max(1.0, wanted))))


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


# --- what a run measured of its ranks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Means over a run, weighted by the steps of each window; seconds per step, one value per rank.

    `communication_s` is how long an exchange was under way, `waited_s` the part of it in which training stood still; both
    None where it was not measured.
    """

    step_s: tuple[float, ...]
    communication_s: tuple[float, ...] | None
    waited_s: tuple[float, ...] | None
    method: str

    @property
    def own_s(self) -> tuple[float, ...] | None:
        """What each rank works by itself."""
        if self.waited_s is None:
            return None
        return tuple(max(0.0, step - waited) for step, waited in zip(self.step_s, self.waited_s, strict=True))

    @property
    def for_slowest_s(self) -> float | None:
        """What the mean rank waits beyond whoever comes last, and so for nothing but the exchange itself."""
        if self.waited_s is None:
            return None
        return float(np.mean(self.waited_s)) - min(self.waited_s)

    @property
    def straggler(self) -> tuple[int, float] | None:
        """The rank the others wait for and its own work by that of the quickest; None where they are alike.

        Steps end together, so a slow rank does not show in the time of a step but in who waits least.
        """
        own = self.own_s
        if own is None or len(own) < 2 or min(own) <= 0 or max(own) <= BUSY_FROM * min(own):
            return None
        return own.index(max(own)), max(own) / min(own)


def rank_times(windows: Sequence[Ranks]) -> RankTimes | None:
    """The times of a run's ranks over all its windows; None where it said nothing of them."""
    if not windows:
        return None
    weights = np.array([w.steps[1] - w.steps[0] + 1 for w in windows], dtype=np.float64)

    def mean(columns: list[tuple[float | None, ...]]) -> tuple[float, ...] | None:
        if any(value is None for column in columns for value in column):
            return None
        means: list[float] = np.average(np.array(columns, dtype=np.float64), axis=0, weights=weights).tolist()
        return tuple(means)

    steps = mean([w.step_s for w in windows])
    assert steps is not None
    return RankTimes(
        steps, mean([w.communication_s for w in windows]), mean([w.waited_s for w in windows]), windows[-1].method
    )


# --- what it came to ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class At:
    """A lane in figures: medians over its finished runs, None where nothing is known (yet)."""

    mode: Mode
    ranks: int
    label: str
    batch_size: int | str
    device: str
    strategy: str
    shared: bool  # more ranks than devices: they take turns on cores
    run_ids: list[str]
    status: dict[str, int]
    why: list[str]  # of runs that did not finish
    busy: int  # of its runs: how many ran while something else used the machine
    step_s: float | None
    samples_per_s: float | None
    speedup: Estimate | None  # samples/s over those of one rank with the same seed
    is_provisional: bool  # of a run that goes on
    own_s: float | None  # per step: what the mean rank works by itself
    waited_s: float | None  # per step: what the mean rank stands still for the others and the exchange
    for_slowest_s: float | None  # of it, for ranks that are slower
    communication_s: float | None  # per step: how long an exchange was under way, also beside work
    cpu_share: float | None  # of a core, of the mean rank
    memory_bytes: int | None  # of all ranks together
    same_for: int | None  # strong: first steps whose losses agree with one rank's, in every repeat
    compared: int  # of so many
    seconds_to_target: float | None
    joules: float | None  # of a whole run
    joules_to_target: float | None
    money_to_target: float | None

    @property
    def efficiency(self) -> Estimate | None:
        return None if self.speedup is None else self.speedup.scaled(1 / self.ranks)

    @property
    def waited_share(self) -> float | None:
        """Share of a step in which the mean rank stands still for the others and the exchange."""
        return None if self.waited_s is None or not self.step_s else min(1.0, self.waited_s / self.step_s)

    @property
    def per_rank_batch(self) -> float | None:
        return None if isinstance(self.batch_size, str) else self.batch_size / self.ranks


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a study came to, also while it goes on."""

    study: Study
    lanes: tuple[At, ...]
    serial: Estimate | None  # Amdahl's share, of strong scaling
    scaled_serial: Estimate | None  # Gustafson's, of weak scaling
    method: str  # how communication was measured
    target: tuple[races.Metric, float] | None
    currency: str
    why_no_energy: str

    @property
    def base(self) -> At:
        return self.lanes[0]

    def of(self, mode: Mode) -> list[At]:
        """The lanes of a mode, the one on one rank first."""
        return [at for at in self.lanes if at.mode == mode or at.ranks == 1]

    @property
    def seeds(self) -> int:
        """Pairs that every lane has finished."""
        return min((at.speedup.n if at.speedup and not at.is_provisional else 0 for at in self.lanes), default=0)


def outcome_of(
    study: Study, *, target: tuple[races.Metric, float] | None = None, prices: settings.Energy = energy.NO_PRICES
) -> Outcome:
    """The figures of a study from whatever is recorded by now."""
    lanes = tuple(_at(lane, study.base, target, prices) for lane in study.lanes)
    said = [times.method for run in study.runs if (times := rank_times(run.all(Ranks)))]
    accounts = [energy.of_run(run) for run in study.runs if run.is_over]
    why = next((a.method for a in accounts if a.joules is None), "")
    return Outcome(
        study, lanes, _share_of(study, "strong", serial_share), _share_of(study, "weak", scaled_serial_share),
        said[-1] if said else "", target, prices.currency, why,
    )  # fmt: skip


def _at(lane: Lane, base: Lane, target: tuple[races.Metric, float] | None, prices: settings.Energy) -> At:
    runs = list(lane.runs.values())
    finished = [run for run in runs if run.status == "finished"]
    counted = finished or [run for run in runs if not run.is_over and _rate(run) is not None]
    times = [t for run in counted if (t := rank_times(run.all(Ranks)))]
    rates = [rate for run in counted if (rate := _rate(run)) is not None]
    steps = [run.summary().train_seconds / run.summary().steps for run in counted if run.summary().steps]
    spent = [race_results.to_target(run, *target) for run in finished] if target else []
    joules_to_target = paired_tests.median_or_not_reached([s.cost["joules"] for s in spent])
    same_for, compared = _same_steps(lane, base) if lane.mode == "strong" and lane.ranks > 1 else (None, 0)
    return At(
        mode=lane.mode, ranks=lane.ranks, label=lane.label, batch_size=lane.config.batch_size,
        device=lane.config.device, strategy=lane.config.parallel.strategy,
        shared=lane.ranks > 1 and lane.config.device == "cpu" and bool(lane.config.parallel.devices),
        run_ids=[run.run_id for run in runs],
        status={status: sum(run.status == status for run in runs) for status in sorted({run.status for run in runs})},
        why=sorted({run.why() for run in runs if run.is_over and run.why()}),
        busy=sum(bool(run.summary().busy) for run in runs),
        step_s=paired_tests.median_of_known(steps), samples_per_s=paired_tests.median_of_known(rates),
        speedup=_speedup(lane, base), is_provisional=not finished,
        own_s=_mean_rank(t.own_s for t in times) if lane.ranks > 1 else paired_tests.median_of_known(steps),
        waited_s=_mean_rank(t.waited_s for t in times) if lane.ranks > 1 else 0.0 if steps else None,
        for_slowest_s=paired_tests.median_of_known([w for t in times if (w := t.for_slowest_s) is not None]),
        communication_s=_mean_rank(t.communication_s for t in times),
        cpu_share=paired_tests.median_of_known([share for run in counted if (share := _cpu_share(run)) is not None]),
        memory_bytes=_memory(finished),
        same_for=same_for, compared=compared,
        seconds_to_target=paired_tests.median_or_not_reached([s.cost["seconds"] for s in spent]),
        joules=paired_tests.median_of_known([j for run in finished if (j := run.summary().energy_j) is not None]),
        joules_to_target=joules_to_target,
        money_to_target=joules_to_target / 3.6e6 * prices.price_per_kwh
        if joules_to_target is not None and prices.price_per_kwh is not None else None,
    )  # fmt: skip


def _rate(run: Run) -> float | None:
    """Examples per second of training time, once a few steps were taken."""
    summary = run.summary()
    return summary.samples_per_s if summary.steps >= _FEWEST_STEPS or run.status == "finished" else None


def _pairs(lane: Lane, base: Lane) -> tuple[list[float], list[float]]:
    """Rates of a lane's finished runs, and of one rank with the same seed; before one finished, of those that go on."""
    both = {seed: (run, base.runs[seed]) for seed, run in lane.runs.items() if seed in base.runs}
    over = [pair for pair in both.values() if all(run.status == "finished" for run in pair)]
    counted = over or [pair for pair in both.values() if not any(r.is_over and r.status != "finished" for r in pair)]
    rates = [(a, b) for run, one in counted if (a := _rate(run)) and (b := _rate(one))]
    return [a for a, _ in rates], [b for _, b in rates]


def _speedup(lane: Lane, base: Lane) -> Estimate | None:
    values, ones = _pairs(lane, base)
    return paired_ratio(values, ones) if values else None


def _share_of(study: Study, mode: Mode, fit: Callable[[ArrayLike, ArrayLike], float]) -> Estimate | None:
    """A serial share with its interval: fitted to each seed by itself, then their mean."""
    base, found = study.base, []
    for seed in study.seeds:
        one = base.runs.get(seed)
        runs = [(lane.ranks, lane.runs.get(seed)) for lane in study.lanes if lane.mode == mode and lane.ranks > 1]
        if one is None or one.status != "finished" or not runs:
            continue
        rates = [(n, rate) for n, run in runs if run and run.status == "finished" and (rate := _rate(run))]
        if len(rates) == len(runs) and (first := _rate(one)):
            found.append(fit([n for n, _ in rates], [rate / first for _, rate in rates]))
    return mean_of(found) if found else None


def _same_steps(lane: Lane, base: Lane) -> tuple[int | None, int]:
    """For how many first steps the losses agree with those of one rank, and how many steps both have; the least of all
    repeats."""
    found = []
    for seed, run in lane.runs.items():
        if (one := base.runs.get(seed)) is None:
            continue
        n = min(len(run.steps), len(one.steps))
        apart = ~(np.abs(run.steps["loss"][:n] - one.steps["loss"][:n]) <= AGREES)  # NaN agrees with nothing
        if n:
            found.append((int(np.argmax(apart)) if apart.any() else n, n))
    return min(found, default=(None, 0))


def _cpu_share(run: Run) -> float | None:
    """Of a core, of the mean rank; one rank is the run's whole process."""
    known = [c for w in run.all(Ranks) for c in w.cpu_per_wall if c is not None]
    if not run.all(Ranks):
        percent = run.hardware["process_cpu_percent"]
        known = (percent[np.isfinite(percent)] / 100).tolist()
    return float(np.mean(known)) if known else None


def _mean_rank(values: Iterable[tuple[float, ...] | None]) -> float | None:
    """Median over runs of the mean over ranks."""
    return paired_tests.median_of_known([float(np.mean(per_rank)) for per_rank in values if per_rank is not None])


def _memory(runs: Sequence[Run]) -> int | None:
    """Of all ranks' processes together, at the last look."""
    known = [sum(b for b in last.memory_bytes if b is not None) for run in runs if (last := run.latest(Ranks))]
    if not known:
        alone = [b for run in runs if (b := run.summary().process_memory_bytes) is not None]
        return round(paired_tests.median_of_known([float(b) for b in alone]) or 0) or None
    return max(known) or None
