"""What a step of training holds in memory: counted exactly where it can be, else the allocator's own peak."""

from __future__ import annotations

import os

import torch
from torch.profiler import ProfilerActivity, profile

from engine import records
from engine.planner import Plan
from engine.pytorch.data import Examples
from engine.pytorch.execution import Net

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first profile, which would announce itself on stderr
_CPU_METHOD = "weights and optimizer state counted, plus the allocator's peak in one profiled forward and backward pass"
_CUDA_METHOD = "torch.cuda.max_memory_allocated less the data set"


def measure_memory(net: Net, training: Examples, held_out: Examples, plan: Plan) -> records.Memory:
    """The memory of training as of now; weights, gradients and optimizer state as planned, which is exact. On the CPU a step is profiled (weights do not move), on CUDA the allocator
    keeps its peak by itself."""
    data = _nbytes([t for split in (training, held_out) for t in (split.x, split.y) if t is not None])
    device = net.optimizer.params[0].device
    reserved: int | None = None
    step: int | None
    if device.type == "cuda":
        resident = data if training.x.device.type == "cuda" else 0
        known = plan.weight_bytes + plan.optimizer_bytes + resident
        step = max(0, torch.cuda.max_memory_allocated(device) - known)
        reserved, method = torch.cuda.max_memory_reserved(device), _CUDA_METHOD
    else:
        step, method = _step_peak(net, training, plan.micro_batch), _CPU_METHOD
    return records.Memory(
        weight_bytes=plan.weight_bytes, gradient_bytes=plan.gradient_bytes, optimizer_bytes=plan.optimizer_bytes,
        data_bytes=data, step_peak_bytes=step, reserved_bytes=reserved, method=method,
    )  # fmt: skip


def _step_peak(net: Net, training: Examples, micro_batch: int) -> int | None:
    """Bytes the allocator held at most within a forward and backward pass of one micro-batch, gradients included."""
    batch = next(training.in_order(min(micro_batch, len(training))))
    net.forget_gradients()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        net.backward(*batch)
    net.forget_gradients()
    if profiler.profiler is None or profiler.profiler.kineto_results is None:
        return None
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def _nbytes(tensors: list[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
