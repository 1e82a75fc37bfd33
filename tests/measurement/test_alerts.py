"""Each alert is raised by its own problem, and by nothing that happens in an ordinary run."""

from __future__ import annotations

import time

import numpy as np
import pytest

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.catalog import AnyEvent
from engine.events.lifecycle import Failed, Finished, Started, Terminal
from engine.events.machine import HardwareSample
from engine.events.training import Steps, StepSplit
from engine.hardware import gpus
from engine.measurement import alerts
from engine.runtime import worker
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.store.store import Store
from tests.fakes import make_run

BEGAN = 1_000_000.0
# A step of these runs takes 10 ms.
FED = StepSplit(data_s=1e-3, forward_s=2e-3, backward_s=3e-3, optimizer_s=2e-3, read_back_s=0.0, steps=8)
HUNGRY = FED.model_copy(update={"data_s": 5e-3})


def run_of(
    store: Store,
    loss: np.ndarray,
    *,
    readings: dict[str, float] | None = None,
    said: tuple[AnyEvent, ...] = (),
    device: str = "cuda:0",
    last: Terminal | None = None,
    samples: int = 40,
) -> Run:
    """A run with these losses, ten steps in each tenth of a second, and 10 s of these readings at 4 Hz."""
    run_id = store.create(RunConfig(device=device))
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(
        Started(
            at=BEGAN, parameters=1, train_flops_per_example=1, train_examples=100, test_examples=10, total_steps=None,
            setup_s=0, environment={"gpu_memory_bytes": 80 << 30, "memory_bytes": 16 << 30},
        )
    )  # fmt: skip
    for event in said:
        log.append(event)
    for first in range(1, len(loss) + 1, 10):
        part = np.asarray(loss[first - 1 : first + 9], dtype=np.float32)
        at = ((first - 1) / 100, (first - 1 + len(part)) / 100)
        log.append(Steps(first=first, loss=part, samples=np.full(len(part), 8), lr=0.1, train_s=at, elapsed_s=at))
    for i in range(samples if readings else 0):
        log.append(HardwareSample(elapsed_s=i / 4, readings=readings))
    if last:
        log.close(last)
    else:
        log.flush_if_due(), log._write()
    return store.run(run_id)


def falling(n: int = 1_000) -> np.ndarray:
    return 0.05 + 2.25 * np.exp(-np.arange(n) / 90) + np.random.default_rng(0).gamma(2.0, 0.05, n)


def kinds(run: Run, after_s: float = 0.0) -> list[str]:
    return [alert.kind for alert in alerts.of_run(run, BEGAN + len(run.steps) / 100 + after_s)]


def test_an_ordinary_run_has_none(store):
    readings = {
        "gpu_utilization_percent": 90.0, "gpu_memory_used_bytes": 40 << 30, "gpu_throttle_reasons": float(0x4),
        "process_memory_bytes": 2 << 30,
    }  # fmt: skip
    assert kinds(run_of(store, falling(), readings=readings, said=(FED,)), after_s=5) == []


# --- diverging --------------------------------------------------------------------------------------------------------


def test_a_loss_that_climbs_back_is_diverging(store):
    loss = np.concatenate([falling(600), np.linspace(0.2, 3.0, 400)])
    (alert,) = alerts.of_run(run_of(store, loss), BEGAN + 10)
    assert (alert.kind, "from 0.1" in alert.text, "max_grad_norm" in alert.fix) == ("diverging", True, True)


@pytest.mark.parametrize(
    "loss",
    [
        np.concatenate([falling(900), [4.0] * 5, falling(1_000)[905:]]),  # a spike
        np.random.default_rng(1).gamma(1.0, 2.3, 1_000),  # noise that leads nowhere
        0.002 + 2 * np.exp(-np.arange(1_000) / 60) + np.random.default_rng(2).exponential(0.004, 1_000),  # all but zero
        np.full(1_000, 2.3),  # learns nothing
        falling(100),  # too short to tell
    ],
    ids=["spike", "noise", "small", "flat", "short"],
)
def test_a_loss_that_only_looks_diverging_raises_no_alert(store, loss):
    assert kinds(run_of(store, loss)) == []


def test_a_nan_loss_is_an_alert_until_the_run_has_failed(store):
    loss = np.array([*falling(50), np.nan])
    assert kinds(run_of(store, loss)) == ["diverging"]
    failed = Failed(at=0, cause="Diverged", message="It became NaN.")
    assert kinds(run_of(store, loss, last=failed)) == []


# --- stalled ----------------------------------------------------------------------------------------------------------


def test_a_run_is_stalled_when_its_gap_is_far_longer_than_before(store):
    run = run_of(store, falling())
    assert (kinds(run, after_s=14), kinds(run, after_s=16)) == ([], ["stalled"])


