"""Provenance: a figure with how it was obtained (measured, derived, estimated or from a table), its window and uncertainty.

The page, the report, `show` and its JSON all show the same text. It is enough to recompute a run's figures.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from engine.common import units
from engine.config.run import RunConfig
from engine.events.base import BoundedStr
from engine.events.imported import Imported
from engine.events.summary import Summary
from engine.measurement import energy
from engine.planning.planner import Plan
from engine.store.run import Run

How = Literal["measured", "derived", "estimated", "table"]
BADGES: dict[How, str] = {
    "measured": "Measured",
    "derived": "Derived",
    "estimated": "Estimated",
    "table": "From a table",
}


class Figure(BaseModel):
    """One number with its unit and its origin. `value` is None where it is unknown; then `method` gives the reason."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    value: float | None
    unit: BoundedStr
    how: How
    method: BoundedStr
    window: BoundedStr = ""  # the steps, time or samples it covers
    uncertainty: float | None = None  # in the figure's own unit, one standard deviation unless the method says more
    note: BoundedStr = ""  # a reason to trust the value less

    @property
    def badge(self) -> str:
        """The word for `how` on a page."""
        return BADGES[self.how]

    def in_words(self) -> str:
        """The provenance in one to four short sentences."""
        if self.value is None:
            return f"Not available: {self.method}."
        words = [f"{self.badge}: {self.method}"]
        if self.window:
            words.append(f"Over {self.window}")
        if self.uncertainty is not None and math.isfinite(self.uncertainty) and self.value:
            size = (
                f"{100 * self.uncertainty:.2g} points"
                if self.unit == "share"
                else units.percent(abs(self.uncertainty / self.value), digits=2)
            )
            words.append(f"Uncertainty ± {size}")
        if self.note:
            words.append(self.note)
        return ". ".join(words) + "."


def _figure(value: float | None, unit: str, how: How, method: str, **more: Any) -> Figure:
    return Figure(value=value, unit=unit, how=how, method=method, **more)


def of_run(run: Run, account: energy.Account | None = None) -> dict[str, Figure]:
    """Every figure of a run, by its name in a summary.

    A study has those of its summary and its energy. An imported run has the figures of its report.
    """
    if run.imported:
        return _as_imported(run, run.imported)
    if run.config.task_facts.about:
        return of_energy(account or energy.of_run(run))
    if not run.config.task_facts.trains_one_model:
        return _of_inference(run) | of_energy(account or energy.of_run(run))
    with run.lock:
        s, started = run.summary(), run.started
        trained = f"{units.exact(s.steps)} steps, {units.duration(s.train_seconds)} of training"
        at = f"the evaluation after step {run.evaluations.last('step') or 0:,.0f}"
        tested = f"{_tested(run.config, started.test_examples if started else 0)} at {at}"
        busy = f"The machine was busy: {s.busy_why}" if s.busy else ""
        unknown_if_busy = "It is unknown whether the machine was busy" if run.is_over and s.busy is None else ""
        diverged = (
            f"the training diverged at step {run.diverged_at or s.steps:,}, and {at} is one of earlier weights"
            if run.has_diverged
            else ""
        )
        found = {
            "test_accuracy": _figure(
                s.test_accuracy,
                "share",
                "measured",
                diverged or "share of correct predictions on the test samples",
                window=tested,
                **_uncertainty_of_accuracy(run),
            ),
            "largest_class_accuracy": _of_largest_class(s),
            "test_loss": _figure(
                s.test_loss,
                "",
                "measured",
                diverged or "mean cross-entropy on the test samples",
                window=tested,
            ),
            "final_train_loss": _figure(
                s.final_train_loss, "", "measured", "mean over the batches of the last epoch, at most 100"
            ),
            "samples_per_s": _figure(
                s.samples_per_s,
                "samples/s",
                "derived",
                f"samples / training time{_sample_in_words(run.config)}",
                window=trained,
                note=busy or unknown_if_busy,
            ),
            "train_seconds": _figure(
                s.train_seconds,
                "s",
                "measured",
                "wall clock, with the device synchronised, without loading, warm-up, compiling and evaluation",
                window=f"{units.exact(s.steps)} steps, {units.epochs(s.epochs)} epochs",
                note=busy,
            ),
            "step_seconds": _figure(
                s.step_seconds,
                "s",
                "derived",
                "training time / steps",
                window=trained,
                note=busy,
            ),
            "flops": _figure(
                s.flops,
                "FLOP",
                "derived",
                "closed form per layer: matrix products and convolutions, forward and backward; a multiply-add counts as 2",
            ),
            "flops_per_s": _figure(
                s.flops_per_s,
                "FLOP/s",
                "derived",
                "FLOPs / training time",
                window=trained,
                note=busy,
            ),
            **_memory_figures(run, s),
            "process_memory_bytes": _figure(
                s.process_memory_bytes,
                "bytes",
                "measured",
                run.last_word.peak_memory_method if run.last_word else "known when the run is over",
            ),
        }
    return found | of_energy(account or energy.of_run(run))


