"""Training on one device: the optimizer step, the ways to execute it, the loop around it, and what it takes.

These modules know nothing of the tasks and of other ranks.
"""
