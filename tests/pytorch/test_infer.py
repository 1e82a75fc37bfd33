"""The inference task: what it measures with real models, what it leaves out, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.common.errors import ConfigError
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.tasks import Cell
from engine.events.inference import Latency, NotRun, Quality
from engine.events.lifecycle import Artifact, Cancelled, Finished, Queued, Starting
from engine.planning import planner
from engine.pytorch.tasks.infer import infer
from engine.pytorch.tasks.train import train
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.studies.inference import LEAST_REQUESTS, LONGEST

pytestmark = pytest.mark.slow  # it trains and measures

DIGITS = with_overrides(preset_config("digits-mlp"), ["budget.epochs=5"])
QUICK = {"seconds": 0.1, "rounds": 2, "warm_up": 3}


def measured(config, folder):
    """All events of a run of the task, and the last Latency event of each cell."""
    events = list(infer(config, folder))
    return events, {e.cell: e for e in events if isinstance(e, Latency)}


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def recorded(config, folder):
    """A finished training run in a folder, as its worker leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json())
    log = EventLog(folder / "events.jsonl")
    for event in (Queued(at=1.0), Starting(at=1.0, pid=1, pid_started=1.0)):
        log.append(event)
    for event in train(config, folder):
        log.append(event)
    log.close(Finished(at=2.0))
    return Run(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training run on digits in a store's folder of runs."""
    return recorded(DIGITS, tmp_path_factory.mktemp("runs") / "00000000000000aa")


@pytest.fixture(scope="module")
def matrix(trained):
    """Measurements of two batch sizes and three forms of the trained model."""
    config = infer_matrix(
        infer_config(DIGITS, trained.run_id, **QUICK), (1, 16), runtimes=("eager", "inference_mode", "int8")
    )
    folder = trained.folder.parent / "00000000000000bb"
    folder.mkdir()
    events, cells = measured(config, folder)
    return config, events, cells, folder


def test_every_cell_has_its_latency_and_every_form_its_quality(matrix):
    config, events, cells, _ = matrix
    assert set(cells) == set(config.cells)
    assert {(q.precision, q.runtime) for q in of_kind(events, Quality)} == {
        ("fp32", "eager"), ("fp32", "inference_mode"), ("fp32", "int8"),
    }  # fmt: skip


def test_the_figures_of_a_latency_event_agree(matrix):
    for latency in matrix[2].values():
        assert latency.histogram.total == latency.requests
        assert latency.p50_s <= latency.p90_s <= latency.p99_s <= latency.max_s
        assert latency.histogram.quantile(0.5) == pytest.approx(latency.p50_s, rel=0.025)
        assert latency.samples_per_s == pytest.approx(latency.requests * latency.cell.batch_size / latency.seconds)
        assert latency.mean_s * latency.requests <= latency.seconds  # requests do not overlap


def test_cells_take_turns_in_another_order_each_round(matrix):
    turns = [(e.round, e.cell) for e in of_kind(matrix[1], Latency)]
    rounds = [[cell for _, cell in turn] for _, turn in itertools.groupby(turns, key=lambda t: t[0])]
    assert len(rounds) == 2 and rounds[0] != rounds[1] and set(rounds[0]) == set(rounds[1])


def test_a_later_round_holds_the_earlier_ones(matrix):
    for cell in matrix[0].cells:
        first, last = (e for e in of_kind(matrix[1], Latency) if e.cell == cell)
        assert last.requests > first.requests and last.seconds > first.seconds
        assert last.max_s >= first.max_s and last.first_request_s == first.first_request_s


def test_the_timeline_keeps_the_longest_request(matrix):
    for latency in matrix[2].values():
        assert float(latency.latency_s.max()) == pytest.approx(latency.max_s, rel=1e-6)
        assert np.all(np.diff(latency.start_s) >= 0) and latency.start_s[0] > 0


def test_warm_up_and_cold_start_are_not_in_the_timed_requests(matrix):
    for latency in matrix[2].values():
        assert latency.warm_up_requests >= QUICK["warm_up"] and latency.warm_up_s > 0
        assert latency.first_request_s > latency.p50_s


def test_memory_grows_with_the_batch(matrix):
    peak = {(c.runtime, c.batch_size): latency.peak_memory_bytes for c, latency in matrix[2].items()}
    assert peak["inference_mode", 16] > peak["inference_mode", 1] > 0
    assert peak["eager", 16] >= peak["inference_mode", 16]  # autograd keeps activations for a backward pass


def test_without_a_counter_there_are_no_joules_but_a_reason(matrix):
    for latency in matrix[2].values():
        assert (latency.energy_j is None) == (latency.samples_per_j is None)
        assert latency.energy_method


class Counter:
    """An energy counter that moves every 2 ms, of a machine that draws 50 W."""

    source, period_s = "rapl", 0.002

    def __init__(self, device):
        self.begun = 0.0

    def start(self):
        self.begun = time.perf_counter()

    def update(self): ...

    def joules(self):
        return 50 * (time.perf_counter() - self.begun)

    def stop(self):
        return self.joules(), "a counter"


def test_joules_are_those_of_the_timed_slices(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.hardware.energy_counters.EnergyMeter", Counter)
    _, cells = measured(infer_matrix(infer_config(DIGITS, seconds=0.2, rounds=2), (1, 64)), tmp_path)
    for latency in cells.values():
        assert latency.energy_j == pytest.approx(50 * latency.seconds, rel=0.2)
        assert latency.samples_per_j == latency.requests * latency.cell.batch_size / latency.energy_j


def test_a_counter_that_moves_too_slowly_says_how_long_to_measure(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.hardware.energy_counters.EnergyMeter", Counter)
    monkeypatch.setattr(Counter, "period_s", 0.1)
    _, cells = measured(infer_config(DIGITS, seconds=0.2, rounds=2), tmp_path)
    (latency,) = cells.values()
    assert latency.energy_j is None and latency.energy_method.endswith("set infer.seconds=2.")


def test_the_weights_are_those_of_the_run(matrix, trained):
    quality = {q.runtime: q for q in of_kind(matrix[1], Quality)}
    assert quality["eager"].test_accuracy == trained.summary().test_accuracy > 0.8
    assert quality["eager"].test_loss == pytest.approx(trained.summary().test_loss, rel=1e-5)


def test_int8_is_smaller_and_its_answers_differ_a_little(matrix):
    quality = {q.runtime: q for q in of_kind(matrix[1], Quality)}
    assert quality["int8"].size_bytes < quality["eager"].size_bytes / 2.5
    assert 0 < quality["int8"].max_logit_difference < 1 and abs(quality["int8"].accuracy_change) < 0.05
    assert quality["inference_mode"].max_logit_difference == 0


def test_nothing_is_left_in_the_folder(matrix):
    assert list(matrix[3].iterdir()) == []


def test_a_run_stops_between_its_events_and_leaves_nothing(tmp_path):
    config = infer_matrix(infer_config(DIGITS, seconds=60), (1, 8))
    events = infer(config, tmp_path)
    times = []
    for event in itertools.islice(events, 12):
        times.append(time.monotonic())
        assert not isinstance(event, NotRun)
    events.close()
    assert list(tmp_path.iterdir()) == [] and len(times) == 12


def test_requests_end_a_cell_before_its_seconds_do(tmp_path):
    config = infer_config(DIGITS, seconds=60, requests=7, rounds=3)
    _, cells = measured(config, tmp_path)
    assert [latency.requests for latency in cells.values()] == [7]


def test_a_cell_of_long_requests_goes_on_until_it_has_enough_for_a_p99(tmp_path):
    config = infer_config(DIGITS, seconds=0.002, rounds=2, batch_size=64)
    _, cells = measured(config, tmp_path)
    (latency,) = cells.values()
    assert latency.requests >= LEAST_REQUESTS or latency.seconds >= LONGEST * 0.002


def test_a_batch_can_be_larger_than_the_test_split(tmp_path):
    config = infer_config(DIGITS, batch_size=2_000, requests=3)
    _, cells = measured(config, tmp_path)
    assert next(iter(cells.values())).requests == 3


def test_the_open_loop_says_what_was_offered_and_what_was_reached(tmp_path):
    config = infer_config(DIGITS, load="open", rate=150.0, seconds=1.0, rounds=2)
    _, cells = measured(config, tmp_path)
    (latency,) = cells.values()
    assert latency.offered_per_s == latency.requests / 1.0 == pytest.approx(150, rel=0.3)
    assert latency.queue.p50_s < latency.p50_s and latency.reached_per_s <= latency.offered_per_s


@pytest.fixture(scope="module")
def answered_text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text("the quick brown fox jumps over the lazy dog. " * 120)
    base = with_overrides(
        preset_config("char-decoder"),
        ["model.size=tiny", "source.seq_len=24", f"source.path={folder / 'corpus.txt'}"],
    )
    choices = {"prompt_len": 8, "new_tokens": 6, "seconds": 1.0, "requests": 12, "rounds": 2}
    config = infer_matrix(infer_config(base, **choices), (1, 4), runtimes=("inference_mode", "int8", "exported"))
    return (config, *measured(config, folder))


def test_text_has_prefill_and_decode_apart(answered_text):
    config, _, cells = answered_text
    assert len(cells) == 4
    for latency in cells.values():
        assert 0 < latency.ttft.p50_s < latency.p50_s and latency.cache
        assert latency.ttft.mean_s + 5 * latency.tpot.mean_s == pytest.approx(latency.mean_s, rel=1e-6)
        per_request = config.infer.new_tokens * latency.cell.batch_size
        assert latency.tokens_per_s == pytest.approx(latency.requests * per_request / latency.seconds)


def test_text_is_not_offered_what_has_no_cache(answered_text):
    reasons = {e.cell.runtime: e.reason for e in of_kind(answered_text[1], NotRun)}
    assert "one character at a time" in reasons["exported"]


def refusal(config, folder):
    folder.mkdir(exist_ok=True)
    with pytest.raises(ConfigError) as refused:
        list(infer(config, folder))
    return str(refused.value)


def test_weights_that_were_changed_are_not_used(trained, tmp_path):
    copy = tmp_path / "runs" / trained.run_id
    copy.mkdir(parents=True)
    for name in ("config.json", "events.jsonl"):
        (copy / name).write_bytes((trained.folder / name).read_bytes())
    weights = load_file(trained.folder / "model.safetensors")
    save_file({name: t + 1 for name, t in weights.items()}, copy / "model.safetensors")
    assert "the file was changed" in refusal(infer_config(DIGITS, trained.run_id), tmp_path / "runs" / "own")


def test_a_run_of_another_model_is_refused_by_the_field(trained):
    other = infer_config(with_overrides(DIGITS, ["model.hidden=9"]), trained.run_id)
    assert "model.hidden differs" in refusal(other, trained.folder.parent / "00000000000000cc")


def test_a_run_without_weights_is_refused_with_its_end(trained, tmp_path):
    folder = tmp_path / "runs" / "00000000000000dd"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(DIGITS.model_dump_json())
    log = EventLog(folder / "events.jsonl")
    log.append(Queued(at=1.0))
    log.close(Cancelled(at=2.0, reason="cancelled by the user"))
    said = refusal(infer_config(DIGITS, folder.name), tmp_path / "runs" / "own")
    assert said == (
        "Run 00000000000000dd has no weights: it ended as cancelled before it could save them. Choose a finished training run."
    )


def test_a_run_that_is_not_there_is_refused(tmp_path):
    assert "is not in this store" in refusal(infer_config(DIGITS, "00000000000000ee"), tmp_path / "own")


def test_own_weights_in_fp16_are_cast(tmp_path):
    path = Path(__file__).parents[1] / "recordings" / "weights" / "w_fp16.safetensors"
    events, _ = measured(infer_config(DIGITS, weights=str(path), **QUICK), tmp_path)
    assert of_kind(events, Quality)[0].test_accuracy == pytest.approx(0.922, abs=0.001)


def test_own_weights_answer_and_those_of_another_net_are_refused(trained, tmp_path):
    path = trained.folder / "model.safetensors"
    config = infer_config(DIGITS, weights=str(path), requests=2)
    quality = of_kind(list(infer(config, tmp_path)), Quality)[0]
    assert quality.test_accuracy == trained.summary().test_accuracy
    lenet = infer_config(preset_config("lenet"), weights=str(path))
    assert refusal(lenet, tmp_path / "own") == (
        "Those in model.safetensors are weights of another architecture than LeNet on mnist5k: 0.weight is 64x64 there, and "
        "the model's is 6x1x5x5. Choose the model they were trained as, or other weights."
    )


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"0.weight": torch.zeros(2)}, path)
    assert "is a pickle" in refusal(infer_config(DIGITS, weights=str(path)), tmp_path / "own")
    with pytest.raises(ConfigError, match="is a pickle"):
        planner.check(infer_config(DIGITS, weights=str(path)))


def test_a_wrong_shape_is_refused_before_anything_starts():
    config = with_overrides(infer_config(preset_config("lenet")), ["infer.shape=1x1x224x224"])
    with pytest.raises(ConfigError, match="weights for 400 values"):
        planner.check(config)


def test_the_plan_grows_with_the_largest_request_alone():
    plans = [planner.plan(infer_matrix(infer_config(DIGITS), sizes)) for sizes in ((1,), (1, 64), (1, 2, 4, 64))]
    assert plans[0].total_bytes < plans[1].total_bytes == plans[2].total_bytes
    assert plans[0].gradient_bytes == plans[0].optimizer_bytes == 0


def test_the_sha_of_an_artifact_is_that_of_its_file(trained):
    artifact = next(a for a in trained.all(Artifact) if isinstance(a, Artifact))
    assert artifact.sha256 == hashlib.sha256((trained.folder / artifact.name).read_bytes()).hexdigest()


def test_a_single_cell_is_one_of_the_configuration(tmp_path):
    config = infer_config(DIGITS, batch_size=4, runtime="eager", requests=2)
    _, cells = measured(config, tmp_path)
    assert list(cells) == [Cell(batch_size=4, runtime="eager")]
