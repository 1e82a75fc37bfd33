"""Inference: the runtimes that answer requests, the load on them, and the measurement of each combination."""
