"""The inference task: what it measures of real nets, what it leaves out, and what it refuses."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.common.errors import ConfigError
from engine.config.inference import infer_config, infer_matrix
from engine.config.models import MODELS
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.tasks import Cell
from engine.data import loading
from engine.events.inference import Latency, NotRun, Quality
from engine.events.lifecycle import Artifact, Cancelled, Finished, Queued, Starting
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.inference.decoder import Decoder
from engine.pytorch.tasks import infer as infer_module
from engine.pytorch.tasks.infer import Stopwatch, _OpenLoop, arrivals_s, closed_loop, infer
from engine.pytorch.tasks.train import train
from engine.store.event_log import EventLog
from engine.store.run import Run
from engine.studies.inference import LEAST_REQUESTS, LONGEST

pytestmark = pytest.mark.slow  # it trains

DIGITS = with_overrides(preset_config("digits-mlp"), ["budget.epochs=5"])
QUICK = {"seconds": 0.1, "rounds": 2, "warm_up": 3}


def measured(config, folder):
    """Everything a run of the task said, and the last word of each cell."""
    events = list(infer(config, folder))
    return events, {e.cell: e for e in events if isinstance(e, Latency)}


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def recorded(config, folder):
    """A run as its worker would leave it."""
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
    """A run on digits that lies in a store's folder of runs."""
    return recorded(DIGITS, tmp_path_factory.mktemp("runs") / "00000000000000aa")


@pytest.fixture(scope="module")
def matrix(trained):
    """Two batch sizes and three forms of the trained net, measured."""
    config = infer_matrix(
        infer_config(DIGITS, trained.run_id, **QUICK), (1, 16), runtimes=("eager", "inference_mode", "int8")
    )
    folder = trained.folder.parent / "00000000000000bb"
    folder.mkdir()
    events, cells = measured(config, folder)
    return config, events, cells, folder


# --- what is measured


def test_every_cell_has_its_latency_and_every_form_its_quality(matrix):
    config, events, cells, _ = matrix
    assert set(cells) == set(config.cells)
    assert {(q.precision, q.runtime) for q in of_kind(events, Quality)} == {
        ("fp32", "eager"), ("fp32", "inference_mode"), ("fp32", "int8"),
    }  # fmt: skip


def test_a_latency_tells_the_same_in_all_its_ways(matrix):
    for latency in matrix[2].values():
        assert latency.histogram.total == latency.requests
        assert latency.p50_s <= latency.p90_s <= latency.p99_s <= latency.max_s
        assert latency.histogram.quantile(0.5) == pytest.approx(latency.p50_s, rel=0.025)
        assert latency.samples_per_s == pytest.approx(latency.requests * latency.cell.batch_size / latency.seconds)
        assert latency.mean_s * latency.requests <= latency.seconds  # one at a time: no two at once


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


def test_warm_up_and_cold_start_are_apart(matrix):
    for latency in matrix[2].values():
        assert latency.warm_up_requests >= QUICK["warm_up"] and latency.warm_up_s > 0
        assert latency.first_request_s > latency.p50_s


def test_memory_grows_with_the_batch(matrix):
    peak = {(c.runtime, c.batch_size): latency.peak_memory_bytes for c, latency in matrix[2].items()}
    assert peak["inference_mode", 16] > peak["inference_mode", 1] > 0
    assert peak["eager", 16] >= peak["inference_mode", 16]  # autograd keeps what a backward pass would need


def test_without_a_counter_there_are_no_joules_but_a_reason(matrix):
    for latency in matrix[2].values():
        assert (latency.energy_j is None) == (latency.samples_per_j is None)
        assert latency.energy_method


class Counter:
    """A machine that draws 50 W, by a counter that moves every 2 ms."""

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


def test_int8_is_smaller_and_answers_a_little_otherwise(matrix):
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


def test_a_cell_of_long_requests_goes_on_until_its_p99_is_one(tmp_path):
    config = infer_config(DIGITS, seconds=0.002, rounds=2, batch_size=64)
    _, cells = measured(config, tmp_path)
    (latency,) = cells.values()
    assert latency.requests >= LEAST_REQUESTS or latency.seconds >= LONGEST * 0.002


def test_a_batch_may_be_larger_than_the_held_out_split(tmp_path):
    config = infer_config(DIGITS, batch_size=2_000, requests=3)
    _, cells = measured(config, tmp_path)
    assert next(iter(cells.values())).requests == 3


# --- the clock


