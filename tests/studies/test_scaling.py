"""Scaling studies: the fits against independent references, what is asked for, and what is said of what was measured."""

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
from engine.studies import scaling, scaling_text
from tests.fakes import make_scaled, scaled_study
from tests.runtime.test_seed_blocks import Starts

GROUP = "0123456789abcdef"
BASE = with_overrides(RunConfig(), ["budget.epochs=none", "budget.steps=100", "batch_size=64"])


def machine(cores: int = 4, gpus: int = 0) -> Machine:
    found = tuple(GpuDevice(i, "GPU", 2**34, "1", None, None) for i in range(gpus))
    return Machine(CpuDevice("CPU", cores, cores, cores, ()), found, "", 2**34, 2**33, "Linux", "3")


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.3, 0.9])
def test_amdahls_share_is_found_again(serial):
    ranks = np.array([2, 4, 8, 16])
    assert scaling.serial_share(ranks, scaling.amdahl(serial, ranks)) == pytest.approx(serial, abs=1e-12)


def test_amdahls_share_is_the_one_a_general_optimizer_finds():
    ranks = np.array([2, 3, 4, 8])
    speedups = scaling.amdahl(0.2, ranks) * np.random.default_rng(0).lognormal(0, 0.1, len(ranks))
    fitted, _ = optimize.curve_fit(lambda n, s: s + (1 - s) / n, ranks, 1 / speedups, p0=[0.5])
    assert scaling.serial_share(ranks, speedups) == pytest.approx(fitted[0], rel=1e-6)


def test_gustafsons_share_is_the_one_a_general_optimizer_finds():
    ranks = np.array([2, 3, 4, 8])
    law = ranks - (ranks - 1) * 0.15
    speedups = law * np.random.default_rng(1).lognormal(0, 0.1, len(ranks))
    fitted, _ = optimize.curve_fit(lambda n, s: n - (n - 1) * s, ranks, speedups, p0=[0.5])
    assert scaling.scaled_serial_share(ranks, speedups) == pytest.approx(fitted[0], rel=1e-6)
    assert scaling.scaled_serial_share(ranks, law) == pytest.approx(0.15, abs=1e-12)


def test_more_ranks_that_take_longer_have_a_share_above_one():
    assert scaling.serial_share([2], [0.8]) == pytest.approx(1.5)


@pytest.mark.parametrize("ranks, speedups", [([1], [1.0]), ([2], [math.nan]), ([2, 4], [1.5]), ([2], [0.0])])
def test_what_has_no_share_is_refused(ranks, speedups):
    with pytest.raises(EngineError):
        scaling.serial_share(ranks, speedups)


def test_the_interval_of_a_ratio_is_students_t_of_the_logs():
    rng = np.random.default_rng(2)
    a, b = rng.lognormal(1, 0.2, 5), rng.lognormal(0, 0.2, 5)
    found = scaling.paired_ratio(a, b)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(np.log(a / b)), scale=stats.sem(np.log(a / b)))
    assert (found.value, found.low, found.high) == pytest.approx(
        (stats.gmean(a / b), math.exp(low), math.exp(high)), rel=1e-6
    )


def test_the_interval_holds_the_true_speed_up_as_often_as_it_says():
    rng, inside = np.random.default_rng(3), 0
    for _ in range(2_000):
        shared = rng.lognormal(0, 0.5, 3)  # the machine, the same for both of a pair
        found = scaling.paired_ratio(1.7 * shared * rng.lognormal(0, 0.05, 3), shared * rng.lognormal(0, 0.05, 3))
        inside += found.low <= 1.7 <= found.high
    assert inside / 2_000 == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("n", [1, 2])
def test_one_pair_or_two_have_no_interval(n):
    assert scaling.paired_ratio([3.0] * n, [2.0] * n) == scaling.Estimate(pytest.approx(1.5), None, None, n)


