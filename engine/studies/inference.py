"""Inference results: what was measured of each combination, and which one to deploy under a latency limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.common import units
from engine.config.base import PrecisionName
from engine.config.data import DATA
from engine.config.run import RunConfig
from engine.config.tasks import Cell, RuntimeName
from engine.data.datasets import KNOWN
from engine.events.inference import Latency, NotRun, Quality
from engine.measurement import calibration
from engine.store.run import Run

LEAST_REQUESTS = 100  # per combination: with fewer, the 99th percentile is the longest request
LONGEST = 5.0  # times infer.seconds: the most time for a combination with fewer requests than that

Environment = Mapping[str, str | int | float | None]
Quantile = Literal["p50", "p90", "p99", "max"]


# --- what was measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CellResult:
    """The results of one combination so far."""

    cell: Cell
    latency: Latency | None = None
    quality: Quality | None = None
    not_run: str = ""  # the reason why it is not measured

    @property
    def samples_per_s(self) -> float | None:
        """Throughput; None before it is measured."""
        return self.latency.samples_per_s if self.latency else None

    def quantile_s(self, quantile: Quantile = "p99") -> float | None:
        """A quantile of the latency, s; None before it is measured."""
        return getattr(self.latency, f"{quantile}_s") if self.latency else None

    @property
    def has_few_requests(self) -> bool:
        """Whether there are so few requests that p99 is the longest one."""
        return self.latency is not None and self.latency.requests < LEAST_REQUESTS


@dataclass(frozen=True, slots=True)
class Matrix:
    """All combinations of a run, in its order."""

    config: RunConfig
    cells: tuple[CellResult, ...]
    is_over: bool = False
    environment: Environment = field(default_factory=dict)  # of the run: facts about its processor

    @property
    def measured(self) -> tuple[CellResult, ...]:
        """The combinations that have been measured."""
        return tuple(found for found in self.cells if found.latency)

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes, rising."""
        return sorted({found.cell.batch_size for found in self.cells})

    @property
    def threads(self) -> list[int]:
        """The thread counts, rising."""
        return sorted({found.cell.threads for found in self.cells})

    @property
    def precisions(self) -> list[PrecisionName]:
        """The precisions, in the run's order."""
        return list(dict.fromkeys(found.cell.precision for found in self.cells))

    @property
    def runtimes(self) -> list[RuntimeName]:
        """The runtimes, in the run's order."""
        return list(dict.fromkeys(found.cell.runtime for found in self.cells))

    @property
    def is_trained(self) -> bool:
        """Whether the weights are trained. Without training, the accuracy is that of guessing."""
        return bool(self.config.infer.run or self.config.infer.weights)

    def at(self, cell: Cell) -> CellResult | None:
        """The results of a combination; None where it is not part of the run."""
        return next((found for found in self.cells if found.cell == cell), None)


def matrix(
    config: RunConfig,
    latencies: Iterable[Latency],
    qualities: Iterable[Quality] = (),
    not_run: Iterable[NotRun] = (),
    *,
    is_over: bool = False,
    environment: Environment | None = None,
) -> Matrix:
    """The results of a run from its events."""
    by_cell = {latency.cell: latency for latency in latencies}
    by_form = {(quality.precision, quality.runtime): quality for quality in qualities}
    reasons = {event.cell: event.reason for event in not_run}
    cells = [
        CellResult(cell, by_cell.get(cell), by_form.get((cell.precision, cell.runtime)), reasons.get(cell, ""))
        for cell in config.cells
    ]
    return Matrix(config, tuple(cells), is_over, environment or {})


def matrix_of(run: Run) -> Matrix:
    """What a run of task infer has measured so far."""
    with run.lock:
        return matrix(
            run.config,
            run.latencies,
            run.qualities,
            run.not_run,
            is_over=run.is_over,
            environment=run.started.environment if run.started else None,
        )


# --- what to deploy -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SweetSpot:
    """The combination to deploy; or None, and `why` there is none."""

    best: CellResult | None
    why: str = ""


