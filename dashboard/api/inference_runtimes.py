"""The comparison of runtimes and precisions (eager, compiled, int8, ...) that run the same weights, as a table and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from dashboard.api.inference_cells import LONGEST_TEXT, setting_in_words
from dashboard.api.inference_detail import accuracy_in_words
from dashboard.api.wire import short
from engine.common import units
from engine.common.sanitize import visible
from engine.config.tasks import RuntimeName
from engine.store.run import Run
from engine.studies.inference import RUNTIME_WORDS, Matrix, matrix_of, points
from engine.studies.inference_runtimes import Rung, ladder

_MOST_AT = 3  # batch sizes that are compared


def runtimes_as_json(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The speed, accuracy and size of the same weights in each runtime and precision; None if there is only one."""
    found = matrix_of(runs[0])
    if len(runs) > 1 or len({(c.cell.runtime, c.cell.precision) for c in found.cells}) < 2:
        return None
    at = _compared_at(found)
    ladders = {place: ladder(found, batch_size=place[0], threads=place[1]) for place in at}
    titles = {place: _compared_in_words(found, place) for place in at}
    forms = list(
        dict.fromkeys((r.result.cell.precision, r.result.cell.runtime) for rungs in ladders.values() for r in rungs)
    )
    rungs = {form: {place: _rung(ladders[place], form) for place in at} for form in forms}
    bars = [{"name": titles[place]} | _bars({form: rungs[form][place] for form in forms}) for place in at]
    compared = [f"{what}, {title}" for title in titles.values() for what in ("p50", "speed-up")]
    return {
        "columns": ["Runtime", *compared, "Test accuracy", "Change", "On disk", "First answer"],
        "rows": [_rung_row(found, form, rungs[form], titles) for form in forms],
        "bars": [bar for bar in bars if bar["labels"]],
        "note": "Speed-up: p50 of eager divided by p50 of the runtime, at the same batch size and threads (derived). "
        "Latency, test accuracy and size: measured.",
    }


def _bars(rungs: Mapping[tuple[str, str], Rung | None]) -> dict[str, list[Any]]:
    """The speed-ups at one batch size, of the runtimes that have one."""
    speedups = {form: speedup for form, rung in rungs.items() if (speedup := _speedup(rung)) is not None}
    return {"labels": list(map(_form_in_words, speedups)), "ratios": list(map(short, speedups.values()))}


def _compared_at(found: Matrix) -> list[tuple[int, int]]:
    """The batch sizes and threads to compare: the smallest, the middle and the largest batch, at the most threads."""
    threads = found.threads[-1]
    sizes = sorted({c.cell.batch_size for c in found.cells if c.cell.threads == threads})
    if len(sizes) > _MOST_AT:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    return [(size, threads) for size in sizes]


def _compared_in_words(found: Matrix, place: tuple[int, int]) -> str:
    threads = f", {setting_in_words('threads', place[1])}" if len(found.threads) > 1 else ""
    return f"batch {place[0]:,}{threads}"


def _form_in_words(form: tuple[str, str]) -> str:
    precision, runtime = form
    name = RUNTIME_WORDS[cast(RuntimeName, runtime)]
    return name if precision == "fp32" else f"{name}, {precision}"


def _rung(rungs: Sequence[Rung], form: tuple[str, str]) -> Rung | None:
    return next((r for r in rungs if (r.result.cell.precision, r.result.cell.runtime) == form), None)


def _speedup(rung: Rung | None) -> float | None:
    return rung.speedup if rung else None


def _rung_row(
    found: Matrix, form: tuple[str, str], at: dict[tuple[int, int], Rung | None], titles: dict[tuple[int, int], str]
) -> dict[str, Any]:
    rungs = [rung for rung in at.values() if rung]
    quality = next((r.result.quality for r in rungs if r.result.quality), None)
    firsts = [r.result.latency.first_request_s for r in rungs if r.result.latency and r.result.latency.first_request_s]
    change = quality.accuracy_change if quality else None
    values = [
        *(text for rung in at.values() for text in _speed(rung)),
        accuracy_in_words(found.config, quality.test_accuracy) if quality else units.UNKNOWN,
        units.UNKNOWN if change is None else points(change),
        units.nbytes(quality.size_bytes if quality else None),
        units.duration(firsts[0] if firsts else None),
    ]
    return {"name": _form_in_words(form), "values": values, "why": _why(at, titles)}


def _speed(rung: Rung | None) -> tuple[str, str]:
    speedup = _speedup(rung)
    p50_s = rung.result.quantile_s("p50") if rung else None
    return units.duration(p50_s), "–" if speedup is None else f"{speedup:.2f} ×"


def _why(at: dict[tuple[int, int], Rung | None], titles: dict[tuple[int, int], str]) -> str:
    """Why a runtime did not run or is slower than eager, and at which batch sizes if not at all of them."""
    reasons: dict[str, list[str]] = {}
    for place, rung in at.items():
        if rung and rung.result.not_run:
            reasons.setdefault(f"Not run: {rung.result.not_run}", []).append(titles[place])
        elif rung and rung.reason:
            reasons.setdefault(f"Slower: {rung.reason}", []).append(titles[place])
    words = [why if len(places) == len(at) else f"At {' and '.join(places)}: {why}" for why, places in reasons.items()]
    return visible(" ".join(words), 2 * LONGEST_TEXT)