def _of_largest_class(s: Summary) -> Figure:
    known = s.largest_class_accuracy is not None
    method = "test accuracy of always answering the class that is most frequent in the training split"
    return _figure(s.largest_class_accuracy, "share", "derived", method if known else "not recorded in this run")


def _of_inference(run: Run) -> dict[str, Figure]:
    """The figures of an inference run; those of training are unknown."""
    with run.lock:
        s, quality, cells = run.summary(), next(iter(run.qualities), None), run.latencies
        window = f"{quality.examples:,} samples, {quality.precision} in {quality.runtime}" if quality else ""
        busy = f"The machine was busy: {s.busy_why}" if s.busy else ""
        no_rate = "several combinations have no common rate" if cells else "there are no measurements yet"
        memory = run.last_word.peak_memory_method if run.last_word else "known when the run is over"
        accuracy = s.test_accuracy
        trained = {
            name: _figure(None, unit, "measured", "inference trains no model") for name, unit in _OF_TRAINING.items()
        }
        return trained | {
            "test_accuracy": _figure(
                accuracy,
                "share",
                "measured",
                "share of correct predictions on the test samples",
                window=window,
                uncertainty=_binomial(accuracy, quality.examples if quality and not run.config.is_text else 0),
            ),
            "largest_class_accuracy": _of_largest_class(s),
            "test_loss": _figure(s.test_loss, "", "measured", "mean cross-entropy on the test samples", window=window),
            "samples_per_s": _figure(
                s.samples_per_s,
                "samples/s",
                "derived",
                "samples answered / wall time of the timed requests" if s.samples_per_s is not None else no_rate,
                note=busy,
            ),
            "process_memory_bytes": _figure(s.process_memory_bytes, "bytes", "measured", memory),
        }


_MEMORY = {  # figures of memory in a summary, and what each is
    "peak_memory_bytes": "the larger of step memory and evaluation memory, with data and checkpoints",
    "step_memory_bytes": "weights, optimizer state and the peak of one step",
    "evaluation_memory_bytes": "weights, optimizer state, what a step leaves, and the peak of an evaluation",
    "data_memory_bytes": "both splits and an epoch's shuffled copy, counted",
}

_OF_TRAINING = {
    "final_train_loss": "", "train_seconds": "s", "step_seconds": "s", "flops": "FLOP", "flops_per_s": "FLOP/s",
    **dict.fromkeys(_MEMORY, "bytes"),
}  # fmt: skip


def _memory_figures(run: Run, s: Summary) -> dict[str, Figure]:
    how = run.memory.method if run.memory else ""
    return {
        name: _figure(value, "bytes", "measured", f"{what}; {how}")
        if (value := getattr(s, name)) is not None
        else _figure(None, "bytes", "measured", "not measured in this run")
        for name, what in _MEMORY.items()
    }


def _as_imported(run: Run, imported: Imported) -> dict[str, Figure]:
    """The figures of the report. A table or an early report has none; its numbers then have unknown provenance."""
    with contextlib.suppress(ValidationError):
        if figures := _FIGURES.validate_python(imported.frozen.get("figures")):
            return figures
    s = run.summary()
    values: dict[str, tuple[float | None, str]] = {
        "test_accuracy": (s.test_accuracy, "share"),
        "test_loss": (s.test_loss, ""),
        "final_train_loss": (s.final_train_loss, ""),
        "samples_per_s": (s.samples_per_s, "samples/s"),
        "train_seconds": (s.train_seconds or None, "s"),
        "step_seconds": (s.step_seconds or None, "s"),
        "flops": (s.flops, "FLOP"),
        "flops_per_s": (s.flops_per_s, "FLOP/s"),
        **{name: (getattr(s, name), "bytes") for name in _MEMORY},
        "process_memory_bytes": (s.process_memory_bytes, "bytes"),
    }
    how = "from the imported file, which does not say how it was obtained"
    return {
        name: _figure(value, unit, "table", how if value is not None else "the imported file does not say")
        for name, (value, unit) in values.items()
    } | of_energy(energy.of_run(run))


_FIGURES = TypeAdapter(dict[str, Figure])


