"""The PyTorch engine: models, data on the device, training, inference, data-parallel runs, and the tasks that use them.

Only this room, `engine.runtime.worker` and `engine.runtime.preload` import torch. It imports from the rooms before it
(tests/test_architecture.py has the order), never from `engine.runtime` or `engine.cli`.
"""
