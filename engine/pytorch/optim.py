"""Optimizers by name, in torch's fused form: one kernel call updates every parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from engine.config import Optimizer


def build(spec: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a spec. `gd` is sgd: the batch makes the difference."""
    match spec.name:
        case "sgd" | "gd":
            return torch.optim.SGD(parameters, lr=spec.lr, fused=True)
        case "momentum":
            return torch.optim.SGD(parameters, lr=spec.lr, momentum=spec.momentum, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, lr=spec.lr, fused=True)
