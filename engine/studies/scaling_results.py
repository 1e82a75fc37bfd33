"""Results of a scaling study: what the ranks of each run measured, and the figures of each configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
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
from engine.studies.scaling_estimates import (
    Estimate,
    geometric_mean,
    mean_of,
    paired_ratio,
    possible_share,
    scaled_serial_share,
    serial_share,
)

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
    """The figures of one lane; None where a figure is not known (yet).

    Times and rates are geometric means over the repeats that every lane has finished. These are also the repeats of the
    speed-up, so it is the ratio of the rates. Memory is the largest of the finished runs; energy and figures to the target
    are medians over them.
    """

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
    serial: Estimate | None  # Amdahl's serial share (0..1), from strong scaling
    scaled_serial: Estimate | None  # Gustafson's serial share (0..1), from weak scaling
    why_no_serial: str  # why a fitted share is not known, as a part of a sentence; empty without a fit
    why_no_scaled_serial: str
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
    common = _common_seeds(study)
    lanes = tuple(_at(lane, study.base, common, target, prices) for lane in study.lanes)
    serial, why_no_serial = _share_of(study, common, "strong", serial_share)
    scaled_serial, why_no_scaled_serial = _share_of(study, common, "weak", scaled_serial_share)
    methods = [times.method for run in study.runs if (times := rank_times(run.all(Ranks)))]
    accounts = [energy.of_run(run) for run in study.runs if run.is_over]
    why = next((a.method for a in accounts if a.joules is None), "")
    return Outcome(
        study,
        lanes,
        serial,
        scaled_serial,
        why_no_serial,
        why_no_scaled_serial,
        methods[-1] if methods else "",
        target,
        prices.currency,
        why,
    )


def _common_seeds(study: Study) -> Set[int]:
    """The repeats that have finished on one rank and on every other lane that shares a finished repeat with it."""
    alone, *others = ({seed for seed, run in lane.runs.items() if run.status == "finished"} for lane in study.lanes)
    return alone.intersection(*(seeds for seeds in others if seeds & alone))


def _at(
    lane: Lane,
    base: Lane,
    common: Set[int],
    target: tuple[races.Metric, float] | None,
    prices: settings.Energy,
) -> LaneFigures:
    runs = list(lane.runs.values())
    finished = [run for run in runs if run.status == "finished"]
    measured = [run for seed, run in lane.runs.items() if seed in common and run.status == "finished"] or finished
    counted = measured or [run for run in runs if not run.is_over and _rate(run) is not None]
    times = [t for run in counted if (t := rank_times(run.all(Ranks)))]
    step_s = geometric_mean([s for run in counted if (s := run.summary().step_seconds)])
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
        step_s=step_s,
        samples_per_s=geometric_mean([rate for run in counted if (rate := _rate(run))]),
        speedup=_speedup(lane, base, common),
        is_provisional=not finished,
        own_s=_part(times, step_s, lambda t: t.own_s) if lane.ranks > 1 else step_s,
        waited_s=_part(times, step_s, lambda t: t.waited_s) if lane.ranks > 1 else step_s and 0.0,
        for_slowest_s=_part(times, step_s, lambda t: None if t.for_slowest_s is None else (t.for_slowest_s,)),
        communication_s=_part(times, step_s, lambda t: t.communication_s),
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


def _speedup(lane: Lane, base: Lane, common: Set[int]) -> Estimate | None:
    """Of the common repeats; without one, of other pairs that have finished, or of pairs that still run."""
    both = {seed: (run, base.runs[seed]) for seed, run in lane.runs.items() if seed in base.runs}
    over = {seed: pair for seed, pair in both.items() if all(run.status == "finished" for run in pair)}
    running = [pair for pair in both.values() if not any(r.is_over and r.status != "finished" for r in pair)]
    counted = [pair for seed, pair in over.items() if seed in common] or list(over.values()) or running
    rates = [(a, b) for run, one in counted if (a := _rate(run)) and (b := _rate(one))]
    return paired_ratio([a for a, _ in rates], [b for _, b in rates]) if rates else None


def _share_of(
    study: Study, common: Set[int], mode: Mode, fit: Callable[[ArrayLike, ArrayLike], float]
) -> tuple[Estimate | None, str]:
    """A serial share with its interval, the mean of one fit per repeat; None with the reason if no share fits."""
    base, found = study.base, []
    lanes = [lane for lane in study.lanes if lane.mode == mode and lane.ranks > 1]
    for seed in sorted(common):
        rates = [
            rate for lane in lanes if (run := lane.runs.get(seed)) and run.status == "finished" and (rate := _rate(run))
        ]
        if rates and len(rates) == len(lanes) and (first := _rate(base.runs[seed])):
            found.append(fit([lane.ranks for lane in lanes], [rate / first for rate in rates]))
    return possible_share(mean_of(found)) if found else (None, "")


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


def _part(
    times: Sequence[RankTimes], step_s: float | None, read: Callable[[RankTimes], tuple[float, ...] | None]
) -> float | None:
    """A part of a step of the mean rank, s: its mean share over the runs, of `step_s`. So the parts add up to a step."""
    shares = [float(np.mean(part) / np.mean(t.step_s)) for t in times if (part := read(t)) is not None]
    return step_s * float(np.mean(shares)) if shares and step_s is not None else None


def _memory(runs: Sequence[Run]) -> int | None:
    """Memory of all ranks' processes together at the last reading, the largest of all runs."""
    known = [sum(b for b in last.memory_bytes if b is not None) for run in runs if (last := run.latest(Ranks))]
    if not known:
        alone = [b for run in runs if (b := run.summary().process_memory_bytes) is not None]
        return round(paired_tests.median_of_known([float(b) for b in alone]) or 0) or None
    return max(known) or None
