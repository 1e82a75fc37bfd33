"""The figures of a training: losses, accuracy, FLOPs, rates, memory, MFU and energy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.referee import data
from tests.referee.statistics import to_target

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.xdist_group("referee")]
RUNS = ("training", "target", "lenet", "text")
# Losses are float32 means of 32 samples, summed in another order; over 135 steps of Adam the differences grow.
LOSS = 1e-4
SUM = 1e-6  # of a mean over a test split in float32


def flops_per_sample(model: torch.nn.Module, x: torch.Tensor) -> int:
    """FLOPs of a forward and a backward pass over one sample, as PyTorch's own counter finds them."""
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    return counter.get_total_flops()


def lstm_flops_per_sample(characters: int, hidden: int, length: int) -> int:
    """By hand, because PyTorch does not count the fused LSTM: 2 for a multiply-add.

    Forward, gradient of the weights and gradient of the input for every product; the initial state needs no gradient.
    """
    gates = 2 * hidden * 4 * hidden
    return 3 * length * gates + (3 * length - 1) * gates + 3 * length * 2 * hidden * characters


def expected_flops(name: str) -> int:
    if name == "text":
        return lstm_flops_per_sample(data.text_windows()[2], 16, data.SEQ_LEN)
    if name == "lenet":
        return flops_per_sample(data.lenet(), torch.zeros(1, 1, 32, 32))
    return flops_per_sample(data.mlp(), torch.zeros(1, 64))


def logits_and_answers(exported, name):
    """The logits of the exported weights on the test split, and the right answers."""
    weights = exported.weights(exported.said[name]["run_id"])
    if name == "text":
        x, y, characters = data.text_windows()
        model = data.CharLSTM(characters, 16)
    else:
        *_, x, y = data.digits()
        model = data.lenet() if name == "lenet" else data.mlp()
        x = data.lenet_images(x) if name == "lenet" else x
    with torch.inference_mode():
        return data.with_weights(model, weights)(x), y


