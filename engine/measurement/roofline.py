"""The roofline model of a run: which ceiling of its device limits it, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from engine.common import units
from engine.common.errors import EngineError
from engine.config.data import USER_DATA
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.data import loading
from engine.events.machine import Calibration
from engine.measurement import calibration, step_breakdown
from engine.measurement.calibration import LatestCalibration
from engine.measurement.cost import MOST_MFU, Part, data_sheet_mfu, flops_per_s, mfu, parts_of_step, working_set_bytes
from engine.planning import planner
from engine.store.run import Run

Bound = Literal["arithmetic", "memory", "overhead", "input", "mixed"]
_BOUNDS = 0.4  # a lower bound of at least this share of a step is said to limit the run
_INPUT = 0.3  # data that takes at least this share of a step limits the run
_STARVED = 0.8  # a run with a smaller share of its threads' CPU time had to wait for a core


@dataclass(frozen=True, slots=True)
class Roofline:
    """A run's place in the roofline model of its device. `times_s` are lower bounds of the time of one step."""

    step_s: float  # measured on the training clock
    flops: int  # of a step, derived
    bytes_moved: int  # of a step, derived, a lower bound
    working_set_bytes: int
    parts: tuple[Part, ...]
    attained_flops_per_s: float
    peak_flops_per_s: float
    bandwidth_bytes_per_s: float
    served_by: Literal["cache", "memory"]
    times_s: Mapping[str, float]  # arithmetic, memory, overhead
    input_share: float | None
    bound: Bound
    in_words: str
    try_next: str

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes_moved

    @property
    def attainable_flops_per_s(self) -> float:
        """The roof at the run's intensity."""
        return attainable(self.intensity, self.peak_flops_per_s, self.bandwidth_bytes_per_s)

    @property
    def attained_fraction(self) -> float:
        """FLOP/s attained / FLOP/s attainable."""
        return self.attained_flops_per_s / self.attainable_flops_per_s


