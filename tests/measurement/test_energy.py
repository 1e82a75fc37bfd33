"""The energy of a run comes from a counter or is unknown, and its figures can be computed again from the JSON."""

from __future__ import annotations

import re
import time
from functools import partial

import numpy as np
import pytest

from dashboard.views.compare.table import as_table, greyed
from engine.access import settings
from engine.access.settings import Energy
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.events.lifecycle import Finished, Started, Terminal
from engine.events.machine import Calibration, HardwareSample, Measurement
from engine.events.training import Evaluation, Steps, TargetReached
from engine.measurement import energy, provenance
from engine.measurement.energy import Account, of_run
from engine.reports.html.page import render
from engine.reports.report import Report
from engine.store.event_log import EventLog
from engine.studies import race_results, races
from tests.fakes import make_run

PRICES = Energy(price_per_kwh=0.3, currency="EUR", gco2_per_kwh=400.0)


def counted(joules: float = 720.0, *, window_s: float = 12.0, source: str = "nvml", period_s: float = 0.1) -> Finished:
    return Finished(
        at=time.time(), energy_j=joules, energy_method="a counter", energy_source=source, energy_window_s=window_s,
        energy_period_s=period_s,
    )  # fmt: skip


def sampled(store, *, last: Terminal, power_w: float = 60.0, config: RunConfig | None = None, n: int = 40):
    """A run of 10 s of hardware samples: constant power, a counter that follows it."""
    wanted = with_overrides(config or RunConfig(device="cuda:0"), ["target.metric=test_accuracy", "target.value=0.6"])
    run_id = store.create(wanted)
    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(
        Started(
            at=time.time(), parameters=1, train_flops_per_example=1, train_examples=100, test_examples=10, total_steps=4,
            setup_s=0, environment={"physical_cores": 4, "device": "NVIDIA H200"},
        )
    )  # fmt: skip
    for i in range(1, n + 1):
        readings = {
            "gpu_power_w": power_w,
            "energy_j": power_w * i / 4,
            "gpu_utilization_percent": 50.0,
            "process_cpu_percent": 100.0,
        }
        log.append(HardwareSample(elapsed_s=i / 4, readings=readings))
    for i in range(5):
        log.append(
            Evaluation(step=i, train_s=2.0 * i, elapsed_s=2.0 * i, test_loss=1.0, test_accuracy=i / 5, seconds=0.1)
        )
        if i < 4:
            log.append(
                Steps(
                    first=i + 1,
                    loss=[1.0],
                    samples=[50],
                    lr=0.1,
                    train_s=(2.0 * i, 2.0 * i + 2),
                    elapsed_s=(2.0 * i, 2.0 * i + 2),
                )
            )
    log.append(TargetReached(metric="test_accuracy", value=0.6, step=3, train_s=6.0, elapsed_s=6.0))
    log.close(last)
    return store.run(run_id)


def test_joules_per_run_per_sample_and_to_target(store):
    found = of_run(sampled(store, last=counted()))
    assert (found.source, found.joules, found.per_1000_samples_j) == ("nvml", 720.0, 3_600.0)
    assert found.to_target_j == pytest.approx(360.0)  # 60 W for 6 s


def test_the_target_between_the_last_sample_and_the_end_is_known_too(store):
    run = sampled(store, last=counted(720.0), n=8)  # samples end at 2 s, the counter at 12 s and 720 J
    assert of_run(run).to_target_j == pytest.approx(120 + 600 * 4 / 10)


def test_idle_is_subtracted_where_it_is_known_and_otherwise_said_to_be_unknown(store):
    run = sampled(store, last=counted())
    assert of_run(run, idle_w=20.0).net_j == pytest.approx(720 - 20 * 12)
    unknown = of_run(run)
    assert (unknown.net_j, unknown.net_reason) == (None, energy.NO_IDLE)


def test_sampled_power_is_shown_where_it_differs_by_more_than_a_tenth(store):
    agree, differ = (of_run(sampled(store, last=counted(joules))) for joules in (720.0, 1_000.0))
    assert (agree.sampled_j, agree.differs) == (pytest.approx(720), False)
    assert differ.differs and "sampled power gives 720 J" in energy.in_words(differ)
    assert "sampled" not in energy.in_words(agree)


