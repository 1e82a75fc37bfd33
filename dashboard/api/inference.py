"""The read-only route of the page Inference: the cells that moved since a cursor, the verdict, and one cell as a whole.

Whoever looks on shares the machine with what is measured, so an answer holds only what is new: a cell's figures again
after each of its rounds, a cell's distribution and timeline only where it is open. Several runs in one answer are one
measurement: the same weights at several offered rates.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dashboard.api import cursor, wire
from dashboard.api.readers import shared_run
from dashboard.api.run import preparing, seconds_left
from dashboard.api.wire import numbers, short
from engine.charts import inference as inference
from engine.common import units
from engine.common.downsample import minmax
from engine.common.errors import StoreError
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.config.tasks import Cell, RuntimeName
from engine.events.base import Status
from engine.events.inference import Latency
from engine.events.machine import BUSY_FROM
from engine.store.run import Run
from engine.studies import inference_runtimes
from engine.studies.inference import (
    RUNTIME_WORDS,
    Matrix,
    Quantile,
    SweetSpot,
    cell_in_words,
    in_words,
    limit_in_words,
    matrix_of,
    points,
    quantile_in_words,
    sweet_spot,
)
from engine.studies.inference_runtimes import Rung

MOST_RUNS = 16
_LONGEST_TEXT = 300
_HARDWARE_POINTS = 400
_HARDWARE = {
    "process_cpu": "process_cpu_percent",
    "system_cpu": "system_cpu_percent",
    "gpu_utilization": "gpu_utilization_percent",
    "gpu_power": "gpu_power_w",
    "cpu_power": "cpu_power_w",
}


class Place(NamedTuple):
    """A cell of one of the runs that are shown together; in the open loop the rate tells them apart."""

    run: Run
    cell: Cell

    @property
    def rate(self) -> float | None:
        return self.run.config.infer.rate if self.run.config.infer.load == "open" else None

    @property
    def key(self) -> str:
        c = self.cell
        rate = "" if self.rate is None else f"{self.rate:g}r-"
        return f"{rate}{c.batch_size}x{c.threads}-{c.precision}-{c.runtime}"

    @property
    def found(self) -> Latency | None:
        return self.run.latencies.get(self.cell)

    @property
    def round(self) -> int:
        if self.cell in self.run.not_run:
            return 1
        return self.found.round if self.found else 0


def places(runs: Sequence[Run]) -> list[Place]:
    return [Place(run, cell) for run in runs for cell in run.config.cells]


# --- what stands where --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axes:
    """Which choices lie along the rows and the columns of the maps; every other combination is a slice of its own.

    Curves go along `run_along`, batch size or rate; each value of the other axis has a line.
    """

    row: str
    column: str
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    slices: tuple[tuple[Any, ...], ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, all_of_them: Sequence[Place]) -> Axes:
        values = {
            name: tuple(dict.fromkeys(_value(place, name) for place in all_of_them))
            for name in ("batch_size", "threads", "precision", "runtime", "rate")
        }
        on_gpu = all_of_them[0].run.config.device != "cpu"
        many = [
            name for name in (["precision", "threads"] if on_gpu else ["threads", "precision"]) if len(values[name]) > 1
        ]
        if values["rate"] != (None,):
            row, column = "rate", next(iter([*many, *(["runtime"] if len(values["runtime"]) > 1 else [])]), "threads")
        elif len(values["runtime"]) > 1 and not many:
            row, column = "runtime", "batch_size"  # names are long: they stand at the side
        else:
            row, column = "batch_size", next(iter(many), "precision" if on_gpu else "threads")
        others = tuple(name for name in values if name not in {row, column})
        slices = tuple(dict.fromkeys(tuple(_value(p, name) for name in others) for p in all_of_them))
        return cls(row, column, _in_order(values[row]), _in_order(values[column]), slices, others)

    @property
    def line(self) -> str:
        """What tells the lines of a curve apart."""
        return self.row if self.row == "runtime" else self.column

    def at(self, place: Place) -> tuple[int, int, int]:
        """Numbers of its slice, row and column."""
        rest = tuple(_value(place, name) for name in self.others)
        return (
            self.slices.index(rest), self.rows.index(_value(place, self.row)), self.columns.index(_value(place, self.column)),
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        varied = [n for n, name in enumerate(self.others) if len({s[n] for s in self.slices}) > 1]
        lines = self.rows if self.line == self.row else self.columns
        return {
            "rows": [
                {"id": f"{v:g}" if self.row == "rate" else str(v), "label": _short(self.row, v)} for v in self.rows
            ],
            "columns": [{"id": str(v), "label": _label(self.column, v)} for v in self.columns],
            "lines": [_label(self.line, v) for v in lines],
            "slices": [
                {"label": ", ".join(_label(self.others[n], s[n]) for n in varied) or "all"} for s in self.slices
            ],
            "kind": "ladder" if self.row == "runtime" else "arrivals" if self.row == "rate" else "matrix",
        }


def _value(place: Place, name: str) -> Any:
    return place.rate if name == "rate" else getattr(place.cell, name)


def _in_order(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers rise; words stay as they were chosen."""
    return tuple(sorted(values)) if all(isinstance(v, int | float) for v in values) else values


