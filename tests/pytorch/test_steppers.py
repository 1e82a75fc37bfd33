"""Steppers, precisions and training techniques: they give equal losses where they must, and other losses where not."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.config.training import OptimizerName
from engine.data import loading
from engine.events.training import Memory
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.pytorch.training import optimizers
from engine.pytorch.training.memory import measure_memory
from engine.pytorch.training.net import Net, cross_entropy
from engine.pytorch.training.steppers import STEPPERS, CudaGraph, DataLoaderStepper

pytestmark = pytest.mark.slow  # it trains

MLP = with_overrides(PRESETS["digits-mlp"].config, ["batch_size=64", "optimizer.lr=0.003"])
NETS = {
    "mlp": [],
    "cnn": ["model.family=cnn", "model.width=0.5"],
    "rnn": ["model.family=rnn", "model.cell=gru", "model.hidden_size=16", "model.num_layers=2"],
    "vit": ["model.family=transformer", "model.d_model=16", "model.num_heads=2", "model.patch_size=2"],
    "decoder": ["data=text", "source.seq_len=8", "model.family=transformer", "model.size=tiny", "batch_size=8"],
}


def config(net: str = "mlp", *assignments: str) -> RunConfig:
    return with_overrides(MLP, [*NETS[net], *assignments])


def stepper(config: RunConfig, kind=None):
    """The stepper of a run, ready for its first step, and its Net."""
    arrays, plan = loading.load(config.data, config.source), planner.plan(config)
    training, _ = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=config.seed, checkpointing=config.activation_checkpointing)
    optimizer = (optimizers.Reference if config.execution == "dataloader" else optimizers.build)(
        config.optimizer, model
    )
    net = Net(config, model, optimizer, plan.micro_batch)
    made = (kind or STEPPERS[config.execution])(net, training, plan.batch_size, config.seed)
    made.prepare()
    made.warm_up(2)
    return made, net


def losses(config: RunConfig, steps: int = 30, kind=None) -> np.ndarray:
    return stepper(config, kind)[0].steps([config.optimizer.lr] * steps).losses


def weights(net: Net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.model.parameters()])


# --- steppers agree --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "rmsprop"])
def test_the_tutorials_loop_and_eager_agree(net, optimizer):
    base = config(net, f"optimizer.name={optimizer}", "optimizer.lr=0.001")
    tutorial = losses(with_overrides(base, ["execution=dataloader"]))
    np.testing.assert_allclose(losses(base)[:10], tutorial[:10], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.xdist_group("compile")
def test_compiled_and_eager_agree():
    """Over the end of an epoch, where a batch is smaller."""
    compiled = losses(config("mlp", "execution=compiled", "batch_size=500"), steps=5)
    np.testing.assert_allclose(compiled, losses(config("mlp", "batch_size=500"), steps=5), rtol=1e-4)


def without_a_graph(net, examples, batch_size, seed):
    """The steps that a CUDA graph would replay, without a graph but with the same tensors."""
    return CudaGraph(net, examples, batch_size, seed, capture=False)


@pytest.mark.parametrize("net", ["mlp", "decoder"])
@pytest.mark.parametrize("clip", ["none", "1"])
def test_what_a_cuda_graph_replays_and_eager_agree(net, clip):
    base = config(net, f"max_grad_norm={clip}")
    made, _ = stepper(base, without_a_graph)
    eager, _ = stepper(base)
    rates = [0.001 * (i % 7 + 1) for i in range(60)]  # more than an epoch of digits: 22 whole batches and a smaller one
    there, here = made.steps(rates), eager.steps(rates)
    np.testing.assert_allclose(there.losses[:20], here.losses[:20], rtol=1e-4)
    assert there.samples.tolist() == here.samples.tolist()
    assert (len(there.norms), there.norm_at[-1]) == (len(here.norms), 59)


@pytest.mark.parametrize("chunks", [[1] * 30, [22, 8], [3, 20, 7]])
def test_a_cuda_graphs_steps_do_not_depend_on_how_they_are_read_back(chunks):
    made, _ = stepper(config(), without_a_graph)
    told = np.concatenate([made.steps([0.003] * n).losses for n in chunks])
    np.testing.assert_allclose(told[:10], losses(config())[:10], rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("net", ["mlp", "cnn", "decoder"])
def test_a_recorded_cuda_graph_and_eager_agree(net, optimizer):
    base = config(net, "device=cuda:0", f"optimizer.name={optimizer}", "optimizer.lr=0.001")

    def on_gpu(execution):
        found = with_overrides(base, [f"execution={execution}"])
        arrays, plan = loading.load(found.data, found.source), planner.plan(found)
        training = tensors(arrays, found.model)[0].to(torch.device("cuda:0"))
        model = models.build(found.model, arrays.facts, seed=0, device="cuda:0")
        net = Net(found, model, optimizers.build(found.optimizer, model), plan.micro_batch)
        made = STEPPERS[execution](net, training, plan.batch_size, 0)
        made.prepare()
        made.warm_up(2)
        return made.steps([0.001] * 60).losses

    np.testing.assert_allclose(on_gpu("cuda-graph")[:10], on_gpu("eager")[:10], rtol=1e-4)


# --- accumulation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("batch", "parts"), [(32, 2), (16, 4), (20, 3)])
def test_accumulated_batches_are_one_large_batch(net, batch, parts):
    together = losses(config(net, f"batch_size={batch * parts}", "optimizer.name=sgd"), steps=12)
    apart = losses(config(net, f"batch_size={batch}", f"grad_accumulation={parts}", "optimizer.name=sgd"), steps=12)
    np.testing.assert_allclose(apart, together, rtol=1e-4)


def test_the_full_batch_in_parts_is_the_full_batch():
    full = losses(config("mlp", "optimizer.name=gd"), steps=5)
    np.testing.assert_allclose(
        losses(config("mlp", "optimizer.name=gd", "grad_accumulation=7"), steps=5), full, rtol=1e-4
    )


# --- checkpointing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_checkpointing_does_not_change_the_loss(net):
    plain, checkpointed = (losses(config(net, f"activation_checkpointing={c}"), steps=10) for c in ("false", "true"))
    np.testing.assert_allclose(checkpointed, plain, rtol=1e-5)


@pytest.mark.parametrize("net", ["rnn", "vit"])
def test_checkpointing_lowers_the_allocators_peak(net):
    peaks = []
    for checkpointing in ("false", "true"):
        chosen = config(net, "model.num_layers=6", f"activation_checkpointing={checkpointing}", "batch_size=256")
        made, run = stepper(chosen)
        examples = made.batches.examples
        peaks.append(measure_memory(run, examples, examples, planner.plan(chosen)).step_peak_bytes)
    assert peaks[1] < 0.85 * peaks[0]


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_of(chosen: RunConfig) -> tuple[Memory, planner.Plan]:
    made, run = stepper(chosen)
    made.steps([chosen.optimizer.lr])
    plan = planner.plan(chosen)
    examples = made.examples if isinstance(made, DataLoaderStepper) else made.batches.examples
    return measure_memory(run, examples, examples, plan), plan


@pytest.mark.parametrize("net", NETS)
def test_a_steps_peak_holds_the_planned_activations_and_gradients(net):
    found, plan = peak_of(config(net))
    parts = plan.activation_bytes, plan.gradient_bytes, plan.workspace_bytes  # activations go while gradients come
    assert 0.9 * max(parts[:2]) < found.step_peak_bytes < 1.6 * sum(parts)
    assert found.step_memory_bytes == plan.weight_bytes + plan.optimizer_bytes + found.step_peak_bytes


@pytest.mark.parametrize(
    "more",
    [["grad_accumulation=4"], ["optimizer.name=rmsprop"], ["optimizer.name=muon"], ["execution=dataloader"],
     ["optimizer.name=adagrad"], ["ema_decay=0.9"]],
    ids=lambda more: more[0],
)  # fmt: skip
def test_a_peak_counts_what_an_update_needs_and_the_plan_covers_it(more):
    found, plan = peak_of(config("mlp", "model.hidden=[1024,1024]", *more))
    planned = plan.activation_bytes + plan.gradient_bytes + plan.workspace_bytes
    assert 0.95 * plan.gradient_bytes < found.step_peak_bytes < 1.15 * planned


@pytest.mark.parametrize("execution", ["eager", "dataloader"])
@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_measuring_memory_leaves_the_run_as_it_was(execution, optimizer):
    chosen = config("mlp", f"execution={execution}", f"optimizer.name={optimizer}", "ema_decay=0.9")
    untouched = losses(chosen, steps=4)[1:]
    made, run = stepper(chosen)
    made.steps([chosen.optimizer.lr])
    before = weights(run).clone()
    examples = made.examples if isinstance(made, DataLoaderStepper) else made.batches.examples
    measure_memory(run, examples, examples, planner.plan(chosen))
    assert torch.equal(weights(run), before)
    assert np.array_equal(made.steps([chosen.optimizer.lr] * 3).losses, untouched)


# --- clipping, smoothing, averaging ----------------------------------------------------------------------------------


def test_clipping_shortens_a_long_gradient_to_the_norm():
    made, net = stepper(config("mlp", "max_grad_norm=0.01"))
    chunk = made.steps([0.003])
    assert chunk.norms[0] > 0.1  # as it was measured, before
    assert net.grad_norm().item() == pytest.approx(0.01, rel=1e-3)


def test_clipping_above_every_norm_changes_nothing():
    np.testing.assert_allclose(losses(config("mlp", "max_grad_norm=1e6")), losses(config()), rtol=1e-5)


def test_with_clipping_every_step_has_its_gradient_norm():
    made, _ = stepper(config("mlp", "max_grad_norm=1"))
    assert made.steps([0.003] * 5).norm_at.tolist() == [0, 1, 2, 3, 4]


def test_without_clipping_the_norm_is_that_of_the_last_step():
    made, net = stepper(config())
    chunk = made.steps([0.003] * 5)
    by_hand = sum(p.grad.square().sum() for p in net.model.parameters()).sqrt().item()
    assert (chunk.norm_at.tolist(), chunk.norms.tolist()) == ([4], [pytest.approx(by_hand, rel=1e-5)])


def test_label_smoothing_is_a_mixture_with_the_uniform_distribution():
    logits, y = torch.randn(9, 10), torch.arange(9)
    uniform = -logits.log_softmax(1).mean()
    mixed = 0.9 * cross_entropy(logits, y) + 0.1 * uniform
    assert cross_entropy(logits, y, 0.1).item() == pytest.approx(mixed.item(), rel=1e-5)


def test_label_smoothing_raises_the_training_loss():
    assert losses(config("mlp", "label_smoothing=0.2"))[-1] > losses(config())[-1]


def test_averaged_weights_follow_their_definition(torch_names):
    made, net = stepper(config("mlp", "ema_decay=0.9"))
    average = weights(net).clone()
    for _ in range(4):
        made.steps([0.003])
        average = 0.9 * average + 0.1 * weights(net)
    assert not any(t.requires_grad for t in net.average)  # otherwise the graph of every step would be kept
    own = weights(net).clone()
    with net.averaged():
        assert torch.allclose(weights(net), average, atol=1e-6)
    assert torch.equal(weights(net), own)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_float32_and_is_not_float32(precision, net):
    low, full = losses(config(net, f"precision={precision}"), steps=12), losses(config(net), steps=12)
    np.testing.assert_allclose(low, full, rtol=0.05)
    assert not np.allclose(low, full, rtol=1e-6)


def test_weights_and_optimizer_state_stay_float32_in_low_precision():
    _, net = stepper(config("mlp", "precision=bf16"))
    assert {t.dtype for t in [*net.optimizer.params, *net.optimizer.state_tensors()]} == {torch.float32}


def scale_of(net: Net, scale: float | None = None) -> float:
    """The loss scale of a run; a given one is set before."""
    if scale is not None:
        net.scaler.scale(torch.zeros(()))  # GradScaler makes its tensors at the first loss
        net.scaler.update(scale)
    return net.scaler.get_scale()


def test_scaled_gradients_are_divided_before_they_are_measured_and_used():
    chosen = config("mlp", "precision=fp16", "max_grad_norm=1e6")
    small, large = stepper(chosen), stepper(chosen)
    scale_of(small[1], 2.0**4)
    scale_of(large[1], 2.0**10)
    here, there = (made.steps([0.003] * 3) for made, _ in (small, large))
    np.testing.assert_allclose(here.norms, there.norms, rtol=0.01)
    assert torch.allclose(weights(small[1]), weights(large[1]), atol=1e-3)


def test_scaled_fp16_steps_are_left_out_not_made_with_bad_numbers():
    made, net = stepper(config("mlp", "precision=fp16", "ema_decay=0.9", "max_grad_norm=1"))
    scale_of(net, 2.0**40)  # every gradient overflows
    before, average = weights(net).clone(), [t.add_(1).clone() for t in net.average]
    made.steps([0.003] * 3)
    assert torch.equal(weights(net), before)
    assert all(map(torch.equal, net.average, average))  # it does not follow a step that was not made
    assert scale_of(net) == 2.0**37


def test_a_rehearsal_leaves_the_loss_scale_as_it_was():
    made, net = stepper(config("mlp", "precision=fp16"))
    made.steps([0.003])
    scale_of(net, 2.0**5)
    with net.rehearsal() as step:
        step(*made.batches.first(64))
    assert scale_of(net) == 2.0**5


# --- a torch without private kernels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", get_args(OptimizerName))
def test_eager_steps_follow_the_dataloader_loop_with_any_torch(optimizer, torch_names):
    base = config("mlp", f"optimizer.name={optimizer}", "optimizer.lr=0.001")
    reference = losses(with_overrides(base, ["execution=dataloader"]), steps=10)
    np.testing.assert_allclose(losses(base, steps=10), reference, rtol=1e-3 if optimizer == "muon" else 1e-4)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_steps_of_a_cuda_graph_and_eager_agree_with_any_torch(optimizer, torch_names):
    base = config("cnn", f"optimizer.name={optimizer}", "optimizer.lr=0.001", "ema_decay=0.9")
    there = losses(base, steps=10, kind=without_a_graph)
    np.testing.assert_allclose(there, losses(base, steps=10), rtol=1e-4)


# --- the smaller batch at the end of an epoch ------------------------------------------------------------------------


@pytest.mark.parametrize("execution", ["eager", "dataloader"])
def test_an_epoch_ends_with_what_is_left(execution):
    made, _ = stepper(config("mlp", f"execution={execution}", "batch_size=1000"))
    assert made.steps([0.003] * 4).samples.tolist() == [1_000, 438, 1_000, 438]


def test_chunks_of_any_size_are_the_same_steps():
    made, _ = stepper(config())
    told = np.concatenate([made.steps([0.003] * n).losses for n in (1, 2, 4, 8, 15)])
    assert np.array_equal(told, losses(config()))
    assert all(a != b for a, b in pairwise(told))
