"""The figures a run came to: the headlines of a single run, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.charts import training
from engine.common import units
from engine.measurement import energy
from engine.reports.report import ReportRun

_HEADLINES = {"Held-out accuracy", "Training loss", "Throughput", "Training time"}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A line of the results: what it is called, its value in a run, and how the value was had."""

    title: str
    text: Callable[[ReportRun], str]
    how: str | Callable[[ReportRun], str]
    always: bool = True  # False: left out where no run has it
    figure: str = ""  # its name among the run's figures, which say window and uncertainty
    is_pale: Callable[[ReportRun], bool] = lambda run: False  # greyed: mostly uncertainty


def _held_out(run: ReportRun) -> str:
    what = "every next character of {} passages" if run.config.is_text else "{} examples"
    return f"measured on {what.format(units.count(run.test_examples))} not trained on, at the last evaluation"


def _energy(run: ReportRun) -> str:
    return energy.in_words(run.energy) if run.energy else units.energy(run.summary.energy_j)


def _energy_how(run: ReportRun) -> str:
    if run.energy:
        return energy.how_in_words(run.energy)
    reason = run.energy_method or run.missing_readings.get("gpu_power_w", "")
    if run.summary.energy_j is None:
        return f"not available here{': ' + reason if reason else ''}"
    return f"measured{': ' + reason if reason else ''}"


def _detail(title: str, figure: str = "") -> Quantity:
    """Something made of the run's energy, where it was measured."""

    def found(run: ReportRun) -> energy.Detail:
        rows = energy.details(run.energy) if run.energy else []
        return next((row for row in rows if row.title == title), energy.Detail(title, units.UNKNOWN, ""))

    return Quantity(
        title,
        lambda run: found(run).text,
        lambda run: found(run).how,
        always=False,
        figure=figure,
        is_pale=lambda run: found(run).is_short,
    )


def _speed(title: str, text: Callable[[ReportRun], str], how: str, figure: str, *, says_why: bool = True) -> Quantity:
    """A figure of speed, with a mark where something else used the machine; one of them also says what that did."""
    return Quantity(
        title,
        lambda run: f"{text(run)} (machine was busy)" if run.summary.busy else text(run),
        lambda run: f"{how}; {run.summary.busy_why}" if run.summary.busy and says_why else how,
        figure=figure,
    )


def _target(run: ReportRun) -> str:
    target, reached = run.config.target, run.target_reached
    if target.value is None:
        return units.UNKNOWN
    aim = training.target_in_words(target)
    if reached is None:
        return f"{aim} not reached"
    return f"{aim} reached at step {reached.step:,}, after {units.duration(reached.train_s)}"


def _training_memory_how(run: ReportRun) -> str:
    m = run.memory
    if m is None or m.training_bytes is None:
        return "not recorded"
    parts = {"weights": m.weight_bytes, "optimizer state": m.optimizer_bytes, "one step at its peak": m.step_peak_bytes}
    named = ", ".join(f"{name} {units.nbytes(size)}" for name, size in parts.items())
    return f"measured: {named}; {m.method}. The data set is apart: {units.nbytes(m.data_bytes)}"


def _process_memory(run: ReportRun) -> int | None:
    """Before there was a record of training memory alone, a report's peak was that of the process."""
    summary = run.summary
    return summary.process_memory_bytes if run.memory else summary.process_memory_bytes or summary.peak_memory_bytes


def _per_second(run: ReportRun) -> float | None:
    s = run.summary
    return s.flops / s.train_seconds if s.flops and s.train_seconds else None


def _per_step(run: ReportRun) -> float | None:
    return run.summary.train_seconds / run.summary.steps if run.summary.steps else None