def test_between_the_two_readings_of_the_clock_there_is_the_call_alone(monkeypatch):
    """A clock that counts its readings: a request that reads it once lasts two ticks, and nothing else reads it."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    watch = Stopwatch(size=10)
    count = closed_loop(lambda x: next(ticks), itertools.cycle([None]), watch, 5, 10**9)
    assert count == 5
    assert [e - b for b, e in zip(watch.begun[:5], watch.ended[:5], strict=True)] == [2] * 5
    assert next(ticks) == 15  # three a request


def test_on_a_device_the_clock_is_read_after_it_is_done():
    said = []
    watch = Stopwatch(size=4)
    closed_loop(said.append, iter("ab"), watch, 4, 10**30, wait=lambda: said.append("wait"))
    assert said == ["wait", "a", "wait", "b", "wait"]


def test_latencies_are_those_of_a_stopwatch_around_the_call(tmp_path):
    """Requests of 2 ms, each read by another clock too."""
    own = []

    def call(x):
        begun = time.monotonic()
        time.sleep(0.002)
        own.append(time.monotonic() - begun)

    watch = Stopwatch(size=64)
    count = closed_loop(call, itertools.cycle([0]), watch, 20, 10**30)
    ours = (np.array(watch.ended[:count]) - np.array(watch.begun[:count])) / 1e9
    assert len(own) == count == 20
    assert np.all(ours >= own) and np.median(ours - own) < 5e-4


# --- the open loop


def test_arrivals_are_a_poisson_process_of_the_rate():
    times = arrivals_s(np.random.default_rng(0), 200.0, 50.0, 10**9)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of an exponential they are one
    assert np.corrcoef(gaps[:-1], gaps[1:])[0, 1] == pytest.approx(0, abs=0.05)
    assert np.array_equal(times, arrivals_s(np.random.default_rng(0), 200.0, 50.0, 10**9))


class FakeTime:
    """In the place of the module `time`: only sleeping takes time, and a reading of the clock 10 µs."""

    now_ns = 10**9

    def perf_counter_ns(self):
        self.now_ns += 10_000
        return self.now_ns

    def sleep(self, seconds):
        self.now_ns += int(seconds * 1e9)


@pytest.fixture
def served(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(infer_module, "time", clock)

    def serve(due_ms, takes_ms, window_ms):
        loop = _OpenLoop(np.array(due_ms) * 1_000_000, window_ms * 1_000_000)
        while not loop.is_over:
            loop.go_on(lambda x: clock.sleep(takes_ms / 1e3), [None], 10**9, lambda: None)
        return loop

    return serve


def test_latency_counts_from_the_arrival_so_that_queueing_shows(served):
    loop = served([1, 2, 3], 20, 100)
    assert loop.queue / 1e6 == pytest.approx([0, 19, 38], abs=0.3)  # behind none, one and two requests of 20 ms
    assert loop.latency / 1e6 == pytest.approx([20, 39, 58], abs=0.3)


def test_requests_left_waiting_count_with_what_they_waited(served):
    loop = served([0, 1, 2, 3, 4, 5], 20, 30)  # room for three within twice its time
    assert (loop.unanswered, loop.in_time) == (3, 1)
    assert loop.latency[-1] / 1e6 == pytest.approx(55, abs=0.3)


def test_the_open_loop_says_what_was_offered_and_what_was_reached(tmp_path):
    config = infer_config(DIGITS, load="open", rate=150.0, seconds=1.0, rounds=2)
    _, cells = measured(config, tmp_path)
    (latency,) = cells.values()
    assert latency.offered_per_s == latency.requests / 1.0 == pytest.approx(150, rel=0.3)
    assert latency.queue.p50_s < latency.p50_s and latency.reached_per_s <= latency.offered_per_s


# --- text


def text_model(preset, *assignments, seed=0):
    config = with_overrides(preset_config(preset), ["source.seq_len=24", *assignments])
    return models.build(config.model, loading.facts(config.data, config.source), seed=seed).eval()


TEXT = {
    "transformer": ("char-decoder", "model.size=tiny"),
    "lstm": ("char-lstm", "model.hidden_size=16"),
    "gru": ("char-lstm", "model.hidden_size=16", "model.cell=gru", "model.num_layers=2"),
    "tanh": ("char-lstm", "model.hidden_size=16", "model.cell=tanh"),
}


@pytest.mark.parametrize("name", TEXT)
def test_with_a_cache_every_character_gets_the_logits_it_has_without(name):
    model = text_model(*TEXT[name])
    ids = torch.randint(90, (3, 24), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model, prompt_len=7, new_tokens=17)
    with torch.inference_mode():
        whole = model(ids)
        found = [decoder.prefill(ids[:, :7])] + [decoder.step(ids[:, place], place) for place in range(7, 24)]
    for place, logits in enumerate(found):
        torch.testing.assert_close(logits, whole[:, 6 + place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TEXT)
def test_the_cache_changes_no_answer(name):
    model = text_model(*TEXT[name], seed=3)
    ids = torch.randint(90, (2, 5), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        with_it, without = (Decoder(model, prompt_len=5, new_tokens=12, cache=cache)(ids) for cache in (True, False))
    assert torch.equal(with_it, without) and with_it.shape == (2, 12)


def test_a_second_request_does_not_see_the_first(tmp_path):
    model = text_model(*TEXT["transformer"])
    one, two = torch.randint(90, (2, 1, 6), generator=torch.Generator().manual_seed(4))
    decoder, other = (Decoder(model, prompt_len=6, new_tokens=9) for _ in range(2))
    with torch.inference_mode():
        decoder(one)
        assert torch.equal(decoder(two), other(two))


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
    assert "character by character" in reasons["exported"]


# --- the ladder


@pytest.mark.parametrize("family", MODELS)
def test_every_family_answers_in_every_form_that_needs_no_further_package(family, tmp_path):
    data = "digits" if family != "cnn" else "mnist5k"
    base = with_overrides(DIGITS, [f"model.family={family}", "model.size=tiny", f"data={data}"])
    config = infer_matrix(
        infer_config(base, requests=3, rounds=1), (2,), runtimes=("eager", "channels_last", "exported", "int8")
    )
    events, cells = measured(config, tmp_path)
    reasons = {e.cell: e.reason for e in of_kind(events, NotRun)}
    assert set(cells) | set(reasons) == set(config.cells)
    for quality in of_kind(events, Quality):  # all of them give the answers of the same weights
        assert quality.max_logit_difference <= (0.3 if quality.runtime == "int8" else 1e-4), quality
        assert quality.size_bytes > 1_000
    for cell, reason in reasons.items():
        assert "layout of images" in reason, (cell, reason)


@pytest.mark.parametrize("preset", ["mnist-mlp", "lenet"])
def test_onnx_runtime_gives_the_same_answers_and_its_int8_is_smaller(preset, tmp_path):
    for package in ("onnxruntime", "onnx", "onnxscript"):
        pytest.importorskip(package, reason="requirements-onnx.txt is optional")
    config = infer_matrix(
        infer_config(preset_config(preset), requests=3, rounds=1), (1, 5), runtimes=("onnxruntime", "onnxruntime-int8")
    )
    events, cells = measured(config, tmp_path)
    quality = {q.runtime: q for q in of_kind(events, Quality)}
    assert set(cells) == set(config.cells) and list(tmp_path.iterdir()) == []
    assert quality["onnxruntime"].max_logit_difference < 1e-4
    assert quality["onnxruntime-int8"].size_bytes < quality["onnxruntime"].size_bytes / 2.5
    assert 1e-4 < quality["onnxruntime-int8"].max_logit_difference < 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.xdist_group("compile")
def test_compiled_code_answers_the_same_though_its_batch_does_not_divide_the_split(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=3, rounds=1), (100,), runtimes=("inference_mode", "compiled"))
    events, cells = measured(config, tmp_path)
    quality = {q.runtime: q for q in of_kind(events, Quality)}
    assert quality["compiled"].max_logit_difference < 1e-5
    assert quality["compiled"].examples == quality["inference_mode"].examples
    first = {cell.runtime: latency.first_request_s for cell, latency in cells.items()}
    assert first["compiled"] > first["inference_mode"]  # compiling is in the first answer, not in those that count


def test_bf16_halves_the_weights(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=2, rounds=1), (1,), precisions=("fp32", "bf16"))
    size = {q.precision: q.size_bytes for q in of_kind(list(infer(config, tmp_path)), Quality)}
    assert 0.4 < size["bf16"] / size["fp32"] < 0.6


def test_a_precision_the_device_lacks_is_a_cell_that_did_not_run(tmp_path):
    config = infer_matrix(infer_config(DIGITS, requests=2), (1,), precisions=("fp32", "tf32"))
    events, cells = measured(config, tmp_path)
    (missing,) = of_kind(events, NotRun)
    assert missing.cell.precision == "tf32" and "tensor cores" in missing.reason and len(cells) == 1


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = infer_matrix(infer_config(DIGITS, requests=2), (1,), runtimes=("inference_mode", "onnxruntime"))
    (missing,) = of_kind(list(infer(config, tmp_path)), NotRun)
    assert missing.reason == "onnxruntime is not installed. Install it: pip install -r requirements-onnx.txt."


def test_a_request_that_does_not_fit_in_memory_leaves_the_other_cells(tmp_path, monkeypatch):
    real = models.build

    class Small(nn.Sequential):
        def forward(self, x):
            if len(x) == 8:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 900 bytes.")
            return super().forward(x)

    monkeypatch.setattr(models, "build", lambda *a, **k: Small(*real(*a, **k)))
    config = infer_matrix(infer_config(DIGITS, requests=2), (2, 8))
    events, cells = measured(config, tmp_path)
    (missing,) = of_kind(events, NotRun)
    assert missing.cell.batch_size == 8 and "ran out of memory" in missing.reason and len(cells) == 1


# --- which weights


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
    assert "model.hidden is not the same" in refusal(other, trained.folder.parent / "00000000000000cc")


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
