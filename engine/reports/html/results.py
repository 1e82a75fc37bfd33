"""The figures of the runs: the headlines of a single run, and the table of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.charts import training
from engine.common import units
from engine.measurement import energy
from engine.reports.frozen_run import ReportRun

_HEADLINES = {"Test accuracy", "Training loss", "Throughput", "Training time"}


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
    parts = {"weights": m.weight_bytes, "optimizer state": m.optimizer_bytes, "peak of one step": m.step_peak_bytes}
    named = ", ".join(f"{name} {units.nbytes(size)}" for name, size in parts.items())
    return f"measured: {named}; {m.method}. Without the data set: {units.nbytes(m.data_bytes)}"


def _process_memory(run: ReportRun) -> int | None:
    """Older reports have no training memory; their peak is that of the process."""
    summary = run.summary
    return summary.process_memory_bytes if run.memory else summary.process_memory_bytes or summary.peak_memory_bytes


QUANTITIES = (
    Quantity("Test accuracy", lambda r: units.accuracy(r.summary.test_accuracy), _test_how, figure="test_accuracy"),
    Quantity("Target", _target, "the first of two evaluations in a row that reach the target", always=False),
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


Value = tuple[str, str, bool]  # text; method, window and uncertainty for the tooltip; whether it is greyed


def headlines(run: ReportRun) -> list[tuple[str, Value]]:
    """Title and value of the main figures of one run."""
    titles = _HEADLINES | {"Training memory" if run.memory else "Process memory"}
    shown = [q for q in QUANTITIES if q.title in titles and (not run.is_curve or q.text(run) != units.UNKNOWN)]
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
