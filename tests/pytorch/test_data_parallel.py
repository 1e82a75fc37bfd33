"""Data-parallel training computes what one process would, and each rank reports what it did."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

from engine.common.errors import ConfigError
from engine.config.parsing import with_overrides
from engine.config.presets import PRESETS
from engine.events.training import Ranks
from engine.planning import planner
from engine.store.store import Submission

FAMILIES = {
    "mlp": ["model.hidden=32"],
    "cnn": ["model.family=cnn", "model.width=0.5"],
    "rnn": ["model.family=rnn", "model.size=tiny"],
    "transformer": ["model.family=transformer", "model.size=tiny", "model.patch_size=4"],
    "decoder": [
        "model.family=transformer",
        "model.size=tiny",
        "data=text",
        "source.seq_len=16",
        "evaluate_every=50",
        "optimizer.lr=0.0003",
    ],
}
# Rounding alone changes a training loss by less than 1e-6 (half of float32's epsilon is 2**-24, about 6e-8), as long as
# the same ReLUs and the same inputs of each max-pool get the gradient. In the CNN they do not: at step 18 the run in
# one process chooses another input of a max-pool than the same run in float64. This changes the gradient by 4e-4, and
# the loss at step 50 by 4.3e-5. Two ranks stay within 4e-7 of float64, and so does one process with the batch cut in
# two or with each weight changed by 6e-8. When this happens depends on the processor, so the tolerance of the CNN
# covers one such event. Wrong weights of the uneven shares (one half each) change the CNN's loss by 1e-4 at step 1
# already.
SURE_STEPS, SURE = 25, 1e-5
ROUNDING = {"cnn": 1e-4}
STEPS = 50
# 61 of 1,438 examples: shares of 31 and 30, and a last batch of 35 within the 50 steps.
SAME = ["batch_size=61", f"budget.steps={STEPS}", "budget.epochs=none", "evaluate_every=25"]


def ranks(number: int, strategy: str = "ddp") -> list[str]:
    """Each rank is named, so that a machine with one core runs them, too."""
    return [
        f"parallel.num_ranks={number}",
        f"parallel.strategy={strategy}",
        f"parallel.devices={','.join(['cpu'] * number)}",
    ]


def finished(supervised, *assignments):
    run = supervised.until(supervised.submit(*SAME, *assignments), "finished", "failed")
    assert run.status == "finished", run.why()
    return run


@pytest.fixture(scope="module")
def alone(supervised):
    """The run in one process, without ranks, once for each set of assignments."""
    return functools.cache(lambda *assignments: finished(supervised, *assignments))


def assert_same_trajectory(run, reference, tolerance=SURE):
    ours, theirs = run.steps, reference.steps
    assert len(ours["loss"]) == STEPS
    np.testing.assert_array_equal(ours["samples"], theirs["samples"])
    np.testing.assert_allclose(ours["loss"][:SURE_STEPS], theirs["loss"][:SURE_STEPS], atol=SURE, rtol=0)
    np.testing.assert_allclose(ours["loss"], theirs["loss"], atol=tolerance, rtol=0)
    for name in ("test_loss", "test_accuracy"):
        np.testing.assert_allclose(run.evaluations[name], reference.evaluations[name], atol=tolerance)
    assert run.accuracy_standard_error == pytest.approx(reference.accuracy_standard_error, rel=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_follow_the_trajectory_of_one(supervised, alone, family, strategy):
    run = finished(supervised, *FAMILIES[family], *ranks(2, strategy))
    assert_same_trajectory(run, alone(*FAMILIES[family]), ROUNDING.get(family, SURE))


TOGETHER = {
    "accumulation": ["grad_accumulation=3", "batch_size=20"],
    "full batch, clipped, averaged": [
        "batch_size=full", "grad_accumulation=2", "max_grad_norm=0.5", "ema_decay=0.9", "optimizer.name=momentum",
        "optimizer.lr=0.1",
    ],
    "activation checkpointing": [
        "model.family=transformer", "model.size=tiny", "model.patch_size=4", "activation_checkpointing=true",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", TOGETHER)
def test_three_ranks_do_what_one_does_and_leave_the_same_weights(supervised, alone, what, strategy):
    run, reference = finished(supervised, *TOGETHER[what], *ranks(3, strategy)), alone(*TOGETHER[what])
    assert_same_trajectory(run, reference)
    np.testing.assert_allclose(run.grad_norms["grad_norm"][-1], reference.grad_norms["grad_norm"][-1], rtol=1e-4)
    ours, theirs = (load_file(r.folder / "model.safetensors") for r in (run, reference))
    assert list(ours) == list(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4)


def test_one_rank_alone_runs_through_the_same_wrapper_where_its_device_is_named(supervised, alone):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(1))
    assert_same_trajectory(run, alone(*FAMILIES["mlp"]))
    assert run.started.environment["num_ranks"] == 1
    assert run.all(Ranks)


def test_the_historical_wrapper_trains_in_one_process(supervised, alone):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(2, "data-parallel"))
    assert_same_trajectory(run, alone(*FAMILIES["mlp"]))
    assert run.started.environment["backend"] == "threads of one process"
    assert run.all(Ranks) == []
    assert any("historical baseline" in warning for warning in planner.check(run.config).warnings)


def test_a_run_without_ranks_has_no_figures_of_ranks(alone):
    run = alone(*FAMILIES["mlp"])
    assert run.all(Ranks) == []
    assert not {"num_ranks", "strategy", "backend"} & set(run.started.environment)


def of_ranks(**columns):
    """The event of two ranks about ten steps of 10 ms."""
    figures = {"step_s": (0.010, 0.010), "communication_s": (0.006, 0.002), "waited_s": (0.005, 0.001)} | columns
    return Ranks(
        elapsed_s=1.0, steps=(1, 10), device=("cpu", "cpu"), cpu_per_wall=(0.5, 0.9), memory_bytes=(1, 1), method="",
        **figures,
    )  # fmt: skip


def test_the_rank_the_others_wait_for_is_the_one_that_waits_least():
    assert of_ranks().own_s == pytest.approx((0.005, 0.009))
    assert of_ranks().straggler == 1
    assert of_ranks(waited_s=(0.005, 0.0049)).straggler is None
    assert of_ranks(waited_s=(None, None)).straggler is None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_every_step_is_in_one_window_of_the_ranks(supervised, strategy):
    run = finished(supervised, *FAMILIES["mlp"], *ranks(2, strategy))
    windows = [event.steps for event in run.all(Ranks)]
    assert windows[0][0] == 1
    assert windows[-1][1] == STEPS
    assert all(after[0] == before[1] + 1 for before, after in pairwise(windows))
    for event in run.all(Ranks):
        for step_s, communication_s, waited_s in zip(event.step_s, event.communication_s, event.waited_s, strict=True):
            assert 0 < waited_s <= communication_s < step_s
        assert min(event.memory_bytes) > 10**7
    total = sum(event.step_s[0] * (event.steps[1] - event.steps[0] + 1) for event in run.all(Ranks))
    assert total <= run.summary().train_seconds


def test_runs_of_a_race_take_turns_and_are_no_gangs(supervised):
    gang, single = (with_overrides(PRESETS["digits-mlp"].config, more) for more in (ranks(2), []))
    with pytest.raises(ConfigError, match="cannot be used in a race"):
        supervised.client.submit_seed_blocks([[Submission(gang), Submission(single)]], group="g")
