"""One cell of an inference measurement in full: its numbers, its latency distribution, and the hardware at that time."""

from __future__ import annotations

from typing import Any

import numpy as np

from dashboard.api.inference_cells import LONGEST_TEXT, Place, busy_in_words, capitalized, label_of
from dashboard.api.wire import numbers, short
from engine.charts import inference as charts
from engine.common import units
from engine.common.downsample import minmax
from engine.common.sanitize import visible
from engine.config.run import RunConfig
from engine.events.inference import Latency, Quality
from engine.store.run import Run

_HARDWARE_POINTS = 400
_HARDWARE = {
    "process_cpu": "process_cpu_percent",
    "system_cpu": "system_cpu_percent",
    "gpu_utilization": "gpu_utilization_percent",
    "gpu_power": "gpu_power_w",
    "cpu_power": "cpu_power_w",
}


def detail_as_json(place: Place) -> dict[str, Any] | None:
    """One cell with its distribution, its timeline and the hardware's readings; None while nothing is measured."""
    m = place.found
    if m is None:
        return None
    return {
        "key": place.key,
        "version": version_of(place),
        "title": label_of(place),
        "facts": facts_of(place),
        "histogram": _bars(m),
        "marks": [["p50", short(m.p50_s)], ["p90", short(m.p90_s)], ["p99", short(m.p99_s)]],
        "timeline": _timeline(m),
        "hardware": _hardware(place.run),
    }


def version_of(place: Place) -> str:
    """Changes with every round and at the end of the run."""
    return f"{place.round}{'.' if place.run.is_over else ''}"


def _kind(m: Latency) -> str:
    return "latency from arrival" if m.load == "open" else "latency"


def _bars(m: Latency) -> dict[str, Any]:
    """The distribution in at most about 70 bars. A bar holds whole bins, so every count is exact."""
    edges, counts = charts.bars(m)
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


def facts_of(place: Place) -> list[tuple[str, str, str]]:
    """The numbers of a cell: title, value, and how it was measured."""
    m, c = place.found, place.cell
    assert m is not None
    count = f"measured: {m.requests:,} requests in {units.duration(m.seconds)}"
    facts = [
        (
            "Throughput",
            units.samples_per_s(m.samples_per_s),
            f"{count}{'; ' if busy_in_words(m) else ''}{busy_in_words(m)}",
        ),
        (f"{capitalized(_kind(m))} p50", units.duration(m.p50_s), "Measured"),
        ("p90", units.duration(m.p90_s), "Measured"),
        (
            "p99",
            units.duration(m.p99_s),
            "Measured" if m.requests >= 100 else "Measured: the longest of fewer than 100",
        ),
        ("Longest", units.duration(m.max_s), "Measured"),
        *_of_arrivals(m),
        *_of_text(m),
    ]
    quality = place.run.by_key(Quality).get((c.precision, c.runtime))
    if quality:
        how = f"Measured on {quality.examples:,} test examples"
        facts.append(("Test accuracy", accuracy_in_words(place.run.config, quality.test_accuracy), how))
    facts.append(
        ("First answer", units.duration(m.first_request_s), visible(m.first_method, LONGEST_TEXT) or "Not measured")
    )
    how = f"Not counted: {m.warm_up_requests:,} requests before the first counted one"
    facts.append(("Warm-up", units.duration(m.warm_up_s), how))
    if m.peak_memory_bytes is not None or m.memory_method:
        facts.append(("Peak memory", units.nbytes(m.peak_memory_bytes), visible(m.memory_method, LONGEST_TEXT)))
    energy = "not available here" if m.samples_per_j is None else f"{units.count(m.samples_per_j)} samples/J"
    facts.append(("Energy", energy, visible(m.energy_method, LONGEST_TEXT)))
    return [(title, value, capitalized(how)) for title, value, how in facts]


def _of_arrivals(m: Latency) -> list[tuple[str, str, str]]:
    if m.offered_per_s is None:
        return []
    reached = f"{units.count(m.reached_per_s)}/s"
    rest = f"; {m.unanswered:,} had no answer when the time was over" if m.unanswered else ""
    facts = [("Arrived, answered", f"{units.count(m.offered_per_s)}/s, {reached}", f"Measured{rest}")]
    if m.queue:
        waited = f"{units.duration(m.queue.p50_s)}, {units.duration(m.queue.p99_s)}"
        facts.append(("Time in the queue, p50 and p99", waited, "Measured: from arrival to the start of its batch"))
    return facts


def _of_text(m: Latency) -> list[tuple[str, str, str]]:
    facts = []
    cache = "" if m.cache is None else " with a KV cache" if m.cache else " without a cache"
    if m.ttft:
        both = f"{units.duration(m.ttft.p50_s)}, {units.duration(m.ttft.p99_s)}"
        facts.append(("First token, p50 and p99", both, "Measured: reading the prompt (prefill)"))
    if m.tpot:
        both = f"{units.duration(m.tpot.p50_s)}, {units.duration(m.tpot.p99_s)}"
        facts.append(("Each further token, p50 and p99", both, f"Measured: decode{cache}"))
    if m.tokens_per_s is not None:
        facts.append(("Tokens", f"{units.count(round(m.tokens_per_s))}/s", "Measured: generated tokens of all samples"))
    return facts


def accuracy_in_words(config: RunConfig, ratio: float) -> str:
    """The test accuracy, and a note where the weights are untrained."""
    return units.accuracy(ratio) if is_trained(config) else f"{units.accuracy(ratio)} (untrained)"


def is_trained(config: RunConfig) -> bool:
    """Whether the measured weights come from a training run or a file."""
    return bool(config.infer.run or config.infer.weights)
