"""The step breakdown profiles a real step, does not change the training, and is explained in words."""

from __future__ import annotations

import itertools

import pytest
import torch

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.config.run import RunConfig
from engine.data import loading
from engine.events.lifecycle import Finished
from engine.events.summary import Summary
from engine.events.training import Evaluation, Steps, StepSplit
from engine.measurement import step_breakdown
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.pytorch.tasks import train
from engine.pytorch.training import optimizers
from engine.pytorch.training import step_breakdown as profiled
from engine.pytorch.training.net import Net

pytestmark = pytest.mark.slow  # it trains

KINDS = {
    "digits-mlp": ["budget.epochs=none", "budget.steps=40"],
    "dataloader": ["budget.epochs=none", "budget.steps=40", "execution=dataloader"],
    "clipped, averaged, in parts": [
        "budget.epochs=none", "budget.steps=40", "max_grad_norm=1", "ema_decay=0.9", "grad_accumulation=4",
    ],
    "half precision": ["budget.epochs=none", "budget.steps=40", "precision=bf16", "optimizer.name=muon"],
}  # fmt: skip


def configured(kind: str) -> RunConfig:
    return with_overrides(PRESETS["digits-mlp"].config, KINDS[kind])


def trained(config: RunConfig, folder) -> tuple[list[float], bytes, list[StepSplit]]:
    events = list(train.train(config, folder))
    losses = [loss for e in events if isinstance(e, Steps) for loss in e.loss.tolist()]
    return losses, (folder / "model.safetensors").read_bytes(), [e for e in events if isinstance(e, StepSplit)]


def anatomy(config: RunConfig) -> tuple[Net, torch.Tensor, torch.Tensor]:
    arrays = loading.load(config.data, config.source)
    training, _ = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=0, device=torch.device("cpu"), checkpointing=False)
    plan = planner.plan(config, data=arrays.facts)
    net = Net(config, model, optimizers.build(config.optimizer, model), plan.micro_batch)
    return net, training.x[: plan.batch_size], training.y[: plan.batch_size]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_computes_the_same_bits_with_and_without_it(kind, tmp_path, monkeypatch):
    (tmp_path / "with").mkdir(), (tmp_path / "without").mkdir()
    monkeypatch.setattr(profiled, "allowance_s", lambda *_: 60.0)  # many steps are rehearsed
    *measured, found = trained(configured(kind), tmp_path / "with")
    assert found[0].steps == profiled._MOST_STEPS
    monkeypatch.setattr(train, "split_step", lambda *_, **__: StepSplit(reason="left out"))
    *plain, _ = trained(configured(kind), tmp_path / "without")
    assert measured == plain


@pytest.mark.parametrize("kind", ["digits-mlp", "clipped, averaged, in parts", "half precision"])
def test_a_profiled_step_has_the_same_gradients(kind):
    net, x, y = anatomy(configured(kind))
    net.backward(x, y)
    whole = [p.grad.clone() for p in net.model.parameters()]
    net.forget_gradients()
    named: list[str] = []
    profiled.backward_in_parts(net, x, y, named.append)
    assert all(torch.equal(a, p.grad) for a, p in zip(whole, net.model.parameters(), strict=True))
    assert {"forward", "backward"} <= set(named)


def test_every_part_is_measured_and_costs_little(tmp_path):
    _, _, (found,) = trained(
        with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.seconds=0.5"]), tmp_path
    )
    assert min(found.data_s, found.forward_s, found.backward_s, found.optimizer_s, found.read_back_s) > 0
    assert len(found.model_dump_json()) < 2_000


@pytest.mark.parametrize(("clock", "part"), [("_gathering_s", "data_s"), ("_read_back_s", "read_back_s")])
def test_an_interrupted_clock_of_data_or_read_back_changes_nothing(clock, part, tmp_path, monkeypatch):
    found = itertools.chain([1.0], itertools.repeat(1e-5))
    monkeypatch.setattr(profiled, clock, lambda *_: next(found))
    _, _, (split,) = trained(configured("digits-mlp"), tmp_path)
    assert getattr(split, part) == 1e-5


def test_a_cuda_graph_has_no_step_breakdown_and_says_why():
    config = configured("digits-mlp").model_copy(update={"execution": "cuda-graph"})
    net, _, _ = anatomy(configured("digits-mlp"))
    net.config = config
    found = profiled.split_step(net, None, None, None, step_s=1e-3)
    assert (found.forward_s, "as a whole" in found.reason) == (None, True)