def test_a_window_of_fewer_than_ten_periods_says_its_uncertainty(store):
    short, long = (of_run(sampled(store, last=counted(window_s=s))) for s in (0.8, 1.2))
    assert (short.is_short, short.uncertainty) == (True, pytest.approx(0.125))
    assert "± 12 %" in energy.in_words(short) and "not comparable" in energy.how_in_words(short)
    assert not long.is_short and "±" not in energy.in_words(long)


def test_money_and_co2_use_only_the_users_own_numbers(store):
    run = sampled(store, last=counted(3.6e6))
    assert (of_run(run).money, of_run(run).gco2) == (None, None)
    assert "price_per_kwh" in energy.hint(of_run(run))
    found = of_run(run, prices=PRICES)
    assert (found.money, found.gco2, energy.hint(found)) == (pytest.approx(0.3), pytest.approx(400), "")
    assert ("Price of the energy", "0.3 EUR", "derived: your price of 0.3 EUR per kWh", False) in energy.details(found)


def test_without_a_counter_there_is_no_figure_but_the_reason(store):
    run = sampled(store, last=Finished(at=0, energy_method="RAPL is not readable here: no."))
    found = of_run(run, prices=PRICES)
    assert (found.source, found.joules, found.money, energy.in_words(found)) == ("none", None, None, "–")
    assert energy.how_in_words(found) == "Not available here: RAPL is not readable here: no."
    assert not any(figure.value is not None for figure in provenance.of_energy(found).values())


def test_an_estimate_is_a_range_from_the_users_setting_and_not_a_measurement(store):
    run = sampled(store, last=Finished(at=0, energy_method="no counter."))
    found = of_run(run, prices=Energy(tdp_w=(300.0, 700.0), price_per_kwh=1.0))
    assert (found.source, found.joules, found.money) == ("estimate", None, None)
    assert (found.low_j, found.high_j) == (pytest.approx(300 * 0.5 * 10), pytest.approx(700 * 0.5 * 10))
    assert "(estimated)" in energy.in_words(found) and "300 to 700 W" in energy.how_in_words(found)
    known = provenance.of_energy(found)
    assert set(known) == {"energy_estimate_j"} and known["energy_estimate_j"].how == "estimated"


def test_an_estimate_of_a_cpu_run_uses_the_share_of_the_cores(store):
    run = sampled(store, last=Finished(at=0), config=RunConfig())
    assert of_run(run, prices=Energy(tdp_w=(100.0, 100.0))).low_j == pytest.approx(100 * 0.25 * 10)


def test_a_counter_is_never_replaced_by_an_estimate(store):
    run = sampled(store, last=counted())
    assert of_run(run, prices=Energy(tdp_w=(300.0, 700.0))).source == "nvml"


def test_a_running_run_has_no_energy_yet(store):
    run_id = store.create(RunConfig())
    assert of_run(store.run(run_id)).method == "It is known when the run is over."


def test_logs_from_before_the_source_was_recorded_are_read(store):
    found = of_run(make_run(store, num_steps=20, gpu=True, config=RunConfig(device="cuda:0")))
    assert (found.joules, found.window_s, found.uncertainty, found.source) == (1_830.0, None, None, "nvml")


@pytest.mark.parametrize("tdp", [(0, 1), (5, 2), (1, 1e9)])
def test_an_invalid_power_range_is_refused(tdp):
    with pytest.raises(ValueError, match="two numbers of watts"):
        Energy(tdp_w=tdp)


def test_prices_are_read_from_the_settings(tmp_path):
    path = tmp_path / settings.FILE
    path.touch(0o600)
    path.write_text('[energy]\nprice_per_kwh = 0.3\ncurrency = "EUR"\ngco2_per_kwh = 400\ntdp_w = [60, 120]\n')
    assert settings.load(tmp_path).energy == Energy(
        price_per_kwh=0.3, currency="EUR", gco2_per_kwh=400, tdp_w=(60, 120)
    )


