"""Inference as a decision: what was measured of each cell, which one to deploy under a latency limit, and why a rung of
the software ladder is slower than plain PyTorch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine import models
from engine.common import units
from engine.common.errors import EngineError, StoreError
from engine.config.base import PrecisionName
from engine.config.data import DATA
from engine.config.run import RunConfig
from engine.config.summary import model_in_words
from engine.config.tasks import RUNTIMES, Cell, RuntimeName
from engine.events.inference import Latency, NotRun, Quality
from engine.events.machine import Calibration
from engine.measurement import calibration
from engine.planning.planner import Plan
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import batch_law

LEAST_REQUESTS = 100  # of a cell: fewer have no 99th percentile of their own, p99 is then the longest
LONGEST = 5.0  # times infer.seconds, for a cell whose requests take so long that these are fewer

Quantile = Literal["p50", "p90", "p99", "max"]


# --- what was measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellResult:
    """One cell with what is known of it so far."""

    cell: Cell
    latency: Latency | None = None
    quality: Quality | None = None
    not_run: str = ""  # why it is not measured

    @property
    def samples_per_s(self) -> float | None:
        return self.latency.samples_per_s if self.latency else None

    def quantile_s(self, quantile: Quantile = "p99") -> float | None:
        return getattr(self.latency, f"{quantile}_s") if self.latency else None

    @property
    def has_few_requests(self) -> bool:
        """Whether its p99 is only the longest of fewer than 100."""
        return self.latency is not None and self.latency.requests < LEAST_REQUESTS


@dataclass(frozen=True, slots=True)
class Matrix:
    """All cells of a run, in its order."""

    config: RunConfig
    cells: tuple[CellResult, ...]
    is_over: bool = False
    cpu_isa: str = ""  # vector instructions of the processor, where the run said them

    @property
    def measured(self) -> tuple[CellResult, ...]:
        return tuple(found for found in self.cells if found.latency)

    @property
    def batch_sizes(self) -> list[int]:
        return sorted({found.cell.batch_size for found in self.cells})

    @property
    def threads(self) -> list[int]:
        return sorted({found.cell.threads for found in self.cells})

    @property
    def precisions(self) -> list[PrecisionName]:
        return list(dict.fromkeys(found.cell.precision for found in self.cells))

    @property
    def runtimes(self) -> list[RuntimeName]:
        return list(dict.fromkeys(found.cell.runtime for found in self.cells))

    @property
    def is_trained(self) -> bool:
        """Whether somebody trained the weights that answer: else accuracy is that of guesses."""
        return bool(self.config.infer.run or self.config.infer.weights)

    def at(self, cell: Cell) -> CellResult | None:
        return next((found for found in self.cells if found.cell == cell), None)


def matrix(
    config: RunConfig,
    latencies: Iterable[Latency],
    qualities: Iterable[Quality] = (),
    not_run: Iterable[NotRun] = (),
    *,
    is_over: bool = False,
    cpu_isa: str = "",
) -> Matrix:
    by_cell = {latency.cell: latency for latency in latencies}
    by_form = {(quality.precision, quality.runtime): quality for quality in qualities}
    reasons = {word.cell: word.reason for word in not_run}
    cells = [
        CellResult(cell, by_cell.get(cell), by_form.get((cell.precision, cell.runtime)), reasons.get(cell, ""))
        for cell in config.cells
    ]
    return Matrix(config, tuple(cells), is_over, cpu_isa)


def matrix_of(run: Run) -> Matrix:
    """What a run of task infer has measured so far."""
    with run.lock:
        isa = run.started.environment.get("cpu_isa") if run.started else ""
        return matrix(
            run.config, run.latencies, run.qualities, run.not_run, is_over=run.is_over,
            cpu_isa=str(isa or ""),
        )  # fmt: skip


# --- what to deploy -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SweetSpot:
    """The cell to deploy; or None, and `why` there is none."""

    best: CellResult | None
    why: str = ""


def sweet_spot(found: Matrix, limit_s: float, *, quantile: Quantile = "p99") -> SweetSpot:
    """The best throughput among the cells whose latency at `quantile` is within the limit.

    A cell of fewer than 100 requests is held to the longest of them: that is its p99 by definition.
    """
    if not found.measured:
        return SweetSpot(None, "No cell is measured yet." if not found.is_over else "No cell was measured.")
    within = [c for c in found.measured if (c.quantile_s(quantile) or 0.0) <= limit_s and _keeps_up(c)]
    if within:
        return SweetSpot(max(within, key=lambda c: c.samples_per_s or 0.0))
    if not any(map(_keeps_up, found.measured)):
        return SweetSpot(None, "No cell answers requests as fast as they arrive: lower the rate.")
    nearest = min(filter(_keeps_up, found.measured), key=lambda c: c.quantile_s(quantile) or math.inf)
    return SweetSpot(
        None,
        f"No cell stays under {limit_in_words(limit_s)}: the nearest is {cell_in_words(found, nearest.cell)} with a "
        f"{quantile_in_words(quantile)} of {units.duration(nearest.quantile_s(quantile))}.",
    )


KEEPS_UP = 0.95  # share of the requests that arrived a cell must have answered in its time


def _keeps_up(found: CellResult) -> bool:
    """In the open loop: whether it answers as many requests as arrive. Else its queue only grows."""
    latency = found.latency
    if latency is None or latency.offered_per_s is None or latency.reached_per_s is None:
        return True
    return latency.reached_per_s >= KEEPS_UP * latency.offered_per_s


def curve(found: Matrix, *, quantile: Quantile = "p99") -> tuple[CellResult, ...]:
    """The cells of which no other is both faster to answer and higher in throughput, from the fastest answer up."""
    ordered = sorted(found.measured, key=lambda c: (c.quantile_s(quantile) or 0.0, -(c.samples_per_s or 0.0)))
    best, front = -math.inf, []
    for result in ordered:
        if (result.samples_per_s or 0.0) > best:
            best = result.samples_per_s or 0.0
            front.append(result)
    return tuple(front)


def in_words(found: Matrix, limit_s: float, *, quantile: Quantile = "p99") -> str:
    """The one sentence an engineer needs, and what makes it worth less; or why there is none."""
    spot = sweet_spot(found, limit_s, quantile=quantile)
    if spot.best is None or spot.best.latency is None:
        return " ".join([spot.why, *_busy(found.measured)])
    latency = spot.best.latency
    text = (
        f"Deploy {cell_in_words(found, spot.best.cell)}: {units.samples_per_s(latency.samples_per_s)} with a "
        f"{quantile_in_words(quantile)} of {units.duration(spot.best.quantile_s(quantile))}, under your "
        f"{limit_in_words(limit_s)}."
    )
    return " ".join([text, *_reservations(found, spot.best, quantile)])


def _reservations(found: Matrix, best: CellResult, quantile: Quantile) -> list[str]:
    words, latency, quality = [], best.latency, best.quality
    assert latency
    if quality and found.is_trained:
        text = f"It answers {units.accuracy(quality.test_accuracy)} of the held-out examples right"
        change = quality.accuracy_change
        words.append(f"{text}{'' if not change else f', {points(change)} against eager fp32'}.")
    elif quality:
        words.append("The weights are untrained: this is about speed alone.")
    if best.has_few_requests and quantile in {"p99", "p90"}:
        words.append(f"It rests on {latency.requests:,} requests: measure longer to be sure.")
    words += _busy([best])
    if not found.is_over and (left := sum(1 for c in found.cells if not c.latency and not c.not_run)):
        words.append(f"{left} cell{' is' if left == 1 else 's are'} still to come.")
    return words


def _busy(results: Sequence[CellResult]) -> list[str]:
    """Whether other programs made these cells slower than the machine is."""
    found = [c.latency.wall_per_cpu for c in results if c.latency and c.latency.wall_per_cpu]
    if not found or (middle := statistics.median(found)) <= calibration.BUSY:
        return []
    return [f"The machine was busy: it took {middle:.2f} times as long as undisturbed. Measure again when it is quiet."]


def points(change: float) -> str:
    """A change of accuracy: +0.10 points."""
    return f"{change * 100:+.2f} points"


def limit_in_words(limit_s: float) -> str:
    """As it was typed: 5 ms, 250 µs, 2 s."""
    scale, unit = (1.0, "s") if limit_s >= 1 else (1e3, "ms") if limit_s >= 1e-3 else (1e6, "µs")
    return f"{limit_s * scale:g} {unit}"


def quantile_in_words(quantile: Quantile) -> str:
    return "longest latency" if quantile == "max" else quantile


def cell_in_words(found: Matrix, cell: Cell) -> str:
    """batch 32 on 2 threads, and what else differs between the cells."""
    words = f"batch {cell.batch_size}"
    if found.config.device == "cpu":
        words += f" on {cell.threads} thread{'' if cell.threads == 1 else 's'}"
    if found.precisions != ["fp32"]:
        words += f" in {cell.precision}"
    if found.runtimes != ["inference_mode"]:
        words += f" with {RUNTIME_WORDS[cell.runtime]}"
    return words


RUNTIME_WORDS: Mapping[RuntimeName, str] = {
    "eager": "eager PyTorch",
    "inference_mode": "PyTorch in inference mode",
    "channels_last": "PyTorch, channels last",
    "compiled": "torch.compile",
    "exported": "torch.export",
    "onnxruntime": "ONNX Runtime",
    "int8": "PyTorch int8",
    "onnxruntime-int8": "ONNX Runtime int8",
}


# --- the software ladder ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run the same weights, beside plain PyTorch at the same batch size and thread count."""

    result: CellResult
    speedup: float | None  # p50 of the base by its own; above 1 it is faster
    reason: str = ""  # why it is slower than the base, where it is