def test_long_steps_of_a_short_run_are_not_profiled():
    config = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=3"])
    net, _, _ = anatomy(config)
    plan = planner.plan(config)
    found = profiled.split_step(net, None, None, plan, step_s=1.0)
    assert (found.forward_s, found.reason.startswith("A step takes")) == (None, True)


def test_a_first_step_that_was_interrupted_does_not_leave_the_split_out(tmp_path, monkeypatch):
    real = train.split_step
    monkeypatch.setattr(train, "split_step", lambda *a, step_s: real(*a, step_s=0.04))
    config = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=400"])
    _, _, (found,) = trained(config, tmp_path)
    assert found.steps >= profiled._FEWEST


@pytest.mark.parametrize(
    ("steps", "step_s", "allowed"), [(1_000, 1e-3, 0.2), (100, 1e-3, 0.02), (10_000, 0.1, 5.0)]
)  # fmt: skip
def test_profiling_costs_a_small_share_of_short_and_long_runs(steps, step_s, allowed):
    config = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", f"budget.steps={steps}"])
    assert profiled.allowance_s(config, planner.plan(config), step_s) == pytest.approx(allowed)


# --- in words -------------------------------------------------------------------------------------------------------


def made(**seconds: float) -> StepSplit:
    parts = dict.fromkeys(("data_s", "forward_s", "backward_s", "optimizer_s", "read_back_s"), 1e-5) | seconds
    return StepSplit(**parts, steps=8, method="m")


def broken_down(split: StepSplit | None, *, step_s: float = 0.0, evaluation_s: float = 0.0, **config):
    """The breakdown of a run of 100 steps that took `step_s` each; by default as long as the parts together."""
    summary = Summary(steps=100, train_seconds=100 * (step_s or sum_of(split)))
    return step_breakdown.breakdown(split, RunConfig(**config), summary, evaluation_s)


def sum_of(split: StepSplit | None) -> float:
    return sum(part.seconds for part in step_breakdown.breakdown(split, RunConfig(), Summary(), 0.0).parts)


@pytest.mark.parametrize(
    ("slow", "words", "knob"),
    [
        ("data_s", "96 % of a step is fetching the batch", "fits into memory"),
        ("optimizer_s", "the optimizer", "larger batch"),
        ("read_back_s", "reading losses back", "execution=eager"),
        ("backward_s", "forward and backward", "narrower model"),
    ],
)
def test_the_sentence_names_the_bottleneck_and_a_setting(slow, words, knob):
    found = broken_down(made(**{slow: 1e-3}))
    assert words in found.advice and knob in found.advice


def test_evaluation_is_no_part_of_a_step():
    found = broken_down(made(), step_s=5e-5, evaluation_s=5e-3)  # 100 steps train for as long
    assert found.shares == pytest.approx(dict.fromkeys(("data", "forward", "backward", "optimizer", "read_back"), 0.2))
    assert found.evaluation.startswith("5.00 ms in all, 50 % of training and evaluation together")
    assert "evaluate_every" in found.evaluation and "evaluat" not in found.advice


@pytest.mark.parametrize("step_s", [3.9e-5, 6.7e-5])
def test_parts_that_do_not_add_up_to_the_runs_step_give_a_warning_and_no_advice(step_s):
    assert broken_down(made(), step_s=5.5e-5).doubt == ""  # the parts take 50 us together
    found = broken_down(made(), step_s=step_s)
    assert (found.advice, "add up to 50.0 µs" in found.doubt, found.step_s) == ("", True, pytest.approx(step_s))


def test_the_overhead_of_calls_is_named_only_for_steps_with_few_predictions():
    slow, overhead = made(backward_s=1e-3), "overhead of each call"
    assert overhead in broken_down(slow, batch_size=12).advice
    decoder = {"data": "text", "model": {"family": "transformer"}, "batch_size": 12}  # 12 windows of 64 characters
    assert overhead not in broken_down(slow, **decoder).advice
    assert overhead not in broken_down(slow, batch_size="full").advice


def test_without_a_step_breakdown_there_is_no_sentence():
    for split in (None, StepSplit(reason="why")):
        found = broken_down(split, step_s=1e-3)
        assert (found.parts, found.doubt, found.advice) == ([], "", "")


def test_a_split_survives_the_log(store, config):
    run_id = store.create(config)
    from engine.store.event_log import EventLog

    log = EventLog(store.folder(run_id) / "events.jsonl")
    log.append(made())
    log.append(Evaluation(step=1, train_s=0, elapsed_s=0, test_loss=1, test_accuracy=0, seconds=0.5))
    log.close(Finished(at=0))
    run = store.run(run_id)
    assert (run.step_split.forward_s, run.evaluation_s) == (1e-5, 0.5)
