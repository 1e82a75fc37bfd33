"""Inference: the overhead of the harness, the accuracy of its latencies, and the quality of its advice.

overhead   requests through the task's timed loop, and through a bare loop with one clock around all of them; in turns
plain      the median latency of the task, and of ten hand-written lines around inference_mode; in turns
stopwatch  the task's latencies, and those of another clock (CLOCK_MONOTONIC_RAW) in other code; in turns
sweet      the combination that the task's matrix names for a limit, and the best of all combinations by the plain loop
cache      time per new character of a decoder with its KV cache and without
ladder     the same trained weights in every runtime that is available

Models are 784-128-10 and LeNet on MNIST, with trained weights if accuracy is shown and new ones otherwise. Ratios are
taken within a round, with the sides in random order. `--clock cpu` counts the thread's own CPU time in `overhead`, so
that other programs on the same cores have no effect.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.measure import Spread
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.config.tasks import RUNTIMES, Cell
from engine.data import loading
from engine.events.inference import Latency, NotRun, Quality
from engine.hardware import probe
from engine.pytorch.data import tensors
from engine.pytorch.inference.load import Stopwatch, closed_loop
from engine.pytorch.inference.runtimes import FORMS, Weights
from engine.pytorch.tasks.infer import fresh_weights, infer
from engine.pytorch.tasks.train import train
from engine.studies import inference_runtimes
from engine.studies.inference import Quantile, in_words, matrix, sweet_spot

NETS = {"784-128-10": "mnist-mlp", "LeNet": "lenet"}
BATCH_SIZES = tuple(2**i for i in range(11))
GOALS = {"overhead": 1.02, "plain": 1.0, "stopwatch": 0.05, "sweet": 0.95}
BLOCK_S = 0.05  # length of one side in one round
SHORT_BLOCK_S = 0.005  # for `overhead`; so short that other programs do not interrupt most blocks
CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "cpu": time.thread_time_ns}


@dataclass(frozen=True, slots=True)
class Net:
    """A model with new weights, in the form of the task and written by hand, with inputs for both."""

    served: Callable[[Tensor], Tensor]
    plain: nn.Sequential
    held_out: Tensor
    config: RunConfig

    def inputs(self, batch_size: int) -> list[Tensor]:
        """As many different inputs as the task uses, within 64 MiB."""
        count = max(1, min(32, 2**26 // (4 * batch_size * self.held_out[0].numel())))
        rows = np.resize(np.random.default_rng(0).permutation(len(self.held_out)), (count, batch_size))
        return [self.held_out[torch.from_numpy(r)] for r in rows]


def net(preset: str, folder: Path) -> Net:
    """The model of a preset with new weights."""
    config = infer_config(preset_config(preset))
    arrays = loading.load(config.data, config.source)
    _, held_out = tensors(arrays, config.model)
    made = Weights(fresh_weights(config, arrays.facts, folder), config.model, arrays.facts, torch.device("cpu"))
    form = FORMS["inference_mode"](made, Cell(), config, folder)
    return Net(form.start(1).call, plain_net(preset, made.load()), held_out.x, config)


def plain_net(preset: str, same: nn.Sequential) -> nn.Sequential:
    """The model as in a tutorial, with the same weights."""
    if preset == "mnist-mlp":
        layers: list[nn.Module] = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)]
    else:
        layers = [
            nn.Conv2d(1, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(400, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, 10),
        ]
    written = nn.Sequential(*layers)
    written.load_state_dict(same.state_dict())
    return written.eval()


# --- the sides ----------------------------------------------------------------------------------------------------


def harness(call: Callable[[Any], Any], inputs: Sequence[Any], seconds: float, watch: Stopwatch) -> np.ndarray:
    """Latencies in seconds of the task's own timed loop."""
    with torch.inference_mode():
        gc.disable()
        until = time.perf_counter_ns() + int(seconds * 1e9)
        count = closed_loop(call, itertools.cycle(inputs), watch, watch.size, until)
        gc.enable()
    return (np.array(watch.ended[:count]) - np.array(watch.begun[:count])) / 1e9


def bare(call: Callable[[Any], Any], inputs: Sequence[Any], count: int, clock: Callable[[], int]) -> float:
    """Seconds per request in a loop that does nothing else, with one clock around all requests."""
    with torch.inference_mode():
        gc.disable()
        source: Iterator[Any] = itertools.cycle(inputs)
        begun = clock()
        for _, x in zip(range(count), source, strict=False):
            call(x)
        took = clock() - begun
        gc.enable()
    return took / count / 1e9


def timed_harness(
    call: Callable[[Any], Any], inputs: Sequence[Any], count: int, watch: Stopwatch, clock: Callable[[], int]
) -> float:
    """Seconds per request of the task's loop, with one clock around it."""
    with torch.inference_mode():
        gc.disable()
        begun = clock()
        done = closed_loop(call, itertools.cycle(inputs), watch, count, 2**62)
        took = clock() - begun
        gc.enable()
    return took / done / 1e9


def by_hand(model: nn.Module, inputs: Sequence[Tensor], seconds: float) -> np.ndarray:
    """Latencies in seconds of the usual hand-written loop."""
    times = []
    with torch.inference_mode():
        until = time.perf_counter() + seconds
        for x in itertools.cycle(inputs):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
            if start > until:
                break
    return np.array(times)


def by_another_clock(call: Callable[[Any], Any], inputs: Sequence[Any], count: int) -> np.ndarray:
    """Latencies in seconds by CLOCK_MONOTONIC_RAW."""
    raw, now = time.CLOCK_MONOTONIC_RAW, time.clock_gettime_ns
    begun, ended = np.empty(count, np.int64), np.empty(count, np.int64)
    with torch.inference_mode():
        for i in range(count):
            x = inputs[i % len(inputs)]
            begun[i] = now(raw)
            call(x)
            ended[i] = now(raw)
    return (ended - begun) / 1e9


# --- what is measured ---------------------------------------------------------------------------------------------


def overhead(made: Net, rounds: int, rng: random.Random, clock: Callable[[], int]) -> Spread:
    """Time of a request in the task's loop / in a bare loop, at batch 1 on one thread."""
    torch.set_num_threads(1)
    inputs, watch = made.inputs(1), Stopwatch()
    count = max(20, int(SHORT_BLOCK_S / np.median(harness(made.served, inputs, 0.2, watch))))
    ratios = []
    for _ in range(10 * rounds):
        took = {}
        for side in rng.sample(["harness", "bare"], 2):
            took[side] = (
                timed_harness(made.served, inputs, count, watch, clock)
                if side == "harness"
                else bare(made.served, inputs, count, clock)
            )
        ratios.append(took["harness"] / took["bare"])
    return Spread.of(ratios)


def plain(made: Net, rounds: int, rng: random.Random) -> tuple[Spread, Spread, Spread]:
    """Median latency by hand and of the task, and their ratio, at batch 1 on one thread."""
    torch.set_num_threads(1)
    inputs, watch, pairs = made.inputs(1), Stopwatch(), []
    harness(made.served, inputs, 0.2, watch), by_hand(made.plain, inputs, 0.2)
    for _ in range(rounds):
        p50 = {}
        for side in rng.sample(["task", "hand"], 2):
            found = (
                harness(made.served, inputs, BLOCK_S, watch) if side == "task" else by_hand(made.plain, inputs, BLOCK_S)
            )
            p50[side] = float(np.median(found))
        pairs.append((p50["hand"], p50["task"]))
    return Spread.of([h for h, _ in pairs]), Spread.of([t for _, t in pairs]), Spread.of([t / h for h, t in pairs])


def stopwatch(made: Net, batch_size: int, rounds: int, rng: random.Random) -> tuple[Spread, Spread]:
    """The task's p50 and mean / those of another clock in other code, on one thread."""
    torch.set_num_threads(1)
    inputs, watch, p50s, means = made.inputs(batch_size), Stopwatch(), [], []
    count = max(20, int(BLOCK_S / np.median(harness(made.served, inputs, 0.2, watch))))
    for _ in range(rounds):
        found: dict[str, np.ndarray] = {}
        for side in rng.sample(["task", "other"], 2):
            found[side] = (
                harness(made.served, inputs, BLOCK_S, watch)
                if side == "task"
                else by_another_clock(made.served, inputs, count)
            )
        p50s.append(float(np.median(found["task"]) / np.median(found["other"])))
        means.append(float(np.mean(found["task"]) / np.mean(found["other"])))
    return Spread.of(p50s), Spread.of(means)


@dataclass(frozen=True, slots=True)
class Advice:
    """The combination that the matrix names, and what the plain loop measures for it."""

    sentence: str
    chosen: Cell | None
    chosen_samples_per_s: float | None  # by the plain loop
    chosen_is_within: bool  # whether it is within the limit, by the plain loop
    best: tuple[int, int] | None  # batch size and threads, by the plain loop
    best_samples_per_s: float | None

    @property
    def share(self) -> float | None:
        """Throughput of the advice / best throughput within the limit; None if unknown."""
        if not self.chosen_samples_per_s or not self.best_samples_per_s:
            return None
        return self.chosen_samples_per_s / self.best_samples_per_s


def sweet(
    made: Net, threads: Sequence[int], seconds: float, limit_s: float, quantile: Quantile, rng: random.Random
) -> Advice:
    """The task's matrix first, then every combination by hand for as long, in random order, also in five turns.

    By hand, throughput is that of the median request: what a busy machine does to a few of them is left out on both sides.
    """
    config = infer_matrix(with_overrides(made.config, [f"infer.seconds={seconds}"]), BATCH_SIZES, threads)
    with tempfile.TemporaryDirectory() as folder:
        latencies = {e.cell: e for e in infer(config, Path(folder)) if isinstance(e, Latency)}
    found = matrix(config, latencies.values(), is_over=True)
    spot = sweet_spot(found, limit_s, quantile=quantile)
    cells = [(c.batch_size, c.threads) for c in config.cells]
    times: dict[tuple[int, int], list[np.ndarray]] = {cell: [] for cell in cells}
    for _ in range(5):
        for cell in rng.sample(cells, len(cells)):
            torch.set_num_threads(cell[1])
            inputs = made.inputs(cell[0])
            by_hand(made.plain, inputs, 0.0)
            times[cell].append(by_hand(made.plain, inputs, max(seconds / 5, 0.02)))
    torch.set_num_threads(1)
    speed = {}
    for cell, parts in times.items():
        latency = np.concatenate(parts)
        share = {"p50": 50, "p90": 90, "p99": 99, "max": 100}[quantile]
        within = np.percentile(latency, share, method="inverted_cdf") <= limit_s
        speed[cell] = (cell[0] / float(np.median(latency)), bool(within))
    allowed = {cell: s for cell, (s, within) in speed.items() if within}
    best = max(allowed, key=allowed.__getitem__) if allowed else None
    chosen = spot.best.cell if spot.best else None
    return Advice(
        sentence=in_words(found, limit_s, quantile=quantile),
        chosen=chosen,
        chosen_samples_per_s=speed[chosen.batch_size, chosen.threads][0] if chosen else None,
        chosen_is_within=bool(chosen and speed[chosen.batch_size, chosen.threads][1]),
        best=best,
        best_samples_per_s=allowed[best] if best else None,
    )


def cache(rounds: int) -> dict[str, float]:
    """Seconds per new character of a decoder with 0.8 M parameters, at batch 1 on one thread."""
    base = infer_config(
        preset_config("char-decoder"), prompt_len=32, new_tokens=32, requests=10 * rounds, rounds=rounds
    )
    found = {}
    for name, on in (("with", "true"), ("without", "false")):
        with tempfile.TemporaryDirectory() as folder:
            config = with_overrides(base, [f"infer.cache={on}", "infer.seconds=3"])
            events = [e for e in infer(config, Path(folder)) if isinstance(e, Latency)]
        assert events[-1].tpot and events[-1].ttft
        found |= {f"tpot_{name}_cache_s": events[-1].tpot.p50_s, f"ttft_{name}_cache_s": events[-1].ttft.p50_s}
    return found | {"ratio": found["tpot_without_cache_s"] / found["tpot_with_cache_s"]}


def ladder(preset: str, seconds: float, runtimes: Sequence[str]) -> list[dict[str, Any]]:
    """Every runtime with trained weights, at batch 1 and 64 on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(with_overrides(preset_config(preset), ["budget.epochs=10"]), Path(folder)):
            pass
        config = infer_config(preset_config(preset), weights=str(Path(folder) / "model.safetensors"), seconds=seconds)
        config = infer_matrix(config, (1, 64), runtimes=runtimes)  # type: ignore[arg-type]
        (own := Path(folder) / "own").mkdir()
        events = list(infer(config, own))
    kinds = (Latency, Quality, NotRun)
    latencies, qualities, missing = ([e for e in events if isinstance(e, kind)] for kind in kinds)
    environment = probe.environment(probe.probe(), config.device)
    found = matrix(config, latencies, qualities, missing, is_over=True, environment=environment)  # type: ignore[arg-type]
    rows = []
    for rung in inference_runtimes.ladder(found, batch_size=1, threads=1):
        large = found.at(rung.result.cell.model_copy(update={"batch_size": 64}))
        latency, quality = rung.result.latency, rung.result.quality
        rows.append(
            {
                "runtime": rung.result.cell.runtime,
                "not_run": rung.result.not_run or None,
                "p50_s_batch_1": latency.p50_s if latency else None,
                "samples_per_s_batch_64": large.samples_per_s if large else None,
                "speedup_batch_1": rung.speedup,
                "cold_start_s": latency.first_request_s if latency else None,
                "prepare_s": latency.prepare_s if latency else None,
                "test_accuracy": quality.test_accuracy if quality else None,
                "size_bytes": quality.size_bytes if quality else None,
                "max_logit_difference": quality.max_logit_difference if quality else None,
                "slower_because": rung.reason or None,
            }
        )
    return rows


# --- main ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the chosen parts, print tables and save the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("overhead", "plain", "stopwatch", "sweet", "cache", "ladder")
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument(
        "--rounds", type=int, default=101, help="of overhead, plain and stopwatch (default %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=2, help="of the sweet spot (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a cell (default %(default)s)")
    parser.add_argument("--limit-ms", type=float, default=5.0, help="of the sweet spot (default %(default)s)")
    parser.add_argument("--quantile", choices=("p50", "p90", "p99"), default="p99")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--runtimes", default=",".join(r for r in RUNTIMES if r != "compiled"))
    a = parser.parse_args()
    torch.set_num_threads(1)
    load_before, rng, figures = measure.load(), random.Random(0), {}
    with tempfile.TemporaryDirectory() as folder:
        for title, preset in NETS.items():
            made = net(preset, Path(folder))
            figures[title] = _of_net(title, made, preset, a, rng)
    if not a.only or "cache" in a.only:
        figures["decoder"] = cache(5)
        print(f"decoder: {figures['decoder']['ratio']:.2f} times as long per new character without the KV cache")
    if not a.only:
        clock = {"clock_of_overhead": a.clock, "limit_s": a.limit_ms / 1e3, "quantile": a.quantile, "goals": GOALS}
        measure.save("inference", clock | {"nets": figures}, load_before=load_before)


def _of_net(title: str, made: Net, preset: str, a: argparse.Namespace, rng: random.Random) -> dict[str, Any]:
    chosen, found = a.only or ("overhead", "plain", "stopwatch", "sweet", "ladder"), {}
    rows: list[list[str]] = []
    if "overhead" in chosen:
        ratio = overhead(made, a.rounds, rng, CLOCKS[a.clock])
        found["overhead"] = ratio
        rows.append(
            [
                f"{title}: harness by a bare loop, batch 1 ({a.clock} time)",
                ratio.text(3),
                "<= 1.02",
                measure.verdict(ratio.median <= 1.02),
            ]
        )
    if "plain" in chosen:
        hand, task, ratio = plain(made, a.rounds, rng)
        found |= {"plain_p50_s": hand, "task_p50_s": task, "task_by_plain": ratio}
        words = f"{title}: p50 of the task by plain inference_mode ({task.text(1, scale=1e6)} by {hand.text(1, scale=1e6)} us)"
        rows.append([words, ratio.text(3), "1 in its spread", measure.verdict(ratio.p10 <= 1)])
    if "stopwatch" in chosen:
        for batch_size in (1, 64):
            p50, mean = stopwatch(made, batch_size, a.rounds, rng)
            found |= {f"stopwatch_p50_batch_{batch_size}": p50, f"stopwatch_mean_batch_{batch_size}": mean}
            words = f"{title}: p50 by another clock's, batch {batch_size} (mean {mean.text(3)})"
            rows.append([words, p50.text(3), "1 +- 0.05", measure.verdict(abs(p50.median - 1) <= 0.05)])
    if "sweet" in chosen:
        cores = probe.probe().cpu.usable_cores
        advices = [
            sweet(made, range(1, min(cores, 2) + 1), a.seconds, a.limit_ms / 1e3, a.quantile, rng)
            for _ in range(a.repeats)
        ]
        shares = [advice.share for advice in advices if advice.share is not None]
        found["sweet"] = [
            {
                "sentence": s.sentence,
                "best": s.best,
                "chosen_is_within_by_hand": s.chosen_is_within,
                "best_samples_per_s": s.best_samples_per_s,
                "share": s.share,
            }
            for s in advices
        ]
        for advice in advices:
            print(f"  {advice.sentence} By hand: {advice.best}, {advice.best_samples_per_s or 0:,.0f} samples/s")
        beyond = sum(not advice.chosen_is_within for advice in advices)
        if shares:
            found["sweet_share"] = (share := Spread.of(shares))
            words = f"{title}: throughput of the advice by the best"
            words += f" ({beyond} of {len(advices)} not within the limit by hand)" if beyond else ""
            rows.append([words, share.text(3), ">= 0.95", measure.verdict(share.median >= 0.95 and not beyond)])
    measure.table(["", "median (p10-p90)", "aim", ""], rows) if rows else None
    if "ladder" in chosen:
        found["ladder"] = ladder(preset, a.seconds, a.runtimes.split(","))
        for row in found["ladder"]:
            print("  ", {key: value for key, value in row.items() if value is not None})
    return found


if __name__ == "__main__":
    main()