BASES: tuple[RuntimeName, ...] = (
    "eager",
    "inference_mode",
)  # what a ladder is measured by: the first that was measured
_SLOWER = 0.97  # below this a rung is called slower; between two cells of one run p50 moves by some per cent


def ladder(found: Matrix, *, batch_size: int, threads: int) -> tuple[Rung, ...]:
    """The rungs at one batch size and thread count, in the order of RUNTIMES; also those that did not run."""
    here = [c for c in found.cells if (c.cell.batch_size, c.cell.threads) == (batch_size, threads)]
    base = base_of(here)
    order = {name: place for place, name in enumerate(RUNTIMES)}
    rungs = []
    for result in sorted(here, key=lambda c: (found.precisions.index(c.cell.precision), order[c.cell.runtime])):
        own, other = result.quantile_s("p50"), base.quantile_s("p50") if base else None
        speedup = other / own if own and other else None
        slower = speedup is not None and speedup < _SLOWER
        rungs.append(Rung(result, speedup, why_slower(found, result, base) if slower and base else ""))
    return tuple(rungs)


def form_in_words(found: Matrix, quality: Quality) -> str:
    """What one form of the weights answers, and how large it is."""
    words = RUNTIME_WORDS[quality.runtime] + ("" if quality.precision == "fp32" else f" in {quality.precision}")
    is_reference = quality.precision == "fp32" and quality.runtime in BASES
    if not found.is_trained:
        accuracy = "untrained"
    else:
        change = f" ({points(quality.accuracy_change)})" if quality.accuracy_change and not is_reference else ""
        accuracy = f"accuracy {units.accuracy(quality.test_accuracy)}{change}"
    far = "" if is_reference else f", logits within {quality.max_logit_difference or 0:.2g} of eager fp32"
    return f"{words}: {accuracy}{far}, {units.nbytes(quality.size_bytes)} on disk"