def attainable(intensity: float, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
    """The roof at an intensity in FLOPs per byte (Williams, Waterman & Patterson 2009, "Roofline", CACM 52(4))."""
    return min(peak_flops_per_s, intensity * bandwidth_bytes_per_s)


def roofline(run: Run, found: LatestCalibration | None, *, input_share: float | None = None) -> Roofline | str:
    """A run's place in the roofline model, or the reason why it has none.

    `input_share` is the share of a step that data takes; by default, that of the run's profiled step.
    """
    config, attained, s = run.config, flops_per_s(run), run.summary()
    if input_share is None:
        input_share = _input_share(run)
    measured = mfu(config, attained, found)
    if measured.peak_flops_per_s is None or found is None or attained is None or s.samples_per_s is None:
        return measured.reason
    if config.data in USER_DATA or config.source.path:
        return "The bytes of a step cannot be derived for your own files, because the run does not record their shape."
    threads = calibration.threads_of(config)
    memory = calibration.bandwidth(found.calibration, threads)
    if memory is None:
        why = calibration.why_missing(found.calibration, "copy", None, threads)
        return f"The calibration has no memory bandwidth for this thread count. {why}".strip()
    try:
        data = loading.facts(config.data, config.source)
        plan = planner.plan(config, data=data, free_bytes=0)
    except EngineError as error:
        return str(error)
    parts = parts_of_step(config, data, batch_size=plan.batch_size, micro_batch=plan.micro_batch)
    held = working_set_bytes(config, data, plan.micro_batch)
    rate = memory.of(held)
    step_s = plan.batch_size / s.samples_per_s
    per_operation = calibration.first(found.calibration, "op", "launch")
    times = {
        "arithmetic": sum(p.flops for p in parts) / measured.peak_flops_per_s,
        "memory": sum(p.bytes_moved for p in parts) / rate.p05,
        "overhead": sum(p.operations for p in parts) * (per_operation.p05 if per_operation else 0.0),
    }
    share = cpu_share(run)
    ran_s = step_s * share if share is not None and share < _STARVED else step_s
    bound = what_bounds(times, ran_s, input_share)
    words = _bound_in_words(bound, times, step_s, ran_s, input_share)
    roof = attainable(
        sum(p.flops for p in parts) / sum(p.bytes_moved for p in parts), measured.peak_flops_per_s, rate.p05
    )
    if attained > MOST_MFU * roof:
        words += (
            " The run is above the roofline, so memory bandwidth was measured too low. Calibrate again on an idle "
            "machine."
        )
    return Roofline(
        step_s=step_s,
        flops=sum(p.flops for p in parts),
        bytes_moved=sum(p.bytes_moved for p in parts),
        working_set_bytes=held,
        parts=parts,
        attained_flops_per_s=attained,
        peak_flops_per_s=measured.peak_flops_per_s,
        bandwidth_bytes_per_s=rate.p05,
        served_by="cache" if rate is memory.cache else "memory",
        times_s=times,
        input_share=input_share,
        bound=bound,
        in_words=words,
        try_next=_try_next(bound, config, found.calibration),
    )


def _input_share(run: Run) -> float | None:
    """Share of a step's training time that data takes; None where no step was profiled, or its parts are in doubt."""
    found = step_breakdown.of_run(run)
    return None if found.doubt else found.shares.get("data")


def cpu_share(run: Run) -> float | None:
    """CPU time of a CPU run's process / wall time of its threads, from the samples; None without samples or on a GPU."""
    percent = run.hardware["process_cpu_percent"]
    percent = percent[np.isfinite(percent)]
    if run.config.device != "cpu" or not len(percent):
        return None
    return float(np.mean(percent)) / 100 / run.config.threads


def what_bounds(times_s: Mapping[str, float], step_s: float, input_share: float | None = None) -> Bound:
    """What limits a step of `step_s` seconds.

    It is the input if that takes at least 30 % of the step, else the largest of the lower bounds `times_s` if that takes at
    least 40 %, else "mixed".
    """
    if input_share is not None and input_share >= _INPUT:
        return "input"
    name, longest = max(times_s.items(), key=lambda item: item[1])
    if longest < _BOUNDS * step_s:
        return "mixed"
    return "arithmetic" if name == "arithmetic" else "memory" if name == "memory" else "overhead"


_WORDS: Mapping[Bound, str] = {
    "arithmetic": "Limited by compute",
    "memory": "Limited by memory bandwidth",
    "overhead": "Limited by the overhead of operations",
    "input": "Limited by data loading",
    "mixed": "Not limited by a single ceiling",
}


def _bound_in_words(
    bound: Bound, times_s: Mapping[str, float], step_s: float, ran_s: float, input_share: float | None
) -> str:
    """The lower bounds as shares of a step, in a sentence. They can overlap."""
    shares = {name: seconds / ran_s for name, seconds in times_s.items()}
    sentences = [f"{_WORDS[bound]}."]
    if bound == "input" and input_share is not None:
        sentences.append(f"Fetching data takes {units.percent(input_share)} of a step.")
    step = f"Of a step of {units.duration(step_s)}"
    if ran_s < step_s:
        busy = f"The process ran in {units.percent(ran_s / step_s)} of a step of {units.duration(step_s)}; the machine was busy."
        sentences.append(busy)
        step = "Of that time"
    sentences.append(
        f"{step}, matrix products at the measured peak take {_share(shares['arithmetic'])}, memory traffic "
        f"{_at_least(shares['memory'])}, and the start of operations {_at_least(shares['overhead'])}."
    )
    if bound == "mixed":
        sentences.append(
            "The rest is work between the products (activations, pooling, norms), operations that are not counted, and "
            "products too small to reach the peak."
        )
    return " ".join(sentences)


def _share(share: float) -> str:
    return units.percent(share) if share >= 0.005 else "under 1 %"


def _at_least(share: float) -> str:
    return f"at least {units.percent(share)}" if share >= 0.005 else "almost nothing"


def _try_next(bound: Bound, config: RunConfig, made: Calibration) -> str:
    if bound == "arithmetic":
        return _more_arithmetic(config, made)
    if bound == "input":
        if config.execution != "dataloader":
            return "smaller inputs take less time to gather into batches."
        return "execution=eager keeps the data on the device and shuffles a whole epoch at once."
    advice = []
    if config.batch_size != FULL:
        advice.append(_LARGER_BATCH[bound])
    if bound == "memory" and config.optimizer.facts.states_per_parameter > 1:
        advice.append(f"sgd and momentum keep less state than {config.optimizer.name}")
    if bound != "memory" and config.device != "cpu" and config.execution != "cuda-graph":
        advice.append("execution=cuda-graph starts a whole step at once")
    return (
        "; ".join(advice) + "."
        if advice
        else "the batch is already the whole training set, so only another model or device can help."
    )


_LARGER_BATCH: Mapping[Bound, str] = {
    "memory": "a larger batch size reads the weights less often per sample",
    "overhead": "a larger batch size does more work per operation",
    "mixed": "a larger batch size makes larger products; compare the samples/s",
}


def _more_arithmetic(config: RunConfig, made: Calibration) -> str:
    """Advice: a faster precision or thread count that the calibration has measured."""
    threads = calibration.threads_of(config)
    now = calibration.peak(made, config.precision, threads)
    options = [
        (best.p05, f"precision={dtype}") for dtype, best in calibration.peaks(made, threads).items() if dtype != "int8"
    ]
    if config.device == "cpu":
        options += [
            (best.p05, f"threads={n}") for n in made.threads if (best := calibration.peak(made, config.precision, n))
        ]
    rate, what = max(options, default=(0.0, ""))
    if now is None or rate < 1.1 * now.p05:
        return (
            "the run is near the peak of this device in this precision, so only fewer FLOPs or another device can help."
        )
    return f"with {what}, matrix products were {rate / now.p05:.1f} times as fast in the calibration."


def as_json(run: Run, found: LatestCalibration | None) -> dict[str, Any]:
    """MFU against both peaks and the roofline, with all that they are computed from. An unknown value is None, with a reason."""
    device, name = calibration.of_run(run)
    attained = flops_per_s(run)
    point = roofline(run, found)
    return {
        "attained_flops_per_s": attained,
        "measured_peak": asdict(mfu(run.config, attained, found)),
        "data_sheet": asdict(data_sheet_mfu(run.config, attained, name)),
        "calibration": None
        if found is None
        else {
            "run_id": found.run_id,
            "at": found.calibration.at,
            "device": device,
            "device_name": name,
            "threads": calibration.threads_of(run.config),
            "dtype": run.config.precision,
        },
        "roofline": None if isinstance(point, str) else _point_as_json(point),
        "roofline_reason": point if isinstance(point, str) else None,
    }


def _point_as_json(point: Roofline) -> dict[str, Any]:
    values = asdict(point)
    values["parts"] = [asdict(part) | {"intensity": part.intensity} for part in point.parts]
    return values | {
        "intensity": point.intensity,
        "attainable_flops_per_s": point.attainable_flops_per_s,
        "attained_fraction": point.attained_fraction,
        "method": "step_s measured on the training clock; flops derived; bytes_moved and times_s derived lower bounds",
    }
