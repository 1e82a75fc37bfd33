"""The memory that a plan names, the memory that a run measures, and an independent count, over many configurations.

The independent count does not use the engine's: it is the storages of all live tensors before training, plus the highest
sum of the allocator's events within a whole loop with its evaluations. It needs no quiet machine.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measure
from engine.common import units
from engine.config.parsing import with_overrides
from engine.config.presets import preset_config
from engine.config.run import RunConfig
from engine.data import loading
from engine.planning import planner
from engine.pytorch import models
from engine.pytorch.data import Examples, tensors
from engine.pytorch.setup import set_up_arithmetic
from engine.pytorch.training import optimizers
from engine.pytorch.training.loop import TrainingLoop
from engine.pytorch.training.memory import measure_memory
from engine.pytorch.training.net import Net
from engine.pytorch.training.steppers import STEPPERS, Stepper

PARTS = ("step", "evaluation", "data", "peak")
GOAL_MEDIAN, GOAL_WORST = 0.10, 0.30
STEPS = 3
WIDE = "model.hidden=[2048,1024]"
CASES = (
    "mnist-mlp", "mnist-mlp batch_size=1", "mnist-mlp batch_size=512", "mnist-mlp batch_size=full", "mnist-mlp-large",
    f"mnist-mlp {WIDE} optimizer.name=sgd", f"mnist-mlp {WIDE} optimizer.name=muon",
    f"mnist-mlp {WIDE} optimizer.name=rmsprop batch_size=512", f"mnist-mlp {WIDE} ema_decay=0.99 max_grad_norm=1",
    f"mnist-mlp {WIDE} execution=dataloader optimizer.name=adamw", f"mnist-mlp {WIDE} grad_accumulation=4",
    "mnist-mlp model.hidden=[512,512,512,512,512,512,512,512,512] batch_size=1000 activation_checkpointing=true",
    "mnist-mlp batch_size=full grad_accumulation=4", f"mnist-mlp {WIDE} precision=bf16 batch_size=512",
    "mnist-mlp model.hidden=[] batch_size=64", "digits-mlp", "mnist-gd",
    "lenet", "lenet batch_size=1", "lenet batch_size=512", "lenet batch_size=full", "lenet model.size=large",
    "lenet precision=bf16", "lenet activation_checkpointing=true", "lenet execution=dataloader",
    "mnist1d-cnn", "mnist1d-cnn batch_size=512",
    "mnist-gru", "mnist-gru batch_size=1", "mnist-gru model.size=base", "mnist-gru precision=bf16",
    "mnist-gru model.cell=tanh batch_size=512", "mnist-gru model.cell=lstm", "mnist-gru model.cell=lstm batch_size=1",
    "mnist-gru model.cell=lstm model.size=base batch_size=512", "mnist-gru model.cell=lstm model.bidirectional=true",
    "mnist-gru data=text model.cell=lstm source.seq_len=64 batch_size=32", "mnist1d-gru",
    "mnist-vit", "mnist-vit batch_size=1", "mnist-vit batch_size=512", "mnist-vit model.size=base optimizer.name=muon",
    "mnist-vit precision=bf16", "mnist-vit model.num_layers=6 activation_checkpointing=true",
    "mnist-vit data=mnist1d", "char-decoder", "char-decoder batch_size=1", "char-decoder model.size=base batch_size=8",
    "char-decoder grad_accumulation=2", "char-decoder precision=bf16",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """Planned, measured and independently counted bytes of one configuration."""

    name: str
    planned: dict[str, int]
    measured: dict[str, int]
    counted_peak: int

    def error(self, part: str) -> float:
        """Planned over measured, minus 1."""
        return self.planned[part] / self.measured[part] - 1

    @property
    def counted_error(self) -> float:
        """The measured whole peak over the independent count, minus 1."""
        return self.measured["peak"] / self.counted_peak - 1


def config_of(name: str) -> RunConfig:
    """The configuration of a case: a preset and assignments."""
    preset, *assignments = name.split()
    limits = ["budget.seconds=none", "budget.epochs=none", f"budget.steps={STEPS}"]
    return with_overrides(preset_config(preset), [*limits, *assignments])


def _made(config: RunConfig) -> tuple[Net, Stepper, Examples, Examples, planner.Plan]:
    arrays = loading.load(config.data, config.source)
    plan = planner.plan(config, data=arrays.facts)
    training, held_out = tensors(arrays, config.model)
    model = models.build(config.model, arrays.facts, seed=0, checkpointing=config.activation_checkpointing)
    build = optimizers.Reference if config.execution == "dataloader" else optimizers.build
    net = Net(config, model, build(config.optimizer, model), plan.micro_batch)
    stepper = STEPPERS[config.execution](net, training, plan.batch_size, config.seed)
    return net, stepper, training, held_out, plan


def live_bytes() -> int:
    """Bytes of the storages of all live tensors."""
    gc.collect()
    found = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values())


def counted_peak(config: RunConfig) -> int:
    """The highest bytes of tensors in a whole loop: warm-up, evaluations and steps."""
    before = live_bytes()
    net, stepper, training, held_out, plan = _made(config)
    base = live_bytes() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        stepper.warm_up(1)
        loop = TrainingLoop(net, stepper, held_out, plan, time.perf_counter, time.perf_counter())
        for _ in loop.run():
            pass
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del training
    return base + peak


def case(name: str) -> Case:
    """Plan, measure and count one configuration."""
    config = config_of(name)
    set_up_arithmetic(config)
    counted = counted_peak(config)
    net, stepper, training, held_out, plan = _made(config)
    stepper.steps([config.optimizer.lr])
    found = measure_memory(net, training, held_out, plan)
    sizes = found.step_memory_bytes, found.evaluation_memory_bytes, found.data_memory_bytes, found.peak_memory_bytes
    planned = plan.step_memory_bytes, plan.evaluation_memory_bytes, plan.data_bytes, plan.total_bytes
    assert all(size is not None for size in sizes)
    return Case(name, dict(zip(PARTS, planned, strict=True)), dict(zip(PARTS, sizes, strict=True)), counted)


def errors(cases: list[Case]) -> dict[str, dict[str, float]]:
    """Median and worst absolute error of the plan, of each part."""
    found = {}
    for part in PARTS:
        sizes = [abs(c.error(part)) for c in cases]
        found[part] = {"median": statistics.median(sizes), "worst": max(sizes)}
    return found


def main() -> None:
    """Measure every case, print the table and write the result file."""
    torch.set_num_threads(1)
    load_before = measure.load()
    cases = [case(name) for name in CASES]
    rows = [
        [
            c.name,
            *(f"{units.nbytes(c.planned[p])} / {units.nbytes(c.measured[p])} ({c.error(p):+.0%})" for p in PARTS),
            f"{units.nbytes(c.counted_peak)} ({c.counted_error:+.1%})",
        ]
        for c in cases
    ]
    measure.table(["configuration: planned / measured", *PARTS, "counted peak"], rows)
    found = errors(cases)
    for part, error in found.items():
        reached = measure.verdict(error["median"] <= GOAL_MEDIAN and error["worst"] <= GOAL_WORST)
        print(f"{part}: median error {error['median']:.1%}, worst {error['worst']:.1%} of {len(cases)}: {reached}")
    counted = max(abs(c.counted_error) for c in cases)
    print(f"measured whole peak against the independent count: worst error {counted:.1%}")
    figures = {
        "cases": [
            {"name": c.name, "planned": c.planned, "measured": c.measured, "counted_peak": c.counted_peak}
            for c in cases
        ],
        "errors": found,
        "goal": {"median": GOAL_MEDIAN, "worst": GOAL_WORST},
        "measured_against_counted_worst": counted,
        "how": "bytes; planned by engine.planning.memory, measured by engine.pytorch.training.memory in a rehearsed step "
        "and evaluation, counted_peak from live storages and the allocator's events of a whole loop",
    }
    measure.save("memory", figures, load_before=load_before)


if __name__ == "__main__":
    main()