def slower_in_words(found: Matrix, *, batch_size: int, threads: int) -> list[str]:
    """A sentence for every rung that is slower than plain PyTorch at one batch size and thread count."""
    return [
        f"{RUNTIME_WORDS[rung.result.cell.runtime]}{'' if rung.result.cell.precision == 'fp32' else f' in {rung.result.cell.precision}'} "
        f"takes {1 / rung.speedup:.2f} times as long as plain PyTorch at batch {batch_size}: {rung.reason}"
        for rung in ladder(found, batch_size=batch_size, threads=threads)
        if rung.reason and rung.speedup
    ]


def base_of(results: Sequence[CellResult]) -> CellResult | None:
    """What the others are compared with: eager in fp32, or else inference mode."""
    for runtime in BASES:
        for result in results:
            if result.latency and (result.cell.runtime, result.cell.precision) == (runtime, "fp32"):
                return result
    return None


def why_slower(found: Matrix, result: CellResult, base: CellResult) -> str:
    """From the run's own times where they show it: what a request costs before its first example, and what each example
    costs. Then what is known of the form."""
    own, other = _line(found, result.cell), _line(found, base.cell)
    words = []
    if own and other and own.t0_s > other.t0_s / _SLOWER and _share_of_start(own, result) > 0.5:
        words.append(
            f"A request costs {units.duration(own.t0_s)} before its first example, against {units.duration(other.t0_s)} "
            "(fitted over the batch sizes)."
        )
    elif own and other and own.t1_s > other.t1_s / _SLOWER:
        words.append(
            f"An example costs {units.duration(own.t1_s)}, against {units.duration(other.t1_s)} (fitted over the batch sizes)."
        )
    return " ".join([*words, *_known(found, result.cell)])


