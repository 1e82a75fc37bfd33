"""Alerts: what goes wrong with a run, from its recorded events, and what to do about it.

An alert asks a person to act, so each needs a stronger sign than noise can produce. A run of a preset has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.common import units
from engine.events.lifecycle import Failed
from engine.hardware import gpus
from engine.measurement import step_breakdown
from engine.store.columns import Table
from engine.store.run import Run

Kind = Literal["diverging", "stalled", "waiting for data", "memory", "throttled", "data"]

_RECENT_S = 10.0  # alerts look at the hardware readings of the last seconds ...
_RECENT = 8  # ... when there are at least so many


@dataclass(frozen=True, slots=True)
class Alert:
    """What is wrong, and what to do."""

    kind: Kind
    text: str
    fix: str

    @property
    def in_words(self) -> str:
        """Both sentences."""
        return f"{self.text} {self.fix}".strip()


def of_run(run: Run, now: float) -> list[Alert]:
    """The alerts of a run at a moment (Unix time, s). A run that is over has only those that affect its figures."""
    if run.imported and run.imported.origin.form == "curve":
        return []  # its configuration is unknown, and the advice is on the configuration
    with run.lock:
        found = [
            _diverging(run),
            _stalled(run, now),
            _waiting_for_data(run),
            _gpu_memory(run),
            _host_memory(run),
            _throttled(run),
        ]
    return [*_of_data(run), *(alert for alert in found if alert)]


# --- data -------------------------------------------------------------------------------------------------------------


def _of_data(run: Run) -> list[Alert]:
    """What the run found in the user's own data."""
    if (started := run.started) is None:
        return []
    found = [Alert("data", warning, "") for warning in started.data_warnings]
    submitted = run.queued.data_version if run.queued else None
    if submitted and started.data_version and submitted != started.data_version:
        changed = "The data was changed after the run was submitted; the run trained on the changed data."
        found.insert(0, Alert("data", changed, "Compare it only with runs of the same data."))
    return found


# --- training ---------------------------------------------------------------------------------------------------------

_WINDOW_STEPS = 100  # of each mean, at least, so that single batches hardly change it
_MOST_STEPS = 50_000  # that are looked at
# A loss diverges when its mean is this many times its best mean, has lost this share of its improvement, and has risen by
# this many standard errors.
_ROSE = 2.0
_LOST_SHARE = 0.25
_ERRORS = 5.0