def _short(name: str, value: Any) -> str:
    if name == "rate":
        return f"{units.count(value)}/s"
    return f"{value:,}" if isinstance(value, int) else _label(name, value)


def _label(name: str, value: Any) -> str:
    match name:
        case "threads":
            return f"{value} thread{'' if value == 1 else 's'}"
        case "batch_size":
            return f"batch {value:,}"
        case "rate":
            return f"{units.count(value)} requests/s"
        case "runtime":
            return RUNTIME_WORDS[cast(RuntimeName, value)]
        case _:
            return str(value)


# --- one cell -----------------------------------------------------------------------------------------------------


def label_of(place: Place) -> str:
    """Batch 32, 2 threads; and what else is not as usual."""
    c = place.cell
    parts = [_capital(_label("batch_size", c.batch_size))]
    parts += [_label("threads", c.threads)] if place.run.config.device == "cpu" else [c.precision]
    parts += [_label("runtime", c.runtime)] if c.runtime != "inference_mode" else []
    parts += [c.precision] if c.precision != "fp32" and place.run.config.device == "cpu" else []
    parts += [_label("rate", place.rate)] if place.rate is not None else []
    return ", ".join(parts)


def _row(place: Place, axes: Axes) -> dict[str, Any]:
    """A cell as the maps and curves need it."""
    answer: dict[str, Any] = {
        "key": place.key,
        "at": axes.at(place),
        "label": label_of(place),
        "short": _shortest(place, axes),
        "line": axes.at(place)[1 if axes.line == axes.row else 2],
        "batch_size": place.cell.batch_size,
    }
    if place.cell in place.run.not_run:
        return answer | {"why": visible(place.run.not_run[place.cell].reason, _LONGEST_TEXT)}
    if (m := place.found) is None:
        return answer
    figures: dict[str, Any] = {
        "round": m.round, "rounds": m.rounds, "requests": m.requests, "samples_per_s": short(m.samples_per_s),
        "p50": short(m.p50_s), "p90": short(m.p90_s), "p99": short(m.p99_s), "max": short(m.max_s),
        "words": _in_words(place, m),
    }  # fmt: skip
    if m.offered_per_s is not None:
        figures |= {"offered": short(place.rate), "reached": short(m.reached_per_s)}
    for name in ("ttft", "tpot"):
        if found := getattr(m, name):
            figures[name] = [short(found.p50_s), short(found.p99_s)]
    return answer | figures


def _shortest(place: Place, axes: Axes) -> str:
    """What tells a cell from the others of its maps."""
    names = [name for name, values in ((axes.row, axes.rows), (axes.column, axes.columns)) if len(values) > 1]
    return ", ".join(_label(name, _value(place, name)) for name in names) or _label("batch_size", place.cell.batch_size)


def _in_words(place: Place, m: Latency) -> str:
    words = [
        units.samples_per_s(m.samples_per_s),
        f"p50 {units.duration(m.p50_s)}, p99 {units.duration(m.p99_s)}",
        f"{m.requests:,} requests, round {m.round} of {m.rounds}",
    ]
    if busy := _busy(m):
        words.append(busy)
    return "; ".join(words)


def _busy(m: Latency) -> str:
    if m.wall_per_cpu is None or m.wall_per_cpu <= BUSY_FROM:
        return ""
    return f"machine was busy: {m.wall_per_cpu:.2f} times as long as undisturbed"


# --- one cell as a whole ------------------------------------------------------------------------------------------