def _share_of_start(line: batch_law.StepTime, result: CellResult) -> float:
    return line.t0_s / line.seconds(result.cell.batch_size)


def _line(found: Matrix, cell: Cell) -> batch_law.StepTime | None:
    """t0 + t1 B through the median latencies of all batch sizes of one form and thread count."""
    alike = [
        c for c in found.measured
        if (c.cell.threads, c.cell.precision, c.cell.runtime) == (cell.threads, cell.precision, cell.runtime)
    ]  # fmt: skip
    try:
        return batch_law.fit_step_time([c.cell.batch_size for c in alike], [c.quantile_s("p50") or 0.0 for c in alike])
    except EngineError:
        return None


def _known(found: Matrix, cell: Cell) -> list[str]:
    """What is known of a form, whatever was measured."""
    isa = found.cpu_isa
    if cell.runtime in {"int8", "onnxruntime-int8"}:
        words = [
            "Dynamic int8 measures and rounds the activations before every product: a small product costs less than that."
        ]
        if isa and "vnni" not in isa and "amx_int8" not in isa:
            words.append("This CPU has no int8 dot product (VNNI), so the product itself gains little.")
        if models.family_of(found.config.model).has_convolutions and cell.runtime == "int8":
            words.append("Convolutions stay in fp32.")
        return words
    if cell.precision == "bf16" and found.config.device == "cpu" and isa and "bf16" not in isa:
        return ["This CPU has no bfloat16 arithmetic: every product is emulated."]
    known: Mapping[RuntimeName, str] = {
        "exported": "An exported graph is interpreted operation by operation, and its inputs are checked, in Python.",
        "compiled": "Checking that the compiled code still fits (guards) costs more here than fusing operations saves.",
        "channels_last": "Convolutions of so few channels gain nothing from the layout.",
    }
    return [known[cell.runtime]] if cell.runtime in known else []