def sweet_spot(found: Matrix, limit_s: float, *, quantile: Quantile = "p99") -> SweetSpot:
    """The combination with the highest throughput among those whose latency at `quantile` is within the limit.

    Fewer than 100 requests have their longest one as p99, by definition.
    """
    if not found.measured:
        return SweetSpot(None, "Nothing is measured yet." if not found.is_over else "Nothing was measured.")
    within = [c for c in found.measured if (c.quantile_s(quantile) or 0.0) <= limit_s and _keeps_up(c)]
    if within:
        return SweetSpot(max(within, key=lambda c: c.samples_per_s or 0.0))
    if not any(map(_keeps_up, found.measured)):
        return SweetSpot(None, "No combination answers requests as fast as they arrive. Lower the rate.")
    nearest = min(filter(_keeps_up, found.measured), key=lambda c: c.quantile_s(quantile) or math.inf)
    return SweetSpot(
        None,
        f"No combination stays under {limit_in_words(limit_s)}; the closest is {cell_in_words(found, nearest.cell)} with a "
        f"{quantile_in_words(quantile)} of {units.duration(nearest.quantile_s(quantile))}.",
    )


KEEPS_UP = 0.95  # share of the arriving requests that must be answered


def _keeps_up(found: CellResult) -> bool:
    """Whether requests are answered as fast as they arrive (open loop). Otherwise the queue grows without limit."""
    latency = found.latency
    if latency is None or latency.offered_per_s is None or latency.reached_per_s is None:
        return True
    return latency.reached_per_s >= KEEPS_UP * latency.offered_per_s


def curve(found: Matrix, *, quantile: Quantile = "p99") -> tuple[CellResult, ...]:
    """The Pareto front: combinations that no other beats in both latency and throughput, with rising latency."""
    ordered = sorted(found.measured, key=lambda c: (c.quantile_s(quantile) or 0.0, -(c.samples_per_s or 0.0)))
    best, front = -math.inf, []
    for result in ordered:
        if (result.samples_per_s or 0.0) > best:
            best = result.samples_per_s or 0.0
            front.append(result)
    return tuple(front)


def in_words(found: Matrix, limit_s: float, *, quantile: Quantile = "p99") -> str:
    """Which combination to deploy and what limits this result; or why there is none."""
    spot = sweet_spot(found, limit_s, quantile=quantile)
    if spot.best is None or spot.best.latency is None:
        return " ".join([spot.why, *_busy(found.measured)])
    latency = spot.best.latency
    text = (
        f"Deploy {cell_in_words(found, spot.best.cell)}: {units.samples_per_s(latency.samples_per_s)} with a "
        f"{quantile_in_words(quantile)} of {units.duration(spot.best.quantile_s(quantile))}, under your "
        f"{limit_in_words(limit_s)}."
    )
    return " ".join([text, *_limitations(found, spot.best, quantile)])


def guessing_in_words(found: Matrix, best: CellResult | None = None) -> str:
    """A warning to show above what to deploy (`best`) where the model is no better than guessing; else empty."""
    if DATA[found.config.data].measures_speed_only:
        return ""
    quality = (best and best.quality) or next((c.quality for c in found.cells if c.quality), None)
    if quality and (guess := _guess_accuracy(found.config, quality)) is not None:
        noise = _GUESSES * math.sqrt(guess * (1 - guess) / max(1, quality.examples))
        if quality.test_accuracy <= guess + noise:
            accuracy = units.accuracy(quality.test_accuracy)
            return f"Test accuracy {accuracy} is no better than guessing ({units.percent(guess)}): train first."
    return "" if found.is_trained else "The weights are untrained: train first."


_GUESSES = 2.0  # standard deviations of the accuracy of guesses


