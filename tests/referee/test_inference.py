"""The figures of an inference matrix, from its exported requests and the weights."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.referee import data

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]
FLOAT32 = 1e-6  # single latencies are exported in float32
CELLS = [(size, precision) for size in (1, 16) for precision in ("fp32", "bf16")]


def cell_of(exported, size, precision):
    cells = exported.said["inference"]["inference"]["cells"]
    return next(c["latency"] for c in cells if (c["batch_size"], c["precision"]) == (size, precision))


def quality_of(exported, precision):
    return next(q for q in exported.said["inference"]["inference"]["qualities"] if q["precision"] == precision)


@pytest.mark.parametrize(("size", "precision"), CELLS)
def test_percentiles_are_those_of_the_requests(exported, size, precision):
    found = cell_of(exported, size, precision)
    latency = np.array(found["timeline"]["latency_s"])
    assert len(latency) == found["requests"]
    ordered = np.sort(latency)
    for name, share in (("p50_s", 0.5), ("p90_s", 0.9), ("p99_s", 0.99), ("max_s", 1.0)):
        at_most = ordered[int(np.ceil(share * len(ordered))) - 1]  # the least that this share does not exceed
        assert found[name] == pytest.approx(at_most, rel=FLOAT32), name
    assert found["mean_s"] == pytest.approx(latency.mean(), rel=FLOAT32)


@pytest.mark.parametrize(("size", "precision"), CELLS)
def test_throughput_is_samples_over_the_time_of_the_slices(exported, size, precision):
    found = cell_of(exported, size, precision)
    assert found["samples_per_s"] == pytest.approx(found["requests"] * size / found["seconds"], rel=1e-12)
    assert sum(found["timeline"]["latency_s"]) <= found["seconds"] * (1 + FLOAT32)
    if found["energy_j"]:
        assert found["samples_per_j"] == pytest.approx(found["requests"] * size / found["energy_j"], rel=1e-12)


@pytest.mark.parametrize(("size", "precision"), CELLS)
def test_the_histogram_counts_the_requests(exported, size, precision):
    found = cell_of(exported, size, precision)
    edges, counts = np.array(found["histogram"]["edges_s"]), np.array(found["histogram"]["counts"])
    assert edges[1:] / edges[:-1] == pytest.approx(2 ** (1 / 32), rel=1e-9)
    own, _ = np.histogram(found["timeline"]["latency_s"], edges)
    assert counts.sum() == found["requests"]
    assert np.abs(own - counts).sum() <= 0.02 * counts.sum()  # in float32 a latency can cross the edge of its bin


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_accuracy_and_logits_are_those_of_the_weights(exported, precision):
    *_, x, y = data.digits()
    model = data.with_weights(data.mlp(), exported.weights(exported.said["training"]["run_id"]))
    with torch.inference_mode():
        base = model(x)
        logits = model.bfloat16()(x.bfloat16()).float() if precision == "bf16" else base
    quality = quality_of(exported, precision)
    right = [(answers.argmax(-1) == y).sum().item() / len(y) for answers in (logits, base)]
    assert quality["examples"] == len(y)
    assert quality["test_accuracy"] == right[0]
    assert quality["accuracy_change"] == pytest.approx(right[0] - right[1], abs=1e-12)
    loss = [F.cross_entropy(answers, y).item() for answers in (logits, base)]
    assert quality["test_loss"] == pytest.approx(loss[0], rel=1e-5)
    assert quality["loss_change"] == pytest.approx(loss[0] - loss[1], abs=1e-5)
    assert quality["max_logit_difference"] == pytest.approx((logits - base).abs().max().item(), rel=1e-3, abs=1e-6)
    file = {"fp32": 4, "bf16": 2}[precision] * sum(p.numel() for p in model.parameters())
    assert file < quality["size_bytes"] < file + 1024  # the header of the file


def test_the_combination_to_deploy_is_the_fastest_within_the_limit(exported):
    document = exported.said["inference"]["inference"]
    within = [c for c in document["cells"] if c["latency"]["p99_s"] <= document["sweet_spot"]["limit_s"]]
    best = max(within, key=lambda c: c["latency"]["samples_per_s"])
    names = ("batch_size", "threads", "precision", "runtime")
    assert document["sweet_spot"]["limit_s"] == 1.0
    assert document["sweet_spot"]["cell"] == {name: best[name] for name in names}


def test_the_curve_has_the_combinations_that_no_other_beats(exported):
    document = exported.said["inference"]["inference"]
    names = ("batch_size", "threads", "precision", "runtime")
    rows = [
        (c["latency"]["p99_s"], -c["latency"]["samples_per_s"], {n: c[n] for n in names}) for c in document["cells"]
    ]
    front = [a for a in rows if not any(b[:2] != a[:2] and b[0] <= a[0] and b[1] <= a[1] for b in rows)]
    assert document["curve"] == [row[2] for row in sorted(front, key=lambda row: row[0])]


def test_the_report_holds_the_same_requests(exported):
    said = [event for event in exported.run("inference")["said"] if event["kind"] == "latency"]
    assert len(said) == len(CELLS)
    for event in said:
        found = cell_of(exported, event["cell"]["batch_size"], event["cell"].get("precision", "fp32"))
        stored = event["latency_s"]
        values = np.frombuffer(base64.b64decode(stored), "<f4") if isinstance(stored, str) else np.array(stored)
        assert values == pytest.approx(np.array(found["timeline"]["latency_s"]), rel=FLOAT32)


def test_an_inference_run_gives_sums_over_its_combinations_or_null(exported):
    summary = exported.said["inference"]["summary"]
    answered = sum(cell_of(exported, *c)["requests"] * c[0] for c in CELLS)
    assert summary["samples"] in (None, answered)
    assert summary["steps"] is summary["train_seconds"] is None
    assert summary["samples_per_s"] is None  # four combinations have no common rate