def offered(config: RunConfig, cell: Cell) -> str:
    """Why a cell cannot be measured whatever the machine; empty where nothing speaks against it."""
    text, on_gpu, family = config.is_text, config.device != "cpu", models.family_of(config.model)
    if text and cell.runtime not in {"eager", "inference_mode", "int8"}:
        return "A text model answers character by character, with shapes that grow: it is measured in PyTorch alone."
    if cell.runtime == "channels_last" and not (family.has_convolutions and DATA[config.data].kind != "vector"):
        return "Channels last is a layout of images in convolutions: this model has none."
    if cell.runtime in {"int8", "onnxruntime", "onnxruntime-int8"} and on_gpu:
        return f"{RUNTIME_WORDS[cell.runtime]} is measured on a CPU alone."
    if cell.runtime in {"int8", "onnxruntime", "onnxruntime-int8"} and cell.precision != "fp32":
        return (
            f"{RUNTIME_WORDS[cell.runtime]} starts from fp32 weights: precision={cell.precision} does not go with it."
        )
    return ""


# --- how long it will take ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prediction:
    """Estimated seconds of a run before it: of each cell, and of all with set-up, forms and their quality."""

    cells: Mapping[Cell, float]
    total_s: float
    how: str


_FORM_S: Mapping[RuntimeName, float] = {
    "eager": 0.0, "inference_mode": 0.0, "channels_last": 0.0, "compiled": 0.0, "exported": 2.0, "onnxruntime": 5.0,
    "int8": 0.3, "onnxruntime-int8": 6.0,
}  # fmt: skip
_COMPILE_FIRST_S = 15.0  # the compiler starts
_COMPILE_S = 5.0  # of one batch size and thread count: torch.compile makes code for each
_SETUP_S = 0.7
_FLOPS_PER_S = 1.5e10  # of one thread, where no calibration says more: small products reach a fifth of the peak
_SMALL_SHARE = 0.2  # of the measured peak
_OP_S = 6e-6  # one operation started, where no calibration says more
_OPS = 3  # operations per product: it, its activation, what lies between


def predicted_seconds(
    config: RunConfig, plan: Plan, *, calibrated: Calibration | None = None, known: Mapping[Cell, float] | None = None
) -> Prediction:
    """An estimate for every cell and the whole run. `known` holds median latencies of the same net on the same device,
    from finished runs (`known_latencies`): they are used as they are. Where a cell is limited by its seconds, as most
    are, the estimate is good to some per cent; where long requests make it last longer, to a factor of two.
    """
    infer, known = config.infer, known or {}
    cells = {}
    for cell in config.cells:
        if offered(config, cell):
            cells[cell] = 0.0
            continue
        request_s = known.get(cell) or _request_s(config, plan, cell, calibrated)
        least = min(LEAST_REQUESTS, infer.requests) * request_s
        timed = min(infer.requests * request_s, max(infer.seconds, min(least, LONGEST * infer.seconds)))
        if infer.load == "open":
            timed = min(infer.seconds, infer.requests / infer.rate)
        warm = infer.warm_up * request_s + 0.1 * timed
        cells[cell] = timed + warm + (_COMPILE_S if cell.runtime == "compiled" else 0.0)
    forms = {(c.precision, c.runtime) for c in config.cells if not offered(config, c)}
    one = Cell(batch_size=1, threads=config.threads)
    quality_s = 0.5 * plan.test_examples * _request_s(config, plan, one, calibrated, overhead=False)
    first_s = _COMPILE_FIRST_S if any(runtime == "compiled" for _, runtime in forms) else 0.0
    total = _SETUP_S + first_s + sum(cells.values()) + sum(_FORM_S[runtime] + quality_s for _, runtime in forms)
    rests_on = "latencies of finished runs" if known else "its calibration" if calibrated else "its arithmetic"
    return Prediction(cells, total, f"estimated from the seconds of each cell and {rests_on}")


def request_seconds(config: RunConfig, plan: Plan, cell: Cell, *, calibrated: Calibration | None = None) -> float:
    """An estimate of how long one request of a cell takes, to begin with where nothing was measured: good to a factor of two."""
    return _request_s(config, plan, cell, calibrated)


