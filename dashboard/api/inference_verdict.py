"""The answer of an inference measurement in sentences: which cell to deploy, its accuracy, and what was disturbed."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from dashboard.api.inference_cells import Place, capitalized
from engine.common import units
from engine.config.tasks import Cell
from engine.events.machine import BUSY_FROM
from engine.store.run import Run
from engine.studies.inference import (
    Matrix,
    Quantile,
    SweetSpot,
    cell_in_words,
    guessing_in_words,
    in_words,
    limit_in_words,
    matrix_of,
    quantile_in_words,
    sweet_spot,
)


def verdict(
    runs: Sequence[Run], all_of_them: Sequence[Place], limit_s: float | None, quantile: Quantile = "p99"
) -> dict[str, Any]:
    """The recommendation, a warning above it or "", the sentences below it, and the key of the recommended cell.

    Accuracy is always among the sentences.
    """
    found = [matrix_of(run) for run in runs]
    limit_s = limit_s or math.inf
    if len(found) > 1 or runs[0].config.infer.load == "open":
        best, sentence, besides = _of_rates(runs, found, limit_s, quantile)
        besides += _quality_in_words(found[0])
    else:
        spot = sweet_spot(found[0], limit_s, quantile=quantile).best
        best = (runs[0], spot.cell) if spot else None
        sentence, *besides = _sentences(in_words(found[0], limit_s, quantile=quantile))
        if spot is None or spot.quality is None:  # otherwise the engine's sentences contain it
            besides += _quality_in_words(found[0])
    besides += _how_busy(found)
    sweet = next((place.key for place in all_of_them if best and (place.run, place.cell) == best), None)
    waits = not any(f.measured for f in found)
    warning = guessing_in_words(found[0], found[0].at(best[1]) if best else None)
    return {"sentence": sentence, "warning": warning, "besides": besides, "sweet": sweet, "waits": waits}


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!]) (?=[A-Z0-9])", text)


def _quality_in_words(found: Matrix) -> list[str]:
    quality = next((c.quality for c in found.cells if c.quality), None)
    if quality is None:
        waits = any(c.latency for c in found.cells) and not found.is_over
        return ["The accuracy is measured after the first round."] if waits and found.is_trained else []
    if not found.is_trained:
        return ["The weights are untrained, so only the speed means something."]
    return [f"Test accuracy: {units.accuracy(quality.test_accuracy)} of {quality.examples:,} test samples."]


def _how_busy(found: Sequence[Matrix]) -> list[str]:
    """How many combinations had a busy machine, because the recommended one can be the best by chance."""
    slower = [c.latency.wall_per_cpu for f in found for c in f.measured if c.latency and c.latency.wall_per_cpu]
    busy = [ratio for ratio in slower if ratio > BUSY_FROM]
    if not busy:
        return []
    combinations = f"{len(busy)} of {sum(len(f.measured) for f in found)} combinations"
    return [
        f"Other programs used the CPU during {combinations}, and slowed them down up to {max(busy):.1f} times. Measure "
        "again when the machine is idle."
    ]


def _of_rates(
    runs: Sequence[Run], found: Sequence[Matrix], limit_s: float, quantile: Quantile
) -> tuple[tuple[Run, Cell] | None, str, list[str]]:
    """For requests that arrive at random: the highest rate that meets the limit, and what happens above it."""
    spots = [(sweet_spot(f, limit_s, quantile=quantile), f, run) for f, run in zip(found, runs, strict=True)]
    measured = [spot for spot in spots if spot[1].measured]
    if not measured:
        return None, spots[0][0].why, []
    within = [spot for spot in measured if spot[0].best]
    under = f"your {limit_in_words(limit_s)}"
    how = quantile_in_words(quantile)
    if not within:
        spot, matrix, run = min(measured, key=lambda spot: spot[2].config.infer.rate)
        least = min(c.quantile_s(quantile) or math.inf for c in matrix.measured)
        text = f"No rate stays under {under}: at {_per_s(run)}, the lowest rate measured, the {how} is {units.duration(least)}."
        if least <= limit_s:
            text = f"Requests arrive faster than they are answered, even at {_per_s(run)}, the lowest rate measured."
        return None, text, []
    spot, matrix, run = max(within, key=lambda spot: spot[2].config.infer.rate)
    assert spot.best
    latency = units.duration(spot.best.quantile_s(quantile))
    sentence = (
        f"{capitalized(cell_in_words(matrix, spot.best.cell))} serves up to {_per_s(run)} that arrive at random: {how} "
        f"{latency} from arrival to answer, under {under}."
    )
    beyond = [s for s in measured if s[0].best is None and s[2].config.infer.rate > run.config.infer.rate]
    besides = [_beyond(min(beyond, key=lambda s: s[2].config.infer.rate), quantile)] if beyond else []
    return (run, spot.best.cell), sentence, besides


def _beyond(spot: tuple[SweetSpot, Matrix, Run], quantile: Quantile) -> str:
    _, matrix, run = spot
    least = min(matrix.measured, key=lambda c: c.quantile_s(quantile) or math.inf)
    waited = least.latency.queue if least.latency else None
    rest = f", of which {units.duration(waited.p50_s)} in the queue (p50)" if waited else ""
    return f"At {_per_s(run)} the {quantile_in_words(quantile)} is {units.duration(least.quantile_s(quantile))}{rest}."


def _per_s(run: Run) -> str:
    return f"{units.count(run.config.infer.rate)} requests/s"
