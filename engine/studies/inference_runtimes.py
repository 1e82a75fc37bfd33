"""Compares the runtimes that run the same weights, and says why one is slower than plain PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine import models
from engine.common import units
from engine.common.errors import EngineError
from engine.config.data import DATA
from engine.config.run import RunConfig
from engine.config.tasks import RUNTIMES, Cell, RuntimeName
from engine.events.inference import Quality
from engine.studies import batch_law
from engine.studies.inference import RUNTIME_WORDS, CellResult, Matrix, points


@dataclass(frozen=True, slots=True)
class Rung:
    """One runtime and precision for the same weights, compared with plain PyTorch at the same batch size and threads."""

    result: CellResult
    speedup: float | None  # p50 of plain PyTorch / its own p50; above 1 it is faster
    reason: str = ""  # why it is slower, where it is


BASES: tuple[RuntimeName, ...] = (
    "eager",
    "inference_mode",
)  # what a ladder is measured by: the first that was measured
_SLOWER = 0.97  # below this a rung is called slower; between two cells of one run p50 moves by some per cent


def ladder(found: Matrix, *, batch_size: int, threads: int) -> tuple[Rung, ...]:
    """All runtimes and precisions at one batch size and thread count, in the order of RUNTIMES; also those not run."""
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
    """The accuracy of a runtime and precision, how far its logits differ from eager fp32, and its size on disk."""
    words = RUNTIME_WORDS[quality.runtime] + ("" if quality.precision == "fp32" else f" in {quality.precision}")
    is_reference = quality.precision == "fp32" and quality.runtime in BASES
    if not found.is_trained:
        accuracy = "untrained"
    else:
        change = f" ({points(quality.accuracy_change)})" if quality.accuracy_change and not is_reference else ""
        accuracy = f"accuracy {units.accuracy(quality.test_accuracy)}{change}"
    logits = "" if is_reference else f", logits within {quality.max_logit_difference or 0:.2g} of eager fp32"
    return f"{words}: {accuracy}{logits}, {units.nbytes(quality.size_bytes)} on disk"


def slower_in_words(found: Matrix, *, batch_size: int, threads: int) -> list[str]:
    """A sentence for each runtime that is slower than plain PyTorch at one batch size and thread count."""
    return [
        f"{RUNTIME_WORDS[rung.result.cell.runtime]}{'' if rung.result.cell.precision == 'fp32' else f' in {rung.result.cell.precision}'} "
        f"takes {1 / rung.speedup:.2f} times as long as plain PyTorch at batch {batch_size}: {rung.reason}"
        for rung in ladder(found, batch_size=batch_size, threads=threads)
        if rung.reason and rung.speedup
    ]


def base_of(results: Sequence[CellResult]) -> CellResult | None:
    """What the others are compared with: fp32 in eager mode or, if that was not measured, in inference mode."""
    for runtime in BASES:
        for result in results:
            if result.latency and (result.cell.runtime, result.cell.precision) == (runtime, "fp32"):
                return result
    return None


def why_slower(found: Matrix, result: CellResult, base: CellResult) -> str:
    """Why a runtime is slower than `base`: from the fitted times per request and per sample, then from what is known of it."""
    own, other = _line(found, result.cell), _line(found, base.cell)
    words = []
    if own and other and own.t0_s > other.t0_s / _SLOWER and _share_of_start(own, result) > 0.5:
        words.append(
            f"The overhead of a request is {units.duration(own.t0_s)}, against {units.duration(other.t0_s)} (fitted over the "
            "batch sizes)."
        )
    elif own and other and own.t1_s > other.t1_s / _SLOWER:
        words.append(
            f"A sample takes {units.duration(own.t1_s)}, against {units.duration(other.t1_s)} (fitted over the batch sizes)."
        )
    return " ".join([*words, *_known(found, result.cell)])


def _share_of_start(line: batch_law.StepTime, result: CellResult) -> float:
    return line.t0_s / line.seconds(result.cell.batch_size)


def _line(found: Matrix, cell: Cell) -> batch_law.StepTime | None:
    """The fit t0 + t1 B of the median latencies over all batch sizes, for a runtime, precision and thread count."""
    alike = [
        c
        for c in found.measured
        if (c.cell.threads, c.cell.precision, c.cell.runtime) == (cell.threads, cell.precision, cell.runtime)
    ]
    try:
        return batch_law.fit_step_time([c.cell.batch_size for c in alike], [c.quantile_s("p50") or 0.0 for c in alike])
    except EngineError:
        return None


def _known(found: Matrix, cell: Cell) -> list[str]:
    """Known reasons why a runtime or precision is slow, independent of the measurements."""
    if cell.runtime in {"int8", "onnxruntime-int8"}:
        words = [
            "Dynamic int8 measures and rounds the activations before every matrix product, which takes longer than a small product."
        ]
        words += _lack(found, "cpu_int8_dot", "an int8 dot product (VNNI), which makes the product itself faster")
        if models.family_of(found.config.model).has_convolutions and cell.runtime == "int8":
            words.append("Convolutions stay in fp32.")
        return words
    if cell.precision == "bf16" and found.config.device == "cpu":
        return _lack(found, "cpu_bf16", "bfloat16 arithmetic, without which every product is emulated")
    known: Mapping[RuntimeName, str] = {
        "exported": "Python interprets an exported graph operation by operation and checks its inputs.",
        "compiled": "The checks before compiled code (guards) take more time here than fused operations save.",
        "channels_last": "Convolutions with so few channels are not faster with this layout.",
    }
    return [known[cell.runtime]] if cell.runtime in known else []


def _lack(found: Matrix, ability: str, what: str) -> list[str]:
    """A sentence if the run's processor lacks an ability (a key of its environment), or if that is not known."""
    has = found.environment.get(ability)
    if has is None:
        return [f"It is not known whether this CPU has {what}."]
    return [] if has else [f"This CPU does not have {what}."]


def offered(config: RunConfig, cell: Cell) -> str:
    """Why a combination cannot be measured on any machine; empty where it can."""
    text, on_gpu, family = config.is_text, config.device != "cpu", models.family_of(config.model)
    if text and cell.runtime not in {"eager", "inference_mode", "int8"}:
        return "A text model generates one character at a time, with growing shapes, so it is only measured in PyTorch."
    if cell.runtime == "channels_last" and not (family.has_convolutions and DATA[config.data].kind != "vector"):
        return "Channels last is a layout for convolutions of images, and this model has none."
    if cell.runtime in {"int8", "onnxruntime", "onnxruntime-int8"} and on_gpu:
        return f"{RUNTIME_WORDS[cell.runtime]} is only measured on a CPU."
    if cell.runtime in {"int8", "onnxruntime", "onnxruntime-int8"} and cell.precision != "fp32":
        return f"{RUNTIME_WORDS[cell.runtime]} needs fp32 weights, so it cannot be combined with precision={cell.precision}."
    return ""