@pytest.mark.parametrize("values", [[0.0], [-1.0], [math.nan], [math.inf]])
def test_a_ratio_of_what_is_no_rate_is_refused(values):
    with pytest.raises(EngineError):
        scaling.paired_ratio(values, [1.0])


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
def test_there_are_as_many_ranks_as_devices_and_one_step_more_where_asked(sets, box, beyond, ranks):
    assert scaling.ranks_here(with_overrides(RunConfig(), sets), box, beyond=beyond) == ranks


def test_strong_lanes_keep_the_batch_and_weak_ones_the_batch_of_a_rank():
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


def test_the_whole_set_cannot_grow_with_the_ranks():
    whole = with_overrides(BASE, ["batch_size=full"])
    assert len(scaling.lanes_of(whole, [1, 2], weak=False, most=2)) == 2
    with pytest.raises(ConfigError, match="batch_size=full is all there is"):
        scaling.lanes_of(whole, [1, 2], weak=True, most=2)


def test_a_batch_smaller_than_the_ranks_is_refused_in_the_forms_own_words():
    with pytest.raises(ConfigError, match="each rank needs an example"):
        scaling.lanes_of(with_overrides(BASE, ["batch_size=2"]), [1, 4], weak=False, most=4)


@pytest.mark.parametrize("text, ranks", [("1,2,4", [1, 2, 4]), ("4, 2", [1, 2, 4]), ("3", [1, 3])])
def test_ranks_are_read_as_one_types_them(text, ranks):
    assert scaling.parse_ranks(text) == ranks


@pytest.mark.parametrize("text", ["", "two", "1", "0,2", "65", "-2", "2;4", "1.5"])
def test_ranks_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError):
        scaling.parse_ranks(text)


def test_a_studys_runs_do_the_same_work_and_nothing_ends_them_before():
    config = with_overrides(BASE, ["target.value=0.9", "budget.seconds=3", "checkpoints=9"])
    base = scaling.as_base(config, 200)
    assert base.budget.model_dump(exclude_none=True) == {"steps": 200}
    assert (base.target.value, base.checkpoints) == (None, 0)


def test_every_second_repeat_goes_backwards_and_each_run_has_a_heat_of_its_own():
    lanes = scaling.lanes_of(BASE, [1, 2], weak=True, most=2)
    seed_blocks = scaling.seed_blocks(lanes, [0, 1], GROUP)
    assert {len(heat) for heat in seed_blocks} == {1}
    order = [(heat[0].name, heat[0].config.seed) for heat in seed_blocks]
    labels = [lane.label for lane in lanes]
    assert order == [*((label, 0) for label in labels), *((label, 1) for label in reversed(labels))]
    assert len({heat[0].key for heat in seed_blocks}) == len(seed_blocks)


@pytest.mark.slow
def test_no_two_runs_of_a_study_are_at_work_together(store, monkeypatch):
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


# --- what it came to --------------------------------------------------------------------------------------------------


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
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.00625, ("weak", 2): 0.0125}, seeds=3, drift=1.5)
    )
    one, strong, weak = found.lanes
    assert one.speedup == scaling.Estimate(1.0, pytest.approx(1.0), pytest.approx(1.0), 3)
    assert strong.speedup.value == pytest.approx(1.6, rel=1e-3)  # though each repeat was 1.5 times as slow as the last
    assert strong.efficiency.value == pytest.approx(0.8, rel=1e-3)
    assert weak.speedup.value == pytest.approx(1.6, rel=1e-3)  # twice the examples in 1.25 times the time
    assert strong.speedup.low < 1.6 < strong.speedup.high < 1.61
    assert found.serial.value == pytest.approx(0.25, abs=1e-3)
    assert found.scaled_serial.value == pytest.approx(0.4, abs=1e-3)


