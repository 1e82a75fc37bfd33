"""Races: which lanes can race, what their runs share, and the table and the verdicts."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from engine.cli import main as cli
from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.events.lifecycle import SeedBlock
from engine.planning.planner import check
from engine.runtime import worker
from engine.runtime.client import Client
from engine.store.stop_requests import StopRequest, ask_to_stop
from engine.store.store import Store, Submission
from engine.studies import race_results, race_text, race_verdicts, races
from tests.fakes import make_run

pytestmark = pytest.mark.slow  # it trains

BASE = with_overrides(
    PRESETS["digits-mlp"].config, ["optimizer.name=sgd", "optimizer.lr=0.2", "budget.epochs=4", "evaluate_every=20"]
)
GROUP = "0123456789abcdef"


def lane(label: str, *sets: str) -> races.Lane:
    return races.Lane(label=label, config=with_overrides(BASE, sets))


def raced(store, lanes, seeds=(0,)) -> races.Race:
    """A race whose heats were run here, one after another."""
    for heat in races.seed_blocks(lanes, seeds, GROUP):
        run_ids = [store.create(w.config, name=w.name, group=GROUP, key=w.key) for w in heat]
        worker.run(*(store.folder(run_id) for run_id in run_ids))
    race = races.find(store, GROUP)
    assert race
    return race


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("race"))
    lanes = [
        lane("Batch", "optimizer.name=gd", "batch_size=full"),
        lane("Mini", "batch_size=16"),
        lane("One", "batch_size=1", "optimizer.lr=0.02"),
    ]
    return store, raced(store, lanes, seeds=(0, 1))


@pytest.mark.parametrize("name", races.RACES)
def test_every_race_with_a_name_can_be_run_here(name):
    preset = races.RACES[name]
    races.check_variants(preset.lanes)
    for each in preset.lanes:
        check(each.config)


def test_lanes_start_from_the_same_weights_and_see_the_same_order(store):
    race = raced(store, [lane("a", "batch_size=16"), lane("b", "batch_size=16", "optimizer.lr=0.1")])
    a, b = (each.runs[0] for each in race.lanes)
    assert a.steps["loss"][0] == b.steps["loss"][0]  # of the same batch under the same weights
    assert a.evaluations["test_loss"][0] == b.evaluations["test_loss"][0]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (["data=mnist5k"], r"'a' and 'b' differ in data \(digits and mnist5k\)"),
        (["seed=3"], "differ in the seed"),
        (["budget.epochs=5"], "different budgets"),
    ],
)
def test_lanes_with_different_data_are_refused(other, says):
    with pytest.raises(ConfigError, match=says):
        races.check_variants([lane("a"), lane("b", *other)])


@pytest.mark.parametrize(("number", "says"), [(1, "configurations, not 1"), (7, "configurations, not 7")])
def test_a_race_has_two_to_six_lanes(number, says):
    with pytest.raises(ConfigError, match=says):
        races.check_variants([lane(str(i)) for i in range(number)])


def test_two_lanes_with_the_same_name_are_refused():
    with pytest.raises(ConfigError, match="Two configurations are named 'a'"):
        races.check_variants([lane("a"), lane("a", "batch_size=16")])


def test_one_budget_goes_to_all_lanes():
    lanes = races.with_budget([lane("a"), lane("b", "batch_size=16")], "samples=5000")
    assert {each.config.budget.samples for each in lanes} == {5000}
    assert {each.config.budget.epochs for each in lanes} == {None}
    with pytest.raises(ConfigError, match=r"budget 'hours=1' is not known.*Choose from steps"):
        races.with_budget(lanes, "hours=1")


@pytest.mark.parametrize("text", ["batch_size=16", ": batch_size=16", "a"])
def test_a_lane_needs_a_name_and_a_colon(text):
    with pytest.raises(ConfigError, match="is not a configuration"):
        races.parse_variant(text, BASE)


@pytest.mark.parametrize(
    ("text", "says"),
    [("test_accuracy=97", "a share above 0 up to 1"), ("test_loss=-1", "a number above 0"), ("loss=1", "is not a target"),
     ("test_loss=nan", "a number above 0"), ("test_accuracy=high", "is not a target")],
)  # fmt: skip
def test_an_impossible_target_is_refused(text, says):
    with pytest.raises(ConfigError, match=says):
        race_results.parse_target(text)


def test_a_race_is_found_again_by_its_group_lane_by_lane(three):
    store, race = three
    assert [(each.label, sorted(each.runs)) for each in race.lanes] == [
        ("Batch", [0, 1]),
        ("Mini", [0, 1]),
        ("One", [0, 1]),
    ]
    assert race.is_over
    assert races.find(store, "f" * 16) is None
    assert races.find(store, "../../etc") is None


def test_the_table_is_what_show_says(three, capsys):
    """To-target figures against a computation of their own from `show --json`."""
    store, race = three
    target = 0.9
    result = race_results.outcome(race, target=target)
    for each, told in zip(race.lanes, result.lanes, strict=True):
        costs = []
        for run in each.runs.values():
            cli.main(["show", run.run_id, "--store", str(store.root), "--json"])
            shown = json.loads(capsys.readouterr().out.splitlines()[-1])
            costs.append(crossed(shown, target))
        for axis in ("steps", "samples", "seconds", "flops"):
            values = [cost[axis] if cost else math.inf for cost in costs]
            expected = float(np.median(values))
            assert told.cost[axis] == (pytest.approx(expected) if math.isfinite(expected) else None)


def crossed(shown: dict, target: float) -> dict | None:
    """The crossing rule in plain Python: two evaluations in a row, and the point between the one before and the first."""
    evaluations, steps = shown["evaluations"], shown["steps"]
    seen = {0: (0, 0)} | {s: (n, f) for s, n, f in zip(steps["step"], steps["samples"], steps["flops"], strict=True)}
    rows = [
        {"steps": e["step"], "seconds": e["seconds"], "samples": seen[e["step"]][0], "value": e["test_accuracy"]}
        for e in evaluations
    ]
    flops_each = steps["flops"][-1] / steps["samples"][-1]
    for i in range(len(rows) - 1):
        if rows[i]["value"] >= target and rows[i + 1]["value"] >= target:
            before, first = rows[i - 1], rows[i]
            share = (target - before["value"]) / (first["value"] - before["value"])
            cost = {k: before[k] + share * (first[k] - before[k]) for k in ("steps", "seconds", "samples")}
            return cost | {"flops": cost["samples"] * flops_each}
    return None


def test_a_target_that_was_not_reached_is_shown_as_such(three):
    _, race = three
    result = race_results.outcome(race, target=1.0)
    assert [each.reached for each in result.lanes] == [0, 0, 0]
    assert all(each.cost["seconds"] is None and each.over == 2 for each in result.lanes)
    assert "reached by 0 of 2 runs" in "\n".join(race_verdicts.table(result))


def test_two_seeds_are_preliminary(three):
    _, race = three
    result = race_results.outcome(race, target=0.5, baseline="Mini")
    verdict = result.lanes[2].verdicts["to_target"]
    assert (verdict.state, verdict.winner, verdict.n) == ("preliminary", None, 2)
    assert not result.is_decided
    words = race_verdicts.verdict_in_words("One", "Mini", verdict, "target")
    assert words.startswith("On average over the seeds, One takes") and words.endswith(
        "to reach the target. Preliminary: 2 of 7 seeds."
    )


def test_the_noise_floor_of_text_counts_characters(store):
    config = RunConfig(data="text", source={"seq_len": 64}, model={"family": "transformer"})
    runs = {seed: make_run(store, config, seed=seed, num_steps=200) for seed in (0, 1)}
    race = races.Race("ab" * 8, (races.RacedVariant("text", config, runs),))
    best = max(run.summary().test_accuracy for run in runs.values())
    assert race_results.outcome(race).noise_floor == pytest.approx(((1 - best) / (2 * 64_000)) ** 0.5)  # 1,000 windows


def test_the_baseline_has_no_verdict(three):
    _, race = three
    result = race_results.outcome(race, target=0.8, baseline="Mini")
    assert result.lanes[1].verdicts == {}
    assert result.lanes[0].share["memory_bytes"] > 1
    with pytest.raises(ConfigError, match="baseline='Maxi' is not a configuration"):
        race_results.outcome(race, baseline="Maxi")


@pytest.mark.slow
def test_six_seeds_can_be_significant(store):
    lanes = [
        lane("fast", "batch_size=16", "budget.epochs=2"),
        lane("slow", "batch_size=16", "optimizer.lr=0.002", "budget.epochs=2"),
    ]
    result = race_results.outcome(raced(store, lanes, seeds=range(6)), target=0.6)
    verdict = result.lanes[1].verdicts["to_target"]
    assert (verdict.state, verdict.winner) == ("decided", "a")
    assert race_verdicts.verdict_in_words("slow", "fast", verdict, "target").endswith(
        "Significant (p = 0.049, 6 paired seeds)."
    )


def test_a_lane_that_diverges_ranks_last_and_the_others_continue(store):
    lanes = [lane("calm", "batch_size=16"), lane("wild", "batch_size=16", "optimizer.lr=1e6")]
    race = raced(store, lanes)
    result = race_results.outcome(race, target=0.5)
    assert [each.status for each in result.lanes] == [{"finished": 1}, {"failed": 1}]
    assert "became" in result.lanes[1].why[0]
    assert result.lanes[1].verdicts["to_target"].n == 1


def test_the_finished_runs_of_a_cancelled_race_stay_usable(store):
    lanes = [lane("a", "batch_size=16"), lane("b", "batch_size=32")]
    raced(store, lanes, seeds=(0, 1))
    more = races.seed_blocks(lanes, (2,), GROUP)[0]
    for w in more:  # cancelled before they began
        run_id = store.create(w.config, name=w.name, group=GROUP, key=w.key)
        ask_to_stop(store.folder(run_id), StopRequest(reason="enough"))
        worker.run(store.folder(run_id))
    result = race_results.outcome(races.find(store, GROUP), target=0.5)
    assert result.lanes[1].verdicts["test_accuracy"].n == 2
    assert result.lanes[1].status == {"cancelled": 1, "finished": 2}


def test_the_json_holds_the_table_the_verdicts_and_the_run_ids(three):
    _, race = three
    told = json.loads(json.dumps(race_results.as_json(race, race_results.outcome(race, target=0.9))))
    assert [each["label"] for each in told["lanes"]] == ["Batch", "Mini", "One"]
    assert {run_id for each in told["lanes"] for run_id in each["run_ids"]} == {run.run_id for run in race.runs}
    assert told["lanes"][1]["verdicts"]["to_target"]["state"] == "preliminary"


@pytest.mark.slow
def test_the_command_races(tmp_path, capsys):
    code = cli.main(
        ["race", "--lane", "a: batch_size=16", "--lane", "b: batch_size=64", "--base", "digits-mlp", "--seeds", "2",
         "--budget", "samples=4000", "--target", "test_accuracy=0.5", "--json", "--store", str(tmp_path)]
    )  # fmt: skip
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, told["seeds"], told["over"]) == (0, [0, 1], True)
    assert all(each["status"] == {"finished": 2} for each in told["lanes"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "batch-vs-stochstic"], "did you mean batch-vs-stochastic"),
        (["--lane", "a: batch_size=16"], "A race needs 2 to 6 configurations, not 1."),
        (["--seeds", "0"], "--seeds 0 is not allowed"),
        (["--target", "test_accuracy=95"], "0.97"),
        (["--baseline", "Maxi"], "is not the label of a configuration"),
        (["--seeds", "6", "--until-decided", "3"], "--until-decided 3 is not allowed"),
    ],
)
def test_an_impossible_race_is_refused_in_a_sentence(arguments, says, tmp_path, capsys):
    assert cli.main(["race", *arguments, "--store", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_a_seed_block_submitted_twice_is_created_once(store, monkeypatch):
    monkeypatch.setattr(Client, "wake", lambda _: None)
    wanted: list[list[Submission]] = races.seed_blocks([lane("a"), lane("b", "batch_size=16")], (0, 1), GROUP)
    first = Client(store).submit_seed_blocks(wanted, group=GROUP)
    assert Client(store).submit_seed_blocks(wanted, group=GROUP) == first
    assert len(store.ids()) == 4


def test_a_target_reached_before_training_is_mentioned(three):
    _, race = three
    result = race_results.outcome(race, metric="test_loss", target=50.0)
    assert race_text.recommendation(result).startswith("A test loss of 50.00 was reached before training.")
    assert "choose a harder target" in "\n".join(race_verdicts.table(result))


def test_the_terminal_compares_runs(three, capsys):
    store, race = three
    ids = [each.runs[0].run_id for each in race.lanes[:2]]
    assert cli.main(["compare", *ids, "--target", "test_accuracy=0.5", "--store", str(store.root)]) == 0
    assert "Preliminary: 1 of 6 seeds" in capsys.readouterr().out
    assert cli.main(["compare", *[run.run_id for run in race.lanes[0].runs.values()], "--store", str(store.root)]) == 2
    assert "have the same configuration with different seeds" in capsys.readouterr().err
    assert cli.main(["compare", ids[0], ids[0], "--store", str(store.root)]) == 2
    assert "A comparison needs at least two different runs" in capsys.readouterr().err


def test_the_recommendation_names_the_fastest_and_the_times_of_the_others(three):
    _, race = three
    result = race_results.outcome(race, target=0.6, baseline="Mini")
    words = race_text.recommendation(result)
    assert re.match(
        r"(Mini|One) reaches 60 % test accuracy first on this machine, after .*; Batch did not reach the target", words
    )
    full, one = race_text.batch_sentences(race, result)
    assert full.startswith("Each step of Batch reads all 1,438 training samples")
    assert one.startswith("One takes one step per sample")


def test_a_round_with_too_few_seeds_is_not_counted_as_a_test(three):
    _, race = three
    looks = lambda rounds: race_results._looks(race_with(race, rounds))  # noqa: E731
    assert looks({0: 1, 1: 2}) == 1
    assert looks({**{0: 1}, **dict.fromkeys(range(1, 6), 2)}) == 1  # one seed, then five more: judged once
    assert looks({**dict.fromkeys(range(6), 1), **dict.fromkeys(range(6, 8), 2), **dict.fromkeys(range(8, 10), 3)}) == 3


def test_equal_runs_of_the_library_are_lanes_of_their_own(three):
    store, race = three
    run = race.runs[0]
    laid = races.of_runs([run, *race.runs[1:], store.run(run.run_id)])
    assert laid and len(laid.lanes) == len(race.lanes) + 1
    assert sum(len(lane.runs) for lane in laid.lanes) == len(race.runs) + 1


class Seeded:
    """A run of a seed that came in a round."""

    def __init__(self, seed: int, number: int) -> None:
        self.config = with_overrides(BASE, [f"seed={seed}"])
        self.heat = SeedBlock(id="h", lanes=2, round=number)


def race_with(race, rounds: dict[int, int]) -> races.Race:
    runs = {seed: Seeded(seed, number) for seed, number in rounds.items()}
    return races.Race(GROUP, (races.RacedVariant("a", BASE, runs),))  # type: ignore[arg-type]


def test_a_diverged_run_is_compared_by_rank_and_the_sentence_says_so(store):
    race = raced(store, [lane("calm", "batch_size=16"), lane("wild", "batch_size=16", "optimizer.lr=1e6")])
    verdict = race_results.outcome(race).lanes[1].verdicts["test_accuracy"]
    assert verdict.effect is None
    assert "compared by rank only" in race_verdicts.verdict_in_words("wild", "calm", verdict, "test accuracy")
