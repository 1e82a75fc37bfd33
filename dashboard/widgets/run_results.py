"""The numbers of a plan and of a run that is over: results, step breakdown, hardware and energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import state
from dashboard.widgets.run_parts import account_of, literal
from engine.charts.step_breakdown import split_chart
from engine.common import units
from engine.common.sanitize import visible
from engine.config.tasks import TaskName
from engine.events.summary import Summary
from engine.events.target import when_reached
from engine.events.training import Compiled
from engine.measurement import calibration, cost, energy, provenance, step_breakdown
from engine.measurement.energy import Detail
from engine.measurement.provenance import Figure
from engine.planning.planner import Plan
from engine.reports.frozen_run import ENVIRONMENT
from engine.store.run import Run
from engine.studies.inference import cell_in_words, matrix_of

BUSY = "machine was busy"


def _metric(
    place: DeltaGenerator, label: str, text: str, figure: Figure, *, more: str = "", flaw: str = "", beside: str = ""
) -> None:
    """A number. Its help says how it was obtained; a `flaw`, or else a figure to compare it with, is shown below it."""
    _draw_metric(place, label, text, f"{figure.in_words()} {more}".strip(), flaw, beside)


def _draw_metric(place: DeltaGenerator, label: str, text: str, how: str, flaw: str = "", beside: str = "") -> None:
    below = flaw or beside or None
    colour: Literal["orange", "off"] = "orange" if flaw else "off"
    place.metric(label, text, help=literal(how), delta=below, delta_color=colour, delta_arrow="off")


def plan_figures(plan: Plan) -> None:
    """Four numbers of the plan: parameters, FLOPs of a step, memory, steps per epoch."""
    parts = ", ".join(f"{name} {units.nbytes(size)}" for name, size in plan.parts() if size)
    micro = f", in micro-batches of {plan.micro_batch:,}" if plan.micro_batch < plan.batch_size else ""
    steps = "Steps until the time is over." if plan.total_steps is None else f"{plan.total_steps:,} steps in total."
    rows = (
        ("Parameters", f"{plan.parameters:,}", "parameters", ""),
        (
            "Per step",
            units.flops(plan.train_flops_per_example * plan.batch_size),
            "flops_per_step",
            f"Batches of {plan.batch_size:,}{micro}." if micro else "",
        ),
        ("Memory", units.nbytes(plan.total_bytes), "total_bytes", f"{parts[:1].upper()}{parts[1:]}."),
        ("Steps per epoch", f"{plan.steps_per_epoch:,}", "steps_per_epoch", steps),
    )
    known = provenance.of_plan(plan)
    with st.container(key="plan"):
        for column, (label, text, key, more) in zip(st.columns(4), rows, strict=True):
            _metric(column, label, text, known[key], more=more)


def final_figures(run: Run) -> None:
    """The results of a run that is over, each with how it was obtained. A run that trains no model gets a sentence."""
    if own := _RESULTS.get(run.config.task):
        own(run)
        return
    if about := run.config.task_facts.about:
        st.caption(literal(about))
        return
    account, s = account_of(run), run.summary()
    flaw = BUSY if s.busy else ""
    largest = s.largest_class_accuracy is not None
    accuracy = "Next-character accuracy" if run.config.is_text else "Test accuracy"
    samples_per_s = units.count(s.samples_per_s and round(s.samples_per_s))
    flops = f"{units.flops(s.flops)} (derived)."
    rows = (
        (accuracy, units.accuracy(s.test_accuracy), "test_accuracy", _LARGEST_CLASS if largest else "", ""),
        ("Training loss", units.loss(s.final_train_loss), "final_train_loss", "", ""),
        ("Samples per second", samples_per_s, "samples_per_s", "", flaw),
        ("Training time", units.duration(s.train_seconds) if s.train_seconds else "–", "train_seconds", flops, flaw),
        _memory_row(run),
    )
    known = provenance.of_run(run, account)
    with st.container(key=f"final-{run.run_id}"):
        columns = st.columns([1.35, 1, 1.15, 1, 1.1])
    for column, (label, text, key, more, mark) in zip(columns, rows, strict=True):
        beside = _beside_largest_class(s) if key == "test_accuracy" else ""
        _metric(column, label, text, known[key], more=more, flaw=mark, beside=beside)
    if besides := _besides(run, account):
        st.caption(literal(" · ".join(besides)))


_LARGEST_CLASS = (
    "Below it, derived: the accuracy of always answering the class that is most frequent in the training split."
)


def _beside_largest_class(s: Summary) -> str:
    known = s.largest_class_accuracy
    return "" if known is None else f"largest class {units.accuracy(known)}"


def data_of(run: Run) -> None:
    """How the user's data was read and what of it was not used, as the run recorded it."""
    if run.started and run.started.data_notes:
        st.caption(literal(f"Data: {' '.join(run.started.data_notes)}"))


def _serving_figures(run: Run) -> None:
    """The results of a measurement of inference: accuracy, throughput, latency."""
    found, s = matrix_of(run), run.summary()
    measured = found.measured
    best = max(measured, key=lambda c: c.samples_per_s or 0.0, default=None)
    soonest = min(measured, key=lambda c: c.quantile_s("p99") or 0.0, default=None)
    untrained = "" if found.is_trained else "untrained weights"
    busy = BUSY if s.busy else ""
    metrics = (
        (
            "Test accuracy",
            units.accuracy(s.test_accuracy),
            "Measured on all test samples.",
            untrained,
        ),
        (
            "Highest samples per second",
            units.count(round(best.samples_per_s or 0) if best else None),
            f"Measured: {cell_in_words(found, best.cell)}." if best else "",
            busy,
        ),
        (
            "Lowest p99",
            units.duration(soonest.quantile_s("p99") if soonest else None),
            f"Measured: {cell_in_words(found, soonest.cell)}." if soonest else "",
            busy,
        ),
        ("Combinations measured", f"{len(measured)} of {len(found.cells)}", "Counted.", ""),
    )
    with st.container(key=f"final-{run.run_id}"):
        for column, (title, text, how, flaw) in zip(st.columns(4), metrics, strict=True):
            beside = _beside_largest_class(s) if title == "Test accuracy" else ""
            _draw_metric(column, title, text, how, flaw, beside)