QUANTITIES = (
    Quantity("Held-out accuracy", lambda r: units.accuracy(r.summary.test_accuracy), _held_out, figure="test_accuracy"),
    Quantity("Target", _target, "the first of two evaluations in a row that reach it", always=False),
    Quantity("Held-out loss", lambda r: units.loss(r.summary.test_loss), _held_out, figure="test_loss"),
    Quantity(
        "Training loss",
        lambda r: units.loss(r.summary.final_train_loss),
        "measured: mean over the batches of the last epoch, at most 100",
        figure="final_train_loss",
    ),
    _speed(
        "Throughput",
        lambda r: units.samples_per_s(r.summary.samples_per_s),
        "derived: examples by training time",
        "samples_per_s",
    ),
    _speed(
        "Training time",
        lambda r: units.duration(r.summary.train_seconds),
        "measured, the device synchronised; without loading, warm-up and evaluation",
        "train_seconds",
        says_why=False,
    ),
    _speed("Time per step", lambda r: units.duration(_per_step(r)), "derived: training time by steps", "step_seconds"),
    Quantity(
        "Set-up and warm-up",
        lambda r: units.duration((r.setup_s or 0) + (r.warm_up_s or 0) if r.setup_s is not None else None),
        "measured, apart from training time",
    ),
    Quantity(
        "Compiling",
        lambda r: units.duration(r.compiled_s),
        "measured, apart from training time: once, before the first step",
        always=False,
    ),
    Quantity("Steps", lambda r: f"{r.summary.steps:,}", "counted"),
    Quantity("Examples seen", lambda r: units.count(r.summary.samples), "counted"),
    Quantity("Epochs", lambda r: f"{r.summary.epochs:.4g}", "derived: examples seen by training examples"),
    Quantity("Parameters", lambda r: units.count(r.parameters), "counted"),
    Quantity(
        "Arithmetic",
        lambda r: units.flops(r.summary.flops),
        "derived: closed form per layer, forward and backward, a multiply-add is 2",
        figure="flops",
    ),
    _speed(
        "Arithmetic rate",
        lambda r: units.flops_per_s(_per_second(r)),
        "derived: arithmetic by training time",
        "flops_per_s",
    ),
    Quantity(
        "Training memory",
        lambda r: units.nbytes(r.memory.training_bytes if r.memory else None),
        _training_memory_how,
        figure="peak_memory_bytes",
    ),
    Quantity(
        "Process memory",
        lambda r: units.nbytes(_process_memory(r)),
        lambda r: f"measured: {r.peak_memory_method}" if r.peak_memory_method else "not recorded",
        figure="process_memory_bytes",
    ),
    Quantity("Energy", _energy, _energy_how, figure="energy_j", is_pale=lambda r: bool(r.energy and r.energy.is_short)),
    _detail("Energy above idle", "energy_above_idle_j"),
    _detail("Energy per 1,000 samples", "energy_per_1000_samples_j"),
    _detail("Energy to target", "energy_to_target_j"),
    _detail("Price of the energy"),
    _detail("CO2 of the energy"),
)


Value = tuple[str, str, bool]  # text; method, window and uncertainty for the pointer; whether it is pale


def headlines(run: ReportRun) -> list[tuple[str, Value]]:
    titles = _HEADLINES | {"Training memory" if run.memory else "Process memory"}
    return [(q.title, _value(q, run)) for q in QUANTITIES if q.title in titles]


def results(runs: Sequence[ReportRun]) -> list[tuple[str, list[Value], str]]:
    """Each quantity that is known of some run: its title, its value in each run, and how the values were had."""
    return [
        (q.title, [_value(q, run) for run in runs], _how(q, runs))
        for q in QUANTITIES
        if q.always or any(q.text(run) != units.UNKNOWN for run in runs)
    ]


def _value(quantity: Quantity, run: ReportRun) -> Value:
    figure = run.figures.get(quantity.figure)
    return quantity.text(run), figure.in_words() if figure else "", quantity.is_pale(run)


def _how(quantity: Quantity, runs: Sequence[ReportRun]) -> str:
    known = [run for run in runs if quantity.text(run) != units.UNKNOWN] or runs
    ways = list(dict.fromkeys(quantity.how if isinstance(quantity.how, str) else quantity.how(run) for run in known))
    return "; ".join(ways[:3]) + ("; the others alike, in the data" if len(ways) > 3 else "")
