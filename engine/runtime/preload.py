"""Imported once by the fork server, so that every run's process starts with it done. One thread, nothing on a GPU."""

import torch

from engine.data import loading
from engine.pytorch.training import kernels
from engine.runtime import worker  # noqa: F401

kernels.import_compiler()
torch.set_num_threads(1)
loading.preload()
_weight = torch.nn.Parameter(torch.zeros(2))
_weight.grad = torch.zeros(
    2
)  # no backward here: on a GPU machine autograd would start threads, and a fork must have none
torch.optim.Adam([_weight], fused=True).step()