_RESULTS: Mapping[TaskName, Callable[[Run], None]] = {"infer": _serving_figures}


def split_of(run: Run) -> None:
    """Where a step's time went: the parts, the bottleneck, and what would make it faster."""
    found = step_breakdown.of_run(run)
    if not found.parts:
        if run.step_split and run.step_split.reason:
            st.caption(literal(f"Not profiled: {run.step_split.reason}"))
        return
    assert run.step_split
    with st.container(border=True, key=f"split-{run.run_id}"):
        st.markdown(
            "**Where a step's time goes**",
            help=literal(f"Measured: {run.step_split.method}."),
        )
        figure = split_chart([("", found.parts)])
        st.plotly_chart(figure, key=f"split-chart-{run.run_id}", theme=None, config={"displayModeBar": False})
        icon, words = ("warning", found.doubt) if found.doubt else ("lightbulb", found.advice)
        st.markdown(f":material/{icon}: {literal(words)}")
        if found.evaluation:
            st.caption(literal(f"Evaluation: {found.evaluation}."))


def hardware_of(run: Run) -> None:
    """The hardware that a run used and its energy, in a closed group."""
    if run.started is None:
        return
    account = account_of(run)
    with st.expander("Hardware and energy of this run", icon=":material/memory:"):
        known = run.started.environment
        facts = [
            (title, write(known[key]))
            for key, (title, write) in ENVIRONMENT.items()
            if known.get(key) is not None and not (key == "cpu" and known.get("device") == known["cpu"])
        ]
        lines = [f":small[{literal(title)}]  \n{literal(visible(text))}" for title, text in facts]
        with st.container(horizontal=True, key=f"hardware-{run.run_id}"):
            for line in lines:
                st.markdown(line, width=150)
        st.divider()
        rows = [
            Detail("Energy", energy.in_words(account), energy.how_in_words(account), account.is_short),
            *energy.details(account),
            *mfu_details(run),
        ]
        for title, text, how, is_short in rows:
            value = f":gray[{literal(text)}]" if is_short else f"**{literal(text)}**"
            st.markdown(f"{literal(title)}: {value}  \n:small[{literal(how[:1].upper() + how[1:])}]")
        if tip := energy.hint(account):
            st.caption(literal(tip))


def mfu_details(run: Run) -> list[Detail]:
    """MFU against the measured peak and the data sheet's, or why it is unknown."""
    _, name = calibration.of_run(run)
    attained, found = cost.flops_per_s(run), state.judged_by(run)
    ratios = {
        "MFU of the measured peak": cost.mfu(run.config, attained, found),
        "MFU of the data sheet": cost.data_sheet_mfu(run.config, attained, name),
    }
    busy = f" ({BUSY})" if run.summary().busy else ""
    how = "derived: FLOP/s over training time, divided by the peak of"
    return [
        Detail(title, "unknown", mfu.reason)
        if mfu.value is None
        else Detail(title, units.percent(mfu.value, digits=1) + busy, f"{how} {mfu.peak_from}")
        for title, mfu in ratios.items()
    ]


def _memory_row(run: Run) -> tuple[str, str, str, str, str]:
    """The memory of the whole training; of a step for a run from before evaluations were measured."""
    s, words = run.summary(), _memory_in_words(run)
    if s.peak_memory_bytes is None and s.step_memory_bytes is not None:
        return "Step memory", units.nbytes(s.step_memory_bytes), "step_memory_bytes", words, ""
    return "Training memory", units.nbytes(s.peak_memory_bytes), "peak_memory_bytes", words, ""


def _memory_in_words(run: Run) -> str:
    memory = run.memory
    if memory is None:
        return ""
    sizes = {
        "Step": memory.step_memory_bytes,
        "evaluation": memory.evaluation_memory_bytes,
        "data": memory.data_memory_bytes,
        "weights": memory.weight_bytes,
        "optimizer state": memory.optimizer_bytes,
        "peak of a step": memory.step_peak_bytes,
    }
    return ", ".join(f"{name} {units.nbytes(size)}" for name, size in sizes.items() if size is not None) + "."


def _besides(run: Run, account: energy.Account) -> list[str]:
    """Facts that only some runs have (target, compile time, energy), and the memory of the whole process."""
    s, target = run.summary(), run.config.target
    words: list[str] = []
    if target.value is not None:
        goal = (
            f"{units.accuracy(target.value)} accuracy"
            if target.metric == "test_accuracy"
            else f"test loss {target.value:g}"
        )
        words.append(f"Target of {goal} {when_reached(target, run.target_reached, run.evaluations)}")
    if compiled := run.latest(Compiled):
        words.append(f"{units.duration(compiled.seconds)} to compile, not included in the training time")
    if account.is_measured or account.source == "estimate":
        words.append(f"Energy {energy.in_words(account)}")
    if s.busy:
        words.append(f"Machine was busy: {s.busy_why}")
    if s.process_memory_bytes is not None:
        words.append(f"Whole process {units.nbytes(s.process_memory_bytes)}, including PyTorch itself")
    return words