def _detail(place: Place) -> dict[str, Any] | None:
    m = place.found
    if m is None:
        return None
    return {
        "key": place.key,
        "version": _version(place),
        "title": label_of(place),
        "facts": facts(place),
        "histogram": _bars(m),
        "marks": [["p50", short(m.p50_s)], ["p90", short(m.p90_s)], ["p99", short(m.p99_s)]],
        "timeline": _timeline(m),
        "hardware": _hardware(place.run),
    }


def _version(place: Place) -> str:
    return f"{place.round}{'.' if place.run.is_over else ''}"


def _kind(m: Latency) -> str:
    return "latency from arrival" if m.load == "open" else "latency"


def _bars(m: Latency) -> dict[str, Any]:
    """The distribution in at most some 70 bars, each of whole bins, so that every count is exact."""
    edges, counts = inference.bars(m)
    return {"kind": _kind(m), "low": numbers(edges[:-1]), "high": numbers(edges[1:]), "n": counts.tolist()}


def _timeline(m: Latency) -> dict[str, Any]:
    shown, all_of_them = len(m.start_s), m.requests
    note = "measured; hardware below on the same seconds"
    if shown < all_of_them:
        note = f"{shown:,} of {all_of_them:,} requests, the longest among them; {note}"
    return {"x": np.round(m.start_s, 4).tolist(), "y": numbers(m.latency_s), "note": note}


def _hardware(run: Run) -> dict[str, Any]:
    with run.lock:
        table = {name: run.hardware[column] for name, column in _HARDWARE.items()}
        elapsed = run.hardware["elapsed"]
    seen = {name: y for name, y in table.items() if np.isfinite(y).any()}
    kept = minmax(table["system_cpu"], _HARDWARE_POINTS) if len(elapsed) else np.empty(0, int)
    return {"x": np.round(elapsed[kept], 3).tolist()} | {name: numbers(y[kept]) for name, y in seen.items()}


def facts(place: Place) -> list[tuple[str, str, str]]:
    """A cell's figures in words, each with how it was had."""
    m, c = place.found, place.cell
    assert m is not None
    count = f"measured: {m.requests:,} requests in {units.duration(m.seconds)}"
    told = [
        ("Throughput", units.samples_per_s(m.samples_per_s), f"{count}{'; ' if _busy(m) else ''}{_busy(m)}"),
        (f"{_capital(_kind(m))} p50", units.duration(m.p50_s), "Measured"),
        ("p90", units.duration(m.p90_s), "Measured"),
        ("p99", units.duration(m.p99_s), "Measured" if m.requests >= 100 else "Measured: of so few the longest"),
        ("Longest", units.duration(m.max_s), "Measured"),
        *_of_arrivals(m),
        *_of_text(m),
    ]
    quality = place.run.qualities.get((c.precision, c.runtime))
    if quality:
        how = f"Measured on {quality.examples:,} held-out examples"
        told.append(("Accuracy", _accuracy(place.run.config, quality.test_accuracy), how))
    told.append(
        ("First answer", units.duration(m.first_request_s), visible(m.first_method, _LONGEST_TEXT) or "Not measured")
    )
    how = f"Before the first that counts: {m.warm_up_requests:,} requests, apart"
    told.append(("Warm-up", units.duration(m.warm_up_s), how))
    if m.peak_memory_bytes is not None or m.memory_method:
        told.append(("Peak memory", units.nbytes(m.peak_memory_bytes), visible(m.memory_method, _LONGEST_TEXT)))
    energy = "not available here" if m.samples_per_j is None else f"{units.count(m.samples_per_j)} samples/J"
    told.append(("Energy", energy, visible(m.energy_method, _LONGEST_TEXT)))
    return [(title, value, _capital(how)) for title, value, how in told]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _of_arrivals(m: Latency) -> list[tuple[str, str, str]]:
    if m.offered_per_s is None:
        return []
    reached = f"{units.count(m.reached_per_s)}/s"
    rest = f"; {m.unanswered:,} had no answer when its time was over" if m.unanswered else ""
    told = [("Arrived, answered", f"{units.count(m.offered_per_s)}/s, {reached}", f"Measured{rest}")]
    if m.queue:
        waited = f"{units.duration(m.queue.p50_s)}, {units.duration(m.queue.p99_s)}"
        told.append(("Waited, p50 and p99", waited, "Measured: from arrival until its turn"))
    return told


