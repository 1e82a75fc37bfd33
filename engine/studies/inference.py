"""Inference results: what was measured of each combination, and which one to deploy under a latency limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from engine.common import units
from engine.config.base import PrecisionName
from engine.config.run import RunConfig
from engine.config.tasks import Cell, RuntimeName
from engine.events.inference import Latency, NotRun, Quality
from engine.measurement import calibration
from engine.store.run import Run

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
            run.config, run.latencies.values(), run.qualities.values(), run.not_run.values(), is_over=run.is_over,
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
