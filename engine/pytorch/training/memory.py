"""What a step of training holds in memory: counted exactly where it can be, else the allocator's own peak."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from engine.events.training import Memory
from engine.planning.planner import Plan
from engine.pytorch.data import Examples
from engine.pytorch.training.steppers import Net

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first profile, which would announce itself on stderr
_METHOD = "weights and optimizer state counted, plus the allocator's peak within one step ({})"


def measure_memory(net: Net, training: Examples, held_out: Examples, plan: Plan) -> Memory:
    """The memory of training: weights, gradients and optimizer state as planned, which is exact, and the allocator's
    peak above them within a step that is rehearsed and moves nothing. To be asked after the first real step, in which
    torch.optim allocates its state."""
    device = net.optimizer.params[0].device
    parts = 2 if plan.batch_size > plan.micro_batch else 1  # the second one adds to the gradients of the first
    batch = next(training.in_order(min(parts * plan.micro_batch, len(training))))
    x, y = (t.to(device) for t in batch)
    with net.rehearsal() as step:
        peak = allocator_peak(lambda: step(x, y), device)
    return Memory(
        weight_bytes=plan.weight_bytes, gradient_bytes=plan.gradient_bytes, optimizer_bytes=plan.optimizer_bytes,
        data_bytes=_nbytes([t for split in (training, held_out) for t in (split.x, split.y) if t is not None]),
        step_peak_bytes=peak, method=_METHOD.format("max_memory_allocated" if device.type == "cuda" else "profiled"),
    )  # fmt: skip


def with_cuda_peaks(memory: Memory, device: torch.device) -> Memory:
    """The same, with what the whole run held at most."""
    peaks = {
        "allocated_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": torch.cuda.max_memory_reserved(device),
    }
    return memory.model_copy(update=peaks)


def allocator_peak(call: Callable[[], object], device: torch.device) -> int | None:
    """What PyTorch's allocator held at most within a call, above what it held before; None where it does not say."""
    return _cuda_peak(call, device) if device.type == "cuda" else _cpu_peak(call)


def _cuda_peak(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak - before


def _cpu_peak(call: Callable[[], object]) -> int | None:
    gc.collect()  # or a tensor from before may be freed within the profile, and be missed
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


def _nbytes(tensors: list[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
