"""`python -m engine infer`: how fast a net answers, in a table, with the cell to deploy under a latency limit."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from engine import admission, calibration, hardware, planner, serving, units
from engine.config import (
    RUNTIMES,
    PrecisionName,
    RunConfig,
    RuntimeName,
    describe,
    infer_config,
    infer_matrix,
    with_overrides,
)
from engine.errors import ConfigError, EngineError
from engine.records import TERMINAL
from engine.serving import CellResult, Matrix, Quantile
from engine.store import Run, Store, json_text
from engine.supervisor import Client
from engine.text import LONGEST_NAME, visible

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)


def register(add: Callable[..., argparse.ArgumentParser], config: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    command = add(
        "infer", infer_command, "measure how fast a trained net answers, and which batch size to deploy", config
    )
    command.add_argument("--run", default="", metavar="RUN", help="the training run whose weights answer, or last")
    command.add_argument(
        "--weights", default="", metavar="FILE", help="your own .safetensors of the configuration's model"
    )
    command.add_argument("--matrix", action="store_true", help="every combination of the four lists below")
    command.add_argument(
        "--batch-sizes", default="", metavar="1,2,4", help=f"default {BATCH_SIZES[0]} to {BATCH_SIZES[-1]}"
    )
    command.add_argument("--threads", default="", metavar="1,2", help="default 1 to the usable cores, up to 4")
    command.add_argument("--precisions", default="", metavar="fp32,bf16", help="default fp32")
    command.add_argument(
        "--runtimes",
        default="",
        metavar="eager,int8",
        help=f"default inference_mode; all, or some of {', '.join(RUNTIMES)}",
    )
    command.add_argument("--limit-ms", type=float, help="say which cell to deploy for this latency")
    command.add_argument(
        "--quantile", choices=("p50", "p90", "p99", "max"), default="p99", help="that must be within it"
    )
    command.add_argument("--name", default="", help="a name to show in lists")


def infer_command(a: argparse.Namespace) -> int:
    from engine import cli

    store = cli._store(a)
    client = Client(store)
    config = wanted(a, store, cli._config)
    limit_s = _limit_s(a.limit_ms)
    if config.infer.run:
        admission.check_run(config, store.run(config.infer.run, keep_points=1))
    plan = planner.check(config)
    if not a.json:
        predicted = predicted_of(store, config, plan)
        print(f"Takes about {units.duration(predicted.total_s)} ({predicted.how}).", file=sys.stderr)
        for warning in plan.warnings:
            print(f"  ! {warning}", file=sys.stderr)
    run_id = ""
    try:
        with cli._undisturbed():
            run_id = client.submit(config, name=a.name)
        run = cli._follow(store, client, run_id, quiet=a.json)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if run_id:
            client.cancel(run_id, reason="interrupted in the terminal")
        print("\nStopped. What is measured stays.", file=sys.stderr)
        if a.json:
            stopped = {"type": "KeyboardInterrupt", "message": "Stopped in the terminal."}
            print(json_text({"error": stopped, "run_id": run_id or None}))
        return cli.INTERRUPTED
    if a.json:
        if run.why():
            print(f"{run.run_id} {run.status}: {visible(run.why())}", file=sys.stderr)
        print(
            json_text(
                cli._result(run) | {"inference": serving.as_json(serving.matrix_of(run), limit_s, quantile=a.quantile)}
            )
        )
    else:
        print(card(run, limit_s, quantile=a.quantile))
    return cli.OK if run.status == "finished" else cli.FAILED


def wanted(a: argparse.Namespace, store: Store, config_of: Callable[[argparse.Namespace], RunConfig]) -> RunConfig:
    """The run the arguments ask for."""
    if a.run and (a.preset or a.config or a.weights):
        raise ConfigError(
            "--run takes model and data from the run: it goes with none of --preset, --config and --weights.",
            fix="Leave them out; --set changes what is measured.",
        )
    if a.run:
        run_id = last_with_weights(store) if a.run == "last" else store.find(a.run)
        config = with_overrides(infer_config(store.run(run_id, keep_points=1).config, run_id), a.set)
    else:
        base = config_of(a)
        config = base if base.task == "infer" else infer_config(base, **_set_by_hand(a.set, base))
        if a.weights:
            path = Path(a.weights).expanduser().absolute()  # a run's process works elsewhere
            config = with_overrides(config, [f"infer.weights={path}"])
    lists = (a.batch_sizes, a.threads, a.precisions, a.runtimes)
    if not a.matrix and not any(lists):
        return config
    cores = hardware.probe().cpu.usable_cores if config.device == "cpu" else 1
    sizes, threads, precisions, runtimes = lists
    runtimes = ",".join(RUNTIMES) if runtimes == "all" else runtimes
    return infer_matrix(
        config,
        _numbers("--batch-sizes", sizes) or (BATCH_SIZES if a.matrix else (_own_batch(config),)),
        _numbers("--threads", threads) or (tuple(range(1, min(cores, 4) + 1)) if a.matrix else (config.threads,)),
        cast("list[PrecisionName]", _words(precisions)) or (config.precision,),
        cast("list[RuntimeName]", _words(runtimes)) or (config.infer.runtime,),
    )


def _set_by_hand(assignments: Sequence[str], base: RunConfig) -> dict[str, Any]:
    """What `--set` said of the request itself: a training run's own batch size is no request's."""
    named = {text.partition("=")[0].strip() for text in assignments}
    own = {name: getattr(base, name) for name in ("batch_size", "threads", "precision") if name in named}
    return own | {key[6:]: getattr(base.infer, key[6:]) for key in named if key.startswith("infer.")}


def _own_batch(config: RunConfig) -> int:
    return config.cells[0].batch_size


def _numbers(option: str, text: str) -> list[int]:
    words = _words(text)
    if not all(word.isdigit() for word in words):
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers.", fix="Write it as 1,2,4.")
    return [int(word) for word in words]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\s,]+", text)


def _limit_s(limit_ms: float | None) -> float | None:
    if limit_ms is not None and not 0 < limit_ms < 1e9:
        raise ConfigError(f"--limit-ms {limit_ms:g} is not allowed.", fix="It is a number of milliseconds above 0.")
    return None if limit_ms is None else limit_ms / 1e3


def last_with_weights(store: Store) -> str:
    """The newest training run whose weights are there."""
    for row in store.rows(limit=200):
        if row.config.task == "train" and row.status in TERMINAL:
            try:
                if admission.weights_of(store.run(row.run_id, keep_points=1)):
                    return row.run_id
            except EngineError:
                continue
    raise ConfigError(
        "No finished training run is in this store.", fix="Train one: python -m engine run --preset lenet"
    )


def predicted_of(store: Store, config: RunConfig, plan: planner.Plan) -> serving.Prediction:
    """How long a run of inference takes, from what this store knows of the machine."""
    device = str(hardware.environment(hardware.probe(), config.device).get("device") or "")
    found = calibration.latest(store, config.device, device)
    return serving.predicted_seconds(
        config, plan, calibrated=found.calibration if found else None, known=serving.known_latencies(store, config)
    )


# --- the card -----------------------------------------------------------------------------------------------------


def card(run: Run, limit_s: float | None = None, *, quantile: Quantile = "p99") -> str:
    found = serving.matrix_of(run)
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        f"  {describe(run.config)}",
        *_table(found),
        *_forms(found),
    ]
    lines += [f"  - {reason}" for reason in dict.fromkeys(_missing(c) for c in found.cells if c.not_run)]
    if run.last_word and run.last_word.busy and run.last_word.busy.is_busy:
        lines.append(f"  ! machine was busy: {visible(run.last_word.busy.in_words)}")
    if limit_s is not None:
        lines.append(f"  {serving.in_words(found, limit_s, quantile=quantile)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _table(found: Matrix) -> list[str]:
    """A line per cell: percentiles are of single requests, throughput is of examples."""
    if not found.measured:
        return ["  nothing is measured yet" if not found.is_over else "  nothing was measured"]
    text = found.config.is_text
    heads = ["requests", "p50", "p90", "p99", "longest", "examples/s", "first answer"]
    heads += ["first char.", "each char.", "characters/s"] if text else []
    width = max(len(_name(found, c)) for c in found.measured)
    lines = [f"    {'':<{width}}" + "".join(f"{head:>13}" for head in heads)]
    for result in found.measured:
        latency = result.latency
        assert latency
        cells = [units.count(latency.requests)]
        cells += [units.duration(s) for s in (latency.p50_s, latency.p90_s, latency.p99_s, latency.max_s)]
        cells += [units.count(round(latency.samples_per_s)), units.duration(latency.first_request_s)]
        if text:
            cells += [units.duration(q.p50_s if q else None) for q in (latency.ttft, latency.tpot)]
            cells.append(units.count(round(latency.tokens_per_s or 0)))
        lines.append(f"    {_name(found, result):<{width}}" + "".join(f"{cell:>13}" for cell in cells))
    if found.config.infer.load == "open":
        lines += _arrivals(found)
    return lines


def _arrivals(found: Matrix) -> list[str]:
    lines = []
    for result in found.measured:
        latency = result.latency
        assert latency and latency.queue
        left = f", {latency.unanswered:,} not answered in time" if latency.unanswered else ""
        lines.append(
            f"    {_name(found, result)}: {latency.offered_per_s:.4g} requests/s arrived, {latency.reached_per_s:.4g} answered"
            f"{left}; waited {units.duration(latency.queue.p50_s)} (p99 {units.duration(latency.queue.p99_s)})"
        )
    return lines


def _name(found: Matrix, result: CellResult) -> str:
    return serving.cell_in_words(found, result.cell)


def _forms(found: Matrix) -> list[str]:
    """A line per form of the weights, and where one is slower than plain PyTorch, why."""
    seen = {(c.cell.precision, c.cell.runtime): c.quality for c in found.cells if c.quality}
    lines = [f"  {serving.form_in_words(found, quality)}" for quality in seen.values()]
    if found.cells:
        batch_size, threads = min((c.cell.batch_size, c.cell.threads) for c in found.cells)
        lines += [f"  {words}" for words in serving.slower_in_words(found, batch_size=batch_size, threads=threads)]
    return lines


def _missing(result: CellResult) -> str:
    return f"{serving.RUNTIME_WORDS[result.cell.runtime]}, {result.cell.precision}: {visible(result.not_run)}"


def plan_lines(store: Store, config: RunConfig, plan: planner.Plan) -> list[str]:
    predicted = predicted_of(store, config, plan)
    return [
        f"  cells             {len(config.cells)}",
        f"  takes about       {units.duration(predicted.total_s)} ({predicted.how})",
    ]
