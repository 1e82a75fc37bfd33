"""The fork server imports this module once, so that the process of a run starts with torch imported.

It must leave one thread and nothing on a GPU.
"""

import torch

from engine.data import loading
from engine.pytorch.training import kernels
from engine.runtime import worker  # noqa: F401

kernels.import_compiler()
torch.set_num_threads(1)
loading.preload()
_weight = torch.nn.Parameter(torch.zeros(2))
# No backward pass: on a GPU machine autograd would start threads, and a process that forks must have none.
_weight.grad = torch.zeros(2)
torch.optim.Adam([_weight], fused=True).step()