def test_a_slow_run_may_have_longer_gaps(store):
    run_id = store.create(RunConfig())
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(
        Started(at=BEGAN, parameters=1, train_flops_per_example=1, train_examples=9, test_examples=1, total_steps=9, setup_s=0)
    )  # fmt: skip
    for i in range(3):
        at = (4.0 * i, 4.0 * i + 4)
        log.append(Steps(first=i + 1, loss=[1.0], samples=[1], lr=0.1, train_s=at, elapsed_s=at))
    log._write()
    run = store.run(run_id)
    assert [bool(alerts.of_run(run, BEGAN + 12 + s)) for s in (70, 90)] == [False, True]


def test_a_run_that_is_over_is_not_stalled(store):
    assert kinds(run_of(store, falling(), last=Finished(at=0)), after_s=1e6) == []


# --- hardware ---------------------------------------------------------------------------------------------------------


def test_an_idle_gpu_is_waiting_for_data_only_where_the_data_takes_the_time(store):
    idle = {"gpu_utilization_percent": 12.0}
    assert kinds(run_of(store, falling(), readings=idle, said=(HUNGRY,))) == ["waiting for data"]
    assert kinds(run_of(store, falling(), readings=idle, said=(FED,))) == []  # launch-bound: another matter
    assert kinds(run_of(store, falling(), readings=idle)) == []
    in_doubt = FED.model_copy(update={"data_s": 0.1})  # ten times as long as a whole step of the run
    assert kinds(run_of(store, falling(), readings=idle, said=(in_doubt,))) == []
    assert kinds(run_of(store, falling(), readings={"gpu_utilization_percent": 95.0}, said=(HUNGRY,))) == []


def test_memory_near_its_limit(store):
    full = {"gpu_memory_used_bytes": 78.0 * 2**30}
    assert kinds(run_of(store, falling(), readings=full)) == ["memory"]
    assert kinds(run_of(store, falling(), readings={"process_memory_bytes": 15.5 * 2**30})) == ["memory"]
    assert kinds(run_of(store, falling(), readings={"process_memory_bytes": 14.0 * 2**30})) == []


@pytest.mark.parametrize("bit", gpus.THROTTLED_BY_FAULT)
def test_heat_and_missing_power_throttle(store, bit):
    (alert,) = alerts.of_run(run_of(store, falling(), readings={"gpu_throttle_reasons": float(bit | 0x4)}), BEGAN + 10)
    assert (alert.kind, gpus.THROTTLE[bit] in alert.text) == ("throttled", True)


def test_a_few_readings_raise_no_alert(store):
    run = run_of(store, falling(), readings={"gpu_throttle_reasons": float(0x40)}, samples=5)
    assert kinds(run) == []


# --- no false alarms --------------------------------------------------------------------------------------------------

SHORT = ["budget.epochs=none", "budget.samples=none", "budget.flops=none", "budget.steps=none", "budget.seconds=0.3"]


@pytest.mark.parametrize(
    "preset", [name for name, p in PRESETS.items() if p.config.data in {"digits", "mnist5k", "mnist1d"}]
)
@pytest.mark.slow
def test_presets_raise_no_alarm(store, preset):
    run_id = store.create(with_overrides(PRESETS[preset].config, SHORT))
    worker.run(store.folder(run_id))
    run = store.run(run_id)
    assert (run.status, alerts.of_run(run, time.time())) == ("finished", [])


def test_plausible_runs_raise_none(store):
    assert [alerts.of_run(make_run(store, seed=seed, gpu=seed % 2 == 0), time.time()) for seed in range(4)] == [[]] * 4


def test_a_rising_loss_is_distinguished_from_the_noise_of_batch_size_1():
    """Losses of one example each: nearly all small, some huge, as mnist-stochastic has them."""
    rng = np.random.default_rng(3)
    noisy = [rng.exponential(1.0, n) ** 3 / 6 for n in range(400, 3_000, 50)]
    assert [alerts.risen(loss) for loss in noisy] == [None] * len(noisy)
    climbs = np.concatenate([noisy[0], noisy[0] + 9])
    assert alerts.risen(climbs) is not None


def test_data_that_changed_after_submission_and_doubts_about_it_are_alerts(store):
    at_start = Started(
        at=BEGAN, parameters=1, train_flops_per_example=1, train_examples=100, test_examples=10, total_steps=None,
        setup_s=0, data_version="new", data_warnings=("Class 'rare' is not tested.",),
    )  # fmt: skip

    def alerts_of(submitted: str | None) -> list[str]:
        run_id = store.create(RunConfig(), data_version=submitted)
        log = EventLog(store.folder(run_id) / "events.jsonl")
        log.append(at_start)
        log.flush_if_due(), log._write()
        return [alert.in_words for alert in alerts.of_run(store.run(run_id), BEGAN)]

    assert alerts_of("new") == alerts_of(None) == ["Class 'rare' is not tested."]
    assert alerts_of("old")[0].startswith("The data was changed after the run was submitted")
