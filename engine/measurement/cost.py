"""The cost of a run and what limits it: FLOP/s attained, MFU, bytes moved, arithmetic intensity, the roofline.

FLOPs come from `models` and seconds from the training clock, so every figure here can be recomputed from `show --json`.
Bytes are a lower bound: what each matrix product must read and write once, and what the optimizer touches. Activations,
norms, pooling and cache misses move more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from engine import models
from engine.common import units
from engine.common.errors import EngineError
from engine.config.data import USER_DATA
from engine.config.run import RunConfig
from engine.config.training import FULL
from engine.data import loading
from engine.data.datasets import Dataset
from engine.events.machine import Calibration
from engine.hardware.datasheets import VendorPeak, vendor_peak
from engine.measurement import calibration, step_breakdown
from engine.measurement.calibration import LatestCalibration
from engine.models import family_of
from engine.models.arithmetic import FLOAT_BYTES, Product
from engine.models.cnn import KERNEL, SIGNAL_KERNELS
from engine.planning import planner
from engine.store.run import Run

Bound = Literal["arithmetic", "memory", "overhead", "input", "mixed"]
MOST_MFU = 1.05  # a higher MFU of a measured peak means that the peak was measured too low
_BOUNDS = 0.4  # a lower bound of at least this share of a step is said to limit the run
_INPUT = 0.3  # data that takes at least this share of a step limits the run
_STARVED = 0.8  # a run with a smaller share of its threads' CPU time had to wait for a core
_HALF = {"bf16", "fp16"}


# --- FLOP/s and MFU -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mfu:
    """Model FLOPs utilization: FLOP/s attained / peak (Chowdhery et al. 2022, arXiv:2204.02311), or the reason for None."""

    value: float | None
    reason: str = ""
    peak_flops_per_s: float | None = None
    peak_from: str = ""


def flops_per_s(run: Run) -> float | None:
    """FLOP/s of training: matrix products and convolutions / training time, without warm-up and evaluation.

    None where the run has not trained.
    """
    s = run.summary()
    return s.flops / s.train_seconds if s.flops and s.train_seconds else None


def _unfit(config: RunConfig, attained: float | None, quantized: bool) -> str:
    """Why a run cannot have an MFU; empty where it can."""
    if not config.task_facts.trains_one_model:
        return "Only a training run has an MFU."
    if attained is None:
        return "The run has taken no step."
    if quantized:
        return "Quantised weights: a floating-point peak does not apply to their products."
    if config.parallel.num_ranks > 1:
        return "Several ranks computed it, and the peak was measured for one of them."
    return ""


def mfu(config: RunConfig, attained: float | None, found: LatestCalibration | None, *, quantized: bool = False) -> Mfu:
    """MFU against the measured peak of this device, in the run's precision and with its thread count."""
    if reason := _unfit(config, attained, quantized):
        return Mfu(None, reason)
    assert attained is not None
    if found is None:
        return Mfu(None, "This device was not calibrated in this store: python -m engine calibrate.")
    made, threads, dtype = found.calibration, calibration.threads_of(config), config.precision
    if config.device == "cpu" and threads not in made.threads:
        counts = ", ".join(map(str, made.threads))
        return Mfu(None, f"The run had {threads} threads, and the calibration measured only {counts}.")
    best = calibration.peak(made, dtype, threads)
    if best is None or not best.p05:
        why = made.missing.get(f"gemm {dtype}", "")
        return Mfu(None, f"The calibration has no peak in {dtype}. {why}".strip())
    where = f"calibration {found.run_id}"
    value = attained / best.p05
    if value > MOST_MFU:
        why = f"It would be {units.percent(value)} of the measured peak, so the peak was measured too low. Calibrate again."
        return Mfu(None, why, best.p05, where)
    return Mfu(value, "", best.p05, where)


def data_sheet_mfu(
    config: RunConfig,
    attained: float | None,
    device_name: str | None,
    *,
    quantized: bool = False,
    peak: VendorPeak | None = None,
) -> Mfu:
    """MFU against the vendor's dense peak; `peak` replaces the table's entry."""
    if reason := _unfit(config, attained, quantized):
        return Mfu(None, reason)
    assert attained is not None
    if config.device == "cpu":
        return Mfu(
            None,
            "There is no data sheet for CPUs, because their clock depends on the load. Calibrate to measure the peak.",
        )
    sheet = peak or vendor_peak(device_name or "")
    if sheet is None:
        return Mfu(None, f"There is no data sheet for {device_name or 'this device'}.")
    if not sheet.dense:
        return Mfu(None, "The known peak of this device is for structured sparsity, which no run here has.")
    if config.precision not in sheet.flops_per_s:
        return Mfu(None, f"The data sheet of {sheet.device_name} has no peak in {config.precision}.")
    most = sheet.flops_per_s[config.precision]
    return Mfu(attained / most, "", most, f"{sheet.source.name}: {sheet.source.url}")


