"""Results of a scaling study: what the ranks of each run measured, and the figures of each configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from engine.access import settings
from engine.events.machine import BUSY_FROM
from engine.events.training import Ranks
from engine.measurement import energy
from engine.store.run import Run
from engine.studies import paired_tests, race_results, races
from engine.studies.scaling import FEWEST_STEPS, Lane, Mode, Study
from engine.studies.scaling_estimates import Estimate, mean_of, paired_ratio, scaled_serial_share, serial_share

# Losses this close count as equal. Rounding differences grow from step to step, so they exceed it at some step.
AGREES = 1e-4


@dataclass(frozen=True, slots=True)
class RankTimes:
    """Means over a run, weighted by the steps of each window; seconds per step, one value per rank.

    `communication_s` is the time of communication, `waited_s` the part of it in which the rank waited instead of training.
    Both are None where they were not measured.
    """

    step_s: tuple[float, ...]
    communication_s: tuple[float, ...] | None
    waited_s: tuple[float, ...] | None
    method: str

    @property
    def own_s(self) -> tuple[float, ...] | None:
        """The time of each rank's own work."""
        if self.waited_s is None:
            return None
        return tuple(max(0.0, step - waited) for step, waited in zip(self.step_s, self.waited_s, strict=True))

    @property
    def for_slowest_s(self) -> float | None:
        """How much longer the mean rank waits than the slowest one, that is, the time it waits for slower ranks."""
        if self.waited_s is None:
            return None
        return float(np.mean(self.waited_s)) - min(self.waited_s)

    @property
    def straggler(self) -> tuple[int, float] | None:
        """The rank that the others wait for, and its own work / that of the fastest rank; None where ranks are about equal.

        All ranks end a step together, so the slow rank is not the one with the longest step but the one that waits least.
        """
        own = self.own_s
        if own is None or len(own) < 2 or min(own) <= 0 or max(own) <= BUSY_FROM * min(own):
            return None
        return own.index(max(own)), max(own) / min(own)


def rank_times(windows: Sequence[Ranks]) -> RankTimes | None:
    """The times of a run's ranks over all its windows; None where there is no window."""
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


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """The figures of one lane: medians over its finished runs; None where a figure is not known (yet)."""

    mode: Mode
    ranks: int
    label: str
    batch_size: int | str
    device: str
    strategy: str
    shared: bool  # there are more ranks than cores, so they take turns
    run_ids: list[str]
    status: dict[str, int]
    why: list[str]  # reasons of runs that did not finish
    busy: int  # number of runs during which other programs used the machine
    step_s: float | None
    samples_per_s: float | None
    speedup: Estimate | None  # samples/s / samples/s of one rank with the same seed
    is_provisional: bool  # no run has finished yet
    own_s: float | None  # per step: the mean rank's own work
    waited_s: float | None  # per step: how long the mean rank waits for communication and slower ranks
    for_slowest_s: float | None  # the part of `waited_s` for slower ranks
    communication_s: float | None  # per step: time of communication, also while the rank works
    cpu_share: float | None  # of one core, for the mean rank
    memory_bytes: int | None  # of all ranks together
    same_for: int | None  # strong scaling: number of first steps whose losses agree with one rank's, in every repeat
    compared: int  # the number of steps that were compared
    seconds_to_target: float | None
    joules: float | None  # of a whole run
    joules_to_target: float | None
    money_to_target: float | None

    @property
    def efficiency(self) -> Estimate | None:
        """Speed-up / number of ranks."""
        return None if self.speedup is None else self.speedup.scaled(1 / self.ranks)

    @property
    def waited_share(self) -> float | None:
        """Share of a step in which the mean rank waits."""
        return None if self.waited_s is None or not self.step_s else min(1.0, self.waited_s / self.step_s)

    @property
    def per_rank_batch(self) -> float | None:
        """Samples of each rank per step; None for the full batch."""
        return None if isinstance(self.batch_size, str) else self.batch_size / self.ranks


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a study, also while it runs."""

    study: Study
    lanes: tuple[LaneFigures, ...]
    serial: Estimate | None  # Amdahl's serial share, from strong scaling
    scaled_serial: Estimate | None  # Gustafson's serial share, from weak scaling
    method: str  # how communication was measured
    target: tuple[races.Metric, float] | None
    currency: str
    why_no_energy: str

    @property
    def base(self) -> LaneFigures:
        """The lane on 1 rank."""
        return self.lanes[0]

    def of(self, mode: Mode) -> list[LaneFigures]:
        """The lanes of a mode, the one on one rank first."""
        return [at for at in self.lanes if at.mode == mode or at.ranks == 1]

    @property
    def seeds(self) -> int:
        """The number of pairs that every lane has finished."""
        return min((at.speedup.n if at.speedup and not at.is_provisional else 0 for at in self.lanes), default=0)


def outcome_of(
    study: Study, *, target: tuple[races.Metric, float] | None = None, prices: settings.Energy = energy.NO_PRICES
) -> Outcome:
    """The results of a study, also while it runs. `prices` gives the cost in money."""
    lanes = tuple(_at(lane, study.base, target, prices) for lane in study.lanes)
    methods = [times.method for run in study.runs if (times := rank_times(run.all(Ranks)))]
    accounts = [energy.of_run(run) for run in study.runs if run.is_over]
    why = next((a.method for a in accounts if a.joules is None), "")
    return Outcome(
        study,
        lanes,
        _share_of(study, "strong", serial_share),
        _share_of(study, "weak", scaled_serial_share),
        methods[-1] if methods else "",
        target,
        prices.currency,
        why,
    )


def _at(lane: Lane, base: Lane, target: tuple[races.Metric, float] | None, prices: settings.Energy) -> LaneFigures:
    runs = list(lane.runs.values())
    finished = [run for run in runs if run.status == "finished"]
    counted = finished or [run for run in runs if not run.is_over and _rate(run) is not None]
    times = [t for run in counted if (t := rank_times(run.all(Ranks)))]
    rates = [rate for run in counted if (rate := _rate(run)) is not None]
    steps = [s for run in counted if (s := run.summary().step_seconds) is not None]
    spent = [race_results.to_target(run, *target) for run in finished] if target else []
    joules_to_target = paired_tests.median_or_not_reached([s.cost["joules"] for s in spent])
    same_for, compared = _same_steps(lane, base) if lane.mode == "strong" and lane.ranks > 1 else (None, 0)
    return LaneFigures(
        mode=lane.mode,
        ranks=lane.ranks,
        label=lane.label,
        batch_size=lane.config.batch_size,
        device=lane.config.device,
        strategy=lane.config.parallel.strategy,
        shared=lane.ranks > 1 and lane.config.device == "cpu" and bool(lane.config.parallel.devices),
        run_ids=[run.run_id for run in runs],
        status={status: sum(run.status == status for run in runs) for status in sorted({run.status for run in runs})},
        why=sorted({run.why() for run in runs if run.is_over and run.why()}),
        busy=sum(bool(run.summary().busy) for run in runs),
        step_s=paired_tests.median_of_known(steps),
        samples_per_s=paired_tests.median_of_known(rates),
        speedup=_speedup(lane, base),
        is_provisional=not finished,
        own_s=_mean_rank(t.own_s for t in times) if lane.ranks > 1 else paired_tests.median_of_known(steps),
        waited_s=_mean_rank(t.waited_s for t in times) if lane.ranks > 1 else 0.0 if steps else None,
        for_slowest_s=paired_tests.median_of_known([w for t in times if (w := t.for_slowest_s) is not None]),
        communication_s=_mean_rank(t.communication_s for t in times),
        cpu_share=paired_tests.median_of_known([share for run in counted if (share := _cpu_share(run)) is not None]),
        memory_bytes=_memory(finished),
        same_for=same_for,
        compared=compared,
        seconds_to_target=paired_tests.median_or_not_reached([s.cost["seconds"] for s in spent]),
        joules=paired_tests.median_of_known([j for run in finished if (j := run.summary().energy_j) is not None]),
        joules_to_target=joules_to_target,
        money_to_target=joules_to_target / 3.6e6 * prices.price_per_kwh
        if joules_to_target is not None and prices.price_per_kwh is not None
        else None,
    )


def _rate(run: Run) -> float | None:
    """Samples per second of training time; None before the first few steps."""
    summary = run.summary()
    return summary.samples_per_s if (summary.steps or 0) >= FEWEST_STEPS or run.status == "finished" else None


def _pairs(lane: Lane, base: Lane) -> tuple[list[float], list[float]]:
    """Samples/s of a lane's finished runs and of one rank with the same seeds; of running ones where none has finished."""
    both = {seed: (run, base.runs[seed]) for seed, run in lane.runs.items() if seed in base.runs}
    over = [pair for pair in both.values() if all(run.status == "finished" for run in pair)]
    counted = over or [pair for pair in both.values() if not any(r.is_over and r.status != "finished" for r in pair)]
    rates = [(a, b) for run, one in counted if (a := _rate(run)) and (b := _rate(one))]
    return [a for a, _ in rates], [b for _, b in rates]


