"""Side-by-side measurements: `python -m benchmarks.training_loop`, `.recording`, `.latency`; results in `results/`."""

import os

# libgomp reads these when torch is imported: one thread, and none that spins while it waits (as engine.executor does).
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