# --- bytes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """The work of all layers of one kind in an optimizer step."""

    kind: str  # linear, conv, recurrent, attention; optimizer
    flops: int
    bytes_moved: int  # a lower bound
    operations: int  # kernel calls, a lower bound

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes_moved if self.bytes_moved else 0.0


def parts_of_step(config: RunConfig, data: Dataset, *, batch_size: int, micro_batch: int) -> tuple[Part, ...]:
    """The parts of an optimizer step by kind of layer, the optimizer last.

    Each matrix product reads both factors and writes its result once, in the forward pass and for each gradient. Attention
    reads queries, keys and values and writes its output; its scores stay in the cache. A value has 2 bytes in half
    precision. In the optimizer it has always 4: it reads weights, gradients and state, and writes weights and state.
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
    """Values that a product moves in training: those of the matrix per pass, those of vectors per sample."""
    passes_back = 1 if product.input_gradient_rows == 0 else 2
    if not product.weights:  # each of attention's two products has half of queries, keys, values, output and gradients
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
    """Values read per output: a convolution reads each pixel once, not once per weight of its kernel."""
    if product.kind != "conv":
        return product.fan_in
    return product.fan_in // (KERNEL**2 if data.kind == "image" else SIGNAL_KERNELS[place])


def _operations(product: Product, config: RunConfig) -> int:
    """Kernel calls of a product, forward and backward. A recurrent one needs its last result, so it has one per position."""
    each = (2 if product.input_gradient_rows == 0 else 3) + (1 if product.bias and product.weights else 0)
    own = product.kind == "recurrent" and product.input_gradient_rows == product.rows - 1
    step_by_step = own and not family_of(config.model).is_fused_recurrence(config.model)
    return each * (product.rows if step_by_step else 1)


def _optimizer_part(config: RunConfig, data: Dataset, passes: int) -> Part:
    """The optimizer, and the five operations of each pass around its products.

    These are: gathering samples and labels, the loss forward and backward, and storing the loss.
    """
    count = models.parameters(config.model, data)
    state = models.optimizer_bytes(config.optimizer, config.model, data)
    touched = 3 * FLOAT_BYTES * count + 2 * state  # reads weights and gradients, writes weights; reads and writes state
    if config.ema_decay:
        touched += 3 * FLOAT_BYTES * count
    if config.max_grad_norm:
        touched += FLOAT_BYTES * count
    return Part("optimizer", 0, touched, 5 * passes + 1)


def working_set_bytes(config: RunConfig, data: Dataset, micro_batch: int) -> int:
    """Bytes that a step uses: weights, gradients, optimizer state, activations and its samples."""
    weights = FLOAT_BYTES * models.parameters(config.model, data)
    kept = models.activation_bytes(config.model, data, micro_batch)
    state = models.optimizer_bytes(config.optimizer, config.model, data)
    return 2 * weights + state + kept + FLOAT_BYTES * micro_batch * prod(models.input_shape(config.model, data))


# --- the roofline -------------------------------------------------------------------------------------------------


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
    if measured.peak_flops_per_s is None or found is None or attained is None:
        return measured.reason
    if config.data in USER_DATA or config.source.path:
        return "The bytes of a step cannot be derived for your own files, because the run does not record their shape."
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
    share = cpu_share(run)
    ran_s = step_s * share if share is not None and share < _STARVED else step_s
    bound = what_bounds(times, ran_s, input_share)
    words = _bound_in_words(bound, times, step_s, ran_s, input_share)
    roof = attainable(
        sum(p.flops for p in parts) / sum(p.bytes_moved for p in parts), measured.peak_flops_per_s, rate.p05
    )
    if attained > MOST_MFU * roof:
        words += " It is above the roof, so memory bandwidth was measured too low. Calibrate again on a quiet machine."
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
    """Share of a step's training time that data takes; None where no step was profiled."""
    found = step_breakdown.parts(run.step_split, evaluation_s=0.0, steps=len(run.steps))
    return next((part.share for part in found if part.key == "data"), None)


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
    "input": "Limited by its input",
    "mixed": "Not limited by a single ceiling",
}


def _bound_in_words(
    bound: Bound, times_s: Mapping[str, float], step_s: float, ran_s: float, input_share: float | None
) -> str:
    """The lower bounds as shares of a step, in a sentence. They can overlap."""
    shares = {name: seconds / ran_s for name, seconds in times_s.items()}
    sentences = [f"{_WORDS[bound]}."]
    if bound == "input" and input_share is not None:
        sentences.append(f"Data takes {units.percent(input_share)} of a step.")
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
        return "execution=eager keeps the data on the device and shuffles a whole epoch at once."
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
        return "it is near the peak of this device in this precision, so only fewer FLOPs or another device can help."
    return f"with {what}, products were {rate / now.p05:.1f} times as fast in the calibration."


# --- for scripts --------------------------------------------------------------------------------------------------


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
