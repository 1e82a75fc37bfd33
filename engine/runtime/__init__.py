"""The processes of a store: the client, the supervisor and its daemon, the executor and the workers.

Imports every room below it; only `worker` and `preload` import torch.
"""