def _request_s(
    config: RunConfig, plan: Plan, cell: Cell, calibrated: Calibration | None, *, overhead: bool = True
) -> float:
    """Of one request: starting its operations, then arithmetic."""
    flops_per_s, op_s = _FLOPS_PER_S * min(2, cell.threads), _OP_S
    if calibrated:
        best = calibration.peak(calibrated, "fp32", cell.threads)
        flops_per_s = _SMALL_SHARE * best.p05 if best else flops_per_s
        op = calibration.first(calibrated, "op")
        op_s = op.p05 if op else op_s
    layers = 4 + len(_products(config))
    passes, flops = 1, float(plan.forward_flops_per_example) * cell.batch_size
    if config.is_text:  # the arithmetic of one pass is shared by prompt and new characters
        passes = config.infer.new_tokens
        flops *= (config.infer.prompt_len + config.infer.new_tokens) / max(1, config.source.seq_len)
    return (passes * layers * _OPS * op_s if overhead else 0.0) + flops / flops_per_s


def _products(config: RunConfig) -> list[Any]:
    from engine.data import loading

    return models.products(config.model, loading.facts(config.data, config.source))


_MOST_READ = 20


def known_latencies(store: Store, config: RunConfig) -> dict[Cell, float]:
    """Median latencies of the same net on the same device, by cell, from the newest finished runs of inference."""
    found: dict[Cell, float] = {}
    words = f"{model_in_words(config.model, config.data)} answers"
    for line in store.listing(search=words, status=("finished",), limit=_MOST_READ).lines:
        try:
            run = store.run(line.run_id, keep_points=1)
        except StoreError:  # deleted meanwhile
            continue
        if run.imported:  # another machine says nothing of this one
            continue
        alike = ("model", "data", "device", "task")
        if all(getattr(run.config, name) == getattr(config, name) for name in alike) and (
            run.config.infer.load == "closed" and _characters(run.config) == _characters(config)
        ):
            found = {latency.cell: latency.p50_s for latency in run.latencies} | found
    return found


def _characters(config: RunConfig) -> tuple[int, int, bool] | None:
    infer = config.infer
    return (infer.prompt_len, infer.new_tokens, infer.cache) if config.is_text else None


# --- as JSON ------------------------------------------------------------------------------------------------------


def as_json(found: Matrix, limit_s: float | None = None, *, quantile: Quantile = "p99") -> dict[str, Any]:
    """The keys of `infer --json` and `show --json`: cells, qualities, sweet spot."""
    forms = {(c.cell.precision, c.cell.runtime): c.quality for c in found.cells if c.quality}
    said: dict[str, Any] = {
        "cells": [_cell_json(c) for c in found.cells],
        "qualities": [quality.model_dump(exclude={"kind"}) for quality in forms.values()],
        "trained": found.is_trained,
        "curve": [c.cell.model_dump() for c in curve(found, quantile=quantile)],
    }
    if limit_s is not None:
        spot = sweet_spot(found, limit_s, quantile=quantile)
        said["sweet_spot"] = {
            "limit_s": limit_s,
            "quantile": quantile,
            "cell": spot.best.cell.model_dump() if spot.best else None,
            "sentence": in_words(found, limit_s, quantile=quantile),
        }
    return said


def _cell_json(result: CellResult) -> dict[str, Any]:
    base = result.cell.model_dump()
    if result.latency is None:
        return base | {"not_run": result.not_run or None, "latency": None}
    latency = result.latency
    said = latency.model_dump(exclude={"kind", "cell", "histogram", "start_s", "latency_s"})
    said["samples_per_j"] = latency.samples_per_j
    said["histogram"] = {"edges_s": latency.histogram.edges_s, "counts": latency.histogram.counts}
    said["timeline"] = {"start_s": latency.start_s, "latency_s": latency.latency_s}
    return base | {"not_run": None, "latency": said}