def _diverging(run: Run) -> Alert | None:
    fix = f"Lower optimizer.lr={run.config.optimizer.lr:g}, or clip gradients (max_grad_norm)."
    loss = run.steps["loss"]
    loss = loss[:: max(1, len(loss) // _MOST_STEPS)]  # thinned, because a page asks at every update
    if len(loss) and not np.isfinite(run.steps["loss"][-1]):
        if isinstance(run.last_word, Failed):
            return None  # its Failed event already says so
        return Alert("diverging", f"The loss became {'NaN' if np.isnan(loss[-1]) else 'infinite'}.", fix)
    rise = risen(loss)
    if rise is None:
        return None
    last, low = rise
    return Alert("diverging", f"The training loss rose to {units.loss(last)}, from {units.loss(low)} at its best.", fix)


def risen(loss: np.ndarray) -> tuple[float, float] | None:
    """The mean loss of the last steps and the best mean before, if the loss rose and stayed up; else None.

    `loss` is (steps,). Single batches are noisy, most of all those of one sample, so a rise counts only when two windows in
    a row show it, and when it is larger than their standard errors explain.
    """
    window = max(_WINDOW_STEPS, len(loss) // 20)
    if len(loss) < 4 * window or not np.isfinite(loss).all():
        return None
    parts = loss[len(loss) % window :].reshape(-1, window).astype(np.float64)
    means, errors = parts.mean(1), parts.std(1) / math.sqrt(window)
    best = int(means.argmin())
    if best >= len(means) - 2:
        return None
    low, first, last = float(means[best]), float(means[0]), float(means[-1])
    for mean, error in zip(means[-2:], errors[-2:], strict=True):
        rise = float(mean) - low
        noise = _ERRORS * math.hypot(float(error), float(errors[best]))
        if mean <= _ROSE * low or rise <= max(noise, _LOST_SHARE * (first - low)):
            return None
    return last, low


# A run stalls when it has recorded no point for this long, and for this many times its longest gap between two points.
_SILENT_S = 15.0
_LONGEST_GAPS = 20


def _stalled(run: Run, now: float) -> Alert | None:
    """Compares with the run's own gaps. Hardware samples do not count, because another thread makes them."""
    if run.is_over or run.started is None or not len(run.steps):
        return None
    newest = max(run.steps.last("elapsed") or 0.0, run.evaluations.last("elapsed") or 0.0)
    silent = now - run.started.at - newest
    if silent <= _SILENT_S:
        return None
    moments = np.unique(np.concatenate([[0.0], run.steps["elapsed"], run.evaluations["elapsed"]]))
    usual = float(np.diff(moments).max())
    if silent <= _LONGEST_GAPS * usual:
        return None
    return Alert(
        "stalled",
        f"No step for {units.duration(silent)}; the longest gap before was {units.duration(usual)}.",
        "The machine can be overloaded or out of memory, or a driver can hang. Stop the run and start it again.",
    )


# --- hardware ---------------------------------------------------------------------------------------------------------

_IDLE_PERCENT = 50.0
_DATA_SHARE = 1 / 3  # of a step
_GPU_FULL = 0.95
_HOST_FULL = 0.92
_THROTTLED_SHARE = 0.25


def _recent(run: Run, column: str) -> np.ndarray:
    """The readings (n,) of a column in the last seconds; empty where there are too few."""
    table: Table = run.hardware
    if not len(table):
        return np.empty(0)
    values = table[column][table["elapsed"] >= table["elapsed"][-1] - _RECENT_S]
    values = values[np.isfinite(values)]
    return values if len(values) >= _RECENT else np.empty(0)


def _waiting_for_data(run: Run) -> Alert | None:
    """For a GPU only, and only where the profiled steps show that data takes the time."""
    busy = _recent(run, "gpu_utilization_percent")
    if not len(busy) or np.median(busy) >= _IDLE_PERCENT:
        return None
    found = step_breakdown.of_run(run)
    share = found.shares.get("data", 0.0)
    if found.doubt or share < _DATA_SHARE:
        return None
    eager = run.config.execution != "dataloader"
    return Alert(
        "waiting for data",
        f"The GPU is idle {100 - float(np.median(busy)):.0f} % of the time while {units.percent(share)} of a step is fetching data.",
        "Use a smaller input, or a data set that fits into the GPU's memory."
        if eager
        else "Choose execution=eager, which keeps the data on the device.",
    )


def _gpu_memory(run: Run) -> Alert | None:
    if not (full := _nearly_full(run, "gpu_memory_used_bytes", "gpu_memory_bytes", _GPU_FULL)):
        return None
    return Alert(
        "memory",
        f"GPU memory is nearly full: {full}, all programs together.",
        "Choose a smaller batch, grad_accumulation or activation_checkpointing.",
    )


def _host_memory(run: Run) -> Alert | None:
    if not (full := _nearly_full(run, "process_memory_bytes", "memory_bytes", _HOST_FULL)):
        return None
    return Alert(
        "memory",
        f"Memory is nearly full: this run holds {full}.",
        "Choose a smaller batch or data set, before the system ends the run.",
    )


def _nearly_full(run: Run, used: str, total: str, share: float) -> str:
    """The newest reading of `used` and the machine's `total`, as text, when the first exceeds `share` of the second."""
    readings, size = run.hardware[used], run.started.environment.get(total) if run.started else None
    readings = readings[np.isfinite(readings)]
    if not isinstance(size, int) or not size or not len(readings) or readings[-1] < share * size:
        return ""
    return f"{units.nbytes(float(readings[-1]))} of {units.nbytes(size)}"


def _throttled(run: Run) -> Alert | None:
    """For heat and missing power only, because reaching the board's power limit at full load is normal."""
    reasons = _recent(run, "gpu_throttle_reasons").astype(np.int64)
    if not len(reasons):
        return None
    faults = [bit for bit in gpus.THROTTLED_BY_FAULT if ((reasons & bit) != 0).mean() >= _THROTTLED_SHARE]
    if not faults:
        return None
    return Alert(
        "throttled",
        f"The GPU's clock is limited by {gpus.throttle_words(sum(faults))}.",
        "The run is slower than on a cool machine. Check cooling and power supply.",
    )
