"""The training memory of a run: tensors are counted where their sizes are known, the rest is the allocator's peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from engine.events.training import Memory
from engine.planning.planner import Plan
from engine.pytorch.data import Examples
from engine.pytorch.training.net import Net

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise the first profile writes a message to stderr
_METHOD = "weights and optimizer state counted, plus the allocator's peak within one step ({})"


def measure_memory(net: Net, training: Examples, held_out: Examples, plan: Plan) -> Memory:
    """The Memory event: bytes of weights, gradients, optimizer state and data, and the allocator's peak within a step.

    The first three are those of the plan, which are exact. The peak is what one rehearsed step adds to what is
    allocated before it; the step changes nothing. Call this after the first real step, in which torch.optim allocates
    its state.
    """
    device = net.optimizer.params[0].device
    parts = 2 if plan.batch_size > plan.micro_batch else 1  # a second micro-batch adds to the gradients of the first
    batch = next(training.in_order(min(parts * plan.micro_batch, len(training))))
    x, y = (t.to(device) for t in batch)
    with net.rehearsal() as step:
        peak = allocator_peak(lambda: step(x, y), device)
    return Memory(
        weight_bytes=plan.weight_bytes,
        gradient_bytes=plan.gradient_bytes,
        optimizer_bytes=plan.optimizer_bytes,
        data_bytes=sum(t.nbytes for split in (training, held_out) for t in (split.x, split.y) if t is not None),
        step_peak_bytes=peak,
        method=_METHOD.format("max_memory_allocated" if device.type == "cuda" else "profiled"),
    )


def with_cuda_peaks(memory: Memory, device: torch.device) -> Memory:
    """`memory` with the peaks of CUDA's allocator over the whole run, in bytes."""
    peaks = {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    return memory.model_copy(update=peaks)


def allocator_peak(call: Callable[[], object], device: torch.device) -> int | None:
    """Peak bytes that PyTorch's allocator holds within a call, above those before it; None where it is not available.

    On the CPU it comes from the memory events of torch.profiler, on a GPU from torch.cuda.max_memory_allocated.
    """
    return _cuda_peak(call, device) if device.type == "cuda" else _cpu_peak(call)


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak - before


def _cpu_peak(call: Callable[[], object]) -> int | None:
    gc.collect()  # otherwise an older tensor could be freed within the profile, which would lower the peak
    gc.disable()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    finally:
        gc.enable()
    if profiler.profiler is None or profiler.profiler.kineto_results is None:
        return None
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak
