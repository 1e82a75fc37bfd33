"""The cost of a run: FLOP/s attained, MFU, and the bytes and operations of a step.

FLOPs come from `models` and seconds from the training clock, so every figure here can be recomputed from `show --json`.
Bytes are a lower bound: what each matrix product must read and write once, and what the optimizer touches. Activations,
norms, pooling and cache misses move more.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from engine import models
from engine.common import units
from engine.config.run import RunConfig
from engine.data.datasets import Dataset
from engine.hardware.datasheets import VendorPeak, vendor_peak
from engine.measurement import calibration
from engine.measurement.calibration import LatestCalibration
from engine.models import family_of
from engine.models.arithmetic import FLOAT_BYTES, Product
from engine.models.cnn import KERNEL, SIGNAL_KERNELS
from engine.store.run import Run

MOST_MFU = 1.05  # a higher MFU of a measured peak means that the peak was measured too low
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
    return run.summary().flops_per_s


def _unfit(config: RunConfig, attained: float | None, quantized: bool) -> str:
    """Why a run cannot have an MFU; empty where it can."""
    if not config.task_facts.trains_one_model:
        return "Only a training run has an MFU."
    if attained is None:
        return "The run has taken no step."
    if quantized:
        return "Quantised weights: a floating-point peak does not apply to their products."
    if config.parallel.num_ranks > 1:
        return "Several ranks computed the run, but the peak was measured for one."
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
        why = (
            f"The MFU would be {units.percent(value)} of the measured peak, so the peak was measured too low. "
            "Calibrate again."
        )
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
