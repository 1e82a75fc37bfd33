"""Predicts how long an inference run will take, from latencies of earlier runs, a calibration, or its FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine import models
from engine.common.errors import StoreError
from engine.config.run import RunConfig
from engine.config.tasks import Cell, RuntimeName
from engine.events.machine import Calibration
from engine.measurement import calibration
from engine.planning.planner import Plan
from engine.store import query
from engine.store.store import Store
from engine.studies.inference import LEAST_REQUESTS, LONGEST
from engine.studies.inference_runtimes import offered


@dataclass(frozen=True, slots=True)
class Prediction:
    """Estimated seconds of a run: of each combination, and in total with set-up, conversion and evaluation."""

    cells: Mapping[Cell, float]
    total_s: float
    how: str


_FORM_S: Mapping[RuntimeName, float] = {
    "eager": 0.0,
    "inference_mode": 0.0,
    "channels_last": 0.0,
    "compiled": 0.0,
    "exported": 2.0,
    "onnxruntime": 5.0,
    "int8": 0.3,
    "onnxruntime-int8": 6.0,
}
_COMPILE_FIRST_S = 15.0  # start of the compiler
_COMPILE_S = 5.0  # for each batch size and thread count, because torch.compile makes code for each
_SETUP_S = 0.7
_FLOPS_PER_S = 1.5e10  # of one thread, without a calibration: small products reach a fifth of the peak
_SMALL_SHARE = 0.2  # of the measured peak
_OP_S = 6e-6  # to start one operation, without a calibration
_OPS = 3  # operations per matrix product: the product, its activation and one between


def predicted_seconds(
    config: RunConfig, plan: Plan, *, calibrated: Calibration | None = None, known: Mapping[Cell, float] | None = None
) -> Prediction:
    """An estimate for every combination and the whole run.

    `known` are median latencies of the same model on the same device, from finished runs (`known_latencies`). Most
    combinations are limited by their seconds, and their estimate is within a few percent. Where long requests make one
    last longer, the estimate can be wrong by a factor of two.
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
    based_on = "latencies of finished runs" if known else "the calibration" if calibrated else "its FLOPs"
    return Prediction(cells, total, f"estimated from the seconds of each combination and {based_on}")


def request_seconds(config: RunConfig, plan: Plan, cell: Cell, *, calibrated: Calibration | None = None) -> float:
    """A first estimate of the seconds of one request of a combination; it can be wrong by a factor of two."""
    return _request_s(config, plan, cell, calibrated)


def _request_s(
    config: RunConfig, plan: Plan, cell: Cell, calibrated: Calibration | None, *, overhead: bool = True
) -> float:
    """Seconds of one request: the start of its operations (`overhead`) and its FLOPs."""
    flops_per_s, op_s = _FLOPS_PER_S * min(2, cell.threads), _OP_S
    if calibrated:
        best = calibration.peak(calibrated, "fp32", cell.threads)
        flops_per_s = _SMALL_SHARE * best.p05 if best else flops_per_s
        op = calibration.first(calibrated, "op")
        op_s = op.p05 if op else op_s
    layers = 4 + len(_products(config))
    passes, flops = 1, float(plan.forward_flops_per_example) * cell.batch_size
    if config.is_text:  # the FLOPs are those of the prompt's and the new characters' positions
        passes = config.infer.new_tokens
        flops *= (config.infer.prompt_len + config.infer.new_tokens) / max(1, config.source.seq_len)
    return (passes * layers * _OPS * op_s if overhead else 0.0) + flops / flops_per_s


def _products(config: RunConfig) -> list[Any]:
    from engine.data import loading

    return models.products(config.model, loading.facts(config.data, config.source))


_MOST_READ = 20


def known_latencies(store: Store, config: RunConfig) -> dict[Cell, float]:
    """Median latencies, s, of the same model on the same device, by combination, from the newest finished runs."""
    found: dict[Cell, float] = {}
    alike = query.parse(f"task = infer, data = {config.data}, device = {config.device}")
    for line in store.listing(where=alike, status=("finished",), limit=_MOST_READ).lines:
        try:
            run = store.run(line.run_id, keep_points=1)
        except StoreError:  # deleted meanwhile
            continue
        if run.imported:  # measured on another machine
            continue
        if (
            run.config.model == config.model
            and run.config.infer.load == "closed"
            and _characters(run.config) == _characters(config)
        ):
            found = {latency.cell: latency.p50_s for latency in run.latencies} | found
    return found


def _characters(config: RunConfig) -> tuple[int, int, bool] | None:
    infer = config.infer
    return (infer.prompt_len, infer.new_tokens, infer.cache) if config.is_text else None
