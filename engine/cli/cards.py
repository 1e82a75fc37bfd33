"""Runs as text for a terminal: one card per kind of task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from engine.cli import results
from engine.common import units
from engine.common.sanitize import LONGEST_NAME, visible
from engine.config.summary import describe
from engine.config.tasks import TaskName
from engine.events.machine import Calibration
from engine.events.studies import Surface
from engine.events.target import when_reached
from engine.events.training import Compiled
from engine.measurement import alerts, calibration, cost, energy, provenance, step_breakdown
from engine.reports import sharing
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import batch_law
from engine.studies.inference import (
    RUNTIME_WORDS,
    CellResult,
    Matrix,
    Quantile,
    cell_in_words,
    guessing_in_words,
    in_words,
    matrix_of,
    sweet_spot,
)
from engine.studies.inference_runtimes import form_in_words, slower_in_words


def card(run: Run) -> str:
    """The text of a run: its configuration, its results, and how each figure was obtained."""
    if run.imported and run.imported.origin.form == "curve":
        return _curve_card(run)
    return _CARDS.get(run.config.task, _plain_card)(run)


def _plain_card(run: Run) -> str:
    """The card of a task that has none of its own: the numbers and texts of its newest events."""
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        *_origin_lines(run),
        f"  {describe(run.config)}",
    ]
    for kind, said in results.events_of(run).items():
        lines += [f"  {title:<17} {visible(text)} ({kind})" for title, text in said.facts()]
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _surface_card(run: Run) -> str:
    lines = [f"{run.run_id}  {run.status}", f"  {describe(run.config)}"]
    if s := run.latest(Surface):
        lines += [
            f"  loss              {units.loss(s.loss_min)} to {units.loss(s.loss_max)} (measured on {s.examples:,} {s.split} samples)",
            f"  plane explains    {units.percent(sum(s.explained))} of the variance of the weights (derived)",
            f"  plane error       {units.loss(s.plane_gap)} loss at the checkpoints, median (derived)",
            f"  checkpoints       {s.checkpoints:,} (counted)",
            f"  time              {units.duration(s.seconds)} (measured)",
        ]
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _law_card(run: Run) -> str:
    found = batch_law.outcome(run.trials, budget_s=run.config.budget.seconds)
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        *_origin_lines(run),
        f"  {describe(run.config)}",
        f"  trials            {len(run.trials):,}, {sum(t.tuning for t in run.trials):,} of them to tune the learning rate",
        f"    {'batch size':>10} {'learning rate':>14} {'steps':>9} {'reached':>12} {'step time':>10}",
    ]
    for at in found.sizes:
        steps, reached = units.count(at.steps and round(at.steps)), f"{at.reached} of {at.measured}"
        rate = units.lr(at.lr and float(f"{at.lr:.3g}"))
        lines.append(f"    {at.batch_size:>10} {rate:>14} {steps:>9} {reached:>12} {units.duration(at.step_s):>10}")
    lines += [f"  {title:<17} {text} ({how})" for title, text, how in batch_law.facts(found)]
    lines += [f"  ! {note}" for note in found.notes]
    if run.summary().busy:
        lines.append(f"  ! machine was busy: {visible(run.summary().busy_why)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _calibration_card(run: Run) -> str:
    lines = [f"{run.run_id}  {run.status}", *_origin_lines(run), f"  {describe(run.config)}"]
    if made := run.latest(Calibration):
        versions = ", ".join(f"{name} {version}" for name, version in made.versions.items() if version)
        lines.append(f"  {visible(made.device_name)}; {versions}; {units.duration(made.seconds)}")
        lines += [f"  {title:<32} {text:>16}   {how}" for title, text, how in calibration.facts(made)]
        lines += [f"  - {reason}" for reason in calibration.missing_in_words(made)]
        lines += [f"  ! {doubt}" for doubt in calibration.doubts(made, now=time.time())]
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _training_card(run: Run) -> str:
    s = run.summary()
    busy = ", the machine was busy" if s.busy else ""
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        *_origin_lines(run),
        f"  {describe(run.config)}",
        f"  test accuracy     {units.accuracy(s.test_accuracy)} ({_tested(run)})",
        f"  largest class     {units.accuracy(s.largest_class_accuracy)} (derived: test accuracy of always answering it)",
        f"  training loss     {units.loss(s.final_train_loss)} (measured: mean over the last epoch, at most 100 batches)",
        f"  trained           {units.exact(s.steps)} steps, {units.epochs(s.epochs)} epochs (counted), {units.duration(s.train_seconds)} (measured{busy})",
        f"  throughput        {units.samples_per_s(s.samples_per_s)} (derived: samples / training time{busy})",
        f"  FLOPs             {units.flops(s.flops)} (derived: closed form per layer)",
        f"  MFU               {_mfu_in_words(run)}",
        f"  training memory   {units.nbytes(s.peak_memory_bytes)} (measured: step or evaluation, whichever takes more, with data)",
        f"  step memory       {units.nbytes(s.step_memory_bytes)} (measured: weights, optimizer state and the peak of one step)",
        f"  evaluation memory {units.nbytes(s.evaluation_memory_bytes)} (measured: the same with the peak of an evaluation)",
        f"  data memory       {units.nbytes(s.data_memory_bytes)} (counted: both splits and the shuffled copy)",
        f"  process memory    {units.nbytes(s.process_memory_bytes)} (measured, includes PyTorch itself)",
    ]
    if run.is_over:
        account = energy.in_store(Store(run.folder.parent.parent), run)
        short = ", too short for a comparison" if account.is_short else ""
        how = f"measured, {account.source}{short}" if account.is_measured else visible(energy.how_in_words(account))
        lines.append(f"  energy            {energy.in_words(account)} ({how.rstrip('.')})")
    found = step_breakdown.of_run(run)
    if found.parts:
        lines.append(f"  step breakdown    {found.in_words()} (measured)")
        lines.append(f"                    {found.doubt or found.advice}")
    if found.evaluation:
        lines.append(f"  evaluation        {found.evaluation} (measured)")
    lines += [f"  - {visible(note)}" for note in (run.started.data_notes if run.started else ())]
    lines += [f"  ! {visible(alert.in_words)}" for alert in alerts.of_run(run, time.time())]
    if s.busy:
        lines.append(f"  ! machine was busy: {visible(s.busy_why)}")
    if compiled := run.latest(Compiled):
        lines.append(f"  compiling         {units.duration(compiled.seconds)} (measured, not part of training time)")
    if run.config.target.value is not None:
        lines.append(f"  target            {_target(run)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _tested(run: Run) -> str:
    if run.has_diverged:
        return provenance.of_run(run)["test_accuracy"].method
    return "measured on the test split"


def _mfu_in_words(run: Run) -> str:
    found = cost.mfu(run.config, cost.flops_per_s(run), results.calibration_of(run))
    if found.value is None:
        return f"{units.UNKNOWN} ({visible(found.reason)})"
    busy = ", the machine was busy" if run.summary().busy else ""
    peak = units.flops_per_s(found.peak_flops_per_s)
    return f"{units.percent(found.value, digits=1)} of {peak} (derived from the measured peak, {visible(found.peak_from)}{busy})"


def _target(run: Run) -> str:
    target = run.config.target
    return f"{target.metric} {target.value:g}: {when_reached(target, run.target_reached, run.evaluations)}"


def inference_card(run: Run, limit_s: float | None = None, *, quantile: Quantile = "p99") -> str:
    """The text of an inference run; with `limit_s`, also which combination to deploy for this latency at `quantile`."""
    found = matrix_of(run)
    lines = [
        f"{run.run_id}  {run.status}" + (f"  {visible(run.name, LONGEST_NAME)}" if run.name else ""),
        f"  {describe(run.config)}",
        *_latency_table(found),
        *_quality_lines(found),
    ]
    if (largest := run.summary().largest_class_accuracy) is not None:
        lines.append(f"  always the largest class: {units.accuracy(largest)} test accuracy (derived)")
    lines += [f"  - {reason}" for reason in dict.fromkeys(_not_run(c) for c in found.cells if c.not_run)]
    if run.last_word and run.last_word.busy and run.last_word.busy.is_busy:
        lines.append(f"  ! machine was busy: {visible(run.last_word.busy.in_words)}")
    if limit_s is not None:
        if warning := guessing_in_words(found, sweet_spot(found, limit_s, quantile=quantile).best):
            lines.append(f"  ! {warning}")
        lines.append(f"  {in_words(found, limit_s, quantile=quantile)}")
    if why := run.why():
        lines.append(f"  {visible(why)}")
    return "\n".join(lines)


def _latency_table(found: Matrix) -> list[str]:
    """A row per combination. Percentiles are of requests, throughput counts samples."""
    if not found.measured:
        return ["  no measurements yet" if not found.is_over else "  no measurements"]
    text = found.config.is_text
    heads = ["requests", "p50", "p90", "p99", "max", "samples/s", "first answer"]
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
        lines += _queue_lines(found)
    return lines


def _queue_lines(found: Matrix) -> list[str]:
    lines = []
    for result in found.measured:
        latency = result.latency
        assert latency and latency.queue
        left = f", {latency.unanswered:,} timed out" if latency.unanswered else ""
        lines.append(
            f"    {_name(found, result)}: {latency.offered_per_s:.4g} requests/s sent, {latency.reached_per_s:.4g} answered"
            f"{left}; queue time p50 {units.duration(latency.queue.p50_s)} (p99 {units.duration(latency.queue.p99_s)})"
        )
    return lines


def _name(found: Matrix, result: CellResult) -> str:
    return cell_in_words(found, result.cell)


def _quality_lines(found: Matrix) -> list[str]:
    """A line per runtime and precision with its accuracy, and reasons for those slower than plain PyTorch."""
    seen = {(c.cell.precision, c.cell.runtime): c.quality for c in found.cells if c.quality}
    lines = [f"  {form_in_words(found, quality)}" for quality in seen.values()]
    if found.cells:
        batch_size, threads = min((c.cell.batch_size, c.cell.threads) for c in found.cells)
        lines += [f"  {words}" for words in slower_in_words(found, batch_size=batch_size, threads=threads)]
    return lines


def _not_run(result: CellResult) -> str:
    return f"{RUNTIME_WORDS[result.cell.runtime]}, {result.cell.precision}: {visible(result.not_run)}"


def _curve_card(run: Run) -> str:
    """The text of a curve imported from a CSV; how its numbers were measured is unknown."""
    s = run.summary()
    return "\n".join(
        [
            f"{run.run_id}  {run.status}  {visible(run.name, 60)}",
            *_origin_lines(run),
            f"  test accuracy     {units.accuracy(s.test_accuracy)} (from the table)",
            f"  test loss         {units.loss(s.test_loss)} (from the table)",
            f"  training loss     {units.loss(s.final_train_loss)} (last row of the table)",
            f"  steps             {units.exact(s.steps)}, {units.duration(s.train_seconds or None)}",
        ]
    )


def _origin_lines(run: Run) -> list[str]:
    """Where an imported run is from; empty for a run of this store."""
    return [f"  ! {visible(line)}" for line in sharing.origin_in_words(run)]


_CARDS: Mapping[TaskName, Callable[[Run], str]] = {
    "train": _training_card,
    "batch-law": _law_card,
    "landscape": _surface_card,
    "calibrate": _calibration_card,
    "infer": inference_card,
}
