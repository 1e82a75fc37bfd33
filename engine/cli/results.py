"""The JSON documents of a run for scripts. Their keys are public: a key is never renamed, and never changes its unit."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from engine.measurement import alerts, calibration, energy, provenance, roofline, step_breakdown
from engine.store.run import Run
from engine.store.store import Store
from engine.studies import batch_law
from engine.studies.inference import as_json, matrix_of


def of_run(run: Run) -> dict[str, Any]:
    """A run's configuration, status and final figures: what `run --json` prints.

    `summary.mfu` is against the measured peak; `cost` says what it was computed from, or why it is null.
    """
    costs = roofline.as_json(run, calibration_of(run)) if run.config.task == "train" else None
    mfu = costs["measured_peak"]["value"] if costs else None
    return {
        "run_id": run.run_id,
        "status": run.status,
        "config": run.config.model_dump(mode="json"),
        "summary": run.summary().model_dump(mode="python") | {"mfu": mfu},
        "cost": costs,
        "why": run.why() or None,
        **({"batch_law": asdict(batch_law.outcome(run.trials))} if run.config.task == "batch-law" else {}),
        **({"calibration": _calibration(run)} if run.config.task == "calibrate" else {}),
        **({"inference": as_json(matrix_of(run))} if run.config.task == "infer" else {}),
    }


def calibration_of(run: Run) -> calibration.LatestCalibration | None:
    """The newest calibration of the run's device in its store."""
    device, name = calibration.of_run(run)
    return calibration.latest(Store(run.folder.parent.parent), device, name)


def _calibration(run: Run) -> dict[str, Any] | None:
    return run.calibration.model_dump(mode="python", exclude={"kind"}) if run.calibration else None


def everything(store: Store, run: Run) -> dict[str, Any]:
    """All that was recorded of a run: what `show --json` prints."""
    account = energy.in_store(store, run)
    steps, evaluations, hardware_table = run.steps, run.evaluations, run.hardware
    per_example = run.started.train_flops_per_example if run.started else None
    ints = ("step", "samples")
    return of_run(run) | {
        "name": run.name,
        "created": run.created,
        "fingerprint": run.config.fingerprint,
        "steps": {n: steps[n].astype(int).tolist() if n in ints else steps[n].tolist() for n in steps.names}
        | {"flops": (steps["samples"] * per_example).astype(int).tolist() if per_example else []},
        "evaluations": [
            {"step": int(row[0]), "seconds": row[1], "elapsed": row[2], "test_loss": row[3], "test_accuracy": row[4]}
            for row in zip(*(evaluations[n].tolist() for n in evaluations.names), strict=True)
        ],
        "hardware": {"seconds" if n == "elapsed" else n: hardware_table[n].tolist() for n in hardware_table.names},
        "missing_readings": run.missing_readings,
        "busy": _busy(run),
        "alerts": [asdict(alert) for alert in alerts.of_run(run, time.time())],
        "step_split": _split(run),
        "energy": account.model_dump(),
        "figures": {name: figure.model_dump() for name, figure in provenance.of_run(run, account).items()},
        "environment": run.started.environment if run.started else None,
        "gradient_norms": {n: run.grad_norms[n].tolist() for n in ("step", "seconds", "grad_norm")},
        "compile_seconds": run.compiled.seconds if run.compiled else None,
        "warm_up_seconds": run.warm_up.seconds if run.warm_up else None,
        "memory": run.memory.model_dump() if run.memory else None,
        "target_reached": run.target_reached.model_dump() if run.target_reached else None,
        "artifacts": [artifact.model_dump() for artifact in run.artifacts],
        "problems": run.problems,
        "imported": run.imported.origin.model_dump() if run.imported else None,
        **({"trials": [trial.model_dump() for trial in run.trials]} if run.config.task == "batch-law" else {}),
    }


def _split(run: Run) -> dict[str, Any] | None:
    """Seconds of each part of a step, and the shares; null where the run did not take one apart."""
    if run.step_split is None:
        return None
    found = step_breakdown.parts(run.step_split, evaluation_s=run.evaluation_s, steps=len(run.steps))
    return run.step_split.model_dump(exclude={"kind"}) | {
        "evaluation_s": next((part.seconds for part in found if part.key == "evaluation"), None),
        "shares": {part.key: part.share for part in found},
        "sentence": step_breakdown.sentence(found, run.config) or None,
    }


def _busy(run: Run) -> dict[str, Any] | None:
    """Whether something else used the machine; null where the run did not say."""
    busy = run.busy
    return None if busy is None else busy.model_dump() | {"busy": busy.is_busy, "reason": busy.in_words or None}
