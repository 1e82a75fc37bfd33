"""The memory of a training: planned, measured, and counted independently over a whole loop."""

from __future__ import annotations

import gc
import time
from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.data import loading
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import tensors
from engine.pytorch.training import optimizers
from engine.pytorch.training.loop import TrainingLoop
from engine.pytorch.training.memory import measure_memory
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import STEPPERS

pytestmark = pytest.mark.slow  # it trains

BASE = with_overrides(PRESETS["digits-mlp"].config, ["budget.epochs=none", "budget.steps=2"])
CASES = {
    "mlp": ["batch_size=1000"],  # the next batch is smaller
    "full": ["batch_size=full"],
    "ema": ["ema_decay=0.9", "optimizer.name=momentum"],
    "accumulated": ["grad_accumulation=4", "optimizer.name=muon"],
    "bf16": ["precision=bf16", "model.hidden=[64,64]", "batch_size=512"],
    "dataloader": ["execution=dataloader", "model.hidden=512", "batch_size=256"],
    "cnn": ["model.family=cnn"],
    "checkpointed": ["model.family=cnn", "activation_checkpointing=true", "batch_size=256"],
    "gru": ["model.family=rnn", "model.cell=gru", "batch_size=256"],
    "lstm": ["model.family=rnn", "model.cell=lstm", "model.size=tiny"],
    "vit": ["model.family=transformer", "model.size=tiny", "batch_size=64"],
    "decoder": ["data=text", "source.seq_len=32", "model.family=transformer", "model.size=tiny", "batch_size=16"],
    "signals": ["data=mnist1d", "model.family=cnn", "batch_size=512"],
}
every_case = pytest.mark.parametrize("assignments", CASES.values(), ids=CASES)


def made(config):
    arrays = loading.load(config.data, config.source)
    plan = planner.plan(config, data=arrays.facts)
    training, held_out = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=0, checkpointing=config.activation_checkpointing)
    build = optimizers.Reference if config.execution == "dataloader" else optimizers.build
    net = Net(config, model, build(config.optimizer, model), plan.micro_batch)
    return net, STEPPERS[config.execution](net, training, plan.batch_size, config.seed), training, held_out, plan


def measured(config):
    net, stepper, training, held_out, plan = made(config)
    stepper.steps([config.optimizer.lr])
    return measure_memory(net, training, held_out, plan), plan


def live_bytes():
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # no subclasses: torch.compile in other tests leaves fake tensors
    found = [o for o in gc.get_objects() if type(o) in kinds and o.device.type != "meta"]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def counted_peak(config):
    """Bytes of all tensors before training, and the highest sum of the allocator's events in the whole loop."""
    before = live_bytes()
    net, stepper, _, held_out, plan = kept = made(config)
    base = live_bytes() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        stepper.warm_up(1)
        list(TrainingLoop(net, stepper, held_out, plan, time.perf_counter, time.perf_counter()).run())
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())]
    del kept
    return base + max(accumulate(changes))


@every_case
def test_the_measured_peak_is_that_of_the_whole_training(assignments):
    config = with_overrides(BASE, assignments)
    assert measured(config)[0].peak_memory_bytes == pytest.approx(counted_peak(config), rel=0.02)


@every_case
def test_a_plan_names_what_is_then_measured(assignments):
    found, plan = measured(with_overrides(BASE, assignments))
    assert plan.step_memory_bytes == pytest.approx(found.step_memory_bytes, rel=0.3)
    assert plan.evaluation_memory_bytes == pytest.approx(found.evaluation_memory_bytes, rel=0.3)
    assert plan.data_bytes == pytest.approx(found.data_memory_bytes, rel=0.01)
    assert plan.total_bytes == pytest.approx(found.peak_memory_bytes, rel=0.3)


def test_an_evaluation_takes_no_more_than_the_step_of_a_usual_batch():
    """Otherwise evaluations would decide how large a model can be."""
    found, _ = measured(with_overrides(PRESETS["char-decoder"].config, ["batch_size=16"]))
    assert found.evaluation_memory_bytes < found.step_memory_bytes