def _guess_accuracy(config: RunConfig, quality: Quality) -> float | None:
    """The accuracy of the best constant answer (0..1); of older runs that of equally frequent classes, if it is known."""
    if quality.guess_accuracy is not None:
        return quality.guess_accuracy
    known = None if config.is_text else KNOWN.get(config.data)
    return 1 / known.facts.num_classes if known else None


def _limitations(found: Matrix, best: CellResult, quantile: Quantile) -> list[str]:
    words, latency, quality = [], best.latency, best.quality
    assert latency
    if quality and found.is_trained:
        change = quality.accuracy_change
        difference = f", {points(change)} from eager fp32" if change else ""
        words.append(f"Test accuracy: {units.accuracy(quality.test_accuracy)}{difference}.")
    elif quality:
        words.append("The weights are untrained, so only the speed counts.")
    if best.has_few_requests and quantile in {"p99", "p90"}:
        words.append(f"Based on only {latency.requests:,} requests. Measure longer to be sure.")
    words += _busy([best])
    if not found.is_over and (left := sum(1 for c in found.cells if not c.latency and not c.not_run)):
        words.append(f"{left} combination{' is' if left == 1 else 's are'} not measured yet.")
    return words


def _busy(results: Sequence[CellResult]) -> list[str]:
    """A warning where other programs slowed these measurements down."""
    found = [c.latency.wall_per_cpu for c in results if c.latency and c.latency.wall_per_cpu]
    if not found or (middle := statistics.median(found)) <= calibration.BUSY:
        return []
    return [f"The machine was busy, so this took about {middle:.2f} times as long. Measure again when it is idle."]


def points(change: float) -> str:
    """A change of accuracy, given as a share: `+0.10 points`."""
    return f"{change * 100:+.2f} points"


def limit_in_words(limit_s: float) -> str:
    """A limit as a user writes it: `5 ms`, `250 µs`, `2 s`."""
    scale, unit = (1.0, "s") if limit_s >= 1 else (1e3, "ms") if limit_s >= 1e-3 else (1e6, "µs")
    return f"{limit_s * scale:g} {unit}"


def quantile_in_words(quantile: Quantile) -> str:
    """`p99`, or `longest latency`."""
    return "longest latency" if quantile == "max" else quantile


def cell_in_words(found: Matrix, cell: Cell) -> str:
    """`batch 32 on 2 threads`, and what else differs between the combinations."""
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


# --- as JSON ------------------------------------------------------------------------------------------------------


def as_json(found: Matrix, limit_s: float | None = None, *, quantile: Quantile = "p99") -> dict[str, Any]:
    """The value of `inference` in `infer --json` and `show --json`."""
    forms = {(c.cell.precision, c.cell.runtime): c.quality for c in found.cells if c.quality}
    result: dict[str, Any] = {
        "cells": [_cell_json(c) for c in found.cells],
        "qualities": [quality.model_dump(exclude={"kind"}) for quality in forms.values()],
        "trained": found.is_trained,
        "curve": [c.cell.model_dump() for c in curve(found, quantile=quantile)],
    }
    if limit_s is not None:
        spot = sweet_spot(found, limit_s, quantile=quantile)
        result["sweet_spot"] = {
            "limit_s": limit_s,
            "quantile": quantile,
            "cell": spot.best.cell.model_dump() if spot.best else None,
            "sentence": in_words(found, limit_s, quantile=quantile),
            "warning": guessing_in_words(found, spot.best) or None,
        }
    return result


def _cell_json(result: CellResult) -> dict[str, Any]:
    base = result.cell.model_dump()
    if result.latency is None:
        return base | {"not_run": result.not_run or None, "latency": None}
    latency = result.latency
    values = latency.model_dump(exclude={"kind", "cell", "histogram", "start_s", "latency_s"})
    values["samples_per_j"] = latency.samples_per_j
    values["histogram"] = {"edges_s": latency.histogram.edges_s, "counts": latency.histogram.counts}
    values["timeline"] = {"start_s": latency.start_s, "latency_s": latency.latency_s}
    return base | {"not_run": None, "latency": values}