def test_a_run_that_failed_counts_in_no_pair_and_says_why(store):
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, seeds=2,
        last={("strong", 2, 1): Failed(at=0, cause="RankLost", message="Rank 1 was killed.", fix="Run it again.")},
    )  # fmt: skip
    found = scaling.outcome_of(study)
    assert found.lanes[1].speedup.n == 1
    assert found.lanes[1].status == {"failed": 1, "finished": 1}
    assert found.lanes[1].why == ["Rank 1 was killed. Run it again."]
    assert any("Rank 1 was killed" in line for line in scaling_text.table(found))


def test_the_time_a_rank_waits_is_what_is_called_communication(store):
    study = study_of(
        store, step_s={("strong", 1): 0.01, ("strong", 2): 0.012},
        waited_s={("strong", 2): (0.006, 0.006)}, communication_s={("strong", 2): (0.007, 0.007)},
    )  # fmt: skip
    at = scaling.outcome_of(study).lanes[1]
    assert (at.waited_share, at.waited_s, at.own_s) == pytest.approx((0.5, 0.006, 0.006), rel=1e-3)
    assert at.communication_s == pytest.approx(0.007)
    assert at.for_slowest_s == pytest.approx(0.0)


def test_windows_count_by_their_steps():
    windows = [window(1, 10, (0.001, 0.001), (0.0, 0.001)), window(11, 100, (0.002, 0.002), (0.001, 0.0))]
    times = scaling.rank_times(windows)
    assert times.step_s == pytest.approx((0.0019, 0.0019))
    assert times.waited_s == pytest.approx((0.0009, 0.0001))
    assert scaling.rank_times([]) is None


def window(first, last, step_s, waited_s):
    n = len(step_s)
    return Ranks(
        elapsed_s=1.0, steps=(first, last), device=("cpu",) * n, step_s=step_s, communication_s=waited_s, waited_s=waited_s,
        cpu_per_wall=(0.9,) * n, memory_bytes=(10,) * n, method="timed",
    )  # fmt: skip


def test_who_waits_least_is_who_the_others_wait_for():
    slow = scaling.rank_times([window(1, 10, (0.01,) * 3, (0.006, 0.006, 0.001))])
    alike = scaling.rank_times([window(1, 10, (0.01,) * 3, (0.003, 0.0029, 0.0031))])
    unknown = scaling.rank_times([window(1, 10, (0.01,) * 2, (None, None))])
    assert slow.straggler == (2, pytest.approx(2.25))
    assert alike.straggler is None
    assert (unknown.straggler, unknown.for_slowest_s, unknown.own_s) == (None, None, None)


@pytest.mark.parametrize(
    ("gap", "same_for", "says"),
    [
        (2e-7, 100, "all 100 losses agree to 0.0001"),
        (5e-6, 19, "the first 19 of 100 losses agree"),
        (0.1, 0, "The losses part from those on one rank after 0 steps"),
        (math.nan, 0, "part from those on one rank"),
    ],
)
def test_losses_are_compared_with_those_on_one_rank(store, gap, same_for, says):
    """`gap` is that of the first step; it grows with every step."""
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, gap=gap))
    assert (found.lanes[1].same_for, found.lanes[1].compared) == (same_for, 100)
    assert says in scaling_text.agreement(found)


def test_money_to_the_target_is_of_the_users_price_and_not_known_without_energy(store):
    step_s = {("strong", 1): 0.01, ("strong", 2): 0.006}
    prices = Energy(price_per_kwh=0.36, currency="EUR")
    counted = scaling.outcome_of(
        study_of(store, step_s=step_s, watts=100.0), target=("test_accuracy", 0.5), prices=prices
    )
    one, two = counted.lanes
    assert one.seconds_to_target == pytest.approx(two.seconds_to_target * 10 / 6, rel=0.01)
    assert one.joules_to_target == pytest.approx(100 * one.seconds_to_target, rel=0.2)
    assert one.money_to_target == pytest.approx(one.joules_to_target / 3.6e6 * 0.36)
    assert ("Money to target", "derived, EUR") in {(title, how) for title, _, how in scaling_text.rows(counted)}


