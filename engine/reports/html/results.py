"""The figures of the runs: the headlines of a single run, and the table of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.charts import training
from engine.common import units
from engine.events.target import when_reached
from engine.measurement import energy
from engine.reports.frozen_run import ReportRun

_HEADLINES = {"Test accuracy", "Largest class", "Training loss", "Throughput", "Training time"}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A row of the results: its title, its value in a run, and how the value was obtained."""

    title: str
    text: Callable[[ReportRun], str]
    how: str | Callable[[ReportRun], str]
    always: bool = True  # False: left out if no run has a value
    figure: str = ""  # its key in `ReportRun.figures`, which holds window and uncertainty
    is_pale: Callable[[ReportRun], bool] = lambda run: False  # greyed, because the value is mostly uncertainty


def _test_how(run: ReportRun) -> str:
    if run.summary.test_accuracy is None and (unknown := run.figures.get("test_accuracy")):
        return f"not available: {unknown.method}"
    what = "every next character of {} test passages" if run.config.is_text else "{} test samples"
    return f"measured on {what.format(units.count(run.test_examples))}, at the last evaluation"


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
    """A quantity derived from the run's energy, if that was measured."""

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
    """A figure of speed, marked if the machine was busy; `says_why` adds the reason to its provenance."""
    return Quantity(
        title,
        lambda run: f"{text(run)} (machine was busy)" if run.summary.busy else text(run),
        lambda run: f"{how}; {run.summary.busy_why}" if run.summary.busy and says_why else how,
        figure=figure,
    )


def _target(run: ReportRun) -> str:
    target = run.config.target
    if target.value is None:
        return units.UNKNOWN
    return f"{training.target_in_words(target)} {when_reached(target, run.target_reached, run.evaluations)}"


def _training_memory_how(run: ReportRun) -> str:
    m = run.memory
    if m is None or m.peak_memory_bytes is None:
        return "not recorded"
    parts = {"step": m.step_memory_bytes, "evaluation": m.evaluation_memory_bytes, "data": m.data_memory_bytes}
    named = ", ".join(f"{name} {units.nbytes(size)}" for name, size in parts.items())
    return f"measured: step or evaluation, whichever takes more, with data and checkpoints; {named}"


def _step_memory_how(run: ReportRun) -> str:
    m = run.memory
    if m is None or m.step_memory_bytes is None:
        return "not recorded"
    parts = {"weights": m.weight_bytes, "optimizer state": m.optimizer_bytes, "peak of one step": m.step_peak_bytes}
    named = ", ".join(f"{name} {units.nbytes(size)}" for name, size in parts.items())
    return f"measured: {named}; {m.method}. Without the data set: {units.nbytes(m.data_bytes)}"