def _of_text(m: Latency) -> list[tuple[str, str, str]]:
    told = []
    cache = "" if m.cache is None else " with a KV cache" if m.cache else " without a cache"
    if m.ttft:
        both = f"{units.duration(m.ttft.p50_s)}, {units.duration(m.ttft.p99_s)}"
        told.append(("First token, p50 and p99", both, "Measured: reading the prompt (prefill)"))
    if m.tpot:
        both = f"{units.duration(m.tpot.p50_s)}, {units.duration(m.tpot.p99_s)}"
        told.append(("Each further token, p50 and p99", both, f"Measured: decode{cache}"))
    if m.tokens_per_s is not None:
        told.append(("Tokens", f"{units.count(round(m.tokens_per_s))}/s", "Measured: new ones of all examples"))
    return told


def _accuracy(config: RunConfig, ratio: float) -> str:
    return units.accuracy(ratio) if is_trained(config) else f"{units.accuracy(ratio)} (untrained)"


def is_trained(config: RunConfig) -> bool:
    return bool(config.infer.run or config.infer.weights)


# --- the answer ---------------------------------------------------------------------------------------------------


def figures(
    runs: Sequence[Run], after: str = "", *, limit_s: float | None = None, quantile: Quantile = "p99",
    cell: str = "", held: str = "", now: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The answer to a poll: where the runs are, the cells that moved after the cursor `after`, the verdict, and the open cell."""
    now = now or time.time()
    all_of_them = places(runs)
    axes = Axes.of(all_of_them)
    rounds = [place.round for place in all_of_them]
    had = cursor.held(after, rounds)
    answer: dict[str, Any] = {"cursor": cursor.write(rounds), "reset": had is None} | _state(runs, now)
    if had is None:
        text = runs[0].config.is_text
        answer["about"] = axes.about() | {"unit": "answers/s" if text else "samples/s"}
    moved = [p for p, n, before in zip(all_of_them, rounds, had or [-1] * len(rounds), strict=True) if n > before]
    if moved:
        answer["cells"] = [_row(place, axes) for place in moved]
    answer["verdict"] = verdict(runs, all_of_them, limit_s, quantile)
    if (moved or had is None) and (ladder := _ladder(runs)):
        answer["ladder"] = ladder
    open_cell = next((place for place in all_of_them if place.key == cell), None) if cell else None
    if open_cell and _version(open_cell) != held and (whole := _detail(open_cell)):
        answer["detail"] = whole
    return answer


def _state(runs: Sequence[Run], now: float) -> dict[str, Any]:
    """Where the runs are together: as the one that is at work, or, of those that are over, as the worst."""
    busy = next((run for run in runs if run.status in {"running", "stopping", "starting"}), None)
    left = next((run for run in runs if not run.is_over), None)
    bad = next((run for run in runs if run.status != "finished"), runs[-1])
    run = busy or left or bad
    over = left is None
    progress = sum(1.0 if r.is_over else r.progress() or 0.0 for r in runs) / len(runs)
    newest = run.hardware.last("elapsed") or 0.0
    began = [r.started.at for r in runs if r.started]
    elapsed = None
    if began:
        elapsed = sum(r.hardware.last("elapsed") or 0.0 for r in runs) if over else max(0.0, now - min(began))
    said = run.done_so_far
    return {
        "status": run.status,
        "over": over,
        "why": visible(run.why(), _LONGEST_TEXT),
        "progress": short(progress) if run.started or over else None,
        "elapsed_s": short(elapsed),
        "left_s": None if over else short(seconds_left(elapsed, progress)),
        "age_s": short(max(0.0, now - run.started.at - newest)) if run.started and not over and newest else None,
        "doing": visible(said.text, _LONGEST_TEXT) if said and not over else _waiting(run.status, over),
        "preparing": preparing(run),
    }


def _waiting(status: Status, over: bool) -> str | None:
    return None if over else {"queued": "waiting for other runs to end", "starting": "starting"}.get(status)


# --- what it comes to -----------------------------------------------------------------------------------------------


def verdict(
    runs: Sequence[Run], all_of_them: Sequence[Place], limit_s: float | None, quantile: Quantile = "p99"
) -> dict[str, Any]:
    """The sentence on top, what stands beside it, and the cell it names. Accuracy always stands beside speed."""
    found = [matrix_of(run) for run in runs]
    limit_s = limit_s or math.inf
    if len(found) > 1 or runs[0].config.infer.load == "open":
        best, sentence, besides = _of_rates(runs, found, limit_s, quantile)
        besides += _quality_in_words(found[0])
    else:
        spot = sweet_spot(found[0], limit_s, quantile=quantile).best
        best = (runs[0], spot.cell) if spot else None
        sentence, *besides = _sentences(in_words(found[0], limit_s, quantile=quantile))
        if spot is None or spot.quality is None:  # else the engine has said it
            besides += _quality_in_words(found[0])
    besides += _how_busy(found)
    sweet = next((place.key for place in all_of_them if best and (place.run, place.cell) == best), None)
    waits = not any(f.measured for f in found)
    return {"sentence": sentence, "besides": besides, "sweet": sweet, "waits": waits}


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!]) (?=[A-Z0-9])", text)


def _quality_in_words(found: Matrix) -> list[str]:
    quality = next((c.quality for c in found.cells if c.quality), None)
    if quality is None:
        waits = any(c.latency for c in found.cells) and not found.is_over
        return ["Its accuracy is measured after the first round."] if waits and found.is_trained else []
    if not found.is_trained:
        return ["The weights are untrained: this is about speed alone."]
    return [
        f"The weights answer {units.accuracy(quality.test_accuracy)} of {quality.examples:,} held-out examples right."
    ]


def _how_busy(found: Sequence[Matrix]) -> list[str]:
    """What of the whole measurement was disturbed: the sentence's own cell may be a lucky one."""
    slower = [c.latency.wall_per_cpu for f in found for c in f.measured if c.latency and c.latency.wall_per_cpu]
    busy = [ratio for ratio in slower if ratio > BUSY_FROM]
    if not busy:
        return []
    of = f"{len(busy)} of {sum(len(f.measured) for f in found)} cells"
    return [
        f"Other programs wanted the cores in {of}, which took up to {max(busy):.1f} times as long: measure again when it is quiet."
    ]


def _of_rates(
    runs: Sequence[Run], found: Sequence[Matrix], limit_s: float, quantile: Quantile
) -> tuple[tuple[Run, Cell] | None, str, list[str]]:
    """Of requests that arrive by chance: the highest rate that is answered in time, and what happens above it."""
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
        text = (
            f"No rate stays under {under}: at {_per_s(run)}, the lowest measured, its {how} is {units.duration(least)}."
        )
        if least <= limit_s:
            text = f"Not even {_per_s(run)}, the lowest rate measured, are answered as fast as they arrive."
        return None, text, []
    spot, matrix, run = max(within, key=lambda spot: spot[2].config.infer.rate)
    assert spot.best
    latency = units.duration(spot.best.quantile_s(quantile))
    sentence = (
        f"{_capital(cell_in_words(matrix, spot.best.cell))} takes up to {_per_s(run)} as they come: {how} {latency} from "
        f"arrival to answer, under {under}."
    )
    beyond = [s for s in measured if s[0].best is None and s[2].config.infer.rate > run.config.infer.rate]
    besides = [_beyond(min(beyond, key=lambda s: s[2].config.infer.rate), quantile)] if beyond else []
    return (run, spot.best.cell), sentence, besides


def _beyond(spot: tuple[SweetSpot, Matrix, Run], quantile: Quantile) -> str:
    _, matrix, run = spot
    least = min(matrix.measured, key=lambda c: c.quantile_s(quantile) or math.inf)
    waited = least.latency.queue if least.latency else None
    rest = f", {units.duration(waited.p50_s)} of it waiting (p50)" if waited else ""
    return f"At {_per_s(run)} its {quantile_in_words(quantile)} is {units.duration(least.quantile_s(quantile))}{rest}."


def _per_s(run: Run) -> str:
    return f"{units.count(run.config.infer.rate)} requests/s"


# --- the software ladder --------------------------------------------------------------------------------------------

_MOST_AT = 3  # batch sizes of a ladder that stand beside each other


def _ladder(runs: Sequence[Run]) -> dict[str, Any] | None:
    """What each way to run the same weights gains and costs; None where there is one way only."""
    found = matrix_of(runs[0])
    if len(runs) > 1 or len({(c.cell.runtime, c.cell.precision) for c in found.cells}) < 2:
        return None
    at = _compared_at(found)
    ladders = {place: inference_runtimes.ladder(found, batch_size=place[0], threads=place[1]) for place in at}
    titles = {place: _compared_in_words(found, place) for place in at}
    forms = list(
        dict.fromkeys((r.result.cell.precision, r.result.cell.runtime) for rungs in ladders.values() for r in rungs)
    )
    rungs = {form: {place: _rung(ladders[place], form) for place in at} for form in forms}
    bars = [
        {
            "name": titles[place],
            "labels": [_form_in_words(form) for form in forms if _speedup(rungs[form][place]) is not None],
            "ratios": [short(_speedup(rungs[form][place])) for form in forms if _speedup(rungs[form][place]) is not None],
        }
        for place in at
    ]  # fmt: skip
    return {
        "columns": ["Software", *(f"{what}, {t}" for t in titles.values() for what in ("p50", "speed-up")),
                    "Accuracy", "Change", "On disk", "First answer"],
        "rows": [_rung_row(found, form, rungs[form], titles) for form in forms],
        "bars": [bar for bar in bars if bar["labels"]],
        "note": "Speed-up: p50 of eager by its own, at the same batch size and threads (derived). Latency, accuracy on all "
        "held-out examples, and size: measured.",
    }  # fmt: skip


def _compared_at(found: Matrix) -> list[tuple[int, int]]:
    """Batch size and threads of the columns: the smallest, the middle and the largest, at the most threads."""
    threads = found.threads[-1]
    sizes = sorted({c.cell.batch_size for c in found.cells if c.cell.threads == threads})
    if len(sizes) > _MOST_AT:
        sizes = [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
    return [(size, threads) for size in sizes]


def _compared_in_words(found: Matrix, place: tuple[int, int]) -> str:
    threads = f", {_label('threads', place[1])}" if len(found.threads) > 1 else ""
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
        _accuracy(found.config, quality.test_accuracy) if quality else units.UNKNOWN,
        units.UNKNOWN if change is None else points(change),
        units.nbytes(quality.size_bytes if quality else None),
        units.duration(firsts[0] if firsts else None),
    ]
    return {"name": _form_in_words(form), "values": values, "why": _why(at, titles)}


def _speed(rung: Rung | None) -> tuple[str, str]:
    speedup = _speedup(rung)
    return units.duration(
        rung.result.quantile_s("p50") if rung else None
    ), "–" if speedup is None else f"{speedup:.2f} ×"


def _why(at: dict[tuple[int, int], Rung | None], titles: dict[tuple[int, int], str]) -> str:
    """Why it did not run, or is slower, and at which batch sizes where not at all of them."""
    reasons: dict[str, list[str]] = {}
    for place, rung in at.items():
        if rung and rung.result.not_run:
            reasons.setdefault(f"Not run: {rung.result.not_run}", []).append(titles[place])
        elif rung and rung.reason:
            reasons.setdefault(f"Slower: {rung.reason}", []).append(titles[place])
    words = [why if len(places) == len(at) else f"At {' and '.join(places)}: {why}" for why, places in reasons.items()]
    return visible(" ".join(words), 2 * _LONGEST_TEXT)


# --- the route ----------------------------------------------------------------------------------------------------


def get_inference(request: Request) -> Response:
    """`runs=ID,ID&after=CURSOR&limit_s=0.005&quantile=p99&cell=KEY&held=VERSION`."""
    asked = request.query_params
    ids = [run_id for run_id in asked.get("runs", "").split(",") if run_id]
    if not 0 < len(ids) <= MOST_RUNS:
        return _refused(f"Ask for 1 to {MOST_RUNS} runs, not {len(ids)}.", 400)
    try:
        runs = [shared_run(run_id) for run_id in ids]
    except StoreError as error:
        return _refused(error.message, 404)
    if other := next((run for run in runs if run.config.task != "infer"), None):
        return _refused(f"Run {other.run_id} is not one of inference.", 404)
    quantile = asked.get("quantile", "p99")
    answer = figures(
        runs, asked.get("after", ""), limit_s=_seconds(asked.get("limit_s", "")), cell=asked.get("cell", ""),
        quantile=cast(Quantile, quantile) if quantile in get_args(Quantile) else "p99", held=asked.get("held", ""),
    )  # fmt: skip
    return wire.answer(answer)


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _refused(why: str, status: int) -> Response:
    return wire.answer({"error": visible(why, _LONGEST_TEXT)}, status)


ROUTES = [Route("/api/inference", get_inference)]
