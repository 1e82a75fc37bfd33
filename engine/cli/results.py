"""The JSON documents of a run for scripts. The keys are public: they keep their names and units."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from engine.common.jsontext import Counts
from engine.config.tasks import TaskName
from engine.events.base import Event
from engine.events.lifecycle import Artifact, Started
from engine.events.machine import Calibration
from engine.events.training import Compiled, WarmUp
from engine.measurement import alerts, calibration, cost, energy, provenance, roofline, step_breakdown
from engine.store.columns import Table
from engine.store.csv_tables import NAN_IS_MEASURED, WHOLE
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import batch_law
from engine.studies.inference import as_json, matrix_of


def of_run(run: Run) -> dict[str, Any]:
    """Configuration, status and final figures of a run, as `run --json` prints them.

    `summary.mfu` is relative to the measured peak; `cost` names the inputs, or why it is null.
    """
    costs = roofline.as_json(run, calibration_of(run)) if run.config.task_facts.trains_one_model else None
    mfu = costs["measured_peak"]["value"] if costs else None
    return {
        "run_id": run.run_id,
        "status": run.status,
        "config": run.config.model_dump(mode="json"),
        "summary": run.summary().model_dump(mode="python") | {"mfu": mfu},
        "cost": costs,
        "why": run.why() or None,
        "diverged_at": run.diverged_at,
        **_RESULTS.get(run.config.task, _plain_results)(run),
    }


def events_of(run: Run) -> dict[str, Event]:
    """The newest event of each kind that only some tasks write, by kind."""
    newest = {kind: run.latest(kind) for kind in run.kinds if kind.__module__ != Started.__module__}
    return {event.kind: event for event in newest.values() if event}


def calibration_of(run: Run) -> calibration.LatestCalibration | None:
    """The calibration in the run's store that the run is compared with."""
    return cost.judged_by(Store(run.folder.parent.parent), run)


def _calibration(run: Run) -> dict[str, Any] | None:
    return made.model_dump(mode="python", exclude={"kind"}) if (made := run.latest(Calibration)) else None


def everything(store: Store, run: Run) -> dict[str, Any]:
    """Everything recorded of a run, as `show --json` prints it; columns are arrays (rows,), NaN where unknown."""
    account = energy.in_store(store, run)
    steps, evaluations, hardware_table = run.steps, run.evaluations, run.hardware
    per_example = run.started.train_flops_per_example if run.started else None
    return of_run(run) | {
        "name": run.name,
        "created": run.created,
        "fingerprint": run.config.fingerprint,
        "steps": {n: Counts(steps[n]) if n in WHOLE else steps[n] for n in steps.names}
        | {"flops": Counts(steps["samples"] * per_example) if per_example else []},
        "columns": _COLUMNS,
        "not_finite": _not_finite(run),
        "evaluations": [
            dict(zip(evaluations.names, row, strict=True)) | {"step": int(row[0])}
            for row in zip(*(evaluations[n].tolist() for n in evaluations.names), strict=True)
        ],
        "hardware": {"seconds" if n == "elapsed" else n: hardware_table[n] for n in hardware_table.names},
        "missing_readings": run.missing_readings,
        "busy": _busy(run),
        "alerts": [asdict(alert) for alert in alerts.of_run(run, time.time())],
        "step_split": _step_split(run),
        "energy": account.model_dump(),
        "figures": {name: figure.model_dump() for name, figure in provenance.of_run(run, account).items()},
        "environment": run.started.environment if run.started else None,
        "gradient_norms": {n: run.grad_norms[n] for n in ("step", "seconds", "grad_norm")},
        "compile_seconds": compiled.seconds if (compiled := run.latest(Compiled)) else None,
        "warm_up_seconds": warm_up.seconds if (warm_up := run.latest(WarmUp)) else None,
        "memory": run.memory.model_dump() if run.memory else None,
        "target_reached": run.target_reached.model_dump() if run.target_reached else None,
        "artifacts": [artifact.model_dump() for artifact in run.all(Artifact)],
        "problems": run.problems,
        "imported": run.imported.origin.model_dump() if run.imported else None,
        **_RECORDS.get(run.config.task, _no_more)(run),
    }


# How columns were obtained whose values are not each measured.
_COLUMNS = {
    f"steps.{name}": f"derived: the {what} is read once per chunk of steps; between two readings it is interpolated"
    for name, what in (("seconds", "training clock"), ("elapsed", "wall clock"))
}


def _not_finite(run: Run) -> dict[str, dict[str, Any]]:
    """Which measured values are NaN or infinite, and so null in the JSON: the first step, its value, and their number."""
    found = {}
    for name in ("steps", "evaluations", "grad_norms"):
        table: Table = getattr(run, name)
        for column in NAN_IS_MEASURED.intersection(table.names):
            bad = np.flatnonzero(~np.isfinite(table[column]))
            if len(bad) and table.knows(column):
                first = {"first_step": int(table["step"][bad[0]]), "value": str(table[column][bad[0]])}
                found[f"{name}.{column}"] = first | {"count": len(bad)}
    return found


def _step_split(run: Run) -> dict[str, Any] | None:
    """Seconds and share of each part of a step; None if the run has no step breakdown.

    `doubt` is set where the parts add up to something else than the run's own step; then there is no `sentence`.
    """
    if run.step_split is None:
        return None
    found, steps = step_breakdown.of_run(run), run.summary().steps
    return run.step_split.model_dump(exclude={"kind"}) | {
        "sum_s": found.sum_s if found.parts else None,
        "run_step_s": found.step_s,
        "shares": found.shares,
        "doubt": found.doubt or None,
        "sentence": found.advice or None,
        "evaluation_s": run.evaluation_s / steps if steps else None,
        "evaluation_total_s": run.evaluation_s,
    }


def _busy(run: Run) -> dict[str, Any] | None:
    """Whether the machine was busy; None if the run did not record it."""
    busy = run.busy
    return None if busy is None else busy.model_dump() | {"busy": busy.is_busy, "reason": busy.in_words or None}


# --- what only one task has -------------------------------------------------------------------------------------------


def _plain_results(run: Run) -> dict[str, Any]:
    """The results of a task that has no keys of its own: its newest events by kind."""
    return {"events": {kind: event.model_dump(exclude={"kind"}) for kind, event in events_of(run).items()}}


def _no_more(run: Run) -> dict[str, Any]:
    return {}


_RESULTS: Mapping[TaskName, Callable[[Run], dict[str, Any]]] = {
    "train": _no_more,
    "batch-law": lambda run: {"batch_law": asdict(batch_law.outcome(run.trials, budget_s=run.config.budget.seconds))},
    "landscape": _no_more,
    "calibrate": lambda run: {"calibration": _calibration(run)},
    "infer": lambda run: {"inference": as_json(matrix_of(run))},
}
_RECORDS: Mapping[TaskName, Callable[[Run], dict[str, Any]]] = {
    "batch-law": lambda run: {"trials": [trial.model_dump() for trial in run.trials]},
}