QUANTITIES = (
    Quantity("Test accuracy", lambda r: units.accuracy(r.summary.test_accuracy), _test_how, figure="test_accuracy"),
    Quantity(
        "Largest class",
        lambda r: units.accuracy(r.summary.largest_class_accuracy),
        "derived: test accuracy of always answering the largest class of the training split",
        always=False,
        figure="largest_class_accuracy",
    ),
    Quantity(
        "Target",
        _target,
        "derived: at the first of two evaluations in a row that reach it, interpolated from the one before",
        always=False,
    ),
    Quantity("Test loss", lambda r: units.loss(r.summary.test_loss), _test_how, figure="test_loss"),
    Quantity(
        "Training loss",
        lambda r: units.loss(r.summary.final_train_loss),
        "measured: mean over the batches of the last epoch, at most 100",
        figure="final_train_loss",
    ),
    _speed(
        "Throughput",
        lambda r: units.samples_per_s(r.summary.samples_per_s),
        "derived: samples / training time",
        "samples_per_s",
    ),
    _speed(
        "Training time",
        lambda r: units.duration(r.summary.train_seconds),
        "measured, the device synchronised; without loading, warm-up and evaluation",
        "train_seconds",
        says_why=False,
    ),
    _speed(
        "Time per step",
        lambda r: units.duration(r.summary.step_seconds),
        "derived: training time / steps",
        "step_seconds",
    ),
    Quantity(
        "Set-up and warm-up",
        lambda r: units.duration((r.setup_s or 0) + (r.warm_up_s or 0) if r.setup_s is not None else None),
        "measured; not part of training time",
    ),
    Quantity(
        "Compiling",
        lambda r: units.duration(r.compiled_s),
        "measured once before the first step; not part of training time",
        always=False,
    ),
    Quantity("Steps", lambda r: units.exact(r.summary.steps), "counted"),
    Quantity("Samples", lambda r: units.count(r.summary.samples), "counted"),
    Quantity("Epochs", lambda r: units.epochs(r.summary.epochs), "derived: samples / size of the training set"),
    Quantity("Parameters", lambda r: units.count(r.parameters), "counted"),
    Quantity(
        "FLOPs",
        lambda r: units.flops(r.summary.flops),
        "derived: closed form per layer, forward and backward; a multiply-add counts as 2",
        figure="flops",
    ),
    _speed(
        "FLOP/s",
        lambda r: units.flops_per_s(r.summary.flops_per_s),
        "derived: FLOPs / training time",
        "flops_per_s",
    ),
    Quantity(
        "Training memory",
        lambda r: units.nbytes(r.summary.peak_memory_bytes),
        _training_memory_how,
        figure="peak_memory_bytes",
    ),
    Quantity(
        "Step memory",
        lambda r: units.nbytes(r.summary.step_memory_bytes),
        _step_memory_how,
        figure="step_memory_bytes",
    ),
    Quantity(
        "Evaluation memory",
        lambda r: units.nbytes(r.summary.evaluation_memory_bytes),
        "measured: weights, optimizer state, what a step leaves, and the peak of an evaluation",
        figure="evaluation_memory_bytes",
    ),
    Quantity(
        "Data memory",
        lambda r: units.nbytes(r.summary.data_memory_bytes),
        "counted: both splits and an epoch's shuffled copy",
        figure="data_memory_bytes",
    ),
    Quantity(
        "Process memory",
        lambda r: units.nbytes(r.summary.process_memory_bytes),
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


Value = tuple[str, str, bool]  # text; method, window and uncertainty for the tooltip; whether it is greyed


def headlines(run: ReportRun) -> list[tuple[str, Value]]:
    """Title and value of the main figures of one run."""
    titles = _HEADLINES | {
        "Process memory" if run.memory is None else "Training memory" if run.memory.peak_memory_bytes else "Step memory"
    }
    shown = [
        q for q in QUANTITIES if q.title in titles and ((q.always and not run.is_curve) or q.text(run) != units.UNKNOWN)
    ]
    return [(q.title, _value(q, run)) for q in shown]


def results(runs: Sequence[ReportRun]) -> list[tuple[str, list[Value], str]]:
    """Each quantity that at least one run has: title, value per run, and how the values were obtained."""
    only_curves = all(run.is_curve for run in runs)
    return [
        (q.title, [_value(q, run) for run in runs], _how(q, runs))
        for q in QUANTITIES
        if (q.always and not only_curves) or any(q.text(run) != units.UNKNOWN for run in runs)
    ]


def _value(quantity: Quantity, run: ReportRun) -> Value:
    figure = run.figures.get(quantity.figure)
    return quantity.text(run), figure.in_words() if figure else "", quantity.is_pale(run)


def _obtained(quantity: Quantity, run: ReportRun) -> str:
    if run.is_curve:
        return "from the table"
    return quantity.how if isinstance(quantity.how, str) else quantity.how(run)


def _how(quantity: Quantity, runs: Sequence[ReportRun]) -> str:
    known = [run for run in runs if quantity.text(run) != units.UNKNOWN] or runs
    ways = list(dict.fromkeys(_obtained(quantity, run) for run in known))
    return "; ".join(ways[:3]) + ("; see the data for the others" if len(ways) > 3 else "")