def test_a_plain_torch_loop_takes_the_same_steps(exported):
    run_id = exported.said["training"]["run_id"]
    x, y, *_ = data.digits()
    torch.manual_seed(0)
    model, order = data.mlp(), torch.Generator().manual_seed(0)
    path = exported.weights(run_id, "trajectory")["weights"]
    assert np.array_equal(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(), path[0])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-3), []
    for _ in range(3):
        for rows in torch.randperm(len(x), generator=order).split(32):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    steps = exported.points(run_id, "steps")
    assert len(steps["loss"]) == len(losses) == 135
    assert steps["loss"] == pytest.approx(np.array(losses), rel=LOSS)
    assert path[-1] == pytest.approx(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy(), abs=1e-4)
    assert exported.said["training"]["summary"]["final_train_loss"] == pytest.approx(np.mean(losses[-45:]), rel=LOSS)


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_accuracy_are_those_of_the_exported_weights(exported, name):
    logits, y = logits_and_answers(exported, name)
    summary = exported.said[name]["summary"]
    assert summary["test_accuracy"] == (logits.argmax(-1) == y).sum().item() / y.numel()
    assert summary["test_loss"] == pytest.approx(
        F.cross_entropy(logits.flatten(0, -2), y.flatten()).item(), rel=SUM * 10
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_standard_error_of_accuracy_is_between_independent_samples(exported, name):
    """Characters of one window are not independent, so a window of text counts once."""
    logits, y = logits_and_answers(exported, name)
    right = (logits.argmax(-1) == y).double().reshape(len(y), -1).mean(dim=1).numpy()
    error = right.std() / math.sqrt(len(right))
    figure = exported.run(name)["figures"]["test_accuracy"]
    assert figure["uncertainty"] == pytest.approx(error, rel=1e-2 if name == "text" else 1e-9)  # n - 1 in place of n


@pytest.mark.parametrize("name", RUNS)
def test_flops_and_parameters_are_those_of_the_layers(exported, name):
    run = exported.run(name)
    assert run["train_flops_per_example"] == expected_flops(name)
    assert run["parameters"] == sum(w.size for w in exported.weights(run["run_id"]).values())
    assert run["summary"]["flops"] == run["summary"]["samples"] * expected_flops(name)
    assert exported.shown[name]["steps"]["flops"][-1] == run["summary"]["flops"]


@pytest.mark.parametrize("name", RUNS)
def test_counts_and_rates_follow_from_the_points(exported, name):
    run, summary = exported.run(name), exported.said[name]["summary"]
    steps, evaluations = (exported.points(run["run_id"], table) for table in ("steps", "evaluations"))
    n, size = run["train_examples"], run["config"]["batch_size"]
    per_epoch = [min(size, n - start) for start in range(0, n, size)]
    samples = np.cumsum(np.resize(per_epoch, len(steps["step"])))
    assert np.array_equal(steps["step"], np.arange(1, len(samples) + 1))
    assert np.array_equal(steps["samples"], samples)
    assert (summary["steps"], summary["samples"]) == (len(samples), samples[-1])
    assert summary["epochs"] == pytest.approx(samples[-1] / n, rel=1e-12)
    assert summary["train_seconds"] == pytest.approx(steps["seconds"][-1], abs=2e-9)  # CSV times are whole ns
    assert summary["samples_per_s"] == pytest.approx(samples[-1] / summary["train_seconds"], rel=1e-12)
    figures = {key: figure["value"] for key, figure in run["figures"].items()}
    assert figures["step_seconds"] == pytest.approx(summary["train_seconds"] / len(samples), rel=1e-12)
    assert figures["flops_per_s"] == pytest.approx(summary["flops"] / summary["train_seconds"], rel=1e-12)
    assert (np.diff(steps["seconds"]) > 0).all()
    assert (summary["test_loss"], summary["test_accuracy"]) == tuple(
        pytest.approx(evaluations[key][-1], rel=1e-12) for key in ("test_loss", "test_accuracy")
    )


@pytest.mark.parametrize("name", ["training", "target"])
def test_weights_gradients_optimizer_and_data_are_counted_by_hand(exported, name):
    """Adam keeps two values for each parameter; images are float32 and labels int64."""
    memory, p = exported.shown[name]["memory"], 64 * 64 + 64 + 64 * 10 + 10
    assert (memory["weight_bytes"], memory["gradient_bytes"], memory["optimizer_bytes"]) == (4 * p, 4 * p, 8 * p)
    assert memory["data_bytes"] == 1797 * (64 * 4 + 8)


def test_the_peak_holds_data_and_an_evaluation(exported):
    """LeNet evaluates as many images at once as fit into 4 MiB of its first convolution's output, which its ReLU doubles.

    That is more than a step of 64 takes.
    """
    memory, p = exported.shown["lenet"]["memory"], exported.run("lenet")["parameters"]
    image = 6 * 28 * 28 * 4
    at_least = 2 * (2**22 // image) * image
    assert memory["evaluation_peak_bytes"] >= at_least > memory["step_peak_bytes"]
    images = 1797 * (32 * 32 * 4 + 8)
    assert memory["data_bytes"] == images
    assert exported.said["lenet"]["summary"]["peak_memory_bytes"] >= 8 * p + images + at_least  # weights and momentum


@pytest.mark.parametrize("name", RUNS)
def test_mfu_and_roofline_follow_from_the_calibration(exported, name):
    cost, summary = exported.said[name]["cost"], exported.said[name]["summary"]
    measured = exported.said["calibration"]["calibration"]["measurements"]
    peak = max(m["p05"] for m in measured if (m["name"], m["dtype"], m["threads"]) == ("gemm", "fp32", 1))
    attained = summary["flops"] / summary["train_seconds"]
    assert cost["attained_flops_per_s"] == pytest.approx(attained, rel=1e-12)
    assert cost["measured_peak"]["peak_flops_per_s"] == peak
    assert cost["measured_peak"]["value"] == summary["mfu"] == pytest.approx(attained / peak, rel=1e-12)
    assert cost["calibration"]["run_id"] == exported.said["calibration"]["run_id"]
    point = cost["roofline"]
    assert point["flops"] == run_batch(exported, name) * expected_flops(name)
    assert point["intensity"] == pytest.approx(point["flops"] / point["bytes_moved"], rel=1e-12)
    roof = min(peak, point["intensity"] * point["bandwidth_bytes_per_s"])
    assert point["attainable_flops_per_s"] == pytest.approx(roof, rel=1e-12)
    assert point["attained_fraction"] == pytest.approx(attained / roof, rel=1e-12)
    assert point["times_s"]["arithmetic"] == pytest.approx(point["flops"] / peak, rel=1e-12)
    assert point["times_s"]["memory"] == pytest.approx(point["bytes_moved"] / point["bandwidth_bytes_per_s"], rel=1e-12)


def run_batch(exported, name):
    return exported.run(name)["config"]["batch_size"]


def test_the_bytes_of_a_step_of_an_mlp_are_counted_by_hand(exported):
    """Each product reads both factors and writes its result; pixels need no gradient. Adam: 3 + 2 * 2 values."""
    batch, layers = run_batch(exported, "training"), [(64, 64, False), (64, 10, True)]
    values = 0
    for fan_in, fan_out, has_input_gradient in layers:
        x, w, out = batch * fan_in, fan_in * fan_out, batch * fan_out
        values += (x + w + out) * (3 if has_input_gradient else 2)
    values += (3 + 2 * 2) * (64 * 64 + 64 + 64 * 10 + 10)
    assert exported.said["training"]["cost"]["roofline"]["bytes_moved"] == 4 * values


def test_a_run_with_a_target_ends_when_two_evaluations_reach_it(exported):
    """`show` gives the interpolated point, by the rule that races use."""
    run_id, target = exported.said["target"]["run_id"], exported.said["target"]["config"]["target"]["value"]
    evaluations = exported.points(run_id, "evaluations")
    accuracy = evaluations["test_accuracy"]
    assert accuracy[-2:].min() >= target > accuracy[-3]
    reached = exported.shown["target"]["target_reached"]
    at = [to_target(evaluations[axis], accuracy, target) for axis in ("step", "seconds", "elapsed")]
    assert at[0] is not None
    found = [reached["step"], reached["train_s"], reached["elapsed_s"]]
    assert found[0] == pytest.approx(at[0], abs=0.51)  # steps can be whole numbers
    assert found[1:] == pytest.approx(at[1:], rel=1e-2)  # seconds at that step
    summary = exported.said["target"]["summary"]
    assert (summary["target_step"], summary["target_seconds"]) == (reached["step"], reached["train_s"])


@pytest.mark.parametrize("name", RUNS)
def test_energy_is_counted_or_estimated_from_the_stated_power(exported, name):
    account, run_id = exported.shown[name]["energy"], exported.said[name]["run_id"]
    if account["joules"] is not None:  # a counter exists here
        samples = exported.said[name]["summary"]["samples"]
        assert account["per_1000_samples_j"] == pytest.approx(1000 * account["joules"] / samples, rel=1e-12)
        assert account["money"] == pytest.approx(0.5 * account["joules"] / 3.6e6, rel=1e-12)
        return
    assert account["money"] is None
    readings = exported.points(run_id, "hardware")
    percent = readings["process_cpu_percent"][np.isfinite(readings["process_cpu_percent"])]
    if not len(percent):  # shorter than a reading
        assert account["low_j"] is None
        return
    share = min(1.0, percent.mean() / 100 / exported.run(name)["environment"]["physical_cores"])
    both = [watts * share * readings["elapsed"][-1] for watts in (10, 100)]
    assert [account["low_j"], account["high_j"]] == pytest.approx(both, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_the_step_breakdown_has_no_evaluation_and_gives_no_advice_where_it_does_not_add_up(exported, name):
    split, summary = exported.shown[name]["step_split"], exported.said[name]["summary"]
    parts = {key: split[f"{key}_s"] for key in ("data", "forward", "backward", "optimizer", "read_back")}
    known = {key: seconds for key, seconds in parts.items() if seconds is not None}
    if not known:
        assert split["reason"]
        assert (split["shares"], split["sentence"]) == ({}, None)
        return
    total, step_s = sum(known.values()), summary["train_seconds"] / summary["steps"]
    assert split["shares"] == pytest.approx({key: seconds / total for key, seconds in known.items()}, rel=1e-9)
    is_doubtful = abs(total - step_s) > 0.25 * step_s
    assert bool(split["doubt"]) == is_doubtful
    assert (split["sentence"] is None) == is_doubtful


def test_the_files_of_the_export_have_the_stated_hashes_and_the_store_is_sound(exported):
    import hashlib

    sums = exported.archive.read("SHA256SUMS").decode()
    for digest, name in re.findall(r"([0-9a-f]{64}) [ *](\S+)", sums):
        assert hashlib.sha256(exported.archive.read(name)).hexdigest() == digest
    assert all(not run["problems"] for run in exported.report.values())