def _speedup(lane: Lane, base: Lane) -> Estimate | None:
    values, ones = _pairs(lane, base)
    return paired_ratio(values, ones) if values else None


def _share_of(study: Study, mode: Mode, fit: Callable[[ArrayLike, ArrayLike], float]) -> Estimate | None:
    """A serial share with its interval: the mean of one fit per seed."""
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
    """How many first steps have the same losses as one rank, and how many were compared; the least of all repeats."""
    found = []
    for seed, run in lane.runs.items():
        if (one := base.runs.get(seed)) is None:
            continue
        n = min(len(run.steps), len(one.steps))
        differs = ~(np.abs(run.steps["loss"][:n] - one.steps["loss"][:n]) <= AGREES)  # NaN agrees with nothing
        if n:
            found.append((int(np.argmax(differs)) if differs.any() else n, n))
    return min(found, default=(None, 0))


def _cpu_share(run: Run) -> float | None:
    """CPU time / wall time of the mean rank; a run on one rank counts with its whole process."""
    known = [c for w in run.all(Ranks) for c in w.cpu_per_wall if c is not None]
    if not run.all(Ranks):
        percent = run.hardware["process_cpu_percent"]
        known = (percent[np.isfinite(percent)] / 100).tolist()
    return float(np.mean(known)) if known else None


def _mean_rank(values: Iterable[tuple[float, ...] | None]) -> float | None:
    """Median over runs of the mean over ranks."""
    return paired_tests.median_of_known([float(np.mean(per_rank)) for per_rank in values if per_rank is not None])


def _memory(runs: Sequence[Run]) -> int | None:
    """Memory of all ranks' processes together at the last reading, the largest of all runs."""
    known = [sum(b for b in last.memory_bytes if b is not None) for run in runs if (last := run.latest(Ranks))]
    if not known:
        alone = [b for run in runs if (b := run.summary().process_memory_bytes) is not None]
        return round(paired_tests.median_of_known([float(b) for b in alone]) or 0) or None
    return max(known) or None
