"""The training memory of a run: tensors are counted where their sizes are known, the rest is the allocator's peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from engine.events.training import Memory
from engine.planning.planner import Plan
from engine.pytorch.data import Examples
from engine.pytorch.training.net import Net

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the first profile writes a message to stderr
_METHOD = "weights and optimizer state counted, plus the allocator's peak within one step and an evaluation ({})"
_EVALUATION_BATCHES = 2  # the second one shows what an evaluation holds of the first


def measure_memory(net: Net, training: Examples, held_out: Examples, plan: Plan) -> Memory:
    """The Memory event: bytes of weights, gradients, optimizer state and data, and the allocator's peaks.

    Weights, gradients, optimizer state and an epoch's copy are those of the plan, which are exact. A peak is what one rehearsed step, or an evaluation of two
    batches, adds to what is allocated before it; neither changes anything. Call this after the first real step, in
    which torch.optim allocates its state.
    """
    device = net.optimizer.params[0].device
    parts = 2 if plan.batch_size > plan.micro_batch else 1  # a second micro-batch adds to the gradients of the first
    count = min(parts * plan.micro_batch if plan.reads_views else plan.batch_size, len(training))

    def one_step() -> None:
        batch = training.between(0, count) if plan.reads_views else training.take(training.first_index(count))
        step(*(t.to(device) for t in batch))

    some = min(_EVALUATION_BATCHES * plan.evaluation_batch, len(held_out))
    starts = range(0, some, plan.evaluation_batch)
    batches = (held_out.between(start, min(start + plan.evaluation_batch, some)) for start in starts)
    with net.rehearsal() as step:
        of_step = allocator_use(one_step, device)
        of_evaluation = allocator_use(lambda: net.sums(batches, device), device)
    return Memory(
        weight_bytes=plan.weight_bytes,
        gradient_bytes=plan.gradient_bytes,
        optimizer_bytes=plan.optimizer_bytes,
        data_bytes=sum(t.nbytes for split in (training, held_out) for t in (split.x, split.y) if t is not None),
        step_peak_bytes=of_step.peak,
        epoch_bytes=plan.epoch_bytes,
        held_bytes=of_step.held,
        evaluation_peak_bytes=of_evaluation.peak,
        checkpoint_bytes=plan.checkpoint_bytes,
        method=_METHOD.format("max_memory_allocated" if device.type == "cuda" else "profiled"),
    )


def with_cuda_peaks(memory: Memory, device: torch.device) -> Memory:
    """`memory` with the peaks of CUDA's allocator over the whole run, in bytes."""
    peaks = {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    return memory.model_copy(update=peaks)


@dataclass(frozen=True, slots=True)
class AllocatorUse:
    """Bytes that PyTorch's allocator holds above those before a call; None where they are not available."""

    peak: int | None  # most within the call
    held: int | None  # when the call is over


def allocator_peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes that PyTorch's allocator holds within a call, above those before it; None where it is not available.

    On the CPU it comes from the memory events of torch.profiler, on a GPU from torch.cuda.max_memory_allocated.
    """
    return allocator_use(call, device).peak


def allocator_use(call: Callable[[], object], device: torch.device) -> AllocatorUse:
    """As `allocator_peak`, and what the call leaves allocated."""
    return _cuda_use(call, device) if device.type == "cuda" else _cpu_use(call)


def _cuda_use(call: Callable[[], object], device: torch.device) -> AllocatorUse:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    peak, held = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return AllocatorUse(peak - before, max(0, held - before))


def _cpu_use(call: Callable[[], object]) -> AllocatorUse:
    gc.collect()  # otherwise an older tensor could be freed within the profile, which would lower the peak
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    finally:
        gc.enable()
    if profiler.profiler is None or profiler.profiler.kineto_results is None:
        return AllocatorUse(None, None)
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return AllocatorUse(peak, max(0, held))