def test_without_a_counter_there_is_neither_energy_nor_money(store):
    prices = Energy(price_per_kwh=0.36)
    study = study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006})
    found = scaling.outcome_of(study, target=("test_accuracy", 0.5), prices=prices)
    assert {(at.joules_to_target, at.money_to_target) for at in found.lanes} == {(None, None)}
    assert ("Energy to target", ["–"] * 2, "not available here") in scaling_text.rows(found)


@pytest.mark.parametrize("sets", ["optimizer.lr=0.5", "batch_size=32", "threads=2"])
def test_runs_that_differ_in_more_are_no_study(store, sets):
    make_scaled(store, BASE, group=GROUP, label="1 rank", step_s=0.01)
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2", sets]), group=GROUP, label="other", step_s=0.01)
    with pytest.raises(ConfigError, match="'other' differs from '1 rank' in more than ranks and batch"):
        scaling.find(store, GROUP)


def test_without_a_run_on_one_rank_there_is_nothing_to_compare_with(store):
    make_scaled(store, with_overrides(BASE, ["parallel.num_ranks=2"]), group=GROUP, label="2 ranks", step_s=0.01)
    with pytest.raises(ConfigError, match="None of these runs is on one rank"):
        scaling.find(store, GROUP)


# --- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("two", "seeds", "says"),
    [
        (0.0055, 3, "Worth it here: 2 ranks train 1.82 times as fast as one"),
        (0.0080, 3, "Faster, at a price: 2 ranks train 1.25 times as fast"),
        (0.0130, 3, "Not worth it here: 2 ranks train only 0.77 times as fast"),
        (0.0055, 3, "Preliminary: 3 of the 6 repeats a verdict takes."),
        (0.0055, 6, "From 6 paired repeats."),
    ],
)
def test_the_verdict_says_whether_more_ranks_are_worth_it(store, two, seeds, says):
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): two}, seeds=seeds))
    assert says in scaling_text.headline(found)


def test_where_fewer_ranks_pay_and_more_only_speed_up_both_are_told(store):
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0057, ("strong", 4): 0.005}, seeds=3)
    )
    words = scaling_text.headline(found)
    assert words.startswith("Worth it here: 2 ranks train 1.75 times as fast as one")
    assert "4 ranks are 2.00 times as fast, at 2.0 times the device time of an example." in words


def test_an_interval_around_one_is_no_gain(store):
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0098}, seeds=3, noise=0.1))
    assert "No gain to be seen here" in scaling_text.headline(found)


def test_ranks_without_a_core_of_their_own_decide_nothing(store):
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006, ("strong", 4): 0.005}, shared=(4,))
    )
    assert "2 ranks train 1.67 times" in scaling_text.headline(found)
    assert "4 ranks" not in scaling_text.headline(found)
    assert any("4 ranks share 4 usable cores" in text for text in scaling_text.reasons(found))


def test_why_not_names_communication_where_ranks_stand_still(store):
    found = scaling.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.013}, waited_s={("strong", 2): (0.006, 0.006)},
        )
    )  # fmt: skip
    first, second, *_ = scaling_text.reasons(found)
    assert second.startswith("Small pieces:")  # the smaller part
    assert first.startswith("Communication: of a step of 13.0 ms a rank stands still for 6.00 ms (46 %)")
    assert "397.5 KiB of gradients" in first or "398 KiB of gradients" in first


def test_why_not_names_the_machine_where_ranks_slow_each_other(store):
    found = scaling.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0095, ("weak", 2): 0.019},
            waited_s={("strong", 2): (0.0005, 0.0005), ("weak", 2): (0.0005, 0.0005)},
        )
    )  # fmt: skip
    assert scaling_text.reasons(found)[0].startswith("Shared machine: with the same 64 examples each, 2 ranks")


