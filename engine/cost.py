"""What a run costs and what bounds it: FLOP/s attained, MFU, bytes moved, arithmetic intensity, the roofline.

FLOPs are those of `models` and seconds those of the training clock, so every figure here can be had again from
`show --json`. Bytes are a lower bound: what each matrix product must read and write once, and what the optimizer touches.
Activations, norms, pooling and what a cache is too small to keep come on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from engine import calibration, loading, models, planner, split, units
from engine.calibration import Found
from engine.config import FULL, USER_DATA, RunConfig
from engine.datasets import Dataset
from engine.errors import EngineError
from engine.models import family_of
from engine.models.arithmetic import FLOAT_BYTES, Product
from engine.models.cnn import KERNEL, SIGNAL_KERNELS
from engine.peaks import VendorPeak, vendor_peak
from engine.records import Calibration
from engine.store import Run

Bound = Literal["arithmetic", "memory", "overhead", "input", "mixed"]
MOST_MFU = 1.05  # of a measured peak: more says that the peak is wrong, not that the run is good
_BOUNDS = 0.4  # share of a step from which a lower bound is called what bounds it
_INPUT = 0.3  # share of a step spent on data from which that does
_STARVED = 0.8  # of its threads' time: a run that had less was kept waiting
_HALF = {"bf16", "fp16"}


# --- FLOP/s and MFU -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mfu:
    """Model FLOP/s over a peak, or why it is withheld. `value` and `reason` exclude each other."""

    value: float | None
    reason: str = ""
    peak_flops_per_s: float | None = None
    peak_from: str = ""


def flops_per_s(run: Run) -> float | None:
    """FLOP/s of training: matrix products and convolutions over the training clock, warm-up and evaluation left out."""
    s = run.summary()
    return s.flops / s.train_seconds if s.flops and s.train_seconds else None


def _unfit(config: RunConfig, attained: float | None, quantized: bool) -> str:
    """Why a run has no MFU against any peak; empty where it may have one."""
    if config.task != "train":
        return "Only a training run has an MFU."
    if attained is None:
        return "The run has taken no step."
    if quantized:
        return "Quantised weights: their products are not those a floating-point peak is of."
    if config.parallel.num_ranks > 1:
        return "Several ranks computed it: a peak is that of one device, and of its cores together none was measured."
    return ""


def mfu(config: RunConfig, attained: float | None, found: Found | None, *, quantized: bool = False) -> Mfu:
    """Against the peak this device was measured at, in the run's precision and with its threads."""
    if reason := _unfit(config, attained, quantized):
        return Mfu(None, reason)
    assert attained is not None
    if found is None:
        return Mfu(None, "This device was not calibrated in this store: python -m engine calibrate.")
    made, threads, dtype = found.calibration, calibration.threads_of(config), config.precision
    if config.device == "cpu" and threads not in made.threads:
        counts = ", ".join(map(str, made.threads))
        return Mfu(None, f"The run had {threads} threads, and the calibration measured {counts}.")
    best = calibration.peak(made, dtype, threads)
    if best is None or not best.p05:
        why = made.missing.get(f"gemm {dtype}", "")
        return Mfu(None, f"The calibration has no peak in {dtype}. {why}".strip())
    where = f"calibration {found.run_id}"
    value = attained / best.p05
    if value > MOST_MFU:
        why = f"It would be {units.percent(value)} of the measured peak: the calibration read too low. Calibrate again."
        return Mfu(None, why, best.p05, where)
    return Mfu(value, "", best.p05, where)


def data_sheet_mfu(
    config: RunConfig, attained: float | None, device_name: str | None, *, quantized: bool = False,
    peak: VendorPeak | None = None,
) -> Mfu:  # fmt: skip
    """Against the vendor's dense peak; `peak` replaces the table's entry."""
    if reason := _unfit(config, attained, quantized):
        return Mfu(None, reason)
    assert attained is not None
    if config.device == "cpu":
        return Mfu(None, "No data sheet is held for CPUs: what their clock does under load is measured.")
    sheet = peak or vendor_peak(device_name or "")
    if sheet is None:
        return Mfu(None, f"No data sheet is held for {device_name or 'this device'}.")
    if not sheet.dense:
        return Mfu(None, "The peak held for this device counts structured sparsity, which no run here has.")
    if config.precision not in sheet.flops_per_s:
        return Mfu(None, f"The data sheet of {sheet.device_name} has no {config.precision}.")
    most = sheet.flops_per_s[config.precision]
    return Mfu(attained / most, "", most, f"{sheet.source.name}: {sheet.source.url}")