def test_a_report_keeps_the_account_and_shows_it(store):
    report = Report.freeze("a", [sampled(store, last=counted())], account_of=partial(energy.of_run, prices=PRICES))
    again = Report.from_json(report.to_json())
    assert again.runs[0].energy == report.runs[0].energy
    page = render(again)
    assert "Energy to target" in page and "360 J" in page and "Price of the energy" in page


def test_energy_to_target_is_compared_where_every_run_was_counted(store):
    with_counter = sampled(store, last=counted(), config=with_overrides(RunConfig(device="cuda:0"), ["seed=1"]))
    assert race_results.to_target(with_counter, "test_accuracy", 0.6).cost["joules"] == pytest.approx(360)
    assert race_results.to_target(make_run(store), "test_accuracy", 0.5).cost["joules"] is None


def test_joules_of_a_short_window_are_grey_and_show_their_uncertainty(store):
    """A counter that moves every 0.9 s, 6 s to the target and 12 s in all: only the first is too short."""
    run = sampled(store, last=counted(period_s=0.9))
    account = of_run(run)
    assert (account.is_short, account.to_target_uncertainty) == (False, pytest.approx(0.9 / 6))
    rows = {row.title: row for row in energy.details(account)}
    assert (rows["Energy to target"].text, rows["Energy to target"].is_short) == ("360 J ± 15 %", True)
    assert not rows["Energy per 1,000 samples"].is_short
    page = render(Report.freeze("a", [run]))
    assert re.search(r'<td class="pale"[^>]*>360 J ± 15 %', page) and page.count('class="pale"') == 1
    assert (
        'title="Derived: the counter where the target was reached' in page
        and "Uncertainty ± 15.00 %. Shorter than 10 periods" in page
    )


def test_a_race_shows_joules_of_a_short_window_in_grey(store):
    def shown(period_s):
        result = race_results.outcome(races.of_runs([sampled(store, last=counted(period_s=period_s))]), target=0.5)
        table = as_table(result)
        return table.set_index("").loc["Energy to target"].iloc[0], (greyed(table, result) != "").to_numpy().sum()

    assert shown(0.1) == ("300 J", 0)
    assert shown(1.0) == ("300 J ± 20 %", 1)


def test_the_account_can_be_computed_again_from_its_json(store):
    found = Account.model_validate_json(of_run(sampled(store, last=counted()), idle_w=20.0).model_dump_json())
    assert found.net_j == found.joules - found.idle_w * found.window_s
    assert found.uncertainty == found.period_s / found.window_s
    assert np.isfinite(found.per_1000_samples_j)


def test_a_race_without_counters_and_runs_with_them_have_another_row(store):
    def row(runs):
        result = race_results.outcome(races.of_runs(runs), target=0.5)
        return as_table(result).set_index("").loc["Energy to target"].tolist()

    assert row([make_run(store, seed=0)]) == ["not available here", ""]
    (joules, how) = row([sampled(store, last=counted())])
    assert (joules.split(" (")[0], how) == (
        "300 J",
        "derived from the energy counter",
    )  # 60 W, halfway between 40 % at 4 s and 60 % at 6 s


def test_an_imported_energy_account_can_be_incomplete():
    half = Account(source="nvml", method="m" * 9_000, joules=1.0, money=1.0, gco2=1.0, window_s=1.0, period_s=1.0)
    assert energy.details(half) == [] and len(energy.how_in_words(half)) < 3_000
    assert energy.in_words(Account(source="estimate", method="m")) == "– to – (estimated)"


def test_the_idle_power_comes_from_the_calibration(store):
    run = sampled(store, last=counted())
    assert energy.in_store(store, run).net_j is None
    log = EventLog(store.folder(store.create(preset_config("calibrate"))) / "events.jsonl")
    idle = Measurement(name="idle_power", unit="w", p05=20.0, best=20.0, median=20.0, calls=1)
    log.append(
        Calibration(
            at=time.time(), device=run.config.device, device_name="NVIDIA H200", threads=(1,), versions={},
            measurements=(idle,), rounds=1, seconds=5.0,
        )
    )  # fmt: skip
    log.close(Finished(at=time.time()))
    account = energy.in_store(store, run)
    assert account.idle_w == 20
    assert account.net_j == pytest.approx(account.joules - 20 * account.window_s)
