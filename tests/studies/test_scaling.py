"""Scaling studies: the fits against independent references, the plan, and the results in words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import optimize, stats

from engine.access.settings import Energy
from engine.cli import main as cli
from engine.common.errors import ConfigError, EngineError
from engine.config.parsing import with_overrides
from engine.config.run import RunConfig
from engine.events.lifecycle import Cancelled, Failed, Finished
from engine.events.machine import Busy
from engine.events.training import Ranks
from engine.hardware.probe import CpuDevice, GpuDevice, Machine
from engine.runtime.client import Client
from engine.runtime.supervisor import Supervisor
from engine.store.store import Store
from engine.studies import scaling, scaling_estimates, scaling_results, scaling_table, scaling_text
from tests.fakes import make_scaled, scaled_study
from tests.runtime.test_seed_blocks import Starts

GROUP = "0123456789abcdef"
BASE = with_overrides(RunConfig(), ["budget.epochs=none", "budget.steps=100", "batch_size=64"])


def machine(cores: int = 4, gpus: int = 0) -> Machine:
    found = tuple(GpuDevice(i, "GPU", 2**34, "1", None, None) for i in range(gpus))
    return Machine(CpuDevice("CPU", cores, cores, cores, ()), found, "", 2**34, 2**33, "Linux", "3")


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.3, 0.9])
def test_amdahls_share_is_recovered(serial):
    ranks = np.array([2, 4, 8, 16])
    assert scaling_estimates.serial_share(ranks, scaling_estimates.amdahl(serial, ranks)) == pytest.approx(
        serial, abs=1e-12
    )


def test_amdahls_share_is_the_one_a_general_optimizer_finds():
    ranks = np.array([2, 3, 4, 8])
    speedups = scaling_estimates.amdahl(0.2, ranks) * np.random.default_rng(0).lognormal(0, 0.1, len(ranks))
    fitted, _ = optimize.curve_fit(lambda n, s: s + (1 - s) / n, ranks, 1 / speedups, p0=[0.5])
    assert scaling_estimates.serial_share(ranks, speedups) == pytest.approx(fitted[0], rel=1e-6)


def test_gustafsons_share_is_the_one_a_general_optimizer_finds():
    ranks = np.array([2, 3, 4, 8])
    law = ranks - (ranks - 1) * 0.15
    speedups = law * np.random.default_rng(1).lognormal(0, 0.1, len(ranks))
    fitted, _ = optimize.curve_fit(lambda n, s: n - (n - 1) * s, ranks, speedups, p0=[0.5])
    assert scaling_estimates.scaled_serial_share(ranks, speedups) == pytest.approx(fitted[0], rel=1e-6)
    assert scaling_estimates.scaled_serial_share(ranks, law) == pytest.approx(0.15, abs=1e-12)


def test_more_ranks_that_take_longer_have_a_share_above_one():
    assert scaling_estimates.serial_share([2], [0.8]) == pytest.approx(1.5)


@pytest.mark.parametrize("ranks, speedups", [([1], [1.0]), ([2], [math.nan]), ([2, 4], [1.5]), ([2], [0.0])])
def test_points_without_a_serial_share_are_refused(ranks, speedups):
    with pytest.raises(EngineError):
        scaling_estimates.serial_share(ranks, speedups)


def test_the_interval_of_a_ratio_is_students_t_of_the_logs():
    rng = np.random.default_rng(2)
    a, b = rng.lognormal(1, 0.2, 5), rng.lognormal(0, 0.2, 5)
    found = scaling_estimates.paired_ratio(a, b)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(np.log(a / b)), scale=stats.sem(np.log(a / b)))
    assert (found.value, found.low, found.high) == pytest.approx(
        (stats.gmean(a / b), math.exp(low), math.exp(high)), rel=1e-6
    )


def test_the_interval_contains_the_true_speed_up_at_its_level():
    rng, inside = np.random.default_rng(3), 0
    for _ in range(2_000):
        shared = rng.lognormal(0, 0.5, 3)  # the machine, the same for both of a pair
        found = scaling_estimates.paired_ratio(
            1.7 * shared * rng.lognormal(0, 0.05, 3), shared * rng.lognormal(0, 0.05, 3)
        )
        inside += found.low <= 1.7 <= found.high
    assert inside / 2_000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [1, 2])
def test_one_pair_or_two_have_no_interval(n):
    assert scaling_estimates.paired_ratio([3.0] * n, [2.0] * n) == scaling_estimates.Estimate(
        pytest.approx(1.5), None, None, n
    )


@pytest.mark.parametrize("values", [[0.0], [-1.0], [math.nan], [math.inf]])
def test_a_ratio_of_values_that_are_not_positive_is_refused(values):
    with pytest.raises(EngineError):
        scaling_estimates.paired_ratio(values, [1.0])


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "box", "beyond", "ranks"),
    [
        ([], machine(cores=8), False, [1, 2, 4, 8]),
        ([], machine(cores=6), False, [1, 2, 4]),
        ([], machine(cores=1), False, [1]),
        ([], machine(cores=1), True, [1, 2]),
        (["threads=4"], machine(cores=8), True, [1, 2, 4]),
        (["device=cuda:0"], machine(cores=8, gpus=2), True, [1, 2]),
        ([], machine(cores=256), True, [1, 2, 4, 8, 16, 32, 64]),
    ],
)
def test_rank_counts_go_up_to_the_devices_and_one_step_beyond_on_request(sets, box, beyond, ranks):
    assert scaling.ranks_here(with_overrides(RunConfig(), sets), box, beyond=beyond) == ranks


def test_strong_scaling_keeps_the_batch_size_and_weak_scaling_that_of_each_rank():
    lanes = scaling.lanes_of(BASE, [1, 2, 4], weak=True, most=2)
    said = [(lane.label, lane.config.batch_size, lane.config.devices) for lane in lanes]
    assert said == [
        ("1 rank", 64, ("cpu",)),
        ("2 ranks", 64, ("cpu",) * 2),
        ("4 ranks", 64, ("cpu",) * 4),
        ("2 ranks, batch 128", 128, ("cpu",) * 2),
        ("4 ranks, batch 256", 256, ("cpu",) * 4),
    ]
    shared = [bool(lane.config.parallel.devices) for lane in lanes]
    assert shared == [False, False, True, False, True]  # only what has no core of its own names its devices


def test_the_full_batch_cannot_be_scaled_weakly():
    whole = with_overrides(BASE, ["batch_size=full"])
    assert len(scaling.lanes_of(whole, [1, 2], weak=False, most=2)) == 2
    with pytest.raises(ConfigError, match="batch_size=full has no samples left"):
        scaling.lanes_of(whole, [1, 2], weak=True, most=2)


def test_a_batch_smaller_than_the_number_of_ranks_is_refused():
    with pytest.raises(ConfigError, match="each rank needs a sample"):
        scaling.lanes_of(with_overrides(BASE, ["batch_size=2"]), [1, 4], weak=False, most=4)


@pytest.mark.parametrize("text, ranks", [("1,2,4", [1, 2, 4]), ("4, 2", [1, 2, 4]), ("3", [1, 3])])
def test_ranks_are_read_from_text(text, ranks):
    assert scaling.parse_ranks(text) == ranks


@pytest.mark.parametrize("text", ["", "two", "1", "0,2", "65", "-2", "2;4", "1.5"])
def test_impossible_ranks_are_refused(text):
    with pytest.raises(ConfigError):
        scaling.parse_ranks(text)


def test_all_runs_of_a_study_take_the_same_steps():
    config = with_overrides(BASE, ["target.value=0.9", "budget.seconds=3", "checkpoints=9"])
    base = scaling.as_base(config, 200)
    assert base.budget.model_dump(exclude_none=True) == {"steps": 200}
    assert (base.target.value, base.checkpoints) == (None, 0)


def test_every_second_repeat_is_in_reverse_order_and_each_run_has_its_own_block():
    lanes = scaling.lanes_of(BASE, [1, 2], weak=True, most=2)
    seed_blocks = scaling.seed_blocks(lanes, [0, 1], GROUP)
    assert {len(heat) for heat in seed_blocks} == {1}
    order = [(heat[0].name, heat[0].config.seed) for heat in seed_blocks]
    labels = [lane.label for lane in lanes]
    assert order == [*((label, 0) for label in labels), *((label, 1) for label in reversed(labels))]
    assert len({heat[0].key for heat in seed_blocks}) == len(seed_blocks)


@pytest.mark.slow
def test_runs_of_a_study_never_overlap(store, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    lanes = scaling.lanes_of(with_overrides(BASE, ["budget.steps=5"]), [1], weak=False, most=8)
    run_ids = Client(store).submit_seed_blocks(scaling.seed_blocks(lanes, range(3), GROUP), group=GROUP)
    supervisor = Supervisor(store, Starts(), machine=machine(cores=8))
    supervisor.recover()
    supervisor._start_queued_runs()  # with room for all of them
    assert supervisor.executor.given == [{run_ids[0]}]
    for _ in range(6):
        supervisor.tick()
    supervisor.index.close()
    assert supervisor.executor.given == [{run_id} for run_id in run_ids]


# --- results --------------------------------------------------------------------------------------------------


def study_of(store: Store, **how) -> scaling.Study:
    scaled_study(store, group=GROUP, base=BASE, **how)
    found = scaling.find(store, GROUP)
    assert found
    return found


def test_a_study_is_found_again_with_its_lanes_in_order(store):
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 4): 0.004, ("strong", 2): 0.006, ("weak", 2): 0.012}
    )
    assert [(lane.mode, lane.ranks) for lane in study.lanes] == [
        ("strong", 1),
        ("strong", 2),
        ("strong", 4),
        ("weak", 2),
    ]


def test_speed_up_and_efficiency_are_of_pairs_with_one_seed(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.00625, ("weak", 2): 0.0125}, seeds=3, drift=1.5)
    )
    one, strong, weak = found.lanes
    assert one.speedup == scaling_estimates.Estimate(1.0, pytest.approx(1.0), pytest.approx(1.0), 3)
    assert strong.speedup.value == pytest.approx(1.6, rel=1e-3)  # though each repeat was 1.5 times as slow as the last
    assert strong.efficiency.value == pytest.approx(0.8, rel=1e-3)
    assert weak.speedup.value == pytest.approx(1.6, rel=1e-3)  # twice the examples in 1.25 times the time
    assert strong.speedup.low < 1.6 < strong.speedup.high < 1.61
    assert found.serial.value == pytest.approx(0.25, abs=1e-3)
    assert found.scaled_serial.value == pytest.approx(0.4, abs=1e-3)


def test_a_speed_up_is_the_ratio_of_the_rates_beside_it(store):
    """Also if repeats are unequal, and one of them is missing on one rank count."""
    lost = Failed(at=0, cause="RankLost", message="Rank 1 was killed.")
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 2): 0.025, ("strong", 4): 0.03, ("weak", 2): 0.03}, seeds=4,
        noise=0.6, last={("strong", 4, 2): lost}, waited_s={("strong", 2): (0.006, 0.004)},
    )  # fmt: skip
    one, *others = scaling_results.outcome_of(study).lanes
    for at in others:
        assert at.speedup.n == 3
        assert at.speedup.value == pytest.approx(at.samples_per_s / one.samples_per_s, rel=1e-9)
        if at.mode == "strong":
            assert at.speedup.value == pytest.approx(one.step_s / at.step_s, rel=1e-9)
    assert others[0].own_s + others[0].waited_s == pytest.approx(others[0].step_s)


@pytest.mark.parametrize(
    ("two", "because"), [(0.04, "several ranks are slower than one"), (0.004, "larger than the number of ranks")]
)
def test_a_serial_share_that_is_impossible_is_not_known(store, two, because):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): two, ("weak", 2): 2 * two}, seeds=3)
    )
    amdahl, gustafson = scaling_text.fits(found)
    assert "serial share not known" in amdahl and because in amdahl
    assert "serial share not known" in gustafson and because in gustafson
    said = scaling_table.as_json(found)
    assert (said["serial_share"], said["scaled_serial_share"]) == (None, None)
    assert because in said["serial_share_unknown"] and because in said["scaled_serial_share_unknown"]


def test_the_interval_of_a_serial_share_stays_within_its_range():
    fitted = scaling_estimates.Estimate(0.1, -0.2, 0.4, 3)
    assert scaling_estimates.possible_share(fitted)[0] == scaling_estimates.Estimate(0.1, 0.0, 0.4, 3)


def test_a_run_that_failed_counts_in_no_pair_and_says_why(store):
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, seeds=2,
        last={("strong", 2, 1): Failed(at=0, cause="RankLost", message="Rank 1 was killed.", fix="Run it again.")},
    )  # fmt: skip
    found = scaling_results.outcome_of(study)
    assert found.lanes[1].speedup.n == 1
    assert found.lanes[1].status == {"failed": 1, "finished": 1}
    assert found.lanes[1].why == ["Rank 1 was killed. Run it again."]
    assert any("Rank 1 was killed" in line for line in scaling_table.table(found))


def test_waiting_time_counts_as_communication(store):
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 2): 0.012},
        waited_s={("strong", 2): (0.006, 0.006)}, communication_s={("strong", 2): (0.007, 0.007)},
    )  # fmt: skip
    at = scaling_results.outcome_of(study).lanes[1]
    assert (at.waited_share, at.waited_s, at.own_s) == pytest.approx((0.5, 0.006, 0.006), rel=1e-3)
    assert at.communication_s == pytest.approx(0.007)
    assert at.for_slowest_s == pytest.approx(0.0)


def test_windows_count_by_their_steps():
    windows = [window(1, 10, (0.001, 0.001), (0.0, 0.001)), window(11, 100, (0.002, 0.002), (0.001, 0.0))]
    times = scaling_results.rank_times(windows)
    assert times.step_s == pytest.approx((0.0019, 0.0019))
    assert times.waited_s == pytest.approx((0.0009, 0.0001))
    assert scaling_results.rank_times([]) is None


def window(first, last, step_s, waited_s):
    n = len(step_s)
    return Ranks(
        elapsed_s=1.0, steps=(first, last), device=("cpu",) * n, step_s=step_s, communication_s=waited_s, waited_s=waited_s,
        cpu_per_wall=(0.9,) * n, memory_bytes=(10,) * n, method="timed",
    )  # fmt: skip


def test_the_rank_that_waits_least_is_the_straggler():
    slow = scaling_results.rank_times([window(1, 10, (0.01,) * 3, (0.006, 0.006, 0.001))])
    alike = scaling_results.rank_times([window(1, 10, (0.01,) * 3, (0.003, 0.0029, 0.0031))])
    unknown = scaling_results.rank_times([window(1, 10, (0.01,) * 2, (None, None))])
    assert slow.straggler == (2, pytest.approx(2.25))
    assert alike.straggler is None
    assert (unknown.straggler, unknown.for_slowest_s, unknown.own_s) == (None, None, None)


@pytest.mark.parametrize(
    ("gap", "same_for", "says"),
    [
        (2e-7, 100, "all 100 losses agree to 0.0001"),
        (5e-6, 19, "the first 19 of 100 losses agree"),
        (0.1, 0, "The losses differ from those of one rank after 0 steps"),
        (math.nan, 0, "differ from those of one rank"),
    ],
)
def test_losses_are_compared_with_those_on_one_rank(store, gap, same_for, says):
    """`gap` is that of the first step; it grows with every step."""
    found = scaling_results.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, gap=gap))
    assert (found.lanes[1].same_for, found.lanes[1].compared) == (same_for, 100)
    assert says in scaling_text.agreement(found)


def test_money_to_the_target_is_of_the_users_price_and_not_known_without_energy(store):
    step_s = {("strong", 1): 0.01, ("strong", 2): 0.006}
    prices = Energy(price_per_kwh=0.36, currency="EUR")
    counted = scaling_results.outcome_of(
        study_of(store, step_s=step_s, watts=100.0), target=("test_accuracy", 0.5), prices=prices
    )
    one, two = counted.lanes
    assert one.seconds_to_target == pytest.approx(two.seconds_to_target * 10 / 6, rel=0.01)
    assert one.joules_to_target == pytest.approx(100 * one.seconds_to_target, rel=0.2)
    assert one.money_to_target == pytest.approx(one.joules_to_target / 3.6e6 * 0.36)
    assert ("Money to target", "derived, EUR") in {(title, how) for title, _, how in scaling_table.rows(counted)}


def test_without_a_counter_there_is_neither_energy_nor_money(store):
    prices = Energy(price_per_kwh=0.36)
    study = study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006})
    found = scaling_results.outcome_of(study, target=("test_accuracy", 0.5), prices=prices)
    assert {(at.joules_to_target, at.money_to_target) for at in found.lanes} == {(None, None)}
    assert ("Energy to target", ["–"] * 2, "not available here") in scaling_table.rows(found)


@pytest.mark.parametrize("sets", ["optimizer.lr=0.5", "batch_size=32", "threads=2"])
def test_runs_that_differ_in_more_than_ranks_and_batch_are_refused(store, sets):
    make_scaled(store, BASE, group=GROUP, label="1 rank", step_s=0.01)
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2", sets]), group=GROUP, label="other", step_s=0.01)
    with pytest.raises(ConfigError, match="'other' differs from '1 rank' in more than ranks and batch"):
        scaling.find(store, GROUP)


def test_a_study_without_a_run_on_one_rank_is_refused(store):
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2"]), group=GROUP, label="2 ranks", step_s=0.01)
    with pytest.raises(ConfigError, match="None of these runs is on one rank"):
        scaling.find(store, GROUP)


# --- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("two", "seeds", "says"),
    [
        (0.0055, 3, "Worth it here: 2 ranks train 1.82 times as fast as one"),
        (0.0080, 3, "Faster, at a cost: 2 ranks train 1.25 times as fast"),
        (0.0130, 3, "Not worth it here: 2 ranks train 0.77 times as fast"),
        (0.0055, 3, "Preliminary: 3 of 6 repeats."),
        (0.0055, 6, "From 6 paired repeats."),
    ],
)
def test_the_verdict_says_whether_more_ranks_are_worth_it(store, two, seeds, says):
    found = scaling_results.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): two}, seeds=seeds))
    assert says in scaling_text.headline(found)


def test_the_verdict_names_the_efficient_rank_count_and_the_fastest_one(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0057, ("strong", 4): 0.005}, seeds=3)
    )
    words = scaling_text.headline(found)
    assert words.startswith("Worth it here: 2 ranks train 1.75 times as fast as one")
    assert "4 ranks are 2.00 times as fast, at 2.0 times the device time per sample." in words


def test_an_interval_around_one_is_no_significant_speed_up(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0098}, seeds=3, noise=0.1)
    )
    assert "No significant speed-up here" in scaling_text.headline(found)


def test_ranks_that_share_cores_do_not_change_the_verdict(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006, ("strong", 4): 0.005}, shared=(4,))
    )
    assert "2 ranks train 1.67 times" in scaling_text.headline(found)
    assert "4 ranks" not in scaling_text.headline(found)
    assert any("4 ranks: the ranks share 4 usable cores" in text for text in scaling_text.reasons(found))


def test_the_reasons_name_communication_where_ranks_wait(store):
    found = scaling_results.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.013}, waited_s={("strong", 2): (0.006, 0.006)},
        )
    )  # fmt: skip
    first, second, *_ = scaling_text.reasons(found)
    assert second.startswith("Small batches:")  # the smaller part
    assert first.startswith("Communication: in a step of 13.0 ms a rank waits 6.00 ms (46 %) for the all-reduce")
    assert "397.5 KiB of gradients" in first or "398 KiB of gradients" in first


def test_the_reasons_name_the_machine_where_ranks_slow_each_other(store):
    found = scaling_results.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0095, ("weak", 2): 0.019},
            waited_s={("strong", 2): (0.0005, 0.0005), ("weak", 2): (0.0005, 0.0005)},
        )
    )  # fmt: skip
    assert scaling_text.reasons(found)[0].startswith("Shared machine: with 64 samples each, 2 ranks")


def test_the_reasons_name_batches_that_are_too_small(store):
    found = scaling_results.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0095, ("weak", 2): 0.0105},
            waited_s={("strong", 2): (0.0005, 0.0005), ("weak", 2): (0.0005, 0.0005)},
        )
    )  # fmt: skip
    assert scaling_text.reasons(found)[0].startswith("Small batches: a rank takes 9.00 ms for 32 samples, 0.90 times")


def test_the_reasons_name_the_overhead_of_the_strategy(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.001, ("strong", 2): 0.004}, waited_s={("strong", 2): (0.001, 0.001)})
    )
    assert scaling_text.reasons(found)[0].startswith(
        "Overhead: without waiting, a step of a rank takes 3.00 ms, longer than"
    )


def test_data_parallel_is_named_as_the_historical_baseline(store):
    base = with_overrides(BASE, ["parallel.strategy=data-parallel"])
    scaled_study(store, group=GROUP, base=base, step_s={("strong", 1): 0.01, ("strong", 2): 0.01})
    found = scaling_results.outcome_of(scaling.find(store, GROUP))
    assert any("historical baseline" in text for text in scaling_text.reasons(found))


def test_a_straggler_is_named(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.012}, waited_s={("strong", 2): (0.006, 0.0)})
    )
    assert any(
        "2 ranks: the own work of rank 1 takes 2.0 times as long" in text for text in scaling_text.reasons(found)
    )


def test_a_serial_share_with_a_wide_interval_gives_no_limit(store):
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.007}, seeds=3, noise=0.5)
    )
    assert found.serial is None
    assert scaling_text.fits(found) == [
        "Amdahl's law, fitted: serial share not known, because the repeats differ too much."
    ]


def test_the_verdict_mentions_a_busy_machine(store):
    busy = Busy(slowdown=2.0, slowdown_method="timed")
    done = Finished(at=0, busy=busy)
    lanes = {("strong", 1): 0.01, ("strong", 2): 0.006}
    found = scaling_results.outcome_of(study_of(store, step_s=lanes, last={(*lane, 0): done for lane in lanes}))
    assert "The machine was busy in most runs. Measure again when it is idle." in scaling_text.headline(found)


def test_a_fit_to_one_rank_count_cannot_be_checked(store):
    found = scaling_results.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, seeds=2))
    (amdahl,) = scaling_text.fits(found)
    assert "at most 5 times as fast" in amdahl
    assert "the fit cannot be checked" in amdahl


def test_a_stopped_study_says_how_many_runs_finished(store):
    stopped = Cancelled(at=0, reason="cancelled by the user")
    found = scaling_results.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, last={("strong", 2, 0): stopped})
    )
    assert scaling_text.headline(found).startswith("No result: 1 of 2 runs finished")


def test_the_study_is_plain_json(store):
    found = scaling_results.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}))
    said = scaling_table.as_json(found)
    assert (said["lanes"][1]["ranks"], said["lanes"][1]["speedup"]["n"], said["over"]) == (2, 1, True)
    assert said["lanes"][0]["joules"] is None


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "two"], "ranks='two' is not a list of numbers"),
        (["--ranks", "1"], "A scaling study needs at least two rank counts"),
        (["--seeds", "0"], "--seeds 0 is not allowed"),
        (["--steps", "0"], "budget.steps=0 is not allowed"),
        (["--weak", "--preset", "mnist-gd", "--ranks", "1,2"], "--weak cannot be used with batch_size=full"),
        (["--set", "parallel.num_ranks=2"], "A scaling study sets parallel.num_ranks"),
        (["--set", "device=cuda:0", "--ranks", "1,2"], "cuda:0"),
        (["--target", "fast", "--ranks", "1,2"], "target 'fast' is not a target"),
        (["--preset", "nope"], "preset='nope' is not known"),
    ],
)
def test_an_impossible_study_is_refused_in_one_sentence_before_anything_starts(store, capsys, arguments, says):
    code = cli.main(["scale", *arguments, "--store", str(store.root), "--json"])
    out, err = capsys.readouterr()
    assert code == cli.USAGE
    assert says in err
    assert json.loads(out)["error"]["message"] in err
    assert store.ids() == []