# --- bytes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What the layers of one kind do in an optimizer step."""

    kind: str  # linear, conv, recurrent, attention; optimizer
    flops: int
    bytes_moved: int  # at least
    operations: int  # calls of a kernel, at least

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0


def parts_of_step(config: RunConfig, data: Dataset, *, batch_size: int, micro_batch: int) -> tuple[Part, ...]:
    """An optimizer step by kind of layer, the optimizer last.

    Each product reads both factors and writes its result once, forward and for each gradient; attention reads queries, keys
    and values and writes its output, its scores stay in the cache. Half precision moves 2 bytes a value, the optimizer
    always 4: weights, gradients and state are read, weights and state written.
    """
    size = 2 if config.precision in _HALF else FLOAT_BYTES
    passes = -(-batch_size // micro_batch)
    found: dict[str, list[int]] = {}
    for place, product in enumerate(models.products(config.model, data)):
        weights, values = _values(product, config, data, place)
        entry = found.setdefault(product.kind, [0, 0, 0])
        entry[0] += batch_size * product.train_flops
        entry[1] += size * (passes * weights + batch_size * values)
        entry[2] += passes * _operations(product, config)
    layers = [Part(kind, *numbers) for kind, numbers in found.items()]
    return (*layers, _optimizer_part(config, data, passes))


def _values(product: Product, config: RunConfig, data: Dataset, place: int) -> tuple[int, int]:
    """Values moved by a product in training: of the matrix, per pass; of vectors, per example."""
    passes_back = 1 if product.input_gradient_rows == 0 else 2
    if not product.weights:  # one of attention's two: half of queries, keys, values, output and their gradients
        width = product.rows * (product.fan_in if product.fan_out == _positions(config, data) else product.fan_out)
        return 0, 6 * width
    matrix = product.fan_in * product.fan_out
    reads = _pixels_per_output(product, data, place)
    vectors_in, vectors_out = product.rows * reads, product.rows * product.fan_out
    # forward: in, W -> out; gradient of W: in, dout -> dW; gradient of the input: W, dout -> din
    weights = 2 * matrix + (matrix if passes_back == 2 else 0)
    values = 2 * vectors_in + 2 * vectors_out + ((vectors_in + vectors_out) if passes_back == 2 else 0)
    return weights, values


def _positions(config: RunConfig, data: Dataset) -> int:
    return models.input_shape(config.model, data)[0]


def _pixels_per_output(product: Product, data: Dataset, place: int) -> int:
    """A convolution reads each pixel once, not once per place of its kernel."""
    if product.kind != "conv":
        return product.fan_in
    return product.fan_in // (KERNEL**2 if data.kind == "image" else SIGNAL_KERNELS[place])


def _operations(product: Product, config: RunConfig) -> int:
    """Kernels of a product forward and back; a recurrent one waits for its own last result, step by step."""
    each = (2 if product.input_gradient_rows == 0 else 3) + (1 if product.bias and product.weights else 0)
    own = product.kind == "recurrent" and product.input_gradient_rows == product.rows - 1
    step_by_step = own and not family_of(config.model).is_fused_recurrence(config.model)
    return each * (product.rows if step_by_step else 1)


def _optimizer_part(config: RunConfig, data: Dataset, passes: int) -> Part:
    """With what every pass has around its products: examples and labels taken, the loss there, back, and kept."""
    count = models.parameters(config.model, data)
    state = models.optimizer_bytes(config.optimizer, config.model, data)
    touched = 3 * FLOAT_BYTES * count + 2 * state  # weights and gradients read, weights written; state both
    if config.ema_decay:
        touched += 3 * FLOAT_BYTES * count
    if config.max_grad_norm:
        touched += FLOAT_BYTES * count
    return Part("optimizer", 0, touched, 5 * passes + 1)


def working_set_bytes(config: RunConfig, data: Dataset, micro_batch: int) -> int:
    """What a step goes through: weights, gradients, optimizer state, activations and its own examples."""
    weights = FLOAT_BYTES * models.parameters(config.model, data)
    kept = models.activation_bytes(config.model, data, micro_batch)
    state = models.optimizer_bytes(config.optimizer, config.model, data)
    return 2 * weights + state + kept + FLOAT_BYTES * micro_batch * prod(models.input_shape(config.model, data))


# --- the roofline -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Roofline:
    """A run under its device's ceilings. Times are lower bounds of one step, by what would take them."""

    step_s: float  # measured, training clock
    flops: int  # of a step, derived
    bytes_moved: int  # of a step, derived, at least
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
        return self.flops / self.bytes_moved

    @property
    def attainable_flops_per_s(self) -> float:
        return attainable(self.intensity, self.peak_flops_per_s, self.bandwidth_bytes_per_s)

    @property
    def attained_fraction(self) -> float:
        return self.attained_flops_per_s / self.attainable_flops_per_s


def attainable(intensity: float, peak_flops_per_s: float, bandwidth_bytes_per_s: float) -> float:
    """The roof over an intensity (Williams, Waterman & Patterson 2009)."""
    return min(peak_flops_per_s, intensity * bandwidth_bytes_per_s)


def roofline(run: Run, found: Found | None, *, input_share: float | None = None) -> Roofline | str:
    """A run's place under the roof, or why it has none. `input_share` is the part of a step spent on data; without it, as
    the run's own split has it."""
    config, attained, s = run.config, flops_per_s(run), run.summary()
    if input_share is None:
        input_share = _input_share(run)
    measured = mfu(config, attained, found)
    if measured.peak_flops_per_s is None or found is None or attained is None:
        return measured.reason
    if config.data in USER_DATA or config.source.path:
        return "The bytes a step moves are not derived for files of your own: their shape is not in the record."
    memory = calibration.bandwidth(found.calibration, calibration.threads_of(config))
    if memory is None:
        return "The calibration has no memory bandwidth for this thread count."
    try:
        data = loading.facts(config.data, config.source)
        plan = planner.plan(config, data=data, free_bytes=0)
    except EngineError as error:
        return str(error)
    parts = parts_of_step(config, data, batch_size=plan.batch_size, micro_batch=plan.micro_batch)
    held = working_set_bytes(config, data, plan.micro_batch)
    rate = memory.of(held)
    step_s = s.train_seconds * plan.batch_size / s.samples
    per_operation = calibration.first(found.calibration, "op", "launch")
    times = {
        "arithmetic": sum(p.flops for p in parts) / measured.peak_flops_per_s,
        "memory": sum(p.bytes_moved for p in parts) / rate.p05,
        "overhead": sum(p.operations for p in parts) * (per_operation.p05 if per_operation else 0.0),
    }
    had = cpu_share(run)
    ran_s = step_s * had if had is not None and had < _STARVED else step_s
    bound = what_bounds(times, ran_s, input_share)
    said = _bound_in_words(bound, times, step_s, ran_s, input_share)
    roof = attainable(
        sum(p.flops for p in parts) / sum(p.bytes_moved for p in parts), measured.peak_flops_per_s, rate.p05
    )
    if attained > MOST_MFU * roof:
        said += " It lies above its roof: the calibration read the memory too low. Calibrate again on a quiet machine."
    return Roofline(
        step_s=step_s, flops=sum(p.flops for p in parts), bytes_moved=sum(p.bytes_moved for p in parts),
        working_set_bytes=held, parts=parts, attained_flops_per_s=attained, peak_flops_per_s=measured.peak_flops_per_s,
        bandwidth_bytes_per_s=rate.p05, served_by="cache" if rate is memory.cache else "memory", times_s=times,
        input_share=input_share, bound=bound, in_words=said,
        try_next=_try_next(bound, config, found.calibration),
    )  # fmt: skip


def _input_share(run: Run) -> float | None:
    """Share of a step's time on the training clock that its data takes; None where the step was not taken apart."""
    found = split.parts(run.step_split, evaluation_s=0.0, steps=len(run.steps))
    return next((part.share for part in found if part.key == "data"), None)


def cpu_share(run: Run) -> float | None:
    """CPU time of a CPU run's process over what its threads could have had, from its samples; None where none were taken."""
    percent = run.hardware["process_cpu_percent"]
    percent = percent[np.isfinite(percent)]
    if run.config.device != "cpu" or not len(percent):
        return None
    return float(np.mean(percent)) / 100 / run.config.threads


def what_bounds(times_s: Mapping[str, float], step_s: float, input_share: float | None = None) -> Bound:
    """The input where it takes a third of a step; else the largest lower bound, if it explains two fifths of one."""
    if input_share is not None and input_share >= _INPUT:
        return "input"
    name, longest = max(times_s.items(), key=lambda item: item[1])
    if longest < _BOUNDS * step_s:
        return "mixed"
    return "arithmetic" if name == "arithmetic" else "memory" if name == "memory" else "overhead"


_WORDS: Mapping[Bound, str] = {
    "arithmetic": "Arithmetic bounds it",
    "memory": "Memory bounds it",
    "overhead": "The cost of starting operations bounds it",
    "input": "Its input bounds it",
    "mixed": "No single ceiling bounds it",
}


def _bound_in_words(
    bound: Bound, times_s: Mapping[str, float], step_s: float, ran_s: float, input_share: float | None
) -> str:
    """Shares of a step; all three are lower bounds, and they may overlap."""
    shares = {name: seconds / ran_s for name, seconds in times_s.items()}
    step = f"of a step of {units.duration(step_s)}"
    if ran_s < step_s:
        step += f", {units.percent(ran_s / step_s)} of which its process ran (the machine was busy, or it waited; shares are of that),"
    said = (
        f"{step} its products would take {_share(shares['arithmetic'])} at the measured peak, moving its bytes "
        f"{_at_least(shares['memory'])}, starting its operations {_at_least(shares['overhead'])}"
    )
    if bound == "input" and input_share is not None:
        said = f"data takes {units.percent(input_share)} of a step; {said}"
    rest = (
        ". The rest lies between the products (activations, pooling, norms), in starting more operations than are counted, or in "
        "products too small to run at the peak"
        if bound == "mixed"
        else ""
    )
    return f"{_WORDS[bound]}: {said}{rest}."


def _share(share: float) -> str:
    return units.percent(share) if share >= 0.005 else "under 1 %"


def _at_least(share: float) -> str:
    return f"at least {units.percent(share)}" if share >= 0.005 else "next to nothing"


def _try_next(bound: Bound, config: RunConfig, made: Calibration) -> str:
    if bound == "arithmetic":
        return _more_arithmetic(config, made)
    if bound == "input":
        return "execution=eager keeps the data on the device and gathers an epoch at once."
    advice = []
    if config.batch_size != FULL:
        advice.append(_LARGER_BATCH[bound])
    if bound == "memory" and config.optimizer.facts.keeps_state:
        advice.append("sgd and momentum keep less state than adam")
    if bound != "memory" and config.device != "cpu" and config.execution != "cuda-graph":
        advice.append("execution=cuda-graph starts a whole step at once")
    return (
        "; ".join(advice) + "."
        if advice
        else "its batch is the whole training set already: another model or device is left."
    )


_LARGER_BATCH: Mapping[Bound, str] = {
    "memory": "a larger batch reads the weights less often per example",
    "overhead": "a larger batch does more per operation",
    "mixed": "a larger batch makes larger products; compare the samples per second",
}


def _more_arithmetic(config: RunConfig, made: Calibration) -> str:
    """A faster precision or thread count, if the calibration knows one."""
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
        return "it is near what this device does in this precision: fewer FLOPs, or another device, is what is left."
    return f"{what} ran products {rate / now.p05:.1f} times as fast in the calibration."


# --- for scripts --------------------------------------------------------------------------------------------------


def as_json(run: Run, found: Found | None) -> dict[str, Any]:
    """MFU against both peaks and the roofline, with all that they were computed from; unknown is None beside its reason."""
    device, name = calibration.of_run(run)
    attained = flops_per_s(run)
    point = roofline(run, found)
    return {
        "attained_flops_per_s": attained,
        "measured_peak": asdict(mfu(run.config, attained, found)),
        "data_sheet": asdict(data_sheet_mfu(run.config, attained, name)),
        "calibration": None if found is None else {
            "run_id": found.run_id, "at": found.calibration.at, "device": device, "device_name": name,
            "threads": calibration.threads_of(run.config), "dtype": run.config.precision,
        },
        "roofline": None if isinstance(point, str) else _point_as_json(point),
        "roofline_reason": point if isinstance(point, str) else None,
    }  # fmt: skip


def _point_as_json(point: Roofline) -> dict[str, Any]:
    said = asdict(point)
    said["parts"] = [asdict(part) | {"intensity": part.intensity} for part in point.parts]
    return said | {
        "intensity": point.intensity,
        "attainable_flops_per_s": point.attainable_flops_per_s,
        "attained_fraction": point.attained_fraction,
        "method": "step_s measured on the training clock; flops derived; bytes_moved and times_s derived lower bounds",
    }


def for_runs(runs: Sequence[Run], found: Mapping[tuple[str, str | None], Found | None]) -> list[Roofline | str]:
    """Points of several runs, each under its own device's calibration."""
    return [roofline(run, found.get(calibration.of_run(run))) for run in runs]
