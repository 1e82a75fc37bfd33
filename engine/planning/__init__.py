"""What a run will need, and the checks and limits that refuse a run before it starts or end it while it runs.

Imports models, hardware, store and access; never torch.
"""