def test_why_not_names_pieces_that_are_too_small(store):
    found = scaling.outcome_of(
        study_of(
            store, step_s={("strong", 1): 0.01, ("strong", 2): 0.0095, ("weak", 2): 0.0105},
            waited_s={("strong", 2): (0.0005, 0.0005), ("weak", 2): (0.0005, 0.0005)},
        )
    )  # fmt: skip
    assert scaling_text.reasons(found)[0].startswith("Small pieces: a rank computes 32 examples in the place of 64")


def test_why_not_names_what_the_strategy_adds(store):
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.001, ("strong", 2): 0.004}, waited_s={("strong", 2): (0.001, 0.001)})
    )
    assert scaling_text.reasons(found)[0].startswith(
        "Overhead: beside waiting a rank works 3.00 ms in a step, longer than"
    )


def test_the_historical_baseline_is_told_to_be_one(store):
    base = with_overrides(BASE, ["parallel.strategy=data-parallel"])
    scaled_study(store, group=GROUP, base=base, step_s={("strong", 1): 0.01, ("strong", 2): 0.01})
    found = scaling.outcome_of(scaling.find(store, GROUP))
    assert any("historical baseline" in text for text in scaling_text.reasons(found))


def test_a_straggler_is_named(store):
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.012}, waited_s={("strong", 2): (0.006, 0.0)})
    )
    assert any("2 ranks: rank 1 works 2.0 times as long" in text for text in scaling_text.reasons(found))


def test_a_share_that_repeats_do_not_settle_is_no_promise(store):
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.007}, seeds=3, noise=0.5))
    assert "differ too much to tell it" in scaling_text.fits(found)[0]


def test_a_machine_that_was_busy_is_said_with_the_verdict(store):
    busy = Busy(slowdown=2.0, slowdown_method="timed")
    done = Finished(at=0, busy=busy)
    lanes = {("strong", 1): 0.01, ("strong", 2): 0.006}
    found = scaling.outcome_of(study_of(store, step_s=lanes, last={(*lane, 0): done for lane in lanes}))
    assert "measure it again when the machine is quiet" in scaling_text.headline(found)


def test_one_figure_is_not_said_to_prove_a_law(store):
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, seeds=2))
    (amdahl,) = scaling_text.fits(found)
    assert "at most 5 times as fast" in amdahl
    assert "nothing is left to see whether the law holds" in amdahl


def test_a_study_that_was_stopped_says_how_far_it_came(store):
    stopped = Cancelled(at=0, reason="cancelled by the user")
    found = scaling.outcome_of(
        study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}, last={("strong", 2, 0): stopped})
    )
    assert scaling_text.headline(found).startswith("No answer: 1 of 2 runs finished")


def test_the_study_is_plain_json(store):
    found = scaling.outcome_of(study_of(store, step_s={("strong", 1): 0.01, ("strong", 2): 0.006}))
    said = scaling_text.as_json(found)
    assert (said["lanes"][1]["ranks"], said["lanes"][1]["speedup"]["n"], said["over"]) == (2, 1, True)
    assert said["lanes"][0]["joules"] is None


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ranks", "two"], "ranks='two' is not understood"),
        (["--ranks", "1"], "One rank alone is no study"),
        (["--seeds", "0"], "seeds=0 is not allowed"),
        (["--steps", "0"], "budget.steps=0 is not allowed"),
        (["--weak", "--preset", "mnist-gd", "--ranks", "1,2"], "--weak does not go with batch_size=full"),
        (["--set", "parallel.num_ranks=2"], "are what a study varies"),
        (["--set", "device=cuda:0", "--ranks", "1,2"], "cuda:0"),
        (["--target", "fast", "--ranks", "1,2"], "target 'fast' is not understood"),
        (["--preset", "nope"], "preset='nope' is not known"),
    ],
)
def test_what_cannot_be_scaled_is_refused_in_one_sentence_before_anything_starts(store, capsys, arguments, says):
    code = cli.main(["scale", *arguments, "--store", str(store.root), "--json"])
    out, err = capsys.readouterr()
    assert code == cli.USAGE
    assert says in err
    assert json.loads(out)["error"]["message"] in err
    assert store.ids() == []
