"""Inference results from made-up latencies: what to deploy, which settings are refused, and how histograms add up."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from engine.common.errors import ConfigError
from engine.config.inference import infer_config, infer_matrix
from engine.config.parsing import overrides_from, with_overrides
from engine.config.presets import preset_config
from engine.config.summary import describe
from engine.config.tasks import RUNTIMES, Cell
from engine.data import loading
from engine.events.catalog import EVENT
from engine.events.inference import BIN_RATIO, Histogram, Latency, NotRun, Quality, Quantiles
from engine.planning import planner, request_checks
from engine.studies.inference import as_json, curve, guessing_in_words, in_words, matrix, sweet_spot
from engine.studies.inference_runtimes import ladder, offered
from engine.studies.inference_time import predicted_seconds

LENET = infer_config(preset_config("lenet"), "0123456789abcdef")
MLP = infer_config(preset_config("mnist-mlp"))
SIZES = (1, 8, 64)


def latency(cell: Cell, p50_s: float, *, p99_s: float | None = None, requests: int = 1_000, **more: object) -> Latency:
    p99_s = p99_s or 2 * p50_s
    return Latency(
        cell=cell, round=1, rounds=1, requests=requests, seconds=requests * p50_s, p50_s=p50_s, p90_s=1.5 * p50_s,
        p99_s=p99_s, max_s=2 * p99_s, mean_s=p50_s, samples_per_s=cell.batch_size / p50_s,
        histogram=Histogram.of(np.full(requests, p50_s)), start_s=[0.0], latency_s=[p50_s], **more,
    )  # fmt: skip


def measured(config, times, **more):
    """A matrix whose cells have these median latencies, in their order."""
    return matrix(config, [latency(cell, t) for cell, t in zip(config.cells, times, strict=True)], **more)


MATRIX = infer_matrix(LENET, SIZES, (1, 2))
# batch 1, 8, 64 on one thread, then on two: 64 on two threads is fastest, and slow to answer
FOUND = measured(MATRIX, (1e-4, 4e-4, 3e-3, 1.2e-4, 3e-4, 1.6e-3), is_over=True)


# --- the decision


def judged_by(accuracy, guess, config=LENET):
    quality = Quality(
        precision="fp32", runtime="inference_mode", test_accuracy=accuracy, test_loss=2.0, examples=1_000, seconds=0,
        guess_accuracy=guess,
    )  # fmt: skip
    return guessing_in_words(matrix(config, [latency(config.cells[0], 1e-3)], [quality]))


def test_a_model_no_better_than_guessing_has_a_warning_above_the_decision():
    assert judged_by(0.10, 0.1) == "Test accuracy 10.00 % is no better than guessing (10 %): train first."
    assert judged_by(0.115, 0.1)  # 1,000 guesses of ten classes have a standard deviation of 0.9 %
    assert judged_by(0.13, 0.1) == "" and judged_by(0.52, 0.5) and not judged_by(0.97, None)
    assert judged_by(0.10, None)  # an older run: mnist5k has ten classes
    assert judged_by(0.14, 0.1, config=MLP) == "The weights are untrained: train first."
    assert judged_by(0.10, 0.1, config=with_overrides(LENET, ["data=synthetic"])) == ""


def test_the_sweet_spot_is_the_best_throughput_within_the_limit():
    best = {limit: sweet_spot(FOUND, limit).best.cell for limit in (2.5e-4, 1e-3, 5e-3)}
    assert best == {
        2.5e-4: Cell(batch_size=1, threads=1),
        1e-3: Cell(batch_size=8, threads=2),
        5e-3: Cell(batch_size=64, threads=2),
    }


def test_another_quantile_gives_another_combination():
    assert sweet_spot(FOUND, 1.7e-3, quantile="p50").best.cell.batch_size == 64
    assert sweet_spot(FOUND, 1.7e-3, quantile="p99").best.cell.batch_size == 8


def test_where_nothing_is_fast_enough_the_closest_combination_is_named():
    assert in_words(FOUND, 1e-4) == (
        "No combination stays under 100 µs; the closest is batch 1 on 1 thread with a p99 of 200 µs."
    )


def test_the_sentence_names_the_combination_its_figures_and_the_accuracy():
    quality = Quality(
        precision="fp32", runtime="inference_mode", test_accuracy=0.985, test_loss=0.05, examples=1_000, seconds=0.1
    )
    found = matrix(MATRIX, [c.latency for c in FOUND.cells], [quality], is_over=True)
    assert in_words(found, 5e-3) == (
        "Deploy batch 64 on 2 threads: 40.0 k samples/s with a p99 of 3.20 ms, under your 5 ms. Test accuracy: 98.50 %."
    )


def test_the_sentence_names_what_limits_the_result():
    few = matrix(MLP, [latency(MLP.cells[0], 1e-4, requests=40, wall_per_cpu=1.6)], is_over=True)
    assert "Based on only 40 requests" in in_words(few, 1.0) and "The machine was busy" in in_words(few, 1.0)
    half = matrix(MATRIX, [latency(MATRIX.cells[0], 1e-4)])
    assert in_words(half, 1.0).endswith("5 combinations are not measured yet.")


def test_where_nothing_is_fast_enough_a_busy_machine_is_mentioned():
    busy = matrix(MLP, [latency(MLP.cells[0], 1e-2, wall_per_cpu=3.0)], is_over=True)
    assert in_words(busy, 1e-3).endswith("this took about 3.00 times as long. Measure again when it is idle.")
    calm = matrix(MLP, [latency(MLP.cells[0], 1e-2, wall_per_cpu=1.01)], is_over=True)
    assert "busy" not in in_words(calm, 1e-3)


def test_untrained_weights_have_no_accuracy_to_show():
    guess = Quality(precision="fp32", runtime="inference_mode", test_accuracy=0.1, test_loss=2.3, examples=9, seconds=0)
    words = in_words(matrix(MLP, [latency(MLP.cells[0], 1e-4)], [guess], is_over=True), 1.0)
    assert "10.00 %" not in words and "untrained" in words


def test_a_combination_slower_than_its_arrivals_is_not_deployed():
    drowning = latency(MLP.cells[0], 1e-4, load="open", offered_per_s=1_000.0, reached_per_s=700.0)
    assert sweet_spot(matrix(MLP, [drowning]), 1.0).best is None
    keeping_up = drowning.model_copy(update={"reached_per_s": 990.0})
    assert sweet_spot(matrix(MLP, [keeping_up]), 1.0).best is not None


def test_nothing_measured_is_no_sweet_spot():
    assert sweet_spot(matrix(MATRIX, []), 1.0).why == "Nothing is measured yet."


def test_the_curve_is_the_pareto_front():
    assert [(c.cell.batch_size, c.cell.threads) for c in curve(FOUND)] == [(1, 1), (8, 2), (64, 2)]


# --- the ladder


def ladder_of(*times: tuple[str, float], config=LENET, **more):
    cells = infer_matrix(config, (1,), runtimes=[name for name, _ in times])
    return ladder(measured(cells, [t for _, t in times], **more), batch_size=1, threads=1)


def test_runtimes_are_compared_with_eager_pytorch():
    rungs = ladder_of(("inference_mode", 8e-5), ("eager", 1e-4), ("onnxruntime", 4e-5))
    assert [(r.result.cell.runtime, round(r.speedup, 2)) for r in rungs] == [
        ("eager", 1.0), ("inference_mode", 1.25), ("onnxruntime", 2.5),
    ]  # fmt: skip


def test_a_slower_runtime_has_a_reason_and_a_faster_one_has_none():
    slow = ladder_of(("inference_mode", 4e-5), ("int8", 9e-5))[1]
    assert slow.speedup < 0.5 and "Dynamic int8" in slow.reason
    assert ladder_of(("inference_mode", 4e-5), ("int8", 2e-5))[1].reason == ""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"cpu_int8_dot": False}, "This CPU does not have an int8 dot product (VNNI)"),
        ({"cpu_int8_dot": None}, "It is not known whether this CPU has an int8 dot product (VNNI)"),
        ({"cpu_isa": "avx2 avx512f"}, "It is not known whether"),  # of an older version, which did not look for it
        ({"cpu_int8_dot": True}, ""),
    ],
)
def test_a_slow_int8_is_put_down_to_the_cpu_only_where_it_is_known_to_lack_the_instruction(environment, said):
    reason = ladder_of(("inference_mode", 4e-5), ("int8", 9e-5), environment=environment)[1].reason
    assert said in reason and ("VNNI" in reason) is bool(said)


def test_the_reason_separates_the_overhead_of_a_request_from_the_time_of_a_sample():
    cells = infer_matrix(LENET, SIZES, runtimes=("inference_mode", "exported"))

    def reason_at(batch_size, start_s, example_s):
        times = [1e-5 + 1e-5 * b for b in SIZES] + [start_s + example_s * b for b in SIZES]
        return ladder(measured(cells, times), batch_size=batch_size, threads=1)[1].reason

    assert reason_at(1, 1e-4, 1e-5).startswith("The overhead of a request is 100 µs, against 10.0 µs")
    assert reason_at(64, 1e-5, 3e-5).startswith("A sample takes 30.0 µs, against 10.0 µs")


def test_a_runtime_that_did_not_run_is_listed_with_its_reason():
    cells = infer_matrix(LENET, (1,), runtimes=("inference_mode", "onnxruntime"))
    missing = NotRun(cell=cells.cells[1], reason="onnxruntime is not installed.")
    rungs = ladder(matrix(cells, [latency(cells.cells[0], 1e-4)], [], [missing]), batch_size=1, threads=1)
    assert (rungs[1].result.not_run, rungs[1].speedup) == ("onnxruntime is not installed.", None)


@pytest.mark.parametrize(
    ("preset", "cell", "words"),
    [
        ("mnist-mlp", Cell(runtime="channels_last"), "layout for convolutions"),
        ("mnist1d-cnn", Cell(runtime="channels_last"), "layout for convolutions"),
        ("char-decoder", Cell(runtime="onnxruntime"), "one character at a time"),
        ("lenet", Cell(runtime="int8", precision="bf16"), "fp32 weights"),
    ],
)
def test_a_combination_that_cannot_be_measured_has_a_reason(preset, cell, words):
    assert words in offered(infer_config(preset_config(preset)), cell)


def test_lenet_can_be_measured_in_every_runtime():
    assert not any(offered(LENET, Cell(runtime=runtime)) for runtime in RUNTIMES)


# --- histograms and quantiles


def test_histograms_of_two_rounds_add_up_to_that_of_both():
    rng = np.random.default_rng(0)
    first, second = rng.lognormal(-9, 0.5, 700), rng.lognormal(-7, 1.0, 300)
    both, added = Histogram.of(np.concatenate([first, second])), Histogram.of(first) + Histogram.of(second)
    assert (both.first, both.counts.tolist()) == (added.first, added.counts.tolist())
    assert (added + Histogram()).counts.tolist() == added.counts.tolist()


def test_a_histogram_keeps_quantiles_to_a_bin():
    seconds = np.random.default_rng(1).lognormal(-8, 1.0, 5_000)
    for share in (0.5, 0.9, 0.99, 1.0):
        exact = np.percentile(seconds, 100 * share, method="inverted_cdf")
        assert 1 <= Histogram.of(seconds).quantile(share) / exact <= BIN_RATIO * 1.0001


def test_every_duration_has_its_bin():
    seconds = np.array([0.0, 1e-9, 1e-7, 3e-4, 5.0, 1e30])
    found = Histogram.of(seconds)
    assert found.total == len(seconds)
    inside = Histogram.of(np.array([3e-4]))
    assert inside.edges_s[0] <= 3e-4 < inside.edges_s[1]


def test_p99_is_a_latency_that_was_measured():
    seconds = np.arange(1, 101) / 100
    assert Quantiles.of(seconds).p99_s == 0.99 and Quantiles.of(seconds[:50]).p99_s == 0.5


def test_a_latency_survives_its_log():
    event = latency(Cell(batch_size=8, threads=2, precision="bf16", runtime="compiled"), 1e-4, unanswered=3)
    again = EVENT.validate_json(event.model_dump_json())
    assert again.cell == event.cell and again.histogram.counts.tolist() == event.histogram.counts.tolist()
    assert json.loads(event.model_dump_json())["cell"]["runtime"] == "compiled"


# --- configurations


def test_a_matrix_has_every_combination():
    assert len(MATRIX.cells) == 6 and MATRIX.threads == 2
    assert describe(MATRIX) == "inference of LeNet: batch 1-64 x 1-2 threads · mnist5k · cpu"


def test_a_matrix_survives_its_assignments():
    base = preset_config("lenet")
    assert with_overrides(base, overrides_from(base, MATRIX)) == MATRIX


@pytest.mark.parametrize(
    ("assignments", "words"),
    [
        (["batch_size=full"], "batch_size=full cannot be combined with task='infer'"),
        (['infer.cells=[{"threads": 2}]'], "set threads=2"),
        (['infer.cells=[{"batch_size": 0}]'], "infer.cells.0.batch_size=0"),
        (['infer.cells=[{}, {}]'], "contains a combination twice"),
        (["infer.weights=a.safetensors"], "are both set"),
        (["infer.run=xyz"], "16 hex digits"),
        (["infer.runtime=tensorrt"], "one of eager"),
        (["infer.load=half-open"], "one of closed, open"),
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_an_error_in_a_sentence(assignments, words):
    with pytest.raises(ConfigError) as refused:
        with_overrides(LENET, assignments)
    assert words in str(refused.value)


# --- bad inputs


def refusal(config, *assignments: str) -> str:
    config = with_overrides(config, assignments)
    with pytest.raises(ConfigError) as refused:
        request_checks.check_request(config, loading.facts(config.data, config.source))
    return str(refused.value)


def test_an_imagenet_shape_into_lenet_is_refused_with_the_layer_it_does_not_fit():
    assert refusal(LENET, "infer.shape=1x1x224x224") == (
        "infer.shape=1x1x224x224 is not what this LeNet takes: it takes 1x28x28, and its first fully connected layer has "
        "weights for 400 values, but 1x224x224 gives 44,944. Leave infer.shape empty for 1x28x28, or scale your "
        "samples to that."
    )


def test_other_shapes_are_refused_with_their_reason():
    assert "weights for 784 values, but 1x32x32 gives 1,024" in refusal(MLP, "infer.shape=1x32x32")
    assert "reads 1 channel, not 3" in refusal(LENET, "infer.shape=3x28x28")
    assert "Set batch_size=64" in refusal(LENET, "infer.shape=64x1x28x28")
    assert "it takes 1x28x28" in refusal(infer_config(preset_config("mnist-gru")), "infer.shape=1x30x28")


@pytest.mark.parametrize("shape", ["1x28x28", "1x1x28x28", "1x32x32", "none"])
def test_shapes_the_model_takes_are_taken(shape):
    config = with_overrides(LENET, [f"infer.shape={shape}"])
    request_checks.check_request(config, loading.facts(config.data, config.source))


def test_more_characters_than_a_decoder_looks_back_are_refused():
    assert "more than the 64 characters" in refusal(infer_config(preset_config("char-decoder")), "infer.new_tokens=60")


def weights_file(folder, header: object, name="weights.safetensors"):
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)
    return folder / name


def test_the_tensors_of_a_file_are_read_from_its_header(tmp_path):
    header = {"__metadata__": {"a": "b"}, "0.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    assert request_checks.tensors_in(weights_file(tmp_path, header)) == {"0.weight": (2, 3)}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.pt", b"PK\x03\x04rest", "is a pickle"),
        ("model.safetensors", b"PK\x03\x04rest of a zip that torch.save wrote", "is a pickle"),
        ("model.safetensors", b"\x80\x02}q\x00.rest", "is a pickle"),
        ("model.pkl", b"anything", "is a pickle"),
        ("model.safetensors", b"", "is not a .safetensors file"),
        ("model.safetensors", b"hello, I am some text", "is not a .safetensors file"),
        ("model.safetensors", struct.pack("<Q", 10) + b"[1, 2, 3] ", "is not a .safetensors file"),
    ],
)
def test_a_file_of_another_kind_is_never_opened(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        request_checks.tensors_in(tmp_path / name)
    assert words in str(refused.value) and "save_file" in refused.value.fix


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.safetensors cannot be read"):
        request_checks.tensors_in(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a": (2, 2), "b": (3,)}, "b is 3 there, and the model's is 2"),
        ({"a": (2, 2)}, "b is missing"),
        ({"a": (2, 2), "b": (2,), "c": (1,)}, "c is not in the model"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_a_tensor(found, words):
    with pytest.raises(ConfigError) as refused:
        request_checks.check_tensors(found, {"a": (2, 2), "b": (2,)}, whose="The weights of run 1", model="MLP 2")
    assert words in str(refused.value)


# --- how long it takes


def test_a_combination_takes_about_its_seconds_and_longer_with_long_requests():
    config = infer_matrix(LENET, (1, 1_024), (1,))
    plan = planner.plan(config)
    small, large = predicted_seconds(config, plan).cells.values()
    assert 1.0 <= small < 1.5 < large <= 6.5


def test_the_prediction_uses_latencies_measured_before():
    config, plan = LENET, planner.plan(LENET)
    known = {config.cells[0]: 0.02}  # 100 requests of 20 ms: two seconds
    assert 2.0 <= predicted_seconds(config, plan, known=known).cells[config.cells[0]] < 2.6


def test_the_prediction_includes_compiling():
    plain = infer_matrix(LENET, (1, 8))
    compiled = infer_matrix(LENET, (1, 8), runtimes=("compiled",))
    plan = planner.plan(plain)
    more = predicted_seconds(compiled, plan).total_s - predicted_seconds(plain, plan).total_s
    assert more >= 20


def test_json_holds_every_cell_and_the_sentence():
    found = matrix(MATRIX, [c.latency for c in FOUND.cells[:2]], [], [NotRun(cell=MATRIX.cells[2], reason="because")])
    said = as_json(found, 5e-3)
    assert len(said["cells"]) == 6 and said["cells"][2]["not_run"] == "because" and said["cells"][5]["latency"] is None
    assert said["sweet_spot"]["cell"]["batch_size"] == 8 and said["cells"][0]["latency"]["p50_s"] == 1e-4