def of_energy(account: energy.Account) -> dict[str, Figure]:
    """The joules and the figures derived from them. An estimate is not a measurement, so it has a name of its own."""
    if account.source == "estimate":
        assert account.low_j is not None and account.high_j is not None
        middle, half = (account.low_j + account.high_j) / 2, (account.high_j - account.low_j) / 2
        return {
            "energy_estimate_j": _figure(
                middle,
                "J",
                "estimated",
                account.method.rstrip("."),
                uncertainty=half,
                note="The middle of a range; not comparable with measurements",
            )
        }
    window = "" if account.window_s is None else f"{units.duration(account.window_s)}, with evaluations"
    uncertainty = _of(account.uncertainty, account.joules)
    short = energy.too_short(account.uncertainty)
    method = f"{account.source}: {account.method}" if account.is_measured else account.method.rstrip(".")
    figures = {
        "energy_j": _figure(
            account.joules, "J", "measured", method, window=window, uncertainty=uncertainty, note=short
        ),
        "energy_per_1000_samples_j": _figure(
            account.per_1000_samples_j,
            unit="J",
            how="derived",
            window=window,
            note=short,
            uncertainty=_of(account.uncertainty, account.per_1000_samples_j),
            method="gross energy / samples seen" if account.is_measured else method,
        ),
        "energy_to_target_j": _figure(
            account.to_target_j,
            "J",
            "derived",
            window="" if account.to_target_s is None else f"{units.duration(account.to_target_s)}, with evaluations",
            uncertainty=_of(account.to_target_uncertainty, account.to_target_j),
            note=energy.too_short(account.to_target_uncertainty),
            method="the counter where the target was reached, interpolated between samples"
            if account.to_target_j is not None
            else "no target was reached"
            if account.is_measured
            else method,
        ),
        "energy_above_idle_j": _figure(
            account.net_j,
            "J",
            "derived",
            window=window,
            uncertainty=uncertainty,
            note=short,
            method=f"gross energy minus that of the idle device ({units.power(account.idle_w)})"
            if account.net_j is not None
            else account.net_reason or method,
        ),
    }
    if account.sampled_j is not None:
        figures["energy_sampled_j"] = _figure(
            account.sampled_j, "J", "derived", "mean sampled power of the board * the counter's window", window=window
        )
    return figures


def of_plan(plan: Plan) -> dict[str, Figure]:
    """The figures that are known before a run."""
    free = (
        f"{units.nbytes(plan.free_bytes)} are free on this device now (measured)" if plan.free_bytes is not None else ""
    )
    return {
        "parameters": _figure(plan.parameters, "", "derived", "weights and biases, counted exactly"),
        "flops_per_step": _figure(
            plan.train_flops_per_example * plan.batch_size,
            "FLOP",
            "derived",
            f"forward and backward for {plan.batch_size:,} samples, matrix products and convolutions only",
        ),
        "total_bytes": _figure(
            plan.total_bytes,
            unit="bytes",
            how="estimated",
            note=free,
            method="a step or an evaluation, whichever takes more, with the data; their peaks are estimated, the rest is "
            "exact; PyTorch itself needs more",
        ),
        "steps_per_epoch": _figure(
            plan.steps_per_epoch,
            "steps",
            "derived",
            f"{plan.train_examples:,} training samples / batch size, rounded up",
        ),
    }


def _of(share: float | None, value: float | None) -> float | None:
    return None if share is None or value is None else share * value


def _tested(config: RunConfig, samples: int) -> str:
    """What a test split holds: samples, and for text the predictions on them."""
    if not config.is_text:
        return f"{samples:,} samples"
    return f"{samples * config.predictions_per_sample:,} predicted characters in {samples:,} windows"


def _sample_in_words(config: RunConfig) -> str:
    return f"; a sample is a window of {config.predictions_per_sample:,} characters" if config.is_text else ""


def _uncertainty_of_accuracy(run: Run) -> dict[str, Any]:
    """The standard error of the last test accuracy, or why it is unknown.

    It is binomial, because test samples are independent. The characters of a window are not: for text, the evaluation
    measures it from the spread between windows.
    """
    accuracy, num_test = run.summary().test_accuracy, run.started.test_examples if run.started else 0
    if not run.config.is_text:
        return {"uncertainty": _binomial(accuracy, num_test)}
    if run.accuracy_standard_error is None:
        return {"note": "Its uncertainty is unknown, because the run did not record how much the windows differ"}
    return {"uncertainty": run.accuracy_standard_error}


def _binomial(share: float | None, n: int) -> float | None:
    """Standard error of a share of n independent samples."""
    return math.sqrt(share * (1 - share) / n) if n and share is not None and 0 <= share <= 1 else None
